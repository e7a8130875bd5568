"""Pass@k over k with intervals: problems are what is resampled, as answers to one problem are anything but apart.

Intervals by the method that fits what is at hand, and the table says which:

- Clopper-Pearson: one problem; the exact interval of its share of right answers, p, carried over to 1 - (1 - p)^k.
- Wilson: every problem counts 0 or 1 (always so at k = n, where nothing is averaged).
- Student's t: the interval of `analysis.intervals`.
- Wilson (wide): where the bootstrap knows too little: fewer than `SCARCE` problems' worth of passes or of failures,
  or problems that are all alike, as every resample then is.
  Such an interval is too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.intervals import estimates
from hesnr_tasks.passk.binomial import Ends, clopper_pearson, wilson
from hesnr_tasks.passk.estimator import pass_at_ks
from hesnr_tasks.passk.outcomes import Outcomes, check_ks
from hesnr_tasks.statistics import RESAMPLES, SEED, bootstrap_sums, standard_error

__all__ = ["SCARCE", "Plan", "Point", "alike", "curve", "mean_error", "passes"]

FloatArray = npt.NDArray[np.float64]
SCARCE = 5.0
_FEW = 4  # problems: fewer give no bootstrap
_ROUNDING = 1e-12  # numbers closer than that are equal


class Plan(NamedTuple):
    """How sure a number is to be made."""

    resamples: int = RESAMPLES
    seed: int = SEED
    level: float = 0.95
    power: float = 0.8


_USUAL = Plan()


class Point(NamedTuple):
    """Pass@k of one checkpoint: mean over problems, its standard error (NaN: one problem), interval, and how made."""

    k: int
    value: float
    stderr: float
    low: float
    high: float
    method: str
    averaged: bool  # false: some problem has just k answers


def curve(one: Outcomes, ks: Sequence[int], plan: Plan = _USUAL) -> list[Point]:
    """Pass@k for every k; `SettingsError` for a k beyond a problem's number of answers, which it names."""
    check_ks(one, ks)
    values = passes(one, ks)
    found = estimates(values, np.ones_like(values), resamples=plan.resamples, seed=plan.seed, level=plan.level)
    points = []
    for i, k in enumerate(ks):
        ends, method = _interval(one, values[:, i], k, Ends(float(found.low[i]), float(found.high[i])), plan)
        value, error = mean_error(values[:, i].tolist(), plan.resamples, plan.seed)
        points.append(Point(k, value, error, *ends, method, bool((one.n > k).all())))
    return points


def passes(one: Outcomes, ks: Sequence[int]) -> FloatArray:
    """Pass@k of every problem; shape (P, len(ks))."""
    return pass_at_ks(one.n, one.c, ks)


def alike(values: FloatArray) -> bool:
    """Whether all problems have one value: resampling them would give an interval of no width."""
    return bool(np.ptp(values) < _ROUNDING)


def mean_error(values: Sequence[float], resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float]:
    """Mean over problems and its cluster-bootstrap standard error (NaN for one problem), in any order of problems.

    An lm-eval run and `hesnr passk` on its log both call this: the same numbers to the last bit.
    """
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered)
    if len(ordered) < 2:
        return mean, math.nan
    drawn = bootstrap_sums(np.array(ordered)[:, None], resamples, seed)[:, 0]
    return mean, standard_error(drawn / len(ordered))


def _interval(one: Outcomes, values: FloatArray, k: int, drawn: Ends, plan: Plan) -> tuple[Ends, str]:
    total, problems = math.fsum(values.tolist()), len(values)
    if problems == 1:
        share = clopper_pearson(int(one.c[0]), int(one.n[0]), plan.level)
        return Ends(*(-math.expm1(k * math.log1p(-p)) if p < 1 else 1.0 for p in share)), "Clopper-Pearson"
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(total, problems, plan.level), "Wilson"
    scarce = problems < _FEW or min(total, problems - total) < SCARCE
    if scarce or alike(values) or not math.isfinite(drawn.low + drawn.high):
        return wilson(total, problems, plan.level), "Wilson (wide)"
    return Ends(max(0.0, drawn.low), min(1.0, drawn.high)), "Student's t"
