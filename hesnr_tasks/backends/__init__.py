"""The request type `topk_loglikelihood`: from labelled texts to `TokenScores`, with whatever backend fits the model.

Knows tokenizers and backends, but neither files nor metrics nor lm-eval's tasks. Requests of several tasks on one text
are merged, the text is tokenised once, and only the tokens that some task wants are scored.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hesnr_tasks.alignment import Encoded, Encoder, token_labels, token_turns
from hesnr_tasks.backends.base import (
    Backend,
    ScoringRequest,
    SequenceScores,
    TokenScores,
    TokenSequence,
    hidden_tokens,
    window_stride,
)
from hesnr_tasks.backends.identity import tokenizer_of
from hesnr_tasks.errors import ScoringError, printable

__all__ = [
    "BACKENDS",
    "REQUEST_TYPE",
    "RequestCache",
    "TokenisedRequest",
    "backend_for",
    "check_tokenizer",
    "describe_run",
    "labelled_key",
    "refuse_non_finite",
    "refuse_unscorable",
    "score_requests",
    "tokenise",
]

REQUEST_TYPE = "topk_loglikelihood"
LOG_SECONDS = 60.0  # between two lines of progress where there is no terminal
BACKENDS = {
    "SGLangLM": "hesnr_tasks.backends.sglang",
    "SGLANGGENERATEAPI": "hesnr_tasks.backends.sglang",
    "VLLM": "hesnr_tasks.backends.vllm",
    "LocalCompletionsAPI": "hesnr_tasks.backends.completions",
    "HFLM": "hesnr_tasks.backends.hf",
}
"""By the name of lm-eval's class, so that nothing uninstalled is imported: a module with `make(lm) -> Backend`. The
most derived class decides: `sglang-generate` inherits from `local-completions` and speaks another language."""
_CHAT = (
    "chat endpoints return log-probabilities of what they write, not of what they are given",
    "local-completions with the /v1/completions address of a server of your own, or hf, vllm, sglang",
)
_REFUSED: dict[str, tuple[str, str]] = {  # names of --model and of lm-eval's classes: why, and what to use instead
    "gguf ggml GGUFLM llama.cpp": (
        "llama.cpp's server returns no log-probabilities of a prompt",
        "hf with the original weights, or with pretrained=FOLDER,gguf_file=NAME",
    ),
    "tgi": (
        "Text Generation Inference returns log-probabilities of the prompt's own tokens only, no candidates",
        "vllm or sglang on the same checkpoint",
    ),
    "trtllm TRTLLM": (
        "TensorRT-LLM returns a token's log-probability and the next token's candidates in one table by token id, so "
        "where they meet one of the values is lost",
        "vllm, sglang or hf on the checkpoint that the engine was built from",
    ),
    "megatron_lm MegatronLMEval nemo_lm NeMoLM": (
        "it returns log-probabilities of targets only, from a checkpoint that is not in Hugging Face format",
        "hf, vllm or sglang on the converted checkpoint (docs/engines.md#checkpoints-of-other-frameworks says how)",
    ),
    "local-chat-completions LocalChatCompletion openai-chat-completions OpenAIChatCompletion": _CHAT,
    "azure-openai-chat-completions AzureOpenaiChatCompletionsLM litellm litellm-chat litellm-chat-completions": _CHAT,
    "LiteLLMChatCompletion anthropic-chat anthropic-chat-completions AnthropicChat": _CHAT,
    "anthropic-completions AnthropicLM": ("Anthropic's API returns no log-probabilities", _CHAT[1]),
}
_log = logging.getLogger("hesnr_tasks")


def backend_for(lm: Any) -> Backend:
    """The backend for an lm-eval model (a backend is its own); raises `ScoringError` where there is none."""
    if isinstance(lm, Backend):
        return lm
    for cls in type(lm).__mro__:
        refuse_unscorable(cls.__name__)
        if cls.__name__ in BACKENDS:
            backend: Backend = importlib.import_module(BACKENDS[cls.__name__]).make(lm)
            return backend
    raise ScoringError(
        f"--model {type(lm).__name__} cannot return top-k log-likelihoods of given text.\n"
        "Use hf, vllm, sglang, or local-completions (an OpenAI-style server that echoes prompt log-probabilities)."
    )


def refuse_unscorable(name: str) -> None:
    """Raise `ScoringError`, with the reason and what to use instead, for a model of lm-eval that cannot score a text.

    Args:
        name: of --model, or of lm-eval's class.
    """
    for names, (reason, instead) in _REFUSED.items():
        if name in names.split():
            raise ScoringError(f"--model {name} cannot score given text: {reason}.\nUse {instead}.")


class RequestCache(Protocol):
    """Scores of earlier runs; `hesnr_tasks.scores.cache.ScoreCache` documents the methods."""

    def open(
        self, run: Mapping[str, Any], k: int, overflow: str, gather: Callable[[list[Any]], list[Any]], first: bool
    ) -> int:
        """Begin; returns the number of candidates to score with, at least `k`."""

    def get(self, request: ScoringRequest, ids: npt.NDArray[np.int32]) -> TokenScores | None:
        """The scores of a request, if all it wants is there."""

    def put(self, scores: TokenScores, request: ScoringRequest, ids: npt.NDArray[np.int32]) -> None:
        """Save the scores of a request."""

    def save_token_bytes(self, token_bytes: Callable[[], Sequence[bytes | None]]) -> None:
        """Save the bytes of each token id."""


class TokenisedRequest(NamedTuple):
    """A request, its tokens, and those of them that are scored."""

    request: ScoringRequest
    encoded: Encoded
    labels: npt.NDArray[np.uint64]
    targets: npt.NDArray[np.int64]  # all positions to score
    n_fitting: int  # how many of them lie within the context
    n_truncated: int  # wanted tokens beyond the context

    @property
    def key(self) -> str:
        """Of the request."""
        return self.request.key

    def sequence(self, max_length: int) -> TokenSequence:
        """What the model reads: the tokens up to the last one that is scored."""
        targets, request = self.targets[: self.n_fitting].astype(np.int32), self.request
        ids = self.encoded.ids[: int(targets[-1]) + 1 if len(targets) else 0]
        length = min(len(self.encoded.ids), max_length)
        return TokenSequence(request.name, ids, targets, length, request.full_vocabulary)


def score_requests(lm: Any, requests: Sequence[ScoringRequest], cache: RequestCache | None = None) -> list[TokenScores]:
    """Score every request, with one forward pass over each distinct text.

    Args:
        lm: lm-eval's model.
        requests: of all tasks of a run.
        cache: what it has is not scored again; what it lacks is saved there as it finishes.

    Returns:
        The scores, in the order of the requests.

    Raises:
        ScoringError: the model, its tokenizer or the context does not allow the numbers.
    """
    backend, is_first = backend_for(lm), int(getattr(lm, "rank", 0) or 0) == 0
    encoder = Encoder(backend.tokenizer, backend.bos)
    full_vocabulary = backend.full_vocabulary and any(request.full_vocabulary for request in requests)
    merged = [replace(request, full_vocabulary=full_vocabulary) for request in _merged(requests)]
    texts = [tokenise(request, encoder, backend.max_length) for request in merged]
    check_tokenizer(texts, backend)
    _check_context(requests, texts, backend.max_length)
    window = _window(requests, backend.max_length, len(encoder.prefix))
    run = describe_run(backend, encoder) | ({} if window is None else {"window": window})
    k = max((text.request.k for text in texts), default=0)
    scores: dict[str, TokenScores] = {}
    if cache is not None and texts:
        canary = backend.canary()
        run |= {"canary": canary} if canary else {}
        k = cache.open(run, k, texts[0].request.overflow, backend.gather, is_first)
        cache.save_token_bytes(encoder.token_bytes)
        for text in texts:
            cached = cache.get(text.request, text.encoded.ids)
            if cached is not None:
                scores[text.key] = replace(cached, run=run)  # the model may have moved since
        if scores and is_first:
            _log.info("%d of %d trajectories were scored before and are not read again", len(scores), len(texts))
    prefix = len(encoder.prefix)
    for text, computed in _compute(backend, texts, k, set(scores), window, prefix, show_progress=is_first):
        scores[text.key] = _token_scores(text, computed, run)
        if cache is not None:
            cache.put(scores[text.key], text.request, text.encoded.ids)
    return [scores[request.key] for request in requests]


def _window(requests: Sequence[ScoringRequest], max_length: int, prefix: int) -> int | None:
    """The context of the short-context pass, the same for all; `ScoringError` where the model cannot read a chunk."""
    windows = {request.window for request in requests}
    if len(windows) > 1:
        raise ScoringError("tasks of one run must share one window; give it once, in --metadata")
    window = next(iter(windows), None)
    if window is not None and (needed := prefix + window + window_stride(window)) > max_length:
        raise ScoringError(
            f"window={window} needs a model that reads {needed} tokens (the window, a quarter more and "
            f"{prefix} before the text), and this one reads {max_length}.\n"
            f"Set window to {(max_length - prefix) * 4 // 5} or less, or a larger max_length in --model_args."
        )
    return window


def describe_run(backend: Backend, encoder: Encoder) -> dict[str, Any]:
    """What scores depend on beside the texts: the backend's model, its tokenizer, BOS and context."""
    return {
        **backend.describe(),
        "tokenizer": tokenizer_of(backend.tokenizer),
        "bos": list(encoder.prefix),
        "max_length": backend.max_length,
    }


