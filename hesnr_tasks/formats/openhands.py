"""OpenHands V0 (`output.jsonl` rows, resolver rows, bare lists of events) and the OpenHands SDK (V1).

V0: event or pair history, old and new. The model's turn is `tool_call_metadata.model_response` where it is stored (once
per response, however many actions it caused); else thought and arguments of the action event. The event's `message` is
a summary the scaffold wrote. Source: OpenHands 0.9 to 0.62, `openhands/events/`,
`openhands/memory/conversation_memory.py`, the resolver's tests.

V1: events with `kind`, as rows with a `history`, JSON Lines of events, or a folder of event files. Source: OpenHands
software-agent-sdk (2026-08), `openhands/sdk/event/`, and its test fixtures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hesnr_tasks.actions import ToolCall
from hesnr_tasks.formats.base import (
    Format,
    JsonObject,
    TrajectoryBuilder,
    arguments_of,
    as_list,
    deep,
    items,
    left_out,
    mapping,
    need_objects,
    openai_calls,
    reasoning_of,
    scalar_text,
    string,
    turn_segments,
)
from hesnr_tasks.formats.outcomes import report_outcome, resolved_of
from hesnr_tasks.trajectory import Fidelity, Trajectory

# --- what both versions share -----------------------------------------------------------------------------------------


def _events(record: Any) -> list[Any]:
    """The history of a row, or the bare list; pairs are flattened."""
    if isinstance(record, Mapping):
        listed = items(record, "history") or items(record, "trajectory")
    else:
        listed = as_list(record) or []
    pairs = bool(listed) and as_list(listed[0]) is not None
    return [event for pair in listed for event in (as_list(pair) or [pair])] if pairs else listed


def _build(record: Any, builder: TrajectoryBuilder, instance: str | None) -> Trajectory:
    """Finish a row: the outcome is that of its evaluation report; the resolver's `success` is a model's guess."""
    resolved = resolved_of(report_outcome(record))
    return builder.build(instance_id=instance, resolved=resolved, fidelity=Fidelity.RENDERED)


# --- V0 ---------------------------------------------------------------------------------------------------------------

_TOOLS = {"run": "execute_bash", "run_ipython": "execute_ipython_cell", "edit": "str_replace_editor"}
_KINDS = (
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
_MESSAGE_KEYS = {"content", "tool_calls", "reasoning_content", "role"}


def _is_event(event: Any) -> bool:
    if not isinstance(event, Mapping) or "kind" in event or "role" in event:
        return False
    named = isinstance(event.get("action"), str) or isinstance(event.get("observation"), str)
    return named and "response" not in event and any(key in event for key in ("args", "extras", "content", "thought"))


def _read(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    """One row or one exported session."""
    responses: set[str] = set()
    for event in need_objects(_events(record), "history[{}]", "an event object, not {}"):
        if isinstance(event.get("action"), str):
            _add_action(event, builder, responses)
        elif isinstance(event.get("observation"), str):
            kind = string(event, "observation")
            if kind == "recall":
                builder.warn(
                    "workspace context (recall) was put into the prompt in a form that is not stored; it is left out"
                )
            if kind not in _SILENT_OBSERVATIONS:
                builder.observation("tool", builder.text(event.get("content")))
        else:
            builder.leave_out(event, "an event that is neither action nor observation is left out")
    owner, repo, number = (scalar_text(deep(record, "issue", key)) for key in ("owner", "repo", "number"))
    issue = f"{owner}__{repo}-{number}" if owner and repo and number else None
    return _build(record, builder, scalar_text(deep(record, "instance_id")) or issue)


def _add_action(event: JsonObject, builder: TrajectoryBuilder, responses: set[str]) -> None:
    kind = string(event, "action")
    arguments = mapping(event, "args") or {k: v for k, v in event.items() if k not in _EVENT_KEYS}
    if kind in ("system", "message") and "content" not in arguments and "content" not in event:
        left_out(arguments, "a message has no content")
    if kind == "condensation" and "summary" not in arguments:
        left_out(arguments, "a condensation has no summary")
    if kind == "system":
        builder.context("system", string(arguments, "content"))
    elif kind == "condensation":
        builder.warn("a condensation: the model no longer saw all earlier events")
        builder.observation("user", string(arguments, "summary"))
    elif kind == "message" and string(event, "source") not in (("agent", "") if builder.started else ("agent",)):
        # old events have no source: the first message is the user's, later ones the agent's
        builder.given("user", string(arguments, "content") or string(event, "content"))
    elif kind in _SILENT_ACTIONS:
        return
    elif string(event, "source") not in ("agent", ""):
        builder.leave_out(event, f"an action of the {string(event, 'source')}, not of the agent, is left out")
    else:
        _add_turn(event, kind, arguments, builder, responses)


def _add_turn(
    event: JsonObject, kind: str, arguments: JsonObject, builder: TrajectoryBuilder, responses: set[str]
) -> None:
    response = mapping(mapping(event, "tool_call_metadata"), "model_response")
    message = deep(response, "choices", 0, "message")
    if isinstance(message, Mapping):
        if not message.keys() & _MESSAGE_KEYS:
            left_out(message, "a response is no message")
        identity = scalar_text(response.get("id"))
        if identity is None or identity not in responses:
            responses.update([identity] if identity else [])
            calls = openai_calls(message.get("tool_calls"))
            content = builder.text(message.get("content"))
            builder.generated(turn_segments(content, calls, string(message, "reasoning_content")))
        return
    left_out(event.get("tool_call_metadata"), "the metadata of a tool call holds no response")
    if kind not in _KINDS:
        builder.leave_out(event, f"an action of the unknown kind {kind!r} is left out")
        return
    thought = string(arguments, "thought") or string(event, "thought")
    if kind == "message":
        builder.generated(turn_segments(string(arguments, "content") or string(event, "content"), []))
        return
    call = ToolCall(
        _TOOLS.get(kind, kind), {k: v for k, v in arguments.items() if k not in _NOT_ARGUMENTS and v is not None}
    )
    if kind == "think":  # its argument holds the text before the call, too
        call, thought = ToolCall("think", {"thought": string(arguments, "thought")}), ""
    elif kind == "finish":
        final = string(arguments, "final_thought")
        call = ToolCall("finish", {"message": final} if final else {})
    builder.generated(turn_segments(thought, [call]))


OPENHANDS = Format(
    "openhands-v0",
    "events with 'action' or 'observation' and 'args', 'extras' or 'content'",
    lambda record: any(_is_event(event) for event in _events(record)[:3]),
    _read,
)


# --- V1 (SDK) ---------------------------------------------------------------------------------------------------------

_NOISE = (
    *("ConversationStateUpdateEvent", "TokenEvent", "StreamingDeltaEvent", "PauseEvent", "InterruptEvent"),
    *("HookExecutionEvent", "LLMCompletionLogEvent", "ConversationErrorEvent", "CondensationRequest"),
)


def _detect_sdk(record: Any) -> bool:
    """An early event has a kind of the SDK."""
    kinds = (string(event, "kind") for event in _events(record)[:4])
    return any(k.endswith("Event") or k.startswith("Condensation") or k == "UserRejectObservation" for k in kinds)


def _read_sdk(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    """One row, session file or folder."""
    events = _events(record)
    batches: dict[str, list[JsonObject]] = {}  # actions that came in one response, by its id, or by their own
    for event in need_objects(events, "event {}"):
        if string(event, "kind") == "ActionEvent":
            batches.setdefault(_response_id(event), []).append(event)
    for event in events:
        _add_event(event, batches, builder)
    return _build(record, builder, scalar_text(deep(record, "instance_id")))


def _response_id(event: JsonObject) -> str:
    return string(event, "llm_response_id") or string(event, "id")


def _add_event(event: JsonObject, batches: dict[str, list[JsonObject]], builder: TrajectoryBuilder) -> None:
    kind = string(event, "kind")
    if kind == "SystemPromptEvent":
        parts = [event.get("system_prompt"), *([event["dynamic_context"]] if event.get("dynamic_context") else [])]
        builder.context("system", builder.text([part for part in parts if part]))
    elif kind == "MessageEvent":
        message = mapping(event, "llm_message")
        if "content" not in message:
            left_out(message, "a message has no content")
        content = builder.text([*items(message, "content"), *items(event, "extended_content")])
        if string(event, "source") == "agent" and string(message, "role") in ("assistant", ""):
            builder.generated(turn_segments(content, [], _reasoning(message)))
        else:
            builder.given("user", content)
    elif kind == "ActionEvent":
        batch = batches.pop(_response_id(event), None)
        if batch:  # the first action of a response speaks for all of them
            calls = []
            for action in batch:
                call = mapping(action, "tool_call")
                if call and not call.keys() & {"name", "arguments"}:
                    left_out(call, "a tool call has neither name nor arguments")
                name = string(call, "name") or string(action, "tool_name")
                calls.append(ToolCall(name, arguments_of(call.get("arguments"))))
            builder.generated(turn_segments(builder.text(items(batch[0], "thought")), calls, _reasoning(batch[0])))
    elif kind == "ACPToolCallEvent":  # of an external agent: call and result in one event
        builder.generated(turn_segments("", [ToolCall(string(event, "title"), arguments_of(event.get("raw_input")))]))
        output = event.get("raw_output")
        builder.observation("tool", output if isinstance(output, str) else builder.text(items(event, "raw_output")))
    elif kind == "Condensation":
        builder.warn("a condensation: the model no longer saw all earlier events")
        if string(event, "summary"):
            builder.observation("user", string(event, "summary"))
    elif kind == "ObservationEvent":
        content = deep(event, "observation", "content")
        if content is None:
            left_out(event.get("observation"), "an observation has no content")
        parts = [content] if isinstance(content, str) else items(mapping(event, "observation"), "content")
        builder.observation("tool", builder.text([*parts, *items(event, "extended_content")]))
    elif kind == "AgentErrorEvent":
        builder.observation("tool", string(event, "error"))
    elif kind == "UserRejectObservation":
        builder.observation("tool", f"Action rejected: {string(event, 'rejection_reason')}")
    elif not kind.startswith("Condensation") and kind not in _NOISE:
        builder.leave_out(event, f"an event of the unknown kind {kind!r} is left out")


def _reasoning(event: JsonObject) -> str:
    if string(event, "reasoning_content"):
        return string(event, "reasoning_content")
    blocks = "\n".join(string(block, "thinking") for block in items(event, "thinking_blocks"))
    return blocks or reasoning_of(mapping(event, "responses_reasoning_item"))


OPENHANDS_SDK = Format("openhands-sdk", "events with 'kind' ending in Event", _detect_sdk, _read_sdk, is_session=True)
