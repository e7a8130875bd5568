"""Scoring with SGLang: its engine in this process (`--model sglang`) or its `/generate` endpoint (`sglang-generate`).

One request a text, with `logprob_start_len` one before the first wanted token: no logits are made of what lies before,
which may come from the prefix cache. The answer (`meta_info`) begins at that token, with nothing for it, and has of
each later one its own log-probability and, apart from it, those of the k most likely tokens: as lists of
[log-probability, id, text], or, where a server knows `return_flat_raw_top_logprobs`, as two arrays in base64. Ranks
beyond the candidates are not told. (Read off SGLang 0.5.23: managers/io_struct.py and tokenizer_manager.py.)
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.backends.base import (
    Backend,
    Rows,
    TokenSequence,
    batches_of_tokens,
    number,
    same_value,
    to_scores,
    vocabulary_bound,
)
from hesnr_tasks.backends.completions import AnswerForm, CompletionsBackend
from hesnr_tasks.backends.completions import make as completions
from hesnr_tasks.backends.identity import engine_version, fingerprint
from hesnr_tasks.errors import ScoringError, number_of
from hesnr_tasks.scores.schema import SequenceScores

_RANKS = 10  # accuracies are reported up to the ten likeliest
_BATCH_TOKENS = 1 << 17  # in one call of the engine; its answer takes about 2 KB of host memory per token (k = 10)
_OVERRIDES = ("json_model_override_args", "kv_cache_dtype", "quantization", "load_format")  # change what is computed
_FLAT = {"return_flat_raw_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}
_log = logging.getLogger("hesnr_tasks")


def make(lm: Any) -> Backend:
    """The backend for lm-eval's `SGLangLM` or `SGLANGGENERATEAPI`.

    Raises:
        ScoringError: an adapter that lm-eval would not apply, no Hugging Face tokenizer, or no server answers.
    """
    return SGLangBackend(lm) if hasattr(lm, "model_args") else completions(lm, SGLangServerBackend)


def _request(text: TokenSequence, k: int, vocabulary: int) -> dict[str, Any]:
    """What is asked of a text: `Engine.generate` and `/generate` name it alike."""
    if k > vocabulary:
        raise ScoringError(f"top {k} asked for, but the model's vocabulary has {vocabulary} entries")
    return {
        "return_logprob": True,
        "logprob_start_len": int(text.targets[0]) - 1,
        "top_logprobs_num": min(max(k, _RANKS), vocabulary),
    }


class SGLangBackend(Backend):
    """SequenceScores with the engine of an lm-eval `SGLangLM`, any parallel layout."""

    bos = CompletionsBackend.bos

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        self._config = getattr(getattr(lm.model, "tokenizer_manager", None), "model_config", None)
        self._vocabulary = int(getattr(self._config, "vocab_size", 0) or vocabulary_bound(lm.tokenizer))
        if lm.model_args.get("lora_paths"):
            raise ScoringError(
                "lora_paths in --model_args loads adapters that lm-eval's sglang never applies: the base would be "
                "scored.\nMerge the adapter into the weights, or use --model hf with peft=FOLDER."
            )

    @property
    def max_length(self) -> int:
        """One less than the context length: a token after the prompt is always generated."""
        return min(int(self._lm.max_length), int(getattr(self._config, "context_len", 1 << 40))) - 1

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        args = self._lm.model_args
        changed = {name: args[name] for name in _OVERRIDES if args.get(name) not in (None, "auto", "{}")}
        return {
            "backend": "sglang",
            "engine": engine_version("sglang"),
            "model": str(args["model_path"]),
            "revision": args.get("revision"),
            "dtype": str(getattr(self._config, "dtype", args.get("dtype"))).removeprefix("torch."),
            "overrides": json.loads(json.dumps(changed, default=str)) or None,
            "weights": fingerprint(str(args["model_path"]), args.get("revision")),
        }

    def score(
        self, sequences: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, SequenceScores]]:
        """See `Backend.score`."""
        for batch in batches_of_tokens(sequences, skip, _BATCH_TOKENS):
            texts = [sequences[index] for index in batch]
            requests = [_request(text, k, self._vocabulary) for text in texts]
            columns = {name: [request[name] for request in requests] for name in requests[0]}
            names = texts[0].name + (f" and {number_of(len(batch) - 1, 'other')}" if len(batch) > 1 else "")
            try:
                answers = self._lm.model.generate(
                    input_ids=[text.ids.tolist() for text in texts],
                    sampling_params=[{"max_new_tokens": 1, "temperature": 0} for _ in batch],
                    **columns,
                )
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).strip().rstrip('.')}"
                raise ScoringError(
                    f"SGLang failed on trajectory {names}: {reason}.\nIts own messages above say why; where memory "
                    "ran out, lower chunked_prefill_size (2048, say) or mem_fraction_static in --model_args."
                ) from error
            if not isinstance(answers, list) or len(answers) != len(batch):
                raise ScoringError(f"SGLang did not answer each of the {len(batch)} texts of one call ({names})")
            for index, text, answer in zip(batch, texts, answers, strict=True):
                try:
                    scores = scores_of(text, answer, k, "SGLang", self._vocabulary, len(self.tokenizer) - 1)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ScoringError(
                        f"SGLang's answer for trajectory {text.name!r} cannot be used: {error}"
                    ) from error
                yield index, scores
                progress(len(text.ids))


class SGLangServerBackend(CompletionsBackend):
    """SequenceScores with the `/generate` endpoint of an SGLang server; otherwise as with any server."""

    forms = (
        AnswerForm("flat arrays of log-probabilities", lambda k: _FLAT),
        AnswerForm("lists of log-probabilities", lambda k: {}),
    )
    needs = (
        "It must be SGLang's own endpoint, base_url=http://HOST:PORT/generate in --model_args. Otherwise use --model "
        "sglang, hf or vllm."
    )

    def _served_card(self) -> Mapping[str, Any]:
        """The endpoint takes no model's name: it scores with the only base model that it has."""
        cards = [card for card in self._served if not card.get("parent")]
        if len(cards) != 1:
            return super()._served_card()
        if cards[0].get("id") != self._lm.model:
            _log.warning("%s scores with %s, whatever model=… in --model_args says", self._server, cards[0].get("id"))
        return cards[0]

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        return super().describe() | {"backend": "sglang-generate", "served": self._card.get("id")}

    def _scores(self, form: AnswerForm, text: TokenSequence, k: int, what: str, source: str) -> SequenceScores:
        payload = {
            "input_ids": text.ids.tolist(),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_text_in_logprobs": False,
            **_request(text, k, self._vocabulary),
        }
        answer = self._server.answer(payload | form.fields(k), what)
        return scores_of(text, answer, k, source, self._vocabulary, len(self.tokenizer) - 1)


