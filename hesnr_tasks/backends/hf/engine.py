"""The engine: scores texts with one model, in batches and with shared prefixes computed once; and its self-check.

Some architectures go wrong silently: Mamba-1 drops its state between chunks, Gemma 2's head cannot be applied by hand,
some models return no cache. So every forward mode is tried on the loaded model, on a short text, against a plain
forward pass, and the fastest that agrees is used.

Prefixes that several texts share form a tree. It depends on the texts of all processes only, not on how they are spread
over processes, so that the numbers do not either.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hesnr_tasks.backends.base import TokenSequence
from hesnr_tasks.backends.hf.forward import (
    ForwardMode,
    MemoryLimits,
    copy_cache,
    is_out_of_memory,
    score_range,
    split_range,
    usable_strategies,
)
from hesnr_tasks.backends.hf.model import CausalLM, fresh_rope, length_dependence
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scores.schema import SequenceScores

_log = logging.getLogger("hesnr_tasks")
_TOP = 10
_LENGTH = 108
_MAX_TARGETS = 80  # compared, not all in a row: some models look at neighbours in the output
_SLICE = 20  # logits computed at a time, so that several slices are tried
_MAX_WINDOW = 1024  # sliding windows up to here are straddled by the text
_SAME = 1e-5  # nats, on the mean: the same kernels on the same shapes give the same numbers
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2}  # nats, on the mean: in half precision
_TOLERANCE_ELSE = 5e-2  # single values differ by a rounding of the logits, or by an expert chosen otherwise

TEXT = '''I'll look at the failing test first, then at the function it calls.
<function=bash><parameter=command>cd /testbed && python -m pytest tests/test_core.py -x -q</parameter></function>
def merge(left: list[int], right: list[int]) -> list[int]:
    """Merge two sorted lists; 0 <= len(left), len(right) < 10**6."""
    result, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i]); i += 1
        else:
            result.append(right[j]); j += 1
    return result + left[i:] + right[j:]
'''


def choose_forward_mode(model: CausalLM, ids: Sequence[int], *, batch: bool) -> ForwardMode:
    """The fastest mode that agrees with the plain forward pass; every mode given up is logged with the reason.

    Args:
        model: the model.
        ids: some tokens of real text.
        batch: whether batches of several texts are wanted.

    Raises:
        ScoringError: the model does not agree with itself.
    """
    check, kind = _SelfCheck(model, ids), length_dependence(model.outer)
    mode = check.logits_strategy(whole_texts=bool(kind))
    if kind:
        _log.warning(
            "%s: positions depend on the length of the text (%s); every text is read whole, alone and in one pass, "
            "however much memory that takes", model.name, kind,
        )  # fmt: skip
        return mode
    return check.shared_prefixes(check.chunks(check.batches(mode) if batch else mode))


def depends_on_length(model: CausalLM, mode: ForwardMode, ids: Sequence[int], longest: int) -> str:
    """How the log-probabilities of the first tokens change when a text has `longest` tokens; "" if they do not.

    In transformers' models positions are arguments: a short text of which only the last token stands at the end of the
    longest text tells, at the cost of a short text. Code that comes with a checkpoint may look at the number of tokens
    instead, so there a text of that length is run once.
    """
    line = np.resize(np.asarray(ids, dtype=np.int32), _probe_length(model))
    if longest <= len(line):
        return ""
    if model.remote:
        return model.agreed_reason(_SelfCheck(model, ids).moved_by_more_text(mode, longest))
    if "position_ids" not in model.parameters:
        return ""
    try:
        return model.agreed_reason(_moved_by_the_last_position(model, line, longest))
    except Exception as error:  # out of memory: scoring, which needs more, ends with an error that helps
        if model.sharded and is_out_of_memory(error):
            raise
        _log.debug("%s takes no chosen positions: %s", model.name, error)
        return ""


def _moved_by_the_last_position(model: CausalLM, ids: npt.NDArray[np.int32], longest: int) -> str:
    n = len(ids)
    tokens = torch.from_numpy(ids).to(model.device, torch.int64)[None]

    def logprobs(last: int) -> torch.Tensor:
        positions = torch.arange(n, device=model.device)
        positions[-1] = last
        with model.no_grad(), fresh_rope(model.outer):
            return model.full_logits(tokens, positions[None])[0, :-1].float().log_softmax(dim=1)

    def difference(values: torch.Tensor, others: torch.Tensor) -> float:
        both = values.isfinite() & others.isfinite()  # a masked vocabulary has minus infinity in both
        return float((values[both] - others[both]).abs().mean()) if both.any() else 0.0

    near = logprobs(n + 1)  # a gap as well, so that the same kernels and masks are at work
    noise = difference(logprobs(n + 1), near)
    change = difference(logprobs(longest - 1), near)
    if change <= max(_SAME, 4 * noise):
        return ""
    return f"the last of {longest} positions changes log-probabilities before it by {change:.2g} on average"


def _probe_length(model: CausalLM) -> int:
    """Long enough to leave a sliding window behind where that is cheap."""
    windows = [getattr(model.config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
    small = [window for window in windows if 0 < window <= _MAX_WINDOW]
    most = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    return min(max([0, *small]) + _LENGTH, most if most > 0 else 1 << 30)


class _SelfCheck:
    """A short text, another that is shorter, and what a plain forward pass makes of them."""

    def __init__(self, model: CausalLM, ids: Sequence[int]) -> None:
        self._model = model
        length = _probe_length(model)
        line = np.resize(np.asarray(ids, dtype=np.int32), length)
        other = np.ascontiguousarray(line[::-1][: length * 2 // 3])
        self._text, self._other = (TokenSequence("self-check", part, _spread(len(part))) for part in (line, other))
        self._expected = [self._plain_scores(text) for text in (self._text, self._other)]
        self._k = self._expected[0].topk_ids.shape[1]
        self._length = int(self._text.targets[-1])  # the plain forward pass sees some tokens more
        self._middle = self._length // 2

    def _plain_scores(self, text: TokenSequence) -> SequenceScores:
        """By a plain forward pass, full log-softmax and full sort; shares no code with the fast modes."""
        model = self._model
        ids = torch.from_numpy(text.ids).to(model.device, torch.int64)
        with model.no_grad(), fresh_rope(model.outer):
            logits = model.full_logits(ids[None])[0]
            if model.sharded and logits.shape[1] < model.vocabulary:
                raise ScoringError(
                    f"{model.name} gives logits of {logits.shape[1]} of the {model.vocabulary} vocabulary entries: "
                    "each process has those of its part of the head. Load it with a tp_plan that gathers them "
                    "(tp_plan='auto')"
                )
            source = torch.from_numpy(text.targets - 1).to(logits.device, torch.int64)
            rows = logits[source].float().log_softmax(dim=1)
        logprob = rows.gather(1, ids[text.targets].to(rows.device)[:, None])
        best, order = rows.sort(dim=1, descending=True)
        arrays = (logprob[:, 0], (rows > logprob).sum(1) + 1, best[:, :_TOP], order[:, :_TOP])
        return SequenceScores(*(array.cpu().numpy() for array in arrays))

    # --- modes, from the simplest on ----------------------------------------------------------------------------------

    def logits_strategy(self, *, whole_texts: bool) -> ForwardMode:
        """Logits at selected positions of a text in one pass."""
        model, stop = self._model, len(self._text.ids) if whole_texts else self._length
        reason = ""
        for strategy in usable_strategies(model):
            for backbone in model.backbones if strategy == "replay_lm_head" else [model.backbone]:
                model.backbone = backbone
                mode = ForwardMode(strategy, whole_texts=whole_texts)
                reason = self._disagreement(lambda: self._run(mode, [self._text], [0, stop])[0])  # noqa: B023
                if not reason:
                    return mode
            _log.warning("%s: logits at selected positions by %r do not work here (%s)", model.name, strategy, reason)
        raise ScoringError(
            f"{model.name} gives other numbers for the same tokens when it is run again without the text after them: "
            f"{reason}. It cannot be scored. Does it draw random numbers (is dropout on?), or look ahead in the text?"
        )

    def batches(self, mode: ForwardMode) -> ForwardMode:
        """Two texts in a batch."""
        if mode.logits_strategy != "replay_lm_head":
            reason = "its logits at selected positions need one text at a time"
        else:
            reason = self._disagreement(lambda: self._run(mode, [self._text, self._other], [0, self._length])[0])
        if not reason:
            return replace(mode, batch_texts=True)
        _log.warning("%s: texts are read one at a time, whatever --batch_size says (%s)", self._model.name, reason)
        return mode

    def chunks(self, mode: ForwardMode) -> ForwardMode:
        """Chunks over a KV cache."""
        reason, n = "its forward takes no cache", self._length
        for maskless, positions in product((True, False), (True, False)) if self._model.cache_name else ():
            if positions and "position_ids" not in self._model.parameters:
                continue
            chunked = replace(mode, use_kv_cache=True, explicit_positions=positions, maskless_chunks=maskless)
            edges = [0, n * 3 // 7, n * 4 // 5, n]
            reason = self._disagreement(lambda: self._run(chunked, [self._text], edges)[0])  # noqa: B023
            if not reason:
                return chunked
        _log.warning(
            "%s cannot be read in chunks (%s); every text is read in one pass, however much memory that takes",
            self._model.name, reason,
        )  # fmt: skip
        return mode

    def shared_prefixes(self, mode: ForwardMode) -> ForwardMode:
        """Copies of a cache, continued with something else, then with the rest of the text."""
        if not mode.use_kv_cache:
            return mode
        n, middle = self._length, self._middle
        other = np.concatenate([self._text.ids[:middle], self._other.ids[: middle // 2]])
        texts = [TokenSequence("", other, np.array([len(other) - 1], np.int32)), self._text.within(middle, n)]

        def after_prefix(batches: list[list[TokenSequence]]) -> list[SequenceScores]:
            prefix = [self._text.within(0, middle)]
            (before,), cache = self._run(mode, prefix, [0, middle], return_cache=True)
            for batch in batches:
                scores, _ = self._run(mode, batch, [middle, n], copy_cache(cache, len(batch)))
            return [SequenceScores.concat([before, scores[-1]])]

        reason = self._disagreement(lambda: after_prefix([[text] for text in texts]))
        if reason:
            _log.warning("%s: prefixes that texts share are read again for each (%s)", self._model.name, reason)
            return mode
        together = mode.batch_texts and not self._disagreement(lambda: after_prefix([texts]))
        return replace(mode, share_prefixes=True, batch_after_prefix=together)

    def moved_by_more_text(self, mode: ForwardMode, longest: int) -> str:
        """How the scores of the text change when more text follows, `longest` tokens in all."""
        long = TokenSequence("self-check", np.resize(self._text.ids, longest), self._text.targets)
        try:
            (scores,), _ = self._run(replace(mode, use_kv_cache=False, whole_texts=True), [long], [0, longest])
        except Exception as error:
            if self._model.sharded or not is_out_of_memory(error):
                raise
            _log.warning(
                "%s comes with its own code, and whether its numbers depend on the length of the text could not be "
                "tried: %d tokens do not fit into memory in one pass", self._model.name, longest,
            )  # fmt: skip
            return ""
        return self._difference(scores, self._expected[0])

    # --- comparing ----------------------------------------------------------------------------------------------------

    def _run(
        self,
        mode: ForwardMode,
        texts: list[TokenSequence],
        edges: list[int],
        cache: Any = None,
        *,
        return_cache: bool = False,
    ) -> tuple[list[SequenceScores], Any]:
        return score_range(
            self._model, mode, texts, self._k, edges, cache, return_cache=return_cache, slice_size=_SLICE
        )

    def _disagreement(self, attempt: Callable[[], list[SequenceScores]]) -> str:
        """Why the scores that `attempt` computes for the text (and the other one) cannot be trusted; "" if they can."""
        try:
            scores = attempt()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return self._model.agreed_reason(f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}")
        reasons = [self._difference(*pair) for pair in zip(scores, self._expected, strict=False)]
        return self._model.agreed_reason(next(filter(None, reasons), ""))

    def _difference(self, scores: SequenceScores, expected: SequenceScores) -> str:
        ours, plain = (np.column_stack([each.logprob, each.topk_logprobs]) for each in (scores, expected))
        same = (ours == plain) | (np.isnan(ours) & np.isnan(plain))  # NaN in both: a diverged model, refused later
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0.0, np.abs(ours - plain))
        mean = float(np.nan_to_num(apart, nan=np.inf).mean())
        if mean <= _TOLERANCE.get(self._model.autocast or self._model.dtype, _TOLERANCE_ELSE):
            return ""
        return f"log-probabilities differ from the plain forward pass by {mean:.2g} on average, up to {apart.max():.2g}"


def _spread(n: int) -> npt.NDArray[np.int32]:
    """Targets over the first seven eighths of `n` tokens."""
    last = n - 1 - n // 8
    return np.unique(np.linspace(1, last, min(last * 5 // 6, _MAX_TARGETS)).astype(np.int32))


# --- the engine -------------------------------------------------------------------------------------------------------


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

        Raises:
            ScoringError: the vocabulary is not that of the sequences.
        """
        skipped, size = frozenset(skip), self.model.vocabulary
        if k > size and sequences:
            raise ScoringError(f"top {k} asked for, but the model's vocabulary has {size} entries")
        hashes: dict[int, PrefixHashes] = {}
        for index, text in enumerate(sequences):
            if len(text.ids) and int(text.ids.max()) >= size:
                raise ScoringError(
                    f"trajectory {text.name!r} has token id {int(text.ids.max())}, the model knows {size} ids. The "
                    "tokenizer does not belong to this model; name the right one with tokenizer=… in --model_args."
                )
            if len(text.targets):
                hashes[index] = prefix_hashes(text.ids, int(text.targets[-1]), text.full_length)
            elif index not in skipped:
                progress(len(text.ids))
                yield index, SequenceScores.empty(k)
        tree, lengths = self._prefix_tree(hashes)
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

    def _batches(self, node: PrefixNode, lengths: Mapping[int, int], *, after_prefix: bool) -> Sequence[list[int]]:
        if self._batch == 1 or (after_prefix and not self.mode.batch_after_prefix):
            return [[index] for index in node.members]
        rests = [lengths[index] - node.stop for index in node.members]
        return batch_by_length(node.members, rests, self._batch, self.limits.batch_tokens())

    def _prefix_tree(self, own: Mapping[int, PrefixHashes]) -> tuple[PrefixNode, dict[int, int]]:
        """The prefix tree of the texts of all processes, restricted to those of this one; tokens to run of each."""
        everyone = list(dict.fromkeys(self._gather(list(own.values()))))
        self._check_length(max((text.full_length for text in everyone), default=0))
        lengths = {i: text.full_length if self.mode.whole_texts else text.length for i, text in own.items()}
        if not self.mode.share_prefixes:
            return PrefixNode(0, 0, list(own)), lengths
        numbers: dict[PrefixHashes, list[int]] = {}
        for number, text in own.items():
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
