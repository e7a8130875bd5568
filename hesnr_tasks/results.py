"""From per-trajectory numerators and denominators to a value and its standard error. Imports no lm-eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hesnr_tasks.metrics import Metric, evaluate
from hesnr_tasks.stats import FEWEST_FOR_ERROR, bootstrap_sums, effective_number, standard_error

__all__ = ["Item", "aggregate", "aggregate_error"]


class Item(NamedTuple):
    """One trajectory's part in one metric."""

    key: str  # hash of its labelled text
    numerator: float
    denominator: float
    tokens_cut: int


def aggregate(metric: Metric, items: Sequence[Item], min_tokens: int = 0) -> float:
    """The pooled value; NaN for a ratio over no tokens, or over fewer than `min_tokens`.

    `fsum` is exact, so neither the order of trajectories nor the number of ranks matters.
    """
    numerator = math.fsum(item.numerator for item in items)
    denominator = math.fsum(item.denominator for item in items)
    if metric.denominator is not None and denominator < min_tokens:
        return math.nan
    return float(evaluate(metric, np.float64(numerator), np.float64(denominator)))


def aggregate_error(
    metric: Metric, items: Sequence[Item], resamples: int, seed: int, min_tokens: int = 0
) -> float | str:
    """Cluster-bootstrap standard error of a ratio.

    "N/A", which lm-eval prints, where there is none: of a count, of a value that is itself N/A, and where the
    trajectories are so unequal that they tell no more than fewer than two equal ones would.
    """
    if metric.denominator is None:
        return "N/A"
    ordered = sorted(items)  # by text hash: the resamples must not depend on the order of arrival
    sums = np.array([(item.numerator, item.denominator) for item in ordered], dtype=np.float64).reshape(-1, 2)
    if effective_number(sums[:, 1]) < FEWEST_FOR_ERROR or sums[:, 1].sum() < min_tokens:
        return "N/A"
    drawn = bootstrap_sums(sums, resamples, seed)
    return standard_error(evaluate(metric, drawn[:, 0], drawn[:, 1]))
