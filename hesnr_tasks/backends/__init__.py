"""The request type `topk_loglikelihood`: from labelled texts to `TokenScores`, whatever the backend.

This room knows tokenizers and backends; it knows neither files nor metrics nor lm-eval's tasks. Requests of several
tasks on one text are merged, the text is tokenised once, and only the tokens some task wants become targets.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hesnr_tasks.alignment import Encoded, Encoder, token_labels, token_turns
from hesnr_tasks.backends.base import Backend, Scores, ScoringRequest, TokenScores, TokenSequence
from hesnr_tasks.backends.identity import tokenizer_of
from hesnr_tasks.errors import ScoringError, printable

__all__ = ["REQUEST_TYPE", "Keeper", "backend_for", "labelled_key", "score_requests"]

REQUEST_TYPE = "topk_loglikelihood"
_BACKENDS = {
    "VLLM": "hesnr_tasks.backends.vllm",
    "TemplateAPI": "hesnr_tasks.backends.completions",
    "HFLM": "hesnr_tasks.backends.hf",
}
_log = logging.getLogger("hesnr_tasks")


def backend_for(lm: Any) -> Backend:
    """The backend for an lm-eval model, by the names of its classes, so that nothing uninstalled is imported."""
    if isinstance(lm, Backend):
        return lm
    names = [cls.__name__ for cls in type(lm).__mro__]
    for name, module in _BACKENDS.items():
        if name in names:
            return importlib.import_module(module).make(lm)
    raise ScoringError(
        f"--model {type(lm).__name__} cannot return top-k log-likelihoods of given text. "
        "Use hf, vllm, or local-completions (an OpenAI-style server that echoes prompt log-probabilities)."
    )


class _Job(NamedTuple):
    request: ScoringRequest
    encoded: Encoded
    labels: npt.NDArray[np.uint64]
    targets: npt.NDArray[np.int64]  # all positions to score
    fits: int  # how many of them lie within the context


@dataclass
class _Tally:
    """What happened to the texts, for one closing line instead of one per trajectory."""

    texts: int = 0
    too_long: int = 0
    characters: int = 0
    lost: int = 0
    first_lost: str = ""


class Keeper(Protocol):
    """Where scores are kept from run to run (hesnr_tasks/scores/cache.py)."""

    def open(
        self, run: Mapping[str, Any], k: int, overflow: str, gather: Callable[[list[Any]], list[Any]], first: bool
    ) -> int:
        """Begin; returns the number of candidates to score with, at least `k`.

        `gather` joins the lists of all processes, of which one is the `first`.
        """

    def get(self, request: ScoringRequest, ids: npt.NDArray[np.int32]) -> TokenScores | None:
        """The scores of a request, if all it wants is there; refuses those of a text that had other token ids."""

    def put(self, scores: TokenScores, request: ScoringRequest, ids: npt.NDArray[np.int32]) -> None:
        """Keep the scores of a request; `ids` are all ids of the text."""

    def save_token_bytes(self, spellings: Callable[[], Sequence[bytes | None]]) -> None:
        """Keep what each token id spells."""


def score_requests(lm: Any, requests: Sequence[ScoringRequest], keeper: Keeper | None = None) -> list[TokenScores]:
    """Score every request; one pass over each distinct text, answers in the order of the requests.

    What `keeper` has is not scored again; what it lacks is given to it as it finishes.
    """
    backend = backend_for(lm)
    encoder = Encoder(backend.tokenizer, backend.bos)
    merged = _merge(requests)
    tally = _Tally()
    jobs = [_prepare(request, encoder, backend.max_length, tally) for request in merged.values()]
    _report(tally, backend)
    _refuse_nothing(requests, {job.request.key: job for job in jobs}, backend.max_length)
    run = {
        **backend.describe(),
        "tokenizer": tokenizer_of(backend.tokenizer),
        "bos": list(encoder.prefix),
        "max_length": backend.max_length,
    }
    k = max((request.k for request in merged.values()), default=0)
    known: dict[str, TokenScores] = {}
    if keeper is not None and jobs:
        canary = backend.canary()
        run |= {"canary": canary} if canary else {}
        k = keeper.open(run, k, jobs[0].request.overflow, backend.gather, _rank(lm) == 0)
        keeper.save_token_bytes(encoder.token_bytes)
        known = _kept(keeper, jobs, run, quiet=_rank(lm) != 0)
    for job, result in _score(backend, jobs, k, run, known, quiet=_rank(lm) != 0):
        known[job.request.key] = result
        if keeper is not None:
            keeper.put(result, job.request, job.encoded.ids)
    return [known[request.key] for request in requests]


def _kept(keeper: Keeper, jobs: Sequence[_Job], run: Mapping[str, Any], *, quiet: bool) -> dict[str, TokenScores]:
    """What was scored before, under this run's name (the model may have moved since)."""
    found = {job.request.key: keeper.get(job.request, job.encoded.ids) for job in jobs}
    known = {key: replace(scores, run=run) for key, scores in found.items() if scores is not None}
    if known and not quiet:
        _log.info("%d of %d trajectories were scored before and are not read again", len(known), len(jobs))
    return known


