"""Working states that can be forked: copies in a private mount namespace, diff and replay, or containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.search.types import Workspace

__all__ = ["KINDS", "Forks", "State", "open_forks"]

KINDS = ("copy", "replay", "docker")


class State(Workspace, Protocol):
    """A working state with a name by which a later process finds it."""

    token: str


class Forks(Protocol):
    """The states of one search."""

    def begin(self) -> Any:
        """The state the search began with, as a new state."""
        ...

    def reopen(self, token: str, tree_hash: str) -> Any:
        """A state that an earlier process left. Raises `SearchError` when it is not as it was."""
        ...


def open_forks(
    repository: Path, store: Path, kind: str = "copy", *, image: str = "", hide: Path | None = None
) -> Forks:
    """The states of a search in `repository`, kept in the folder `store`; for docker, in containers of `image`.

    `hide`: a folder around the store that commands must not see, as it holds what other branches have found.
    """
    if kind == "copy":
        from hesnr_tasks.search.forks.copies import CopyForks

        return CopyForks(repository, store, hide)
    if kind == "replay":
        from hesnr_tasks.search.forks.replay import ReplayForks

        return ReplayForks(repository, store, hide)
    if kind == "docker":
        from hesnr_tasks.search.forks.docker import DockerForks

        if not image:
            raise SettingsError("--fork docker needs --image, an image with the repository in it at --repo.")
        return DockerForks(image, repository)
    raise SettingsError(f"unknown kind of fork {kind!r}; known: {', '.join(KINDS)}.{nearest(kind, KINDS)}")
