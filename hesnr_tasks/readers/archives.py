"""inspect_ai's `.eval` archives: zip files whose members may be compressed with Zstandard (method 93).

The standard library reads those only from Python 3.14 on, so the member is cut out by hand and given to whichever
decoder is installed.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from hesnr_tasks.errors import DataError
from hesnr_tasks.readers.fields import Where
from hesnr_tasks.readers.report import Problem

__all__ = ["DAMAGE", "eval_samples", "is_eval"]

_ZSTD = 93
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
)


def is_eval(archive: zipfile.ZipFile) -> bool:
    """Whether the archive is an inspect_ai log."""
    return any(name == "header.json" or name.startswith("_journal/") for name in archive.namelist())


def eval_samples(path: str) -> Iterator[tuple[dict[str, Any], Where] | Problem]:
    """One record per sample, in the order of their names; of members of one name the last counts."""
    try:
        with zipfile.ZipFile(path) as archive:
            if not is_eval(archive):
                yield Problem(Where(path), "unknown format", "a zip archive that is no inspect_ai log; unpack it first")
                return
            header = _header(path, archive)
            last = {info.filename: info for info in archive.infolist() if _is_sample(info.filename)}
            if not last:
                yield Problem(Where(path), "no samples", "the inspect_ai log holds no samples")
            for number, name in enumerate(sorted(last), 1):
                yield _sample(path, archive, last[name], number, header)
    except DAMAGE as error:
        yield Problem(Where(path), "unreadable file", f"not a readable zip archive ({error}); copy it again")


def _is_sample(name: str) -> bool:
    return name.startswith("samples/") and name.endswith(".json")


def _header(path: str, archive: zipfile.ZipFile) -> Any:
    for name in ("header.json", "_journal/start.json"):
        try:
            return json.loads(_member(path, archive, archive.getinfo(name))).get("eval")
        except (*DAMAGE, KeyError, AttributeError, DataError):
            continue
    return None


def _sample(
    path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, number: int, header: Any
) -> tuple[dict[str, Any], Where] | Problem:
    where = Where(path, number)
    try:
        return {"inspect_sample": json.loads(_member(path, archive, info)), "inspect_eval": header}, where
    except (*DAMAGE, RecursionError, DataError) as error:
        return Problem(where, "unreadable sample", f"the member {info.filename!r} cannot be read ({error})")


def _member(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type != _ZSTD:
        return archive.read(info)
    with open(path, "rb") as file:  # noqa: PTH123 (a plain seek and read)
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
        file.seek(name_length + extra_length, 1)
        return _zstd(file.read(info.compress_size))


def _zstd(data: bytes) -> bytes:
    try:
        import pyarrow
    except ImportError:
        raise DataError("it is Zstandard; reading it needs pyarrow: pip install 'hesnr-tasks[report]'") from None
    return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read()
