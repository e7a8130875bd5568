"""Pass@k from n answers to each of P problems, c of them right: estimates, intervals, paired comparisons.

The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374), averaged over problems, which
are the sample: answers to one problem are not independent. The standard error is that of a mean over problems,
s / √P with P - 1 in s², as lm-eval's. The method of an interval fits the data, and tables name it:

- Clopper-Pearson: one problem; the exact interval of its share p of right answers, transformed to 1 - (1 - p)^k.
- Wilson: every problem counts 0 or 1 (always so at k = n, where nothing is averaged).
- Student's t: mean ± t(P - 1) standard errors; of a difference, that of `stats.paired`.
- Wilson (wide), Newcombe (wide): too few problems for Student's t, or all alike; conservative.

Counts come from files (`read`: logs, reports, tables; strict: what is neither right nor wrong is an error with its
place, not a guess), or from lm-eval itself: `lm_tasks` (the task) with answers of `seeded_generation`. Only the latter
two import lm-eval.
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
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError, listed, nearest
from hesnr_tasks.files.bounded import read_json, read_text
from hesnr_tasks.formats.base import Where, deep
from hesnr_tasks.formats.outcomes import reports_in, tried_outcomes
from hesnr_tasks.formats.sources import Record, records
from hesnr_tasks.stats import RESAMPLES, SEED, minimum_detectable, paired, trajectories_needed

FloatArray = npt.NDArray[np.float64]
_FEWEST_DISCORDANT = 6  # problems, all to one side, before a two-sided sign test can go below 5 %: 2 / 2^6
_FEWEST_PASSES = 5.0  # problems' worth of passes, or of failures, for Student's t
_FEWEST_PROBLEMS = 4  # for Student's t
_MOST_ENUMERATED = 16  # differing problems whose 2^16 sign assignments are enumerated
_RANDOM_ASSIGNMENTS = 20_000
_ROUNDING = 1e-12  # values closer than that are equal
_QUANTILE = (1 + 0.95) / 2  # of 95 % intervals


# --- the estimator ----------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Pass@k of one problem, in [0, 1]; arguments and errors are those of `pass_at_ks`."""
    return float(pass_at_ks([n], [c], [k])[0, 0])


