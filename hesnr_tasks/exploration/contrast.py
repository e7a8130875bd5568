"""The difference in entropy between some units (words, sentences) and the others: raw, and against matched controls.

Matched: units are compared within cells of equal position, frequency and turn, and every trajectory's own level is
taken out. That is the coefficient d of the least-squares fit  y = cell + trajectory + d · treated, over the cells that
have both treated and other units (Frisch, Waugh and Lovell: residuals of y on residuals of `treated`). It is a ratio
of sums over trajectories, so the package's cluster bootstrap gives its interval; the residual of the ratio is the
influence of a trajectory on d, in which the error of the controls is contained.

Bounds: known are the k largest probabilities p_1 ≥ … ≥ p_k and so the mass r = 1 − Σ p of all other tokens, none of
which is more likely than p_k. The entropy over the whole vocabulary is smallest where that mass is packed into as few
tokens as possible (each p_k, one with what is left), and largest where it is spread evenly over the V − k others.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame
from hesnr_tasks.scores import Entry, ScoreStore

__all__ = [
    "FEWEST",
    "Bounds",
    "Contrast",
    "contrast",
    "difference_bounds",
    "entropy_bounds",
    "frame_bounds",
    "vocabulary_size",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FEWEST = 8  # trajectories, or problems: of fewer there is no interval, as they say too little of the spread
_RIDGE = 1e-10  # levels are known up to a constant; this picks one of them
_NOTHING = 1e-6  # a unit of less lift than this is explained by its cell and trajectory alone


class Contrast(NamedTuple):
    """`numerator` and `denominator` (T,) of each trajectory: their sums' ratio is the difference.

    `lift` (n,): how much each unit weighs in it, 0 where it is not compared; `used`: share of treated units compared;
    `clusters`: trajectories that have such.
    """

    numerator: FloatArray
    denominator: FloatArray
    lift: FloatArray
    used: float
    clusters: int

    def value(self, copies: IntArray) -> float:
        """The difference, trajectory t counted `copies[t]` times; NaN where nothing can be compared."""
        total = float(self.denominator @ copies)
        return float(self.numerator @ copies) / total if total > 0 else float("nan")


def contrast(
    values: FloatArray, treated: BoolArray, trajectory: IntArray, copies: IntArray, cell: IntArray | None = None
) -> Contrast:
    """Treated units against the others; `values`, `treated`, `trajectory` and `cell` are (n,), `copies` (T,).

    Without cells it is the plain difference of means.
    """
    weight = copies[trajectory] > 0
    cells = np.zeros(len(values), dtype=np.int64) if cell is None else cell
    keep = weight & _overlap(cells, treated, weight)
    nothing = Contrast(np.zeros(len(copies)), np.zeros(len(copies)), np.zeros(len(values)), 0.0, 0)
    if not keep.any():
        return nothing
    _, codes = np.unique(cells[keep], return_inverse=True)
    where = _Pairs(codes, trajectory[keep], int(codes.max()) + 1, len(copies))
    y, d = values[keep], treated[keep].astype(np.float64)
    fitted = _fitted(where, np.column_stack([d, y - y.mean()]), copies, both=cell is not None)
    d, y = d - fitted[:, 0], y - y.mean() - fitted[:, 1]
    if np.abs(d).max() < _NOTHING:
        return nothing
    lift = nothing.lift
    lift[keep] = d
    sums = [np.bincount(where.trajectory, part, len(copies)).astype(np.float64) for part in (d * y, d * d)]
    compared = treated & (np.abs(lift) >= _NOTHING)
    used = int(compared.sum()) / max(1, int((treated & weight).sum()))
    return Contrast(sums[0], sums[1], lift, used, len(np.unique(trajectory[compared])))


def difference_bounds(lift: FloatArray, weight: FloatArray, low: FloatArray, high: FloatArray) -> tuple[float, float]:
    """Between which values the difference lies if unit i's value lies between `low[i]` and `high[i]`; all (n,)."""
    used = lift != 0
    a, down, up = (lift * weight)[used], low[used], high[used]
    scale = float((lift[used] * a).sum())
    if not scale > 0:
        return float("nan"), float("nan")
    least = np.where(a > 0, a * down, a * up).sum() / scale
    return float(least), float(np.where(a > 0, a * up, a * down).sum() / scale)


class _Pairs(NamedTuple):
    """Which cell and trajectory each unit is of, and how many there are."""

    cell: IntArray
    trajectory: IntArray
    cells: int
    trajectories: int

    def table(self, values: FloatArray | None = None) -> FloatArray:
        """Sums (or counts) of each cell in each trajectory, shape (cells, trajectories)."""
        at = self.cell * self.trajectories + self.trajectory
        return np.bincount(at, values, self.cells * self.trajectories).reshape(self.cells, -1).astype(np.float64)


