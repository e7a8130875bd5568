"""How sure a ratio of sums is, and the difference of two: the cluster bootstrap, studentised.

Whole trajectories are resampled, with the seeded resamples of `statistics`, so standard errors are those of a run. The
interval is the symmetric bootstrap-t (Hall, *The Bootstrap and Edgeworth Expansion*, 1992, 3.6): in each resample the
deviation from the full sample is divided by that resample's own standard error (the linearised one of a ratio of sums),
and the interval is value ± q · error with q the 95 % quantile of those |t|. In simulations with tokens
correlated within trajectories of unequal length and skewed levels it covers 93 to 97 % from 10 trajectories on, where
percentile and BCa intervals of the same resamples fall to 89 %; and the p-value that |t| gives belongs to it. (Where
a few trajectories are far longer than all others no bootstrap covers well, and `compare` says so; of fewer than four
there is no interval.)

Perplexities are exp of a ratio: their intervals are made for the ratio and then exponentiated, so both ends are > 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.statistics import RESAMPLES, SEED, bootstrap_sums, resample_counts, standard_error

__all__ = ["LEVEL", "Estimates", "Paired", "estimates", "paired"]

FloatArray = npt.NDArray[np.float64]
LEVEL = 0.95
_BLOCK = 1_000  # resamples at a time: bounds memory
_ROUNDING = 1e-12


class Estimates(NamedTuple):
    """One row a ratio, shape (c,): value, standard error, both ends of the interval. NaN: not defined."""

    value: FloatArray
    stderr: FloatArray
    low: FloatArray
    high: FloatArray


class Paired(NamedTuple):
    """The difference b - a of a metric between two runs on the same trajectories."""

    difference: float
    stderr: float
    low: float
    high: float
    p: float  # two-sided; not below 1 / (resamples + 1)
    below: float  # share of resamples in which b < a (half of those in which b = a)
    correlation: float  # of the two runs' trajectory contributions
    stderr_apart: float  # standard error of the difference, had the runs been on different trajectories


def estimates(
    numerator: FloatArray,
    denominator: FloatArray,
    exponentiate: npt.NDArray[np.bool_] | bool = False,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> Estimates:
    """Pooled ratios sum(numerator) / sum(denominator) of T trajectories, c of them at once; both of shape (T, c)."""
    n, c = numerator.shape
    powers = np.broadcast_to(exponentiate, (c,))
    residual, ratio = _residuals(numerator, denominator)
    error = _error(residual, denominator)
    ratios, t = np.empty((resamples, c)), np.empty((resamples, c))
    stacked = np.hstack([denominator, residual, residual**2, residual * denominator, denominator**2])
    counts = resample_counts(n, resamples, seed) if n else np.zeros((resamples, 0))
    for at in range(0, resamples, _BLOCK):
        sums = counts[at : at + _BLOCK].astype(np.float64) @ stacked
        d, e, ee, ed, dd = np.split(sums, 5, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = e / d
            spread = _root(ee - 2 * shift * ed + shift**2 * dd, ee + shift**2 * dd) / d
            ratios[at : at + _BLOCK] = ratio + shift
            t[at : at + _BLOCK] = np.abs(shift) / spread
    half = _quantile(t, ratios, level) * error if n > 1 else np.full(c, np.nan)
    with np.errstate(over="ignore"):
        value, low, high = (np.where(powers, np.exp(x), x) for x in (ratio, ratio - half, ratio + half))
        ratios = np.where(powers, np.exp(ratios), ratios) if powers.any() else ratios
    spread = np.array([standard_error(column) for column in ratios.T]) if n > 1 else np.full(c, np.nan)
    return Estimates(value, spread, low, high)


def paired(
    a: tuple[FloatArray, FloatArray],
    b: tuple[FloatArray, FloatArray],
    exponentiate: bool = False,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> Paired:
    """Two runs' (numerator, denominator), each of shape (T,), trajectory by trajectory the same.

    One trajectory says nothing of others: all but the difference is NaN then.
    """
    n = len(a[0])
    sides = [_Side.of(numerator, denominator, exponentiate) for numerator, denominator in (a, b)]
    left, right = (side.influence for side in sides)
    difference = sides[1].value - sides[0].value
    if n < 2:
        return Paired(difference, *[float("nan")] * 7)
    error = float(np.sqrt(((right - left) ** 2).sum()))
    columns = [column for side in sides for column in (side.residual, side.denominator)]
    products = [columns[i] * columns[j] for i in range(4) for j in range(i, 4)]
    sums = bootstrap_sums(np.column_stack([*columns, *products]), resamples, seed)
    drawn, spread = _drawn(sums, sides, exponentiate)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(drawn - difference) / spread
    half = float(_quantile(t[:, None], drawn[:, None], level)[0]) * error
    return Paired(
        difference=difference,
        stderr=standard_error(drawn),
        low=difference - half,
        high=difference + half,
        p=_p_value(difference, error, t),
        below=_share_below(drawn),
        correlation=_correlation(left, right),
        stderr_apart=float(np.sqrt((left**2).sum() + (right**2).sum())),
    )


class _Side(NamedTuple):
    """One of the two runs: value f(R), its slope f'(R), and what each trajectory contributes."""

    ratio: float
    value: float
    slope: float
    residual: FloatArray  # numerator - R * denominator
    denominator: FloatArray

    @classmethod
    def of(cls, numerator: FloatArray, denominator: FloatArray, exponentiate: bool) -> _Side:
        residual, ratio = _residuals(numerator[:, None], denominator[:, None])
        value = float(np.exp(ratio[0]) if exponentiate else ratio[0])
        return cls(float(ratio[0]), value, value if exponentiate else 1.0, residual[:, 0], denominator)

    @property
    def influence(self) -> FloatArray:
        """How far each trajectory moves the value, to first order."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.slope * self.residual / self.denominator.sum()


def _drawn(sums: FloatArray, sides: list[_Side], exponentiate: bool) -> tuple[FloatArray, FloatArray]:
    """The difference in every resample, and each resample's own standard error of it; both (resamples,)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shifts = [sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]]
        values = [side.ratio + shift for side, shift in zip(sides, shifts, strict=True)]
        values = [np.exp(value) for value in values] if exponentiate else values
        slopes = values if exponentiate else [np.ones(len(sums))] * 2
        # influence of a trajectory in the resample: slope * (residual - shift * denominator) / D, b's minus a's
        left, right = slopes[0] / sums[:, 1], slopes[1] / sums[:, 3]
        weights = np.column_stack([-left, left * shifts[0], right, -right * shifts[1]])
        variance, scale = np.zeros(len(sums)), np.zeros(len(sums))
        pairs = [(i, j) for i in range(4) for j in range(i, 4)]
        for column, (i, j) in enumerate(pairs, start=4):
            part = (1 + (i != j)) * weights[:, i] * weights[:, j] * sums[:, column]
            variance, scale = variance + part, scale + np.abs(part)
        return values[1] - values[0], _root(variance, scale)


