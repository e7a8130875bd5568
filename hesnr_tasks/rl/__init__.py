"""Reinforcement learning with advantages shaped by entropy (arXiv 2506.14758), for TRL and verl.

Nothing here is imported until it is used: `trl` and `verl` are needed by some of it only.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["EntropyShapedGRPOTrainer", "EntropyShapedPPOLoss", "entropy_shaped_advantage"]

_HOMES = {
    "EntropyShapedGRPOTrainer": "trl",
    "EntropyShapedPPOLoss": "verl",
    "entropy_shaped_advantage": "advantage",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
