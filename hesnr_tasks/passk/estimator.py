"""Pass@K from n answers to each of P problems, c of them right: estimates, intervals, and two checkpoints compared.

The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374), averaged over problems.
Problems are what is resampled, as answers to one problem are not independent. An interval is made by the method that
fits the data, and the table names it:

- Clopper-Pearson: one problem; the exact interval of its share of right answers, p, carried over to 1 - (1 - p)^k.
- Wilson: every problem counts 0 or 1 (always so at k = n, where nothing is averaged).
- Student's t: the interval of `analysis.intervals`.
- Wilson (wide), Newcombe (wide): too few problems for the bootstrap, or all alike; too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.stats import (
    RESAMPLES,
    SEED,
    bootstrap_sums,
    estimates,
    minimum_detectable,
    paired,
    standard_error,
    trajectories_needed,
)

__all__ = [
    "FEWEST",
    "Difference",
    "Ends",
    "Outcomes",
    "Plan",
    "Point",
    "aligned",
    "clopper_pearson",
    "curve",
    "differences",
    "discordant",
    "listed",
    "mean_error",
    "newcombe",
    "pass_at_k",
    "pass_at_ks",
    "powers",
    "sign_flip",
    "wilson",
]

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
FEWEST = 6  # differing problems, all to one side, before a two-sided sign test can go below 5 %: 2 / 2^6
_SCARCE = 5.0  # problems' worth of passes, or of failures, below which the bootstrap knows too little
_FEW = 4  # problems: fewer give no bootstrap
_EXACT = 16  # differing problems: up to 2^16 sign assignments are enumerated
_DRAWS = 20_000
_ROUNDING = 1e-12  # values closer than that are equal
_SHOWN = 3


# --- the estimator ----------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Pass@k of one problem; `SettingsError` unless 0 <= c <= n and 1 <= k <= n."""
    return float(pass_at_ks(np.array([n]), np.array([c]), [k])[0, 0])


