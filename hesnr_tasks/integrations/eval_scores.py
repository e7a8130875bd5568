"""One evaluation of a model in training: read the texts, share the work among processes, sum, and make numbers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from hesnr_tasks.analysis.intervals import paired
from hesnr_tasks.backends import huggingface
from hesnr_tasks.backends.types import Scores
from hesnr_tasks.errors import HesnrError, ScoringError
from hesnr_tasks.integrations.eval_model import LiveModel
from hesnr_tasks.integrations.eval_texts import prepare
from hesnr_tasks.metrics import METRICS, SUMS, statistics_of
from hesnr_tasks.results import Item, aggregate, aggregate_error
from hesnr_tasks.tasks.settings import Settings
from hesnr_tasks.tasks.signature import signature

__all__ = ["Evaluation", "Evaluator", "UnfinishedPass", "change", "gather", "numbers"]

_log = logging.getLogger("hesnr_tasks")
_WITH_ERRORS = ("he_snr", "he_ppl", "ppl")
_COUNTS = ("tokens", "he_tokens")


class Evaluation(NamedTuple):
    """What one evaluation found."""

    step: int
    seconds: float  # reading, by the slowest process
    sums: npt.NDArray[np.float64]  # (trajectories, 10): metrics.SUMS of each, in the order of their keys


class UnfinishedPass(ScoringError):
    """A forward pass of all processes that only some may have finished: the others wait, so this process must end."""


class Evaluator:
    """Scores the same texts again and again, with the engine of `lm_eval --model hf`.

    The texts are tokenised and the engine checks itself when this is made; `run` only reads. With several processes
    each reads its share and all get all sums; numbers do not depend on how many there are. Of a model that is spread
    over the processes (`live.together`) all of them read all texts, pass by pass.
    """

    def __init__(self, live: LiveModel, settings: Settings) -> None:
        self.settings, self._live = settings, live
        self.sharded = live.together is not None
        backend = huggingface.make(live)
        assert isinstance(backend, huggingface.HuggingFaceBackend)
        self._backend = backend
        self.texts = prepare(settings, live.tokenizer, live.add_bos_token, live.max_length)
        grouped = dist.is_available() and dist.is_initialized()
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        with live.reading():
            self._check()

    def run(self, step: int) -> Evaluation:
        """Read all texts once. Raises `ScoringError`, in every process alike, where a number cannot be had."""
        start, found, problem = time.perf_counter(), {}, ""
        try:
            with self._live.reading():
                found = self._sums()
        except Exception as error:
            if self.sharded and not isinstance(error, HesnrError):
                raise UnfinishedPass(
                    f"process {self.rank} failed inside a forward pass that all processes run together "
                    f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). The others wait for it, so the "
                    "run ends here. If memory ran out, give HESNRCallback a smaller max_length."
                ) from error
            problem = self._problem(error)
        answers = gather((found, problem, time.perf_counter() - start))
        problems = [text for _, text, _ in answers if text]
        if problems:
            raise ScoringError(problems[0])
        sums = {number: row for part, _, _ in reversed(answers) for number, row in part.items()}
        rows = np.array([sums[number] for number in range(len(self.texts.items))], dtype=np.float64)
        return Evaluation(step, max(seconds for _, _, seconds in answers), rows)

    def signature(self) -> dict[str, Any]:
        """Every choice behind the numbers; the weights change with each step and are left out."""
        run = {"backend": "hf", "in_training": True, "max_length": self._live.max_length}
        run |= {"sharded": True} if self.sharded else {}
        run |= {"autocast": str(self._live.mixed_precision_dtype), "architecture": type(self._live.model).__name__}
        items = [Item(text.key, 0.0, 1.0, text.cut) for text in self.texts.items]
        return signature(self.settings, self.settings.render, items, run)

    def _check(self) -> None:
        """Let the engine try its ways on this model, so that what cannot be read is known before the first step."""
        try:
            _ = self._backend.engine
            for _ in self._score(range(len(self.texts.items))):  # nothing is left to read: it only refuses what it must
                pass
        except HesnrError:
            raise
        except Exception as error:
            raise ScoringError(
                f"{type(self._live.model).__name__} cannot be read as a causal language model "
                f"({type(error).__name__}: {error})"
            ) from error

    def _sums(self) -> dict[int, list[float]]:
        everything = set(range(len(self.texts.items)))
        others = set() if self.sharded else everything - self.texts.share(self.rank, self.processes)
        sums, problems = dict[int, list[float]](), list[HesnrError]()
        for number, scores in self._score(others):
            try:
                sums[number] = self._sum(number, scores)
            except HesnrError as error:  # raised after the last pass, which other processes may be in
                problems.append(error)
        if problems:
            raise problems[0]
        return sums

    def _score(self, skipped: Collection[int]) -> Iterator[tuple[int, Scores]]:
        passages = [text.passage for text in self.texts.items]
        return self._backend.score(passages, self.settings.k, lambda tokens: None, skipped)

    def _sum(self, number: int, scores: Scores) -> list[float]:
        name, _, targets, _ = self.texts.items[number].passage
        good = np.isfinite(scores.logprob) & np.isfinite(scores.topk_logprobs).all(axis=1)
        if not good.all():
            raise ScoringError(
                f"the model gave NaN or infinite values at token {int(targets[np.argmin(good)])} of trajectory "
                f"{name!r} ({int((~good).sum())} of {len(good)} scored tokens). Has the training diverged?"
            )
        everything = np.ones(len(good), dtype=np.bool_)
        return statistics_of(scores, everything, self.settings.epsilon, self.settings.k).tolist()

    def _problem(self, error: Exception) -> str:
        if isinstance(error, HesnrError):
            return str(error)
        _log.warning("while reading a model in training", exc_info=error)
        return f"process {self.rank} failed with {type(error).__name__}: {error}"


def gather(own: Any) -> list[Any]:
    """`own` of every process, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, own)
    return answers


