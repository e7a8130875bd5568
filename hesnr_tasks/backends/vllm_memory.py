"""Whether vLLM's prompt log-probabilities fit into memory.

vLLM's own memory profile leaves them out: it fills the GPU with KV cache, and an engine that then needs the logits of
8 192 tokens times 152 000 vocabulary entries dies in the middle of a run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hesnr_tasks.errors import ScoringError

__all__ = ["check_memory", "refuse_too_large_steps", "warn_of_unknown_memory"]

_LOGIT_BYTES = 2 * 4  # a step's logits and their log-softmax, float32 (measured on CPU: 8.1 to 8.4)
_ROWS_V2 = 1024  # vLLM's second model runner takes prompt logits in slices (prompt_logprob.py, CHUNK_SIZE)
_log = logging.getLogger("hesnr_tasks")


def check_memory(engine: Any) -> None:
    """Refuse an engine (its `VllmConfig`) whose steps are too large for the memory that is free now."""
    scheduler = engine.scheduler_config
    rows = min(int(scheduler.max_num_batched_tokens), int(engine.model_config.max_model_len))
    if getattr(engine, "use_v2_model_runner", False):
        rows = min(rows, _ROWS_V2)
    free = _free_memory(engine.parallel_config.world_size)
    if free is not None:
        refuse_too_large_steps(rows, engine.model_config.get_vocab_size(), free, int(scheduler.max_num_seqs))


def refuse_too_large_steps(rows: int, vocabulary: int, free: int, sequences: int) -> None:
    """Raise `ScoringError` with the setting to use where the logits of one scheduler step do not fit.

    `rows`: tokens of a step; `free`: bytes left on the fullest device, engine idle; `sequences`: vLLM's
    `max_num_seqs`, which may not exceed the tokens of a step. Needed: rows · vocabulary · 8 bytes.
    """
    need = rows * vocabulary * _LOGIT_BYTES
    if need <= 0.95 * free:
        return
    fits = max(256, int(0.8 * free / (vocabulary * _LOGIT_BYTES)) // 256 * 256)
    also = f",max_num_seqs={fits}" if sequences > fits else ""
    room = "" if fits >= 1024 else " and a lower gpu_memory_utilization (0.1 less, say), which leaves more free"
    raise ScoringError(
        f"vLLM would run out of memory: log-probabilities of a prompt need {need / 1e9:.1f} GB for steps of {rows} "
        f"tokens and {vocabulary} vocabulary entries, {free / 1e9:.1f} GB are free beside weights and KV cache. Add "
        f"max_num_batched_tokens={fits}{also} to --model_args{room}."
    )


def warn_of_unknown_memory(model_args: Mapping[str, Any]) -> None:
    """Say that engines which are not started yet cannot be checked."""
    if not model_args.get("max_num_batched_tokens"):
        _log.warning(
            "with data_parallel_size > 1 lm-eval starts the engines later, so their memory cannot be checked here; if "
            "one dies, add max_num_batched_tokens=2048 to --model_args"
        )


def _free_memory(devices: int) -> int | None:
    """Bytes free on the fullest of the first `devices` devices of this machine; None where nobody can tell."""
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from hesnr_tasks.backends.hf_memory import free_bytes

        return free_bytes(torch.device("cpu"))
    try:
        here = min(devices, torch.cuda.device_count())
        return min(_free_on_gpu(current_platform, index) for index in range(here))
    except Exception as error:  # NVML's own errors, other platforms: the check is an extra
        _log.warning("free GPU memory is not known (%s): not checked whether prompt log-probabilities fit", error)
        return None


def _free_on_gpu(platform: Any, index: int) -> int:
    """Through NVML, because asking CUDA would take half a gigabyte for a context in this process."""
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(platform.device_id_to_physical_device_id(index))
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    finally:
        pynvml.nvmlShutdown()
