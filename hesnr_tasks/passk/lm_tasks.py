"""Pass@K on lm-eval's own rails: `repeats` answers a problem, each judged as the task judges its only answer.

`PassKTask` wraps any `generate_until` task, found by its name (`base:`) or described in the same YAML file. Prompts,
filters and verifier stay the task's own; every answer goes through them alone, so that `take_first`, several filters,
`process_results` and code runners work as they are. Only documented methods of lm-eval's tasks are overridden, for 0.4
`apply_filters` and `process_results`, for 0.5 `process_instances`, which does both.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig

from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.files.bounded import read_bytes
from hesnr_tasks.lm_eval_compat import exit_on_command_line
from hesnr_tasks.passk import pass_at_ks, powers
from hesnr_tasks.passk.seeded_generation import REQUEST_TYPE, SEED_LIMIT, SampleRequest, problem_id, seed_of

_log = logging.getLogger("lm_eval.hesnr_passk")  # below lm-eval's own logger, whose handler prints it


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PassKSettings:
    """The block `passk` of a task's YAML or of --metadata, which wins."""

    repeats: int = 16  # answers a problem (default: the YAML file's `repeats`)
    k: tuple[int, ...] = ()  # default: powers of two up to repeats
    seed: int = 1234  # from which every answer's seed is derived
    base: str | None = None  # the lm-eval task whose problems, prompts, filters and verifier are used
    verifier: str | None = None  # the metric that says right or wrong (default: the task's first)
    threshold: float | None = None  # from which value of the verifier on an answer is right (default: it says 0 or 1)
    answers: str | None = None  # folder where answers are kept; "none": nowhere (default: beside --output_path)

    @classmethod
    def read(cls, *blocks: Any) -> PassKSettings:
        """From several blocks, of which later ones win; `SettingsError` for what is unknown or cannot be used."""
        merged: dict[str, Any] = {}
        for block in blocks:
            if block is not None and not isinstance(block, Mapping):
                raise SettingsError(f"passk must be a block of settings, not {block!r}")
            merged |= dict(block or {})
        names = [field.name for field in fields(cls)]
        for name in merged:
            if name not in names:
                raise SettingsError(f"passk: unknown setting {name!r}.{nearest(str(name), names)}")
        k = merged.get("k")
        ks = [] if k is None else k if isinstance(k, (list, tuple)) else [k]
        if not all(type(k) is int for k in ks):
            raise SettingsError(f"passk: k must be a whole number or a list of them, not {k!r}")
        settings = cls(**{**merged, "k": tuple(ks)})
        for name, low in (("repeats", 1), ("seed", 0)):
            value = getattr(settings, name)
            if type(value) is not int or not low <= value < SEED_LIMIT:
                raise SettingsError(f"passk: {name} must be a whole number of at least {low}, not {value!r}")
        for k in settings.ks:
            if not 1 <= k <= settings.repeats:
                raise SettingsError(
                    f"passk: pass@{k} cannot be known from {settings.repeats} answers a problem; raise repeats, or "
                    "lower k"
                )
        for name in ("base", "verifier", "answers", "threshold"):
            kinds, noun = ((int, float), "a number") if name == "threshold" else ((str,), "a text")
            value = getattr(settings, name)
            if value is not None and type(value) not in kinds:
                raise SettingsError(f"passk: {name} must be {noun}, not {value!r}")
        return settings

    @property
    def ks(self) -> list[int]:
        """Every k to report."""
        return sorted(set(self.k)) or powers(self.repeats)


# --- the task ---------------------------------------------------------------------------------------------------------

_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
_BESIDE_BASE = {
    "task", "class", "base", "repeats", "generation_kwargs", "passk", "metadata", "num_fewshot", "description",
}  # fmt: skip
_RIGHT = "right_answers"
_SINCE_0_5 = hasattr(ConfigurableTask, "process_instances")


