"""Harbor's trace-export rows: every row is a prefix of a run, so only the last episode of each trial is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hesnr_tasks.formats.fields import scalar_text
from hesnr_tasks.formats.records import Record
from hesnr_tasks.formats.report import Problem, ReadReport

__all__ = ["is_episode", "last_episodes", "without_prefixes"]


def is_episode(value: Any) -> bool:
    """Whether a row is one episode of a trial."""
    return (
        isinstance(value, Mapping) and "conversations" in value and bool(value.get("trial_name")) and "episode" in value
    )


def last_episodes(found: Iterable[Record | Problem]) -> dict[str, tuple[int, str]]:
    """The rank of the last episode per trial, from one pass over the rows."""
    last: dict[str, tuple[int, str]] = {}
    for record in found:
        if isinstance(record, Record) and is_episode(record.value):
            trial = str(record.value["trial_name"])
            last[trial] = max(last.get(trial, (-1, "")), _rank(record.value))
    return last


def without_prefixes(
    found: Iterable[Record | Problem], last: Mapping[str, tuple[int, str]], report: ReadReport
) -> Iterator[Record | Problem]:
    """The rows without those that a later episode of the same trial repeats."""
    for record in found:
        repeated = (
            isinstance(record, Record)
            and is_episode(record.value)
            and _rank(record.value) < last[str(record.value["trial_name"])]
        )
        if repeated and isinstance(record, Record):
            report.read += 1
            report.skip(Problem(record.where, "earlier episode", "a later episode of the trial repeats this row"))
        else:
            yield record


def _rank(value: Mapping[str, Any]) -> tuple[int, str]:
    """Episodes are numbers or end in one (`episode-12`)."""
    text = scalar_text(value.get("episode")) or ""
    digits = "".join(c for c in text.rsplit("-", 1)[-1] if c.isdecimal())[:9]
    return int(digits or "0"), text
