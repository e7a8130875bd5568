"""How much fits: free memory, what a forward pass needs per token, and what to do when it was too much."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hesnr_tasks.backends.hf.forward import HEADS, Way, head_rows
from hesnr_tasks.backends.hf.model import Feed, Net, fresh_rope
from hesnr_tasks.errors import ScoringError

__all__ = ["Limits", "Needs", "free_bytes", "is_out_of_memory", "measure"]

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


# --- How much is read at a time: by an estimate of memory, and by what happened when it was wrong ---

_log = logging.getLogger("hesnr_tasks")

_SURELY_FITS = 1024  # tokens that are read at once without asking
_SMALLEST = 128  # tokens; with chunks shorter than this, out of memory is final
_SHARE = 0.8  # of the free memory of a GPU
_HOST_SHARE = 0.5  # of the free memory of the host …
_HOST_MOST = 1 << 29  # … but at most this: chunks of some thousand tokens are as fast as one pass
_ENOUGH = {"cpu": 4096}  # tokens side by side; more at a time are not faster
_ENOUGH_GPU = 16384
_ADVICE = (
    "Free some memory, load the model with dtype=bfloat16, spread it with parallelize=True, or set a smaller "
    "max_length in --model_args."
)


class Limits:
    """Of one model, read in one way. `sample`: (1, n) ids of some text, to measure memory with."""

    def __init__(self, net: Net, way: Way, sample: torch.Tensor) -> None:
        self._net, self._way, self._sample = net, way, sample
        self.longest = 1 << 62  # chunk length that memory has allowed so far

    def chunk(self, start: int, stop: int) -> int:
        """How many of the tokens `start` to `stop` to read at a time, the first `start` being in a cache."""
        n = stop - start
        if not self._way.cached:
            return n
        most = self.longest if self._way.head == "stub" else min(self.longest, head_rows(self._net))
        if stop > _SURELY_FITS and (start or not self._fits_at_once(n)):
            fits = max(_SURELY_FITS, int(self._budget(stop) / self._needs.chunk(1, stop)))
            most = min(most, 1 << (fits.bit_length() - 1))  # so that a little more memory does not change the numbers
        return max(1, min(self._net.together(min(n, most))))

    def _fits_at_once(self, n: int) -> bool:
        """Whether one pass, which keeps no cache, takes no more than the cache and the activations of chunks may."""
        return self._needs.one_pass(n) <= self._budget(n) + self._needs.cached_token * n

    def side_by_side(self) -> int:
        """How many tokens of several texts to read at once."""
        enough = _ENOUGH.get(self._net.device.type, _ENOUGH_GPU)
        return min(enough, self.longest, max(_SURELY_FITS, int(self._budget(enough) / self._needs.chunk(1, enough))))

    def halve(self, chunk: int, name: str, reason: str) -> int:
        """A shorter chunk after memory ran out; raises `ScoringError` where there is none."""
        if not self._way.cached or chunk // 2 < _SMALLEST:
            raise ScoringError(f"trajectory {name!r} does not fit into memory ({reason}){self._one_pass}. {_ADVICE}")
        self.longest = chunk // 2
        _log.warning("out of memory with %d tokens at a time (%s); going on with %d", chunk, reason, self.longest)
        return self.longest

    def refuse_too_long(self, n: int, name: str) -> None:
        """Raises `ScoringError` where `n` tokens must be read in one pass and the host's memory is too small for that.

        A GPU says so itself; a host would end the process.
        """
        if self._way.cached or n <= _SURELY_FITS or self._net.device.type == "cuda":
            return
        needs, free = self._needs.one_pass(n), free_bytes(self._net.device)
        lacking = f"{n} tokens take {needs / 1e9:.1f} GB, {free / 1e9:.1f} are free" if needs > free else ""
        if lacking := self._net.reason(lacking):
            raise ScoringError(f"trajectory {name!r} does not fit into memory ({lacking}){self._one_pass}. {_ADVICE}")

    @property
    def _one_pass(self) -> str:
        if self._way.cached:
            return ""
        return ", and this model cannot be read in chunks" + (
            ": its positions depend on the length of the text" if self._way.whole else ""
        )

    @cached_property
    def _needs(self) -> Needs:
        try:
            with self._net.no_grad(), fresh_rope(self._net.outer):
                way = self._way
                return measure(self._net, self._sample, head=way.head, cached=way.cached, unmasked=way.unmasked)
        except Exception as error:
            if is_out_of_memory(error) and not self._net.sharded:
                raise ScoringError(f"not even a short text fits into memory beside the model. {_ADVICE}") from error
            raise

    def _budget(self, n: int) -> float:
        """Bytes for activations when `n` tokens are in the cache."""
        free = free_bytes(self._net.device) - self._needs.cached_token * n
        return _SHARE * free if self._net.device.type == "cuda" else min(_HOST_SHARE * free, _HOST_MOST)
