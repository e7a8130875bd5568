"""OpenHands SDK (V1): events with `kind`, as rows with a `history`, JSON Lines of events, or a folder of event files.

Source: OpenHands software-agent-sdk (2026-08), `openhands/sdk/event/`, and its test fixtures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import canonical
from hesnr_tasks.formats.canonical import Call
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, deep, items, left_out, mapping, scalar_text, string
from hesnr_tasks.formats.openhands import events_of, row_outcome
from hesnr_tasks.formats.parts import reasoning_of
from hesnr_tasks.trajectory import Fidelity, Trajectory

__all__ = ["NAME", "RULE", "SESSION", "detect", "read"]

NAME = "openhands-sdk"
RULE = "events with 'kind' ending in Event"
SESSION = True

_NOISE = (
    *("ConversationStateUpdateEvent", "TokenEvent", "StreamingDeltaEvent", "PauseEvent", "InterruptEvent"),
    *("HookExecutionEvent", "LLMCompletionLogEvent", "ConversationErrorEvent", "CondensationRequest"),
)


def detect(record: Any) -> float:
    """1 when an early event has a kind of the SDK."""
    return float(any(_is_event(event) for event in events_of(record)[:4]))


def _is_event(event: Any) -> bool:
    kind = string(event, "kind")
    return kind.endswith("Event") or kind.startswith("Condensation") or kind == "UserRejectObservation"


def read(record: Any, where: Where) -> Trajectory:
    """Read one row, session file or folder."""
    draft = Draft(NAME, where)
    events = events_of(record)
    for i, event in enumerate(events):
        if not isinstance(event, Mapping):
            raise DataError(f"event {i} must be an object, not {type(event).__name__}")
    batches = _batches(events)
    for event in events:
        _event(event, batches, draft)
    row = record if isinstance(record, Mapping) else {}
    resolved, stored = row_outcome(row)
    instance = scalar_text(row.get("instance_id"))
    return draft.build(
        id=instance,
        instance_id=instance,
        resolved=resolved,
        fidelity=Fidelity.RENDERED,
        outcome=stored,
        exit_status=scalar_text(row.get("error")),
        model=scalar_text(deep(row, "metadata", "llm", "model")),
        think_tool="action" if any(string(event, "tool_name") == "think" for event in events) else None,
    )


def _batches(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Actions that came in one response, by its id (an action without one is a response of its own)."""
    batches: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if string(event, "kind") == "ActionEvent":
            batches.setdefault(_batch_id(event), []).append(event)
    return batches


def _batch_id(event: Mapping[str, Any]) -> str:
    return string(event, "llm_response_id") or string(event, "id")


def _event(event: Mapping[str, Any], batches: dict[str, list[Mapping[str, Any]]], draft: Draft) -> None:
    kind = string(event, "kind")
    if kind == "SystemPromptEvent":
        parts = [event.get("system_prompt"), *([event["dynamic_context"]] if event.get("dynamic_context") else [])]
        draft.context("system", draft.text([part for part in parts if part]))
    elif kind == "MessageEvent":
        _message(event, draft)
    elif kind == "ActionEvent":
        batch = batches.pop(_batch_id(event), None)
        if batch:  # the first action of a response speaks for all of them
            draft.generated(_turn(batch, draft))
    elif kind == "ACPToolCallEvent":
        _external(event, draft)
    elif kind.startswith("Condensation"):
        _condensation(event, kind, draft)
    elif kind not in _NOISE:
        _observation(event, kind, draft)


def _message(event: Mapping[str, Any], draft: Draft) -> None:
    message = mapping(event, "llm_message")
    if "content" not in message:
        left_out(message, "a message has no content")
    content = draft.text([*items(message, "content"), *items(event, "extended_content")])
    if string(event, "source") == "agent" and string(message, "role") in ("assistant", ""):
        draft.generated(canonical.generated(content, [], _reasoning(message)))
    else:
        draft.given("user", content)


def _turn(batch: Sequence[Mapping[str, Any]], draft: Draft) -> tuple[Any, ...]:
    first = batch[0]
    calls = [_call(event) for event in batch]
    return canonical.generated(draft.text(items(first, "thought")), calls, _reasoning(first))


def _call(event: Mapping[str, Any]) -> Call:
    call = mapping(event, "tool_call")
    if call and not call.keys() & {"name", "arguments"}:
        left_out(call, "a tool call has neither name nor arguments")
    name = string(call, "name") or string(event, "tool_name")
    return Call(name, canonical.arguments_of(call.get("arguments")))


def _reasoning(event: Mapping[str, Any]) -> str:
    if string(event, "reasoning_content"):
        return string(event, "reasoning_content")
    blocks = "\n".join(string(block, "thinking") for block in items(event, "thinking_blocks"))
    return blocks or reasoning_of(mapping(event, "responses_reasoning_item"))


def _external(event: Mapping[str, Any], draft: Draft) -> None:
    """A tool call of an external agent: call and result in one event."""
    raw = event.get("raw_input")
    draft.generated(canonical.generated("", [Call(string(event, "title"), canonical.arguments_of(raw))]))
    output = event.get("raw_output")
    draft.observation("tool", output if isinstance(output, str) else draft.text(items(event, "raw_output")))


def _condensation(event: Mapping[str, Any], kind: str, draft: Draft) -> None:
    if kind == "Condensation":
        draft.warn("a condensation: the model no longer saw all earlier events")
        if string(event, "summary"):
            draft.observation("user", string(event, "summary"))


def _observation(event: Mapping[str, Any], kind: str, draft: Draft) -> None:
    if kind == "ObservationEvent":
        content = deep(event, "observation", "content")
        if content is None:
            left_out(event.get("observation"), "an observation has no content")
        parts = [content] if isinstance(content, str) else items(mapping(event, "observation"), "content")
        draft.observation("tool", draft.text([*parts, *items(event, "extended_content")]))
    elif kind == "AgentErrorEvent":
        draft.observation("tool", string(event, "error"))
    elif kind == "UserRejectObservation":
        draft.observation("tool", f"Action rejected: {string(event, 'rejection_reason')}")
    else:
        draft.leave_out(event, f"an event of the unknown kind {kind!r} is left out")
