"""What a backend is: token ids and positions in, log-probabilities in nats out; and how it checks what engines answer.

Of each target an engine tells its own log-probability and those of the k most likely tokens: k + 1 entries, or k where
the target is one of the k. These rows are put in one form here and checked: the ids are those that were sent, values
are log-probabilities of one distribution over the vocabulary, ranks follow from values, none is missing or twice there.
Nothing is ever filled in.

A value of minus infinity is an error, also where it is written as -9999 (JSON has no infinity): of the target, because
then the text is impossible; of a candidate, because then fewer than k tokens are possible. Of other tokens, which no
answer names, it is none: models may mask a part of their vocabulary.
"""

from __future__ import annotations

import contextlib
import json
import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scores.schema import ScoringRequest, SequenceScores

_ABOVE_ZERO = 1e-4  # rounding of a log-softmax whose largest value is 0
_MASS = 1.01  # rounding of k probabilities
_LEAST_MASS = 0.98
_WHOLE, _EVIDENT, _EVIDENT_POSITIONS = 1e-4, 1e-3, 8  # a sum of 1 by chance; a k-th token that has others after it
_NOISE = 1e-3  # nats, between two tellings of one value
_IMPOSSIBLE = -9000.0  # servers write -9999 for minus infinity


class TokenSequence(NamedTuple):
    """The token ids of one text and the positions to score. Ids after the last target may be left out."""

    name: str  # trajectory id, for messages
    ids: npt.NDArray[np.int32]  # (n,), BOS included
    targets: npt.NDArray[np.int32]  # (m,) positions in `ids` whose token is scored; increasing, >= 1
    length: int = 0  # tokens of the full text within the context, where that is more than `ids` has
    full_vocabulary: bool = False  # see `ScoringRequest`

    @classmethod
    def of(
        cls, request: ScoringRequest, ids: npt.NDArray[np.int32], targets: npt.NDArray[np.int32], max_length: int
    ) -> TokenSequence:
        """What a model of `max_length` tokens reads of a text: the tokens up to the last one that is scored."""
        stop = int(targets[-1]) + 1 if len(targets) else 0
        return cls(request.name, ids[:stop], targets, min(len(ids), max_length), request.full_vocabulary)

    @property
    def full_length(self) -> int:
        """Tokens of the full text, which models need whose positions depend on the length of the text."""
        return max(self.length, len(self.ids))

    def within(self, start: int, stop: int) -> TokenSequence:
        """The same text with the targets that are predicted when tokens `start` to `stop` are fed."""
        first, last = np.searchsorted(self.targets, [start, stop], side="right")
        return self._replace(targets=self.targets[first:last])


def batches_of_tokens(sequences: Sequence[TokenSequence], skip: Collection[int], most: int) -> Iterator[list[int]]:
    """Indices of the sequences not in `skip`, in order, in groups of at most `most` tokens (or one sequence)."""
    group: list[int] = []
    size = 0
    for index, sequence in enumerate(sequences):
        if index in skip:
            continue
        if group and size + len(sequence.ids) > most:
            yield group
            group, size = [], 0
        group.append(index)
        size += len(sequence.ids)
    if group:
        yield group


class Backend(ABC):
    """Computes `SequenceScores` with one of lm-eval's models."""

    full_vocabulary = False  # whether it has all logits, so that it can compute what `ScoringRequest` calls so

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that lm-eval loaded, with the Hugging Face interface."""
        return self._lm.tokenizer

    @property
    def bos(self) -> bool | None:
        """Whether the user wants a BOS token, by `add_bos_token` of --model_args (None: the tokenizer decides)."""
        return self._lm.add_bos_token

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The largest number of ids a sequence may have."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What identifies the model in a signature: backend, model, revision, dtype …; JSON-able."""

    def canary(self) -> list[float] | None:
        """ln p of each token of a short fixed text, where the weights cannot be identified otherwise."""
        return None

    def gather(self, items: list[Any]) -> list[Any]:
        """Concatenate the items of all processes that share the documents; called by all of them."""
        return items

    @abstractmethod
    def score(
        self, sequences: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, SequenceScores]]:
        """Yield (index, scores) of each sequence as it finishes, in any order.

        Args:
            sequences: all texts of the run, so that batches and shared prefixes, and with them the last bits of the
                numbers, do not depend on what an earlier run finished. Each access may read one from the disk: hold
                few at a time.
            k: candidates per token.
            progress: called with numbers of tokens; they sum to the tokens of the sequences scored.
            skip: indices not to score.

        Raises:
            ScoringError: a number cannot be computed; names the sequence. Numbers are never made up.
        """


# --- prompt log-probabilities of engines and servers ------------------------------------------------------------------


