"""HE-SNR beside a training run: a Trainer callback, and a watcher of checkpoint folders.

Nothing here is imported until it is used: the callback needs `transformers`.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["HESNRCallback"]

_HOMES = {
    "HESNRCallback": "callback",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
