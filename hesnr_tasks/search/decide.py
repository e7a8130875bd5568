"""One decision: draw, count, ask the gate, ask the judge, choose. Nothing is executed.

Where the paper's formula is not public: entropy is over action keys (settings: resolution, estimator, or log-
probabilities), and the choice is by votes**prior * exp(trust * score), ties to more votes, then to the first drawn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hesnr_tasks.actions.classes import canonical_key as action_key
from hesnr_tasks.errors import JudgeError, SearchError, SettingsError
from hesnr_tasks.search.entropy import decision_entropy, vote_entropy
from hesnr_tasks.search.gates import Gate, StepState
from hesnr_tasks.search.judge import Blend, posterior
from hesnr_tasks.search.types import Candidate, Draw, Judge, Message, Policy, Usage, total

__all__ = ["MODES", "SOURCES", "Decider", "SearchSettings", "candidates_of"]

MODES = ("choose", "split")
SOURCES = ("vote", "logprob")
_log = logging.getLogger("hesnr_tasks")


@dataclass(frozen=True)
class SearchSettings:
    """How a search spends.

    n: draws at a step where the gate fires; probe: draws before the gate is asked (0: n by votes, 1 by logprob);
    mode: at a fork, `choose` one candidate or `split` into live branches; width: most branches of a run, ever;
    runs: independent runs from the beginning (with the gate `never`: best-of-N);
    prior, trust: weight of a candidate, votes**prior * exp(trust * score); token_limit: prompt and output tokens of all
    calls, 0 for none (steps, money and time are limited by mini-swe-agent's own settings, over the whole tree).
    """

    n: int = 4
    probe: int = 0
    source: str = "vote"
    resolution: str = "whole"
    estimator: str = "plug_in"
    combine: str = "max"
    mode: str = "choose"
    width: int = 4
    runs: int = 1
    prior: float = 1.0
    trust: float = 8.0
    token_limit: int = 0

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("source", SOURCES)):
            if getattr(self, name) not in known:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")
        for name, least in (("n", 1), ("probe", 0), ("width", 1), ("runs", 1), ("token_limit", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.probe > self.n:
            raise SettingsError(f"probe is {self.probe}, more than n = {self.n}: the probe is part of the n draws.")


@dataclass
class _Step:
    """What has been found out about a step so far."""

    draws: list[Draw] = field(default_factory=list)
    entropy: float = math.nan
    source: str = ""
    fork: bool = False
    reason: str = ""
    scores: tuple[float, ...] | None = None
    judge_error: str = ""


def candidates_of(draws: Sequence[Draw], resolution: str) -> list[tuple[Candidate, int]]:
    """The good draws by action key, in the order first drawn, with votes and the index of the first such draw."""
    first: dict[str, int] = {}
    votes: dict[str, int] = {}
    for index, draw in enumerate(draws):
        if not draw.error:
            key = action_key(draw.command, resolution)
            first.setdefault(key, index)
            votes[key] = votes.get(key, 0) + 1
    return [(Candidate(key, votes[key], draws[index]), index) for key, index in first.items()]


class Decider:
    """Decides steps. `spend(kind, usage, n, cost, node)` is told of every call, before anything else happens."""

    def __init__(
        self,
        policy: Policy,
        gate: Gate,
        judge: Judge | None,
        settings: SearchSettings,
        spend: Callable[[str, Usage, int, float, str], None],
    ) -> None:
        self.policy, self.gate, self.judge, self.settings, self._spend = policy, gate, judge, settings, spend
        self.votes_only = settings.source == "vote"
        self._told = False  # that the server states no usage

    def decide(self, node: str, task: str, messages: Sequence[Message], state: StepState, room: int) -> dict[str, Any]:
        """The record of a decision (see `tree`); `room`: how many more branches there may be."""
        step = _Step()
        self._draw_and_gate(step, node, messages, state)
        found = candidates_of(step.draws, self.settings.resolution)
        candidates = [candidate for candidate, _ in found]
        if step.fork and len(candidates) > 1 and self.judge is not None:
            self._ask_judge(step, node, task, messages, candidates)
        chosen = self._choose(step, candidates, room)
        return {
            "type": "draws",
            "node": node,
            "draws": [_plain(draw) for draw in step.draws],
            "candidates": [{"key": c.key, "votes": c.votes, "draw": index} for c, index in found],
            "entropy": None if math.isnan(step.entropy) else step.entropy,
            "source": step.source,
            "fork": step.fork,
            "reason": step.reason,
            "scores": None if step.scores is None else list(step.scores),
            "judge_error": step.judge_error,
            "chosen": chosen,
        }

    def _draw_and_gate(self, step: _Step, node: str, messages: Sequence[Message], state: StepState) -> None:
        if self.gate.signal:
            self._draw(step, node, messages, self._probe())
            if all(draw.error for draw in step.draws):
                step.reason = "all draws malformed"
                return
            step.entropy, step.source = self._entropy(step, node, messages)
        decision = self.gate(_with(state, step.entropy))
        step.fork, step.reason = decision.fork, decision.reason
        wanted = self.settings.n if step.fork else 1
        self._draw(step, node, messages, max(0, wanted - len(step.draws)))

    def _probe(self) -> int:
        if self.settings.source == "logprob" and not self.votes_only:
            return self.settings.probe or 1
        return max(self.settings.probe, 2) if self.settings.probe else self.settings.n

    def _draw(self, step: _Step, node: str, messages: Sequence[Message], n: int) -> None:
        if n:
            draws = self.policy.sample(messages, n)
            usage = total(draw.usage for draw in draws)
            if not usage.prompt and not self._told:
                _log.warning("the server states no token usage: what this costs is not known, and not limited")
                self._told = True
            self._spend("sample", usage, len(draws), sum(draw.cost for draw in draws), node)
            step.draws.extend(draws)

    def _entropy(self, step: _Step, node: str, messages: Sequence[Message]) -> tuple[float, str]:
        if not self.votes_only:
            good = [draw for draw in step.draws if not draw.error]
            try:
                return decision_entropy(good[0].decision, self.settings.combine), "logprob"
            except SearchError as error:
                _log.warning("%s. From here on the gate goes by votes of %d draws a step.", error, self.settings.n)
                self.votes_only = True
                self._draw(step, node, messages, max(0, self._probe() - len(step.draws)))
        keys = [action_key(draw.command, self.settings.resolution) for draw in step.draws if not draw.error]
        return vote_entropy(keys, self.settings.estimator), "vote"

    def _ask_judge(
        self, step: _Step, node: str, task: str, messages: Sequence[Message], candidates: list[Candidate]
    ) -> None:
        assert self.judge is not None
        try:
            verdict = self.judge.judge(task, messages, candidates)
        except JudgeError as error:  # a score is a number or an error: the votes alone decide, and the tree says why
            self._spend("judge", Usage(*getattr(error, "usage", Usage())), 1, 0.0, node)
            step.judge_error = str(error)
            _log.warning("step %s: the judge failed, the votes decide: %s", node, str(error)[:200])
        else:
            self._spend("judge", verdict.usage, 1, 0.0, node)
            step.scores = tuple(verdict.scores)

    def _choose(self, step: _Step, candidates: list[Candidate], room: int) -> list[int]:
        if not candidates:
            return []
        blend = Blend(prior=self.settings.prior, strength=self.settings.trust)
        votes = [candidate.votes for candidate in candidates]
        weights = posterior(votes, step.scores, blend)
        order = sorted(range(len(candidates)), key=lambda i: (-round(weights[i], 12), -votes[i], i))
        return order[: 1 + room] if step.fork and self.settings.mode == "split" else order[:1]


def _with(state: StepState, entropy: float) -> StepState:
    return StepState(state.id, entropy, state.history, state.forks, state.tokens)


def _plain(draw: Draw) -> dict[str, Any]:
    """A draw for the file; decision and usage are in its message's response, or summed up in the ledger."""
    return {"message": draw.message, "command": draw.command, "error": draw.error, "cost": draw.cost}
