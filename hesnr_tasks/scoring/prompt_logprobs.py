"""From prompt log-probabilities, as engines and servers return them, to `Scores`: what does not add up is an error.

Of each target an engine tells its own log-probability and those of the k most likely tokens: k + 1 entries, or k where
the target is one of the k. These rows are put in one form here and checked: the ids are those that were sent, values
are log-probabilities of one distribution, none is missing. Nothing is ever filled in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scoring.types import Passage, Scores

__all__ = ["Rows", "row", "to_scores"]

_ABOVE_ZERO = 1e-3  # rounding of a log-softmax whose largest value is 0
_MASS = 1.01  # rounding of k probabilities


class Rows(NamedTuple):
    """The answer for the m targets of one passage: entry 0 of a row is the target, 1 … k the most likely, falling."""

    ids: npt.NDArray[np.int64]  # (m, k + 1)
    logprobs: npt.NDArray[np.float64]  # (m, k + 1), nats
    ranks: npt.NDArray[np.int64]  # (m,), as the engine counts; 0: it does not say


def row(target: int, entries: Iterable[tuple[int, float | None]], k: int) -> tuple[list[int], list[float]]:
    """One row of `Rows` from (id, log-probability) pairs in any order.

    Raises `ValueError`, with the reason in words, where the target or one of the k is missing or a value is null.
    """
    known: dict[int, float] = {}
    for token, value in entries:
        if value is None:
            raise ValueError(f"the log-probability of token {token} is null")
        known[token] = float(value)
    if target not in known:
        raise ValueError(f"the values are of other tokens than token {target}, which was sent")
    if len(known) < k:
        raise ValueError(f"{len(known)} tokens came back, {k} were asked for")
    likely = sorted(known, key=known.__getitem__, reverse=True)[:k]
    return [target, *likely], [known[target], *(known[token] for token in likely)]


def to_scores(passage: Passage, rows: Rows, source: str) -> Scores:
    """Check the rows of a passage and make `Scores` of them; `source` is who answered, for messages.

    The rank is 1 + the number of tokens strictly more likely. Within the top k it is counted here; beyond, it is the
    engine's own (vLLM counts equally likely tokens before the target), or 0 where it gives none.
    """
    logprob, top = rows.logprobs[:, 0], rows.logprobs[:, 1:]
    k = top.shape[1]
    within = logprob >= top[:, -1]
    _refuse(passage, source, rows.ids[:, 0] != passage.ids[passage.targets], "the values are of other tokens")
    _refuse(passage, source, (np.diff(top, axis=1) > 0).any(axis=1), "the top tokens are not in order")
    _refuse(passage, source, logprob > top[:, 0], "the target is more likely than the most likely token")
    _refuse(passage, source, top[:, 0] > _ABOVE_ZERO, "a log-probability is positive (are these raw logits?)")
    _refuse(passage, source, np.exp(np.minimum(top, 0)).sum(axis=1) > _MASS, "the top probabilities exceed 1 in sum")
    _refuse(passage, source, (rows.ranks > 0) & (rows.ranks <= k) & (logprob < top[:, -1]), "rank and top disagree")
    rank = np.where(within, 1 + (top > logprob[:, None]).sum(axis=1), rows.ranks)
    return Scores(
        logprob.astype(np.float32), rank.astype(np.int32), top.astype(np.float32), rows.ids[:, 1:].astype(np.int32)
    )


def _refuse(passage: Passage, source: str, wrong: npt.ArrayLike, why: str) -> None:
    bad = np.asarray(wrong)
    if bad.any():
        at = int(passage.targets[int(np.argmax(bad))])
        raise ScoringError(
            f"{source} gave values that cannot be right at token {at} of trajectory {passage.name!r}: {why} "
            f"({int(bad.sum())} of {len(bad)} scored tokens). Nothing was written for it; please report this with the "
            "versions of model and engine."
        )
