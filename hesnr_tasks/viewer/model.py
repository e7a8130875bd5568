"""The data of the viewer: a labelled text in blocks, its totals by turn, and its tokens with a model's values.

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
from hesnr_tasks.metrics import EPSILON, topk_entropy
from hesnr_tasks.rendering import Block, ChatTemplate, NativeRenderer, Rendered, kind_code, label_mask, render
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.trajectory import Kind, Trajectory

__all__ = [
    "ScoredRun",
    "TokenView",
    "Totals",
    "TrajectoryView",
    "columns",
    "load_tokenizer",
    "tokenize",
    "totals",
    "view_of",
]

_COUNTED = label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))  # what the paper's metric counts
_CANDIDATES = 10  # shown of each token


class FilterHit(NamedTuple):
    """Characters `start` to `end`, all dropped by the same filters: bit i stands for the i-th of `FILTERS`."""

    start: int
    end: int
    bits: int


@dataclass(frozen=True, slots=True)
class TrajectoryView:
    """A rendered trajectory; the blocks cover its text exactly once, in order, and hits lie in actions."""

    trajectory: Trajectory
    rendered: Rendered
    codes: npt.NDArray[np.uint8]  # (characters,) label codes, see rendering.py
    bits: npt.NDArray[np.uint8]  # (characters,) filters that drop a character, as bit sets; 0 outside actions
    blocks: tuple[Block, ...]
    hits: tuple[FilterHit, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return self.rendered.text

    @property
    def turns(self) -> int:
        """The number of turns."""
        return self.blocks[-1].turn if self.blocks else 0


def view_of(
    trajectory: Trajectory, rendering: str = "transcript", template: ChatTemplate | NativeRenderer | None = None
) -> TrajectoryView:
    """Render and label `trajectory`; errors are those of `hesnr_tasks.rendering.render`."""
    rendered = render(trajectory, rendering, template)
    codes = char_codes(rendered)
    action = kind_code(Kind.ACTION)
    bits = np.where(codes > action, codes - action, 0).astype(np.uint8)
    borders = [0, *(np.flatnonzero(np.diff(bits)) + 1).tolist(), len(bits)]
    hits = (FilterHit(a, b, int(bits[a])) for a, b in itertools.pairwise(borders) if a < b and bits[a])
    return TrajectoryView(trajectory, rendered, codes, bits, tuple(rendered.blocks()), tuple(hits))


# --- totals -----------------------------------------------------------------------------------------------------------


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


def totals(
    view: TrajectoryView, labels: npt.NDArray[np.uint64] | None = None, turns: npt.NDArray[np.int32] | None = None
) -> list[Totals]:
    """Totals of each turn, the first at index 0.

    Args:
        view: the labelled text.
        labels: of all tokens (`alignment.token_labels`), to count tokens too.
        turns: of all tokens (`alignment.token_turns`).
    """
    by_turn = [Totals() for _ in range(view.turns)]
    for block in view.blocks:
        turn = by_turn[block.turn - 1]
        turn.characters[block.kind] += block.end - block.start
        if block.kind is Kind.ACTION:
            bits = view.bits[block.start : block.end]
            turn.kept += int((bits == 0).sum())
            for i, name in enumerate(FILTERS):
                turn.dropped[name] += int((bits >> i & 1).sum())
    if labels is not None and turns is not None:
        for number, turn in enumerate(by_turn, 1):
            in_turn = labels[turns == number]
            turn.tokens, turn.counted = len(in_turn), int(((in_turn & _COUNTED) != 0).sum())
    return by_turn


# --- tokens -----------------------------------------------------------------------------------------------------------


class TokenView(NamedTuple):
    """One token: the characters `start` to `end` it covers, and a model's values of it (None: not known).

    `surprisal` is −ln p(x_t), `entropy` H_top10, both in nats; `top` lists (text, probability) of the top-k tokens,
    descending. Tokens come in the order of the text. Several may cover one character (its bytes are split).
    """

    start: int
    end: int
    surprisal: float | None = None
    entropy: float | None = None
    in_decision_set: bool = False
    top: Sequence[tuple[str, float]] = ()


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


def tokenize(view: TrajectoryView, encoder: Encoder) -> tuple[list[TokenView], list[Totals]]:
    """Tokenise as scoring would: the tokens that cover characters, and the totals of each turn with token counts.

    Raises:
        ScoringError: as `Encoder.encode`.
    """
    encoded = encoder.encode(view.rendered)
    turns = totals(view, token_labels(encoded, view.codes), token_turns(encoded, view.rendered))
    spans = zip(encoded.start.tolist(), encoded.end.tolist(), strict=True)
    return [TokenView(start, end) for start, end in spans if end > start], turns


class ScoredRun:
    """The score files in a folder, as tokens with a model's values. Raises `StoreError` where there are none."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._store = ScoreStore.open(folder)
        self._vocabulary = self._store.token_bytes()
        self._mask = label_mask([Kind.ACTION], list(FILTERS), list(self._store.signature["filters"]))

    @property
    def name(self) -> str:
        """The model's name on the page."""
        return Path(self._folder).resolve().name

    @property
    def rendering(self) -> str:
        """The rendering of the texts that were scored."""
        rendering = str(self._store.signature["render"])
        if rendering not in ("transcript", "chatml", "native"):
            raise SettingsError(
                f"the scores in {self._folder} were made with --apply_chat_template, which is not at hand here. Score "
                "with render=native, transcript or chatml to look at tokens."
            )
        return rendering

    def tokens(self, view: TrajectoryView) -> list[TokenView]:
        """The scored tokens of a trajectory; 𝓗 is that of the paper's metric (filtered actions)."""
        key = labelled_key(view.text, view.codes)
        if key not in self._store:
            raise DataError(
                f"{self._folder} has no scores of trajectory {view.trajectory.id!r} with this text. It was scored from "
                "another file or by another version, or not at all; `--id` shows one of those that were."
            )
        tokens = self._store.read(key)
        scores = tokens.scores
        entropy = topk_entropy(scores.topk_logprobs, _CANDIDATES)
        high = (entropy > EPSILON) & (scores.rank >= 1) & (scores.rank <= _CANDIDATES) & tokens.selected(self._mask)
        ids = scores.topk_ids[:, :_CANDIDATES].tolist()
        probabilities = np.exp(scores.topk_logprobs[:, :_CANDIDATES].astype(np.float64)).tolist()
        return [
            TokenView(
                int(tokens.char_start[i]),
                int(tokens.char_end[i]),
                -float(scores.logprob[i]),
                float(entropy[i]),
                bool(high[i]),
                list(zip(map(self._text, ids[i]), probabilities[i], strict=True)),
            )
            for i in range(len(tokens.position))
        ]

    def _text(self, token: int) -> str:
        text = self._vocabulary[token] if self._vocabulary and token < len(self._vocabulary) else None
        return f"⟨{token}⟩" if text is None else text.decode(errors="replace")


