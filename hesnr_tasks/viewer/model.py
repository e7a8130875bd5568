"""What there is to see of one trajectory: its text in blocks of one kind, what the filters hit, and the totals.

The text is the one a model would read (`rendering`), so that offsets of score files fit it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.alignment import Encoder, token_labels, token_turns
from hesnr_tasks.backends import labelled_key
from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.labels import kind_code, label_mask
from hesnr_tasks.metrics import EPSILON, topk_entropy
from hesnr_tasks.rendering import Block, ChatTemplate, Rendered, render
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.trajectory import Kind, Trajectory

__all__ = [
    "Hit",
    "ScoredRun",
    "TokenView",
    "Totals",
    "View",
    "columns",
    "filter_bits",
    "load_tokenizer",
    "tokenize",
    "totals",
    "view_of",
]

COUNTED = label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))  # what the paper's metric counts


class Hit(NamedTuple):
    """Characters `start` to `end`, all dropped by the same filters: bit i stands for the i-th of `FILTERS`."""

    start: int
    end: int
    bits: int


@dataclass(frozen=True, slots=True)
class View:
    """A rendered trajectory; the blocks cover its text exactly once, in order, and hits lie in actions."""

    trajectory: Trajectory
    rendered: Rendered
    codes: npt.NDArray[np.uint8]  # (characters,) label codes, see labels.py
    blocks: tuple[Block, ...]
    hits: tuple[Hit, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return self.rendered.text

    @property
    def turns(self) -> int:
        """The number of turns."""
        return self.blocks[-1].turn if self.blocks else 0


@dataclass
class Totals:
    """Counts of a turn or of a whole trajectory. Tokens are None when no tokenizer was given."""

    characters: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    kept: int = 0  # action characters that no filter drops
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILTERS, 0))  # a character may be in several
    tokens: int | None = None
    counted: int | None = None  # tokens that cover a kept character

    def add(self, other: Totals) -> None:
        """Add the counts of `other` to these."""
        for kind, count in other.characters.items():
            self.characters[kind] += count
        for name, count in other.dropped.items():
            self.dropped[name] += count
        self.kept += other.kept
        if other.tokens is not None and other.counted is not None:
            self.tokens = (self.tokens or 0) + other.tokens
            self.counted = (self.counted or 0) + other.counted


def view_of(trajectory: Trajectory, rendering: str = "transcript", template: ChatTemplate | None = None) -> View:
    """Render and label `trajectory`; errors are those of `hesnr_tasks.rendering.render`."""
    rendered = render(trajectory, rendering, template)
    codes = char_codes(rendered)
    return View(trajectory, rendered, codes, tuple(rendered.blocks()), tuple(_hits(codes)))


def totals(
    view: View, labels: npt.NDArray[np.uint64] | None = None, turns: npt.NDArray[np.int32] | None = None
) -> list[Totals]:
    """Totals of each turn, the first at 0. `labels` and `turns` of all tokens (alignment.py) add the token counts."""
    made = [Totals() for _ in range(view.turns)]
    bits = filter_bits(view.codes)
    for block in view.blocks:
        turn = made[block.turn - 1]
        turn.characters[block.kind] += block.end - block.start
        if block.kind is Kind.ACTION:
            _count_action(turn, bits[block.start : block.end])
    if labels is not None and turns is not None:
        for number, turn in enumerate(made, 1):
            here = labels[turns == number]
            turn.tokens, turn.counted = len(here), int(((here & COUNTED) != 0).sum())
    return made


def _count_action(turn: Totals, bits: npt.NDArray[np.uint8]) -> None:
    turn.kept += int((bits == 0).sum())
    for i, name in enumerate(FILTERS):
        turn.dropped[name] += int((bits >> i & 1).sum())


def filter_bits(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The filters that hit each character, as bit sets, from its label code; 0 outside actions."""
    action = kind_code(Kind.ACTION)
    return np.where(codes > action, codes - action, 0).astype(np.uint8)


def _hits(codes: npt.NDArray[np.uint8]) -> Iterator[Hit]:
    bits = filter_bits(codes)
    borders = [0, *(np.flatnonzero(np.diff(bits)) + 1).tolist(), len(bits)]
    for start, end in itertools.pairwise(borders):
        if start < end and bits[start]:
            yield Hit(start, end, int(bits[start]))


# --- Tokens to look at: their characters, and (once a model has read them) what it thought of them ---


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


# --- Tokens as a model scored them, from the score files of a run ---

_SHOWN = 10  # candidates on hover


class ScoredRun:
    """The score files in a folder, as tokens to look at. Raises `StoreError` where there are none."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._store = ScoreStore.open(folder)
        self._vocabulary = self._store.vocabulary()
        self._mask = label_mask([Kind.ACTION], list(FILTERS), list(self._store.signature["filters"]))

    @property
    def name(self) -> str:
        """What the page calls this model."""
        return Path(self._folder).resolve().name

    @property
    def rendering(self) -> str:
        """The rendering of the texts that were scored."""
        found = str(self._store.signature["render"])
        if found not in ("transcript", "chatml"):
            raise SettingsError(
                f"the scores in {self._folder} were made with the model's own chat template, which is not at hand "
                "here. Score with render=transcript or render=chatml to look at tokens."
            )
        return found

    def tokens(self, view: View) -> list[TokenView]:
        """The scored tokens of a trajectory; 𝓗 is that of the paper's metric (filtered actions)."""
        key = labelled_key(view.text, view.codes)
        if key not in self._store:
            raise DataError(
                f"{self._folder} has no scores of trajectory {view.trajectory.id!r} with this text. It was scored from "
                "another file or by another version, or not at all; `--id` shows one of those that were."
            )
        found = self._store.read(key)
        entropy = topk_entropy(found.scores.topk_logprobs, _SHOWN)
        rank = found.scores.rank
        high = (entropy > EPSILON) & (rank >= 1) & (rank <= _SHOWN) & found.selected(self._mask)
        chances = np.exp(found.scores.topk_logprobs[:, :_SHOWN].astype(np.float64))
        return [
            TokenView(
                int(found.char_start[i]),
                int(found.char_end[i]),
                -float(found.scores.logprob[i]),
                float(entropy[i]),
                bool(high[i]),
                [
                    (self._spelled(index), chance)
                    for index, chance in zip(
                        found.scores.topk_ids[i, :_SHOWN].tolist(), chances[i].tolist(), strict=True
                    )
                ],
            )
            for i in range(len(found.position))
        ]

    def _spelled(self, token: int) -> str:
        spelled = self._vocabulary[token] if self._vocabulary and token < len(self._vocabulary) else None
        return f"⟨{token}⟩" if spelled is None else spelled.decode(errors="replace")
