"""Whether a run solved its task: outcomes stored in runs, and the evaluation reports of SWE-bench and its relatives.

Shapes of reports (SWE-bench, SWE-smith, OpenHands): a run's report with lists of ids; `{id: {"resolved": …}}` per
instance; a flat `{"resolved": …}` in the instance's folder; JSON Lines with `instance_id` and a report. An instance
whose evaluation failed or did not run is unknown, not unsolved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.files.bounded import read_json
from hesnr_tasks.formats.base import Problem, ReadReport, as_list, deep, scalar_text
from hesnr_tasks.formats.sources import records, source_paths, walk

_TRUE = ("true", "resolved", "success", "c", "pass", "passed", "yes")
_FALSE = ("false", "unresolved", "fail", "failed", "i", "no")
_RESOLVED = ("resolved_ids", "resolved")
_UNRESOLVED = ("unresolved_ids", "unresolved")
_TRIED = ("submitted_ids", "completed_ids", "generated")
_PREDICTIONS = ("preds.json", "all_preds.jsonl")
_VERDICTS: dict[str, bool | None] = {
    **dict.fromkeys(_RESOLVED, True),
    **dict.fromkeys((*_UNRESOLVED, "empty_patch_ids", "no_generation", "no_apply"), False),
    **dict.fromkeys(("error_ids", "incomplete_ids"), None),
}


# --- outcomes stored with runs ----------------------------------------------------------------------------------------


def resolved_of(value: Any) -> bool | None:
    """An outcome, however stored: bool; 1, 0, -1; a reward from 0 to 1 (1 solves); their text; "C", "I" and the like.

    Returns:
        Solved, not solved, or None: unknown.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        value = text
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None  # text may be the name of an exception, for instance
    return None if math.isnan(number) or number < 0 else number >= 1


def row_outcome(record: Mapping[str, Any], *keys: str) -> bool | None:
    """The outcome under the first of `keys` (default: `resolved`, `reward`) that a row has, as `resolved_of`."""
    stored = (record[key] for key in keys or ("resolved", "reward") if record.get(key) is not None)
    return resolved_of(next(stored, None))


# --- evaluation reports -----------------------------------------------------------------------------------------------


def read_outcomes(paths: Sequence[str]) -> dict[str, bool | None]:
    """The outcomes of all instances of evaluation reports.

    Args:
        paths: report files, or folders, of which every `report.json` is read.

    Returns:
        Instance id → solved, not solved or unknown.

    Raises:
        DataError: for a file that is no report, and for an instance that two reports judge differently.
    """
    outcomes: dict[str, bool | None] = {}
    origin: dict[str, str] = {}
    for path in _report_files(paths):
        judged: dict[str, bool | None] = {}
        for record in records(path):
            if isinstance(record, Problem):
                raise DataError(f"the evaluation report cannot be read: {record}")
            if isinstance(record.value, Mapping):
                judged.update(_instances(record.value, Path(path)))
        if not judged:
            raise DataError(
                f"{path} is no evaluation report: it has no 'resolved_ids', no 'resolved' and no instance with one. "
                "Give SWE-bench's run report or the report.json of instances."
            )
        for instance, resolved in judged.items():
            if instance in outcomes and outcomes[instance] is not resolved:
                raise DataError(
                    f"the reports {origin[instance]} and {path} judge {instance!r} differently; "
                    f"give only the report of the runs that are converted"
                )
            outcomes[instance], origin[instance] = resolved, path
    return outcomes


