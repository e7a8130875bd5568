"""mini-swe-agent `.traj.json`: v1, v2 with text, tool calls or the Responses API, and the bare list of messages.

Sources: mini-swe-agent 1.x and 2.4.6, `agents/default.py`, `agents/interactive.py`, `models/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hesnr_tasks.formats import canonical, chat, text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, as_list, deep, mapping, messages_of, scalar_text, string
from hesnr_tasks.formats.parts import Turn
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "mini-swe-agent"
RULE = "'trajectory_format' starts with mini-swe-agent, or messages with mini-swe-agent's info or command fences"
_MARK = "mswea_bash_command"


def detect(record: Any) -> float:
    """By the format's name, by the run's info, or by the command fence only this agent uses."""
    if isinstance(record, Mapping):
        if string(record, "trajectory_format").startswith("mini-swe-agent"):
            return 1.0
        if as_list(record.get("messages")) is None:
            return 0.0
        info = mapping(record, "info")
        if "mini_version" in info or isinstance(deep(info, "config", "agent"), Mapping):
            return 0.9
        return 0.0
    return 0.9 * any(_MARK in content for content in chat.assistant_texts(chat.peek(record)))


def read(record: Any, where: Where) -> Trajectory:
    """Read one file."""
    draft = Draft(NAME, where)
    row = chat.row(record)
    messages = messages_of(row, "messages")
    style = _style(row, messages)
    rendered = [_message(message, style, draft) for message in messages]
    instance = scalar_text(row.get("instance_id"))
    return draft.build(
        id=instance or where.identity,
        instance_id=instance or where.stem,
        fidelity=Fidelity.RENDERED if any(rendered) else Fidelity.EXACT,
        format_version=scalar_text(deep(row, "info", "mini_version")) or scalar_text(row.get("trajectory_format")),
        exit_status=scalar_text(deep(row, "info", "exit_status")),
        model=scalar_text(deep(row, "info", "config", "model", "model_name")),
    )


def _style(row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    """By the stored expression, which is looked at but never run: it is untrusted."""
    for owner in ("model", "agent"):
        expression = deep(row, "info", "config", owner, "action_regex")
        if isinstance(expression, str):
            known = [style for style, mark in (("mswea", _MARK), ("bash", "```bash")) if mark in expression]
            if known:
                return known[0]
    return text.guess_style(chat.assistant_texts(messages), ("mswea", "bash", "fence"))


def _message(message: Mapping[str, Any], style: str, draft: Draft) -> bool:
    """Add one message; true when a part of it had to be rendered."""
    if message.get("object") == "response" or ("role" not in message and as_list(message.get("output")) is not None):
        turn = Turn()
        turn.add_all(message.get("output"), draft)
        draft.generated(turn.segments())
        return True
    if message.get("type") == "function_call_output":
        draft.observation("tool", draft.text(message.get("output")))
        return False
    if deep(message, "extra", "interrupt_type") == "FormatError":
        draft.warn("an output that mini-swe-agent rejected is in no later prompt and is left out")
    rendered = []

    def turn_of(item: chat.Item) -> Sequence[Segment]:
        content = chat.message_text(item, draft)
        calls = canonical.openai_calls(item.get("tool_calls"))
        reasoning = string(item, "reasoning_content")
        rendered.append(bool(calls or reasoning.strip()))
        if calls:
            return canonical.generated(content, calls, reasoning)
        return text.split(canonical.with_reasoning(content, reasoning), style)

    chat.label_messages([message], draft, turn_of)
    return any(rendered)
