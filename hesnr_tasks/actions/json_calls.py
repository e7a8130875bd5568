"""Calls that are a JSON object, whole or broken off."""

from __future__ import annotations

import re

from hesnr_tasks.actions.calls import Parameter

__all__ = ["read_json"]

_JSON = re.compile(r'"[^"\\]*(?:\\[\s\S][^"\\]*)*(?:"|\\?\Z)|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_ARGUMENTS = ("arguments", "parameters", "input", "args")


def read_json(text: str, start: int) -> tuple[str, list[Parameter], int]:
    """Name, parameters and end of the call in the JSON object at `start`, whole or broken."""
    reader = _JsonReader(text)
    end = len(text)
    for m in _JSON.finditer(text, start):
        if reader.read(m):
            return reader.name, reader.parameters, m.end()
        if "</tool_call>" in m[0] and not m[0].startswith('"'):
            end = m.start() + m[0].index("</tool_call>")
            break
    else:
        last = text.rfind("</tool_call>", start)
        end = last if last >= 0 else end
    reader.leave_value(end)
    return reader.name, [p for p in reader.parameters if p.value_end <= end], end


class _JsonReader:
    """Follows the tokens of one object as far as the values of its `name` and `arguments`."""

    def __init__(self, text: str) -> None:
        self.text, self.name, self.key, self.value_from = text, "", "", -1
        self.path: list[str] = []  # keys of the open objects; the arguments are at depth 2
        self.parameters: list[Parameter] = []

    def read(self, m: re.Match[str]) -> bool:
        """Take the next token; whether it ends the object."""
        token, depth = m[0], len(self.path)
        if token in ("{", "["):
            self.path.append(self.key)
            self.value_from = -1 if depth < 2 else self.value_from
        elif token in ("}", "]"):
            self.leave_value(m.start())
            del self.path[-1:]
            return not self.path
        elif token == "," and depth <= 2:
            self.leave_value(m.start())
        elif token == ":" and depth <= 2:
            self.value_from = m.end()
        elif depth <= 2 and self.value_from < 0:
            self.key = token.strip('"')
        elif depth == 1 and self.key == "name":
            self.name = token.strip('"')
        return False

    def leave_value(self, end: int) -> None:
        if len(self.path) > 2:
            return
        if len(self.path) == 2 and self.path[1] in _ARGUMENTS and 0 <= self.value_from < end:
            self.parameters.append(_json_value(self.text, self.key, self.value_from, end))
        self.value_from = -1


def _json_value(text: str, key: str, start: int, end: int) -> Parameter:
    raw = text[start:end]
    start += len(raw) - len(raw.lstrip())
    end = start + len(raw.strip())
    if text.startswith('"', start):
        closed = end - start >= 2 and text[end - 1] == '"'
        return Parameter(key, start + 1, end - closed, encoded=True)
    return Parameter(key, start, end)
