"""What is read together: prefixes that several texts share, and short texts side by side.

The plan is a tree. Each group's prefix continues its parent's; its members are the texts that go on from there alone.
It depends on the texts only, not on how they are spread over processes, so that the numbers do not either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Group", "Outline", "outline", "plan", "side_by_side"]

_STEP = 256  # shared prefixes are found in steps of so many tokens …
_MOST = 256  # … up to so many steps
_OVERHEAD = 0.1  # what going on from a cache costs, as a share of what is read after it


class Outline(NamedTuple):
    """What the plan needs to know of a text: equal hashes mean equal tokens."""

    length: int  # tokens to read
    name: bytes  # hash of all of them
    prefixes: tuple[bytes, ...]  # hashes of the first 256, 512, … tokens and the token after them
    whole: int = 0  # tokens of the whole text


def outline(ids: npt.NDArray[np.int32], length: int, whole: int = 0) -> Outline:
    """The outline of a text of `whole` tokens, of which `length` ids are read.

    The token after a prefix is part of its hash, so that all that share a prefix also share what it predicts.
    """
    digest, prefixes, done = hashlib.blake2b(digest_size=16), [], 0
    for stop in range(_STEP, min(length, _MOST * _STEP + 1), _STEP):
        digest.update(ids[done : stop + 1].tobytes())
        done = stop + 1
        prefixes.append(digest.copy().digest())
    digest.update(ids[done : length + 1].tobytes())
    return Outline(length, digest.digest(), tuple(prefixes), whole)


@dataclass
class Group:
    """Texts that share their first `stop` tokens, of which the parent has read `start`."""

    start: int
    stop: int
    members: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def everyone(self) -> Iterator[int]:
        """All texts of this group and the groups in it."""
        yield from self.members
        for group in self.groups:
            yield from group.everyone()

    def of(self, own: Mapping[int, Sequence[int]]) -> Group:
        """The same plan for some of the texts, under their numbers in `own`."""
        members = [number for text in self.members for number in own.get(text, ())]
        groups = [group.of(own) for group in self.groups]
        return Group(self.start, self.stop, members, [group for group in groups if any(True for _ in group.everyone())])


def plan(outlines: Sequence[Outline]) -> Group:
    """The tree of prefixes worth sharing. The root shares nothing."""
    return Group(0, 0, *_place(outlines, range(len(outlines)), 0, 0))


def _place(outlines: Sequence[Outline], texts: Sequence[int], start: int, at: int) -> tuple[list[int], list[Group]]:
    """Members and groups after the prefix `start`, of texts that are known to be equal up to `at`."""
    members: list[int] = []
    groups: list[Group] = []
    for alike in _by_next_step(outlines, texts, at):
        if len(alike) == 1:
            members += alike
            continue
        stop = _common(outlines, alike, at)
        if _saved(outlines, alike, start, stop) > 0:
            groups.append(Group(start, stop, *_place(outlines, alike, stop, stop)))
        else:
            alone, inner = _place(outlines, alike, start, stop)
            members += alone
            groups += inner
    return sorted(members), groups


def _by_next_step(outlines: Sequence[Outline], texts: Sequence[int], at: int) -> Iterable[list[int]]:
    """The texts in lots that go on alike for one more step; one that ends before is a lot of its own."""
    lots: dict[bytes, list[int]] = {}
    for text in texts:
        prefixes = outlines[text].prefixes
        key = prefixes[at // _STEP] if at // _STEP < len(prefixes) else b"end %d" % text
        lots.setdefault(key, []).append(text)
    return lots.values()


def _common(outlines: Sequence[Outline], texts: Sequence[int], at: int) -> int:
    """Up to where all texts are equal, in whole steps; at least one step beyond `at`."""
    step, chains = at // _STEP + 1, [outlines[text].prefixes for text in texts]
    while all(step < len(chain) and chain[step] == chains[0][step] for chain in chains):
        step += 1
    return step * _STEP


def _saved(outlines: Sequence[Outline], texts: Sequence[int], start: int, stop: int) -> float:
    """How many tokens less are read when `start` to `stop` is read once, after what it costs to go on from it."""
    rest = sum(outlines[text].length - stop for text in texts)
    return (len(texts) - 1) * (stop - start) - _OVERHEAD * rest


def side_by_side(texts: Sequence[int], lengths: Sequence[int], most: int, tokens: int) -> list[list[int]]:
    """Batches of at most `most` texts and, padding included, `tokens` tokens; `lengths` are those of `texts`."""
    batches: list[list[int]] = []
    width = 0  # of the last batch: its first text is its longest
    for i in sorted(range(len(texts)), key=lambda i: -lengths[i]):
        if batches and len(batches[-1]) < most and (len(batches[-1]) + 1) * width <= tokens:
            batches[-1].append(texts[i])
        else:
            batches.append([texts[i]])
            width = lengths[i]
    return batches
