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

from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.files.bounded import read_json, read_text
from hesnr_tasks.formats.base import Where, deep
from hesnr_tasks.formats.outcomes import reports_in, tried_outcomes
from hesnr_tasks.formats.sources import Record, records
from hesnr_tasks.passk import AnswerCounts, listed, pass_at_k, pass_at_ks

_PROBLEM = ("problem", "problem_id", "task_id", "instance_id", "question_id", "id", "name")


class Query(NamedTuple):
    """How ambiguous files are read; None: what the file leaves no choice about."""

    metric: str | None = None
    filter: str | None = None
    task: str | None = None


_DEFAULT = Query()


def read(name: str, paths: Sequence[Path], query: Query = _DEFAULT) -> AnswerCounts:
    """All files of one checkpoint: the answers of several files to one problem are put together.

    `paths` are files; of a folder its sample logs, or else its evaluation reports. A problem all of whose outcomes
    are unknown is left out, and a note says so.

    Raises:
        DataError: With file and line, for what cannot be read, for files that hold the same answers, and where no
            problem has a known outcome.
    """
    n, c, labels, notes, logs = Counter[str](), Counter[str](), dict[str, str](), list[str](), list[_Log]()

    def add(problem: str, answers: int, right: int, label: str = "") -> None:
        n[problem] += answers
        c[problem] += right
        labels.setdefault(problem, label or problem)

    files = _files(paths, query.task)
    for path in files:
        if path.suffix.lower() in (".csv", ".tsv"):
            for counts in _table(_csv_rows(str(path))):
                add(*counts)
            continue
        lines = _records(str(path))
        first = next(lines, None)
        if first is None:
            raise DataError(f"{path} is empty: there is no answer in it. Was the run stopped before it wrote its log?")
        lines = itertools.chain([first], lines)
        if _is_log(first.value) or path.name.startswith("samples_"):
            log = _Log(path, _model(path), set(), {})
            for logged in _logged(path, lines, query, notes):  # texts are not kept: logs can be larger than memory
                add(logged.problem, logged.n, logged.c, logged.label)
                log.seeds.update((logged.problem, seed) for seed in logged.seeds)
                log.digests[logged.problem] = logged.digest
            logs.append(log)
            continue
        all_lines = list(lines)
        rows = list(_json_rows(all_lines))
        if any(_first(row, _PROBLEM) and _first(row, _OK) for _, row in rows):
            for counts in _table(rows):
                add(*counts)
        else:
            verdicts = tried_outcomes(path, all_lines[0].value if len(all_lines) == 1 else None)
            for problem, verdict in verdicts.items():
                add(problem, int(verdict is not None), int(bool(verdict)))
    _refuse_copies(logs)
    if logs and len(logs) < len(files):
        raise DataError(f"{name}: sample logs and other files together; their problems cannot be told to be the same")
    problems = sorted((problem for problem in n if n[problem]), key=lambda problem: (labels[problem], problem))
    unknown = sorted(labels[problem] for problem in n if not n[problem])
    if not problems:
        raise DataError(f"{name}: no problem has an answer that is known to be right or wrong")
    notes += [f"no outcome is known for {listed(unknown)}: left out"] if unknown else []
    return AnswerCounts(
        name,
        tuple(problems),
        tuple(labels[problem] for problem in problems),
        np.array([n[problem] for problem in problems], dtype=np.int64),
        np.array([c[problem] for problem in problems], dtype=np.int64),
        tuple(f"{name}: {note}" for note in notes),
    )


# --- which files, and of what kind ------------------------------------------------------------------------------------


def log_files(paths: Sequence[Path], task: str | None) -> list[Path]:
    """lm-eval's sample logs among some files and below some folders.

    Raises:
        DataError: A path is not there, or the logs are of other tasks than `task`, or without it of several.
    """
    return _files(paths, task, logs_only=True)


def _files(paths: Sequence[Path], task: str | None, *, logs_only: bool = False) -> list[Path]:
    """Files of one task; one that is named twice counts once."""
    by_path: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            raise DataError(f"there is no file or folder {str(path)!r}.{near}")
        files = [path]
        if path.is_dir():
            files = sorted(path.rglob("samples_*.jsonl")) or ([] if logs_only else reports_in(path))
            if not files and not logs_only:
                raise DataError(
                    f"{path} holds neither lm-eval sample logs (samples_*.jsonl) nor evaluation reports; name a file"
                )
        elif logs_only and not path.name.startswith("samples_"):
            first = next(records(str(path)), None)
            files = [path] if isinstance(first, Record) and _is_log(first.value) else []
        by_path |= {file.resolve(): file for file in files}
    task_of = {
        path: path.name.removeprefix("samples_").rpartition("_")[0] or path.name.removeprefix("samples_")
        for path in by_path.values()
        if path.name.startswith("samples_")
    }
    tasks = dict.fromkeys(task_of.values())
    if task is None and len(tasks) > 1:
        raise DataError(f"the logs are of several tasks ({', '.join(tasks)}); choose one with --task")
    if task is not None and task not in tasks and not (logs_only and not by_path):
        raise DataError(f"no log is of the task {task!r}, only {', '.join(tasks) or 'none'}.{nearest(task, tasks)}")
    return [path for path in by_path.values() if task is None or task_of.get(path, task) == task]