def labelled_key(request_text: str, codes: npt.NDArray[np.uint8]) -> str:
    """Hash of a labelled text: requests with equal keys share their scores."""
    digest = hashlib.sha256(request_text.encode())
    digest.update(codes.tobytes())
    return digest.hexdigest()


def _merged(requests: Sequence[ScoringRequest]) -> list[ScoringRequest]:
    """One request for each distinct text."""
    merged: dict[str, ScoringRequest] = {}
    for request in requests:
        other = merged.setdefault(request.key, request)
        if other.overflow != request.overflow:
            raise ScoringError("tasks of one run must share one overflow policy; give it once, in --metadata")
        mask, extra_mask = other.mask | request.mask, other.extra_mask | request.extra_mask
        merged[request.key] = replace(other, mask=mask, extra_mask=extra_mask, k=max(other.k, request.k))
    return list(merged.values())


def tokenise(request: ScoringRequest, encoder: Encoder, max_length: int) -> TokenisedRequest:
    """The tokens of a request; `ScoringError` where `max_length` truncates it and its overflow is "error"."""
    encoded = encoder.encode(request.rendered)
    labels = token_labels(encoded, request.codes)
    targets = np.flatnonzero((labels & request.scored) != 0)
    targets = targets[targets > 0]  # nothing precedes the first token
    n_fitting = int(np.searchsorted(targets, max_length))
    n_truncated = int(np.count_nonzero(labels[targets[n_fitting:]] & request.mask))
    if n_truncated and request.overflow == "error":
        raise ScoringError(
            f"trajectory {request.name!r} has {len(encoded.ids)} tokens, the model reads {max_length} (--model_args "
            "max_length=…); set overflow to 'right' to score the part that fits or 'skip' to leave it out"
        )
    return TokenisedRequest(request, encoded, labels, targets, n_fitting, n_truncated)


