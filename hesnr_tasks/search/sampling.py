"""mini-swe-agent's litellm models, asked once for n choices with log-probabilities. Needs mini-swe-agent.

What the server refuses (log-probabilities, several choices) is left out from then on, and said once.
"""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import litellm
from minisweagent.exceptions import FormatError
from minisweagent.models import GLOBAL_MODEL_STATS
from minisweagent.models.litellm_model import LitellmModel
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel
from minisweagent.models.utils.retry import retry

from hesnr_tasks.search.policy import drawn, malformed
from hesnr_tasks.search.types import Draw, Message

__all__ = ["SamplingModel", "SamplingTextModel"]

_log = logging.getLogger("hesnr_tasks")
litellm.suppress_debug_info = True  # else it prints an invitation to report a bug at each failed request


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
