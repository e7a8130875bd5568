"""`GatedModel`: a model class for mini-swe-agent that draws more actions where a gate says so, and lets a judge choose.

    mini-extra swebench --model-class hesnr_tasks.egss.GatedModel -c swebench.yaml -c model.gate=edit …

Workers, progress, containers, resuming, limits: all of that is mini-swe-agent's. At a step two actions are drawn (the
probes), a gate looks at them, and where it fires the draws are filled up to `draws`, equal ones are put together and a
judge chooses. With `gate=never` not one line of this runs: requests and trajectory are those of mini's own class.

What a step cost is in its message (`extra.cost` is the sum that mini's limits see, `extra.egss` has the parts) and
what the run cost in the trajectory's `info.model_stats.egss`.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import litellm
import openai
from minisweagent.exceptions import FormatError
from minisweagent.models import GLOBAL_MODEL_STATS
from minisweagent.models.litellm_model import LitellmModel, LitellmModelConfig
from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel, LitellmTextbasedModelConfig
from minisweagent.models.utils.content_string import get_content_string
from minisweagent.models.utils.retry import retry
from pydantic import BaseModel, ConfigDict, ValidationError

from hesnr_tasks.actions.classes import action_class, canonical_command
from hesnr_tasks.egss import Calibration, Estimator, GateInput, command_logprob, open_gate, uniform
from hesnr_tasks.egss.judges import Judge, Ledger, choose, guarded_litellm, no_server_message, nothing_listens, spent_of
from hesnr_tasks.errors import SearchError, SettingsError, nearest

ChatDict = dict[str, Any]
_log = logging.getLogger("hesnr_tasks")
_CONNECTION = ("api_base", "base_url", "api_key", "api_version", "custom_llm_provider", "extra_headers", "timeout")
_KEYS = re.compile(r"(^|[_-])(key|token|secret|password|credentials|authorization|cookie)$", re.IGNORECASE)
_REPEATS = 5  # steps in a row with equal replies, to the letter, until that is said


class EgssSettings(BaseModel):
    """What `GatedModel` has beside mini-swe-agent's own settings of a model."""

    model_config = ConfigDict(extra="forbid")

    gate: str = "threshold:0"
    """never, always, random:RATE, edit, threshold:NATS, quantile:SHARE (see hesnr_tasks.egss)."""
    estimator: str = "votes"
    """votes, or logprob: of the whole command, a token (see hesnr_tasks.egss)."""
    probes: int = 2
    """Draws that the estimator looks at, before the gate decides."""
    draws: int = 4
    """Draws of a step where the gate fires, probes included."""
    calibration: Path | None = None
    """A file of `hesnr egss calibrate`, for quantile gates."""
    judge: str = "llm"
    """llm: the five dimensions, asked of `judge_model`; votes: the action drawn most often, no judge."""
    judge_model: str = ""
    """As litellm names it; empty: the agent's own model, reached as it is."""
    judge_kwargs: dict[str, Any] = {}
    """Whatever litellm.completion takes: api_base, reasoning_effort, max_tokens, temperature …"""
    judge_trace_limit: int = 0
    """Most characters of the trace that the judge sees, its middle left out; 0: all of it."""
    seed: int = 1234
    """Of random gates, of ties and of the order in which a judge sees candidates; not sent to the server."""


class GatedModelConfig(EgssSettings, LitellmModelConfig):
    """Settings of `GatedModel`."""


class GatedTextbasedModelConfig(EgssSettings, LitellmTextbasedModelConfig):
    """Settings of `GatedTextbasedModel`."""


@dataclass(frozen=True)
class _Draw:
    """One choice of a reply, parsed on its own; `error`: it is malformed, `key`: the canonical action."""

    message: ChatDict
    reply: dict[str, Any]  # the whole reply as a mapping, with this choice alone
    actions: list[dict[str, Any]]
    key: str = ""
    logprob: float = math.nan
    error: FormatError | None = None

    @property
    def command(self) -> str:
        return "\n".join(str(action["command"]) for action in self.actions)


