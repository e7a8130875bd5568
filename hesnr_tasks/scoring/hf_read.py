"""Reading one text: in one pass or in chunks that hand a cache on, and only the logits that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from hesnr_tasks.scoring.hf_heads import HEADS
from hesnr_tasks.scoring.hf_logits import Collector
from hesnr_tasks.scoring.hf_net import Feed, Net
from hesnr_tasks.scoring.types import Scores

__all__ = ["Way", "head_rows", "read", "split"]

_ROW_BYTES = {"cpu": 1 << 27}  # float32 logits alive at a time
_ROW_BYTES_GPU = 1 << 29


@dataclass(frozen=True)
class Way:
    """How a model is read: what the self-check found to agree with the plain forward pass."""

    head: str  # a key of HEADS
    cached: bool = False  # in chunks, with a cache
    positions: bool = False  # chunks need explicit position_ids


def head_rows(net: Net) -> int:
    """How many positions' logits are made at a time."""
    size = _ROW_BYTES.get(net.device.type, _ROW_BYTES_GPU)
    return max(16, size // (4 * net.vocabulary))


def split(n: int, chunk: int) -> list[int]:
    """Borders 0 … n of equal chunks of at most `chunk`; none is ever much shorter than the others."""
    pieces = -(-n // chunk)
    return [n * i // pieces for i in range(pieces + 1)]


def read(
    net: Net,
    way: Way,
    ids: torch.Tensor,
    targets: torch.Tensor,
    k: int,
    edges: Sequence[int],
    progress: Callable[[int], object] = int,
) -> Scores:
    """Scores of `targets` (m,), positions in `ids` (n,), int64 on the model's device; `edges`: borders of the chunks.

    The text is read up to `edges[-1]`, which must be at least `targets[-1]`.
    """
    source = targets - 1
    collector = Collector(ids[targets], k)
    several, cache = len(edges) > 2, None
    with torch.inference_mode():
        for start, stop in pairwise(edges):
            feed = Feed(ids[None, start:stop], start, cache, keep_cache=several, positions=several and way.positions)
            wanted = source[(source >= start) & (source < stop)] - start
            cache = HEADS[way.head](net, feed, wanted, head_rows(net), collector)
            if several and cache is None:
                raise RuntimeError("the model returned no cache")
            progress(stop - start)
        return collector.scores()
