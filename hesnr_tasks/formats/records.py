"""From a file to decoded records: JSON Lines, JSON, parquet, archives; also compressed; streaming where it is rows.

Lines end at `\\n` and nowhere else, so U+2028 and its kin inside strings survive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from hesnr_tasks.bounded_io import (
    READ_ERRORS,
    DuplicateKeys,
    TooLongError,
    check_parquet,
    lines,
    open_bounded,
    open_regular,
    parse_json,
    read_bytes,
    read_rest,
    record_limit,
)
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import archives
from hesnr_tasks.formats.fields import Where
from hesnr_tasks.formats.report import Problem

__all__ = ["Record", "records"]

_LFS = b"version https://git-lfs"
_BOM = b"\xef\xbb\xbf"
_SNIFFED_LINES = 50


class Record(NamedTuple):
    """A decoded value, where it was, whether it is a line of a file of many, and keys its objects held twice."""

    value: Any
    where: Where
    is_line: bool
    duplicates: DuplicateKeys = DuplicateKeys()


def records(path: str) -> Iterator[Record | Problem]:
    """Every record of the file, or what is wrong with it; files that cannot be read at all give one problem."""
    where = Where(path)
    try:
        if Path(path).is_dir():
            yield _event_folder(Path(path))
            return
        with open_bounded(path) as file:
            start = file.read(4096)
            file.seek(0)
            yield from _by_start(start, file, where)
    except TooLongError as error:
        yield Problem(where, "too large", str(error))
    except DataError as error:
        yield Problem(where, "unreadable file", str(error))
    except READ_ERRORS as error:
        yield Problem(where, "unreadable file", f"the file cannot be read ({error}); copy or download it again")


def _event_folder(folder: Path) -> Record | Problem:
    """The events of a run, one file each, in the order of their names."""
    if folder.name != "events":
        return Problem(Where(str(folder)), "a folder", "a folder lies where a file is expected; name its files")
    events, duplicates, size = [], DuplicateKeys(), 0
    for path in sorted(folder.glob("event-*.json")):
        data = read_bytes(path)
        size += len(data)
        if size > record_limit():
            raise TooLongError(f"the events are larger than {record_limit() >> 20:,} MiB together")
        record = _decoded(data, Where(str(path)), is_line=False)
        if isinstance(record, Problem):
            return record
        events.append(record.value)
        duplicates.update(record.duplicates)
    return Record(events, Where(str(folder.parent)), False, duplicates)


def _by_start(start: bytes, file: IO[bytes], where: Where) -> Iterator[Record | Problem]:
    if not start.strip():
        yield Problem(where, "empty file", "the file is empty; convert or download it again")
    elif start.startswith(_LFS):
        yield Problem(where, "Git LFS pointer", "a Git LFS pointer lies here instead of the data; run `git lfs pull`")
    elif start.startswith(b"PK"):
        found = archives.eval_samples(where.path)
        yield from (item if isinstance(item, Problem) else Record(item[0], item[1], False, item[2]) for item in found)
    elif start.startswith(b"PAR1"):
        yield from _parquet(where)
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield Problem(where, "not UTF-8", "the file is UTF-16; save it as UTF-8")
    else:
        yield from _json_or_lines(file, where)


def _json_or_lines(file: IO[bytes], where: Where) -> Iterator[Record | Problem]:
    """JSON Lines when the first line is a whole value and others follow (or the name says so), or when some line is."""
    several, first_only = False, True
    for line in lines(file):
        if isinstance(line, TooLongError):
            several = several or where.is_lines
            break
        if not line.strip():
            continue
        if not first_only:
            several = True
            break
        first_only = False
        if not _decodes(line):
            break
        several = where.is_lines
        if several:
            break
    file.seek(0)
    if several:
        yield from _lines(file, where)
        return
    whole = _decoded(read_rest(file), where, is_line=False)
    file.seek(0)
    if isinstance(whole, Problem) and any(
        not isinstance(line, TooLongError) and _decodes(line)
        for _, line in zip(range(_SNIFFED_LINES), lines(file), strict=False)
    ):
        file.seek(0)
        yield from _lines(file, where)
    else:
        yield whole


def _decodes(line: bytes) -> bool:
    """Whether a line alone is an object or list with something in it."""
    if not line.removeprefix(_BOM).startswith((b"{", b"[")):
        return False
    try:
        value = parse_json(line, DuplicateKeys())
    except ValueError:
        return False
    return isinstance(value, (dict, list)) and bool(value)


def _decoded(data: bytes, where: Where, *, is_line: bool) -> Record | Problem:
    duplicates = DuplicateKeys()
    try:
        return Record(parse_json(data, duplicates), where, is_line, duplicates)
    except UnicodeDecodeError as error:
        what, advice = ("line", "") if is_line else ("text", "; save it as UTF-8")
        return Problem(where, "not UTF-8", f"the {what} is not UTF-8 (byte {error.start}){advice}")
    except ValueError as error:
        if is_line and isinstance(error, json.JSONDecodeError):
            return Problem(where, "invalid JSON", f"not valid JSON: {error.msg} at column {error.colno}")
        what = "" if is_line else "; the file may be cut off: copy it again"
        return Problem(where, "invalid JSON", f"not valid JSON ({error}){what}")


def _lines(file: IO[bytes], where: Where) -> Iterator[Record | Problem]:
    blank = 0
    for number, line in enumerate(lines(file), 1):
        if not isinstance(line, TooLongError) and not line.strip():
            blank += 1
            continue
        here = Where(where.path, number)
        if isinstance(line, TooLongError):
            yield Problem(here, "too large", str(line))
        else:
            record = _decoded(line, here, is_line=True)
            if isinstance(record, Record) and record.value is None:
                record = Problem(here, "invalid JSON", "not a JSON object (null)")
            yield record
    if blank:
        yield Problem(where, "blank line", str(blank))


def _parquet(where: Where) -> Iterator[Record | Problem]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        yield Problem(where, "no parquet reader", "reading parquet needs pyarrow: pip install 'hesnr-tasks[report]'")
        return
    number = 0
    try:
        with open_regular(where.path) as file:
            source = parquet.ParquetFile(file)
            check_parquet(source.metadata, os.fstat(file.fileno()).st_size)
            for batch in source.iter_batches(batch_size=16):
                for i in range(batch.num_rows):
                    number += 1
                    here = Where(where.path, number)
                    row = batch.slice(i, 1)
                    if row.get_total_buffer_size() > 16 * record_limit() or row.nbytes > record_limit():
                        yield Problem(here, "too large", f"the row is larger than {record_limit() >> 20:,} MiB")
                    else:
                        yield Record(row.to_pylist()[0], here, True)
    except DataError:
        raise
    except READ_ERRORS as error:
        yield Problem(where, "unreadable file", f"not a readable parquet file ({error})")
