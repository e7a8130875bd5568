"""Scoring with vLLM (`--model vllm`): prompt log-probabilities of whole trajectories, one request each.

vLLM scores every token of a prompt and computes them from the logits of a whole scheduler step, so the step's size
bounds its memory. Its own memory profile leaves them out: it fills the GPU with KV cache, and an engine that then needs
the logits of 8,192 tokens times 152,000 vocabulary entries dies in the middle of a run. So that is checked against the
free memory first. A prompt whose log-probabilities are wanted must not read the prefix cache (positions read from it
would have none); this is requested and checked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from hesnr_tasks.backends.base import (
    Backend,
    Rows,
    TokenSequence,
    batches_of_tokens,
    number,
    row,
    stack,
    to_scores,
    vocabulary_bound,
)
from hesnr_tasks.backends.identity import engine_version, fingerprint
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scores.schema import SequenceScores

_BATCH_TOKENS = 1 << 17  # in one call of the engine; its answer takes about 2 KB of host memory per token (k = 10)
_BATCH_TOKENS_REPLICAS = 1 << 22  # with data parallelism, where lm-eval starts the engines anew for every call
_OVERRIDES = ("hf_overrides", "rope_scaling", "rope_theta", "kv_cache_dtype")  # change what the weights compute
_LOGIT_BYTES = 2 * 4  # a step's logits and their log-softmax, float32 (measured on CPU: 8.1 to 8.4)
_ROWS_V2 = 1024  # vLLM's second model runner takes prompt logits in slices (prompt_logprob.py, CHUNK_SIZE)
_log = logging.getLogger("hesnr_tasks")


def make(lm: Any) -> Backend:
    """The backend for lm-eval's `VLLM`, any parallel layout.

    Raises:
        ScoringError: the model gives no log-probabilities of a text, or they do not fit into the memory that is free.
    """
    return VLLMBackend(lm)


class VLLMBackend(Backend):
    """SequenceScores with the engine of an lm-eval `VLLM`."""

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        self._replicas = int(lm.data_parallel_size)
        self._engine = None if self._replicas > 1 else lm.model.llm_engine.vllm_config
        mode = self._setting("logprobs_mode", "raw_logprobs")
        if not str(getattr(mode, "value", mode)).endswith("logprobs"):
            raise ScoringError(
                f"this vLLM engine returns logits (logprobs_mode={mode}), not log-probabilities; leave logprobs_mode "
                "out of --model_args"
            )
        config = lm._config if self._engine is None else self._engine.model_config
        if getattr(config, "is_encoder_decoder", False):
            raise ScoringError(
                f"{lm.model_args['model']} is an encoder–decoder model: it has no probability of a text as a "
                "whole. Use a decoder-only (causal) language model."
            )
        if self._engine is not None:
            _check_memory(self._engine)
        elif not lm.model_args.get("max_num_batched_tokens"):
            _log.warning(
                "with data_parallel_size > 1 lm-eval starts the engines later, so their memory cannot be checked here; "
                "if one dies, add max_num_batched_tokens=2048 to --model_args"
            )

    def _setting(self, name: str, default: Any) -> Any:
        if self._engine is None:
            return self._lm.model_args.get(name, default)
        return getattr(self._engine.model_config, name, default)

    @property
    def max_length(self) -> int:
        """One less than vLLM's `max_model_len`: vLLM always generates a token after the prompt."""
        return int(self._lm.max_length) - 1

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        args = self._lm.model_args
        dtype = args["dtype"] if self._engine is None else self._engine.model_config.dtype
        lora = getattr(self._lm, "lora_request", None)
        return {
            "backend": "vllm",
            "engine": engine_version("vllm"),
            "model": str(args["model"]),
            "revision": args["revision"],
            "dtype": str(dtype).removeprefix("torch."),
            "quantization": args["quantization"],
            "adapter": lora.lora_path if lora else None,
            "overrides": {name: args[name] for name in _OVERRIDES if args.get(name)} or None,
            "weights": fingerprint(str(args["model"]), args["revision"], lora.lora_path if lora else None),
        }

    def score(
        self, sequences: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, SequenceScores]]:
        """See `Backend.score`."""
        allowed = self._setting("max_logprobs", 20)
        if 0 <= allowed < k:
            raise ScoringError(
                f"k={k} top log-probabilities are wanted and this vLLM engine gives at most {allowed}, which is fixed "
                f"when it starts: add max_logprobs={k} to --model_args"
            )
        vocabulary = vocabulary_bound(self.tokenizer)
        for batch in batches_of_tokens(
            sequences, skip, _BATCH_TOKENS_REPLICAS if self._replicas > 1 else _BATCH_TOKENS
        ):
            texts = [sequences[index] for index in batch]
            for index, text, answer in zip(batch, texts, self._generate(texts, k), strict=True):
                yield index, _scores(text, answer, k, vocabulary)
                progress(len(text.ids))

    def _generate(self, batch: Sequence[TokenSequence], k: int) -> list[Any]:
        batch_size, self._lm.batch_size = self._lm.batch_size, 1  # "auto" would draw vLLM's own progress bars
        try:
            prompts, params = [sequence.ids.tolist() for sequence in batch], [_sampling(k) for _ in batch]
            answers = list(self._lm._model_generate(prompts, generate=True, sampling_params=params))
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} prompts")
            return answers
        except Exception as error:
            others = f" (read together with {len(batch) - 1} others)" if len(batch) > 1 else ""
            advice = (
                "; its own messages above say why. Most often memory ran out while it computed log-probabilities of "
                "the prompt: then lower max_num_batched_tokens (2048, say) or gpu_memory_utilization (0.8, say) in "
                "--model_args"
            )
            kind = type(error).__name__
            message = str(error).strip().rstrip(".") + (advice if "Dead" in kind else "")
            raise ScoringError(f"vLLM failed on trajectory {batch[0].name!r}{others}: {kind}: {message}") from error
        finally:
            self._lm.batch_size = batch_size