def numbers(found: Evaluation, settings: Settings, tokens_read: int) -> dict[str, float]:
    """Values, standard errors and speed; what is not defined, or over fewer than `min_tokens` tokens, is left out."""
    made: dict[str, float] = {}
    for name in _WITH_ERRORS:
        items = _items(found, name)
        error = aggregate_error(METRICS[name], items, settings.resamples, settings.bootstrap_seed, settings.min_tokens)
        made |= _finite({name: aggregate(METRICS[name], items, settings.min_tokens), f"{name}_stderr": error})
    made |= {name: aggregate(METRICS[name], _items(found, name)) for name in _COUNTS}
    return {**made, "tokens_per_second": tokens_read / max(found.seconds, 1e-9)}


def change(before: Evaluation, now: Evaluation, settings: Settings) -> dict[str, float]:
    """HE-SNR now minus HE-SNR before, paired by trajectory, with its error and 95 % interval where they are defined."""
    if min(_column(one, "he_tokens").sum() for one in (before, now)) < settings.min_tokens:
        return {}
    if len(now.sums) < 2:
        return _finite({"he_snr_change": _value(now) - _value(before)})
    sides = (
        (_column(before, "he_ratio"), _column(before, "he_tokens")),
        (
            _column(now, "he_ratio"),
            _column(now, "he_tokens"),
        ),
    )
    found = paired(*sides, resamples=settings.resamples, seed=settings.bootstrap_seed)
    ends = {"stderr": found.stderr, "low": found.low, "high": found.high}
    return _finite({"he_snr_change": found.difference} | {f"he_snr_change_{name}": end for name, end in ends.items()})


def _value(found: Evaluation) -> float:
    return aggregate(METRICS["he_snr"], _items(found, "he_snr"))


def _column(found: Evaluation, name: str) -> npt.NDArray[np.float64]:
    return found.sums[:, SUMS.index(name)]


def _items(found: Evaluation, name: str) -> list[Item]:
    """In the order of the texts' keys, which is the order that an lm-eval run brings them into."""
    metric = METRICS[name]
    parts = _column(found, metric.numerator).tolist()
    over = _column(found, metric.denominator).tolist() if metric.denominator else [1.0] * len(parts)
    rows = enumerate(zip(parts, over, strict=True))
    return [Item(f"{number:09d}", part, whole, 0) for number, (part, whole) in rows]


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, float) and math.isfinite(value)}