class _Gated(LitellmModel):
    """Draw, gate, judge; the parts that do not depend on how calls are written."""

    _stock: type[LitellmModel]
    _stock_config: type[LitellmModelConfig]
    _own_config: type[BaseModel]

    def __init__(self, **kwargs: Any) -> None:
        try:
            LitellmModel.__init__(self, config_class=self._own_config, **kwargs)
        except ValidationError as error:
            lines = []
            for problem in error.errors():
                name, unknown = ".".join(map(str, problem["loc"])), problem["type"] == "extra_forbidden"
                hint = f" is no setting.{nearest(name, self._own_config.model_fields)}" if unknown else ""
                lines.append(f"model.{name}{hint or ': ' + problem['msg']}")
            raise SettingsError("\n".join(lines)) from None
        own = self.config
        self._estimator = Estimator(own.estimator, own.probes)
        self._gate = open_gate(own.gate, self._estimator, own.calibration)
        if self._gate.name != "never":
            self._check()
        self._step, self._total, self._steps, self._fired = Ledger(), Ledger(), 0, 0
        self._several = True  # until the server is seen to give one choice whatever is requested
        self._repeated = 0
        self._answered: set[str] = set()  # models whose server has answered
        request = {"model": own.judge_model or own.model_name, "drop_params": True}
        inherited = {} if own.judge_model else {k: own.model_kwargs[k] for k in _CONNECTION if k in own.model_kwargs}
        request |= inherited | own.judge_kwargs
        self._judge = Judge(request, self._complete_judge, self._note, own.judge_trace_limit)

    def _check(self) -> None:
        own = self.config
        guarded_litellm()  # from here on, keys of agent and judge follow no redirect
        if own.draws < 2 or (self._gate.needs == "estimate" and own.draws < own.probes):
            raise SettingsError(f"model.draws is {own.draws}; it must be at least 2 and not below model.probes.")
        if own.judge not in ("llm", "votes"):
            raise SettingsError(f"model.judge is {own.judge!r}; it must be llm or votes.")
        if own.judge_trace_limit < 0:
            raise SettingsError("model.judge_trace_limit cannot be negative.")
        for name in ("n", "logprobs", "stream"):
            if name in own.model_kwargs:
                raise SettingsError(f"model.model_kwargs.{name} is set by the gate {own.gate!r}; leave it out.")
        if own.model_kwargs.get("temperature") == 0:
            raise SettingsError(
                f"model.model_kwargs.temperature is 0: all draws of a step would be equal, and the gate {own.gate!r} "
                "could tell nothing.\nSet it above 0 (the default of the model is a good value), or model.gate=never."
            )
        if self._gate.name == "quantile" and own.calibration is not None:
            calibrated = Calibration.read(own.calibration).model
            if calibrated != own.model_name:
                warning = "%s was calibrated on %s, and this is %s: thresholds seldom transfer between models"
                _log.warning(warning, own.calibration, calibrated, own.model_name)

    # --- a step -----------------------------------------------------------------------------------------------------

    def query(self, messages: list[ChatDict], **kwargs: Any) -> ChatDict:
        """One step: the message of the chosen draw. Raises mini's `FormatError` where no draw is well-formed."""
        if self._gate.name == "never":
            return super().query(messages, **kwargs)
        self._step = Ledger()
        self._steps += 1
        try:
            return self._decide(messages, kwargs)
        finally:
            self._total.extend(self._step)

    def _decide(self, messages: list[ChatDict], kwargs: dict[str, Any]) -> ChatDict:
        own, needs, estimate = self.config, self._gate.needs, math.nan
        task = next((get_content_string(message) for message in messages if message.get("role") == "user"), "")
        seed = (own.seed, task, self._steps)
        chance = uniform("gate", *seed)
        if needs == "nothing":
            fired = self._gate.fires(GateInput(chance))
            draws = self._sample(messages, own.draws if fired else 1, "draw" if fired else "probe", kwargs)
        else:
            draws = self._sample(messages, 1 if needs == "first" else own.probes, "probe", kwargs)
            good = [draw for draw in draws if draw.error is None]
            if needs == "estimate":
                estimate = self._estimator([draw.key for draw in good], [draw.logprob for draw in good])
                if math.isnan(estimate):
                    self._note("no_estimate")
            action = action_class(draws[0].command) if draws[0].error is None else ""
            fired = bool(good) and self._gate.fires(GateInput(chance, action, estimate))
            if fired and len(draws) < own.draws:
                draws += self._sample(messages, own.draws - len(draws), "draw", kwargs, len(draws))
        self._fired += fired
        self._check_repeats(draws)
        record: dict[str, Any] = {"gate": own.gate, "fired": fired, "draws": len(draws)}
        if not math.isnan(estimate):
            record["estimate"] = estimate
        good = [draw for draw in draws if draw.error is None]
        if len(good) < len(draws):
            self._step.notes["malformed_draws"] += len(draws) - len(good)
        chosen = draws[0]
        if good:  # of draws that agree with each other, and of a step where the gate stayed shut: the first
            chosen = self._chosen(messages, good, record, seed) if fired else good[0]
        extra = chosen.message.setdefault("extra", {})  # what mini wants beside the message, and what the step cost
        extra |= {"response": chosen.reply, "cost": self._step.cost, "timestamp": time.time()}
        extra["egss"] = record | self._step.as_dict()
        if chosen.error is not None:
            raise chosen.error
        extra["actions"] = chosen.actions
        return chosen.message

    def _chosen(
        self, messages: list[ChatDict], draws: Sequence[_Draw], record: dict[str, Any], seed: tuple[Any, ...]
    ) -> _Draw:
        """The draw whose action votes and judge prefer; what they said goes into `record`."""
        votes = Counter(draw.key for draw in draws)
        firsts = [next(draw for draw in draws if draw.key == key) for key in votes]
        if len(firsts) == 1:
            return firsts[0]
        rows: list[dict[str, Any]] = [{"command": draw.command, "votes": votes[draw.key]} for draw in firsts]
        scores = None
        if self.config.judge == "llm":
            trace = (f"[{m.get('role') or m.get('type') or '?'}]\n{get_content_string(m)}" for m in messages)
            actions = [f"{_text(draw.message)}\n\n$ {draw.command}".strip() for draw in firsts]
            if judged := self._judge("\n\n".join(trace), actions, seed):
                scores = judged[0]
                for row, score, points in zip(rows, *judged, strict=True):
                    row |= {"score": score, "points": points}
        index, tied = choose(list(votes.values()), scores, seed)
        if tied:
            self._note("ties")
        record |= {"candidates": rows, "chosen": index, "tied": tied}
        return firsts[index]

    # --- draws ------------------------------------------------------------------------------------------------------

    def _sample(
        self, messages: list[ChatDict], count: int, kind: str, kwargs: dict[str, Any], before: int = 0
    ) -> list[_Draw]:
        """`count` draws, `before` of this step drawn already; as many requests as the server needs for them."""
        prepared = self._prepare_messages_for_api(messages)
        draws: list[_Draw] = []
        while len(draws) < count:
            n = count - len(draws) if self._several else 1
            reply = self._request(prepared, n, kwargs, before + len(draws))
            self._spend(kind, reply, self.config.model_name)
            if n > 1 and len(reply.choices) < n:
                self._note("fewer_choices_than_asked")
                self._several = len(reply.choices) > 1
            if not reply.choices:
                raise SearchError(f"the server of {self.config.model_name} answered without any choice.")
            stored = reply.model_dump(mode="json")
            draws += [self._draw(reply, stored, i) for i in range(min(n, len(reply.choices)))]
        return draws

    def _request(self, prepared: list[ChatDict], n: int, kwargs: dict[str, Any], before: int) -> Any:
        options = dict(kwargs)
        if n > 1:
            options["n"] = n
        if self._gate.needs == "estimate" and self.config.estimator == "logprob":
            options["logprobs"] = True
        if before and isinstance(seed := self.config.model_kwargs.get("seed"), int):
            options["seed"] = seed + before  # a server that heeds a seed would give the same draw again
        try:
            return self._with_retries(lambda: self._query(prepared, **options))
        except litellm.exceptions.ContextWindowExceededError:
            raise
        except litellm.exceptions.BadRequestError as error:
            if "logprobs" in options and "logprob" in str(error).lower():
                raise SettingsError(
                    f"the server of {self.config.model_name} refuses log-probabilities, which model.estimator=logprob "
                    f"needs.\nSet model.estimator=votes. It says: {str(error)[:300]}"
                ) from error
            if n == 1:
                raise
            del options["n"]
            reply = self._with_retries(lambda: self._query(prepared, **options))
            self._note("server_refuses_n")
            self._several = False
            return reply

    def _draw(self, reply: Any, stored: dict[str, Any], index: int) -> _Draw:
        choice = stored["choices"][index]
        stored = stored | {"choices": [{k: v for k, v in choice.items() if k != "logprobs"}]}  # they are large
        try:
            actions = self._parse_actions(SimpleNamespace(choices=[reply.choices[index]]))
        except FormatError as error:
            return _Draw(error.messages[0], stored, [], error=error)
        message = reply.choices[index].message.model_dump(mode="json")
        commands = [str(action["command"]) for action in actions]
        return _Draw(
            message, stored, actions, canonical_command("\n".join(commands)), command_logprob(choice, commands)
        )

    def _check_repeats(self, draws: Sequence[_Draw]) -> None:
        """Warn of equal replies, to the letter, step after step: a fixed seed, temperature 0 or a cache of replies."""
        if len(draws) < 2 or self._repeated >= _REPEATS:
            return
        texts = {(_text(draw.message), draw.command) for draw in draws}
        thoughts = any(_text(draw.message) for draw in draws)
        self._repeated = self._repeated + 1 if len(texts) == 1 and thoughts else 0
        if self._repeated == _REPEATS:
            self._note("replies_repeat")
            _log.warning(
                "%s gives the same reply to every draw, to the letter: the gate cannot tell anything. Check "
                "temperature, seed and caches of replies (model.model_kwargs).",
                self.config.model_name,
            )

    # --- calls and what they cost -----------------------------------------------------------------------------------

    def _with_retries(self, call: Callable[[], Any], request: Mapping[str, Any] | None = None) -> Any:
        """mini's retries, but not of a request that the server refuses, nor of the first where there is no server."""
        request = request or {"model": self.config.model_name, **self.config.model_kwargs}
        model = str(request["model"])
        abort = [*self.abort_exceptions, litellm.exceptions.BadRequestError, SearchError]
        for attempt in retry(logger=_log, abort_exceptions=abort):
            with attempt:
                try:
                    reply = call()
                except openai.OpenAIError as error:
                    if model in self._answered or not nothing_listens(error):
                        raise  # a server that answered before may be starting again
                    raise SearchError(no_server_message(model, request.get("api_base"))) from error
                self._answered.add(model)
                return reply
        raise AssertionError("retry ends by returning or raising")

    def _complete_judge(self, request: Mapping[str, Any]) -> Any:
        reply = self._with_retries(lambda: litellm.completion(**request), request)
        self._spend("judge", reply, str(request["model"]))
        return reply

    def _spend(self, kind: str, reply: Any, model: str) -> None:
        """Count a call, priced as mini prices its own; the judge's model is looked up by its own name."""
        agent, self.config.model_name = self.config.model_name, model
        try:
            cost = float(self._calculate_cost(reply)["cost"])
        finally:
            self.config.model_name = agent
        GLOBAL_MODEL_STATS.add(cost)
        self._step.add(kind, spent_of(getattr(reply, "usage", None), cost))

    def _note(self, name: str) -> None:
        self._step.notes[name] += 1

    # --- what mini writes and renders -------------------------------------------------------------------------------

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        """mini's own settings only: prompts do not change with the gate."""
        return self.config.model_dump(include=set(self._stock_config.model_fields))

    def serialize(self) -> dict[str, Any]:
        """Settings and totals; with `gate=never` what mini's own class writes."""
        if self._gate.name == "never":
            stock = self._stock_config.model_validate(self.get_template_vars()).model_dump(mode="json")
            name = f"{self._stock.__module__}.{self._stock.__name__}"
            return {"info": {"config": {"model": stock, "model_type": name}}}
        stored = super().serialize()
        config = stored["info"]["config"]["model"]
        config |= {name: _without_keys(config[name]) for name in ("model_kwargs", "judge_kwargs")}
        totals = {"steps": self._steps, "fired": self._fired, **self._estimator.identity, **self._total.as_dict()}
        stored["info"]["model_stats"] = {"egss": totals}
        return stored


class GatedModel(_Gated):
    """mini-swe-agent's litellm model (tool calls) behind a gate; settings: `GatedModelConfig`."""

    _stock, _stock_config, _own_config = LitellmModel, LitellmModelConfig, GatedModelConfig


class GatedTextbasedModel(_Gated, LitellmTextbasedModel):
    """mini-swe-agent's text-based litellm model behind a gate; settings: `GatedTextbasedModelConfig`."""

    _stock, _stock_config = LitellmTextbasedModel, LitellmTextbasedModelConfig
    _own_config = GatedTextbasedModelConfig


def _without_keys(value: Any) -> Any:
    """Settings of litellm without the values of keys, at any depth: `api_key`, headers, `aws_session_token` …"""
    if isinstance(value, list):
        return [_without_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: "(hidden)" if _KEYS.search(str(k)) else _without_keys(v) for k, v in value.items()}


def _text(message: ChatDict) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""
