"""Forks as a diff and a list of commands: a fresh copy of the beginning, then the diff, checked by its tree hash.

Where the diff does not give the same tree (ignored files, /tmp, a commit), the commands are run again; where these do
not either, the branch is given up. The index of git and its logs hold times, and are left out of the hash.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.forks.copies import CopyFork, CopyForks
from hesnr_tasks.search.forks.files import ForkMismatch, hash_tree
from hesnr_tasks.search.types import Ran

__all__ = ["ReplayFork", "ReplayForks"]


def _volatile(name: str) -> bool:
    return name == "tree/.git/index" or name.startswith("tree/.git/logs")


class ReplayFork(CopyFork):
    """A state that knows the commands that led to it."""

    def __init__(self, forks: ReplayForks, token: str) -> None:
        super().__init__(forks, token)
        self._replays = forks
        self.commands: tuple[tuple[str, float], ...] = ()

    def execute(self, command: str, *, timeout: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run a shell command at `root`, and note it."""
        self.note((*self.commands, (command, timeout)))
        return super().execute(command, timeout=timeout, env=env)

    def note(self, commands: tuple[tuple[str, float], ...]) -> None:
        """Keep the commands that led here, for a later process too."""
        self.commands = commands
        self._notes().write_text(json.dumps(commands))

    def noted(self) -> ReplayFork:
        """With the commands that an earlier process noted."""
        if self._notes().exists():
            self.commands = tuple((command, timeout) for command, timeout in json.loads(self._notes().read_text()))
        return self

    def close(self) -> None:
        """Remove the state."""
        super().close()
        self._notes().unlink(missing_ok=True)

    def _notes(self) -> Path:
        return self._replays.store / "commands" / f"{self.token}.json"

    def fork(self) -> ReplayFork:
        """A new state made from the beginning. Raises `SearchError` when neither diff nor commands give this state."""
        return self._replays.remake(self.diff(), self.commands, self.tree_hash())

    def tree_hash(self) -> str:
        """A hash of both trees but for git's index and logs."""
        return hash_tree(self.folder, _volatile)


class ReplayForks(CopyForks):
    """The states of one search, each remade from the beginning. `env` is what replayed commands get."""

    def __init__(
        self, repository: Path, store: Path, hide: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._env = env
        super().__init__(repository, store, hide)
        (self.store / "commands").mkdir(exist_ok=True)

    def begin(self) -> ReplayFork:
        """The state the search began with, as a new state."""
        return ReplayFork(self, super().begin().token)

    def remake(self, diff: str, commands: tuple[tuple[str, float], ...], expected: str) -> ReplayFork:
        """The state of that hash, by the diff or else by the commands."""
        for way in (self._by_diff, self._by_commands):
            state = self.begin()
            way(state, diff, commands)
            if state.tree_hash() == expected:
                state.note(commands)
                return state
            state.close()
        shown = json.dumps([command for command, _ in commands][-3:])
        raise ForkMismatch(
            "a working state cannot be made again: neither its diff nor its commands run again give the same files "
            f"(last commands: {shown}). The branch was given up; --fork copy has no such limit."
        )

    def reopen(self, token: str, tree_hash: str) -> ReplayFork:
        """A state that an earlier process left. Raises `SearchError` when it is not as it was."""
        state = ReplayFork(self, token).noted()
        if not state.folder.is_dir() or state.tree_hash() != tree_hash:
            raise ForkMismatch(f"the working state {state.folder} is not as the search left it: its tree hash differs.")
        return state

    def _by_diff(self, state: ReplayFork, diff: str, _: tuple[tuple[str, float], ...]) -> None:
        with contextlib.suppress(SearchError):  # the tree hash then says that it is not the same
            state.apply(diff)

    def _by_commands(self, state: ReplayFork, _: str, commands: tuple[tuple[str, float], ...]) -> None:
        for command, timeout in commands:
            state.execute(command, timeout=timeout, env=self._env)
