"""Right answers from files: lm-eval sample logs, SWE-bench reports, tables of (problem, ok). Strict: what is neither
right nor wrong is an error with its place, not a guess.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hesnr_tasks.bounded_io import read_json, read_text
from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.formats.base import Problem, Where
from hesnr_tasks.formats.json_access import deep
from hesnr_tasks.formats.outcomes import reports_in, tried_outcomes
from hesnr_tasks.formats.sources import Record, records
from hesnr_tasks.passk import AnswerCounts, listed, pass_at_k, pass_at_ks

__all__ = ["LoggedProblem", "Query", "is_log", "log_files", "read", "read_log"]

_PROBLEM = ("problem", "problem_id", "task_id", "instance_id", "question_id", "id", "name")
_OK = ("ok", "passed", "correct", "resolved", "success", "result", "acc", "exact_match")
_N, _C = ("n", "samples", "num_samples", "total"), ("c", "num_correct", "n_correct", "passes")
_REPEAT = ("sample", "sample_id", "completion_id", "run", "seed")  # tell the answers to a problem apart
_MOST = 100_000  # answers to a problem: a count above it is a mistake in the file


class Query(NamedTuple):
    """How ambiguous files are read; None: what the file leaves no choice about."""

    metric: str | None = None
    filter: str | None = None
    task: str | None = None
    unknown_fails: bool = False


class _Answers(NamedTuple):
    """`n` answers to a problem, `c` of them right; of unknown outcome: n = 0."""

    problem: str
    n: int
    c: int
    label: str = ""


_DEFAULT = Query()
_Row = tuple[Where, Mapping[str, Any]]


def read(name: str, paths: Sequence[Path], query: Query = _DEFAULT) -> AnswerCounts:
    """All files of one checkpoint: the answers of several files to one problem are put together.

    Args:
        name: The checkpoint's, for tables and messages.
        paths: Files; of a folder its sample logs, or else its evaluation reports.
        query: How ambiguous files are read.

    Raises:
        DataError: With file and line, for what cannot be read, for files that hold the same answers, and where no
            problem has a known outcome. A problem all of whose outcomes are unknown is left out, and a note says so.
    """
    answers: list[_Answers] = []
    notes: list[str] = []
    logs: list[_Log] = []
    by_path = {file.resolve(): file for path in paths for file in _files(path)}  # a file named twice counts once
    files = _of_task(list(by_path.values()), query.task)
    for path in files:
        if path.suffix.lower() in (".csv", ".tsv"):
            answers += _table(_csv_rows(str(path)), query.unknown_fails)
            continue
        lines = _records(str(path))
        first = next(lines, None)
        if first is None:
            raise DataError(f"{path} is empty: there is no answer in it. Was the run stopped before it wrote its log?")
        lines = itertools.chain([first], lines)
        if is_log(first.value) or path.name.startswith("samples_"):
            log = _Log(path, _model(path), set(), {})
            for logged in _logged(path, lines, query, notes):  # texts are not kept: logs can be larger than memory
                answers.append(_Answers(logged.problem, logged.n, logged.c, logged.label))
                log.seeds.update((logged.problem, seed) for seed in logged.seeds)
                log.digests[logged.problem] = logged.digest
            logs.append(log)
            continue
        all_lines = list(lines)
        rows = _rows(all_lines)
        if any(_first(row, _PROBLEM) and (_first(row, _OK) or _is_counts(row)) for _, row in rows):
            answers += _table(rows, query.unknown_fails)
        else:
            verdicts = tried_outcomes(path, all_lines[0].value if len(all_lines) == 1 else None)
            answers += [
                _Answers(problem, int(verdict is not None or query.unknown_fails), int(bool(verdict)))
                for problem, verdict in verdicts.items()
            ]
    _refuse_copies(logs)
    if logs and len(logs) < len(files):
        raise DataError(f"{name}: sample logs and other files together; their problems cannot be told to be the same")
    n, c, labels = Counter[str](), Counter[str](), dict[str, str]()
    for answer in answers:
        n[answer.problem] += answer.n
        c[answer.problem] += answer.c
        labels.setdefault(answer.problem, answer.label or answer.problem)
    problems = sorted((problem for problem in n if n[problem]), key=lambda problem: (labels[problem], problem))
    unknown = sorted(labels[problem] for problem in n if not n[problem])
    if not problems:
        raise DataError(f"{name}: no problem has an answer that is known to be right or wrong")
    if unknown:
        notes.append(f"no outcome is known for {listed(unknown)}: left out")
    return AnswerCounts(
        name,
        tuple(problems),
        tuple(labels[problem] for problem in problems),
        np.array([n[problem] for problem in problems], dtype=np.int64),
        np.array([c[problem] for problem in problems], dtype=np.int64),
        tuple(f"{name}: {note}" for note in notes),
    )


# --- which files, and of what kind ------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"there is no file or folder {str(path)!r}.{near}")
    if not path.is_dir():
        return [path]
    inside = sorted(path.rglob("samples_*.jsonl")) or reports_in(path)
    if not inside:
        raise DataError(
            f"{path} holds neither lm-eval sample logs (samples_*.jsonl) nor evaluation reports; name a file"
        )
    return inside


def log_files(paths: Sequence[Path], task: str | None) -> list[Path]:
    """lm-eval's sample logs among the files, and below the folders, that are named; of one task (`DataError`)."""
    by_path: dict[Path, Path] = {}
    for path in paths:
        for file in sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else _files(path):
            first = next(records(str(file)), None)
            if file.name.startswith("samples_") or (isinstance(first, Record) and is_log(first.value)):
                by_path.setdefault(file.resolve(), file)
    return _of_task(list(by_path.values()), task) if by_path else []


