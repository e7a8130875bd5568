"""inspect_ai's `.eval` archives: zip files whose members may be compressed with Zstandard (method 93).

The standard library reads those only from Python 3.14 on, so the member is cut out by hand and given to whichever
decoder is installed.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

from hesnr_tasks.bounded_io import (
    READ_ERRORS,
    DuplicateKeys,
    Growth,
    TooLongError,
    open_regular,
    parse_json,
    read_rest,
    zstandard_reader,
)
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.fields import Where
from hesnr_tasks.formats.report import Problem

__all__ = ["DAMAGE", "eval_samples", "is_eval"]

_ZSTD = 93
DAMAGE = (*READ_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error)
Sample = tuple[dict[str, Any], Where, DuplicateKeys]


def is_eval(archive: zipfile.ZipFile) -> bool:
    """Whether the archive is an inspect_ai log."""
    return any(name == "header.json" or name.startswith("_journal/") for name in archive.namelist())


def eval_samples(path: str) -> Iterator[Sample | Problem]:
    """One record per sample, in the order of their names; of members of one name the last counts."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            if not is_eval(archive):
                yield Problem(Where(path), "unknown format", "a zip archive that is no inspect_ai log; unpack it first")
                return
            growth = Growth(file.seek(0, io.SEEK_END))
            header = _header(archive, growth)
            last = {info.filename: info for info in archive.infolist() if _is_sample(info.filename)}
            if not last:
                yield Problem(Where(path), "no samples", "the inspect_ai log holds no samples")
            for number, name in enumerate(sorted(last), 1):
                yield _sample(Where(path, number), archive, last[name], header, growth)
    except DAMAGE as error:
        yield Problem(Where(path), "unreadable file", f"not a readable zip archive ({error}); copy it again")


def _is_sample(name: str) -> bool:
    return name.startswith("samples/") and name.endswith(".json")


def _header(archive: zipfile.ZipFile, growth: Growth) -> Any:
    for name in ("header.json", "_journal/start.json"):
        try:
            return parse_json(_member(archive, archive.getinfo(name), growth), DuplicateKeys()).get("eval")
        except (*DAMAGE, KeyError, AttributeError, DataError):
            continue
    return None


def _sample(
    where: Where, archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: Any, growth: Growth
) -> Sample | Problem:
    duplicates = DuplicateKeys()
    try:
        sample = parse_json(_member(archive, info, growth), duplicates)
    except TooLongError as error:
        return Problem(where, "too large", f"the member {info.filename!r}: {error}")
    except (*DAMAGE, DataError) as error:
        return Problem(where, "unreadable sample", f"the member {info.filename!r} cannot be read ({error})")
    return {"inspect_sample": sample, "inspect_eval": header}, where, duplicates


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, growth: Growth) -> bytes:
    if info.compress_type != _ZSTD:
        with archive.open(info) as member:
            data = read_rest(member)
    else:
        file = archive.fp
        if file is None:
            raise ValueError("the archive is closed")
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
        file.seek(name_length + extra_length, 1)
        data = read_rest(zstandard_reader(io.BytesIO(file.read(info.compress_size))))
    growth.add(len(data))
    return data
