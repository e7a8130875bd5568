"""The engine: decides how much is read at a time, and goes on with less when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scoring.hf_check import choose_way
from hesnr_tasks.scoring.hf_memory import Needs, free_bytes, is_out_of_memory, measure
from hesnr_tasks.scoring.hf_net import Net
from hesnr_tasks.scoring.hf_read import Way, head_rows, read, split
from hesnr_tasks.scoring.types import Passage, Scores

__all__ = ["Engine"]

_log = logging.getLogger("hesnr_tasks")
T = TypeVar("T")

_SURELY_FITS = 1024  # tokens that are read in one pass without asking
_SMALLEST = 128  # tokens; with chunks shorter than this, out of memory is final
_SHARE = 0.8  # of the free memory of a GPU
_HOST_SHARE = 0.5  # of the free memory of the host …
_HOST_MOST = 1 << 31  # … but at most this: beyond it, one pass is no faster


class Engine:
    """Scores passages with one model; `sample`: ids of some text, for the self-check."""

    def __init__(self, net: Net, sample: Sequence[int]) -> None:
        self.net = net
        self.way: Way = choose_way(net, sample)
        self._sample = torch.tensor([list(sample)], device=net.device)
        self._longest = 1 << 62  # chunk length that memory allowed so far

    def score(self, passage: Passage, k: int, progress: Callable[[int], object]) -> Scores:
        """Scores of one passage; `progress` gets numbers of tokens that sum to the passage's length."""
        ids = torch.from_numpy(passage.ids).to(self.net.device, torch.int64)
        targets = torch.from_numpy(passage.targets).to(self.net.device, torch.int64)
        n = int(passage.targets[-1])  # the last target is not read, it is only predicted
        bar = _Steady(progress)

        def attempt(chunk: int) -> Scores:
            bar.restart()
            return read(self.net, self.way, ids, targets, k, split(n, chunk), bar.step)

        scores = self._with_less(attempt, self.chunk_length(n), passage.name)
        bar.finish(len(ids))
        return scores

    def chunk_length(self, n: int) -> int:
        """How many of `n` tokens to read at a time."""
        if not self.way.cached:
            return n
        most = self._longest if self.way.head == "stub" else min(self._longest, head_rows(self.net))
        if n > _SURELY_FITS and self._needs.one_pass(n) > self._budget(n):
            per_token = self._needs.chunk(1, n)
            most = min(most, max(_SURELY_FITS, int(self._budget(n) / per_token)))
        return max(1, min(n, most))

    @cached_property
    def _needs(self) -> Needs:
        with torch.inference_mode():
            return measure(self.net, self._sample, self.way.cached)

    def _budget(self, n: int) -> float:
        free = free_bytes(self.net.device) - self._needs.cached_token * n
        return _SHARE * free if self.net.device.type == "cuda" else min(_HOST_SHARE * free, _HOST_MOST)

    def _with_less(self, attempt: Callable[[int], T], chunk: int, name: str) -> T:
        """`attempt(chunk)`, with half the chunk whenever memory runs out."""
        while True:
            try:
                return attempt(chunk)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).strip().splitlines()[0]
            if self.net.device.type == "cuda":
                torch.cuda.empty_cache()
            chunk = self._halve(chunk, name, reason)

    def _halve(self, chunk: int, name: str, reason: str) -> int:
        if not self.way.cached or chunk // 2 < _SMALLEST:
            raise ScoringError(
                f"trajectory {name!r} does not fit into memory ({reason})"
                + ("" if self.way.cached else ", and this model cannot be read in chunks")
                + ". Free some memory, load the model with dtype=bfloat16, spread it with parallelize=True, or set a "
                "smaller max_length in --model_args."
            )
        self._longest = chunk // 2
        _log.warning("out of memory with %d tokens at a time (%s); going on with %d", chunk, reason, self._longest)
        return self._longest


class _Steady:
    """Passes progress on; after a restart, only what goes beyond the point already reported."""

    def __init__(self, progress: Callable[[int], object]) -> None:
        self._progress = progress
        self._at = self._told = 0

    def restart(self) -> None:
        self._at = 0

    def step(self, tokens: int) -> None:
        self._at += tokens
        if self._at > self._told:
            self._progress(self._at - self._told)
            self._told = self._at

    def finish(self, total: int) -> None:
        self._progress(total - self._told)