def _of_task(files: list[Path], wanted: str | None) -> list[Path]:
    def task_of(path: Path) -> str:
        name = path.name.removeprefix("samples_")
        return name.rpartition("_")[0] or name

    tasks = {task_of(path): None for path in files if path.name.startswith("samples_")}
    if wanted is None and len(tasks) > 1:
        raise DataError(f"the logs are of several tasks ({', '.join(tasks)}); choose one with --task")
    if wanted is not None and wanted not in tasks:
        raise DataError(f"no log is of the task {wanted!r}, only {', '.join(tasks) or 'none'}.{nearest(wanted, tasks)}")
    return [path for path in files if wanted in (None, task_of(path)) or not path.name.startswith("samples_")]


def _records(path: str) -> Iterator[Record]:
    for record in records(path):
        if isinstance(record, Record):
            yield record
        elif isinstance(record, Problem) and record.reason != "blank line":
            raise DataError(str(record))


# --- lm-eval's sample logs (--log_samples) ----------------------------------------------------------------------------

_PASS = re.compile(r"pass(?:@|_at_)([0-9]{1,9})(?:\(.*\))?")  # 0.5's own: pass@1(exact_match)
_RIGHT = "right_answers"  # our task's list of verdicts
_TOLERANCE = 1e-6
_SAME_RUN = 10  # problems with the same answers in two logs, from which on they are one run and no coincidence


class LoggedProblem(NamedTuple):
    """The answers to one problem in a log."""

    problem: str
    label: str
    prompt: Any
    texts: tuple[str, ...]
    right: tuple[bool, ...] | None  # a verdict an answer; None where only their number is known
    n: int
    c: int
    seeds: tuple[int, ...]  # of the answers, where the log has them
    digest: str  # of the answers


class _Log(NamedTuple):
    """What tells a log from a copy."""

    path: Path
    model: str | None
    seeds: set[tuple[str, int]]
    digests: dict[str, str]  # by problem


def is_log(value: Any) -> bool:
    """Whether a decoded line is one of a sample log."""
    return isinstance(value, Mapping) and "doc_id" in value and "resps" in value and "filtered_resps" in value


def read_log(path: Path, query: Query = _DEFAULT) -> tuple[list[LoggedProblem], list[str]]:
    """The problems of one sample log with all their answers, and notes on rows that were there twice.

    Raises:
        DataError: With file and line, where right answers cannot be counted, or answers are no text.
    """
    notes: list[str] = []
    return list(_logged(path, _records(str(path)), query, notes, text_only=True)), notes


