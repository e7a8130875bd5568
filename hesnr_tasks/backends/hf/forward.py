"""Forward passes over some texts: at once or in chunks over a KV cache, with logits at selected positions only.

Logits are always computed by the model's own head. By hand, `head(hidden)` would forget what the model does around it:
soft-capping (Gemma 2), scaling (Cohere, Granite), extra layers. The strategies, best first:

* `replay_lm_head`: the backbone runs once; then the model runs again and again with a backbone that returns the next
  slice of the selected hidden states. Only this one bounds the number of logits in memory.
* `logits_to_keep`: the argument of that name. * `lm_head_hook`: the input of the head is cut.
* `full_logits`: all logits, of which the wanted are selected.
"""

from __future__ import annotations

import copy
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hesnr_tasks.backends.base import TokenSequence
from hesnr_tasks.backends.hf.model import CausalChunks, CausalLM, fresh_rope, replaced_forward
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scores.schema import SequenceScores

Forward = Callable[..., tuple[torch.Tensor, Any]]  # `CausalLM.forward` of some ids after a cache
LogitsConsumer = Callable[[torch.Tensor], None]  # takes the logits (rows, vocabulary) of the next wanted positions


@dataclass(frozen=True)
class ForwardMode:
    """How a model is run: what the self-check showed to agree with a plain forward pass."""

    logits_strategy: str  # a key of STRATEGIES
    use_kv_cache: bool = False  # prefill in chunks
    explicit_positions: bool = False  # chunks need position_ids
    maskless_chunks: bool = False  # chunks may attend without a mask (CausalChunks)
    share_prefixes: bool = False  # copies of a cache may be continued in different ways
    batch_texts: bool = False  # several texts in a batch, padded on the right
    batch_after_prefix: bool = False  # the same after copies of a cache
    whole_texts: bool = False  # positions depend on the text's length: each text whole, alone, from a fresh state


# --- logits at selected positions -------------------------------------------------------------------------------------


class _ReplayedBackbone:
    """The backbone's output, cut to the wanted positions, handed to the head `size` positions at a time."""

    def __init__(self, backbone: torch.nn.Module, wanted: torch.Tensor, size: int) -> None:
        self._forward, self._wanted, self._size = backbone.forward, wanted, size
        self._start = 0
        self.called = False

    @property
    def left(self) -> int:
        return len(self._wanted) - self._start

    def first(self, *args: Any, **kwargs: Any) -> Any:
        """Run the backbone; return its output with the first slice."""
        self.called = True
        self._output: Any = self._forward(*args, **kwargs)
        hidden = self._output[0]
        flat = hidden.reshape(-1, hidden.shape[-1])
        self._hidden = flat[self._wanted.to(flat.device)] if len(self._wanted) else flat[:1].clone()
        return self.next()

    def next(self, *_args: Any, **_kwargs: Any) -> Any:
        part = self._hidden[None, self._start : self._start + self._size]
        self._start = min(self._start + self._size, len(self._wanted))
        if isinstance(self._output, tuple):
            self._output = (part, *self._output[1:])
        else:
            self._output[next(iter(self._output))] = part
        return self._output


def _replay_lm_head(model: CausalLM, forward: Forward, wanted: torch.Tensor, size: int, emit: LogitsConsumer) -> Any:
    assert model.backbone is not None
    replay = _ReplayedBackbone(model.backbone, wanted, size)
    with _one_memory_for_logits(model) as release:
        with replaced_forward(model.backbone, replay.first):
            logits, cache = forward()
        if not replay.called:
            raise RuntimeError(f"{type(model.backbone).__name__} is not what the model runs")
        if len(wanted):
            emit(logits[0])
        with replaced_forward(model.backbone, replay.next):
            while replay.left:
                del logits
                release()
                logits, _ = model.forward(wanted.new_zeros((1, min(size, replay.left))))
                emit(logits[0])
    return cache


