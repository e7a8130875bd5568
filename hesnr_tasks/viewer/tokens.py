"""Tokens to look at: their characters, and (once a model has read them) what it thought of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.alignment import Encoder, token_labels, token_turns
from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.viewer.view import Totals, View, totals

__all__ = ["TokenView", "Tokenized", "columns", "load_tokenizer", "tokenize"]


class TokenView(NamedTuple):
    """One token: the characters `start` to `end` it covers, and what a model said; None: not known.

    `surprisal` is −ln p(x_t), `entropy` H_top10, both in nats; `top` lists (text, probability) of the likeliest tokens,
    falling. Tokens come in the order of the text. Several may cover one character (its bytes are split).
    """

    start: int
    end: int
    surprisal: float | None = None
    entropy: float | None = None
    in_decision_set: bool = False
    top: Sequence[tuple[str, float]] = ()


class Tokenized(NamedTuple):
    """All tokens that cover characters, and the totals of each turn with token counts."""

    tokens: list[TokenView]
    turns: list[Totals]


def load_tokenizer(path: str) -> Encoder:
    """The tokenizer at a folder or hub id; runs no code that comes with it."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise HesnrError("--tokenizer needs transformers. Install it with: pip install 'hesnr-tasks[hf]'") from None
    try:
        return Encoder(AutoTokenizer.from_pretrained(path, trust_remote_code=False))
    except Exception as error:  # the hub, the network and tokenizer files raise what they like
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
        raise SettingsError(
            f"the tokenizer {path!r} cannot be loaded ({reason}). Give the folder of a checkpoint, or a hub id."
        ) from error


def tokenize(view: View, encoder: Encoder) -> Tokenized:
    """Tokenise the text of `view` as scoring would; raises `ScoringError` as `Encoder.encode` does."""
    encoded = encoder.encode(view.rendered)
    turns = totals(view, token_labels(encoded, view.codes), token_turns(encoded, view.rendered))
    spans = zip(encoded.start.tolist(), encoded.end.tolist(), strict=True)
    return Tokenized([TokenView(start, end) for start, end in spans if end > start], turns)


def columns(
    view: View, tokens: Sequence[TokenView], compare: Sequence[TokenView] | None, offset: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """The tokens as columns for the page. `offset`: for each character (and the end) its place in UTF-16 units.

    `gap` is from one start to the next. A column that holds nothing is left out. `compare`: another model's values of
    the same tokens, matched by their characters; a token without a match has none. Raises `DataError` if tokens do
    not fit the text.
    """
    _check(view, tokens)
    strings: dict[str, int] = {}
    start, end = (offset[np.array([getattr(t, side) for t in tokens], dtype=np.int64)] for side in ("start", "end"))
    made: dict[str, Any] = {
        "gap": np.diff(start, prepend=0).tolist(),
        "length": (end - start).tolist(),
        "a": _values(tokens, strings),
    }
    if compare is not None:
        _check(view, compare)
        found = dict(_keyed(compare))
        matched = [found.get(key) for key, _ in _keyed(tokens)]
        made["b"] = _values(matched, strings)
        made["unmatched"] = sum(t is None for t in matched)
    return made | {"strings": list(strings)}


def _keyed(tokens: Sequence[TokenView]) -> Iterator[tuple[tuple[int, int, int], TokenView]]:
    """Each token under its characters and its number among the tokens of the same characters."""
    seen: Counter[tuple[int, int]] = Counter()
    for token in tokens:
        place = (token.start, token.end)
        yield (*place, seen[place]), token
        seen[place] += 1


def _values(tokens: Sequence[TokenView | None], strings: dict[str, int]) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {
        "surprisal": [_number(t.surprisal) if t else None for t in tokens],
        "entropy": [_number(t.entropy) if t else None for t in tokens],
        "decision": [int(t.in_decision_set) if t else 0 for t in tokens],
        "top": [_top(t, strings) if t else [] for t in tokens],
    }
    return {name: column for name, column in made.items() if any(value not in (None, 0, []) for value in column)}


def _top(token: TokenView, strings: dict[str, int]) -> list[float | int | None]:
    flat: list[float | int | None] = []
    for text, probability in token.top:
        flat += [strings.setdefault(text, len(strings)), _number(probability)]
    return flat


def _number(value: float | None) -> float | None:
    """Five digits: what a page shows; None for what JSON cannot hold."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _check(view: View, tokens: Sequence[TokenView]) -> None:
    before = 0
    for i, token in enumerate(tokens):
        if not before <= token.start < token.end <= len(view.text):
            raise DataError(
                f"token {i} of trajectory {view.trajectory.id!r} covers characters {token.start} to {token.end}, "
                f"which does not fit a text of {len(view.text)} characters in order. The scores were made from another "
                "version or another rendering of it."
            )
        before = token.start
