"""Does a judge prefer a position? The same questions in every rotation of the candidates, tested by permutation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.search.judge import LLMJudge
from hesnr_tasks.search.types import Candidate, Message, Usage, total

__all__ = ["PositionBias", "Question", "position_bias", "rotations"]

FloatArray = npt.NDArray[np.float64]


class Question(NamedTuple):
    """One step to judge; all questions of a test have equally many candidates."""

    task: str
    history: Sequence[Message]
    candidates: Sequence[Candidate]


class PositionBias(NamedTuple):
    """`effects`: mean score at each position less the mean over all, shape (c,); `p`: of no effect at all.

    `stable`: share of rotations in which the same candidate wins as in most rotations of its question.
    """

    effects: tuple[float, ...]
    p: float
    stable: float
    usage: Usage


def position_bias(
    judge: LLMJudge, questions: Sequence[Question], permutations: int = 2_000, seed: int = 0
) -> PositionBias:
    """Ask every question once for each rotation: each candidate stands once at each position.

    The p-value is exact up to its `permutations`: positions are shuffled within each candidate's scores.
    """
    if len({len(one.candidates) for one in questions}) != 1 or len(questions[0].candidates) < 2:
        raise SettingsError("a test of position bias needs questions with equally many candidates, two or more")
    asked = [rotations(judge, one) for one in questions]
    scores = np.concatenate([one for one, _ in asked])  # (questions × c, positions)
    effects = scores.mean(axis=0) - scores.mean()
    rng = np.random.default_rng(seed)
    drawn = [_strength(rng.permuted(scores, axis=1)) for _ in range(permutations)]
    extreme = sum(one >= _strength(scores) - 1e-12 for one in drawn)
    usage = Usage()
    for _, spent in asked:
        usage = total((usage, spent))
    stable = float(np.mean([_stable(one) for one, _ in asked]))
    return PositionBias(tuple(effects.tolist()), (1 + extreme) / (1 + permutations), stable, usage)


def rotations(judge: LLMJudge, question: Question) -> tuple[FloatArray, Usage]:
    """Scores (candidates, positions): candidate i when shown at position p."""
    count = len(question.candidates)
    scores, usage = np.empty((count, count)), Usage()
    for shift in range(count):
        order = [(at + shift) % count for at in range(count)]  # candidate order[p] at position p
        verdict = judge.judge_in_order(*question, order)
        usage = total((usage, verdict.usage))
        for position, candidate in enumerate(order):
            scores[candidate, position] = verdict.scores[candidate]
    return scores, usage


def _strength(scores: FloatArray) -> float:
    return float(np.square(scores.mean(axis=0) - scores.mean()).sum())


def _stable(scores: FloatArray) -> float:
    """Share of rotations whose winner is the commonest winner."""
    count = len(scores)
    winners = [int(np.argmax([scores[c, (c - shift) % count] for c in range(count)])) for shift in range(count)]
    return max(winners.count(one) for one in winners) / count
