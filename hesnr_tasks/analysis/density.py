"""The shape of entropies: histogram, kernel density, its peaks, the mass near ln 1 … ln 5, the valley near ln 3.5.

The paper (arXiv 2601.20255, Appendix E) marks the mode found by kernel density estimation. Here: a Gaussian kernel
with Silverman's bandwidth 0.9 · min(sd, IQR / 1.34) · n^(-1/5), on a grid over [0, ln k], reflected at both ends, so
that the density integrates to 1 and a peak at 0 (one certain continuation) is seen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
POPULATIONS = {"all": (), "non-top-1": (1,), "non-top-2": (1, 2)}  # ranks that are left out
_POINTS = 2048
_PROMINENCE = 3.0  # standard errors of the density at the peak; less is a ripple
_NEAR = 0.2  # nats: how far from ln 3 or ln 4 a peak may be to be that peak


class Histogram(NamedTuple):
    """Numbers of tokens between `edges`, over [0, ln k]."""

    edges: FloatArray  # (bins + 1,)
    counts: npt.NDArray[np.int64]  # (bins,)


class Peak(NamedTuple):
    """A local maximum of a density."""

    entropy: float  # nats
    height: float  # per nat
    prominence: float  # height above the higher of the two valleys that separate it from higher ground


class Density(NamedTuple):
    """A density over a grid, and its peaks, the highest (the mode) first."""

    grid: FloatArray
    height: FloatArray
    bandwidth: float
    peaks: tuple[Peak, ...]

    @property
    def mode(self) -> float:
        """The entropy of the highest peak, in nats; NaN without data."""
        return self.peaks[0].entropy if self.peaks else math.nan


class Valley(NamedTuple):
    """A threshold taken from the data; NaN and a reason where the data have none."""

    epsilon: float
    reason: str = ""


def population(rank: npt.NDArray[np.int32], name: str) -> npt.NDArray[np.bool_]:
    """Which tokens belong to one of `POPULATIONS`; an unknown rank is beyond the top k."""
    return ~np.isin(rank, POPULATIONS[name])


def histogram(entropy: FloatArray, k: int, bins: int = 100) -> Histogram:
    """Counts of entropies in `bins` equal bins over [0, ln k]."""
    counts, edges = np.histogram(entropy, bins=bins, range=(0.0, math.log(k)))
    return Histogram(edges, counts.astype(np.int64))


def density(entropy: FloatArray, k: int) -> Density:
    """The density of entropies on [0, ln k], in 1 / nats; empty for fewer than two values."""
    grid = np.linspace(0.0, math.log(k), _POINTS)
    if len(entropy) < 2:
        return Density(grid, np.zeros(_POINTS), math.nan, ())
    step = grid[1]
    quartiles = np.percentile(entropy, [25, 75])
    spreads = (float(np.std(entropy, ddof=1)), float(quartiles[1] - quartiles[0]) / 1.34)
    silverman = 0.9 * (min(spreads) if spreads[1] > 0 else spreads[0]) * len(entropy) ** -0.2
    width = max(silverman, step)
    # each value is split between the two grid points it lies between (linear binning)
    position = np.clip(entropy / step, 0, _POINTS - 1)
    left = np.minimum(position.astype(np.int64), _POINTS - 2)
    mass = np.bincount(left, 1 - (position - left), _POINTS) + np.bincount(left + 1, position - left, _POINTS)
    height = _smooth(mass / len(entropy), width / step) / step
    return Density(grid, height, width, _peaks(grid, height, len(entropy) * width))


def mass_near(entropy: FloatArray, continuations: int, window: float = 0.1) -> float:
    """Share of tokens within `window` nats of ln `continuations`: that hesitate between so many."""
    return float(np.mean(np.abs(entropy - math.log(continuations)) <= window)) if len(entropy) else math.nan


def valley(curve: Density) -> Valley:
    """The lowest point between the density peaks nearest ln 3 and ln 4."""
    sides = []
    for n in (3, 4):
        near = [peak for peak in curve.peaks if abs(peak.entropy - math.log(n)) <= _NEAR]
        if not near:
            return Valley(math.nan, f"no peak within {_NEAR} nats of ln {n}")
        sides.append(min(near, key=lambda peak: abs(peak.entropy - math.log(n))))
    low, high = sorted(int(np.searchsorted(curve.grid, peak.entropy)) for peak in sides)
    if low == high:
        return Valley(math.nan, f"one peak, at {sides[0].entropy:.3f}, is nearest both ln 3 and ln 4")
    return Valley(float(curve.grid[low + int(np.argmin(curve.height[low : high + 1]))]))


def _smooth(mass: FloatArray, width: float) -> FloatArray:
    """Convolve with a Gaussian of `width` grid steps; what would leave the grid is reflected into it."""
    reach = min(_POINTS - 1, math.ceil(5 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    # a grid point at an end stands for half a cell, so it is doubled before, and its mirror image is itself
    mirrored = np.pad(mass, reach, mode="reflect")
    mirrored[[reach, reach + _POINTS - 1]] *= 2
    return np.convolve(mirrored, kernel / kernel.sum(), mode="valid")


def _peaks(grid: FloatArray, height: FloatArray, effort: float) -> tuple[Peak, ...]:
    """Local maxima that stand out of the noise; `effort`: values times bandwidth, on which the noise depends."""
    from scipy.signal import find_peaks  # here: every sub-command imports this module, and scipy is slow to load

    index, properties = find_peaks(np.pad(height, 1), prominence=0)
    columns = grid[index - 1], height[index - 1], properties["prominences"]
    peaks = sorted((Peak(*row) for row in zip(*(c.tolist() for c in columns), strict=True)), key=lambda p: -p.height)
    # variance of a density estimate: height * (integral of the squared kernel) / (n * width)
    noise = [math.sqrt(peak.height / (2 * math.sqrt(math.pi) * effort)) for peak in peaks]
    clear = [peak for peak, sd in zip(peaks, noise, strict=True) if peak.prominence > _PROMINENCE * sd]
    return tuple(clear or peaks[:1])  # the mode is the mode, however small it is