def _records(path: str) -> Iterator[Record]:
    for record in records(path):
        if isinstance(record, Record):
            yield record
        else:
            raise DataError(str(record))


# --- lm-eval's sample logs (--log_samples) ----------------------------------------------------------------------------

_PASS = re.compile(r"pass(?:@|_at_)([0-9]{1,9})(?:\(.*\))?")  # 0.5's own: pass@1(exact_match)
_RIGHT = "right_answers"  # our task's list of verdicts
_USUAL = ("pass@1", "pass_at_1", "pass@1(exact_match)", "exact_match")
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


def _is_log(value: Any) -> bool:
    return isinstance(value, Mapping) and "doc_id" in value and "resps" in value and "filtered_resps" in value


def read_log(path: Path, query: Query = _DEFAULT) -> tuple[list[LoggedProblem], list[str]]:
    """The problems of one sample log with all their answers, and notes on rows that were there twice. Raises
    `DataError`.
    """
    notes: list[str] = []
    return list(_logged(path, _records(str(path)), query, notes, text_only=True)), notes


def _logged(
    path: Path, lines: Iterable[Record], query: Query, notes: list[str], *, text_only: bool = False
) -> Iterator[LoggedProblem]:
    occurrences = Counter[str]()
    keys = dict[tuple[str, str], str]()  # (document, its number in the log) → problem
    digests = set[tuple[str, str]]()
    copies = more = 0
    for record in _of_filter(path, lines, query.filter):
        row, where = record.value, record.where
        document = str(row.get("doc_hash") or row["doc_id"]), str(row["doc_id"])
        again = document in keys
        if not again:  # equal documents with numbers of their own are different problems
            occurrences[document[0]] += 1
            number = occurrences[document[0]]
            keys[document] = f"{document[0]}#{number}" if number > 1 else document[0]
        problem = keys[document]
        digest = hashlib.sha256(json.dumps(row["resps"], ensure_ascii=True).encode()).hexdigest()
        if (problem, digest) in digests:
            copies += 1
            continue
        digests.add((problem, digest))
        more += again
        answers = _flat(row["resps"])
        if text_only and not all(isinstance(answer, (str, type(None))) for answer in answers):
            raise DataError(
                f"{path}: document {row['doc_id']} has likelihoods where answers should be: no text to read"
            )
        verdicts, scores = row.get(_RIGHT), row.get("scores_per_repeat")  # the latter is lm-eval 0.5's own
        if verdicts is None and isinstance(scores, Mapping) and len(scores) == 1:
            (verdicts,) = scores.values()
        right = None
        if isinstance(verdicts, list) and len(verdicts) == len(answers) and all(v in (0, 1) for v in verdicts):
            right = tuple(map(bool, verdicts))
        if right and not query.metric:
            n, c = len(right), sum(right)
            _check_estimates(row, n, c, "", where)
        else:
            n, c = _counted(row, where, query.metric)
        if right is None and len(answers) == n and c in (0, n):
            right = (c > 0,) * n
        texts = tuple(
            text if isinstance(text, str) else "" if text is None else json.dumps(text, ensure_ascii=False)
            for text in answers
        )
        requests = list(row["arguments"].values()) if isinstance(row.get("arguments"), Mapping) else []
        prompt, seeds = next((deep(request, "arg_0") for request in requests), None), list[int]()
        for i, request in enumerate(requests):  # a request's repeats have consecutive seeds (`seed_of`)
            seed, repeats = deep(request, "arg_1", "seed"), deep(row["resps"], i)
            if isinstance(seed, int):
                seeds += range(seed, seed + (len(repeats) if isinstance(repeats, list) else 1))
        named = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
        label = named[key] if (key := _first(named, _PROBLEM)) else None
        if not isinstance(label, int) and not (isinstance(label, str) and len(label) <= 80):
            label = row["doc_id"]  # a document's "problem" may be its whole statement
        yield LoggedProblem(problem, str(label), prompt, texts, right, n, c, tuple(seeds), digest)
    if copies:
        notes.append(f"{path.name}: {copies} rows are there twice, answers and all; each counts once")
    if more:
        notes.append(f"{path.name}: {more} rows have more answers to a problem listed before; put together")


