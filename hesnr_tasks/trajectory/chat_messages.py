"""Messages as a chat template gets them, with every text of the trajectory as a leaf that a placeholder can stand for.

A call that was stored as a structure is passed as one. A call that the model wrote as text stays text, or is passed as
a structure where the setting `calls` is `native`. `VARIANTS` are the forms in which messages are passed, the richest
first.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from json.encoder import encode_basestring
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions import Call, ToolCall, argument_json, render_call
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory

_NAME = re.compile(r"[\w.\-]{1,100}")
MARK = re.compile(r"HESNR\d{6}MARK|73165\d{8}")
_THINK = re.compile(r"\A\s*<think>(.*?)</think>", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")


def escaped(text: str) -> str:
    """The inside of `text` as a JSON string."""
    return encode_basestring(text)[1:-1]


@cache
def _ascii_widths(escape: Callable[[str], str]) -> npt.NDArray[np.int64]:
    return np.array([len(escape(chr(i))) for i in range(128)])


def widths(text: str, escape: Callable[[str], str]) -> npt.NDArray[np.int64]:
    """The length of each character's escape; shape (len(text),)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    result = _ascii_widths(escape)[np.minimum(points, 127)]
    for point in set(points[points > 127].tolist()):
        result[points == point] = len(escape(chr(point)))
    return result


# --- messages with leaves ---------------------------------------------------------------------------------------------

Origin = int | npt.NDArray[np.int64]  # place of the first character in an action, or of each


class LeafPart(NamedTuple):
    """Characters of a leaf that are of one kind, and where they stand in an action, if they do."""

    length: int
    kind: Kind
    action: int = -1
    origin: Origin = 0


@dataclass(slots=True)
class Leaf:
    """A value of a trajectory, as it is passed to the template."""

    value: Any  # a string or a JSON scalar
    message: int
    turn: int
    where: str  # for errors
    parts: tuple[LeafPart, ...]
    is_call: bool = False  # a tool's name or an argument
    is_name: bool = False
    mark: Any = None


class Container(NamedTuple):
    """An argument that is a list or an object: where its JSON stands in the action."""

    leaves: list[Leaf]
    action: int
    pieces: list[tuple[str, npt.NDArray[np.int64]]]  # before, between and after the leaves, with their places


@dataclass(slots=True)
class _ChatMessage:
    role: str
    index: int
    turn: int
    content: list[Any] = field(default_factory=list)  # of leaves and literal strings
    reasoning: list[Any] = field(default_factory=list)
    calls: list[tuple[Leaf, dict[str, Any]]] = field(default_factory=list)  # name, arguments


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


class NativeCall(NamedTuple):
    """A call that can be passed as a structure: its name, and each argument's text with its place in the action."""

    name: str
    arguments: tuple[tuple[str, str, Origin], ...]