def _logged(
    path: Path, lines: Iterable[Record], query: Query, notes: list[str], *, text_only: bool = False
) -> Iterator[LoggedProblem]:
    occurrences: Counter[str] = Counter()
    keys: dict[tuple[str, str], str] = {}  # (document, its number in the log) → problem
    digests: dict[str, set[str]] = {}
    copies = more = 0
    for record in _of_filter(path, lines, query.filter):
        row = record.value
        document = str(row.get("doc_hash") or row["doc_id"]), str(row["doc_id"])
        again = document in keys
        if not again:  # equal documents with numbers of their own are different problems
            occurrences[document[0]] += 1
            number = occurrences[document[0]]
            keys[document] = f"{document[0]}#{number}" if number > 1 else document[0]
        problem = keys[document]
        digest = hashlib.sha256(json.dumps(row["resps"], ensure_ascii=True).encode()).hexdigest()
        if digest in digests.setdefault(problem, set()):
            copies += 1
            continue
        digests[problem].add(digest)
        more += again
        answers = _flat(row["resps"])
        if text_only and not all(isinstance(answer, (str, type(None))) for answer in answers):
            raise DataError(
                f"{path}: document {row['doc_id']} has likelihoods where answers should be: no text to read"
            )
        verdicts = _verdicts(row, len(answers))
        if verdicts and not query.metric:
            n, c = len(verdicts), sum(verdicts)
            _check_estimates(row, n, c, "", record.where)
        else:
            n, c = _counted(row, record.where, query.metric)
        if verdicts is None and len(answers) == n and c in (0, n):
            verdicts = (c > 0,) * n
        texts = (
            text if isinstance(text, str) else "" if text is None else json.dumps(text, ensure_ascii=False)
            for text in answers
        )
        requests = list(row["arguments"].values()) if isinstance(row.get("arguments"), Mapping) else []
        prompt = next((deep(request, "arg_0") for request in requests), None)
        seeds = tuple(_seeds(row, requests))
        yield LoggedProblem(problem, _label(row), prompt, tuple(texts), verdicts, n, c, seeds, digest)
    if copies:
        notes.append(f"{path.name}: {copies} rows are there twice, answers and all; each counts once")
    if more:
        notes.append(f"{path.name}: {more} rows have more answers to a problem listed before; put together")


def _of_filter(path: Path, lines: Iterable[Record], wanted: str | None) -> Iterator[Record]:
    names = dict[str, None]()
    for record in lines:
        if not is_log(record.value):
            raise DataError(f"{record.where}: no line of an lm-eval sample log (doc_id, resps, filtered_resps)")
        name = str(record.value.get("filter"))
        names[name] = None
        if wanted is None and len(names) > 1:
            names |= dict.fromkeys(str(rest.value.get("filter")) for rest in lines if is_log(rest.value))
            raise DataError(f"{path} has answers of the filters {', '.join(names)}; choose one with --filter")
        if wanted in (None, name):
            yield record
    if wanted is not None and wanted not in names:
        raise DataError(f"{path} has no filter {wanted!r}, only {', '.join(names)}.{nearest(wanted, names)}")


def _verdicts(row: Mapping[str, Any], answers: int) -> tuple[bool, ...] | None:
    verdicts, scores = row.get(_RIGHT), row.get("scores_per_repeat")  # the latter is lm-eval 0.5's own
    if verdicts is None and isinstance(scores, Mapping) and len(scores) == 1:
        (verdicts,) = scores.values()
    if not isinstance(verdicts, list) or len(verdicts) != answers or any(right not in (0, 1) for right in verdicts):
        return None
    return tuple(map(bool, verdicts))


def _counted(row: Mapping[str, Any], where: Where, metric: str | None) -> tuple[int, int]:
    """Answers scored and right ones among them: from the share of right ones, or a pass@k that one number gives."""
    choice = isinstance(deep(row["resps"], 0, 0), list)  # likelihoods of choices: one answer in all
    sampled, scored = (1 if choice else len(_flat(row[key])) for key in ("resps", "filtered_resps"))
    if not scored and not sampled:
        return 0, 0
    name = _metric(row, where, metric)
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{where}: {name} is {value!r}, no number; name another metric with --metric")
    if scored < sampled:
        raise DataError(
            f"{where}: of {sampled} answers {scored} was scored (the filter {row.get('filter')!r} threw the others "
            "away, as take_first does); Pass@K cannot be had from this log. Run it as hesnr_passk with this task as "
            "its base."
        )
    estimates = pass_at_ks(np.full(scored + 1, scored), np.arange(scored + 1), [min(_k(name) or 1, scored)])[:, 0]
    fitting = np.flatnonzero(np.abs(estimates - value) <= _TOLERANCE).tolist()
    if len(fitting) > 1:
        raise DataError(
            f"{where}: {name} is {value}, and {fitting[0]} to {fitting[-1]} right answers of {scored} all give that; "
            "name a metric of each answer, such as pass@1, with --metric"
        )
    if not fitting:
        raise DataError(f"{where}: {name} is {value}, which no number of right answers among {scored} gives")
    _check_estimates(row, scored, fitting[0], name[name.find("(") :] if "(" in name else "", where)
    return scored, fitting[0]


