"""What a user can set, in a task's YAML (`metadata:` block) or on the command line (`--metadata`, which wins)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hesnr_tasks.backends.base import OVERFLOW
from hesnr_tasks.errors import SettingsError, nearest, printable
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.metrics import EPSILON, MIN_TOKENS
from hesnr_tasks.rendering import RENDERINGS
from hesnr_tasks.stats import MOST_RESAMPLES, RESAMPLES, SEED
from hesnr_tasks.trajectory import Kind

__all__ = ["Settings", "refuse_unknown"]

# lm-eval puts the first two, and all of --model_args, beside our settings; its RULER tasks read the next three
_OF_OTHERS = {"version", "config_source", "pretrained", "tokenizer", "max_seq_lengths", "passk"}
_OF_TOOL_ENTROPY = ("decision_arguments", "combine")
_SYNONYMS = {
    "trajectories": "data path paths dataset datasets dataset_path dataset_name data_path data_dir data_file "
    "data_files run runs run_dir traj trajs trajectory traj_path trajectory_path trajs_path file files folder folders "
    "dir directory input inputs source sources hub repo glob jsonl",
    "config": "subset config_name dataset_config",
    "only_resolved": "resolved resolved_only success successful only_success passed",
    "limit": "max_trajectories num_trajectories n_trajectories max_samples num_samples max_docs n",
    "sample": "subsample sample_size n_samples",
    "sample_seed": "sampling_seed",
    "on_error": "errors skip_errors ignore_errors strict",
    "render": "format template rendering renderer chat_template apply_chat_template style chatml",
    "kinds": "kind tokens token_type token_types roles labels types mask",
    "filters": "filter drop remove strip exclude",
    "epsilon": "eps threshold entropy_threshold tau cutoff",
    "k": "topk top_k top candidates num_candidates",
    "overflow": "truncation truncate truncation_side on_overflow too_long",
    "scores": "score_dir scores_dir scores_path save save_scores output output_path store cache",
    "keep": "kept save_kinds also",
    "resamples": "bootstrap bootstrap_iters n_bootstrap n_resamples iters",
    "bootstrap_seed": "seed random_seed",
    "min_tokens": "floor minimum min_count",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one task, checked."""

    trajectories: tuple[str, ...] = ()
    """Files, globs, folders or a hub id; none: the demo trajectories."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a hub data set."""
    only_resolved: bool = False
    """Keep only trajectories whose outcome is known to be a success."""
    limit: int | None = None
    """Read at most this many trajectories (lm-eval's --limit cuts later, after reading)."""
    sample: int | None = None
    """Of what was read, keep a seeded sample of this size; new rows change few choices."""
    sample_seed: int = SEED
    """Seed of the sample."""
    on_error: str = "fail"
    """What a record that cannot be read does: "fail" (list all of them and stop) or "skip" (count them)."""
    render: str = "transcript"
    """Text form: "transcript" or "chatml"; --apply_chat_template sets "template"."""
    kinds: tuple[Kind, ...] = (Kind.ACTION,)
    """Which characters count: action, thought, observation, context."""
    filters: tuple[str, ...] = tuple(FILTERS)
    """What is removed from actions: xml, format, comments."""
    epsilon: float = EPSILON
    """Entropy threshold of the High-Entropy Decision Set, in nats."""
    k: int = 10
    """Candidates per token: H_topk, and the target must be among them."""
    overflow: str = "right"
    """Beyond the model's context: "right" scores what fits, "error" stops, "skip" leaves the trajectory out."""
    scores: str | None = None
    """Folder for score files; default: next to --output_path. "none": keep none."""
    keep: tuple[Kind, ...] = (Kind.THOUGHT, Kind.ACTION)
    """With score files: kinds scored whole beside what counts, so that later questions need no model. "none": none."""
    min_tokens: int = MIN_TOKENS
    """A metric over fewer tokens is N/A: he_snr and he_ppl over fewer in 𝓗, the others over fewer that count."""
    resamples: int = RESAMPLES
    """Bootstrap resamples for standard errors."""
    bootstrap_seed: int = SEED
    """Seed of the bootstrap."""

    @classmethod
    def read(
        cls,
        metadata: Mapping[str, Any],
        fixed: Mapping[str, Any] | None = None,
        of_model: Callable[[str, Any], bool] = lambda key, value: False,
    ) -> Settings:
        """Settings from lm-eval's metadata.

        Args:
            metadata: what lm-eval hands a task: settings, and arguments of the model.
            fixed: what defines the task and cannot be overridden.
            of_model: whether a key of `metadata`, with its value, is an argument of the model.

        Raises:
            SettingsError: for a key that is neither, or a value that cannot be used.
        """
        names = [f.name for f in fields(cls)]
        ours = [key for key, value in metadata.items() if key not in _OF_OTHERS and not of_model(key, value)]
        remedy = ". Arguments of the model go into --model_args."
        refuse_unknown(ours, (*names, *_OF_TOOL_ENTROPY), " in --metadata", remedy)
        clash = sorted(set(fixed or {}) & set(metadata))
        if clash:
            raise SettingsError(
                f"{', '.join(clash)} cannot be set for this task: it is what the task measures. "
                "Use hesnr_swe with --metadata to measure something else."
            )
        given = {**{n: metadata[n] for n in names if n in metadata}, **(fixed or {})}
        return cls(**{name: _PARSERS[name](name, value) for name, value in given.items()})._checked()

    def data(self) -> str:
        """The settings that choose the trajectories, where they are not the default, as JSON."""
        names = ("trajectories", "config", "split", "only_resolved", "limit", "sample", "sample_seed")
        default = Settings()
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        return json.dumps(chosen)

    def _checked(self) -> Settings:
        if not 0 <= self.epsilon < math.log(self.k):
            raise SettingsError(
                f"epsilon={self.epsilon:g} must lie in [0, ln k): with k={self.k} no entropy exceeds "
                f"{math.log(self.k):.4f} nats"
            )
        if Kind.SCAFFOLD in self.kinds or not self.kinds:
            raise SettingsError(f"kinds must name some of {', '.join(k.value for k in Kind if k is not Kind.SCAFFOLD)}")
        # one canonical order, so that signatures do not depend on how a list was typed
        return replace(
            self,
            kinds=tuple(k for k in Kind if k in self.kinds),
            filters=tuple(f for f in FILTERS if f in self.filters),
        )


