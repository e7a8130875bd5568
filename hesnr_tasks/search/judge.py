"""Who says which candidate is best: judges, and how their scores meet the votes.

A judge's score is a number in [0, 1] or an error. The votes (how many draws had the candidate's action key) are kept as
the prior, since they are the policy's own opinion:

    posterior_i  ∝  votes_i ** prior  ×  exp(strength × score_i)

EGSS's own combination is not public. `prior` = 1 takes the votes as estimated probabilities, 0 throws them away (with a
blind judge that is worse than not branching at all). `strength` is the log odds that a whole unit of score is worth:
for scores with equal spread σ that lie δ apart for good and bad candidates it is δ / σ² (`strength_from` estimates it).
The default, 8, suits a judge whose good and bad scores lie one standard deviation apart (d′ = 1, σ = 1/8).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.search.judge_chat import Chat, JudgeFailed, ask_until_read
from hesnr_tasks.search.judge_replies import read_scores
from hesnr_tasks.search.prompts import STEP_DIMENSIONS, letters, step_messages
from hesnr_tasks.search.types import Candidate, Message, Usage, Verdict

__all__ = [
    "SPREAD",
    "Blend",
    "LLMJudge",
    "LogprobJudge",
    "ScriptedJudge",
    "best",
    "chosen_logprobs",
    "permutation",
    "posterior",
    "scripted_score",
    "semantic_seed",
    "strength_from",
]

SPREAD = 1 / 8  # standard deviation of a scripted judge's scores
_FULL = sum(max(one.points) for one in STEP_DIMENSIONS)


class Blend(NamedTuple):
    """How votes and scores are combined; see the module's formula."""

    strength: float = 8.0
    prior: float = 1.0


_USUAL = Blend()


def posterior(votes: Sequence[int], scores: Sequence[float] | None, blend: Blend = _USUAL) -> tuple[float, ...]:
    """Probabilities of the candidates, summing to 1; `scores` None: the votes alone. Raises `SettingsError`."""
    if not votes or min(votes) < 1:
        raise SettingsError(f"every candidate has at least one vote, not {list(votes)}")
    if scores is not None and (len(scores) != len(votes) or not all(0 <= s <= 1 for s in scores)):
        raise SettingsError(f"one score in [0, 1] for each of {len(votes)} candidates, not {list(scores)}")
    if not (blend.strength >= 0 and blend.prior >= 0 and math.isfinite(blend.strength + blend.prior)):
        raise SettingsError(f"strength and prior must be finite and not negative, not {tuple(blend)}")
    judged = scores if scores is not None else [0.0] * len(votes)
    logs = [blend.prior * math.log(v) + blend.strength * s for v, s in zip(votes, judged, strict=True)]
    weights = [math.exp(one - max(logs)) for one in logs]
    return tuple(one / math.fsum(weights) for one in weights)


def best(candidates: Sequence[Candidate], scores: Sequence[float] | None, blend: Blend = _USUAL) -> int:
    """The place of the candidate with the greatest posterior; ties: more votes, then drawn first."""
    odds = posterior([one.votes for one in candidates], scores, blend)
    return max(range(len(odds)), key=lambda i: (round(odds[i], 12), candidates[i].votes, -i))


def strength_from(good: Sequence[float], bad: Sequence[float]) -> float:
    """The `strength` that scores of known good and bad candidates call for: (mean - mean) / pooled variance, ≥ 0."""
    if len(good) < 2 or len(bad) < 2:
        raise SettingsError("a judge is calibrated from at least two good and two bad candidates")
    squares = float(np.var(good)) * len(good) + float(np.var(bad)) * len(bad)
    apart = float(np.mean(good)) - float(np.mean(bad))
    if squares == 0:
        raise SettingsError("these scores do not vary: no judge can be calibrated from them")
    return max(0.0, apart / (squares / (len(good) + len(bad) - 2)))


def semantic_seed(*parts: object) -> int:
    """A seed that depends on what is asked, not on when: the same parts give the same number everywhere."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def permutation(count: int, seed: int) -> list[int]:
    """A seeded order of 0 … count - 1."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


