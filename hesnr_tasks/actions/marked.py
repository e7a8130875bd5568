"""Calls between the control strings of model families, where they were kept as text: JSON after a name, or alone.

Kimi (`<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}`), DeepSeek (`<｜tool▁call▁begin｜>…`),
gpt-oss (`<|channel|>commentary to=functions.NAME …<|message|>{…}<|call|>`), Mistral (`[TOOL_CALLS] [{…}]`,
`[TOOL_CALLS]NAME{…}`), Llama (`<|python_tag|>{…}`), and those of Phi and Granite (`<|tool_call|>`), Command
(`<|START_ACTION|>`), InternLM (`<|action_start|>`) and Apertus (`<|tools_prefix|>`). For a tool that runs Python the
code may stand there as it is, without JSON.
"""

from __future__ import annotations

import re

from hesnr_tasks.actions.calls import Call, Parameter, between, trim
from hesnr_tasks.actions.json_calls import json_calls, json_end
from hesnr_tasks.actions.tools import tool_runs

__all__ = ["find_marked", "marked"]

_OPENER = re.compile(
    r"""(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?P<kimi>[^<>\s]{0,200})\s*<\|tool_call_argument_begin\|>\s*
    |(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>\s*(?:function<｜tool▁sep｜>)?(?P<deepseek>[^<>\s]{1,200}?)
        (?:<｜tool▁sep｜>\s*|\s*(?=```))(?:```(?:json)?\s*)?
    |(?:<\|start\|>assistant)?<\|channel\|>\w+[ ]to=(?P<harmony>[^<>\s]{1,200})[^\n{]{0,100}?<\|message\|>\s*
    |(?:<\|start\|>assistant[ ]to=)(?P<harmony2>[^<>\s]{1,200})<\|channel\|>[^\n{]{0,100}?<\|message\|>\s*
    |\[TOOL_CALLS\]\s*(?P<mistral>[\w.\-]{0,200})\s*(?:\[CALL_ID\]\w{1,40}\s*)?(?:\[ARGS\]\s*)?
    |<\|(?:(?P<python>python)_tag|tool_call|START_ACTION|action_start\|>\s*<\|plugin|tools_prefix)\|>\s*""",
    re.VERBOSE,
)
_CLOSER = re.compile(
    r"\s*(?:```\s*)?(?:<\|tool_call_end\|>|<｜tool▁call▁end｜>|<\|(?:call|eom_id|eot_id|/tool_call|END_ACTION|action_end|tools_suffix)\|>)?"
    r"(?:\s*(?:<\|tool_calls_section_end\|>|<｜tool▁calls▁end｜>))?"
)


_CODE_END = re.compile(r"<\|(?:call|end|eom_id|eot_id|return)\|>|\Z")


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
        said = next((name for name in opener.groups() if name), "")
        name = re.sub(r":\d+\Z", "", said).removeprefix("functions.")
        if not text.startswith(("{", "["), at):
            if tool_runs(name) == "python" and (closer := _CODE_END.search(text, at)) and closer.start() > at:
                value, at = Parameter("code", *trim(text, at, closer.start())), closer.end()
                tags = between(opener.start(), at, (value,))
                found.append(Call(name, opener.start(), at, (value,), tags, form="function"))
            continue
        name = "" if opener["python"] else name
        after = json_end(text, at)
        closer = _CLOSER.match(text, after)
        end = closer.end() if closer and closer[0].strip() else after
        calls = json_calls(text, opener.start(), after, at, name=name)
        last = calls[-1]
        calls[-1] = last._replace(end=end, tags=(*last.tags, (after, end)) if end > after else last.tags)
        found += calls
        at = max(end, at)
    return found
