"""Breakdowns of tokens: by turn, by position, by tool, by language, by the trajectory's outcome, by trajectory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.analysis.frame import Frame
from hesnr_tasks.filters.regions import regions
from hesnr_tasks.scores import Entry
from hesnr_tasks.trajectory import Kind

IntArray = npt.NDArray[np.int64]
_POSITIONS = (0, 8, 32, 64, 128, 256, 512, 1024)  # 1024 tokens
_ESCAPE = 12  # characters of the original behind one of the program: \\ud83d\\ude00
_OUTCOMES = ("resolved", "unresolved", "unknown", "mixed")
NO_CALL = "(no call)"
NO_LANGUAGE = "(none known)"


_LabelledSpan = tuple[int, int, str]  # characters from, to, and what they are; later ones win


class Groups(NamedTuple):
    """Names of groups in the order to show them, and the group of each token, shape (n,)."""

    names: tuple[str, ...]
    of_token: IntArray


def grouped(frame: Frame, by: str) -> Groups:
    """The tokens of `frame` split `by` one of `BREAKDOWNS`; `COLUMNS[by]` must have been loaded."""
    return BREAKDOWNS[by](frame)


def _by_turn(frame: Frame) -> Groups:
    turns, index = np.unique(frame.extra["turn"], return_inverse=True)
    return Groups(tuple(str(turn) for turn in turns), index)


def _by_position(frame: Frame) -> Groups:
    starts = 1024 * np.array(_POSITIONS)
    index = np.searchsorted(starts, frame.extra["position"], side="right") - 1
    names = [f"{low}-{high}K" for low, high in itertools.pairwise(_POSITIONS)] + [f"{_POSITIONS[-1]}K-"]
    used = int(index.max(initial=0)) + 1
    return Groups(tuple(names[:used]), index)


def outcome_of(entry: Entry) -> str:
    """Of the agent's run; several runs can have one text, and those that disagree are a group of their own."""
    outcomes = {source.resolved for source in entry.sources}
    names = {True: "resolved", False: "unresolved", None: "unknown"}
    return names[next(iter(outcomes), None)] if len(outcomes) < 2 else "mixed"


def _by_resolved(frame: Frame) -> Groups:
    codes = [_OUTCOMES.index(outcome_of(entry)) for entry in frame.entries]
    return Groups(_OUTCOMES, np.repeat(np.array(codes, dtype=np.int64), np.diff(frame.bounds)))


BREAKDOWNS: dict[str, Callable[[Frame], Groups]] = {
    "turn": _by_turn,
    "position": _by_position,
    "tool": lambda frame: _by_text(frame, _tools, NO_CALL),
    "language": lambda frame: _by_text(frame, _languages, NO_LANGUAGE),
    "resolved": _by_resolved,
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "turn": ("turn",),
    "position": ("position",),
    "tool": ("char_end",),
    "language": ("char_end",),
    "resolved": (),
    "trajectory": (),
}


def _by_text(frame: Frame, marks: Callable[[str], Iterator[_LabelledSpan]], otherwise: str) -> Groups:
    """A token belongs where its last character does: a space before a word is part of that word's token."""
    codes = {otherwise: 0}
    index = np.zeros(len(frame.label), dtype=np.int64)
    last = np.maximum(frame.extra["char_end"] - 1, 0)
    for i, entry in enumerate(frame.entries):
        rendered = frame.store.text(entry.key).rendered
        chars = np.zeros(max(1, len(rendered.text)), dtype=np.int64)
        for block in rendered.blocks():
            if block.kind is Kind.ACTION:
                for start, end, name in marks(rendered.text[block.start : block.end]):
                    chars[block.start + start : block.start + end] = codes.setdefault(name, len(codes))
        tokens = slice(frame.bounds[i], frame.bounds[i + 1])
        index[tokens] = chars[last[tokens]]
    names = tuple(codes)
    order = np.argsort(-np.bincount(index, minlength=len(names)), kind="stable")  # the most frequent first
    shown = tuple(re.sub(r"\s+", " ", names[i])[:60] for i in order)
    return Groups(shown, np.argsort(order)[index])


def _tools(text: str) -> Iterator[_LabelledSpan]:
    for call in parse_action(text):
        yield call.start, call.end, call.name or "(no name)"


def _languages(text: str) -> Iterator[_LabelledSpan]:
    """Inner pieces come after the ones they are in, so a Python script in a shell command is Python."""
    for region in regions(text):
        offsets = np.asarray(region.view.offsets[:-1])
        if len(offsets):
            for run in np.split(offsets, np.flatnonzero(np.diff(offsets) > _ESCAPE) + 1):
                yield int(run[0]), int(run[-1]) + 1, region.language