def labelled_key(request_text: str, codes: npt.NDArray[np.uint8]) -> str:
    """Hash of a labelled text: what makes two requests the same reading."""
    digest = hashlib.sha256(request_text.encode())
    digest.update(codes.tobytes())
    return digest.hexdigest()


def _rank(lm: Any) -> int:
    return int(getattr(lm, "rank", 0) or 0)


def _merge(requests: Sequence[ScoringRequest]) -> dict[str, ScoringRequest]:
    merged: dict[str, ScoringRequest] = {}
    for request in requests:
        seen = merged.get(request.key)
        if seen is None:
            merged[request.key] = request
        elif seen.overflow != request.overflow:
            raise ScoringError("tasks of one run must share one overflow policy; give it once, in --metadata")
        else:
            merged[request.key] = replace(
                seen,
                mask=seen.mask | request.mask,
                extra_mask=seen.extra_mask | request.extra_mask,
                k=max(seen.k, request.k),
            )
    return merged


def _prepare(request: ScoringRequest, encoder: Encoder, max_length: int, tally: _Tally) -> _Job:
    encoded = encoder.encode(request.rendered)
    labels = token_labels(encoded, request.codes)
    targets = np.flatnonzero((labels & request.scored) != 0)
    targets = targets[targets > 0]  # nothing precedes the first token
    fits = int(np.searchsorted(targets, max_length))
    cut = int(np.count_nonzero(labels[targets[fits:]] & request.mask))
    if cut and request.overflow == "error":
        raise ScoringError(
            f"trajectory {request.name!r} has {len(encoded.ids)} tokens, the model reads {max_length} (--model_args "
            "max_length=…); set overflow to 'right' to score the part that fits or 'skip' to leave it out"
        )
    _count(tally, request, encoded, cut)
    return _Job(request, encoded, labels, targets, fits)


def _refuse_nothing(requests: Sequence[ScoringRequest], jobs: Mapping[str, _Job], max_length: int) -> None:
    """A task of which the context leaves nothing has no result: say so, rather than print an empty table."""
    for mask in {int(request.mask) for request in requests}:
        own = [request for request in requests if request.mask == mask]
        if all(_beyond(jobs[request.key], request) for request in own):
            raise ScoringError(
                f"every trajectory is longer than the model's context of {max_length} tokens, and "
                f"{'overflow=skip leaves such out' if own[0].overflow == 'skip' else 'no token that counts fits'}. "
                "Raise max_length in --model_args, or score shorter trajectories."
            )


def _beyond(job: _Job, request: ScoringRequest) -> bool:
    """Whether the context's end leaves nothing of a text to a request."""
    counts = (job.labels[job.targets] & request.mask) != 0
    cut = counts[job.fits :].any()
    return bool(cut and (request.overflow == "skip" or not counts[: job.fits].any()))


