"""The filter `format`: white space, decoration, code fences, and markdown where the text is markdown.

Everywhere in an action:

- white space (every character that `str.isspace` names; in JSON values also the escapes `\\n`, `\\t`, `\\r`);
- runs of four or more of one of `- = * _ ~ #` (rules, underlines, banners, also in strings such as `print("=====")`);
- the lines that open and close a fenced block around the command.

Only in prose and markup, that is values and here-documents for files ending in .md, .markdown, .rst, .txt (not
requirements.txt or CMakeLists.txt) and prose parameters (`message`, `summary`, `thought`, the text of finish-like
tools), and there not in fenced code: heading marks (`#`, underlines), emphasis (`*`, `_`, `~~`, each with its partner
on the line), backquotes, bullets and numbers of list items, block-quote marks, rules of three signs, the ruler row of a
table, fence lines, `::` and `..` of reStructuredText.

So `**kwargs`, `a*b`, `__init__`, `_name`, `- ` of YAML and of patches and `# comment` of a program are not markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hesnr_tasks.actions import CharSpan, View
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.filters.languages import PROSE
from hesnr_tasks.filters.regions import regions

__all__ = ["formatting"]

_EVERYWHERE = re.compile(r"\s+|([-=*_~#])\1{3,}")


def formatting(text: str) -> list[CharSpan]:
    """Spans of form in one action's text. Never raises."""
    spans = [m.span() for m in _EVERYWHERE.finditer(text)]
    for call in parse_action(text):
        spans += call.fences
        for parameter in call.parameters:
            if parameter.encoded:
                spans += _decoded(parameter.view(text))
    for view, language in regions(text):
        if language in PROSE:
            spans += view.back(_marks(view.text))
        if len(view.text) != view.offsets[-1] - view.offsets[0]:
            spans += _decoded(view)
    return spans


def _decoded(view: View) -> Iterator[CharSpan]:
    """White space and decoration that are, in part, written as escape sequences."""
    for m in _EVERYWHERE.finditer(view.text):
        for i in range(*m.span()):
            yield view.offsets[i], view.offsets[i + 1]


_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
_LINE_MARKS = re.compile(
    r"""^[ \t]{0,3}\#{1,6}(?=[ \t]|$)            # heading
    |[ \t]\#{1,6}[ \t]*$                          # closing marks of a heading
    |^[ \t]*(?:>[ \t]?)+                          # block quote
    |^[ \t]*(?:[-*+]|\d{1,9}[.)])(?=[ \t])        # list item
    |^[ \t]*([-=*_~^"'`+])(?:[ \t]*\1){2,}[ \t]*$ # rule, underline
    |^[ \t]*(?:\|[ \t]*)?:?-+:?(?:[ \t]*\|[ \t]*:?-+:?)+[ \t]*\|?[ \t]*$  # ruler row of a table
    |^[ \t]*\.\.(?=[ \t])|::$                     # reStructuredText
    |`+
    |(?<![\w*~])(?!__\w+__(?!\w))(?P<open>\*{1,3}|_{1,3}|~~)(?=[^\s*_~](?:[^\n]{0,300}?[^\s*_~])??(?P<close>(?P=open))(?![\w*~]))""",
    re.VERBOSE | re.MULTILINE,
)


def _marks(text: str) -> Iterator[CharSpan]:
    """Marks of markdown outside fenced code, and the fences."""
    position, closing = 0, ""
    for fence in _FENCE.finditer(text):
        if closing and not (fence[1].startswith(closing) and fence[0].strip() == fence[1]):
            continue
        if not closing:
            yield from _line_marks(text, position, fence.start())
        closing = "" if closing else fence[1]
        yield fence.span()
        position = fence.end()
    if not closing:
        yield from _line_marks(text, position, len(text))


def _line_marks(text: str, start: int, end: int) -> Iterator[CharSpan]:
    for m in _LINE_MARKS.finditer(text, start, end):
        yield m.span()
        if m["close"]:
            yield m.span("close")
