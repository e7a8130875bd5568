"""What lies beside a trajectory and belongs to it: the trial folder of Harbor names it and holds its outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesnr_tasks.readers.fields import deep, scalar_text
from hesnr_tasks.readers.outcome import outcome_meta, resolved_of
from hesnr_tasks.trajectory import Trajectory

__all__ = ["with_trial"]


def with_trial(trajectory: Trajectory, path: str) -> Trajectory:
    """A trajectory read from `TRIAL/agent/trajectory.json` with the trial's name, task and reward."""
    folder = Path(path).parent
    if folder.name != "agent":
        return trajectory
    trial = folder.parent
    result = _json(trial / "result.json")
    stored = _reward(trial, result)
    task = scalar_text(result.get("task_name")) or trial.name.rsplit("__", 1)[0]
    known = {} if stored is None else {"outcome": outcome_meta(stored)}
    return replace(
        trajectory,
        id=trial.name or trajectory.id,
        instance_id=task or trajectory.instance_id,
        resolved=resolved_of(stored),
        meta={**trajectory.meta, **known},
    )


def _reward(trial: Path, result: Mapping[str, Any]) -> Any:
    for rewards in (deep(result, "verifier_result", "rewards"), _json(trial / "verifier" / "reward.json")):
        if isinstance(rewards, Mapping) and rewards:
            return rewards.get("reward", next(iter(rewards.values())))
    try:
        return (trial / "verifier" / "reward.txt").read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, Mapping) else {}
