"""The calls in the text of one action, found tolerantly: names, parameter values and call syntax as character spans.

Forms, tried in this order at the first character that is not white space:

- ``<function=NAME>``, ``<parameter=KEY>VALUE</parameter>``, ``</function>`` (also with ``name="…"`` attributes and
  inside ``<tool_call>``);
- ``<tool_call>`` around a JSON object (values are then JSON strings: `Parameter.encoded`);
- one pair of tags around a command: ``<command>``, ``<mswea_bash_command>``, ``<execute_bash>``, ``<execute_ipython>``
  …;
- fenced blocks;
- anything else: the whole text is one shell command.

Values are stored unescaped, so a value may contain the very tags that end it. The rules: ``</parameter>`` ends a value
iff nothing but white space separates it from the next tag of the call or the end of the text; a ``</function>`` or
``<parameter=`` at the start of a line ends a value whose closer is missing; a complete ``<function=…> … </function>``
whose opener starts a line inside a value is part of that value. Text in a call that is in no parameter is a parameter
without a name. One newline at each end of a value belongs to the
syntax. Nothing here raises, whatever the text, and time is linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Call", "Parameter", "parse_action"]

PairSpan = tuple[int, int]


class Parameter(NamedTuple):
    """The value of one parameter: characters `value_start` to `value_end` of the action's text."""

    name: str
    value_start: int
    value_end: int
    encoded: bool = False  # the value is the inside of a JSON string: escapes are still in it


class Call(NamedTuple):
    """One call. One written as a plain command has the name `bash` (or the fence's tag) and the parameter `command`."""

    name: str
    start: int
    end: int
    parameters: tuple[Parameter, ...]
    tags: tuple[PairSpan, ...] = ()  # call syntax: tags with their attributes, the JSON around values
    fences: tuple[PairSpan, ...] = ()  # the lines that open and close a fenced block
    form: str = "text"  # function | json | tag | fence | text

    def value(self, text: str, *names: str) -> str | None:
        """The value of the first parameter that has one of `names`, as it stands in `text`."""
        found = (text[p.value_start : p.value_end] for p in self.parameters if p.name in names)
        return next(found, None)


def parse_action(text: str) -> list[Call]:
    """The calls in `text`, in order; spans lie in `text`, tags and values do not overlap. Never raises."""
    return list(_parse(text))


@lru_cache(maxsize=8)
def _parse(text: str) -> tuple[Call, ...]:
    if not text.strip():
        return ()
    return tuple(_functions(text) or _tagged(text) or _fenced(text)) or (_bare(text),)


def _bare(text: str) -> Call:
    return Call("bash", 0, len(text), (Parameter("command", *_trim(text, 0, len(text))),))


def _trim(text: str, start: int, end: int) -> PairSpan:
    """Without one newline at each end."""
    if text.startswith("\r\n", start, end):
        start += 2
    elif text.startswith("\n", start, end):
        start += 1
    if end > start and text[end - 1] == "\n":
        end -= 2 if end - 1 > start and text[end - 2] == "\r" else 1
    return start, end


# --- <function=…> and <tool_call> -----------------------------------------------------------------------------------

_MARK = re.compile(
    r"""<(?:(?P<open>function|parameter|invoke)(?:=|\s+name=["']?|(?=>))(?P<name>[^<>\n="']*)(?P<stop>["']?\s*>|=|\Z|(?=[<\n"']))
    |(?P<close>/(?:function|parameter|invoke))>|(?P<wrap>/?(?:tool_call|function_calls))>)""",
    re.VERBOSE,
)
_CLOSERS = ("</function>", "</parameter>", "</tool_call>", "</invoke>")


class _Mark(NamedTuple):
    kind: str  # function | parameter | /function | /parameter | wrap | /wrap
    start: int
    end: int
    name: str
    leads: bool  # first on its line


def _marks(text: str) -> Iterator[_Mark]:
    for m in _MARK.finditer(text):
        if m["wrap"]:
            kind = "/wrap" if m["wrap"].startswith("/") else "wrap"
        else:
            kind = (m["open"] or m["close"]).replace("invoke", "function")
        start = m.start()
        yield _Mark(kind, start, m.end(), (m["name"] or "").strip(), start == 0 or text[start - 1] == "\n")


def _functions(text: str) -> list[Call]:
    marks = list(_marks(text))
    first = len(text) - len(text.lstrip())
    if not marks or (marks[0].start != first and not _ends_in_call(text, marks)):
        return []
    return _FunctionReader(text, marks).calls()


def _ends_in_call(text: str, marks: list[_Mark]) -> bool:
    """Whether stray text comes before real calls: some call starts a line and the text ends with a closing tag."""
    closed = marks[-1].kind in ("/function", "/wrap") and not text[marks[-1].end :].strip()
    return closed and any(mark.kind in ("function", "wrap") and mark.leads for mark in marks)


