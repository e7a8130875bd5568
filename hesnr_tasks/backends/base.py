"""What goes into a scoring backend and what comes out: token ids and positions in, arrays of nats out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.rendering import Rendered

__all__ = ["OVERFLOW", "Backend", "Scores", "ScoringRequest", "TokenScores", "TokenSequence"]

OVERFLOW = ("right", "error", "skip")
_NOTHING = np.uint64(0)


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One text of which a task wants some tokens. Requests on the same labelled text are read together."""

    name: str  # trajectory id, for messages
    rendered: Rendered
    codes: npt.NDArray[np.uint8]  # (characters,) label codes, see labels.py
    mask: np.uint64  # which labels are wanted (labels.label_mask)
    k: int
    overflow: str  # beyond the model's context: "right" (what fits counts), "error", "skip" (the task leaves it out)
    key: str  # hash of the labelled text
    extra_mask: np.uint64 = _NOTHING  # labels to score besides, for later questions; they never count as cut

    @property
    def scored(self) -> np.uint64:
        """Labels whose tokens are scored."""
        return self.mask | self.extra_mask


class TokenSequence(NamedTuple):
    """One text to read. Nothing after `ids[targets[-1]]` need be in it."""

    name: str  # trajectory id, for messages
    ids: npt.NDArray[np.int32]  # (n,), BOS included
    targets: npt.NDArray[np.int32]  # (m,), increasing, >= 1: positions of `ids` whose token is to be scored
    length: int = 0  # tokens of the whole text within the context, where that is more than `ids` has

    @property
    def whole(self) -> int:
        """Tokens of the whole text: what a model reads whose positions depend on the text's length."""
        return max(self.length, len(self.ids))


class Scores(NamedTuple):
    """Per target t: ln p(x_t | x_<t), exact rank, and the k most likely tokens, over the full vocabulary, in nats."""

    logprob: npt.NDArray[np.float32]  # (m,)
    rank: npt.NDArray[
        np.int32
    ]  # (m,): 1 + number of tokens strictly more likely; -n: beyond the n most likely, not known
    topk_logprobs: npt.NDArray[np.float32]  # (m, k), falling
    topk_ids: npt.NDArray[np.int32]  # (m, k)


class Backend(ABC):
    """A way to get `Scores` from one of lm-eval's models."""

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """The tokenizer, with the Hugging Face interface."""

    @property
    @abstractmethod
    def bos(self) -> bool | None:
        """What the user asked for about BOS (None: whatever the tokenizer does)."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The largest number of ids a passage may have."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What identifies the model in a signature: backend, model, revision, dtype …, JSON-able."""

    def canary(self) -> list[float] | None:
        """ln p of each token of a short fixed text, where nothing else tells whether the weights are the same."""
        return None

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes among which the documents are split; called by all of them."""
        return items

    @abstractmethod
    def score(
        self, passages: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, Scores]]:
        """Yield (index of the passage, its scores) as passages finish, in any order.

        `skip`: indices of passages that are not to be scored. They are given all the same, so that what is read
        together, and with it the last bits of the numbers, does not depend on what an earlier run finished.
        `progress` is called with numbers of tokens read; the sum is the number of tokens of all passages scored.
        Raises `ScoringError` naming the passage where a number cannot be had; never makes one up.
        """


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The scored tokens of one text: n wanted positions, in order. Logarithms are natural, values in nats."""

    key: str  # ScoringRequest.key
    position: npt.NDArray[np.int32]  # (n,) index into the token ids (BOS included)
    token_id: npt.NDArray[np.int32]  # (n,)
    turn: npt.NDArray[np.int32]  # (n,)
    label: npt.NDArray[np.uint64]  # (n,) see labels.py
    char_start: npt.NDArray[np.int32]  # (n,)
    char_end: npt.NDArray[np.int32]  # (n,)
    scores: Scores
    tokens_total: int  # tokens of the whole text
    labels_cut: npt.NDArray[np.uint64]  # (c,) labels of tokens asked for beyond the context limit, not scored
    run: Mapping[str, Any]  # Backend.describe() and how the text was tokenised

    def __str__(self) -> str:
        """Short: lm-eval writes this into its sample log."""
        return f"TokenScores({len(self.position)} of {self.tokens_total} tokens, text {self.key[:12]})"

    __repr__ = __str__

    def selected(self, mask: np.uint64) -> npt.NDArray[np.bool_]:
        """Which tokens count under `mask` (labels.label_mask); shape (n,)."""
        return (self.label & mask) != 0
