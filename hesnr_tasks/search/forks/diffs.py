"""Diffs between a working state and the state a search began with, without touching the repository's own .git."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hesnr_tasks.errors import SearchError

__all__ = ["Baseline"]

_SETTINGS = (
    "core.autocrlf=false", "core.safecrlf=false", "core.fsmonitor=false", "core.hooksPath=/dev/null", "gc.auto=0",
    "core.fileMode=true", "core.symlinks=true", "core.quotePath=true", "core.excludesFile=/dev/null",
    "core.attributesFile=/dev/null",
)  # fmt: skip
_EXACT = (
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)


class Baseline:
    """The files of `folder` as they are now, in a store of its own: uncommitted changes are part of them.

    Files that the repository ignores are left out, unless it tracks them; so are repositories within it (submodules):
    git would run in them by the settings that a command gave them. No setting, hook or filter of the user or the
    repository applies.
    """

    def __init__(self, store: Path, folder: Path) -> None:
        if shutil.which("git") is None:
            raise SearchError("git is needed for diffs and was not found. Install git.")
        self._store = store
        if not (store / "base").exists():
            _git(["init", "-q", "--bare", str(store)])
            tracked = _tracked(folder)
            self._add(folder, store / "index", tracked)
            (store / "base").write_text(self._work(folder, store / "index", ["write-tree"]).decode().strip())
        self._base = (store / "base").read_text()

    def diff(self, folder: Path) -> str:
        """The diff from the baseline to `folder`; bytes that are not UTF-8 are kept as surrogates."""
        with tempfile.TemporaryDirectory(dir=self._store) as scratch:
            index = Path(scratch) / "index"
            shutil.copyfile(self._store / "index", index)
            self._add(folder, index, b"")
            found = self._work(folder, index, ["diff", "--cached", *_EXACT, self._base])
        return found.decode("utf-8", errors="surrogateescape")

    def apply(self, folder: Path, patch: str) -> None:
        """Apply a diff to `folder`; it applies whole or not at all."""
        if not patch.strip():
            return
        words = ["git", *_settings(), "apply", "--binary", "--whitespace=nowarn", "-"]
        environment = _environment({"GIT_CEILING_DIRECTORIES": str(folder.parent), "GIT_DIR": str(self._store)})
        data = patch.encode("utf-8", errors="surrogateescape")
        done = subprocess.run(words, cwd=folder, env=environment, input=data, capture_output=True)
        if done.returncode:
            raise SearchError(f"the patch does not apply: {_first(done.stderr)}")

    def _add(self, folder: Path, index: Path, tracked: bytes) -> None:
        known = [*tracked.split(b"\0"), *self._work(folder, index, ["ls-files", "-z"]).split(b"\0")]
        inner = [b":(exclude,literal)" + name for name in _repositories(folder, known)]
        gone = [name + b"\0" for name in known if name and _special(os.path.join(os.fsencode(folder), name))]  # noqa: PTH118
        if gone:
            self._work(folder, index, ["update-index", "-z", "--force-remove", "--stdin"], b"".join(gone))
        listed = ["--pathspec-from-file=-", "--pathspec-file-nul"]
        self._work(folder, index, ["add", "-A", *listed], b"\0".join([b".", *inner]))
        if tracked:
            self._work(folder, index, ["--literal-pathspecs", "add", "-f", "--ignore-errors", *listed], tracked)

    def _work(self, folder: Path, index: Path, words: Sequence[str], data: bytes = b"") -> bytes:
        where = {"GIT_DIR": str(self._store), "GIT_WORK_TREE": str(folder), "GIT_INDEX_FILE": str(index)}
        return _git(words, where, folder, data)


def _special(path: bytes) -> bool:
    """Whether a device, pipe or socket, which git cannot hold, stands there now."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except OSError:
        return False
    return kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR)


def _repositories(folder: Path, known: Sequence[bytes]) -> Iterator[bytes]:
    """The repositories below `folder` that hold none of the `known` files."""
    top = os.fsencode(folder)
    for place, folders, files in os.walk(top):
        if place == top:
            folders[:] = [name for name in folders if name != b".git"]
        elif b".git" in folders or b".git" in files:
            name = os.path.relpath(place, top)
            if not any(one.startswith(name + b"/") for one in known):
                folders.clear()
                yield name


def _tracked(folder: Path) -> bytes:
    """The existing files that the repository itself tracks, each ended by NUL; none where there is no repository."""
    if not (folder / ".git").exists():
        return b""
    names = _git(["ls-files", "-z"], {"GIT_CEILING_DIRECTORIES": str(folder.parent)}, folder).split(b"\0")
    existing = [name for name in names if name and os.path.lexists(os.path.join(os.fsencode(folder), name))]  # noqa: PTH118
    inside = [name for name in existing if not os.path.isdir(os.path.join(os.fsencode(folder), name))]  # noqa: PTH112, PTH118
    return b"".join(name + b"\0" for name in inside)


def _git(
    words: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None, data: bytes = b""
) -> bytes:
    done = subprocess.run(
        ["git", *_settings(), *words], cwd=cwd, env=_environment(env or {}), input=data, capture_output=True
    )
    if done.returncode:
        raise SearchError(f"git {words[0]} failed in {cwd or 'the store'}: {_first(done.stderr)}")
    return done.stdout


def _settings() -> list[str]:
    return [word for setting in _SETTINGS for word in ("-c", setting)] + ["-c", "safe.directory=*"]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Without what git would read from the user or the caller."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return own | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"} | dict(more)


def _first(message: bytes) -> str:
    lines = message.decode(errors="replace").strip().splitlines()
    return next((line for line in lines if line.startswith(("error", "fatal"))), lines[0] if lines else "no message")
