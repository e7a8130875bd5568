"""From the command line and mini-swe-agent's configuration to model, gate, judge and selectors."""

from __future__ import annotations

import argparse
import os
from typing import Any

import yaml
from minisweagent.config import get_config_from_spec
from minisweagent.models import get_model
from minisweagent.utils.serialize import UNSET, recursive_merge
from pydantic import ValidationError

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.search.decide import SearchSettings
from hesnr_tasks.search.gates import Budget, Gate, gate_of
from hesnr_tasks.search.judge import LLMJudge, LogprobJudge
from hesnr_tasks.search.judge_chat import HttpChat
from hesnr_tasks.search.sampling import SamplingModel, SamplingTextModel
from hesnr_tasks.search.select_selectors import LLMSelector
from hesnr_tasks.search.task import How
from hesnr_tasks.search.types import Judge

__all__ = ["how_of"]

_SAMPLING = {"": SamplingModel, "litellm": SamplingModel, "litellm_textbased": SamplingTextModel}
_PREFIX = "hosted_vllm/"
_REPLY = 2000  # tokens; the scores of eight candidates need a tenth of it
_AGENT = ("agent_class", "mode", "output_path", "confirm_exit", "whitelist_actions")  # of mini's interactive agent
_ENVIRONMENT = ("environment_class", "cwd", "image", "executable", "run_args", "forward_env", "container_timeout")


def how_of(args: argparse.Namespace) -> How:
    """Everything that is the same for all tasks. Raises `SettingsError` for what cannot be used."""
    settings = SearchSettings(
        n=args.n, probe=args.probe, source=args.entropy, resolution=args.key, mode=args.mode, width=args.width,
        runs=args.runs, token_limit=args.token_limit,
    )  # fmt: skip
    gate = _gate(args)
    config = _config(args)
    environment = config.get("environment", {})
    return How(
        model=_model(args, config),
        gate=gate,
        settings=settings,
        method=_method(args),
        judge=_judge(args),
        selectors=[LLMSelector(_chat(args))] if args.select == "llm" else [],
        tests=not args.no_tests,
        fork=args.fork,
        image=args.image or str(environment.get("image", "")),
        agent={name: value for name, value in config["agent"].items() if name not in _AGENT},
        environment={name: value for name, value in environment.items() if name not in _ENVIRONMENT},
    )


def _method(args: argparse.Namespace) -> str:
    """What a report calls it: two searches with the same name are two samples of one method."""
    usual = SearchSettings()
    words = {"gate": args.gate, "n": args.n, "mode": args.mode, "judge": args.judge}
    others = {
        "entropy": (args.entropy, usual.source),
        "key": (args.key, usual.resolution),
        "probe": (args.probe, usual.probe),
        "width": (args.width, usual.width),
        "max_forks": (args.max_forks, None),
        "no_tests": (args.no_tests, False),
        "judge_model": (args.judge_model, None),
        "select": (args.select, "none"),
        "temperature": (args.temperature, None),
        "model": (args.model, None),
    }
    words |= {name: value for name, (value, default) in others.items() if value != default}
    return " ".join(f"{name}={value}" for name, value in words.items())


def _gate(args: argparse.Namespace) -> Gate:
    gate = gate_of(args.gate, args.seed)
    return gate if args.max_forks is None else Budget(gate, forks=args.max_forks)


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """mini-swe-agent's files, then the command line."""
    try:
        read = [get_config_from_spec(spec) for spec in args.config or ["mini.yaml"]]
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"-c: {error}") from None
    if wrong := [spec for spec, one in zip(args.config or [""], read, strict=True) if not isinstance(one, dict)]:
        raise SettingsError(f"-c {wrong[0]}: not a configuration of mini-swe-agent.")
    limits = {"step_limit": args.step_limit, "cost_limit": args.cost_limit}
    given = {"agent": {name: UNSET if value is None else value for name, value in limits.items()}}
    merged = recursive_merge(*read, given, {"model": {"model_name": args.model or UNSET}})
    if wrong := [name for name in ("agent", "environment", "model") if not isinstance(merged.get(name, {}), dict)]:
        raise SettingsError(f"-c: {wrong[0]} must be a table of settings, not {merged[wrong[0]]!r}.")
    if not {"system_template", "instance_template"} <= set(merged["agent"]):
        raise SettingsError(
            "-c: agent.system_template and agent.instance_template are missing; add -c mini.yaml first."
        )
    return merged


def _model(args: argparse.Namespace, config: dict[str, Any]) -> Any:
    """A model that gives n choices at once where mini's class can; else mini's own model, asked n times."""
    settings = dict(config.get("model", {}))
    name = settings.get("model_name") or os.getenv("MSWEA_MODEL_NAME")
    if not name:
        raise SettingsError("no model: give --model.")
    options = dict(settings.get("model_kwargs", {}))
    if args.temperature is not None:
        options["temperature"] = args.temperature
    if args.base_url:
        name = name if name.startswith((_PREFIX, "openai/")) else _PREFIX + name
        options["api_base"] = args.base_url
        _keys()
        settings.setdefault("cost_tracking", "ignore_errors")  # a server of one's own has no price list
    settings |= {"model_name": name, "model_kwargs": options}
    kind = settings.get("model_class", "")
    try:
        if kind not in _SAMPLING:
            return get_model(name, settings)
        settings.pop("model_class", None)
        model = _SAMPLING[kind](**settings)
    except (ValueError, ValidationError) as error:
        raise SettingsError(f"the model {name!r} cannot be set up: {error}") from None
    if args.entropy != "logprob" and args.judge != "logprob":
        model.top_logprobs = 0
    return model


def _keys() -> None:
    """litellm reads keys from the environment: no key may be a setting, for settings are saved with trajectories."""
    key = os.environ.setdefault("OPENAI_API_KEY", "none")
    os.environ.setdefault("HOSTED_VLLM_API_KEY", key)


def _judge(args: argparse.Namespace) -> Judge | None:
    if args.judge == "llm":
        return LLMJudge(_chat(args))
    return LogprobJudge() if args.judge == "logprob" else None


def _chat(args: argparse.Namespace) -> HttpChat:
    url, name = args.judge_url or args.base_url, args.judge_model or args.model
    if not url or not name:
        raise SettingsError("a judge or selector needs --judge-url and --judge-model (or --base-url and --model).")
    bare = name.removeprefix(_PREFIX).removeprefix("openai/") if not args.judge_model else name
    return HttpChat(url, bare, options={"temperature": 0.0, "max_tokens": _REPLY})
