"""Durable files: a file is complete or absent, whatever happens while it is written.

Two kinds of callers:

- commands that write where a user says (`open_output`, `write_output`): links are followed, an existing file keeps its
  mode, devices and pipes are written into, and errors are `SettingsError`;
- stores that several processes write into (`replace_file`, `create_file`, `locked`, `remove_abandoned`): errors are
  plain `OSError`, for the store to explain. A process that dies leaves at most a temporary file, which
  `remove_abandoned` deletes.

A `Journal` is a file that grows: results one by one, none of which a kill loses. A `ScratchFile` outlives nobody: it
holds what one process does not want to hold in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.files.bounded import TooLongError, lines, open_regular, parse_json

try:
    import fcntl
except ImportError:  # Windows: writers do not exclude each other, but each file is still complete
    fcntl = None  # type: ignore[assignment]

# --- outputs of commands ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_output(output: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `output` when the block ends well, and leaves no trace when it does not.

    Parent folders are created. An existing file keeps its mode; a new one gets what the umask allows.

    Raises:
        SettingsError: `output` cannot be written, or is a folder, a socket or a block device.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = Path(os.path.realpath(output))
            if path.is_symlink():
                raise ValueError("it is a link that leads to itself")
            mode = path.stat().st_mode if path.exists() else None
            is_stream = mode is not None and (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode))
            if mode is not None and not (is_stream or stat.S_ISREG(mode)):
                raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no plain file")
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_stream:
                file: IO[bytes] = stack.enter_context(path.open("wb"))
            else:
                temporary, file = stack.enter_context(_temporary_file(path.parent))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SettingsError(
                f"{str(output)!r} cannot be written ({reason}); choose another place with -o"
            ) from error
        yield file
        if not is_stream:
            _finish(file)
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            temporary.replace(path)


def write_output(output: str | Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8, lone surrogates replaced) to `output`, as `open_output` does.

    Raises:
        SettingsError: as `open_output`.
    """
    with open_output(output) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))


# --- folders with several writers -------------------------------------------------------------------------------------