@contextmanager
def _one_memory_for_logits(model: CausalLM) -> Iterator[Callable[[], None]]:
    """On a CPU, let the head write each slice of logits over the last, once that is released by calling what is given.

    The system would clear fresh memory of that size, page by page, for each: a fifth of the head's time. A model that
    calls its head several times in one pass, and joins the pieces, gets the others in memory of their own.
    """
    head: Any = model.head
    space, in_use = torch.empty(0), False

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal space, in_use
        if in_use:
            return torch.nn.functional.linear(hidden, head.weight, head.bias)
        in_use = True
        flat, weight = hidden.reshape(-1, head.in_features), head.weight.t()
        if len(space) < len(flat):
            space = flat.new_empty((len(flat), head.out_features))
        out = space[: len(flat)]
        torch.mm(flat, weight, out=out) if head.bias is None else torch.addmm(head.bias, flat, weight, out=out)
        return out.view(*hidden.shape[:-1], -1)

    def release() -> None:
        nonlocal in_use
        in_use = False

    plain = type(head) is torch.nn.Linear and "forward" not in vars(head) and model.autocast is None
    with replaced_forward(head, forward) if plain and model.device.type == "cpu" else nullcontext():
        yield release


def _logits_to_keep(model: CausalLM, forward: Forward, wanted: torch.Tensor, size: int, emit: LogitsConsumer) -> Any:
    some = wanted if len(wanted) else wanted.new_zeros(1)  # an empty selection must not become "all"
    logits, cache = forward(logits_to_keep=some)
    return _emit_slices(logits[0], len(wanted), size, emit, cache)


def _lm_head_hook(model: CausalLM, forward: Forward, wanted: torch.Tensor, size: int, emit: LogitsConsumer) -> Any:
    some = wanted if len(wanted) else wanted.new_zeros(1)

    def cut(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, some.to(args[0].device)], *args[1:])

    assert model.head is not None
    handle = model.head.register_forward_pre_hook(cut)
    try:
        logits, cache = forward()
    finally:
        handle.remove()
    return _emit_slices(logits[0], len(wanted), size, emit, cache)


def _full_logits(model: CausalLM, forward: Forward, wanted: torch.Tensor, size: int, emit: LogitsConsumer) -> Any:
    logits, cache = forward()
    return _emit_slices(logits[0][wanted.to(logits.device)], len(wanted), size, emit, cache)


def _emit_slices(logits: torch.Tensor, count: int, size: int, emit: LogitsConsumer, cache: Any) -> Any:
    for start in range(0, count, size):
        emit(logits[start : start + size])
    return cache


STRATEGIES: dict[str, Callable[[CausalLM, Forward, torch.Tensor, int, LogitsConsumer], Any]] = {
    "replay_lm_head": _replay_lm_head,
    "logits_to_keep": _logits_to_keep,
    "lm_head_hook": _lm_head_hook,
    "full_logits": _full_logits,
}
"""(model, forward, wanted, size, emit): run the model, emit the logits of the wanted positions (indices into rows × n)
`size` at a time, and return the cache."""


def usable_strategies(model: CausalLM) -> list[str]:
    """The strategies this model offers, best first.

    `replay_lm_head` runs the model without its backbone; hooks that gather the parameters of a sharded model forbid it.
    """
    offered = {
        "replay_lm_head": bool(model.backbones) and not model.sharded,
        "logits_to_keep": "logits_to_keep" in model.parameters,
        "lm_head_hook": model.head is not None,
    }
    return [name for name in STRATEGIES if offered.get(name, True)]


# --- from logits to scores --------------------------------------------------------------------------------------------

_BLOCK = 64  # vocabulary entries of which the greatest is kept, to find the top k
_ROWS = 256  # of logits reduced at a time
_TILE_CPU, _TILE_GPU = (1 << 14, 1 << 17), (1 << 20, 1 << 26)
"""Columns, and logits in all, that are read at a time: on a CPU each core keeps its part through all passes."""
_SLICE_BYTES_CPU, _SLICE_BYTES_GPU = 1 << 27, 1 << 29  # float32 logits alive at a time


