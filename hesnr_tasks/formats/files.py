"""From what the user named (file, glob, folder, hub id, list of those) to what is read, in a fixed order.

In a folder, some files are not a run each: one file per event, one log per model call, and files beside the runs.
"""

from __future__ import annotations

import glob  # not Path.glob: patterns may be absolute
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hesnr_tasks.bounded_io import COMPRESSED
from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.formats.fields import Where, uncompressed
from hesnr_tasks.formats.report import Problem, ReadReport

__all__ = ["find", "is_hub_id", "walk"]

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".traj", ".parquet", ".eval")
_KINDS_NAMED = 5
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EVENT_FILE = re.compile(r"event-\d+-.*\.json")
_BESIDE = re.compile(
    r"preds\.json|all_preds\.jsonl|results?\.json|report\.json|config\.json|metadata\.json|base_state\.json|lock\.json|"
    r"reward\.json|output_errors\.jsonl|.*\.swebench_eval\.jsonl|output\.critic_attempt_\d+\.jsonl|"
    r"trajectory\.summarization-.*\.json"
)


def find(source: str | Sequence[str], report: ReadReport) -> Iterator[tuple[str, bool] | Problem]:
    """Each path to read, in order, and whether the user named it (false: found in a folder); or why one cannot be.

    Hub ids come as they are. What is passed over in folders is noted in `report`. `DataError` for what is not there.
    """
    names = [source] if isinstance(source, str) else list(source)
    if not names:
        raise DataError("no trajectories were named; give a file, a glob, a folder or a hub id")
    for name in names:
        if is_hub_id(name):
            yield name, True
        else:
            try:
                yield from _local(name, report)
            except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL, an unknown ~user, no right
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"{name[:100]!r} cannot be looked at ({reason})") from error


def is_hub_id(name: str) -> bool:
    """Whether `name` is `owner/name` and nothing of that name lies here."""
    path = Path(name)
    if not _HUB_ID.fullmatch(name) or path.exists() or path.parent.is_dir():
        return False
    return not _readable(path)


def _local(name: str, report: ReadReport) -> Iterator[tuple[str, bool] | Problem]:
    path = Path(name).expanduser()
    if path.is_dir():
        yield from (found if isinstance(found, Problem) else (found, False) for found in _inside(path, report))
    elif path.exists() or path.is_symlink():
        yield str(path), True
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise DataError(f"no file matches {name!r} (looked from {Path.cwd()})")
        for match in matches:
            yield from _local(match, report) if Path(match).is_dir() else [(match, True)]
    else:
        raise DataError(_missing(path, name))


def _inside(folder: Path, report: ReadReport) -> list[str | Problem]:
    files, problems, others = [], [], Counter[str]()
    for found in walk(folder):
        if isinstance(found, Problem):
            problems.append(found)
        elif not _readable(found):
            others[found.suffix or found.name] += 1
        elif found.is_file():
            files.append(found)
        elif found.is_symlink() and not found.exists():
            problems.append(Problem(Where(str(found)), "dangling link", "a link to what is not there"))
        else:
            problems.append(Problem(Where(str(found)), "special file", "a pipe, socket or device, not a plain file"))
    beside = [path for path in files if _BESIDE.fullmatch(uncompressed(path.name))]
    for path in beside:
        report.warn(f"a file beside the runs is not read: {path.name}")
    units = {_unit(path) for path in files if path not in set(beside)}
    if others:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(_KINDS_NAMED))
        more = ", …" if len(others) > _KINDS_NAMED else ""
        report.warn(f"files of other kinds are not read: {listed}{more}")
    if not files and not problems:
        suffixes = f"{', '.join(_SUFFIXES)} (also with {', '.join(COMPRESSED)})"
        raise DataError(f"the folder {str(folder)!r} holds no file that ends in {suffixes}")
    chosen = sorted(str(path) for path in _once(_last_logs(units), report))
    return [*problems, *chosen]


def walk(folder: Path) -> Iterator[Path | Problem]:
    """Every file below `folder`, through links to folders too, each folder once; and folders that cannot be read."""
    seen: set[tuple[int, int]] = set()
    todo = [folder]
    linked: list[Path] = []  # after all that are really there, so that these keep their own names
    while todo or linked:
        place = todo.pop() if todo else linked.pop(0)
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen and os.name != "nt":
                continue
            seen.add((status.st_dev, status.st_ino))
            inside = [(path, path.is_dir()) for path in sorted(place.iterdir())]
        except OSError as error:
            reason = f"the folder cannot be read ({error.strerror})"
            yield Problem(Where(str(place)), "unreadable folder", reason)
            continue
        for path, is_folder in inside:
            if not is_folder:
                yield path
            elif path.is_symlink():
                linked.append(path)
            else:
                todo.append(path)


def _once(paths: Iterable[Path], report: ReadReport) -> Iterator[Path]:
    """Without the links to a file that is among `paths` anyway."""
    plain = [(path.is_symlink(), path) for path in paths]
    seen: set[Path] = set()
    for _, path in sorted(plain):
        target = path.resolve()
        if target in seen:
            report.warn(f"a link to a file that is read anyway is passed over: {path.name}")
        else:
            seen.add(target)
            yield path


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
    return uncompressed(path.name).lower().endswith(_SUFFIXES)


def _missing(path: Path, name: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file or folder {name!r}: the folder {str(folder)!r} does not exist"
    near = nearest(path.name, [p.name for p in folder.iterdir()])
    return f"there is no file or folder {name!r}.{near or ' Check the path, or give a glob in quotes.'}"
