"""Which folder of score files belongs to which result: they lie next to each other, and their signatures agree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.analysis.options import folders
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.report.results import Row
from hesnr_tasks.scores import StoredRun, StoreError, choose_runs, differences
from hesnr_tasks.scores.runs import read_run

__all__ = ["find_scores", "run_of"]


def find_scores(
    rows: Sequence[Row], sources: Iterable[str | Path], named: Sequence[str] = ()
) -> tuple[dict[str, Path], list[str]]:
    """The folder of score files of each checkpoint that has one, and remarks on folders that cannot be used.

    Looked at: the folders in `sources` and below, those `named`, and what lies next to the result files.
    """
    inside = (
        run.parent for source in sources if Path(source).is_dir() for run in sorted(Path(source).rglob("run.json"))
    )
    near = (folder for row in rows if row.signature for folder in _near(row))
    known = {folder.resolve(): folder for folder in (*folders(named), *inside, *near)}
    found: dict[str, Path] = {}
    strangers: list[tuple[str, Path]] = []
    remarks: list[str] = []
    for folder in known.values():
        try:
            signature = read_run(folder)
        except StoreError as error:
            remarks.append(str(error))
            continue
        owners = [row.model for row in rows if row.signature and _belongs(row.signature, signature)]
        for model in owners:
            found.setdefault(model, folder)
        if not owners:
            strangers.append((_model(signature["run"]), folder))
    if named or not rows:  # scores of a run whose result file is not here; but not those of an older run
        for model, folder in strangers:
            found.setdefault(model if model not in found else f"{model} ({folder.name})", folder)
    return found, remarks


def run_of(folder: Path, which: str, rows: Iterable[Row]) -> StoredRun:
    """The run of a folder that a checkpoint's results are of, by the hash of their data; else the latest.

    `which`: as `store.choose_runs` takes it; anything but `latest` wins.
    """
    if which == "latest":
        for row in rows:
            with contextlib.suppress(SettingsError):
                return choose_runs(folder, str((row.signature or {}).get("data")))[0]
    return choose_runs(folder, which)[0]


def _near(row: Row) -> Iterator[Path]:
    """Where a run puts its scores (`keeping.place_of_scores`): scores/ in its output folder, or the folder named."""
    places = [row.path.parent / "scores", row.path.parent.parent / "scores"]
    if row.scores:
        places += [Path(row.scores), *(parent / row.scores for parent in list(row.path.parents)[:3])]
    for place in places:
        if (place / "run.json").is_file():
            yield place
        elif place.is_dir():
            yield from sorted(run.parent for run in place.glob("*/run.json"))


def _belongs(made: Mapping[str, Any], signature: Mapping[str, Any]) -> bool:
    """Whether scores with `signature` are those that a result's signature `made` speaks of."""
    run = {**(made.get("run") or {}), "max_length": made.get("max_length")}
    return (
        not differences({"run": run}, {"run": signature["run"]})
        and made["render"] in str(signature["render"]).split("+")
        and made["overflow"] == signature["overflow"]
        and made["k"] <= signature["k"]
    )


def _model(run: Mapping[str, Any]) -> str:
    name = str(run.get("model") or "unknown").rstrip("/").split("/")[-1]
    revision = run.get("revision")
    return name if revision in (None, "", "main") else f"{name}@{revision}"
