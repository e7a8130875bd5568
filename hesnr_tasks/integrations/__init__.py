"""HE-SNR beside a training run: a Trainer callback.

Nothing here is imported until it is used: the callback needs `transformers`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["HESNRCallback"]


def __getattr__(name: str) -> Any:
    """Import the callback when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hesnr_tasks.integrations.callback import HESNRCallback

    return HESNRCallback
