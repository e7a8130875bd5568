"""From the entropies of steps to numbers with standard errors: the same code for a run and for score files.

Trajectories are what is resampled, with the resamples of `statistics`. Sums are exact (`fsum`), quantiles are observed
values, and trajectories are put in the order of their keys first: neither their order nor the number of ranks changes a
bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.metrics import Metric
from hesnr_tasks.results import Item, aggregate, aggregate_error
from hesnr_tasks.search.profile_steps import Measured
from hesnr_tasks.statistics import RESAMPLES, SEED, bootstrap_sums, resample_counts, standard_error

__all__ = ["MEASURES", "Part", "number", "part_of", "quantile", "skewness", "stderr_of"]

FloatArray = npt.NDArray[np.float64]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_RATIOS = {  # numerator and denominator are fields of Part
    "mean": ("total", "steps"),
    "high": ("above", "steps"),
    "he": ("decisive", "steps"),
    "steps": ("steps", None),
    "unmeasured": ("unmeasured", None),
}
MEASURES = ("mean", *QUANTILES, "skewness", "high", "he", "steps", "unmeasured")


class Part(NamedTuple):
    """One trajectory's part in every number."""

    key: str
    values: tuple[float, ...]  # entropies of its measured steps, nats, in order
    steps: float  # how many those are
    total: float  # their sum
    above: float  # how many exceed the threshold
    decisive: float  # how many have a token of 𝓗 among their decision tokens
    unmeasured: float  # steps without a decision token that was scored
    cut: int = 0  # tokens beyond the context


def part_of(key: str, steps: Measured, threshold: float, cut: int = 0) -> Part:
    """The part of one trajectory; `threshold` in nats."""
    known = ~np.isnan(steps.value)
    value = steps.value[known]
    return Part(
        key=key,
        values=tuple(value.tolist()),
        steps=float(len(value)),
        total=math.fsum(value.tolist()),
        above=float(np.count_nonzero(value > threshold)),
        decisive=float(np.count_nonzero(steps.decides[known])),
        unmeasured=float(np.count_nonzero(~known)),
        cut=cut,
    )


def number(name: str, parts: Sequence[Part]) -> float:
    """One of `MEASURES` over all steps of all trajectories; NaN where there is none."""
    if name in _RATIOS:
        return aggregate(_metric(name), _items(name, parts))
    if name == "skewness":
        return float(skewness(np.array([[math.fsum(column) for column in zip(*_powers(parts), strict=True)]]))[0])
    pooled = np.sort(np.concatenate([_values(part) for part in parts])) if parts else np.empty(0)
    return quantile(pooled, QUANTILES[name])


def stderr_of(name: str, parts: Sequence[Part], resamples: int = RESAMPLES, seed: int = SEED) -> float:
    """The cluster-bootstrap standard error of `number`; NaN for fewer than two trajectories."""
    if len(parts) < 2:
        return math.nan
    ordered = sorted(parts)
    if name in _RATIOS:
        found = aggregate_error(_metric(name), _items(name, ordered), resamples, seed)
        return found if isinstance(found, float) else math.nan
    if name == "skewness":
        return standard_error(skewness(bootstrap_sums(np.array(_powers(ordered)), resamples, seed)))
    return standard_error(_resampled_quantiles(ordered, QUANTILES[name], resamples, seed))


# --- ratios ---------------------------------------------------------------------------------------------------------


def _metric(name: str) -> Metric:
    numerator, denominator = _RATIOS[name]
    return Metric(numerator, denominator, False, None)


def _items(name: str, parts: Sequence[Part]) -> list[Item]:
    numerator, denominator = _RATIOS[name]
    return [
        Item(part.key, getattr(part, numerator), getattr(part, denominator) if denominator else 1.0, part.cut)
        for part in parts
    ]


# --- skewness -------------------------------------------------------------------------------------------------------


def skewness(sums: FloatArray) -> FloatArray:
    """g1 = m3 / m2^1.5 from n, Σx, Σx², Σx³ (rows of shape (r, 4)); NaN where nothing varies. Shape (r,)."""
    n, s1, s2, s3 = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, square, cube = s1 / n, s2 / n, s3 / n
        m2 = square - mean**2
        m3 = cube - 3 * mean * square + 2 * mean**3
        return np.where(m2 > 1e-12 * square, m3 / m2**1.5, np.nan)


def _powers(parts: Sequence[Part]) -> list[list[float]]:
    return [[part.steps, *(math.fsum((_values(part) ** power).tolist()) for power in (1, 2, 3))] for part in parts]


def _values(part: Part) -> FloatArray:
    return np.array(part.values, dtype=np.float64)


# --- quantiles ------------------------------------------------------------------------------------------------------


def quantile(ordered: FloatArray, share: float) -> float:
    """The least of the values (rising) that at least `share` of them do not exceed; NaN for none."""
    return float(ordered[_place(np.float64(len(ordered)), share) - 1]) if len(ordered) else math.nan


def _place(n: np.float64 | FloatArray, share: float) -> npt.NDArray[np.int64]:
    # 0.9 * 10 must be 9, whatever the last bit says
    return np.maximum(1, np.ceil(np.asarray(n) * share - 1e-9)).astype(np.int64)


_BLOCKS = 256


def _resampled_quantiles(parts: Sequence[Part], share: float, resamples: int, seed: int) -> FloatArray:
    """The quantile in every resample, exactly: first which block of values it lies in, then the value; NaN for none."""
    values = np.concatenate([_values(part) for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part.values) for part in parts])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    counts = resample_counts(len(parts), resamples, seed)
    size = max(1, math.ceil(len(values) / _BLOCKS))
    starts = np.arange(0, len(values), size)
    within = np.zeros((len(parts), len(starts)))  # values of each trajectory in each block
    np.add.at(within, (owner, np.arange(len(values)) // size), 1)
    below = np.cumsum(counts.astype(np.float64) @ within, axis=1)  # values of each resample up to each block's end
    found = np.full(resamples, np.nan)
    if not len(values):
        return found
    wanted = _place(below[:, -1], share)
    block = (below < wanted[:, None]).sum(axis=1)
    for at in np.unique(block[block < len(starts)]):
        rows = np.flatnonzero(block == at)
        here = slice(starts[at], starts[at] + size)
        before = below[rows, at - 1] if at else np.zeros(len(rows))
        reached = before[:, None] + np.cumsum(counts[np.ix_(rows, owner[here])].astype(np.float64), axis=1)
        found[rows] = values[here][(reached < wanted[rows][:, None]).sum(axis=1)]
    return found
