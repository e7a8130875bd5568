"""Messages as a chat template gets them, with every text of the trajectory as a leaf that a placeholder can stand for.

A call that was stored as a structure is passed as one; a call that the model wrote as text stays text. `VARIANTS` are
the forms in which messages are passed, the richest first.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions import ToolCall, argument_json, render_call
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory

__all__ = ["MARK", "VARIANTS", "Container", "Conversation", "Leaf", "Variant", "json_escaped", "native_calls", "widths"]

_NAME = re.compile(r"[\w.\-]{1,100}")
MARK = re.compile(r"HESNR\d{6}MARK|73165\d{8}")
_THINK = re.compile(r"\A\s*<think>(.*?)</think>", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")


def json_escaped(text: str) -> str:
    """The inside of `text` as a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def widths(text: str, escape: Callable[[str], str]) -> npt.NDArray[np.int64]:
    """The length of each character's escape; shape (len(text),)."""
    lengths = {character: len(escape(character)) for character in set(text)}
    return np.array([lengths[c] for c in text], dtype=np.int64)


# --- messages with leaves ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Leaf:
    """A value of a trajectory, as it is passed to the template."""

    value: Any  # a string or a JSON scalar
    message: int
    turn: int
    where: str  # for errors
    segments: tuple[Segment, ...]  # of a string; their texts join to it
    is_call: bool = False  # a tool's name or an argument
    action: int | None = None  # the action that an argument stands in, with the place of each of its characters
    offsets: npt.NDArray[np.int64] | None = None
    is_name: bool = False
    mark: Any = None


@dataclass(slots=True)
class Container:
    """An argument that is a list or an object: where its JSON stands in the canonical action."""

    leaves: list[Leaf]
    action: int
    pieces: list[tuple[str, int]]  # before, between and after the leaves, with their places


@dataclass(slots=True)
class _StoredCall:
    name: Leaf
    arguments: dict[str, Any]


@dataclass(slots=True)
class _ChatMessage:
    role: str
    index: int
    turn: int
    content: list[Any] = field(default_factory=list)  # of leaves and literal strings
    reasoning: list[Any] = field(default_factory=list)
    calls: list[_StoredCall] = field(default_factory=list)


class Variant(NamedTuple):
    """A form in which messages are passed."""

    calls: str  # mapping | json | text: arguments as an object or as JSON text; calls as text of the content
    apart: bool = False  # the content of a message with calls is a message of its own
    single: bool = False  # one call a message
    parts: bool = False  # content as a list of parts
    roles: str = "own roles"  # own roles | tools as users | users and assistants

    def __str__(self) -> str:
        names = {"apart": "text apart from calls", "single": "one call a message", "parts": "content as parts"}
        flags = [text for name, text in names.items() if getattr(self, name)]
        return ", ".join([f"calls as {self.calls}", *flags, self.roles])


VARIANTS = (
    *(
        Variant(calls, apart, single, parts)
        for single in (False, True)
        for apart in (False, True)
        for calls in ("mapping", "json")
        for parts in (False, True)
    ),
    *(
        Variant("text", parts=parts, roles=roles)
        for roles in ("own roles", "tools as users", "users and assistants")
        for parts in (False, True)
    ),
)


