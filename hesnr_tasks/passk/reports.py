"""Evaluation reports of agents (SWE-bench and kin, also of mini-swe-agent's runs): a report is one answer a problem."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.passk.outcomes import Answer
from hesnr_tasks.readers.evaluations import read_outcomes
from hesnr_tasks.readers.fields import as_list, scalar_text

__all__ = ["answers", "is_predictions", "is_report", "reports_in"]

_RESOLVED = ("resolved_ids", "resolved")
_FAILED = ("unresolved_ids", "unresolved")
_TRIED = ("submitted_ids", "completed_ids", "generated")
_PREDICTIONS = ("preds.json", "all_preds.jsonl")


def is_report(value: Any) -> bool:
    """Whether a decoded file is a report: of a run (lists of ids) or of one or several instances."""
    if not isinstance(value, Mapping):
        return False
    if any(as_list(value.get(key)) is not None or isinstance(value.get(key), bool) for key in _RESOLVED):
        return True
    return bool(value) and all(isinstance(item, Mapping) and "resolved" in item for item in value.values())


def is_predictions(value: Any) -> bool:
    """Whether it is mini-swe-agent's `preds.json`: patches, and nothing of whether they solve anything."""
    rows = list(value.values()) if isinstance(value, Mapping) else []
    return bool(rows) and all(isinstance(row, Mapping) and "model_patch" in row for row in rows)


def reports_in(folder: Path) -> list[Path]:
    """The reports below a folder. `DataError` if some are of runs and some of instances: one counts the other again."""
    runs: list[Path] = []
    instances: list[Path] = []
    for path in sorted(folder.rglob("*.json")):
        if path.name in _PREDICTIONS or path.name.endswith(".traj.json"):
            continue
        value = _decoded(path)
        if is_report(value):
            (runs if _is_run(value) else instances).append(path)
    if runs and instances:
        raise DataError(
            f"{folder} holds reports of whole runs ({runs[0].name}) and of single instances ({instances[0]}); counting "
            "both would count answers twice. Name the ones you mean."
        )
    if not runs and not instances and any((folder / name).exists() for name in _PREDICTIONS):
        raise DataError(_unjudged(folder))
    return runs or instances


def answers(path: Path, *, unknown_fails: bool) -> Iterator[Answer]:
    """One answer to each problem the report is about; unknown ones have n = 0 (or 1 and wrong, if asked so)."""
    value = _decoded(path)
    if is_predictions(value):
        raise DataError(_unjudged(path))
    judged: dict[str, bool | None] = dict(read_outcomes([str(path)]))
    judged |= {problem: how for problem, how in _silent(path, value) if problem not in judged}
    for problem in _ids(_decoded(path.parent / "preds.json")):
        judged.setdefault(problem, None)
    for problem, how in judged.items():
        yield Answer(problem, int(how is not None or unknown_fails), int(bool(how)), str(path))


def _silent(path: Path, value: Any) -> Iterator[tuple[str, bool | None]]:
    """Problems that were tried, of which the lists say nothing: failed, if the report lists no failures at all."""
    if not isinstance(value, Mapping) or not _is_run(value):
        return
    tried = [name for key in _TRIED for name in map(scalar_text, as_list(value.get(key)) or []) if name]
    listed = any(as_list(value.get(key)) is not None for key in _FAILED)
    if not tried and not listed:
        raise DataError(
            f"{path} lists the problems that were solved and not those that were tried: Pass@K would be 1. Give a "
            f"report with {_FAILED[0]} or {_TRIED[0]}, or a table of (problem, ok)."
        )
    yield from ((name, None if listed else False) for name in tried)


def _is_run(value: Mapping[str, Any]) -> bool:
    return any(as_list(value.get(key)) is not None for key in _RESOLVED)


def _ids(value: Any) -> Sequence[str]:
    return [str(key) for key in value] if is_predictions(value) else []


def _decoded(path: Path) -> Any:
    """The file's value; None for what is no JSON: reading it as a report will say what is wrong."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _unjudged(path: Path) -> str:
    return (
        f"{path}: predictions say what was tried, not what was solved. Evaluate them (python -m "
        "swebench.harness.run_evaluation --predictions_path …) and give the report it writes."
    )
