"""What a user can set, declared once: lm-eval's metadata, the callback's settings and flags derive from it.

A setting stands in a task's YAML (`metadata:` block) or on the command line (`--metadata`, which wins). The signature
of a number is what it was computed with: numbers with different signatures are not comparable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from hesnr_tasks import __version__
from hesnr_tasks.errors import SettingsError, nearest, printable
from hesnr_tasks.filters import FILTERS, LABELS_VERSION
from hesnr_tasks.metrics import EPSILON, MIN_TOKENS, parse_epsilon
from hesnr_tasks.scores.schema import OVERFLOW
from hesnr_tasks.stats import MOST_RESAMPLES, RESAMPLES, SEED
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.chat_rendering import CALLS, THOUGHTS, NativeTemplate

# lm-eval puts the first two, and all of --model_args, beside our settings; its RULER tasks read the next three
_OF_OTHERS = {"version", "config_source", "pretrained", "tokenizer", "max_seq_lengths", "passk"}

_Parser = Callable[[str, Any], Any]
_S = TypeVar("_S", bound="TaskSettings")


# --- parsers: (name of the setting, value) -> checked value -----------------------------------------------------------


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be text, not {value!r}")
    return value


def _one_of(*options: str) -> _Parser:
    def parse(name: str, value: Any) -> str:
        if value not in options:
            raise SettingsError(
                f"{name} is {value!r}; it must be one of {', '.join(options)}.{nearest(str(value), options)}"
            )
        return str(value)

    return parse


def _some_of(*options: str) -> _Parser:
    """A list, or text such as `thought+action`; `none` is the empty list."""

    def parse(name: str, value: Any) -> tuple[str, ...]:
        words = [] if value in (None, "none", "") else value
        words = words.replace(",", "+").split("+") if isinstance(words, str) else words
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise SettingsError(f"{name} must be a list of words, not {value!r}")
        return tuple(_one_of(*options)(name, word.strip()) for word in words)

    return parse


def _kinds(name: str, value: Any) -> tuple[Kind, ...]:
    return tuple(Kind(word) for word in _some_of(*(kind.value for kind in Kind))(name, value))


def _number(low: float, kind: type = int, high: int = sys.maxsize) -> _Parser:
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


def _epsilon(name: str, value: Any) -> float:
    return float(_number(0, float)(name, parse_epsilon(value, name)))


def _shard(name: str, value: Any) -> str:
    parts = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", str(value))
    if not parts or int(parts[1]) > int(parts[2]):
        raise SettingsError(f"{name} must be such as 2/4, the second of four, not {value!r}")
    return str(value)


def _flag(name: str, value: Any) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in values:
        raise SettingsError(f"{name} must be true or false, not {value!r}")
    return values[str(value).lower()]


def _paths(name: str, value: Any) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value or []
    if not isinstance(paths, (list, tuple)):
        raise SettingsError(f"{name} must be a path, glob, folder or hub id, or a list of them, not {value!r}")
    return tuple(_text(name, path) for path in paths)


def _json_object(name: str, value: Any) -> str:
    """A JSON object, as canonical text: settings are compared and hashed."""
    try:
        value = json.loads(value) if isinstance(value, str) else dict(value)
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} must be a JSON object, not {value!r}") from None


def _optional(parse: _Parser) -> _Parser:
    return lambda name, value: None if value is None else parse(name, value)


# --- the settings -----------------------------------------------------------------------------------------------------


def _setting(default: Any, parse: _Parser, text: str, synonyms: str) -> Any:
    """A field with its parser, its help text, and other names that users try for it."""
    return field(default=default, metadata={"parse": parse, "help": text, "synonyms": synonyms.split()})


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """The settings of one task, checked."""

    trajectories: tuple[str, ...] = _setting(
        (), _paths, "files, globs, folders or a hub id; none: the demo trajectories",
        "data path paths dataset datasets dataset_path dataset_name data_path data_dir data_file data_files run runs "
        "run_dir traj trajs trajectory traj_path trajectory_path trajs_path file files folder folders dir directory "
        "input inputs source sources hub repo glob jsonl",
    )  # fmt: skip
    config: str | None = _setting(
        None, _optional(_text), "configuration of a hub data set", "subset config_name dataset_config"
    )
    split: str | None = _setting(None, _optional(_text), "split of a hub data set", "")
    only_resolved: bool = _setting(
        False, _flag, "keep only trajectories whose outcome is known to be a success",
        "resolved resolved_only success successful only_success passed",
    )  # fmt: skip
    limit: int | None = _setting(
        None, _optional(_number(1)), "read at most this many trajectories (lm-eval's --limit cuts after reading)",
        "max_trajectories num_trajectories n_trajectories max_samples num_samples max_docs n",
    )  # fmt: skip
    sample: int | None = _setting(
        None, _optional(_number(1)), "of what was read, keep a seeded sample of this size; new rows change few choices",
        "subsample sample_size n_samples",
    )  # fmt: skip
    sample_seed: int = _setting(SEED, _number(0), "seed of the sample", "sampling_seed")
    shard: str | None = _setting(
        None, _optional(_shard), "of what was read and sampled, only each n-th, as in 2/4; score files of shards meet",
        "part partition",
    )  # fmt: skip
    on_error: str = _setting(
        "fail", _one_of("fail", "skip"), "a record that cannot be read: list all and stop, or skip and count",
        "errors skip_errors ignore_errors strict",
    )  # fmt: skip
    render: str = _setting(
        "transcript", _one_of("transcript", "chatml", "native"),
        "form of the text; native: the model's own chat format; --apply_chat_template sets template",
        "format template rendering renderer chat_template apply_chat_template style chatml",
    )  # fmt: skip
    thoughts: str = _setting(
        "keep", _one_of(*THOUGHTS),
        "render=native, of a template that drops earlier reasoning: keep (by its switches; the rest is counted), drop "
        "or error",
        "reasoning keep_thoughts thinking",
    )  # fmt: skip
    template_kwargs: str = _setting(
        "{}", _json_object, "render=native: arguments of the chat template, such as enable_thinking",
        "chat_template_kwargs chat_template_args template_args",
    )  # fmt: skip
    calls: str = _setting(
        "stored", _one_of(*CALLS),
        "render=native: stored passes calls as structures that were stored as such; native also those that are text",
        "tool_calls native_calls text_calls",
    )  # fmt: skip
    kinds: tuple[Kind, ...] = _setting(
        (Kind.ACTION,), _kinds, "which characters count: action, thought, observation, context",
        "kind tokens token_type token_types roles labels types mask",
    )  # fmt: skip
    filters: tuple[str, ...] = _setting(
        tuple(FILTERS), _some_of(*FILTERS), "what is removed from actions: xml, format, comments",
        "filter drop remove strip exclude",
    )  # fmt: skip
    epsilon: float = _setting(
        EPSILON, _epsilon, "entropy threshold of the High-Entropy Decision Set, in nats; or ln3, (ln3+ln4)/2",
        "eps threshold entropy_threshold tau cutoff",
    )  # fmt: skip
    k: int = _setting(
        10, _number(5), "candidates per token: H_topk, and the target must be among them",
        "topk top_k top candidates num_candidates",
    )  # fmt: skip
    metrics: str = _setting(
        "core", _one_of("core", "proxies", "world", "all"),
        "core: HE-SNR and what stands beside it; proxies: and every published proxy; world: and perplexities by kind; "
        "all: everything that is registered",
        "metric proxies measures",
    )  # fmt: skip
    overflow: str = _setting(
        "right", _one_of(*OVERFLOW),
        "beyond the model's context: right scores what fits, error stops, skip leaves the trajectory out",
        "truncation truncate truncation_side on_overflow too_long",
    )  # fmt: skip
    window: int | None = _setting(
        None, _optional(_number(4)),
        "short-context pass: a token sees this many tokens before it, up to a quarter more (LongPPL: 4096); none: all",
        "short_context context_window sliding_window trunc_len truncate_context",
    )  # fmt: skip
    scores: str | None = _setting(
        None, _optional(_text), "folder for score files (default: next to --output_path); none: keep none",
        "score_dir scores_dir scores_path save save_scores output output_path store cache",
    )  # fmt: skip
    keep: tuple[Kind, ...] = _setting(
        (Kind.THOUGHT, Kind.ACTION), _kinds,
        "with score files: kinds scored whole beside what counts, so that later questions need no model",
        "kept save_kinds also",
    )  # fmt: skip
    min_tokens: int = _setting(
        MIN_TOKENS, _number(0),
        "a metric over fewer tokens is N/A: he_snr and he_ppl over fewer in 𝓗, the others over fewer that count",
        "floor minimum min_count",
    )  # fmt: skip
    resamples: int = _setting(
        RESAMPLES, _number(100, high=MOST_RESAMPLES), "bootstrap resamples for standard errors",
        "bootstrap bootstrap_iters n_bootstrap n_resamples iters",
    )  # fmt: skip
    bootstrap_seed: int = _setting(SEED, _number(0), "seed of the bootstrap", "seed random_seed")

    @classmethod
    def read(
        cls: type[_S],
        metadata: Mapping[str, Any],
        fixed: Mapping[str, Any] | None = None,
        is_model_argument: Callable[[str, Any], bool] = lambda key, value: False,
    ) -> _S:
        """Settings from lm-eval's metadata.

        Args:
            metadata: what lm-eval hands a task: settings, and arguments of the model.
            fixed: what defines the task and cannot be overridden.
            is_model_argument: whether a key of `metadata`, with its value, is an argument of the model.

        Raises:
            SettingsError: for a key that is neither, or a value that cannot be used.
        """
        ours = [key for key, value in metadata.items() if key not in _OF_OTHERS and not is_model_argument(key, value)]
        remedy = ". Arguments of the model go into --model_args."
        refuse_unknown(ours, tuple(_FIELDS), " in --metadata", remedy)  # of any task: one mapping is for all of them
        clash = sorted(set(fixed or {}) & set(metadata))
        if clash:
            raise SettingsError(
                f"{', '.join(clash)} cannot be set for this task: it is what the task measures. "
                "Use hesnr_swe with --metadata to measure something else."
            )
        values = {**{f.name: metadata[f.name] for f in fields(cls) if f.name in metadata}, **(fixed or {})}
        return cls(**{name: _FIELDS[name]["parse"](name, value) for name, value in values.items()})._checked()

    def data(self) -> str:
        """The settings that choose the trajectories, where they are not the default, as JSON."""
        names = ("trajectories", "config", "split", "only_resolved", "limit", "sample", "sample_seed", "shard")
        default = TaskSettings()
        return json.dumps({n: getattr(self, n) for n in names if getattr(self, n) != getattr(default, n)})

    def _checked(self: _S) -> _S:
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


@dataclass(frozen=True, slots=True)
class ToolEntropySettings(TaskSettings):
    """The settings of `hesnr_tool_entropy`; the threshold of high entropy is `epsilon`."""

    decision_arguments: int = _setting(0, _number(0), "how many words after the verb decide too", "")
    combine: str = _setting(
        "max", _one_of("max", "mean", "first", "sum"), "how the entropies of a step's tokens become one", ""
    )


_FIELDS: dict[str, Mapping[str, Any]] = {f.name: f.metadata for f in fields(ToolEntropySettings)}


def refuse_unknown(keys: Iterable[str], names: Sequence[str], where: str = "", remedy: str = "") -> None:
    """Raise `SettingsError` for the first key that is not in `names`, with the setting that was probably meant."""
    for key in map(str, keys):
        if key not in names:
            word = key.strip().lower().replace("-", "_")
            meant = [name for name in _FIELDS if name in names and word in (name, *_FIELDS[name]["synonyms"])]
            hint = f" Did you mean {meant[0]!r}?" if meant else nearest(word, names)
            raise SettingsError(f"unknown setting {printable(key)!r}{where}.{hint} Known: {', '.join(names)}{remedy}")


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add settings to a command as flags: `only_resolved` as `--only-resolved`, with the setting's help and default."""
    defaults = ToolEntropySettings()
    for name in names:
        flag, default, text = f"--{name.replace('_', '-')}", getattr(defaults, name), _FIELDS[name]["help"]
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", help=text)
            continue

        def parse(value: str, name: str = name) -> Any:
            try:
                return _FIELDS[name]["parse"](name, value)
            except SettingsError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        suffix = "" if default is None else f" (default: {_default_text(default)})"
        parser.add_argument(flag, type=parse, default=default, metavar=name.upper(), help=text + suffix)


