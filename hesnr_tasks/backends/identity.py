"""Which model and which tokenizer scored: identities that are the same wherever they lie, and differ if a bit differs.

`weights_of` takes a model in memory (on any device, with adapters, offloaded or sharded); `fingerprint` takes the files
of a model whose tensors an engine keeps to itself; `tokenizer_of` any tokenizer with the Hugging Face interface.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.files.atomic import replace_file

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("hesnr_tasks")
# what saving, loading or moving a model changes in its configuration
_VOLATILE = {
    "_name_or_path", "architectures", "auto_mapping", "base_model_name_or_path", "dtype", "inference_mode",
    "peft_version", "revision", "torch_dtype", "transformers_version", "_commit_hash",
}  # fmt: skip

# --- models in memory -------------------------------------------------------------------------------------------------

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio
_MIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)  # of MurmurHash3's 64-bit finaliser
_RENEWED = ("dynamic", "longrope")  # rotary embeddings that compute their frequencies anew for each text's length
_WORDS = 1 << 24  # 8-byte words at a time: 128 MB
_SPAN, _CACHED = 1 << 19, 1 << 14  # words for one thread at a time, words that stay in a core's cache


def weights_of(model: torch.nn.Module) -> str:
    """SHA-256 over the configuration, the adapters' settings, and all bits of every parameter and buffer.

    The bits are reduced where they lie, in blocks, by an exact integer sum, so that neither device nor number of
    threads matters. Buffers that are not saved with a model (such as rotary frequencies) are computed anew on each
    machine; they count to bfloat16's precision.

    Args:
        model: what lm-eval calls; a PEFT model with its adapters in place.

    Raises:
        ScoringError: where a parameter has no values on this machine.
    """
    import torch

    digest = hashlib.sha256(_config_text(getattr(model, "config", None)).encode())
    for name, adapter in sorted(dict(getattr(model, "peft_config", None) or {}).items()):
        digest.update(f"adapter {name} {_config_text(adapter)}\n".encode())
    if hasattr(model, "peft_config"):
        digest.update(f"active {getattr(model, 'active_adapters', None)}\n".encode())
    with torch.no_grad():
        for name, tensor in sorted(_tensors(model), key=lambda pair: pair[0]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in _plain_parts(tensor):
                digest.update(f" {_reduced(part)}".encode())
    return digest.hexdigest()


def _config_text(config: Any) -> str:
    """A configuration as JSON, without what saving and loading change in it."""
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return json.dumps(_without_volatile(values), sort_keys=True, default=str)


def _without_volatile(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_volatile(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return [_without_volatile(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that takes part in a forward pass, by name; tied ones under each of their names."""
    import torch

    saved = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    saved |= {name: value for name, value in model.named_parameters(remove_duplicate=False) if name not in saved}
    for name, tensor in saved.items():
        yield name.replace("_orig_mod.", ""), _materialised(model, name, tensor)
    for name, tensor in model.named_buffers(remove_duplicate=False):
        rope = str(getattr(model.get_submodule(name.rpartition(".")[0]), "rope_type", ""))
        if name in saved or ("original_" not in name and any(kind in rope for kind in _RENEWED)):
            continue
        values = _materialised(model, name, tensor)
        yield name.replace("_orig_mod.", ""), values.to(torch.bfloat16) if values.is_floating_point() else values


