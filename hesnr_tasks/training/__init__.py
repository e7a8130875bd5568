"""Beside a training run: HE-SNR while the model is in training, and advantages shaped by entropy.

Nothing here is imported until it is asked for: `transformers`, `trl` and `verl` are needed by some of it only.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["EntropyShapedGRPOTrainer", "EntropyShapedPPOLoss", "HESNRCallback", "entropy_shaped_advantage"]

_HOMES = {
    "EntropyShapedGRPOTrainer": "trl",
    "EntropyShapedPPOLoss": "verl",
    "HESNRCallback": "callback",
    "entropy_shaped_advantage": "advantage",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
