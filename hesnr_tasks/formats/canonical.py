"""The one way a structured tool call is written as text, whatever format it was stored in.

The form is the one SWE-smith's fine-tuning rows have, so that a run stored both ways gives the same characters::

    THOUGHT

    <function=NAME>
    <parameter=KEY>VALUE</parameter>
    </function>

VALUE is the argument itself when it is a string, else its JSON; for the keys in `WRAPPED` it has lines of its own.
Calls made in parallel follow each other on new lines. Reasoning stored apart from the text comes first, between
`<think>` tags. Results depend on this form: a change of it is a new `VERSION`, which every trajectory carries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hesnr_tasks.bounded_io import parse_json
from hesnr_tasks.formats.fields import as_list, left_out
from hesnr_tasks.trajectory import Kind, Segment

__all__ = ["VERSION", "WRAPPED", "Call", "arguments_of", "generated", "openai_calls", "render_call", "with_reasoning"]

VERSION = "xml-1"
WRAPPED = ("old_str", "new_str", "file_text")


class Call(NamedTuple):
    """A tool call. `arguments` as text is what the model wrote where that was not valid JSON."""

    name: str
    arguments: Mapping[str, Any] | str


def render_call(call: Call) -> str:
    """`call` in the canonical form."""
    if isinstance(call.arguments, str):
        body = f"{call.arguments}\n" if call.arguments else ""
    else:
        body = "".join(_parameter(key, value) for key, value in call.arguments.items())
    return f"<function={call.name}>\n{body}</function>"


def _parameter(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_listed)
    return f"<parameter={key}>\n{text}\n</parameter>\n" if key in WRAPPED else f"<parameter={key}>{text}</parameter>\n"


def _listed(value: Any) -> Any:
    listed = as_list(value)
    return str(value) if listed is None else listed


def generated(content: str, calls: Iterable[Call], reasoning: str = "") -> tuple[Segment, ...]:
    """Segments of an assistant turn stored as text, calls and, in some formats, reasoning."""
    thought = with_reasoning(content, reasoning)
    rendered = "\n".join(render_call(call) for call in calls)
    if not rendered:
        return (Segment(Kind.THOUGHT, thought),) if thought else ()
    kept = thought.rstrip()
    action = Segment(Kind.ACTION, f"{thought[len(kept) :]}\n\n{rendered}")
    return (Segment(Kind.THOUGHT, kept), action) if kept else (action,)


def with_reasoning(content: str, reasoning: str) -> str:
    """`content` after `reasoning`, which is not repeated where the content has it already."""
    if not reasoning.strip() or reasoning.strip() in content:
        return content
    return f"<think>\n{reasoning}\n</think>" + (f"\n\n{content}" if content else "")


def arguments_of(value: Any) -> Mapping[str, Any] | str:
    """Arguments however stored: object, JSON text, null; text that is no JSON object stays as it is."""
    if isinstance(value, Mapping):
        return value
    if value is None:
        return {}
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=_listed)
    try:
        parsed = parse_json(value) if value.strip() else {}  # keys that are there twice: stays as it was written
    except ValueError:
        return value
    if isinstance(parsed, str) and parsed != value:  # JSON inside JSON
        return arguments_of(parsed)
    return parsed if isinstance(parsed, dict) else value


def openai_calls(value: Any) -> list[Call]:
    """The calls of an OpenAI `tool_calls` list; entries without a name or arguments are no calls."""
    calls = []
    for item in as_list(value) or []:
        call = _openai_call(item)
        if call is not None:
            calls.append(call)
        else:
            left_out(item, "a tool call has neither name nor arguments")
    if as_list(value) is None:
        left_out(value, "tool calls are no list")
    return calls


def _openai_call(item: Any) -> Call | None:
    if not isinstance(item, Mapping):
        return None
    function = item.get("function")
    if isinstance(function, Mapping):  # chat completions
        name, arguments = function.get("name"), function.get("arguments")
    else:  # responses, inspect_ai, ATIF
        name = function or item.get("name") or item.get("function_name")
        arguments = item.get("arguments", item.get("input"))
    if name is None and arguments is None:
        return None
    if not isinstance(name, str):
        left_out(name, "the name of a tool call is not text")
    return Call(name if isinstance(name, str) else "", arguments_of(arguments))
