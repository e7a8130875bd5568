"""OpenHands completion logs (`llm_completions/<id>/*.json`): the last file's messages and response are the whole run.

With native calling the calls are structures (rendered); without, the text of earlier turns was written again by
OpenHands from parsed calls (synthetic). Sources: OpenHands 0.x `llm/llm.py`, `llm/fn_call_converter.py`; SDK logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import canonical, chat, text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, deep, left_out, messages_of, scalar_text, string
from hesnr_tasks.formats.roles import role_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "openhands-completions"
RULE = "'messages' with the 'response' of one model call"


def _run_id(where: Where) -> str:
    folder = PurePath(where.path).parent
    return folder.name if folder.parent.name == "llm_completions" else where.identity


def detect(record: Any) -> float:
    """1 for messages beside a response with choices."""
    if not isinstance(record, Mapping) or not isinstance(record.get("messages"), list):
        return 0.0
    if isinstance(deep(record, "response", "choices", 0, "message"), Mapping):
        return 1.0
    return 0.9 * ("raw_response" in record or isinstance(record.get("response"), (Mapping, list)))  # a broken one


def read(record: Any, where: Where) -> Trajectory:
    """Read one log file."""
    draft = Draft(NAME, where)
    messages = [*messages_of(record, "messages"), _last(record)]
    chat.label_messages(messages, draft, lambda message: _turn(message, draft))
    if not any(role_of(message) == "assistant" for message in messages[:-1]):
        draft.warn("the log holds one turn only; the last log of a run holds all of them")
    written = any("<function=" in content for content in chat.assistant_texts(messages))
    return draft.build(
        id=_run_id(where),
        fidelity=Fidelity.SYNTHETIC if written else Fidelity.RENDERED,
        model=scalar_text(deep(record, "response", "model")),
    )


def _last(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The response's message; the model's own text where the log also has it and it holds the call."""
    if not isinstance(deep(record, "response", "choices", 0, "message"), Mapping):
        raise DataError("'response' holds no message (choices[0].message): the last turn cannot be read")
    raw = deep(record, "raw_response", "choices", 0, "message")
    if not isinstance(raw, Mapping) or "content" not in raw or (raw["content"] and not chat.content_text(raw)):
        left_out(record.get("raw_response"), "'raw_response' holds no message with text")
    if isinstance(raw, Mapping) and "<function=" in chat.content_text(raw):
        return {"role": "assistant", "content": raw.get("content")}
    message = deep(record, "response", "choices", 0, "message")
    if not message.keys() & {"content", "tool_calls", "reasoning_content"}:
        left_out(message, "the response's message is empty")
    return {**message, "role": "assistant"}


def _turn(message: chat.Item, draft: Draft) -> Sequence[Segment]:
    content = chat.message_text(message, draft)
    calls, reasoning = canonical.openai_calls(message.get("tool_calls")), string(message, "reasoning_content")
    if calls:
        return canonical.generated(content, calls, reasoning)
    return text.split(canonical.with_reasoning(content, reasoning), "function")
