"""Summaries of checkpoints, kept on disk: a second report reads no score file, and an interrupted one goes on.

A summary lies beside the score files it was made of, `summary-SETTINGS.cache`, or where that folder cannot be written
in `$XDG_CACHE_HOME/hesnr` (`~/.cache/hesnr`). It is used only while everything that it came from is as it was:

- every score file, `run.json` and list of runs: name, size, inode, and the times of content and of the last change,
  of which no program can set the latter;
- what was asked: k, threshold, context, run, metrics;
- the code: all of this package, NumPy and pyarrow. Metrics that are not this package's own are never kept.

What is damaged, stale or of another version is made again without a word; deleting these files loses only time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import hesnr_tasks
from hesnr_tasks.analysis.summary import CheckpointSummary, SummaryRequest, summarize
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.errors import HesnrError
from hesnr_tasks.files.atomic import decode_arrays, encode_arrays, replace_file
from hesnr_tasks.files.bounded import READ_ERRORS, open_regular, parse_json, read_rest
from hesnr_tasks.metrics import METRICS, names_of
from hesnr_tasks.scores.runs import run_folder

_BUILT_IN = dict(METRICS)  # what the package registers; a user's metric may be anything
_PATTERN, _MOST = "summary-*.cache", 8  # settings that a folder keeps
_PARTS = ("*.parquet", "*.pq", "run.json", "runs/*.json")  # of a folder of score files
_DIGEST = 32  # bytes
_ERRORS = (*READ_ERRORS, HesnrError, KeyError, TypeError, AttributeError, RecursionError)


def cached_summary(request: SummaryRequest, threads: int | None = None) -> CheckpointSummary:
    """What `summarize` gives for the same arguments, from the disk where it was kept; kept where it was not."""
    folder, names = request.folder, request.metric_names
    before, code = (_state(folder), _code()) if all_built_in(names) else (None, None)
    if before is None or code is None:
        return summarize(request, threads)
    wanted = [request.k, float(request.epsilon).hex(), request.context, request.run, names]
    settings = json.dumps(wanted, sort_keys=True)
    place = f"summary-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.cache"
    key = hashlib.sha256(f"{code}\n{settings}\n{before}".encode()).hexdigest()
    for path in (parent / place for parent in _folders(folder)):
        with contextlib.suppress(*_ERRORS):
            kept = _read(path, key, folder, request.name)
            if kept.cases is not None or not request.cases:
                return kept if request.cases else replace(kept, cases=None)
    summary = summarize(request, threads)
    if _state(folder) == before:  # else files came while others were read
        _write(folder, place, key, summary)
    return summary


def all_built_in(metrics: Sequence[str]) -> bool:
    """Whether some metrics, and the core ones, are those that this package registers."""
    return all(METRICS[metric] is _BUILT_IN.get(metric) for metric in (*metrics, *names_of()))


def uncached_bytes(folder: Path) -> int:
    """About how much is to be read of a folder of score files: nothing where anything newer was kept."""
    with contextlib.suppress(OSError, HesnrError):
        folder = run_folder(folder)
        files = [path.stat() for path in folder.glob("*.parquet")]
        newest = max((status.st_ctime for status in files), default=0.0)
        kept = (path.stat().st_ctime for parent in _folders(folder) for path in parent.glob(_PATTERN))
        return 0 if max(kept, default=0.0) > newest else sum(status.st_size for status in files)
    return 0


def _folders(folder: Path) -> Iterator[Path]:
    """Where summaries of a folder of score files may lie."""
    folder = run_folder(folder).resolve()
    yield folder
    with contextlib.suppress(RuntimeError):  # there is no home
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        yield parent / "hesnr" / hashlib.sha256(str(folder).encode()).hexdigest()[:16]


# --- what a summary was made of ---------------------------------------------------------------------------------------


def _state(folder: Path) -> str | None:
    """A digest of which files a folder of score files has, and when they were changed; None: it cannot be told."""
    try:
        folder = run_folder(folder)
        paths = sorted(path for pattern in _PARTS for path in folder.glob(pattern))
        lines = []
        for path in paths:
            status = path.stat()
            times = status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
            lines.append(f"{path.relative_to(folder)} {times}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    except (OSError, HesnrError):
        return None


@lru_cache(maxsize=1)
def _code() -> str | None:
    """A digest of every module of this package, and the versions of what it computes with; None: it cannot be told."""
    digest = hashlib.sha256()
    root = Path(hesnr_tasks.__file__).parent
    try:
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
        versions = [f"{library} {importlib.metadata.version(library)}" for library in ("numpy", "pyarrow", "scipy")]
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None
    return f"{digest.hexdigest()} {', '.join(versions)}"


# --- files ------------------------------------------------------------------------------------------------------------


def _write(folder: Path, place: str, key: str, summary: CheckpointSummary) -> None:
    """Keep a summary where that is possible: digest of the rest, header and arrays."""
    document, arrays = summary.to_parts()
    with contextlib.suppress(TypeError, ValueError):  # a signature that JSON does not hold
        runs = list(summary.runs.values())
        header = {
            "key": key,
            "document": document,
            "ids": runs[0].ids if runs else (),
            "cases": None if summary.cases is None else summary.cases._asdict(),
            "arrays": list(arrays),
        }
        body = encode_arrays(header, *arrays.values())
        for parent in _folders(folder):
            with contextlib.suppress(OSError):
                parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(parent / place, hashlib.sha256(body).digest() + body)
                kept = sorted(parent.glob(_PATTERN), key=lambda path: path.stat().st_mtime_ns)
                for path in kept[:-_MOST]:
                    path.unlink(missing_ok=True)
                return


def _read(path: Path, key: str, folder: Path, name: str) -> CheckpointSummary:
    """The summary in a file, under a name that may be another than then; any of `_ERRORS` where it is not of `key`."""
    with open_regular(path) as file:
        data = read_rest(file)
    body = data[_DIGEST:]
    if hashlib.sha256(body).digest() != data[:_DIGEST]:
        raise ValueError("damaged")
    header, columns = decode_arrays(body, parse_json)
    if header["key"] != key:
        raise ValueError("stale")
    arrays = dict(zip(header["arrays"], columns, strict=True))
    summary = CheckpointSummary.from_parts({**header["document"], "name": name}, arrays, folder)
    ids = tuple(map(str, header["ids"]))
    runs = {select: replace(run, ids=ids) for select, run in summary.runs.items()}
    cases = None if header["cases"] is None else _table(header["cases"], name)
    return replace(summary, runs=runs, cases=cases)


def _table(parts: Mapping[str, Any], name: str) -> Table:
    rows = [{**row, "run": name} for row in parts["rows"]]
    return Table(parts["name"], parts["title"], rows, *(tuple(parts[part]) for part in ("notes", "wide", "below")))
