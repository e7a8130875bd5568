"""The slow way to score a text: all logits, float64, plain loops. Shares no code with the engine."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["TOLERANCE", "Row", "assert_scores", "score_slowly"]

TOLERANCE = 1e-5  # of log-probabilities, beside 1 + |value|: about 80 float32 roundings, whatever the CPU adds up first


class Row(NamedTuple):
    """One target: ln p, 1 + number of strictly greater logits, and the k most likely as (ln p, id), falling."""

    logprob: float
    rank: int
    top: list[tuple[float, int]]
    ranks: range  # those that logits which differ by float32's noise would give


def assert_scores(scores: Any, rows: list[Row], tolerance: float = TOLERANCE, ranked: int | None = None) -> None:
    """The engine's scores are those of `rows`, as near as float32 gets on any CPU.

    `ranked`: how many ranks an engine tells that does not tell all (the others are its negative).
    """
    near = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(scores.logprob, [row.logprob for row in rows], **near)
    np.testing.assert_allclose(scores.topk_logprobs, [[value for value, _ in row.top] for row in rows], **near)
    for rank, row in zip(scores.rank.tolist(), rows, strict=True):
        assert rank in row.ranks or (ranked is not None and rank == -ranked and row.ranks[-1] > ranked)


def score_slowly(model: Any, ids: list[int], targets: list[int], k: int) -> list[Row]:
    """Feed the whole text to `model` at once and read off each target, in nats; among ties the target comes first."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return [_row(logits[target - 1].tolist(), ids[target], k) for target in targets]


def _row(logits: list[float], target: int, k: int) -> Row:
    greatest = max(logits)
    total = greatest + math.log(math.fsum(math.exp(value - greatest) for value in logits))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i != target, i))
    rank = 1 + sum(value > logits[target] for value in logits)
    noise = TOLERANCE * (1 + max(abs(value) for value in logits if math.isfinite(value)))  # others may be masked
    above = sum(value > logits[target] + noise for value in logits)
    ranks = range(1 + above, 1 + sum(value >= logits[target] - noise for value in logits))
    return Row(logits[target] - total, rank, [(logits[i] - total, i) for i in order[:k]], ranks)


def score_in_window(
    model: Any, ids: list[int], targets: list[int], k: int, window: int, prefix: int
) -> tuple[list[Row], list[int]]:
    """Each target from its own pass over its chunk, found by LongPPL's loop; and the tokens that it does not see."""
    rows, hidden = [], []
    text, stride = ids[prefix:], max(1, window // 4)
    for target in targets:
        place, start = target - prefix, 0
        if place >= window:
            start = next(s for s in range(0, len(text), stride) if s + window <= place < s + window + stride)
        chunk = ids[:prefix] + text[start : start + window + stride]
        rows += score_slowly(model, chunk, [target - start], k)
        hidden.append(start)
    return rows, hidden
