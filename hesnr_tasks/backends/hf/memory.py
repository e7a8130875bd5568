"""How much fits into memory: what is free, what a forward pass needs per token, and how long chunks may be."""

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

from hesnr_tasks.backends.hf.forward import STRATEGIES, ForwardMode, logits_slice
from hesnr_tasks.backends.hf.model import CausalLM, ForwardInputs, fresh_rope
from hesnr_tasks.errors import ScoringError

__all__ = ["MemoryLimits", "free_bytes", "is_out_of_memory"]

_log = logging.getLogger("hesnr_tasks")

_SAFE_TOKENS = 1024  # run at once without an estimate
_MIN_CHUNK = 128  # tokens; out of memory with chunks shorter than twice this is final
_GPU_SHARE = 0.8  # of the free memory of a GPU
_HOST_SHARE = 0.5  # of the free memory of the host …
_HOST_LIMIT = 1 << 29  # … but at most this: chunks of some thousand tokens are as fast as one pass
_BATCH_TOKENS = {"cpu": 4096}  # larger batches are not faster
_BATCH_TOKENS_GPU = 16384
_ADVICE = (
    "Free some memory, load the model with dtype=bfloat16, spread it with parallelize=True, or set a smaller "
    "max_length in --model_args."
)


class MemoryLimits:
    """Lengths of chunks and batches of one model in one mode: by an estimate, and by what happened when it was wrong.

    Args:
        model: the model.
        mode: how it is run.
        sample: (1, n) ids of some text, to measure memory with.
    """

    def __init__(self, model: CausalLM, mode: ForwardMode, sample: torch.Tensor) -> None:
        self._model, self._mode, self._sample = model, mode, sample
        self.longest = 1 << 62  # chunk length that memory has allowed so far

    def chunk(self, start: int, stop: int) -> int:
        """How many of the tokens `start` to `stop` to run at a time, the first `start` being in a cache."""
        n = stop - start
        if not self._mode.use_kv_cache:
            return n
        most = self.longest
        if self._mode.logits_strategy != "replay_lm_head":
            most = min(most, logits_slice(self._model))
        if stop > _SAFE_TOKENS and (start or not self._fits_at_once(n)):
            fits = max(_SAFE_TOKENS, int(self._budget(stop) / self._needs.chunk(1, stop)))
            most = min(most, 1 << (fits.bit_length() - 1))  # so that a little more memory does not change the numbers
        return max(1, min(self._model.together(min(n, most))))

    def _fits_at_once(self, n: int) -> bool:
        """Whether one pass, which keeps no cache, takes no more than the cache and the activations of chunks may."""
        return self._needs.one_pass(n) <= self._budget(n) + self._needs.cached_token * n

    def batch_tokens(self) -> int:
        """How many tokens of several texts to run in a batch, padding included."""
        enough = _BATCH_TOKENS.get(self._model.device.type, _BATCH_TOKENS_GPU)
        return min(enough, self.longest, max(_SAFE_TOKENS, int(self._budget(enough) / self._needs.chunk(1, enough))))

    def halve(self, chunk: int, name: str, reason: str) -> int:
        """A shorter chunk after memory ran out; raises `ScoringError` where there is none."""
        if not self._mode.use_kv_cache or chunk // 2 < _MIN_CHUNK:
            raise self._does_not_fit(name, reason)
        self.longest = chunk // 2
        _log.warning("out of memory with %d tokens at a time (%s); going on with %d", chunk, reason, self.longest)
        return self.longest

    def refuse_too_long(self, n: int, name: str) -> None:
        """Raise `ScoringError` where `n` tokens must be run in one pass and the host's memory is too small for that.

        A GPU reports that itself; a host would kill the process.
        """
        if self._mode.use_kv_cache or n <= _SAFE_TOKENS or self._model.device.type == "cuda":
            return
        needed, free = self._needs.one_pass(n), free_bytes(self._model.device)
        lacking = f"{n} tokens take {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free" if needed > free else ""
        if lacking := self._model.agreed_reason(lacking):
            raise self._does_not_fit(name, lacking)

    def _does_not_fit(self, name: str, reason: str) -> ScoringError:
        why = ""
        if not self._mode.use_kv_cache:
            why = ", and this model cannot be read in chunks"
            why += ": its positions depend on the length of the text" if self._mode.whole_texts else ""
        return ScoringError(f"trajectory {name!r} does not fit into memory ({reason}){why}. {_ADVICE}")

    @cached_property
    def _needs(self) -> _Needs:
        try:
            with self._model.no_grad(), fresh_rope(self._model.outer):
                return _measure(self._model, self._mode, self._sample)
        except Exception as error:
            if is_out_of_memory(error) and not self._model.sharded:
                raise ScoringError(f"not even a short text fits into memory beside the model. {_ADVICE}") from error
            raise

    def _budget(self, n: int) -> float:
        """Bytes for activations when `n` tokens are in the cache."""
        free = free_bytes(self._model.device) - self._needs.cached_token * n
        return _GPU_SHARE * free if self._model.device.type == "cuda" else min(_HOST_SHARE * free, _HOST_LIMIT)