class Conversation:
    """The messages of one trajectory, its leaves, and the texts of its actions.

    Args:
        trajectory: what is passed.
        calls: of each message, those to pass as structures: `native_calls`.
        reasoning: the field for reasoning, or `inline`: it is text of the content.
        apart, single: as in `Variant`.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        calls: Sequence[list[NativeCall]],
        reasoning: str,
        *,
        apart: bool = False,
        single: bool = False,
    ) -> None:
        self._reasoning_key, self._apart, self._single = reasoning, apart, single
        self.leaves: list[Leaf] = []
        self.containers: list[Container] = []
        self.actions: list[str] = []
        self.messages: list[_ChatMessage] = []
        self._schemas = stored_schemas(trajectory.meta.get("tools"))
        self._types = _types(itertools.chain.from_iterable(calls), self._schemas)
        turn, called = 1, False
        for index, (message, native) in enumerate(zip(trajectory.messages, calls, strict=True)):
            chat = _ChatMessage(message.role, index, turn)
            if called and message.role == "user" and all(s.kind is Kind.OBSERVATION for s in message.segments):
                chat.role = "tool"  # the result of a call that was text
            self._add(message, native, chat)
            called = bool(native) or (called and not message.generated)
            turn += message.generated

    def _leaf(self, value: Any, chat: _ChatMessage, where: str, *parts: LeafPart, **more: Any) -> Leaf:
        number = len(self.leaves)
        mark = f"HESNR{number:06d}MARK" if isinstance(value, str) else 7316500000000 + number
        leaf = Leaf(value, chat.index, chat.turn, where, parts, mark=mark, **more)
        self.leaves.append(leaf)
        return leaf

    def _add(self, message: Message, native: list[NativeCall], chat: _ChatMessage) -> None:
        self.messages.append(chat)
        segments = list(message.segments[:-1] if native else message.segments)
        if message.role == "assistant":
            segments = self._split_reasoning(chat, segments)
        chat.content = self._text(segments, chat, "content", strip=bool(native))
        if not native:
            return
        action = len(self.actions)
        self.actions.append(message.segments[-1].text)
        for number, call in enumerate(native, 1):
            if self._single if number > 1 else self._apart and (chat.content or chat.reasoning):
                chat = _ChatMessage("assistant", chat.index, chat.turn)
                self.messages.append(chat)
            where = f"call {number} ({call.name})"
            part = LeafPart(len(call.name), Kind.ACTION)
            name = self._leaf(call.name, chat, f"the name of {where}", part, is_call=True, is_name=True)
            arguments = {
                key: self._argument(text, origin, action, chat, f"argument {key!r} of {where}", (call.name, key))
                for key, text, origin in call.arguments
            }
            chat.calls.append((name, arguments))

    def _split_reasoning(self, chat: _ChatMessage, segments: list[Segment]) -> list[Segment]:
        """`segments` without the reasoning at their start, which goes to a field of its own."""
        if not segments or segments[0].kind is not Kind.THOUGHT or self._reasoning_key == "inline":
            return segments
        opener = _THINK.match(segments[0].text)
        if not opener:
            return segments
        inner = [Segment(Kind.THOUGHT, opener[1].strip("\n"))]
        chat.reasoning = self._text(inner, chat, "reasoning", strip=False)
        rest = segments[0].text[opener.end() :].lstrip()
        return [Segment(Kind.THOUGHT, rest), *segments[1:]] if rest else segments[1:]

    def _text(self, segments: Sequence[Segment], chat: _ChatMessage, where: str, *, strip: bool) -> list[Any]:
        """Text as leaves, with the tags of reasoning between them as literals: templates look for those."""
        text = "".join([s.text for s in segments])
        end = len(text.rstrip()) if strip else len(text)
        if len(segments) == 1 and "think>" not in text and not text.isspace():  # most are so
            action = -1
            if segments[0].kind is Kind.ACTION:
                action = len(self.actions)
                self.actions.append(text)
            return [self._leaf(text[:end], chat, where, LeafPart(end, segments[0].kind, action))] if end else []
        runs: list[tuple[int, int, Kind, int]] = []
        tags: list[tuple[int, int]] = []
        start = position = 0
        for segment in segments:
            stop, action = start + len(segment.text), -1
            if segment.kind is Kind.ACTION:
                action = len(self.actions)
                self.actions.append(segment.text)
            elif segment.kind is Kind.THOUGHT and chat.role == "assistant" and "think>" in segment.text:
                tags += [m.span() for m in _THINK_TAG.finditer(text, start, min(stop, end))]
            runs.append((start, stop, segment.kind, action))
            start = stop
        result: list[Any] = []
        for start, stop in [*tags, (end, end)]:
            piece = text[position:start]
            if piece and not piece.isspace():
                parts = (
                    LeafPart(min(b, start) - max(a, position), kind, action, max(0, position - a))
                    for a, b, kind, action in runs
                    if max(a, position) < min(b, start)
                )
                result.append(self._leaf(piece, chat, where, *parts))
            elif piece:
                result.append(piece)
            if start < stop:
                result.append(text[start:stop])
            position = stop
        return result

    def _argument(
        self, text: str, origin: Origin, action: int, chat: _ChatMessage, where: str, key: tuple[str, str]
    ) -> Any:
        if key not in self._types:
            part = LeafPart(len(text), Kind.ACTION, action, origin)
            return self._leaf(text, chat, where, part, is_call=True) if text else text
        value = json.loads(text)
        places = origin + np.arange(len(text)) if isinstance(origin, int) else origin
        leaves: list[Leaf] = []

        result = self._scalars(value, chat, where, leaves)
        position, pieces = 0, list[tuple[str, npt.NDArray[np.int64]]]()
        for piece, leaf in itertools.zip_longest(MARK.split(argument_json(_filled(result, "mark"))), leaves):
            pieces.append((piece, places[position : position + len(piece)]))
            position += len(piece)
            if leaf is None:
                break
            if isinstance(leaf.value, str):
                lengths = widths(leaf.value, escaped)
                of_leaf = places[position + np.cumsum(lengths) - lengths]
                position += int(lengths.sum())
            else:
                of_leaf = places[position : position + len(argument_json(leaf.value))]
                position += len(of_leaf)
            leaf.parts = (LeafPart(len(of_leaf), Kind.ACTION, action, of_leaf),)
        if isinstance(value, (dict, list)) and value and leaves:
            self.containers.append(Container(leaves, action, pieces))
        return result

    def _scalars(self, value: Any, chat: _ChatMessage, where: str, leaves: list[Leaf]) -> Any:
        """`value` with leaves in the place of its scalars, which are appended to `leaves`."""
        if isinstance(value, dict) and value:
            return {k: self._scalars(v, chat, where, leaves) for k, v in value.items()}
        if isinstance(value, list) and value:
            return [self._scalars(v, chat, where, leaves) for v in value]
        if value == "" and isinstance(value, str):
            return value
        leaves.append(self._leaf(value, chat, where, is_call=True))
        return leaves[-1]

    def chat(self, what: str, variant: Variant) -> list[dict[str, Any]]:
        """The messages as a template gets them, with each leaf's `value` or `mark`."""
        result: list[dict[str, Any]] = []
        number = itertools.count(1)
        waiting: list[tuple[str, Any]] = []
        last: tuple[str, Any] = ("call00000", "tool")
        simpler = {} if variant.roles == "own roles" else {"tool": "user"}
        merged = variant.roles == "users and assistants"
        if merged:
            simpler["system"] = "user"
        for message in self.messages:
            role, text = simpler.get(message.role, message.role), _joined(message.content, what)
            if merged and result and result[-1]["role"] == role:  # neighbours of one role are one message
                chat = result.pop()
                text = f"{chat['content'][0]['text'] if variant.parts else chat['content']}\n\n{text}"
            else:
                chat = {"role": role}
            chat["content"] = [{"type": "text", "text": text}] if variant.parts else text
            result.append(chat)
            if message.reasoning:
                chat[self._reasoning_key] = chat.get(self._reasoning_key, "") + _joined(message.reasoning, what)
            if message.calls:
                chat["tool_calls"] = []
                for name, values in message.calls:
                    arguments = _filled(values, what)
                    if variant.calls == "json":
                        arguments = argument_json(arguments)
                    last = f"call{next(number):05d}", getattr(name, what)
                    waiting.append(last)
                    function = {"name": last[1], "arguments": arguments}
                    chat["tool_calls"].append({"id": last[0], "type": "function", "function": function})
            elif message.role == "assistant":
                waiting = []
            elif role == "tool":  # a second result of a call has its name too: templates ask for one
                chat["tool_call_id"], chat["name"] = waiting.pop(0) if waiting else last
        return result

    def tools(self) -> list[dict[str, Any]] | None:
        """The trajectory's schemas of its tools; those that are not stored are inferred from the calls, if any."""
        if not any(message.calls for message in self.messages):
            return None
        tools = dict(self._schemas)
        inferred: dict[str, dict[str, Any]] = {}
        for message in self.messages:
            for leaf, arguments in message.calls:
                properties = inferred.setdefault(leaf.value, {})
                for key, value in arguments.items():
                    properties.setdefault(key, {"type": _json_type(value), "description": key})
        for name, properties in inferred.items():
            parameters = {"type": "object", "properties": properties, "required": []}
            tools.setdefault(name, {"name": name, "description": name, "parameters": parameters})
        return [{"type": "function", "function": function} for function in tools.values()]


