"""From sums per trajectory to metrics with their errors and intervals, many settings at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.intervals import Scale, estimates
from hesnr_tasks.metrics import METRICS, SUMS, Metric, evaluate
from hesnr_tasks.results import Item, aggregate_error
from hesnr_tasks.stats import RESAMPLES, SEED

__all__ = ["ALL_METRICS", "Number", "Share", "column", "measure", "scale_of", "share_scored"]

FloatArray = npt.NDArray[np.float64]
ALL_METRICS: Mapping[str, Metric] = {**METRICS, "density": Metric("he_tokens", "tokens", False, None)}
_EXACT_ROWS = 12  # up to so many rows, standard errors are computed as a run does it, bit for bit; beyond, all at once


class Number(NamedTuple):
    """A metric's value, its standard error, and both ends of its 95 % interval; NaN: not defined."""

    value: float
    stderr: float = math.nan
    low: float = math.nan
    high: float = math.nan


def measure(
    sums: FloatArray,
    copies: npt.NDArray[np.int64],
    names: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    min_tokens: int = 0,
) -> list[dict[str, Number]]:
    """The metrics `names` of each row of `sums` (rows, T, 10); `copies` (T,): how often each trajectory counts.

    Values have the bits of an lm-eval run, and so have the standard errors of a few rows. A ratio over fewer than
    `min_tokens` tokens is NaN.
    """
    rows = np.repeat(sums, copies, axis=1)
    metrics = [ALL_METRICS[name] for name in names]
    ratios = [i for i, metric in enumerate(metrics) if metric.denominator]
    bounds = _bounds(rows, [metrics[i] for i in ratios], resamples, seed)
    found = []
    for at, row in enumerate(rows):
        line = {name: Number(_value(metric, row)) for name, metric in zip(names, metrics, strict=True)}
        for place, i in enumerate(ratios):
            ends = bounds[:, at, place].tolist()
            line[names[i]] = Number(line[names[i]].value, *ends)
        if len(rows) <= _EXACT_ROWS:
            line = {name: number._replace(stderr=_stderr(name, row, resamples, seed)) for name, number in line.items()}
        few = [names[i] for i in ratios if column(row, metrics[i].denominator or "").sum() < min_tokens]
        found.append(line | {name: Number(math.nan) for name in few})
    return found


class Share(float):
    """A share of the tokens that would count if contexts had no limit; tables mark it below a half."""


def share_scored(tokens: float, cut: float) -> Share:
    """Tokens scored over tokens that would count."""
    return Share(tokens / (tokens + cut) if tokens + cut else math.nan)


def column(sums: FloatArray, name: str) -> FloatArray:
    """One of the `SUMS` out of an array that has them last."""
    return sums[..., SUMS.index(name)]


def _value(metric: Metric, row: FloatArray) -> float:
    """As `results.aggregate`: exact sums, divided once."""
    numerator = np.float64(math.fsum(column(row, metric.numerator)))
    if metric.denominator is None:
        return float(numerator)
    return float(evaluate(metric, numerator, np.float64(math.fsum(column(row, metric.denominator)))))


def _bounds(rows: FloatArray, metrics: Sequence[Metric], resamples: int, seed: int) -> FloatArray:
    """Standard error, low and high end of every ratio; shape (3, rows, metrics). Equal ratios are worked out once."""
    if not metrics or not rows.shape[1]:
        return np.full((3, len(rows), len(metrics)), np.nan)
    distinct: dict[tuple[bytes, bytes, Scale], int] = {}
    ratios: list[tuple[FloatArray, FloatArray]] = []
    which = np.empty((len(rows), len(metrics)), dtype=np.int64)
    for at, (row, metric) in enumerate(itertools.product(rows, metrics)):
        pair = column(row, metric.numerator), column(row, metric.denominator or "")
        place = distinct.setdefault((pair[0].tobytes(), pair[1].tobytes(), scale_of(metric)), len(distinct))
        which.flat[at] = place
        if place == len(ratios):
            ratios.append(pair)
    numerators, denominators = (np.stack(side, axis=1) for side in zip(*ratios, strict=True))
    found = estimates(numerators, denominators, [scale for _, _, scale in distinct], resamples=resamples, seed=seed)
    return np.stack(found[1:])[:, which]


def scale_of(metric: Metric) -> Scale:
    """The range of a metric: counts of tokens over counts of tokens are shares."""
    if metric.exponentiate:
        return Scale.EXP
    return Scale.SHARE if metric.numerator.startswith("top") or metric.numerator == "he_tokens" else Scale.POSITIVE


def _stderr(name: str, row: FloatArray, resamples: int, seed: int) -> float:
    metric = ALL_METRICS[name]
    denominators = column(row, metric.denominator) if metric.denominator else np.ones(len(row))
    pairs = zip(column(row, metric.numerator).tolist(), denominators.tolist(), strict=True)
    # keys in the order of the trajectories: a run sorts by key, and so are they sorted here
    items = [Item(f"{i:09d}", numerator, denominator, 0) for i, (numerator, denominator) in enumerate(pairs)]
    found = aggregate_error(metric, items, resamples, seed)
    return found if isinstance(found, float) else math.nan
