"""One reading of many files: detect, read, count, and either stop with every bad record named or go on without them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import registry
from hesnr_tasks.formats.base import Format, Problem, ReadReport, Where
from hesnr_tasks.formats.json_access import as_list
from hesnr_tasks.formats.sources import Record, records
from hesnr_tasks.trajectory import Trajectory

_MAX_PROBLEMS = 20
_TIMES = re.compile(r"(.*) \((\d{1,9}) times\)", re.DOTALL)
_SNIFFED = 16  # lines looked at to see whether a file is one session

Items = Iterable["Record | Problem"]


class Reading:
    """The state of one reading: its report, its problems so far, and the ids in use."""

    def __init__(self, report: ReadReport, on_error: str, format: str | None) -> None:
        self.report = report
        self._skip = on_error == "skip"
        self._forced = registry.format_of_name(format) if format else None
        self._problems: list[Problem] = []
        self._ids: set[str] = set()
        self._copies: Counter[str] = Counter()

    def file(self, path: str, was_named: bool) -> Iterator[Trajectory]:
        """The trajectories of one file; one in a folder that is of no known format is only counted."""
        return self.rows(path, lambda: records(path), was_named)

    def rows(self, path: str, source: Callable[[], Items], was_named: bool = True) -> Iterator[Trajectory]:
        """The trajectories among decoded records, which `source` gives anew at each call."""
        for record in self._units(path, source):
            trajectory = self._read(path, record, was_named)
            if trajectory is not None and not self._problems:
                yield trajectory

    def problem(self, problem: Problem) -> None:
        """Count a record, or a place that may not be read, that is bad; raise all of them once there are too many."""
        if problem.reason == "blank line":
            self.report.warn("a blank line is passed over", int(problem.text))
            return
        self.report.read += 1
        if self._skip:
            self.report.skip(problem)
            return
        self._problems.append(problem)
        if len(self._problems) >= _MAX_PROBLEMS:
            self.close()

    def close(self) -> None:
        """Raise the problems of this reading as one `DataError`."""
        if not self._problems:
            return
        full = len(self._problems) >= _MAX_PROBLEMS
        listed = "\n".join(f"  {problem}" for problem in self._problems)
        raise DataError(
            f"{len(self._problems)} record{'s' if len(self._problems) > 1 else ''} cannot be read"
            f"{' (reading stopped there)' if full else ''}:\n{listed}\n"
            f"Mend or remove them, or leave them out, counted, with --on-error skip."
        )

    # --- units: what one trajectory is read from ---

    def _units(self, path: str, source: Callable[[], Items]) -> Iterator[Record | Problem]:
        items = self._with_remarks(source())
        first = list(itertools.islice(items, _SNIFFED))
        lines = [r.value for r in first if isinstance(r, Record) and r.is_line]
        rest = itertools.chain(first, items)
        if self._is_session(lines):
            yield from self._session(path, rest)
            return
        ranked = (format for format in registry.FORMATS if format.prefix_rank and format.prefix_rank(lines[0]))
        if lines and (format := next(ranked, None)):
            yield from self._without_prefixes(rest, source, format)
            return
        for record in rest:
            yield from _expanded(record)

    def _with_remarks(self, items: Items) -> Iterator[Record | Problem]:
        for record in items:
            if isinstance(record, Record):
                for key, size in record.duplicates.items():
                    self.report.warn(f"the key {key!r} is in one object more than once; only the last value is read")
                    self.report.left_out += size
            yield record

    def _is_session(self, lines: list[object]) -> bool:
        if self._forced:
            return bool(lines) and self._forced.is_session and not self._forced.detect(lines[0])
        return registry.choose_session(lines) is not None

    def _session(self, path: str, items: Items) -> Iterator[Record | Problem]:
        """All lines of a file as one record; a half-written last line is only warned about."""
        values, problems = [], []
        for record in items:
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

    def _without_prefixes(
        self, items: Items, source: Callable[[], Items], format: Format
    ) -> Iterator[Record | Problem]:
        """The rows without those that a later row of the same run repeats; reads `source` twice."""
        prefix_rank = format.prefix_rank or (lambda _: None)
        last: dict[str, tuple[int, str]] = {}
        for record in source():
            if isinstance(record, Record) and (ranked := prefix_rank(record.value)):
                last[ranked[0]] = max(last.get(ranked[0], (-1, "")), ranked[1])
        for record in items:
            ranked = prefix_rank(record.value) if isinstance(record, Record) else None
            if ranked and ranked[1] < last[ranked[0]]:
                self.report.read += 1
                text = "a later episode of the trial repeats this row"
                self.report.skip(Problem(record.where, "earlier episode", text))
            else:
                yield record

    # --- one record ---

    def _read(self, path: str, record: Record | Problem, was_named: bool) -> Trajectory | None:
        if isinstance(record, Problem):
            self.problem(record)
            return None
        value = registry.unpacked(record.value)
        chosen = (self._forced, None) if self._forced else registry.choose(value)
        if chosen is None:
            problem = Problem(record.where, "unknown format", registry.unknown_format(record.value))
            if was_named or record.is_line:
                self.problem(problem)
            else:
                self.report.read += 1
                self.report.skip(problem)
            return None
        format, detected = chosen
        if detected:
            self.report.formats.setdefault(path, detected)
        try:
            trajectory = registry.read_record(format, value, record.where)
        except DataError as error:
            self.problem(Problem(record.where, "malformed record", str(error)))
            return None
        if format.attach:
            trajectory = format.attach(trajectory, record.where.path, self.report)
        return self._counted(trajectory, record.where)

    def _counted(self, trajectory: Trajectory, where: Where) -> Trajectory | None:
        self.report.read += 1
        if not any(message.generated for message in trajectory.messages):
            text = f"trajectory {trajectory.id!r} has no assistant turn: there is nothing to score"
            self.report.skip(Problem(where, "no assistant turn", text))
            return None
        self.report.kept += 1
        for warning in registry.warnings_of(trajectory):  # it may say itself how often it occurred
            times = _TIMES.fullmatch(warning)
            self.report.warn(*((times[1], int(times[2])) if times else (warning, 1)))
        lost = trajectory.meta.get("left_out_characters")
        self.report.left_out += lost if type(lost) is int and lost > 0 else 0
        return self._with_unique_id(trajectory)

    def _with_unique_id(self, trajectory: Trajectory) -> Trajectory:
        name = trajectory.id
        if name in self._ids:
            self.report.warn("an id occurs more than once; the later ones get the suffix #2, #3, …")
            self._copies[name] += 1
            while (renamed := f"{name}#{self._copies[name] + 1}") in self._ids:
                self._copies[name] += 1
            trajectory = replace(trajectory, id=renamed)
        self._ids.add(trajectory.id)
        return trajectory


def _expanded(record: Record | Problem) -> Iterator[Record | Problem]:
    """The records inside one that holds several, such as a whole log, or a JSON list that is no trajectory itself."""
    if isinstance(record, Problem):
        yield record
        return
    expansions = (format.expand(record.value) for format in registry.FORMATS if format.expand)
    values = next((inside for inside in expansions if inside is not None), None)
    if values is None and not record.is_line and not registry.choose(record.value):
        values = iter(as_list(record.value) or [])
    empty = True
    for i, value in enumerate(values or [], 1):
        empty = False
        yield record._replace(value=value, where=replace(record.where, line=i))
    if empty:
        yield record
