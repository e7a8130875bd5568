"""Files for users: whole or not there, in the place that was named, with the rights they had.

Written beside their place and moved into it. Through a link the file it leads to is replaced, not the link. Where a
device or a pipe was named, it is written into: `-o /dev/null` discards, and nothing takes the place of the device.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hesnr_tasks.errors import SettingsError

__all__ = ["open_output", "write_output"]


@contextlib.contextmanager
def open_output(output: str | Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `output` when the block ends well, and leaves no trace when not.

    Folders on the way are made. An existing file keeps its mode; a new one gets what the umask allows.

    Raises:
        SettingsError: `output` cannot be written, or is a folder, a socket or a block device.
    """
    try:
        path = Path(os.path.realpath(output))
        if path.is_symlink():
            raise ValueError("it is a link that leads to itself")
        mode = path.stat().st_mode if path.exists() else None
    except (OSError, ValueError) as error:
        raise _cannot(output, getattr(error, "strerror", None) or str(error)) from error
    if mode is not None and (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        with _explained(output):
            file = path.open("wb")
        with file:
            yield file
        return
    if mode is not None and not stat.S_ISREG(mode):
        raise _cannot(output, "it is a folder" if stat.S_ISDIR(mode) else "it is no plain file")
    with _explained(output):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask() if mode is None else stat.S_IMODE(mode))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_output(output: str | Path, content: str | bytes) -> None:
    """Put `content` (text as UTF-8, lone surrogates replaced) at `output`, as `open_output` does."""
    with open_output(output) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _explained(output: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot(output, error.strerror or str(error)) from error


def _cannot(output: str | Path, reason: str) -> SettingsError:
    return SettingsError(f"{str(output)!r} cannot be written ({reason}); choose another place with -o")
