"""Which weights a folder or hub model has, without loading them: for engines that keep their tensors to themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

__all__ = ["fingerprint"]

_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "config.json")
_BLOCK, _BLOCKS = 4096, 64


def fingerprint(model: str, revision: str | None = None) -> str | None:
    """SHA-256 over name, size and evenly spaced blocks of every weight file, and the configuration.

    Different for two checkpoints of one training run written to the same place. None where the files are not on this
    machine (they may be streamed, or lie on another node).
    """
    folder = _folder(model, revision)
    files = sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)}) if folder else []
    if not any(path.suffix != ".json" for path in files):
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(_sample(path))
    return digest.hexdigest()


def _folder(model: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:  # no hub library, not in its cache, not a name it knows: not here
        return None


def _sample(path: Path) -> bytes:
    size = path.stat().st_size
    step = max(_BLOCK, size // _BLOCKS)
    with path.open("rb") as file:
        return b"".join(_read_at(file, start) for start in [*range(0, size, step), max(0, size - _BLOCK)])


def _read_at(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    return file.read(_BLOCK)
