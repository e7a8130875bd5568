"""Filters: which characters of an action are form, not logic.

A filter is a function from the text of one action to the spans of characters it drops. Its bit in a label is its place
in `FILTERS`, which is stored with every score; so a new filter goes at the end, and needs one module and one line here.

`LABELS_VERSION` names what the filters do, for whoever keeps labels: raise it when the labels of any action can change
(`python -m tests.unit.filters.corpus` then pins the new labels; a test fails until both are done).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hesnr_tasks.filters.comments import comments
from hesnr_tasks.filters.format import format
from hesnr_tasks.filters.xml import xml
from hesnr_tasks.labels import action_code, kind_code
from hesnr_tasks.rendering import Rendered
from hesnr_tasks.trajectory import Kind

__all__ = ["FILTERS", "LABELS_VERSION", "Filter", "char_codes", "filter_bits"]

LABELS_VERSION = "6"

Filter = Callable[[str], list[tuple[int, int]]]  # spans may overlap and come in any order

FILTERS: dict[str, Filter] = {"xml": xml, "format": format, "comments": comments}


def filter_bits(action_text: str) -> npt.NDArray[np.uint8]:
    """For each character of one action, bit i set iff the i-th of `FILTERS` drops it; shape (len(action_text),)."""
    bits = np.zeros(len(action_text), np.uint8)
    for i, drop in enumerate(FILTERS.values()):
        bits |= _covered(drop(action_text), len(action_text)).astype(np.uint8) << np.uint8(i)
    return bits


def _covered(spans: list[tuple[int, int]], length: int) -> npt.NDArray[np.bool_]:
    """Which of `length` characters lie in one of `spans`: where more spans have begun than ended."""
    ends = np.array(spans, np.int64).reshape(-1, 2)
    begun, ended = (np.bincount(ends[:, side], minlength=length + 1) for side in (0, 1))
    return np.cumsum(begun - ended)[:length] > 0


def char_codes(rendered: Rendered) -> npt.NDArray[np.uint8]:
    """The label code (`hesnr_tasks.labels`) of each character; shape (len(rendered.text),)."""
    codes = np.empty(len(rendered.text), np.uint8)
    for start, end, kind, _ in rendered.blocks():
        if kind is Kind.ACTION:
            codes[start:end] = action_code(filter_bits(rendered.text[start:end]))
        else:
            codes[start:end] = kind_code(kind)
    return codes