def check_tokenizer(texts: Sequence[TokenisedRequest], backend: Backend) -> None:
    """Refuse a tokenizer that cannot represent the texts; warn of few such characters, and of truncated texts."""
    if n_long := sum(text.n_truncated > 0 for text in texts):
        _log.warning(
            "%d of %d texts are longer than the model's context of %d tokens: what lies beyond is not scored, "
            "and each task tells the share of its tokens that was. Raise max_length in --model_args if the model can "
            "read more.", n_long, len(texts), backend.max_length,
        )  # fmt: skip
    lossy = [text for text in texts if text.encoded.lost]
    if not lossy:
        return
    lost, first = sum(text.encoded.lost for text in lossy), lossy[0].request.name
    characters = sum(len(text.request.rendered.text) for text in texts)
    if lost > 0.05 * characters:
        raise ScoringError(
            f"the tokenizer {type(backend.tokenizer).__name__} cannot represent {lost} of {characters} "
            f"characters (first in trajectory {first!r}): its likelihoods would not be those of the text. "
            "Check that the tokenizer belongs to the model."
        )
    _log.warning(
        "the tokenizer cannot represent %d of %d characters (unknown tokens; first in trajectory %r); they are "
        "scored as what it makes of them", lost, characters, first,
    )  # fmt: skip


def _check_context(requests: Sequence[ScoringRequest], texts: Sequence[TokenisedRequest], max_length: int) -> None:
    """Refuse a task of which the context leaves nothing, rather than print an empty table."""
    by_key = {text.key: text for text in texts}

    def is_lost(request: ScoringRequest) -> bool:
        text = by_key[request.key]
        counts = (text.labels[text.targets] & request.mask) != 0
        truncated = counts[text.n_fitting :].any()
        return bool(truncated and (request.overflow == "skip" or not counts[: text.n_fitting].any()))

    for mask in {int(request.mask) for request in requests}:
        own = [request for request in requests if request.mask == mask]
        if all(map(is_lost, own)):
            raise ScoringError(
                f"every trajectory is longer than the model's context of {max_length} tokens, and "
                f"{'overflow=skip leaves such out' if own[0].overflow == 'skip' else 'no token that counts fits'}. "
                "Raise max_length in --model_args, or score shorter trajectories."
            )


