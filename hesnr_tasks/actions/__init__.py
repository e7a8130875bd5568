"""The calls in text, found tolerantly: names, parameter values and call syntax as character spans.

One grammar for both who asks where in a message the calls are (`find_calls`) and who asks what an action says
(`parse_action`). Its forms, tried in this order at the first character that is not white space:

- tags: ``<function=NAME>``, ``<parameter=KEY>VALUE</parameter>``, ``</function>``; ``<invoke name="…">``; in
  ``<tool_call>`` these, JSON, or ``<arg_key>`` and ``<arg_value>`` (`functions`);
- the control strings of model families around a name and JSON (`marked`);
- Terminus-2's ``<keystrokes>`` (`commands`);
- one pair of tags around a command: ``<command>``, ``<mswea_bash_command>``, ``<execute_bash>``, ``<execute_ipython>``
  … (`commands`);
- JSON alone, or the rest of it after a thought (`json_calls`);
- fenced blocks, of commands or of JSON (`commands`);
- anything else: the whole text is one shell command.

A value is a span of the text and how often JSON has escaped it: `Parameter.view` gives its characters, each with its
place. Text in a call that is in no parameter is a parameter without a name. One newline at each end of a value between
tags belongs to the syntax. Nothing here raises, whatever the text, and time is linear in its length.
"""

from __future__ import annotations

import re
from functools import lru_cache

from hesnr_tasks.actions.calls import Call, Parameter
from hesnr_tasks.actions.commands import bare, fenced, keystrokes, tagged
from hesnr_tasks.actions.functions import find_functions, functions
from hesnr_tasks.actions.json_calls import whole_json
from hesnr_tasks.actions.marked import find_marked, marked

__all__ = ["Call", "Parameter", "find_calls", "parse_action"]


def parse_action(text: str) -> list[Call]:
    """The calls in `text`, in order; spans lie in `text`, tags and values do not overlap. Never raises."""
    return list(_parse(text))


@lru_cache(maxsize=8)  # every filter asks for the calls of the same action
def _parse(text: str) -> tuple[Call, ...]:
    if not text.strip():
        return ()
    calls = functions(text) or marked(text) or keystrokes(text) or tagged(text) or whole_json(text) or fenced(text)
    if calls and (turn_end := _TURN_END.match(text, calls[-1].end)):
        calls[-1] = calls[-1]._replace(tags=(*calls[-1].tags, turn_end.span()))
    return tuple(calls) or (bare(text),)


_TURN_END = re.compile(r"\s*(?:<\|\w{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|</s>)\s*\Z")


def find_calls(text: str, start: int = 0) -> list[Call]:
    """The calls between tags, or control strings, in a whole message from `start` on; those only mentioned are text."""
    return find_functions(text, start) or find_marked(text, start)