def _of_filter(path: Path, lines: Iterable[Record], wanted: str | None) -> Iterator[Record]:
    names = dict[str, None]()
    for record in lines:
        if not _is_log(record.value):
            raise DataError(f"{record.where}: no line of an lm-eval sample log (doc_id, resps, filtered_resps)")
        name = str(record.value.get("filter"))
        names[name] = None
        if wanted is None and len(names) > 1:
            names |= dict.fromkeys(str(rest.value.get("filter")) for rest in lines if _is_log(rest.value))
            raise DataError(f"{path} has answers of the filters {', '.join(names)}; choose one with --filter")
        if wanted in (None, name):
            yield record
    if wanted is not None and wanted not in names:
        raise DataError(f"{path} has no filter {wanted!r}, only {', '.join(names)}.{nearest(wanted, names)}")


def _counted(row: Mapping[str, Any], where: Where, wanted: str | None) -> tuple[int, int]:
    """Answers scored and right ones among them: from the share of right ones, or a pass@k that one number gives."""
    choice = isinstance(deep(row["resps"], 0, 0), list)  # likelihoods of choices: one answer in all
    sampled, scored = (1 if choice else len(_flat(row[key])) for key in ("resps", "filtered_resps"))
    if not scored and not sampled:
        return 0, 0
    stated = map(str, row["metrics"] if isinstance(row.get("metrics"), list) else [])
    names = [name for name in stated if not name.endswith("_stderr") and name in row and name != _RIGHT]
    if wanted is not None and wanted not in names:
        raise DataError(f"{where}: no metric {wanted!r}, only {', '.join(names)}.{nearest(wanted, names)}")
    chosen = [wanted] if wanted else [name for name in _USUAL if name in names] or names
    if not wanted and chosen is names and len(names) != 1:
        raise DataError(f"{where}: which metric says right or wrong? Name one of {', '.join(names)} with --metric")
    name = chosen[0]
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


def _flat(responses: Any) -> list[Any]:
    """All answers in `resps` or `filtered_resps`: per instance there is a list of answers, or one."""
    instances = responses if isinstance(responses, list) else [responses]
    return [answer for item in instances for answer in (item if isinstance(item, list) else [item])]


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


# --- tables: CSV, JSON Lines or a JSON list; a row an answer ----------------------------------------------------------

_OK = ("ok", "passed", "correct", "resolved", "success", "result", "acc", "exact_match")
_REPEAT = ("sample", "sample_id", "completion_id", "run", "seed")  # tell the answers to a problem apart
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("true", "pass", "passed", "resolved", "success", "correct", "yes", "ok", "1", "1.0"), True),
    **dict.fromkeys(
        ("false", "fail", "failed", "unresolved", "failure", "incorrect", "wrong", "no", "0", "0.0"), False
    ),
    **dict.fromkeys(("", "unknown", "null", "none", "nan"), None),
}
_TableRow = tuple[Where, Mapping[str, Any]]


def _json_rows(lines: Iterable[Record]) -> Iterator[_TableRow]:
    """Lines, or the items of one list."""
    for record in lines:
        values = record.value if isinstance(record.value, list) else [record.value]
        for number, value in enumerate(values, start=1):
            where = record.where if record.is_line else Where(f"{record.where}[{number}]")
            if not isinstance(value, dict):
                raise DataError(f"{where}: a row must be an object with a problem and whether its answer is right")
            yield where, value


def _csv_rows(path: str) -> Iterator[_TableRow]:
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


def _table(rows: Iterable[_TableRow]) -> Iterator[tuple[str, int, int]]:
    """Problem, whether the outcome is known, whether the answer is right; `DataError` for a reward of 0.37, say."""
    seen: dict[tuple[str, str], Where] = {}
    for where, row in rows:
        key, ok = _first(row, _PROBLEM), _first(row, _OK)
        if key is None or row[key] in (None, ""):
            raise DataError(f"{where}: no problem is named; a row needs a column {', '.join(_PROBLEM)}")
        if ok is None:
            raise DataError(f"{where}: nothing says whether the answer is right; a row needs a column {', '.join(_OK)}")
        problem, word = str(row[key]), str(row[ok]).strip().lower()
        if word not in _WORDS:
            text = repr(row[ok])[:80]
            raise DataError(f"{where}: {ok} of {problem!r} is {text}, neither right (1, true) nor wrong (0, false)")
        repeat = next((f"{name} {row[name]}" for name in _REPEAT if row.get(name) not in (None, "")), "")
        if repeat and seen.setdefault((problem, repeat), where) is not where:
            raise DataError(f"{where}: {problem!r}, {repeat}, is there already ({seen[problem, repeat]})")
        yield problem, int(_WORDS[word] is not None), int(bool(_WORDS[word]))


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)
