"""Rows of a data set on the Hugging Face hub, streamed through `datasets` (imported only here)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.fields import Where
from hesnr_tasks.formats.records import Record

__all__ = ["rows"]


def rows(name: str, config: str | None, split: str | None) -> Iterator[Record]:
    """Every row of the split (default: of all splits, by name) of a configuration; `DataError` if it cannot be had."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name!r} is no file here, and reading it from the hub needs `datasets`: pip install 'hesnr-tasks[hf]'"
        ) from None
    try:
        loaded = datasets.load_dataset(name, config, split=split, streaming=True)
        parts = {split: loaded} if split else dict(sorted(loaded.items()))
        for part, data in parts.items():
            for i, value in enumerate(data, 1):
                yield Record(value, Where(f"{name}[{part}]", i), True)
    except Exception as error:  # the hub, the network and arrow raise what they like
        raise DataError(
            f"the data set {name!r} cannot be read from the hub ({_first_line(error)}). It is no file or folder here "
            f"either; check the name, the config, the split and the network, or download it and give the path."
        ) from error


def _first_line(error: Exception) -> str:
    text: Any = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:300]}"
