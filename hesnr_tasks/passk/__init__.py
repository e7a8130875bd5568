"""Pass@k from n answers to each of P problems, c of them right: estimates, intervals, paired comparisons.

The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374), averaged over problems, which
are the sample: answers to one problem are not independent. The standard error is that of a mean over problems,
s / √P with P - 1 in s², as lm-eval's. The method of an interval fits the data, and tables name it:

- Clopper-Pearson: one problem; the exact interval of its share p of right answers, transformed to 1 - (1 - p)^k.
- Wilson: every problem counts 0 or 1 (always so at k = n, where nothing is averaged).
- Student's t: mean ± t(P - 1) standard errors; of a difference, that of `stats.paired`.
- Wilson (wide), Newcombe (wide): too few problems for Student's t, or all alike; conservative.

Counts come from `outcome_files` (logs, reports, tables), or from lm-eval itself: `lm_tasks` (the task) with answers of
`seeded_generation`. Only the latter two import lm-eval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.stats import RESAMPLES, SEED, minimum_detectable, paired, trajectories_needed

FloatArray = npt.NDArray[np.float64]
_FEWEST_DISCORDANT = 6  # problems, all to one side, before a two-sided sign test can go below 5 %: 2 / 2^6
_FEWEST_PASSES = 5.0  # problems' worth of passes, or of failures, for Student's t
_FEWEST_PROBLEMS = 4  # for Student's t
_MOST_ENUMERATED = 16  # differing problems whose 2^16 sign assignments are enumerated
_RANDOM_ASSIGNMENTS = 20_000
_ROUNDING = 1e-12  # values closer than that are equal
_LISTED = 3
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


def listed(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


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
