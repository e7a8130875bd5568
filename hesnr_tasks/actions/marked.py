"""Calls between the control strings of model families, where they were kept as text: JSON after a name, or alone.

Kimi (`<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}`), DeepSeek (`<｜tool▁call▁begin｜>…`),
gpt-oss (`<|channel|>commentary to=functions.NAME …<|message|>{…}<|call|>`), Mistral (`[TOOL_CALLS] [{…}]`,
`[TOOL_CALLS]NAME{…}`) and Llama (`<|python_tag|>{…}`).
"""

from __future__ import annotations

import re

from hesnr_tasks.actions.calls import Call
from hesnr_tasks.actions.json_calls import json_calls, json_end

__all__ = ["find_marked", "marked"]

_OPENER = re.compile(
    r"""(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?P<kimi>[^<>\s]{0,200})\s*<\|tool_call_argument_begin\|>\s*
    |(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>\s*(?:function<｜tool▁sep｜>)?(?P<deepseek>[^<>\s]{1,200}?)
        (?:<｜tool▁sep｜>\s*|\s*(?=```))(?:```(?:json)?\s*)?
    |(?:<\|start\|>assistant)?<\|channel\|>\w+[ ]to=(?P<harmony>[^<>\s]{1,200})[^\n{]{0,100}?<\|message\|>\s*
    |(?:<\|start\|>assistant[ ]to=)(?P<harmony2>[^<>\s]{1,200})<\|channel\|>[^\n{]{0,100}?<\|message\|>\s*
    |\[TOOL_CALLS\]\s*(?P<mistral>[\w.\-]{0,200})\s*(?:\[ARGS\]\s*)?
    |<\|python_tag\|>\s*""",
    re.VERBOSE,
)
_CLOSER = re.compile(
    r"\s*(?:```\s*)?(?:<\|tool_call_end\|>|<｜tool▁call▁end｜>|<\|call\|>|<\|eom_id\|>)?"
    r"(?:\s*(?:<\|tool_calls_section_end\|>|<｜tool▁calls▁end｜>))?"
)


def marked(text: str) -> list[Call]:
    """The calls of a text that begins with such a string, else none."""
    opener = _OPENER.match(text, len(text) - len(text.lstrip()))
    return find_marked(text) if opener else []


def find_marked(text: str, start: int = 0) -> list[Call]:
    """The calls in a whole message."""
    found: list[Call] = []
    at = start
    while opener := _OPENER.search(text, at):
        at = opener.end()
        if not text.startswith(("{", "["), at):
            continue
        said = next((name for name in opener.groups() if name), "")
        name = re.sub(r":\d+\Z", "", said).removeprefix("functions.")
        after = json_end(text, at)
        closer = _CLOSER.match(text, after)
        end = closer.end() if closer and closer[0].strip() else after
        calls = json_calls(text, opener.start(), after, at, name=name)
        last = calls[-1]
        calls[-1] = last._replace(end=end, tags=(*last.tags, (after, end)) if end > after else last.tags)
        found += calls
        at = max(end, at)
    return found
