"""SWE-agent `.traj` files of all generations, and mini-swe-agent `.traj.json`.

SWE-agent's message list (`history`) is read, because it is what the model saw; `trajectory` says which outputs were
rejected (they are in no later prompt and are left out, counted) and holds a last step that some versions keep out of
the history. Sources: SWE-agent 0.x to 1.1.0, `sweagent/agent/agents.py`, `sweagent/tools/parsing.py`; mini-swe-agent
1.x and 2.4.6, `agents/default.py`, `agents/interactive.py`, `models/`.
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
    role_of,
    scalar_text,
    split_calls,
    string,
    turn_segments,
    with_reasoning,
)
from hesnr_tasks.formats.chat import assistant_texts, calls_or_text, first_messages, label_messages, row_of
from hesnr_tasks.formats.outcomes import row_outcome
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
