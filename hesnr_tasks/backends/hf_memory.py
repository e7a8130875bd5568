"""How much fits: free memory, what a forward pass needs per token, and what to do when it was too much."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hesnr_tasks.backends.hf_heads import HEADS
from hesnr_tasks.backends.hf_net import Feed, Net

__all__ = ["Needs", "free_bytes", "is_out_of_memory", "measure"]

_LENGTHS = (256, 512)  # tokens of the two forward passes that are measured


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on `device` (the least over all GPUs of a model spread over several)."""
    if device.type == "cuda":
        return min(_free_on_gpu(index) for index in range(torch.cuda.device_count()) if _in_use(index, device))
    return min(_free_on_host(), _free_in_cgroup())


def _in_use(index: int, device: torch.device) -> bool:
    own = torch.cuda.current_device() if device.index is None else device.index
    return index == own or torch.cuda.memory_allocated(index) > 0


def _free_on_gpu(index: int) -> int:
    idle = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return int(torch.cuda.mem_get_info(index)[0]) + idle


def _free_on_host() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_in_cgroup() -> int:
    """What a container's limit leaves (version 2 control groups); without a limit, no bound."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    return (1 << 62) if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch says there was not enough memory (CPU allocators raise a bare RuntimeError)."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)
    )


@dataclass(frozen=True)
class Needs:
    """Bytes a forward pass over `n` new tokens after `past` cached ones needs on top of the weights."""

    per_token: float
    per_pair: float  # (new token, visible token) pairs, where attention scores or masks are materialised
    per_cached_pair: float  # the same once a cache is there: a mask is then built that one causal pass does without
    cached_token: float  # what the cache keeps of a token

    def one_pass(self, n: int) -> float:
        """Bytes for `n` tokens at once, without a cache."""
        return self.per_token * n + self.per_pair * n * n

    def chunk(self, n: int, total: int) -> float:
        """Bytes for the last `n` of `total` tokens, without the cache itself."""
        return (self.per_token + max(self.per_pair, self.per_cached_pair) * total) * n


def measure(net: Net, ids: torch.Tensor, *, head: str, cached: bool, unmasked: bool) -> Needs:
    """Run the model on two short lengths and see what is allocated; masks follow from the configuration.

    `ids`: (1, n) valid ids, repeated as needed. `head`: the way to logits, of which only one is asked for. Tensor sizes
    are polynomials of the length, so that two short lengths and the kind of attention tell what a long one needs.
    """
    short, longer = (_of_length(ids, n) for n in _LENGTHS)
    slope = (_peak(net, longer, head) - _peak(net, short, head)) / (_LENGTHS[1] - _LENGTHS[0])
    pair, cached_pair = _per_pair(net, unmasked=unmasked)
    kept = _tensor_bytes(_one_logit(net, Feed(short, keep_cache=True), head), set()) / _LENGTHS[0] if cached else 0.0
    return Needs(max(slope, 1.0), pair, cached_pair, kept)


def _of_length(ids: torch.Tensor, n: int) -> torch.Tensor:
    return ids.repeat(1, -(-n // ids.shape[1]))[:, :n]


def _peak(net: Net, ids: torch.Tensor, head: str) -> int:
    with _Tracker() as tracker:
        _one_logit(net, Feed(ids), head)
    return tracker.peak


def _one_logit(net: Net, feed: Feed, head: str) -> Any:
    """Read and give the cache."""
    last = torch.tensor([feed.ids.shape[1] - 1], device=feed.ids.device)
    return HEADS[head](net, feed, last, 1, lambda logits: None)


def _per_pair(net: Net, *, unmasked: bool) -> tuple[float, float]:
    config, width = net.config, torch.empty(0, dtype=net.autocast or net.dtype).element_size()
    kind = str(getattr(config, "_attn_implementation", None) or "eager")
    if kind.startswith("flash") or kind.startswith("kernels"):
        return 0.0, 0.0
    if kind != "sdpa":
        scores = 3.0 * int(getattr(config, "num_attention_heads", 1) or 1) * max(width, 4)
        return scores, scores
    mask = 1.0 + width  # boolean, and as numbers within the attention kernel
    windows = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return (mask if windows else 0.0), (1.0 if unmasked and not windows else mask)


def _tensor_bytes(item: Any, seen: set[int]) -> int:
    """Bytes of all tensors reachable from a cache."""
    if id(item) in seen:
        return 0
    seen.add(id(item))
    if isinstance(item, torch.Tensor):
        return item.numel() * item.element_size()
    if isinstance(item, dict):
        return sum(_tensor_bytes(value, seen) for value in item.values())
    if isinstance(item, (list, tuple)):
        return sum(_tensor_bytes(value, seen) for value in item)
    known = type(item).__module__.startswith(("transformers", "transformers_modules"))
    return _tensor_bytes(vars(item), seen) if known and hasattr(item, "__dict__") else 0


class _Tracker(TorchDispatchMode):
    """Sums the bytes of tensors made inside the block that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count what it returned."""
        result = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._count, result)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size
