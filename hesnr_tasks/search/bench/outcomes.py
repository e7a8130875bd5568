"""What every possible end of an agent is worth, found by doing it: edits, hidden tests and the common suite, for real.

An agent's end is (mend of A, mend of B, own test). Each distinct patch is made by its edit commands in a fork of the
repository, submitted to visible and hidden tests, and all ends together go through `consolidate`. The results are
deterministic and ship as outcomes.json, each with the digest of the repository's text; `python -m
hesnr_tasks.search.bench --fresh` makes them anew.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.bench.repositories import Repository, load
from hesnr_tasks.search.consolidate import Consolidation, Kept, Suite, consolidate, patch_key
from hesnr_tasks.search.consolidate_collect import REPOSITORY, put
from hesnr_tasks.search.consolidate_run import PASSED, Limits
from hesnr_tasks.search.forks import open_forks
from hesnr_tasks.search.types import Leaf, Workspace

__all__ = ["FILE", "Outcome", "Outcomes", "execute", "outcomes", "save_outcomes"]

FILE = Path(__file__).parent / "outcomes.json"
_PLAIN = (("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"),)  # the bench's tests need no plugins, and start in half the time
NOTHING = "nothing"  # the state of an agent that ended without a patch


@dataclass(frozen=True)
class Outcome:
    """One patch: its text, and whether it passes the visible and the hidden tests."""

    patch: str
    visible: bool
    resolved: bool


@dataclass(frozen=True)
class Outcomes:
    """All ends of agents of one repository. States: "A-name/B-name" or NOTHING; authors: right, wrong, repository."""

    digest: str
    states: Mapping[str, Outcome]
    tests: Sequence[Mapping[str, Any]]  # name, authors, passes: state -> bool
    dropped: Sequence[Sequence[Any]] = field(default_factory=list)

    def state(self, path: Sequence[str]) -> str:
        """The state at the end of a path: an agent that loops has no patch."""
        made = {label.partition(":")[0]: label.partition(":")[2] for label in path if label[:2] in ("A:", "B:")}
        return NOTHING if made.get("A", "loop") == "loop" else f"{made['A']}/{made.get('B', 'none')}"

    def suite(self, leaves: Sequence[Leaf], paths: Mapping[str, Sequence[str]]) -> Suite:
        """The suite that `consolidate` would make of these leaves, from what was executed."""
        keys = {leaf.id: patch_key(leaf.patch) for leaf in leaves}
        states = {keys[leaf.id]: self.state(paths[leaf.id]) for leaf in leaves}
        wrote: dict[str, tuple[str, ...]] = {REPOSITORY: (REPOSITORY,)}
        for kind in ("right", "wrong"):
            wrote[kind] = tuple(leaf.id for leaf in leaves if f"own:{kind}" in paths[leaf.id])
        kept = []
        for test in self.tests:
            authors = tuple(one for kind in test["authors"] for one in wrote[kind])
            passes = {key: bool(test["passes"][state]) for key, state in states.items()}
            if authors and len(set(passes.values())) > 1:
                kept.append(Kept(test["name"], authors, passes))
        return Suite(tuple(kept), (), keys)


def outcomes(name: str) -> Outcomes:
    """The shipped outcomes of a repository. Raises `SearchError` where its text has changed since."""
    repository = load(name)
    found = json.loads(FILE.read_text(encoding="utf-8")).get(name)
    if found is None or found["digest"] != repository.digest:
        raise SearchError(f"bench/outcomes.json does not fit {name}: run python -m hesnr_tasks.search.bench --fresh")
    states = {state: Outcome(**one) for state, one in found["states"].items()}
    return Outcomes(found["digest"], states, found["tests"], found["dropped"])


def execute(name: str, *, repeats: int = 3, states: Sequence[str] | None = None) -> Outcomes:
    """Do it all in forks; `states`: only these. Some minutes for all repositories."""
    repository = load(name)
    wanted = list(states) if states is not None else [*_states(repository), NOTHING]
    with tempfile.TemporaryDirectory(prefix="hesnr-bench-") as folder:
        root = repository.write(Path(folder, "repository"))
        forks = open_forks(root, Path(folder, "store"))
        base = forks.begin()
        found = {state: _outcome(base, repository, state) for state in wanted}
        suite = consolidate(base, list(_leaves(repository, found)), Consolidation(repeats, limits=_limits()))
    return Outcomes(repository.digest, found, *_translated(suite, found))


def save_outcomes(found: Mapping[str, Outcomes]) -> None:
    """Write outcomes.json."""
    FILE.write_text(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1) + "\n", encoding="utf-8")


def _limits() -> Limits:
    return Limits(sys.executable, 60, 10, _PLAIN)


def _states(repository: Repository) -> list[str]:
    second = [*repository.edits["B"], "none"]
    return [f"{a}/{b}" for a, b in itertools.product(repository.edits["A"], second)]


def _outcome(base: Workspace, repository: Repository, state: str) -> Outcome:
    fork = base.fork()
    try:
        for part, name in zip("AB", state.split("/"), strict=False):
            if state != NOTHING and name != "none":
                _must(fork, repository.edits[part][name].command(sys.executable), f"{repository.name} {part}:{name}")
        patch = fork.diff()
        visible = _passes(fork, *repository.visible)
        for path, text in repository.hidden.items():
            put(fork, path, text.encode())
        return Outcome(patch, visible, visible and _passes(fork, *repository.hidden))
    finally:
        fork.close()


def _must(fork: Workspace, command: str, what: str) -> None:
    ran = fork.execute(command, timeout=60)
    if ran.status:
        raise SearchError(f"the bench's edit {what} does not fit: {ran.output[-300:]}")


def _passes(fork: Workspace, *paths: str) -> bool:
    command = f"{sys.executable} -m pytest -q -p no:cacheprovider {' '.join(paths)}"
    ran = fork.execute(command, timeout=60, env={"PYTHONDONTWRITEBYTECODE": "1", **dict(_PLAIN)})
    return ran.status == 0 and PASSED in ran.output


def _leaves(repository: Repository, found: Mapping[str, Outcome]) -> list[Leaf]:
    """A leaf for each state; the first two write the right and the wrong test, all run the repository's."""
    leaves = []
    for (state, outcome), kind in itertools.zip_longest(found.items(), ("right", "wrong")):
        commands = [f"{sys.executable} -m pytest -q tests"]
        if kind:
            path, text = repository.tests[kind]
            commands.append(f"cat > {path} <<'TEST'\n{text}TEST")
        leaves.append(Leaf(f"{state}|{kind or ''}", outcome.patch, "Submitted", Path(), tuple(commands)))
    return leaves


def _translated(suite: Suite, found: Mapping[str, Outcome]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Patch keys to states, leaves to the kind of test they wrote."""
    keys = {state: patch_key(one.patch) for state, one in found.items()}

    def kinds(authors: Sequence[str]) -> list[str]:
        return sorted({one.rpartition("|")[2] or one for one in authors})

    tests = [
        {
            "name": one.name,
            "authors": kinds(one.authors),
            "passes": {state: one.passes[key] for state, key in keys.items()},
        }
        for one in suite.tests
    ]
    return tests, [[one.name, kinds(one.authors), one.reason] for one in suite.dropped]
