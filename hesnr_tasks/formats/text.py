"""Where in the model's own text the call is: one rule per way of writing a call as text.

A *style* names the rule. Whatever the style, the character left out of every call is thought, and white space next to a
call belongs to it (a delimiter is part of the action), so the segments always concatenate to the text.

============  ==========================================================================================
style         the action is
============  ==========================================================================================
function      every `<function=…>` or `<invoke …>` block that is a call (`hesnr_tasks.actions`), to its closing tag or,
              where that is missing, to the end
tool_call     every `<tool_call>` block, and every call between a model family's control strings
keystrokes    Terminus-2's `<commands>` of `<keystrokes>`, and what closes them
execute       every `<execute_bash>`, `<execute_ipython>` and their like (CodeAct)
command       the last `<command>…</command>` (SWE-agent `xml_thought_action`)
fence         the last fenced block that is not inside another (SWE-agent `thought_action`)
bash          every block fenced as `bash` (SWE-agent `*_bash_code_block`, mini-swe-agent 1)
mswea         every block fenced as, or tagged, `mswea_bash_command` (mini-swe-agent)
json          a JSON object with a command: all of it but the characters of its `thought` (`analysis`, `plan`)
whole         all of it
none          nothing
============  ==========================================================================================

All searches are linear in the length of the text: texts are untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from hesnr_tasks.actions import find_calls
from hesnr_tasks.actions.json_calls import call_json_end
from hesnr_tasks.trajectory import Kind, Segment

__all__ = ["GUESSED", "STYLES", "guess_style", "label", "split"]

Span = tuple[int, int]
GUESSED = ("function", "tool_call", "mswea", "json", "keystrokes", "execute", "command", "fence")

_SPACE = re.compile(r"\s*")
_FENCE = re.compile(r"^```(\S*)\s*\n|^```\s*$", re.MULTILINE)
_OBJECT = re.compile(r"^(```(?:json)?[ \t]*\n\s*|[ \t]*)(?=\{\s*\")", re.MULTILINE)
_FENCE_END = re.compile(r"\s*```")
_ASKS = re.compile(r'"(?:command|arguments"|parameters"|action_input")')
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
    return _calls(text, _FUNCTION)


def _tool_call(text: str) -> Iterator[Span]:
    return _calls(text, _TOOL_CALL)


_FUNCTION = re.compile(r"<(?:antml:|｜DSML｜)?(?:function|invoke)")
_TOOL_CALL = re.compile(
    r"<(?:[a-z]{2,12}[:_]|｜DSML｜)?(?:tool_call|tool_use|function_call|invoke|TOOL_?CALL)|<｜tool▁call|\[TOOL_CALLS\]"
    r"|<\|(?:tool_call|channel|start|python_tag|START_ACTION|action_start|tools_prefix)"
)


def _calls(text: str, opening: re.Pattern[str]) -> Iterator[Span]:
    """The calls that the grammar finds in a text with an `opening`; the first that is there says from where on."""
    first = opening.search(text)
    calls = find_calls(text, _after_reasoning(text, first.start(), opening)) if first else []
    return ((call.start, call.end) for call in calls)


def _after_reasoning(text: str, first: int, opening: re.Pattern[str]) -> int:
    """Where to look for calls from: behind `</think>` when reasoning before it (opening tag or not) quotes a call."""
    close = text.find("</think>")
    if first >= close:
        return 0
    return close if text.find("<think>", 0, first) >= 0 or opening.search(text, close) else 0


def _between(text: str, opening: str, closing: str, at: int = 0) -> Iterator[Span]:
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        at = len(text) if end < 0 else end + len(closing)
        yield start, at


def _keystrokes(text: str) -> Iterator[Span]:
    opening = _COMMANDS.search(text)
    if opening:
        closing = _COMMANDS_END.search(text, opening.end(1))
        yield opening.start(), closing.end() if closing else len(text)


_COMMANDS = re.compile(r"(<commands>)\s*(?:<keystrokes\b|</commands>)")
_COMMANDS_END = re.compile(r"</commands>(?:\s*<task_complete>[^<>]{0,20}</task_complete>)?(?:\s*</response>)?")


def _execute(text: str) -> Iterator[Span]:
    at = 0
    while opening := _EXECUTE.search(text, at):
        closing = text.find(f"</{opening[1]}>", opening.end())
        at = closing + len(opening[1]) + 3 if closing >= 0 else len(text)
        yield opening.start(), at


_EXECUTE = re.compile(r"^[ \t]*<(execute_(?:bash|ipython|ipython_cell|browse))>", re.MULTILINE)


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
    """A text that is a JSON object with a command, or has it after (and before) other text, fenced or not."""
    opening = _OBJECT.search(text)
    if not opening or not _ASKS.search(text):
        return
    start, closing = opening.start(), call_json_end(text, opening.end(1))
    if closing is None:
        return
    rest = text[closing:]
    fence = _FENCE_END.match(rest) if opening[1] else None
    end = closing + (fence.end() if fence else 0)
    for match in _THOUGHT_STRING.finditer(text, start, end):
        yield start, match.start(1)
        start = match.end(1)
    yield start, end


def _whole(text: str) -> Iterator[Span]:
    if text:
        yield 0, len(text)


def _none(text: str) -> Iterator[Span]:
    return iter(())


STYLES: dict[str, Callable[[str], Iterator[Span]]] = {
    "function": _function,
    "tool_call": _tool_call,
    "keystrokes": _keystrokes,
    "execute": _execute,
    "command": _command,
    "fence": _fence,
    "bash": _bash,
    "mswea": _mswea,
    "json": _json,
    "whole": _whole,
    "none": _none,
}