def _sampling(k: int) -> Any:
    from vllm import SamplingParams

    fields = getattr(SamplingParams, "__struct_fields__", ())
    newer = {"flat_logprobs": True, "skip_reading_prefix_cache": True}
    newer = {name: value for name, value in newer.items() if name in fields}
    return SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=k, detokenize=False, **newer)


# --- answers ----------------------------------------------------------------------------------------------------------


def _scores(sequence: TokenSequence, answer: Any, k: int, vocabulary: int) -> SequenceScores:
    logprobs = answer.prompt_logprobs
    try:
        if list(answer.prompt_token_ids or ()) != sequence.ids.tolist():
            raise ValueError("the answer is to another prompt")
        if getattr(answer, "num_cached_tokens", None):
            raise ValueError(f"{answer.num_cached_tokens} tokens were read from the prefix cache")
        if logprobs is None or len(logprobs) != len(sequence.ids):
            raise ValueError(f"{len(logprobs or ())} positions came back for {len(sequence.ids)} tokens")
        rows = (_flat_rows if hasattr(logprobs, "start_indices") else _dict_rows)(sequence, logprobs, k)
    except (ValueError, TypeError) as error:
        raise ScoringError(f"vLLM's answer for trajectory {sequence.name!r} cannot be used: {error}") from error
    return to_scores(sequence, rows, "vLLM", vocabulary)


def _flat_rows(sequence: TokenSequence, logprobs: Any, k: int) -> Rows:
    """vLLM's `FlatLogprobs`: at each position the prompt's token with its rank, then the k most likely in order."""
    start = np.asarray(logprobs.start_indices, dtype=np.int64)[sequence.targets]
    width = np.asarray(logprobs.end_indices, dtype=np.int64)[sequence.targets] - start
    if (width != k + 1).any():
        wrong = int(np.argmax(width != k + 1))
        raise ValueError(f"{width[wrong]} values at token {sequence.targets[wrong]} instead of {k + 1}")
    if None in logprobs.logprobs:
        raise ValueError("a log-probability is missing")
    index = start[:, None] + np.arange(k + 1)
    ranks = np.fromiter((logprobs.ranks[i] or -k for i in start.tolist()), dtype=np.int64, count=len(start))
    values = np.asarray(logprobs.logprobs, dtype=np.float64)
    return Rows(np.asarray(logprobs.token_ids, dtype=np.int64)[index], values[index], ranks)


