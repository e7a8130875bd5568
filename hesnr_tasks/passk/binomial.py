"""Intervals and tests for yes-or-no outcomes, by counting rather than resampling. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["FEWEST", "Ends", "clopper_pearson", "newcombe", "sign_flip", "wilson"]

FloatArray = npt.NDArray[np.float64]
FEWEST = 6  # problems that must differ, all to one side, before a two-sided sign test can go below 5 %: 2 / 2^6
_EXACT = 16  # up to so many differing problems, all 2^16 signs are gone through
_DRAWS = 20_000
_STEPS = 60  # of a bisection: 2^-60


class Ends(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float


def wilson(successes: float, n: int, level: float = 0.95) -> Ends:
    """Wilson's score interval (1927) of a share. `successes` may be a sum of numbers in [0, 1]: it is then too wide
    rather than too narrow, as no number in [0, 1] varies more than yes-or-no with the same mean.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(share * (1 - share) / n, 0) + z * z / (4 * n * n))
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return Ends(low, 1.0 if successes >= n else min(1.0, middle + half))


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Ends:
    """The exact interval (Clopper and Pearson 1934): covers at least `level`, whatever the true share."""
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else _root(lambda p: _at_least(successes, n, p) - tail)
    high = 1.0 if successes == n else _root(lambda p: tail - (1 - _at_least(successes + 1, n, p)))
    return Ends(low, high)


def newcombe(a: float, b: float, n: int, level: float = 0.95) -> Ends:
    """Interval of (b - a) / n from Wilson's intervals of both shares (Newcombe 1998, method 10), pairing left out."""
    left, right = wilson(a, n, level), wilson(b, n, level)
    p, q = a / n, b / n
    return Ends(
        (q - p) - math.hypot(q - right.low, left.high - p),
        (q - p) + math.hypot(right.high - q, p - left.low),
    )


def sign_flip(differences: FloatArray, seed: int) -> float:
    """Two-sided p-value of "each problem's difference is as likely to have either sign"; shape (P,).

    Exact (all signs) up to 16 differing problems, 20 000 random signs beyond. Of differences that are all -1, 0 or 1
    it is McNemar's exact test.
    """
    nonzero = differences[np.abs(differences) > 1e-12]
    m = len(nonzero)
    if m == 0:
        return 1.0
    observed = abs(float(nonzero.sum())) - 1e-9  # sums of the same numbers in another order are ties
    if m <= _EXACT:
        signs = 1 - 2 * (np.arange(1 << m)[:, None] >> np.arange(m) & 1)
        return float((np.abs(signs @ nonzero) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, _DRAWS, 1000):
        signs = rng.integers(0, 2, (min(1000, _DRAWS - start), m)) * 2 - 1
        extreme += int((np.abs(signs @ nonzero) >= observed).sum())
    return (1 + extreme) / (1 + _DRAWS)


def _at_least(successes: int, n: int, p: float) -> float:
    """P(X >= successes) for X binomial (n, p), 0 < p < 1."""
    j = np.arange(successes, n + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in j.tolist()])
    return float(min(1.0, np.exp(logs + j * math.log(p) + (n - j) * math.log1p(-p)).sum()))


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