class _FunctionReader:
    """Walks the marks once; `self.at` is the next one."""

    def __init__(self, text: str, marks: list[_Mark]) -> None:
        self.text, self.marks, self.at, self.nesting = text, marks, 0, True
        self.limit = _without_partial_closer(text)
        self.pending: list[PairSpan] = []  # tags seen before the call they belong to

    def calls(self) -> list[Call]:
        found: list[Call] = []
        while self.at < len(self.marks):
            mark = self.marks[self.at]
            if mark.kind == "function":
                found.append(self.function(mark))
            elif mark.kind == "parameter":
                found.append(self.function(_Mark("function", mark.start, mark.start, "", False)))
            elif mark.kind == "wrap" and self.text[mark.end : mark.end + 80].lstrip().startswith("{"):
                found.append(self.json(mark))
            else:
                self.at += 1
                if found and mark.kind.startswith("/"):
                    last = found[-1]
                    found[-1] = last._replace(end=mark.end, tags=(*last.tags, (mark.start, mark.end)))
                else:
                    self.pending.append((mark.start, mark.end))
        return found

    def take_pending(self) -> list[PairSpan]:
        tags, self.pending = self.pending, []
        return tags

    def function(self, opener: _Mark) -> Call:
        tags = self.take_pending()
        start = tags[0][0] if tags else opener.start
        if opener.end > opener.start:
            tags.append((opener.start, opener.end))
            self.at += 1
        parameters = self.raw_body(opener.end)
        end = self.body(tags, parameters)
        if end == len(self.text) and self.limit < end:
            tags.append((self.limit, len(self.text.rstrip())))
        return Call(opener.name, start, end, tuple(parameters), tuple(tags), form="function")

    def raw_body(self, start: int) -> list[Parameter]:
        """What stands between the opener and the first parameter: arguments that were stored as plain text."""
        at = self.at
        if (
            at < len(self.marks)
            and self.marks[at].kind == "parameter"
            and _blank(self.text, start, self.marks[at].start)
        ):
            return []
        end = self.value_end(start)
        return [Parameter("", *_trim(self.text, start, end))] if self.text[start:end].strip() else []

    def body(self, tags: list[PairSpan], parameters: list[Parameter]) -> int:
        """Read parameters up to the end of the call; its end."""
        while self.at < len(self.marks):
            mark = self.marks[self.at]
            if mark.kind in ("function", "wrap", "/wrap"):
                ends = [tag[1] for tag in tags[-1:]] + [p.value_end for p in parameters[-1:]]
                return max(ends, default=mark.start)
            self.at += 1
            tags.append((mark.start, mark.end))
            if mark.kind == "/function":
                return mark.end
            if mark.kind == "parameter":
                value = _trim(self.text, mark.end, self.value_end(mark.end))
                parameters.append(Parameter(mark.name, *value))
        return len(self.text)

    def value_end(self, start: int) -> int:
        """Where the value that begins at `start` ends; leaves `self.at` on the mark that ends it."""
        depth, at = 0, self.at
        while at < len(self.marks):
            mark = self.marks[at]
            if depth == 0 and self.ends_value(at):
                self.at = at
                return mark.start
            if mark.leads and self.nesting:
                depth += (mark.kind == "function") - (mark.kind == "/function")
            at += 1
        if depth > 0:  # an inner call that never closes: closers are missing, so nothing nests in the rest of the text
            self.nesting = False
            return self.value_end(start)
        self.at = at
        return max(start, self.limit)

    def ends_value(self, at: int) -> bool:
        mark = self.marks[at]
        if mark.kind == "/parameter":
            return self.borders(at, ("function", "parameter", "/function", "wrap", "/wrap"))
        if mark.kind == "/function":
            return mark.leads or self.borders(at, ("function", "wrap", "/wrap"))
        if mark.kind == "function":
            return mark.leads and not self.nesting
        return mark.kind == "parameter" and mark.leads

    def borders(self, at: int, kinds: tuple[str, ...]) -> bool:
        """Whether only white space lies between this mark and a mark of `kinds` or the end of the text."""
        if at + 1 == len(self.marks):
            return not self.text[self.marks[at].end : self.limit].strip()
        following = self.marks[at + 1]
        return following.kind in kinds and _blank(self.text, self.marks[at].end, following.start)

    def json(self, wrap: _Mark) -> Call:
        name, parameters, end = _read_json(self.text, wrap.end)
        while self.at < len(self.marks) and self.marks[self.at].start < end:
            self.at += 1
        start = self.take_pending()[0][0] if self.pending else wrap.start
        tags = tuple(_gaps(wrap.start, end, parameters))
        return Call(name, start, end, tuple(parameters), tags, form="json")


