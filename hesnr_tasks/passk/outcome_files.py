"""From files to right answers: lm-eval sample logs, SWE-bench reports, tables of (problem, ok). Strict: what is neither
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hesnr_tasks.bounded_io import read_json, read_text
from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.formats.base import Problem, Where
from hesnr_tasks.formats.json_access import as_list, deep, scalar_text
from hesnr_tasks.formats.outcomes import read_outcomes
from hesnr_tasks.formats.sources import Record, records
from hesnr_tasks.passk.estimator import Outcomes, listed, pass_at_k, pass_at_ks

__all__ = ["Logged", "Query", "is_log", "log_files", "read", "read_log"]

_PROBLEM = ("problem", "problem_id", "task_id", "instance_id", "question_id", "id", "name")
_OK = ("ok", "passed", "correct", "resolved", "success", "result", "acc", "exact_match")
_N, _C = ("n", "samples", "num_samples", "total"), ("c", "num_correct", "n_correct", "passes")
_REPEAT = ("sample", "sample_id", "completion_id", "run", "seed")  # tell the answers to a problem apart
_MOST = 100_000  # answers to a problem: a count above it is a mistake in the file


class Query(NamedTuple):
    """How ambiguous files are to be read."""

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


_USUAL = Query()
_Row = tuple[Where, Mapping[str, Any]]


def read(name: str, paths: Sequence[Path], query: Query = _USUAL) -> Outcomes:
    """All files of one checkpoint: the answers of several files to one problem are put together.

    Raises:
        DataError: With file and line, for what cannot be read, for files that hold the same answers, and where no
            problem has a known outcome. A problem all of whose outcomes are unknown is left out, and a note says so.
    """
    answers: list[_Answers] = []
    logs: list[_Log] = []
    by_path = {file.resolve(): file for path in paths for file in _files(path)}  # a file named twice counts once
    files = _of_task(list(by_path.values()), query.task)
    for path in files:
        content = _read(path, query)
        if isinstance(content, _Log):
            logs.append(content)
        answers += content.answers if isinstance(content, _Log) else content
    _refuse_copies(logs)
    if logs and len(logs) < len(files):
        raise DataError(f"{name}: sample logs and other files together; their problems cannot be told to be the same")
    return _gathered(name, answers, [f"{name}: {note}" for log in logs for note in log.notes])


def _gathered(name: str, answers: Sequence[_Answers], notes: Sequence[str]) -> Outcomes:
    n: Counter[str] = Counter()
    c: Counter[str] = Counter()
    labels: dict[str, str] = {}
    for answer in answers:
        n[answer.problem] += answer.n
        c[answer.problem] += answer.c
        labels.setdefault(answer.problem, answer.label or answer.problem)
    order = sorted((problem for problem in n if n[problem]), key=lambda problem: (labels[problem], problem))
    unknown = sorted(labels[problem] for problem in n if not n[problem])
    if not order:
        raise DataError(f"{name}: no problem has an answer that is known to be right or wrong")
    if unknown:
        notes = [*notes, f"{name}: no outcome is known for {listed(unknown)}: left out"]
    answers_, right = (np.array([table[problem] for problem in order], dtype=np.int64) for table in (n, c))
    return Outcomes(name, tuple(order), tuple(labels[problem] for problem in order), answers_, right, tuple(notes))


# --- which files, and of what kind ------------------------------------------------------------------------------------


def _files(path: Path) -> Iterator[Path]:
    """A file as it is; in a folder its sample logs, or else its reports."""
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"there is no file or folder {str(path)!r}.{near}")
    if not path.is_dir():
        yield path
        return
    inside = _sample_logs(path) or _reports_in(path)
    if not inside:
        raise DataError(
            f"{path} holds neither lm-eval sample logs (samples_*.jsonl) nor evaluation reports; name a file"
        )
    yield from inside


def _sample_logs(folder: Path) -> list[Path]:
    """lm-eval's sample logs below a folder."""
    return sorted(folder.rglob("samples_*.jsonl"))


