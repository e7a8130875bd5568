"""From what the user named (file, glob, folder, hub id, list of those) to what is read, in a fixed order.

In a folder, some files are not a run each: one file per event, one log per model call, and files beside the runs.
"""

from __future__ import annotations

import glob  # not Path.glob: patterns may be absolute
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.readers.report import ReadReport

__all__ = ["find", "is_hub_id"]

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".traj", ".parquet", ".eval")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EVENT_FILE = re.compile(r"event-\d+-.*\.json")
_BESIDE = re.compile(
    r"preds\.json|all_preds\.jsonl|results?\.json|report\.json|config\.json|metadata\.json|base_state\.json|lock\.json|"
    r"reward\.json|output_errors\.jsonl|.*\.swebench_eval\.jsonl|output\.critic_attempt_\d+\.jsonl|"
    r"trajectory\.summarization-.*\.json"
)


def find(source: str | Sequence[str], report: ReadReport) -> Iterator[tuple[str, bool]]:
    """Each path to read, in order, and whether the user named it (false: found in a folder).

    Hub ids come as they are. What is passed over in folders is noted in `report`. `DataError` for what is not there.
    """
    names = [source] if isinstance(source, str) else list(source)
    if not names:
        raise DataError("no trajectories were named; give a file, a glob, a folder or a hub id")
    for name in names:
        if is_hub_id(name):
            yield name, True
        else:
            yield from _local(name, report)


def is_hub_id(name: str) -> bool:
    """Whether `name` is `owner/name` and nothing of that name lies here."""
    path = Path(name)
    if not _HUB_ID.fullmatch(name) or path.exists() or path.parent.is_dir():
        return False
    return not _readable(path)


def _local(name: str, report: ReadReport) -> Iterator[tuple[str, bool]]:
    path = Path(name).expanduser()
    if path.is_dir():
        yield from ((found, False) for found in _inside(path, report))
    elif path.exists():
        yield str(path), True
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise DataError(f"no file matches {name!r} (looked from {Path.cwd()})")
        for match in matches:
            yield from _local(match, report) if Path(match).is_dir() else [(match, True)]
    else:
        raise DataError(_missing(path, name))


def _inside(folder: Path, report: ReadReport) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and _readable(path)]
    if not files:
        raise DataError(f"the folder {str(folder)!r} holds no file that ends in {', '.join(_SUFFIXES)} (also with .gz)")
    beside = [path for path in files if _BESIDE.fullmatch(path.name)]
    for path in beside:
        report.warn(f"a file beside the runs is not read: {path.name}")
    units = {_unit(path) for path in files if path not in set(beside)}
    return sorted(str(path) for path in _last_logs(units))


def _unit(path: Path) -> Path:
    """The folder of events a file is part of, or the file."""
    return path.parent if path.parent.name == "events" and _EVENT_FILE.fullmatch(path.name) else path


def _last_logs(units: set[Path]) -> Iterator[Path]:
    """Of the logs of one run's model calls only the last: it repeats all before it."""
    last: dict[Path, Path] = {}
    for path in units:
        if path.parent.parent.name == "llm_completions":
            last[path.parent] = max(path, last.get(path.parent, path))
        else:
            yield path
    yield from last.values()


def _readable(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(_SUFFIXES)


def _missing(path: Path, name: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file or folder {name!r}: the folder {str(folder)!r} does not exist"
    near = nearest(path.name, [p.name for p in folder.iterdir()])
    return f"there is no file or folder {name!r}.{near or ' Check the path, or give a glob in quotes.'}"
