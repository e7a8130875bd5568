"""One test suite from all leaves: gathered, run by us on every patch in fresh forks, and sifted.

Every patch is measured by the same tests: its own changes to tests are taken out before it is applied. A test is kept
if it collects, gives the same answer in all repeats, and tells at least two patches apart. Dropped are, with a reason:
files that collect nowhere, or only on their author's patch; skipped tests; tests that flake; tests that pass on all
patches or on none. A patch on which a file cannot be collected, though it can on others, fails its tests; so does one
on which a test hangs. Repeats are run only where the first run discriminates: the others would be dropped anyway.

Test code is arbitrary code and runs in a `Workspace` only. It could still forge its own JUnit file: a suite is evidence
about patches of the same policy, no protection against an adversary.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.consolidate_collect import REPOSITORY, Probe, collect, source_only
from hesnr_tasks.search.consolidate_run import COLLECT, PASSED, SKIPPED, Limits, outcomes, patched
from hesnr_tasks.search.types import Leaf, Workspace

__all__ = ["Consolidation", "Dropped", "Kept", "Rate", "Suite", "consolidate", "patch_key"]

_log = logging.getLogger("hesnr_tasks")


@dataclass(frozen=True)
class Consolidation:
    """Settings: how often a discriminating file is run, what is gathered, and the limits of a run."""

    repeats: int = 3
    repository_tests: bool = True
    commands: bool = True
    limits: Limits = field(default_factory=Limits)


class Rate(NamedTuple):
    """How much of the suite a patch passes; `share` is in [0, 1]."""

    passed: float
    total: float

    @property
    def share(self) -> float:
        """passed / total."""
        return self.passed / self.total


class Kept(NamedTuple):
    """A test of the suite: who wrote it, and whether each patch (by key) passes it."""

    name: str
    authors: tuple[str, ...]
    passes: Mapping[str, bool]


class Dropped(NamedTuple):
    """A test that is not in the suite, and why."""

    name: str
    authors: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Suite:
    """The sifted suite and its matrix. `keys`: leaf -> key of its patch; `problems`: leaf -> why it was not tested."""

    tests: tuple[Kept, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    runs: int = 0  # executions of a file or command

    def rates(self, weighting: str = "test") -> dict[str, Rate]:
        """The rate of every leaf that was tested; empty where no test discriminates.

        `weighting` "test": each test counts 1 (as in EGSS); "author": each author counts 1, spread over its tests, so
        that nobody wins by writing many.
        """
        weights = self._weights(weighting)
        total = sum(weights)
        if not total:
            return {}
        return {
            leaf: Rate(sum(w for w, test in zip(weights, self.tests, strict=True) if test.passes[key]), total)
            for leaf, key in self.keys.items()
        }

    def restrict(self, leaves: Sequence[str]) -> Suite:
        """The suite that these leaves alone would have had, but for tests that were dropped already."""
        keys = {leaf: self.keys[leaf] for leaf in leaves if leaf in self.keys}
        kept = []
        for test in self.tests:
            authors = tuple(one for one in test.authors if one in leaves or one == REPOSITORY)
            passes = {key: test.passes[key] for key in keys.values()}
            if authors and len(set(passes.values())) > 1:
                kept.append(Kept(test.name, authors, passes))
        return Suite(tuple(kept), self.dropped, keys, {k: v for k, v in self.problems.items() if k in leaves}, 0)

    def _weights(self, weighting: str) -> list[float]:
        if weighting not in ("test", "author"):
            raise SearchError(f"weighting {weighting!r} must be 'test' or 'author'")
        if weighting == "test":
            return [1.0] * len(self.tests)
        share = {a: 1 / sum(a in test.authors for test in self.tests) for test in self.tests for a in test.authors}
        return [sum(share[author] for author in test.authors) for test in self.tests]


def patch_key(patch: str) -> str:
    """The same for patches that change the same source in the same way."""
    return hashlib.sha256(source_only(patch).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def consolidate(base: Workspace, leaves: Sequence[Leaf], settings: Consolidation | None = None) -> Suite:
    """Gather, run and sift. `base`: the state that the search began with; it is only forked."""
    chosen = settings or Consolidation()
    states, keys, problems = _states(base, leaves)
    try:
        probes = collect(base, leaves, own=chosen.repository_tests, commands=chosen.commands)
        sifted = [_Sifter(probe, states, keys, chosen) for probe in probes]
        for one in sifted:
            one.sift()
    finally:
        for state in states.values():
            state.close()
    tests = tuple(test for one in sifted for test in one.kept)
    dropped = tuple(test for one in sifted for test in one.dropped)
    return Suite(tests, dropped, keys, problems, sum(one.runs for one in sifted))


def _states(base: Workspace, leaves: Sequence[Leaf]) -> tuple[dict[str, Workspace], dict[str, str], dict[str, str]]:
    """One patched state for each distinct patch; leaf -> key; leaf -> problem."""
    states: dict[str, Workspace] = {}
    keys: dict[str, str] = {}
    problems: dict[str, str] = {}
    for leaf in leaves:
        key = patch_key(leaf.patch)
        try:
            if key not in states:
                states[key] = patched(base, source_only(leaf.patch))
            keys[leaf.id] = key
        except SearchError as error:
            problems[leaf.id] = str(error)
    return states, keys, problems


class _Sifter:
    """One probe on all states."""

    def __init__(
        self, probe: Probe, states: Mapping[str, Workspace], owners: Mapping[str, str], settings: Consolidation
    ) -> None:
        self.probe, self.states, self.settings = probe, states, settings
        self.own = {owners[author] for author in probe.authors if author in owners}
        self.kept: list[Kept] = []
        self.dropped: list[Dropped] = []
        self.runs = 0

    def sift(self) -> None:
        """Run, and decide test by test; what cannot be run at all is dropped, and the search does not end for it."""
        try:
            self._sift()
        except SearchError as error:
            self.kept.clear()
            self._drop("", str(error))
            _log.warning("%s was not run: %s", self.probe.name, error)

    def _sift(self) -> None:
        first = self._run(0)
        collected = [key for key, found in first.items() if COLLECT not in found]
        if not collected:
            return self._drop("", "it does not collect")
        if REPOSITORY not in self.probe.authors and len(first) > len(self.own) >= 1 and set(collected) <= self.own:
            return self._drop("", "it collects only on its author's patch")
        names = list(dict.fromkeys(name for key in collected for name in first[key]))
        telling = [name for name in names if self._telling(name, first)]
        again = [self._run(repeat) for repeat in range(1, self.settings.repeats)] if telling else []
        for name in names:
            self._decide(name, first, again, name in telling)
        return None

    def _run(self, repeat: int) -> dict[str, dict[str, str]]:
        self.runs += len(self.states)
        return {key: outcomes(state, self.probe, self.settings.limits, repeat) for key, state in self.states.items()}

    def _telling(self, name: str, found: Mapping[str, Mapping[str, str]]) -> bool:
        answers = [one.get(name) for one in found.values()]
        return SKIPPED not in answers and len({answer == PASSED for answer in answers}) > 1

    def _decide(
        self, name: str, first: Mapping[str, Mapping[str, str]], again: Sequence[Mapping[str, Mapping[str, str]]],
        telling: bool,
    ) -> None:  # fmt: skip
        answers = {key: found.get(name) for key, found in first.items()}
        if SKIPPED in answers.values():
            return self._drop(name, "it is skipped")
        if not telling:
            return self._drop(name, "all patches pass it" if PASSED in answers.values() else "no patch passes it")
        if any((one[key].get(name) == PASSED) != (answers[key] == PASSED) for one in again for key in answers):
            return self._drop(name, f"it flakes in {self.settings.repeats} runs")
        passes = {key: answer == PASSED for key, answer in answers.items()}
        self.kept.append(Kept(self._full(name), self.probe.authors, passes))
        return None

    def _drop(self, name: str, reason: str) -> None:
        self.dropped.append(Dropped(self._full(name), self.probe.authors, reason))

    def _full(self, name: str) -> str:
        return f"{self.probe.name}::{name}" if name else self.probe.name
