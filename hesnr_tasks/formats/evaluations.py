"""Outcomes from evaluation reports, kept apart from the runs: which instances were solved.

Shapes read (SWE-bench, SWE-smith, OpenHands): a run's report with lists of ids; `{id: {"resolved": …}}` per instance; a
flat `{"resolved": …}` in the instance's folder; JSON Lines with `instance_id` and a report. An instance whose
evaluation failed or did not run is unknown, not unsolved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.fields import as_list, deep, scalar_text
from hesnr_tasks.formats.files import find, walk
from hesnr_tasks.formats.outcome import resolved_of
from hesnr_tasks.formats.records import records
from hesnr_tasks.formats.report import Problem, ReadReport

__all__ = ["read_outcomes"]

_LISTS: dict[str, bool | None] = {
    "resolved_ids": True,
    "resolved": True,
    "unresolved_ids": False,
    "unresolved": False,
    "empty_patch_ids": False,
    "no_generation": False,
    "no_apply": False,
    "error_ids": None,
    "incomplete_ids": None,
}


def read_outcomes(paths: Sequence[str]) -> dict[str, bool | None]:
    """Instance id → solved, not solved or unknown, from all reports.

    `DataError` for a file that is no report, and for an instance that two reports judge differently.
    """
    outcomes: dict[str, bool | None] = {}
    origin: dict[str, str] = {}
    for path in _files(paths):
        found = dict(_judged(path))
        if not found:
            raise DataError(
                f"{path} is no evaluation report: it has no 'resolved_ids', no 'resolved' and no instance with one. "
                f"Give SWE-bench's run report or the report.json of instances to --outcomes."
            )
        for instance, resolved in found.items():
            if instance in outcomes and outcomes[instance] is not resolved:
                raise DataError(
                    f"the reports {origin[instance]} and {path} judge {instance!r} differently; "
                    f"give only the report of the runs that are converted"
                )
            outcomes[instance], origin[instance] = resolved, path
    return outcomes


def _files(paths: Sequence[str]) -> Iterator[str]:
    """Files as they are; in folders every report.json."""
    for path in paths:
        if Path(path).is_dir():
            walked = list(walk(Path(path)))
            for found in walked:
                if isinstance(found, Problem):
                    raise DataError(f"the evaluation reports cannot all be read: {found}")
            inside = sorted(str(found) for found in walked if isinstance(found, Path) and found.name == "report.json")
            if not inside:
                raise DataError(f"the folder {path!r} holds no report.json; name the report file")
            yield from inside
        else:
            for place in find([str(Path(path))], ReadReport()):
                if isinstance(place, Problem):
                    raise DataError(f"the evaluation report cannot be read: {place}")
                yield place[0]


def _judged(path: str) -> Iterator[tuple[str, bool | None]]:
    for record in records(path):
        if isinstance(record, Problem):
            if record.reason != "blank line":
                raise DataError(f"the evaluation report cannot be read: {record}")
        elif isinstance(record.value, Mapping):
            yield from _report(record.value, Path(path))


def _report(report: Mapping[str, Any], path: Path) -> Iterator[tuple[str, bool | None]]:
    listed = [key for key in _LISTS if as_list(report.get(key)) is not None]
    for key in reversed(listed):  # an id in several lists: the earlier key of the table decides
        for instance in as_list(report[key]) or []:
            if name := scalar_text(instance):
                yield name, _LISTS[key]
    if listed:
        return
    own = scalar_text(report.get("instance_id"))
    stored = _stored(report)
    if stored is not None:
        yield own or path.parent.name, resolved_of(stored)
        return
    for instance, value in report.items():
        if isinstance(value, Mapping) and _stored(value) is not None:
            yield instance, resolved_of(_stored(value))


def _stored(report: Mapping[str, Any]) -> Any:
    for keys in (("resolved",), ("report", "resolved"), ("test_result", "report", "resolved")):
        value = deep(report, *keys)
        if value is not None:
            return value
    return None
