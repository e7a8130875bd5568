"""Filters: which characters of an action are form, not logic.

A filter is a function from the text of one action to the spans of characters it drops. Its bit in a label is its place
in `FILTERS`, which is stored with every score; so a new filter goes at the end, and needs one module and one line here.

`LABELS_VERSION` is stored with labels: raise it when the labels of any action can change
(`python -m tests.unit.filters.corpus` then pins the new labels; a test fails until both are done).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions import CharSpan
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.filters.formatting import formatting
from hesnr_tasks.filters.languages import comments_of
from hesnr_tasks.filters.regions import regions
from hesnr_tasks.labels import action_code, kind_code
from hesnr_tasks.rendering import Rendered
from hesnr_tasks.trajectory import Kind

__all__ = ["FILTERS", "LABELS_VERSION", "Filter", "char_codes", "comments", "filter_bits", "xml"]

LABELS_VERSION = "6"

Filter = Callable[[str], list[CharSpan]]  # never raises; spans may overlap and come in any order


def xml(text: str) -> list[CharSpan]:
    """Spans of the call syntax: the tags of the call, their attributes, and the JSON around the values of a JSON call.

    Only the call's own syntax, as parsed: markup inside values (`<div>`, `List<int>`) stays.
    """
    return [span for call in parse_action(text) for span in call.tags]


def comments(text: str) -> list[CharSpan]:
    """Spans of code comments, found by lexing each piece of the action in its own language; line ends stay.

    Comments are what the language's own lexer throws away (documentation comments such as `/** … */` and `///`
    included), so Python docstrings, which are string expressions, stay, and `# noqa` or `// eslint-disable` go. Shebang
    lines, which choose the interpreter, and preprocessor lines stay.
    """
    pieces = regions(text)
    return [span for piece in pieces for span in piece.view.back(comments_of(piece.view.text, piece.language))]


FILTERS: dict[str, Filter] = {"xml": xml, "format": formatting, "comments": comments}


def filter_bits(action_text: str) -> npt.NDArray[np.uint8]:
    """For each character of one action, bit i set iff the i-th of `FILTERS` drops it; shape (len(action_text),)."""
    length = len(action_text)
    bits = np.zeros(length, np.uint8)
    for i, drop in enumerate(FILTERS.values()):
        borders = np.array(drop(action_text), np.int64).reshape(-1, 2)
        starts, ends = (np.bincount(borders[:, side], minlength=length + 1) for side in (0, 1))
        covered = np.cumsum(starts - ends)[:length] > 0  # where more spans have begun than ended
        bits |= covered.astype(np.uint8) << np.uint8(i)
    return bits


def char_codes(rendered: Rendered) -> npt.NDArray[np.uint8]:
    """The label code (`hesnr_tasks.labels`) of each character; shape (len(rendered.text),)."""
    codes = np.empty(len(rendered.text), np.uint8)
    for start, end, kind, _ in rendered.blocks():
        if kind is Kind.ACTION and rendered.sources is not None:
            codes[start:end] = kind_code(kind) + (1 << list(FILTERS).index("xml"))
        elif kind is Kind.ACTION:
            codes[start:end] = action_code(filter_bits(rendered.text[start:end]))
        else:
            codes[start:end] = kind_code(kind)
    for source in rendered.sources or ():
        codes[source.text_index] = action_code(filter_bits(source.action))[source.action_index]
    return codes
