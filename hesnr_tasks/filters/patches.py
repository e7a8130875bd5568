"""Patches: the text before and the text after, of every hunk, in the language of the file it belongs to.

Unified diffs (`diff --git`, `--- a/x`, `+++ b/x`, `@@`) and the `*** Begin Patch` form of apply_patch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hesnr_tasks.actions.views import View, join
from hesnr_tasks.filters.languages import by_file

__all__ = ["sides"]

_HEADER = re.compile(
    r"(?:\+\+\+|---) (?:[ab]/)?([^\t\r\n]+)|\*\*\* (?:Add|Update|Delete) File: (.+)|diff --git \S+ (?:b/)?(\S+)"
)


def sides(view: View) -> Iterator[tuple[View, str]]:
    """For every hunk its old and its new text (lines without their first sign) and the language of its file."""
    path = ""
    hunk: list[View] = []
    for line in [*_lines(view), None]:
        text = "" if line is None else line.text
        header = _HEADER.match(text)
        if line is None or header or text.startswith(("@@", "*** ")):
            if hunk and path:
                for side in _both(hunk):
                    if language := by_file(path, side.text):
                        yield side, language
            hunk = []
            if header:
                name = header[1] or header[2] or header[3]
                path = path if name == "/dev/null" else name
        elif text[:1] in (" ", "+", "-", "\n", "\r"):
            hunk.append(line)


def _lines(view: View) -> Iterator[View]:
    start = 0
    while start < len(view.text):
        stop = view.text.find("\n", start) + 1 or len(view.text)
        yield view.cut(start, stop)
        start = stop


def _both(hunk: list[View]) -> Iterator[View]:
    for absent in "-+":
        kept = [
            line.cut(1, len(line.text)) if line.text[0] in " +-" else line for line in hunk if line.text[0] != absent
        ]
        if any(line.text[0] not in (" ", absent) for line in hunk) or absent == "-":
            yield join(kept)
