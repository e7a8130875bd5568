"""The model in training, as the scoring engine wants a model: with a device, a tokenizer and a length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.integrations.eval_state import untouched

__all__ = ["LiveModel", "is_sharded", "mixed_precision", "tokenizer_of", "unwrapped"]

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_DEFAULT_LENGTH = 2048  # as lm-eval's
_INSTEAD = "Evaluate saved checkpoints with lm_eval --tasks hesnr_swe instead."


@dataclass
class LiveModel:
    """What `scoring.huggingface` reads of lm-eval's model, taken from a model in training.

    `longest`: the most tokens to read of a text; None: what the model's configuration says, as lm-eval does.
    `together`, `computes`: see `Net`, and the device on which forward passes run, for a model of which each process
    holds a part.
    """

    model: torch.nn.Module
    tokenizer: Any
    mixed_precision_dtype: torch.dtype | None = None
    longest: int | None = None
    add_bos_token: bool | None = None
    together: Callable[[Any], list[Any]] | None = None
    computes: torch.device | None = None
    batch_size: int = 1  # side by side, the last bits of a text's numbers would depend on its neighbours

    @property
    def backend(self) -> str:
        """As lm-eval calls the two families of models."""
        return "seq2seq" if getattr(self._config, "is_encoder_decoder", False) else "causal"

    @property
    def device(self) -> torch.device:
        """Where ids are fed in."""
        if self.computes is not None:
            return self.computes
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

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `untouched`; gathered parameters are given up as well, or training would go on with those of now."""
        _reshard(self.model)
        with untouched(self.model, self.device):
            try:
                yield
            finally:
                _reshard(self.model)

    @property
    def _config(self) -> Any:
        return getattr(self.model, "config", None)


def unwrapped(model: Any, parallelism: Any = None) -> torch.nn.Module:
    """The model inside DistributedDataParallel, DataParallel, DeepSpeed stages 1 and 2, torch.compile.

    `parallelism`: the Trainer's `parallelism_config`. Raises `ScoringError` for models that cannot be read.
    """
    reason = next(_reasons(model, parallelism), "")
    if reason:
        raise ScoringError(f"HESNRCallback cannot read this model: {reason}. {_INSTEAD}")
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
    if any(_is_a(module, "FullyShardedDataParallel") for module in model.modules()):
        yield "it is sharded by FSDP 1, which PyTorch has replaced; set fsdp_version: 2 in fsdp_config"
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            yield f"DeepSpeed ZeRO stage 3 has partitioned it ({name})"
        if hasattr(parameter, "placements") and not is_sharded(model):
            yield f"{name} is spread over processes (a DTensor), but not by FSDP2"
        if parameter.device.type == "meta":
            yield f"{name} has no data here (device meta)"
    if int(getattr(model, "_tp_size", None) or 1) > 1:
        yield "it is split by tensor parallelism"
    for kind in ("tp", "cp", "sp"):
        if getattr(parallelism, f"{kind}_enabled", False):
            yield f"parallelism_config has {kind}_enabled"


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether FSDP2 has spread `model` over processes: each holds a part of every parameter."""
    return any(_is_a(module, "FSDPModule") for module in model.modules())


def _is_a(module: torch.nn.Module, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(module).__mro__)


def _reshard(model: torch.nn.Module) -> None:
    """FSDP2's root keeps its parameters after a forward pass until a backward pass, which reading has none of."""
    for module in model.modules():
        if _is_a(module, "FSDPModule"):
            module.reshard()  # type: ignore[operator]


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
