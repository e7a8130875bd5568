"""Selectors: a chat model with the six-dimension rubric (all patches at once, or one by one), and scripted ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hesnr_tasks.search.consolidate_collect import source_only
from hesnr_tasks.search.judge import permutation, scripted_score, semantic_seed
from hesnr_tasks.search.judge_chat import Chat, ask_until_read
from hesnr_tasks.search.judge_replies import read_scores
from hesnr_tasks.search.prompts import PATCH_DIMENSIONS, letters, patch_messages
from hesnr_tasks.search.select import Ballot, Finalist, finalists
from hesnr_tasks.search.types import Leaf, Usage, total

__all__ = ["LLMSelector", "RandomSelector", "ScriptedSelector", "dei", "random_choice"]

_FULL = sum(max(one.points) for one in PATCH_DIMENSIONS)
_GATE = PATCH_DIMENSIONS[-1].key


@dataclass(frozen=True)
class LLMSelector:
    """A chat model with the rubric: all candidates in one question, or, `apart`, each alone (as DEI does).

    It sees the pass rates of the common suite as evidence; the gate is its own answer. Order: permuted by `seed`.
    """

    chat: Chat
    seed: int = 0
    apart: bool = False
    retries: int = 2
    limit: int = 24_000

    def ballot(self, task: str, candidates: Sequence[Finalist]) -> Ballot:
        """Points / 18, or 0 where functionality is 0. Raises `JudgeFailed`."""
        order = permutation(len(candidates), semantic_seed(self.seed, task, *sorted(one.id for one in candidates)))
        scores, notes, usage = [0.0] * len(candidates), [""] * len(candidates), Usage()
        for group in [[at] for at in order] if self.apart else [order]:
            points, spent = self._ask(task, [candidates[at] for at in group])
            usage = total((usage, spent))
            for at, given in zip(group, points, strict=True):
                scores[at] = sum(given.values()) / _FULL if given[_GATE] else 0.0
                notes[at] = json.dumps(given)
        return Ballot(tuple(scores), usage, tuple(notes))

    def _ask(self, task: str, shown: Sequence[Finalist]) -> tuple[list[dict[str, int]], Usage]:
        names = letters(len(shown))
        evidence = [f"passes {one.rate.passed:g} of {one.rate.total:g} tests" if one.rate else "" for one in shown]
        asked = patch_messages(task, [source_only(one.leaf.patch) for one in shown], evidence, self.limit)
        return ask_until_read(self.chat, asked, lambda text: read_scores(text, names, PATCH_DIMENSIONS), self.retries)


@dataclass(frozen=True)
class ScriptedSelector:
    """A selector of planted quality: as `ScriptedJudge`, over patches."""

    good: Callable[[Finalist], bool]
    d_prime: float
    seed: object = 0
    cost: Callable[[Sequence[Finalist]], Usage] = lambda candidates: Usage()

    def ballot(self, task: str, candidates: Sequence[Finalist]) -> Ballot:
        """One score each; the noise depends on `seed`, task and leaf only."""
        scores = [scripted_score(self.good(one), self.d_prime, self.seed, task, one.id) for one in candidates]
        return Ballot(tuple(scores), self.cost(candidates))


@dataclass(frozen=True)
class RandomSelector:
    """Baseline: seeded noise, for nothing."""

    seed: int = 0

    def ballot(self, task: str, candidates: Sequence[Finalist]) -> Ballot:
        """Uniform numbers."""
        drawn = [random.Random(semantic_seed(self.seed, task, one.id)).random() for one in candidates]
        return Ballot(tuple(drawn), Usage())


def random_choice(task: str, leaves: Sequence[Leaf], seed: int = 0) -> Leaf:
    """Baseline: any leaf with a patch, each with the same chance (so a patch counts as often as it was reached)."""
    ids = {one for finalist in finalists(leaves) for one in finalist.leaves}
    pool = [leaf for leaf in leaves if leaf.id in ids]
    return pool[random.Random(semantic_seed(seed, task)).randrange(len(pool))]


def dei(
    task: str, leaves: Sequence[Leaf], scorers: Sequence[LLMSelector], least: float = 0.3
) -> tuple[Leaf | None, Usage]:
    """Baseline in the style of DEI: each patch alone, mean over `scorers`, the best if above `least`; ties: the first.

    None where no patch is above it. Raises `JudgeFailed` where a scorer gives no number.
    """
    candidates = finalists(leaves)
    totals, usage = [0.0] * len(candidates), Usage()
    for scorer in scorers:
        ballot = scorer.ballot(task, candidates)
        usage = total((usage, ballot.usage))
        totals = [a + b / len(scorers) for a, b in zip(totals, ballot.scores, strict=True)]
    at = max(range(len(candidates)), key=lambda i: (totals[i], -i))
    return (candidates[at].leaf if totals[at] > least else None), usage
