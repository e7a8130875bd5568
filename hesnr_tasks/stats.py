"""How sure a number is: the cluster bootstrap over trajectories. Neither torch nor lm-eval is imported here.

Tokens of one trajectory are correlated, so whole trajectories are resampled (with replacement), never tokens. One
seeded set of resamples serves every metric and every checkpoint, which makes comparisons paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "CORRELATIONS",
    "FEWEST_CHECKPOINTS",
    "FEWEST_FOR_ERROR",
    "MOST_RESAMPLES",
    "RESAMPLES",
    "SEED",
    "Agreement",
    "agreement",
    "bootstrap_sums",
    "correlations",
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


# --- agreement of a metric with a downstream score over checkpoints --------------------------------------------------

CORRELATIONS = ("pearson", "spearman", "kendall", "decision")
FEWEST_CHECKPOINTS = 4  # for an interval
_PAIRS = 2_000_000  # pairs of checkpoints at a time: bounds memory


class Agreement(NamedTuple):
    """One of the `CORRELATIONS` with the (low, high) ends of two 95 % percentile intervals; NaN: none.

    `checkpoints`: checkpoints resampled with replacement. `trajectories`: whole trajectories resampled, the same for
    all checkpoints. Neither contains the error of the downstream scores.
    """

    value: float
    checkpoints: tuple[float, float]
    trajectories: tuple[float, float]


def correlations(x: FloatArray, y: FloatArray) -> dict[str, FloatArray]:
    """Pearson r, Spearman rho (mean ranks), Kendall tau-b and decision accuracy of each row of x with each row of y.

    Args:
        x: shape (r, c) or (c,); broadcast against y.
        y: shape (r, c) or (c,).

    Returns:
        Each of `CORRELATIONS`, shape (r,); NaN where x or y is constant or not finite. Decision accuracy is the share
        of pairs with different y that x orders alike; a tie in x counts half.
    """
    x, y = np.broadcast_arrays(np.atleast_2d(np.asarray(x, dtype=float)), np.atleast_2d(np.asarray(y, dtype=float)))
    block = max(1, _PAIRS // max(1, x.shape[1] ** 2))
    blocks = [_correlations(x[start : start + block], y[start : start + block]) for start in range(0, len(x), block)]
    return {name: np.concatenate([part[name] for part in blocks]) for name in CORRELATIONS}


def _correlations(x: FloatArray, y: FloatArray) -> dict[str, FloatArray]:
    with np.errstate(invalid="ignore"):
        signs = [np.sign(values[:, :, None] - values[:, None, :]) for values in (x, y)]
    concordance = (signs[0] * signs[1]).sum(axis=(1, 2))
    untied = [np.abs(sign).sum(axis=(1, 2)) for sign in signs]
    ranks = [sign.sum(axis=2) for sign in signs]  # twice the mean ranks, centred
    with np.errstate(divide="ignore", invalid="ignore"):
        # by the signs, which are exact: the mean of equal numbers need not be equal to them
        constant = (untied[0] == 0) | (untied[1] == 0)
        values = {
            "pearson": np.where(constant, np.nan, _pearson(x, y)),
            "spearman": _pearson(*ranks),
            "kendall": concordance / np.sqrt(untied[0] * untied[1]),
            "decision": 0.5 + 0.5 * concordance / untied[1],
        }
    finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    return {name: np.where(finite, column, np.nan) for name, column in values.items()}


def _pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    xy, xx, yy = (np.einsum("rc,rc->r", a, b) for a, b in ((x, y), (x, x), (y, y)))
    return np.clip(xy / np.sqrt(xx * yy), -1, 1)


def agreement(
    x: FloatArray,
    y: FloatArray,
    x_resampled: FloatArray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Agreement]:
    """Each of `CORRELATIONS` between a metric x (c,), higher is better, and a downstream score y (c,) of c checkpoints.

    Args:
        x: the metric of each checkpoint, shape (c,).
        y: the downstream score of each checkpoint, shape (c,).
        x_resampled: x in every resample of the trajectories, shape (resamples, c); None: not available.
        resamples: resamples of the checkpoints.
        seed: of these resamples.
    """
    values = correlations(x, y)
    over_checkpoints = over_trajectories = dict.fromkeys(CORRELATIONS, (np.nan, np.nan))
    if len(x) >= FEWEST_CHECKPOINTS:
        chosen = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
        over_checkpoints = _percentile_intervals(correlations(x[chosen], y[chosen]))
        if x_resampled is not None:
            over_trajectories = _percentile_intervals(correlations(x_resampled, y))
    return {
        name: Agreement(float(values[name][0]), over_checkpoints[name], over_trajectories[name])
        for name in CORRELATIONS
    }


def _percentile_intervals(replicates: Mapping[str, FloatArray]) -> dict[str, tuple[float, float]]:
    """2.5 % and 97.5 % of the defined replicates; NaN if more than one in twenty is undefined."""
    intervals = {}
    for name, column in replicates.items():
        defined = column[np.isfinite(column)]
        enough = len(defined) >= 0.95 * len(column)
        low, high = np.percentile(defined, [2.5, 97.5]).tolist() if enough else (np.nan, np.nan)
        intervals[name] = (low, high)
    return intervals
