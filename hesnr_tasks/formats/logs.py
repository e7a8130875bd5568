"""Logs of agents and of evaluation harnesses: Claude Code, Codex CLI, ATIF (Harbor, Terminal-Bench 2), inspect_ai.

A session of a command-line agent is one file of JSON Lines. ATIF versions 1.0 to 1.8 are read by the RFC's text for
1.7 and its examples; the outcome lies in the trial's folder. inspect_ai: `.eval` archives and `.json`, one trajectory
per sample and epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from hesnr_tasks.actions import ToolCall
from hesnr_tasks.actions.grammar import guess_form
from hesnr_tasks.errors import DataError
from hesnr_tasks.files.bounded import read_json, read_text
from hesnr_tasks.formats.base import (
    Format,
    JsonObject,
    ReadReport,
    TrajectoryBuilder,
    Turn,
    as_list,
    decoded,
    deep,
    items,
    left_out,
    mapping,
    mappings,
    messages_of,
    need_items,
    need_objects,
    openai_calls,
    scalar_text,
    split_calls,
    string,
    turn_segments,
    with_reasoning,
)
from hesnr_tasks.formats.chat import label_messages
from hesnr_tasks.formats.outcomes import resolved_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

# --- Claude Code ------------------------------------------------------------------------------------------------------
# Lines of one response are merged, subagents and rewound turns left out. Sources: published session lines of versions
# 1.0 to 2.1, issue threads. The system prompt is not stored.

_SPOKEN = ("user", "assistant")


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("message"), dict):
        return False
    return ("sessionId" in line and "parentUuid" in line) or ("session_id" in line and "type" in line)


def _read_claude(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    lines = mappings(record, "a line")
    kept = list(_main_chain(lines, builder))
    # neighbouring assistant lines of one response are one turn
    for _, response in groupby(enumerate(kept), key=lambda item: _response_id(item[1]) or item[0]):
        group = [line for _, line in response]
        if string(group[0], "type") == "assistant":
            _add_response(group, builder)
            continue
        if group[0].get("isCompactSummary"):
            builder.warn("a summary of the session so far was put in: the model no longer saw all earlier turns")
        for part in _parts(group[0]):
            if string(part, "type") == "tool_result":
                builder.observation("tool", builder.text(part.get("content")))
            else:
                builder.given("user", builder.text([part]))
    builder.warn("the system prompt is not stored in this format")
    first = next((line for line in lines if _is_line(line)), {})
    session = scalar_text(first.get("sessionId")) or scalar_text(first.get("session_id"))
    identity = builder.where.stem if any(line.get("agentId") for line in kept) else session
    return builder.build(id=identity, fidelity=Fidelity.RENDERED)


def _main_chain(lines: Sequence[JsonObject], builder: TrajectoryBuilder) -> Iterator[JsonObject]:
    """The user and assistant lines of the main chain, in file order."""
    spoken = [line for line in lines if string(line, "type") in _SPOKEN and mapping(line, "message")]
    for line in lines:
        if string(line, "type") in _SPOKEN and not isinstance(line.get("message"), dict):
            left_out(line.get("message"), "a message is no object")
        elif "message" in line and string(line, "type") not in _SPOKEN:
            left_out(line["message"], "a message of an unknown type of line")
    main = [line for line in spoken if not line.get("isSidechain")]
    if main and len(main) < len(spoken):
        builder.warn("a line of a subagent is left out", len(spoken) - len(main))
    chain = main or spoken
    last = {string(line, "parentUuid"): string(line, "uuid") for line in chain if _is_prompt(line)}
    rewound: set[str] = set()  # lines that follow a prompt which was later given again from the same place
    for line in chain:
        parent = string(line, "parentUuid")
        if parent in rewound or (parent and _is_prompt(line) and last[parent] != string(line, "uuid")):
            rewound.add(string(line, "uuid"))
    for line in chain:
        if string(line, "uuid") in rewound:
            builder.warn("a line of a turn that was taken back is left out")
        elif not line.get("isMeta"):
            yield line


def _is_prompt(line: JsonObject) -> bool:
    parts = as_list(mapping(line, "message").get("content")) or []
    results = any(string(part, "type") == "tool_result" for part in parts)
    return string(line, "type") == "user" and not results and not line.get("isMeta")


def _response_id(line: JsonObject) -> str:
    return string(mapping(line, "message"), "id") if string(line, "type") == "assistant" else ""


def _parts(line: JsonObject) -> list[Any]:
    message = mapping(line, "message")
    content = message.get("content")
    listed = [content] if isinstance(content, str) else as_list(content)
    if listed is None:
        left_out(content if "content" in message else message, "a message has no content that is text or a list")
    return listed or []


def _add_response(response: Sequence[JsonObject], builder: TrajectoryBuilder) -> None:
    messages = [mapping(line, "message") for line in response]
    if all(string(message, "model") == "<synthetic>" for message in messages):
        builder.not_generated("\n".join(builder.text(message.get("content")) for message in messages))
        return
    turn = Turn()
    seen: list[Any] = []  # streaming repeats blocks
    for line in response:
        for part in _parts(line):
            if part not in seen:
                seen.append(part)
                turn.add({"type": "text", "text": part} if isinstance(part, str) else part, builder)
    builder.generated(turn.segments())


CLAUDE_CODE = Format(
    "claude-code",
    "lines with 'sessionId' or 'session_id' and a 'message'",
    lambda record: any(_is_line(line) for line in (as_list(record) or [])[:20]),
    _read_claude,
    is_session=True,
)


# --- Codex CLI --------------------------------------------------------------------------------------------------------
# Rollout files (lines of `{timestamp, type, payload}`) and the stream of `codex exec --json`. Only `response_item`
# lines are read; `event_msg` repeats them. Source: openai/codex, `codex-rs/protocol/src/models.rs`.

_GENERATED = ("reasoning", "function_call", "custom_tool_call", "local_shell_call", "web_search_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_QUIET = ("ghost_snapshot", "compaction", "compaction_summary", "other")


def _detect_codex(record: Any) -> bool:
    """A session's first lines, in any of the three shapes."""
    return any(
        string(line, "type") in ("session_meta", "thread.started")
        or (isinstance(line.get("payload"), dict) and "timestamp" in line and "type" in line)
        or string(line, "record_type") == "state"
        for line in (as_list(record) or [])[:3]
        if isinstance(line, dict)
    )


