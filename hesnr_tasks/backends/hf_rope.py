"""Models whose position encoding depends on the length of the text, and the state that such encodings keep.

LongRoPE (Phi-3, Phi-4) rotates all positions by other frequencies once a text is longer than the original context;
dynamic NTK scaling lets the frequencies grow with the text. A prefix then has other hidden states in a long text than
in a short one: it cannot be shared, read in chunks, or padded. YaRN, Llama 3 and linear scaling depend on the position
alone and need nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["fresh_rope", "length_dependence"]

_TYPES = ("longrope", "su")  # and every type with "dynamic" in its name; "su" is LongRoPE's first name
_SWITCHES = ("use_dynamic_ntk", "use_logn_attn")  # in configurations of remote code (Qwen 1)
_DEEPEST = 8
_CACHED = "max_seq_len_cached"  # the attribute, or its ending, that holds how far frequencies or tables have grown
_OWN_CACHED = ("_seq_len_cached", "seq_len_cached")
_ORIGINAL = "original_inv_freq"


def length_dependence(model: torch.nn.Module) -> str:
    """What makes positions depend on the text's length, by configuration and modules; empty where nothing does."""
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    types = [
        *_declared(values),
        *(kind for module in model.modules() for kind in _texts(vars(module).get("rope_type"))),
    ]
    return next((kind for kind in types if _depends(kind)), "")


def _depends(kind: str) -> bool:
    return "dynamic" in kind.lower() or kind.lower() in (*_TYPES, *_SWITCHES)


def _declared(values: Any, depth: int = 0) -> Iterator[str]:
    """Every type of RoPE that a configuration names, nested configurations and layer types included."""
    if depth > _DEEPEST or not isinstance(values, Mapping):
        return
    for key, value in values.items():
        name = str(key)
        if name in _SWITCHES and value is True:
            yield name
        elif "rope" in name or "rotary" in name:
            yield from _types_in(value, depth)
        elif isinstance(value, Mapping):
            yield from _declared(value, depth + 1)


def _types_in(value: Any, depth: int) -> Iterator[str]:
    """Types in what a `rope_…` key holds: a name, a mapping with one, or a mapping of such mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and depth <= _DEEPEST:
        for key, inner in value.items():
            if isinstance(inner, Mapping) or key in ("type", "rope_type"):
                yield from _types_in(inner, depth + 1)


def _texts(value: Any) -> Sequence[str]:
    """The strings in a module's `rope_type`: one, or one for each type of layer."""
    if isinstance(value, Mapping):
        return [kind for kind in value.values() if isinstance(kind, str)]
    return [value] if isinstance(value, str) else []


@contextmanager
def fresh_rope(model: torch.nn.Module) -> Iterator[None]:
    """Inside, position encodings start as in a newly loaded model; afterwards they are as they were before.

    Dynamic scaling keeps the frequencies of the longest text so far: numbers would depend on the order of texts.
    """
    rotary = [module for module in model.modules() if _keeps_state(module)]
    states = [(dict(vars(module)), dict(module._buffers)) for module in rotary]
    for module in rotary:
        _reset(module)
    try:
        yield
    finally:
        for module, (attributes, buffers) in zip(rotary, states, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _keeps_state(module: torch.nn.Module) -> bool:
    names = [*module._buffers, *(name for name in vars(module) if not name.startswith("_modules"))]
    return any(name.endswith((_CACHED, _ORIGINAL)) or name in _OWN_CACHED for name in names)


def _reset(module: torch.nn.Module) -> None:
    own = vars(module)
    for name in [name for name in (*module._buffers, *own) if name.endswith(_ORIGINAL)]:
        original = getattr(module, name)
        target = name.removesuffix(_ORIGINAL) + "inv_freq"
        if isinstance(original, torch.Tensor) and isinstance(getattr(module, target, None), torch.Tensor):
            setattr(module, target, original.detach().clone().to(getattr(module, target).device))
    for name in [name for name in own if name.endswith(_CACHED) or name in _OWN_CACHED]:
        # A length of 0 makes remote code build its tables anew for the text at hand.
        setattr(module, name, own.get("original_max_seq_len", 0))
