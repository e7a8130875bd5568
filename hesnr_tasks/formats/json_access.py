"""Getters for decoded JSON of unknown origin that never raise on a wrong type.

A key that is absent, null or of another type gives the empty value of the requested type; text lost that way is counted
(`left_out`) while a `collecting_losses` block runs. Fields a reader cannot do without are read with `need_*` and
`messages_of`, which raise `DataError` naming the field.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hesnr_tasks.bounded_io import DuplicateKeys, parse_json, text_size
from hesnr_tasks.errors import DataError

_MAX_LITERAL_PARTS = 500_000


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


@dataclass
class Losses:
    """Text of a record that its reader could not use, because a field was of another type than it should be."""

    remarks: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    _seen: dict[int, Any] = field(default_factory=dict)  # holds the values, so that their ids stay theirs
    decoded: dict[int, tuple[str, Any]] = field(default_factory=dict)  # what text became, so that it stays one value

    def add(self, value: Any, remark: str) -> None:
        """Count the text inside `value`, once however often it is looked at."""
        size = text_size(value)
        if size and id(value) not in self._seen:
            self._seen[id(value)] = value
            self.characters += size
            if remark:
                self.remarks[remark] += 1


_LOSSES: contextvars.ContextVar[Losses | None] = contextvars.ContextVar("losses", default=None)


@contextlib.contextmanager
def collecting_losses() -> Iterator[Losses]:
    """The losses that `left_out` counts inside the block."""
    losses = Losses()
    token = _LOSSES.set(losses)
    try:
        yield losses
    finally:
        _LOSSES.reset(token)


def left_out(value: Any, what: str, *, remark: bool = True) -> None:
    """Count the text inside `value`, described by `what`, as not used; with a remark unless the caller has one."""
    losses = _LOSSES.get()
    if losses is not None and value is not None:
        losses.add(value, f"{what}; its text is left out" if remark else "")


def _mistyped(value: Any, key: str, wanted: str) -> None:
    left_out(value, f"{key!r} is {_type_name(value)} where {wanted} belongs")


def string(record: Any, key: str) -> str:
    """The string under `key`, or an empty one."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if isinstance(value, str):
        return value
    _mistyped(value, key, "text")
    return ""


def mapping(record: Any, key: str) -> Mapping[str, Any]:
    """The object under `key` (also when stored as JSON text), or an empty one."""
    value = decoded(record.get(key)) if isinstance(record, Mapping) else None
    if isinstance(value, Mapping):
        return value
    _mistyped(value, key, "an object")
    return {}


def items(record: Any, key: str) -> list[Any]:
    """The list under `key` (also when stored as JSON text), or an empty one."""
    value = decoded(record.get(key)) if isinstance(record, Mapping) else None
    listed = as_list(value)
    if listed is None:
        _mistyped(value, key, "a list")
    return listed or []


def parts_of(content: Any, what: str) -> list[Any]:
    """The parts of a content: a list as it is, text as one part; anything else is counted as left out."""
    listed = [content] if isinstance(content, str) else as_list(content)
    if listed is None:
        left_out(content, f"{what} is {_type_name(content)}, neither text nor a list")
    return listed or []


def mappings(values: Any, what: str) -> list[Mapping[str, Any]]:
    """The objects of a list; text in what else it holds is counted as left out."""
    listed = as_list(values) or []
    for value in listed:
        if not isinstance(value, Mapping):
            left_out(value, f"{what} is {_type_name(value)}, not an object")
    return [value for value in listed if isinstance(value, Mapping)]


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
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    losses = _LOSSES.get()
    if losses and id(value) in losses.decoded:
        return losses.decoded[id(value)][1]
    duplicates = DuplicateKeys()
    try:
        value_inside = parse_json(value, duplicates)
    except ValueError:
        value_inside = _python_literal(value)
    if losses:
        losses.decoded[id(value)] = (value, value_inside)
        for key, size in duplicates.items():
            losses.remarks[f"{key!r} is there more than once in an object stored as text; the last value is read"] += 1
            losses.characters += size
    return value_inside


def _python_literal(value: str) -> Any:
    if sum(map(value.count, "[({,:-+")) > _MAX_LITERAL_PARTS:  # Python's parser takes hundreds of bytes for each
        return value
    try:
        literal = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return value
    return literal if isinstance(literal, (dict, list)) else value


def need_objects(values: Iterable[Any], place: str, wanted: str = "an object, not {}") -> Iterator[Mapping[str, Any]]:
    """The objects of a list; `DataError` names the `place` of the first value that is none."""
    for i, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise DataError(f"{place.format(i)} must be {wanted.format(_type_name(value))}")
        yield value


def messages_of(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The list of message objects under `key`: JSON text decoded, one-element lists around a message removed."""
    return list(need_objects(map(unwrapped, need_items(record, key)), f"{key}[{{}}]"))


def unwrapped(item: Any) -> Any:
    """A message without the one-element list some converters put around it."""
    while (listed := as_list(item)) is not None and len(listed) == 1:
        item = listed[0]
    return item


def scalar_text(value: Any) -> str | None:
    """An id or status as text: strings and numbers; None for anything else and for an empty string."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


_NAMES = {"dict": "an object", "list": "a list", "str": "text", "NoneType": "null", "bool": "true or false"}


def _type_name(value: Any) -> str:
    name = type(value).__name__
    return _NAMES.get(name, "a number" if isinstance(value, (int, float)) else name)
