"""Single decision tokens near ln 2, ln 3, ln 4: the text before them, and what the model weighed up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection
from hesnr_tasks.analysis.tables import Table

__all__ = ["CASE_WAYS", "Speller", "case_table"]

CASE_WAYS = (2, 3, 4)
_BEFORE = 240  # characters of text before the token
_SHOWN = 10  # candidates


def case_table(frame: Frame, chosen: Selection, k: int, each: int = 5, ways: Sequence[int] = CASE_WAYS) -> Table:
    """The `each` tokens nearest ln 2, ln 3 and ln 4 with the target among the k candidates, one of a trajectory.

    Probabilities are those over the full vocabulary. Entropies in nats.
    """
    counted = frame.counted(chosen.mask) & (frame.rank >= 1) & (frame.rank <= k)
    spell = Speller(frame)
    rows = [
        {"run": frame.name, "select": chosen.name, "k": k, "near": f"ln {near}", **_case(frame, int(at), k, spell)}
        for near in ways
        for at in _nearest(frame, counted, k, math.log(near), each)
    ]
    title = "Decision tokens nearest " + ", ".join(f"ln {near}" for near in ways)
    note = "candidates: token and probability over the full vocabulary; the text before ends where the token begins"
    return Table(
        "cases", title, rows, (note,), wide=("key", "token_id", "candidate_ids"), below=("before", "candidates")
    )


def _nearest(frame: Frame, counted: npt.NDArray[np.bool_], k: int, entropy: float, each: int) -> npt.NDArray[np.int64]:
    at = np.flatnonzero(counted)
    at = at[np.argsort(np.abs(frame.entropy[k][at] - entropy), kind="stable")]
    owner = np.searchsorted(frame.bounds, at, side="right") - 1
    _, first = np.unique(owner, return_index=True)
    return at[np.sort(first)[:each]]


def _case(frame: Frame, at: int, k: int, spell: Speller) -> dict[str, Any]:
    owner = int(np.searchsorted(frame.bounds, at, side="right")) - 1
    entry, row = frame.entries[owner], int(frame.row[at])
    names = ("position", "turn", "token_id", "char_start", "char_end", "topk_logprobs", "topk_ids")
    _, columns = frame.store.columns(entry.key, names)
    text = frame.store.text(entry.key).rendered.text
    start, end = int(columns["char_start"][row]), int(columns["char_end"][row])
    ids = columns["topk_ids"][row, : min(k, _SHOWN)].tolist()
    weights = np.exp(columns["topk_logprobs"][row, : min(k, _SHOWN)].astype(np.float64)).tolist()
    return {
        "trajectory": ",".join(source.id for source in entry.sources),
        "key": entry.key,
        "turn": int(columns["turn"][row]),
        "position": int(columns["position"][row]),
        "entropy": float(frame.entropy[k][at]),
        "p": float(np.exp(np.float64(frame.logprob[at]))),
        "rank": int(frame.rank[at]),
        "token_id": int(columns["token_id"][row]),
        "token": text[start:end],
        "before": text[max(0, start - _BEFORE) : start],
        "candidates": [[spell(token), round(weight, 6)] for token, weight in zip(ids, weights, strict=True)],
        "candidate_ids": ids,
    }


class Speller:
    """What a token id of a run spells: from the stored vocabulary, or else from a place where the token stands."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._vocabulary = frame.store.vocabulary()
        self._seen: Mapping[int, str] | None = None

    def __call__(self, token: int) -> str:
        """The text of a token id; `#` and the id where nothing tells."""
        if self._vocabulary is not None:
            found = self._vocabulary[token] if token < len(self._vocabulary) else None
            return found.decode(errors="replace") if found is not None else f"#{token}"
        if self._seen is None:
            self._seen = dict(self._from_texts())
        return self._seen.get(token, f"#{token}")

    def _from_texts(self) -> Iterator[tuple[int, str]]:
        for entry in self._frame.entries:
            _, columns = self._frame.store.columns(entry.key, ("token_id", "char_start", "char_end"))
            text = self._frame.store.text(entry.key).rendered.text
            tokens, first = np.unique(columns["token_id"], return_index=True)
            spans = zip(columns["char_start"][first].tolist(), columns["char_end"][first].tolist(), strict=True)
            yield from ((token, text[a:b]) for token, (a, b) in zip(tokens.tolist(), spans, strict=True))