def log_files(paths: Sequence[Path], task: str | None) -> list[Path]:
    """lm-eval's sample logs among the files, and below the folders, that are named; of one task (`DataError`)."""
    by_path: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            list(_files(path))
        for file in _sample_logs(path) if path.is_dir() else [path]:
            first = next(records(str(file)), None)
            if file.name.startswith("samples_") or (isinstance(first, Record) and is_log(first.value)):
                by_path.setdefault(file.resolve(), file)
    return list(_of_task(list(by_path.values()), task)) if by_path else []


def _of_task(files: Sequence[Path], wanted: str | None) -> Sequence[Path]:
    tasks = {_task_of(path): None for path in files if path.name.startswith("samples_")}
    if wanted is None and len(tasks) > 1:
        raise DataError(f"the logs are of several tasks ({', '.join(tasks)}); choose one with --task")
    if wanted is not None and wanted not in tasks:
        raise DataError(f"no log is of the task {wanted!r}, only {', '.join(tasks) or 'none'}.{nearest(wanted, tasks)}")
    return [path for path in files if wanted in (None, _task_of(path)) or not path.name.startswith("samples_")]


def _task_of(path: Path) -> str:
    name = path.name.removeprefix("samples_")
    return name.rpartition("_")[0] or name


def _read(path: Path, query: Query) -> _Log | list[_Answers]:
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(_table(_csv_rows(str(path)), query.unknown_fails))
    lines = _records(str(path))
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path} is empty: there is no answer in it. Was the run stopped before it wrote its log?")
    if is_log(first.value) or path.name.startswith("samples_"):
        return _log(path, itertools.chain([first], lines), query)
    rows = [first, *lines]
    found = _rows(rows)
    if found and any(_is_row(value) for _, value in found):
        return list(_table(found, query.unknown_fails))
    whole = rows[0].value if len(rows) == 1 else None
    return list(_report(path, whole, query.unknown_fails))


def _records(path: str) -> Iterator[Record]:
    for record in records(path):
        if isinstance(record, Record):
            yield record
        elif isinstance(record, Problem) and record.reason != "blank line":
            raise DataError(str(record))


# --- lm-eval's sample logs (--log_samples) ----------------------------------------------------------------------------

_PASS = re.compile(r"pass(?:@|_at_)([0-9]{1,9})(?:\(.*\))?")  # 0.5's own: pass@1(exact_match)
_RIGHT = "right_answers"  # our task's list of verdicts
_CLOSE = 1e-6
_MANY = 10  # problems with the same answers in two logs, from which on they are one run and no coincidence


class Logged(NamedTuple):
    """The answers to one problem in a log. `right`: a verdict an answer, None where only their number is known."""

    problem: str
    label: str
    doc_id: str
    prompt: Any
    texts: tuple[str, ...]
    right: tuple[bool, ...] | None
    n: int
    c: int


@dataclass
class _Log:
    """One log: its answers, and what tells it from a copy."""

    path: Path
    answers: list[_Answers] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seeds: set[tuple[str, int]] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    model: str | None = None


def is_log(value: Any) -> bool:
    """Whether a decoded line is one of a sample log."""
    return isinstance(value, Mapping) and "doc_id" in value and "resps" in value and "filtered_resps" in value


def read_log(path: Path, query: Query = _USUAL) -> tuple[list[Logged], list[str]]:
    """The problems of one sample log with all their answers, and notes on rows that were there twice.

    Raises:
        DataError: With file and line, where right answers cannot be counted, or answers are no text.
    """
    notes: list[str] = []
    problems = []
    for logged, row in _logged(path, _records(str(path)), query, notes):
        if not all(isinstance(x, (str, type(None))) for x in _flat(row["resps"])):
            raise DataError(
                f"{path}: document {row['doc_id']} has likelihoods where answers should be: no text to read"
            )
        problems.append(logged)
    return problems, notes


def _log(path: Path, rows: Iterable[Record], query: Query) -> _Log:
    log = _Log(path, model=_model(path))
    for logged, row in _logged(path, rows, query, log.notes):
        log.answers.append(_Answers(logged.problem, logged.n, logged.c, logged.label))
        log.seeds |= {(logged.problem, seed) for seed in _seeds(row)}
        log.texts[logged.problem] = _digest(row)
    return log


