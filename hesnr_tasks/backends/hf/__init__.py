"""Scoring with lm-eval's `--model hf`: any Hugging Face causal language model, run in this process.

`LiveModel` is a model in memory as lm-eval's would be; scoring it leaves no trace in it (`preserve_training_state`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from hesnr_tasks.backends.base import Backend, TokenSequence
from hesnr_tasks.backends.hf.engine import TEXT, Engine
from hesnr_tasks.backends.hf.model import CausalLM
from hesnr_tasks.backends.identity import weights_of
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scores.schema import SequenceScores


def make(lm: Any) -> Backend:
    """The backend for an lm-eval `HFLM`; raises `ScoringError` for models that cannot be scored."""
    if getattr(lm, "backend", "causal") != "causal":
        raise ScoringError(
            f"this is an encoder-decoder model (backend {lm.backend!r}); log-likelihoods of a text given all the text "
            "before it need a decoder-only model (causal language model)."
        )
    if lm.tokenizer is None:
        raise ScoringError("this model has no tokenizer; name one with tokenizer=… in --model_args")
    return HuggingFaceBackend(lm)


class HuggingFaceBackend(Backend):
    """Runs the model of an lm-eval `HFLM`."""

    full_vocabulary = True

    def __init__(self, lm: Any) -> None:
        super().__init__(lm)
        precision, together = getattr(lm, "mixed_precision_dtype", None), getattr(lm, "together", None)
        self._model = CausalLM(lm.model, lm.device, precision, together)
        self._engine: Engine | None = None

    @property
    def max_length(self) -> int:
        """`max_length` of --model_args, else what the model's configuration says."""
        return int(self._lm.max_length)

    @property
    def engine(self) -> Engine:
        """The engine; it checks itself on the model when it is first used."""
        if self._engine is None:
            sample = self.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
            size = str(getattr(self._lm, "batch_size", 1))
            self._engine = Engine(self._model, sample, int(size) if size.isdigit() else 0, self.gather)  # 0: auto
        return self._engine

    def describe(self) -> dict[str, Any]:
        """Identity of model, adapters and software; `weights` is a hash of every bit of every tensor."""
        lm, model = self._lm, self._model
        name = lm.pretrained if isinstance(lm.pretrained, str) else getattr(lm.pretrained, "name_or_path", "")
        return {
            "backend": "hf",
            "model": str(name or type(lm.pretrained).__name__),
            "revision": str(getattr(lm, "revision", None)),
            "peft": getattr(lm, "peft", None),
            "delta": getattr(lm, "delta", None),
            "architecture": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "autocast": str(model.autocast).removeprefix("torch.") if model.autocast else None,
            "attention": getattr(model.config, "_attn_implementation", None),
            "parameters": sum(p.numel() for p in model.outer.parameters()),
            "weights": weights_of(model.outer),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }

    def gather(self, items: list[Any]) -> list[Any]:
        """See `Backend.gather`."""
        if int(getattr(self._lm, "world_size", 1) or 1) == 1 or not torch.distributed.is_initialized():
            return items
        lists: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def score(
        self, sequences: Sequence[TokenSequence], k: int, progress: Callable[[int], None], skip: Collection[int] = ()
    ) -> Iterator[tuple[int, SequenceScores]]:
        """See `Backend.score`; prefixes that sequences share are computed once."""
        return self.engine.score(sequences, k, progress, skip)


# --- a model in memory ------------------------------------------------------------------------------------------------

_MISSING = object()
_SMALL = 1 << 20  # elements; larger buffers (quantised weights, say) are watched, not copied
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_DEFAULT_LENGTH = 2048  # tokens, as lm-eval's


