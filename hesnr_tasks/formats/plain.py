"""Any corpus: documents (`text`) and prompt–answer pairs (`prompt`, `completion`).

What is to be scored is labelled action, so that the default metric works; filters for calls find nothing to drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import chat
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, as_list, left_out, scalar_text
from hesnr_tasks.formats.outcome import outcome
from hesnr_tasks.formats.roles import role_of
from hesnr_tasks.trajectory import Kind, Segment, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "text"
RULE = "'text', or 'prompt' and 'completion'"


def detect(record: Any) -> float:
    """0.6: the keys are common words, so this comes last."""
    if not isinstance(record, Mapping):
        return 0.0
    pair = "prompt" in record and "completion" in record
    return 0.6 * (pair or isinstance(record.get("text"), str))


def read(record: Any, where: Where) -> Trajectory:
    """Read one document (all of it action) or one pair (prompt context, completion action)."""
    draft = Draft(NAME, where)
    if "prompt" in record and "completion" in record:
        _prompt(record["prompt"], draft)
        draft.generated([Segment(Kind.ACTION, _text(record["completion"], "completion", draft))])
    else:
        draft.generated([Segment(Kind.ACTION, _text(record.get("text"), "text", draft))])
    resolved, stored = outcome(record)
    return draft.build(
        id=scalar_text(record.get("id")),
        instance_id=record.get("instance_id"),
        resolved=resolved,
        outcome=stored,
        plain=True,
    )


def _prompt(prompt: Any, draft: Draft) -> None:
    """A string, or chat messages, all of which are given."""
    for message in as_list(prompt) or [prompt]:
        if isinstance(message, Mapping):
            if "content" not in message:
                left_out(message, "a message of the prompt has no content")
            draft.context(role_of(message) or "user", draft.text(message.get("content")))
        elif isinstance(message, str):
            draft.context("user", message)
        else:
            raise DataError(f"'prompt' must be text or a list of messages, not {type(message).__name__}")


def _text(value: Any, key: str, draft: Draft) -> str:
    if isinstance(value, str):
        return value
    messages = as_list(value) or []
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise DataError(f"{key!r} must be text or a list of messages, not {type(value).__name__}")
    if len(messages) > 1:
        raise DataError(f"{key!r} has {len(messages)} messages; convert dialogues with the key 'messages'")
    return draft.text(chat.content_text(messages[0]))