def _materialised(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor: accelerate keeps those of offloaded layers elsewhere, tensor parallelism splits them."""
    if hasattr(tensor, "full_tensor"):  # a DTensor: all processes come here together, and all get the whole
        return tensor.full_tensor()
    if tensor.device.type != "meta":
        return tensor
    owner, _, leaf = name.rpartition(".")
    with contextlib.suppress(AttributeError):
        hook = getattr(model.get_submodule(owner), "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):
            values = getattr(part, "weights_map", None)
            if values is not None:
                return values[leaf]
    raise ScoringError(
        f"the parameter {name} of this model has no values on this machine (it is on the meta device, and no offloaded "
        "copy was found), so its scores could not be told from those of another checkpoint. Load the model whole, or "
        "with parallelize=True in --model_args."
    )


def _plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor, or the tensors that a quantised one is made of (its values, scales, zero points)."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor.detach()
        return
    names, _ = flatten()
    for name in sorted(names):
        yield from _plain_parts(getattr(tensor, name))


def _reduced(tensor: torch.Tensor) -> int:
    """The sum, modulo 2**64, of a hash of each 8 bytes and their place: exact on every device, in any order."""
    total, start = 0, 0
    for data in _blocks(tensor, 8 * _WORDS):
        words = _as_words(data)
        total += _sum_on_cpu(words.numpy().view(np.uint64), start) if words.device.type == "cpu" else _sum(words, start)
        start += len(words)
    return total % (1 << 64)


def _sum(words: torch.Tensor, start: int) -> int:
    import torch

    mixed = torch.arange(start, start + len(words), dtype=torch.int64, device=words.device)
    mixed.mul_(_signed(_GOLDEN)).add_(words)
    for factor in (*_MIX, None):
        mixed.bitwise_xor_((mixed >> 33).bitwise_and_(0x7FFFFFFF))
        if factor is not None:
            mixed.mul_(_signed(factor))
    return int(mixed.sum())


def _signed(value: int) -> int:
    return value - (1 << 64)


def _sum_on_cpu(words: npt.NDArray[np.uint64], start: int) -> int:
    """`_sum` by NumPy in blocks that stay in the cache: four times as fast as by torch."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        spans = range(0, len(words), _SPAN)
        return sum(pool.map(lambda first: _sum_of_span(words[first : first + _SPAN], start + first), spans))


def _sum_of_span(words: npt.NDArray[np.uint64], start: int) -> int:
    size = min(_CACHED, len(words))
    places = np.arange(start, start + size, dtype=np.uint64) * np.uint64(_GOLDEN)
    step = np.uint64(size * _GOLDEN % (1 << 64))
    mixed, high, total = np.empty(size, np.uint64), np.empty(size, np.uint64), 0
    for offset in range(0, len(words), size):
        n = min(size, len(words) - offset)
        a, b = mixed[:n], high[:n]
        np.add(words[offset : offset + n], places[:n], out=a)
        for factor in (*_MIX, None):
            np.right_shift(a, np.uint64(33), out=b)
            np.bitwise_xor(a, b, out=a)
            if factor is not None:
                np.multiply(a, np.uint64(factor), out=a)
        total += int(a.sum())
        places += step
    return total


def _blocks(tensor: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """The bytes of a tensor in the order of its elements, `size` (about) at a time and always a multiple of 8."""
    import torch

    if not tensor.numel():
        return
    if tensor.is_contiguous():
        data = tensor.reshape(-1).view(torch.uint8)
        yield from (data[offset : offset + size] for offset in range(0, len(data), size))
        return
    row = tensor[0].numel() * tensor.element_size()
    rows = max(8, size // row // 8 * 8)
    for offset in range(0, len(tensor), rows):
        yield tensor[offset : offset + rows].contiguous().reshape(-1).view(torch.uint8)


def _as_words(data: torch.Tensor) -> torch.Tensor:
    """Bytes as int64, zeros at the end; a copy only where they do not lie at a multiple of 8."""
    import torch

    if len(data) % 8 or data.storage_offset() % 8:
        padded = torch.zeros(-(-len(data) // 8) * 8, dtype=torch.uint8, device=data.device)
        padded[: len(data)] = data
        data = padded
    return data.view(torch.int64)


def engine_version(package: str) -> str:
    """The installed version of an engine."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# --- models on disk ---------------------------------------------------------------------------------------------------

_PATTERNS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "config.json", "adapter_config.json", "params.json",
    "*quant*config*.json", "*.py",
)  # fmt: skip
_CODE = {".json", ".py"}
_BLOCK = 1 << 26  # bytes hashed by one thread
_SETTLED = 2.0  # seconds: a file younger than that may change again without a new time


def fingerprint(model: str, revision: str | None = None, adapter: str | None = None) -> str | None:
    """SHA-256 over all bytes of the weight files, the configuration, and the code of a folder or hub model.

    Args:
        model: a folder, a single file (GGUF), or a hub name.
        revision: of the hub model.
        adapter: folder or hub name of a LoRA adapter that is used with it.

    Returns:
        None where the files are not on this machine (they may be streamed, or lie on another node).
    """
    parts = [_files(model, revision)] + ([_files(adapter, None)] if adapter else [])
    if not all(any(path.suffix not in _CODE for path in files) for files in parts):
        return None
    cache = _Cache()
    digest = hashlib.sha256()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for files in parts:
            digest.update(b"files\n")
            for path in files:
                of_file = _of_json(path) if path.suffix == ".json" else cache.get(path, lambda p: _of_file(p, pool))
                digest.update(f"{path.name} {of_file}\n".encode())
    cache.save()
    return digest.hexdigest()


def _files(model: str, revision: str | None) -> list[Path]:
    if Path(model).is_file():
        return [Path(model)]
    folder = Path(model) if Path(model).is_dir() else _hub_folder(model, revision)
    return sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)}) if folder else []


def _hub_folder(model: str, revision: str | None) -> Path | None:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:  # no hub library, not in its cache, not a name it knows: not here
        return None


def _of_json(path: Path) -> str:
    """Of a configuration, what it says: saving it again changes nothing."""
    data = path.read_bytes()
    with contextlib.suppress(ValueError, RecursionError):
        data = json.dumps(_without_volatile(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _of_file(path: Path, pool: ThreadPoolExecutor) -> str:
    """SHA-256 of the SHA-256 of each block; several threads read and hash."""
    size = path.stat().st_size

    def block(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(_BLOCK)).digest()

    return hashlib.sha256(str(size).encode() + b"".join(pool.map(block, range(0, size, _BLOCK)))).hexdigest()


class _Cache:
    """Digests of files that were hashed before, by path, size, times and inode; losing it costs only time."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._path = Path(base) / "hesnr-tasks" / "weights.json"
        self._digests: dict[str, str] = {}
        self._new = False
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._path.read_text())
            self._digests = {str(k): v for k, v in content.items() if isinstance(v, str)}

    def get(self, path: Path, compute: Callable[[Path], str]) -> str:
        stat = path.stat()
        key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} {stat.st_dev}"
        if key not in self._digests:
            of_file = compute(path)
            if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED:
                return of_file
            self._digests[key], self._new = of_file, True
        return self._digests[key]

    def save(self) -> None:
        if not self._new:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(dict(list(self._digests.items())[-10_000:])).encode())


# --- tokenizers -------------------------------------------------------------------------------------------------------

_PROBE = (
    "def f(x):\n\treturn  x+1  # \u00dcn\u00ef \u2013 \U0001f600 \u4e2d\u6587 1234567 e\u0301 \ufb01\r\n\n"
    "</s> camelCase_snake don't\u00a0END "
)
_ROLES = ("bos_token", "eos_token", "unk_token")  # not padding, which lm-eval adds where there is none


def tokenizer_of(tokenizer: Any) -> str:
    """The number of tokens and a hash of the whole tokenizer: what it is, and what it makes of a probe.

    Of a fast tokenizer that is its serialised form (vocabulary, merges, normaliser, pre-tokeniser, post-processor,
    added tokens), of a slow one its vocabulary, added tokens and model file. Truncation and padding, which calls set,
    do not count; nor does the chat template, of which the texts themselves tell.
    """
    vocabulary = sorted((index, repr(token)) for token, index in tokenizer.get_vocab().items())
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        whole: Any = {name: content[name] for name in content if name not in ("truncation", "padding")}
    else:
        whole = [vocabulary, dict(_model_files(tokenizer)), getattr(tokenizer, "sp_model_kwargs", None)]
    added = {index: repr(token) for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    roles = {name: str(getattr(tokenizer, name, None)) for name in _ROLES}
    probes = [list(tokenizer(_PROBE, add_special_tokens=special)["input_ids"]) for special in (False, True)]
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    text = json.dumps([whole, added, roles, probes, split], sort_keys=True, default=str)
    return f"{len(vocabulary)} tokens {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _model_files(tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Hashes of what a slow tokenizer was read from: the SentencePiece model, merges, ranks."""
    for name in sorted(getattr(tokenizer, "vocab_files_names", {})):
        path = getattr(tokenizer, name, None)
        if isinstance(path, (str, os.PathLike)) and Path(path).is_file():
            yield name, hashlib.sha256(Path(path).read_bytes()).hexdigest()
    model: Any = getattr(tokenizer, "sp_model", None)
    if hasattr(model, "serialized_model_proto"):
        yield "sp_model", hashlib.sha256(model.serialized_model_proto()).hexdigest()
