"""A sample that stays put: chosen by hash, so neither the order of files nor new rows reshuffle it.

Every item has a rank, a hash of the seed and its identity; the `n` lowest ranks are the sample. A new item joins only
if its rank is among the n lowest, and then displaces one. A smaller sample is the beginning of a larger one.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.trajectory import Trajectory

__all__ = ["choose", "identity", "sampled"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """An item in the heap, whose smallest element must be the one to give up first: the highest rank."""

    rank: bytes
    place: int  # decides between items of the same identity, which are the same
    item: T

    def __lt__(self, other: _Entry[T]) -> bool:
        return (self.rank, self.place) > (other.rank, other.place)


def choose(ids: Iterable[str], n: int, seed: int) -> list[str]:
    """The sample of `n` of `ids` (all, if there are fewer), in the order of their ranks; an id counts once."""
    return sampled(dict.fromkeys(ids), n, seed, key=str)


def sampled(items: Iterable[T], n: int, seed: int, *, key: Callable[[T], str]) -> list[T]:
    """The sample of `n` of `items` by the identity `key` gives, in the order of ranks; holds `n` items at a time."""
    if n < 1:
        raise SettingsError(f"a sample must have at least 1 item, not {n}")
    heap: list[_Entry[T]] = []
    for place, item in enumerate(items):
        entry = _Entry(_rank(key(item), seed), place, item)
        if len(heap) < n:
            heapq.heappush(heap, entry)
        elif heap[0] < entry:
            heapq.heapreplace(heap, entry)
    return [entry.item for entry in sorted(heap, reverse=True)]


def identity(trajectory: Trajectory) -> str:
    """What makes a trajectory this one: its instance and a hash of its messages' text.

    Not its id: where a data set has none, ids are given out in the order of rows.
    """
    digest = hashlib.sha256()
    for message in trajectory.messages:
        text = message.text.encode(errors="surrogatepass")
        digest.update(f"{message.role} {len(text)}\n".encode())
        digest.update(text)
    return f"{trajectory.instance_id or ''}\n{digest.hexdigest()}"


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode(errors="surrogatepass")).digest()
