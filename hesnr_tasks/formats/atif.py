"""ATIF, the interchange format of Harbor and Terminal-Bench 2 (`schema_version: ATIF-v1.x`), versions 1.0 to 1.8.

Source: the RFC's text for 1.7 and its examples. The outcome lies in the trial's folder (see `siblings`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import canonical, text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, deep, items, left_out, mapping, mappings, need_items, scalar_text, string
from hesnr_tasks.trajectory import Fidelity, Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "atif"
RULE = "'schema_version' starts with ATIF-"

# A converter writes this where the model wrote nothing (Harbor's reader of Claude Code sessions).
_FILLER = re.compile(r"Executed \S+(?: \S+)?\Z|\(tool use\)\Z")


def detect(record: Any) -> float:
    """1 when the record says so itself."""
    return float(isinstance(record, Mapping) and string(record, "schema_version").startswith("ATIF-"))


def read(record: Any, where: Where) -> Trajectory:
    """Read one trajectory."""
    draft = Draft(NAME, where)
    for i, step in enumerate(need_items(record, "steps")):
        if not isinstance(step, Mapping):
            raise DataError(f"steps[{i}] must be an object, not {type(step).__name__}")
        _step(step, draft)
    calls = any(items(step, "tool_calls") for step in items(record, "steps"))
    return draft.build(
        id=scalar_text(record.get("trajectory_id")) or scalar_text(record.get("session_id")),
        fidelity=Fidelity.RENDERED if calls else Fidelity.EXACT,
        format_version=string(record, "schema_version"),
        model=scalar_text(deep(record, "agent", "model_name")),
        scaffold=scalar_text(deep(record, "agent", "name")),
    )


def _step(step: Mapping[str, Any], draft: Draft) -> None:
    message, source = draft.text(step.get("message")), string(step, "source")
    if source == "system":
        draft.context("system", message)
    elif source == "user":
        draft.given("user", message)
    elif source != "agent":
        draft.warn(f"a step of the unknown source {source!r} is labelled observation")
        draft.observation("user", message)
        if not message:
            left_out(step, "a step of unknown shape")
    elif step.get("is_copied_context") is True:
        draft.warn("a turn copied from an earlier trajectory is labelled context")
        draft.context("assistant", _whole(step, message))
    else:
        _turn(step, message, draft)
    observation = mapping(step, "observation")
    if observation and "results" not in observation:
        left_out(observation, "an observation has no results")
    for result in mappings(items(observation, "results"), "a result"):
        content = draft.text(result.get("content"))
        if not content:
            left_out(result, "a result has no content")
        draft.observation("tool", content)


def _whole(step: Mapping[str, Any], message: str) -> str:
    calls = canonical.openai_calls(items(step, "tool_calls"))
    return "".join(s.text for s in canonical.generated(message, calls, string(step, "reasoning_content")))


def _turn(step: Mapping[str, Any], message: str, draft: Draft) -> None:
    calls = canonical.openai_calls(items(step, "tool_calls"))
    reasoning = string(step, "reasoning_content")
    if step.get("llm_call_count") == 0:
        draft.not_generated(_whole(step, message))
        return
    if calls and _FILLER.match(message):
        draft.warn("a message the converter wrote where the model wrote none is left out")
        message = ""
    if calls:
        draft.generated(canonical.generated(message, calls, reasoning))
    else:
        written = canonical.with_reasoning(message, reasoning)
        draft.generated(text.split(written, text.guess_style([message], ("json", "function", "tool_call"))))