def arithmetic(**_: Any) -> dict[str, datasets.Dataset]:
    """The 24 problems of `hesnr_passk_arithmetic` as lm-eval's `custom_dataset`; arguments are not used."""
    lines = Path(__file__).with_name("arithmetic.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


class PassKTask:
    """Put before the class of a task of lm-eval, whose metrics are then pass@k.

    `PassKTask(config)` is that task, of a class derived from its own. Raises `SettingsError` for settings that give no
    Pass@K.
    """

    passk: PassKSettings
    _instances: Any
    _scorers: Any

    @exit_on_command_line()
    def __new__(cls, config: Mapping[str, Any]) -> PassKTask:  # noqa: D102
        settings = _settings(config)
        task = _base_task(settings.base, config) if settings.base else _own_task(config)
        if task.OUTPUT_TYPE != "generate_until":
            raise SettingsError(f"{task.config.task}: Pass@K is of sampled answers, not of {task.OUTPUT_TYPE}")
        if task.config.doc_to_image or task.config.doc_to_audio:
            raise SettingsError(f"{task.config.task}: Pass@K of tasks with images or sound is not supported")
        self: Any = super().__new__(type(f"PassK{type(task).__name__}", (cls, type(task)), {}))
        self.__dict__ = task.__dict__
        return self

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.passk = _settings(config)
        self._occurrences: Counter[str] = Counter()
        task: Any = self
        metadata = {**(task.config.metadata or {}), **(config.get("metadata") or {})}
        task.set_config("metadata", {**metadata, "passk": {**asdict(self.passk), "k": self.passk.ks}})
        task.set_config("repeats", self.passk.repeats)

    @exit_on_command_line()
    def build_all_requests(self, *, samples: list[int] | None = None, **kwargs: Any) -> None:
        """As lm-eval's, with two of its traps closed: stale request caches and unsorted `--samples`."""
        if kwargs.pop("cache_requests", False):
            _log.warning(
                "--cache_requests is ignored: lm-eval's key lacks the data, so it can pair old prompts with new"
            )
        kwargs.pop("rewrite_requests_cache", None)
        if samples is not None:
            samples.sort()  # in place: lm-eval numbers the documents by this very list
        config = self.config  # type: ignore[attr-defined]
        generation = config.generation_kwargs or {}  # --gen_kwargs are in it by now
        if self.passk.repeats > 1 and (
            generation.get("do_sample") is False or float(generation.get("temperature") or 0) <= 0
        ):
            raise SettingsError(
                f"{config.task}: Pass@K needs sampling, and generation_kwargs have do_sample="
                f"{generation.get('do_sample')}, temperature={generation.get('temperature')}. Set, for instance, "
                "--gen_kwargs do_sample=true,temperature=0.6,top_p=0.95"
            )
        if "seed" in generation:
            raise SettingsError(
                f'{config.task}: generation_kwargs has a seed, which all answers would share; set "seed" of passk'
            )
        self._occurrences.clear()
        super().build_all_requests(samples=samples, **kwargs)  # type: ignore[misc]

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> Any:
        """The task's requests, as `passk_samples`; the seed in their arguments is that of the first repeat."""
        requests = super().construct_requests(doc, ctx, **kwargs)  # type: ignore[misc]
        for request in requests if isinstance(requests, list) else [requests]:
            context, arguments, *rest = request.arguments
            prompt = str(getattr(context, "prompt", context))
            self._occurrences[prompt] += 1
            problem = problem_id(prompt, self._occurrences[prompt])
            if isinstance(getattr(request, "target", None), int):  # 0.5 turns "07" into 7, which equals no text
                from lm_eval.config.templates import process_field

                template = self.config.doc_to_target  # type: ignore[attr-defined]
                request.target = str(request.target if template is None else process_field(doc, template))
            request.request_type = REQUEST_TYPE
            request.arguments = (context, {**arguments, "seed": seed_of(self.passk.seed, problem, 0)}, *rest)
            request.sample = SampleRequest(
                task=str(request.task_name),
                version=str(self.VERSION),  # type: ignore[attr-defined]
                problem=problem,
                context=context,
                kwargs=arguments,
                base_seed=self.passk.seed,
                folder=self.passk.answers,
            )
        return requests

    def apply_filters(self) -> None:
        """The task's filters on every answer alone, as if it were the only one."""
        if _SINCE_0_5:  # called by `process_instances`, for one answer at a time
            super().apply_filters()  # type: ignore[misc]
            return
        passes = []
        for instances in self._one_repeat_at_a_time():
            super().apply_filters()  # type: ignore[misc]
            passes.append([{name: [text] for name, text in instance.filtered_resps.items()} for instance in instances])
        self._join_filtered(passes)

    @exit_on_command_line()
    def process_instances(self) -> None:
        """Of lm-eval 0.5: filters and verifier on every answer alone, then pass@k of each problem."""
        if _is_bypassed(self):
            super().process_instances()  # type: ignore[misc]
            return
        from lm_eval.scorers import ScoredDoc  # type: ignore[import-not-found, unused-ignore]

        passes, right = [], defaultdict[tuple[str, int], list[int]](list)
        for instances in self._one_repeat_at_a_time():
            super().process_instances()  # type: ignore[misc]
            passes.append([instance.filtered_resps for instance in instances])
            for scorer in self._scorers:
                for number, scores in scorer.reduced_docs.items():
                    right[scorer.name, number].append(int(self._is_right(scores)))
        self._join_filtered(passes)
        for scorer in self._scorers:
            scorer.set_results(
                {
                    number: ScoredDoc(number, None, {key: [x] for key, x in self._estimates(verdicts).items()})
                    for (name, number), verdicts in right.items()
                    if name == scorer.name
                }
            )

    def _one_repeat_at_a_time(self) -> Iterator[list[Any]]:
        """The instances with their first answers only, then with their second ones, and so on."""
        instances = self._instances
        try:
            for i in range(self.passk.repeats):
                self._instances = [copy.copy(instance) for instance in instances]
                for instance in self._instances:
                    instance.resps, instance.filtered_resps = [instance.resps[i]], {}
                yield self._instances
        finally:
            self._instances = instances

    def _join_filtered(self, passes: Sequence[Sequence[Mapping[str, Sequence[Any]]]]) -> None:
        for instance, *filtered in zip(self._instances, *passes, strict=True):
            instance.filtered_resps = {
                name: [text for texts in filtered for text in texts[name]] for name in filtered[0]
            }

    @exit_on_command_line()
    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any] | None:
        """Every answer through the task's own verifier, then pass@k of the problem."""
        if _SINCE_0_5:  # called by `process_instances`, for one answer at a time
            return super().process_results(doc, results)  # type: ignore[misc]
        if _is_bypassed(self):  # --predict_only
            return {"bypass": 999}
        judge = super().process_results  # type: ignore[misc]
        return self._estimates([int(self._is_right(judge(doc, [answer]))) for answer in results[0]])

    def _estimates(self, right: list[int]) -> dict[str, Any]:
        values = pass_at_ks([len(right)], [sum(right)], self.passk.ks)[0].tolist()
        return {**{f"pass@{k}": value for k, value in zip(self.passk.ks, values, strict=True)}, _RIGHT: right}

    def _is_right(self, scores: Mapping[str, Any]) -> bool:
        verifier = self.passk.verifier or next(iter(scores), "")
        if verifier not in scores:
            raise SettingsError(
                f"{self.config.task}: the verifier {verifier!r} is not among the task's metrics "  # type: ignore[attr-defined]
                f'({", ".join(map(str, scores))}); name one of them as "verifier" of passk'
            )
        try:
            value = float(scores[verifier])
        except (TypeError, ValueError):
            raise SettingsError(f"verifier {verifier!r} gives {scores[verifier]!r}, no number") from None
        if self.passk.threshold is not None:
            return value >= self.passk.threshold
        if value not in (0.0, 1.0):
            raise SettingsError(
                f"verifier {verifier!r} gives {value:g}, neither right (1) nor wrong (0); say from which value on an "
                'answer is right: "threshold" of passk'
            )
        return bool(value)

    def aggregate(self, bootstrap_iters: int | None = None) -> Any:
        """As lm-eval 0.5's, which would bootstrap the number of right answers 100 000 times."""
        totals = {
            scorer.name: _total(scores.pop(_RIGHT) for scores in scorer.reduced_docs.values())
            for scorer in self._scorers
            if not _is_bypassed(self)
        }
        values, documents = super().aggregate(bootstrap_iters=bootstrap_iters)  # type: ignore[misc]
        return values | {f"{_RIGHT},{name}": total for name, total in totals.items()}, documents

    def aggregation(self) -> dict[str, Callable[[Any], Any]]:
        """Means over problems, whose standard errors are lm-eval's; the number of right answers."""
        if _is_bypassed(self):
            return dict(super().aggregation())  # type: ignore[misc]
        mean: Any = get_aggregation("mean")
        return {**{f"pass@{k}": mean for k in self.passk.ks}, _RIGHT: _total}

    def higher_is_better(self) -> dict[str, bool]:
        """More is better."""
        return {**{f"pass@{k}": True for k in self.passk.ks}, _RIGHT: True}


