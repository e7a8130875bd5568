"""A trajectory in the terminal: turn by turn, kinds and filters marked, with colour or without.

Without colour, kinds have bars of their own, and on a terminal a row of letters under a line names the filters that
drop the characters above; what is piped is the text alone, with the counts of each turn. White space is never marked:
it never counts. Nothing of a trajectory reaches the terminal as a control character.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import number_of
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.formats import warnings_of
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Block
from hesnr_tasks.viewer.page import Totals, TrajectoryView

__all__ = ["Style", "legend", "lines", "printable", "style_of", "total_lines", "write"]


class Style(NamedTuple):
    """How to write.

    With ANSI colours, wrapped to `width` columns (None: not), every line of long texts, ASCII bars, rows of letters
    under what filters drop (without colours).
    """

    colour: bool = False
    width: int | None = None
    full: bool = False
    ascii: bool = False
    marks: bool = False


_KIND_SGR = {Kind.CONTEXT: "2", Kind.OBSERVATION: "36", Kind.THOUGHT: "33", Kind.ACTION: "32", Kind.SCAFFOLD: "2;3"}
_FILTER_SGR = ("2;9;37", "2;9;35", "2;9;31", "2;9;34", "2;9;36")
_BARS = dict(zip(Kind, "┊│╎┃ ", strict=True))
_ASCII_BARS = dict(zip(Kind, ":|!# ", strict=True))
_FOLDED = (Kind.CONTEXT, Kind.OBSERVATION)
_COUNTED = (Kind.CONTEXT, Kind.OBSERVATION, Kind.THOUGHT, Kind.ACTION)
_LONG, _HEAD, _TAIL = 60, 30, 10  # of more than 60 lines, the first 30 and the last 10
_GUTTER = 14  # columns before the text


def legend(style: Style) -> str:
    """What the marks mean, in one line."""
    kinds = "  ".join(_sgr(f"{_bar(kind, style)} {kind.value}", _KIND_SGR[kind], style) for kind in Kind)
    if style.colour:
        dropped = "  ".join(_sgr(name, _FILTER_SGR[i], style) for i, name in enumerate(FILTERS))
    elif style.marks:
        dropped = "  ".join(f"{letter} {name}" for letter, name in zip(_LETTERS, FILTERS, strict=True))
    else:
        return kinds
    return f"{kinds}   dropped: {dropped}"


def lines(view: TrajectoryView, turns: Sequence[Totals], style: Style) -> Iterator[str]:
    """The trajectory, line by line, without line ends. `turns`: totals of each turn."""
    yield from _heading(view, style)
    for number, in_turn in itertools.groupby(view.blocks, key=lambda block: block.turn):
        yield ""
        yield from _bold(f"-- turn {number} -- {_counts(turns[number - 1])}", style)
        for block in in_turn:
            yield from _block(view, block, style)
    yield ""
    yield from total_lines("total", turns, style)


def total_lines(name: str, turns: Sequence[Totals], style: Style) -> Iterator[str]:
    """The sum of `turns`, and what the filters dropped."""
    total = Totals()
    for turn in turns:
        total.add(turn)
    yield from _bold(f"{name}: {_counts(total)}", style)
    dropped = ", ".join(f"{name} {total.dropped[name]:,}" for name in FILTERS)
    yield f"dropped from actions: {dropped} (a character may be dropped by several)"


def printable(text: str) -> str:
    """`text` with every control character, and every character that turns the direction of text, made visible."""
    return text if text.isascii() and text.isprintable() else "".join(map(_sign, text))


# --- pieces -----------------------------------------------------------------------------------------------------------


_LETTERS: list[str] = []  # one for each filter: its first that no filter before it has
for _name in FILTERS:
    _LETTERS.append(next((c for c in f"{_name}0123456789" if c not in _LETTERS), "?"))


def _heading(view: TrajectoryView, style: Style) -> Iterator[str]:
    t = view.trajectory
    outcome = {True: "resolved", False: "not resolved", None: "outcome not known"}[t.resolved]
    facts = [outcome, f"{printable(t.source) or 'unknown format'}, {t.fidelity.value}", number_of(view.turns, "turn")]
    if t.instance_id and t.instance_id != t.id:
        facts.insert(0, f"instance {printable(t.instance_id)}")
    yield _sgr(f"==== {printable(t.id)} ====", "1", style)
    yield "  ".join(facts)
    for warning in warnings_of(t):
        yield f"warning: {printable(warning)}"


def _bold(text: str, style: Style) -> Iterator[str]:
    """A heading in as many lines as it needs on a terminal; in one where it is piped."""
    folded = (
        [text]
        if style.width is None
        else textwrap.wrap(text, max(20, style.width), subsequent_indent="   ", break_on_hyphens=False)
    )
    yield from (_sgr(line, "1", style) for line in folded)


def _counts(turn: Totals) -> str:
    parts = [f"{kind.value} {turn.characters[kind]:,}" for kind in _COUNTED if turn.characters[kind]]
    if action := turn.characters[Kind.ACTION]:
        parts.append(f"kept {turn.kept:,} of action ({100 * turn.kept / action:.0f} %)")
    if turn.tokens is not None:
        parts.append(f"tokens {turn.tokens:,}, {turn.counted:,} count")
    return ", ".join(parts)


def _block(view: TrajectoryView, block: Block, style: Style) -> Iterator[str]:
    text, start = view.text[block.start : block.end], block.start
    if block.kind is Kind.SCAFFOLD:
        text = text.strip("\n")  # role headers, there only to part messages; no filter drops any of it
    label = block.kind.value
    for row in _folded(text, view.bits[start : start + len(text)], block.kind, style):
        yield f"{label:>11} {_sgr(_bar(block.kind, style), _KIND_SGR[block.kind], style)} {row}".rstrip()
        label = ""


def _folded(text: str, bits: npt.NDArray[np.uint8], kind: Kind, style: Style) -> Iterator[str]:
    lengths = [len(line) for line in text.removesuffix("\n").split("\n")] if text else []
    starts = itertools.accumulate((length + 1 for length in lengths), initial=0)
    bounds = [(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    skipped = range(0)
    if kind in _FOLDED and len(bounds) > _LONG and not style.full:
        skipped = range(_HEAD, len(bounds) - _TAIL)
    for i, (start, end) in enumerate(bounds):
        if i not in skipped:
            yield from _rows(text[start:end], bits[start:end], kind, style)
        elif i == skipped[0]:
            hidden = bounds[skipped[-1]][1] - start
            yield _sgr(
                f"... {number_of(len(skipped), 'line')}, {number_of(hidden, 'character')} not shown (--full "
                f"shows them) ...",
                "2",
                style,
            )


def _rows(line: str, bits: npt.NDArray[np.uint8], kind: Kind, style: Style) -> Iterator[str]:
    """One line of text as one row, or several where it is too wide, each with its marks."""
    cells = list(line) if line.isascii() and line.isprintable() else list(map(_sign, line))
    whole = [(0, len(cells))]
    for start, end in whole if style.width is None else _wrapped(cells, max(20, style.width - _GUTTER)):
        if style.colour:
            yield "".join(_painted(cells[start:end], bits[start:end], kind, style))
        else:
            yield "".join(cells[start:end])
            if style.marks and (marks := _marks(cells[start:end], bits[start:end])):
                yield marks


def _wrapped(cells: list[str], room: int) -> Iterator[tuple[int, int]]:
    start = used = 0
    for i, cell in enumerate(cells):
        width = _width(cell)
        if used + width > room:
            yield start, i
            start, used = i, 0
        used += width
    yield start, len(cells)


def _painted(cells: list[str], bits: npt.NDArray[np.uint8], kind: Kind, style: Style) -> Iterator[str]:
    position = 0
    for hit, run in itertools.groupby(bits.tolist()):
        length = len(list(run))
        text = "".join(cells[position : position + length])
        position += length
        dropped = hit and text.strip()
        yield _sgr(text, _FILTER_SGR[_first(hit) % len(_FILTER_SGR)] if dropped else _KIND_SGR[kind], style)


def _marks(cells: list[str], bits: npt.NDArray[np.uint8]) -> str:
    """A letter under each dropped character that is not white space."""
    marks = (
        (_LETTERS[_first(hit)] if hit and cell.strip() else " ") * _width(cell)
        for cell, hit in zip(cells, bits.tolist(), strict=True)
    )
    return "".join(marks).rstrip()


def _first(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _bar(kind: Kind, style: Style) -> str:
    return (_ASCII_BARS if style.ascii else _BARS)[kind]


def _sgr(text: str, code: str, style: Style) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if style.colour and text else text


def _sign(char: str) -> str:
    """What stands for one character: itself, or something that can neither move the cursor nor turn text round."""
    if char == "\t":
        return "    "
    if char == "\r":
        return ""  # nearly always part of a line's end
    if char < " ":
        return chr(0x2400 + ord(char))
    if char == "\x7f":
        return "\u2421"
    return "\ufffd" if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs") and char != "\u200d" else char


def _width(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    if unicodedata.category(cell) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(cell) in "WF" else 1


# --- output: the user's pager when there is a terminal, else standard output ------------------------------------------


def style_of(stream: TextIO, *, full: bool) -> Style:
    """What `stream` can show. NO_COLOR (no-color.org) and TERM=dumb turn colours off."""
    terminal = stream.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else None
    bars = "┊┃"
    no_bars = _encoded(bars, stream.encoding or "ascii") != bars
    return Style(colour, width, full, ascii=no_bars, marks=terminal and not colour)


def _encoded(text: str, encoding: str) -> str:
    return text.encode(encoding, errors="replace").decode(encoding)


def write(lines: Iterable[str]) -> None:
    """Write `lines` as they come, to `$PAGER` (else less) if standard output is a terminal; a pager may quit early."""
    try:
        command = shlex.split(os.environ.get("PAGER") or "less -R")
    except ValueError:
        command = []
    if not (sys.stdout.isatty() and command and shutil.which(command[0])):
        for line in lines:
            sys.stdout.write(_encoded(line, sys.stdout.encoding) + "\n")
        sys.stdout.flush()
        return
    environment = {"LESS": "FRX", **os.environ}  # as git does: no pager for what fits on a screen
    with subprocess.Popen(command, stdin=subprocess.PIPE, encoding="utf-8", errors="replace", env=environment) as pager:
        assert pager.stdin is not None
        try:
            for line in lines:
                pager.stdin.write(_encoded(line, "utf-8") + "\n")
            pager.stdin.close()
        except BrokenPipeError:
            pass
