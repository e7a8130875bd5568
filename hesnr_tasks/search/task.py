"""One searched task, from its repository to one patch: the files of OUT/<instance>. Needs mini-swe-agent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from pydantic import ValidationError

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.search.agent import EntropyGuidedAgent, header_of
from hesnr_tasks.search.consolidate import consolidate
from hesnr_tasks.search.decide import SearchSettings
from hesnr_tasks.search.forks import open_forks
from hesnr_tasks.search.forks.files import remove_tree
from hesnr_tasks.search.gates import Gate
from hesnr_tasks.search.leaf import write_whole
from hesnr_tasks.search.ledger import Ledger
from hesnr_tasks.search.select import Chosen, Selection, Selector, select
from hesnr_tasks.search.tree import Tree
from hesnr_tasks.search.types import Judge, Leaf, Usage, total

__all__ = ["How", "Task", "search"]


class Task(NamedTuple):
    """What is to be done where."""

    instance: str
    repository: Path
    text: str


@dataclass(frozen=True)
class How:
    """Everything that is the same for all tasks. `agent`, `environment`: mini-swe-agent's settings."""

    model: Any
    gate: Gate
    settings: SearchSettings
    method: str
    judge: Judge | None = None
    selectors: Sequence[Selector] = ()
    selection: Selection = field(default_factory=Selection)
    tests: bool = True
    fork: str = "copy"
    image: str = ""
    agent: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def search(task: Task, how: How, output: Path) -> dict[str, Any]:
    """Search, test, select; returns what is in `output`/result.json. What is there already is not done again.

    Raises `SettingsError` where it is the result of another search.
    """
    result = output / "result.json"
    if result.exists():
        return _finished(task, how, result)
    forks = open_forks(task.repository, output / "work", how.fork, image=how.image, hide=output)
    agent = _searched(task, how, forks, output)
    leaves = agent.leaves
    chosen, tests = _chosen(task, how, forks, leaves)
    ledger = Ledger(output / "ledger.jsonl")
    if chosen.usage != Usage():
        ledger.add("select", chosen.usage)
    found = _record(task, how, leaves, chosen) | {"tests": tests, "tokens": _tokens(ledger)}
    draws = agent.tree.draws.values()
    found |= {"steps": len(draws), "forks": sum(record["fork"] for record in draws)}
    found |= {"judge_failures": sum(bool(record["judge_error"]) for record in draws)}
    ledger.close()
    write_whole(output / "chosen.patch", chosen.leaf.patch.encode("utf-8", "surrogateescape"))
    write_whole(result, json.dumps(found, indent=2).encode())
    if hasattr(forks, "close"):
        forks.close()
    remove_tree(output / "work")
    return found


def _searched(task: Task, how: How, forks: Any, output: Path) -> EntropyGuidedAgent:
    """The agent, when every branch has ended."""
    try:
        agent = EntropyGuidedAgent(
            how.model, forks, output, gate=how.gate, judge=how.judge, settings=how.settings,
            environment=how.environment, instance=task.instance, **how.agent,
        )  # fmt: skip
        agent.run(task.text)
    except (ValidationError, TemplateError) as error:
        told = " ".join(str(error).split())[:300]
        raise SettingsError(f"-c: mini-swe-agent cannot use this configuration: {told}") from None
    return agent


def _finished(task: Task, how: How, result: Path) -> dict[str, Any]:
    """The result that is there, if it is this search's."""
    try:
        found = json.loads(result.read_text(encoding="utf-8"))
        method = found["method"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{result}: not the result of a search ({error!r}). Remove it, and it is made again.") from None
    tree = Tree.open(result.with_name("tree.jsonl"))
    try:
        tree.begin(header_of(task.instance, task.text, how.model, how.gate, how.judge, how.settings))
    finally:
        tree.close()
    if method != how.method:
        raise SettingsError(f"{result} is of {method}, now {how.method}. Give another output, or remove that file.")
    return dict(found)


def _chosen(task: Task, how: How, forks: Any, leaves: list[Leaf]) -> tuple[Chosen, dict[str, Any]]:
    """The leaf that was selected, and what its tests were."""
    suite = None
    if how.tests and len({leaf.patch for leaf in leaves if leaf.patch.strip()}) > 1:
        base = forks.begin()
        try:
            suite = consolidate(base, leaves)
        finally:
            base.close()
    chosen = select(task.text, leaves, suite, how.selectors, how.selection)
    if suite is None:
        return chosen, {}
    return chosen, {"kept": [test.name for test in suite.tests], "dropped": len(suite.dropped), "runs": suite.runs}


def _record(task: Task, how: How, leaves: list[Leaf], chosen: Chosen) -> dict[str, Any]:
    return {
        "instance_id": task.instance,
        "method": how.method,
        "runs": how.settings.runs,
        "chosen": chosen.leaf.id,
        "decided_by": chosen.election.decided_by,
        "problems": list(chosen.problems),
        "resolved": None,
        "leaves": [leaf.id for leaf in leaves],
        "statuses": {leaf.id: leaf.status for leaf in leaves},
        "patch": chosen.leaf.patch.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
    }


def _tokens(ledger: Ledger) -> dict[str, dict[str, int]]:
    sums = ledger.sums()
    return {kind: usage._asdict() for kind, usage in (sums | {"all": total(sums.values())}).items()}
