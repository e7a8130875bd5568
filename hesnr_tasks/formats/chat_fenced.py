"""Chat rows whose calls are fenced blocks, `<command>` or `<tool_call>` tags, and rows without any call.

Members: mini-swe-agent v1 rows, SWE-smith `ticks`, Harbor trace export and ShareGPT (`conversations`), plain dialogues.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hesnr_tasks.formats import canonical, chat, text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, scalar_text, string
from hesnr_tasks.formats.outcome import outcome
from hesnr_tasks.formats.roles import role_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "chat-text"
RULE = "messages with calls as fenced blocks or tags in the assistant text, or with no calls"
_STYLES = ("tool_call", "mswea", "bash", "json", "keystrokes", "execute", "command", "fence")
_SMITH_ID = re.compile(r".+__.+\.[0-9a-f]{8}\.")


def detect(record: Any) -> float:
    """0.9 when assistant texts hold a call, 0.5 when there is an assistant at all."""
    messages = chat.peek(record)
    if text.guess_style(chat.assistant_texts(messages), _STYLES) != "none":
        return 0.9
    return 0.5 * any(role_of(message) == "assistant" for message in messages)


def read(record: Any, where: Where) -> Trajectory:
    """Read one row."""
    draft = Draft(NAME, where)
    messages = chat.messages(record)
    style = _style([chat.content_text(m) for m in messages if role_of(m) == "assistant"])
    reasoned = any(string(message, "reasoning_content").strip() for message in messages)
    if style == "none":
        draft.warn("no call was found in any assistant text: all of it is thought")

    def turn(message: chat.Item) -> Sequence[Segment]:
        content = chat.message_text(message, draft)
        return text.split(canonical.with_reasoning(content, string(message, "reasoning_content")), style)

    chat.label_messages(messages, draft, turn)
    exported = chat.key_of(chat.row(record)) == "conversations"
    if exported or _is_smith(record):
        fidelity = Fidelity.SYNTHETIC
    else:
        fidelity = Fidelity.RENDERED if reasoned else Fidelity.EXACT
    return _named(record, draft, fidelity, style)


def _style(texts: Sequence[str]) -> str:
    """`bash` only where every block is one: SWE-agent's last-block rule is the safe one for other fences."""
    guess = text.guess_style(texts, _STYLES)
    thoughts = any(t.lstrip().startswith("THOUGHT:") for t in texts)
    return "fence" if guess == "bash" and not thoughts else guess


def _is_smith(record: Any) -> bool:
    return bool(_SMITH_ID.match(string(chat.row(record), "instance_id")))


def _named(record: Any, draft: Draft, fidelity: Fidelity, style: str) -> Trajectory:
    row = chat.row(record)
    trial = scalar_text(row.get("trial_name"))
    if trial is None:
        return chat.row_names(record, draft, fidelity, style=style)
    resolved, stored = outcome(row, "result")
    return draft.build(
        id=trial,
        instance_id=scalar_text(row.get("task")),
        resolved=resolved,
        fidelity=fidelity,
        outcome=stored,
        model=scalar_text(row.get("model")),
        style=style,
    )
