"""The self-check: which of the fast ways of reading gives this model's own numbers.

Some architectures go wrong silently: Mamba-1 drops its state between chunks, Gemma 2's head cannot be applied by hand,
some wrappers return no cache. So every way is tried on the loaded model, on a short text, against a plain forward
pass, and the best one that agrees is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scoring.hf_heads import usable_heads
from hesnr_tasks.scoring.hf_memory import is_out_of_memory
from hesnr_tasks.scoring.hf_net import Net
from hesnr_tasks.scoring.hf_read import Way, read
from hesnr_tasks.scoring.types import Scores

__all__ = ["TEXT", "choose_way"]

_log = logging.getLogger("hesnr_tasks")
_K = 10
_POSITIONS = 96  # compared at most
_LONGEST_WINDOW = 1024  # sliding windows up to here are straddled by the text
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

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
    """A short text and what a plain forward pass makes of it."""

    ids: torch.Tensor  # (n,)
    targets: torch.Tensor  # (m,)
    scores: Scores


def choose_way(net: Net, ids: Sequence[int]) -> Way:
    """The best way of reading that agrees with the plain forward pass; `ids`: some tokens of real text.

    Every way given up is logged with the reason. Raises `ScoringError` if the model does not agree with itself.
    """
    probe = _probe(net, ids)
    way = _choose_head(net, probe)
    return _choose_cache(net, way, probe)


def _choose_head(net: Net, probe: _Probe) -> Way:
    heads = usable_heads(net)
    for head in heads:
        reason = _disagreement(net, Way(head), probe, [0, len(probe.ids)])
        if not reason:
            return Way(head)
        _log.warning("%s: logits at selected positions by %r do not work here (%s)", _name(net), head, reason)
    raise ScoringError(
        f"{_name(net)} gives other numbers for the same text when it is read twice ({reason}); it cannot be scored. "
        "Is dropout on, or does the model draw random numbers?"
    )


def _choose_cache(net: Net, way: Way, probe: _Probe) -> Way:
    n, reason = len(probe.ids), "its forward takes no cache"
    for positions in (True, False) if net.cache_name else ():
        if positions and "position_ids" not in net.takes:
            continue
        chunked = replace(way, cached=True, positions=positions)
        reason = _disagreement(net, chunked, probe, [0, n * 3 // 7, n * 4 // 5, n])
        if not reason:
            return chunked
    _log.warning(
        "%s cannot be read in chunks (%s); every text is read in one pass, however much memory that takes",
        _name(net), reason,
    )  # fmt: skip
    return way


def _name(net: Net) -> str:
    return type(net.wrapper).__name__


def _probe(net: Net, ids: Sequence[int]) -> _Probe:
    length = _length(net)
    text = torch.tensor(list(ids), device=net.device).repeat(-(-length // len(ids)))[:length]
    targets = torch.linspace(1, length - 1, min(length - 1, _POSITIONS)).long().to(net.device)
    with torch.inference_mode():
        logits = net.plain(text[None])[0]
        rows = logits[(targets - 1).to(logits.device)].float().log_softmax(dim=1)
    k = min(_K, rows.shape[1])
    top, best = rows.sort(dim=1, descending=True)
    logprob = rows.gather(1, text[targets].to(rows.device)[:, None])
    rank = (rows > logprob).sum(1) + 1
    arrays = (logprob[:, 0], rank, top[:, :k], best[:, :k])
    return _Probe(text, targets, Scores(*(array.cpu().numpy() for array in arrays)))


def _length(net: Net) -> int:
    """Long enough to leave a sliding window behind where that is cheap."""
    windows = [getattr(net.config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
    small = [window for window in windows if 0 < window <= _LONGEST_WINDOW]
    return min(max([0, *small]) + _POSITIONS, int(getattr(net.config, "max_position_embeddings", 0) or 1 << 30))


def _disagreement(net: Net, way: Way, probe: _Probe, edges: Sequence[int]) -> str:
    """Why `way` cannot be trusted; empty if it can."""
    try:
        found = read(net, way, probe.ids, probe.targets, probe.scores.topk_ids.shape[1], edges)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return _difference(net, found, probe.scores)


def _difference(net: Net, found: Scores, expected: Scores) -> str:
    ours = np.column_stack([found.logprob, found.topk_logprobs])
    plain = np.column_stack([expected.logprob, expected.topk_logprobs])
    apart = np.where(np.isnan(ours) & np.isnan(plain), 0.0, np.abs(ours - plain))  # a diverged model: not our fault
    worst = float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
    if worst <= _TOLERANCE.get(net.autocast or net.dtype, 1e-1):
        return ""
    return f"log-probabilities differ from the plain forward pass by up to {worst:.2g}"