_TEMPORARY = re.compile(r"\.(?P<host>[A-Za-z0-9-]*)\.(?P<pid>\d+)\.[0-9a-f]{16}\.tmp")
_ABANDONED_SECONDS = 24 * 3600  # after a day a temporary file is a leftover, whoever wrote it


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step, replacing what is there; when this returns, it is on disk.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    for again in (True, False):
        try:
            with _temporary_file(path.parent) as (temporary, file):
                file.write(data)
                _finish(file)
                temporary.replace(path)
            break
        except FileNotFoundError:  # another process removed the temporary file: once more
            if not again:
                raise
    _sync_folder(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write `data` to `path` in one step unless something is there already.

    Returns:
        Whether it was written; of several processes, one alone writes.

    Raises:
        OSError: it cannot be written.
    """
    with _temporary_file(path.parent) as (temporary, file):
        file.write(data)
        _finish(file)
        try:
            os.link(temporary, path)  # unlike a rename, this fails if another writer was first
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            temporary.replace(path)
    _sync_folder(path.parent)
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclude other writers of `folder`, by its file `.lock`, waiting for them; where files cannot be locked, nobody.

    Raises:
        OSError: the lock file cannot be opened.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # releases the lock; so does the death of the process


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files in `folder` whose writer is gone. Never raises."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if not match:
                continue
            is_abandoned = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
            if match["host"] == _host() and os.name != "nt":
                try:
                    os.kill(int(match["pid"]), 0)
                except ProcessLookupError:
                    is_abandoned = True
                except OSError:  # alive, and another user's
                    pass
            if is_abandoned:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


@contextlib.contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file in `folder`, open; deleted at the end of the block unless it was renamed."""
    path = folder / f".{_host()}.{os.getpid()}.{secrets.token_hex(8)}.tmp"
    try:
        with path.open("xb") as file:
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _finish(file: IO[bytes]) -> None:
    """Put what was written on the disk: a file must be whole, and on Windows closed, before it is renamed."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut; some file systems cannot, and need not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- files that grow --------------------------------------------------------------------------------------------------


class Journal:
    """JSON values under keys in a JSON Lines file: each is on the disk when `put` returns, and there after a kill.

    A line that a kill cut off is removed, and one whose checksum does not match, which counts in `damaged`. Safe
    between threads; a second process is refused.

    Raises:
        HesnrError: another process writes the file, or it cannot be written.
        DataError: the file is no journal.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock, Timeout  # comes with datasets; the rest of this module does without

        self.path, self._guard, self._lock = path, threading.Lock(), FileLock(f"{path}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise HesnrError(f"{path} is written by another process; wait for it, or name another place") from None
        except OSError as error:
            raise HesnrError(f"cannot write {path} ({error.strerror}); name another place") from None
        try:
            self.values, self.damaged, complete = self.read(path)
            if self.damaged:
                replace_file(path, b"".join(map(_line, self.values, self.values.values())))
            self._file = path.open("ab")
            self._file.truncate(path.stat().st_size if self.damaged else complete)
        except BaseException:
            self._lock.release()
            raise

    @staticmethod
    def read(path: Path) -> tuple[dict[str, Any], int, int]:
        """The values in a journal; none in a file that is not there. Never changes the file.

        Returns:
            Values by key, the last of several; the number of damaged lines; bytes up to the end of the last whole line.

        Raises:
            DataError: there are damaged lines and no others.
        """
        values, damaged, complete = dict[str, Any](), 0, 0
        if not path.exists():
            return values, damaged, complete
        with open_regular(path) as file:
            for line in lines(file):
                if isinstance(line, bytes) and not line.endswith(b"\n"):
                    break
                complete = file.tell()
                try:
                    if isinstance(line, TooLongError):
                        raise line
                    row = parse_json(line)
                    if row["checksum"] != _checksum(row["key"], row["value"]):
                        raise ValueError("its checksum is another")
                    values[row["key"]] = row["value"]
                except (HesnrError, ValueError, KeyError, TypeError):
                    damaged += 1
        if damaged and not values:
            raise DataError(f"{path}: no line of it is one of a journal of results; move the file away")
        return values, damaged, complete

    def put(self, values: Mapping[str, Any]) -> None:
        """Append values; when this returns, they are on disk.

        Args:
            values: what JSON can hold, by key.

        Raises:
            HesnrError: the disk takes none.
        """
        data = b"".join(map(_line, values, values.values()))
        with self._guard:
            try:
                self._file.write(data)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise HesnrError(
                    f"cannot write {self.path} ({error.strerror}). What was written before is safe; make room and "
                    "start the same command again: it goes on there."
                ) from None
            self.values |= values

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The value under `key`; computed and kept where there is none.

        Args:
            key: of the value.
            make: computes what JSON can hold; what it raises is not kept.
        """
        if key not in self.values:
            self.put({key: make()})
        return self.values[key]

    def close(self) -> None:
        """Let other processes write the file."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(key: str, value: Any) -> bytes:
    return json.dumps({"key": key, "value": value, "checksum": _checksum(key, value)}).encode() + b"\n"


def _checksum(key: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([key, value], sort_keys=True).encode()).hexdigest()[:16]


# --- scratch ----------------------------------------------------------------------------------------------------------

_IN_MEMORY = 1 << 24  # bytes of a scratch file before it goes to disk


def encode_arrays(value: Any, *arrays: npt.NDArray[Any]) -> bytes:
    """What JSON can hold, and arrays of numbers, as bytes: size of the header, header, arrays."""
    header = json.dumps([value, [[array.dtype.str, array.shape] for array in arrays]]).encode()
    data = (np.ascontiguousarray(array).tobytes() for array in arrays)
    return b"".join([len(header).to_bytes(8, "little"), header, *data])


def decode_arrays(data: bytes, parse: Callable[[bytes], Any] = json.loads) -> tuple[Any, list[npt.NDArray[Any]]]:
    """What `encode_arrays` was given; the arrays are read-only.

    Raises:
        ValueError: other bytes; of some, `KeyError` and `TypeError`.
    """
    offset = 8 + int.from_bytes(data[:8], "little")
    value, described = parse(data[8:offset])
    arrays = []
    for name, shape in described:
        dtype = np.dtype(name)
        if dtype.kind not in "biuf" or min(shape, default=0) < 0:
            raise ValueError("no array of numbers")
        arrays.append(np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape))
        offset += arrays[-1].nbytes
    return value, arrays


class ScratchFile:
    """Records that one process writes once and reads again later, each alone: compressed, in a file without a name.

    The file is in memory up to 16 MB, then in the folder for temporary files (`TMPDIR`); nothing is left of it when the
    process ends, however it ends. Safe between threads.
    """

    def __init__(self) -> None:
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._guard, self._size = threading.Lock(), 0
        weakref.finalize(self, self._file.close)

    def put(self, value: Any, *arrays: npt.NDArray[Any]) -> int:
        """Append a record.

        Args:
            value: what JSON can hold.
            arrays: of numbers, with one or two axes.

        Returns:
            Its place.

        Raises:
            HesnrError: the disk takes none.
        """
        data = zlib.compress(encode_arrays(value, *arrays), 1)
        with self._guard:
            place = self._size
            try:
                self._file.seek(place)
                self._file.write(len(data).to_bytes(8, "little") + data)
                self._file.flush()
            except OSError as error:
                raise HesnrError(
                    f"cannot write into the folder for temporary files, {tempfile.gettempdir()} ({error.strerror}), "
                    f"after {place >> 20:,} MB.\n"
                    "Make room there, or name another folder in the environment variable TMPDIR."
                ) from error
            self._size += 8 + len(data)
        return place

    def get(self, place: int) -> tuple[Any, list[npt.NDArray[Any]]]:
        """The value and the (read-only) arrays of the record at a place."""
        with self._guard:
            self._file.seek(place)
            data = self._file.read(int.from_bytes(self._file.read(8), "little"))
        return decode_arrays(zlib.decompress(data))