def _logged(
    path: Path, rows: Iterable[Record], query: Query, notes: list[str]
) -> Iterator[tuple[Logged, Mapping[str, Any]]]:
    occurrence: Counter[str] = Counter()
    keys: dict[tuple[str, str], str] = {}  # (document, its number in the log) → problem
    digests: dict[str, set[str]] = {}
    copies = more = 0
    for record in _of_filter(path, rows, query.filter):
        row = record.value
        document = str(row.get("doc_hash") or row["doc_id"]), str(row["doc_id"])
        again = document in keys
        if not again:  # equal documents with numbers of their own are different problems
            occurrence[document[0]] += 1
            number = occurrence[document[0]]
            keys[document] = f"{document[0]}#{number}" if number > 1 else document[0]
        problem = keys[document]
        if _digest(row) in digests.setdefault(problem, set()):
            copies += 1
            continue
        digests[problem].add(_digest(row))
        more += again
        right = _verdicts(row)
        if right and not query.metric:
            n, c = len(right), sum(right)
            _check_estimates(row, n, c, "", record.where)
        else:
            n, c = _counted(row, record.where, query.metric)
        texts = tuple(_leaves(row["resps"]))
        if right is None and len(texts) == n and c in (0, n):
            right = (c > 0,) * n
        prompt = next((deep(one, "arg_0") for one in _arguments(row)), None)
        yield Logged(problem, _label(row), document[1], prompt, texts, right, n, c), row
    if copies:
        notes.append(f"{path.name}: {copies} rows are there twice, answers and all; each counts once")
    if more:
        notes.append(f"{path.name}: {more} rows have more answers to a problem listed before; put together")


def _of_filter(path: Path, rows: Iterable[Record], wanted: str | None) -> Iterator[Record]:
    names = dict[str, None]()
    for record in rows:
        if not is_log(record.value):
            raise DataError(f"{record.where}: no line of an lm-eval sample log (doc_id, resps, filtered_resps)")
        name = str(record.value.get("filter"))
        names[name] = None
        if wanted is None and len(names) > 1:
            names |= dict.fromkeys(str(rest.value.get("filter")) for rest in rows if is_log(rest.value))
            raise DataError(f"{path} has answers of the filters {', '.join(names)}; choose one with --filter")
        if wanted in (None, name):
            yield record
    if wanted is not None and wanted not in names:
        raise DataError(f"{path} has no filter {wanted!r}, only {', '.join(names)}.{nearest(wanted, names)}")


def _verdicts(row: Mapping[str, Any]) -> tuple[bool, ...] | None:
    verdicts, scores = row.get(_RIGHT), row.get("scores_per_repeat")  # the latter is lm-eval 0.5's own
    if verdicts is None and isinstance(scores, Mapping) and len(scores) == 1:
        (verdicts,) = scores.values()
    answers = len(_leaves(row["resps"]))
    if not isinstance(verdicts, list) or len(verdicts) != answers or any(right not in (0, 1) for right in verdicts):
        return None
    return tuple(map(bool, verdicts))


def _counted(row: Mapping[str, Any], where: Where, metric: str | None) -> tuple[int, int]:
    """Answers scored and right ones among them."""
    choice = isinstance(deep(row["resps"], 0, 0), list)  # likelihoods of choices: one answer in all
    taken, scored = (1 if choice else len(_leaves(row[key])) for key in ("resps", "filtered_resps"))
    if not scored and not taken:
        return 0, 0
    name = _metric(row, where, metric)
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{where}: {name} is {value!r}, no number; name another metric with --metric")
    if scored < taken:
        raise DataError(
            f"{where}: of {taken} answers {scored} was scored (the filter {row.get('filter')!r} threw the others away, "
            "as take_first does); Pass@K cannot be had from this log. Run it as hesnr_passk with this task as its base."
        )
    right = _right(name, float(value), scored, where)
    _check_estimates(row, scored, right, name[name.find("(") :] if "(" in name else "", where)
    return scored, right


