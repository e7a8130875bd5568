"""Single decision tokens near ln 2, ln 3, ln 4: the text before them, and the candidates with their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hesnr_tasks.analysis.frame import Frame, Selection
from hesnr_tasks.analysis.tables import Table

_BEFORE = 240  # characters of text before the token
_SHOWN = 10  # candidates


class TokenTexts:
    """The text of each token id of a run: from the stored vocabulary, else from a text in which the token occurs."""

    def __init__(self, frame: Frame) -> None:
        self._frame, self._vocabulary = frame, frame.store.token_bytes()
        self._occurrences: dict[int, str] | None = None

    def __call__(self, token: int) -> str:
        """The text of a token id; `#` and the id where it is unknown."""
        if self._vocabulary is not None:
            data = self._vocabulary[token] if token < len(self._vocabulary) else None
            return data.decode(errors="replace") if data is not None else f"#{token}"
        if self._occurrences is None:
            self._occurrences, store = {}, self._frame.store
            for entry in self._frame.entries:
                _, columns = store.columns(entry.key, ("token_id", "char_start", "char_end"))
                text = store.text(entry.key).rendered.text
                tokens, first = np.unique(columns["token_id"], return_index=True)
                spans = zip(columns["char_start"][first].tolist(), columns["char_end"][first].tolist(), strict=True)
                self._occurrences |= {i: text[a:b] for i, (a, b) in zip(tokens.tolist(), spans, strict=True)}
        return self._occurrences.get(token, f"#{token}")


def case_table(frame: Frame, chosen: Selection, k: int, each: int = 5, near: Sequence[int] = (2, 3, 4)) -> Table:
    """The `each` tokens nearest ln 2, ln 3 and ln 4 with the target among the k candidates, one of a trajectory."""
    counted = np.flatnonzero(frame.counted(chosen.mask) & (frame.rank >= 1) & (frame.rank <= k))
    token_texts = TokenTexts(frame)
    rows = []
    for n in near:
        nearest = counted[np.argsort(np.abs(frame.entropy[k][counted] - math.log(n)), kind="stable")]
        owner = np.searchsorted(frame.bounds, nearest, side="right") - 1
        _, first = np.unique(owner, return_index=True)
        for index in nearest[np.sort(first)[:each]].tolist():
            named = {"run": frame.name, "select": chosen.name, "k": k, "near": f"ln {n}"}
            rows.append({**named, **decision(frame, index, k, token_texts)})
    title = "Decision tokens nearest " + ", ".join(f"ln {n}" for n in near)
    note = "candidates: token and probability over the full vocabulary; the text before ends where the token begins"
    return Table(
        "cases", title, rows, (note,), wide=("key", "token_id", "candidate_ids"), below=("before", "candidates")
    )


def decision(frame: Frame, index: int, k: int, token_texts: TokenTexts) -> dict[str, Any]:
    """One token of a frame: where it stands, its entropy (nats), its candidates with full-vocabulary probabilities."""
    entry = frame.entries[int(np.searchsorted(frame.bounds, index, side="right")) - 1]
    names = ("position", "turn", "token_id", "char_start", "char_end", "topk_logprobs", "topk_ids")
    _, columns = frame.store.columns(entry.key, names)
    row = {name: column[int(frame.row[index])] for name, column in columns.items()}
    text = frame.store.text(entry.key).rendered.text
    start, end, shown = int(row["char_start"]), int(row["char_end"]), min(k, _SHOWN)
    ids = row["topk_ids"][:shown].tolist()
    probabilities = np.exp(row["topk_logprobs"][:shown].astype(np.float64)).tolist()
    return {
        "trajectory": ",".join(source.id for source in entry.sources),
        "key": entry.key,
        "turn": int(row["turn"]),
        "position": int(row["position"]),
        "entropy": float(frame.entropy[k][index]),
        "p": float(np.exp(np.float64(frame.logprob[index]))),
        "rank": int(frame.rank[index]),
        "token_id": int(row["token_id"]),
        "token": text[start:end],
        "before": text[max(0, start - _BEFORE) : start],
        "candidates": [[token_texts(i), round(p, 6)] for i, p in zip(ids, probabilities, strict=True)],
        "candidate_ids": ids,
    }