def _settings(config: Mapping[str, Any]) -> PassKSettings:
    named = {name: config[name] for name in ("base", "repeats") if config.get(name) is not None}
    return PassKSettings.read(named, config.get("passk"), (config.get("metadata") or {}).get("passk"))


def _is_bypassed(task: Any) -> bool:
    """Whether answers are only kept (--predict_only)."""
    scorers = getattr(task, "_scorers", ())  # 0.5
    return "bypass" in {*getattr(task, "_metric_fn_list", ()), *(m.name for s in scorers for m in s.metrics or ())}


def _total(verdicts: Iterable[Sequence[int]]) -> int:
    return sum(map(sum, verdicts))


def _own_task(config: Mapping[str, Any]) -> Any:
    """The task of a YAML file without `base`."""
    if "metric_list" not in config and "process_results" not in config:
        raise SettingsError(
            f"{config.get('task')}: Pass@K of which task? Name one of lm-eval's as `base:` in the YAML file, or with "
            '--metadata \'{"passk": {"base": "gsm8k"}}\''
        )
    names = {field.name for field in fields(TaskConfig)}
    settings = {name: value for name, value in config.items() if name in names}
    metrics = settings.get("metric_list") or [{"metric": "exact_match"}]
    settings["metric_list"] = [{"aggregation": "mean", "higher_is_better": True, **metric} for metric in metrics]
    make: Any = ConfigurableTask.from_config if _SINCE_0_5 else ConfigurableTask
    return make(config={"output_type": "generate_until", **settings})