def pass_at_ks(n: npt.ArrayLike, c: npt.ArrayLike, ks: Sequence[int]) -> FloatArray:
    """Pass@k of P problems for several k, shape (P, len(ks)), in [0, 1]; n answers each, c of them right, shapes (P,).

    A sum of positive terms: the j-th answer drawn without replacement is the first right one with probability c / (n
    - j) · Π_{i<j} (1 - c / (n - i)). Nothing cancels, so small values keep their digits, and Pass@1 is c / n to the
    last bit.

    Raises:
        SettingsError: Where c is not within 0 … n, or k not within 1 … n.
    """
    answers, right = np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64)
    if answers.shape != right.shape or answers.ndim != 1:
        raise SettingsError(
            f"n and c must be of equal length, one number a problem, not {answers.shape}, {right.shape}"
        )
    for i in np.flatnonzero((right < 0) | (right > answers))[:1]:
        raise SettingsError(f"{right[i]} right answers of {answers[i]} cannot be (problem {i})")
    least = answers.min(initial=np.iinfo(np.int64).max)
    for k in ks:
        if not 1 <= k <= least:
            raise SettingsError(f"pass@{k}: k must lie between 1 and {least}, the fewest answers to a problem")
    j = np.arange(max(ks, default=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.clip(right[:, None] / (answers[:, None] - j), 0, 1)  # beyond n - c the next answer must be right
    missed = np.cumprod(1 - chance, axis=1)
    first = chance * np.hstack([np.ones((len(answers), 1)), missed[:, :-1]])
    k_row = np.asarray(ks, dtype=np.int64)
    certain = (answers - right)[:, None] < k_row  # too few wrong answers for k of them: 1, without rounding
    return np.where(certain, 1.0, np.minimum(np.cumsum(first, axis=1), 1)[:, k_row - 1])


def powers(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself."""
    return sorted({1 << i for i in range(n.bit_length())} | {n}) if n else []


# --- the answers of a checkpoint --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """Answers of one checkpoint; arrays of shape (P,), in the order of `problems`."""

    name: str
    problems: tuple[str, ...]  # keys: what makes a problem the same in two runs
    labels: tuple[str, ...]  # for people
    n: npt.NDArray[np.int64]  # answers
    c: npt.NDArray[np.int64]  # right ones among them
    notes: tuple[str, ...] = ()


def aligned(runs: Sequence[AnswerCounts], *, common: bool = False) -> tuple[list[AnswerCounts], list[str]]:
    """The runs on the same problems, in the first one's order, and notes on what was left out.

    Raises:
        DataError: For runs on different problems without `common`, or without a problem in common.
    """
    first, notes = runs[0], []
    shared = set(first.problems).intersection(*(run.problems for run in runs[1:]))
    for run in runs[1:]:
        extra = []
        for side, other in ((first, run), (run, first)):
            theirs = set(other.problems)
            own_labels = [label for key, label in zip(side.problems, side.labels, strict=True) if key not in theirs]
            extra += [f"only {side.name} has {listed(own_labels)}"] if own_labels else []
        if extra and not common:
            raise DataError(
                f"{first.name} and {run.name} are not of the same problems: {'; '.join(extra)}. Run both on the same "
                "ones, or compare on those that all have with --common."
            )
        notes += [f"compared on the {len(shared)} problems that all have ({'; '.join(extra)})"] if extra else []
    if not shared:
        raise DataError(f"{', '.join(run.name for run in runs)} have no problem in common")
    problems, subsets = tuple(problem for problem in first.problems if problem in shared), []
    for run in runs:
        index = {problem: i for i, problem in enumerate(run.problems)}
        order = [index[problem] for problem in problems]
        labels = tuple(run.labels[i] for i in order)
        subsets.append(AnswerCounts(run.name, problems, labels, run.n[order], run.c[order], run.notes))
    return subsets, notes


# --- intervals and tests for yes-or-no outcomes -----------------------------------------------------------------------


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of the share of `successes` among n.

    `successes` may be a sum of numbers in [0, 1] (which scipy's does not take): the interval is then conservative,
    as no number in [0, 1] varies more than yes-or-no with its mean.
    """
    z = NormalDist().inv_cdf(_QUANTILE)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(share * (1 - share) / n, 0) + z * z / (4 * n * n))
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return low, 1.0 if successes >= n else min(1.0, middle + half)


def newcombe(a: float, b: float, n: int) -> tuple[float, float]:
    """Interval of (b - a) / n, unpaired, from Wilson's of both shares (Newcombe 1998, method 10)."""
    (a_low, a_high), (b_low, b_high) = wilson(a, n), wilson(b, n)
    p, q = a / n, b / n
    return (q - p) - math.hypot(q - b_low, a_high - p), (q - p) + math.hypot(b_high - q, p - a_low)


def sign_flip(differences: FloatArray, seed: int) -> float:
    """Two-sided p-value of "each problem's difference (P,) is as likely to have either sign".

    Exact (every assignment of signs) up to 16 differing problems, and whenever all differ by the same amount
    (McNemar's exact test); of 20 000 random assignments otherwise.
    """
    from scipy.stats import binomtest, permutation_test

    nonzero = differences[np.abs(differences) > _ROUNDING]
    if not len(nonzero):
        return 1.0
    if np.ptp(np.abs(nonzero)) < _ROUNDING:
        return float(binomtest(int((nonzero > 0).sum()), len(nonzero)).pvalue)
    test = permutation_test(
        (nonzero,),
        lambda signed, axis: np.round(np.abs(signed.sum(axis=axis)), 9),  # sums in another order are ties
        permutation_type="samples",
        vectorized=True,
        n_resamples=1 << _MOST_ENUMERATED if len(nonzero) <= _MOST_ENUMERATED else _RANDOM_ASSIGNMENTS,
        batch=1000,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


# --- the curve over k, and two checkpoints on the same problems -------------------------------------------------------


class PassAtK(NamedTuple):
    """Pass@k of one checkpoint: mean over problems, its standard error (NaN: one problem), interval and its method."""

    k: int
    value: float
    stderr: float
    low: float
    high: float
    method: str
    averaged: bool  # false: some problem has just k answers


def curve(run: AnswerCounts, ks: Sequence[int]) -> list[PassAtK]:
    """Pass@k of one checkpoint, a point for each k; see the module for its interval.

    Raises:
        SettingsError: For a k beyond a problem's number of answers, which it names.
    """
    from scipy.stats import binomtest
    from scipy.stats import t as student

    for k in ks:
        if k < 1:
            raise SettingsError(f"--k {k}: k must be at least 1")
        if len(short := np.flatnonzero(run.n < k)):
            i = int(short[np.argmin(run.n[short])])
            more = f" (and {len(short) - 1} more problems have too few)" if len(short) > 1 else ""
            raise SettingsError(
                f"--k {k}: {run.name} has {run.n[i]} answers to {run.labels[i]!r}{more}; Pass@K cannot be known from "
                f"fewer than k answers. Take more answers, or a k of at most {run.n.min()}."
            )
    points, problems = [], len(run.n)
    for k, values in zip(ks, np.sort(pass_at_ks(run.n, run.c, ks), axis=0).T, strict=True):  # in any order the same
        total = math.fsum(values)
        mean, stderr = total / problems, float(values.std(ddof=1)) / math.sqrt(problems) if problems > 1 else math.nan
        stderr = 0.0 if stderr < _ROUNDING else stderr
        if problems == 1:
            share = binomtest(int(run.c[0]), int(run.n[0])).proportion_ci(method="exact")
            low, high = (-math.expm1(k * math.log1p(-p)) if p < 1 else 1.0 for p in (share.low, share.high))
            method = "Clopper-Pearson"
        elif np.isin(values, (0.0, 1.0)).all():
            (low, high), method = wilson(total, problems), "Wilson"
        elif problems < _FEWEST_PROBLEMS or min(total, problems - total) < _FEWEST_PASSES or stderr == 0:
            (low, high), method = wilson(total, problems), "Wilson (wide)"
        else:
            half = stderr * float(student.ppf(_QUANTILE, problems - 1))
            low, high, method = max(0.0, mean - half), min(1.0, mean + half), "Student's t"
        points.append(PassAtK(k, mean, stderr, low, high, method, bool((run.n > k).all())))
    return points


class PassAtKDifference(NamedTuple):
    """Pass@k of `b` less that of `a`, on the same problems."""

    k: int
    difference: float
    stderr: float
    low: float
    high: float
    method: str
    p: float  # two-sided, by flipping signs: both are as good at every problem
    p_mean: float  # two-sided, as the interval: the means over all such problems are equal
    detectable: float  # smallest true difference detected at 5 % with 80 % power; NaN: too few problems differ
    needed: int | None  # problems that would detect the observed difference
    better: int  # problems at which b's estimate is higher
    worse: int


def differences(
    a: AnswerCounts, b: AnswerCounts, ks: Sequence[int], *, resamples: int = RESAMPLES, seed: int = SEED
) -> list[PassAtKDifference]:
    """Pass@k of `b` less that of `a`, for every k, on the same problems in the same order (`aligned`)."""
    ones, rows = np.ones(len(a.n)), []
    for k, p, q in zip(ks, pass_at_ks(a.n, a.c, ks).T, pass_at_ks(b.n, b.c, ks).T, strict=True):
        each = np.where(np.abs(q - p) > _ROUNDING, q - p, 0.0)
        mean, better, worse = math.fsum(each) / len(each), int((each > 0).sum()), int((each < 0).sum())
        test = paired((p, ones), (q, ones), resamples=resamples, seed=seed)
        enough = better + worse >= _FEWEST_DISCORDANT and np.ptp(each) >= _ROUNDING
        if enough and math.isfinite(test.ci_low + test.ci_high):
            low, high, method, p_mean = max(-1.0, test.ci_low), min(1.0, test.ci_high), "Student's t", test.p
        else:
            low, high = newcombe(math.fsum(p), math.fsum(q), len(p))
            method, p_mean = "Newcombe (wide)", math.nan
        detectable = minimum_detectable(test.stderr) if enough else math.nan
        needed = trajectories_needed(mean, test.stderr, len(p)) if enough else None
        tests = (sign_flip(each, seed), p_mean, detectable, needed)
        rows.append(PassAtKDifference(k, mean, test.stderr, low, high, method, *tests, better, worse))
    return rows


def discordant(a: AnswerCounts, b: AnswerCounts) -> Iterator[dict[str, Any]]:
    """The problems that one run solved at least once and the other never, as rows of a table; those with most right
    answers first.
    """
    rows = []
    for i, label in enumerate(a.labels):
        if (a.c[i] > 0) != (b.c[i] > 0):
            share = max(a.c[i] / a.n[i], b.c[i] / b.n[i])
            row = {"problem": label, "solved_by": b.name if b.c[i] else a.name}
            rows.append((-share, label, row | {run.name: f"{run.c[i]} of {run.n[i]}" for run in (a, b)}))
    yield from (row for _, _, row in sorted(rows, key=lambda row: row[:2]))


# --- right answers from files: lm-eval sample logs, SWE-bench reports, tables of (problem, ok) ------------------------

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
