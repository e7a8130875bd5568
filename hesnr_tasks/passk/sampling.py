"""The request type `passk_samples`: an answer a request, each with its seed, kept on disk as it comes.

lm-eval sends one seed with all copies of a repeated request, and keeps no sampled answer. Here every answer is a
request of its own, and how its seed reaches the model is the backend's affair.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.passk.answers import KeptAnswers, place_of_answers
from hesnr_tasks.passk.backends import backend_of

__all__ = ["REQUEST_TYPE", "Job", "Sample", "generate_samples"]

REQUEST_TYPE = "passk_samples"
_log = logging.getLogger("lm_eval.hesnr_passk")


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to sample."""

    task: str
    version: str
    problem: str  # seeds.identity of the prompt
    repeat: int
    context: Any  # the prompt: text, or lm-eval's wrapped chat messages
    kwargs: Mapping[str, Any]  # without a seed
    seed: int
    base_seed: int
    folder: str | None  # the setting "answers"

    @property
    def key(self) -> str:
        """Names the answer within its task and settings."""
        return f"{self.problem}:{self.repeat}"


class Sample(Instance):
    """A request for one answer. Only a problem's first keeps its prompt in the sample log: the others have the same."""

    job: Job

    @property
    def args(self) -> tuple[Any, ...]:
        """Prompt (or where it is) and generation arguments with the seed, as sent."""
        context, kwargs = self.arguments
        return (context if self.job.repeat == 0 else f"as of {self.job.problem}:0", kwargs)


def generate_samples(lm: Any, requests: Sequence[Sample], **_: Any) -> list[str]:
    """lm-eval's entry for our request type: an answer a request, in their order."""
    tasks: dict[str, list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        tasks[request.job.task].append(i)
    answers: list[str] = [""] * len(requests)
    for at in tasks.values():
        for i, text in zip(at, _answer([requests[i].job for i in at], lm), strict=True):
            answers[i] = text
    return answers


LM.passk_samples = generate_samples  # evaluate() calls getattr(lm, request_type); no other type is touched


def _answer(jobs: Sequence[Job], lm: Any) -> list[str]:
    backend = backend_of(lm)
    first = jobs[0]
    model = backend.describe()
    settings = {
        "task": first.task,
        "version": first.version,
        "generation_kwargs": dict(first.kwargs),
        "seed": first.base_seed,
        "model": model,
    }
    stem = place_of_answers(first.folder, first.task, str(model.get("model", "model")), settings)
    kept = KeptAnswers(stem, settings, int(getattr(lm, "rank", 0))) if stem else None
    try:
        found = _sampled(jobs, backend.answers, kept)
    finally:
        if kept is not None:
            kept.close()
    _warn_of_equals(jobs, found)
    return found


def _sampled(
    jobs: Sequence[Job],
    answers: Callable[[Sequence[Job], set[int]], Iterator[Sequence[tuple[int, str]]]],
    kept: KeptAnswers | None,
) -> list[str]:
    """What is kept already, and the rest from the model, kept as it comes."""
    known = [kept.get(job.key) if kept is not None else None for job in jobs]
    found: dict[int, str] = {i: text for i, text in enumerate(known) if text is not None}
    if kept is not None:
        _log.info("%s: %d of %d answers are in %s", jobs[0].task, len(found), len(jobs), kept.path)
    with tqdm(total=len(jobs), initial=len(found), desc="Sampling answers") as bar:
        for some in answers(jobs, set(found)) if len(found) < len(jobs) else ():
            new = [(i, text) for i, text in some if i not in found]
            if kept is not None:
                kept.put((jobs[i].key, jobs[i].seed, text) for i, text in new)
            found |= dict(new)
            bar.update(len(new))
    if len(found) < len(jobs):
        raise SettingsError(f"{jobs[0].task}: the model gave {len(found)} of {len(jobs)} answers")
    return [found[i] for i in range(len(jobs))]


def _warn_of_equals(jobs: Sequence[Job], answers: Sequence[str]) -> None:
    """Where no two answers to any problem differ, nothing was sampled, whatever the settings say."""
    texts: dict[str, list[str]] = defaultdict(list)
    for job, text in zip(jobs, answers, strict=True):
        texts[job.problem].append(text)
    several = [one for one in texts.values() if len(one) > 1]
    if several and all(len(set(one)) == 1 for one in several):
        _log.warning(
            "%s: all answers to each problem are equal, so every pass@k is pass@1. Does the model (or server) sample, "
            "and heed the seed it is sent?", jobs[0].task,
        )  # fmt: skip
