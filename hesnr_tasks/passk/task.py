"""`PassKTask`: any task of lm-eval that generates and can say right or wrong, with several answers a problem.

Only the way of asking and counting is ours; prompts, filters and the verifier are the task's own. Facts about lm-eval
0.4.13 that shape it: copies of a repeated request share one seed and are never cached; the filter `take_first` throws
all but one answer away; a metric's standard error travels as `<metric>_stderr` after it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig

from hesnr_tasks.errors import SettingsError, show_without_traceback
from hesnr_tasks.passk.curve import mean_error
from hesnr_tasks.passk.estimator import pass_at_ks
from hesnr_tasks.passk.registered import is_right
from hesnr_tasks.passk.sampling import REQUEST_TYPE, Job, Sample
from hesnr_tasks.passk.seeds import identity, seed_of
from hesnr_tasks.passk.task_settings import PassKSettings, all_answers, verifier_of

__all__ = ["PassKTask"]

_log = logging.getLogger("lm_eval.hesnr_passk")


class PassKTask(ConfigurableTask):
    """A `generate_until` task whose metrics are pass@k. Settings: `passk:` in YAML, or "passk" in --metadata.

    Raises `SettingsError` for settings that cannot give a Pass@K.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        show_without_traceback()
        given = dict(config or {})
        metadata = dict(given.get("metadata") or {})
        self.passk = PassKSettings.read(given.get("passk"), metadata.get("passk"), given.get("repeats", 1))
        self._verifier, metrics = verifier_of(given.get("metric_list"), self.passk.verifier)
        known = {field.name for field in fields(TaskConfig)}
        stock = {name: value for name, value in given.items() if name in known}
        stock |= {
            "metadata": {**metadata, "passk": self.passk.to_json()},
            "repeats": self.passk.repeats,
            "filter_list": all_answers(given.get("filter_list")),
            "metric_list": metrics,
        }
        super().__init__(config=stock)
        self._refuse_others()
        self._occurrences: Counter[str] = Counter()

    def _refuse_others(self) -> None:
        if self.OUTPUT_TYPE != "generate_until":
            raise SettingsError(f"{self.config.task}: Pass@K is of sampled answers, not of {self.OUTPUT_TYPE}")
        if self.config.doc_to_image or self.config.doc_to_audio:
            raise SettingsError(f"{self.config.task}: Pass@K of tasks with images or sound is not supported")

    # --- requests -----------------------------------------------------------------------------------------------------

    def build_all_requests(self, *, samples: list[int] | None = None, **kwargs: Any) -> None:
        """As lm-eval's, with two of its traps closed: stale request caches and unsorted `--samples`."""
        if kwargs.pop("cache_requests", False):
            _log.warning(
                "--cache_requests is ignored: lm-eval's key lacks the data, so it can pair old prompts with new"
            )
        kwargs.pop("rewrite_requests_cache", None)
        if samples is not None:
            samples.sort()  # in place: lm-eval numbers the documents by this very list
        self._refuse_greedy()
        self._occurrences.clear()
        super().build_all_requests(samples=samples, **kwargs)

    def _refuse_greedy(self) -> None:
        """After --gen_kwargs are known: the same answer again and again is no Pass@K."""
        kwargs = self.config.generation_kwargs or {}
        greedy = kwargs.get("do_sample") is False or float(kwargs.get("temperature") or 0) <= 0
        if greedy and self.passk.repeats > 1:
            raise SettingsError(
                f"{self.config.task}: Pass@K needs sampling, and generation_kwargs have do_sample="
                f"{kwargs.get('do_sample')}, temperature={kwargs.get('temperature')}. Set, for instance, --gen_kwargs "
                "do_sample=true,temperature=0.6,top_p=0.95"
            )
        if "seed" in kwargs:
            raise SettingsError(
                f'{self.config.task}: generation_kwargs has a seed, which all answers would share; set "seed" of passk'
            )

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **kwargs: Any) -> list[Instance]:
        """A request an answer, each with its seed."""
        name, doc_id, _ = kwargs.pop("metadata")
        made = super().construct_requests(doc, ctx, metadata=(name, doc_id, 1), **kwargs)
        context, arguments = made.arguments
        prompt = str(getattr(context, "prompt", context))
        self._occurrences[prompt] += 1
        problem = identity(prompt, self._occurrences[prompt])
        return [
            self._sample(doc, (name, doc_id, 1), context, dict(arguments), problem, i)
            for i in range(self.passk.repeats)
        ]

    def _sample(
        self, doc: dict[str, Any], metadata: Any, context: Any, kwargs: dict[str, Any], problem: str, i: int
    ) -> Sample:
        seed = seed_of(self.passk.seed, problem, i)
        sample = Sample(REQUEST_TYPE, doc, (context, {**kwargs, "seed": seed}), i, metadata)
        version = str(self.VERSION)
        sample.job = Job(
            str(metadata[0]), version, problem, i, context, kwargs, seed, self.passk.seed, self.passk.answers
        )
        return sample

    # --- results ------------------------------------------------------------------------------------------------------

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """Every answer through the task's own verifier, then pass@k of the problem."""
        if "bypass" in self._metric_fn_list:  # --predict_only
            return {"bypass": 999}
        right = sum(self._right(doc, one[0] if isinstance(one, (list, tuple)) else one) for one in results)
        ks = self.passk.ks
        values = pass_at_ks([len(results)], [right], ks)[0].tolist()
        found = {f"pass@{k}": value for k, value in zip(ks, values, strict=True)}
        # a metric must precede its error: lm-eval overwrites `<metric>_stderr` when it meets the metric
        return found | {f"{name}_stderr": value for name, value in found.items()}

    def _right(self, doc: dict[str, Any], answer: Any) -> bool:
        scores = super().process_results(doc, [answer])
        if self._verifier not in scores:
            raise SettingsError(
                f"{self.config.task}: the verifier {self._verifier!r} is not among the task's metrics "
                f'({", ".join(map(str, scores))}); name one of them as "verifier" of passk'
            )
        return is_right(scores[self._verifier], self._verifier, self.passk.threshold)

    def aggregation(self) -> dict[str, Callable[[Iterable[float]], Any]]:
        """Means over problems, and their cluster-bootstrap standard errors."""
        if "bypass" in self._metric_fn_list:
            return dict(super().aggregation())
        names = [f"pass@{k}" for k in self.passk.ks]
        return {**dict.fromkeys(names, _mean), **{f"{name}_stderr": partial(_error, self.passk) for name in names}}

    def higher_is_better(self) -> dict[str, bool]:
        """More is better."""
        return {f"pass@{k}": True for k in self.passk.ks}


def _mean(values: Iterable[float]) -> float:
    return mean_error(list(values), 2)[0]


def _error(settings: PassKSettings, values: Iterable[float]) -> float | str:
    """Standard error; "N/A", which lm-eval prints, for one problem."""
    error = mean_error(list(values), settings.resamples, settings.bootstrap_seed)[1]
    return "N/A" if math.isnan(error) else error
