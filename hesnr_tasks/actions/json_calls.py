"""Calls that are JSON: an object with a name and arguments in any of the shapes models write, whole or broken off.

The text is read as a tree of spans, tolerantly: a string ends at the first quote after which JSON can go on (so quotes
that were not escaped stay in it), and what is cut off ends where the text ends. Then the tree is understood:

- `{"name": …, "arguments": {…}}`, also with `parameters`, `input`, `args` …, and with the arguments beside the name;
- arguments as a string that holds JSON (or plain text), or as a list;
- OpenAI's `{"type": "function", "function": {…}}` and `{"tool_calls": […]}`; lists of calls;
- SWE-agent's `{"thought": …, "command": {"name": …, "arguments": {…}}}`;
- Terminus-2's `{"analysis": …, "plan": …, "commands": [{"keystrokes": …}, …]}`.

A text that begins inside such an object (after a thought that is no part of the action) is read as its rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hesnr_tasks.actions import Call, CharSpan, Parameter, View, json_decoded
from hesnr_tasks.actions.tools import is_for


@dataclass(slots=True)
class _Node:
    kind: str  # object | array | string | scalar
    start: int  # of the value: without the quotes of a string
    end: int
    members: list[tuple[str, _Node]] = field(default_factory=list)  # keys of an array's are empty

    def get(self, *keys: str) -> tuple[str, _Node | None]:
        """The first member with one of `keys`, in the order of `keys`; the first key and None without any."""
        by_key = dict(reversed(self.members))
        return next(((key, by_key[key]) for key in keys if key in by_key), (keys[0], None))


# --- the tree -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r'["{}\[\]:,]|[^\s{}\[\]:,"]+')
_TOKEN_PYTHON = re.compile(r"""["'{}\[\]:,]|[^\s{}\[\]:,"']+""")
_PYTHON = re.compile(r"(?:\[\s*)?\{\s*'\w+'\s*:")  # a dictionary as Python prints it
_STRING = {quote: re.compile(rf"[^{quote}\\]*(?:\\[\s\S][^{quote}\\]*)*") for quote in "\"'"}
_GOES_ON = re.compile(r"\s*(?:[,:}\]]|\Z|</tool_call>|```|<[|｜])")
_BREAKS = re.compile(r"</tool_call>|```|<[|｜]")


def _string_end(text: str, start: int, quote: str) -> tuple[int, int]:
    """Where the string that begins at `start` ends, and where the text goes on."""
    position = start
    while True:
        match = _STRING[quote].match(text, position)
        position = min(match.end(), len(text)) if match else len(text)
        if position >= len(text) or text[position] != quote:
            position, after = len(text), len(text)
            break
        after = position + 1
        if text[after : after + 1] in ("", ",", ":", "}", "]") or _GOES_ON.match(text, after):
            break
        position = after
    broken = text.find("\n</tool_call>", start, position)
    return (broken, broken) if broken >= 0 else (position, after)


def _tree(text: str, start: int, inside: bool = False) -> tuple[_Node, int]:
    """The value at `start`, and where it ends; with `inside`, the rest of an object whose beginning is not there."""
    root = _Node("array", start, len(text))
    stack = [root] + ([_Node("object", start, len(text))] if inside else [])
    root.members += [("", node) for node in stack[1:]]
    key, position = "", start
    tokens = _TOKEN_PYTHON if _PYTHON.match(text[start : start + 200].lstrip()) else _TOKEN
    while match := tokens.search(text, position):
        token, position = match[0], match.end()
        top = stack[-1]
        node: _Node | None = None
        if token in ('"', "'"):
            end, after = _string_end(text, position, token)
            node, position = _Node("string", position, end), after
        elif token in "{[":
            node = _Node("object" if token == "{" else "array", match.start(), len(text))
            stack.append(node)
        elif token in "}]":
            top.end = position
            del stack[-1:]
            if len(stack) == 1:
                root.end = position
                break
            if not stack:
                return root, match.start()
        elif token == "," or token == ":":
            key = "" if token == "," else key
        elif broken := _BREAKS.search(token):
            root.end = match.start() + broken.start()
            break
        else:
            node = _Node("scalar", match.start(), position)
        if node is not None:
            if top.kind == "object" and not key and node.kind == "string" and _COLON.match(text, position):
                key = text[node.start : node.end]
                continue
            if len(stack) > 1 or top is root:
                top.members.append((key, node))
            key = ""
            if top is root and node is not stack[-1]:
                root.end = position
                break
    for node in stack:
        node.end = min(node.end, root.end)
    return root, root.end


_COLON = re.compile(r"\s*:")


# --- what it says ---------------------------------------------------------------------------------------------------

_NAMES = ("name", "tool_name", "function_name", "recipient_name", "tool", "function", "action")
_ARGUMENTS = (
    *("arguments", "parameters", "input", "args", "params", "kwargs", "tool_input", "action_input", "tool_args"),
    "tool_arguments",
)
_LISTS = ("tool_calls", "calls", "commands", "actions")
_INNER = ("function", "function_call", "tool_call", "command", "action")
_BESIDE = ("id", "type", "index", "call_id", "tool_call_id")
_ALONE = ("cmd", "keystrokes", "bash_command", "code", "thought", "analysis", "plan")
_SIGNS = frozenset((*_NAMES, *_ARGUMENTS, *_LISTS, *_INNER, *_ALONE))
_DEPTH = 6
_LEVELS = 3  # strings of JSON in strings of JSON


class _TreeReader(NamedTuple):
    """Reads calls, of which it says no beginning, from a tree of `view`, which lies in `level` JSON strings."""

    view: View
    level: int

    def calls(self, node: _Node, depth: int = 0) -> Iterator[Call]:
        end = self.view.offsets[node.end]
        if node.kind == "object":
            yield from self._object(node, depth)
        elif node.kind != "array":
            yield Call("", 0, end, (self._parameter("", node),))
        else:
            plain = [member for _, member in node.members if member.kind != "object" or depth >= _DEPTH]
            if plain:
                yield Call("", 0, end, self._parameters(("", member) for member in plain))
            for _, member in node.members:
                if member.kind == "object" and depth < _DEPTH:
                    yield from self._object(member, depth + 1)

    def _object(self, node: _Node, depth: int) -> Iterator[Call]:
        end = self.view.offsets[node.end]
        list_key, listed = node.get(*_LISTS)
        inner_key, inner = node.get(*_INNER)
        if listed and listed.kind == "string" and list_key == "tool_calls" and self.level < _LEVELS:
            decoded = json_decoded(self.view.cut(listed.start, listed.end))
            if decoded.text.lstrip().startswith(("[", "{")):
                yield from self._with_rest(node, list_key, list(_TreeReader(decoded, self.level + 1).all(0, depth + 1)))
                return
        if listed and listed.kind == "array" and depth < _DEPTH:
            calls = list(self.calls(listed, depth + 1))
            if list_key == "commands":
                calls = [call._replace(name=call.name or "bash") for call in calls]
            yield from self._with_rest(node, list_key, calls)
            return
        if inner and inner.kind == "object" and depth < _DEPTH:
            yield from self._with_rest(node, inner_key, list(self._object(inner, depth + 1)))
            return
        names = (node.get(key) for key in _NAMES)
        name_key, name = next((item for item in names if item[1] and item[1].kind == "string"), ("", None))
        arguments_key, arguments = node.get(*_ARGUMENTS)
        if name_key == "action" and not arguments and self._is_command(node):
            members = [("command" if key == "action" else key, member) for key, member in node.members]
            yield Call("", 0, end, self._parameters(members))
        elif not name and not arguments and len(node.members) == 1 and node.members[0][1].kind == "object":
            key, only = node.members[0]
            if not key and depth < _DEPTH:  # a pair of braces too many
                yield from self._object(only, depth + 1)
            else:
                yield Call(key, 0, end, self._parameters(only.members))
        else:
            uses = arguments.get("tool_uses")[1] if arguments and arguments.kind == "object" else None
            if uses and uses.kind == "array" and depth < _DEPTH:  # several calls as the arguments of one
                yield from self.calls(uses, depth + 1)
                return
            parameters = self._rest(node, name_key if name else "", arguments_key if arguments else "")
            if arguments:
                parameters += self.arguments(arguments_key, arguments)
            text = self.view.text[name.start : name.end] if name else ""
            yield Call(text, 0, end, tuple(sorted(parameters, key=lambda p: p.value_start)))

    def all(self, start: int, depth: int = 0) -> Iterator[Call]:
        """The calls of the value at `start`."""
        root, _ = _tree(self.view.text, start)
        return (reading for _, member in root.members for reading in self.calls(member, depth))

    def _is_command(self, node: _Node) -> bool:
        """Whether `action` is what is to be run rather than the name of a tool: it has no arguments, or is no name."""
        action = next(self.view.text[member.start : member.end] for key, member in node.members if key == "action")
        alone = all(key in ("action", "thought", "analysis", "plan") for key, _ in node.members)
        return not re.fullmatch(r"[\w.:/-]{1,100}", action) or (alone and not is_for("prose", action))

    def _with_rest(self, node: _Node, used: str, calls: list[Call]) -> Iterator[Call]:
        """`calls`, and the other members of the object they are in as values of a call without a name."""
        rest, end = self._rest(node, used), self.view.offsets[node.end]
        first = calls[0].parameters[0].value_start if calls and calls[0].parameters else end
        before = tuple(p for p in rest if p.value_end <= first)
        after = tuple(p for p in rest if p.value_start >= max((c.end for c in calls), default=first))
        if before:
            yield Call("", 0, before[-1].value_end, before)
        yield from calls
        if after:
            yield Call("", 0, end, after)

    def _rest(self, node: _Node, *used: str) -> tuple[Parameter, ...]:
        return self._parameters(item for item in node.members if item[0] not in (*filter(None, used), *_BESIDE))

    def arguments(self, key: str, node: _Node) -> tuple[Parameter, ...]:
        """The values of an object, a list, or a string that holds one of those, or plain text."""
        if node.kind == "object":
            return self._parameters(node.members)
        if node.kind == "array":  # objects hold their own, the rest has no name; words of one command stay together
            if len(node.members) > 1 and {member.kind for _, member in node.members} == {"string"}:
                return (self._parameter("", node),)
            members = ((m.members if m.kind == "object" else [("", m)]) for _, m in node.members)
            return self._parameters(item for items in members for item in items)
        if node.kind == "string":
            inner = json_decoded(self.view.cut(node.start, node.end))
            start = len(inner.text) - len(inner.text.lstrip())
            if inner.text.startswith(("{", "["), start) and self.level < _LEVELS:
                root, _ = _tree(inner.text, start)
                return _TreeReader(inner, self.level + 1).arguments(key, root.members[0][1]) if root.members else ()
        return (self._parameter(key if key == "input" else "", node),)

    def _parameters(self, members: Iterable[tuple[str, _Node]]) -> tuple[Parameter, ...]:
        return tuple(self._parameter(key, member) for key, member in members)

    def _parameter(self, name: str, node: _Node) -> Parameter:
        offsets = self.view.offsets
        return Parameter(name, offsets[node.start], offsets[node.end], self.level + (node.kind == "string"))


# --- calls ----------------------------------------------------------------------------------------------------------

_CONTINUES = re.compile(r'\s*"\s*(?:,\s*"\w{1,60}"\s*:|[}\]])')


def json_end(text: str, start: int) -> int:
    """Where the value at `start` ends."""
    return _tree(text, start)[1]


def call_json_end(text: str, start: int) -> int | None:
    """Where the object at `start` ends, if it is one with a call in it."""
    root, end = _tree(text, start)
    return end if any(_has_sign(node) for _, node in root.members) else None


def whole_json(text: str) -> list[Call]:
    """The calls of a text that is one JSON object (or list of objects) with a call in it, or the rest of one."""
    first = len(text) - len(text.lstrip())
    continues = bool(_CONTINUES.match(text))
    if not continues and not re.match(r'(?:\[\s*)?\{\s*(?:"|\Z)', text[first : first + 200]):
        return []
    root, end = _tree(text, text.index('"') + 1 if continues else first, continues)
    if text[end:].strip() or not (continues or any(_has_sign(node) for _, node in root.members)):
        return []
    return json_calls(text, 0 if continues else first, len(text))


def _has_sign(node: _Node) -> bool:
    if node.kind == "array":
        return bool(node.members) and all(_has_sign(member) for _, member in node.members)
    return node.kind == "object" and any(key in _SIGNS for key, _ in node.members)


def json_calls(text: str, start: int, end: int, value: int = -1, name: str = "") -> list[Call]:
    """The calls in a piece of JSON, which may be cut off at either end.

    Args:
        text: the whole action.
        start: where the syntax of the first call begins.
        end: where that of the last one ends at the latest, where the JSON is longer.
        value: where the JSON begins; -1: at `start`.
        name: the tool, where it stands outside of the JSON, which is then its arguments.
    """
    value = start if value < 0 else value
    continues = _CONTINUES.match(text, value) if value == start else None
    root, after = _tree(text, text.index('"', value) + 1 if continues else value, bool(continues))
    reader = _TreeReader(View(text, range(len(text) + 1)), 0)
    if name:
        parameters = reader.arguments("arguments", root.members[0][1] if root.members else root)
        readings = [Call(name, 0, after, tuple(sorted(parameters, key=lambda p: p.value_start)))]
    else:
        readings = [reading for _, node in root.members for reading in reader.calls(node)]
    calls: list[Call] = []
    limit = min(after, end)
    for i, reading in enumerate(readings or [Call("", 0, after, ())], 1):
        stop = max(start, min(reading.end, limit) if i < len(readings) else limit)
        in_order: list[Parameter] = []  # those that lie between `start` and `stop`, cut at `stop`
        position = start
        for parameter in reading.parameters:
            if position <= parameter.value_start <= stop:
                position = max(parameter.value_start, min(parameter.value_end, stop))
                in_order.append(parameter._replace(value_end=position))
        tags = between(start, stop, in_order)
        calls.append(Call(reading.name, start, stop, tuple(in_order), tags, form="json"))
        start = stop
    return calls


def between(start: int, end: int, parameters: Sequence[Parameter]) -> tuple[CharSpan, ...]:
    """What of `start` to `end` is not the value of one of `parameters`, which are in order."""
    starts = [start, *(parameter.value_end for parameter in parameters)]
    ends = [*(parameter.value_start for parameter in parameters), end]
    return tuple((a, b) for a, b in zip(starts, ends, strict=True) if a < b)
