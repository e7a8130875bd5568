"""Reinforcement learning with advantages shaped by entropy (arXiv 2506.14758), for TRL and verl.

Nothing here is imported until it is used: `trl` and `verl` are needed by some of it only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["EntropyShapedGRPOTrainer", "EntropyShapedPPOLoss", "entropy_shaped_advantage"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'trl' if name == 'EntropyShapedGRPOTrainer' else 'advantage'}"), name)
