"""What is shipped to try things on; README.md says how it was made.

The miniature, a ladder of twelve tiny checkpoints with downstream scores, which `hesnr demo` scores; and trajectories
of a scripted agent, which the tasks read where nothing else is named.
"""

from __future__ import annotations

from pathlib import Path

from hesnr_tasks.errors import DataError

HERE = Path(__file__).resolve().parent


def trajectories_path() -> Path:
    """The demo trajectories, a `hesnr-trajectory-1` file."""
    return _existing(HERE / "trajectories.jsonl")


def ladder_file() -> Path:
    """The ladder file of the miniature, with downstream scores: what `hesnr demo` runs."""
    return _existing(HERE / "miniature" / "ladder.yaml")


def ladder_trajectories_path() -> Path:
    """The 100 runs of an expert on which the miniature is scored; each fits into the shortest context, 384 tokens."""
    return _existing(HERE / "miniature" / "trajectories.jsonl")


def ladder_paths() -> list[tuple[str, Path]]:
    """Name and folder of each checkpoint of the miniature: by family, in the order of training."""
    return [(path.name, path) for path in sorted(_existing(HERE / "miniature" / "checkpoints").iterdir())]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} is missing: this copy of hesnr-tasks has no demo files. Install it again.")
    return path
