"""Policies: from a conversation to n draws of its next step. Needs mini-swe-agent.

`ModelPolicy` works with every model of mini-swe-agent, by asking n times. `SamplingModel` and `SamplingTextModel` are
its litellm models, asking once for n choices with log-probabilities; what the server refuses is left out from then on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import litellm
from minisweagent.exceptions import FormatError, InterruptAgentFlow
from minisweagent.models import GLOBAL_MODEL_STATS
from minisweagent.models.litellm_model import LitellmModel
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel
from minisweagent.models.utils.retry import retry

from hesnr_tasks.search.types import Draw, Message, Usage

__all__ = ["ModelPolicy", "SamplingModel", "SamplingTextModel", "decision_of", "usage_of"]

_log = logging.getLogger("hesnr_tasks")
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


class _Sampling(LitellmModel):
    """n choices of one request, each parsed on its own."""

    top_logprobs = 20  # vLLM's default limit; 0: none are asked for
    decision_tokens = 3
    _many = True  # until the server refuses n

    def sample(self, messages: list[Message], n: int) -> list[Draw]:
        """`n` draws; as many requests as it takes where the server gives fewer choices than asked for."""
        found: list[Draw] = []
        while len(found) < n:
            asked = n - len(found) if self._many else 1
            draws = self._draws(self._ask(messages, asked))
            self._many = self._many and (asked == 1 or len(draws) > 1)
            found += draws[: n - len(found)]
        return found

    def _ask(self, messages: list[Message], n: int) -> Any:
        prepared = self._prepare_messages_for_api(messages)
        refused = [litellm.exceptions.BadRequestError]  # asking the same again would be no use
        for attempt in retry(logger=_log, abort_exceptions=[*self.abort_exceptions, *refused]):
            with attempt:
                response = self._query_or_less(prepared, n)
        return response

    def _query_or_less(self, prepared: list[Message], n: int) -> Any:
        """The request; when it is refused, without log-probabilities, then with one choice."""
        try:
            return self._query(prepared, **self._options(n))
        except litellm.exceptions.ContextWindowExceededError:
            raise
        except litellm.exceptions.BadRequestError as error:
            if self.top_logprobs:
                response = self._query(prepared, **({"n": n} if n > 1 else {}))
                _log.warning("the server refuses log-probabilities: %s", str(error)[:200])
                self.top_logprobs = 0
                return response
            if n == 1:
                raise
            response = self._query(prepared)
            _log.warning("the server refuses several choices of one prompt; asking once for each")
            self._many = False
            return response

    def _options(self, n: int) -> dict[str, Any]:
        options: dict[str, Any] = {"n": n} if n > 1 else {}
        if self.top_logprobs:
            options |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return options

    def _draws(self, response: Any) -> list[Draw]:
        cost = self._calculate_cost(response)
        GLOBAL_MODEL_STATS.add(cost["cost"])
        whole = response.model_dump(mode="json")
        return [self._parsed(response, whole, index, cost["cost"]) for index in range(len(response.choices))]

    def _parsed(self, response: Any, whole: dict[str, Any], index: int, cost: float) -> Draw:
        """One choice as if it were the response's only one; the call's cost and usage are with the first."""
        one = whole | {"choices": [whole["choices"][index]], "usage": whole.get("usage") if index == 0 else None}
        extra = {"response": one, "cost": cost if index == 0 else 0.0, "timestamp": time.time()}
        try:
            actions = self._parse_actions(SimpleNamespace(choices=[response.choices[index]]))
        except FormatError as error:
            error.messages[0]["extra"].update(extra)
            return malformed(error)
        message = response.choices[index].message.model_dump(mode="json")
        return drawn(message | {"extra": {"actions": actions} | extra}, self.decision_tokens)


class SamplingModel(_Sampling):
    """mini-swe-agent's litellm model (tool calls), asked for n choices at once."""


class SamplingTextModel(_Sampling, LitellmTextbasedModel):
    """mini-swe-agent's text-based litellm model, asked for n choices at once."""