def _root(variance: FloatArray, scale: FloatArray) -> FloatArray:
    """Square root of a variance that was made by subtraction; what is only rounding error of `scale` is 0.

    That is the spread of a resample that is one trajectory over and over: it says nothing, not that all is certain.
    """
    return np.sqrt(np.where(variance > _ROUNDING * scale, variance, 0.0))


def _residuals(numerator: FloatArray, denominator: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What is left of each numerator when the pooled ratio is taken out, and the ratios."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator.sum(axis=0) / denominator.sum(axis=0)
    return numerator - ratio * denominator, ratio


def _error(residual: FloatArray, denominator: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((residual**2).sum(axis=0)) / denominator.sum(axis=0)


def _quantile(t: FloatArray, drawn: FloatArray, level: float) -> FloatArray:
    """The `level` quantile of each column of |t|, NaN where it is not finite; `drawn`: the values t is made of.

    A resample without a single token of the set has no value: it counts as a great deviation, so that up to one in
    twenty of those is borne. Where nothing varies, 0 / 0 is no deviation.
    """
    deviation = np.where(np.isfinite(drawn), np.where(np.isnan(t), 0.0, t), np.inf)
    position = int(np.ceil(level * (len(t) + 1))) - 1
    if position >= len(t):
        return np.full(t.shape[1], np.nan)
    found = np.partition(deviation, position, axis=0)[position]
    return np.where(np.isfinite(found), found, np.nan)


def _p_value(difference: float, error: float, t: FloatArray) -> float:
    """Share of resamples that deviate as much as the difference does from zero."""
    if not np.isfinite(difference) or len(t) == 0:
        return float("nan")
    if error == 0:
        return 1.0 if difference == 0 else 1 / (len(t) + 1)
    extreme = np.count_nonzero(~(t < abs(difference) / error))  # an undefined t counts as extreme
    return float((1 + extreme) / (1 + len(t)))


def _share_below(drawn: FloatArray) -> float:
    known = drawn[np.isfinite(drawn)]
    return float((known < 0).mean() + (known == 0).mean() / 2) if len(known) else float("nan")


def _correlation(left: FloatArray, right: FloatArray) -> float:
    scale = np.sqrt((left**2).sum() * (right**2).sum())
    return float((left * right).sum() / scale) if scale > 0 else float("nan")