# --- tokens as columns ------------------------------------------------------------------------------------------------


def columns(
    view: TrajectoryView,
    tokens: Sequence[TokenView],
    compare: Sequence[TokenView] | None,
    offset: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """The tokens as columns for the page; a column that holds nothing is left out.

    Args:
        view: the text that the tokens cover.
        tokens: in order; `gap` in the result is from one start to the next.
        compare: another model's values of the same tokens, matched by their characters; a token without a match has
            none.
        offset: of each character, and of the end, in UTF-16 units; shape (characters + 1,).

    Raises:
        DataError: tokens do not fit the text.
    """
    for own in (tokens, compare or ()):
        before = 0
        for i, token in enumerate(own):
            if not before <= token.start < token.end <= len(view.text):
                raise DataError(
                    f"token {i} of trajectory {view.trajectory.id!r} covers characters {token.start} to {token.end}, "
                    f"which does not fit a text of {len(view.text)} characters in order. The scores were made from "
                    "another version or another rendering of it."
                )
            before = token.start
    strings: dict[str, int] = {}
    start, end = (offset[np.array([getattr(t, side) for t in tokens], dtype=np.int64)] for side in ("start", "end"))
    result: dict[str, Any] = {
        "gap": np.diff(start, prepend=0).tolist(),
        "length": (end - start).tolist(),
        "a": _values(tokens, strings),
    }
    if compare is not None:
        others = dict(_keyed(compare))
        matched = [others.get(key) for key, _ in _keyed(tokens)]
        result["b"] = _values(matched, strings)
        result["unmatched"] = sum(t is None for t in matched)
    return result | {"strings": list(strings)}


def _keyed(tokens: Sequence[TokenView]) -> Iterator[tuple[tuple[int, int, int], TokenView]]:
    """Each token under its characters and its number among the tokens of the same characters."""
    seen: Counter[tuple[int, int]] = Counter()
    for token in tokens:
        span = (token.start, token.end)
        yield (*span, seen[span]), token
        seen[span] += 1


def _values(tokens: Sequence[TokenView | None], strings: dict[str, int]) -> dict[str, list[Any]]:
    def top(token: TokenView) -> list[float | int | None]:
        pairs = ((strings.setdefault(text, len(strings)), _number(probability)) for text, probability in token.top)
        return list(itertools.chain.from_iterable(pairs))

    values: dict[str, list[Any]] = {
        "surprisal": [_number(t.surprisal) if t else None for t in tokens],
        "entropy": [_number(t.entropy) if t else None for t in tokens],
        "decision": [int(t.in_decision_set) if t else 0 for t in tokens],
        "top": [top(t) if t else [] for t in tokens],
    }
    return {name: column for name, column in values.items() if any(value not in (None, 0, []) for value in column)}


def _number(value: float | None) -> float | None:
    """Five significant digits, as the page shows; None for what JSON cannot hold."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