def _check_estimates(row: Mapping[str, Any], n: int, c: int, metric: str, where: Where) -> None:
    """`DataError` where a pass@k of the row is not that of its answers; `metric`: "(name)" in 0.5's own logs."""
    for name, estimate in row.items():
        k = _k(name)
        if 1 <= k <= n and isinstance(estimate, (int, float)) and name.endswith(metric or name):
            expected = pass_at_k(n, c, k)
            if not abs(expected - estimate) <= _TOLERANCE:
                raise DataError(f"{where}: {name} is {estimate}, but {c} right of {n} answers give {expected:.6g}")


def _k(name: str) -> int:
    """The k of a metric pass@k or pass_at_k; 0 for others."""
    match = _PASS.fullmatch(name)
    return int(match[1]) if match else 0


def _metric(row: Mapping[str, Any], where: Where, wanted: str | None) -> str:
    listed_names = row["metrics"] if isinstance(row.get("metrics"), list) else []
    names = [name for name in map(str, listed_names) if not name.endswith("_stderr") and name in row and name != _RIGHT]
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{where}: no metric {wanted!r}, only {', '.join(names)}.{nearest(wanted, names)}")
        return wanted
    usual = [name for name in ("pass@1", "pass_at_1", "pass@1(exact_match)", "exact_match") if name in names]
    if not usual and len(names) != 1:
        raise DataError(f"{where}: which metric says right or wrong? Name one of {', '.join(names)} with --metric")
    return (usual or names)[0]


def _flat(responses: Any) -> list[Any]:
    """All answers in `resps` or `filtered_resps`: per instance there is a list of answers, or one."""
    instances = responses if isinstance(responses, list) else [responses]
    return [answer for item in instances for answer in (item if isinstance(item, list) else [item])]


def _seeds(row: Mapping[str, Any], requests: Sequence[Any]) -> Iterator[int]:
    """Of every answer: a request's repeats have consecutive seeds (`seeded_generation.seed_of`)."""
    for i, request in enumerate(requests):
        seed, repeats = deep(request, "arg_1", "seed"), deep(row["resps"], i)
        if isinstance(seed, int):
            yield from range(seed, seed + (len(repeats) if isinstance(repeats, list) else 1))


def _label(row: Mapping[str, Any]) -> str:
    document = row.get("doc") if isinstance(row.get("doc"), Mapping) else {}
    name = next((document[key] for key in _PROBLEM if key in document), None) if document else None
    # a document's "problem" may be its whole statement
    return str(name if isinstance(name, int) or (isinstance(name, str) and len(name) <= 80) else row["doc_id"])


def _model(path: Path) -> str | None:
    """The model's name, from the results beside the log."""
    date = path.name.removesuffix(".jsonl").rpartition("_")[2]
    try:
        name = read_json(path.parent / f"results_{date}.json").get("model_name")
    except (DataError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def _refuse_copies(logs: Sequence[_Log]) -> None:
    """`DataError` for two logs of one checkpoint that are of different models, or hold the same answers."""
    for log, other in itertools.combinations(logs, 2):
        if log.model and other.model and log.model != other.model:
            raise DataError(
                f"{log.path} is of {log.model} and {other.path} of {other.model}: answers of two models are no "
                "samples of one. Compare them with --compare."
            )
        shared = log.digests.keys() & other.digests.keys()
        same = len(shared) >= _SAME_RUN and all(log.digests[key] == other.digests[key] for key in shared)
        if log.seeds & other.seeds or same:
            raise DataError(
                f"{log.path} and {other.path} hold the same answers (a run made twice with the same seeds, or a "
                "copy); counting both would count answers twice. Name one, or take more answers with other seeds."
            )


# --- tables: CSV, JSON Lines or a JSON list; a row an answer, or a row a problem with counts n and c ------------------

_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "pass", "passed", "resolved", "success", "correct", "yes", "ok", "1", "1.0"), True),
    **dict.fromkeys(
        ("false", "fail", "failed", "unresolved", "failure", "incorrect", "wrong", "no", "0", "0.0"), False
    ),
    **dict.fromkeys(("", "unknown", "null", "none", "nan"), None),
}


