"""The engine: walks through the plan of what is read together, and goes on with less when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hesnr_tasks.backends.hf_check import choose_way, depends_on_length
from hesnr_tasks.backends.hf_limits import Limits
from hesnr_tasks.backends.hf_memory import is_out_of_memory
from hesnr_tasks.backends.hf_net import Net
from hesnr_tasks.backends.hf_plan import Group, Outline, outline, plan, side_by_side
from hesnr_tasks.backends.hf_read import Text, Way, copy_cache, join, read, select, split
from hesnr_tasks.backends.types import Passage, Scores

__all__ = ["Engine"]

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
        passages: Sequence[Passage],
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

    def length(self, passage: Passage) -> int:
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

    def _plan(self, passages: Sequence[Passage]) -> Group:
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


def _length(passage: Passage) -> int:
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
        passages: Sequence[Passage],
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