def refuse_unknown(given: Iterable[str], names: Sequence[str], where: str = "", remedy: str = "") -> None:
    """Raise `SettingsError` for the first key that is not in `names`, with the setting that was probably meant."""
    for key in given:
        if key not in names:
            raise SettingsError(
                f"unknown setting {printable(str(key))!r}{where}.{_meant(str(key), names)} "
                f"Known: {', '.join(names)}{remedy}"
            )


def _meant(key: str, names: Sequence[str]) -> str:
    """`" Did you mean 'epsilon'?"`, from the table of synonyms or by spelling."""
    word = key.strip().lower().replace("-", "_")
    for name, synonyms in _SYNONYMS.items():
        if name in names and word in (name, *synonyms.split()):
            return f" Did you mean {name!r}?"
    return nearest(word, names)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be text, not {value!r}")
    return value


def _words(name: str, value: Any) -> tuple[str, ...]:
    """A list, or text such as `thought+action`; `none` is the empty list."""
    if value is None or value in ("none", ""):
        return ()
    parts = value.replace(",", "+").split("+") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, str) for p in parts):
        raise SettingsError(f"{name} must be a list of words, not {value!r}")
    return tuple(p.strip() for p in parts)


def _one_of(options: tuple[str, ...]) -> Callable[[str, Any], str]:
    def parse(name: str, value: Any) -> str:
        if value not in options:
            raise SettingsError(
                f"{name} is {value!r}; it must be one of {', '.join(options)}.{nearest(str(value), options)}"
            )
        return str(value)

    return parse


def _some_of(options: tuple[str, ...]) -> Callable[[str, Any], tuple[str, ...]]:
    def parse(name: str, value: Any) -> tuple[str, ...]:
        return tuple(_one_of(options)(name, word) for word in _words(name, value))

    return parse


def _number(low: float, kind: type = int, high: int = sys.maxsize) -> Callable[[str, Any], Any]:
    def parse(name: str, value: Any) -> Any:
        try:
            number = kind(value)
            usable = low <= number <= high and (kind is float or number == float(value))
        except (TypeError, ValueError, OverflowError):
            usable = False
        if isinstance(value, bool) or not usable:
            most = "" if high == sys.maxsize else f" and at most {high:,}"
            raise SettingsError(f"{name} must be a number of at least {low:g}{most}, not {str(value)[:40]!r}")
        return number

    return parse


def _flag(name: str, value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise SettingsError(f"{name} must be true or false, not {value!r}")
    return known[str(value).lower()]


def _paths(name: str, value: Any) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value or []
    if not isinstance(paths, (list, tuple)):
        raise SettingsError(f"{name} must be a path, glob, folder or hub id, or a list of them, not {value!r}")
    return tuple(_text(name, path) for path in paths)


def _kinds(name: str, value: Any) -> tuple[Kind, ...]:
    return tuple(Kind(word) for word in _some_of(tuple(k.value for k in Kind))(name, value))


def _optional(parse: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else parse(name, value)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "trajectories": _paths,
    "config": _optional(_text),
    "split": _optional(_text),
    "only_resolved": _flag,
    "limit": _optional(_number(1)),
    "sample": _optional(_number(1)),
    "sample_seed": _number(0),
    "on_error": _one_of(("fail", "skip")),
    "render": _one_of(RENDERINGS[:2]),
    "kinds": _kinds,
    "filters": _some_of(tuple(FILTERS)),
    "epsilon": _number(0, float),
    "k": _number(5),
    "overflow": _one_of(OVERFLOW),
    "scores": _optional(_text),
    "keep": _kinds,
    "min_tokens": _number(0),
    "resamples": _number(100, high=MOST_RESAMPLES),
    "bootstrap_seed": _number(0),
}
