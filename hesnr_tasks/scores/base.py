"""What is asked of a text, and what scoring it gives: ranks and log-probabilities, in nats, of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.trajectory.rendering import Rendered

OVERFLOW = ("right", "error", "skip")
_NO_LABELS = np.uint64(0)


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One text and the tokens of it that a task wants. Requests with equal keys are scored in one forward pass."""

    name: str  # trajectory id, for messages
    read: Callable[[], Rendered]  # the labelled text, which need not be in memory: there can be tens of thousands
    mask: np.uint64  # labels that the task wants (labels.label_mask)
    k: int
    overflow: str  # beyond the context: "right" (score what fits), "error", "skip" (the task leaves the text out)
    key: str  # hash of the labelled text
    characters: int  # of the text
    extra_mask: np.uint64 = _NO_LABELS  # further labels to score, for later tasks; never reported as truncated
    full_vocabulary: bool = False  # whether to compute `full_entropy` and `expected_rank`, where the backend can
    window: int | None = None  # tokens of context of the short-context pass, see `hidden_tokens`; None: all there are

    @property
    def scored(self) -> np.uint64:
        """Labels whose tokens are scored."""
        return self.mask | self.extra_mask


class SequenceScores(NamedTuple):
    """Per target t: ln p(x_t | x_<t), rank, and the k most likely tokens, over the full vocabulary."""

    logprob: npt.NDArray[np.float32]  # (m,) nats
    rank: npt.NDArray[np.int32]  # (m,) 1 + tokens strictly more likely; -n: beyond the n most likely, not known
    topk_logprobs: npt.NDArray[np.float32]  # (m, k) nats, descending
    topk_ids: npt.NDArray[np.int32]  # (m, k)
    full_entropy: npt.NDArray[np.float32] | None = None  # (m,) nats, of the whole vocabulary; None, NaN: not known
    expected_rank: npt.NDArray[np.float32] | None = None  # (m,) sum of rank times probability; None, NaN: not known

    @classmethod
    def concat(cls, parts: Sequence[SequenceScores]) -> SequenceScores:
        """Scores of consecutive targets as one; what some of them lack is NaN there."""
        if all(column is None for part in parts for column in part[4:]):
            return cls(*(np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True)))
        return cls(*(np.concatenate(column) for column in zip(*(part.padded() for part in parts), strict=True)))

    def padded(self) -> SequenceScores:
        """With NaN in place of columns that are not known."""
        unknown = np.full(len(self.logprob), np.nan, np.float32)
        columns: Any = (unknown if column is None else column for column in self)
        return SequenceScores(*columns)

    def take(self, index: Any) -> SequenceScores:
        """The scores of some targets."""
        columns: Any = (None if column is None else column[index] for column in self)
        return SequenceScores(*columns)

    @classmethod
    def empty(cls, k: int) -> SequenceScores:
        """The scores of no targets."""
        flat, wide = np.zeros(0, np.float32), np.zeros((0, k), np.float32)
        return cls(flat, flat.astype(np.int32), wide, wide.astype(np.int32))


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The n scored tokens of one text, in the order of the text."""

    key: str  # ScoringRequest.key
    position: npt.NDArray[np.int32]  # (n,) index into the token ids (BOS included)
    token_id: npt.NDArray[np.int32]  # (n,)
    turn: npt.NDArray[np.int32]  # (n,)
    label: npt.NDArray[np.uint64]  # (n,) see rendering.py
    char_start: npt.NDArray[np.int32]  # (n,)
    char_end: npt.NDArray[np.int32]  # (n,)
    scores: SequenceScores
    tokens_total: int  # tokens of the full text
    labels_cut: npt.NDArray[np.uint64]  # (c,) labels of wanted tokens beyond the context limit, not scored
    run: Mapping[str, Any]  # Backend.describe() and how the text was tokenised

    def __str__(self) -> str:
        """Short: lm-eval writes this into its sample log."""
        return f"TokenScores({len(self.position)} of {self.tokens_total} tokens, text {self.key[:12]})"

    __repr__ = __str__

    def selected(self, mask: np.uint64) -> npt.NDArray[np.bool_]:
        """Which tokens `mask` (labels.label_mask) selects; shape (n,)."""
        return (self.label & mask) != 0

    def count_cut(self, mask: np.uint64) -> int:
        """How many tokens that `mask` selects lie beyond the context."""
        return int(np.count_nonzero(self.labels_cut & mask))


def window_stride(window: int) -> int:
    """How many tokens a chunk of the short-context pass predicts: a quarter of the window, as in LongPPL."""
    return max(1, window // 4)


def hidden_tokens(position: npt.NDArray[np.integer], window: int, prefix: int) -> npt.NDArray[np.int64]:
    """How many tokens at the beginning of a text a short-context pass hides from each target.

    The truncated pass of LongPPL (arXiv 2410.23771; window 4 096, stride 1 024): the text is fed in chunks that begin
    at multiples of the stride, and each predicts the stride's tokens after its first `window`. So a target sees from
    `window` to window + stride - 1 tokens before it, or all where there are fewer.

    Args:
        position: of the targets in the token ids, BOS included.
        window: tokens of context.
        prefix: ids that the tokenizer puts before every text; they stay before every chunk.
    """
    stride = window_stride(window)
    return np.maximum(0, (position.astype(np.int64) - prefix - window) // stride) * stride
