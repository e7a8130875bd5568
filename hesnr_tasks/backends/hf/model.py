"""A loaded Hugging Face causal language model: its forward pass, attention over a KV cache, and rotary state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import TorchFunctionMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from hesnr_tasks.errors import ScoringError

_CACHE_NAMES = ("past_key_values", "cache_params")


class CausalLM:
    """The model with a head (`lm_model`), its backbone (hidden states), and what `forward` accepts.

    Args:
        model: what lm-eval calls (a PEFT model is unwrapped, its adapters stay in place).
        device: where the ids go.
        autocast: dtype of lm-eval's mixed precision, or None.
        together: for a model of which each process holds a part (None: this process holds all of it): gathers a value
            of every process. All processes then make the same calls in the same order, and whatever could differ
            between them (memory, a comparison) is agreed upon before it is acted upon.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        autocast: torch.dtype | None = None,
        together: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        self.outer = model
        self.sharded, self.together = together is not None, together or (lambda value: [value])
        self.lm_model = _without_peft(model)
        self.name = type(self.lm_model).__name__
        self.device = device
        self.dtype: torch.dtype = getattr(self.lm_model, "dtype", torch.float32)
        self.autocast = autocast
        forward = getattr(self.lm_model, "_old_forward", self.lm_model.forward)  # accelerate puts another before it
        self.parameters = frozenset(inspect.signature(forward).parameters)
        self.cache_name = next((name for name in _CACHE_NAMES if name in self.parameters), None)
        self.backbones = _backbones(self.lm_model)
        self.backbone = self.backbones[0] if self.backbones else None  # the self-check may choose another

    @property
    def config(self) -> Any:
        """The configuration of the text model."""
        config = self.lm_model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def head(self) -> torch.nn.Module | None:
        """The module that computes logits, where the model names it."""
        find = getattr(self.lm_model, "get_output_embeddings", None)
        return find() if find else None

    @property
    def vocabulary(self) -> int:
        """Number of ids the model can be fed."""
        embedding = self.lm_model.get_input_embeddings()
        return int(getattr(embedding, "num_embeddings", 0) or self.config.vocab_size)

    @property
    def remote(self) -> bool:
        """Whether the model's code came with the checkpoint (trust_remote_code)."""
        return not type(self.lm_model).__module__.startswith("transformers.")

    def full_logits(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """All logits (rows, n, vocabulary), exactly as lm-eval computes them."""
        extra = {} if positions is None else {"position_ids": positions}
        with self.precision():
            return _logits(self.outer(ids, **extra))

    def forward(
        self,
        ids: torch.Tensor,
        start: int = 0,
        cache: Any = None,
        *,
        return_cache: bool = False,
        explicit_positions: bool = False,
        **extra: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Logits and the cache (None where there is none).

        Args:
            ids: shape (rows, n).
            start: ids already in `cache`.
            cache: of the ids before (None: there are none).
            return_cache: whether the cache is wanted.
            explicit_positions: whether to pass `position_ids`.
            extra: further arguments of the model.
        """
        if "use_cache" in self.parameters:
            extra["use_cache"] = return_cache
        if cache is not None:
            extra[str(self.cache_name)] = cache
        if explicit_positions:
            rows, n = ids.shape
            extra["position_ids"] = torch.arange(start, start + n, device=ids.device).expand(rows, n)
        model = self.outer if self.sharded else self.lm_model  # hooks that gather parameters start at the outermost
        with self.precision():
            output = model(input_ids=ids, **extra)
        cache = getattr(output, self.cache_name, None) if self.cache_name and return_cache else None
        return _logits(output), cache

    def agreed_reason(self, own: str) -> str:
        """The first nonempty reason of all processes."""
        return next(filter(None, self.together(own)), "")

    def no_grad(self) -> Any:
        """A context without gradients; parameters gathered in inference mode could not be trained afterwards."""
        return torch.no_grad() if self.sharded else torch.inference_mode()

    def precision(self) -> Any:
        """The context of lm-eval's own forward pass."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device_type=self.device.type, dtype=self.autocast)


def _backbones(lm_model: Any) -> list[torch.nn.Module]:
    """Modules that may be the backbone; models differ in which one they call (OPT calls the decoder inside it)."""
    decoder, embedding = getattr(lm_model, "get_decoder", lambda: None)(), lm_model.get_input_embeddings()
    owners = [child for child in lm_model.children() if any(module is embedding for module in child.modules())]
    candidates = [getattr(lm_model, "base_model", None), decoder, *owners]
    modules = [m for m in candidates if isinstance(m, torch.nn.Module) and m not in (lm_model, embedding)]
    return list(dict.fromkeys(modules))


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
    logits = output.logits if hasattr(output, "logits") else output[0]
    return logits.full_tensor() if hasattr(logits, "full_tensor") else logits  # a DTensor: of tensor parallelism


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace `module.forward` inside the block; a `forward` set on the instance (accelerate) is restored."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


# --- attention of a chunk over a KV cache, without its mask -----------------------------------------------------------

_attention = torch.nn.functional.scaled_dot_product_attention
_FORM = ("shape", "ndim", "dtype", "device", "layout", "is_cuda")
_READS_FORM = {getattr(torch.Tensor, name) for name in ("size", "stride", "dim", "numel", "expand", "__getitem__")}
_READS_FORM |= {getattr(torch.Tensor, name).__get__ for name in _FORM}


class CausalChunks(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` over a cache is computed without its causal mask.

    A chunk of n tokens after `past` cached ones needs a causal mask with an offset. transformers makes a matrix
    n × (past + n) of it, PyTorch converts that to numbers of its size in every layer, and computes the half above the
    diagonal for nothing. Attention over the past and causal attention within the chunk, merged by their log-sum-exps,
    is the same: on a CPU 2 to 3 times faster for large chunks, which makes reusing a shared prefix worthwhile.

    transformers is given a mask without content, on the meta device, where it wants one that is causal and nothing
    else (no sliding window, padding, bias). Its form may be asked for and a part of it taken; whatever else than
    attention uses it fails, as a mask made of it (a window cut out of it) would be without content too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced = False  # whether there was such a mask

    def __enter__(self) -> CausalChunks:
        self._make_mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = self._mask
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = self._make_mask
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _mask(self, *args: Any, **settings: Any) -> torch.Tensor | None:
        """In place of `transformers.masking_utils.sdpa_mask`."""
        n, start, seen = settings.get("q_length"), settings.get("q_offset"), settings["kv_length"]
        if (positions := settings.get("cache_position")) is not None:  # before transformers 5
            n, start = len(positions), int(positions[0])
        causal = settings.get("mask_function") is causal_mask_function and settings.get("allow_is_causal_skip")
        causal = causal and settings.get("attention_mask") is None and not settings.get("kv_offset")
        if causal and n is not None and start is not None and 1 < n < seen == start + n:
            return torch.empty((), dtype=torch.bool, device="meta").expand(settings["batch_size"], 1, n, seen)
        mask: torch.Tensor | None = self._make_mask(*args, **settings)
        return mask

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take over attention with such a mask; leave the rest alone."""
        settings = dict(kwargs or {})
        mask = settings.get("attn_mask") if func is _attention else None
        if mask is None or mask.device.type != "meta":
            if func not in _READS_FORM and any(map(_without_content, (*args, *settings.values()))):
                raise RuntimeError("something else than attention over a cache uses its mask")
            return func(*args, **settings)
        self.replaced = True
        plain = not (settings.get("is_causal") or settings.get("dropout_p") or settings.get("enable_gqa"))
        query, key, value = args
        same = query.dim() == 4 and query.shape[:2] == key.shape[:2] and query.shape[3] == value.shape[3]
        if not (plain and same and mask.shape[2:] == (query.shape[2], key.shape[2])):
            raise RuntimeError("attention over a cache in a form that needs its mask")
        return _attend(query, key, value, settings.get("scale"))


def _without_content(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.is_meta


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    new, seen = query.shape[2], key.shape[2]
    if new == seen:
        return _attention(query, key, value, is_causal=True, scale=scale)
    if query.device.type != "cpu":
        return _attention(query, key, value, attn_mask=causal_lower_right(new, seen), scale=scale)
    past, flash = seen - new, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    before, weight_before = flash(query, key[:, :, :past], value[:, :, :past], 0.0, False, scale=scale)
    within, weight_within = flash(query, key[:, :, past:], value[:, :, past:], 0.0, True, scale=scale)
    share = torch.sigmoid(weight_before - weight_within).unsqueeze(-1)
    return torch.lerp(within.float(), before.float(), share).to(query.dtype)


# --- rotary encodings that depend on the length of the text -----------------------------------------------------------
# LongRoPE (Phi-3, Phi-4) rotates all positions by other frequencies once a text exceeds the original context; dynamic
# NTK scaling lets the frequencies grow with the text. A prefix then has other hidden states in a long text than in a
# short one: it cannot be shared, prefilled in chunks, or padded. YaRN, Llama 3 and linear scaling depend on the
# position alone.

_TYPES = ("longrope", "su")  # and every type with "dynamic" in its name; "su" is LongRoPE's first name
_SWITCHES = ("use_dynamic_ntk", "use_logn_attn")  # in configurations of remote code (Qwen 1)
_MAX_DEPTH = 8
_CACHED = "max_seq_len_cached"  # the attribute, or its ending, that holds how far frequencies or tables have grown
_CACHED_NAMES = ("_seq_len_cached", "seq_len_cached")
_ORIGINAL = "original_inv_freq"


def length_dependence(model: torch.nn.Module) -> str:
    """The RoPE type that makes positions depend on the text's length, by configuration and modules; "" for none."""
    config: Any = getattr(model, "config", None)
    types = list(_declared_types(config.to_dict() if hasattr(config, "to_dict") else {}))
    for module in model.modules():
        kind = vars(module).get("rope_type")  # one, or one for each type of layer
        types += [text for text in (kind.values() if isinstance(kind, Mapping) else [kind]) if isinstance(text, str)]
    depends = (kind for kind in types if "dynamic" in kind.lower() or kind.lower() in (*_TYPES, *_SWITCHES))
    return next(depends, "")


def _declared_types(values: Any, depth: int = 0) -> Iterator[str]:
    """Every RoPE type that a configuration names, nested configurations and layer types included."""
    if depth > _MAX_DEPTH or not isinstance(values, Mapping):
        return
    for key, value in values.items():
        name = str(key)
        if name in _SWITCHES and value is True:
            yield name
        elif "rope" in name or "rotary" in name:
            yield from _types_in(value, depth)
        elif isinstance(value, Mapping):
            yield from _declared_types(value, depth + 1)


def _types_in(value: Any, depth: int) -> Iterator[str]:
    """Types in what a `rope_…` key holds: a name, a mapping with one, or a mapping of such mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and depth <= _MAX_DEPTH:
        for key, inner in value.items():
            if isinstance(inner, Mapping) or key in ("type", "rope_type"):
                yield from _types_in(inner, depth + 1)


@contextmanager
def fresh_rope(model: torch.nn.Module) -> Iterator[None]:
    """Inside, position encodings start as in a newly loaded model; afterwards their state is restored.

    Dynamic scaling keeps the frequencies of the longest text so far: numbers would depend on the order of texts.
    """

    def keeps_state(module: torch.nn.Module) -> bool:
        names = [*module._buffers, *(name for name in vars(module) if not name.startswith("_modules"))]
        return any(name.endswith((_CACHED, _ORIGINAL)) or name in _CACHED_NAMES for name in names)

    rotary = [module for module in model.modules() if keeps_state(module)]
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


def _reset(module: torch.nn.Module) -> None:
    own = vars(module)
    for name in [name for name in (*module._buffers, *own) if name.endswith(_ORIGINAL)]:
        original = getattr(module, name)
        target = name.removesuffix(_ORIGINAL) + "inv_freq"
        if isinstance(original, torch.Tensor) and isinstance(getattr(module, target, None), torch.Tensor):
            setattr(module, target, original.detach().clone().to(getattr(module, target).device))
    for name in [name for name in own if name.endswith(_CACHED) or name in _CACHED_NAMES]:
        # A length of 0 makes remote code build its tables anew for the text at hand.
        setattr(module, name, own.get("original_max_seq_len", 0))