# --- answers ----------------------------------------------------------------------------------------------------------


def scores_of(
    text: TokenSequence, answer: Mapping[str, Any], k: int, source: str, vocabulary: int, last: int
) -> SequenceScores:
    """The scores in SGLang's answer about one text.

    Args:
        text: what was sent.
        answer: with `meta_info`, in either form.
        k: candidates to keep, of those that were requested.
        source: who answered, for messages.
        vocabulary: more ids than that no model of the tokenizer has.
        last: the tokenizer's last id, which SGLang reports as 0 where it is the vocabulary's last.

    Raises:
        ValueError: something is missing, or of another text.
        ScoringError: the values contradict each other.
    """
    meta = answer["meta_info"]
    finish = meta.get("finish_reason") or {}
    if isinstance(finish, Mapping) and finish.get("type") == "abort":
        raise ValueError(f"the request was aborted: {finish.get('message')}")
    start = int(text.targets[0]) - 1
    sent, own = text.ids[start:].tolist(), meta.get("input_token_logprobs")
    if not isinstance(own, list) or len(own) != len(sent):
        count = len(own) if isinstance(own, list) else "none"
        raise ValueError(f"no values of the {len(sent)} tokens from token {start} on came back ({count})")
    if own[0][0] is not None:
        raise ValueError(f"there is a value of token {start}, before the first: positions are shifted")
    for position, (token, entry) in enumerate(zip(sent, own, strict=True), start):
        if entry[1] != token and not (entry[1] == 0 and token >= last):
            raise ValueError(f"the value of token {position} is of id {entry[1]}, and {token} was sent")
    index = text.targets - start
    logprob = np.array([number(own[i][0], f"token {start + i} of the prompt") for i in index.tolist()])
    requested = _request(text, k, vocabulary)["top_logprobs_num"]
    top, ids = (
        _flat_top(meta, len(sent), index) if "input_top_logprobs_shape" in meta else _listed_top(meta, sent, index)
    )
    if top.shape != (len(index), requested) or ids.shape != top.shape:
        raise ValueError(f"candidates of shape {top.shape} came back, {(len(index), requested)} were asked for")
    for target, column in np.argwhere(ids == text.ids[text.targets][:, None]).tolist():
        if same_value(top[target, column], logprob[target]):
            logprob[target] = top[target, column]  # told twice: alike to the last bit
    within = logprob >= top[:, -1]
    ranks = np.where(within, 1 + (top > logprob[:, None]).sum(axis=1), -requested)
    columns = np.column_stack([text.ids[text.targets], ids]), np.column_stack([logprob, top])
    whole = to_scores(text, Rows(columns[0].astype(np.int64), columns[1], ranks), source, vocabulary)
    return SequenceScores(whole.logprob, whole.rank, whole.topk_logprobs[:, :k], whole.topk_ids[:, :k])


