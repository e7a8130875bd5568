"""Agents' own files: SWE-agent `.traj` of all generations, mini-swe-agent `.traj.json`, OpenHands V0 and its SDK (V1).

SWE-agent's message list (`history`) is read, because it is what the model saw; `trajectory` says which outputs were
rejected (they are in no later prompt and are left out, counted) and holds a last step that some versions keep out of
the history. Sources: SWE-agent 0.x to 1.1.0, `sweagent/agent/agents.py`, `sweagent/tools/parsing.py`; mini-swe-agent
1.x and 2.4.6, `agents/default.py`, `agents/interactive.py`, `models/`.

OpenHands V0 (`output.jsonl` rows, resolver rows, bare lists of events): event or pair history, old and new. The model's
turn is `tool_call_metadata.model_response` where it is stored (once per response, however many actions it caused); else
thought and arguments of the action event. The event's `message` is a summary the scaffold wrote. Source: OpenHands 0.9
to 0.62, `openhands/events/`, `openhands/memory/conversation_memory.py`, the resolver's tests.

OpenHands V1: events with `kind`, as rows with a `history`, JSON Lines of events, or a folder of event files. Source:
OpenHands software-agent-sdk (2026-08), `openhands/sdk/event/`, and its test fixtures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hesnr_tasks.actions import ToolCall
from hesnr_tasks.actions.grammar import guess_form
from hesnr_tasks.formats.base import (
    Format,
    JsonObject,
    TrajectoryBuilder,
    Turn,
    arguments_of,
    as_list,
    deep,
    items,
    label_calls,
    left_out,
    mapping,
    messages_of,
    need_items,
    need_objects,
    openai_calls,
    reasoning_of,
    role_of,
    scalar_text,
    split_calls,
    string,
    turn_segments,
    with_reasoning,
)
from hesnr_tasks.formats.chat import assistant_texts, calls_or_text, first_messages, label_messages, row_of
from hesnr_tasks.formats.outcomes import report_outcome, resolved_of, row_outcome
from hesnr_tasks.trajectory import Fidelity, Kind, Segment, Trajectory

# --- SWE-agent --------------------------------------------------------------------------------------------------------

_FORMS = {  # SWE-agent's parser → form of call
    "thought_action": "fence",
    "edit_format": "fence",
    "xml_thought_action": "command",
    "xml_function_calling": "function",
    "json": "json",
    "all_bash_code_blocks": "bash",
    "single_bash_code_block": "bash",
    "action": "whole",
    "action_only": "whole",
    "identity": "whole",
    "function_calling": "none",
}
EXIT = re.compile(r"exit(?:ing|ed)? due to ", re.IGNORECASE)


def _detect_swe_agent(record: Any) -> bool:
    """Steps with action, observation and response; or attempts; or a history that only SWE-agent writes."""
    if not isinstance(record, Mapping):
        return False
    step, first = deep(record, "trajectory", 0), deep(record, "history", 0)
    if isinstance(step, Mapping) and {"action", "observation", "response"} <= step.keys():
        return True
    if isinstance(first, Mapping) and "role" in first and ("message_type" in first or "agent" in first):
        return True
    attempted = deep(record, "attempts", 0, "trajectory") is not None
    return attempted or ("trajectory" in record and "exit_status" in mapping(record, "info"))


def _read_swe_agent(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    """One file; where there are several attempts, the one that was chosen."""
    run = record
    attempts = [item for item in items(record, "attempts") if isinstance(item, Mapping)]
    if attempts and not record.get("trajectory") and not record.get("history"):
        best = deep(record, "info", "best_attempt_idx")
        chosen = best if isinstance(best, int) and 0 <= best < len(attempts) else len(attempts) - 1
        builder.warn(f"the file holds {len(attempts)} attempts and no choice; attempt {chosen + 1} is read")
        run = attempts[chosen]
    history = _history(run, builder)
    form = _call_form(run, history)
    rendered = [_add_message(item, form, builder) for item in history]
    rendered += [_add_late_step(step, form, builder) for step in _outside_history(run, history, builder)]
    environment = string(run, "environment")
    instance = scalar_text(deep(run, "replay_config", "problem_statement", "id")) or (
        environment if environment not in ("", "main", "swe_main") else None
    )
    return builder.build(
        id=instance or builder.where.identity,
        instance_id=instance or builder.where.stem,
        fidelity=Fidelity.RENDERED if any(rendered) else Fidelity.EXACT,
    )


def _steps(run: JsonObject) -> list[JsonObject]:
    return list(need_objects(items(run, "trajectory"), "trajectory[{}]", "an object with 'action' and 'response'"))


def _history(run: JsonObject, builder: TrajectoryBuilder) -> list[JsonObject]:
    """The messages: `history`, or what the last step had before it, or the bare steps."""
    history = messages_of(run, "history") if items(run, "history") else []
    steps = _steps(run)
    if history or not steps:
        return history
    if items(steps[-1], "messages"):
        return messages_of(steps[-1], "messages")
    if any("role" in item for item in items(steps[-1], "query") if isinstance(item, Mapping)):
        return messages_of(steps[-1], "query")
    builder.warn("the prompt is not stored: the file has steps but no history")
    return []


def _call_form(run: JsonObject, history: Sequence[JsonObject]) -> str:
    """The form of the stored parser; else the one whose calls hold the stored actions; else that of most calls."""
    parser = deep(run, "replay_config", "agent", "tools", "parse_function", "type")
    form = _FORMS.get(parser) if isinstance(parser, str) else None
    if any(openai_calls(item.get("tool_calls")) for item in history):
        form = "none"
    if form:
        return form
    turns = [*(item for item in history if role_of(item) == "assistant"), *_steps(run)]
    stored = [(string(turn, "action").strip(), string(turn, "response") or string(turn, "content")) for turn in turns]
    pairs = [(action, response) for action, response in stored if action and action in response]
    scores = {
        form: sum(
            action == response.strip() if form == "whole" else _holds(split_calls(response, form), action)
            for action, response in pairs
        )
        for form in dict.fromkeys(_FORMS.values())
    }
    best = max(scores, key=lambda form: scores[form])
    return best if scores[best] else guess_form(response for _, response in stored)


def _holds(segments: Sequence[Segment], action: str) -> bool:
    return any(segment.kind is Kind.ACTION and action in segment.text for segment in segments)


def _add_message(item: JsonObject, form: str, builder: TrajectoryBuilder) -> bool:
    """Add one message; true when a part of it had to be rendered."""
    role, content = role_of(item), builder.text(item.get("content"))
    if role == "system" or item.get("is_demo") or item.get("message_type") == "demonstration":
        builder.context(role or "user", content)
    elif role is None:
        builder.unknown(item, f"message of the unknown role {item.get('role')!r}", content)
    elif role != "assistant":
        builder.given(role, content)
    else:
        calls = openai_calls(item.get("tool_calls"))
        action = "" if calls else string(item, "action")
        if not calls and EXIT.match(content) and (not action or action.startswith("exit_")):
            builder.not_generated(content)
            return False
        reasoning = "\n".join(string(block, "thinking") for block in items(item, "thinking_blocks"))
        if calls:
            builder.generated(turn_segments(content, calls, reasoning))
        else:
            builder.generated(_split(with_reasoning(content, reasoning), action, form))
        return bool(calls or reasoning.strip())
    return False


def _split(content: str, action: str, form: str) -> tuple[Segment, ...]:
    segments = split_calls(content, form)
    command = action.strip()
    if command and command in content and not _holds(segments, ""):
        start = content.rfind(command)
        return label_calls(content, [(start, start + len(command))])
    return segments


def _outside_history(run: JsonObject, history: Sequence[JsonObject], builder: TrajectoryBuilder) -> list[JsonObject]:
    """The last steps that are not in the history; earlier ones are rejected outputs and only counted."""
    turns = (item for item in history if role_of(item) == "assistant" and not item.get("is_demo"))
    stored = [builder.text(item.get("content")) for item in turns]
    late: list[JsonObject] = []
    matched = rejected = 0
    for step in _steps(run):
        if matched < len(stored) and stored[matched] == string(step, "response"):
            matched, rejected, late = matched + 1, rejected + len(late), []
        else:
            late.append(step)
    if stored and matched < len(stored):  # the two lists do not fit together: the history alone is safe
        return []
    executed = [step for step in late if string(step, "action").strip()]
    rejected += len(late) - len(executed)
    if rejected:
        builder.warn("an output that SWE-agent rejected or replaced is in no later prompt and is left out", rejected)
    return executed


def _add_late_step(step: JsonObject, form: str, builder: TrajectoryBuilder) -> bool:
    """Add a step that is not in the history; function calls are not stored there, only their shell form."""
    response, action = string(step, "response"), string(step, "action").strip()
    structured = form == "none" or (action not in response and form != "function")
    if not structured:
        builder.generated(_split(response, action, form))
    elif action.isidentifier():  # a call without arguments, such as submit
        builder.generated(turn_segments(response, [ToolCall(action, {})]))
    else:
        builder.warn("the call of a step outside the history is stored only as a shell line and is left out")
        builder.generated(turn_segments(response, []))
    builder.observation("user", string(step, "observation"))
    return structured


SWE_AGENT = Format(
    "swe-agent",
    "'trajectory' steps with action, observation and response, or 'attempts', or a 'history' of SWE-agent messages",
    _detect_swe_agent,
    _read_swe_agent,
)


# --- mini-swe-agent ---------------------------------------------------------------------------------------------------
# v1, v2 with text, tool calls or the Responses API, and the bare list of messages.

_FENCE = "mswea_bash_command"


def _detect_mini(record: Any) -> bool:
    """By the format's name, by the run's info, or by the command fence only this agent uses."""
    if not isinstance(record, Mapping):
        return any(_FENCE in content for content in assistant_texts(first_messages(record)))
    if string(record, "trajectory_format").startswith("mini-swe-agent"):
        return True
    info = mapping(record, "info") if as_list(record.get("messages")) is not None else {}
    return "mini_version" in info or isinstance(deep(info, "config", "agent"), Mapping)


def _read_mini(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    row = row_of(record)
    messages = messages_of(row, "messages")
    # the form by the stored expression, which is looked at but never run: it is untrusted
    stored = (deep(row, "info", "config", owner, "action_regex") for owner in ("model", "agent"))
    marks = (("mswea", _FENCE), ("bash", "```bash"))
    forms = (form for text in stored for form, mark in marks if isinstance(text, str) and mark in text)
    form = next(forms, None) or guess_form(assistant_texts(messages), ("mswea", "bash", "fence"))
    rendered = [_add_mini_message(message, form, builder) for message in messages]
    instance = scalar_text(row.get("instance_id"))
    return builder.build(
        id=instance or builder.where.identity,
        instance_id=instance or builder.where.stem,
        fidelity=Fidelity.RENDERED if any(rendered) else Fidelity.EXACT,
    )


def _add_mini_message(message: JsonObject, form: str, builder: TrajectoryBuilder) -> bool:
    """Add one message; true when a part of it had to be rendered."""
    if message.get("object") == "response" or ("role" not in message and as_list(message.get("output")) is not None):
        response = Turn()
        response.add_all(message.get("output"), builder)
        builder.generated(response.segments())
        return True
    if message.get("type") == "function_call_output":
        builder.observation("tool", builder.text(message.get("output")))
        return False
    if deep(message, "extra", "interrupt_type") == "FormatError":
        builder.warn("an output that mini-swe-agent rejected is in no later prompt and is left out")
    rendered: list[bool] = []

    def turn(item: JsonObject) -> Sequence[Segment]:
        segments, is_rendered = calls_or_text(item, form, builder)
        rendered.append(is_rendered)
        return segments

    label_messages([message], builder, turn)
    return any(rendered)


MINI_SWE_AGENT = Format(
    "mini-swe-agent",
    "'trajectory_format' starts with mini-swe-agent, or messages with mini-swe-agent's info or command fences",
    _detect_mini,
    _read_mini,
)


# --- nebius/SWE-agent-trajectories: role `ai`, and the model's own text in `text` -------------------------------------


def _detect_nebius(record: Any) -> bool:
    """An early item has the role ai and a text."""
    early = items(record, "trajectory")[:8]
    return any(isinstance(i, Mapping) and i.get("role") == "ai" and "text" in i for i in early)


def _read_nebius(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    def turn(message: JsonObject) -> Sequence[Segment] | None:
        return None if EXIT.match(message["content"]) else split_calls(message["content"], "fence")

    for item in messages_of(record, "trajectory"):
        text = string(item, "text") or (string(item, "system_prompt") if role_of(item) == "system" else "")
        label_messages([{**item, "content": text}], builder, turn)
    return builder.build(
        id=record.get("trajectory_id"),
        instance_id=record.get("instance_id"),
        resolved=row_outcome(record, "target"),
    )


NEBIUS = Format("nebius-swe-agent", "'trajectory' rows of role ai with 'text'", _detect_nebius, _read_nebius)


# --- R2E-Gym rollouts -------------------------------------------------------------------------------------------------
# Calls were parsed and written again, so fidelity is synthetic. Source: R2E-Gym, `agenthub/trajectory/trajectory.py`,
# `agenthub/action/action.py`, `agenthub/agent/agent.py` (2025-04).

_NO_CALL = "<function=></function>"  # what R2E-Gym writes for a turn without a call, white space aside


def _read_r2e(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    """One rollout: the prompt as far as it can be filled in, then thought, action and observation of each step."""
    arguments, problem = mapping(record, "agent_args"), string(record, "problem_statement")
    system, template = string(arguments, "system_prompt"), string(arguments, "instance_prompt")
    if arguments and not arguments.keys() & {"system_prompt", "instance_prompt"}:
        left_out(arguments, "the agent's arguments hold no prompt")
    if "system_prompt" in arguments:
        builder.context("system", system)
    if "instance_prompt" in arguments or problem:
        template = template if "instance_prompt" in arguments else "{problem_statement}"
        builder.context("user", template.replace("{problem_statement}", problem))
    steps = need_items(record, "trajectory_steps")
    for step in need_objects(steps, "trajectory_steps[{}]", "an object with 'thought' and 'action'"):
        if not step.keys() & {"thought", "action"}:
            left_out(step, "a step has neither thought nor action")
        thought, action = string(step, "thought"), string(step, "action")
        if "".join(action.split()) == _NO_CALL:
            builder.warn("a turn without a call holds one that R2E-Gym wrote; it is left out")
            action = ""
        # R2E-Gym builds the message this way (agent.py)
        builder.generated(split_calls(f"{thought}\n\n{action}" if action else thought, "function"))
        builder.observation("user", string(step, "observation"))
    return builder.build(
        instance_id=scalar_text(deep(record, "ds", "instance_id")) or record.get("docker_image"),
        resolved=row_outcome(record, "reward"),
        fidelity=Fidelity.SYNTHETIC,
    )


R2E_GYM = Format(
    "r2e-gym",
    "'trajectory_steps'",
    lambda record: isinstance(record, Mapping) and isinstance(record.get("trajectory_steps"), list),
    _read_r2e,
)


# --- what both versions of OpenHands share ----------------------------------------------------------------------------


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


# --- OpenHands V0 -----------------------------------------------------------------------------------------------------

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


# --- OpenHands V1 (SDK) -----------------------------------------------------------------------------------------------

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