def _check_estimates(row: Mapping[str, Any], n: int, c: int, metric: str, where: Where) -> None:
    """`DataError` where a pass@k of the row is not that of its answers; `metric`: "(name)" in 0.5's own logs."""
    for name, estimate in row.items():
        k = _k(name)
        if 1 <= k <= n and isinstance(estimate, (int, float)) and name.endswith(metric or name):
            expected = pass_at_k(n, c, k)
            if not abs(expected - estimate) <= _CLOSE:
                raise DataError(f"{where}: {name} is {estimate}, but {c} right of {n} answers give {expected:.6g}")


def _right(name: str, value: float, n: int, where: Where) -> int:
    """How many of `n` answers are right, from their share or from a pass@k that one number alone gives."""
    k = min(_k(name) or 1, n)
    given = pass_at_ks(np.full(n + 1, n), np.arange(n + 1), [k])[:, 0]
    fitting = np.flatnonzero(np.abs(given - value) <= _CLOSE).tolist()
    if len(fitting) > 1:
        raise DataError(
            f"{where}: {name} is {value}, and {fitting[0]} to {fitting[-1]} right answers of {n} all give that; name a "
            "metric of each answer, such as pass@1, with --metric"
        )
    if not fitting:
        raise DataError(f"{where}: {name} is {value}, which no number of right answers among {n} gives")
    return int(fitting[0])


def _k(name: str) -> int:
    """The k of a metric pass@k or pass_at_k; 0 for others."""
    match = _PASS.fullmatch(name)
    return int(match[1]) if match else 0


def _metric(row: Mapping[str, Any], where: Where, wanted: str | None) -> str:
    names = row.get("metrics")
    known = [str(name) for name in names if not str(name).endswith("_stderr")] if isinstance(names, list) else []
    known = [name for name in known if name in row and name != _RIGHT]
    if wanted is not None:
        if wanted not in known:
            raise DataError(f"{where}: no metric {wanted!r}, only {', '.join(known)}.{nearest(wanted, known)}")
        return wanted
    usual = [name for name in ("pass@1", "pass_at_1", "pass@1(exact_match)", "exact_match") if name in known]
    if not usual and len(known) != 1:
        raise DataError(f"{where}: which metric says right or wrong? Name one of {', '.join(known)} with --metric")
    return (usual or known)[0]


def _leaves(responses: Any) -> list[str]:
    """Answers in `resps` or `filtered_resps` as texts."""
    return [
        x if isinstance(x, str) else "" if x is None else json.dumps(x, ensure_ascii=False) for x in _flat(responses)
    ]


def _flat(responses: Any) -> list[Any]:
    """Per instance there is a list of answers, or one."""
    instances = responses if isinstance(responses, list) else [responses]
    return [answer for one in instances for answer in (one if isinstance(one, list) else [one])]


def _arguments(row: Mapping[str, Any]) -> list[Any]:
    arguments = row.get("arguments")
    return list(arguments.values()) if isinstance(arguments, Mapping) else []


def _seeds(row: Mapping[str, Any]) -> Iterator[int]:
    """Of every answer: a request's repeats have consecutive seeds (`sampling.seed_of`)."""
    responses = row["resps"] if isinstance(row["resps"], list) else []
    for i, one in enumerate(_arguments(row)):
        seed = deep(one, "arg_1", "seed")
        repeats = responses[i] if i < len(responses) else None
        if isinstance(seed, int):
            yield from range(seed, seed + (len(repeats) if isinstance(repeats, list) else 1))


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row["resps"], ensure_ascii=True).encode()).hexdigest()


def _label(row: Mapping[str, Any]) -> str:
    document = row.get("doc")
    name = next((document[key] for key in _PROBLEM if key in document), None) if isinstance(document, Mapping) else None
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
    for i, log in enumerate(logs):
        for other in logs[i + 1 :]:
            if log.model and other.model and log.model != other.model:
                raise DataError(
                    f"{log.path} is of {log.model} and {other.path} of {other.model}: answers of two models are no "
                    "samples of one. Compare them with --compare."
                )
            shared = log.texts.keys() & other.texts.keys()
            same = len(shared) >= _MANY and all(log.texts[key] == other.texts[key] for key in shared)
            if log.seeds & other.seeds or same:
                raise DataError(
                    f"{log.path} and {other.path} hold the same answers (a run made twice with the same seeds, or a "
                    "copy); counting both would count answers twice. Name one, or take more answers with other seeds."
                )