_Top = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def _flat_top(meta: Mapping[str, Any], count: int, index: npt.NDArray[Any]) -> _Top:
    """Log-probabilities and ids of the candidates at some positions, from `return_flat_raw_top_logprobs`."""
    rows, k = (int(size) for size in meta["input_top_logprobs_shape"])
    before = int(meta["input_top_logprobs_null_prefix"])
    if before + rows != count or before > 1:
        raise ValueError(f"candidates of {rows} positions after {before} came back for {count} tokens")
    columns = []
    for name, kind in (("val", np.float32), ("idx", np.int32)):
        packed = meta.get(f"input_top_logprobs_{name}_flat_b64")
        if packed is None:
            values = np.asarray(meta[f"input_top_logprobs_{name}_flat"])
        elif meta.get(f"input_top_logprobs_{name}_flat_b64_dtype") != np.dtype(kind).name:
            raise ValueError(f"the arrays are of type {meta.get(f'input_top_logprobs_{name}_flat_b64_dtype')!r}")
        else:
            values = np.frombuffer(base64.b64decode(packed, validate=True), np.dtype(kind).newbyteorder("<"))
        columns.append(values.reshape(rows, k)[index - before])
    return columns[0].astype(np.float64), columns[1].astype(np.int64)


def _listed_top(meta: Mapping[str, Any], sent: Sequence[int], index: npt.NDArray[Any]) -> _Top:
    """The same from a list of [log-probability, id, text] at each position."""
    top = meta.get("input_top_logprobs")
    if not isinstance(top, list) or len(top) != len(sent):
        raise ValueError(f"no candidates at the {len(sent)} positions came back")
    rows = [[(number(value, f"token {token}"), token) for value, token, *_ in top[i]] for i in index.tolist()]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("positions have different numbers of candidates")
    if not all(type(token) is int for row in rows for _, token in row):
        raise ValueError("an id is not a whole number")
    pairs = np.array(rows, dtype=np.float64).reshape(len(rows), -1, 2)
    return pairs[:, :, 0], pairs[:, :, 1].astype(np.int64)