def _compute(
    backend: Backend,
    texts: Sequence[TokenisedRequest],
    k: int,
    done: Collection[str],
    window: int | None,
    prefix: int,
    *,
    show_progress: bool,
) -> Iterator[tuple[TokenisedRequest, SequenceScores]]:
    """Scores of the texts that are not `done`, as they finish."""
    todo = [text for text in texts if text.n_fitting]
    sequences: list[TokenSequence] = []
    owner: list[int] = []  # the text of each sequence
    for number, text in enumerate(todo):
        whole = text.sequence(backend.max_length)
        chunks = [whole] if window is None else list(_chunks(whole, window, prefix))
        sequences += chunks
        owner += [number] * len(chunks)
    skip = {index for index, number in enumerate(owner) if todo[number].key in done}
    total = sum(len(sequence.ids) for index, sequence in enumerate(sequences) if index not in skip)
    parts: dict[int, dict[int, SequenceScores]] = {}  # of texts whose chunks are not all scored yet
    wanted = Counter(owner)
    with _progress_bar(total, show=show_progress) as bar:
        for index, scores in backend.score(sequences, k, bar.update, skip):
            bar.set_postfix_str(printable(sequences[index].name[:40]), refresh=False)
            refuse_non_finite(sequences[index], scores)
            of_text = parts.setdefault(owner[index], {})
            of_text[index] = scores
            if len(of_text) == wanted[owner[index]]:
                del parts[owner[index]]
                yield todo[owner[index]], SequenceScores.concat([of_text[i] for i in sorted(of_text)])
    yield from ((text, SequenceScores.empty(k)) for text in texts if not text.n_fitting and text.key not in done)


def _chunks(sequence: TokenSequence, window: int, prefix: int) -> Iterator[TokenSequence]:
    """The sequences of a short-context pass (`hidden_tokens`), each with the targets that it predicts."""
    hidden = hidden_tokens(sequence.targets, window, prefix)
    starts, first = np.unique(hidden, return_index=True)
    for start, targets in zip(starts.tolist(), np.split(sequence.targets, first[1:]), strict=True):
        ids = np.concatenate([sequence.ids[:prefix], sequence.ids[prefix + start : int(targets[-1]) + 1]])
        length = min(prefix + window + window_stride(window), sequence.full_length - start)
        yield sequence._replace(ids=ids, targets=(targets - start).astype(np.int32), length=length)


def _progress_bar(total: int, *, show: bool) -> tqdm[Any]:
    """Tokens scored: a bar on a terminal, a line a minute in the log where there is none."""
    if not show or sys.stderr.isatty():
        return tqdm(total=total, unit="tok", unit_scale=True, desc="scoring", disable=not show)
    line = "{desc}: {percentage:.0f}% of {total_fmt} tokens, {remaining} left ({rate_fmt}){postfix}"
    return tqdm(
        total=total, unit="tok", unit_scale=True, desc="scoring", file=_LogFile(), bar_format=line, miniters=1,
        mininterval=LOG_SECONDS, maxinterval=2 * LOG_SECONDS, delay=LOG_SECONDS,
    )  # fmt: skip


class _LogFile:
    """What tqdm writes, as lines of the log."""

    def write(self, text: str) -> None:
        """Log a line."""
        if text.strip():
            _log.info("%s", text.strip())

    def flush(self) -> None:
        """A log has no buffer here."""


def _token_scores(text: TokenisedRequest, scores: SequenceScores, run: Mapping[str, Any]) -> TokenScores:
    position, encoded = text.targets[: text.n_fitting], text.encoded
    return TokenScores(
        key=text.key,
        position=position.astype(np.int32),
        token_id=encoded.ids[position],
        turn=token_turns(encoded, text.request.rendered)[position],
        label=text.labels[position],
        char_start=encoded.start[position],
        char_end=encoded.end[position],
        scores=scores,
        tokens_total=len(encoded.ids),
        labels_cut=text.labels[text.targets[text.n_fitting :]],
        run=run,
    )


def refuse_non_finite(sequence: TokenSequence, scores: SequenceScores) -> None:
    """Raise `ScoringError` for NaN and infinite values."""
    good = np.isfinite(scores.logprob) & np.isfinite(scores.topk_logprobs).all(axis=1)
    if not good.all():
        first = int(np.argmin(good))
        raise ScoringError(
            "the model gave NaN or infinite values, or probability 0 to the text's token or one of the k likeliest, at "
            f"token {int(sequence.targets[first])} of trajectory {sequence.name!r} ({int((~good).sum())} of "
            f"{len(good)} scored tokens). Has this checkpoint diverged? If it was trained in bfloat16, try "
            "dtype=bfloat16 or float32 in --model_args instead of float16."
        )
