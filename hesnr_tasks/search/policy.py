"""From a conversation to n draws of its next step, by any model of mini-swe-agent. Needs mini-swe-agent.

Its litellm models can be asked once for n choices with log-probabilities: `sampling`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minisweagent.exceptions import InterruptAgentFlow

from hesnr_tasks.search.types import Draw, Message, Usage

__all__ = ["ModelPolicy", "decision_of", "drawn", "malformed", "usage_of"]

_NEEDLE = 40  # characters of a command that are looked for in what the server says it wrote


class ModelPolicy:
    """Any model of mini-swe-agent as a policy: its own `sample(messages, n)` where it has one, else n queries.

    `sample` may give draws or messages as `query` does.
    """

    def __init__(self, model: Any, decision_tokens: int = 3) -> None:
        self.model, self._tokens = model, decision_tokens

    def sample(self, messages: Sequence[Message], n: int) -> list[Draw]:
        """`n` draws; a malformed one has an error and no other effect."""
        own = getattr(self.model, "sample", None)
        if own is not None:
            return [found if isinstance(found, Draw) else self._draw(found) for found in own(list(messages), n)]
        return [self._query(messages) for _ in range(n)]

    def _query(self, messages: Sequence[Message]) -> Draw:
        try:
            return self._draw(self.model.query(list(messages)))
        except InterruptAgentFlow as error:
            return malformed(error)

    def _draw(self, message: Message) -> Draw:
        return drawn(message, self._tokens)


def drawn(message: Message, decision_tokens: int) -> Draw:
    """A good draw from the message that mini-swe-agent would append."""
    extra = message.get("extra", {})
    command = "\n".join(str(action.get("command", "")) for action in extra.get("actions", []))
    decision = decision_of(_choice(extra), command, decision_tokens)
    return Draw(message, command, decision, usage=usage_of(extra), cost=float(extra.get("cost", 0.0)))


def malformed(error: InterruptAgentFlow) -> Draw:
    """A draw that cannot be executed, with what mini-swe-agent would append instead."""
    message: Message = error.messages[0] if error.messages else {"role": "user", "content": str(error)}
    extra = message.get("extra", {})
    cost = float(extra.get("cost", 0.0))
    return Draw(message, "", error=type(error).__name__, usage=usage_of(extra), cost=cost)


def usage_of(extra: Mapping[str, Any]) -> Usage:
    """The tokens of the response kept in a message; zeros where the server told none."""
    response = extra.get("response")
    usage = response.get("usage") if isinstance(response, Mapping) else None
    if not isinstance(usage, Mapping):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    counts = (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))
    return Usage(*(int(count or 0) for count in counts))


def _choice(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    response = extra.get("response")
    choices = response.get("choices") if isinstance(response, Mapping) else None
    return choices[0] if choices and isinstance(choices[0], Mapping) else {}


def decision_of(choice: Mapping[str, Any], command: str, count: int) -> tuple[dict[str, float], ...]:
    """The alternatives at the first `count` tokens of the command: token -> log-probability in nats.

    Empty where the server gave none, or left the call's tokens out. The command is looked for as JSON spells it (in a
    call's arguments) and as it is (in text); its last place counts, since a thought may name it before.
    """
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not content or not command.strip():
        return ()
    tokens = [str(entry.get("token", "")) for entry in content]
    start = _place("".join(tokens), command.strip())
    if start < 0:
        return ()
    first = _token_at(tokens, start)
    return tuple(_alternatives(entry) for entry in content[first : first + count])


def _place(text: str, command: str) -> int:
    spellings = (json.dumps(command)[1:-1], json.dumps(command, ensure_ascii=False)[1:-1], command)
    return max(text.rfind(spelling[:_NEEDLE]) for spelling in spellings)


def _token_at(tokens: Sequence[str], place: int) -> int:
    for index, token in enumerate(tokens):
        if place < len(token):
            return index
        place -= len(token)
    return len(tokens)


def _alternatives(entry: Mapping[str, Any]) -> dict[str, float]:
    top = entry.get("top_logprobs") or [entry]
    return {str(other["token"]): float(other["logprob"]) for other in top}
