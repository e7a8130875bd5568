"""Trajectories from whatever agent wrote them: files, globs, folders, `.gz`, hub ids; the format is found by content.

One module per format, each with `NAME`, `RULE`, `detect(record)` and `read(record, where)`, pure functions of decoded
JSON. `registry` lists them in the order in which they are tried.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.formats import hub
from hesnr_tasks.formats.files import find, is_hub_id
from hesnr_tasks.formats.pipeline import Reading
from hesnr_tasks.formats.report import Problem, ReadReport, named, nothing_left
from hesnr_tasks.tasks.subset import identity, sampled
from hesnr_tasks.trajectory import Trajectory

__all__ = ["ReadReport", "load", "read_trajectories"]

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

    `on_error="fail"`: `DataError` once everything is read, listing the bad records (20 at most); `"skip"`: they are
    counted in `report`. `format` forces a reader by name. `config` and `split` choose a part of a hub
    data set.
    """
    if on_error not in ("fail", "skip"):
        raise SettingsError(f"on_error is {on_error!r}; it must be fail or skip")
    reading = Reading(report if report is not None else ReadReport(), on_error, format)
    return _read(source, config, split, reading)


def _read(source: str | Sequence[str], config: str | None, split: str | None, reading: Reading) -> Iterator[Trajectory]:
    for found in find(source, reading.report):
        if isinstance(found, Problem):
            reading.problem(found)
            continue
        path, was_named = found
        if is_hub_id(path):
            yield from reading.rows(path, functools.partial(hub.rows, path, config, split))
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
    """The trajectories of `source` for a task, of solved runs only if `only_resolved`.

    At most the first `limit`; of these a seeded `sample` (sampling.py), without holding more than that in memory.
    `DataError` if nothing is left. What was skipped or odd is logged as warnings.
    """
    report = ReadReport()
    outcomes: Counter[bool | None] = Counter()
    found = read_trajectories(source, config=config, split=split, on_error=on_error, report=report)
    kept = _counted(found, only_resolved, outcomes)
    first = itertools.islice(kept, limit)
    loaded = list(first) if sample is None else sampled(first, sample, sample_seed, key=identity)
    for line in report.lines():
        _LOG.warning("%s: %s", named(source), line)
    if not loaded:
        raise DataError(nothing_left(source, only_resolved, outcomes, report))
    return loaded


def _counted(found: Iterator[Trajectory], only: bool, outcomes: Counter[bool | None]) -> Iterator[Trajectory]:
    for trajectory in found:
        outcomes[trajectory.resolved] += 1
        if trajectory.resolved or not only:
            yield trajectory
