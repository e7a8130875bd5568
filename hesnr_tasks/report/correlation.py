"""Does a metric order checkpoints as the downstream score does? Pearson, Spearman, Kendall, decision accuracy.

All are computed from *worth*: the metric, with its sign turned where lower is better (PPL, HE-PPL). So +1 always means
"orders as the downstream score does". Two intervals, both 95 % percentile intervals, answer two questions:

* over checkpoints: other checkpoints could have been trained (resampled with replacement; none from fewer than four);
* over trajectories: other trajectories could have been scored (whole trajectories, the same for all checkpoints).

Neither knows the error of the downstream scores themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.measures import ALL_METRICS
from hesnr_tasks.stats import RESAMPLES, SEED

__all__ = ["FEWEST", "STATISTICS", "Agreement", "Ends", "agreement", "correlate", "worth"]

FloatArray = npt.NDArray[np.float64]
STATISTICS = ("pearson", "spearman", "kendall", "decision")
FEWEST = 4  # checkpoints for an interval
_PAIRS = 2_000_000  # pairs of checkpoints worked on at a time: bounds memory


class Ends(NamedTuple):
    """Both ends of an interval; NaN: there is none."""

    low: float = float("nan")
    high: float = float("nan")


class Agreement(NamedTuple):
    """One statistic: its value and its two intervals."""

    value: float
    checkpoints: Ends
    trajectories: Ends


def worth(metric: str, values: FloatArray) -> FloatArray:
    """`values` of a metric such that more is better."""
    return values if ALL_METRICS[metric].higher_is_better else -values


def correlate(x: FloatArray, y: FloatArray) -> dict[str, FloatArray]:
    """Each of `STATISTICS` for every row of x and y, shapes (r, c); NaN where one of the two does not vary.

    Spearman's uses mean ranks, Kendall's is tau-b. Decision accuracy is the share of pairs of checkpoints with
    different y that x orders alike; a tie in x counts half.
    """
    x, y = np.broadcast_arrays(np.atleast_2d(np.asarray(x, dtype=float)), np.atleast_2d(np.asarray(y, dtype=float)))
    block = max(1, _PAIRS // max(1, x.shape[1] ** 2))
    parts = [_correlate(x[at : at + block], y[at : at + block]) for at in range(0, len(x), block)]
    return {name: np.concatenate([part[name] for part in parts]) for name in STATISTICS}


def _correlate(x: FloatArray, y: FloatArray) -> dict[str, FloatArray]:
    with np.errstate(invalid="ignore"):
        signs = [np.sign(side[:, :, None] - side[:, None, :]) for side in (x, y)]
    concordance = (signs[0] * signs[1]).sum(axis=(1, 2))
    untied = [np.abs(side).sum(axis=(1, 2)) for side in signs]
    ranks = [side.sum(axis=2) for side in signs]  # twice the mean ranks, centred
    with np.errstate(divide="ignore", invalid="ignore"):
        bad = ~(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1))
        level = (untied[0] == 0) | (untied[1] == 0)  # exactly: means of equal numbers are not always equal to them
        found = {
            "pearson": np.where(level, np.nan, _pearson(x, y)),
            "spearman": _pearson(*ranks),
            "kendall": concordance / np.sqrt(untied[0] * untied[1]),
            "decision": 0.5 + 0.5 * concordance / untied[1],
        }
    return {name: np.where(bad, np.nan, values) for name, values in found.items()}


def _pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    x, y = (side - side.mean(axis=1, keepdims=True) for side in (x, y))
    products = [np.einsum("rc,rc->r", a, b) for a, b in ((x, y), (x, x), (y, y))]
    return np.clip(products[0] / np.sqrt(products[1] * products[2]), -1, 1)


def agreement(
    x: FloatArray,
    y: FloatArray,
    drawn: FloatArray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Agreement]:
    """Each statistic of worth x (c,) and downstream score y (c,) with both intervals.

    `drawn`: x in every resample of the trajectories, (resamples, c); None: they are not known.
    """
    values = correlate(x, y)
    over: list[Mapping[str, Ends]] = [{}, {}]
    if len(x) >= FEWEST:
        picked = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
        over[0] = _ends(correlate(x[picked], y[picked]))
        if drawn is not None:
            over[1] = _ends(correlate(drawn, y))
    return {name: Agreement(float(values[name][0]), *(one.get(name, Ends()) for one in over)) for name in STATISTICS}


def _ends(values: Mapping[str, FloatArray]) -> dict[str, Ends]:
    """2.5 % and 97.5 % of the resamples; none if more than one in twenty is undefined."""
    found = {}
    for name, column in values.items():
        known = column[np.isfinite(column)]
        enough = len(known) >= 0.95 * len(column)
        found[name] = Ends(*np.percentile(known, [2.5, 97.5]).tolist()) if enough else Ends()
    return found
