"""How sure a number is: the cluster bootstrap over trajectories. Neither torch nor lm-eval is imported here.

Tokens of one trajectory are correlated, so whole trajectories are resampled (with replacement), never tokens. One
seeded set of resamples serves every metric and every checkpoint, which makes comparisons paired.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "FEWEST_FOR_ERROR",
    "MOST_RESAMPLES",
    "RESAMPLES",
    "SEED",
    "bootstrap_sums",
    "effective_number",
    "resample_counts",
    "standard_error",
]

RESAMPLES = 10_000
MOST_RESAMPLES = 1_000_000
SEED = 1234
FEWEST_FOR_ERROR = 2.0  # effective trajectories; of fewer, a spread is that of one trajectory against itself
_BLOCK = 1_000  # resamples drawn at a time: bounds memory at 8 * _BLOCK * n bytes

FloatArray = npt.NDArray[np.float64]


@lru_cache(maxsize=2)
def resample_counts(n: int, resamples: int = RESAMPLES, seed: int = SEED) -> npt.NDArray[np.uint16]:
    """How often each of n trajectories occurs in each resample; shape (resamples, n), rows sum to n."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, n), dtype=np.uint16)
    for start in range(0, resamples, _BLOCK):
        block = counts[start : start + _BLOCK]
        drawn = rng.integers(0, n, size=block.shape) + n * np.arange(len(block))[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    counts.setflags(write=False)
    return counts


def bootstrap_sums(sums: FloatArray, resamples: int = RESAMPLES, seed: int = SEED) -> FloatArray:
    """Totals of `sums` (trajectories, s) in every resample; shape (resamples, s)."""
    counts = resample_counts(len(sums), resamples, seed)
    blocks = (counts[i : i + _BLOCK].astype(np.float64) @ sums for i in range(0, resamples, _BLOCK))
    return np.concatenate(list(blocks))


def effective_number(weights: FloatArray) -> FloatArray:
    """How many equal trajectories would say as much (Kish): (sum w)² / sum w², along the first axis; 0 without weight.

    Args:
        weights: tokens of each trajectory, shape (T,) or (T, c).
    """
    weights = np.asarray(weights, dtype=np.float64)
    square = (weights**2).sum(axis=0)
    return np.where(square > 0, weights.sum(axis=0) ** 2 / np.where(square > 0, square, 1.0), 0.0)


def standard_error(values: FloatArray) -> float:
    """Standard deviation (ddof 1) of a metric over resamples; NaN if more than one in twenty is undefined.

    The spread of the replicates *is* the standard error; it is not divided by the square root of their number.
    """
    good = values[np.isfinite(values)]
    if len(good) < 0.95 * len(values) or len(good) < 2:
        return float("nan")
    return float(np.std(good, ddof=1))
