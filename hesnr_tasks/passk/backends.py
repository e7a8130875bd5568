"""How a seed an answer reaches each kind of lm-eval model.

- hf: one batch at a time, each row with its own generator (hf_sampler.py). Batches are cut from all answers in a fixed
  order, done or not, so a run that goes on after a crash computes the same batches.
- API models: one request an answer, `num_concurrent` in flight, each answer handed over as it comes.
- vllm: the engine takes a seed a request.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from hesnr_tasks.errors import ScoringError

if TYPE_CHECKING:
    from hesnr_tasks.passk.sampling import Job

__all__ = ["Backend", "backend_of"]

_AUTO = 16  # rows at a time where lm-eval was to find out, which it does anew for every call
_AT_ONCE = 256  # requests handed to vLLM before their answers are kept
_log = logging.getLogger("lm_eval.hesnr_passk")

Found = Iterator[Sequence[tuple[int, str]]]


class Backend(Protocol):
    """One lm-eval model."""

    def describe(self) -> dict[str, Any]:
        """Whose answers they are: those of different descriptions are not mixed."""

    def answers(self, jobs: Sequence[Job], done: set[int]) -> Found:
        """(index, answer) of jobs as they are finished, some at a time; those of `done` may be left out."""


def backend_of(lm: Any) -> Backend:
    """By the names of the model's classes, so that nothing uninstalled is imported."""
    names = [cls.__name__ for cls in type(lm).__mro__]
    for name, made in (("HFLM", _HuggingFace), ("VLLM", _VLLM), ("TemplateAPI", _API)):
        if name in names:
            return made(lm)
    raise ScoringError(
        f"--model {names[0]}: it is not known how to give each of its answers a seed, without which Pass@K would be of "
        "equal answers, or of none that can be had again. Use hf, vllm, or an API model such as local-completions."
    )


class _HuggingFace:
    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def describe(self) -> dict[str, Any]:
        from hesnr_tasks.scoring import backend_for

        return backend_for(self._lm).describe()

    def answers(self, jobs: Sequence[Job], done: set[int]) -> Found:
        rows = self._lm.batch_size
        if not isinstance(rows, int):
            self._lm.batch_size_per_gpu = rows = _AUTO
            _log.info("--batch_size auto: %d answers at a time", rows)
        length = {str(job.context): len(self._lm.tok_encode(str(job.context))) for job in jobs}
        # as lm-eval sorts them within a call, so that rows and seeds go together
        order = sorted(range(len(jobs)), key=lambda i: (-length[str(jobs[i].context)], str(jobs[i].context)))
        for start in range(0, len(order), rows):
            block = order[start : start + rows]
            if not done.issuperset(block):
                yield list(zip(block, self._batch([jobs[i] for i in block]), strict=True))

    def _batch(self, jobs: Sequence[Job]) -> list[str]:
        from transformers import LogitsProcessorList

        from hesnr_tasks.passk.hf_sampler import WARPERS, SeededSampler, sampling_of

        sampler = SeededSampler(sampling_of(jobs[0].kwargs, self._lm.model), [job.seed for job in jobs])
        kwargs = {name: value for name, value in jobs[0].kwargs.items() if name not in WARPERS}
        kwargs |= {"do_sample": False, "temperature": 0.0, "logits_processor": LogitsProcessorList([sampler])}
        requests = [_request(job, kwargs) for job in jobs]
        with _uncached(self._lm):
            return [str(text) for text in self._lm.generate_until(requests, disable_tqdm=True)]


class _VLLM:
    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def describe(self) -> dict[str, Any]:
        from hesnr_tasks.scoring import backend_for

        return backend_for(self._lm).describe()

    def answers(self, jobs: Sequence[Job], done: set[int]) -> Found:
        wanted = [i for i in range(len(jobs)) if i not in done]
        for start in range(0, len(wanted), _AT_ONCE):
            block = wanted[start : start + _AT_ONCE]
            requests = [_request(jobs[i], {**jobs[i].kwargs, "seed": jobs[i].seed}) for i in block]
            with _uncached(self._lm):
                texts = self._lm.generate_until(requests, disable_tqdm=True)
            yield list(zip(block, map(str, texts), strict=True))


class _API:
    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def describe(self) -> dict[str, Any]:
        return {"backend": "api", "model": str(self._lm.model), "base_url": str(self._lm.base_url)}

    def answers(self, jobs: Sequence[Job], done: set[int]) -> Found:
        wanted = [i for i in range(len(jobs)) if i not in done]
        with ThreadPoolExecutor(max(1, int(getattr(self._lm, "_concurrent", 1)))) as pool:
            waiting = {pool.submit(self._ask, jobs[i]): i for i in wanted}
            try:
                for future in as_completed(waiting):
                    yield [(waiting[future], future.result())]
            finally:
                for future in waiting:
                    future.cancel()

    def _ask(self, job: Job) -> str:
        import requests
        from tenacity import Retrying, stop_after_attempt, wait_exponential

        kwargs = {**job.kwargs, "seed": job.seed}
        message = self._message(job.context, kwargs)
        wait, stop = wait_exponential(multiplier=0.5, min=1, max=10), stop_after_attempt(self._lm.max_retries)
        try:
            reply = Retrying(stop=stop, wait=wait, reraise=True)(
                self._lm.model_call, messages=message, generate=True, gen_kwargs=kwargs
            )
        except requests.RequestException as error:
            raise ScoringError(
                f"{self._lm.base_url} gave no answer ({error}). Answers that came before are kept; mend the server and "
                "start the same command again."
            ) from error
        found = self._lm.parse_generations(outputs=reply, contexts=[job.context])
        if not found or found[0] is None:
            _log.warning("%s: an answer without text (seed %d) counts as empty", job.task, job.seed)
            return ""
        return str(found[0])

    def _message(self, context: Any, kwargs: Mapping[str, Any]) -> list[Any]:
        """As lm-eval does it: ids, cut on the left to leave room for the answer, where the server takes ids."""
        if not self._lm.tokenized_requests:
            return [context]
        ids = self._lm.tok_encode([context], add_special_tokens=self._lm.add_bos_token)
        room = self._lm.max_length - int(kwargs.get("max_gen_toks", kwargs.get("max_tokens", self._lm._max_gen_toks)))
        return [one[-room:] for one in ids]


@contextlib.contextmanager
def _uncached(lm: Any) -> Iterator[None]:
    """Without --use_cache, which would file a sampled answer under the arguments of a greedy one."""
    hook = getattr(lm, "cache_hook", None)
    lm.cache_hook = CacheHook(None)
    try:
        yield
    finally:
        lm.cache_hook = hook


def _request(job: Job, kwargs: Mapping[str, Any]) -> Instance:
    return Instance(request_type="generate_until", doc={}, arguments=(job.context, dict(kwargs)), idx=0)
