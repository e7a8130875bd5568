"""Where in the model's own text the call is: one rule per way of writing a call as text.

A *style* names the rule. Whatever the style, the character left out of every call is thought, and white space next to a
call belongs to it (a delimiter is part of the action), so the segments always concatenate to the text.

============  ==========================================================================================
style         the action is
============  ==========================================================================================
function      every `<function=…>` block, to its `</function>` or, where that is missing, to the end
tool_call     every `<tool_call>` block
command       the last `<command>…</command>` (SWE-agent `xml_thought_action`)
fence         the last fenced block that is not inside another (SWE-agent `thought_action`)
bash          every block fenced as `bash` (SWE-agent `*_bash_code_block`, mini-swe-agent 1)
mswea         every block fenced as, or tagged, `mswea_bash_command` (mini-swe-agent)
json          a JSON object: all of it but the characters of its `thought` (or `analysis`, `plan`) strings
whole         all of it
none          nothing
============  ==========================================================================================

All searches are linear in the length of the text: texts are untrusted.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from hesnr_tasks.trajectory import Kind, Segment

__all__ = ["GUESSED", "STYLES", "guess_style", "label", "split"]

Span = tuple[int, int]
GUESSED = ("function", "tool_call", "mswea", "json", "command", "fence")

_SPACE = re.compile(r"\s*")
_FUNCTION = re.compile(r"<function=[^<>\n]{0,200}>")
_PARAMETER = re.compile(r"\s*<parameter\b[^<>\n]{0,200}>?")
_VALUE_END = re.compile(r"</parameter>(?=\s*(?:<parameter\b|</function>|\Z))")
_FUNCTION_END = "</function>"
_FENCE = re.compile(r"^```(\S*)\s*\n|^```\s*$", re.MULTILINE)
_THOUGHT_STRING = re.compile(r'"(?:thought|analysis|plan)"\s{0,20}:\s{0,20}"((?:[^"\\]|\\.)*)"', re.DOTALL)


def split(text: str, style: str) -> tuple[Segment, ...]:
    """The segments of one assistant text: thought and action, concatenating to `text`."""
    return label(text, STYLES[style](text))


def label(text: str, calls: Iterable[Span]) -> tuple[Segment, ...]:
    """Segments of `text` whose action is `calls` (ordered, not overlapping) and the white space around them."""
    parts: list[tuple[Kind, int]] = []  # kind and end
    at = 0
    for start, end in calls:
        thought_end = at + len(text[at:start].rstrip())
        space = _SPACE.match(text, end)
        at = space.end() if space else end
        _extend(parts, Kind.THOUGHT, thought_end)
        _extend(parts, Kind.ACTION, at)
    _extend(parts, Kind.THOUGHT, len(text))
    starts = [0, *(end for _, end in parts)]
    return tuple(Segment(kind, text[start:end]) for start, (kind, end) in zip(starts, parts, strict=False))


def _extend(parts: list[tuple[Kind, int]], kind: Kind, end: int) -> None:
    """Let the last part, or a new one, reach to `end`; neighbours of one kind are one part."""
    if end == (parts[-1][1] if parts else 0):
        return
    if parts and parts[-1][0] is kind:
        parts.pop()
    parts.append((kind, end))


def guess_style(texts: Iterable[str], styles: Sequence[str] = GUESSED) -> str:
    """The style that finds a call in most assistant texts of a trajectory (one text may merely quote a call)."""
    kept = [text for text in texts if text.strip()]
    found = {style: sum(any(True for _ in STYLES[style](text)) for text in kept) for style in styles}
    best = max(styles, key=lambda style: found[style])
    return best if found[best] else "none"


# --- one function per style: spans of calls ---------------------------------------------------------------------------


def _function(text: str) -> Iterator[Span]:
    ends = [match.start() for match in _VALUE_END.finditer(text)]
    at = _after_reasoning(text, "<function=")
    while match := _FUNCTION.search(text, at):
        at = _function_end(text, match.end(), ends)
        yield match.start(), at


def _function_end(text: str, at: int, value_ends: list[int]) -> int:
    """Where the block ends whose parameters begin at `at`; a value may itself hold `</function>`."""
    while parameter := _PARAMETER.match(text, at):
        i = bisect_left(value_ends, parameter.end())
        if i == len(value_ends):
            break
        at = value_ends[i] + len("</parameter>")
    end = text.find(_FUNCTION_END, at)
    return len(text) if end < 0 else end + len(_FUNCTION_END)


def _after_reasoning(text: str, opening: str) -> int:
    """Where to look for calls from: behind `</think>` when reasoning before it (opening tag or not) quotes a call."""
    close, first = text.find("</think>"), text.find(opening)
    if not 0 <= first < close:
        return 0
    return close if text.find("<think>", 0, first) >= 0 or text.find(opening, close) >= 0 else 0


def _tool_call(text: str) -> Iterator[Span]:
    return _between(text, "<tool_call>", "</tool_call>", _after_reasoning(text, "<tool_call>"))


def _between(text: str, opening: str, closing: str, at: int = 0) -> Iterator[Span]:
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        at = len(text) if end < 0 else end + len(closing)
        yield start, at


def _command(text: str) -> Iterator[Span]:
    start, end = text.rfind("<command>"), text.rfind("</command>")
    if 0 <= start < end:
        yield start, end + len("</command>")


def _fence(text: str) -> Iterator[Span]:
    last: Span | None = None
    opened: list[int] = []
    for match in _FENCE.finditer(text):
        if opened and not match.group(1):
            start = opened.pop()
            last = last if opened else (start, match.end())
        elif match.group(1) is not None:
            opened.append(match.start())
    if last:
        yield last


def _fences(text: str, opening: str) -> Iterator[Span]:
    """Blocks of `opening`, spaces, newline, anything, newline, three back ticks: the first such close counts."""
    at = 0
    while (start := text.find(opening, at)) >= 0:
        at = start + len(opening)
        newline = text.find("\n", at)
        end = text.find("\n```", newline + 1)
        if newline < 0 or end < 0:
            return
        if not text[at:newline].strip():
            at = end + len("\n```")
            yield start, at


def _bash(text: str) -> Iterator[Span]:
    return _fences(text, "```bash")


def _mswea(text: str) -> Iterator[Span]:
    fenced = list(_fences(text, "```mswea_bash_command"))
    if fenced:
        return iter(fenced)
    return (
        span
        for span in _between(text, "<mswea_bash_command>", "</mswea_bash_command>")
        if text.endswith("</mswea_bash_command>", 0, span[1])
    )


def _json(text: str) -> Iterator[Span]:
    if not (text.lstrip().startswith("{") and '"command' in text):
        return
    at = 0
    for match in _THOUGHT_STRING.finditer(text):
        yield at, match.start(1)
        at = match.end(1)
    yield at, len(text)


def _whole(text: str) -> Iterator[Span]:
    if text:
        yield 0, len(text)


def _none(text: str) -> Iterator[Span]:
    return iter(())


STYLES: dict[str, Callable[[str], Iterator[Span]]] = {
    "function": _function,
    "tool_call": _tool_call,
    "command": _command,
    "fence": _fence,
    "bash": _bash,
    "mswea": _mswea,
    "json": _json,
    "whole": _whole,
    "none": _none,
}
