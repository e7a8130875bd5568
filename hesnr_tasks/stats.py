"""Uncertainty of ratios over trajectories: cluster bootstrap, intervals, paired differences, multiple testing, power.

Tokens of one trajectory are correlated, so trajectories, never tokens, are the unit. Standard errors come from a seeded
cluster bootstrap; the same resamples serve every metric and checkpoint, which makes comparisons paired.

A metric is a ratio of sums over T trajectories, sum(n) / sum(d): a mean of the trajectories' own ratios with weights
w = d / sum(d). Its interval uses the bias-reduced cluster-robust variance (CR2) and Student's t with Satterthwaite's
degrees of freedom (Bell and McCaffrey, Survey Methodology 28, 2002; Imbens and Kolesár, Review of Economics and
Statistics 98, 2016), so few or unequal weights widen the interval instead of breaking it. It is symmetric on the scale
on which the metric is unbounded (`Scale`) and so stays within the metric's range. It is withheld (NaN) where the
weights amount to fewer than 4 equal trajectories (Kish) or leave fewer than 2 degrees of freedom.

Coverage of nominal 95 % intervals in simulations of 10 to 30 trajectories with log-normal (sigma 0.5 to 1.5), Pareto
(1.5) or truncated lengths (tests/unit/analysis/test_coverage.py; level independent of length): 93 to 99 %. A
bootstrap-t covers 84 to 98 % on the same data, with absurd ends at times. Where the level falls steeply with a length
of infinite variance, coverage can drop below 90 %: no method knows the trajectories that were not sampled.

Imports neither torch nor lm-eval; scipy is imported when an interval is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
MOST_RESAMPLES = 1_000_000
SEED = 1234
LEVEL = 0.95
FEWEST_FOR_ERROR = 2.0  # effective trajectories for a standard error
_FEWEST_FOR_INTERVAL = 4.0  # effective trajectories for an interval
_FEWEST_FREEDOM = 2.0  # with fewer degrees of freedom, a 95 % interval is wider than ± 4.3 standard errors
_BLOCK = 1_000  # resamples at a time, and fewer where those of T trajectories would take more than …
_BLOCK_BYTES = 1 << 25  # … so many bytes
_MOST_HELD = 1 << 24  # bytes of counts that are kept for the next metric
_ALPHA = 0.05

FloatArray = npt.NDArray[np.float64]


_DIGITS, _LARGE = 8, 1e8  # decimals and values of `Estimate.text`; beyond, numbers have an exponent


class Estimate(NamedTuple):
    """A value with its standard error and the ends of its 95 % interval; NaN: undefined or withheld."""

    value: float
    stderr: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan

    @property
    def digits(self) -> int | None:
        """Decimals that show the standard error to two significant digits; None: no error, or too many."""
        if not 0 < self.stderr < math.inf or math.isnan(self.value) or abs(self.value) > _LARGE:
            return None
        digits = max(0, 1 - math.floor(math.log10(self.stderr)))
        return digits if digits <= _DIGITS else None

    @property
    def text(self) -> str:
        """A value with its standard error, to two significant digits of the error: how people see it everywhere."""
        if math.isnan(self.value):
            return "–"
        if not 0 < self.stderr < math.inf:
            return f"{self.value:.4g}"
        if self.digits is None:
            return f"{self.value:.4g} ± {self.stderr:.1e}"
        return f"{self.value:.{self.digits}f} ± {self.stderr:.{self.digits}f}"

    @property
    def interval(self) -> str:
        """[low, high] with the decimals of `text`; a dash where there is none."""
        if math.isnan(self.ci_low):
            return "–"
        digits = 3 if self.digits is None else self.digits
        return f"[{self.ci_low:.{digits}f}, {self.ci_high:.{digits}f}]"


class Difference(NamedTuple):
    """The paired difference b - a of a metric between two checkpoints scored on the same trajectories."""

    value: float
    stderr: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    p: float = math.nan  # two-sided
    p_below: float = math.nan  # share of resamples with b < a, plus half of those with b = a
    correlation: float = math.nan  # of the two checkpoints' trajectory influences
    stderr_unpaired: float = math.nan  # of the difference, had the trajectories not been shared


class Scale(Enum):
    """The range of a metric, and with it the scale on which its interval is symmetric."""

    LINEAR = "unbounded: identity"
    EXP = "exp of a non-negative ratio, such as a perplexity: the ratio itself, clipped at 0"
    SHARE = "between 0 and 1: log-odds"
    POSITIVE = "non-negative: logarithm"


# --- the bootstrap ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def resample_counts(n: int, resamples: int = RESAMPLES, seed: int = SEED) -> npt.NDArray[np.uint8]:
    """How often each of n trajectories occurs in each resample; shape (resamples, n), rows sum to n.

    No count comes near 255: it is binomial with mean 1.
    """
    counts = np.concatenate([np.zeros((0, n), np.uint8), *_drawn_counts(n, resamples, seed)])
    counts.setflags(write=False)
    return counts


def _drawn_counts(n: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    size = max(1, _block_size(n) // 4)  # a block takes several temporary arrays here; the draws do not depend on it
    for start in range(0, resamples, size):
        shape = min(size, resamples - start), n
        picks = rng.integers(0, n, size=shape) + n * np.arange(shape[0])[:, None]
        yield np.bincount(picks.ravel(), minlength=shape[0] * n).reshape(shape).astype(np.uint8)


def count_blocks(n: int, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[FloatArray]:
    """`resample_counts` in consecutive blocks of resamples; those of many trajectories are drawn anew, not held."""
    if n * resamples > _MOST_HELD:
        yield from (block.astype(np.float64) for block in _drawn_counts(n, resamples, seed))
        return
    counts, size = resample_counts(n, resamples, seed), _block_size(n)
    yield from (counts[start : start + size].astype(np.float64) for start in range(0, resamples, size))


def _block_size(n: int) -> int:
    """Resamples of n trajectories at a time, as float64."""
    return max(1, min(_BLOCK, _BLOCK_BYTES // (8 * max(1, n))))


def bootstrap_sums(sums: FloatArray, resamples: int = RESAMPLES, seed: int = SEED) -> FloatArray:
    """Totals of `sums` (T, s) in every resample of the T trajectories; shape (resamples, s)."""
    return np.concatenate([counts @ sums for counts in count_blocks(len(sums), resamples, seed)])


def effective_number(weights: FloatArray) -> FloatArray:
    """Kish's effective number of trajectories, (sum w)² / sum w², along the first axis; 0 without weight.

    Args:
        weights: tokens of each trajectory, shape (T,) or (T, c).
    """
    weights = np.asarray(weights, dtype=np.float64)
    square = (weights**2).sum(axis=0)
    return np.where(square > 0, weights.sum(axis=0) ** 2 / np.where(square > 0, square, 1.0), 0.0)


def standard_error(replicates: FloatArray) -> float:
    """Standard deviation (ddof 1) over bootstrap replicates; NaN if more than one in twenty is undefined."""
    finite = replicates[np.isfinite(replicates)]
    enough = len(finite) >= max(2, 0.95 * len(replicates))
    return float(np.std(finite, ddof=1)) if enough else math.nan


# --- one checkpoint ---------------------------------------------------------------------------------------------------


def estimates(
    numerator: FloatArray,
    denominator: FloatArray,
    scale: Scale | Sequence[Scale] = Scale.LINEAR,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> list[Estimate]:
    """Pooled ratios sum(numerator) / sum(denominator) of T trajectories, c of them at once.

    Args:
        numerator, denominator: shape (T, c); denominators are non-negative, such as token counts.
        scale: of all ratios, or of each.
        resamples, seed: of the bootstrap of standard errors.
        level: of the interval.

    Returns:
        One a ratio; NaN where there is no token, no error or no interval.
    """
    scales = [scale] * numerator.shape[1] if isinstance(scale, Scale) else list(scale)
    exponentiated = np.array([item is Scale.EXP for item in scales], dtype=bool)
    effective = effective_number(denominator)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = denominator.sum(axis=0)
        ratio = numerator.sum(axis=0) / total
        residual = numerator - ratio * denominator
        inflation, freedom = _small_sample(denominator / total)
        influence = residual / total / np.sqrt(1 - denominator / total)
        half = np.sqrt(inflation * (influence**2).sum(axis=0)) * _quantile(effective, freedom, level)
        ends = [_interval(*column) for column in zip(ratio.tolist(), half.tolist(), scales, strict=True)]
        replicates = _replicates(residual, denominator, ratio, exponentiated, resamples, seed)
        value = np.where(exponentiated, np.exp(ratio), ratio)
    stderr = np.array([standard_error(column) for column in replicates.T])
    stderr = np.where(effective >= FEWEST_FOR_ERROR, stderr, np.nan)
    low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    return [Estimate(*row) for row in zip(*(column.tolist() for column in (value, stderr, low, high)), strict=True)]


def why_withheld(weights: FloatArray) -> str:
    """Why trajectories with these numbers of tokens, shape (T,), have no interval; empty: they have one."""
    effective = effective_number(weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        _, freedom = _small_sample((weights / weights.sum())[:, None])
    if np.isfinite(_quantile(np.atleast_1d(effective), freedom, LEVEL)[0]):
        return ""
    return f"{len(weights)} trajectories as unequal as these tell as much as {float(effective):.1f} equal ones"


def _replicates(
    residual: FloatArray,
    denominator: FloatArray,
    ratio: FloatArray,
    exponentiated: npt.NDArray[np.bool_],
    resamples: int,
    seed: int,
) -> FloatArray:
    """The metric in every resample, shape (resamples, c), from residuals, which keep more digits than the sums."""
    replicates = np.empty((resamples, residual.shape[1]))
    distinct: dict[bytes, int] = {}  # many metrics are over the same tokens
    index = [distinct.setdefault(column.tobytes(), len(distinct)) for column in denominator.T]
    totals = denominator[:, [index.index(i) for i in range(len(distinct))]]
    start = 0
    for counts in count_blocks(len(residual), resamples, seed):
        replicates[start : start + len(counts)] = ratio + (counts @ residual) / (counts @ totals)[:, index]
        start += len(counts)
    return np.where(exponentiated, np.exp(replicates), replicates) if exponentiated.any() else replicates


def _small_sample(weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The factor that makes the variance sum(influence² / (1 - w)) unbiased, and its degrees of freedom.

    Under the working model of equal variances, the residuals have the covariance M = (I - 1w')(I - w1'), and the
    variance is sum(a e²) with a = w² / (1 - w): a quadratic form with trace sum(a M_ii) and sum of squares
    sum(a_i a_j M_ij²), where M_ij = [i = j] - w_i - w_j + sum(w²).

    Args:
        weight: shape (T, c), each column sums to 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        square = (weight**2).sum(axis=0)
        a = weight**2 / (1 - weight)
        diagonal = 1 - 2 * weight + square
        trace = (a * diagonal).sum(axis=0)
        a0, a1, a2 = a.sum(axis=0), (a * weight).sum(axis=0), (a * weight**2).sum(axis=0)
        everywhere = square**2 * a0**2 + 2 * a0 * a2 - 4 * square * a0 * a1 + 2 * a1**2
        squares = everywhere + (a**2 * (diagonal**2 - (diagonal - 1) ** 2)).sum(axis=0)
        return square / trace, trace**2 / squares


def _quantile(effective: FloatArray, freedom: FloatArray, level: float) -> FloatArray:
    """Two-sided quantile of Student's t; NaN where the interval is withheld."""
    enough = (effective >= _FEWEST_FOR_INTERVAL * (1 - 1e-9)) & (freedom >= _FEWEST_FREEDOM)
    from scipy.special import stdtrit  # here: every sub-command imports this module; scipy.stats takes a second to load

    return np.where(enough, stdtrit(np.where(enough, freedom, 1.0), (1 + level) / 2), np.nan)


