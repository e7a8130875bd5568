"""Which tokens of a completion begin a pivotal word (because, however, first …), for the logs of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hesnr_tasks.alignment import Encoder
from hesnr_tasks.exploration.text import load_lexicon, prose, sentences

__all__ = ["LexiconPivotal"]


class LexiconPivotal:
    """The `pivotal` of `EntropyShapedGRPOMixin` from the lexicon of `hesnr_tasks.exploration`, in English prose.

    Takes the token ids of one completion, gives one bool for each: whether the first character of a pivotal word lies
    in it. `tokenizer` is that of the model; a token whose text it cannot tell counts as none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._spelling = Encoder(tokenizer).spellings()
        self._lexicon = load_lexicon()

    def __call__(self, ids: Sequence[int]) -> list[bool]:
        """One bool for each of `ids`."""
        pieces = [self._spell(one) for one in ids]
        text = b"".join(pieces).decode("utf-8", "surrogateescape")  # sampled tokens need not join to valid UTF-8
        ends = np.cumsum([len(piece) for piece in pieces])
        marks = np.zeros(len(pieces), dtype=bool)
        for start in self._starts(text):
            marks[np.searchsorted(ends, len(text[:start].encode("utf-8", "surrogateescape")), side="right")] = True
        return [bool(mark) for mark in marks]

    def _spell(self, one: int) -> bytes:
        return (self._spelling[one] if one < len(self._spelling) else None) or b""

    def _starts(self, text: str) -> list[int]:
        """Characters at which pivotal words begin."""
        flat = prose(text)
        return [s.words[hit.word].start for s in sentences(flat) for hit in self._lexicon.hits(flat, s)]
