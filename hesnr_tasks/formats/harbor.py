"""ATIF, the interchange format of Harbor and Terminal-Bench 2, versions 1.0 to 1.8; Harbor's trial folders and exports.

Source: the RFC's text for 1.7 and its examples. The outcome lies in the trial's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesnr_tasks.actions.grammar import guess_form, split_calls
from hesnr_tasks.bounded_io import read_json, read_text
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.base import Format, ReadReport, TrajectoryBuilder, Where
from hesnr_tasks.formats.content_blocks import openai_calls, turn_segments, with_reasoning
from hesnr_tasks.formats.json_access import (
    deep,
    items,
    left_out,
    mapping,
    mappings,
    need_items,
    need_objects,
    scalar_text,
    string,
)
from hesnr_tasks.formats.outcomes import outcome_meta, resolved_of
from hesnr_tasks.trajectory import Fidelity, Segment, Trajectory

# A converter writes this where the model wrote nothing (Harbor's reader of Claude Code sessions).
_PLACEHOLDER = re.compile(r"Executed \S+(?: \S+)?\Z|\(tool use\)\Z")


def _detect(record: Any) -> float:
    """1 when the record says so itself."""
    return float(isinstance(record, Mapping) and string(record, "schema_version").startswith("ATIF-"))


def _read(record: Any, where: Where) -> Trajectory:
    builder = TrajectoryBuilder(ATIF.name, where)
    for step in need_objects(need_items(record, "steps"), "steps[{}]"):
        _add_step(step, builder)
    calls = any(items(step, "tool_calls") for step in items(record, "steps"))
    return builder.build(
        id=scalar_text(record.get("trajectory_id")) or scalar_text(record.get("session_id")),
        fidelity=Fidelity.RENDERED if calls else Fidelity.EXACT,
        format_version=string(record, "schema_version"),
        model=scalar_text(deep(record, "agent", "model_name")),
        scaffold=scalar_text(deep(record, "agent", "name")),
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
        builder.context("assistant", "".join(s.text for s in _turn(step, message, builder)))
    elif step.get("llm_call_count") == 0:
        builder.not_generated("".join(s.text for s in _turn(step, message, builder)))
    else:
        builder.generated(_turn(step, message, builder, generated=True))
    observation = mapping(step, "observation")
    if observation and "results" not in observation:
        left_out(observation, "an observation has no results")
    for result in mappings(items(observation, "results"), "a result"):
        content = builder.text(result.get("content"))
        if not content:
            left_out(result, "a result has no content")
        builder.observation("tool", content)


def _turn(
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
    stored = _reward(trial / "verifier", result, report)
    task = scalar_text(result.get("task_name")) or trial.name.rsplit("__", 1)[0]
    return replace(
        trajectory,
        id=trial.name or trajectory.id,
        instance_id=task or trajectory.instance_id,
        resolved=resolved_of(stored),
        meta={**trajectory.meta, **({} if stored is None else {"outcome": outcome_meta(stored)})},
    )


def _reward(verifier: Path, result: Mapping[str, Any], report: ReadReport) -> Any:
    for rewards in (deep(result, "verifier_result", "rewards"), _object(verifier / "reward.json", report)):
        if isinstance(rewards, Mapping) and rewards:
            return rewards.get("reward", next(iter(rewards.values())))
    return (_read_beside(verifier / "reward.txt", report) or "").strip() or None


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


ATIF = Format("atif", "'schema_version' starts with ATIF-", _detect, _read, attach=_attach_trial)


# --- trace export -----------------------------------------------------------------------------------------------------


def episode_rank(value: Any) -> tuple[str, tuple[int, str]] | None:
    """The trial of a trace-export row and the rank of its episode, which repeats all before it; None for other rows.

    Episodes are numbers or end in one (`episode-12`).
    """
    if not isinstance(value, Mapping) or "conversations" not in value or "episode" not in value:
        return None
    if not value.get("trial_name"):
        return None
    text = scalar_text(value.get("episode")) or ""
    digits = "".join(c for c in text.rsplit("-", 1)[-1] if c.isdecimal())[:9]
    return str(value["trial_name"]), (int(digits or "0"), text)