class Row(NamedTuple):
    """The answer for one target: entry 0 is the target, 1 … k are the most likely, falling."""

    ids: list[int]
    logprobs: list[float]
    rank: int  # as the engine counts, or by the values; -n: beyond the n most likely


class Rows(NamedTuple):
    """The answer for the m targets of one sequence; see `Row`."""

    ids: npt.NDArray[np.int64]  # (m, k + 1)
    logprobs: npt.NDArray[np.float64]  # (m, k + 1), nats
    ranks: npt.NDArray[np.int64]  # (m,)


def number(value: Any, what: str) -> float:
    """A log-probability from decoded JSON. Raises `ValueError` for what is none, in words; `what` it is of."""
    if value is None:
        raise ValueError(f"the log-probability of {what} is null")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"the log-probability of {what} is {str(value)[:40]!r}, not a number")
    if not -1e30 < value < 1e30 or value <= _IMPOSSIBLE:  # false for NaN, and safe for integers of any size
        size = (
            "NaN or infinite" if isinstance(value, float) and not math.isfinite(value) else "minus infinity (or worse)"
        )
        raise ValueError(f"the log-probability of {what} is {size}: has the model diverged, or are tokens masked?")
    if value > _ABOVE_ZERO:
        raise ValueError(f"the log-probability of {what} is positive, {value:.4g} (raw logits, or probabilities?)")
    return float(value)


def same_value(a: float, b: float) -> bool:
    """Whether two tellings of one log-probability agree up to rounding."""
    return abs(a - b) <= _NOISE


def row(target: int, entries: Iterable[tuple[int, float, int | None]], k: int) -> Row:
    """One row from (id, log-probability, the engine's rank or None) in any order, the target among them.

    Raises `ValueError`, with the reason in words, where the entries contradict each other or do not hold the k most
    likely tokens for certain: k entries of which the target is the last may be k - 1 and the target.
    """
    values: dict[int, float] = {}
    ranks: dict[int, int] = {}
    for token, value, rank in entries:
        if token in values:
            raise ValueError(f"token {token} is there twice")
        values[token] = value
        if rank is not None:
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank < 1 << 31:
                raise ValueError(f"the rank of token {token} is {str(rank)[:40]!r}: ranks begin with 1")
            ranks[token] = rank
    if target not in values:
        raise ValueError(f"the values are of other tokens than token {target}, which was sent")
    likely, own = sorted(values, key=values.__getitem__, reverse=True), values[target]
    falling = sorted(-value for value in values.values())
    greater = bisect_left(falling, -own)
    last = greater == len(values) - 1
    tied = -own >= falling[-1] - _NOISE  # as likely as the last that came back: others, as likely, may not have
    for token, claimed in ranks.items():
        _refuse_other_rank(token, values[token], claimed, falling, beyond=tied and token == target)
    rank, certain = 1 + greater, len(values)
    if last and ranks.get(target) != rank:
        certain = greater
        rank = ranks.get(target, -certain)
    if certain < k:
        own_too = len(values) >= k
        came = f"{certain} tokens came back for certain (the last of {len(values)} is the prompt's)" if own_too else ""
        advice = f"; the server must give one more (vllm serve: --max-logprobs {k + 1})" if own_too else ""
        raise ValueError(f"{came or f'{len(values)} tokens came back'}, {k} were asked for{advice}")
    return Row([target, *likely[:k]], [own, *(values[token] for token in likely[:k])], rank)


def _refuse_other_rank(token: int, value: float, rank: int, falling: list[float], *, beyond: bool) -> None:
    """A rank lies between the tokens clearly before and those not clearly after; `beyond`: more may come before.

    `falling`: the negated values of all tokens that came back, in order.
    """
    least, most = 1 + bisect_left(falling, -value - _NOISE), bisect_right(falling, -value + _NOISE)
    if rank < least or (rank > most and not beyond):
        raise ValueError(f"rank and top disagree: token {token} has rank {rank}, by the values it is {least} to {most}")


def stack(rows: list[Row]) -> Rows:
    """The rows of one sequence."""
    ids, logprobs, ranks = zip(*rows, strict=True)
    return Rows(np.array(ids, dtype=np.int64), np.array(logprobs, dtype=np.float64), np.array(ranks, dtype=np.int64))