def _blank(text: str, start: int, end: int) -> bool:
    return end - start < 200 and not text[start:end].strip()


def _without_partial_closer(text: str) -> int:
    """The length of `text` without a closing tag that was cut off (`</`, `</func` …) at its end."""
    stripped = text.rstrip()
    at = stripped.rfind("</", max(0, len(stripped) - 12))
    cut = at >= 0 and any(tag.startswith(stripped[at:]) and tag != stripped[at:] for tag in _CLOSERS)
    return at if cut else len(text)


def _gaps(start: int, end: int, parameters: list[Parameter]) -> Iterator[PairSpan]:
    for parameter in parameters:
        if start < parameter.value_start:
            yield start, parameter.value_start
        start = parameter.value_end
    if start < end:
        yield start, end


# --- the JSON in <tool_call> ----------------------------------------------------------------------------------------

_JSON = re.compile(r'"[^"\\]*(?:\\[\s\S][^"\\]*)*(?:"|\\?\Z)|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_ARGUMENTS = ("arguments", "parameters", "input", "args")


def _read_json(text: str, start: int) -> tuple[str, list[Parameter], int]:
    """Name, parameters and end of the call in the JSON object at `start`, whole or broken."""
    reader = _JsonReader(text)
    for m in _JSON.finditer(text, start):
        if reader.read(m):
            return reader.name, reader.parameters, m.end()
    closer = text.find("</tool_call>", start)
    end = closer if closer >= 0 else len(text)
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


# --- commands between one pair of tags, fences ----------------------------------------------------------------------

_TAGS = {
    "command": "bash",
    "mswea_bash_command": "bash",
    "execute_bash": "bash",
    "bash": "bash",
    "execute_ipython": "python",
    "execute_ipython_cell": "python",
    "execute_browse": "browse",
    "finish": "finish",
}
_TAG = re.compile(rf"<({'|'.join(sorted(_TAGS, key=len, reverse=True))})>")


def _tagged(text: str) -> list[Call]:
    opener = _TAG.match(text, len(text) - len(text.lstrip()))
    if not opener:
        return []
    at = text.rfind(f"</{opener[1]}>", opener.end())
    end = at if at >= 0 else len(text)
    tags = [opener.span()] + ([(at, at + len(opener[1]) + 3)] if at >= 0 else [])
    value = Parameter("command", *_trim(text, opener.end(), end))
    return [Call(_TAGS[opener[1]], opener.start(), tags[-1][1] if at >= 0 else end, (value,), tuple(tags), form="tag")]


_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$", re.MULTILINE)
_SHELLS = ("", "bash", "sh", "shell", "console", "zsh", "mswea_bash_command", "terminal", "shell-session")


def _fenced(text: str) -> list[Call]:
    fences = list(_FENCE.finditer(text))
    if not fences or not (text.lstrip().startswith(("```", "~~~")) or _closes(text, fences)):
        return []
    blocks = _blocks(fences)
    between = pairwise(blocks)
    if any(not _blank(text, a[1].end() if a[1] else len(text), b[0].start()) for a, b in between):
        blocks = [(blocks[0][0], fences[-1])]  # fences inside the command: one block from the first to the last
    return [_fence_call(text, opener, closer) for opener, closer in blocks]


def _closes(text: str, fences: list[re.Match[str]]) -> bool:
    return len(fences) > 1 and not fences[-1][2] and not text[fences[-1].end() :].strip()


def _blocks(fences: list[re.Match[str]]) -> list[tuple[re.Match[str], re.Match[str] | None]]:
    """Blocks that lie in no other: a fence with a language opens, one without closes the innermost (or opens)."""
    blocks: list[tuple[re.Match[str], re.Match[str] | None]] = []
    stack: list[re.Match[str]] = []
    for fence in fences:
        if fence[2] or not stack:
            stack.append(fence)
        else:
            opener = stack.pop()
            if not stack:
                blocks.append((opener, fence))
    if stack:
        last = fences[-1] if len(fences) > 1 and not fences[-1][2] and stack[0] is not fences[-1] else None
        blocks = [b for b in blocks if b[0].start() < stack[0].start()]
        blocks.append((stack[0], last))
    return blocks


def _fence_call(text: str, opener: re.Match[str], closer: re.Match[str] | None) -> Call:
    tag = opener[2].strip("{}.").lower()
    name = "bash" if tag in _SHELLS else tag
    end = closer.start() if closer else len(text)
    value = Parameter("command", *_trim(text, opener.end(), end))
    fences = (opener.span(),) if closer is None else (opener.span(), closer.span())
    return Call(name, opener.start(), closer.end() if closer else len(text), (value,), fences=fences, form="fence")
