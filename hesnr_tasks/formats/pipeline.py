"""One reading of many files: detect, read, count, and either stop with every bad record named or go on without them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import atif, episodes, inspect_ai, registry, siblings
from hesnr_tasks.formats.fields import Where, as_list
from hesnr_tasks.formats.records import Record, records
from hesnr_tasks.formats.report import Problem, ReadReport
from hesnr_tasks.trajectory import Trajectory

__all__ = ["MAX_PROBLEMS", "Reading"]

MAX_PROBLEMS = 20
_TIMES = re.compile(r"(.*) \((\d{1,9}) times\)", re.DOTALL)
_SNIFFED = 16  # lines looked at to see whether a file is one session

Items = Iterable["Record | Problem"]


class Reading:
    """The state of one reading: its report, the problems found so far, and the ids given out."""

    def __init__(self, report: ReadReport, on_error: str, format: str | None) -> None:
        self.report = report
        self._skip = on_error == "skip"
        self._forced = registry.named(format) if format else None
        self._problems: list[Problem] = []
        self._ids: set[str] = set()
        self._copies: Counter[str] = Counter()

    def problem(self, problem: Problem) -> None:
        """Take in what is wrong with a place that holds no record: a folder that may not be read, a dangling link."""
        self._bad(problem)

    def file(self, path: str, was_named: bool) -> Iterator[Trajectory]:
        """The trajectories of one file; a file found in a folder that is of no known format is only counted."""
        return self.rows(path, lambda: records(path), was_named)

    def rows(self, path: str, source: Callable[[], Items], was_named: bool = True) -> Iterator[Trajectory]:
        """The trajectories among decoded records, which `source` gives anew at each call."""
        for record in self._units(path, source):
            trajectory = self._one(path, record, was_named)
            if trajectory is not None and not self._problems:
                yield trajectory

    def close(self) -> None:
        """Raise what was collected."""
        if not self._problems:
            return
        full = len(self._problems) >= MAX_PROBLEMS
        listed = "\n".join(f"  {problem}" for problem in self._problems)
        raise DataError(
            f"{len(self._problems)} record{'s' if len(self._problems) > 1 else ''} cannot be read"
            f"{' (reading stopped there)' if full else ''}:\n{listed}\n"
            f"Mend or remove them, or leave them out, counted, with --on-error skip."
        )

    # --- units: what one trajectory is read from ---

    def _units(self, path: str, source: Callable[[], Items]) -> Iterator[Record | Problem]:
        found = self._with_remarks(source())
        first = list(itertools.islice(found, _SNIFFED))
        lines = [r.value for r in first if isinstance(r, Record) and r.is_line]
        rest = itertools.chain(first, found)
        if self._is_session(lines):
            yield from self._session(path, rest)
        elif lines and episodes.is_episode(lines[0]):
            last = episodes.last_episodes(source())
            yield from episodes.without_prefixes(rest, last, self.report)
        else:
            for record in rest:
                yield from _expanded(record)

    def _with_remarks(self, found: Items) -> Iterator[Record | Problem]:
        for record in found:
            if isinstance(record, Record):
                for key, size in record.duplicates.items():
                    self.report.warn(f"the key {key!r} is in one object more than once; only the last value is read")
                    self.report.left_out += size
            yield record

    def _is_session(self, lines: list[object]) -> bool:
        if self._forced:
            return bool(lines) and getattr(self._forced, "SESSION", False) and not self._forced.detect(lines[0])
        return registry.choose_session(lines) is not None

    def _session(self, path: str, found: Items) -> Iterator[Record | Problem]:
        """All lines of a file as one record; a half-written last line is only warned about."""
        values, problems = [], []
        for record in found:
            if isinstance(record, Record):
                values.append(record.value)
            elif record.reason != "blank line":
                problems.append((len(values), record))
        for place, problem in problems:
            if place == len(values) and problem is problems[-1][1]:
                self.report.warn(f"a session's last line is cut off and is left out ({problem.where})")
            else:
                yield problem
        yield Record(values, Where(path), False)

    # --- one record ---

    def _one(self, path: str, record: Record | Problem, was_named: bool) -> Trajectory | None:
        if isinstance(record, Problem):
            self._bad(record)
            return None
        value = registry.unpacked(record.value)
        chosen = (self._forced, None) if self._forced else registry.choose(value)
        if chosen is None:
            self._unknown(record, was_named)
            return None
        reader, found = chosen
        if found:
            self.report.formats.setdefault(path, found)
        try:
            trajectory = registry.read_with(reader, value, record.where)
        except DataError as error:
            self._bad(Problem(record.where, "malformed record", str(error)))
            return None
        if reader.NAME == atif.NAME:
            trajectory = siblings.with_trial(trajectory, record.where.path, self.report)
        return self._kept(trajectory, record.where)

    def _kept(self, trajectory: Trajectory, where: Where) -> Trajectory | None:
        self.report.read += 1
        if not any(message.generated for message in trajectory.messages):
            text = f"trajectory {trajectory.id!r} has no assistant turn: there is nothing to score"
            self.report.skip(Problem(where, "no assistant turn", text))
            return None
        self.report.kept += 1
        for warning in registry.warnings_of(trajectory):
            self.report.warn(*_counted(warning))
        lost = trajectory.meta.get("left_out_characters")
        self.report.left_out += lost if type(lost) is int and lost > 0 else 0
        return self._unique(trajectory)

    def _unique(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory under an id that no other of this reading has."""
        name = trajectory.id
        if name in self._ids:
            self.report.warn("an id occurs more than once; the later ones get the suffix #2, #3, …")
            self._copies[name] += 1
            while (renamed := f"{name}#{self._copies[name] + 1}") in self._ids:
                self._copies[name] += 1
            trajectory = replace(trajectory, id=renamed)
        self._ids.add(trajectory.id)
        return trajectory

    def _bad(self, problem: Problem) -> None:
        if problem.reason == "blank line":
            self.report.warn("a blank line is passed over", int(problem.text))
            return
        self.report.read += 1
        if self._skip:
            self.report.skip(problem)
            return
        self._problems.append(problem)
        if len(self._problems) >= MAX_PROBLEMS:
            self.close()

    def _unknown(self, record: Record, was_named: bool) -> None:
        problem = Problem(record.where, "unknown format", registry.describe(record.value))
        if was_named or record.is_line:
            self._bad(problem)
        else:
            self.report.read += 1
            self.report.skip(problem)


def _counted(warning: str) -> tuple[str, int]:
    """A warning and how often it occurred, which it may say itself at its end."""
    match = _TIMES.fullmatch(warning)
    return (match[1], int(match[2])) if match else (warning, 1)


def _expanded(record: Record | Problem) -> Iterator[Record | Problem]:
    """A JSON list that is no trajectory itself is a list of rows; a whole inspect_ai log is a list of samples."""
    if isinstance(record, Problem):
        yield record
        return
    values = inspect_ai.samples(record.value)
    if values is None:
        listed = None if record.is_line or registry.choose(record.value) else as_list(record.value)
        values = iter(listed) if listed else None
    if values is None:
        yield record
        return
    empty = True
    for i, value in enumerate(values, 1):
        empty = False
        yield record._replace(value=value, where=replace(record.where, line=i))
    if empty:
        yield record
