"""Filters: which characters of an action are form, not logic.

A filter is a function from the text of one action to the spans of characters it drops. Its bit in a label is its place
in `FILTERS`, which is stored with every score; so a new filter goes at the end: one function, and one line here.

`LABELS_VERSION` is stored with labels: raise it when the labels of any action can change
(`python -m tests.unit.filters.corpus` then pins the new labels; a test fails until both are done).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions import CharSpan, View
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.filters.regions import PROSE, comments_of, regions
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, action_code, kind_code

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


# --- format -----------------------------------------------------------------------------------------------------------

_RULES = "-=*_~#"
_EVERYWHERE = re.compile(rf"\s+|([{_RULES}])\1{{3,}}")
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


def formatting(text: str) -> list[CharSpan]:
    """Spans of white space, decoration, code fences, and of markdown where the text is markdown.

    Everywhere in an action:

    - white space (every character that `str.isspace` names; in JSON values also the escapes `\\n`, `\\t`, `\\r`);
    - runs of four or more of one of `- = * _ ~ #` (rules, underlines, banners, also in strings: `print("=====")`);
    - the lines that open and close a fenced block around the command.

    Only in prose and markup, that is values and here-documents for files ending in .md, .markdown, .rst, .txt (not
    requirements.txt or CMakeLists.txt) and prose parameters (`message`, `summary`, `thought`, the text of finish-like
    tools), and there not in fenced code: heading marks (`#`, underlines), emphasis (`*`, `_`, `~~`, each with its
    partner on the line), backquotes, bullets and numbers of list items, block-quote marks, rules of three signs, the
    ruler row of a table, fence lines, `::` and `..` of reStructuredText. So `**kwargs`, `a*b`, `__init__`, `_name`,
    `- ` of YAML and of patches and `# comment` of a program are not markdown.
    """
    return [*(m.span() for m in _EVERYWHERE.finditer(text)), *_fences_and_markdown(text)]


def _fences_and_markdown(text: str) -> list[CharSpan]:
    """What `formatting` drops beside white space and rules that stand in the text as they are."""
    spans: list[CharSpan] = []
    escaped: list[View] = []  # white space and rules are, in part, written as escape sequences
    for call in parse_action(text):
        spans += call.fences
        escaped += [parameter.view(text) for parameter in call.parameters if parameter.encoded]
    for view, language in regions(text):
        if language in PROSE:
            spans += view.back(_markdown(view.text))
        if len(view.text) != view.offsets[-1] - view.offsets[0]:
            escaped.append(view)
    for view in escaped:
        places = (i for m in _EVERYWHERE.finditer(view.text) for i in range(*m.span()))
        spans += [(view.offsets[i], view.offsets[i + 1]) for i in places]
    return spans


def _markdown(text: str) -> Iterator[CharSpan]:
    """Marks of markdown outside fenced code, and the fences."""
    position, closing = 0, ""
    for fence in (*_FENCE.finditer(text), None):
        if fence and closing and not (fence[1].startswith(closing) and fence[0].strip() == fence[1]):
            continue
        if not closing:
            for m in _LINE_MARKS.finditer(text, position, fence.start() if fence else len(text)):
                yield m.span()
                if m["close"]:
                    yield m.span("close")
        if fence:
            closing = "" if closing else fence[1]
            yield fence.span()
            position = fence.end()


FILTERS: dict[str, Filter] = {"xml": xml, "format": formatting, "comments": comments}


# --- labels -----------------------------------------------------------------------------------------------------------


def filter_bits(action_text: str) -> npt.NDArray[np.uint8]:
    """Which filters drop each character of one action.

    Returns:
        uint8, shape (len(action_text),): bit i is set iff the i-th of `FILTERS` drops the character.
    """
    return _bits(action_text, [(0, len(action_text))])


def char_codes(rendered: Rendered) -> npt.NDArray[np.uint8]:
    """The label code of each character: its kind, and of an action the filters that drop it.

    Returns:
        uint8, shape (len(rendered.text),), of `rendering.kind_code` and `rendering.action_code`.
    """
    kinds = np.array([kind_code(span.kind) for span in rendered.spans], np.uint8)
    codes = np.repeat(kinds, [span.end - span.start for span in rendered.spans])
    if rendered.sources is None:
        actions = [(start, end) for start, end, kind, _ in rendered.blocks() if kind is Kind.ACTION]
        return codes + _bits(rendered.text, actions)
    codes[codes == kind_code(Kind.ACTION)] += 1 << list(FILTERS).index("xml")
    ends = list(itertools.accumulate(len(source.action) for source in rendered.sources))
    starts = [0, *ends][:-1]
    every = _bits("".join(source.action for source in rendered.sources), list(zip(starts, ends, strict=True)))
    if rendered.sources:
        _, in_text, in_action = zip(*rendered.sources, strict=True)
        shift = np.repeat(starts, [len(index) for index in in_text])
        codes[np.concatenate(in_text)] = action_code(every[np.concatenate(in_action) + shift])
    return codes


def labelled(rendered: Rendered) -> Rendered:
    """The text with the label codes of its characters."""
    return replace(rendered, codes=char_codes(rendered))


def _bits(text: str, actions: Sequence[CharSpan]) -> npt.NDArray[np.uint8]:
    """The bits of the filters for each character of `text`, 0 outside of `actions`.

    Filters run on many short actions: the spans of all of them are drawn into one mask for each filter, and white space
    and rules, which are most of all spans, are looked up for the whole text.
    """
    drops = [_fences_and_markdown if drop is formatting else drop for drop in FILTERS.values()]
    spans: list[list[CharSpan]] = [[] for _ in drops]
    counts: list[list[int]] = [[] for _ in drops]
    for start, end in actions:
        action = text[start:end]
        for i, drop in enumerate(drops):
            dropped = drop(action)
            spans[i] += dropped
            counts[i].append(len(dropped))
    starts = np.array([start for start, _ in actions], np.int64)
    bits = np.zeros(len(text), np.uint8)
    for i, drop in enumerate(drops):
        inside = _span_mask(spans[i], np.repeat(starts, counts[i]), len(text))
        if drop is _fences_and_markdown:
            inside = inside | _everywhere(text, actions)
        bits |= inside << np.uint8(i)
    return bits


def _span_mask(spans: list[CharSpan], shift: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    """1 for the characters inside `spans`, each moved by its `shift`; shape (size,)."""
    edges = np.fromiter(itertools.chain.from_iterable(spans), np.int64, 2 * len(spans)).reshape(-1, 2)
    edges = (edges + shift[:, None])[edges[:, 0] < edges[:, 1]]
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    reached = np.maximum.accumulate(edges[:, 1])
    apart = np.append(True, edges[1:, 0] > reached[:-1])[: len(edges)]  # begins after all before it have ended
    starts, ends = edges[apart, 0], reached[np.append(apart[1:], True)[: len(edges)]]
    borders = np.append(np.stack([starts, ends], axis=1).ravel(), size)
    return np.repeat((np.arange(len(borders)) % 2).astype(np.uint8), np.diff(borders, prepend=0))


_SPACE, _RULE = 1, 2
_CLASSES = np.array([_SPACE * chr(i).isspace() + _RULE * (chr(i) in _RULES) for i in range(0x3002)], np.uint8)


def _everywhere(text: str, actions: Sequence[CharSpan]) -> npt.NDArray[np.uint8]:
    """1 for the characters inside `actions` that `_EVERYWHERE` matches in one of them; shape (len(text),)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _CLASSES[np.minimum(points, len(_CLASSES) - 1)]
    inside = bytearray(len(text))
    repeats = np.zeros(len(text) + 3, np.uint8)  # whether a character is the sign of a rule, and the next one the same
    repeats[: max(0, len(text) - 1)] = (points[1:] == points[:-1]) & (classes[1:] == _RULE)
    for start, end in actions:
        inside[start:end] = b"\1" * (end - start)
        repeats[start - 1] = repeats[end - 1] = 0  # a rule does not go on in another action
    fours = repeats[:-2] & repeats[1:-1] & repeats[2:]
    matches = (classes == _SPACE).astype(np.uint8)
    for shift in range(min(4, len(text))):
        matches[shift:] |= fours[: len(text) - shift]
    return matches & np.frombuffer(inside, np.uint8)
