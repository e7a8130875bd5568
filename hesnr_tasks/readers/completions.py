"""OpenHands completion logs (`llm_completions/<id>/*.json`): the last file's messages and response are the whole run.

With native calling the calls are structures (rendered); without, the text of earlier turns was written again by
OpenHands from parsed calls (synthetic). Sources: OpenHands 0.x `llm/llm.py`, `llm/fn_call_converter.py`; SDK logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hesnr_tasks.readers import canonical, chat, text
from hesnr_tasks.readers.draft import Draft
from hesnr_tasks.readers.fields import Where, deep, messages_of, scalar_text, string
from hesnr_tasks.readers.roles import role_of
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
    return float(isinstance(deep(record, "response", "choices", 0, "message"), Mapping))


def read(record: Any, where: Where) -> Trajectory:
    """Read one log file."""
    draft = Draft(NAME, where)
    raw = deep(record, "raw_response", "choices", 0, "message")
    last = raw if isinstance(raw, Mapping) else deep(record, "response", "choices", 0, "message")
    messages = [*messages_of(record, "messages"), {**last, "role": "assistant"}]
    native = any(canonical.openai_calls(message.get("tool_calls")) for message in messages)

    def turn(message: chat.Item, content: str) -> Sequence[Segment]:
        reasoning = string(message, "reasoning_content")
        if native:
            return canonical.generated(content, canonical.openai_calls(message.get("tool_calls")), reasoning)
        return text.split(canonical.with_reasoning(content, reasoning), "function")

    chat.label_messages(messages, draft, turn)
    if not any(role_of(message) == "assistant" for message in messages[:-1]):
        draft.warn("the log holds one turn only; the last log of a run holds all of them")
    return draft.build(
        id=_run_id(where),
        fidelity=Fidelity.RENDERED if native else Fidelity.SYNTHETIC,
        model=scalar_text(deep(record, "response", "model")),
    )
