"""The difference in entropy between some units (words, sentences) and the others: raw, and against matched controls.

Matched: units are compared within cells of equal position, frequency and turn, and every trajectory's own level is
taken out. That is the coefficient d of the least-squares fit  y = cell + trajectory + d · treated, over the cells that
have both treated and other units (Frisch, Waugh and Lovell: residuals of y on residuals of `treated`). It is a ratio
of sums over trajectories, so the package's cluster bootstrap gives its interval; the residual of the ratio is the
influence of a trajectory on d, in which the error of the controls is contained.

Bounds: given are the k largest probabilities p_1 ≥ … ≥ p_k and so the mass r = 1 − Σ p of all other tokens, none of
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

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FEWEST_CLUSTERS = 8  # trajectories, or problems: with fewer, intervals are withheld
_RIDGE = 1e-10  # levels are known up to a constant; this picks one of them
_NEGLIGIBLE_LIFT = 1e-6  # a unit of less lift is explained by its cell and trajectory alone


class Contrast(NamedTuple):
    """Over T trajectories and n units; the ratio of sums of `numerator` and `denominator` is the difference."""

    numerator: FloatArray  # (T,)
    denominator: FloatArray  # (T,)
    lift: FloatArray  # (n,): how much each unit weighs in it, 0 where it is not compared
    used: float  # share of treated units compared
    clusters: int  # trajectories that have such

    def value(self, multiplicity: IntArray) -> float:
        """The difference, trajectory t counted `multiplicity[t]` times; NaN where nothing can be compared."""
        total = float(self.denominator @ multiplicity)
        return float(self.numerator @ multiplicity) / total if total > 0 else float("nan")


def contrast(
    values: FloatArray, treated: BoolArray, trajectory: IntArray, multiplicity: IntArray, cell: IntArray | None = None
) -> Contrast:
    """Treated units against the others.

    Args:
        values: Entropies in nats, (n,).
        treated: Which units are compared with the others, (n,).
        trajectory: The trajectory of each unit, (n,).
        multiplicity: How often each trajectory counts, (T,).
        cell: The cell of each unit, (n,); None: the plain difference of means.
    """
    n, trajectories = len(values), len(multiplicity)
    weight = multiplicity[trajectory] > 0
    cells = np.zeros(n, dtype=np.int64) if cell is None else cell
    _, codes = np.unique(cells, return_inverse=True)
    counts = [
        np.bincount(codes[side & weight], minlength=int(codes.max(initial=0)) + 1) for side in (treated, ~treated)
    ]
    keep = weight & ((counts[0] > 0) & (counts[1] > 0))[codes]  # of cells that have both
    nothing = Contrast(np.zeros(trajectories), np.zeros(trajectories), np.zeros(n), 0.0, 0)
    if not keep.any():
        return nothing
    _, codes = np.unique(cells[keep], return_inverse=True)
    owner = trajectory[keep]
    y, d = values[keep], treated[keep].astype(np.float64)
    columns = np.column_stack([d, y - y.mean()])
    fitted = _fitted(codes, owner, columns, multiplicity, with_trajectories=cell is not None)
    d, y = (columns - fitted).T
    if np.abs(d).max() < _NEGLIGIBLE_LIFT:
        return nothing
    lift = nothing.lift
    lift[keep] = d
    sums = [np.bincount(owner, part, trajectories).astype(np.float64) for part in (d * y, d * d)]
    compared = treated & (np.abs(lift) >= _NEGLIGIBLE_LIFT)
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


def _fitted(
    cell: IntArray, trajectory: IntArray, columns: FloatArray, multiplicity: IntArray, *, with_trajectories: bool
) -> FloatArray:
    """Least-squares levels of cells (and of trajectories) for each of `columns` (n, m), at every unit."""
    shape = (int(cell.max()) + 1, len(multiplicity))

    def table(values: FloatArray | None = None) -> FloatArray:
        """Sums (or counts) of each cell in each trajectory."""
        sums = np.bincount(cell * shape[1] + trajectory, values, shape[0] * shape[1])
        return sums.reshape(shape).astype(np.float64) * multiplicity

    counts, sums = table(), np.stack([table(column) for column in columns.T], axis=2)
    if not with_trajectories:
        return (sums.sum(axis=1) / counts.sum(axis=1)[:, None])[cell]
    if shape[0] < shape[1]:  # the system to solve is as large as the smaller side
        of_trajectory, of_cell = _levels(counts.T, sums.transpose(1, 0, 2))
    else:
        of_cell, of_trajectory = _levels(counts, sums)
    return of_cell[cell] + of_trajectory[trajectory]


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
    """Least and greatest entropy over the vocabulary, in nats, each (n,); `high` is inf where its size is unknown."""

    low: FloatArray
    high: FloatArray


def entropy_bounds(topk_logprobs: npt.NDArray[np.floating], vocabulary: int | None) -> Bounds:
    """Bounds from log-probabilities (n, k), descending, over a vocabulary of that size (None: unknown)."""
    logs = np.asarray(topk_logprobs, dtype=np.float64)
    chances = np.exp(logs)
    stored = -(chances * np.where(chances > 0, logs, 0.0)).sum(axis=1)
    tail = np.clip(1.0 - chances.sum(axis=1), 0.0, None)  # rounding can make it a little less than nothing
    last = chances[:, -1]
    full = np.floor(np.divide(tail, last, out=np.zeros_like(tail), where=last > 0))
    low = stored + full * _entropy_term(last) + _entropy_term(np.clip(tail - full * last, 0.0, None))
    if vocabulary is None:
        return Bounds(low, np.full(len(low), np.inf))
    others = max(1, vocabulary - logs.shape[1])
    return Bounds(low, np.maximum(low, stored + others * _entropy_term(tail / others)))


def _entropy_term(chance: FloatArray) -> FloatArray:
    """-p ln p, 0 at 0."""
    return -chance * np.log(np.where(chance > 0, chance, 1.0))


def frame_bounds(frame: Frame) -> Bounds:
    """Bounds of every token of `frame`, from all candidates that were stored."""
    size = vocabulary_size(frame.store)
    order = {entry.key: i for i, entry in enumerate(frame.entries)}

    def work(entry: Entry, columns: dict[str, npt.NDArray[np.float32]]) -> Bounds:
        i = order[entry.key]
        return entropy_bounds(columns["topk_logprobs"][frame.row[frame.bounds[i] : frame.bounds[i + 1]]], size)

    parts = list(frame.store.load_columns(["topk_logprobs"], work))
    return Bounds(np.concatenate([part.low for part in parts]), np.concatenate([part.high for part in parts]))


def vocabulary_size(store: ScoreStore) -> int | None:
    """Tokens of the tokenizer, as the run's signature says; None if it does not."""
    match = re.match(r"(\d+) tokens", str(store.signature["run"].get("tokenizer", "")))
    stored = store.token_bytes()
    return max([*([int(match[1])] if match else []), *([len(stored)] if stored else [])], default=None)