def _overlap(cell: IntArray, treated: BoolArray, weight: BoolArray) -> BoolArray:
    """Units of cells that have both treated and other units."""
    _, codes = np.unique(cell, return_inverse=True)
    each = [np.bincount(codes[kind & weight], minlength=int(codes.max(initial=0)) + 1) for kind in (treated, ~treated)]
    return ((each[0] > 0) & (each[1] > 0))[codes]


def _fitted(where: _Pairs, columns: FloatArray, copies: IntArray, *, both: bool) -> FloatArray:
    """Least-squares levels of cells (and of trajectories, if `both`) for each of `columns` (n, m), at every unit."""
    counts = where.table() * copies
    sums = np.stack([where.table(column) * copies for column in columns.T], axis=2)
    if not both:
        return (sums.sum(axis=1) / counts.sum(axis=1)[:, None])[where.cell]
    if where.cells < where.trajectories:  # the system to solve is as large as the smaller side
        trajectories, cells = _levels(counts.T, sums.transpose(1, 0, 2))
    else:
        cells, trajectories = _levels(counts, sums)
    return cells[where.cell] + trajectories[where.trajectory]


def _levels(counts: FloatArray, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Levels of the rows and of the columns of tables of counts (a, b) and sums (a, b, m)."""
    rows, total = counts.sum(axis=1), sums.sum(axis=1)
    share = np.divide(counts, rows[:, None], out=np.zeros_like(counts), where=rows[:, None] > 0)
    system = np.diag(counts.sum(axis=0)) - counts.T @ share
    system[np.diag_indices_from(system)] += _RIDGE * counts.sum() / len(system)
    level = np.linalg.solve(system, sums.sum(axis=0) - share.T @ total)
    rest = total - counts @ level
    return np.divide(rest, rows[:, None], out=np.zeros_like(rest), where=rows[:, None] > 0), level


# --- bounds of the entropy over the vocabulary ------------------------------------------------------------------------


class Bounds(NamedTuple):
    """Least and greatest entropy over the vocabulary, in nats, each (n,); `high` is inf where its size is not known."""

    low: FloatArray
    high: FloatArray


def entropy_bounds(topk_logprobs: npt.NDArray[np.floating], vocabulary: int | None) -> Bounds:
    """Bounds from log-probabilities (n, k), falling, of a vocabulary of so many tokens (None: not known)."""
    logs = np.asarray(topk_logprobs, dtype=np.float64)
    chances = np.exp(logs)
    known = -(chances * np.where(chances > 0, logs, 0.0)).sum(axis=1)
    tail = np.clip(1.0 - chances.sum(axis=1), 0.0, None)  # rounding can make it a little less than nothing
    last = chances[:, -1]
    full = np.floor(np.divide(tail, last, out=np.zeros_like(tail), where=last > 0))
    low = known + full * _surprise(last) + _surprise(np.clip(tail - full * last, 0.0, None))
    if vocabulary is None:
        return Bounds(low, np.full(len(low), np.inf))
    others = max(1, vocabulary - logs.shape[1])
    return Bounds(low, np.maximum(low, known + others * _surprise(tail / others)))


def _surprise(chance: FloatArray) -> FloatArray:
    """-p ln p, 0 at 0."""
    return -chance * np.log(np.where(chance > 0, chance, 1.0))


def frame_bounds(frame: Frame) -> Bounds:
    """Bounds of every token of `frame`, from all candidates that were stored."""
    size = vocabulary_size(frame.store)
    places = {entry.key: i for i, entry in enumerate(frame.entries)}

    def work(entry: Entry, found: dict[str, npt.NDArray[np.float32]]) -> Bounds:
        i = places[entry.key]
        return entropy_bounds(found["topk_logprobs"][frame.row[frame.bounds[i] : frame.bounds[i + 1]]], size)

    parts = list(frame.store.load_columns(["topk_logprobs"], work))
    return Bounds(np.concatenate([part.low for part in parts]), np.concatenate([part.high for part in parts]))


def vocabulary_size(store: ScoreStore) -> int | None:
    """Tokens the tokenizer knows, as the run says; None if it does not."""
    told = re.match(r"(\d+) tokens", str(store.signature["run"].get("tokenizer", "")))
    stored = store.token_bytes()
    sizes = [int(told[1])] if told else []
    return max([*sizes, *([len(stored)] if stored else [])], default=None)
