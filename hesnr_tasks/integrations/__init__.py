"""HE-SNR beside a training run: a Trainer callback, and a watcher of checkpoint folders."""

from __future__ import annotations

from typing import Any

__all__ = ["HESNRCallback"]


def __getattr__(name: str) -> Any:
    """The callback, imported when it is used: it needs `transformers`."""
    if name == "HESNRCallback":
        from hesnr_tasks.integrations.callback import HESNRCallback

        return HESNRCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
