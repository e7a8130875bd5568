"""The slow way to score a text: all logits, float64, plain loops. Shares no code with the engine."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

__all__ = ["Row", "score_slowly"]


class Row(NamedTuple):
    """One target: ln p, 1 + number of strictly greater logits, and the k most likely as (ln p, id), falling."""

    logprob: float
    rank: int
    top: list[tuple[float, int]]


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
    return Row(logits[target] - total, rank, [(logits[i] - total, i) for i in order[:k]])
