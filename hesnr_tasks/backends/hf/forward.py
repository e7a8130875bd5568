"""From logits to what is kept of them: the target's log-probability and rank, and the top k."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hesnr_tasks.backends.base import Scores
from hesnr_tasks.backends.hf.model import CausalChunks, Feed, Net, fresh_rope, replaced_forward

__all__ = [
    "HEADS",
    "Collector",
    "Text",
    "Way",
    "copy_cache",
    "head_rows",
    "join",
    "no_scores",
    "read",
    "reduce_logits",
    "select",
    "split",
    "usable_heads",
]

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


# --- Ways to get logits at some positions only, always through the model's own head ---

Sink = Callable[[torch.Tensor], None]  # takes the logits (rows, vocabulary) of the next wanted positions, in order
Head = Callable[[Net, Feed, torch.Tensor, int, Sink], Any]


def _stub(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    slices = _Slices(net, wanted, rows)
    with replaced_forward(slices.body, slices.read):
        logits, cache = net.call(feed)
    if not slices.read_once:
        raise RuntimeError(f"{type(slices.body).__name__} is not what the model runs")
    if len(wanted):
        sink(logits[0])
    with replaced_forward(slices.body, slices.next):
        while slices.left:
            del logits
            dummy = feed.ids.new_zeros((1, min(rows, slices.left)))
            logits, _ = net.call(Feed(dummy))
            sink(logits[0])
    return cache


class _Slices:
    """The body's output, cut to the wanted positions (indices into rows × n), given to the wrapper `rows` at a time."""

    def __init__(self, net: Net, wanted: torch.Tensor, rows: int) -> None:
        assert net.body is not None
        self.body, self._forward = net.body, net.body.forward
        self._wanted, self._rows = wanted, rows
        self._given = 0
        self.read_once = False
        self._hidden: torch.Tensor
        self._output: Any

    @property
    def left(self) -> int:
        return len(self._wanted) - self._given

    def read(self, *args: Any, **kwargs: Any) -> Any:
        self.read_once = True
        self._output = self._forward(*args, **kwargs)
        hidden = self._output[0]
        flat = hidden.reshape(-1, hidden.shape[-1])
        self._hidden = flat[self._wanted.to(flat.device)] if len(self._wanted) else flat[:1].clone()
        return self.next()

    def next(self, *_args: Any, **_kwargs: Any) -> Any:
        part = self._hidden[None, self._given : self._given + self._rows]
        self._given = min(self._given + self._rows, len(self._wanted))
        if isinstance(self._output, tuple):
            self._output = (part, *self._output[1:])
        else:
            self._output[next(iter(self._output))] = part
        return self._output


