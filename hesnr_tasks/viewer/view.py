"""What there is to see of one trajectory: its text in blocks of one kind, what the filters hit, and the totals.

The text is the one a model would read (`rendering`), so that offsets of score files fit it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.labels import kind_code, label_mask
from hesnr_tasks.rendering import Block, ChatTemplate, Rendered, render
from hesnr_tasks.trajectory import Kind, Trajectory

__all__ = ["COUNTED", "Hit", "Totals", "View", "filter_bits", "totals", "view_of"]

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
