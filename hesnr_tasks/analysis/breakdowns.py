"""How the tokens of a run fall apart: groups of them (turn, tool, language, …), and the shape of their entropies.

The paper (arXiv 2601.20255, Appendix E) marks the mode found by kernel density estimation. Here: a Gaussian kernel
with Silverman's bandwidth 0.9 · min(sd, IQR / 1.34) · n^(-1/5), on a grid over [0, ln k], reflected at both ends, so
that the density integrates to 1 and a peak at 0 (one certain continuation) is seen.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.analysis.frame import Frame
from hesnr_tasks.filters.regions import regions
from hesnr_tasks.scores import Entry
from hesnr_tasks.trajectory import Kind

IntArray = npt.NDArray[np.int64]
_POSITIONS = (0, 8, 32, 64, 128, 256, 512, 1024)  # 1024 tokens
_ESCAPE = 12  # characters of the original behind one of the program: \\ud83d\\ude00
_OUTCOMES = ("resolved", "unresolved", "unknown", "mixed")
NO_CALL = "(no call)"
NO_LANGUAGE = "(none known)"


_LabelledSpan = tuple[int, int, str]  # characters from, to, and what they are; later ones win


class Groups(NamedTuple):
    """Names of groups in the order to show them, and the group of each token, shape (n,)."""

    names: tuple[str, ...]
    of_token: IntArray


def grouped(frame: Frame, by: str) -> Groups:
    """The tokens of `frame` split `by` one of `BREAKDOWNS`; `COLUMNS[by]` must have been loaded."""
    return BREAKDOWNS[by](frame)


def _by_turn(frame: Frame) -> Groups:
    turns, index = np.unique(frame.extra["turn"], return_inverse=True)
    return Groups(tuple(map(str, turns)), index)


def _by_position(frame: Frame) -> Groups:
    index = np.searchsorted(1024 * np.array(_POSITIONS), frame.extra["position"], side="right") - 1
    names = [f"{low}-{high}K" for low, high in itertools.pairwise(_POSITIONS)] + [f"{_POSITIONS[-1]}K-"]
    return Groups(tuple(names[: int(index.max(initial=0)) + 1]), index)


def outcome_of(entry: Entry) -> str:
    """Of the agent's run; several runs can have one text, and those that disagree are a group of their own."""
    outcomes = {source.resolved for source in entry.sources}
    names = {True: "resolved", False: "unresolved", None: "unknown"}
    return names[next(iter(outcomes), None)] if len(outcomes) < 2 else "mixed"


def _by_resolved(frame: Frame) -> Groups:
    codes = [_OUTCOMES.index(outcome_of(entry)) for entry in frame.entries]
    return Groups(_OUTCOMES, np.repeat(np.array(codes, dtype=np.int64), np.diff(frame.bounds)))


BREAKDOWNS: dict[str, Callable[[Frame], Groups]] = {
    "turn": _by_turn,
    "position": _by_position,
    "tool": lambda frame: _by_text(frame, _tools, NO_CALL),
    "language": lambda frame: _by_text(frame, _languages, NO_LANGUAGE),
    "resolved": _by_resolved,
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "turn": ("turn",),
    "position": ("position",),
    "tool": ("char_end",),
    "language": ("char_end",),
    "resolved": (),
    "trajectory": (),
}


def _by_text(frame: Frame, marks: Callable[[str], Iterator[_LabelledSpan]], otherwise: str) -> Groups:
    """A token belongs where its last character does: a space before a word is part of that word's token."""
    codes = {otherwise: 0}
    index = np.zeros(len(frame.label), dtype=np.int64)
    last = np.maximum(frame.extra["char_end"] - 1, 0)
    for i, entry in enumerate(frame.entries):
        rendered = frame.store.text(entry.key).rendered
        chars = np.zeros(max(1, len(rendered.text)), dtype=np.int64)
        for block in rendered.blocks():
            if block.kind is Kind.ACTION:
                for start, end, name in marks(rendered.text[block.start : block.end]):
                    chars[block.start + start : block.start + end] = codes.setdefault(name, len(codes))
        tokens = slice(frame.bounds[i], frame.bounds[i + 1])
        index[tokens] = chars[last[tokens]]
    names = tuple(codes)
    order = np.argsort(-np.bincount(index, minlength=len(names)), kind="stable")  # the most frequent first
    shown = tuple(re.sub(r"\s+", " ", names[i])[:60] for i in order)
    return Groups(shown, np.argsort(order)[index])


def _tools(text: str) -> Iterator[_LabelledSpan]:
    for call in parse_action(text):
        yield call.start, call.end, call.name or "(no name)"


def _languages(text: str) -> Iterator[_LabelledSpan]:
    """Inner pieces come after the ones they are in, so a Python script in a shell command is Python."""
    for region in regions(text):
        offsets = np.asarray(region.view.offsets[:-1])
        if len(offsets):
            for run in np.split(offsets, np.flatnonzero(np.diff(offsets) > _ESCAPE) + 1):
                yield int(run[0]), int(run[-1]) + 1, region.language


# --- the shape of entropies: histogram, kernel density, its peaks, the mass near ln 1 … ln 5, the valley near ln 3.5 --

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
    padded = np.pad(height, 1)
    change = np.flatnonzero(np.diff(padded))  # a plateau lies between two changes
    rises, falls = padded[change] < padded[change + 1], padded[change] > padded[change + 1]
    middle = (change[:-1] + 1 + change[1:]) // 2
    top = [_peak(grid, height, i - 1) for i in middle[rises[:-1] & falls[1:]].tolist()]
    peaks = sorted(top, key=lambda peak: -peak.height)
    # variance of a density estimate: height * (integral of the squared kernel) / (n * width)
    noise = [math.sqrt(peak.height / (2 * math.sqrt(math.pi) * effort)) for peak in peaks]
    clear = [peak for peak, sd in zip(peaks, noise, strict=True) if peak.prominence > _PROMINENCE * sd]
    return tuple(clear or peaks[:1])  # the mode is the mode, however small it is


def _peak(grid: FloatArray, height: FloatArray, index: int) -> Peak:
    higher = np.flatnonzero(height > height[index])
    split = int(np.searchsorted(higher, index))
    left = height[higher[split - 1] : index].min() if split else 0.0  # beyond the ends there is nothing
    right = height[index : higher[split] + 1].min() if split < len(higher) else 0.0
    return Peak(float(grid[index]), float(height[index]), float(height[index] - max(left, right)))
