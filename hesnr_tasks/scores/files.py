"""Files that are whole or not there, whatever happens: written beside their place, synced, then moved into it.

A process that dies leaves at most a temporary file, which the next writer removes. Several writers may share a folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from hesnr_tasks.errors import HesnrError

try:
    import fcntl
except ImportError:  # Windows: writers are then not kept apart, but each file is still whole
    fcntl = None  # type: ignore[assignment]

__all__ = ["StoreError", "create_whole", "explain", "locked", "tidy", "write_whole"]

_TEMPORARY = re.compile(r"\.(?P<host>[A-Za-z0-9-]*)\.(?P<pid>\d+)\.[0-9a-f]{16}\.tmp")
_STALE_SECONDS = 24 * 3600  # a temporary file is a leftover once it is a day old, whoever's it is
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreError(HesnrError):
    """A folder of score files cannot be read or written."""


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what is there, in one step; `StoreError` if that fails, `path` then untouched."""
    for last in (False, True):
        temporary = _temporary(path.parent)
        try:
            _write_synced(temporary, data)
            temporary.replace(path)
            break
        except FileNotFoundError as error:  # somebody removed the temporary file (or the folder)
            if last:
                raise explain(error, path) from error
        except OSError as error:
            raise explain(error, path) from error
        finally:
            _remove(temporary)
    _sync_folder(path.parent)


def create_whole(path: Path, data: bytes) -> bool:
    """Put `data` at `path` unless something is there already; whether it was put there."""
    temporary = _temporary(path.parent)
    try:
        _write_synced(temporary, data)
        try:
            os.link(temporary, path)  # unlike a move, this fails if another writer was first
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            temporary.replace(path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        _remove(temporary)
    _sync_folder(path.parent)
    return True


def tidy(folder: Path) -> None:
    """Remove temporary files whose writer is gone. Never raises."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match and _abandoned(path, match):
                _remove(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers of `folder` out; where the file system knows no locks, nothing is kept out."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explain(error, folder) from error
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # and so the lock is gone, also when the process is killed


def explain(error: OSError, path: Path) -> StoreError:
    """What went wrong with `path`, and what to do."""
    if error.errno in _FULL:
        return StoreError(
            f"no room to write {path} ({error.strerror}). What was scored before is safe in {path.parent}; free some "
            "space, or move the folder and name its new place, and start the same command again: it goes on there."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"cannot write {path} ({error.strerror}). Make the folder writable, or name another one with "
            '"scores": "FOLDER" in --metadata. What is in the folder stays as it is.'
        )
    return StoreError(f"cannot write {path} ({error.strerror or error}). What is in {path.parent} stays as it is.")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _temporary(folder: Path) -> Path:
    return folder / f".{_host()}.{os.getpid()}.{secrets.token_hex(8)}.tmp"


def _write_synced(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """So that the new name survives a power cut; some file systems cannot, and need not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _abandoned(path: Path, match: re.Match[str]) -> bool:
    if time.time() - path.stat().st_mtime > _STALE_SECONDS:
        return True
    if match["host"] != _host() or os.name == "nt":
        return False
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is somebody else's
        return False
    return False
