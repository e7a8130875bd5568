"""The steps of a trajectory, and how undecided the model was at each: from labelled tokens, without a model.

A step is one action. Its *decision words* are the words that say what is done: the tool's name, then the verb of the
first command that does something (`grep`, `git diff`, `sed -n`, `python -m pytest`; not `cd`, `export`, `timeout 60`)
or, of a tool that is no shell, the first word of its first parameter (`view`). On demand some words after them, the
arguments, decide too. Its decision tokens are the tokens that count (kinds and filters) and cover a character of these
words. With all filters the tool's name is call syntax and does not count: what is left is what a shell agent decides
by.

A step's entropy is H_topk at its decision tokens, combined (`entropy.combine`: by default the greatest). A step all of
whose decision tokens were filtered or cut off has none (NaN): it is counted, and takes no part in any average.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions.classes import decision_words
from hesnr_tasks.rendering import Rendered
from hesnr_tasks.search.entropy import combine
from hesnr_tasks.trajectory import Kind

__all__ = ["ARGUMENTS", "Measured", "Step", "measured", "steps_of"]

CharSpan = tuple[int, int]
FloatArray = npt.NDArray[np.float64]
ARGUMENTS = 0  # words after the verb that decide too, by default


class Step(NamedTuple):
    """One action: its turn, its characters in the text, and its decision words there."""

    turn: int
    start: int
    end: int
    words: tuple[CharSpan, ...]


class Measured(NamedTuple):
    """The steps of one trajectory, s of them."""

    value: FloatArray  # (s,) entropy in nats; NaN: no decision token was scored
    decides: npt.NDArray[np.bool_]  # (s,) one of its decision tokens is in 𝓗
    peak: npt.NDArray[np.int64]  # (s,) the token (row) with the greatest entropy; -1: none


def steps_of(rendered: Rendered, arguments: int = ARGUMENTS) -> list[Step]:
    """The actions of a text, in order. Neighbouring action spans of one turn are one action. Never raises."""
    found = []
    for (kind, turn), spans in itertools.groupby(rendered.spans, lambda span: (span.kind, span.turn)):
        run = list(spans)
        if kind is Kind.ACTION and rendered.text[run[0].start : run[-1].end].strip():
            start, end = run[0].start, run[-1].end
            places = decision_words(rendered.text[start:end], arguments)
            found.append(Step(turn, start, end, tuple((start + a, start + b) for a, b in places)))
    return found


def measured(
    steps: list[Step],
    char_start: npt.NDArray[np.integer],
    char_end: npt.NDArray[np.integer],
    entropy: FloatArray,
    decides: npt.NDArray[np.bool_],
    how: str = "max",
) -> Measured:
    """The steps' entropies from the n tokens of one trajectory that count, in order; all arrays of shape (n,).

    `decides`: whether a token is in 𝓗; `how`: one of `entropy.COMBINE`.
    """
    value, high, peak = np.full(len(steps), math.nan), np.zeros(len(steps), dtype=bool), np.full(len(steps), -1)
    for i, step in enumerate(steps):
        at = _tokens(step, char_start, char_end)
        if len(at):
            value[i], high[i] = combine(entropy[at], how), decides[at].any()
            peak[i] = at[int(np.argmax(entropy[at]))]
    return Measured(value, high, peak)


def _tokens(
    step: Step, char_start: npt.NDArray[np.integer], char_end: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """The tokens that cover a character of the step's decision words, in order."""
    found = [
        np.arange(np.searchsorted(char_end, start, "right"), np.searchsorted(char_start, end, "left"))
        for start, end in step.words
    ]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
