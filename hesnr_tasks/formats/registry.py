"""All formats, in the order in which they are tried: the first that is sure wins. A new format is one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hesnr_tasks.chat_messages import stored_schemas
from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.formats.base import (
    Format,
    TrajectoryBuilder,
    Where,
    as_list,
    collecting_losses,
    decoded,
    deep,
    string,
)
from hesnr_tasks.formats.chat import CHAT_TEXT, CHAT_TOOLS, CHAT_XML, COMPLETIONS, PLAIN
from hesnr_tasks.formats.cli_agents import CLAUDE_CODE, CODEX
from hesnr_tasks.formats.eval_logs import ATIF, INSPECT_AI
from hesnr_tasks.formats.openhands import OPENHANDS, OPENHANDS_SDK
from hesnr_tasks.formats.swe_agent import MINI_SWE_AGENT, NEBIUS, R2E_GYM, SWE_AGENT
from hesnr_tasks.trajectory import FORMAT, Trajectory

_PACKED = ("messages", "trajectory", "conversations", "messages_json", "history", "trajectory_steps", "replay_config")


def _read_normalised(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    """The project's own file: one trajectory a line, every segment labelled."""
    if record.get("format") != FORMAT:
        raise DataError(
            f"'format' is {record.get('format')!r}, which this version cannot read (it reads {FORMAT!r}); "
            f"update hesnr-tasks or convert the file again"
        )
    return Trajectory.from_json(record)


FORMATS: tuple[Format, ...] = (
    Format(
        "hesnr",
        "'format' starts with hesnr-trajectory-",
        lambda record: string(record, "format").startswith("hesnr-trajectory-"),
        _read_normalised,
    ),
    ATIF,
    MINI_SWE_AGENT,
    SWE_AGENT,
    R2E_GYM,
    OPENHANDS_SDK,
    OPENHANDS,
    INSPECT_AI,
    CODEX,
    CLAUDE_CODE,
    NEBIUS,
    COMPLETIONS,
    CHAT_TOOLS,
    CHAT_XML,
    CHAT_TEXT,
    PLAIN,
)


def choose(record: Any) -> Format | None:
    """The first format that is sure of the record; None for a record of no known format."""
    return next((format for format in FORMATS if format.detect(record)), None)


def format_of_name(name: str) -> Format:
    """The format of that name; `SettingsError` for an unknown one."""
    by_name = {format.name: format for format in FORMATS}
    if name not in by_name:
        raise SettingsError(f"there is no format {name!r}.{nearest(name, by_name)} Known formats: {', '.join(by_name)}")
    return by_name[name]


def unpacked(record: Any) -> Any:
    """A row whose list of messages is JSON text, with the list instead: decoded once, not by every format."""
    if not isinstance(record, Mapping):
        return record
    changed = {key: decoded(record[key]) for key in _PACKED if isinstance(record.get(key), str)}
    return {**record, **changed} if changed else record


def read_record(format: Format, record: Any, where: Where) -> Trajectory:
    """`format.read`, whatever the record.

    Text in fields of a wrong type, which the reader could not use, is named in the trajectory's warnings and counted
    under `left_out_characters`.

    Args:
        format: of the record.
        record: decoded JSON.
        where: for messages, and for an id where the record has none.

    Raises:
        DataError: the record has another shape.
    """
    try:
        with collecting_losses() as losses:
            trajectory = format.read(record, TrajectoryBuilder(format.name, where))
    except DataError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"this is {shape_of(record)}, not a record of {format.name} ({format.rule})") from error
    if tools := _tools(record):
        trajectory = replace(trajectory, meta={**trajectory.meta, "tools": tools})
    if not losses.characters:
        return trajectory
    remarks = [text if n == 1 else f"{text} ({n} times)" for text, n in losses.remarks.items()]
    warnings = [*warnings_of(trajectory), *remarks]
    return replace(trajectory, meta={**trajectory.meta, "warnings": warnings, "left_out_characters": losses.characters})


_TOOLS_AT = (  # where formats keep the schemas of the agent's tools, in a record or in one of its first events
    ("tools",), ("metadata", "tools"), ("kwargs", "tools"), ("request", "tools"), ("raw_completions", "tools"),
    ("agent", "tool_definitions"), ("args", "tools"), ("payload", "dynamic_tools"),
)  # fmt: skip


def _tools(record: Any) -> list[dict[str, Any]]:
    """The schemas of tools that a record carries, in OpenAI's form; those of a normalised record are in its meta."""
    events = as_list(record) or as_list(deep(record, "history")) or as_list(deep(record, "events")) or []
    for place in ([record] if isinstance(record, Mapping) else []) + events[:5]:
        for path in _TOOLS_AT:
            stored = as_list(decoded(deep(place, *path))) if isinstance(place, Mapping) else None
            if schemas := stored_schemas([decoded(tool) for tool in stored or []]):
                return [{"type": "function", "function": function} for function in schemas.values()]
    return []


def warnings_of(trajectory: Trajectory) -> list[str]:
    """The warnings of reading a trajectory; files of others may hold anything there."""
    warnings = trajectory.meta.get("warnings")
    return [text for text in as_list(warnings) or [warnings] if isinstance(text, str)]


def shape_of(record: Any) -> str:
    """What a record looks like, for messages."""
    listed = as_list(record)
    if isinstance(record, Mapping):
        return f"an object with the keys {', '.join(map(repr, list(record)[:12]))}" if record else "an empty object"
    return f"a list of {len(listed)} items" if listed is not None else f"a {type(record).__name__}"