def _count(tally: _Tally, request: ScoringRequest, encoded: Encoded, cut: int) -> None:
    tally.texts += 1
    tally.too_long += cut > 0
    tally.characters += len(request.rendered.text)
    tally.lost += encoded.lost
    if encoded.lost and not tally.first_lost:
        tally.first_lost = request.name


def _report(tally: _Tally, backend: Backend) -> None:
    if tally.too_long:
        _log.warning(
            "%d of %d texts are longer than the model's context of %d tokens: what lies beyond is not scored, "
            "and each task tells the share of its tokens that was. Raise max_length in --model_args if the model can "
            "read more.", tally.too_long, tally.texts, backend.max_length,
        )  # fmt: skip
    if tally.lost > 0.05 * tally.characters:
        raise ScoringError(
            f"the tokenizer {type(backend.tokenizer).__name__} cannot represent {tally.lost} of {tally.characters} "
            f"characters (first in trajectory {tally.first_lost!r}): its likelihoods would not be those of the text. "
            "Check that the tokenizer belongs to the model."
        )
    if tally.lost:
        _log.warning(
            "the tokenizer cannot represent %d of %d characters (unknown tokens; first in trajectory %r); they are "
            "scored as what it makes of them", tally.lost, tally.characters, tally.first_lost,
        )  # fmt: skip


def _score(
    backend: Backend,
    jobs: Sequence[_Job],
    k: int,
    run: Mapping[str, Any],
    known: Collection[str],
    *,
    quiet: bool,
) -> Iterator[tuple[_Job, TokenScores]]:
    todo = [job for job in jobs if job.fits]
    passages = [_passage(job, backend.max_length) for job in todo]
    skip = {index for index, job in enumerate(todo) if job.request.key in known}
    total = sum(len(passage.ids) for index, passage in enumerate(passages) if index not in skip)
    with tqdm(total=total, unit="tok", unit_scale=True, desc="reading", disable=True if quiet else None) as bar:
        for index, scores in backend.score(passages, k, bar.update, skip):
            bar.set_postfix_str(printable(passages[index].name[:40]), refresh=False)
            _refuse_non_finite(passages[index], scores)
            yield todo[index], _token_scores(todo[index], scores, run)
    for job in jobs:
        if not job.fits and job.request.key not in known:
            yield job, _token_scores(job, _no_scores(k), run)


def _passage(job: _Job, max_length: int) -> TokenSequence:
    targets, ids = job.targets[: job.fits].astype(np.int32), job.encoded.ids
    return TokenSequence(job.request.name, ids[: int(targets[-1]) + 1], targets, min(len(ids), max_length))


def _no_scores(k: int) -> Scores:
    return Scores(
        np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    )


def _token_scores(job: _Job, scores: Scores, run: Mapping[str, Any]) -> TokenScores:
    at = job.targets[: job.fits]
    return TokenScores(
        key=job.request.key,
        position=at.astype(np.int32),
        token_id=job.encoded.ids[at],
        turn=token_turns(job.encoded, job.request.rendered)[at],
        label=job.labels[at],
        char_start=job.encoded.start[at],
        char_end=job.encoded.end[at],
        scores=scores,
        tokens_total=len(job.encoded.ids),
        labels_cut=job.labels[job.targets[job.fits :]],
        run=run,
    )


def _refuse_non_finite(passage: TokenSequence, scores: Scores) -> None:
    good = np.isfinite(scores.logprob) & np.isfinite(scores.topk_logprobs).all(axis=1)
    if not good.all():
        first = int(np.argmin(good))
        raise ScoringError(
            "the model gave NaN or infinite values, or probability 0 to the text's token or one of the k likeliest, at "
            f"token {int(passage.targets[first])} of trajectory {passage.name!r} ({int((~good).sum())} of {len(good)} "
            "scored tokens). Has this checkpoint diverged? If it was trained in bfloat16, try dtype=bfloat16 or "
            "float32 in --model_args instead of float16."
        )
