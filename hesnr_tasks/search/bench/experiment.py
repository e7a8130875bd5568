"""The bench's experiment: gates, judges and numbers of runs on all repositories, as records for the cost report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hesnr_tasks.search.bench.graph import Graph, build
from hesnr_tasks.search.bench.outcomes import Outcomes, outcomes
from hesnr_tasks.search.bench.repositories import load, names
from hesnr_tasks.search.bench.simulate import Method, Run, choose, simulate
from hesnr_tasks.search.costs import Record
from hesnr_tasks.search.decide import SearchSettings
from hesnr_tasks.search.gates import Always, Gate, Never, Random, Threshold
from hesnr_tasks.search.types import Usage

__all__ = ["JUDGES", "Plan", "experiment", "firing", "methods"]

JUDGES = {"good": 2.0, "mediocre": 1.0, "blind": 0.0}  # d′
THRESHOLD = 0.3  # nats: above every plain step, below every fork
_WHOLE = SearchSettings(source="logprob", resolution="whole")
_VOTES = SearchSettings(source="vote", resolution="whole", probe=2)


@dataclass(frozen=True)
class Plan:
    """How much is simulated: agents a repository, repetitions of each, and numbers of runs."""

    variants: int = 3
    repetitions: int = 8
    plain: tuple[int, ...] = (1, 2, 4, 8, 16)
    gated: tuple[int, ...] = (1, 2, 4, 8)
    selectors: float = 1.0  # their d′
    repositories: tuple[str, ...] = ()  # none: all

    @property
    def names(self) -> tuple[str, ...]:
        """The repositories."""
        return self.repositories or tuple(names())


def firing(plan: Plan) -> float:
    """Share of steps at which the entropy gate fires, from one run of each agent: the rate of the random gate."""
    method = Method("probe", Threshold(THRESHOLD), 1.0, _WHOLE)
    runs = [simulate(graph, method, f"probe-{seed}") for graph, _ in _agents(plan) for seed in range(4)]
    return sum(run.forks for run in runs) / sum(len(run.path) for run in runs)


def methods(rate: float) -> list[Method]:
    """All methods; `rate`: of the random gate."""
    found = [Method("best-of-N", Never(), 0.0, _WHOLE)]
    gates: list[tuple[str, Gate | None, SearchSettings]] = [
        ("entropy (log-probabilities)", Threshold(THRESHOLD), _WHOLE),
        ("entropy (2 votes)", Threshold(0.0), _VOTES),
        ("random, same rate", Random(rate), _WHOLE),
        ("oracle gate", None, _WHOLE),
    ]
    for gate_name, gate, settings in gates:
        found += [Method(f"{gate_name}, {judge} judge", gate, d, settings) for judge, d in JUDGES.items()]
    found += [
        Method("always, mediocre judge", Always(), 1.0, _WHOLE),
        Method(
            "entropy (log-probabilities), keys by file, mediocre judge",
            Threshold(THRESHOLD),
            1.0,
            SearchSettings(source="logprob", resolution="file"),
        ),
        Method(
            "entropy (log-probabilities), votes thrown away, blind judge",
            Threshold(THRESHOLD),
            0.0,
            SearchSettings(source="logprob", resolution="whole", prior=0.0),
        ),
    ]
    return found


def experiment(plan: Plan, chosen: Sequence[Method]) -> Iterator[Record]:
    """One record for each repository, method and number of runs: means over agents and repetitions."""
    for name in plan.names:
        agents = list(_agents(Plan(**{**plan.__dict__, "repositories": (name,)})))
        for method in chosen:
            counts = plan.plain if method.name == "best-of-N" else plan.gated
            pools = [
                (graph, known, f"{variant}.{at}", _pool(graph, method, max(counts), at))
                for variant, (graph, known) in enumerate(agents)
                for at in range(plan.repetitions)
            ]
            for runs in counts:
                yield _record(name, method, runs, pools, plan.selectors)


def _agents(plan: Plan) -> Iterator[tuple[Graph, Outcomes]]:
    for name in plan.names:
        repository, known = load(name), outcomes(name)
        for variant in range(plan.variants):
            yield build(repository, variant), known


def _pool(graph: Graph, method: Method, count: int, repetition: int) -> list[Run]:
    return [simulate(graph, method, f"{repetition}.{at}") for at in range(count)]


def _record(
    name: str, method: Method, runs: int, pools: Sequence[tuple[Graph, Outcomes, str, list[Run]]], d_prime: float
) -> Record:
    found = [
        choose(graph.repository.task, pool[:runs], known, f"{seed}.{runs}", d_prime)
        for graph, known, seed, pool in pools
    ]
    count = len(found)
    kinds = sorted({kind for one in found for kind in one.usage})
    usage = {kind: Usage(*_mean([one.usage.get(kind, Usage()) for one in found])) for kind in kinds}
    resolved = sum(one.resolved for one in found) / count
    return Record(name, method.name, runs, resolved, usage, sum(one.tests for one in found) / count)


def _mean(usages: Sequence[Usage]) -> list[int]:
    return [round(sum(column) / len(usages)) for column in zip(*usages, strict=True)]
