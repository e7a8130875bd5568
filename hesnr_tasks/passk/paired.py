"""The difference of two checkpoints over the same problems: interval, p-value, what could have been found, and which
problems make it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.intervals import paired
from hesnr_tasks.analysis.planning import minimum_detectable, trajectories_needed
from hesnr_tasks.passk.binomial import FEWEST, Ends, newcombe, sign_flip
from hesnr_tasks.passk.curve import Plan, alike, passes
from hesnr_tasks.passk.outcomes import Outcomes

__all__ = ["Difference", "differences", "discordant"]

FloatArray = npt.NDArray[np.float64]
_USUAL = Plan()


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
    """For every k; `a` and `b` from `outcomes.aligned`."""
    left, right = passes(a, ks), passes(b, ks)
    return [_difference(k, left[:, i], right[:, i], plan) for i, k in enumerate(ks)]


def _difference(k: int, a: FloatArray, b: FloatArray, plan: Plan) -> Difference:
    each = np.where(np.abs(b - a) > 1e-12, b - a, 0.0)
    ones, mean = np.ones(len(a)), math.fsum(each.tolist()) / len(a)
    found = paired((a, ones), (b, ones), resamples=plan.resamples, seed=plan.seed, level=plan.level)
    ends, method = Ends(max(-1.0, found.low), min(1.0, found.high)), "Student's t"
    some = int(np.count_nonzero(each))
    enough = some >= FEWEST and not alike(each)
    if not enough or not math.isfinite(found.low + found.high):
        ends, method = newcombe(math.fsum(a.tolist()), math.fsum(b.tolist()), len(a), plan.level), "Newcombe (wide)"
    return Difference(
        k,
        mean,
        found.stderr,
        *ends,
        method,
        p=sign_flip(each, plan.seed),
        p_mean=found.p if method == "Student's t" else math.nan,
        detectable=minimum_detectable(found.stderr, plan.power) if enough else math.nan,
        needed=trajectories_needed(mean, found.stderr, len(a), plan.power) if enough else None,
        better=int((each > 0).sum()),
        worse=int((each < 0).sum()),
    )


def discordant(a: Outcomes, b: Outcomes) -> Iterator[dict[str, Any]]:
    """The problems that one of both solved at least once and the other never; those with most right answers first."""
    found = []
    for i, label in enumerate(a.labels):
        if (a.c[i] > 0) != (b.c[i] > 0):
            share = max(a.c[i] / a.n[i], b.c[i] / b.n[i])
            solver = b.name if b.c[i] else a.name
            found.append((-share, label, {"problem": label, "solved_by": solver} | _counts(a, i) | _counts(b, i)))
    yield from (row for _, _, row in sorted(found, key=lambda one: one[:2]))


def _counts(one: Outcomes, i: int) -> dict[str, Any]:
    return {one.name: f"{one.c[i]} of {one.n[i]}"}
