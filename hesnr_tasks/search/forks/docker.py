"""Forks of a container: `docker commit`, then a new container from the image. Files only: processes and tmpfs are lost.

Works with any program that takes Docker's arguments (podman). Needs sh, find, sort, sha256sum and git in the image.
"""

from __future__ import annotations

import shlex
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.forks.files import ForkMismatch
from hesnr_tasks.search.forks.process import run_group
from hesnr_tasks.search.types import Ran

__all__ = ["DockerFork", "DockerForks"]

_HASH = r"""{ find . -path ./.git/objects -prune -o -printf '%P\0%y\0%m\0%l\n' | LC_ALL=C sort
find . -path ./.git/objects -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum; } | sha256sum"""
_INDEX = 'i=$(mktemp -d) && cp .git/index "$i/index" 2>/dev/null; export GIT_INDEX_FILE="$i/index"'
_BASE = f"{_INDEX}; git add -A && git update-ref refs/hesnr/base $(git commit-tree -m base $(git write-tree)); rm -r $i"
_DIFF = (
    f'{_INDEX}; mkdir "$i/objects"; export GIT_ALTERNATE_OBJECT_DIRECTORIES="$PWD/.git/objects" '
    'GIT_OBJECT_DIRECTORY="$i/objects"; git add -A && git diff --cached --binary --no-color --no-ext-diff '
    "--no-textconv --no-renames refs/hesnr/base; s=$?; rm -r $i; exit $s"
)
_AUTHOR = {f"GIT_{who}_{what}": "hesnr" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class DockerFork:
    """A running container. `token` is its id."""

    on_host = False  # the caller's environment variables mean nothing inside

    def __init__(self, forks: DockerForks, token: str) -> None:
        self._forks, self.token = forks, token
        self.root = forks.root

    def execute(self, command: str, *, timeout: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run a shell command at `root`; when the time is over, everything in the container is killed but its sleep."""
        given = [word for name, value in (env or {}).items() for word in ("-e", f"{name}={value}")]
        words = ["exec", "-w", str(self.root), *given, self.token, "sh", "-c", command]
        ran = run_group([self._forks.program, *words], timeout)
        if ran.timed_out:  # killing the client leaves the command running: a restart ends it and keeps the files
            self._forks.call("restart", "-t", "0", self.token)
        return ran

    def fork(self) -> DockerFork:
        """A container from an image of this one. Raises `SearchError` when its files differ."""
        image = f"{self._forks.name}:{uuid.uuid4().hex[:12]}"
        self._forks.call("commit", "-q", self.token, image)
        self._forks.images.append(image)
        state = self._forks.start(image)
        if state.tree_hash() != self.tree_hash():
            state.close()
            raise ForkMismatch(f"the container made from {image} has other files than the one it was made from.")
        return state

    def tree_hash(self) -> str:
        """A hash of every path, kind, mode, link and content below `root`, git's packed objects left out."""
        return self._told(_HASH, "hash the files").split()[0]

    def diff(self) -> str:
        """The diff of the repository since the search began."""
        return self._told(_DIFF, "make a diff")

    def apply(self, patch: str) -> None:
        """Apply a diff to the repository, whole or not at all."""
        if patch.strip():
            words = [
                "exec",
                "-i",
                "-w",
                str(self.root),
                self.token,
                "git",
                "apply",
                "--binary",
                "--whitespace=nowarn",
                "-",
            ]
            self._forks.call(*words, data=patch)

    def close(self) -> None:
        """Remove the container."""
        self._forks.call("rm", "-f", self.token)

    def _told(self, command: str, what: str) -> str:
        ran = self.execute(command, timeout=600, env=_AUTHOR)
        if ran.status or ran.timed_out:
            raise SearchError(f"cannot {what} in container {self.token[:12]}: {ran.output.strip()[-300:]}")
        return ran.output


class DockerForks:
    """The states of one search in containers of `image`, whose repository is at `root`."""

    def __init__(
        self, image: str, root: Path, program: str = "docker", arguments: Sequence[str] = (), life: str = "24h"
    ) -> None:
        self.root, self.program, self.name = root, program, f"hesnr-{uuid.uuid4().hex[:8]}"
        self._image, self._arguments, self._life = image, arguments, life
        self.images: list[str] = []

    def begin(self) -> DockerFork:
        """A container of the image, with what its repository holds as the baseline of diffs."""
        state = self.start(self._image)
        state._told(_BASE, "note the baseline")
        return state

    def start(self, image: str) -> DockerFork:
        """A new container that waits for commands."""
        words = ["run", "-d", "--init", "-w", str(self.root), *self._arguments, image, "sleep", self._life]
        return DockerFork(self, self.call(*words).strip())

    def reopen(self, token: str, tree_hash: str) -> DockerFork:
        """A container that an earlier process left. Raises `SearchError` when its files are not as they were."""
        state = DockerFork(self, token)
        if state.tree_hash() != tree_hash:
            raise ForkMismatch(f"container {token[:12]} is not as the search left it: its tree hash differs.")
        return state

    def close(self) -> None:
        """Remove the images of all forks."""
        while self.images:
            self.call("rmi", "-f", self.images.pop())

    def call(self, *words: str, data: str = "") -> str:
        """Run one Docker command. Raises `SearchError` with Docker's own words."""
        sent = data.encode("utf-8", errors="surrogateescape")
        try:
            done = subprocess.run([self.program, *words], input=sent, capture_output=True)
        except OSError as error:
            raise SearchError(f"{self.program} cannot be started: {error}. Install it, or use --fork copy.") from None
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip()
            raise SearchError(f"{shlex.join([self.program, *words[:2]])} failed: {told[-300:]}")
        return done.stdout.decode("utf-8", errors="surrogateescape")
