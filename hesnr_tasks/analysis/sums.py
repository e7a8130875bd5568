"""The sums over tokens that every metric is made of, for many settings at once, and to the last bit those of a run.

`metrics.statistics_of` defines them, one trajectory and one setting at a time. Here what does not depend on the
threshold is done once, and each threshold works only on the tokens that the threshold before it left. Every number is
still summed over the same values in the same order, so it has the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame
from hesnr_tasks.metrics import SUMS

__all__ = ["Grid", "grid_sums", "group_sums", "token_sums"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
_TOPS = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Grid:
    """`sums[m, k, e, t, s]`: the s-th of `SUMS` of trajectory t, under the m-th mask, k-th k and e-th threshold."""

    masks: tuple[int, ...]
    ks: tuple[int, ...]
    epsilons: tuple[float, ...]
    sums: FloatArray


def grid_sums(frame: Frame, masks: Sequence[np.uint64], ks: Sequence[int], epsilons: Sequence[float]) -> Grid:
    """The sums of every trajectory in every setting; thresholds in nats, in any order."""
    out = np.zeros((len(masks), len(ks), len(epsilons), len(frame.entries), len(SUMS)))
    for m, mask in enumerate(masks):
        counted = frame.counted(mask)
        out[m, ..., : SUMS.index("entropy")] = _plain(frame, counted)
        bounds = _bounds(frame, counted)
        for i, k in enumerate(ks):
            out[m, i, :, :, SUMS.index("entropy")] = _segments(frame.entropy[k][counted], bounds)
    for i, k in enumerate(ks):
        high = _High.of(frame, k, min(epsilons, default=0.0))
        for m, mask in enumerate(masks):
            left = high.where((high.label & mask) != 0)
            for e in np.argsort(epsilons, kind="stable"):
                left = left.where(left.entropy > epsilons[e])
                out[m, i, e, :, SUMS.index("he_tokens") :] = left.sums(len(frame.entries))
    return Grid(tuple(int(mask) for mask in masks), tuple(ks), tuple(epsilons), out)


def token_sums(frame: Frame, counted: BoolArray, epsilon: float, k: int) -> FloatArray:
    """The `SUMS` of every trajectory over its tokens where `counted` (n,) is true; shape (T, 10)."""
    return _sums(frame, np.flatnonzero(counted), _bounds(frame, counted), epsilon, k)


def group_sums(frame: Frame, group: npt.NDArray[np.integer], groups: int, epsilon: float, k: int) -> FloatArray:
    """The `SUMS` of every trajectory within each group of tokens; `group` (n,): 0 … groups - 1, or -1 for none.

    Shape (groups, T, 10).
    """
    cell = group.astype(np.int64) * len(frame.entries) + frame.trajectory()
    order = np.argsort(np.where(group < 0, np.iinfo(np.int64).max, cell), kind="stable")[: np.count_nonzero(group >= 0)]
    bounds = np.searchsorted(cell[order], np.arange(groups * len(frame.entries) + 1))
    return _sums(frame, order, bounds, epsilon, k).reshape(groups, len(frame.entries), len(SUMS))


def _sums(frame: Frame, at: npt.NDArray[np.int64], bounds: npt.NDArray[np.int64], epsilon: float, k: int) -> FloatArray:
    """The `SUMS` of the tokens `at`, one row for each stretch between `bounds`."""
    entropy, rank, logprob = frame.entropy[k][at], frame.rank[at], frame.logprob[at].astype(np.float64)
    high = (entropy > epsilon) & (rank >= 1) & (rank <= k)
    high_bounds = np.concatenate([[0], np.cumsum(high)])[bounds]
    columns = [
        *_plain_columns(logprob, rank, bounds),
        _segments(entropy, bounds),
        np.diff(high_bounds).astype(np.float64),
        -_segments(logprob[high], high_bounds),
        _segments(np.exp(logprob[high]) / entropy[high], high_bounds),
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class _High:
    """Tokens above some threshold with the target among the k candidates."""

    label: npt.NDArray[np.uint64]
    entropy: FloatArray
    logprob: FloatArray
    ratio: FloatArray
    trajectory: npt.NDArray[np.int32]

    @classmethod
    def of(cls, frame: Frame, k: int, epsilon: float) -> _High:
        """All of a frame."""
        entropy = frame.entropy[k]
        at = np.flatnonzero((entropy > epsilon) & (frame.rank >= 1) & (frame.rank <= k))
        logprob = frame.logprob[at].astype(np.float64)
        trajectory = np.searchsorted(frame.bounds, at, side="right") - 1
        return cls(frame.label[at], entropy[at], logprob, np.exp(logprob) / entropy[at], trajectory.astype(np.int32))

    def where(self, keep: BoolArray) -> _High:
        """Those for which `keep` is true."""
        if keep.all():
            return self
        return _High(self.label[keep], self.entropy[keep], self.logprob[keep], self.ratio[keep], self.trajectory[keep])

    def sums(self, trajectories: int) -> FloatArray:
        """he_tokens, he_nll and he_ratio of every trajectory; shape (trajectories, 3)."""
        bounds = np.searchsorted(self.trajectory, np.arange(trajectories + 1))
        nll, ratio = -_segments(self.logprob, bounds), _segments(self.ratio, bounds)
        return np.stack([np.diff(bounds).astype(np.float64), nll, ratio], axis=1)


def _plain(frame: Frame, counted: BoolArray) -> FloatArray:
    """tokens, nll, top1 … top10 of every trajectory; shape (T, 6)."""
    logprob, rank = frame.logprob[counted].astype(np.float64), frame.rank[counted]
    return np.stack(_plain_columns(logprob, rank, _bounds(frame, counted)), axis=1)


def _plain_columns(logprob: FloatArray, rank: npt.NDArray[np.int32], bounds: npt.NDArray[np.int64]) -> list[FloatArray]:
    tops = [np.diff(np.concatenate([[0], np.cumsum((rank >= 1) & (rank <= j))])[bounds]) for j in _TOPS]
    if (rank < 0).any():  # -n: beyond the n most likely, further not known
        unknown = [np.diff(np.concatenate([[0], np.cumsum((rank < 0) & (-rank < j))])[bounds]) for j in _TOPS]
        tops = [np.where(lost > 0, np.nan, counts) for counts, lost in zip(tops, unknown, strict=True)]
    tops = [counts.astype(np.float64) for counts in tops]
    return [np.diff(bounds).astype(np.float64), -_segments(logprob, bounds), *tops]


def _bounds(frame: Frame, counted: BoolArray) -> npt.NDArray[np.int64]:
    """Where each trajectory begins among the tokens that count; shape (T + 1,)."""
    return np.concatenate([[0], np.cumsum(counted)])[frame.bounds]


def _segments(values: FloatArray, bounds: npt.NDArray[np.int64]) -> FloatArray:
    """The sum of each segment. `reduceat` would be faster, but adds in another order than `sum`, which runs use."""
    add = np.add.reduce
    edges = bounds.tolist()
    return np.array([add(values[a:b]) for a, b in itertools.pairwise(edges)], dtype=np.float64)
