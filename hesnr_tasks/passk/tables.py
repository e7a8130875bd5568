"""(problem, ok) tables: CSV, JSON Lines or a JSON list; a row an answer, or a row a problem with counts n and c."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.passk.outcomes import Answer
from hesnr_tasks.passk.verdicts import MOST, Neither, verdict, whole
from hesnr_tasks.readers.fields import Where

__all__ = ["PROBLEM", "answers", "csv_rows", "is_row"]

PROBLEM = ("problem", "problem_id", "task_id", "instance_id", "question_id", "id", "name")
_OK = ("ok", "passed", "correct", "resolved", "success", "result", "acc", "exact_match")
_N, _C = ("n", "samples", "num_samples", "total"), ("c", "num_correct", "n_correct", "passes")
_ONE = ("sample", "sample_id", "completion_id", "run", "seed")  # tell the answers to a problem apart

Row = tuple[Where, Mapping[str, Any]]


def is_row(value: Any) -> bool:
    """Whether a decoded value looks like a row of such a table."""
    if not isinstance(value, Mapping) or _first(value, PROBLEM) is None:
        return False
    return _first(value, _OK) is not None or (_first(value, _N) is not None and _first(value, _C) is not None)


def csv_rows(path: str) -> Iterator[Row]:
    """The rows of a CSV (or tab-separated) file with a header; `DataError` for what is none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in header else ",", strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{path}:1: two columns are called {twice!r}; which one is meant cannot be told")
        for row in reader:
            where = Where(path, reader.line_num)
            if None in row or None in row.values():
                raise DataError(f"{where}: as many cells are needed as in the header ({header.strip()})")
            yield where, {str(key).strip(): value for key, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: not readable as CSV ({error})") from None


def answers(rows: Iterable[Row], *, unknown_fails: bool) -> Iterator[Answer]:
    """What the rows say. `DataError`, with file and line, for a row that cannot be understood or is there twice."""
    seen: dict[tuple[str, str], Where] = {}
    counted: dict[str, Where] = {}
    for where, row in rows:
        answer = _answer(where, row, unknown_fails)
        if answer.problem in counted or (_is_counts(row) and (answer.problem, "") in seen):
            raise DataError(f"{where}: {answer.problem!r} has counts already ({counted.get(answer.problem, 'above')})")
        if _is_counts(row):
            counted[answer.problem] = where
        told = next((f"{key} {row[key]}" for key in _ONE if row.get(key) not in (None, "")), "")
        if told and (answer.problem, told) in seen:
            raise DataError(f"{where}: {answer.problem!r}, {told}, is there already ({seen[answer.problem, told]})")
        seen[answer.problem, told] = seen[answer.problem, ""] = where
        yield answer


def _answer(where: Where, row: Mapping[str, Any], unknown_fails: bool) -> Answer:
    key = _first(row, PROBLEM)
    if key is None or row[key] in (None, ""):
        raise DataError(f"{where}: no problem is named; a row needs a column {_listed(PROBLEM)}")
    problem = str(row[key])
    if _is_counts(row):
        return _counts(where, row, problem)
    ok = _first(row, _OK)
    if ok is None:
        raise DataError(f"{where}: nothing says whether the answer is right; a row needs a column {_listed(_OK)}")
    try:
        found = verdict(row[ok])
    except Neither as error:
        raise DataError(
            f"{where}: {ok} of {problem!r} is {error}, neither right (1, true) nor wrong (0, false)"
        ) from None
    return Answer(problem, int(found is not None or unknown_fails), int(bool(found)), str(where))


def _counts(where: Where, row: Mapping[str, Any], problem: str) -> Answer:
    names = [str(_first(row, _N)), str(_first(row, _C))]
    try:
        n, c = (whole(row[name]) for name in names)
    except Neither as error:
        raise DataError(
            f"{where}: {names[0]} and {names[1]} of {problem!r} must be counts (up to {MOST}), not {error}"
        ) from None
    if c > n:
        raise DataError(f"{where}: {problem!r} has {c} right answers of {n}")
    return Answer(problem, n, c, str(where))


def _is_counts(row: Mapping[str, Any]) -> bool:
    return _first(row, _N) is not None and _first(row, _C) is not None


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
