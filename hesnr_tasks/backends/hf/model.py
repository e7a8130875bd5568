"""A loaded Hugging Face causal language model, as the engine calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode

from hesnr_tasks.errors import ScoringError

__all__ = ["CausalChunks", "Feed", "Net", "fresh_rope", "length_dependence", "replaced_forward"]

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


# --- Attention of a chunk over a cache without paying for its mask ---

_attention = torch.nn.functional.scaled_dot_product_attention
_ROWS = 1024  # of a mask, compared at a time
_KINDS = 2  # masks to remember: the layers of one chunk share theirs, full or windowed


class CausalChunks(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` with a causal mask over a cache is computed without the mask."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], tuple[torch.Tensor, bool]] = {}  # the layers of a model share their masks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take over attention calls that are understood; leave the rest alone."""
        settings = dict(kwargs or {})
        if func is _attention and self._understood(args, settings):
            query, key, value = args
            return _attend(query, key, value, settings.get("scale"))
        return func(*args, **settings)

    def _understood(self, args: Sequence[Any], settings: Mapping[str, Any]) -> bool:
        mask = settings.get("attn_mask")
        plain = not (settings.get("is_causal") or settings.get("dropout_p") or settings.get("enable_gqa"))
        if mask is None or len(args) != 3 or not plain or mask.dtype != torch.bool or mask.dim() != 4:
            return False
        query, key, value = args
        same = query.dim() == 4 and query.shape[:2] == key.shape[:2] and query.shape[3] == value.shape[3]
        return same and query.shape[2] > 1 and mask.shape[2:] == (query.shape[2], key.shape[2]) and self._causal(mask)

    def _causal(self, mask: torch.Tensor) -> bool:
        key = (mask.data_ptr(), mask.shape, mask.stride())
        if key not in self._known:
            while len(self._known) >= _KINDS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = (mask, _is_causal(mask))  # holding the mask keeps its address its own
        return self._known[key][1]


def _is_causal(mask: torch.Tensor) -> bool:
    """Whether row i of every (n, m) matrix allows exactly the first m - n + i + 1 entries."""
    if any(stride for stride, size in zip(mask.stride()[:2], mask.shape[:2], strict=True) if size > 1):
        return False  # a matrix of its own for each text or head
    rows, columns = mask.shape[2:]
    last = torch.arange(columns - rows, columns, device=mask.device)[:, None]
    column = torch.arange(columns, device=mask.device)
    if columns < rows:
        return False
    return all(torch.equal(mask[0, 0, a : a + _ROWS], column <= last[a : a + _ROWS]) for a in range(0, rows, _ROWS))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    new, seen = query.shape[2], key.shape[2]
    if new == seen:
        return _attention(query, key, value, is_causal=True, scale=scale)
    if query.device.type != "cpu":
        return _attention(query, key, value, attn_mask=causal_lower_right(new, seen), scale=scale)
    past = seen - new
    before, weight_before = _flash(query, key[:, :, :past], value[:, :, :past], scale, causal=False)
    within, weight_within = _flash(query, key[:, :, past:], value[:, :, past:], scale, causal=True)
    share = torch.sigmoid(weight_before - weight_within).unsqueeze(-1)
    return torch.lerp(within.float(), before.float(), share).to(query.dtype)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log-sum-exp of its scores, (batch, heads, n)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    result, weight = kernel(query, key, value, 0.0, causal, scale=scale)
    return result, weight


# --- Models whose position encoding depends on the length of the text, and the state that such encodings keep ---

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