def _interval(ratio: float, half: float, scale: Scale) -> tuple[float, float]:
    """The interval that is `ratio` ± `half` to first order; NaN at a bound, where the scale is infinite."""
    if scale is Scale.EXP:
        return float(np.exp(np.maximum(ratio - half, 0.0))), float(np.exp(ratio + half))
    if scale is Scale.POSITIVE:
        reach = half / ratio if ratio > 0 else np.nan
        return float(ratio * np.exp(-reach)), float(ratio * np.exp(reach))
    if scale is Scale.SHARE:
        from scipy.special import expit, logit

        reach = half / (ratio * (1 - ratio)) if 0 < ratio < 1 else np.nan
        return float(expit(logit(ratio) - reach)), float(expit(logit(ratio) + reach))
    return ratio - half, ratio + half


# --- two checkpoints --------------------------------------------------------------------------------------------------


def paired(
    a: tuple[FloatArray, FloatArray],
    b: tuple[FloatArray, FloatArray],
    exponentiate: bool = False,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
    bootstrap: bool = True,
) -> Difference:
    """The difference b - a of two checkpoints whose trajectories are the same, in the same order.

    Args:
        a, b: each checkpoint's (numerator, denominator), each of shape (T,).
        exponentiate: the metric is exp of the ratio.
        resamples, seed: of the bootstrap behind `p_below`.
        level: of the interval.
        bootstrap: False where nobody asks for `p_below`: everything else needs no resamples.

    Returns:
        The difference; NaN for what the trajectories are too few or too unequal for.
    """
    values, weights, influences, columns = [], [], [], []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for numerator, denominator in (a, b):
            total = denominator.sum()
            ratio = float(numerator.sum() / total)
            value = float(np.exp(ratio)) if exponentiate else ratio
            residual = numerator - ratio * denominator
            values.append(value)
            weights.append(denominator / total)
            influences.append((value if exponentiate else 1.0) * residual / total)
            columns.append((residual[:, None], denominator[:, None], np.array([ratio]), np.array([exponentiate])))
        weight = (weights[0] + weights[1])[:, None] / 2
        inflation, freedom = (float(part[0]) for part in _small_sample(weight))
        left, right = (u * np.sqrt(inflation / (1 - w)) for u, w in zip(influences, weights, strict=True))
    difference = values[1] - values[0]
    effective = float(effective_number(np.nan_to_num(weight))[0])
    if not effective >= FEWEST_FOR_ERROR:
        return Difference(difference)
    stderr = float(np.sqrt(((right - left) ** 2).sum()))
    quantile = float(_quantile(np.array([effective]), np.array([freedom]), level)[0])
    replicates = np.array([])
    if bootstrap:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            before, after = (_replicates(*side, resamples, seed)[:, 0] for side in columns)
            replicates = after - before
        replicates = replicates[np.isfinite(replicates)]
    below = float((replicates < 0).mean() + (replicates == 0).mean() / 2) if len(replicates) else math.nan
    norm = np.sqrt((left**2).sum() * (right**2).sum())
    return Difference(
        value=difference,
        stderr=stderr,
        ci_low=difference - quantile * stderr,
        ci_high=difference + quantile * stderr,
        p=_p_value(difference, stderr, freedom, 1 / (resamples + 1)) if np.isfinite(quantile) else math.nan,
        p_below=below,
        correlation=float((left * right).sum() / norm) if norm > 0 else math.nan,
        stderr_unpaired=float(np.sqrt((left**2).sum() + (right**2).sum())),
    )


