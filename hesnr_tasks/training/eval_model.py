"""The model in training, as the scoring engine wants a model: bare, on one device, with a tokenizer and a length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hesnr_tasks.errors import ScoringError, SettingsError

__all__ = ["LiveModel", "mixed_precision", "tokenizer_of", "unwrapped"]

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_DEFAULT_LENGTH = 2048  # as lm-eval's
_INSTEAD = "Evaluate saved checkpoints with lm_eval --tasks hesnr_swe instead."


@dataclass
class LiveModel:
    """What `scoring.huggingface` reads of lm-eval's model, taken from a model in training.

    `longest`: the most tokens to read of a text; None: what the model's configuration says, as lm-eval does.
    """

    model: torch.nn.Module
    tokenizer: Any
    mixed_precision_dtype: torch.dtype | None = None
    longest: int | None = None
    add_bos_token: bool | None = None
    batch_size: int = 1  # side by side, the last bits of a text's numbers would depend on its neighbours

    @property
    def backend(self) -> str:
        """As lm-eval calls the two families of models."""
        return "seq2seq" if getattr(self._config, "is_encoder_decoder", False) else "causal"

    @property
    def device(self) -> torch.device:
        """Where ids are fed in."""
        find = getattr(self.model, "get_input_embeddings", None)
        embedding = find() if find else None
        return next((embedding or self.model).parameters()).device

    @property
    def max_length(self) -> int:
        """The most tokens of a text that are read."""
        config = getattr(self._config, "text_config", None) or self._config
        known = [getattr(config, name, None) for name in _LENGTHS] + [getattr(self.tokenizer, "model_max_length", None)]
        fits = next((int(n) for n in known if n is not None and n < 1 << 40), _DEFAULT_LENGTH)
        return self.longest or fits

    @property
    def pretrained(self) -> torch.nn.Module:
        """The model itself; it has no place of its own."""
        return self.model

    @property
    def _config(self) -> Any:
        return getattr(self.model, "config", None)


def unwrapped(model: Any, parallelism: Any = None) -> torch.nn.Module:
    """The model inside DistributedDataParallel, DataParallel, DeepSpeed stages 1 and 2, torch.compile.

    `parallelism`: the Trainer's `parallelism_config`. Raises `ScoringError` for models of which a process has only a
    part: a forward pass of one process alone would wait for the others or give other numbers.
    """
    reason = next(_reasons(model, parallelism), "")
    if reason:
        raise ScoringError(f"HESNRCallback needs the whole model in every process, but {reason}. {_INSTEAD}")
    while True:
        inner = model._orig_mod if hasattr(model, "_orig_mod") else _inside(model)
        if inner is None:
            return model
        model = inner


def _inside(model: Any) -> Any:
    parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    names = [cls.__name__ for cls in type(model).__mro__]
    return model.module if isinstance(model, parallel) or "DeepSpeedEngine" in names else None


def _reasons(model: Any, parallelism: Any) -> Iterator[str]:
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls.__name__ in ("FullyShardedDataParallel", "FSDPModule"):
                yield "it is sharded by FSDP"
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            yield f"DeepSpeed ZeRO stage 3 has partitioned it ({name})"
        if hasattr(parameter, "placements"):
            yield f"{name} is spread over processes (a DTensor)"
        if parameter.device.type == "meta":
            yield f"{name} has no data here (device meta)"
    if int(getattr(model, "_tp_size", None) or 1) > 1:
        yield "it is split by tensor parallelism"
    for kind in ("tp", "cp", "sp"):
        if getattr(parallelism, f"{kind}_enabled", False):
            yield f"parallelism_config has {kind}_enabled"


def mixed_precision(args: Any) -> torch.dtype | None:
    """The dtype of the Trainer's autocast, from its arguments; DeepSpeed casts the weights instead."""
    if getattr(args, "deepspeed", None):
        return None
    if getattr(args, "bf16", False):
        return torch.bfloat16
    return torch.float16 if getattr(args, "fp16", False) else None


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer of a Trainer's `processing_class`, which may be a processor around it."""
    found = getattr(processing_class, "tokenizer", processing_class)
    if not callable(found) or not hasattr(found, "get_vocab"):
        raise SettingsError(
            "HESNRCallback found no tokenizer: give the Trainer processing_class=tokenizer, or the callback "
            f"tokenizer=… (processing_class is {type(processing_class).__name__})."
        )
    return found