def logits_slice(model: CausalLM) -> int:
    """How many positions' logits are computed at a time."""
    size = _SLICE_BYTES_CPU if model.device.type == "cpu" else _SLICE_BYTES_GPU
    return max(16, size // (4 * model.vocabulary))


class LogitsReducer:
    """Takes the logits of `targets` (m,) token ids in order and keeps m × (2 + 2k) numbers of them, or 4 + 2k."""

    def __init__(self, targets: torch.Tensor, k: int, *, full_vocabulary: bool = False) -> None:
        self._targets, self._k, self._full_vocabulary = targets, k, full_vocabulary
        self._parts: list[tuple[torch.Tensor, ...]] = []
        self._count = 0

    def __call__(self, logits: torch.Tensor) -> None:
        """The logits (rows, vocabulary) of the next targets."""
        targets = self._targets[self._count : self._count + len(logits)].to(logits.device)
        for part, ids in zip(torch.split(logits, _ROWS), torch.split(targets, _ROWS), strict=True):
            self._parts.append(reduce_logits(part, ids, self._k, full_vocabulary=self._full_vocabulary))
        self._count += len(logits)

    def scores(self) -> SequenceScores:
        """The scores of all targets, which must have come."""
        if self._count != len(self._targets):
            raise RuntimeError(f"{self._count} of {len(self._targets)} positions were computed")
        if not self._parts:
            return SequenceScores.empty(self._k)
        return SequenceScores(
            *(torch.cat([part.cpu() for part in column]).numpy() for column in zip(*self._parts, strict=True))
        )


def reduce_logits(
    logits: torch.Tensor, targets: torch.Tensor, k: int, *, full_vocabulary: bool = False
) -> tuple[torch.Tensor, ...]:
    """What is kept of `logits` (rows, V), in the order of the fields of `SequenceScores`; float32, nats.

    Of `targets` (rows,): ln p, and the rank, 1 + the number of entries strictly greater. Of each row: the top-k ln p
    and ids (rows, k), descending; with `full_vocabulary` also the entropy and the expected rank, which cost several
    times as much as all the rest. A NaN anywhere in a row gives a NaN.

    Logits are read from memory once, tile by tile; sums are over the exponentials of what lies below a tile's greatest
    entry, so that none overflows, and are put together at the end.
    """
    rows, size = logits.shape
    on_cpu = logits.device.type == "cpu"
    width, area = _TILE_CPU if on_cpu else _TILE_GPU
    width = min(width, size)
    height = min(rows, max(1, area * (torch.get_num_threads() if on_cpu else 1) // width))
    target = logits.gather(1, targets[:, None]).float()
    maxima = target.new_empty((rows, -(-size // _BLOCK)))
    greatest, above, mass, gaps = target.new_empty((4, rows, -(-size // width)))
    space = target.new_empty(height * width)
    for row, (number, column) in product(range(0, rows, height), enumerate(range(0, size, width))):
        tile = logits[row : row + height, column : column + width].float()
        here, work = slice(row, row + height), space[: tile.numel()].view(tile.shape)
        whole = tile.shape[1] // _BLOCK * _BLOCK
        blocks = maxima[here, column // _BLOCK : -(-(column + width) // _BLOCK)]
        torch.amax(tile[:, :whole].view(len(tile), -1, _BLOCK), 2, out=blocks[:, : whole // _BLOCK])
        if whole < tile.shape[1]:
            torch.amax(tile[:, whole:], 1, out=blocks[:, -1])
        most = blocks.amax(1, keepdim=True).clamp_(min=_LEAST)
        greatest[here, number] = most[:, 0]
        torch.gt(tile, target[here], out=work)  # 0.0 or 1.0: far faster to sum than bool
        torch.sum(work, 1, out=above[here, number])
        torch.sub(tile, most, out=work)
        torch.sum(work.exp_(), 1, out=mass[here, number])
        if full_vocabulary:  # the gap of a masked entry (-inf): no weight, and near enough for 0 * gap
            torch.sum(torch.sub(most, tile).clamp_(max=_MASKED).mul_(work), 1, out=gaps[here, number])
    values, ids = _top_k(logits, k, maxima[:, : size // _BLOCK])
    below = values[:, :1].clamp(min=_LEAST) - greatest
    weight = below.neg().exp_()
    sum_of_all = (mass * weight).sum(1, keepdim=True)
    total = sum_of_all.log() + values[:, :1]
    kept = (target - total).squeeze(1), above.sum(1).to(torch.int32) + 1, values - total, ids.to(torch.int32)
    if not full_vocabulary:
        return kept
    # sums of positive terms: no digit is lost where the entropy is near 0
    gap = ((gaps + below * mass) * weight).sum(1, keepdim=True)
    entropy = sum_of_all.log() + gap / sum_of_all
    return *kept, entropy.squeeze(1), _expected_rank(logits, total)


_LEAST = -1e30  # stands for minus infinity where it is subtracted
_MASKED = 1e4  # nats
_SORTED_ROWS = 32  # at a time: torch.sort takes several times the memory of its input, with its indices


def _expected_rank(logits: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Sum of rank times probability, shape (rows,), of logits (rows, V) and the logarithms of their sums (rows, 1)."""
    ranks = torch.arange(logits.shape[1], 0, -1, device=logits.device, dtype=torch.float32)
    parts = []
    for part, of_part in zip(torch.split(logits, _SORTED_ROWS), torch.split(total, _SORTED_ROWS), strict=True):
        p = (part.float() - of_part).exp_()
        if p.device.type == "cpu":  # many times as fast as torch.sort
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(np.ndarray.sort, p.numpy()))
        else:
            p = p.sort(dim=1).values
        parts.append(p.mul_(ranks).sum(1))
    return torch.cat(parts)


def _top_k(logits: torch.Tensor, k: int, maxima: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`logits.float().topk(k)`, through the k blocks with the greatest `maxima` (rows, blocks); a rest is no block."""
    rows, blocks = maxima.shape
    if blocks < 4 * k:
        values, index = logits.topk(k, dim=1)
        return values.float(), index
    block = maxima.topk(k, dim=1).indices
    offsets = torch.arange(_BLOCK, device=logits.device)
    index = (block[:, :, None] * _BLOCK + offsets).view(rows, k * _BLOCK)
    rest = torch.arange(blocks * _BLOCK, logits.shape[1], device=logits.device).expand(rows, -1)
    index = torch.cat([index, rest], dim=1)
    values, place = logits.gather(1, index).topk(k, dim=1)
    return values.float(), index.gather(1, place)


# --- texts in chunks --------------------------------------------------------------------------------------------------


def split_range(start: int, stop: int, chunk: int) -> list[int]:
    """Edges `start` … `stop` of equal chunks of at most `chunk`; none is ever much shorter than the others."""
    pieces = -(-(stop - start) // chunk)
    return [start + (stop - start) * i // pieces for i in range(pieces + 1)]


def score_range(
    model: CausalLM,
    mode: ForwardMode,
    texts: Sequence[TokenSequence],
    k: int,
    edges: Sequence[int],
    cache: Any = None,
    *,
    return_cache: bool = False,
    slice_size: int = 0,
    progress: Callable[[int], object] = int,
) -> tuple[list[SequenceScores], Any]:
    """Run a batch of texts from `edges[0]`, up to where `cache` has come, to `edges[-1]`, chunk by chunk.

    Args:
        model: the model.
        mode: how to run it.
        texts: their targets lie in the range (see `TokenSequence.within`).
        k: candidates per target.
        edges: of the chunks.
        cache: of the tokens before; it is used up.
        return_cache: whether the caller wants the cache at the end.
        slice_size: positions whose logits are computed at a time (0: what memory is set aside for).
        progress: gets the numbers of tokens run, padding included.

    Returns:
        The scores of each text, and the cache if there is one.
    """
    chunks = list(pairwise(edges))
    with_cache = return_cache or cache is not None or len(chunks) > 1
    packed = np.zeros((len(texts), edges[-1] - edges[0]), dtype=np.int64)
    for row, text in enumerate(texts):  # padded on the right: later tokens cannot change earlier ones
        sequence = text.ids[edges[0] : edges[-1]]
        packed[row, : len(sequence)] = sequence
    ids = torch.from_numpy(packed).to(model.device)

    counts = [len(text.targets) for text in texts]
    text_row = np.repeat(np.arange(len(texts)), counts)
    source = np.concatenate([text.targets for text in texts]).astype(np.int64) - 1  # positions that predict targets
    inside = [np.flatnonzero((source >= start) & (source < stop)) for start, stop in chunks]
    order = np.concatenate(inside)  # of the targets, as the chunks bring them
    target_ids = np.concatenate([text.ids[text.targets] for text in texts])[order].astype(np.int64)
    full_vocabulary = any(text.full_vocabulary for text in texts)
    reducer = LogitsReducer(torch.from_numpy(target_ids).to(model.device), k, full_vocabulary=full_vocabulary)

    fresh = fresh_rope(model.outer) if mode.whole_texts else nullcontext()
    maskless = CausalChunks() if mode.maskless_chunks else nullcontext()
    with model.no_grad(), maskless, fresh:
        for (start, stop), chosen in zip(chunks, inside, strict=True):
            part = ids[:, start - edges[0] : stop - edges[0]]
            positions = with_cache and mode.explicit_positions
            forward = partial(model.forward, part, start, cache, return_cache=with_cache, explicit_positions=positions)
            wanted = torch.from_numpy(text_row[chosen] * (stop - start) + source[chosen] - start).to(model.device)
            size = slice_size or logits_slice(model)
            cache = STRATEGIES[mode.logits_strategy](model, forward, wanted, size, reducer)
            if with_cache and cache is None:
                raise RuntimeError("the model returned no cache")
            progress(part.numel())
        scores = reducer.scores()
    by_text = np.split(np.argsort(order), np.cumsum(counts)[:-1])
    return [scores.take(index) for index in by_text], cache


def copy_cache(cache: Any, rows: int = 1) -> Any:
    """A copy of a one-row cache, repeated for `rows` texts, that shares no memory with it."""
    if cache is None:
        return None
    with torch.inference_mode():
        copied = copy.deepcopy(cache)
        if rows > 1:
            copied.batch_repeat_interleave(rows)
        return copied


# --- memory: how long chunks may be -----------------------------------------------------------------------------------

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

    def run(ids: torch.Tensor, start: int = 0, cache: Any = None, *, return_cache: bool = False) -> Any:
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        positions = return_cache and mode.explicit_positions
        forward = partial(model.forward, ids, start, cache, return_cache=return_cache, explicit_positions=positions)
        return STRATEGIES[mode.logits_strategy](model, forward, last, 1, lambda logits: None)

    def peak(ids: torch.Tensor) -> int:
        with AllocationTracker() as tracker:
            run(ids)
        return tracker.peak

    slope = (peak(longer) - peak(short)) / (_LENGTHS[1] - _LENGTHS[0])
    cache_bytes, maskless = 0, False
    if mode.use_kv_cache:
        cache = run(short, return_cache=True)
        cache_bytes = _tensor_bytes(cache, set())
        with CausalChunks() if mode.maskless_chunks else nullcontext() as chunks:
            run(short, short.shape[1], cache, return_cache=True)
        maskless = chunks is not None and chunks.replaced
    per_pair, per_cached_pair = _bytes_per_pair(model, maskless=maskless)
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
    return (mask if windows else 0.0), (0.0 if maskless and not windows else mask)


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
        self._before: set[int] = set()  # weights and inputs, of which operations may return views

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then count what it returned."""
        torch.utils._pytree.tree_map_only(torch.Tensor, self._see, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._count, result)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self._storages and key not in self._before:
            self._before.add(key)
            weakref.finalize(storage, self._before.discard, key)  # the next storage may have its address

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or key in self._before:
            return
        self._storages.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.alive -= size