def describe_settings() -> str:
    """The settings as a Markdown table: name, default, meaning."""
    defaults = ToolEntropySettings()
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, declared in _FIELDS.items():
        text = _default_text(getattr(defaults, name))
        lines.append(f"| `{name}` | {text and f'`{text}`'} | {declared['help']} |")
    return "\n".join(lines) + "\n"


def _default_text(value: Any) -> str:
    """A default as a user would write it: action, xml+format+comments, 1.2425; nothing for none."""
    if isinstance(value, tuple):
        return "+".join(str(getattr(word, "value", word)) for word in value)
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value).lower()


def native_template(tokenizer: Any, settings: TaskSettings) -> NativeTemplate:
    """The chat template of `tokenizer` as the settings of render=native have it used."""
    return NativeTemplate(tokenizer, settings.thoughts, json.loads(settings.template_kwargs), settings.calls)


# --- the signature of a number ----------------------------------------------------------------------------------------


def choices(settings: TaskSettings, rendering: str) -> dict[str, Any]:
    """What was chosen to count and how, before any model or text is known."""
    return {
        "hesnr_tasks": __version__,
        "k": settings.k,
        "epsilon": settings.epsilon,
        "kinds": [kind.value for kind in settings.kinds],
        "filters": list(settings.filters),
        "render": rendering,
        "labels": LABELS_VERSION,
        "overflow": settings.overflow,
        **({} if settings.window is None else {"window": settings.window}),
    }


