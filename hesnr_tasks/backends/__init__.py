"""The request type `topk_loglikelihood`: from labelled texts to `TokenScores`, with whatever backend fits the model.

Knows tokenizers and backends, but neither files nor metrics nor lm-eval's tasks. Requests of several tasks on one text
are merged, the text is tokenised once, and only the tokens that some task wants are scored.
"""

from __future__ import annotations

import importlib
import logging
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from hesnr_tasks.backends.base import Backend, TokenSequence
from hesnr_tasks.backends.identity import tokenizer_of
from hesnr_tasks.errors import ScoringError, printable
from hesnr_tasks.files.atomic import ScratchFile
from hesnr_tasks.scores import ScoreCache
from hesnr_tasks.scores.schema import ScoringRequest, SequenceScores, TokenScores, hidden_tokens, window_stride
from hesnr_tasks.trajectory.alignment import Encoded, Encoder, IntArray, token_labels, token_turns
from hesnr_tasks.trajectory.rendering import Rendered

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


def iterate_scores(
    lm: Any, requests: Sequence[ScoringRequest], cache: ScoreCache | None = None
) -> Iterator[tuple[int, TokenScores, Rendered]]:
    """Score every request, with one forward pass over each distinct text; memory holds a few texts at a time.

    Every text is read and tokenised before the first is scored, so that what cannot be scored is an error at once.

    Args:
        lm: lm-eval's model.
        requests: of all tasks of a run.
        cache: what it has is not scored again; what it lacks is saved there as it finishes.

    Returns:
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
    fits: dict[int, bool] = {}  # of each task, by its mask: whether the context leaves it anything
    for indices in groups.values():
        own = [requests[index] for index in indices]
        merged = replace(_merged(own), full_vocabulary=full_vocabulary)
        _, encoded, tokens = tokenise(merged, encoder, backend.max_length)
        stored.put(merged, encoded.ids, tokens)
        losses.append((merged, encoded.lost, tokens.count_cut(merged.mask)))
        for request in own:
            fits[int(request.mask)] = fits.get(int(request.mask), False) or not _loses(tokens, request)
    check_tokenizer(losses, backend)
    if not all(fits.values()):  # rather than print an empty table
        skipped = stored.requests[0].overflow == "skip"
        raise ScoringError(
            f"every trajectory is longer than the model's context of {backend.max_length} tokens, and "
            f"{'overflow=skip leaves such out' if skipped else 'no token that counts fits'}. "
            "Raise max_length in --model_args, or score shorter trajectories."
        )
    run = describe_run(backend, encoder) | ({} if window is None else {"window": window})
    k = max((request.k for request in stored.requests), default=0)
    if cache is not None and stored.requests:
        canary = backend.canary()
        run |= {"canary": canary} if canary else {}
        k = cache.open(run, k, stored.requests[0].overflow, backend.gather, is_first)
        cache.store.save_token_bytes(encoder.token_bytes)
    return _by_text(backend, stored, list(groups.values()), k, run, cache, is_first)


def _by_text(
    backend: Backend,
    stored: _StoredTexts,
    groups: Sequence[Sequence[int]],
    k: int,
    run: Mapping[str, Any],
    cache: ScoreCache | None,
    is_first: bool,
) -> Iterator[tuple[int, TokenScores, Rendered]]:
    """What `iterate_scores` returns: of the texts in the cache, then of those that a model reads, then of the others.

    `groups`: of each text, the indices of its requests.
    """
    done = set[int]()
    for number, request in enumerate(stored.requests):
        scores = cache.get(request, stored.columns(number)[0]) if cache is not None else None
        if scores is not None:
            done.add(number)
            scores, rendered = replace(scores, run=run), request.read()  # the model may have moved
            yield from ((index, scores, rendered) for index in groups[number])
    if done and is_first:
        _log.info("%d of %d trajectories were scored before and are not read again", len(done), len(stored.requests))

    def finish(number: int, computed: SequenceScores) -> Iterator[tuple[int, TokenScores, Rendered]]:
        request, (ids, *values) = stored.requests[number], stored.columns(number)
        columns: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
        token_id = ids[columns["position"]]
        scores = TokenScores(
            key=request.key, token_id=token_id, scores=computed, tokens_total=len(ids), run=run, **columns
        )
        rendered = request.read()
        if cache is not None:
            cache.put(scores, request, rendered, ids)
        yield from ((index, scores, rendered) for index in groups[number])

    skip = {index for index, (number, _) in enumerate(stored.owner) if number in done}
    total = sum(sum(lengths) for number, lengths in enumerate(stored.lengths) if number not in done)
    aside: dict[int, dict[int, int]] = {}  # of texts whose parts are not all scored yet
    with _progress_bar(total, show=is_first) as bar:
        for index, computed in backend.score(stored, k, bar.update, skip):
            number, part = stored.owner[index]
            bar.set_postfix_str(printable(stored.requests[number].name[:40]), refresh=False)
            refuse_non_finite(stored[index], computed)
            if (n_parts := len(stored.lengths[number])) > 1:
                parts = aside.setdefault(number, {})
                parts[part] = stored.set_aside(computed)
                if len(parts) < n_parts:
                    continue
                del aside[number]
                computed = SequenceScores.concat([stored.read_aside(parts[i]) for i in sorted(parts)])
            yield from finish(number, computed)
    for number, lengths in enumerate(stored.lengths):
        if not lengths and number not in done:
            yield from finish(number, SequenceScores.empty(k))


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


def tokenise(request: ScoringRequest, encoder: Encoder, max_length: int) -> tuple[Rendered, Encoded, TokenScores]:
    """The text of a request, its tokens, and those of them that are scored, whose scores are empty as yet.

    Raises:
        ScoringError: `max_length` truncates the text and the request's overflow is "error".
    """
    rendered = request.read()
    encoded = encoder.encode(rendered)
    labels = token_labels(encoded, rendered.codes)
    targets = np.flatnonzero((labels & request.scored) != 0)
    targets = targets[targets > 0]  # nothing precedes the first token
    fitting, beyond = np.split(targets, [np.searchsorted(targets, max_length)])
    tokens = TokenScores(
        key=request.key,
        position=fitting.astype(np.int32),
        token_id=encoded.ids[fitting],
        turn=token_turns(encoded, rendered)[fitting],
        label=labels[fitting],
        char_start=encoded.start[fitting],
        char_end=encoded.end[fitting],
        scores=SequenceScores.empty(0),
        tokens_total=len(encoded.ids),
        labels_cut=labels[beyond],
        run={},
    )
    if request.overflow == "error" and tokens.count_cut(request.mask):
        raise ScoringError(
            f"trajectory {request.name!r} has {len(encoded.ids)} tokens, the model reads {max_length} (--model_args "
            "max_length=…); set overflow to 'right' to score the part that fits or 'skip' to leave it out"
        )
    return rendered, encoded, tokens


def _loses(tokens: TokenScores, request: ScoringRequest) -> bool:
    """Whether the context leaves a request nothing of its text."""
    beyond = tokens.count_cut(request.mask)
    return beyond > 0 and (request.overflow == "skip" or not tokens.selected(request.mask).any())


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


# --- texts that wait --------------------------------------------------------------------------------------------------

_COLUMNS = ("position", "label", "turn", "char_start", "char_end", "labels_cut")  # of `TokenScores`


class _StoredTexts(Sequence[TokenSequence]):
    """Tokenised texts in a scratch file; as a sequence, what a backend scores, each read when it is asked for."""

    def __init__(self, max_length: int, window: int | None, prefix: int) -> None:
        self.requests: list[ScoringRequest] = []  # of all tasks together, one a text
        self._places = array("q")  # of its token ids and `_COLUMNS`, which need no model
        self.lengths: list[tuple[int, ...]] = []  # of its sequences: one, or the chunks of the short-context pass
        self.owner: list[tuple[int, int]] = []  # of each sequence: the text, and which of its sequences it is
        self._scratch = ScratchFile()
        self._max_length, self._window, self._prefix = max_length, window, prefix

    def put(self, request: ScoringRequest, ids: IntArray, tokens: TokenScores) -> None:
        """Store a text: all its token ids, and those of its tokens that are scored."""
        lengths = tuple(len(part.ids) for part in self._parts(request, ids, tokens.position))
        self.owner += [(len(self.requests), part) for part in range(len(lengths))]
        self.lengths.append(lengths)
        self.requests.append(request)
        self._places.append(self._scratch.put(None, ids, *(getattr(tokens, name) for name in _COLUMNS)))

    def columns(self, number: int) -> list[Any]:
        """The token ids of a text, and its `_COLUMNS`."""
        return self._scratch.get(self._places[number])[1]

    def _parts(self, request: ScoringRequest, ids: IntArray, targets: IntArray) -> list[TokenSequence]:
        """The sequences of a text."""
        if not len(targets):
            return []
        whole = TokenSequence.of(request, ids, targets, self._max_length)
        return [whole] if self._window is None else list(_chunks(whole, self._window, self._prefix))

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, index: Any) -> Any:
        number, part = self.owner[index]
        ids, targets, *_ = self.columns(number)
        return self._parts(self.requests[number], ids, targets)[part]

    def set_aside(self, scores: SequenceScores) -> int:
        """Store scores of one part of a text; returns their place."""
        return self._scratch.put(None, *(column for column in scores if column is not None))

    def read_aside(self, place: int) -> SequenceScores:
        """The scores that were set aside at a place."""
        return SequenceScores(*self._scratch.get(place)[1])


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