def conversations(
    trajectory: Trajectory, calls: Sequence[list[NativeCall]], reasoning: str
) -> Callable[[Variant], Conversation]:
    """The conversation of each variant, made once for all that differ only in how it is written out."""

    @cache
    def conversation(text: bool, apart: bool, single: bool) -> Conversation:
        passed = [[] for _ in calls] if text else calls
        return Conversation(trajectory, passed, reasoning, apart=apart, single=single)

    return lambda variant: conversation(variant.calls == "text", variant.apart, variant.single)


def stored_schemas(stored: Any) -> dict[str, dict[str, Any]]:
    """Schemas of tools by name, as `{name, description, parameters}`, from OpenAI's or Anthropic's form of them."""
    schemas: dict[str, dict[str, Any]] = {}
    for tool in stored if isinstance(stored, list) else []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
            continue
        parameters = next((p for k in ("parameters", "input_schema") if isinstance(p := function.get(k), dict)), {})
        parameters = {"type": "object", "properties": {}, **parameters}
        description = str(function.get("description") or name)
        schemas[name] = {"name": name, "description": description, "parameters": parameters}
    return schemas


def native_calls(trajectory: Trajectory, which: str = "stored") -> list[list[NativeCall]]:
    """Of each message, the calls to pass as structures, or none.

    Args:
        trajectory: whose messages.
        which: `stored`: only those whose action is, to the character, the canonical form of stored calls; `native`:
            also those that are text of any known form, if all of the action but white space is values and call syntax.
    """
    if which == "stored" and trajectory.fidelity is not Fidelity.RENDERED:
        return [[] for _ in trajectory.messages]
    return [_calls_of(message, which) for message in trajectory.messages]


