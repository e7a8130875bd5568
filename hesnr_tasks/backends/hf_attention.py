"""Attention of a chunk over a cache without paying for its mask.

A chunk of n tokens after `past` cached ones needs a causal mask with an offset. PyTorch's attention takes it as a
matrix n × (past + n): it is turned into numbers of that size in every layer, and the half above the diagonal is
computed for nothing. Without the mask the same is two calls, all of the past and the chunk causally, joined by their
log-sum-exps. On a CPU that is 2 to 3 times faster for large chunks, and it makes a shared prefix worth its reuse.

Only masks that are exactly causal are replaced; sliding windows, biases and anything else go their usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode

__all__ = ["CausalChunks"]

_attention = torch.nn.functional.scaled_dot_product_attention
_ROWS = 1024  # of a mask, compared at a time
_KINDS = 2  # masks to remember: the layers of one chunk share theirs, full or windowed


class CausalChunks(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` with a causal mask over a cache is computed without the mask."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], tuple[torch.Tensor, bool]] = {}  # the layers of a model share their masks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take over attention calls that are understood; leave the rest alone."""
        settings = dict(kwargs or {})
        if func is _attention and self._understood(args, settings):
            query, key, value = args
            return _attend(query, key, value, settings.get("scale"))
        return func(*args, **settings)

    def _understood(self, args: Sequence[Any], settings: Mapping[str, Any]) -> bool:
        mask = settings.get("attn_mask")
        plain = not (settings.get("is_causal") or settings.get("dropout_p") or settings.get("enable_gqa"))
        if mask is None or len(args) != 3 or not plain or mask.dtype != torch.bool or mask.dim() != 4:
            return False
        query, key, value = args
        same = query.dim() == 4 and query.shape[:2] == key.shape[:2] and query.shape[3] == value.shape[3]
        return same and query.shape[2] > 1 and mask.shape[2:] == (query.shape[2], key.shape[2]) and self._causal(mask)

    def _causal(self, mask: torch.Tensor) -> bool:
        key = (mask.data_ptr(), mask.shape, mask.stride())
        if key not in self._known:
            while len(self._known) >= _KINDS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = (mask, _is_causal(mask))  # holding the mask keeps its address its own
        return self._known[key][1]


def _is_causal(mask: torch.Tensor) -> bool:
    """Whether row i of every (n, m) matrix allows exactly the first m - n + i + 1 entries."""
    if any(stride for stride, size in zip(mask.stride()[:2], mask.shape[:2], strict=True) if size > 1):
        return False  # a matrix of its own for each text or head
    rows, columns = mask.shape[2:]
    last = torch.arange(columns - rows, columns, device=mask.device)[:, None]
    column = torch.arange(columns, device=mask.device)
    if columns < rows:
        return False
    return all(torch.equal(mask[0, 0, a : a + _ROWS], column <= last[a : a + _ROWS]) for a in range(0, rows, _ROWS))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    new, seen = query.shape[2], key.shape[2]
    if new == seen:
        return _attention(query, key, value, is_causal=True, scale=scale)
    if query.device.type != "cpu":
        return _attention(query, key, value, attn_mask=causal_lower_right(new, seen), scale=scale)
    past = seen - new
    before, weight_before = _flash(query, key[:, :, :past], value[:, :, :past], scale, causal=False)
    within, weight_within = _flash(query, key[:, :, past:], value[:, :, past:], scale, causal=True)
    share = torch.sigmoid(weight_before - weight_within).unsqueeze(-1)
    return torch.lerp(within.float(), before.float(), share).to(query.dtype)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log-sum-exp of its scores, (batch, heads, n)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    result, weight = kernel(query, key, value, 0.0, causal, scale=scale)
    return result, weight
