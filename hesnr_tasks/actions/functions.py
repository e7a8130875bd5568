"""`<function=…>` and `<parameter=…>`, and the `<tool_call>` around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from hesnr_tasks.actions.calls import Call, CharSpan, Parameter, between, blank, trim
from hesnr_tasks.actions.json_calls import read_json

__all__ = ["functions"]

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


def functions(text: str) -> list[Call]:
    """The calls in a text that begins with one (or ends with one after stray text), else none."""
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
        self.pending: list[CharSpan] = []  # tags seen before the call they belong to

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

    def take_pending(self) -> list[CharSpan]:
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
            and blank(self.text, start, self.marks[at].start)
        ):
            return []
        end = self.value_end(start)
        return [Parameter("", *trim(self.text, start, end))] if self.text[start:end].strip() else []

    def body(self, tags: list[CharSpan], parameters: list[Parameter]) -> int:
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
                value = trim(self.text, mark.end, self.value_end(mark.end))
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
        return following.kind in kinds and blank(self.text, self.marks[at].end, following.start)

    def json(self, wrap: _Mark) -> Call:
        name, parameters, end = read_json(self.text, wrap.end)
        while self.at < len(self.marks) and self.marks[self.at].start < end:
            self.at += 1
        start = self.take_pending()[0][0] if self.pending else wrap.start
        tags = between(wrap.start, end, parameters)
        return Call(name, start, end, tuple(parameters), tags, form="json")


def _without_partial_closer(text: str) -> int:
    """The length of `text` without a closing tag that was cut off (`</`, `</func` …) at its end."""
    stripped = text.rstrip()
    at = stripped.rfind("</", max(0, len(stripped) - 12))
    cut = at >= 0 and any(tag.startswith(stripped[at:]) and tag != stripped[at:] for tag in _CLOSERS)
    return at if cut else len(text)
