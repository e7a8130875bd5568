"""Bounded reading of untrusted files: complete, within stated limits, or refused with the reason.

What is not a regular file (a pipe, a socket, a device) is refused before a byte is read. One record (a line of a file
of lines, otherwise the whole document) is at most `record_limit()` bytes, decompressed; `HESNR_MAX_RECORD_MB` raises
that limit. A compressed file is refused once it has grown `MAX_RATIO`-fold and beyond the size of a record: text does
not. JSON and YAML that nest too deeply, and YAML whose aliases would unfold into more than `MAX_YAML_NODES`, are
refused.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from hesnr_tasks.errors import DataError, HesnrError, SettingsError

LIMIT_VARIABLE = "HESNR_MAX_RECORD_MB"
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAX_RATIO = 200
MAX_DEPTH = 200  # of nested JSON and YAML; real trajectories nest about 15 deep
MAX_YAML_NODES = 100_000
_DEFAULT_MB = 256
_CHUNK = 1 << 20
_SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)
# what damaged or hostile compressed data makes the decoders raise
READ_ERRORS = (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError)


class TooLongError(DataError):
    """A record is larger than the limit."""


class DuplicateKeys(Counter[str]):
    """Repeated keys of JSON objects, and the characters of their earlier values: the last value counts."""


def record_limit() -> int:
    """The largest record in bytes: `HESNR_MAX_RECORD_MB` (in MiB), 256 MiB by default.

    Raises:
        SettingsError: the variable is not a positive whole number.
    """
    given = os.environ.get(LIMIT_VARIABLE, "").strip() or str(_DEFAULT_MB)
    if not (given.isascii() and given.isdecimal() and 0 < len(given) < 8 and int(given)):
        raise SettingsError(f"{LIMIT_VARIABLE} is {given!r}; it must be a whole number of MiB, such as 1024")
    return int(given) << 20


def _too_long(what: str, limit: int) -> TooLongError:
    return TooLongError(
        f"{what} is larger than {limit >> 20:,} MiB; if that is meant, set {LIMIT_VARIABLE} to a larger number of MiB"
    )


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a plain file for reading; `DataError` for anything else, without waiting for a pipe's other end.

    Raises:
        OSError: the file is not there, or may not be read.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise DataError("a file name cannot hold a NUL character")
    mode = os.stat(path).st_mode  # noqa: PTH116
    for is_kind, name in _SPECIAL:  # before opening: opening a device can already do something
        if is_kind(mode):
            raise DataError(f"{path} is {name}, not a plain file; write what it gives into a file and name that")
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # exchanged in between
        os.close(handle)
        raise DataError(f"{path} is not a plain file")
    return os.fdopen(handle, "rb")


class Growth:
    """Counts the decompressed bytes of `size` compressed ones, and refuses a ratio that text does not have."""

    def __init__(self, size: int) -> None:
        self._most = max(record_limit(), MAX_RATIO * size)
        self._total = 0

    def add(self, count: int) -> None:
        """Count `count` more bytes; `DataError` once there are too many."""
        self._total += count
        if self._total > self._most:
            raise DataError(
                f"the compressed file grows more than {MAX_RATIO}-fold (stopped at {self._total >> 20:,} MiB); "
                f"if that is meant, decompress it first, or set {LIMIT_VARIABLE} to a larger number of MiB"
            )


class _Decompressed(io.RawIOBase):
    """A decompressed file whose growth is watched."""

    def __init__(self, file: IO[bytes], decoder: Callable[[IO[bytes]], Any]) -> None:
        self._file, self._source = file, decoder(file)
        self._growth = Growth(os.fstat(file.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        self._growth.add(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bounded(path: str | Path) -> IO[bytes]:
    """Open a plain file, decompressed where its first bytes say gzip, bzip2, xz or Zstandard.

    Raises:
        DataError: not a plain file. Reading raises it where what is decompressed grows beyond every proportion.
        OSError: the file is not there, or may not be read.
    """
    file = open_regular(path)
    try:
        magic = file.read(6)
        file.seek(0)
        decoder = next((decoder for start, decoder in _DECODERS.items() if magic.startswith(start)), None)
        return file if decoder is None else io.BufferedReader(_Decompressed(file, decoder), _CHUNK)
    except BaseException:
        file.close()
        raise


def zstandard_reader(file: IO[bytes]) -> Any:
    """The decompressed bytes of a Zstandard stream, as a file to read from.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise DataError("it is Zstandard; reading it needs pyarrow: pip install 'hesnr-tasks[report]'") from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


_DECODERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": zstandard_reader,
}


def lines(file: IO[bytes]) -> Iterator[bytes | TooLongError]:
    """The lines of `file`, which end at a line feed and nowhere else.

    Yields:
        Each line with its end, in bytes; in the place of one beyond `record_limit`, the error.
    """
    limit = record_limit()
    while line := file.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_CHUNK)
        yield _too_long("the line", limit)


