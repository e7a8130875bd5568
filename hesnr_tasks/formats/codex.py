"""Codex CLI rollout files (JSON Lines of `{timestamp, type, payload}`) and the stream of `codex exec --json`.

Only `response_item` lines are read; `event_msg` repeats them. Source: openai/codex, `codex-rs/protocol/src/models.rs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hesnr_tasks.formats.canonical import Call
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, as_list, decoded, deep, left_out, mapping, mappings, scalar_text, string
from hesnr_tasks.formats.parts import Turn
from hesnr_tasks.trajectory import Fidelity, Trajectory

__all__ = ["NAME", "RULE", "SESSION", "detect", "read"]

NAME = "codex"
RULE = "lines of type session_meta or of {timestamp, type, payload}"
SESSION = True

_OWN = ("reasoning", "function_call", "custom_tool_call", "local_shell_call", "web_search_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_QUIET = ("ghost_snapshot", "compaction", "compaction_summary", "other")

Line = Mapping[str, Any]


def detect(record: Any) -> float:
    """1 for a session's first lines, in any of the three shapes."""
    first = [line for line in (as_list(record) or [])[:3] if isinstance(line, Mapping)]
    if any(string(line, "type") in ("session_meta", "thread.started") for line in first):
        return 1.0
    enveloped = any(
        isinstance(line.get("payload"), Mapping) and "timestamp" in line and "type" in line for line in first
    )
    return 0.9 * (enveloped or any(string(line, "record_type") == "state" for line in first))


def read(record: Any, where: Where) -> Trajectory:
    """Read one session."""
    draft = Draft(NAME, where)
    lines = mappings(record, "a line")
    meta = next((mapping(line, "payload") for line in lines if string(line, "type") == "session_meta"), {})
    instructions = meta.get("instructions") or deep(meta, "base_instructions", "text")
    if isinstance(instructions, str):
        draft.context("system", instructions)
    else:
        left_out(instructions if "id" in meta else meta, "the instructions are no text")
        draft.warn("the system prompt is not stored in this file")
    _items([item for line in lines if (item := _item(line, draft)) is not None], draft)
    return draft.build(
        id=scalar_text(meta.get("id"))
        or next((t for line in lines if (t := scalar_text(line.get("thread_id")))), None),
        fidelity=Fidelity.RENDERED,
        format_version=scalar_text(meta.get("cli_version")),
        model=next((m for line in lines if (m := scalar_text(deep(line, "payload", "model")))), None),
    )


def _item(line: Line, draft: Draft) -> Line | None:
    """The response item of a line, if it has one."""
    kind = string(line, "type")
    if kind == "response_item":
        return mapping(line, "payload")
    if kind == "compacted":
        draft.warn("the history was compacted: the model no longer saw all earlier turns")
        return {"type": "message", "role": "user", "content": string(mapping(line, "payload"), "message")}
    if kind == "item.completed":
        return mapping(line, "item")
    known = kind in ("message", *_OWN, *_OUTPUTS) and "payload" not in line
    return line if known else None


def _items(items: Sequence[Line], draft: Draft) -> None:
    """Neighbouring items of the model make one turn."""
    turn: Turn | None = None
    for item in items:
        kind = string(item, "type")
        if kind in _QUIET:
            continue
        if kind in _OWN or (kind == "message" and string(item, "role") == "assistant"):
            turn = turn or Turn()
            turn.add(item, draft)
            continue
        if kind in ("agent_message", "command_execution"):
            turn = _streamed(item, kind, turn or Turn(), draft)
            continue
        if turn:
            draft.generated(turn.segments())
            turn = None
        _given(item, kind, draft)
    if turn:
        draft.generated(turn.segments())


def _streamed(item: Line, kind: str, turn: Turn, draft: Draft) -> Turn | None:
    """An item of `codex exec --json`: the call and its output are one item."""
    if kind == "agent_message":
        turn.text.append(string(item, "text"))
        return turn
    turn.calls.append(Call("shell", {"command": item.get("command")}))
    draft.generated(turn.segments())
    draft.observation("tool", string(item, "aggregated_output"))
    return None


def _given(item: Line, kind: str, draft: Draft) -> None:
    if kind in _OUTPUTS:
        draft.observation("tool", _output(item.get("output"), draft))
    elif kind == "message":
        content = draft.text(item.get("content"))
        if string(item, "role") in ("system", "developer"):
            draft.context("system", content)
        else:
            draft.given("user", content)
    else:
        draft.leave_out(item, f"an item of the unknown type {kind!r} is left out")


def _output(output: Any, draft: Draft) -> str:
    """Plain text, a list of parts, or (older) JSON text with the output inside."""
    value = decoded(output)
    if isinstance(value, Mapping) and isinstance(value.get("output"), str):
        return string(value, "output")
    if isinstance(output, str):
        return output
    if isinstance(value, Mapping) and "content" not in value:
        left_out(value, "an output has no text")
    content = value.get("content") if isinstance(value, Mapping) else value
    return draft.text(content)
