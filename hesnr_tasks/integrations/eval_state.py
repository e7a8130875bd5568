"""Reading a model in training without a trace: what is random, what the modules remember, what they switch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hesnr_tasks.errors import ScoringError

__all__ = ["untouched"]

_MISSING = object()
_SMALL = 1 << 20  # elements; larger buffers (quantised weights, say) are watched, not copied


@contextmanager
def untouched(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """All modules of `model` in evaluation mode for a while; afterwards everything is as it was, whatever happened.

    That is: the generators of random numbers (Python, NumPy, PyTorch on the CPU and on `device`), every attribute of
    every module (its own training flag, gradient checkpointing, hooks, caches), buffers by identity and by value
    (rotary embeddings grow with the length of what they see), and configurations. Weights and gradients are not
    written by reading under inference mode. What forward hooks write elsewhere cannot be known, and stays. Raises
    `ScoringError` if a buffer too large to copy was changed.
    """
    randomness = _Randomness(device)
    kept = [_Kept(item) for item in _remembering(model)]
    try:
        for module in model.modules():
            module.training = False  # not .eval(): what a model's own train() does beside it cannot be undone
        yield
    finally:
        for one in kept:
            one.restore()
        randomness.restore()


def _remembering(model: torch.nn.Module) -> list[Any]:
    """The modules and their configurations, each once."""
    modules = list(model.modules())
    names = ("config", "generation_config")
    found = [item for module in modules for item in (module, *(vars(module).get(name) for name in names))]
    return list({id(item): item for item in found if hasattr(item, "__dict__")}.values())


class _Randomness:
    """The state of every generator that training draws from."""

    def __init__(self, device: torch.device) -> None:
        self._python, self._numpy, self._cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._module = getattr(torch, device.type, None) if device.type != "cpu" else None
        self._every = hasattr(self._module, "get_rng_state_all")
        if self._module is not None:
            self._device = self._module.get_rng_state_all() if self._every else self._module.get_rng_state()

    def restore(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._module is not None:
            (self._module.set_rng_state_all if self._every else self._module.set_rng_state)(self._device)


class _Kept:
    """One object's attributes, the entries of those that are dictionaries or lists, and its tensors' values."""

    def __init__(self, owner: Any) -> None:
        self._attributes = vars(owner)
        self._before = dict(self._attributes)
        self._dictionaries = [(value, value.copy()) for value in self._before.values() if isinstance(value, dict)]
        self._lists = [(value, value.copy()) for value in self._before.values() if isinstance(value, list)]
        buffers = self._before.get("_buffers") or {}
        found = [*self._before.values(), *buffers.values()]
        self._tensors = [_Tensor(value) for value in found if isinstance(value, torch.Tensor)]

    def restore(self) -> None:
        _put_back(self._attributes, self._before)
        for entries, kept in self._dictionaries:
            _put_back(entries, kept)
        for items, once in self._lists:
            if len(items) != len(once) or any(a is not b for a, b in zip(items, once, strict=True)):
                items[:] = once
        for tensor in self._tensors:
            tensor.restore()


def _put_back(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Make `now` hold what it held; what did not change is not written, and the order stays."""
    same = len(now) == len(before)
    if same and all(now.get(key, _MISSING) is value for key, value in before.items()):
        return
    now.clear()
    now.update(before)


class _Tensor:
    """A tensor's value, or for a large one the number of times it was written."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        small = tensor.numel() <= _SMALL and tensor.device.type != "meta"
        self._value = tensor.detach().clone() if small else None
        self._version = -1 if tensor.is_inference() else tensor._version

    def restore(self) -> None:
        watched = self._version >= 0
        if watched and self._tensor._version == self._version:
            return
        if self._value is not None:
            with torch.inference_mode():  # the one mode in which every tensor may be written
                self._tensor.copy_(self._value)
        elif watched:
            raise ScoringError(
                f"this model writes into a buffer of shape {tuple(self._tensor.shape)} while it reads; it cannot be "
                "evaluated without disturbing its training. Evaluate saved checkpoints with lm_eval instead."
            )
