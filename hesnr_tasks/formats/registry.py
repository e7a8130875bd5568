"""All formats, in the order in which they are tried: the first that is sure wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.formats import (
    atif,
    chat_fenced,
    chat_tools,
    chat_xml,
    claude_code,
    codex,
    completions,
    inspect_ai,
    mini,
    nebius,
    normalised,
    openhands,
    openhands_sdk,
    plain,
    r2e,
    sweagent,
)
from hesnr_tasks.formats.fields import Where, as_list, collecting_losses, decoded
from hesnr_tasks.formats.report import Found
from hesnr_tasks.trajectory import Trajectory

__all__ = ["READERS", "Reader", "choose", "choose_session", "describe", "named", "read_with", "unpacked", "warnings_of"]


class Reader(Protocol):
    """A format: a module with a name and the rule it is known by."""

    NAME: str
    RULE: str

    def detect(self, record: Any) -> float:
        """How sure the module is that it can read the record, 0 to 1; never raises."""

    def read(self, record: Any, where: Where) -> Trajectory:
        """The trajectory; `DataError` says what is wrong with the record."""


READERS: tuple[Reader, ...] = (
    normalised,
    atif,
    mini,
    sweagent,
    r2e,
    openhands_sdk,
    openhands,
    inspect_ai,
    codex,
    claude_code,
    nebius,
    completions,
    chat_tools,
    chat_xml,
    chat_fenced,
    plain,
)
_SURE = 0.5
_PACKED = ("messages", "trajectory", "conversations", "messages_json", "history", "trajectory_steps", "replay_config")


def choose(record: Any) -> tuple[Reader, Found] | None:
    """The first reader that is sure of the record, and the rule it went by."""
    for reader in READERS:
        confidence = reader.detect(record)
        if confidence >= _SURE:
            return reader, Found(reader.NAME, reader.RULE, confidence)
    return None


def choose_session(values: list[Any]) -> tuple[Reader, Found] | None:
    """The reader whose unit is a whole file of lines, given the first of them; None if each line is a record."""
    if not values or choose(values[0]):
        return None
    found = choose(values)
    return found if found and getattr(found[0], "SESSION", False) else None


def unpacked(record: Any) -> Any:
    """A row whose list of messages is JSON text, with the list instead: decoded once, not by every reader."""
    if not isinstance(record, Mapping):
        return record
    changed = {key: decoded(record[key]) for key in _PACKED if isinstance(record.get(key), str)}
    return {**record, **changed} if changed else record


def named(name: str) -> Reader:
    """The reader of a format; `SettingsError` for an unknown one."""
    for reader in READERS:
        if name == reader.NAME:
            return reader
    names = [reader.NAME for reader in READERS]
    raise SettingsError(f"there is no format {name!r}.{nearest(name, names)} Known formats: {', '.join(names)}")


def describe(record: Any) -> str:
    """What a record of no known format looks like, and what would be known."""
    return f"no known format: {_seen(record)}. Supported: {', '.join(reader.NAME for reader in READERS)}"


def _seen(record: Any) -> str:
    listed = as_list(record)
    if isinstance(record, Mapping):
        return f"an object with the keys {', '.join(map(repr, list(record)[:12]))}" if record else "an empty object"
    return f"a list of {len(listed)} items" if listed is not None else f"a {type(record).__name__}"


def read_with(reader: Reader, record: Any, where: Where) -> Trajectory:
    """`reader.read`, with what a record of another shape may do to it turned into `DataError`.

    Text in fields of a wrong type, which the reader could not use, is named in the trajectory's warnings and counted
    under `left_out_characters`.
    """
    try:
        with collecting_losses() as losses:
            trajectory = reader.read(record, where)
    except DataError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"this is {_seen(record)}, not a record of {reader.NAME} ({reader.RULE})") from error
    if not losses.characters:
        return trajectory
    remarks = [text if n == 1 else f"{text} ({n} times)" for text, n in losses.remarks.items()]
    meta = {
        **trajectory.meta,
        "warnings": [*warnings_of(trajectory), *remarks],
        "left_out_characters": losses.characters,
    }
    return replace(trajectory, meta=meta)


def warnings_of(trajectory: Trajectory) -> list[str]:
    """What reading a trajectory warned about; files of others may hold anything there."""
    warnings = trajectory.meta.get("warnings")
    return [text for text in as_list(warnings) or [warnings] if isinstance(text, str)]