# --- tables: CSV, JSON Lines or a JSON list; a row an answer, or a row a problem with counts n and c ------------------


class _Neither(ValueError):
    """A value is neither right nor wrong nor unknown."""


def _is_row(value: Any) -> bool:
    if not isinstance(value, Mapping) or _first(value, _PROBLEM) is None:
        return False
    return _first(value, _OK) is not None or _is_counts(value)


def _rows(rows: Iterable[Record]) -> list[_Row]:
    """Lines, or the items of one list."""
    found: list[_Row] = []
    for record in rows:
        values = record.value if isinstance(record.value, list) else [record.value]
        for number, value in enumerate(values, start=1):
            where = record.where if record.is_line else Where(f"{record.where}[{number}]")
            if not isinstance(value, dict):
                raise DataError(f"{where}: a row must be an object with a problem and whether its answer is right")
            found.append((where, value))
    return found


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
        answers = _answers(where, row, unknown_fails)
        problem = answers.problem
        if problem in counted or (_is_counts(row) and (problem, "") in seen):
            raise DataError(f"{where}: {problem!r} has counts already ({counted.get(problem, 'above')})")
        if _is_counts(row):
            counted[problem] = where
        repeat = next((f"{key} {row[key]}" for key in _REPEAT if row.get(key) not in (None, "")), "")
        if repeat and (problem, repeat) in seen:
            raise DataError(f"{where}: {problem!r}, {repeat}, is there already ({seen[problem, repeat]})")
        seen[problem, repeat] = seen[problem, ""] = where
        yield answers


def _answers(where: Where, row: Mapping[str, Any], unknown_fails: bool) -> _Answers:
    key = _first(row, _PROBLEM)
    if key is None or row[key] in (None, ""):
        raise DataError(f"{where}: no problem is named; a row needs a column {_or(_PROBLEM)}")
    problem = str(row[key])
    if _is_counts(row):
        names = [str(_first(row, _N)), str(_first(row, _C))]
        try:
            n, c = (_whole(row[name]) for name in names)
        except _Neither as error:
            raise DataError(
                f"{where}: {names[0]} and {names[1]} of {problem!r} must be counts (up to {_MOST}), not {error}"
            ) from None
        if c > n:
            raise DataError(f"{where}: {problem!r} has {c} right answers of {n}")
        return _Answers(problem, n, c)
    ok = _first(row, _OK)
    if ok is None:
        raise DataError(f"{where}: nothing says whether the answer is right; a row needs a column {_or(_OK)}")
    try:
        verdict = _verdict(row[ok])
    except _Neither as error:
        raise DataError(
            f"{where}: {ok} of {problem!r} is {error}, neither right (1, true) nor wrong (0, false)"
        ) from None
    return _Answers(problem, int(verdict is not None or unknown_fails), int(bool(verdict)))


_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "pass", "passed", "resolved", "success", "correct", "yes", "ok", "1", "1.0"), True),
    **dict.fromkeys(
        ("false", "fail", "failed", "unresolved", "failure", "incorrect", "wrong", "no", "0", "0.0"), False
    ),
    **dict.fromkeys(("", "unknown", "null", "none", "nan"), None),
}


def _verdict(value: Any) -> bool | None:
    """True, false, or None for unknown; `_Neither` for anything else, such as a reward of 0.37."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and (math.isnan(value) or value in (0, 1)):
        return None if math.isnan(value) else bool(value)
    word = value.strip().lower() if isinstance(value, str) else "neither"
    if word not in _WORDS:
        raise _Neither(repr(value)[:80])
    return _WORDS[word]


def _whole(value: Any) -> int:
    """A count, from a number or its text; `_Neither` for anything that is no whole number from 0 to `_MOST`."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 <= number <= _MOST and number == int(number)):
        raise _Neither(repr(value)[:80])
    return int(number)