def _p_value(difference: float, stderr: float, freedom: float, least: float) -> float:
    """Two-sided; `least` where the checkpoints differ by the same amount everywhere."""
    if not np.isfinite(difference):
        return math.nan
    if stderr == 0:
        return 1.0 if difference == 0 else least
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(difference) / stderr))


# --- several comparisons ----------------------------------------------------------------------------------------------


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm 1979): the family-wise error rate stays below 5 %."""
    ordered = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected, largest = dict.fromkeys(p_values, math.nan), 0.0
    for rank, (p, name) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p))
        corrected[name] = largest
    return corrected


def minimum_detectable(stderr: float, power: float = 0.8, alpha: float = _ALPHA) -> float:
    """The smallest true difference that a two-sided test at the level `alpha` detects with probability `power`."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * stderr


def trajectories_needed(
    difference: float, stderr: float, n: int, power: float = 0.8, alpha: float = _ALPHA
) -> int | None:
    """How many trajectories would detect `difference`, if n of them give `stderr`; None: it is 0 or undefined."""
    ratio = minimum_detectable(stderr, power, alpha) / abs(difference) if difference else math.nan
    return math.ceil(n * ratio**2) if math.isfinite(ratio) else None


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
    sides = [np.atleast_2d(np.asarray(side, dtype=float)) for side in (x, y)]
    rows, columns = np.broadcast_shapes(*(side.shape for side in sides))
    sides = [np.broadcast_to(side, (len(side), columns)) for side in sides]
    block = max(1, _PAIRS // max(1, columns**2))
    blocks = [
        _correlations(*(side[start : start + block] if len(side) > 1 else side for side in sides))
        for start in range(0, rows, block)
    ]
    return {name: np.concatenate([part[name] for part in blocks]) for name in CORRELATIONS}


def _correlations(x: FloatArray, y: FloatArray) -> dict[str, FloatArray]:
    signs = []  # of the difference of each pair; small integers, a third of the time of numpy's sign
    for side in (x, y):
        rows, columns = side[:, :, None], side[:, None, :]
        signs.append((rows > columns).astype(np.int8) - (rows < columns))
    concordance = (signs[0] * signs[1]).sum(axis=(1, 2), dtype=np.int64)
    untied = [np.count_nonzero(sign, axis=(1, 2)) for sign in signs]
    ranks = [sign.sum(axis=2, dtype=np.float64) for sign in signs]  # twice the mean ranks, centred
    with np.errstate(divide="ignore", invalid="ignore"):
        # by the signs, which are exact: the mean of equal numbers need not be equal to them
        constant = (untied[0] == 0) | (untied[1] == 0)
        values = {
            "pearson": np.where(constant, np.nan, _pearson(x, y)),
            "spearman": _pearson(*ranks),
            "kendall": concordance / np.sqrt(untied[0].astype(float) * untied[1]),
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
