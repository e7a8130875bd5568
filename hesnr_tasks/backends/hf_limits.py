"""How much is read at a time: by an estimate of memory, and by what happened when it was wrong."""

from __future__ import annotations

import logging
from functools import cached_property

import torch

from hesnr_tasks.backends.hf_memory import Needs, free_bytes, is_out_of_memory, measure
from hesnr_tasks.backends.hf_net import Net
from hesnr_tasks.backends.hf_read import Way, head_rows
from hesnr_tasks.backends.hf_rope import fresh_rope
from hesnr_tasks.errors import ScoringError

__all__ = ["Limits"]

_log = logging.getLogger("hesnr_tasks")

_SURELY_FITS = 1024  # tokens that are read at once without asking
_SMALLEST = 128  # tokens; with chunks shorter than this, out of memory is final
_SHARE = 0.8  # of the free memory of a GPU
_HOST_SHARE = 0.5  # of the free memory of the host …
_HOST_MOST = 1 << 29  # … but at most this: chunks of some thousand tokens are as fast as one pass
_ENOUGH = {"cpu": 4096}  # tokens side by side; more at a time are not faster
_ENOUGH_GPU = 16384
_ADVICE = (
    "Free some memory, load the model with dtype=bfloat16, spread it with parallelize=True, or set a smaller "
    "max_length in --model_args."
)


class Limits:
    """Of one model, read in one way. `sample`: (1, n) ids of some text, to measure memory with."""

    def __init__(self, net: Net, way: Way, sample: torch.Tensor) -> None:
        self._net, self._way, self._sample = net, way, sample
        self.longest = 1 << 62  # chunk length that memory has allowed so far

    def chunk(self, start: int, stop: int) -> int:
        """How many of the tokens `start` to `stop` to read at a time, the first `start` being in a cache."""
        n = stop - start
        if not self._way.cached:
            return n
        most = self.longest if self._way.head == "stub" else min(self.longest, head_rows(self._net))
        if stop > _SURELY_FITS and (start or not self._fits_at_once(n)):
            fits = max(_SURELY_FITS, int(self._budget(stop) / self._needs.chunk(1, stop)))
            most = min(most, 1 << (fits.bit_length() - 1))  # so that a little more memory does not change the numbers
        return max(1, min(self._net.together(min(n, most))))

    def _fits_at_once(self, n: int) -> bool:
        """Whether one pass, which keeps no cache, takes no more than the cache and the activations of chunks may."""
        return self._needs.one_pass(n) <= self._budget(n) + self._needs.cached_token * n

    def side_by_side(self) -> int:
        """How many tokens of several texts to read at once."""
        enough = _ENOUGH.get(self._net.device.type, _ENOUGH_GPU)
        return min(enough, self.longest, max(_SURELY_FITS, int(self._budget(enough) / self._needs.chunk(1, enough))))

    def halve(self, chunk: int, name: str, reason: str) -> int:
        """A shorter chunk after memory ran out; raises `ScoringError` where there is none."""
        if not self._way.cached or chunk // 2 < _SMALLEST:
            raise ScoringError(f"trajectory {name!r} does not fit into memory ({reason}){self._one_pass}. {_ADVICE}")
        self.longest = chunk // 2
        _log.warning("out of memory with %d tokens at a time (%s); going on with %d", chunk, reason, self.longest)
        return self.longest

    def refuse_too_long(self, n: int, name: str) -> None:
        """Raises `ScoringError` where `n` tokens must be read in one pass and the host's memory is too small for that.

        A GPU says so itself; a host would end the process.
        """
        if self._way.cached or n <= _SURELY_FITS or self._net.device.type == "cuda":
            return
        needs, free = self._needs.one_pass(n), free_bytes(self._net.device)
        lacking = f"{n} tokens take {needs / 1e9:.1f} GB, {free / 1e9:.1f} are free" if needs > free else ""
        if lacking := self._net.reason(lacking):
            raise ScoringError(f"trajectory {name!r} does not fit into memory ({lacking}){self._one_pass}. {_ADVICE}")

    @property
    def _one_pass(self) -> str:
        if self._way.cached:
            return ""
        return ", and this model cannot be read in chunks" + (
            ": its positions depend on the length of the text" if self._way.whole else ""
        )

    @cached_property
    def _needs(self) -> Needs:
        try:
            with self._net.no_grad(), fresh_rope(self._net.outer):
                way = self._way
                return measure(self._net, self._sample, head=way.head, cached=way.cached, unmasked=way.unmasked)
        except Exception as error:
            if is_out_of_memory(error) and not self._net.sharded:
                raise ScoringError(f"not even a short text fits into memory beside the model. {_ADVICE}") from error
            raise

    def _budget(self, n: int) -> float:
        """Bytes for activations when `n` tokens are in the cache."""
        free = free_bytes(self._net.device) - self._needs.cached_token * n
        return _SHARE * free if self._net.device.type == "cuda" else min(_HOST_SHARE * free, _HOST_MOST)