def _keep(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    some = wanted if len(wanted) else wanted.new_zeros(1)  # nothing wanted must not become "all"
    logits, cache = net.call(feed, logits_to_keep=some)
    return _pour(logits[0], wanted, rows, sink, cache)


def _hook(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    some = wanted if len(wanted) else wanted.new_zeros(1)

    def cut(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, some.to(args[0].device)], *args[1:])

    assert net.head is not None
    handle = net.head.register_forward_pre_hook(cut)
    try:
        logits, cache = net.call(feed)
    finally:
        handle.remove()
    return _pour(logits[0], wanted, rows, sink, cache)


def _plain(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    logits, cache = net.call(feed)
    return _pour(logits[0][wanted.to(logits.device)], wanted, rows, sink, cache)


def _pour(logits: torch.Tensor, wanted: torch.Tensor, rows: int, sink: Sink, cache: Any) -> Any:
    for at in range(0, len(wanted), rows):
        sink(logits[at : at + rows])
    return cache


HEADS: dict[str, Head] = {"stub": _stub, "keep": _keep, "hook": _hook, "plain": _plain}
"""Each reads a feed, pours the logits of the wanted positions into the sink, and returns the cache."""


def usable_heads(net: Net) -> list[str]:
    """The ways this model offers, best first.

    `stub` runs the wrapper without its body; hooks that gather the parameters of a sharded model do not allow that.
    """
    offered = {
        "stub": bool(net.bodies) and not net.sharded,
        "keep": "logits_to_keep" in net.takes,
        "hook": net.head is not None,
    }
    return [name for name in HEADS if offered.get(name, True)]


# --- Reading texts: in one pass or in chunks that hand a cache on, and only the logits that are wanted ---

_ROW_BYTES = {"cpu": 1 << 27}  # float32 logits alive at a time
_ROW_BYTES_GPU = 1 << 29


@dataclass(frozen=True)
class Way:
    """How a model is read: what the self-check found to agree with the plain forward pass."""

    head: str  # a key of HEADS
    cached: bool = False  # in chunks, with a cache
    positions: bool = False  # chunks need explicit position_ids
    unmasked: bool = False  # chunks may attend without a mask (CausalChunks)
    shared: bool = False  # copies of a cache may be continued in different ways
    rows: bool = False  # several texts at once, padded on the right
    shared_rows: bool = False  # several texts at once after copies of a cache
    whole: bool = False  # positions depend on the text's length: all of it in one pass, alone, from a fresh state


class Text(NamedTuple):
    """Ids of a text (n,) and the positions in it whose token is to be scored, increasing."""

    ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]

    def within(self, start: int, stop: int) -> Text:
        """The same text with the targets that are predicted when the tokens `start` to `stop` are read."""
        first, last = np.searchsorted(self.targets, [start, stop], side="right")
        return Text(self.ids, self.targets[first:last])


def head_rows(net: Net) -> int:
    """How many positions' logits are made at a time."""
    size = _ROW_BYTES.get(net.device.type, _ROW_BYTES_GPU)
    return max(16, size // (4 * net.vocabulary))


def split(start: int, stop: int, chunk: int) -> list[int]:
    """Borders `start` … `stop` of equal chunks of at most `chunk`; none is ever much shorter than the others."""
    pieces = -(-(stop - start) // chunk)
    return [start + (stop - start) * i // pieces for i in range(pieces + 1)]


def read(
    net: Net,
    way: Way,
    texts: Sequence[Text],
    k: int,
    edges: Sequence[int],
    cache: Any = None,
    *,
    keep_cache: bool = False,
    rows: int = 0,
    progress: Callable[[int], object] = int,
) -> tuple[list[Scores], Any]:
    """Read `texts` side by side from `edges[0]`, which `cache` has reached, to `edges[-1]`, chunk by chunk.

    Targets must lie in that range (see `Text.within`). Gives the scores of each text, and the cache if there is one.
    `rows`: positions whose logits are made at a time (0: as many as memory is set aside for). `progress` gets the
    number of tokens read, padding included.
    """
    chunks = list(pairwise(edges))
    want_cache = keep_cache or cache is not None or len(chunks) > 1
    ids, wanted = _pack(texts, edges[0], edges[-1]).to(net.device), _Wanted(texts, chunks)
    rows = rows or head_rows(net)
    collector = Collector(wanted.ids.to(net.device), k)
    fresh = fresh_rope(net.outer) if way.whole else nullcontext()
    with net.no_grad(), CausalChunks() if way.unmasked else nullcontext(), fresh:
        for (start, stop), indices in zip(chunks, wanted.indices, strict=True):
            part = ids[:, start - edges[0] : stop - edges[0]]
            feed = Feed(part, start, cache, want_cache, positions=want_cache and way.positions)
            cache = HEADS[way.head](net, feed, indices.to(net.device), rows, collector)
            if want_cache and cache is None:
                raise RuntimeError("the model returned no cache")
            progress(part.numel())
        return wanted.per_text(collector.scores()), cache


def copy_cache(cache: Any, rows: int = 1) -> Any:
    """A copy of a one-row cache, repeated for `rows` texts, that shares no memory with it."""
    if cache is None:
        return None
    with torch.inference_mode():
        made = copy.deepcopy(cache)
        if rows > 1:
            made.batch_repeat_interleave(rows)
        return made


def join(parts: Sequence[Scores]) -> Scores:
    """Scores of consecutive targets as one."""
    return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def select(scores: Scores, at: npt.NDArray[np.intp]) -> Scores:
    """The scores of some targets."""
    return Scores(scores.logprob[at], scores.rank[at], scores.topk_logprobs[at], scores.topk_ids[at])


def _pack(texts: Sequence[Text], start: int, stop: int) -> torch.Tensor:
    """Ids (rows, stop - start), padded on the right: what comes later cannot change what comes before."""
    packed = np.zeros((len(texts), stop - start), dtype=np.int64)
    for row, text in enumerate(texts):
        part = text.ids[start:stop]
        packed[row, : len(part)] = part
    return torch.from_numpy(packed)


class _Wanted:
    """The wanted positions of several texts, in the order in which the chunks bring them.

    `indices`: per chunk, into its (rows × length) positions. `ids`: the target tokens, in the same order.
    """

    def __init__(self, texts: Sequence[Text], chunks: Sequence[tuple[int, int]]) -> None:
        self._counts = [len(text.targets) for text in texts]
        row = np.repeat(np.arange(len(texts)), self._counts)
        source = np.concatenate([text.targets for text in texts]).astype(np.int64) - 1
        inside = [np.flatnonzero((source >= start) & (source < stop)) for start, stop in chunks]
        self.indices = [
            torch.from_numpy(row[i] * (stop - start) + source[i] - start)
            for i, (start, stop) in zip(inside, chunks, strict=True)
        ]
        self._order = np.concatenate(inside)
        ids = np.concatenate([text.ids[text.targets] for text in texts])
        self.ids = torch.from_numpy(ids[self._order].astype(np.int64))

    def per_text(self, scores: Scores) -> list[Scores]:
        """Bring scores back into the order of the texts."""
        back = np.argsort(self._order)
        return [select(scores, at) for at in np.split(back, np.cumsum(self._counts)[:-1])]