def _dict_rows(sequence: TokenSequence, logprobs: Sequence[Any], k: int) -> Rows:
    """Older vLLM: at each position a dict from token id to an object with `logprob` and `rank`."""
    rows = []
    for position in sequence.targets.tolist():
        values = (logprobs[position] or {}).items()
        entries = [(token, number(value.logprob, f"token {token}"), value.rank) for token, value in values]
        rows.append(row(int(sequence.ids[position]), entries, k))
    return stack(rows)


# --- memory -----------------------------------------------------------------------------------------------------------


def _check_memory(engine: Any) -> None:
    """Refuse an engine (its `VllmConfig`) whose steps are too large for the memory that is free now."""
    rows, advice = logits_of_a_step(engine)
    if advice:
        _log.warning("%s", advice)
    free = _free_memory(engine.parallel_config.world_size)
    if free is not None:
        vocabulary, sequences = engine.model_config.get_vocab_size(), int(engine.scheduler_config.max_num_seqs)
        refuse_too_large_steps(rows, vocabulary, free, sequences, advice)


def logits_of_a_step(engine: Any) -> tuple[int, str]:
    """Positions whose logits one step of an engine (its `VllmConfig`) holds at once, and how they would be fewer.

    The first model runner holds those of all tokens of a step, the second 1,024. Newer versions of vLLM have both and
    choose by model and platform; the environment can ask for the second.
    """
    rows = min(int(engine.scheduler_config.max_num_batched_tokens), int(engine.model_config.max_model_len))
    second = getattr(engine, "use_v2_model_runner", None)  # None: this version has the first alone
    if second:
        return min(rows, _ROWS_V2), ""
    if second is None or rows <= _ROWS_V2:
        return rows, ""
    held, sliced = (n * engine.model_config.get_vocab_size() * _LOGIT_BYTES / 1e9 for n in (rows, _ROWS_V2))
    return rows, (
        f"vLLM's first model runner holds log-probabilities of {rows} tokens at once ({held:.1f} GB); with "
        f"VLLM_USE_V2_MODEL_RUNNER=1 in the environment, its second holds {_ROWS_V2} ({sliced:.1f} GB)"
    )


def refuse_too_large_steps(rows: int, vocabulary: int, free: int, sequences: int, advice: str = "") -> None:
    """Raise `ScoringError` with the setting to use where the logits of one scheduler step do not fit.

    Args:
        rows: tokens of a step; rows · vocabulary · 8 bytes are needed.
        vocabulary: entries.
        free: bytes left on the fullest device, engine idle.
        sequences: vLLM's `max_num_seqs`, which may not exceed the tokens of a step.
        advice: of `logits_of_a_step`.
    """
    needed = rows * vocabulary * _LOGIT_BYTES
    if needed <= 0.95 * free:
        return
    fits = max(256, int(0.8 * free / (vocabulary * _LOGIT_BYTES)) // 256 * 256)
    also = f",max_num_seqs={fits}" if sequences > fits else ""
    room = "" if fits >= 1024 else " and a lower gpu_memory_utilization (0.1 less, say), which leaves more free"
    raise ScoringError(
        f"vLLM would run out of memory: log-probabilities of a prompt need {needed / 1e9:.1f} GB for steps of {rows} "
        f"tokens and {vocabulary} vocabulary entries, {free / 1e9:.1f} GB are free beside weights and KV cache. Add "
        f"max_num_batched_tokens={fits}{also} to --model_args{room}." + (f"\nOr: {advice}." if advice else "")
    )


def _free_memory(devices: int) -> int | None:
    """Bytes free on the fullest of the first `devices` devices of this machine; None where that is not known."""
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from hesnr_tasks.backends.hf.forward import free_bytes

        return free_bytes(torch.device("cpu"))
    try:
        from vllm.third_party import pynvml  # asking CUDA would take half a gigabyte for a context in this process

        pynvml.nvmlInit()
        try:
            indices = range(min(devices, torch.cuda.device_count()))
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(current_platform.device_id_to_physical_device_id(i)) for i in indices
            ]
            return min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles)
        finally:
            pynvml.nvmlShutdown()
    except Exception as error:  # NVML's own errors, other platforms: the check is an extra
        _log.warning("free GPU memory is not known (%s): not checked whether prompt log-probabilities fit", error)
        return None
