"""What the parts of a search hand each other.

policy ─ draws ─▶ keys ─▶ candidates ─ entropy ─▶ gate ─ judge ─▶ one action in a fork ─▶ … ─▶ leaves ─ tests,
selectors ─▶ one patch;  every call of a model ─▶ ledger
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

__all__ = ["Candidate", "Draw", "Judge", "Leaf", "Message", "Policy", "Ran", "Usage", "Verdict", "Workspace", "total"]

Message = dict[str, Any]  # in mini-swe-agent's form: role, content, extra


class Usage(NamedTuple):
    """Tokens of one call of a model; `cached` of the `prompt` tokens were read from a cache."""

    prompt: int = 0
    cached: int = 0
    output: int = 0


_NOTHING = Usage()


def total(usages: Iterable[Usage]) -> Usage:
    """The sum of `usages`, kind by kind."""
    each = list(usages)
    return Usage(*(sum(column) for column in zip(*each, strict=True))) if each else Usage()


@dataclass(frozen=True)
class Draw:
    """One sampled continuation of a step, not yet executed.

    The usages of the draws of one call add up to the call's: what cannot be told apart (n choices share one prompt) is
    with the first draw.
    """

    message: Message  # as mini-swe-agent would append it: the assistant's with its extra.actions, or its format error's
    command: str  # what would be executed: the commands of its actions, joined by newlines
    decision: tuple[Mapping[str, float], ...] = ()  # token -> log-probability (nats), at its first decision tokens
    error: str = ""  # why it cannot be executed (malformed call); empty for a good one
    usage: Usage = _NOTHING
    cost: float = 0.0  # in the money of the model's price list; 0 where there is none


class Policy(Protocol):
    """Proposes continuations of a step. Nothing is executed by it."""

    def sample(self, messages: Sequence[Message], n: int) -> list[Draw]:
        """`n` independent draws, malformed ones included."""
        ...


@dataclass(frozen=True)
class Candidate:
    """Draws with the same action key, once."""

    key: str
    votes: int
    draw: Draw


class Verdict(NamedTuple):
    """One judge's view of the candidates of a step: a score in [0, 1] each, and what asking cost."""

    scores: tuple[float, ...]
    usage: Usage
    notes: tuple[str, ...] = ()


class Judge(Protocol):
    """Says how good each candidate is. Raises `JudgeError` when it has no number: a score is a number or an error."""

    def judge(self, task: str, history: Sequence[Message], candidates: Sequence[Candidate]) -> Verdict:
        """Score `candidates` for the next step of `history`."""
        ...


class Ran(NamedTuple):
    """A command that was run: its output (stdout and stderr together), its exit status, and whether it was killed."""

    output: str
    status: int
    timed_out: bool = False


class Workspace(Protocol):
    """A working state of a repository, isolated from every other one. `root` is its path as seen *inside*."""

    root: Path

    def execute(self, command: str, *, timeout: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run a shell command inside, in `root`; nothing outside the workspace is writable to it."""
        ...

    def fork(self) -> Workspace:
        """An equal, independent state; its tree hash was checked."""
        ...

    def tree_hash(self) -> str:
        """A hash of every path, mode, symlink and content."""
        ...

    def diff(self) -> str:
        """The unified diff (git, binary-safe) from the state the search began with, new files included."""
        ...

    def apply(self, patch: str) -> None:
        """Apply a diff as `diff` makes it. Raises `SearchError` when it does not apply; nothing is changed then."""
        ...

    def close(self) -> None:
        """Remove the state."""
        ...


@dataclass(frozen=True)
class Leaf:
    """The end of one path through the tree."""

    id: str
    patch: str
    status: str  # mini-swe-agent's exit status: Submitted, LimitsExceeded, …
    trajectory: Path  # its mini-swe-agent-1.1 file
    commands: tuple[str, ...]  # executed on the way, in order
    score: float = 0.0  # mean judge score on the way; NaN where no judge was asked
    extra: Mapping[str, Any] = field(default_factory=dict)
