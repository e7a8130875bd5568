"""File trees: an exact copy, a hash, removal."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import SearchError

__all__ = ["ForkMismatch", "copy_tree", "hash_tree", "remove_tree"]


class ForkMismatch(SearchError):
    """A restored working state is not the one it was made from; the branch that needs it is given up."""


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder with its modes, times, links, sparse files and attributes; shared blocks where the disk can.

    The copies belong to the current user. Raises `SearchError`, leaving nothing behind, when the disk is full or a file
    cannot be read.
    """
    words = ["cp", "-a", "--no-preserve=ownership", "--reflink=auto", "--", str(source), str(target)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", env=os.environ | {"LC_ALL": "C"})
    except BaseException:
        remove_tree(target)
        raise
    if done.returncode:
        remove_tree(target)
        first = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"status {done.returncode}"
        hint = "Free some space" if "No space left" in first else "Make it readable"
        raise SearchError(f"cannot copy {source}: {first}. {hint}, then run the same command again: it goes on.")


def hash_tree(folder: Path, skip: Callable[[str], bool] | None = None) -> str:
    """A hash of every path below `folder` with its kind, mode, and content or link target (but those to `skip`)."""
    digest = hashlib.blake2b(digest_size=20)
    try:
        for name, entry in _entries(folder, ""):
            if skip is None or not skip(name):
                digest.update(_of(name, entry))
    except OSError as error:
        raise SearchError(f"cannot read the working state: {error}. Make it readable.") from None
    return digest.hexdigest()


def _entries(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    for entry in entries:
        name = prefix + entry.name
        yield name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), name + "/")


def _of(name: str, entry: os.DirEntry[str]) -> bytes:
    mode = entry.stat(follow_symlinks=False).st_mode
    content = b""
    if stat.S_ISLNK(mode):
        content = os.fsencode(os.readlink(entry.path))  # noqa: PTH115
    elif stat.S_ISREG(mode):
        content = _content(entry.path)
    return b"%s\0%o\0%s\0" % (os.fsencode(name), mode, content)


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - called for every file; pathlib is slow
        return hashlib.file_digest(file, "blake2b").digest() if hasattr(hashlib, "file_digest") else _whole(file)


def _whole(file: Any) -> bytes:
    digest = hashlib.blake2b()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.digest()


def remove_tree(folder: Path) -> None:
    """Remove a folder, read-only sub-folders included."""

    def unlock(remove: Callable[[str], object], path: str, _: object) -> None:
        for locked in (os.path.dirname(path), path):  # noqa: PTH120
            if not os.path.islink(locked):  # noqa: PTH114
                os.chmod(locked, 0o700)  # noqa: PTH101
        if remove is os.unlink or not os.path.isdir(path):  # noqa: PTH112
            os.unlink(path)  # noqa: PTH108
        else:
            shutil.rmtree(path)

    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder, onerror=unlock)