class Conversation:
    """The messages of one trajectory in one variant, its leaves, and its actions' canonical texts."""

    def __init__(self, trajectory: Trajectory, variant: Variant, reasoning: str) -> None:
        self.variant, self._reasoning_key = variant, reasoning
        self.leaves: list[Leaf] = []
        self.containers: list[Container] = []
        self.actions: list[str] = []
        self.messages: list[_ChatMessage] = []
        structured = trajectory.fidelity is Fidelity.RENDERED and variant.calls != "text"
        calls = [native_calls(m) if structured else None for m in trajectory.messages]
        self._types = _types([c for listed in calls for c in listed or ()])
        turn = 1
        for index, (message, native) in enumerate(zip(trajectory.messages, calls, strict=True)):
            self._add(message, native, index, turn)
            turn += message.generated
        if variant.roles != "own roles":
            self.messages = _simpler_roles(self.messages, merged=variant.roles == "users and assistants")

    def _leaf(self, value: Any, index: int, turn: int, where: str, **more: Any) -> Leaf:
        leaf = Leaf(value, index, turn, where, **{"segments": (), **more})
        number = len(self.leaves)
        leaf.mark = f"HESNR{number:06d}MARK" if isinstance(value, str) else 7316500000000 + number
        self.leaves.append(leaf)
        return leaf

    def _add(self, message: Message, native: list[_ActionCall] | None, index: int, turn: int) -> None:
        chat = _ChatMessage(message.role, index, turn)
        self.messages.append(chat)
        segments = [s for s in message.segments if not (native and s.kind is Kind.ACTION)]
        if message.role == "assistant":
            segments = self._split_reasoning(chat, segments)
        chat.content = self._text(segments, chat, "content", strip=bool(native))
        if not native:
            return
        action = len(self.actions)
        self.actions.append(message.segments[-1].text)
        for number, call in enumerate(native, 1):
            if self.variant.single if number > 1 else self.variant.apart and (chat.content or chat.reasoning):
                chat = _ChatMessage("assistant", index, turn)
                self.messages.append(chat)
            where = f"call {number} ({call.name})"
            name = self._leaf(call.name, index, turn, f"the name of {where}", is_call=True, is_name=True)
            arguments = {
                key: self._argument(text, start, action, chat, f"argument {key!r} of {where}", call.name, key)
                for key, text, start in call.parameters
            }
            chat.calls.append(_StoredCall(name, arguments))

    def _split_reasoning(self, chat: _ChatMessage, segments: list[Segment]) -> list[Segment]:
        """`segments` without the reasoning at their start, which goes to a field of its own."""
        if not segments or segments[0].kind is not Kind.THOUGHT or self._reasoning_key == "inline":
            return segments
        opener = _THINK.match(segments[0].text)
        if not opener:
            return segments
        inner = (Segment(Kind.THOUGHT, opener[1].strip("\n")),)
        chat.reasoning = self._text(inner, chat, "reasoning", strip=False)
        rest = segments[0].text[opener.end() :].lstrip()
        return [Segment(Kind.THOUGHT, rest), *segments[1:]] if rest else segments[1:]

    def _text(self, segments: Sequence[Segment], chat: _ChatMessage, where: str, *, strip: bool) -> list[Any]:
        """Text as leaves, with the tags of reasoning between them as literals: templates look for those."""
        text = "".join(s.text for s in segments)
        end = len(text.rstrip()) if strip else len(text)
        places: list[tuple[Segment, int, int, int | None]] = []
        position = 0
        for segment in segments:
            action = None
            if segment.kind is Kind.ACTION:
                action = len(self.actions)
                self.actions.append(segment.text)
            places.append((segment, position, position + len(segment.text), action))
            position += len(segment.text)
        thoughts = [(a, b) for segment, a, b, _ in places if segment.kind is Kind.THOUGHT and chat.role == "assistant"]
        tags = [m.span() for a, b in thoughts for m in _THINK_TAG.finditer(text, a, min(b, end))]
        result: list[Any] = []
        position = 0
        for start, stop in [*tags, (end, end)]:
            piece = text[position:start]
            if piece.strip():
                parts, origin = [], []
                for segment, first, last, action in places:
                    a, b = max(first, position), min(last, start)
                    if a < b:
                        parts.append(Segment(segment.kind, text[a:b]))
                        origin.append((action, a - first))
                leaf = self._leaf(piece, chat.index, chat.turn, where, segments=tuple(parts))
                leaf.offsets = np.array([(-1 if a is None else a, o) for a, o in origin], dtype=np.int64)
                result.append(leaf)
            else:
                result.append(piece)
            result.append(text[start:stop])
            position = stop
        return [part for part in result if part != ""]

    def _argument(self, text: str, start: int, action: int, chat: _ChatMessage, where: str, tool: str, key: str) -> Any:
        if (tool, key) not in self._types:
            if not text:
                return text
            offsets = np.arange(start, start + len(text))
            return self._leaf(text, chat.index, chat.turn, where, is_call=True, action=action, offsets=offsets)
        value = json.loads(text)
        leaves: list[Leaf] = []

        def scalars(value: Any) -> Any:
            if isinstance(value, dict) and value:
                return {k: scalars(v) for k, v in value.items()}
            if isinstance(value, list) and value:
                return [scalars(v) for v in value]
            if value == "" and isinstance(value, str):
                return value
            leaf = self._leaf(value, chat.index, chat.turn, where, is_call=True, action=action)
            leaves.append(leaf)
            return leaf

        result = scalars(value)
        pieces = MARK.split(argument_json(_filled(result, "mark")))
        position, placed = start, list[tuple[str, int]]()
        for piece, leaf in itertools.zip_longest(pieces, leaves):
            placed.append((piece, position))
            position += len(piece)
            if leaf is None:
                break
            written = argument_json(leaf.value)
            inner = written[1:-1] if isinstance(leaf.value, str) else written
            if isinstance(leaf.value, str):
                lengths = widths(leaf.value, json_escaped)
                leaf.offsets = position + np.cumsum(lengths) - lengths
            else:
                leaf.offsets = np.arange(position, position + len(inner))
            position += len(inner)
        if isinstance(value, (dict, list)) and value and leaves:
            self.containers.append(Container(leaves, action, placed))
        return result

    def chat(self, what: str) -> list[dict[str, Any]]:
        """The messages as a template gets them, with each leaf's `value` or `mark`."""
        result: list[dict[str, Any]] = []
        number = itertools.count(1)
        waiting: list[tuple[str, Any]] = []
        for message in self.messages:
            text = "".join(str(_filled(part, what)) for part in message.content)
            content = [{"type": "text", "text": text}] if self.variant.parts else text
            chat: dict[str, Any] = {"role": message.role, "content": content}
            if message.reasoning:
                reasoning = "".join(str(_filled(part, what)) for part in message.reasoning)
                chat[self._reasoning_key] = reasoning
            if message.calls:
                chat["tool_calls"] = []
                for call in message.calls:
                    arguments = _filled(call.arguments, what)
                    if self.variant.calls == "json":
                        arguments = argument_json(arguments)
                    identity, name = f"call{next(number):05d}", _filled(call.name, what)
                    waiting.append((identity, name))
                    function = {"name": name, "arguments": arguments}
                    chat["tool_calls"].append({"id": identity, "type": "function", "function": function})
            elif message.role == "assistant":
                waiting = []
            elif message.role == "tool" and waiting:
                chat["tool_call_id"], chat["name"] = waiting.pop(0)
            result.append(chat)
        return result

    def tools(self) -> list[dict[str, Any]] | None:
        """Schemas of the tools, inferred from the calls; None where there are none."""
        tools: dict[str, dict[str, Any]] = {}
        for message in self.messages:
            for call in message.calls:
                properties = tools.setdefault(call.name.value, {})
                for key, value in call.arguments.items():
                    properties.setdefault(key, {"type": _json_type(value), "description": key})
        return [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": name,
                    "parameters": {"type": "object", "properties": properties, "required": []},
                },
            }
            for name, properties in tools.items()
        ] or None


