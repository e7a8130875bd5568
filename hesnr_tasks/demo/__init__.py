"""What is shipped to try things on; README.md says how it was made.

The miniature, which `hesnr demo` scores; and trajectories of a scripted agent, which the tasks read where nothing else
is named, with a ladder of six tiny checkpoints.
"""

from __future__ import annotations

import re
from pathlib import Path

from hesnr_tasks.errors import DataError

__all__ = ["ladder_file", "ladder_paths", "miniature_file", "trajectories_path"]

HERE = Path(__file__).resolve().parent
NAME = re.compile(r"step(\d+)-(\d+)k")  # optimiser steps, context in units of 1024 tokens


def trajectories_path() -> Path:
    """The demo trajectories, a `hesnr-trajectory-1` file."""
    return _existing(HERE / "trajectories.jsonl")


def ladder_file() -> Path:
    """The ladder file of the six tiny checkpoints."""
    return _existing(HERE / "ladder.yaml")


def miniature_file() -> Path:
    """The ladder file of the miniature, with downstream scores: what `hesnr demo` runs."""
    return _existing(HERE / "miniature" / "ladder.yaml")


def ladder_paths() -> list[tuple[str, Path]]:
    """Name and folder of each checkpoint, in the order of training."""
    matches = [(match, path) for path in _existing(HERE / "ladder").iterdir() if (match := NAME.fullmatch(path.name))]
    matches.sort(key=lambda item: (int(item[0][1]), int(item[0][2])))
    return [(path.name, path) for _, path in matches]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} is missing: this copy of hesnr-tasks has no demo files. Install it again.")
    return path
