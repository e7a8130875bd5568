"""What a selection has done so far: runs of tests and answers of models are made once, also after a kill.

A result is kept under the hash of all that it depends on, so that a rerun with other settings makes only what these
change. Lines are flushed to the disk as they come; a line that a kill cut off is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from hesnr_tasks.bounded_io import TooLongError, lines, open_regular, parse_json
from hesnr_tasks.errors import DataError, SearchError

__all__ = ["Journal", "fingerprint"]


def fingerprint(*parts: Any) -> str:
    """A hash of JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


class Journal:
    """A file of results under keys. Safe between threads; a second process is refused.

    Raises:
        SearchError: another process writes the file.
        DataError: the file is no journal.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SearchError(f"{path} is written by another `hesnr select`; wait for it, or give another -o") from None
        self._values: dict[str, Any] = {}
        self._guard = threading.Lock()
        try:
            self._read(path)
        except BaseException:
            self._lock.release()
            raise
        self._file = path.open("ab")

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        whole = 0
        with open_regular(path) as file:
            for number, line in enumerate(lines(file), 1):
                if not isinstance(line, TooLongError) and not line.endswith(b"\n"):  # torn
                    os.truncate(path, whole)
                    break
                if isinstance(line, TooLongError):
                    raise DataError(f"{path}:{number}: {line}")
                try:
                    row = parse_json(line)
                    self._values[row["key"]] = row["value"]
                except (ValueError, KeyError, TypeError):
                    raise DataError(f"{path}:{number}: no line of a selection's journal; move the file away") from None
                whole += len(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The value under `key`; made and kept where there is none. What `make` raises is not kept."""
        if key in self._values:
            return self._values[key]
        value = make()
        with self._guard:
            self._values[key] = value
            self._file.write(json.dumps({"key": key, "value": value}).encode("utf-8") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        return value
