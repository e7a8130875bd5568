"""What the k most likely tokens say about the entropy over the whole vocabulary: bounds, not the value.

Known are the k largest probabilities p_1 ≥ … ≥ p_k and so the mass r = 1 − Σ p of all other tokens, none of which is
more likely than p_k. Entropy is concave, so it is smallest where the tail is packed into as few tokens as that allows
(each p_k, one with what is left), and largest where it is spread evenly over the V − k others. Both ends are reached.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame
from hesnr_tasks.store import Entry, ScoreStore

__all__ = ["Bounds", "entropy_bounds", "frame_bounds", "vocabulary_size"]

FloatArray = npt.NDArray[np.float64]


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
    stored = store.vocabulary()
    sizes = [int(told[1])] if told else []
    return max([*sizes, *([len(stored)] if stored else [])], default=None)