def _read_codex(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    lines = mappings(record, "a line")
    meta = next((mapping(line, "payload") for line in lines if string(line, "type") == "session_meta"), {})
    instructions = meta.get("instructions") or deep(meta, "base_instructions", "text")
    if isinstance(instructions, str):
        builder.context("system", instructions)
    else:
        left_out(instructions if "id" in meta else meta, "the instructions are no text")
        builder.warn("the system prompt is not stored in this file")
    turn: Turn | None = None  # neighbouring items of the model make one turn
    for item in [item for line in lines if (item := _response_item(line, builder)) is not None]:
        kind = string(item, "type")
        if kind in _QUIET:
            continue
        if kind in _GENERATED or (kind == "message" and string(item, "role") == "assistant"):
            turn = turn or Turn()
            turn.add(item, builder)
        elif kind == "agent_message":  # of `codex exec --json`
            turn = turn or Turn()
            turn.text.append(string(item, "text"))
        else:
            if kind == "command_execution":  # there, the call and its output are one item
                turn = turn or Turn()
                turn.calls.append(ToolCall("shell", {"command": item.get("command")}))
            if turn:
                builder.generated(turn.segments())
                turn = None
            _add_given_item(item, kind, builder)
    if turn:
        builder.generated(turn.segments())
    thread = next((t for line in lines if (t := scalar_text(line.get("thread_id")))), None)
    return builder.build(id=scalar_text(meta.get("id")) or thread, fidelity=Fidelity.RENDERED)


def _response_item(line: JsonObject, builder: TrajectoryBuilder) -> JsonObject | None:
    """The response item of a line, if it has one."""
    kind = string(line, "type")
    if kind == "response_item":
        return mapping(line, "payload")
    if kind == "compacted":
        builder.warn("the history was compacted: the model no longer saw all earlier turns")
        return {"type": "message", "role": "user", "content": string(mapping(line, "payload"), "message")}
    if kind == "item.completed":
        return mapping(line, "item")
    return line if kind in ("message", *_GENERATED, *_OUTPUTS) and "payload" not in line else None


def _add_given_item(item: JsonObject, kind: str, builder: TrajectoryBuilder) -> None:
    if kind == "command_execution":
        builder.observation("tool", string(item, "aggregated_output"))
    elif kind in _OUTPUTS:
        output = item.get("output")  # plain text, a list of parts, or (older) JSON text with the output inside
        value = decoded(output)
        if isinstance(value, dict) and isinstance(value.get("output"), str):
            output = value["output"]
        elif not isinstance(output, str):
            if isinstance(value, dict) and "content" not in value:
                left_out(value, "an output has no text")
            output = value.get("content") if isinstance(value, dict) else value
        builder.observation("tool", builder.text(output))
    elif kind == "message":
        content = builder.text(item.get("content"))
        if string(item, "role") in ("system", "developer"):
            builder.context("system", content)
        else:
            builder.given("user", content)
    else:
        builder.leave_out(item, f"an item of the unknown type {kind!r} is left out")


CODEX = Format(
    "codex",
    "lines of type session_meta or of {timestamp, type, payload}",
    _detect_codex,
    _read_codex,
    is_session=True,
)

# --- ATIF -------------------------------------------------------------------------------------------------------------

# A converter writes this where the model wrote nothing (Harbor's reader of Claude Code sessions).
_PLACEHOLDER = re.compile(r"Executed \S+(?: \S+)?\Z|\(tool use\)\Z")


def _read_atif(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    for step in need_objects(need_items(record, "steps"), "steps[{}]"):
        _add_step(step, builder)
    calls = any(items(step, "tool_calls") for step in items(record, "steps"))
    return builder.build(
        id=scalar_text(record.get("trajectory_id")) or scalar_text(record.get("session_id")),
        fidelity=Fidelity.RENDERED if calls else Fidelity.EXACT,
    )


def _add_step(step: Mapping[str, Any], builder: TrajectoryBuilder) -> None:
    message, source = builder.text(step.get("message")), string(step, "source")
    if source == "system":
        builder.context("system", message)
    elif source == "user":
        builder.given("user", message)
    elif source != "agent":
        builder.unknown(step, f"step of the unknown source {source!r}", message)
    elif step.get("is_copied_context") is True:
        builder.warn("a turn copied from an earlier trajectory is labelled context")
        builder.context("assistant", "".join(s.text for s in _step_segments(step, message, builder)))
    elif step.get("llm_call_count") == 0:
        builder.not_generated("".join(s.text for s in _step_segments(step, message, builder)))
    else:
        builder.generated(_step_segments(step, message, builder, generated=True))
    observation = mapping(step, "observation")
    if observation and "results" not in observation:
        left_out(observation, "an observation has no results")
    for result in mappings(items(observation, "results"), "a result"):
        content = builder.text(result.get("content"))
        if not content:
            left_out(result, "a result has no content")
        builder.observation("tool", content)


def _step_segments(
    step: Mapping[str, Any], message: str, builder: TrajectoryBuilder, generated: bool = False
) -> tuple[Segment, ...]:
    """The agent's turn; calls are looked for in the text of one that the model `generated` without tool calls."""
    calls = openai_calls(items(step, "tool_calls"))
    reasoning = string(step, "reasoning_content")
    if generated and not calls:
        form = guess_form([message], ("json", "function", "tool_call"))
        return split_calls(with_reasoning(message, reasoning), form)
    if generated and _PLACEHOLDER.match(message):
        builder.warn("a message the converter wrote where the model wrote none is left out")
        message = ""
    return turn_segments(message, calls, reasoning)


def _attach_trial(trajectory: Trajectory, path: str, report: ReadReport) -> Trajectory:
    """A trajectory read from `TRIAL/agent/trajectory.json` with the trial's name, task and reward.

    What cannot be read of them is not known; `report` counts it.
    """
    folder = Path(path).parent
    if folder.name != "agent":
        return trajectory
    trial = folder.parent
    result, beside = _read_beside(trial / "result.json", report), trial / "verifier"
    for rewards in (deep(result, "verifier_result", "rewards"), _read_beside(beside / "reward.json", report)):
        if isinstance(rewards, Mapping) and rewards:
            stored = rewards.get("reward", next(iter(rewards.values())))
            break
    else:
        stored = (_read_beside(beside / "reward.txt", report) or "").strip() or None
    task = scalar_text(deep(result, "task_name")) or trial.name.rsplit("__", 1)[0]
    return replace(
        trajectory,
        id=trial.name or trajectory.id,
        instance_id=task or trajectory.instance_id,
        resolved=resolved_of(stored),
    )


def _read_beside(path: Path, report: ReadReport) -> Any:
    """The JSON or text of a file; None where there is none, or none that can be read."""
    try:
        return (read_json if path.suffix == ".json" else read_text)(path) if path.exists() else None
    except (DataError, OSError):
        report.warn(f"a {path.name} beside a trajectory cannot be read: the outcome it holds is not known")
        return None


ATIF = Format(
    "atif",
    "'schema_version' starts with ATIF-",
    lambda record: string(record, "schema_version").startswith("ATIF-"),
    _read_atif,
    attach=_attach_trial,
)


# --- inspect_ai -----------------------------------------------------------------------------------------------------
# Source: inspect_ai (2024-11 to 2026-08), `log/_log.py`, `log/_recorders/eval.py`, and its test logs.

_ATTACHED = "attachment://"


def _samples(record: Any) -> Iterator[dict[str, Any]] | None:
    """One record per sample of a whole log; None when `record` is no log."""
    if not isinstance(record, Mapping) or not isinstance(record.get("eval"), Mapping):
        return None
    if "samples" not in record and "status" not in record:
        return None
    return ({"inspect_sample": sample, "inspect_eval": record["eval"]} for sample in items(record, "samples"))


def _read_inspect(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    sample = mapping(record, "inspect_sample")
    if not sample:
        raise DataError("the log has no samples (it may have been written without them)")
    attachments = mapping(sample, "attachments")

    def turn(message: Mapping[str, Any]) -> Sequence[Segment]:
        blocks = Turn()
        blocks.add_all(message.get("content"), builder)
        blocks.calls.extend(openai_calls(items(message, "tool_calls")))
        return blocks.segments()

    messages = []
    for message in messages_of(sample, "messages"):
        content = message.get("content")
        if isinstance(content, str) and content.startswith(_ATTACHED):  # the log stores it apart
            if (stored := attachments.get(content.removeprefix(_ATTACHED))) is None:
                left_out(attachments, "an attachment is not where the message says")
            else:
                message = {**message, "content": stored}
        messages.append(message)
    label_messages(messages, builder, turn)
    scores = mapping(sample, "scores")  # the first scorer by name decides
    instance, epoch = scalar_text(sample.get("id")), scalar_text(sample.get("epoch"))
    return builder.build(
        id=f"{instance}_epoch_{epoch}" if instance and epoch else instance,
        instance_id=instance,
        resolved=resolved_of(deep(scores, min(scores), "value")) if scores else None,
        fidelity=Fidelity.RENDERED if any(items(m, "tool_calls") for m in messages) else Fidelity.EXACT,
    )


INSPECT_AI = Format(
    "inspect-ai",
    "'eval' with 'samples' or 'status', or a zip with header.json",
    lambda record: isinstance(record, Mapping) and ("inspect_sample" in record or _samples(record) is not None),
    _read_inspect,
    expand=_samples,
)
