"""From logits to what is kept of them: the target's log-probability and rank, and the top k."""

from __future__ import annotations

import numpy as np
import torch

from hesnr_tasks.backends.types import Scores

__all__ = ["Collector", "no_scores", "reduce_logits"]

_BLOCK = 64  # vocabulary entries per block of the two-stage top-k
_CACHE_BYTES = 1 << 21  # float32 logits worked on at a time on a CPU: they stay in its cache through all passes
_GPU_BYTES = 1 << 28


class Collector:
    """Takes the logits of `targets` (m,) token ids in order and keeps m × (2 + 2k) numbers of them."""

    def __init__(self, targets: torch.Tensor, k: int) -> None:
        self._targets, self._k = targets, k
        self._parts: list[tuple[torch.Tensor, ...]] = []
        self._at = 0

    def __call__(self, logits: torch.Tensor) -> None:
        """The logits (rows, vocabulary) of the next targets."""
        size = _CACHE_BYTES if logits.device.type == "cpu" else _GPU_BYTES
        step = max(1, size // (4 * logits.shape[1]))
        targets = self._targets[self._at : self._at + len(logits)].to(logits.device)
        for at in range(0, len(logits), step):
            self._parts.append(reduce_logits(logits[at : at + step].float(), targets[at : at + step], self._k))
        self._at += len(logits)

    def scores(self) -> Scores:
        """The numbers as arrays; all targets must have come."""
        if self._at != len(self._targets):
            raise RuntimeError(f"{self._at} of {len(self._targets)} positions were read")
        if not self._parts:
            return no_scores(self._k)
        columns = [torch.cat([part.cpu() for part in column]).numpy() for column in zip(*self._parts, strict=True)]
        logprob, rank, values, ids = columns
        return Scores(logprob, rank.astype(np.int32), values, ids.astype(np.int32))


def no_scores(k: int) -> Scores:
    """The scores of no targets."""
    flat, wide = np.zeros(0, np.float32), np.zeros((0, k), np.float32)
    return Scores(flat, flat.astype(np.int32), wide, wide.astype(np.int32))


def reduce_logits(
    logits: torch.Tensor, targets: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of float32 `logits` (rows, V): ln p and rank of `targets` (rows,), top-k ln p and ids (rows, k), falling.

    Natural logarithms. The rank is 1 + the number of entries strictly greater. A NaN anywhere in a row gives a NaN.
    """
    target = logits.gather(1, targets[:, None])
    values, ids = _top(logits, k)
    work = torch.gt(logits, target, out=torch.empty_like(logits))  # 0.0 or 1.0: far faster to sum than bool
    rank = work.sum(1).to(torch.int32) + 1
    torch.sub(logits, values[:, :1], out=work)
    total = work.exp_().sum(1, keepdim=True).log_().add_(values[:, :1])
    return (target - total).squeeze(1), rank, values - total, ids.to(torch.int32)


def _top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`logits.topk(k)`, by first finding the k blocks with the greatest maxima: one vectorised pass over memory."""
    rows, size = logits.shape
    whole = size // _BLOCK
    if whole < 4 * k:
        return logits.topk(k, dim=1)
    maxima = logits[:, : whole * _BLOCK].view(rows, whole, _BLOCK).amax(2)
    block = maxima.topk(k, dim=1).indices
    index = (block[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)).view(rows, k * _BLOCK)
    rest = torch.arange(whole * _BLOCK, size, device=logits.device).expand(rows, -1)
    index = torch.cat([index, rest], dim=1)
    values, at = logits.gather(1, index).topk(k, dim=1)
    return values, index.gather(1, at)
