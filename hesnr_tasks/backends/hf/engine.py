"""The engine: scores texts with one model, in batches and with shared prefixes computed once.

Prefixes that several texts share form a tree. It depends on the texts of all processes only, not on how they are spread
over processes, so that the numbers do not either.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hesnr_tasks.backends.base import SequenceScores, TokenSequence
from hesnr_tasks.backends.hf.check import choose_forward_mode, depends_on_length
from hesnr_tasks.backends.hf.forward import (
    ForwardMode,
    copy_cache,
    score_range,
    split_range,
)
from hesnr_tasks.backends.hf.memory import MemoryLimits, is_out_of_memory
from hesnr_tasks.backends.hf.model import CausalLM

__all__ = ["Engine", "PrefixHashes", "PrefixNode", "batch_by_length", "build_prefix_tree", "prefix_hashes"]

_log = logging.getLogger("hesnr_tasks")


class Engine:
    """Scores token sequences with one model.

    Args:
        model: the model.
        sample: ids of some text, for the self-check.
        batch: the most texts in a batch, 0 for as many as pay.
        gather: concatenates the lists of all processes, so that shared prefixes do not depend on who has a text.
    """

    def __init__(
        self,
        model: CausalLM,
        sample: Sequence[int],
        batch: int = 1,
        gather: Callable[[list[PrefixHashes]], list[PrefixHashes]] = list,
    ) -> None:
        self.model = model
        self._sample, self._longest = list(sample), 0
        self._gather = gather
        self._use(choose_forward_mode(model, sample, batch=batch != 1), batch or 1 << 30)

    def _use(self, mode: ForwardMode, batch: int) -> None:
        self.mode = mode
        self.limits = MemoryLimits(self.model, mode, torch.tensor([self._sample], device=self.model.device))
        self._batch = batch if mode.batch_texts else 1

    def score(
        self,
        sequences: Sequence[TokenSequence],
        k: int,
        progress: Callable[[int], object] = int,
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, SequenceScores]]:
        """Execute the prefix tree with chunked prefill; yield (index, scores) of each sequence.

        The scores of a sequence are those of the prefixes it shares and those of its own rest, concatenated. Sequences
        in `skip` count only in what is computed together. `progress` gets numbers of tokens that sum to the lengths of
        the sequences scored.
        """
        skipped = frozenset(skip)
        tree, lengths = self._prefix_tree(sequences)
        todo: list[tuple[PrefixNode, Any, tuple[_SharedPrefix, ...]]] = [(tree, None, ())]  # with the parent's cache
        while todo:
            node, cache, shared = todo.pop()
            if skipped.issuperset(node.everyone()):
                continue
            if node.stop > node.start:
                union = _union_of_targets(node, sequences)
                (scores,), cache = self._forward([union], node.start, node.stop, k, cache, return_cache=True)
                shared = (*shared, _SharedPrefix(node.start, node.stop, union.targets, scores))
            for batch in self._batches(node, lengths, after_prefix=cache is not None):
                if skipped.issuperset(batch):
                    continue
                texts = [sequences[index] for index in batch]
                wanted = [text for index, text in zip(batch, texts, strict=True) if index not in skipped]
                bar = MonotonicProgress(progress, sum(len(text.ids) for text in wanted))
                stop = max(lengths[index] for index in batch)
                ends = [text.within(node.stop, stop) for text in texts]
                rest, _ = self._forward(ends, node.stop, stop, k, cache, bar)
                bar.finish()
                for index, text, scores in zip(batch, texts, rest, strict=True):
                    if index not in skipped:
                        yield index, SequenceScores.concat([*(prefix.of(text) for prefix in shared), scores])
            todo += [(child, cache, shared) for child in reversed(node.children)]

    def _forward(
        self,
        texts: Sequence[TokenSequence],
        start: int,
        stop: int,
        k: int,
        cache: Any,
        bar: MonotonicProgress | None = None,
        *,
        return_cache: bool = False,
    ) -> tuple[list[SequenceScores], Any]:
        """Score in chunks that fit; when memory runs out, text by text, then with shorter chunks."""
        several, bar = len(texts) > 1, bar or MonotonicProgress(int, 0)
        if not several:
            self.limits.refuse_too_long(stop, texts[0].name)
        chunk = stop - start if several else self.limits.chunk(start, stop)
        while True:
            try:
                bar.restart()
                return score_range(
                    self.model, self.mode, texts, k, split_range(start, stop, chunk), copy_cache(cache, len(texts)),
                    return_cache=return_cache, progress=bar.step,
                )  # fmt: skip
            except Exception as error:
                if self.model.sharded or not is_out_of_memory(error):  # the others are waiting inside the same pass
                    raise
                reason = str(error).strip().split("\n")[0]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if several:
                return [self._forward([t], start, int(t.targets[-1]), k, cache, bar)[0][0] for t in texts], None
            chunk = self.limits.halve(chunk, texts[0].name, reason)

    # --- what is computed together ------------------------------------------------------------------------------------

    def _batches(self, node: PrefixNode, lengths: Sequence[int], *, after_prefix: bool) -> Sequence[list[int]]:
        if self._batch == 1 or (after_prefix and not self.mode.batch_after_prefix):
            return [[index] for index in node.members]
        rests = [lengths[index] - node.stop for index in node.members]
        return batch_by_length(node.members, rests, self._batch, self.limits.batch_tokens())

    def _prefix_tree(self, sequences: Sequence[TokenSequence]) -> tuple[PrefixNode, list[int]]:
        """The prefix tree of the texts of all processes, restricted to those of this one; tokens to run of each."""
        own = [prefix_hashes(text.ids, int(text.targets[-1]), text.full_length) for text in sequences]
        everyone = list(dict.fromkeys(self._gather(own)))
        self._check_length(max((text.full_length for text in everyone), default=0))
        lengths = [text.full_length if self.mode.whole_texts else text.length for text in own]
        if not self.mode.share_prefixes:
            return PrefixNode(0, 0, list(range(len(own)))), lengths
        numbers: dict[PrefixHashes, list[int]] = {}
        for number, text in enumerate(own):
            numbers.setdefault(text, []).append(number)
        tree = build_prefix_tree(everyone)
        return tree.restricted({i: numbers.get(text, []) for i, text in enumerate(everyone)}), lengths

    def _check_length(self, longest: int) -> None:
        """Run texts whole from now on if those of `longest` tokens give other numbers than their beginnings do."""
        if self.mode.whole_texts or longest <= self._longest:
            return
        self._longest = longest
        reason = depends_on_length(self.model, self.mode, self._sample, longest)
        if reason:
            _log.warning(
                "%s: numbers depend on the length of the text (%s); every text is read whole, alone and in one pass, "
                "however much memory that takes", self.model.name, reason,
            )  # fmt: skip
            self._use(ForwardMode(self.mode.logits_strategy, whole_texts=True), 1)


class _SharedPrefix(NamedTuple):
    """What was predicted in tokens `start` to `stop`, which the texts below a node share, of the targets of any."""

    start: int
    stop: int
    targets: npt.NDArray[np.int32]
    scores: SequenceScores

    def of(self, text: TokenSequence) -> SequenceScores:
        """The part of one text."""
        return self.scores.take(np.searchsorted(self.targets, text.within(self.start, self.stop).targets))


def _union_of_targets(node: PrefixNode, sequences: Sequence[TokenSequence]) -> TokenSequence:
    """The tokens that the texts below a node share, with the targets of all of them there."""
    targets = np.zeros(0, np.int32)
    for index in node.everyone():
        text = sequences[index].within(node.start, node.stop)
        targets = np.union1d(targets, text.targets)
    return text._replace(targets=targets)


class MonotonicProgress:
    """Reports progress, at most `total`; after a restart, only what exceeds the tokens already reported."""

    def __init__(self, progress: Callable[[int], object], total: int) -> None:
        self._progress, self._total = progress, total
        self._done = self._reported = 0

    def restart(self) -> None:
        """Begin again from 0."""
        self._done = 0

    def step(self, tokens: int) -> None:
        """Add `tokens`."""
        self._done = min(self._done + tokens, self._total)
        if self._done > self._reported:
            self._progress(self._done - self._reported)
            self._reported = self._done

    def finish(self) -> None:
        """Report whatever is left of the total."""
        self.restart()
        self.step(self._total)


# --- shared prefixes --------------------------------------------------------------------------------------------------

_STEP = 256  # shared prefixes end at multiples of so many tokens …
_MAX_STEPS = 256  # … up to so many of them
_OVERHEAD = 0.1  # cost of continuing from a cache, as a share of the tokens run after it


_DIGEST = 16  # bytes


class PrefixHashes(NamedTuple):
    """What the prefix tree needs to know of a text: equal hashes mean equal tokens."""

    length: int  # tokens to run, up to the last target, which is only predicted
    digest: bytes  # hash of all of them
    prefixes: bytes  # hashes of the first 256, 512, … tokens and the token after them, joined: there are many texts
    full_length: int = 0  # tokens of the full text

    def prefix(self, step: int) -> bytes | None:
        """The hash of the first 256 · (step + 1) tokens; None: the text is shorter."""
        return self.prefixes[step * _DIGEST : (step + 1) * _DIGEST] or None


def prefix_hashes(ids: npt.NDArray[np.int32], length: int, full_length: int = 0) -> PrefixHashes:
    """Hash a text of `full_length` tokens of which `length` ids are run.

    The token after a prefix is part of its hash, so that all that share a prefix also share what it predicts.
    """
    digest, prefixes, done = hashlib.blake2b(digest_size=_DIGEST), [], 0
    for stop in range(_STEP, min(length, _MAX_STEPS * _STEP + 1), _STEP):
        digest.update(ids[done : stop + 1].tobytes())
        done = stop + 1
        prefixes.append(digest.copy().digest())
    digest.update(ids[done : length + 1].tobytes())
    return PrefixHashes(length, digest.digest(), b"".join(prefixes), full_length)


@dataclass
class PrefixNode:
    """Texts that share their first `stop` tokens; the parent shares the first `start`."""

    start: int
    stop: int
    members: list[int] = field(default_factory=list)  # texts that continue alone from `stop`
    children: list[PrefixNode] = field(default_factory=list)

    def everyone(self) -> Iterator[int]:
        """All texts below this node."""
        yield from self.members
        for child in self.children:
            yield from child.everyone()

    def restricted(self, numbers: Mapping[int, Sequence[int]]) -> PrefixNode:
        """The same tree for some of the texts, under their new numbers."""
        members = [number for text in self.members for number in numbers.get(text, ())]
        children = [child.restricted(numbers) for child in self.children]
        children = [child for child in children if child.members or child.children]
        return PrefixNode(self.start, self.stop, members, children)


def build_prefix_tree(hashes: Sequence[PrefixHashes]) -> PrefixNode:
    """The tree of prefixes that save time when shared. The root shares nothing."""
    return PrefixNode(0, 0, *_members_and_children(hashes, range(len(hashes)), 0, 0))


def _members_and_children(
    hashes: Sequence[PrefixHashes], texts: Sequence[int], start: int, equal: int
) -> tuple[list[int], list[PrefixNode]]:
    """What follows the prefix `start`, for texts that are equal up to `equal`."""
    members: list[int] = []
    children: list[PrefixNode] = []
    step = equal // _STEP
    alike: dict[bytes, list[int]] = {}
    for text in texts:  # by their next step; a text that ends before is alone
        alike.setdefault(hashes[text].prefix(step) or b"end %d" % text, []).append(text)
    for group in alike.values():
        if len(group) == 1:
            members += group
            continue
        first, common = hashes[group[0]], step + 1
        while first.prefix(common) and all(hashes[text].prefix(common) == first.prefix(common) for text in group):
            common += 1
        stop = common * _STEP
        rest = sum(hashes[text].length - stop for text in group)
        if (len(group) - 1) * (stop - start) > _OVERHEAD * rest:  # tokens saved
            children.append(PrefixNode(start, stop, *_members_and_children(hashes, group, stop, stop)))
        else:
            alone, inner = _members_and_children(hashes, group, start, stop)
            members += alone
            children += inner
    return sorted(members), children


def batch_by_length(texts: Sequence[int], lengths: Sequence[int], most: int, tokens: int) -> list[list[int]]:
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
