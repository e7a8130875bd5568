"""Chat rows with OpenAI tool calls: SWE-Gym, nebius OpenHands, Open-SWE-Traces, CoderForge, SWE-smith `tool`, ….

Arguments may be JSON text, objects or Python text; lists may be JSON text or arrays from parquet; keys may be null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hesnr_tasks.formats import canonical, chat, text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, as_list, decoded, string
from hesnr_tasks.formats.parts import Turn
from hesnr_tasks.formats.roles import role_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "chat-tools"
RULE = "messages of which some have tool calls or the role tool"


def detect(record: Any) -> float:
    """1 for tool calls, 0.9 for the role tool where no text holds a call."""
    messages = chat.peek(record)
    if any(_calls(message) or _tool_parts(message) for message in messages):
        return 1.0
    answered = any(role_of(message) == "tool" for message in messages)
    return 0.9 * (answered and text.guess_style(chat.assistant_texts(messages)) == "none")


def read(record: Any, where: Where) -> Trajectory:
    """Read one row."""
    draft = Draft(NAME, where)
    messages = chat.messages(record)

    def turn(message: chat.Item) -> Sequence[Segment]:
        return _turn(message, draft)

    chat.label_messages([_plain_results(message) for message in messages], draft, turn)
    thinks = any(call.name == "think" for message in messages for call in _calls(message))
    return chat.row_names(record, draft, Fidelity.RENDERED, think_tool="action" if thinks else None)


def _calls(message: chat.Item) -> list[canonical.Call]:
    calls = canonical.openai_calls(decoded(message.get("tool_calls")))
    single = message.get("function_call")
    return calls or canonical.openai_calls([single] if single else [])


def _turn(message: chat.Item, draft: Draft) -> Sequence[Segment]:
    reasoning = string(message, "reasoning_content") or string(message, "reasoning")
    if not _tool_parts(message):
        return canonical.generated(chat.message_text(message, draft), _calls(message), reasoning)
    turn = Turn(reasoning=[reasoning] if reasoning else [])
    turn.add_all(message.get("content"), draft)
    turn.calls.extend(_calls(message))
    return turn.segments()


def _tool_parts(message: chat.Item) -> bool:
    """Whether the content has Anthropic parts rather than text."""
    parts = as_list(message.get("content")) or []
    return any(string(part, "type") in ("tool_use", "tool_result", "thinking", "redacted_thinking") for part in parts)


def _plain_results(message: chat.Item) -> chat.Item:
    """A user message of Anthropic `tool_result` parts as a message of the role tool."""
    parts = as_list(message.get("content")) or []
    if role_of(message) != "user" or not any(string(part, "type") == "tool_result" for part in parts):
        return message
    flat: list[Any] = []
    for part in parts:
        content = part.get("content") if string(part, "type") == "tool_result" else [part]
        listed = as_list(content)
        flat.extend(listed if listed is not None else [] if content is None else [content])
    return {"role": "tool", "content": flat}
