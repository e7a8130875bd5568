"""The project's own file: `"format": "hesnr-trajectory-1"`, one trajectory a line, every segment labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.fields import Where
from hesnr_tasks.trajectory import FORMAT, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "hesnr"
RULE = "'format' starts with hesnr-trajectory-"


def detect(record: Any) -> float:
    """Whether the record says so itself."""
    named = record.get("format") if isinstance(record, Mapping) else None
    return float(isinstance(named, str) and named.startswith("hesnr-trajectory-"))


def read(record: Any, where: Where) -> Trajectory:
    """Read one line; `DataError` names the first field that is wrong."""
    if record.get("format") != FORMAT:
        raise DataError(
            f"'format' is {record.get('format')!r}, which this version cannot read (it reads {FORMAT!r}); "
            f"update hesnr-tasks or convert the file again"
        )
    return Trajectory.from_json(record)
