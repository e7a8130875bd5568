"""Scripted agents as finite decision graphs: what can be done next, with what probability, at how many tokens.

Every agent walks the same stages over its repository: looks, finds, reads, tests, mends part A, looks again, mends part
B, writes a test of its own, submits. Three kinds of steps:

- plain: one action has nearly all probability (entropy near 0);
- harmless forks: several ways to the same knowledge (high entropy, no consequence);
- consequential forks: mending A and B, where one option is right. Their entropy is no higher than the harmless ones'.

An agent that mended A wrongly writes a test that confirms the mistake more often ("self-deceptive debugging"). One that
begins to loop repeats itself to the step limit and ends without a patch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.bench.repositories import Repository
from hesnr_tasks.search.judge import semantic_seed

__all__ = ["LIMIT", "SUBMIT", "Edge", "Graph", "Skill", "build"]

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
Size = Callable[[str, int, int], int]  # what, least and most tokens
LIMIT = 40  # steps
PROMPT = 2_000  # tokens of the system's and the user's message


class Edge(NamedTuple):
    """One option of a step. `good`: no worse than any other option there; tokens: of the reply, of what comes back."""

    label: str
    probability: float
    command: str
    output: int
    observed: int
    good: bool = True


class Skill(NamedTuple):
    """Chances of mending A and B rightly, of beginning to loop at A, of a wrong own test (A right, A wrong)."""

    mends_a: float
    mends_b: float
    loops: float = 0.06
    deceived: tuple[float, float] = (0.2, 0.6)

    @classmethod
    def drawn(cls, *about: object) -> Skill:
        """P(right) ~ U(.35, .85) for both parts, seeded by what it is about."""
        rng = random.Random(semantic_seed("skill", *about))
        return cls(rng.uniform(0.35, 0.85), rng.uniform(0.35, 0.85))


@dataclass(frozen=True)
class Graph:
    """A scripted agent for one repository; a state is the labels of the edges taken."""

    name: str
    repository: Repository
    skill: Skill
    python: str = "python"

    def edges(self, path: Sequence[str]) -> tuple[Edge, ...]:
        """What can be done after `path`; empty when it has ended."""
        if self.ended(path):
            return ()
        if "A:loop" in path:
            return self._stages["loop"]
        key = self._key(path)
        return self._stages[key]

    def ended(self, path: Sequence[str]) -> bool:
        """Submitted, or at the step limit."""
        return bool(path) and (path[-1] == "submit" or len(path) >= LIMIT)

    def taken(self, path: Sequence[str]) -> list[Edge]:
        """The edges of a path."""
        return [next(e for e in self.edges(path[:at]) if e.label == label) for at, label in enumerate(path)]

    def tokens(self, path: tuple[str, ...]) -> int:
        """Tokens of the prompt after `path`: the first two messages, replies and what came back."""
        if path not in self._tokens:
            last = next(edge for edge in self.edges(path[:-1]) if edge.label == path[-1]) if path else None
            self._tokens[path] = self.tokens(path[:-1]) + last.output + last.observed if last else PROMPT
        return self._tokens[path]

    def walk(self, commands: Sequence[str]) -> tuple[str, ...]:
        """The labels of executed commands. Raises `SearchError` for one that the agent would not have given."""
        known = tuple(commands)
        if known not in self._walks:
            path = self.walk(known[:-1]) if known else ()
            labels = {edge.command: edge.label for edge in self.edges(path)} if known else {}
            if known and known[-1] not in labels:
                raise SearchError(f"the scripted agent {self.name} would not run {known[-1][:200]!r} there")
            self._walks[known] = (*path, labels[known[-1]]) if known else ()
        return self._walks[known]

    def _key(self, path: Sequence[str]) -> str:
        stage = _ORDER[len(path)]
        if stage == "own":
            return "own-right" if "A:right" in path else "own-wrong"
        return f"ran-{path[-1]}" if stage == "ran" else stage

    @cached_property
    def _tokens(self) -> dict[tuple[str, ...], int]:
        return {}

    @cached_property
    def _walks(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {}

    @cached_property
    def _stages(self) -> dict[str, tuple[Edge, ...]]:
        return _stages(self.repository, self.skill, self.python, self.name)

    def entropy(self, path: Sequence[str]) -> float:
        """Of the next action, in nats."""
        return -math.fsum(edge.probability * math.log(edge.probability) for edge in self.edges(path))


_ORDER = (
    *("look", "find", "package", "tests", "module", "run", "history", "usage", "try", "again"),
    *("A", "check", "diff", "around", "B", "check2", "status", "own", "ran", "settings", "last", "review", "submit"),
)


def build(repository: Repository, variant: int = 0, python: str = "python") -> Graph:
    """The agent of a variant: other chances, same repository."""
    name = f"{repository.name}-{variant}"
    return Graph(name, repository, Skill.drawn(name), python)


def _stages(repo: Repository, skill: Skill, python: str, name: str) -> dict[str, tuple[Edge, ...]]:
    """Every stage's options, by the stage's key."""
    size, pytest = _sizes(name), f"{python} -m pytest -q -p no:cacheprovider"
    plain = _plain_commands(repo.module, next(iter(repo.visible)), pytest)
    harmless = _harmless_commands(repo.module, next(iter(repo.visible)), python)
    found = {stage: _plain(stage, both, size) for stage, both in plain.items()}
    found |= {stage: _harmless(stage, several, size) for stage, several in harmless.items()}
    found["A"] = (
        *_mending(repo, "A", skill.mends_a, 1 - skill.loops, python, size),
        _loop("A:loop", pytest, skill.loops),
    )
    found["B"] = _mending(repo, "B", skill.mends_b, 1.0, python, size)
    found["loop"] = (_loop("loop", pytest, 1.0),)
    for kind, wrong in zip(("right", "wrong"), skill.deceived, strict=True):
        found[f"own-{kind}"] = _own(repo, wrong, size)
    for kind, command in (("own:right", f"{pytest} tests/test_mine.py"), ("own:none", "git status --short")):
        found[f"ran-{kind}"] = (Edge(f"ran-{kind}", 1.0, command, size(kind, 60, 90), size(kind, 100, 300)),)
    found["ran-own:wrong"] = (found["ran-own:right"][0]._replace(label="ran-own:wrong"),)
    found["submit"] = (Edge("submit", 1.0, SUBMIT, 40, 0),)
    return found


def _plain_commands(module: str, test: str, pytest: str) -> dict[str, tuple[str, str]]:
    package = module.partition("/")[0]
    return {
        "look": ("find . -name '*.py' -not -path './.git/*' | sort", "ls"),
        "package": (f"cat {package}/__init__.py", f"ls {package}"),
        "module": (f"cat {module}", f"head -n 60 {module}"),
        "run": (f"{pytest} {test}", f"{pytest} -x tests"),
        "history": ("git log --oneline -n 3", "git log -n 1"),
        "again": (f"sed -n 1,80p {module}", f"tail -n 40 {module}"),
        "check": (f"{pytest} tests", f"{pytest} -x tests"),
        "diff": ("git diff", "git diff --stat"),
        "check2": (f"{pytest} tests", f"{pytest} -x tests"),
        "status": ("git status --short", "git diff --stat"),
        "settings": ("ls -a", "ls -la"),
        "last": (f"{pytest} tests", f"{pytest} -x {test}"),
    }


def _harmless_commands(module: str, test: str, python: str) -> dict[str, tuple[tuple[float, str], ...]]:
    package = module.partition("/")[0]
    return {
        "find": ((0.4, f"grep -n 'def ' {module}"), (0.35, "grep -rn import . --include=*.py"), (0.25, "wc -l */*.py")),
        "tests": ((0.55, f"cat {test}"), (0.45, f"sed -n 1,60p {test}")),
        "usage": ((0.5, f"grep -rn {package} tests"), (0.3, f"grep -c '' {module}"), (0.2, f"grep -n raise {module}")),
        "try": (
            (0.4, f'{python} -c "import {package}; print(dir({package}))"'),
            (0.35, f'{python} -c "import {package}; print({package}.__doc__)"'),
            (0.25, f'{python} -c "import {package}; print({package}.__name__)"'),
        ),
        "around": ((0.45, f"grep -n return {module}"), (0.3, f"sed -n 20,60p {module}"), (0.25, f"nl {module}")),
        "review": ((0.6, "git diff"), (0.4, "git status")),
    }


def _sizes(name: str) -> Size:
    def size(what: str, low: int, high: int) -> int:
        return random.Random(semantic_seed("tokens", name, what)).randint(low, high)

    return size


def _edge(label: str, chance: float, command: str, size: Size, good: bool = True) -> Edge:
    return Edge(label, chance, command, size(label, 70, 160), size(f"seen {label}", 200, 1_000), good)


def _plain(stage: str, both: tuple[str, str], size: Size) -> tuple[Edge, ...]:
    return _edge(stage, 0.97, both[0], size), _edge(f"{stage}'", 0.03, both[1], size)


def _harmless(stage: str, several: Sequence[tuple[float, str]], size: Size) -> tuple[Edge, ...]:
    return tuple(_edge(f"{stage}:{at}", chance, command, size) for at, (chance, command) in enumerate(several))


def _mending(repo: Repository, part: str, right: float, whole: float, python: str, size: Size) -> tuple[Edge, ...]:
    """The right edit with chance `right`, the wrong ones with falling shares of what is left of `whole`."""
    wrong = [name for name in repo.edits[part] if name != "right"]
    options = [("right", right * whole)]
    weights = [2.0**-at for at in range(len(wrong) + (part == "B"))]
    rest = (1 - right) * whole
    shares = [rest * weight / sum(weights) for weight in weights]
    options += list(zip(wrong, shares, strict=False))
    edges = [
        Edge(
            f"{part}:{name}",
            chance,
            repo.edits[part][name].command(python),
            size(f"{part}{name}", 150, 400),
            60,
            name == "right",
        )
        for name, chance in options
    ]
    if part == "B":  # not seeing that there is a second part
        edges.append(Edge("B:none", shares[-1], "git diff --stat", 60, 120, False))
    return tuple(edges)


def _loop(label: str, pytest: str, chance: float) -> Edge:
    return Edge(label, chance, f"{pytest} -x tests -q", 90, 400, label == "loop")


def _own(repo: Repository, wrong: float, size: Size) -> tuple[Edge, ...]:
    """A test of its own: right or wrong expectations, or none. What is written does not change what is submitted."""
    edges = []
    for kind, chance in (("right", (1 - wrong) * 0.85), ("wrong", wrong * 0.85)):
        path, text = repo.tests[kind]
        command = f"cat > {path} <<'TEST'\n{text}TEST"
        edges.append(Edge(f"own:{kind}", chance, command, size(kind, 180, 300), 20))
    return (*edges, Edge("own:none", 0.15, "git diff --stat", 60, 120))
