"""One reading of many files: detect, read, count, and either stop with every bad record named or go on without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from hesnr_tasks.errors import DataError
from hesnr_tasks.readers import registry
from hesnr_tasks.readers.fields import as_list
from hesnr_tasks.readers.records import Record, records
from hesnr_tasks.readers.report import Problem, ReadReport
from hesnr_tasks.trajectory import Trajectory

__all__ = ["MAX_PROBLEMS", "Reading"]

MAX_PROBLEMS = 20


class Reading:
    """The state of one reading: its report, the problems found so far, and the ids given out."""

    def __init__(self, report: ReadReport, on_error: str, format: str | None) -> None:
        self._report = report
        self._skip = on_error == "skip"
        self._forced = registry.named(format) if format else None
        self._problems: list[Problem] = []
        self._ids: Counter[str] = Counter()

    def file(self, path: str, was_named: bool) -> Iterator[Trajectory]:
        """The trajectories of one file; a file found in a folder that is of no known format is only counted."""
        return self.rows(path, records(path), was_named)

    def rows(self, path: str, found: Iterable[Record | Problem], was_named: bool = True) -> Iterator[Trajectory]:
        """The trajectories among decoded records."""
        for record in found:
            for item in _rows_of(record):
                trajectory = self._one(path, item, was_named)
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

    def _one(self, path: str, record: Record | Problem, was_named: bool) -> Trajectory | None:
        if isinstance(record, Problem):
            self._bad(record)
            return None
        chosen = (self._forced, None) if self._forced else registry.choose(record.value)
        if chosen is None:
            self._unknown(record, was_named)
            return None
        reader, found = chosen
        if found:
            self._report.formats.setdefault(path, found)
        self._report.read += 1
        try:
            return self._kept(registry.read_with(reader, record.value, record.where), record)
        except DataError as error:
            self._report.read -= 1
            self._bad(Problem(record.where, "malformed record", str(error)))
            return None

    def _kept(self, trajectory: Trajectory, record: Record) -> Trajectory | None:
        if not any(message.generated for message in trajectory.messages):
            text = f"trajectory {trajectory.id!r} has no assistant turn: there is nothing to score"
            self._report.skip(Problem(record.where, "no assistant turn", text))
            return None
        self._report.kept += 1
        for warning in trajectory.meta.get("warnings", ()):
            self._report.warn(f"trajectories with the warning: {warning.split(' (')[0]}")
        self._ids[trajectory.id] += 1
        count = self._ids[trajectory.id]
        if count == 1:
            return trajectory
        self._report.warn(f"an id occurs more than once and gets a suffix (first: {trajectory.id!r})")
        return replace(trajectory, id=f"{trajectory.id}#{count}")

    def _bad(self, problem: Problem) -> None:
        if problem.reason == "blank line":
            self._report.warn("a blank line is ignored")
            return
        self._report.read += 1
        if self._skip:
            self._report.skip(problem)
            return
        self._problems.append(problem)
        if len(self._problems) >= MAX_PROBLEMS:
            self.close()

    def _unknown(self, record: Record, was_named: bool) -> None:
        problem = Problem(record.where, "unknown format", registry.describe(record.value))
        if was_named or record.is_line:
            self._bad(problem)
        else:
            self._report.read += 1
            self._report.skip(problem)


def _rows_of(record: Record | Problem) -> Iterable[Record | Problem]:
    """A JSON list that is no trajectory itself is a list of rows."""
    if isinstance(record, Problem) or record.is_line or registry.choose(record.value):
        return (record,)
    listed = as_list(record.value)
    if not listed:
        return (record,)
    return (record._replace(value=value, where=replace(record.where, line=i)) for i, value in enumerate(listed, 1))
