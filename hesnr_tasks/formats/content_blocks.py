"""Assistant turns stored as structures: tool calls, Anthropic content blocks, OpenAI Responses items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hesnr_tasks.actions import ToolCall, argument_json, render_call
from hesnr_tasks.bounded_io import parse_json
from hesnr_tasks.formats.base import TrajectoryBuilder
from hesnr_tasks.formats.json_access import as_list, left_out, mapping, string
from hesnr_tasks.trajectory import Kind, Segment


def turn_segments(content: str, calls: Iterable[ToolCall], reasoning: str = "") -> tuple[Segment, ...]:
    """Segments of an assistant turn stored as text, calls and, in some formats, reasoning; calls in canonical form."""
    thought = with_reasoning(content, reasoning)
    rendered = "\n".join(render_call(call) for call in calls)
    if not rendered:
        return (Segment(Kind.THOUGHT, thought),) if thought else ()
    stripped = thought.rstrip()
    action = Segment(Kind.ACTION, f"{thought[len(stripped) :]}\n\n{rendered}")
    return (Segment(Kind.THOUGHT, stripped), action) if stripped else (action,)


def with_reasoning(content: str, reasoning: str) -> str:
    """`content` after `reasoning`, which is not repeated where the content has it already."""
    if not reasoning.strip() or reasoning.strip() in content:
        return content
    return f"<think>\n{reasoning}\n</think>" + (f"\n\n{content}" if content else "")


# --- calls ------------------------------------------------------------------------------------------------------------


def openai_calls(value: Any) -> list[ToolCall]:
    """The calls of an OpenAI `tool_calls` list; entries without a name or arguments are no calls."""
    listed = as_list(value)
    if listed is None:
        left_out(value, "tool calls are no list")
    calls = []
    for item in listed or []:
        call = _openai_call(item)
        if call is not None:
            calls.append(call)
        else:
            left_out(item, "a tool call has neither name nor arguments")
    return calls


def _openai_call(item: Any) -> ToolCall | None:
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
    return ToolCall(name if isinstance(name, str) else "", arguments_of(arguments))


def arguments_of(value: Any) -> Mapping[str, Any] | str:
    """Arguments however stored: object, JSON text, null; text that is no JSON object stays as it is."""
    if isinstance(value, Mapping):
        return value
    if value is None:
        return {}
    if not isinstance(value, str):
        return argument_json(value)
    try:
        parsed = parse_json(value) if value.strip() else {}  # keys that are there twice: stays as it was written
    except ValueError:
        return value
    if isinstance(parsed, str) and parsed != value:  # JSON inside JSON
        return arguments_of(parsed)
    return parsed if isinstance(parsed, dict) else value


# --- content blocks ---------------------------------------------------------------------------------------------------


@dataclass
class Turn:
    """What the model wrote in one turn, gathered block by block."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, block: Any, builder: TrajectoryBuilder) -> None:
        """Take one block in; kinds that hold no text of the model are warned about."""
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind in ("redacted_thinking", "reasoning_opaque"):
            builder.warn("reasoning is stored only encrypted and is left out")
        elif kind in ("thinking", "reasoning"):
            text = reasoning_of(block)
            if text and text not in self.reasoning:
                self.reasoning.append(text)
            elif not text and any(block.get(key) for key in ("encrypted_content", "signature", "redacted")):
                builder.warn("reasoning is stored only encrypted and is left out")
            elif not text:
                left_out(block, "a part with reasoning has no readable text")
        elif kind in ("tool_use", "server_tool_use"):
            self.calls.append(ToolCall(string(block, "name"), arguments_of(block.get("input"))))
        elif kind in ("local_shell_call", "web_search_call"):
            arguments = {k: v for k, v in mapping(block, "action").items() if k != "type" and v is not None}
            self.calls.append(ToolCall(kind.removesuffix("_call"), arguments))
        elif kind == "custom_tool_call":
            self.calls.append(ToolCall(string(block, "name"), {"input": string(block, "input")}))
        elif kind == "function_call":
            self.calls.append(ToolCall(string(block, "name"), arguments_of(block.get("arguments"))))
        elif kind == "message":
            self.add_all(block.get("content"), builder)
        elif text := builder.text([block]):
            self.text.append(text)

    def add_all(self, content: Any, builder: TrajectoryBuilder) -> None:
        """Take a whole content in: a string or a list of blocks."""
        if isinstance(content, str):
            self.text.extend([content] if content else [])
            return
        blocks = as_list(content)
        for block in blocks if blocks is not None else ([] if content is None else [content]):
            self.add(block, builder)

    def segments(self) -> tuple[Segment, ...]:
        """The turn as labelled text, in the canonical form."""
        return turn_segments("\n".join(self.text), self.calls, "\n".join(self.reasoning))


def reasoning_of(block: Mapping[str, Any]) -> str:
    """The readable text of a reasoning block: `thinking`, `reasoning`, `text`, or the parts of `content`, `summary`."""
    for key in ("thinking", "reasoning", "text"):
        if string(block, key):
            return string(block, key)
    for key in ("content", "summary"):
        texts = []
        for part in as_list(block.get(key)) or [block.get(key)]:
            text = part if isinstance(part, str) else string(part, "text")
            if not text:
                left_out(part, "a part of reasoning has no readable text")
            texts.append(text)
        if any(texts):
            return "\n".join(text for text in texts if text)
    return ""
