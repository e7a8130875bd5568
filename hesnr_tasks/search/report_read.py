"""Searches as records: from the folders of `hesnr search run`, and from the bench's records files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.readers.outcome import resolved_of
from hesnr_tasks.search.costs import Record
from hesnr_tasks.search.ledger import read_ledger
from hesnr_tasks.search.types import Usage, total

__all__ = ["read_records", "write_records"]


def read_records(outputs: Sequence[Path], resolved: Path | None = None) -> list[Record]:
    """All searches in `outputs`. Raises `DataError` for files that are none, and for instances without an outcome."""
    outcomes = _outcomes(resolved) if resolved else {}
    found: list[Record] = []
    for path in outputs:
        found += list(_bench_records(path)) if path.is_file() else _folder_records(path, outcomes)
    return found


def write_records(records: Sequence[Record], path: Path) -> None:
    """One JSON object a line; `read_records` reads it back."""
    lines = [
        {**one._asdict(), "usage": {kind: usage._asdict() for kind, usage in one.usage.items()}} for one in records
    ]
    path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines), encoding="utf-8")


def _bench_records(path: Path) -> Iterator[Record]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        try:
            yield _bench_record(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}:{number}: not a record of the bench ({error!r}).") from None


def _bench_record(one: Any) -> Record:
    usage = {str(kind): Usage(**spent) for kind, spent in one["usage"].items()}
    runs, resolved, tests = int(one["runs"]), float(one["resolved"]), float(one["tests"])
    if not (runs >= 1 and 0 <= resolved <= 1 and all(count >= 0 for spent in usage.values() for count in spent)):
        raise ValueError(f"runs {runs}, resolved {resolved}, tokens {list(usage.values())}")
    return Record(str(one["task"]), str(one["method"]), runs, resolved, usage, tests)


def _folder_records(path: Path, outcomes: Mapping[str, bool]) -> list[Record]:
    results = sorted(path.glob("result.json")) or sorted(path.glob("*/result.json"))
    if not results:
        raise DataError(
            f"{path}: no finished search in it (no result.json). Give the folder that hesnr search run wrote."
        )
    return [_record(result, path.name, outcomes) for result in results]


def _record(path: Path, method: str, outcomes: Mapping[str, bool]) -> Record:
    result = _json(path)
    instance = str(result.get("instance_id") or path.parent.name)
    solved = outcomes.get(instance, resolved_of(result.get("resolved")))
    if solved is None:
        raise DataError(
            f"{path}: instance {instance!r} has no outcome; costs are compared at equal resolve rate. Give the "
            "outcomes with --resolved FILE."
        )
    usage: dict[str, Usage] = {}
    ledger = path.parent / "ledger.jsonl"
    for line, entry in enumerate(read_ledger(ledger), start=1):
        if entry.kind == "sample" and not entry.usage.prompt:
            raise DataError(
                f"{ledger}:{line}: a draw without prompt tokens: the server stated no usage, or an empty one. What "
                "this search cost is not known; leave it out, or search with a server that states usage."
            )
        usage[entry.kind] = total((usage.get(entry.kind, Usage()), entry.usage))
    runs = result.get("runs", 1)
    if not isinstance(runs, int) or runs < 1:
        raise DataError(f"{path}: 'runs' must be a number of runs, not {runs!r}.")
    tests = result.get("tests")
    executed = tests.get("runs", 0) if isinstance(tests, dict) else 0
    if type(executed) is not int:
        raise DataError(f"{path}: tests.runs must be a number of runs, not {executed!r}.")
    return Record(instance, str(result.get("method") or method), runs, float(solved), usage, float(executed))


def _outcomes(path: Path) -> dict[str, bool]:
    """Outcomes by instance: of a SWE-bench report (resolved_ids and the rest), or a plain object."""
    stated = _json(path)
    if "resolved_ids" in stated:
        lists = {key: ids for key, ids in stated.items() if key.endswith("_ids") and isinstance(ids, list)}
        if "resolved_ids" not in lists or not all(isinstance(name, str) for ids in lists.values() for name in ids):
            raise DataError(f"{path}: resolved_ids and its like must be lists of instance ids.")
        others = [name for ids in lists.values() for name in ids]
        return {**dict.fromkeys(others, False), **dict.fromkeys(lists["resolved_ids"], True)}
    found = {name: resolved_of(value) for name, value in stated.items()}
    unknown = [name for name, value in found.items() if value is None]
    if unknown:
        raise DataError(f"{path}: the outcome of {unknown[0]!r} is neither true nor false.")
    return {name: bool(value) for name, value in found.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: must hold one JSON object.")
    return found