def signature(
    settings: TaskSettings,
    rendering: str,
    texts: Sequence[tuple[str, int]],
    run: Mapping[str, Any],
    template: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every choice behind a number, as JSON.

    Args:
        settings: of the task.
        rendering: how the trajectories became text.
        texts: of each trajectory, its key and how many of its tokens that count lie beyond the context.
        run: what the backend says of itself: model, dtype, maximum length.
        template: what `render=native` made of the model's chat template.
    """
    return {
        **choices(settings, rendering),
        **({} if template is None else {"template": dict(template)}),
        "max_length": run.get("max_length"),
        "tokens_cut": sum(cut for _, cut in texts),
        "trajectories": len(texts),
        "trajectories_cut": sum(cut > 0 for _, cut in texts),
        "data": hashlib.sha256("".join(sorted(key for key, _ in texts)).encode()).hexdigest(),
        "resamples": settings.resamples,
        "bootstrap_seed": settings.bootstrap_seed,
        "run": {name: value for name, value in run.items() if name != "max_length"},
    }


def describe(signature: Mapping[str, Any]) -> str:
    """The signature on one line, for logs and tables."""
    run = signature["run"]
    return "|".join(
        [
            f"hesnr-tasks:{signature['hesnr_tasks']}",
            f"k:{signature['k']}",
            f"eps:{signature['epsilon']:.4f}",
            f"kinds:{'+'.join(signature['kinds'])}",
            f"filters:{'+'.join(signature['filters']) or 'none'}",
            f"render:{signature['render']}" + _thoughts(signature.get("template")),
            f"max_length:{signature['max_length']}({signature['overflow']},cut:{signature['tokens_cut']})",
            *([f"window:{signature['window']}"] if signature.get("window") else []),
            f"data:{signature['data'][:10]}({signature['trajectories']})",
            f"seed:{signature['bootstrap_seed']}",
            *(f"{name}:{run[name]}" for name in ("backend", "dtype") if name in run),
        ]
    )


def _thoughts(template: Mapping[str, Any] | None) -> str:
    if template is None:
        return ""
    return f"(thoughts={template['thoughts']},dropped:{template['thoughts_dropped']})"
