"""The request type `topk_loglikelihood`: from labelled texts to `TokenScores`, with whatever backend fits the model.

Knows tokenizers and backends, but neither files nor metrics nor lm-eval's tasks. Requests of several tasks on one text
are merged, the text is tokenised once, and only the tokens that some task wants are scored.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hesnr_tasks.backends.base import Backend, TokenSequence
from hesnr_tasks.backends.identity import tokenizer_of
from hesnr_tasks.errors import ScoringError, printable
from hesnr_tasks.files.atomic import Record, ScratchFile
from hesnr_tasks.scores import ScoreCache
from hesnr_tasks.scores.base import ScoringRequest, SequenceScores, TokenScores, hidden_tokens, window_stride
from hesnr_tasks.trajectory.alignment import Encoded, Encoder, token_labels, token_turns
from hesnr_tasks.trajectory.rendering import Rendered

__all__ = [
    "BACKENDS",
    "REQUEST_TYPE",
    "TokenisedRequest",
    "backend_for",
    "check_tokenizer",
    "describe_run",
    "iterate_scores",
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


class TokenisedRequest(NamedTuple):
    """A request, its text and tokens, and those of them that are scored."""

    request: ScoringRequest
    rendered: Rendered
    encoded: Encoded
    labels: npt.NDArray[np.uint64]
    targets: npt.NDArray[np.int64]  # all positions to score
    n_fitting: int  # how many of them lie within the context
    n_truncated: int  # wanted tokens beyond the context

    @property
    def key(self) -> str:
        """Of the request."""
        return self.request.key

    @property
    def lost(self) -> int:
        """Characters that the tokenizer cannot represent."""
        return self.encoded.lost

    def loses(self, mask: int) -> bool:
        """Whether the context leaves a task that wants the labels of `mask` nothing of this text."""
        fitting, beyond = np.split((self.labels[self.targets] & np.uint64(mask)) != 0, [self.n_fitting])
        return bool(beyond.any() and (self.request.overflow == "skip" or not fitting.any()))

    def sequence(self, max_length: int) -> TokenSequence:
        """What the model reads: the tokens up to the last one that is scored."""
        targets, request = self.targets[: self.n_fitting].astype(np.int32), self.request
        ids = self.encoded.ids[: int(targets[-1]) + 1 if len(targets) else 0]
        length = min(len(self.encoded.ids), max_length)
        return TokenSequence(request.name, ids, targets, length, request.full_vocabulary)


def score_requests(lm: Any, requests: Sequence[ScoringRequest], cache: ScoreCache | None = None) -> list[TokenScores]:
    """`iterate_scores`, all of them, in the order of the requests."""
    scores = {index: scores for index, scores, _ in iterate_scores(lm, requests, cache)}
    return [scores[index] for index in range(len(requests))]


def iterate_scores(
    lm: Any, requests: Sequence[ScoringRequest], cache: ScoreCache | None = None
) -> Iterator[tuple[int, TokenScores, Rendered]]:
    """Score every request, with one forward pass over each distinct text; memory holds a few texts at a time.

    Every text is read and tokenised before the first is scored, so that what cannot be scored is an error at once.

    Args:
        lm: lm-eval's model.
        requests: of all tasks of a run.
        cache: what it has is not scored again; what it lacks is saved there as it finishes.

    Yields:
        The index of a request, its scores and its text, as texts finish: not in the order of the requests.

    Raises:
        ScoringError: the model, its tokenizer or the context does not allow the numbers.
    """
    backend, is_first = backend_for(lm), int(getattr(lm, "rank", 0) or 0) == 0
    encoder = Encoder(backend.tokenizer, backend.bos)
    window = _window(requests, backend.max_length, len(encoder.prefix))
    stored = _StoredTexts(backend.max_length, window, len(encoder.prefix))
    full_vocabulary = backend.full_vocabulary and any(request.full_vocabulary for request in requests)
    groups: dict[str, list[int]] = {}  # requests of one text
    for index, request in enumerate(requests):
        groups.setdefault(request.key, []).append(index)
    losses: list[tuple[ScoringRequest, int, int]] = []
    lost: dict[str, set[int]] = {}  # by key: masks of which the context leaves nothing
    for indices in groups.values():
        own = [requests[index] for index in indices]
        merged = replace(_merged(own), full_vocabulary=full_vocabulary)
        text = tokenise(merged, encoder, backend.max_length)
        stored.put(text)
        losses.append((merged, text.lost, text.n_truncated))
        lost[merged.key] = {mask for mask in {int(request.mask) for request in own} if text.loses(mask)}
    check_tokenizer(losses, backend)
    _check_context(requests, lost, backend.max_length)
    run = describe_run(backend, encoder) | ({} if window is None else {"window": window})
    k, done = max((request.k for request in stored.requests), default=0), set[int]()
    if cache is not None and stored.requests:
        canary = backend.canary()
        run |= {"canary": canary} if canary else {}
        k = cache.open(run, k, stored.requests[0].overflow, backend.gather, is_first)
        cache.save_token_bytes(encoder.token_bytes)
        for number, (request, record) in enumerate(zip(stored.requests, stored.records, strict=True)):
            scores = cache.get(request, record()[1][0])
            if scores is not None:
                done.add(number)
                scores, rendered = replace(scores, run=run), request.read()  # the model may have moved
                yield from ((index, scores, rendered) for index in groups[request.key])
        if done and is_first:
            _log.info("%d of %d trajectories were scored before and are not read again", len(done), len(groups))
    for number, computed in _compute(backend, stored, k, done, show_progress=is_first):
        request, (ids, *values) = stored.requests[number], stored.records[number]()[1]
        rendered, columns = request.read(), dict(zip(_COLUMNS, values, strict=True))
        token_id = ids[columns["position"]]
        scores = TokenScores(
            key=request.key, token_id=token_id, scores=computed, tokens_total=len(ids), run=run, **columns
        )
        if cache is not None:
            cache.put(scores, request, rendered, ids)
        yield from ((index, scores, rendered) for index in groups[request.key])


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


def _merged(requests: Sequence[ScoringRequest]) -> ScoringRequest:
    """One request for all of one text."""
    merged = requests[0]
    for request in requests:
        if merged.overflow != request.overflow:
            raise ScoringError("tasks of one run must share one overflow policy; give it once, in --metadata")
        mask, extra_mask = merged.mask | request.mask, merged.extra_mask | request.extra_mask
        merged = replace(merged, mask=mask, extra_mask=extra_mask, k=max(merged.k, request.k))
    return merged


def tokenise(request: ScoringRequest, encoder: Encoder, max_length: int) -> TokenisedRequest:
    """The tokens of a request; `ScoringError` where `max_length` truncates it and its overflow is "error"."""
    rendered = request.read()
    encoded = encoder.encode(rendered)
    labels = token_labels(encoded, rendered.codes)
    targets = np.flatnonzero((labels & request.scored) != 0)
    targets = targets[targets > 0]  # nothing precedes the first token
    n_fitting = int(np.searchsorted(targets, max_length))
    n_truncated = int(np.count_nonzero(labels[targets[n_fitting:]] & request.mask))
    if n_truncated and request.overflow == "error":
        raise ScoringError(
            f"trajectory {request.name!r} has {len(encoded.ids)} tokens, the model reads {max_length} (--model_args "
            "max_length=…); set overflow to 'right' to score the part that fits or 'skip' to leave it out"
        )
    return TokenisedRequest(request, rendered, encoded, labels, targets, n_fitting, n_truncated)


def check_tokenizer(losses: Sequence[tuple[ScoringRequest, int, int]], backend: Backend) -> None:
    """Refuse a tokenizer that cannot represent the texts; warn of few such characters, and of truncated texts.

    Args:
        losses: of each text its request, the characters that the tokenizer lost, and the tokens that were truncated.
        backend: whose tokenizer and context it was.
    """
    if n_long := sum(n_truncated > 0 for _, _, n_truncated in losses):
        _log.warning(
            "%d of %d texts are longer than the model's context of %d tokens: what lies beyond is not scored, "
            "and each task tells the share of its tokens that was. Raise max_length in --model_args if the model can "
            "read more.", n_long, len(losses), backend.max_length,
        )  # fmt: skip
    lossy = [(request.name, lost) for request, lost, _ in losses if lost]
    if not lossy:
        return
    lost, first = sum(lost for _, lost in lossy), lossy[0][0]
    characters = sum(request.characters for request, _, _ in losses)
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


def _check_context(requests: Sequence[ScoringRequest], lost: Mapping[str, Collection[int]], max_length: int) -> None:
    """Refuse a task of which the context leaves nothing, rather than print an empty table."""
    for mask in {int(request.mask) for request in requests}:
        own = [request for request in requests if request.mask == mask]
        if all(mask in lost[request.key] for request in own):
            raise ScoringError(
                f"every trajectory is longer than the model's context of {max_length} tokens, and "
                f"{'overflow=skip leaves such out' if own[0].overflow == 'skip' else 'no token that counts fits'}. "
                "Raise max_length in --model_args, or score shorter trajectories."
            )


# --- texts that wait --------------------------------------------------------------------------------------------------


_COLUMNS = (
    "position",
    "label",
    "turn",
    "char_start",
    "char_end",
    "labels_cut",
)  # of `TokenScores`, from the text alone


class _StoredTexts(Sequence[TokenSequence]):
    """Tokenised texts in a scratch file; as a sequence, what a backend scores, each read when it is asked for."""

    def __init__(self, max_length: int, window: int | None, prefix: int) -> None:
        self.requests: list[ScoringRequest] = []  # of all tasks together, one a text
        self.records: list[Record] = []  # its token ids and `_COLUMNS`
        self.lengths: list[tuple[int, ...]] = []  # of its sequences: one, or the chunks of the short-context pass
        self.owner: list[tuple[int, int]] = []  # of each sequence: the text, and which of its sequences it is
        self._scratch = ScratchFile()
        self._max_length, self._window, self._prefix = max_length, window, prefix

    def put(self, text: TokenisedRequest) -> None:
        """Store a text."""
        fitting, beyond = np.split(text.targets, [text.n_fitting])
        encoded, turns = text.encoded, token_turns(text.encoded, text.rendered)
        spans = encoded.start[fitting], encoded.end[fitting]
        columns = fitting.astype(np.int32), text.labels[fitting], turns[fitting], *spans, text.labels[beyond]
        lengths = tuple(len(part.ids) for part in self._parts(text.sequence(self._max_length)))
        self.owner += [(len(self.requests), part) for part in range(len(lengths))]
        self.lengths.append(lengths)
        self.requests.append(text.request)
        self.records.append(self._scratch.put(None, encoded.ids, *columns))

    def _parts(self, whole: TokenSequence) -> list[TokenSequence]:
        """The sequences of a text."""
        if not len(whole.targets):
            return []
        return [whole] if self._window is None else list(_chunks(whole, self._window, self._prefix))

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, part = self.owner[index]
        (ids, targets, *_), request = self.records[number]()[1], self.requests[number]
        ids, length = ids[: int(targets[-1]) + 1], min(len(ids), self._max_length)
        return self._parts(TokenSequence(request.name, ids, targets, length, request.full_vocabulary))[part]

    def set_aside(self, scores: SequenceScores) -> Record:
        """Store scores of one part of a text."""
        return self._scratch.put(None, *(column for column in scores if column is not None))


def _compute(
    backend: Backend, stored: _StoredTexts, k: int, done: Collection[int], *, show_progress: bool
) -> Iterator[tuple[int, SequenceScores]]:
    """Scores of the texts that are not `done`, by number, as they finish."""
    skip = {index for index, (number, _) in enumerate(stored.owner) if number in done}
    total = sum(sum(lengths) for number, lengths in enumerate(stored.lengths) if number not in done)
    aside: dict[int, dict[int, Record]] = {}  # of texts whose parts are not all scored yet
    with _progress_bar(total, show=show_progress) as bar:
        for index, scores in backend.score(stored, k, bar.update, skip):
            number, part = stored.owner[index]
            bar.set_postfix_str(printable(stored.requests[number].name[:40]), refresh=False)
            refuse_non_finite(stored[index], scores)
            if (n_parts := len(stored.lengths[number])) > 1:
                parts = aside.setdefault(number, {})
                parts[part] = stored.set_aside(scores)
                if len(parts) < n_parts:
                    continue
                del aside[number]
                scores = SequenceScores.concat([SequenceScores(*parts[i]()[1]) for i in sorted(parts)])
            yield number, scores
    for number, lengths in enumerate(stored.lengths):
        if not lengths and number not in done:
            yield number, SequenceScores.empty(k)


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
