"""Around a comparison: correction for many, what could have been found, and what to be wary of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.intervals import why_withheld
from hesnr_tasks.analysis.measures import ALL_METRICS, column
from hesnr_tasks.stats import effective_number

__all__ = ["diagnostics", "holm", "minimum_detectable", "trajectories_needed"]

FloatArray = npt.NDArray[np.float64]
_ALPHA = 0.05
_FEW = 30  # trajectories
_CUT = 0.01  # share of tokens beyond the context
_UNEVEN = 0.3  # effective share of trajectories
_RARE = 100  # tokens


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm 1979): the chance of one false alarm among all stays below 5 %."""
    known = {name: p for name, p in p_values.items() if not math.isnan(p)}
    found: dict[str, float] = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for place, (name, p) in enumerate(sorted(known.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(known) - place) * p))
        found[name] = largest
    return found


def minimum_detectable(stderr: float, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at the 5 % level finds with probability `power`."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - _ALPHA / 2) + normal.inv_cdf(power)) * stderr


def trajectories_needed(difference: float, stderr: float, n: int, power: float = 0.8) -> int | None:
    """How many trajectories would find `difference`, if `n` give it the error `stderr`; None: it is 0 or unknown."""
    ratio = minimum_detectable(stderr, power) / abs(difference) if difference else math.nan
    return math.ceil(n * ratio**2) if math.isfinite(ratio) else None


def diagnostics(
    sums: FloatArray, copies: npt.NDArray[np.int64], cut: npt.NDArray[np.int64], name: str
) -> Iterator[str]:
    """What makes a metric's errors less trustworthy than they look; sums (T, 10), copies and cut (T,)."""
    denominator = ALL_METRICS[name].denominator or "tokens"
    counts = column(np.repeat(sums, copies, axis=0), denominator)
    n, lost = int(copies.sum()), int((cut * copies).sum())
    total = float(column(sums, "tokens") @ copies)
    if n < _FEW:
        yield f"few trajectories ({n})"
    if counts.sum() < _RARE:
        yield f"few {'decision ' if denominator == 'he_tokens' else ''}tokens ({int(counts.sum())})"
    equal = float(effective_number(counts))
    withheld = why_withheld(counts) if counts.any() else ""
    if withheld:
        yield f"no interval: {withheld}"
    elif n and 0 < equal < _UNEVEN * n:
        yield f"uneven: {n} trajectories tell as much as {equal:.0f} of equal length"
    if lost > _CUT * (lost + total):
        yield f"{lost / (lost + total):.0%} of tokens beyond the context"
    empty = int((counts == 0).sum())
    if empty:
        yield f"no such token in {empty} trajectories"