@dataclass(frozen=True)
class LLMJudge:
    """A chat model with the five-dimension rubric; candidates are shown in an order permuted by `seed` and content.

    `retries`: how often an unusable reply is asked for again; `limit`: most characters of history that it is shown.
    """

    chat: Chat
    seed: int = 0
    retries: int = 2
    limit: int = 24_000

    def judge(self, task: str, history: Sequence[Message], candidates: Sequence[Candidate]) -> Verdict:
        """Points / 15 of each candidate. Raises `JudgeFailed` (with the usage) where no usable reply came."""
        about = semantic_seed(self.seed, task, len(history), *sorted(one.key for one in candidates))
        return self.judge_in_order(task, history, candidates, permutation(len(candidates), about))

    def judge_in_order(
        self, task: str, history: Sequence[Message], candidates: Sequence[Candidate], order: Sequence[int]
    ) -> Verdict:
        """The same with candidate `order[p]` shown at position p; scores come back in the order of `candidates`."""
        shown = [candidates[i] for i in order]
        names = letters(len(shown))
        asked = step_messages(task, history, shown, self.limit)
        points, usage = ask_until_read(
            self.chat, asked, lambda text: read_scores(text, names, STEP_DIMENSIONS), self.retries
        )
        scores, notes = [0.0] * len(shown), [""] * len(shown)
        for at, given in zip(order, points, strict=True):
            scores[at] = sum(given.values()) / _FULL
            notes[at] = json.dumps(given)
        return Verdict(tuple(scores), usage, tuple(notes))


def scripted_score(good: bool, d_prime: float, *about: object) -> float:
    """1/2 + x / 8 within [0, 1], x ~ N(± `d_prime` / 2, 1); the noise is seeded by what is judged."""
    noise = random.Random(semantic_seed(*about)).gauss(0, 1)
    return min(1.0, max(0.0, 0.5 + SPREAD * ((d_prime if good else -d_prime) / 2 + noise)))


@dataclass(frozen=True)
class ScriptedJudge:
    """A judge of planted quality, for benches: x ~ N(± `d_prime` / 2, 1) for good and bad, score 1/2 + x / 8 in [0, 1].

    `good` says whether a candidate is; `cost` what asking costs. The noise depends on `seed`, task, the commands of the
    history and the candidate's key only, so the same question has the same answer.
    """

    good: Callable[[str, Sequence[Message], Candidate], bool]
    d_prime: float
    seed: int = 0
    cost: Callable[[Sequence[Message], Sequence[Candidate]], Usage] = lambda history, candidates: Usage()

    def judge(self, task: str, history: Sequence[Message], candidates: Sequence[Candidate]) -> Verdict:
        """One score each."""
        scores = []
        for one in candidates:
            about = (self.seed, task, _commands(history), one.key)
            scores.append(scripted_score(self.good(task, history, one), self.d_prime, *about))
        return Verdict(tuple(scores), self.cost(history, candidates))


@dataclass(frozen=True)
class LogprobJudge:
    """No second model: the geometric mean of the probabilities that the policy itself gave the candidate's tokens."""

    def judge(self, task: str, history: Sequence[Message], candidates: Sequence[Candidate]) -> Verdict:
        """exp of the mean log-probability. Raises `JudgeFailed` where the server gave none."""
        means = [float(np.mean(chosen_logprobs(one))) for one in candidates]
        return Verdict(tuple(math.exp(min(mean, 0.0)) for mean in means), Usage())


def chosen_logprobs(candidate: Candidate) -> list[float]:
    """Log-probabilities (nats) of the tokens of a draw, as a chat completion states them. Raises `JudgeFailed`."""
    try:
        response = candidate.draw.message["extra"]["response"]
        found = [float(one["logprob"]) for one in response["choices"][0]["logprobs"]["content"]]
    except (KeyError, IndexError, TypeError, ValueError):
        found = []
    if not found or not all(math.isfinite(one) for one in found):
        raise JudgeFailed(
            f"the draw of {candidate.key!r} holds no log-probabilities to judge by; ask the server for logprobs, or "
            "choose another judge"
        )
    return found


def _commands(history: Sequence[Message]) -> str:
    actions = [one for message in history for one in (message.get("extra") or {}).get("actions") or ()]
    return json.dumps([one.get("command", "") for one in actions])
