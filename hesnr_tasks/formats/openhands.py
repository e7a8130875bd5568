"""OpenHands V0: `output.jsonl` rows, resolver rows, and bare lists of events; event or pair history, old and new.

The model's turn is `tool_call_metadata.model_response` where it is stored (once per response, however many actions it
caused); else thought and arguments of the action event. The event's `message` is a summary the scaffold wrote.
Source: OpenHands 0.9 to 0.62, `openhands/events/`, `openhands/memory/conversation_memory.py`, the resolver's tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import canonical
from hesnr_tasks.formats.canonical import Call
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, as_list, deep, items, left_out, mapping, scalar_text, string
from hesnr_tasks.formats.outcome import outcome_meta, resolved_of
from hesnr_tasks.trajectory import Fidelity, Trajectory

__all__ = ["NAME", "RULE", "detect", "events_of", "read", "row_outcome"]

NAME = "openhands-v0"
RULE = "events with 'action' or 'observation' and 'args', 'extras' or 'content'"

_TOOLS = {"run": "execute_bash", "run_ipython": "execute_ipython_cell", "edit": "str_replace_editor"}
_KNOWN = (
    *("run", "run_ipython", "read", "write", "edit", "browse", "browse_interactive", "think", "finish", "reject"),
    *("call_tool_mcp", "mcp", "delegate", "message", "task_tracking", "add_task", "modify_task"),
)
_NOT_ARGUMENTS = (
    *("thought", "is_confirmed", "confirmation_state", "keep_prompt", "action_risk", "security_risk", "blocking"),
    *("hidden", "is_static", "cwd", "wait_for_response", "impl_source", "is_input", "kernel_init_code"),
)
_EVENT_KEYS = (
    *("id", "timestamp", "source", "message", "action", "observation", "cause", "args", "extras", "content", "thought"),
    *("tool_call_metadata", "llm_metrics", "timeout", "success", "images_urls", "image_urls"),
)
_SILENT_ACTIONS = ("change_agent_state", "null", "recall", "condensation_request", "pause", "resume", "start", "stop")
_SILENT_OBSERVATIONS = ("null", "agent_state_changed", "recall")
_OWN = ("agent", "")


def events_of(record: Any) -> list[Any]:
    """The history of a row, or the bare list; pairs are flattened."""
    if isinstance(record, Mapping):
        listed = items(record, "history") or items(record, "trajectory")
    else:
        listed = as_list(record) or []
    pairs = bool(listed) and as_list(listed[0]) is not None
    return [event for pair in listed for event in (as_list(pair) or [pair])] if pairs else listed


def detect(record: Any) -> float:
    """1 when the first events are of this kind."""
    return float(any(_is_event(event) for event in events_of(record)[:3]))


def _is_event(event: Any) -> bool:
    if not isinstance(event, Mapping) or "kind" in event or "role" in event:
        return False
    named = isinstance(event.get("action"), str) or isinstance(event.get("observation"), str)
    return named and "response" not in event and any(key in event for key in ("args", "extras", "content", "thought"))


def read(record: Any, where: Where) -> Trajectory:
    """Read one row or one exported session."""
    draft = Draft(NAME, where)
    seen: set[str] = set()
    for i, event in enumerate(events_of(record)):
        if not isinstance(event, Mapping):
            raise DataError(f"history[{i}] must be an event object, not {type(event).__name__}")
        if isinstance(event.get("action"), str):
            _action(event, draft, seen)
        elif isinstance(event.get("observation"), str):
            _observation(event, draft)
        else:
            draft.leave_out(event, "an event that is neither action nor observation is left out")
    row = record if isinstance(record, Mapping) else {}
    resolved, stored = row_outcome(row)
    return draft.build(
        id=scalar_text(row.get("instance_id")) or _issue(row),
        instance_id=scalar_text(row.get("instance_id")) or _issue(row),
        resolved=resolved,
        fidelity=Fidelity.RENDERED,
        outcome=stored,
        exit_status=scalar_text(row.get("error")),
        model=scalar_text(deep(row, "metadata", "llm_config", "model")),
        think_tool="action" if any(_kind(event) == "think" for event in events_of(record)) else None,
    )


def row_outcome(row: Mapping[str, Any]) -> tuple[bool | None, Any]:
    """From the evaluation report in the row; the resolver's `success` is a model's guess and stays unknown."""
    for path in (("test_result", "report", "resolved"), ("report", "resolved"), ("resolved",)):
        stored = deep(row, *path)
        if stored is not None:
            return resolved_of(stored), outcome_meta(stored)
    guess = row.get("success")
    return None, None if guess is None else f"guessed by a model: {outcome_meta(guess)}"


def _issue(row: Mapping[str, Any]) -> str | None:
    owner, repo, number = (scalar_text(deep(row, "issue", key)) for key in ("owner", "repo", "number"))
    return f"{owner}__{repo}-{number}" if owner and repo and number else None


def _kind(event: Any) -> str:
    return string(event, "action")


# --- actions ----------------------------------------------------------------------------------------------------------


def _action(event: Mapping[str, Any], draft: Draft, seen: set[str]) -> None:
    kind = _kind(event)
    arguments = mapping(event, "args") or {k: v for k, v in event.items() if k not in _EVENT_KEYS}
    if kind in ("system", "message") and "content" not in arguments and "content" not in event:
        left_out(arguments, "a message has no content")
    if kind == "condensation" and "summary" not in arguments:
        left_out(arguments, "a condensation has no summary")
    if kind == "system":
        draft.context("system", string(arguments, "content"))
    elif kind == "condensation":
        draft.warn("a condensation: the model no longer saw all earlier events")
        draft.observation("user", string(arguments, "summary"))
    elif kind == "message" and not _by_agent(event, draft):
        draft.given("user", string(arguments, "content") or string(event, "content"))
    elif kind in _SILENT_ACTIONS:
        return
    elif string(event, "source") not in _OWN:
        draft.leave_out(event, f"an action of the {string(event, 'source')}, not of the agent, is left out")
    else:
        _turn(event, kind, arguments, draft, seen)


def _by_agent(event: Mapping[str, Any], draft: Draft) -> bool:
    """Old events have no source: the first message is the user's, later ones the agent's."""
    source = string(event, "source")
    return source == "agent" or (not source and draft.started)


def _turn(event: Mapping[str, Any], kind: str, arguments: Mapping[str, Any], draft: Draft, seen: set[str]) -> None:
    response = mapping(mapping(event, "tool_call_metadata"), "model_response")
    message = deep(response, "choices", 0, "message")
    if isinstance(message, Mapping) and not message.keys() & {"content", "tool_calls", "reasoning_content", "role"}:
        left_out(message, "a response is no message")
    if isinstance(message, Mapping):
        identity = scalar_text(response.get("id"))
        if identity is None or identity not in seen:
            seen.update([identity] if identity else [])
            draft.generated(_from_response(message, draft))
        return
    left_out(event.get("tool_call_metadata"), "the metadata of a tool call holds no response")
    if kind not in _KNOWN:
        draft.leave_out(event, f"an action of the unknown kind {kind!r} is left out")
        return
    thought = string(arguments, "thought") or string(event, "thought")
    if kind == "think":  # its argument holds what was said before the call, too
        thought = ""
    if kind == "message":
        draft.generated(canonical.generated(string(arguments, "content") or string(event, "content"), []))
    else:
        draft.generated(canonical.generated(thought, [_from_arguments(kind, arguments)]))


def _from_response(message: Mapping[str, Any], draft: Draft) -> tuple[Any, ...]:
    calls = canonical.openai_calls(message.get("tool_calls"))
    return canonical.generated(draft.text(message.get("content")), calls, string(message, "reasoning_content"))


def _from_arguments(kind: str, arguments: Mapping[str, Any]) -> Call:
    if kind == "think":
        return Call("think", {"thought": string(arguments, "thought")})
    if kind == "finish":
        final = string(arguments, "final_thought")
        return Call("finish", {"message": final} if final else {})
    kept = {k: v for k, v in arguments.items() if k not in _NOT_ARGUMENTS and v is not None}
    return Call(_TOOLS.get(kind, kind), kept)


# --- observations -----------------------------------------------------------------------------------------------------


def _observation(event: Mapping[str, Any], draft: Draft) -> None:
    kind = string(event, "observation")
    if kind == "recall":
        draft.warn("workspace context (recall) was put into the prompt in a form that is not stored; it is left out")
    if kind in _SILENT_OBSERVATIONS:
        return
    draft.observation("tool", draft.text(event.get("content")))
