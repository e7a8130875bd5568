"""What is read together: prefixes that several texts share, and short texts side by side.

The plan is a tree. Each group's prefix continues its parent's; its members are the texts that go on from there alone.
It depends on the texts only, not on how they are spread over processes, so that the numbers do not either.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hesnr_tasks.backends.base import Scores, TokenSequence
from hesnr_tasks.backends.hf.check import choose_way, depends_on_length
from hesnr_tasks.backends.hf.forward import Text, Way, copy_cache, join, read, select, split
from hesnr_tasks.backends.hf.memory import Limits, is_out_of_memory
from hesnr_tasks.backends.hf.model import Net

__all__ = ["Engine", "outline", "plan", "side_by_side"]

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


# --- The engine: walks through the plan of what is read together, and goes on with less when memory runs out ---

_log = logging.getLogger("hesnr_tasks")

Gather = Callable[[list[Outline]], list[Outline]]


class Engine:
    """Scores passages with one model.

    `sample`: ids of some text, for the self-check. `batch`: the most texts to read side by side, 0 for as many as pay.
    `gather`: joins the lists of all processes, so that a prefix is shared or not whatever process a text is in.
    """

    def __init__(self, net: Net, sample: Sequence[int], batch: int = 1, gather: Gather = list) -> None:
        self.net = net
        self._sample, self._longest = list(sample), 0
        self.way: Way = choose_way(net, sample, rows=batch != 1)
        self.limits = self._limits()
        self._batch = (batch or 1 << 30) if self.way.rows else 1
        self._gather = gather

    def _limits(self) -> Limits:
        return Limits(self.net, self.way, torch.tensor([self._sample], device=self.net.device))

    def score(
        self,
        passages: Sequence[TokenSequence],
        k: int,
        progress: Callable[[int], object] = int,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Scores]]:
        """Yield (index, scores) of all passages but those in `skip`, which count only in what is read together.

        `progress` gets numbers of tokens that sum to the lengths of the passages scored.
        """
        yield from _Run(self, passages, k, progress, skip).walk(self._plan(passages), None)

    def batches(self, texts: Sequence[int], lengths: Sequence[int], *, cached: bool) -> list[list[int]]:
        """Which texts to read side by side; `lengths`: what is left to read of each."""
        if self._batch == 1 or (cached and not self.way.shared_rows):
            return [[text] for text in texts]
        return side_by_side(texts, lengths, self._batch, self.limits.side_by_side())

    def length(self, passage: TokenSequence) -> int:
        """How many tokens of a text to read: to its last target, which is only predicted, or all."""
        return passage.whole if self.way.whole else _length(passage)

    def _try_length(self, longest: int) -> None:
        """Read whole from now on if texts of up to `longest` tokens give other numbers than their beginnings do."""
        if self.way.whole or longest <= self._longest:
            return
        self._longest = longest
        reason = depends_on_length(self.net, self.way, self._sample, longest)
        if reason:
            _log.warning(
                "%s: numbers depend on the length of the text (%s); every text is read whole, alone and in one pass, "
                "however much memory that takes", type(self.net.wrapper).__name__, reason,
            )  # fmt: skip
            self.way, self._batch = Way(self.way.head, whole=True), 1
            self.limits = self._limits()

    def _plan(self, passages: Sequence[TokenSequence]) -> Group:
        """A plan for the texts of all processes, cut to those of this one."""
        own = [outline(passage.ids, _length(passage), passage.whole) for passage in passages]
        everyone = list(dict.fromkeys(self._gather(own)))
        self._try_length(max((text.whole for text in everyone), default=0))
        if not self.way.shared:
            return Group(0, 0, list(range(len(passages))))
        numbers: dict[Outline, list[int]] = {}
        for number, text in enumerate(own):
            numbers.setdefault(text, []).append(number)
        return plan(everyone).of({i: numbers.get(text, []) for i, text in enumerate(everyone)})


def _length(passage: TokenSequence) -> int:
    return int(passage.targets[-1])


@dataclass
class _Job:
    """The tokens `start` to `stop` of some texts, to be read side by side after what is in `cache`."""

    names: list[str]
    texts: list[Text]
    start: int
    stop: int
    cache: Any
    keep_cache: bool = False

    def one_by_one(self) -> Iterator[_Job]:
        """The same, text by text."""
        for name, text in zip(self.names, self.texts, strict=True):
            yield _Job([name], [text], self.start, int(text.targets[-1]), self.cache)


class _Run:
    """One walk through a plan; the scores of a text gather from the prefixes it shares to its own end."""

    def __init__(
        self,
        engine: Engine,
        passages: Sequence[TokenSequence],
        k: int,
        progress: Callable[[int], object],
        skip: Collection[int],
    ) -> None:
        self._engine, self._passages, self._k, self._progress = engine, passages, k, progress
        self._skip = frozenset(skip)
        self._texts = [Text(passage.ids, passage.targets) for passage in passages]
        self._parts: list[list[Scores]] = [[] for _ in passages]

    def walk(self, group: Group, cache: Any) -> Iterator[tuple[int, Scores]]:
        """Yield (index, scores) of all texts below `group`, whose prefix is in `cache`."""
        lengths = [self._engine.length(self._passages[index]) - group.stop for index in group.members]
        for batch in self._engine.batches(group.members, lengths, cached=cache is not None):
            if not self._skip.issuperset(batch):
                yield from self._finish(batch, group.stop, cache)
        for inner in group.groups:
            if not self._skip.issuperset(inner.everyone()):
                yield from self.walk(inner, self._read_prefix(inner, cache))

    def _read_prefix(self, group: Group, cache: Any) -> Any:
        """Read what the group's texts share, score it for all of them, and give the cache."""
        everyone = list(group.everyone())
        wanted = [self._texts[index].within(group.start, group.stop).targets for index in everyone]
        text = Text(self._texts[everyone[0]].ids, np.unique(np.concatenate(wanted)))
        job = _Job([self._passages[everyone[0]].name], [text], group.start, group.stop, cache, keep_cache=True)
        (found,), made = self._read(job, _Steady(int, 0))
        for index, targets in zip(everyone, wanted, strict=True):
            self._parts[index].append(select(found, np.searchsorted(text.targets, targets)))
        return made

    def _finish(self, batch: list[int], start: int, cache: Any) -> Iterator[tuple[int, Scores]]:
        passages = [self._passages[index] for index in batch]
        stop = max(map(self._engine.length, passages))
        texts = [self._texts[index].within(start, stop) for index in batch]
        tokens = [len(self._passages[index].ids) for index in batch if index not in self._skip]
        bar = _Steady(self._progress, sum(tokens))
        found, _ = self._read(_Job([passage.name for passage in passages], texts, start, stop, cache), bar)
        bar.finish()
        for index, scores in zip(batch, found, strict=True):
            if index not in self._skip:
                yield index, join([*self._parts[index], scores])
            self._parts[index] = []

    def _read(self, job: _Job, bar: _Steady) -> tuple[list[Scores], Any]:
        """Read in chunks that fit; when memory runs out, go on text by text, then with shorter chunks."""
        several = len(job.texts) > 1
        if not several:
            self._engine.limits.refuse_too_long(job.stop, job.names[0])
        net = self._engine.net
        chunk = job.stop - job.start if several else self._engine.limits.chunk(job.start, job.stop)
        while True:
            try:
                return self._attempt(job, chunk, bar)
            except Exception as error:
                if net.sharded or not is_out_of_memory(error):  # the others are waiting inside the same pass
                    raise
                reason = str(error).strip().split("\n")[0]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if several:
                return [self._read(single, bar)[0][0] for single in job.one_by_one()], None
            chunk = self._engine.limits.halve(chunk, job.names[0], reason)

    def _attempt(self, job: _Job, chunk: int, bar: _Steady) -> tuple[list[Scores], Any]:
        bar.restart()
        edges, cache = split(job.start, job.stop, chunk), copy_cache(job.cache, len(job.texts))
        net, way = self._engine.net, self._engine.way
        return read(net, way, job.texts, self._k, edges, cache, keep_cache=job.keep_cache, progress=bar.step)


class _Steady:
    """Passes progress on, at most `total`; after a restart, only what goes beyond the point already reported."""

    def __init__(self, progress: Callable[[int], object], total: int) -> None:
        self._progress, self._total = progress, total
        self._at = self._told = 0

    def restart(self) -> None:
        self._at = 0

    def step(self, tokens: int) -> None:
        self._at = min(self._at + tokens, self._total)
        if self._at > self._told:
            self._progress(self._at - self._told)
            self._told = self._at

    def finish(self) -> None:
        self._at = 0
        self.step(self._total)
