"""Trajectories: the messages of one run of an agent, every character with exactly one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hesnr_tasks.errors import DataError

FORMAT = "hesnr-trajectory-1"
ROLES = ("system", "user", "assistant", "tool")


class Kind(str, Enum):
    """The kind of a character. The model generated `thought` and `action`; the others are its input."""

    CONTEXT = "context"  # system prompt, task, demonstrations
    OBSERVATION = "observation"  # the environment's answer
    THOUGHT = "thought"  # free reasoning text of the agent
    ACTION = "action"  # the executable call, delimiters included
    SCAFFOLD = "scaffold"  # role headers and end-of-message markers; added by rendering, never stored


class Fidelity(str, Enum):
    """How close the stored text is to the text that the model generated."""

    EXACT = "exact"  # the model's own text was stored
    RENDERED = "rendered"  # a structure (tool call) was rendered by us
    SYNTHETIC = "synthetic"  # rewritten by the producer of the file


_GENERATED = (Kind.THOUGHT, Kind.ACTION)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of characters of one kind."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message; its text is the exact concatenation of its segments."""

    role: str  # system | user | assistant | tool
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """The message as one string."""
        return "".join(segment.text for segment in self.segments)

    @property
    def generated(self) -> bool:
        """Whether the model generated (part of) it."""
        return any(segment.kind in _GENERATED for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One run of an agent. `resolved` is None when the outcome is unknown."""

    id: str
    messages: tuple[Message, ...]
    instance_id: str | None = None
    resolved: bool | None = None
    source: str = ""  # format name of the file it was read from
    fidelity: Fidelity = Fidelity.EXACT
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The normalised record: one line of a `hesnr-trajectory-1` file."""
        return {
            "format": FORMAT,
            "id": self.id,
            "instance_id": self.instance_id,
            "resolved": self.resolved,
            "source": self.source,
            "fidelity": self.fidelity.value,
            "messages": [
                {"role": m.role, "segments": [{"kind": s.kind.value, "text": s.text} for s in m.segments]}
                for m in self.messages
            ],
            "meta": dict(self.meta),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Trajectory:
        """Build from a normalised record.

        Raises:
            DataError: a field is missing or wrong; the message names the first.
        """
        messages = _expect(record, "messages", list)
        return cls(
            id=clean(_expect(record, "id", str)),
            messages=tuple(_message(m, f"messages[{i}]") for i, m in enumerate(messages)),
            instance_id=_plain(_expect(record, "instance_id", (str, type(None)), "", None)),
            resolved=_expect(record, "resolved", (bool, type(None)), "", None),
            source=clean(_expect(record, "source", str, "", "")),
            fidelity=_choice(Fidelity, record.get("fidelity", "exact"), "fidelity"),
            meta=_plain(_expect(record, "meta", dict, "", {})),
        )


def clean(text: str) -> str:
    """`text` with lone surrogates (a cut emoji), which cannot be encoded, as U+FFFD; offsets stay as they were."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def _plain(value: Any) -> Any:
    """`value` as something any JSON file can hold: no lone surrogates; NaN and infinities as text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {clean(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _message(record: Any, where: str) -> Message:
    if not isinstance(record, dict):
        raise DataError(f"{where} must be an object with 'role' and 'segments', not {type(record).__name__}")
    role = _expect(record, "role", str, where)
    if role not in ROLES:
        raise DataError(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}")
    segments = []
    for i, segment in enumerate(_expect(record, "segments", list, where)):
        kind, text = (segment.get("kind"), segment.get("text")) if isinstance(segment, dict) else (None, None)
        if not isinstance(kind, str) or kind not in _STORED or not isinstance(text, str):
            here = f"{where}.segments[{i}]"
            if not isinstance(segment, dict):
                raise DataError(f"{here} must be an object with 'kind' and 'text', not {type(segment).__name__}")
            if _choice(Kind, kind, f"{here}.kind") is Kind.SCAFFOLD:
                raise DataError(f"{here}.kind is 'scaffold'; that kind is made by rendering and never stored")
            text = _expect(segment, "text", str, here)
        segments.append(Segment(_STORED[kind], clean(text)))
    return Message(role, tuple(segments))


_STORED = {kind.value: kind for kind in Kind if kind is not Kind.SCAFFOLD}
_REQUIRED = object()


def _expect(record: Mapping[str, Any], key: str, types: Any, where: str = "", default: Any = _REQUIRED) -> Any:
    value = record.get(key, default)
    place = f"{where}.{key}" if where else key
    if value is _REQUIRED:
        raise DataError(f"{place} is missing")
    if not isinstance(value, types):
        names = [t.__name__ for t in (types if isinstance(types, tuple) else (types,))]
        wanted = " or ".join("null" if n == "NoneType" else n for n in names)
        raise DataError(f"{place} must be {wanted}, not {type(value).__name__}")
    return value


def _choice(enum: Any, value: Any, where: str) -> Any:
    try:
        return enum(value)
    except ValueError:
        raise DataError(f"{where} is {value!r}; it must be one of {', '.join(e.value for e in enum)}") from None