# --- free memory ------------------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """Bytes still available on `device` (the least over all GPUs of a model spread over several)."""
    if device.type != "cuda":
        return min(_free_on_host(), _free_in_cgroup())
    own = torch.cuda.current_device() if device.index is None else device.index
    used = (i for i in range(torch.cuda.device_count()) if i == own or torch.cuda.memory_allocated(i) > 0)
    idle = {i: torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i) for i in used}
    return min(int(torch.cuda.mem_get_info(i)[0]) + bytes_idle for i, bytes_idle in idle.items())


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
    """Whether PyTorch reports too little memory (CPU allocators raise a bare RuntimeError)."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)
    )


# --- what a forward pass needs ----------------------------------------------------------------------------------------

_LENGTHS = (256, 512)  # tokens of the two forward passes that are measured


@dataclass(frozen=True)
class _Needs:
    """Bytes that a forward pass over `n` new tokens after `past` cached ones needs besides the weights."""

    per_token: float
    per_pair: float  # (new token, visible token) pairs, where attention scores or masks are materialised
    per_cached_pair: float  # the same over a cache, where a mask is built that one causal pass does without
    cached_token: float  # of the cache

    def one_pass(self, n: int) -> float:
        """Bytes for `n` tokens at once, without a cache."""
        return self.per_token * n + self.per_pair * n * n

    def chunk(self, n: int, total: int) -> float:
        """Bytes for the last `n` of `total` tokens, without the cache itself."""
        return (self.per_token + max(self.per_pair, self.per_cached_pair) * total) * n


def _measure(model: CausalLM, mode: ForwardMode, sample: torch.Tensor) -> _Needs:
    """Run the model on two short lengths and track what is allocated; masks follow from the configuration.

    Tensor sizes are polynomials of the length, so two short lengths and the kind of attention predict a long one.
    """
    short, longer = (sample.repeat(1, -(-n // sample.shape[1]))[:, :n] for n in _LENGTHS)

    def run(inputs: ForwardInputs) -> Any:
        last = torch.tensor([inputs.ids.shape[1] - 1], device=inputs.ids.device)
        return STRATEGIES[mode.logits_strategy](model, inputs, last, 1, lambda logits: None)

    def peak(ids: torch.Tensor) -> int:
        with AllocationTracker() as tracker:
            run(ForwardInputs(ids))
        return tracker.peak

    slope = (peak(longer) - peak(short)) / (_LENGTHS[1] - _LENGTHS[0])
    per_pair, per_cached_pair = _bytes_per_pair(model, maskless=mode.maskless_chunks)
    cache_bytes = _tensor_bytes(run(ForwardInputs(short, return_cache=True)), set()) if mode.use_kv_cache else 0
    return _Needs(max(slope, 1.0), per_pair, per_cached_pair, cache_bytes / _LENGTHS[0])


def _bytes_per_pair(model: CausalLM, *, maskless: bool) -> tuple[float, float]:
    config, width = model.config, torch.empty(0, dtype=model.autocast or model.dtype).element_size()
    kind = str(getattr(config, "_attn_implementation", None) or "eager")
    if kind.startswith("flash") or kind.startswith("kernels"):
        return 0.0, 0.0
    if kind != "sdpa":
        scores = 3.0 * int(getattr(config, "num_attention_heads", 1) or 1) * max(width, 4)
        return scores, scores
    mask = 1.0 + width  # boolean, and as numbers within the attention kernel
    windows = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return (mask if windows else 0.0), (1.0 if maskless and not windows else mask)


def _tensor_bytes(item: Any, seen: set[int]) -> int:
    """Bytes of all tensors reachable from a cache."""
    if id(item) in seen:
        return 0
    seen.add(id(item))
    if isinstance(item, torch.Tensor):
        return item.numel() * item.element_size()
    if not isinstance(item, (dict, list, tuple)):
        ours = type(item).__module__.startswith(("transformers", "transformers_modules"))
        item = getattr(item, "__dict__", {}) if ours else {}
    values = item.values() if isinstance(item, dict) else item
    return sum(_tensor_bytes(value, seen) for value in values)


class AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of tensors created inside the block that are alive, and keeps the maximum in `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count what it returned."""
        result = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._count, result)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.alive -= size