def _rows(lines: Iterable[Record]) -> list[_Row]:
    """Lines, or the items of one list."""
    rows: list[_Row] = []
    for record in lines:
        values = record.value if isinstance(record.value, list) else [record.value]
        for number, value in enumerate(values, start=1):
            where = record.where if record.is_line else Where(f"{record.where}[{number}]")
            if not isinstance(value, dict):
                raise DataError(f"{where}: a row must be an object with a problem and whether its answer is right")
            rows.append((where, value))
    return rows


def _csv_rows(path: str) -> Iterator[_Row]:
    file = io.StringIO(read_text(path), newline=None)
    header = file.readline()
    file.seek(0)
    reader = csv.DictReader(file, delimiter="\t" if "\t" in header else ",", strict=True)
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


def _table(rows: Iterable[_Row], unknown_fails: bool) -> Iterator[_Answers]:
    seen: dict[tuple[str, str], Where] = {}
    counted: dict[str, Where] = {}
    for where, row in rows:
        key = _first(row, _PROBLEM)
        if key is None or row[key] in (None, ""):
            raise DataError(f"{where}: no problem is named; a row needs a column {_or(_PROBLEM)}")
        problem = str(row[key])
        answers = _counts(where, problem, row) if _is_counts(row) else _verdict(where, problem, row, unknown_fails)
        if problem in counted or (_is_counts(row) and (problem, "") in seen):
            raise DataError(f"{where}: {problem!r} has counts already ({counted.get(problem, 'above')})")
        if _is_counts(row):
            counted[problem] = where
        repeat = next((f"{key} {row[key]}" for key in _REPEAT if row.get(key) not in (None, "")), "")
        if repeat and (problem, repeat) in seen:
            raise DataError(f"{where}: {problem!r}, {repeat}, is there already ({seen[problem, repeat]})")
        seen[problem, repeat] = seen[problem, ""] = where
        yield answers


def _counts(where: Where, problem: str, row: Mapping[str, Any]) -> _Answers:
    names, counts = [str(_first(row, columns)) for columns in (_N, _C)], []
    for name in names:
        try:
            number = float(row[name]) if not isinstance(row[name], bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (0 <= number <= _MOST and number == int(number)):
            raise DataError(
                f"{where}: {names[0]} and {names[1]} of {problem!r} must be counts (up to {_MOST}), not "
                f"{repr(row[name])[:80]}"
            )
        counts.append(int(number))
    if counts[1] > counts[0]:
        raise DataError(f"{where}: {problem!r} has {counts[1]} right answers of {counts[0]}")
    return _Answers(problem, counts[0], counts[1])


def _verdict(where: Where, problem: str, row: Mapping[str, Any], unknown_fails: bool) -> _Answers:
    """One answer; `DataError` for what is neither right nor wrong nor unknown, such as a reward of 0.37."""
    ok = _first(row, _OK)
    if ok is None:
        raise DataError(f"{where}: nothing says whether the answer is right; a row needs a column {_or(_OK)}")
    value = row[ok]
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        verdict: bool | None = bool(value)
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        verdict = None
    elif isinstance(value, str) and value.strip().lower() in _WORDS:
        verdict = _WORDS[value.strip().lower()]
    else:
        raise DataError(
            f"{where}: {ok} of {problem!r} is {repr(value)[:80]}, neither right (1, true) nor wrong (0, false)"
        )
    return _Answers(problem, int(verdict is not None or unknown_fails), int(bool(verdict)))


def _is_counts(row: Mapping[str, Any]) -> bool:
    return _first(row, _N) is not None and _first(row, _C) is not None


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _or(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