class _ActionCall(NamedTuple):
    name: str
    parameters: tuple[tuple[str, str, int], ...]  # name, text and place in the action


def native_calls(message: Message) -> list[_ActionCall] | None:
    """The calls of a message whose action is, to the character, the canonical form of stored calls; else None."""
    if [s.kind for s in message.segments if s.kind is Kind.ACTION] != [Kind.ACTION]:
        return None
    text = message.segments[-1].text
    calls = parse_action(text) if message.segments[-1].kind is Kind.ACTION else ()
    parsed, written = [], []
    for call in calls:
        names = [p.name for p in call.parameters]
        if len(set(names)) < len(names) or not all(_NAME.fullmatch(n) for n in (call.name, *names)):
            return None
        values = tuple((p.name, text[p.value_start : p.value_end], p.value_start) for p in call.parameters)
        parsed.append(_ActionCall(call.name, values))
        written.append(render_call(ToolCall(call.name, {key: value for key, value, _ in values})))
    return parsed if parsed and "\n".join(written) == text.strip() else None


def _types(calls: Sequence[_ActionCall]) -> set[tuple[str, str]]:
    """The parameters whose values are no strings: all of them are JSON of something else."""
    kinds: dict[tuple[str, str], bool] = {}
    for call in calls:
        for key, text, _ in call.parameters:
            kinds[call.name, key] = kinds.get((call.name, key), True) and _is_json(text)
    return {key for key, is_json in kinds.items() if is_json}


def _is_json(text: str) -> bool:
    if text[:1] not in '[{-0123456789tfn"' or text[:1] == '"':
        return False
    try:
        return argument_json(json.loads(text)) == text and len(text) < 100_000
    except (ValueError, RecursionError):
        return False


def _json_type(value: Any) -> str:
    value = value.value if isinstance(value, Leaf) else value
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "string")


def _filled(value: Any, what: str) -> Any:
    if isinstance(value, Leaf):
        return getattr(value, what)
    if isinstance(value, dict):
        return {k: _filled(v, what) for k, v in value.items()}
    return [_filled(v, what) for v in value] if isinstance(value, list) else value


def _simpler_roles(messages: list[_ChatMessage], *, merged: bool) -> list[_ChatMessage]:
    """Tool results as user messages; `merged`: system prompts too, and neighbours of one role as one message."""
    result: list[_ChatMessage] = []
    for message in messages:
        message.role = "user" if message.role == "tool" or (merged and message.role == "system") else message.role
        if merged and result and result[-1].role == message.role:
            result[-1].content = [*result[-1].content, "\n\n", *message.content]
            result[-1].reasoning = [*result[-1].reasoning, *message.reasoning]
        else:
            result.append(message)
    return result