def to_scores(sequence: TokenSequence, rows: Rows, source: str, vocabulary: int) -> SequenceScores:
    """Check the rows of a sequence and make `SequenceScores` of them; `source` is who answered, for messages.

    The rank is 1 + the number of tokens strictly more likely. Within the top k it is counted here; beyond, it is the
    engine's own (vLLM counts equally likely tokens before the target), or -n where it gives none. `vocabulary`: more
    ids than that no model of this tokenizer has.
    """
    logprob, top = rows.logprobs[:, 0], rows.logprobs[:, 1:]
    k = top.shape[1]
    within = logprob >= top[:, -1]
    rank = np.where(within, 1 + (top > logprob[:, None]).sum(axis=1), rows.ranks)
    mass = np.exp(np.minimum(top, 0)).sum(axis=1)
    floor, own = np.exp(np.minimum(top[:, -1], 0)), np.exp(np.minimum(logprob, 0))
    ranked = ~within & (rows.ranks > k)
    between = np.where(ranked, rows.ranks - k - 1, 0)  # tokens neither less likely than the target nor among the top
    least = mass + np.where(within, 0, (between + 1) * own)
    after = np.maximum(vocabulary - rows.ranks + 1, 0) * own  # the target and all tokens less likely
    most = mass + np.where(ranked, between * floor + after, (vocabulary - k) * floor)
    evident = floor > _EVIDENT
    renormalised = evident & (np.abs(mass - 1) < _WHOLE)
    renormalised &= (renormalised == evident).all() & (evident.sum() >= _EVIDENT_POSITIONS)
    by_rank = np.where(rank > 0, rank, 1) * np.exp(np.minimum(logprob, 0))
    ids = np.sort(rows.ids[:, 1:], axis=1)
    is_target, apart = rows.ids[:, 1:] == rows.ids[:, :1], np.abs(top - logprob[:, None])
    for wrong, why in (
        (rows.ids[:, 0] != sequence.ids[sequence.targets], "the values are of other tokens"),
        (~np.isfinite(rows.logprobs).all(axis=1), "a value is NaN or infinite"),
        ((rows.logprobs <= _IMPOSSIBLE).any(axis=1), "a log-probability stands for minus infinity"),
        (((rows.ids < 0) | (rows.ids >= vocabulary)).any(axis=1), f"an id is beyond the vocabulary ({vocabulary})"),
        ((np.diff(ids, axis=1) == 0).any(axis=1), "a token is there twice among the most likely"),
        ((is_target & (apart > _NOISE)).any(axis=1), "the target's value differs from its value among the most likely"),
        ((np.diff(top, axis=1) > 0).any(axis=1), "the top tokens are not in order"),
        (logprob > top[:, 0], "the target is more likely than the most likely token"),
        (within & ~is_target.any(axis=1) & (logprob > top[:, -1] + _NOISE),
         "the target is more likely than a token of the top, and not in it"),
        (top[:, 0] > _ABOVE_ZERO, "a log-probability is positive (are these raw logits, or probabilities?)"),
        (mass > _MASS, "the top probabilities exceed 1 in sum"),
        (by_rank > _MASS, "as many tokens as the rank says cannot be so likely"),
        (least > _MASS, "the top probabilities and those up to the target's rank exceed 1 in sum"),
        (rows.ranks > vocabulary, f"a rank is beyond the vocabulary ({vocabulary})"),
        (renormalised, "the top probabilities sum to 1, as if nothing came after them (are they renormalised?)"),
        (most < _LEAST_MASS,
         "the probabilities of the whole vocabulary cannot sum to 1 (another base, temperature or shift?)"),
        ((rows.ranks > 0) & (rows.ranks <= k) & (logprob < top[:, -1]), "rank and top disagree"),
        (within & (rows.ranks > k) & (logprob > top[:, -1]), "rank and top disagree"),
    ):  # fmt: skip
        bad = np.asarray(wrong)
        if bad.any():
            position = int(sequence.targets[int(np.argmax(bad))])
            raise ScoringError(
                f"{source} gave values that cannot be right at token {position} of trajectory {sequence.name!r}: {why} "
                f"({int(bad.sum())} of {len(bad)} scored tokens). Nothing was written for it; please report this with "
                "the versions of model and engine."
            )
    clipped = np.minimum(rows.logprobs, 0.0).astype(np.float32)
    return SequenceScores(clipped[:, 0], rank.astype(np.int32), clipped[:, 1:], rows.ids[:, 1:].astype(np.int32))


def vocabulary_bound(tokenizer: Any) -> int:
    """More ids than that no model of this tokenizer has.

    What the `config.json` beside the tokenizer says; where there is none, the tokenizer's ids and some that models add
    to make the number divisible.
    """
    count = len(tokenizer)
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        config = json.loads((Path(str(tokenizer.name_or_path)) / "config.json").read_text())
        sizes = [part.get("vocab_size") for part in (config, *config.values()) if isinstance(part, dict)]
        return max(count, *(size for size in sizes if isinstance(size, int)))
    return count + max(1024, count // 50)
