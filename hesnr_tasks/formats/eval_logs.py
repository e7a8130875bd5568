"""Logs of evaluation harnesses: ATIF (Harbor, Terminal-Bench 2) with its trial folders, and inspect_ai.

ATIF versions 1.0 to 1.8, by the RFC's text for 1.7 and its examples; the outcome lies in the trial's folder.
inspect_ai: `.eval` archives and `.json`, one trajectory per sample and epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesnr_tasks.actions.grammar import guess_form, split_calls
from hesnr_tasks.bounded_io import read_json, read_text
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.base import (
    Format,
    ReadReport,
    TrajectoryBuilder,
    Turn,
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
    string,
    turn_segments,
    with_reasoning,
)
from hesnr_tasks.formats.chat import label_messages
from hesnr_tasks.formats.outcomes import resolved_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

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


# --- trial folders ----------------------------------------------------------------------------------------------------


def _attach_trial(trajectory: Trajectory, path: str, report: ReadReport) -> Trajectory:
    """A trajectory read from `TRIAL/agent/trajectory.json` with the trial's name, task and reward.

    What cannot be read of them is not known; `report` counts it.
    """
    folder = Path(path).parent
    if folder.name != "agent":
        return trajectory
    trial = folder.parent
    result = _object(trial / "result.json", report)
    beside = trial / "verifier"
    for rewards in (deep(result, "verifier_result", "rewards"), _object(beside / "reward.json", report)):
        if isinstance(rewards, Mapping) and rewards:
            stored = rewards.get("reward", next(iter(rewards.values())))
            break
    else:
        stored = (_read_beside(beside / "reward.txt", report) or "").strip() or None
    task = scalar_text(result.get("task_name")) or trial.name.rsplit("__", 1)[0]
    return replace(
        trajectory,
        id=trial.name or trajectory.id,
        instance_id=task or trajectory.instance_id,
        resolved=resolved_of(stored),
    )


def _object(path: Path, report: ReadReport) -> Mapping[str, Any]:
    value = _read_beside(path, report)
    return value if isinstance(value, Mapping) else {}


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
