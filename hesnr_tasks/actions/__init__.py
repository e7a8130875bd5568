"""The calls in text, found tolerantly: names, parameter values and call syntax as character spans.

One grammar for both who asks where in a message the calls are (`find_calls`) and who asks what an action says
(`parse_action`). Its forms, tried in this order at the first character that is not white space:

- tags: ``<function=NAME>``, ``<parameter=KEY>VALUE</parameter>``, ``</function>``; ``<invoke name="…">``; in
  ``<tool_call>`` these, JSON, or ``<arg_key>`` and ``<arg_value>`` (`functions`);
- the control strings of model families around a name and JSON (`marked`);
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

from functools import lru_cache

from hesnr_tasks.actions.calls import Call, Parameter
from hesnr_tasks.actions.commands import bare, fenced, tagged
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
    calls = functions(text) or marked(text) or tagged(text) or whole_json(text) or fenced(text)
    return tuple(calls) or (bare(text),)


def find_calls(text: str, start: int = 0) -> list[Call]:
    """The calls between tags, or control strings, in a whole message from `start` on; those only mentioned are text."""
    return find_functions(text, start) or find_marked(text, start)