@dataclass
class LiveModel:
    """What `backends.hf` uses of lm-eval's model, taken from a model in memory."""

    model: torch.nn.Module
    tokenizer: Any
    mixed_precision_dtype: torch.dtype | None = None
    longest: int | None = None  # most tokens of a text; None: what the model's configuration says, as lm-eval does
    add_bos_token: bool | None = None
    together: Callable[[Any], list[Any]] | None = None  # see `CausalLM`: each process holds a part of the model
    forward_device: torch.device | None = None  # None: where the embeddings are
    batch_size: int = 1  # batched, the last bits of a text's numbers would depend on its neighbours

    @property
    def backend(self) -> str:
        """As lm-eval calls the two families of models."""
        return "seq2seq" if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False) else "causal"

    @property
    def device(self) -> torch.device:
        """Where ids are fed in."""
        if self.forward_device is not None:
            return self.forward_device
        embedding = getattr(self.model, "get_input_embeddings", lambda: None)()
        return next((embedding or self.model).parameters()).device

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        config = getattr(self.model, "config", None)
        config = getattr(config, "text_config", None) or config
        lengths = [getattr(config, name, None) for name in _LENGTHS]
        lengths += [getattr(self.tokenizer, "model_max_length", None)]
        return self.longest or next((int(n) for n in lengths if n is not None and n < 1 << 40), _DEFAULT_LENGTH)

    @property
    def pretrained(self) -> torch.nn.Module:
        """The model itself; it has no folder of its own."""
        return self.model

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """See `preserve_training_state`.

        Parameters that FSDP2 gathered are given up before and after: its root keeps them after a forward pass until a
        backward pass, of which there is none here, and training would go on with those of now.
        """
        sharded = [module for module in self.model.modules() if is_a(module, "FSDPModule")]
        for module in sharded:
            module.reshard()  # type: ignore[operator]
        with preserve_training_state(self.model, self.device):
            try:
                yield
            finally:
                for module in sharded:
                    module.reshard()  # type: ignore[operator]


def is_a(module: Any, name: str) -> bool:
    """Whether a class of this name, which need not be installed, is among those of `module`."""
    return any(cls.__name__ == name for cls in type(module).__mro__)


@contextmanager
def preserve_training_state(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """All modules of `model` in evaluation mode for a while; afterwards everything is as it was, whatever happened.

    That is: the generators of random numbers (Python, NumPy, PyTorch on the CPU and on `device`), every attribute of
    every module (its own training flag, gradient checkpointing, hooks, caches), buffers by identity and by value
    (rotary embeddings grow with the length of what they process), and configurations. Weights and gradients are not
    written under inference mode. What forward hooks write elsewhere cannot be seen, and stays.

    Raises:
        ScoringError: a buffer too large to copy was changed.
    """
    python, numpy_, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator: Any = getattr(torch, device.type, None) if device.type != "cpu" else None
    suffix = "_all" if hasattr(accelerator, "get_rng_state_all") else ""
    on_device = getattr(accelerator, f"get_rng_state{suffix}")() if accelerator else None
    modules = list(model.modules())
    owners = [item for m in modules for item in (m, vars(m).get("config"), vars(m).get("generation_config"))]
    snapshots = [
        ModuleSnapshot(item) for item in {id(item): item for item in owners if hasattr(item, "__dict__")}.values()
    ]
    try:
        for module in modules:
            module.training = False  # not .eval(): what a model's own train() does beside it cannot be undone
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        torch.set_rng_state(cpu)
        if accelerator:
            getattr(accelerator, f"set_rng_state{suffix}")(on_device)
        for snapshot in snapshots:
            snapshot.restore()


class ModuleSnapshot:
    """One object's attributes, the entries of those that are dictionaries or lists, and its tensors' values."""

    def __init__(self, owner: Any) -> None:
        attributes = vars(owner)
        values = list(attributes.values())
        self._dictionaries = [(d, dict(d)) for d in (attributes, *values) if isinstance(d, dict)]
        self._lists = [(value, value.copy()) for value in values if isinstance(value, list)]
        tensors = (*values, *(attributes.get("_buffers") or {}).values())
        self._tensors = [
            # the value of a small one; how often it was written, where PyTorch counts that
            (
                tensor,
                tensor.detach().clone() if tensor.numel() <= _SMALL and tensor.device.type != "meta" else None,
                -1 if tensor.is_inference() else tensor._version,
            )
            for tensor in tensors
            if isinstance(tensor, torch.Tensor)
        ]

    def restore(self) -> None:
        """Put everything back; what did not change is not written."""
        for now, before in self._dictionaries:
            if len(now) != len(before) or any(now.get(key, _MISSING) is not item for key, item in before.items()):
                now.clear()
                now.update(before)  # in the order it had
        for items, earlier in self._lists:
            if len(items) != len(earlier) or any(a is not b for a, b in zip(items, earlier, strict=True)):
                items[:] = earlier
        for tensor, value, version in self._tensors:
            if version >= 0 and tensor._version == version:
                continue
            if value is not None:
                with torch.inference_mode():  # the only mode in which every tensor may be written
                    tensor.copy_(value)
            elif version >= 0:
                raise ScoringError(
                    f"this model writes into a buffer of shape {tuple(tensor.shape)} in a forward pass; it cannot be "
                    "evaluated without disturbing its training. Evaluate saved checkpoints with lm_eval instead."
                )
