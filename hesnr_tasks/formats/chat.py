"""What the chat readers share: finding the messages of a row, its names and outcome, and labelling its turns.

A row is an object with a list of messages under `messages`, `trajectory` or `conversations` (also as JSON text), or
that list itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import as_list, decoded, left_out, mapping, messages_of, scalar_text, unwrapped
from hesnr_tasks.formats.outcome import outcome
from hesnr_tasks.formats.roles import role_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

__all__ = [
    "Item",
    "assistant_texts",
    "content_text",
    "key_of",
    "label_messages",
    "messages",
    "peek",
    "row",
    "row_names",
]

Item = Mapping[str, Any]
Turn = Callable[[Item], "Sequence[Segment] | None"]
_KEYS = ("messages", "trajectory", "conversations", "messages_json")
_PEEK = 64  # messages looked at to recognise a row


def row(record: Any) -> Mapping[str, Any]:
    """The row as an object; a bare list of messages becomes `{"messages": list}`."""
    if isinstance(record, Mapping):
        return record
    return {"messages": as_list(record) or []}


def key_of(record: Mapping[str, Any]) -> str | None:
    """The key that holds a list of messages."""
    for key in _KEYS:
        listed = as_list(decoded(record.get(key)))
        first = unwrapped(listed[0]) if listed else None
        if isinstance(first, Mapping) and ("role" in first or "from" in first):
            return key
    return None


def peek(record: Any) -> list[Item]:
    """The first messages of what may be a row, or nothing; never raises."""
    record = row(record)
    key = key_of(record)
    listed = (as_list(decoded(record.get(key))) or []) if key else []
    return [item for item in map(unwrapped, listed[:_PEEK]) if isinstance(item, Mapping)]


def messages(record: Any) -> list[Item]:
    """All messages of a row; `DataError` names what is none."""
    record = row(record)
    return messages_of(record, key_of(record) or "messages")


def content_text(message: Item) -> str:
    """The text of a message, for detection only."""
    content = message.get("content", message.get("value"))
    if isinstance(content, str):
        return content
    parts = as_list(content) or []
    return "\n".join(p["text"] for p in parts if isinstance(p, Mapping) and isinstance(p.get("text"), str))


def assistant_texts(items: Sequence[Item]) -> Iterator[str]:
    """The texts of the messages the model wrote."""
    return (content_text(item) for item in items if role_of(item) == "assistant")


def message_text(message: Item, draft: Draft) -> str:
    """The text of a message, its content of any shape."""
    return draft.text(message.get("content", message.get("value")))


def label_messages(items: Sequence[Item], draft: Draft, turn: Turn) -> None:
    """Add `items` to `draft`; `turn(message)` gives an assistant message's segments (None: not the model's)."""
    for item in items:
        role = role_of(item)
        if role == "assistant":
            segments = turn(item)
            if segments is None:
                draft.not_generated(message_text(item, draft))
            else:
                draft.generated(segments)
        elif role == "system":
            draft.context(role, message_text(item, draft))
        elif role is None:
            draft.warn(f"a message of the unknown role {item.get('role')!r} is labelled observation")
            content = message_text(item, draft)
            if not content:
                left_out(item, "a message of unknown shape")
            draft.observation("user", content)
        else:
            draft.given(role, message_text(item, draft))


def row_names(record: Any, draft: Draft, fidelity: Fidelity, **meta: Any) -> Trajectory:
    """Finish a row: its id, instance, outcome and model as the public data sets name them."""
    record = row(record)
    metadata = mapping(record, "metadata")
    resolved, stored = outcome(record)
    instance = scalar_text(record.get("instance_id")) or scalar_text(metadata.get("instance_id"))
    return draft.build(
        id=_identity(record, instance),
        instance_id=instance,
        resolved=resolved,
        fidelity=fidelity,
        outcome=stored,
        exit_status=scalar_text(record.get("exit_status")) or scalar_text(record.get("finish_reason")),
        model=scalar_text(record.get("model")) or scalar_text(record.get("model_name")),
        **meta,
    )


def _identity(record: Mapping[str, Any], instance: str | None) -> str | None:
    for key in ("trajectory_id", "traj_id"):
        if own := scalar_text(record.get(key)):
            return own
    run = scalar_text(record.get("run_id"))
    if instance and run:
        return f"{instance}/{run}"
    return instance or run or scalar_text(record.get("id"))
