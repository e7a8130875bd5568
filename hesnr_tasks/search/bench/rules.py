"""What choosing is worth by itself: the same runs, chosen among by every rule, against the oracle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hesnr_tasks.analysis.output import Table
from hesnr_tasks.search.bench.experiment import Plan
from hesnr_tasks.search.bench.graph import build
from hesnr_tasks.search.bench.judging import selectors
from hesnr_tasks.search.bench.outcomes import Outcomes, outcomes
from hesnr_tasks.search.bench.repositories import load
from hesnr_tasks.search.bench.simulate import Method, Run, leaves_of, simulate
from hesnr_tasks.search.consolidate import Suite
from hesnr_tasks.search.costs import mean_number
from hesnr_tasks.search.select import Selection, Selector, best_of_n, first, regret, select, smallest
from hesnr_tasks.search.select_selectors import random_choice
from hesnr_tasks.search.types import Leaf

__all__ = ["rules", "selection_table"]


def rules(task: str, runs: Sequence[Run], known: Outcomes, seed: str, d_prime: float) -> dict[str, tuple[bool, int]]:
    """Whether each rule's choice resolves the task, and its regret."""
    leaves = leaves_of(runs, known)
    resolved = {run.id: known.states[known.state(run.path)].resolved for run in runs}
    suite = known.suite(leaves, {run.id: run.path for run in runs})
    voters = selectors(resolved, d_prime, seed)
    chosen = {
        "random": random_choice(task, leaves, _number(seed)),
        "first": first(leaves),
        "smallest diff": smallest(leaves),
        "greatest judge score": best_of_n(leaves),
        "suite alone": _select(task, leaves, suite, [], Selection(top=1)),
        "suite alone, each author counts 1": _select(task, leaves, suite, [], Selection(top=1, weighting="author")),
        "three selectors, no suite": _select(task, leaves, None, voters, Selection()),
        "suite, best 3, three selectors": _select(task, leaves, suite, voters, Selection()),
        "suite, best 3 with authors equal, three selectors": _select(
            task, leaves, suite, voters, Selection(weighting="author")
        ),
    }
    found = {rule: (resolved[leaf.id], regret(leaf.id, resolved)) for rule, leaf in chosen.items()}
    return {**found, "oracle": (any(resolved.values()), 0)}


def selection_table(plan: Plan, method: Method, runs: int) -> Table:
    """Resolve rate and regret of each rule among `runs` runs of `method`; ± over repositories."""
    rates: dict[str, list[float]] = defaultdict(list)
    regrets: dict[str, list[float]] = defaultdict(list)
    for name in plan.names:
        here: dict[str, list[tuple[bool, int]]] = defaultdict(list)
        known = outcomes(name)
        for variant in range(plan.variants):
            graph = build(load(name), variant)
            for at in range(plan.repetitions):
                pool = [simulate(graph, method, f"{at}.{number}") for number in range(runs)]
                seed = f"{variant}.{at}.{runs}"
                for rule, one in rules(graph.repository.task, pool, known, seed, plan.selectors).items():
                    here[rule].append(one)
        for rule, several in here.items():
            rates[rule].append(float(np.mean([solved for solved, _ in several])))
            regrets[rule].append(float(np.mean([lost for _, lost in several])))
    rows = [
        {"rule": rule, "resolved": mean_number(rates[rule]), "regret": mean_number(regrets[rule])} for rule in rates
    ]
    note = "regret: share of tasks that some run solved and the chosen one did not; ± over repositories"
    return Table("selection", f"Choosing among {runs} runs of {method.name}", rows, (note,))


def _select(
    task: str, leaves: Sequence[Leaf], suite: Suite | None, voters: Sequence[Selector], settings: Selection
) -> Leaf:
    return select(task, leaves, suite, voters, settings).leaf


def _number(seed: str) -> int:
    return int(seed.replace(".", ""))
