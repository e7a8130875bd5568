"""Reading texts: in one pass or in chunks that hand a cache on, and only the logits that are wanted."""

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

from hesnr_tasks.backends.hf_attention import CausalChunks
from hesnr_tasks.backends.hf_heads import HEADS
from hesnr_tasks.backends.hf_logits import Collector
from hesnr_tasks.backends.hf_net import Feed, Net
from hesnr_tasks.backends.hf_rope import fresh_rope
from hesnr_tasks.backends.types import Scores

__all__ = ["Text", "Way", "copy_cache", "head_rows", "join", "read", "select", "split"]

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
