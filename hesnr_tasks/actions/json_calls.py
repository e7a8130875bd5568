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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hesnr_tasks.actions import Call, CharSpan, Parameter, View, json_decoded
from hesnr_tasks.actions.tools import is_prose

__all__ = ["between", "call_json_end", "json_calls", "json_end", "whole_json"]


@dataclass(slots=True)
class _Node:
    kind: str  # object | array | string | scalar
    start: int  # of the value: without the quotes of a string
    end: int
    members: list[tuple[str, _Node]] = field(default_factory=list)  # keys of an array's are empty

    def get(self, *keys: str) -> tuple[str, _Node] | None:
        """The first member with one of `keys`, in the order of `keys`."""
        by_key = dict(reversed(self.members))
        return next(((key, by_key[key]) for key in keys if key in by_key), None)


# --- the tree -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r'["{}\[\]:,]|[^\s{}\[\]:,"]+')
_TOKEN_PYTHON = re.compile(r"""["'{}\[\]:,]|[^\s{}\[\]:,"']+""")
_PYTHON = re.compile(r"(?:\[\s*)?\{\s*'\w+'\s*:")  # a dictionary as Python prints it
_STRING = {quote: re.compile(rf"[^{quote}\\]*(?:\\[\s\S][^{quote}\\]*)*") for quote in "\"'"}
_GOES_ON = re.compile(r"\s*(?:[,:}\]]|\Z|</tool_call>|```|<[|｜])")
_BREAKS = re.compile(r"</tool_call>|```|<[|｜]")


def _string_end(text: str, start: int, quote: str = '"') -> tuple[int, int]:
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
    "arguments",
    "parameters",
    "input",
    "args",
    "params",
    "kwargs",
    "tool_input",
    "action_input",
    "tool_args",
    "tool_arguments",
)
_LISTS = ("tool_calls", "calls", "commands", "actions")
_INNER = ("function", "function_call", "tool_call", "command", "action")
_BESIDE = ("id", "type", "index", "call_id", "tool_call_id")
_ALONE = ("cmd", "keystrokes", "bash_command", "code", "thought", "analysis", "plan")
_SIGNS = frozenset((*_NAMES, *_ARGUMENTS, *_LISTS, *_INNER, *_ALONE))
_DEPTH = 6
_LEVELS = 3  # strings of JSON in strings of JSON


@dataclass(slots=True)
class _Said:
    """One call as it is read: its name, its values, and where its object ends."""

    name: str
    parameters: list[Parameter]
    end: int


def _understood(node: _Node, view: View, level: int, depth: int = 0) -> Iterator[_Said]:
    """The calls of a value; `level`: how many JSON strings `view` lies in."""
    end = view.offsets[node.end]
    if node.kind == "array":
        plain = [("", member) for _, member in node.members if member.kind != "object" or depth >= _DEPTH]
        if plain:
            yield _Said("", [_parameter("", member, view, level) for _, member in plain], end)
        for _, member in node.members:
            if member.kind == "object" and depth < _DEPTH:
                yield from _understood(member, view, level, depth + 1)
    elif node.kind == "object":
        yield from _object(node, view, level, depth)
    else:
        yield _Said("", [_parameter("", node, view, level)], end)