def read_bytes(path: str | Path) -> bytes:
    """A whole file, decompressed.

    Raises:
        DataError: it is too large, special, damaged, missing or unreadable.
    """
    try:
        with open_bounded(path) as file:
            return read_rest(file)
    except HesnrError:
        raise
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read ({_reason(error)})") from error


def read_rest(file: IO[bytes]) -> bytes:
    """What is left of `file`.

    Raises:
        TooLongError: that is more than a record may be.
    """
    limit = record_limit()
    data = file.read(limit + 1)
    if len(data) > limit:
        raise _too_long("the file", limit)
    return data


def read_text(path: str | Path) -> str:
    """A whole UTF-8 file (with a byte order mark or without), decompressed.

    Raises:
        DataError: as `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def read_json(path: str | Path) -> Any:
    """A whole JSON file, decompressed and decoded.

    Raises:
        DataError: as `read_text`; or it is not JSON, nests too deeply or repeats a key.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); the file may be cut off: copy it again") from error


def parse_json(text: str | bytes, duplicates: DuplicateKeys | None = None) -> Any:
    """Decode JSON.

    Args:
        text: the document.
        duplicates: collects the keys that an object holds more than once; without it, they are an error.

    Raises:
        ValueError: it is not JSON, nests too deeply, or repeats a key.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    repeated = DuplicateKeys() if duplicates is None else duplicates

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            for key, value in reversed(pairs):
                if key in seen:
                    repeated[key] += text_size(value)
                seen.add(key)
        return result

    try:
        value = json.loads(text, object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError("it is nested too deeply")
    if repeated and duplicates is None:
        raise ValueError(f"the key {next(iter(repeated))!r} is there more than once in one object")
    return value


def text_size(value: Any) -> int:
    """The characters of all strings inside a decoded value, keys of objects aside."""
    size, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, (dict, list, tuple)):
            todo.extend(item.values() if isinstance(item, dict) else item)
    return size


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    while level and depth:
        inner = (item for holder in level for item in (holder.values() if isinstance(holder, dict) else holder))
        level = [item for item in inner if isinstance(item, (dict, list))]
        depth -= 1
    return bool(level)


def read_yaml(path: str | Path) -> Any:
    """A whole YAML file of plain values.

    Names and revisions look like numbers of YAML 1.1, where 0700 is 448, 1_000 is 1000, `no` is false and 2024-01-01 a
    date. Here only what everybody reads alike is a number or a truth value; all else is text as written.

    Raises:
        DataError: as `read_text`; or it is not YAML, or unfolds into too many values.
        HesnrError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise HesnrError(f"{path}: YAML needs PyYAML: pip install 'hesnr-tasks[report]'") from None
    text = read_text(path)
    if len(text) > 64 * MAX_YAML_NODES:
        raise DataError(f"{path}: a YAML file of {len(text):,} characters is larger than any that is meant here")
    loader = yaml.SafeLoader(text)
    loader.yaml_implicit_resolvers = _plain_scalars()
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _unfolded(node, {}) > MAX_YAML_NODES:
            raise DataError(f"{path}: its aliases unfold into more than {MAX_YAML_NODES:,} values")
        return loader.construct_document(node)
    except RecursionError:
        raise DataError(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is not valid YAML ({_reason(error)})") from error
    finally:
        loader.dispose()


_PLAIN_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    "float": (r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
              list("-+.0123456789")),
    "merge": (r"<<", ["<"]),
}  # fmt: skip


def _plain_scalars() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """What an unquoted word of a YAML file can be besides text, by its first character, as PyYAML wants it."""
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, (pattern, firsts) in _PLAIN_SCALARS.items():
        for first in firsts:
            resolvers.setdefault(first, []).append((f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$")))
    return resolvers


def _unfolded(node: Any, sizes: dict[int, int]) -> int:
    """The number of values of a YAML node with every alias replaced; a node inside itself is an error."""
    if not isinstance(node.value, list):
        return 1
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError("an alias stands for what it is part of")
        return sizes[id(node)]
    sizes[id(node)] = 0
    keys = Counter(item[0].value for item in node.value if isinstance(item, tuple) and isinstance(item[0].value, str))
    if keys and keys.most_common(1)[0][1] > 1:
        raise ValueError(f"the key {keys.most_common(1)[0][0]!r} is there more than once")
    parts = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
    sizes[id(node)] = 1 + sum(_unfolded(part, sizes) for part in parts)
    return sizes[id(node)]


def check_parquet(metadata: Any, size: int) -> None:
    """Refuse row groups that are too large: text does not compress that well.

    Single columns are not checked: where their metadata are damaged, Arrow ends the process.

    Args:
        metadata: of the file, as pyarrow reads them.
        size: of the file, bytes.

    Raises:
        DataError: a row group is larger than a record may be, and than `MAX_RATIO` times the file.
    """
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if max(group.total_byte_size, group.num_rows) > max(record_limit(), MAX_RATIO * size):
            raise DataError(f"the Parquet file grows more than {MAX_RATIO}-fold when it is decompressed")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
