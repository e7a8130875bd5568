"""What lies beside a trajectory and belongs to it: the trial folder of Harbor names it and holds its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesnr_tasks.bounded_io import read_json, read_text
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.fields import deep, scalar_text
from hesnr_tasks.formats.outcome import outcome_meta, resolved_of
from hesnr_tasks.formats.report import ReadReport
from hesnr_tasks.trajectory import Trajectory

__all__ = ["with_trial"]


def with_trial(trajectory: Trajectory, path: str, report: ReadReport) -> Trajectory:
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
    known = {} if stored is None else {"outcome": outcome_meta(stored)}
    return replace(
        trajectory,
        id=trial.name or trajectory.id,
        instance_id=task or trajectory.instance_id,
        resolved=resolved_of(stored),
        meta={**trajectory.meta, **known},
    )


def _reward(verifier: Path, result: Mapping[str, Any], report: ReadReport) -> Any:
    for rewards in (deep(result, "verifier_result", "rewards"), _object(verifier / "reward.json", report)):
        if isinstance(rewards, Mapping) and rewards:
            return rewards.get("reward", next(iter(rewards.values())))
    text = _read(read_text, verifier / "reward.txt", report)
    return (text or "").strip() or None


def _object(path: Path, report: ReadReport) -> Mapping[str, Any]:
    value = _read(read_json, path, report)
    return value if isinstance(value, Mapping) else {}


def _read(read: Callable[[Path], Any], path: Path, report: ReadReport) -> Any:
    """What `read` gives; None where nothing is there, or nothing that can be read."""
    try:
        return read(path) if path.exists() else None
    except (DataError, OSError):
        report.warn(f"a {path.name} beside a trajectory cannot be read: the outcome it holds is not known")
        return None