def _object(node: _Node, view: View, level: int, depth: int) -> Iterator[_Said]:
    end = view.offsets[node.end]
    listed, inner = node.get(*_LISTS), node.get(*_INNER)
    if listed and listed[1].kind == "string" and listed[0] == "tool_calls" and level < _LEVELS:
        decoded = json_decoded(view.cut(listed[1].start, listed[1].end))
        if decoded.text.lstrip().startswith(("[", "{")):
            root, _ = _tree(decoded.text, 0)
            calls = [
                reading for _, member in root.members for reading in _understood(member, decoded, level + 1, depth + 1)
            ]
            yield from _with_rest(node, (listed[0],), calls, view, level)
            return
    if listed and listed[1].kind == "array" and depth < _DEPTH:
        calls = list(_understood(listed[1], view, level, depth + 1))
        if listed[0] == "commands":
            calls = [_Said(call.name or "bash", call.parameters, call.end) for call in calls]
        yield from _with_rest(node, (listed[0],), calls, view, level)
    elif inner and inner[1].kind == "object" and depth < _DEPTH:
        calls = list(_object(inner[1], view, level, depth + 1))
        yield from _with_rest(node, (inner[0],), calls, view, level)
    else:
        name = next(((k, m) for k in _NAMES for k, m in [node.get(k) or ("", node)] if m.kind == "string"), None)
        arguments = node.get(*_ARGUMENTS)
        if name and name[0] == "action" and not arguments and _is_command(node, view):
            keys = ("command" if key == "action" else key for key, _ in node.members)
            values = (member for _, member in node.members)
            yield _Said("", [_parameter(k, m, view, level) for k, m in zip(keys, values, strict=True)], end)
            return
        if not name and not arguments and len(node.members) == 1 and node.members[0][1].kind == "object":
            key, only = node.members[0]
            if not key and depth < _DEPTH:  # a pair of braces too many
                yield from _object(only, view, level, depth + 1)
                return
            yield _Said(key, [_parameter(k, m, view, level) for k, m in only.members], end)
            return
        uses = arguments[1].get("tool_uses") if arguments and arguments[1].kind == "object" else None
        if uses and uses[1].kind == "array" and depth < _DEPTH:  # several calls as the arguments of one
            yield from _understood(uses[1], view, level, depth + 1)
            return
        used = ([name[0]] if name else []) + ([arguments[0]] if arguments else [])
        parameters = _rest(node, (*used, *_BESIDE), view, level)
        if arguments:
            parameters += _arguments(*arguments, view, level)
        text = view.text[name[1].start : name[1].end] if name else ""
        yield _Said(text, sorted(parameters, key=lambda p: p.value_start), end)


def _is_command(node: _Node, view: View) -> bool:
    """Whether `action` is what is to be run rather than the name of a tool: it has no arguments, or is no name."""
    readings = next(view.text[member.start : member.end] for key, member in node.members if key == "action")
    alone = all(key in ("action", "thought", "analysis", "plan") for key, _ in node.members)
    return not re.fullmatch(r"[\w.:/-]{1,100}", readings) or (alone and not is_prose(readings))


def _rest(node: _Node, used: tuple[str, ...], view: View, level: int) -> list[Parameter]:
    return [_parameter(key, member, view, level) for key, member in node.members if key not in used]


def _with_rest(node: _Node, used: tuple[str, ...], calls: list[_Said], view: View, level: int) -> Iterator[_Said]:
    """`calls`, and the other members of the object they are in as values of a call without a name."""
    rest = _rest(node, (*used, *_BESIDE), view, level)
    first = calls[0].parameters[0].value_start if calls and calls[0].parameters else view.offsets[node.end]
    before = [p for p in rest if p.value_end <= first]
    after = [p for p in rest if p.value_start >= max((c.end for c in calls), default=first)]
    if before:
        yield _Said("", before, before[-1].value_end)
    yield from calls
    if after:
        yield _Said("", after, view.offsets[node.end])


def _arguments(key: str, node: _Node, view: View, level: int) -> list[Parameter]:
    if node.kind == "object":
        return [_parameter(k, m, view, level) for k, m in node.members]
    if node.kind == "array":
        return _listed(node, view, level)
    if node.kind == "string":
        inner = json_decoded(view.cut(node.start, node.end))
        start = len(inner.text) - len(inner.text.lstrip())
        if inner.text.startswith(("{", "["), start) and level < _LEVELS:
            root, _ = _tree(inner.text, start)
            return _arguments(key, root.members[0][1], inner, level + 1) if root.members else []
    named = key if key == "input" else ""
    return [_parameter(named, node, view, level)]


