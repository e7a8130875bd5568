"""Forks as copies: each state is a folder of its own, seen by its commands at the repository's path.

A state is two file trees: the repository, and a private /tmp. Nothing else can be written by a command, no process
outlives its command, and /dev/shm is empty at the start of each. What the user may read can be read but for the store
(or the folder to `hide`), and sockets of services that would run commands outside (`_SERVICES`) are covered.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.forks.diffs import Baseline
from hesnr_tasks.search.forks.files import ForkMismatch, copy_tree, hash_tree, remove_tree
from hesnr_tasks.search.forks.process import check_namespaces, run_inside
from hesnr_tasks.search.types import Ran

__all__ = ["CopyFork", "CopyForks"]

_TMP = Path("/tmp")
_SERVICES = tuple(
    Path("/run", name) for name in ("user", "dbus", "systemd/private", "docker.sock", "containerd", "podman")
)


class CopyFork:
    """One state. `token` names it in its store, from which `CopyForks.reopen` makes it again."""

    def __init__(self, forks: CopyForks, token: str) -> None:
        self._forks, self.token = forks, token
        self.root = forks.repository
        self.folder = forks.store / "states" / token

    def execute(self, command: str, *, timeout: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run a shell command at `root`; when the time is over, all its processes are killed."""
        binds = {self.folder / "tmp": _TMP, self.folder / "tree": self.root}
        return run_inside(self.root, binds, self._forks.hidden, self._forks.shown, command, timeout, env)

    def fork(self) -> CopyFork:
        """An equal, independent state. Raises `SearchError` when it is not equal, or cannot be made."""
        return self._forks.copy(self)

    def tree_hash(self) -> str:
        """A hash of both trees: every path, mode, link and content."""
        return hash_tree(self.folder)

    def diff(self) -> str:
        """The diff of the repository since the search began."""
        return self._forks.baseline.diff(self.folder / "tree")

    def apply(self, patch: str) -> None:
        """Apply a diff to the repository, whole or not at all."""
        self._forks.baseline.apply(self.folder / "tree", patch)

    def close(self) -> None:
        """Remove the state."""
        remove_tree(self.folder)


class CopyForks:
    """The states of one search, in the folder `store`; the repository itself is only read, once.

    A store that is there already is gone on with: the state that the search began with is kept in it. `hide`: a folder
    around the store that commands must not see either.
    """

    def __init__(self, repository: Path, store: Path, hide: Path | None = None) -> None:
        self.repository, self.store = repository.resolve(), store.resolve()
        self._check()
        check_namespaces()
        (self.store / "states").mkdir(parents=True, exist_ok=True)
        self.hidden = self._hidden(hide.resolve() if hide else self.store)
        self.shown = self._shown()
        self._numbers = itertools.count(1 + max([0, *(int(name) for name in self.tokens() if name.isdigit())]))
        if not (self.store / "ready").exists():
            self._begin()
        self.baseline = Baseline(self.store / "diffs", self.store / "base" / "tree")

    def _hidden(self, folder: Path) -> list[Path]:
        """What commands must not see: `folder` (else the store) unless in /tmp, which they have their own of."""
        around = self.store if self.repository.is_relative_to(folder) else folder
        return [path for path in (around, *_SERVICES) if path.exists() and not path.is_relative_to(_TMP)]

    def _shown(self) -> list[Path]:
        """Where this Python is, if that is in /tmp: commands run it, and have a /tmp of their own."""
        places = {Path(sys.prefix), Path(sys.base_prefix)}
        return sorted(p for p in places if p.is_relative_to(_TMP) and not p.is_relative_to(self.repository))

    def _check(self) -> None:
        if not self.repository.is_dir():
            raise SearchError(f"there is no folder {self.repository}. Give the repository's folder.")
        if self.store.is_relative_to(self.repository) or self.repository.is_relative_to(self.store):
            raise SearchError(
                f"the output folder {self.store} and the repository {self.repository} contain one another: the copies "
                "would be copied. Give an output folder outside the repository."
            )
        if self.repository in (Path("/"), _TMP):
            raise SearchError(f"{self.repository} cannot be searched in. Put the repository into a folder of its own.")

    def _begin(self) -> None:
        base = self.store / "base"
        remove_tree(base)
        (base / "tmp").mkdir(parents=True)
        (base / "tmp").chmod(0o1777)
        for path in (self.repository, *self.shown):  # where they are bound must exist in the private /tmp
            if path.is_relative_to(_TMP):
                (base / "tmp" / path.relative_to(_TMP)).mkdir(parents=True, exist_ok=True)
        copy_tree(self.repository, base / "tree")
        (self.store / "ready").write_text(hash_tree(base))

    @property
    def base_hash(self) -> str:
        """The hash of the state the search began with."""
        return (self.store / "ready").read_text()

    def begin(self) -> CopyFork:
        """The state the search began with, as a new state."""
        return self._copy(self.store / "base", self.base_hash)

    def copy(self, state: CopyFork) -> CopyFork:
        """A new state equal to `state`."""
        return self._copy(state.folder, state.tree_hash())

    def reopen(self, token: str, tree_hash: str) -> CopyFork:
        """A state that an earlier process left. Raises `SearchError` when it is not as it was."""
        state = CopyFork(self, token)
        if not state.folder.is_dir() or state.tree_hash() != tree_hash:
            raise ForkMismatch(f"the working state {state.folder} is not as the search left it: its tree hash differs.")
        return state

    def tokens(self) -> list[str]:
        """The names of all states there are."""
        return sorted(entry.name for entry in os.scandir(self.store / "states"))

    def keep_only(self, tokens: Collection[str]) -> None:
        """Remove all other states: what an earlier process had begun to make."""
        for token in set(self.tokens()) - set(tokens):
            CopyFork(self, token).close()

    def _copy(self, folder: Path, expected: str) -> CopyFork:
        state = CopyFork(self, f"{next(self._numbers):06d}")
        copy_tree(folder, state.folder)
        if (found := hash_tree(state.folder)) != expected:
            state.close()
            raise ForkMismatch(
                f"the copy of a working state differs from it (tree hash {found}, not {expected}): something writes to "
                f"{self.store} at the same time, or its disk does not keep modes or links. The branch was given up."
            )
        return state
