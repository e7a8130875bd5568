"""Looking into decoded JSON that anybody may have written: getters that never raise on a wrong type.

A key that is absent, null or of another type gives the neutral value of the type asked for; what a reader cannot do
without it asks for with `need_*`, which raise `DataError` naming the field.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from hesnr_tasks.errors import DataError

__all__ = [
    "Where",
    "as_list",
    "decoded",
    "deep",
    "items",
    "mapping",
    "messages_of",
    "need_items",
    "scalar_text",
    "string",
    "unwrapped",
]


@dataclass(frozen=True, slots=True)
class Where:
    """The place a record comes from: a file (or hub id) and, in a file of many records, its line (from 1)."""

    path: str
    line: int | None = None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path}:{self.line}"

    @property
    def stem(self) -> str:
        """The file name without folders and extensions that tools add (`.traj.json`, `.jsonl.gz`, …)."""
        name = PurePath(self.path).name
        for suffix in (".gz", ".json", ".jsonl", ".ndjson", ".traj", ".parquet", ".eval"):
            name = name.removesuffix(suffix) or name
        return name

    @property
    def is_lines(self) -> bool:
        """Whether the name says that every line is a record."""
        return self.path.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))

    @property
    def identity(self) -> str:
        """An id for a record that has none of its own."""
        return self.stem if self.line is None else f"{self.stem}:{self.line}"


def as_list(value: Any) -> list[Any] | None:
    """`value` as a list when it is one (or a tuple, or an array as parquet readers give); None otherwise."""
    if isinstance(value, list):
        return value
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        listed = value.tolist()
        return listed if isinstance(listed, list) else None
    return None


def string(record: Any, key: str) -> str:
    """The string under `key`, or an empty one."""
    value = record.get(key) if isinstance(record, Mapping) else None
    return value if isinstance(value, str) else ""


def mapping(record: Any, key: str) -> Mapping[str, Any]:
    """The object under `key` (also when stored as JSON text), or an empty one."""
    value = decoded(record.get(key)) if isinstance(record, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def items(record: Any, key: str) -> list[Any]:
    """The list under `key` (also when stored as JSON text), or an empty one."""
    value = as_list(decoded(record.get(key))) if isinstance(record, Mapping) else None
    return value or []


def deep(record: Any, *path: str | int) -> Any:
    """The value at `path` of nested objects and lists, or None."""
    for step in path:
        if isinstance(step, int):
            listed = as_list(record)
            record = listed[step] if listed is not None and -len(listed) <= step < len(listed) else None
        else:
            record = decoded(record).get(step) if isinstance(decoded(record), Mapping) else None
    return record


def need_items(record: Mapping[str, Any], key: str) -> list[Any]:
    """The list under `key`; `DataError` when there is none."""
    value = as_list(decoded(record.get(key)))
    if value is None:
        raise DataError(f"{key!r} must be a list, not {_type_name(record.get(key))}")
    return value


def decoded(value: Any) -> Any:
    """Text that holds a JSON (or Python-literal) list or object becomes that; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    start = value.lstrip()[:1]
    if start not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return _python_literal(value)


def _python_literal(value: str) -> Any:
    try:
        literal = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return value
    return literal if isinstance(literal, (dict, list)) else value


def messages_of(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The list of message objects under `key`: JSON text decoded, one-element lists around a message removed."""
    messages = [unwrapped(item) for item in need_items(record, key)]
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"{key}[{i}] must be an object, not {_type_name(message)}")
    return messages


def unwrapped(item: Any) -> Any:
    """A message without the one-element list some converters put around it."""
    listed = as_list(item)
    return unwrapped(listed[0]) if listed is not None and len(listed) == 1 else item


def scalar_text(value: Any) -> str | None:
    """An id or status as text: strings and numbers; None for anything else and for an empty string."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