def _listed(node: _Node, view: View, level: int) -> list[Parameter]:
    """Arguments in a list: objects hold their own, anything else has no name; words of one command stay together."""
    kinds = {member.kind for _, member in node.members}
    if kinds == {"string"} and len(node.members) > 1:
        return [_parameter("", node, view, level)]
    parameters: list[Parameter] = []
    for _, member in node.members:
        if member.kind == "object":
            parameters += [_parameter(k, m, view, level) for k, m in member.members]
        else:
            parameters.append(_parameter("", member, view, level))
    return parameters


def _parameter(name: str, node: _Node, view: View, level: int) -> Parameter:
    return Parameter(name, view.offsets[node.start], view.offsets[node.end], level + (node.kind == "string"))


# --- calls ----------------------------------------------------------------------------------------------------------

_CONTINUES = re.compile(r'\s*"\s*(?:,\s*"\w{1,60}"\s*:|[}\]])')


def json_end(text: str, start: int) -> int:
    """Where the value at `start` ends."""
    return _tree(text, start)[1]


def call_json_end(text: str, start: int) -> int | None:
    """Where the object at `start` ends, if it is one with a call in it."""
    root, end = _tree(text, start)
    return end if any(_has_sign(node) for _, node in root.members) else None


def json_calls(text: str, start: int, end: int, value: int = -1, name: str = "") -> list[Call]:
    """The calls in the JSON at `value` (else `start`): syntax from `start`, and up to `end` where the JSON is longer.

    `name`: the tool, where it stands outside of the JSON, which is then its arguments.
    """
    value = start if value < 0 else value
    continues = _CONTINUES.match(text, value) if value == start else None
    root, after = _tree(text, text.index('"', value) + 1 if continues else value, bool(continues))
    view = View(text, range(len(text) + 1))
    if name:
        node = root.members[0][1] if root.members else root
        readings = [_Said(name, sorted(_arguments("arguments", node, view, 0), key=lambda p: p.value_start), after)]
    else:
        readings = [reading for _, node in root.members for reading in _understood(node, view, 0)] or [
            _Said("", [], after)
        ]
    calls: list[Call] = []
    limit = min(after, end)
    for i, reading in enumerate(readings):
        stop = limit if i + 1 == len(readings) else min(reading.end, limit)
        parameters = _in_order(reading.parameters, start, stop)
        calls.append(Call(reading.name, start, stop, parameters, between(start, stop, parameters), form="json"))
        start = stop
    return calls


def _in_order(parameters: list[Parameter], start: int, end: int) -> tuple[Parameter, ...]:
    """Those that lie between `start` and `end`, cut at `end`."""
    kept: list[Parameter] = []
    for parameter in parameters:
        if start <= parameter.value_start <= end:
            kept.append(parameter._replace(value_end=max(parameter.value_start, min(parameter.value_end, end))))
            start = kept[-1].value_end
    return tuple(kept)


def whole_json(text: str) -> list[Call]:
    """The calls of a text that is one JSON object (or list of objects) with a call in it, or the rest of one."""
    first = len(text) - len(text.lstrip())
    if not (re.match(r'(?:\[\s*)?\{\s*(?:"|\Z)', text[first : first + 200]) or _CONTINUES.match(text)):
        return []
    continues = bool(_CONTINUES.match(text))
    root, end = _tree(text, text.index('"') + 1 if continues else first, continues)
    if text[end:].strip() or not (continues or any(_has_sign(node) for _, node in root.members)):
        return []
    return json_calls(text, 0 if continues else first, len(text))


def _has_sign(node: _Node) -> bool:
    if node.kind == "array":
        return bool(node.members) and all(_has_sign(member) for _, member in node.members)
    return node.kind == "object" and any(key in _SIGNS for key, _ in node.members)


def between(start: int, end: int, parameters: Sequence[Parameter]) -> tuple[CharSpan, ...]:
    """What of `start` to `end` is not the value of one of `parameters`, which are in order."""
    starts = [start, *(parameter.value_end for parameter in parameters)]
    ends = [*(parameter.value_start for parameter in parameters), end]
    return tuple((a, b) for a, b in zip(starts, ends, strict=True) if a < b)
