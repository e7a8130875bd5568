"""The calls in the text of one action, found tolerantly: names, parameter values and call syntax as character spans.

Forms, tried in this order at the first character that is not white space:

- ``<function=NAME>``, ``<parameter=KEY>VALUE</parameter>``, ``</function>`` (also with ``name="…"`` attributes and
  inside ``<tool_call>``);
- ``<tool_call>`` around a JSON object (values are then JSON strings: `Parameter.encoded`);
- one pair of tags around a command: ``<command>``, ``<mswea_bash_command>``, ``<execute_bash>``, ``<execute_ipython>``
  …;
- fenced blocks;
- anything else: the whole text is one shell command.

Values are stored unescaped, so a value may contain the very tags that end it. The rules: ``</parameter>`` ends a value
iff nothing but white space separates it from the next tag of the call or the end of the text; a ``</function>`` or
``<parameter=`` at the start of a line ends a value whose closer is missing; a complete ``<function=…> … </function>``
whose opener starts a line inside a value is part of that value. Text in a call that is in no parameter is a parameter
without a name. One newline at each end of a value belongs to the
syntax. Nothing here raises, whatever the text, and time is linear in its length.
"""

from __future__ import annotations

from functools import lru_cache

from hesnr_tasks.actions.calls import Call, Parameter
from hesnr_tasks.actions.commands import bare, fenced, tagged
from hesnr_tasks.actions.functions import functions

__all__ = ["Call", "Parameter", "parse_action"]


def parse_action(text: str) -> list[Call]:
    """The calls in `text`, in order; spans lie in `text`, tags and values do not overlap. Never raises."""
    return list(_parse(text))


@lru_cache(maxsize=8)  # every filter asks for the calls of the same action
def _parse(text: str) -> tuple[Call, ...]:
    if not text.strip():
        return ()
    return tuple(functions(text) or tagged(text) or fenced(text)) or (bare(text),)