def _base_task(base: str, config: Mapping[str, Any]) -> Any:
    """The lm-eval task `base`, sampled."""
    from lm_eval.tasks import TaskManager

    foreign = sorted(str(name) for name in config if name not in _BESIDE_BASE)
    if foreign:
        raise SettingsError(
            f"{config.get('task')}: {', '.join(foreign)} cannot be set beside `base: {base}`, which keeps its own; "
            "write the whole task without base, or leave it out"
        )
    metadata = {name: value for name, value in (config.get("metadata") or {}).items() if name != "passk"}
    path = _yaml_of(base, metadata.pop("config_source", None))
    task: Any = next(iter(TaskManager(include_defaults=False, metadata=metadata).load([str(path)])["tasks"].values()))
    kwargs = {**(task.config.generation_kwargs or {}), **_SAMPLING, **(config.get("generation_kwargs") or {})}
    task.set_config("generation_kwargs", kwargs)
    task.set_config("task", config.get("task"))
    for name in ("num_fewshot", "description"):
        if config.get(name) is not None:
            task.set_config(name, config[name])
    return task


def _yaml_of(base: str, source: Any) -> Path:
    """The YAML file of a task: beside the one that names it, or lm-eval's, whose own index is slow to build."""
    spec = importlib.util.find_spec("lm_eval")
    roots = [Path(source).parent] if source and source != "inline" else []
    roots += [Path(spec.origin).parent / "tasks"] if spec and spec.origin else []
    pattern = re.compile(rb"^task:[ \t]*[\"']?" + re.escape(base.encode()) + rb"[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
    names = set()
    # unlike `rglob`, `walk` lets folders come and go meanwhile, as when tasks are registered
    trees = ((Path(folder, name) for folder, _, files in os.walk(root) for name in files) for root in roots)
    likely_first = (sorted(tree, key=lambda path: (path.stem != base, path)) for tree in trees)
    for path in (path for paths in likely_first for path in paths if path.suffix == ".yaml"):
        with contextlib.suppress(DataError):  # no file of a task
            text = read_bytes(path)
            if pattern.search(text):
                return path
            names |= {name.decode(errors="replace") for name in re.findall(rb"^task:[ \t]*([\w.-]+)", text, re.M)}
    raise SettingsError(f"lm-eval has no task {base!r} to sample answers of (base of passk).{nearest(base, names)}")
