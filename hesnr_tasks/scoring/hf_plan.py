"""What is read together: prefixes that several texts share, and short texts side by side.

The plan is a tree. Each group's prefix continues its parent's; its members are the texts that go on from there alone.
It depends on the texts only, not on how they are spread over processes, so that the numbers do not either.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
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


def outline(ids: npt.NDArray[np.int32], length: int) -> Outline:
    """The outline of a text of which `length` ids are read.

    The token after a prefix is part of its hash, so that all that share a prefix also share what it predicts.
    """
    digest, prefixes, done = hashlib.blake2b(digest_size=16), [], 0
    for stop in range(_STEP, min(length, _MOST * _STEP + 1), _STEP):
        digest.update(ids[done : stop + 1].tobytes())
        done = stop + 1
        prefixes.append(digest.copy().digest())
    digest.update(ids[done : length + 1].tobytes())
    return Outline(length, digest.digest(), tuple(prefixes))


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
    return _grow(outlines, range(len(outlines)), 0, 0)


def _grow(outlines: Sequence[Outline], texts: Sequence[int], start: int, stop: int) -> Group:
    saved = _savings(outlines, texts, stop)
    chosen: dict[int, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for text in texts:
        prefixes = outlines[text].prefixes
        best = max(range(stop // _STEP, len(prefixes)), key=lambda i: saved[prefixes[i]], default=None)
        if best is not None and saved[prefixes[best]] > 0:
            chosen[best][prefixes[best]].append(text)
    found = [(best, together) for best in chosen for together in chosen[best].values() if len(together) > 1]
    groups = [_grow(outlines, together, stop, (best + 1) * _STEP) for best, together in found]
    grouped = {text for _, together in found for text in together}
    return Group(start, stop, [text for text in texts if text not in grouped], groups)


def _savings(outlines: Sequence[Outline], texts: Sequence[int], start: int) -> dict[bytes, float]:
    """For each prefix, how many tokens less are read if it is read once, after what it costs to go on from it."""
    count: Counter[bytes] = Counter()
    rest: Counter[bytes] = Counter()
    length: dict[bytes, int] = {}
    for text in texts:
        total, _, prefixes = outlines[text]
        for step in range(start // _STEP, len(prefixes)):
            name, stop = prefixes[step], (step + 1) * _STEP
            count[name] += 1
            rest[name] += total - stop
            length[name] = stop - start
    return {name: (count[name] - 1) * length[name] - _OVERHEAD * rest[name] for name in count}


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
