"""From what the user named (file, glob, folder, hub id, list of those) to the files to read, in a fixed order."""

from __future__ import annotations

import glob  # not Path.glob: patterns may be absolute
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hesnr_tasks.errors import DataError, nearest

__all__ = ["find", "is_hub_id"]

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".traj", ".parquet", ".eval")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find(source: str | Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each path to read, in order, and whether the user named it (false: found in a folder).

    Hub ids come as they are. `DataError` for what is not there.
    """
    for name in [source] if isinstance(source, str) else source:
        if is_hub_id(name):
            yield name, True
        else:
            yield from _local(name)


def is_hub_id(name: str) -> bool:
    """Whether `name` is `owner/name` and nothing of that name lies here."""
    path = Path(name)
    if not _HUB_ID.fullmatch(name) or path.exists() or path.parent.is_dir():
        return False
    return not _readable(path)


def _local(name: str) -> Iterator[tuple[str, bool]]:
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(str(p) for p in path.rglob("*") if p.is_file() and _readable(p))
        if not inside:
            raise DataError(
                f"the folder {name!r} holds no file that ends in {', '.join(_SUFFIXES)} (or one of them and .gz)"
            )
        yield from ((p, False) for p in inside)
    elif path.exists():
        yield str(path), True
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise DataError(f"no file matches {name!r} (from {Path.cwd()})")
        for match in matches:
            yield from _local(match) if Path(match).is_dir() else [(match, True)]
    else:
        raise DataError(_missing(path, name))


def _readable(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(_SUFFIXES)


def _missing(path: Path, name: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file or folder {name!r}: the folder {str(folder)!r} does not exist"
    near = nearest(path.name, [p.name for p in folder.iterdir()])
    return f"there is no file or folder {name!r}.{near or ' Check the path, or give a glob in quotes.'}"
