"""The self-check: which of the fast ways of reading gives this model's own numbers.

Some architectures go wrong silently: Mamba-1 drops its state between chunks, Gemma 2's head cannot be applied by hand,
some wrappers return no cache. So every way is tried on the loaded model, on a short text, against a plain forward
pass, and the best one that agrees is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hesnr_tasks.backends.base import Scores
from hesnr_tasks.backends.hf.forward import Text, Way, copy_cache, join, read, usable_heads
from hesnr_tasks.backends.hf.memory import is_out_of_memory
from hesnr_tasks.backends.hf.model import Net, fresh_rope, length_dependence
from hesnr_tasks.errors import ScoringError

__all__ = ["TEXT", "choose_way", "depends_on_length"]

_log = logging.getLogger("hesnr_tasks")
_TOP = 10
_LENGTH = 108
_POSITIONS = 80  # compared at most, not all in a row: some models look at neighbours in the output
_ROWS = 20  # logits made at a time, so that several slices are tried
_LONGEST_WINDOW = 1024  # sliding windows up to here are straddled by the text
_UNMOVED = 1e-5  # nats, on the mean: the same kernels on the same shapes give the same numbers
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


@dataclass(frozen=True)
class _Probe:
    """A short text, and another that is shorter, with what a plain forward pass makes of them."""

    text: Text
    other: Text
    scores: tuple[Scores, Scores]

    @property
    def length(self) -> int:
        """Tokens of the first text up to its last target; the plain forward pass saw some more."""
        return int(self.text.targets[-1])

    @property
    def k(self) -> int:
        """How many of the most likely tokens are compared."""
        return self.scores[0].topk_ids.shape[1]


def choose_way(net: Net, ids: Sequence[int], *, rows: bool) -> Way:
    """The best way of reading that agrees with the plain forward pass; `ids`: some tokens of real text.

    `rows`: whether reading several texts at once is wanted. Every way given up is logged with the reason. Raises
    `ScoringError` if the model does not agree with itself.
    """
    probe, kind = _probe(net, ids), length_dependence(net.outer)
    way = _choose_head(net, probe, whole=bool(kind))
    if kind:
        _log.warning(
            "%s: positions depend on the length of the text (%s); every text is read whole, alone and in one pass, "
            "however much memory that takes", _name(net), kind,
        )  # fmt: skip
        return way
    if rows:
        way = _try_rows(net, way, probe)
    return _try_sharing(net, _try_chunks(net, way, probe), probe)


def depends_on_length(net: Net, way: Way, ids: Sequence[int], longest: int) -> str:
    """How the first tokens' values change when a text has `longest` tokens; empty if they do not.

    In transformers' models positions are arguments: one short text of which only the last token stands at the end of
    the longest text tells, at the cost of a short text. Code that comes with a checkpoint may look at the number of
    tokens instead, so there a text of that length is read once.
    """
    line = np.resize(np.asarray(ids, dtype=np.int32), _length(net))
    if longest <= len(line):
        return ""
    if net.remote:
        return net.reason(_moved_by_more_text(net, way, _probe(net, ids), longest))
    if "position_ids" not in net.takes:
        return ""
    try:
        return net.reason(_moved_by_the_last_position(net, line, longest))
    except Exception as error:  # out of memory: reading, which needs more, ends with an error that helps
        if net.sharded and is_out_of_memory(error):
            raise
        _log.debug("%s takes no chosen positions: %s", _name(net), error)
        return ""


def _moved_by_the_last_position(net: Net, ids: npt.NDArray[np.int32], longest: int) -> str:
    def read_with(last: int) -> torch.Tensor:
        positions = torch.arange(n, device=net.device)
        positions[-1] = last
        with net.no_grad(), fresh_rope(net.outer):
            return net.plain(tokens, positions[None])[0, :-1].float().log_softmax(dim=1)

    n = len(ids)
    tokens = torch.from_numpy(ids).to(net.device, torch.int64)[None]
    near = read_with(n + 1)  # a gap as well, so that the same kernels and masks are at work
    noise = _mean_difference(read_with(n + 1), near)
    change = _mean_difference(read_with(longest - 1), near)
    if change <= max(_UNMOVED, 4 * noise):
        return ""
    return f"the last of {longest} positions changes log-probabilities before it by {change:.2g} on average"


def _mean_difference(values: torch.Tensor, others: torch.Tensor) -> float:
    """The mean absolute difference where both are finite: a masked vocabulary has minus infinity in both."""
    both = values.isfinite() & others.isfinite()
    return float((values[both] - others[both]).abs().mean()) if both.any() else 0.0


def _moved_by_more_text(net: Net, way: Way, probe: _Probe, longest: int) -> str:
    long = Text(np.resize(probe.text.ids, longest), probe.text.targets)
    alone = replace(way, cached=False, whole=True)
    try:
        (scores,), _ = read(net, alone, [long], probe.k, [0, longest], rows=_ROWS)
    except Exception as error:
        if net.sharded or not is_out_of_memory(error):
            raise
        _log.warning(
            "%s comes with its own code, and whether its numbers depend on the length of the text could not be tried: "
            "%d tokens do not fit into memory in one pass", _name(net), longest,
        )  # fmt: skip
        return ""
    return _difference(net, scores, probe.scores[0])


def _choose_head(net: Net, probe: _Probe, *, whole: bool) -> Way:
    for head in usable_heads(net):
        for body in net.bodies if head == "stub" else [net.body]:
            net.body = body
            way = Way(head, whole=whole)
            reason = _disagreement(net, probe, partial(_at_once, net, way, probe))
            if not reason:
                return way
        _log.warning("%s: logits at selected positions by %r do not work here (%s)", _name(net), head, reason)
    raise ScoringError(
        f"{_name(net)} gives other numbers for the same tokens when it is run again without the text after them: "
        f"{reason}. It cannot be scored. Does it draw random numbers (is dropout on?), or look ahead in the text?"
    )


def _try_rows(net: Net, way: Way, probe: _Probe) -> Way:
    if way.head != "stub":
        reason = "its logits at selected positions need one text at a time"
    else:
        reason = _disagreement(net, probe, partial(_side_by_side, net, way, probe))
    if not reason:
        return replace(way, rows=True)
    _log.warning("%s: texts are read one at a time, whatever --batch_size says (%s)", _name(net), reason)
    return way


def _try_chunks(net: Net, way: Way, probe: _Probe) -> Way:
    reason = "its forward takes no cache"
    kinds = product((True, False), (True, False)) if net.cache_name else ()
    for unmasked, positions in kinds:
        if positions and "position_ids" not in net.takes:
            continue
        chunked = replace(way, cached=True, positions=positions, unmasked=unmasked)
        reason = _disagreement(net, probe, partial(_in_chunks, net, chunked, probe))
        if not reason:
            return chunked
    _log.warning(
        "%s cannot be read in chunks (%s); every text is read in one pass, however much memory that takes",
        _name(net), reason,
    )  # fmt: skip
    return way


def _try_sharing(net: Net, way: Way, probe: _Probe) -> Way:
    if not way.cached:
        return way
    reason = _disagreement(net, probe, partial(_after_copies, net, way, probe))
    if reason:
        _log.warning("%s: prefixes that texts share are read again for each (%s)", _name(net), reason)
        return way
    together = way.rows and not _disagreement(net, probe, partial(_rows_after_copies, net, way, probe))
    return replace(way, shared=True, shared_rows=together)


# --- the ways, on the short text -------------------------------------------------------------------------------------


def _at_once(net: Net, way: Way, probe: _Probe) -> list[Scores]:
    stop = len(probe.text.ids) if way.whole else probe.length
    return read(net, way, [probe.text], probe.k, [0, stop], rows=_ROWS)[0]


def _side_by_side(net: Net, way: Way, probe: _Probe) -> list[Scores]:
    return read(net, way, [probe.text, probe.other], probe.k, [0, probe.length], rows=_ROWS)[0]


def _in_chunks(net: Net, way: Way, probe: _Probe) -> list[Scores]:
    n = probe.length
    return read(net, way, [probe.text], probe.k, [0, n * 3 // 7, n * 4 // 5, n], rows=_ROWS)[0]


def _after_copies(net: Net, way: Way, probe: _Probe) -> list[Scores]:
    """Read the first part, continue a copy of its cache with something else, then another copy with the rest."""
    before, cache = _first_part(net, way, probe)
    middle, n = _middle(probe), probe.length
    read(net, way, [_continued(probe)], probe.k, [middle, n], copy_cache(cache), rows=_ROWS)
    after, _ = read(net, way, [probe.text.within(middle, n)], probe.k, [middle, n], copy_cache(cache), rows=_ROWS)
    return [join([before, after[0]])]


def _rows_after_copies(net: Net, way: Way, probe: _Probe) -> list[Scores]:
    before, cache = _first_part(net, way, probe)
    middle, n = _middle(probe), probe.length
    texts = [_continued(probe), probe.text.within(middle, n)]
    after, _ = read(net, way, texts, probe.k, [middle, n], copy_cache(cache, 2), rows=_ROWS)
    return [join([before, after[1]])]


def _first_part(net: Net, way: Way, probe: _Probe) -> tuple[Scores, Any]:
    middle = _middle(probe)
    found, cache = read(net, way, [probe.text.within(0, middle)], probe.k, [0, middle], keep_cache=True, rows=_ROWS)
    return found[0], cache


def _middle(probe: _Probe) -> int:
    return probe.length // 2


def _continued(probe: _Probe) -> Text:
    """The first half of the text, then something else, of another length."""
    middle = _middle(probe)
    ids = np.concatenate([probe.text.ids[:middle], probe.other.ids[: middle // 2]])
    return Text(ids, np.array([len(ids) - 1], dtype=np.int32))


# --- comparing ------------------------------------------------------------------------------------------------------


def _name(net: Net) -> str:
    return type(net.wrapper).__name__


def _probe(net: Net, ids: Sequence[int]) -> _Probe:
    length = _length(net)
    line = np.resize(np.asarray(ids, dtype=np.int32), length)
    other = line[::-1][: length * 2 // 3]
    text, shorter = (Text(part, _spread(len(part))) for part in (line, np.ascontiguousarray(other)))
    return _Probe(text, shorter, (_plain_scores(net, text), _plain_scores(net, shorter)))


def _spread(n: int) -> npt.NDArray[np.int32]:
    last = n - 1 - n // 8
    return np.unique(np.linspace(1, last, min(last * 5 // 6, _POSITIONS)).astype(np.int32))


def _plain_scores(net: Net, text: Text) -> Scores:
    """By a plain forward pass, full log-softmax and full sort; shares nothing with the fast ways."""
    ids = torch.from_numpy(text.ids).to(net.device, torch.int64)
    with net.no_grad(), fresh_rope(net.outer):
        logits = net.plain(ids[None])[0]
        rows = logits[torch.from_numpy(text.targets - 1).to(logits.device, torch.int64)].float().log_softmax(dim=1)
    logprob = rows.gather(1, ids[text.targets].to(rows.device)[:, None])
    best, order = rows.sort(dim=1, descending=True)
    arrays = (logprob[:, 0], (rows > logprob).sum(1) + 1, best[:, :_TOP], order[:, :_TOP])
    return Scores(*(array.cpu().numpy() for array in arrays))


def _length(net: Net) -> int:
    """Long enough to leave a sliding window behind where that is cheap."""
    windows = [getattr(net.config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
    small = [window for window in windows if 0 < window <= _LONGEST_WINDOW]
    most = int(getattr(net.config, "max_position_embeddings", 0) or 0)
    return min(max([0, *small]) + _LENGTH, most if most > 0 else 1 << 30)


def _disagreement(net: Net, probe: _Probe, attempt: Callable[[], list[Scores]]) -> str:
    """Why what `attempt` finds for the text (and the other one) cannot be trusted; empty if it can."""
    try:
        found = attempt()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return net.reason(f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}")
    reasons = [_difference(net, *pair) for pair in zip(found, probe.scores, strict=False)]
    return net.reason(next(filter(None, reasons), ""))


def _difference(net: Net, found: Scores, expected: Scores) -> str:
    ours = np.column_stack([found.logprob, found.topk_logprobs])
    plain = np.column_stack([expected.logprob, expected.topk_logprobs])
    same = (ours == plain) | (np.isnan(ours) & np.isnan(plain))  # NaN in both: a diverged model, refused later
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(ours - plain))
    mean = float(np.nan_to_num(apart, nan=np.inf).mean())
    if mean <= _TOLERANCE.get(net.autocast or net.dtype, _TOLERANCE_ELSE):
        return ""
    return f"log-probabilities differ from the plain forward pass by {mean:.2g} on average, up to {apart.max():.2g}"