def pass_at_ks(n: npt.ArrayLike, c: npt.ArrayLike, ks: Sequence[int]) -> FloatArray:
    """Pass@k of P problems for several k.

    A sum of positive terms: the j-th answer drawn without replacement is the first right one with probability
    c / (n - j) · Π_{i<j} (1 - c / (n - i)). Nothing cancels, so small values keep their digits, and Pass@1 is c / n to
    the last bit.

    Args:
        n: Answers to each problem, shape (P,).
        c: Right answers among them, shape (P,).
        ks: The values of k.

    Returns:
        Shape (P, len(ks)), in [0, 1].

    Raises:
        SettingsError: Where c is not within 0 … n, or k not within 1 … n.
    """
    answers, right = np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64)
    _check(answers, right, ks)
    j = np.arange(max(ks, default=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.clip(right[:, None] / (answers[:, None] - j), 0, 1)  # beyond n - c the next answer must be right
    missed = np.cumprod(1 - chance, axis=1)
    first = chance * np.hstack([np.ones((len(answers), 1)), missed[:, :-1]])
    wanted = np.asarray(ks, dtype=np.int64)
    certain = (answers - right)[:, None] < wanted  # too few wrong answers for k of them: 1, without rounding
    return np.where(certain, 1.0, np.minimum(np.cumsum(first, axis=1), 1)[:, wanted - 1])


def powers(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself."""
    return sorted({1 << i for i in range(n.bit_length())} | {n}) if n else []


def _check(n: Counts, c: Counts, ks: Sequence[int]) -> None:
    if n.shape != c.shape or n.ndim != 1:
        raise SettingsError(f"n and c must be lists of equal length, one number a problem, not {n.shape} and {c.shape}")
    if ((c < 0) | (c > n)).any():
        i = int(np.flatnonzero((c < 0) | (c > n))[0])
        raise SettingsError(f"{c[i]} right answers of {n[i]} cannot be (problem {i})")
    for k in ks:
        if k < 1:
            raise SettingsError(f"k must be at least 1, not {k}")
        if len(n) and k > n.min():
            raise SettingsError(
                f"pass@{k} needs at least {k} answers a problem, and problem {int(n.argmin())} has {n.min()}"
            )


# --- the answers of a checkpoint --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Right answers of one checkpoint; arrays of shape (P,), in the order of `problems`."""

    name: str
    problems: tuple[str, ...]  # keys: what makes a problem the same in two runs
    labels: tuple[str, ...]  # how people call them
    n: Counts
    c: Counts
    notes: tuple[str, ...] = field(default=())

    def subset(self, problems: Sequence[str]) -> Outcomes:
        """These problems only, in this order."""
        index = {problem: i for i, problem in enumerate(self.problems)}
        order = [index[problem] for problem in problems]
        labels = tuple(self.labels[i] for i in order)
        return Outcomes(self.name, tuple(problems), labels, self.n[order], self.c[order], self.notes)


def aligned(runs: Sequence[Outcomes], *, common: bool = False) -> tuple[list[Outcomes], list[str]]:
    """The runs on the same problems in the same order, and notes on what was left out.

    `DataError` for runs on different problems, unless `common`, which keeps those that all have.
    """
    first = runs[0]
    shared = set(first.problems).intersection(*(run.problems for run in runs[1:]))
    unlike = [run for run in runs[1:] if set(run.problems) != set(first.problems)]
    reasons = ["; ".join(_extra(first, run)) for run in unlike]
    if unlike and not common:
        raise DataError(
            f"{first.name} and {unlike[0].name} are not of the same problems: {reasons[0]}. Run both on the same ones, "
            "or compare on those that all have with --common."
        )
    if not shared:
        raise DataError(f"{', '.join(run.name for run in runs)} have no problem in common")
    order = [problem for problem in first.problems if problem in shared]
    notes = [f"compared on the {len(order)} problems that all have ({reason})" for reason in reasons]
    return [run.subset(order) for run in runs], notes


def _extra(a: Outcomes, b: Outcomes) -> Iterable[str]:
    for run, other in ((a, b), (b, a)):
        theirs = set(other.problems)
        extra = [label for key, label in zip(run.problems, run.labels, strict=True) if key not in theirs]
        if extra:
            yield f"only {run.name} has {listed(extra)}"


def listed(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# --- intervals and tests for yes-or-no outcomes -----------------------------------------------------------------------


class Ends(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float


def wilson(successes: float, n: int, level: float = 0.95) -> Ends:
    """Wilson's score interval (1927) of a share. `successes` may be a sum of numbers in [0, 1] (which scipy's does not
    take): it is then too wide rather than too narrow, as no number in [0, 1] varies more than yes-or-no with its mean.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(share * (1 - share) / n, 0) + z * z / (4 * n * n))
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return Ends(low, 1.0 if successes >= n else min(1.0, middle + half))


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Ends:
    """The exact interval (Clopper and Pearson 1934): covers at least `level`, whatever the true share."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(level, method="exact")
    return Ends(float(interval.low), float(interval.high))


def newcombe(a: float, b: float, n: int, level: float = 0.95) -> Ends:
    """Interval of (b - a) / n from Wilson's intervals of both shares (Newcombe 1998, method 10), pairing left out."""
    left, right = wilson(a, n, level), wilson(b, n, level)
    p, q = a / n, b / n
    return Ends(
        (q - p) - math.hypot(q - right.low, left.high - p),
        (q - p) + math.hypot(right.high - q, p - left.low),
    )


def sign_flip(differences: FloatArray, seed: int) -> float:
    """Two-sided p-value of "each problem's difference is as likely to have either sign".

    Args:
        differences: Shape (P,).
        seed: Of the random signs.

    Returns:
        Exact (every assignment of signs) up to 16 differing problems, and whenever all differ by the same amount
        (McNemar's exact test); of 20 000 random assignments otherwise.
    """
    from scipy.stats import binomtest, permutation_test

    nonzero = differences[np.abs(differences) > _ROUNDING]
    if not len(nonzero):
        return 1.0
    if np.ptp(np.abs(nonzero)) < _ROUNDING:
        return float(binomtest(int((nonzero > 0).sum()), len(nonzero)).pvalue)
    if len(nonzero) == 1:
        return 1.0
    found = permutation_test(
        (nonzero,),
        lambda signed, axis: np.round(np.abs(signed.sum(axis=axis)), 9),  # sums in another order are ties
        permutation_type="samples",
        vectorized=True,
        n_resamples=1 << _EXACT if len(nonzero) <= _EXACT else _DRAWS,
        batch=1000,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


# --- the curve over k -------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How intervals are computed."""

    resamples: int = RESAMPLES
    seed: int = SEED
    level: float = 0.95
    power: float = 0.8


_USUAL = Plan()


class Point(NamedTuple):
    """Pass@k of one checkpoint: mean over problems, its standard error (NaN: one problem), interval and its method."""

    k: int
    value: float
    stderr: float
    low: float
    high: float
    method: str
    averaged: bool  # false: some problem has just k answers


def curve(run: Outcomes, ks: Sequence[int], plan: Plan = _USUAL) -> list[Point]:
    """Pass@k for every k; `SettingsError` for a k beyond a problem's number of answers, which it names."""
    for k in ks:
        if k < 1:
            raise SettingsError(f"--k {k}: k must be at least 1")
        short = np.flatnonzero(run.n < k)
        if len(short):
            i = int(short[np.argmin(run.n[short])])
            more = f" (and {len(short) - 1} more problems have too few)" if len(short) > 1 else ""
            raise SettingsError(
                f"--k {k}: {run.name} has {run.n[i]} answers to {run.labels[i]!r}{more}; Pass@k cannot be known from "
                f"fewer than k answers. Take more answers, or a k of at most {run.n.min()}."
            )
    values = pass_at_ks(run.n, run.c, ks)
    drawn = estimates(values, np.ones_like(values), resamples=plan.resamples, seed=plan.seed, level=plan.level)
    points = []
    for i, k in enumerate(ks):
        ends, method = _interval(run, values[:, i], k, Ends(float(drawn.low[i]), float(drawn.high[i])), plan)
        value, error = mean_error(values[:, i].tolist(), plan.resamples, plan.seed)
        points.append(Point(k, value, error, *ends, method, bool((run.n > k).all())))
    return points


def mean_error(values: Sequence[float], resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float]:
    """Mean over problems and its cluster-bootstrap standard error (NaN for one problem), in any order of problems."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered)
    if len(ordered) < 2 or ordered[-1] - ordered[0] < _ROUNDING:
        return mean, math.nan if len(ordered) < 2 else 0.0
    sums = bootstrap_sums(np.array(ordered)[:, None], resamples, seed)[:, 0]
    return mean, standard_error(sums / len(ordered))


def _interval(run: Outcomes, values: FloatArray, k: int, drawn: Ends, plan: Plan) -> tuple[Ends, str]:
    total, problems = math.fsum(values.tolist()), len(values)
    if problems == 1:
        share = clopper_pearson(int(run.c[0]), int(run.n[0]), plan.level)
        return Ends(*(-math.expm1(k * math.log1p(-p)) if p < 1 else 1.0 for p in share)), "Clopper-Pearson"
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(total, problems, plan.level), "Wilson"
    scarce = problems < _FEW or min(total, problems - total) < _SCARCE or np.ptp(values) < _ROUNDING
    if scarce or not math.isfinite(drawn.low + drawn.high):
        return wilson(total, problems, plan.level), "Wilson (wide)"
    return Ends(max(0.0, drawn.low), min(1.0, drawn.high)), "Student's t"


# --- two checkpoints on the same problems -----------------------------------------------------------------------------


class Difference(NamedTuple):
    """Pass@k of `b` less that of `a`, on the same problems."""

    k: int
    difference: float
    stderr: float
    low: float
    high: float
    method: str
    p: float  # two-sided, by flipping signs: both are as good at every problem
    p_mean: float  # two-sided, of the bootstrap and its interval: the means over all such problems are equal
    detectable: float  # smallest true difference found at 5 % with the power asked for; NaN: too few problems differ
    needed: int | None  # problems that would find the difference seen
    better: int  # problems at which b's estimate is higher
    worse: int


def differences(a: Outcomes, b: Outcomes, ks: Sequence[int], plan: Plan = _USUAL) -> list[Difference]:
    """For every k; `a` and `b` from `aligned`."""
    left, right = pass_at_ks(a.n, a.c, ks), pass_at_ks(b.n, b.c, ks)
    return [_difference(k, left[:, i], right[:, i], plan) for i, k in enumerate(ks)]


def _difference(k: int, a: FloatArray, b: FloatArray, plan: Plan) -> Difference:
    each = np.where(np.abs(b - a) > _ROUNDING, b - a, 0.0)
    ones, mean = np.ones(len(a)), math.fsum(each.tolist()) / len(a)
    boot = paired((a, ones), (b, ones), resamples=plan.resamples, seed=plan.seed, level=plan.level)
    ends, method = Ends(max(-1.0, boot.ci_low), min(1.0, boot.ci_high)), "Student's t"
    enough = int(np.count_nonzero(each)) >= FEWEST and np.ptp(each) >= _ROUNDING
    if not enough or not math.isfinite(boot.ci_low + boot.ci_high):
        ends, method = newcombe(math.fsum(a.tolist()), math.fsum(b.tolist()), len(a), plan.level), "Newcombe (wide)"
    return Difference(
        k,
        mean,
        boot.stderr,
        *ends,
        method,
        p=sign_flip(each, plan.seed),
        p_mean=boot.p if method == "Student's t" else math.nan,
        detectable=minimum_detectable(boot.stderr, plan.power) if enough else math.nan,
        needed=trajectories_needed(mean, boot.stderr, len(a), plan.power) if enough else None,
        better=int((each > 0).sum()),
        worse=int((each < 0).sum()),
    )


def discordant(a: Outcomes, b: Outcomes) -> Iterator[dict[str, Any]]:
    """The problems that one of both solved at least once and the other never; those with most right answers first."""
    rows = []
    for i, label in enumerate(a.labels):
        if (a.c[i] > 0) != (b.c[i] > 0):
            share = max(a.c[i] / a.n[i], b.c[i] / b.n[i])
            row = {"problem": label, "solved_by": b.name if b.c[i] else a.name}
            rows.append((-share, label, row | {run.name: f"{run.c[i]} of {run.n[i]}" for run in (a, b)}))
    yield from (row for _, _, row in sorted(rows, key=lambda row: row[:2]))