def _is_counts(row: Mapping[str, Any]) -> bool:
    return _first(row, _N) is not None and _first(row, _C) is not None


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _or(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"


# --- evaluation reports (SWE-bench and related, also of mini-swe-agent's runs): a report is one answer a problem ------

_RESOLVED = ("resolved_ids", "resolved")
_FAILED = ("unresolved_ids", "unresolved")
_TRIED = ("submitted_ids", "completed_ids", "generated")
_PREDICTIONS = ("preds.json", "all_preds.jsonl")


def _reports_in(folder: Path) -> list[Path]:
    """The reports below a folder. `DataError` if some are of runs and some of instances: one counts the other again."""
    runs: list[Path] = []
    instances: list[Path] = []
    for path in sorted(folder.rglob("*.json")):
        if path.name in _PREDICTIONS or path.name.endswith(".traj.json") or path.is_dir():
            continue
        value = read_json(path)
        if _is_report(value):
            (runs if _is_run(value) else instances).append(path)
    if runs and instances:
        raise DataError(
            f"{folder} holds reports of whole runs ({runs[0].name}) and of single instances ({instances[0]}); counting "
            "both would count answers twice. Name the ones you mean."
        )
    if not runs and not instances and any((folder / name).exists() for name in _PREDICTIONS):
        raise DataError(_unjudged(folder))
    return runs or instances


def _report(path: Path, value: Any, unknown_fails: bool) -> Iterator[_Answers]:
    """One answer to each problem the report is about; unknown ones have n = 0 (or 1 and wrong, if asked so)."""
    if _is_predictions(value):
        raise DataError(_unjudged(path))
    judged: dict[str, bool | None] = dict(read_outcomes([str(path)]))
    judged |= {problem: verdict for problem, verdict in _unlisted(path, value) if problem not in judged}
    beside = path.parent / "preds.json"
    predictions: Any = read_json(beside) if beside.exists() else None
    for problem in predictions if _is_predictions(predictions) else ():
        judged.setdefault(str(problem), None)
    for problem, verdict in judged.items():
        yield _Answers(problem, int(verdict is not None or unknown_fails), int(bool(verdict)))


def _unlisted(path: Path, value: Any) -> Iterator[tuple[str, bool | None]]:
    """Problems that were tried, of which the lists say nothing: failed, if the report lists no failures at all."""
    if not isinstance(value, Mapping) or not _is_run(value):
        return
    tried = [name for key in _TRIED for name in map(scalar_text, as_list(value.get(key)) or []) if name]
    failures = any(as_list(value.get(key)) is not None for key in _FAILED)
    if not tried and not failures:
        raise DataError(
            f"{path} lists the problems that were solved and not those that were tried: Pass@K would be 1. Give a "
            f"report with {_FAILED[0]} or {_TRIED[0]}, or a table of (problem, ok)."
        )
    yield from ((name, None if failures else False) for name in tried)


def _is_report(value: Any) -> bool:
    """Of a run (lists of ids), or of one or several instances."""
    if not isinstance(value, Mapping):
        return False
    if _is_run(value) or any(isinstance(value.get(key), bool) for key in _RESOLVED):
        return True
    return bool(value) and all(isinstance(item, Mapping) and "resolved" in item for item in value.values())


def _is_run(value: Mapping[str, Any]) -> bool:
    return any(as_list(value.get(key)) is not None for key in _RESOLVED)


def _is_predictions(value: Any) -> bool:
    """mini-swe-agent's `preds.json`: patches, and nothing of whether they solve anything."""
    rows = list(value.values()) if isinstance(value, Mapping) else []
    return bool(rows) and all(isinstance(row, Mapping) and "model_patch" in row for row in rows)


def _unjudged(path: Path) -> str:
    return (
        f"{path}: predictions say what was tried, not what was solved. Evaluate them (python -m "
        "swebench.harness.run_evaluation --predictions_path …) and give the report it writes."
    )