def _calls_of(message: Message, which: str) -> list[NativeCall]:
    if [s.kind for s in message.segments].count(Kind.ACTION) != 1 or message.segments[-1].kind is not Kind.ACTION:
        return []
    text = message.segments[-1].text
    result: list[NativeCall] = []
    calls = parse_action(text)
    for call in calls:
        names = [p.name for p in call.parameters]
        if len(set(names)) < len(names) or not all(_NAME.fullmatch(n) for n in (call.name, *names)):
            return []
        arguments: list[tuple[str, str, Origin]] = []
        for p in call.parameters:
            if p.encoded:
                view = p.view(text)
                arguments.append((p.name, view.text, np.array(view.offsets[:-1], dtype=np.int64)))
            else:
                arguments.append((p.name, text[p.value_start : p.value_end], p.value_start))
        result.append(NativeCall(call.name, tuple(arguments)))
    if which == "native":
        return result if _only_calls(text, calls) else []
    written = (render_call(ToolCall(c.name, {key: value for key, value, _ in c.arguments})) for c in result)
    return result if result and "\n".join(written) == text.strip() else []


def _only_calls(text: str, calls: Sequence[Call]) -> bool:
    """Whether all of `text` but white space is values, call syntax and fences."""
    rest, position = [], 0
    values = [(p.value_start, p.value_end) for c in calls for p in c.parameters]
    spans = [*values, *(span for c in calls for span in (*c.tags, *c.fences))]
    for start, end in sorted(spans):
        rest.append(text[position:start])
        position = max(position, end)
    return bool(spans) and not "".join([*rest, text[position:]]).strip()


def _types(calls: Iterable[NativeCall], schemas: Mapping[str, dict[str, Any]]) -> set[tuple[str, str]]:
    """The parameters whose values are no strings: all of them are JSON of something else, and no schema says string."""
    kinds: dict[tuple[str, str], bool] = {}
    for call in calls:
        for key, text, _ in call.arguments:
            kinds[call.name, key] = kinds.get((call.name, key), True) and _is_json(text)
    return {key for key, is_json in kinds.items() if is_json and not _is_string(schemas.get(key[0]), key[1])}


def _is_string(schema: dict[str, Any] | None, parameter: str) -> bool:
    properties = schema["parameters"].get("properties") if schema else None
    declared = properties.get(parameter) if isinstance(properties, dict) else None
    kind = declared.get("type") if isinstance(declared, dict) else None
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _is_json(text: str) -> bool:
    if text[:1] not in tuple("[{-0123456789tfn") or len(text) > 100_000:
        return False
    try:
        return argument_json(json.loads(text)) == text
    except (ValueError, RecursionError):
        return False


def _json_type(value: Any) -> str:
    value = value.value if isinstance(value, Leaf) else value
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "string")


def _joined(parts: Sequence[Any], what: str) -> str:
    return "".join([part if type(part) is str else str(getattr(part, what)) for part in parts])


def _filled(value: Any, what: str) -> Any:
    if isinstance(value, Leaf):
        return getattr(value, what)
    if isinstance(value, dict):
        return {k: _filled(v, what) for k, v in value.items()}
    return [_filled(v, what) for v in value] if isinstance(value, list) else value
