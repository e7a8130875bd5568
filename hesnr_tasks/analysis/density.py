"""The shape of entropies: histogram, density, its peaks, the mass near ln 1 … ln 5, the valley from ln 3 to ln 4.

The paper (arXiv 2601.20255, Appendix E) marks the mode found by kernel density estimation. Here: a Gaussian kernel
with Silverman's bandwidth 0.9 · min(sd, IQR / 1.34) · n^(-1/5), on a grid over [0, ln k], reflected at both ends, so
that the density integrates to 1 and a peak at 0 (one sure continuation) is seen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "POPULATIONS",
    "Density",
    "Histogram",
    "Peak",
    "Valley",
    "density",
    "histogram",
    "mass_near",
    "population",
    "valley",
]

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
    prominence: float  # height above the higher of the two valleys that part it from higher ground


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
    """Which tokens belong to one of `POPULATIONS`; a rank that is not known (0) is beyond the top k."""
    return ~np.isin(rank, POPULATIONS[name])


def histogram(entropy: FloatArray, k: int, bins: int = 100) -> Histogram:
    """Counts of entropies in `bins` equal bins over [0, ln k]."""
    counts, edges = np.histogram(entropy, bins=bins, range=(0.0, math.log(k)))
    return Histogram(edges, counts.astype(np.int64))


def density(entropy: FloatArray, k: int, bandwidth: float | None = None) -> Density:
    """The density of entropies on [0, ln k], in 1 / nats; empty for fewer than two values."""
    grid = np.linspace(0.0, math.log(k), _POINTS)
    if len(entropy) < 2:
        return Density(grid, np.zeros(_POINTS), math.nan, ())
    step = grid[1]
    width = max(_silverman(entropy) if bandwidth is None else bandwidth, step)
    mass = _shared_out(entropy / step) / len(entropy)
    height = _smooth(mass, width / step) / step
    return Density(grid, height, width, _peaks(grid, height, len(entropy) * width))


def mass_near(entropy: FloatArray, ways: int, window: float = 0.1) -> float:
    """Share of tokens within `window` nats of ln `ways`: that hesitate between so many continuations."""
    return float(np.mean(np.abs(entropy - math.log(ways)) <= window)) if len(entropy) else math.nan


def valley(found: Density) -> Valley:
    """The lowest point between the density peaks nearest ln 3 and ln 4."""
    sides = []
    for ways in (3, 4):
        near = [peak for peak in found.peaks if abs(peak.entropy - math.log(ways)) <= _NEAR]
        if not near:
            return Valley(math.nan, f"no peak within {_NEAR} nats of ln {ways}")
        sides.append(min(near, key=lambda peak: abs(peak.entropy - math.log(ways))))
    low, high = sorted(int(np.searchsorted(found.grid, peak.entropy)) for peak in sides)
    if low == high:
        return Valley(math.nan, f"one peak, at {sides[0].entropy:.3f}, is nearest both ln 3 and ln 4")
    return Valley(float(found.grid[low + int(np.argmin(found.height[low : high + 1]))]))


def _silverman(values: FloatArray) -> float:
    spread = float(np.std(values, ddof=1))
    quartiles = np.percentile(values, [25, 75])
    robust = float(quartiles[1] - quartiles[0]) / 1.34
    return 0.9 * (min(spread, robust) if robust > 0 else spread) * len(values) ** -0.2


def _shared_out(position: FloatArray) -> FloatArray:
    """Each value split between the two grid points it lies between (linear binning)."""
    position = np.clip(position, 0, _POINTS - 1)
    left = np.minimum(position.astype(np.int64), _POINTS - 2)
    right_part = position - left
    counted = np.bincount(left, 1 - right_part, _POINTS) + np.bincount(left + 1, right_part, _POINTS)
    return np.asarray(counted, dtype=np.float64)


def _smooth(mass: FloatArray, width: float) -> FloatArray:
    """Convolve with a Gaussian of `width` grid steps; what would leave the grid is reflected into it."""
    reach = min(_POINTS - 1, math.ceil(5 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    # a grid point at an end stands for half a cell, so it is doubled before, and its mirror image is itself
    mirrored = np.concatenate([mass[reach:0:-1], mass, mass[-2 : -reach - 2 : -1]])
    mirrored[[reach, reach + _POINTS - 1]] *= 2
    return np.convolve(mirrored, kernel / kernel.sum(), mode="valid")


def _peaks(grid: FloatArray, height: FloatArray, effort: float) -> tuple[Peak, ...]:
    """Local maxima that stand out of the noise; `effort`: values times bandwidth, on which the noise depends."""
    padded = np.concatenate([[-np.inf], height, [-np.inf]])
    tops = np.flatnonzero((padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:]))
    found = [Peak(float(grid[i]), float(height[i]), _prominence(height, int(i))) for i in tops]
    found.sort(key=lambda peak: -peak.height)
    # variance of a density estimate: height * (integral of the squared kernel) / (n * width)
    noise = {peak: math.sqrt(peak.height / (2 * math.sqrt(math.pi) * effort)) for peak in found}
    clear = [peak for peak in found if peak.prominence > _PROMINENCE * noise[peak]]
    return tuple(clear or found[:1])  # the mode is the mode, however little there is


def _prominence(height: FloatArray, at: int) -> float:
    """How far one must go down from a peak before one can go up to a higher one."""
    bases = []
    for side in (height[at::-1], height[at:]):
        higher = np.flatnonzero(side > height[at])
        if len(higher):
            bases.append(float(side[: higher[0]].min()))
    return float(height[at] - max(bases)) if bases else float(height[at])
