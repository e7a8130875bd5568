"""How undecided an agent is at a step, estimated from a few drawn actions, in nats.

- `votes`: the plug-in entropy of the canonical actions of the probes. Works with every server; two probes know two
  values, 0 (they agree) and ln 2.
- `logprob`: minus the mean log-probability of the tokens of the command, as the server states them for the tokens it
  chose, averaged over the probes: a length-normalised estimate of the entropy of whole commands. Thoughts, the mark-up
  of the call and the alternatives to a token are not looked at.

EGSS (arXiv 2602.05242, Eq. 1) is -sum P(a | s) ln P(a | s) over actions; where P comes from is not public.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hesnr_tasks.actions.classes import canonical_key
from hesnr_tasks.errors import SearchError, SettingsError, nearest

__all__ = ["ESTIMATORS", "Estimator", "canonical", "command_logprob", "vote_entropy"]

ESTIMATORS = ("votes", "logprob")
ACTIONS = "canonical-1"  # version of what counts as the same action; part of what a calibration must agree with


def canonical(command: str) -> str:
    """One spelling of an action: white space, comments, needless quotes and a `cd` to the repository do not count."""
    return canonical_key(command, "whole")


@dataclass(frozen=True)
class Estimator:
    """One of `ESTIMATORS` over so many probes."""

    name: str = "votes"
    probes: int = 2

    def __post_init__(self) -> None:
        if self.name not in ESTIMATORS:
            raise SettingsError(
                f"model.estimator is {self.name!r}; it must be one of {', '.join(ESTIMATORS)}."
                f"{nearest(self.name, ESTIMATORS)}"
            )
        least = 2 if self.name == "votes" else 1
        if self.probes < least:
            raise SettingsError(f"model.probes is {self.probes}; the estimator {self.name!r} needs at least {least}.")

    @property
    def identity(self) -> dict[str, Any]:
        """What two estimates must share to be compared with one threshold."""
        return {"estimator": self.name, "probes": self.probes, "actions": ACTIONS}

    def __call__(self, keys: Sequence[str], logprobs: Sequence[float]) -> float:
        """The estimate in nats; NaN where too few probes were well-formed.

        Args:
            keys: canonical actions of the well-formed probes.
            logprobs: mean log-probability (nats a token) of each one's command; NaN where it is not known.

        Raises:
            SearchError: the estimator is `logprob` and no probe has a log-probability.
        """
        if self.name == "votes":
            return vote_entropy(keys) if len(keys) >= 2 else math.nan
        stated = [value for value in logprobs if not math.isnan(value)]
        if keys and not stated:
            raise SearchError(
                "the server gave no log-probabilities for the tokens of the command, which model.estimator=logprob "
                "needs.\nUse model.estimator=votes, or a server that returns them with tool calls (vLLM does, unless "
                "include_reasoning is false; Ollama and OpenAI's Responses API do not)."
            )
        return -math.fsum(stated) / len(stated) if stated else math.nan


def vote_entropy(keys: Sequence[str]) -> float:
    """Plug-in entropy of the shares that each action has, in [0, ln n]; 0 for no draw."""
    n = len(keys)
    return max(0.0, -math.fsum(c / n * math.log(c / n) for c in Counter(keys).values())) if n else 0.0


def command_logprob(choice: Mapping[str, Any], commands: Sequence[str]) -> float:
    """Mean log-probability of the tokens that spell the commands of a choice.

    Args:
        choice: a choice of a chat completion, as a mapping.
        commands: the commands it was parsed into, in order.

    Returns:
        Nats a token; NaN where the server stated no log-probabilities, or none for the tokens of the commands.
    """
    content = (choice.get("logprobs") or {}).get("content") or []
    tokens, logprobs = [], []
    for entry in content:
        stated = entry.get("bytes")
        tokens.append(bytes(stated) if stated else str(entry.get("token") or "").encode("utf-8", "surrogatepass"))
        logprobs.append(entry.get("logprob"))
    text, covered = b"".join(tokens), []
    before = len(text)
    for command in reversed(commands):  # what is spelled in a thought comes before the call
        begin, end = _place(text, command, before)
        covered.append((begin, end))
        before = begin
    values, position = [], 0
    for token, value in zip(tokens, logprobs, strict=True):
        end = position + len(token)
        if any(position < stop and end > begin for begin, stop in covered):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                return math.nan
            values.append(float(value))
        position = end
    return math.fsum(values) / len(values) if values else math.nan


def _place(text: bytes, command: str, before: int) -> tuple[int, int]:
    """The last place where a command is spelled, as JSON has it or as it is; an empty span where it is not."""
    quoted = [('"', json.dumps(command, ensure_ascii=ascii_only)[1:-1], '"') for ascii_only in (True, False)]
    for opening, spelling, closing in [*quoted, ("\n", command, "\n"), ("", command, "")]:
        wanted = f"{opening}{spelling}{closing}".encode("utf-8", "surrogatepass")
        begin = text.rfind(wanted, 0, before)
        if command and begin >= 0:
            return begin + len(opening), begin + len(wanted) - len(closing)
    return before, before
