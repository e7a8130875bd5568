"""nebius/SWE-agent-trajectories: rows whose `trajectory` has role `ai` and the model's own text in `text`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hesnr_tasks.formats import text
from hesnr_tasks.formats.draft import Draft
from hesnr_tasks.formats.fields import Where, deep, items, left_out, messages_of, scalar_text, string
from hesnr_tasks.formats.outcome import outcome
from hesnr_tasks.formats.roles import role_of
from hesnr_tasks.formats.sweagent import EXIT
from hesnr_tasks.trajectory import Trajectory

__all__ = ["NAME", "RULE", "detect", "read"]

NAME = "nebius-swe-agent"
RULE = "'trajectory' rows of role ai with 'text'"


def detect(record: Any) -> float:
    """1 when an early item has the role ai and a text."""
    if not isinstance(record, Mapping):
        return 0.0
    early = items(record, "trajectory")[:8]
    return float(any(isinstance(i, Mapping) and i.get("role") == "ai" and "text" in i for i in early))


def read(record: Any, where: Where) -> Trajectory:
    """Read one row."""
    draft = Draft(NAME, where)
    for item in messages_of(record, "trajectory"):
        role, content = role_of(item), string(item, "text")
        if role is None:
            left_out(item, "a message without a known role")
        if role == "system":
            draft.context(role, content or string(item, "system_prompt"))
        elif role != "assistant":
            draft.given(role or "user", content)
        elif EXIT.match(content):
            draft.not_generated(content)
        else:
            draft.generated(text.split(content, "fence"))
    resolved, stored = outcome(record, "target")
    return draft.build(
        id=scalar_text(deep(record, "trajectory_id")),
        instance_id=record.get("instance_id"),
        resolved=resolved,
        outcome=stored,
        exit_status=scalar_text(record.get("exit_status")),
        model=scalar_text(record.get("model_name")),
    )
