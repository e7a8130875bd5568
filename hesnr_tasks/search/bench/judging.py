"""The bench's judge and selectors: planted quality, with the tokens that real ones would need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hesnr_tasks.search.bench.graph import Graph
from hesnr_tasks.search.bench.policy import commands_of
from hesnr_tasks.search.judge import scripted_score
from hesnr_tasks.search.select import Finalist, changed_lines
from hesnr_tasks.search.select_selectors import ScriptedSelector
from hesnr_tasks.search.types import Candidate, Message, Usage, Verdict

__all__ = ["BenchJudge", "selector_usage", "selectors"]

_SEEN = 6_000  # tokens of history that a judge is shown at most: `LLMJudge.limit` characters
_RUBRIC = 700


@dataclass(frozen=True)
class BenchJudge:
    """A judge of steps; `d_prime`: how many standard deviations right and wrong actions lie apart."""

    graph: Graph
    d_prime: float
    seed: object = 0

    def judge(self, task: str, history: Sequence[Message], candidates: Sequence[Candidate]) -> Verdict:
        """As the search asks."""
        path = self.graph.walk(commands_of(history))
        taken = {edge.command: edge.label for edge in self.graph.edges(path)}
        labels = [taken[one.draw.command] for one in candidates]
        return Verdict(self.scores(path, labels), self.usage(path, labels))

    def scores(self, path: Sequence[str], labels: Sequence[str]) -> tuple[float, ...]:
        """One score for each option; the noise depends on seed, agent, path and option."""
        good = {edge.label: edge.good for edge in self.graph.edges(path)}
        about = (self.seed, self.graph.name, "/".join(path))
        return tuple(scripted_score(good[label], self.d_prime, *about, label) for label in labels)

    def usage(self, path: tuple[str, ...], labels: Sequence[str]) -> Usage:
        """Rubric, the end of the history and the candidates in; five numbers for each candidate out."""
        said = {edge.label: edge.output for edge in self.graph.edges(path)}
        return Usage(
            _RUBRIC + min(self.graph.tokens(path), _SEEN) + sum(said[label] for label in labels),
            0,
            10 + 45 * len(labels),
        )


def selector_usage(candidates: Sequence[Finalist]) -> Usage:
    """Rubric, task and patches in; six numbers for each candidate out."""
    patches = sum(100 + 12 * changed_lines(one.leaf.patch) for one in candidates)
    return Usage(_RUBRIC + 300 + patches, 0, 10 + 55 * len(candidates))


def selectors(resolved: Mapping[str, bool], d_prime: float, seed: object, count: int = 3) -> list[ScriptedSelector]:
    """`count` independent selectors that know the truth, blurred; `resolved`: leaf -> solved."""
    return [
        ScriptedSelector(lambda one: resolved[one.id], d_prime, f"{seed}-{number}", selector_usage)
        for number in range(count)
    ]
