"""Who chooses among the candidates of a step: a language model with the paper's five dimensions, each 0 to 3.

The judge sees the whole trace (`judge_trace_limit` shortens its middle) and the candidates under letters in an order
that a seed permutes. It is asked for JSON by schema; a server that refuses a schema is asked for a JSON object, then
for text. A reply that is no such JSON is asked for again, then the votes decide, which is counted. Scores meet the
votes:

    posterior_i  ∝  votes_i ** vote_prior  ×  exp(judge_strength × score_i),   score = points / 15

`vote_prior` 1 takes the shares of the draws as the policy's own probabilities, 0 throws them away. `judge_strength` is
the log odds that a whole unit of score is worth; 8 suits scores of good and bad candidates that lie one standard
deviation of 1/8 apart. EGSS's own combination is not public. Equal posteriors: by seed, and counted.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hesnr_tasks.egss.llm import Answer, Rubric, ask, complete, guarded_litellm, letters, section, shorten

__all__ = ["DIMENSIONS", "Candidate", "Choice", "Judge", "choose"]

DIMENSIONS = {
    "step_consistency": "With this action added, does the trace still hang together: nothing contradicted, nothing "
    "done twice, no step that the ones before it do not lead to?",
    "context_awareness": "Does it use what the steps before it showed and keep it up to date, without forgetting, "
    "repeating or contradicting what is already known?",
    "goal_prioritization": "Does it work on the sub-goal that matters most now, rather than on side issues?",
    "expected_tool_use": "Is it the right command, rightly called, in a sensible order and with the least redundancy; "
    "are errors handled and results checked; are format-specific, edge and optimised paths covered in all relevant "
    "places?",
    "diagnostic_precision": "Does it isolate the root cause and tell it from its symptoms, neither over-generalising "
    "nor blaming the wrong place?",
}
_RUBRIC = Rubric("action", DIMENSIONS)
_ROLE = (
    "You judge the next step of an agent that repairs software. You see all it was told and did so far, and proposed "
    "next actions, none of which was executed."
)


@dataclass(frozen=True)
class Candidate:
    """Equal draws of a step, once: their canonical action, how many they are, and the text of the first."""

    key: str
    votes: int
    thought: str
    command: str


class Choice(NamedTuple):
    """Which candidate, and whether by lot."""

    place: int
    tied: bool


def choose(
    candidates: Sequence[Candidate], scores: Sequence[float] | None, seed: object, strength: float, prior: float
) -> Choice:
    """The candidate with the greatest posterior; equal ones by seed."""
    judged = scores if scores is not None else [0.0] * len(candidates)
    logs = [prior * math.log(c.votes) + strength * s for c, s in zip(candidates, judged, strict=True)]
    best = [i for i, value in enumerate(logs) if value >= max(logs) - 1e-9]
    place = random.Random(f"tie {seed}").choice(best)
    return Choice(place, len(best) > 1)


@dataclass
class Judge:
    """A chat model that scores candidates.

    Attributes:
        request: what each call is made with beside messages and format: model and `judge_kwargs`.
        complete: makes the call, retries passing faults and counts what it cost.
        note: counts what should be known: replies that could not be used, formats that were refused.
        trace_limit: most characters of the trace that it sees; 0: all of it.
        retries: how often an answer that cannot be used is asked for again.
    """

    request: Mapping[str, Any]
    complete: Callable[[Mapping[str, Any]], Any]
    note: Callable[[str], None]
    trace_limit: int = 0
    retries: int = 1
    _refused: int = 0  # formats that the server refuses

    def __call__(
        self, trace: str, candidates: Sequence[Candidate], seed: object
    ) -> tuple[tuple[float, ...], list[dict[str, int]]] | None:
        """(score in [0, 1], points by dimension) of each candidate; None where no usable answer came."""
        order = list(range(len(candidates)))
        random.Random(f"order {seed}").shuffle(order)
        names = letters(len(order))
        schema = None if "response_format" in self.request else _RUBRIC.schema(names)

        def answer(messages: list[dict[str, str]]) -> Answer | None:
            def call(**form: Any) -> Any:
                return self.complete({**form, **self.request, "messages": messages})

            try:
                reply, self._refused = complete(call, schema, self._refused, self._note_refused)
            except guarded_litellm().exceptions.ContextWindowExceededError:
                self.note("judge_context_exceeded")
                return None
            if not reply.choices:
                return Answer("")
            choice = reply.choices[0]
            return Answer(choice.message.content or "", choice.finish_reason == "length")

        asked = self._messages(trace, [candidates[i] for i in order], names)
        read = functools.partial(_RUBRIC.read, names=names)
        rows = ask(answer, asked, read, self.retries, lambda name: self.note(f"judge_{name}"))
        if rows is None:
            return None
        points = [rows[names[order.index(i)]] for i in range(len(order))]
        return tuple(map(_RUBRIC.score, points)), points

    def _note_refused(self, kind: str) -> None:
        self.note(f"judge_refuses_{kind}")

    def _messages(self, trace: str, shown: Sequence[Candidate], names: Sequence[str]) -> list[dict[str, str]]:
        # rules and trace come first and only ever grow, so that a server's prefix cache has them
        if self.trace_limit and len(trace) > self.trace_limit:
            self.note("judge_trace_shortened")
            trace = shorten(trace, self.trace_limit)
        actions = [
            section(f"action {name}", f"{c.thought}\n\n$ {c.command}".strip())
            for name, c in zip(names, shown, strict=True)
        ]
        material = "\n\n".join([section("trace", trace), *actions])
        return [
            {"role": "system", "content": _RUBRIC.rules(_ROLE)},
            {"role": "user", "content": f"{material}\n\nScore the actions {', '.join(names)}."},
        ]
