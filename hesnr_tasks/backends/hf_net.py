"""A loaded Hugging Face causal language model, as the engine calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hesnr_tasks.errors import ScoringError

__all__ = ["Feed", "Net", "replaced_forward"]

_CACHE_NAMES = ("past_key_values", "cache_params")


@dataclass
class Feed:
    """What one call reads: ids (rows, n) that follow `start` ids already in `cache` (None: nothing was read yet)."""

    ids: torch.Tensor
    start: int = 0
    cache: Any = None
    keep_cache: bool = False  # the call must hand back a cache
    positions: bool = False  # say explicitly at which positions the ids stand


class Net:
    """The wrapper (what has a head), its body (what gives hidden states), and what the wrapper's `forward` takes.

    `model`: what lm-eval calls (a PEFT model is unwrapped, its adapters stay in place).
    `autocast`: dtype of lm-eval's mixed precision, or None. `together`: for a model of which each process holds a part
    (None: this process holds all of it): gathers a value of every process. All processes then make the same calls in
    the same order, and what could differ between them (memory, a comparison) is agreed upon before it is acted upon.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        autocast: torch.dtype | None = None,
        together: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        self.outer = model
        self.sharded, self.together = together is not None, together or _alone
        self.wrapper = _without_peft(model)
        self.device = device
        self.dtype: torch.dtype = getattr(self.wrapper, "dtype", torch.float32)
        self.autocast = autocast
        self.takes = frozenset(inspect.signature(_own_forward(self.wrapper)).parameters)
        self.cache_name = next((name for name in _CACHE_NAMES if name in self.takes), None)
        self.bodies = _bodies(self.wrapper)
        self.body = self.bodies[0] if self.bodies else None  # the self-check may choose another

    @property
    def config(self) -> Any:
        """The configuration of the text model."""
        config = self.wrapper.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def head(self) -> torch.nn.Module | None:
        """The module that makes logits, where the model says which it is."""
        find = getattr(self.wrapper, "get_output_embeddings", None)
        return find() if find else None

    @property
    def vocabulary(self) -> int:
        """Number of ids the model can be fed."""
        embedding = self.wrapper.get_input_embeddings()
        return int(getattr(embedding, "num_embeddings", 0) or self.config.vocab_size)

    @property
    def remote(self) -> bool:
        """Whether the model's code came with the checkpoint (trust_remote_code)."""
        return not type(self.wrapper).__module__.startswith("transformers.")

    def plain(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """All logits (rows, n, vocabulary), exactly as lm-eval computes them; `positions`: where the ids stand."""
        extra = {} if positions is None else {"position_ids": positions}
        with self.precision():
            return _logits(self.outer(ids, **extra))

    def call(self, feed: Feed, **extra: Any) -> tuple[torch.Tensor, Any]:
        """Logits and the cache (None where there is none)."""
        model = self.outer if self.sharded else self.wrapper  # hooks that gather parameters start at the outermost
        with self.precision():
            output = model(input_ids=feed.ids, **self._arguments(feed), **extra)
        cache = getattr(output, self.cache_name, None) if self.cache_name and feed.keep_cache else None
        return _logits(output), cache

    def reason(self, own: str) -> str:
        """The first reason that any process has, "" where none has."""
        return next(filter(None, self.together(own)), "")

    def no_grad(self) -> Any:
        """The context of reading; parameters gathered under inference mode could not be used in training again."""
        return torch.no_grad() if self.sharded else torch.inference_mode()

    def precision(self) -> Any:
        """The context of lm-eval's own forward pass."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device_type=self.device.type, dtype=self.autocast)

    def _arguments(self, feed: Feed) -> dict[str, Any]:
        found: dict[str, Any] = {"use_cache": feed.keep_cache} if "use_cache" in self.takes else {}
        if feed.cache is not None:
            found[str(self.cache_name)] = feed.cache
        if feed.positions:
            rows, n = feed.ids.shape
            position = torch.arange(feed.start, feed.start + n, device=feed.ids.device)
            found["position_ids"] = position.expand(rows, n)
        return found


def _alone(value: Any) -> list[Any]:
    return [value]


def _bodies(wrapper: Any) -> list[torch.nn.Module]:
    """Modules that may be the body; which of them the wrapper really calls differs (OPT's calls the decoder in it)."""
    decoder, embedding = getattr(wrapper, "get_decoder", lambda: None)(), wrapper.get_input_embeddings()
    owners = [child for child in wrapper.children() if any(module is embedding for module in child.modules())]
    found = [getattr(wrapper, "base_model", None), decoder, *owners]
    modules = [module for module in found if isinstance(module, torch.nn.Module) and module not in (wrapper, embedding)]
    return list(dict.fromkeys(modules))


def _own_forward(module: torch.nn.Module) -> Callable[..., Any]:
    """The model's own `forward`, where accelerate has put another one before it."""
    return getattr(module, "_old_forward", module.forward)


def _without_peft(model: Any) -> Any:
    if not hasattr(model, "get_base_model"):
        return model
    adapters = getattr(model, "peft_config", {})
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters.values()):
        raise ScoringError(
            "the adapter in peft=… learns virtual tokens (prompt or prefix tuning), which shift every position; such "
            "adapters cannot be scored token by token. LoRA-style adapters can, and so can a merged checkpoint."
        )
    return model.get_base_model()


def _logits(output: Any) -> torch.Tensor:
    return output.logits if hasattr(output, "logits") else output[0]


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `module` answer with `forward` for a while; a `forward` set on the instance (accelerate) is put back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
