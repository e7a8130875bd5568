"""From per-trajectory numerators and denominators to a value and its standard error. Imports no lm-eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hesnr_tasks.metrics import Metric, evaluate
from hesnr_tasks.statistics import bootstrap_sums, standard_error

__all__ = ["Item", "aggregate", "aggregate_error"]


class Item(NamedTuple):
    """One trajectory's part in one metric."""

    key: str  # hash of its labelled text
    numerator: float
    denominator: float
    tokens_cut: int


def aggregate(metric: Metric, items: Sequence[Item]) -> float:
    """The pooled value. `fsum` is exact, so neither the order of trajectories nor the number of ranks matters."""
    numerator = math.fsum(item.numerator for item in items)
    denominator = math.fsum(item.denominator for item in items)
    return float(evaluate(metric, np.float64(numerator), np.float64(denominator)))


def aggregate_error(metric: Metric, items: Sequence[Item], resamples: int, seed: int) -> float | str:
    """Cluster-bootstrap standard error; "N/A" (which lm-eval prints) for fewer than two trajectories."""
    if len(items) < 2:
        return "N/A"
    ordered = sorted(items)  # by text hash: the resamples must not depend on the order of arrival
    sums = np.array([(item.numerator, item.denominator) for item in ordered], dtype=np.float64)
    drawn = bootstrap_sums(sums, resamples, seed)
    return standard_error(evaluate(metric, drawn[:, 0], drawn[:, 1]))
