"""Calls written with tags: `<function=…>` and `<parameter=…>`, `<invoke name="…">`, and what stands in `<tool_call>`.

Values are stored unescaped, so a value may hold the very tags that end it. What decides is which tags follow which:

- `</function>` ends a call iff no closing tag and no parameter comes after it before the next call;
- `</parameter>` ends a value iff the next tag, with nothing but white space before it, begins another parameter or call
  or ends this one; tags quoted in the value that begin lines are matched with their own closing tags first;
- where the closing tag of a value is missing, a `<parameter=…>` that begins a line, or the end of the call, ends it.

A tag begins a call only if what follows it is a call's: a parameter, the closing tag, or, where the tag begins a line,
the end of that line. So `I'll use <function=bash> to look around.` is prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from hesnr_tasks.actions.calls import Call, CharSpan, Parameter, between, blank, trim
from hesnr_tasks.actions.json_calls import json_calls, json_end

__all__ = ["find_functions", "functions"]

_MARK = re.compile(
    r"""<(?:antml:|｜DSML｜)?(?P<open>function|parameter|invoke)(?:[ ]?=[ ]?["']?|\s+name=["']?|(?=>))
        (?P<name>[^<>\n="']*)(?P<stop>["']?(?:\s+[a-z]+=["'][^"'<>\n]*["'])*\s*>|=|\Z|(?=[<\n"']))
    |</(?:antml:|｜DSML｜)?(?P<close>function|parameter|invoke)>
    |<(?P<wrap>/?(?:[a-z]{2,12}:|｜DSML｜|[a-z]{2,12}_)?(?:tool_calls?|tool_use|function_calls?|TOOL_?CALL))>""",
    re.VERBOSE,
)
_CLOSERS = ("</function>", "</parameter>", "</tool_call>", "</invoke>")
_JSON = re.compile(r"""\s*(?P<fence>```(?:json)?\s*)?(?:\[\s*)?\{{1,2}\s*(?:["'}]|\Z)""")
_FENCE_END = re.compile(r"\s*```")
_KEYED = re.compile(r"\s*([\w.:\-]{1,100})\s*(?=<arg_key>|</tool_call>)")


class _Mark(NamedTuple):
    kind: str  # function | parameter | /function | /parameter | wrap | /wrap
    start: int
    end: int
    name: str
    leads: bool  # first on its line


def _marks(text: str, start: int) -> Iterator[_Mark]:
    for m in _MARK.finditer(text, start):
        if m["wrap"]:
            kind = "/wrap" if m["wrap"].startswith("/") else "wrap"
        else:
            kind = ("/" if m["close"] else "") + (m["open"] or m["close"]).replace("invoke", "function")
        at = m.start()
        yield _Mark(kind, at, m.end(), (m["name"] or "").strip(), at == 0 or text[at - 1] == "\n")


def functions(text: str) -> list[Call]:
    """The calls in a text that begins with one (or ends with one after stray text), else none."""
    marks = list(_marks(text, 0))
    if not marks:
        return []
    reader = _FunctionReader(text, marks)
    first = len(text) - len(text.lstrip())
    if marks[0].start == first:
        return reader.calls() if marks[0].kind == "parameter" or reader.begins(0) else []
    return reader.calls() if _ends_in_call(text, marks) else []


def find_functions(text: str, start: int = 0) -> list[Call]:
    """The calls in a whole message: text and calls in any order. Tags that are only mentioned are text."""
    marks = list(_marks(text, start))
    return _FunctionReader(text, marks).calls(search=True) if marks else []


def _ends_in_call(text: str, marks: list[_Mark]) -> bool:
    """Whether stray text comes before real calls: some call starts a line and the text ends with a closing tag."""
    closed = marks[-1].kind in ("/function", "/wrap") and not text[marks[-1].end :].strip()
    return closed and any(mark.kind in ("function", "wrap") and mark.leads for mark in marks)


class _FunctionReader:
    """Walks the marks once; `self.at` is the next one."""

    def __init__(self, text: str, marks: list[_Mark]) -> None:
        self.text, self.marks, self.at, self.nesting = text, marks, 0, True
        self.limit = _without_partial_closer(text)
        self.unclosed = 0  # up to this mark, values lack closing tags
        self.pending: list[CharSpan] = []  # tags seen before the call they belong to

    def calls(self, search: bool = False) -> list[Call]:
        """All calls; `search`: marks that are only mentioned are passed over."""
        found: list[Call] = []
        while self.at < len(self.marks):
            mark = self.marks[self.at]
            if search and mark.kind in ("function", "wrap") and not self.begins(self.at):
                self.at += 1
            elif mark.kind == "function":
                found.append(self.function(mark))
            elif mark.kind == "parameter" and not search:
                found.append(self.function(_Mark("function", mark.start, mark.start, "", False)))
            elif mark.kind == "wrap" and _JSON.match(self.text, mark.end):
                found += self.json(mark)
            elif mark.kind == "wrap" and (name := _KEYED.match(self.text, mark.end)):
                found.append(self.keyed(mark, name))
            else:
                self.at += 1
                if found and mark.kind.startswith("/") and blank(self.text, found[-1].end, mark.start):
                    last = found[-1]
                    found[-1] = last._replace(end=mark.end, tags=(*last.tags, (mark.start, mark.end)))
                elif mark.kind == "wrap" or not search:
                    self.pending.append((mark.start, mark.end))
        return found

    def begins(self, at: int) -> bool:
        """Whether the opening mark at `at` begins a call, rather than being spoken of."""
        mark = self.marks[at]
        following = self.marks[at + 1] if at + 1 < len(self.marks) else None
        adjacent = following is not None and blank(self.text, mark.end, following.start)
        before = self.text[max(0, mark.start - 80) : mark.start].rpartition("\n")[2]
        if before.endswith(("`", "'", '"')):
            return False
        if mark.kind == "wrap":
            if following is not None and adjacent and following.kind == "function":
                return self.begins(at + 1)
            return bool(_JSON.match(self.text, mark.end) or _KEYED.match(self.text, mark.end))
        if following is not None and adjacent and following.kind in ("parameter", "/function"):
            return True
        rest = self.text[mark.end : mark.end + 200].partition("\n")[0]
        alone = not before.strip() or self.wrapped(at)
        closed = following is not None and following.kind == "/function"
        return alone and (closed or not rest.strip() or rest.lstrip().startswith("{"))

    def wrapped(self, at: int) -> bool:
        return at > 0 and self.marks[at - 1].kind.endswith(("wrap", "/function")) and blank(
            self.text, self.marks[at - 1].end, self.marks[at].start
        )  # fmt: skip

    def take_pending(self) -> list[CharSpan]:
        tags, self.pending = self.pending, []
        return tags

    def function(self, opener: _Mark) -> Call:
        tags = self.take_pending()
        start = tags[0][0] if tags else opener.start
        if opener.end > opener.start:
            tags.append((opener.start, opener.end))
            self.at += 1
        parameters = self.raw_body(opener.end, tags)
        end = self.body(tags, parameters)
        if end == len(self.text) and self.limit < end:
            tags.append((self.limit, len(self.text.rstrip())))
        return Call(opener.name, start, end, tuple(parameters), tuple(tags), form="function")

    def raw_body(self, start: int, tags: list[CharSpan]) -> list[Parameter]:
        """What stands between the opener and the first parameter: arguments that were stored as plain text."""
        at = self.at
        if (
            at < len(self.marks)
            and self.marks[at].kind == "parameter"
            and blank(self.text, start, self.marks[at].start)
        ):
            return []
        end = self.value_end(start, "", ())
        if (value := _JSON.match(self.text[start:end])) and not value["fence"]:
            (call, *_) = json_calls(self.text[:end], start, end, name="-")
            tags += between(start, end, call.parameters)
            return list(call.parameters)
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
                given = tuple(parameter.name for parameter in parameters)
                value = trim(self.text, mark.end, self.value_end(mark.end, mark.name, given))
                parameters.append(Parameter(mark.name, *value))
                last = self.marks[-1]
                after = self.text[last.end : self.limit]
                if self.at == len(self.marks) - 1 and last.kind == "/parameter" and re.match(r"\s*\n\n\s*\S", after):
                    tags.append((last.start, last.end))  # the call is not closed, and text comes after it
                    self.at += 1
                    return last.end
        return len(self.text)

    def value_end(self, start: int, name: str, given: tuple[str, ...]) -> int:
        """Where the value of `name` that begins at `start` ends; leaves `self.at` on the mark that ends it."""
        calls = quoted = 0  # open in the value: calls whose tags begin lines, parameters
        opener = closer = -1  # marks that end the value where its own closing tag is missing
        at = self.at
        while at < len(self.marks):
            mark = self.marks[at]
            if calls == 0:
                if mark.kind == "/parameter" and self.closes(at):
                    if not quoted or at < self.unclosed:
                        return self.stop(at)
                    quoted, closer = quoted - 1, at
                elif mark.kind == "/parameter":
                    quoted = max(0, quoted - 1)
                elif (mark.kind == "/function" and self.ends_call(at)) or (
                    mark.kind == "function" and mark.leads and not self.nesting
                ):
                    break
                elif mark.kind == "parameter" and mark.leads:
                    quoted += 1
                    if opener < 0 and mark.name != name and mark.name not in given:
                        opener = at
                        if at < self.unclosed:
                            return self.stop(at)
            if mark.leads and self.nesting:
                calls = max(0, calls + (mark.kind == "function") - (mark.kind == "/function"))
            at += 1
        if calls > 0:  # an inner call that never closes: closers are missing, so nothing nests in the rest of the text
            self.nesting = False
            return self.value_end(start, name, given)
        if opener >= 0:
            self.unclosed = at
            return self.stop(opener)
        if closer >= 0:
            return self.stop(closer)
        self.at = at
        return self.marks[at].start if at < len(self.marks) else max(start, self.limit)

    def stop(self, at: int) -> int:
        self.at = at
        return self.marks[at].start

    def closes(self, at: int) -> bool:
        """Whether a `</parameter>` can end a value: what comes next is another parameter, or the end of the call."""
        if at + 1 == len(self.marks):
            rest = self.text[self.marks[at].end : self.limit]
            return not rest.strip() or rest.startswith("\n\n")
        following = self.marks[at + 1]
        if not blank(self.text, self.marks[at].end, following.start) or following.kind == "/parameter":
            return False
        return following.kind != "/function" or self.terminal(at + 1)

    def ends_call(self, at: int) -> bool:
        """Whether a `</function>` ends a call whose last value was not closed."""
        return self.terminal(at) and (self.marks[at].leads or self.borders(at))

    def terminal(self, at: int) -> bool:
        """Whether nothing of the same call can come after a `</function>`."""
        following = self.marks[at + 1] if at + 1 < len(self.marks) else None
        if following is None or following.kind in ("function", "wrap", "/wrap"):
            return True
        return following.kind == "/function" and blank(self.text, self.marks[at].end, following.start)

    def borders(self, at: int) -> bool:
        """Whether only white space lies between this mark and the next call or the end of the text."""
        end = self.marks[at + 1].start if at + 1 < len(self.marks) else self.limit
        return not self.text[self.marks[at].end : end].strip()

    def json(self, wrap: _Mark) -> list[Call]:
        """The calls in `<tool_call>`: one value of JSON, or several one after the other; a fence may be around it."""
        start = (self.take_pending() or [(wrap.start, wrap.end)])[0][0]
        calls: list[Call] = []
        at = wrap.end
        while value := _JSON.match(self.text, at):
            first = value.end("fence") if value["fence"] else at
            after = json_end(self.text, first)
            closer = _FENCE_END.match(self.text, after) if value["fence"] else None
            calls += json_calls(self.text, start, after, first)
            if closer:
                calls[-1] = calls[-1]._replace(end=closer.end(), tags=(*calls[-1].tags, (after, closer.end())))
            start = at = max(calls[-1].end, first + 1)
        self.skip_to(at)
        return calls

    def skip_to(self, position: int) -> None:
        while self.at < len(self.marks) and self.marks[self.at].start < position:
            self.at += 1

    def keyed(self, wrap: _Mark, name: re.Match[str]) -> Call:
        """`<tool_call>NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> …`, as GLM writes it."""
        parameters: list[Parameter] = []
        at = name.end()
        while key := _KEY.match(self.text, at):
            closer = _VALUE_END.search(self.text, key.end())
            end = closer.start() if closer else len(self.text)
            parameters.append(Parameter(key[1].strip(), *trim(self.text, key.end(), end)))
            at = closer.end() if closer else len(self.text)
        self.skip_to(at)
        start = (self.take_pending() or [(wrap.start, wrap.end)])[0][0]
        return Call(name[1], start, at, tuple(parameters), between(start, at, parameters), form="function")


_KEY = re.compile(r"\s*<arg_key>([^<>\n]{0,200})</arg_key>\s*<arg_value>")
_VALUE_END = re.compile(r"</arg_value>(?=\s*(?:<arg_key>|</tool_call>|\Z))")


def _without_partial_closer(text: str) -> int:
    """The length of `text` without a closing tag that was cut off (`</`, `</func` …) at its end."""
    stripped = text.rstrip()
    at = stripped.rfind("</", max(0, len(stripped) - 12))
    cut = at >= 0 and any(tag.startswith(stripped[at:]) and tag != stripped[at:] for tag in _CLOSERS)
    return at if cut else len(text)
