"""From the files named to outcomes: what kind each is, and how many answers it adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.passk import logs, reports, tables
from hesnr_tasks.passk.outcomes import Answer, Outcomes, gathered
from hesnr_tasks.readers.fields import Where
from hesnr_tasks.readers.records import Record, records
from hesnr_tasks.readers.report import Problem

__all__ = ["Asked", "read"]


class Asked(NamedTuple):
    """How ambiguous files are to be read."""

    metric: str | None = None
    filter: str | None = None
    task: str | None = None
    unknown_fails: bool = False


_USUAL = Asked()


def read(name: str, paths: Sequence[Path], asked: Asked = _USUAL) -> Outcomes:
    """All files of one checkpoint: the answers of several files to one problem are put together.

    `DataError` with file and line for what cannot be read, and for files that hold the same answers.
    """
    found: list[Answer] = []
    read_logs: list[logs.Log] = []
    named = {one.resolve(): one for path in paths for one in _files(path)}  # a file named twice counts once
    files = _of_task(list(named.values()), asked.task)
    for path in files:
        answers = _read(path, asked)
        if isinstance(answers, logs.Log):
            read_logs.append(answers)
        found += answers.answers if isinstance(answers, logs.Log) else answers
    logs.refuse_copies(read_logs)
    if read_logs and len(read_logs) < len(files):
        raise DataError(f"{name}: sample logs and other files together; their problems cannot be told to be the same")
    return gathered(name, found)


def _files(path: Path) -> Iterator[Path]:
    """A file as it is; in a folder its sample logs, or else its reports."""
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"there is no file or folder {str(path)!r}.{near}")
    if not path.is_dir():
        yield path
        return
    inside = sorted(path.rglob("samples_*.jsonl")) or reports.reports_in(path)
    if not inside:
        raise DataError(
            f"{path} holds neither lm-eval sample logs (samples_*.jsonl) nor evaluation reports; name a file"
        )
    yield from inside


def _of_task(files: Sequence[Path], wanted: str | None) -> Sequence[Path]:
    tasks = {logs.task_of(path): None for path in files if path.name.startswith("samples_")}
    if wanted is None and len(tasks) > 1:
        raise DataError(f"the logs are of several tasks ({', '.join(tasks)}); choose one with --task")
    if wanted is not None and wanted not in tasks:
        raise DataError(f"no log is of the task {wanted!r}, only {', '.join(tasks) or 'none'}.{nearest(wanted, tasks)}")
    return [path for path in files if wanted in (None, logs.task_of(path)) or not path.name.startswith("samples_")]


def _read(path: Path, asked: Asked) -> logs.Log | list[Answer]:
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(tables.answers(tables.csv_rows(str(path)), unknown_fails=asked.unknown_fails))
    rows = list(_records(str(path)))
    if any(logs.is_log(record.value) for record in rows):
        return logs.read_log(path, rows, asked.metric, asked.filter)
    listed = _rows(rows)
    if listed and any(tables.is_row(value) for _, value in listed):
        return list(tables.answers(listed, unknown_fails=asked.unknown_fails))
    return list(reports.answers(path, unknown_fails=asked.unknown_fails))


def _records(path: str) -> Iterator[Record]:
    for record in records(path):
        if isinstance(record, Record):
            yield record
        elif isinstance(record, Problem) and record.reason != "blank line":
            raise DataError(str(record))


def _rows(rows: Sequence[Record]) -> list[tables.Row]:
    """Rows of a table: lines, or the items of one list."""
    found: list[tables.Row] = []
    for record in rows:
        values = record.value if isinstance(record.value, list) else [record.value]
        for number, value in enumerate(values, start=1):
            where = record.where if record.is_line else Where(f"{record.where}[{number}]")
            if not isinstance(value, dict):
                raise DataError(f"{where}: a row must be an object with a problem and whether its answer is right")
            found.append((where, value))
    return found
