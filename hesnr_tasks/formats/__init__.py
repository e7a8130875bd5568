"""Trajectories of any agent: files, globs, folders, compressed files, hub ids; formats are recognised by content.

A format is a `base.Format`: two functions of decoded JSON, `detect` and `read`. `registry.FORMATS` lists them in the
order in which they are tried, `sources` finds and decodes records, `pipeline` runs a reading.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.formats.base import Problem, ReadReport
from hesnr_tasks.formats.pipeline import Reading
from hesnr_tasks.formats.sources import hub_rows, is_hub_id, source_paths
from hesnr_tasks.trajectory import Trajectory

__all__ = [
    "ReadReport",
    "load",
    "no_trajectory_message",
    "read_trajectories",
    "seeded_subset",
    "source_label",
    "trajectory_identity",
]

T = TypeVar("T")
_LOG = logging.getLogger("hesnr_tasks")


def read_trajectories(
    source: str | Sequence[str],
    *,
    config: str | None = None,
    split: str | None = None,
    on_error: str = "fail",
    format: str | None = None,
    report: ReadReport | None = None,
) -> Iterator[Trajectory]:
    """Every trajectory of `source`, in a fixed order (named order; sorted paths inside globs and folders), streaming.

    Args:
        source: a file, glob, folder or hub id (`owner/name`), or a list of those.
        config: the configuration of a hub data set.
        split: the split of a hub data set (default: all, by name).
        on_error: `fail` or `skip` bad records, counted in `report`.
        format: a name of `registry.FORMATS`, instead of detection.
        report: takes in counts, warnings and the formats of files.

    Raises:
        DataError: with `on_error="fail"`, once everything is read, listing the bad records (20 at most).
        SettingsError: for an unknown `on_error` or `format`.
    """
    if on_error not in ("fail", "skip"):
        raise SettingsError(f"on_error is {on_error!r}; it must be fail or skip")
    reading = Reading(report if report is not None else ReadReport(), on_error, format)
    return _read(source, config, split, reading)


def _read(source: str | Sequence[str], config: str | None, split: str | None, reading: Reading) -> Iterator[Trajectory]:
    for item in source_paths(source, reading.report):
        if isinstance(item, Problem):
            reading.problem(item)
            continue
        path, was_named = item
        if is_hub_id(path):
            yield from reading.rows(path, functools.partial(hub_rows, path, config, split))
        else:
            yield from reading.file(path, was_named)
    reading.close()


def load(
    source: str | Sequence[str],
    *,
    config: str | None = None,
    split: str | None = None,
    only_resolved: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    sample_seed: int = 0,
    on_error: str = "fail",
) -> list[Trajectory]:
    """The trajectories of `source` for a task; what was skipped or odd is logged as warnings.

    Args:
        source: as in `read_trajectories`; so are `config`, `split` and `on_error`.
        only_resolved: keep the runs that solved their task.
        limit: at most so many, the first.
        sample: of these, a `seeded_subset` of so many, without holding more than that in memory.

    Raises:
        DataError: nothing is left, or as in `read_trajectories`.
    """
    report = ReadReport()
    outcomes: Counter[bool | None] = Counter()
    trajectories = read_trajectories(source, config=config, split=split, on_error=on_error, report=report)

    def counted() -> Iterator[Trajectory]:
        for trajectory in trajectories:
            outcomes[trajectory.resolved] += 1
            if trajectory.resolved or not only_resolved:
                yield trajectory

    first = itertools.islice(counted(), limit)
    loaded = list(first) if sample is None else seeded_subset(first, sample, sample_seed, key=trajectory_identity)
    for line in report.lines():
        _LOG.warning("%s: %s", source_label(source), line)
    if not loaded:
        raise DataError(no_trajectory_message(source, only_resolved, outcomes, report))
    return loaded


def seeded_subset(items: Iterable[T], n: int, seed: int, *, key: Callable[[T], str]) -> list[T]:
    """The `n` items of the lowest ranks, in the order of ranks; holds `n` items at a time.

    A rank is a hash of the seed and the identity `key` gives, so neither the order of files nor new rows reshuffle the
    subset: a new item joins only if its rank is among the lowest, and a smaller subset is the beginning of a larger.
    """
    if n < 1:
        raise SettingsError(f"a sample must have at least 1 item, not {n}")

    def rank(item: T) -> bytes:
        return hashlib.sha256(f"{seed}\n{key(item)}".encode(errors="surrogatepass")).digest()

    return heapq.nsmallest(n, items, key=rank)


def trajectory_identity(trajectory: Trajectory) -> str:
    """The instance and a hash of the messages' text: ids may be given out in the order of rows."""
    digest = hashlib.sha256()
    for message in trajectory.messages:
        text = message.text.encode(errors="surrogatepass")
        digest.update(f"{message.role} {len(text)}\n".encode())
        digest.update(text)
    return f"{trajectory.instance_id or ''}\n{digest.hexdigest()}"


def source_label(source: str | Sequence[str]) -> str:
    """The name or names the user gave, for a message."""
    names = [source] if isinstance(source, str) else list(source)
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def no_trajectory_message(
    source: str | Sequence[str], only_resolved: bool, outcomes: Counter[bool | None], report: ReadReport
) -> str:
    """The message for users when no trajectory is left; `outcomes` counts those that were read well."""
    if only_resolved and outcomes:
        return (
            f"no resolved trajectory is left in {source_label(source)}: {outcomes[True]} are resolved, "
            f"{outcomes[False]} are not, {outcomes[None]} have no known outcome. Join the evaluation reports with "
            f"`hesnr convert --outcomes report.json`, or set only_resolved=false."
        )
    why = " ".join(line.rstrip(".") + "." for line in report.lines())
    return f"no trajectory was found in {source_label(source)}. {why}".rstrip()