def _report_files(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if not Path(path).is_dir():
            for place in source_paths([str(Path(path))], ReadReport()):
                if isinstance(place, Problem):
                    raise DataError(f"the evaluation report cannot be read: {place}")
                yield place[0]
            continue
        inside = []
        for file in walk(Path(path)):
            if isinstance(file, Problem):
                raise DataError(f"the evaluation reports cannot all be read: {file}")
            inside += [str(file)] if file.name == "report.json" else []
        if not inside:
            raise DataError(f"the folder {path!r} holds no report.json; name the report file")
        yield from sorted(inside)


def _instances(report: Mapping[str, Any], path: Path) -> Iterator[tuple[str, bool | None]]:
    listed = [key for key in _VERDICTS if as_list(report.get(key)) is not None]
    for key in reversed(listed):  # an id in several lists: the earlier key of the table decides
        for instance in as_list(report[key]) or []:
            if name := scalar_text(instance):
                yield name, _VERDICTS[key]
    if listed:
        return
    stored = report_outcome(report)
    if stored is not None:
        yield scalar_text(report.get("instance_id")) or path.parent.name, resolved_of(stored)
        return
    for instance, value in report.items():
        if isinstance(value, Mapping) and report_outcome(value) is not None:
            yield instance, resolved_of(report_outcome(value))


def report_outcome(report: Any) -> Any:
    """What the report of one instance, or a row with one, stores as its outcome; None without any."""
    places = (("test_result", "report", "resolved"), ("report", "resolved"), ("resolved",))
    return next((value for keys in places if (value := deep(report, *keys)) is not None), None)


def reports_in(folder: Path) -> list[Path]:
    """The evaluation reports below a folder: of whole runs, or of single instances.

    Raises:
        DataError: some are of runs and some of instances, so that one counts the other again; or there are predictions
            and no report.
    """
    runs: list[Path] = []
    instances: list[Path] = []
    for path in sorted(folder.rglob("*.json")):
        if path.name in _PREDICTIONS or path.name.endswith(".traj.json") or path.is_dir():
            continue
        value = read_json(path)
        if not isinstance(value, Mapping):
            continue
        if _is_run_report(value):
            runs.append(path)
        elif any(isinstance(value.get(key), bool) for key in _RESOLVED) or (
            value and all(isinstance(item, Mapping) and "resolved" in item for item in value.values())
        ):
            instances.append(path)
    if runs and instances:
        raise DataError(
            f"{folder} holds reports of whole runs ({runs[0].name}) and of single instances ({instances[0]}); counting "
            "both would count answers twice. Name the ones you mean."
        )
    if not runs and not instances and any((folder / name).exists() for name in _PREDICTIONS):
        raise _not_evaluated(folder)
    return runs or instances


def tried_outcomes(path: Path, value: Any) -> dict[str, bool | None]:
    """The outcomes of one report, also of instances that were tried and are in none of its lists of verdicts.

    Those are failed if the report lists no failures at all, else unknown; so are those that only the `preds.json`
    beside the report has.

    Args:
        path: the report.
        value: its decoded content, if it is one JSON value.

    Raises:
        DataError: it holds predictions, is no report, or does not say what was tried.
    """
    if _is_predictions(value):
        raise _not_evaluated(path)
    outcomes = read_outcomes([str(path)])
    if isinstance(value, Mapping) and _is_run_report(value):
        tried = [name for key in _TRIED for name in map(scalar_text, as_list(value.get(key)) or []) if name]
        lists_failures = any(as_list(value.get(key)) is not None for key in _UNRESOLVED)
        if not tried and not lists_failures:
            raise DataError(
                f"{path} lists the problems that were solved and not those that were tried: Pass@K would be 1. Give a "
                f"report with {_UNRESOLVED[0]} or {_TRIED[0]}, or a table of (problem, ok)."
            )
        for name in tried:
            outcomes.setdefault(name, None if lists_failures else False)
    beside = path.parent / "preds.json"
    predictions: Any = read_json(beside) if beside.exists() else None
    for name in predictions if _is_predictions(predictions) else ():
        outcomes.setdefault(str(name), None)
    return outcomes


def _is_run_report(value: Mapping[str, Any]) -> bool:
    return any(as_list(value.get(key)) is not None for key in _RESOLVED)


def _is_predictions(value: Any) -> bool:
    """mini-swe-agent's `preds.json`: patches, and nothing of whether they solve anything."""
    rows = list(value.values()) if isinstance(value, Mapping) else []
    return bool(rows) and all(isinstance(row, Mapping) and "model_patch" in row for row in rows)


def _not_evaluated(path: Path) -> DataError:
    return DataError(
        f"{path}: predictions say what was tried, not what was solved. Evaluate them (python -m "
        "swebench.harness.run_evaluation --predictions_path …) and give the report it writes."
    )
