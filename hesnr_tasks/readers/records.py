"""From a file to decoded records: JSON Lines, JSON, `.gz`, parquet; streaming where the file is a list of rows.

Lines end at `\\n` and nowhere else, so U+2028 and its kin inside strings survive.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import jsonlines

from hesnr_tasks.errors import DataError
from hesnr_tasks.readers import archives
from hesnr_tasks.readers.fields import Where
from hesnr_tasks.readers.report import Problem

__all__ = ["Record", "records"]

_LFS = b"version https://git-lfs"
_SNIFFED_LINES = 50
_DAMAGE = (OSError, EOFError, ValueError, MemoryError)


class Record(NamedTuple):
    """A decoded value, where it was, and whether it is a line of a file of many."""

    value: Any
    where: Where
    is_line: bool


def records(path: str) -> Iterator[Record | Problem]:
    """Every record of the file, or what is wrong with it; files that cannot be read at all give one problem."""
    where = Where(path)
    if Path(path).is_dir():
        yield _event_folder(Path(path))
        return
    try:
        with _opened(path) as file:
            start = file.read(4096)
            file.seek(0)
            yield from _by_start(start, file, where)
    except (OSError, EOFError, zlib.error) as error:
        yield Problem(where, "unreadable file", f"the file cannot be read ({error}); copy or download it again")
    except DataError as error:
        yield Problem(where, "unreadable file", str(error))


def _event_folder(folder: Path) -> Record | Problem:
    """The events of a run, one file each, in the order of their names."""
    where = Where(str(folder.parent))
    events = []
    for path in sorted(folder.glob("event-*.json")):
        try:
            events.append(json.loads(path.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            return Problem(Where(str(path)), "invalid JSON", f"not valid JSON ({error}); the file may be cut off")
    return Record(events, where, False)


def _opened(path: str) -> IO[bytes]:
    with Path(path).open("rb") as file:
        magic = file.read(2)
    return gzip.open(path, "rb") if magic == b"\x1f\x8b" else Path(path).open("rb")  # type: ignore[return-value]


def _by_start(start: bytes, file: IO[bytes], where: Where) -> Iterator[Record | Problem]:
    if not start.strip():
        yield Problem(where, "empty file", "the file is empty; convert or download it again")
    elif start.startswith(_LFS):
        yield Problem(where, "Git LFS pointer", "a Git LFS pointer lies here instead of the data; run `git lfs pull`")
    elif start.startswith(b"PK"):
        found = archives.eval_samples(where.path)
        yield from (item if isinstance(item, Problem) else Record(item[0], item[1], False) for item in found)
    elif start.startswith(b"PAR1"):
        yield from _parquet(where)
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield Problem(where, "not UTF-8", "the file is UTF-16; save it as UTF-8")
    else:
        yield from _json_or_lines(file, where)


def _json_or_lines(file: IO[bytes], where: Where) -> Iterator[Record | Problem]:
    """JSON Lines when the first line is a whole value and others follow (or the name says so), or when some line is."""
    first = next((line for line in file if line.strip()), b"")
    alone = _decodes(first)
    more = alone and (where.is_lines or any(line.strip() for line in file))
    file.seek(0)
    if more:
        yield from _lines(file, where)
        return
    whole = _whole(file.read(), where)
    file.seek(0)
    if isinstance(whole, Problem) and any(_decodes(line) for _, line in zip(range(_SNIFFED_LINES), file, strict=False)):
        file.seek(0)
        yield from _lines(file, where)
    else:
        yield whole


def _decodes(line: bytes) -> bool:
    """Whether a line alone is an object or list with something in it."""
    if not line.removeprefix(b"\xef\xbb\xbf").startswith((b"{", b"[")):
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, (dict, list)) and bool(value)


def _whole(data: bytes, where: Where) -> Record | Problem:
    try:
        return Record(json.loads(data.decode("utf-8-sig")), where, False)
    except UnicodeDecodeError as error:
        return Problem(where, "not UTF-8", f"the text is not UTF-8 (byte {error.start}); save it as UTF-8")
    except RecursionError:
        return Problem(where, "invalid JSON", "the JSON is nested too deep to be a trajectory")
    except ValueError as error:
        return Problem(where, "invalid JSON", f"not valid JSON ({error}); the file may be cut off: copy it again")


def _lines(file: IO[bytes], where: Where) -> Iterator[Record | Problem]:
    reader = jsonlines.Reader(file, loads=json.loads)
    number = 0
    while True:
        number += 1
        here = Where(where.path, number)
        try:
            yield Record(reader.read(), here, True)
        except EOFError:
            return
        except jsonlines.InvalidLineError as error:
            here = Where(where.path, error.lineno)
            if error.line.strip():
                yield _bad_line(error, here)
            else:
                yield Problem(here, "blank line", "blank line")
        except RecursionError:
            yield Problem(here, "invalid JSON", "the JSON is nested too deep to be a trajectory")


def _bad_line(error: jsonlines.InvalidLineError, where: Where) -> Problem:
    cause = error.__cause__
    if isinstance(cause, json.JSONDecodeError):
        return Problem(where, "invalid JSON", f"not valid JSON: {cause.msg} at column {cause.colno}")
    if isinstance(cause, UnicodeDecodeError):
        return Problem(where, "not UTF-8", f"the line is not UTF-8 (byte {cause.start})")
    return Problem(where, "invalid JSON", f"not a JSON object ({cause or 'null'})")


def _parquet(where: Where) -> Iterator[Record | Problem]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        yield Problem(where, "no parquet reader", "reading parquet needs pyarrow: pip install 'hesnr-tasks[report]'")
        return
    number = 0
    try:
        for batch in parquet.ParquetFile(where.path).iter_batches(batch_size=16):
            for value in batch.to_pylist():
                number += 1
                yield Record(value, Where(where.path, number), True)
    except _DAMAGE as error:
        yield Problem(where, "unreadable file", f"not a readable parquet file ({error})")
