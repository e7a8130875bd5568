"""Runs of scripted agents through the search's own decisions, at memory speed.

Draws, gate, judge and choice are those of a real search (`decide.Decider`), selection is `select.select`, and the suite
is what real executions gave (`outcomes`). Only the commands of the way are not executed again: what they lead to is
known. That a real search in real forks takes the same way is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from hesnr_tasks.search.bench.graph import Graph
from hesnr_tasks.search.bench.judging import BenchJudge, selectors
from hesnr_tasks.search.bench.outcomes import NOTHING, Outcomes
from hesnr_tasks.search.bench.policy import ScriptedPolicy
from hesnr_tasks.search.decide import Decider, SearchSettings
from hesnr_tasks.search.gates import Decision, Gate, StepState
from hesnr_tasks.search.select import Selection, select
from hesnr_tasks.search.types import Leaf, Message, Usage, total

__all__ = ["Method", "Oracle", "Run", "Selected", "choose", "leaves_of", "simulate"]


@dataclass(frozen=True)
class Oracle:
    """The gate that knows: it fires where an option is wrong. A bound for all gates, not a method."""

    graph: Graph
    signal: ClassVar[bool] = False

    def __call__(self, step: StepState) -> Decision:
        """By the path in the step's id."""
        path = tuple(step.id.partition(":")[2].split("/")) if step.id.partition(":")[2] else ()
        wrong = any(not edge.good for edge in self.graph.edges(path))
        return Decision(wrong, "a wrong option" if wrong else "all options are right")


@dataclass(frozen=True)
class Method:
    """How one run is made. `gate` None: the oracle's; `d_prime`: the judge's quality."""

    name: str
    gate: Gate | None
    d_prime: float
    settings: SearchSettings


class Run(NamedTuple):
    """One run: its path, what it cost by kind, how often it branched, and the mean score of what was chosen."""

    id: str
    path: tuple[str, ...]
    usage: Mapping[str, Usage]
    forks: int
    score: float


class Selected(NamedTuple):
    """What selection made of several runs. `oracle`: whether any of them resolved the task."""

    resolved: bool
    oracle: bool
    usage: Mapping[str, Usage]
    tests: int


def simulate(graph: Graph, method: Method, seed: str) -> Run:
    """One run to its end. Draws depend on `seed` alone, so methods share them where they draw at the same places."""
    spent: dict[str, Usage] = {}

    def spend(kind: str, usage: Usage, n: int, cost: float, node: str) -> None:
        spent[kind] = total((spent.get(kind, Usage()), usage))

    judge = BenchJudge(graph, method.d_prime, seed)
    gate = method.gate if method.gate is not None else Oracle(graph)
    decider = Decider(ScriptedPolicy(graph, seed), gate, judge, method.settings, spend)
    path: tuple[str, ...] = ()
    messages: list[Message] = []
    scores: list[float] = []
    forks = 0
    while not graph.ended(path):
        node = f"{graph.name}-{seed}:{'/'.join(path)}"
        record = decider.decide(node, graph.repository.task, messages, StepState(node), 0)
        at = record["chosen"][0]
        message = record["draws"][record["candidates"][at]["draw"]]["message"]
        messages.append(message)
        path = graph.walk([one["extra"]["actions"][0]["command"] for one in messages])
        forks += record["fork"]
        scores += [record["scores"][at]] if record["scores"] else []
    return Run(f"{seed}", path, spent, forks, sum(scores) / len(scores) if scores else 0.0)


def leaves_of(runs: Sequence[Run], known: Outcomes) -> list[Leaf]:
    """What a search would have left of these runs, but for the trajectory files."""
    found = []
    for run in runs:
        state = known.state(run.path)
        status = "LimitsExceeded" if state == NOTHING else "Submitted"
        found.append(Leaf(run.id, known.states[state].patch, status, Path(), (), run.score))
    return found


def choose(task: str, runs: Sequence[Run], known: Outcomes, seed: str, d_prime: float = 1.0) -> Selected:
    """Consolidated suite, cut, three selectors, majority: as a real search ends."""
    leaves = leaves_of(runs, known)
    resolved = {run.id: known.states[known.state(run.path)].resolved for run in runs}
    suite = known.suite(leaves, {run.id: run.path for run in runs})
    chosen = select(task, leaves, suite, selectors(resolved, d_prime, seed), Selection())
    kinds = {kind for run in runs for kind in run.usage}
    usage = {kind: total(run.usage[kind] for run in runs if kind in run.usage) for kind in sorted(kinds)}
    files = 1 + sum(any(f"own:{kind}" in run.path for run in runs) for kind in ("right", "wrong"))
    patches = len(set(suite.keys.values()))
    tests = 3 * files * patches if patches > 1 else 0  # at most: repeats only where the first run discriminates
    return Selected(resolved[chosen.leaf.id], any(resolved.values()), {**usage, "select": chosen.usage}, tests)
