"""The grammar of calls in text: where in a message the calls are, and what each says, in every form models write.

`find_calls` and `parse_action` give calls with their parameters as character spans. A form of call is one line of
`CALL_FORMS`: how it is found in a message, and how an action is parsed.

============  ==========================================================================================
form          the action is
============  ==========================================================================================
function      every `<function=…>` or `<invoke …>` block that is a call, to its closing tag or, where that is missing,
              to the end; its values stand in `<parameter=KEY>…</parameter>`, or are JSON
tool_call     every `<tool_call>` block (tags, JSON, or `<arg_key>` and `<arg_value>`), and every call between a model
              family's control strings
keystrokes    Terminus-2's `<commands>` of `<keystrokes>`, and what closes them
execute       every `<execute_bash>`, `<execute_ipython>` and similar tags (CodeAct)
command       the last `<command>…</command>` (SWE-agent `xml_thought_action`)
mswea         every block fenced as, or tagged, `mswea_bash_command` (mini-swe-agent)
json          a JSON object with a command: all of it but the characters of its `thought` (`analysis`, `plan`)
bash          every block fenced as `bash` (SWE-agent `*_bash_code_block`, mini-swe-agent 1)
fence         the last fenced block that is not inside another (SWE-agent `thought_action`)
whole         all of it: one shell command
none          nothing
============  ==========================================================================================

A value is a span of the text and how often JSON has escaped it: `Parameter.view` gives its characters, each with its
place. Text in a call that is in no parameter is a parameter without a name. One newline at each end of a value between
tags belongs to the syntax. Nothing here raises, whatever the text, and time is linear in its length: texts are
untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from hesnr_tasks.actions import Call, CharSpan, Parameter
from hesnr_tasks.actions.json_calls import between, call_json_end, json_calls, json_end, whole_json
from hesnr_tasks.actions.tools import table, tool_runs

Spans = Iterable[CharSpan]


# --- helpers ----------------------------------------------------------------------------------------------------------


def _trim(text: str, start: int, end: int) -> CharSpan:
    """Without one newline at each end."""
    if text.startswith("\r\n", start, end):
        start += 2
    elif text.startswith("\n", start, end):
        start += 1
    if end > start and text[end - 1] == "\n":
        end -= 2 if end - 1 > start and text[end - 2] == "\r" else 1
    return start, end


def _blank(text: str, start: int, end: int) -> bool:
    """Whether there is (a little) white space and nothing else from `start` to `end`."""
    return end - start < 200 and not text[start:end].strip()


_FENCE_END = re.compile(r"\s*```")


# --- tags: `<function=…>` and `<parameter=…>`, `<invoke name="…">`, and what stands in `<tool_call>` ------------------
#
# Values are stored unescaped, so a value may hold the very tags that end it. What decides is which tags follow which:
#
# - `</function>` ends a call iff no closing tag and no parameter comes after it before the next call;
# - `</parameter>` ends a value iff the next tag, with nothing but white space before it, begins another parameter or
#   call or ends this one; tags quoted in the value that begin lines are matched with their own closing tags first;
# - where the closing tag of a value is missing, a `<parameter=…>` that begins a line, or the end of the call, ends it.
#
# A tag begins a call only if what follows it is a call's: a parameter, the closing tag, or, where the tag begins a
# line, the end of that line. So `I'll use <function=bash> to look around.` is prose.

_MARK = re.compile(
    r"""<(?:antml:|｜DSML｜)?(?P<open>function|parameter|invoke)(?:[ ]?=[ ]?["']?|\s+name=["']?|(?=>))
        (?P<name>[^<>\n="']*)(?:["']?(?:\s+[a-z]+=["'][^"'<>\n]*["'])*\s*>|=|\Z|(?=[<\n"']))
    |<(?P<close>/)(?:antml:|｜DSML｜)?(?P<closed>function|parameter|invoke)>
    |<(?P<wrap>/?(?:[a-z]{2,12}:|｜DSML｜|[a-z]{2,12}_)?(?:tool_calls?|tool_use|function_calls?|TOOL_?CALL))>""",
    re.VERBOSE,
)
_CLOSERS = ("</function>", "</parameter>", "</tool_call>", "</invoke>")
_JSON = re.compile(r"""\s*(?P<fence>```(?:json)?\s*)?(?:\[\s*)?\{{1,2}\s*(?:["'}]|\Z)""")
_KEYED = re.compile(r"\s*([\w.:\-]{1,100})\s*(?=<arg_key>|</tool_call>)")


class _Mark(NamedTuple):
    kind: str  # function | parameter | /function | /parameter | wrap | /wrap
    start: int
    end: int
    name: str
    leads: bool  # first on its line


_KINDS = {"function": "function", "invoke": "function", "parameter": "parameter"}


def _marks(text: str, start: int = 0) -> list[_Mark]:
    marks = []
    for m in _MARK.finditer(text, start):
        opened, name, close, closed, wrap = m.groups()
        kind = f"{close or ''}{_KINDS[opened or closed]}" if not wrap else "/wrap" if wrap[0] == "/" else "wrap"
        index = m.start()
        leads = index == 0 or text[index - 1] == "\n"
        marks.append(_Mark(kind, index, m.end(), name.strip() if name else "", leads))
    return marks


_NO_TAG = r"[^<]*(?:<(?!/?[\w:｜]{0,30}(?:function|parameter|invoke|tool_|TOOL))[^<]*)*"
_PLAIN_OPENER = re.compile(r"""\s*(<function=([^<>\n="']*)>)""")
_PLAIN_PART = re.compile(
    rf"""\s{{0,199}}(?:(<parameter=([^<>\n="']*)>)({_NO_TAG})(</parameter>)|(?P<closer></function>))"""
)


def _plain_functions(text: str) -> list[Call]:
    """The calls of a text that is calls without tags in their values, which are most; none for any other text."""
    calls: list[Call] = []
    position = 0
    while opener := _PLAIN_OPENER.match(text, position):
        tags, parameters = [opener.span(1)], []
        part = _PLAIN_PART.match(text, opener.end())
        while part and not part["closer"]:
            tags += (part.span(1), part.span(4))
            parameters.append(Parameter(part[2].strip(), *_trim(text, *part.span(3))))
            part = _PLAIN_PART.match(text, part.end())
        if not part:
            return []
        tags.append(part.span("closer"))
        position = part.end()
        calls.append(Call(opener[2].strip(), tags[0][0], position, tuple(parameters), tuple(tags), form="function"))
    return [] if text[position:].strip() else calls


def _parse_functions(text: str) -> list[Call]:
    """The calls in a text that begins with one (or ends with one after stray text), else none."""
    if calls := _plain_functions(text):
        return calls
    marks = _marks(text)
    if not marks:
        return []
    reader = _FunctionReader(text, marks)
    if marks[0].start == len(text) - len(text.lstrip()):
        return reader.calls() if marks[0].kind == "parameter" or reader.begins(0) else []
    # stray text comes before real calls: some call starts a line and the text ends with a closing tag
    closed = marks[-1].kind in ("/function", "/wrap") and not text[marks[-1].end :].strip()
    leads = any(mark.kind in ("function", "wrap") and mark.leads for mark in marks)
    return reader.calls() if closed and leads else []


class _FunctionReader:
    """Walks the marks once; `self.index` is the next one."""

    def __init__(self, text: str, marks: list[_Mark]) -> None:
        self.text, self.marks, self.index, self.nesting = text, marks, 0, True
        stripped = text.rstrip()  # the text ends before a closing tag that was cut off (`</`, `</func` …)
        cut = stripped.rfind("</", max(0, len(stripped) - 12))
        partial = cut >= 0 and stripped[-1] != ">" and any(tag.startswith(stripped[cut:]) for tag in _CLOSERS)
        self.limit = cut if partial else len(text)
        self.unclosed = 0  # up to this mark, values lack closing tags
        self.pending: list[CharSpan] = []  # tags seen before the call they belong to

    def calls(self, search: bool = False) -> list[Call]:
        """All calls; `search`: marks that are only mentioned are passed over."""
        calls: list[Call] = []
        while self.index < len(self.marks):
            mark = self.marks[self.index]
            if search and mark.kind in ("function", "wrap") and not self.begins(self.index):
                self.index += 1
            elif mark.kind == "function":
                calls.append(self.function(mark))
            elif mark.kind == "parameter" and not search:
                calls.append(self.function(_Mark("function", mark.start, mark.start, "", False)))
            elif mark.kind == "wrap" and _JSON.match(self.text, mark.end):
                calls += self.json(mark)
            elif mark.kind == "wrap" and (name := _KEYED.match(self.text, mark.end)):
                calls.append(self.keyed(mark, name))
            else:
                self.index += 1
                if calls and mark.kind.startswith("/") and _blank(self.text, calls[-1].end, mark.start):
                    last = calls[-1]
                    calls[-1] = last._replace(end=mark.end, tags=(*last.tags, (mark.start, mark.end)))
                elif mark.kind == "wrap" or not search:
                    self.pending.append((mark.start, mark.end))
        return calls

    def follower(self, index: int) -> tuple[str, bool]:
        """The kind of the next mark (empty behind the last), and whether only white space lies before it."""
        if index + 1 >= len(self.marks):
            return "", False
        following = self.marks[index + 1]
        return following.kind, _blank(self.text, self.marks[index].end, following.start)

    def begins(self, index: int) -> bool:
        """Whether the opening mark at `index` begins a call, rather than being mentioned."""
        mark, (kind, adjacent) = self.marks[index], self.follower(index)
        if self.text[max(0, mark.start - 1) : mark.start] in ("`", "'", '"'):
            return False
        if mark.kind == "wrap":
            if adjacent and kind == "function":
                return self.begins(index + 1)
            return bool(_JSON.match(self.text, mark.end) or _KEYED.match(self.text, mark.end))
        if adjacent and kind in ("parameter", "/function"):
            return True
        before = self.text[max(0, mark.start - 80) : mark.start].rpartition("\n")[2]
        rest = self.text[mark.end : mark.end + 200].partition("\n")[0]
        wrapped = index > 0 and self.marks[index - 1].kind.endswith(("wrap", "/function"))
        alone = not before.strip() or (wrapped and self.follower(index - 1)[1])
        return alone and (kind == "/function" or not rest.strip() or rest.lstrip().startswith("{"))

    def start(self, opener: _Mark) -> int:
        """Where the call that `opener` begins starts: with the tags before it that are its own."""
        pending, self.pending = self.pending, []
        return pending[0][0] if pending else opener.start

    def function(self, opener: _Mark) -> Call:
        text, marks, tags = self.text, self.marks, self.pending
        start = self.start(opener)
        if opener.end > opener.start:
            tags.append((opener.start, opener.end))
            self.index += 1
        parameters = self.raw_body(opener.end, tags)
        end = len(text)
        while self.index < len(marks):  # read parameters up to the end of the call
            mark = marks[self.index]
            if mark.kind in ("function", "wrap", "/wrap"):
                ends = [tag[1] for tag in tags[-1:]] + [p.value_end for p in parameters[-1:]]
                end = max(ends, default=mark.start)
                break
            self.index += 1
            tags.append((mark.start, mark.end))
            if mark.kind == "/function":
                end = mark.end
                break
            if mark.kind == "parameter":
                given = tuple(parameter.name for parameter in parameters)
                value = _trim(text, mark.end, self.value_end(mark.end, mark.name, given))
                parameters.append(Parameter(mark.name, *value))
                last = marks[-1]
                after = text[last.end : self.limit]
                if self.index == len(marks) - 1 and last.kind == "/parameter" and re.match(r"\s*\n\n\s*\S", after):
                    tags.append((last.start, last.end))  # the call is not closed, and text comes after it
                    self.index += 1
                    end = last.end
                    break
        if end == len(text) and self.limit < end:
            tags.append((self.limit, len(text.rstrip())))
        return Call(opener.name, start, end, tuple(parameters), tuple(tags), form="function")

    def raw_body(self, start: int, tags: list[CharSpan]) -> list[Parameter]:
        """What stands between the opener and the first parameter: arguments that were stored as plain text."""
        mark = self.marks[self.index] if self.index < len(self.marks) else None
        if mark and mark.kind == "parameter" and _blank(self.text, start, mark.start):
            return []
        end = self.value_end(start, "", ())
        if (value := _JSON.match(self.text[start:end])) and not value["fence"]:
            (call, *_) = json_calls(self.text[:end], start, end, name="-")
            tags += between(start, end, call.parameters)
            return list(call.parameters)
        return [Parameter("", *_trim(self.text, start, end))] if self.text[start:end].strip() else []

    def value_end(self, start: int, name: str, given: tuple[str, ...]) -> int:
        """Where the value of `name` that begins at `start` ends; leaves `self.index` on the mark that ends it."""
        calls = quoted = 0  # open in the value: calls whose tags begin lines, parameters
        opener = closer = -1  # marks that end the value where its own closing tag is missing
        index = self.index
        while index < len(self.marks):
            mark = self.marks[index]
            if calls == 0:
                if mark.kind == "/parameter" and self.closes(index):
                    if not quoted or index < self.unclosed:
                        return self.stop(index)
                    quoted, closer = quoted - 1, index
                elif mark.kind == "/parameter":
                    quoted = max(0, quoted - 1)
                elif mark.kind == "/function" and self.is_last(index):  # it ends a call whose last value was not closed
                    end = self.marks[index + 1].start if index + 1 < len(self.marks) else self.limit
                    if mark.leads or not self.text[mark.end : end].strip():
                        break
                elif mark.kind == "function" and mark.leads and not self.nesting:
                    break
                elif mark.kind == "parameter" and mark.leads:
                    quoted += 1
                    if opener < 0 and mark.name != name and mark.name not in given:
                        opener = index
                        if index < self.unclosed:
                            return self.stop(index)
            if mark.leads and self.nesting:
                calls = max(0, calls + (mark.kind == "function") - (mark.kind == "/function"))
            index += 1
        if calls > 0:  # an inner call that never closes: closers are missing, so nothing nests in the rest of the text
            self.nesting = False
            return self.value_end(start, name, given)
        if opener >= 0:
            self.unclosed = index
            return self.stop(opener)
        if closer >= 0:
            return self.stop(closer)
        self.index = index
        return self.marks[index].start if index < len(self.marks) else max(start, self.limit)

    def stop(self, index: int) -> int:
        self.index = index
        return self.marks[index].start

    def closes(self, index: int) -> bool:
        """Whether a `</parameter>` can end a value: what comes next is another parameter, or the end of the call."""
        kind, adjacent = self.follower(index)
        if not kind:
            rest = self.text[self.marks[index].end : self.limit]
            return not rest.strip() or rest.startswith("\n\n")
        return adjacent and kind != "/parameter" and (kind != "/function" or self.is_last(index + 1))

    def is_last(self, index: int) -> bool:
        """Whether nothing of the same call can come after a `</function>`."""
        kind, adjacent = self.follower(index)
        return kind in ("", "function", "wrap", "/wrap") or (kind == "/function" and adjacent)

    def json(self, wrap: _Mark) -> list[Call]:
        """The calls in `<tool_call>`: one value of JSON, or several one after the other; a fence may be around it."""
        start = self.start(wrap)
        calls: list[Call] = []
        index = wrap.end
        while value := _JSON.match(self.text, index):
            first = value.end("fence") if value["fence"] else index
            after = json_end(self.text, first)
            closer = _FENCE_END.match(self.text, after) if value["fence"] else None
            calls += json_calls(self.text, start, after, first)
            if closer:
                calls[-1] = calls[-1]._replace(end=closer.end(), tags=(*calls[-1].tags, (after, closer.end())))
            start = index = max(calls[-1].end, first + 1)
        self.skip_to(index)
        return calls

    def skip_to(self, position: int) -> None:
        while self.index < len(self.marks) and self.marks[self.index].start < position:
            self.index += 1

    def keyed(self, wrap: _Mark, name: re.Match[str]) -> Call:
        """`<tool_call>NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> …`, as GLM writes it."""
        parameters: list[Parameter] = []
        index = name.end()
        while key := _KEY.match(self.text, index):
            closer = _VALUE_END.search(self.text, key.end())
            end, index = closer.span() if closer else (len(self.text), len(self.text))
            parameters.append(Parameter(key[1].strip(), *_trim(self.text, key.end(), end)))
        self.skip_to(index)
        start = self.start(wrap)
        return Call(name[1], start, index, tuple(parameters), between(start, index, parameters), form="function")


_KEY = re.compile(r"\s*<arg_key>([^<>\n]{0,200})</arg_key>\s*<arg_value>")
_VALUE_END = re.compile(r"</arg_value>(?=\s*(?:<arg_key>|</tool_call>|\Z))")


# --- control strings of model families around a name and JSON ---------------------------------------------------------
#
# Kimi (`<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}`), DeepSeek (`<｜tool▁call▁begin｜>…`),
# gpt-oss (`<|channel|>commentary to=functions.NAME …<|message|>{…}<|call|>`), Mistral (`[TOOL_CALLS] [{…}]`,
# `[TOOL_CALLS]NAME{…}`), Llama (`<|python_tag|>{…}`), and those of Phi and Granite (`<|tool_call|>`), Command
# (`<|START_ACTION|>`), InternLM (`<|action_start|>`) and Apertus (`<|tools_prefix|>`). For a tool that runs Python the
# code may stand there as it is, without JSON.

_MARKED = re.compile(
    r"""(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?P<kimi>[^<>\s]{0,200})\s*<\|tool_call_argument_begin\|>\s*
    |(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>\s*(?:function<｜tool▁sep｜>)?(?P<deepseek>[^<>\s]{1,200}?)
        (?:<｜tool▁sep｜>\s*|\s*(?=```))(?:```(?:json)?\s*)?
    |(?:<\|start\|>assistant)?<\|channel\|>\w+[ ]to=(?P<harmony>[^<>\s]{1,200})[^\n{]{0,100}?<\|message\|>\s*
    |(?:<\|start\|>assistant[ ]to=)(?P<harmony2>[^<>\s]{1,200})<\|channel\|>[^\n{]{0,100}?<\|message\|>\s*
    |\[TOOL_CALLS\]\s*(?P<mistral>[\w.\-]{0,200})\s*(?:\[CALL_ID\]\w{1,40}\s*)?(?:\[ARGS\]\s*)?
    |<\|(?:(?P<python>python)_tag|tool_call|START_ACTION|action_start\|>\s*<\|plugin|tools_prefix)\|>\s*""",
    re.VERBOSE,
)
_MARKED_END = re.compile(
    r"\s*(?:```\s*)?(?:<\|tool_call_end\|>|<｜tool▁call▁end｜>|<\|(?:call|eom_id|eot_id|/tool_call|END_ACTION|action_end|tools_suffix)\|>)?"
    r"(?:\s*(?:<\|tool_calls_section_end\|>|<｜tool▁calls▁end｜>))?"
)
_CODE_END = re.compile(r"<\|(?:call|end|eom_id|eot_id|return)\|>|\Z")


def _parse_marked(text: str) -> list[Call]:
    """The calls of a text that begins with such a string, else none."""
    opener = _MARKED.match(text, len(text) - len(text.lstrip()))
    return _find_marked(text) if opener else []


def _find_marked(text: str, start: int = 0) -> list[Call]:
    """The calls in a whole message."""
    result: list[Call] = []
    position = start
    while opener := _MARKED.search(text, position):
        position = opener.end()
        label = next((name for name in opener.groups() if name), "")
        name = re.sub(r":\d+\Z", "", label).removeprefix("functions.")
        if not text.startswith(("{", "["), position):
            closer = _CODE_END.search(text, position) if tool_runs(name) == "python" else None
            if closer and closer.start() > position:
                value, position = Parameter("code", *_trim(text, position, closer.start())), closer.end()
                tags = between(opener.start(), position, (value,))
                result.append(Call(name, opener.start(), position, (value,), tags, form="function"))
            continue
        name = "" if opener["python"] else name
        after = json_end(text, position)
        closer = _MARKED_END.match(text, after)
        end = closer.end() if closer and closer[0].strip() else after
        calls = json_calls(text, opener.start(), after, position, name=name)
        last = calls[-1]
        calls[-1] = last._replace(end=end, tags=(*last.tags, (after, end)) if end > after else last.tags)
        result += calls
        position = max(end, position)
    return result


# --- commands between one pair of tags, in fenced blocks, or bare -----------------------------------------------------

_TAGS = table(
    bash="command mswea_bash_command execute_bash bash",
    python="execute_ipython execute_ipython_cell",
    browse="execute_browse",
    finish="finish",
)
_TAG = re.compile(rf"<({'|'.join(sorted(_TAGS, key=len, reverse=True))})>")


def _parse_tagged(text: str) -> list[Call]:
    """The command between the tags that the text begins with, if it does."""
    opener = _TAG.match(text, len(text) - len(text.lstrip()))
    if not opener:
        return []
    closer = text.rfind(f"</{opener[1]}>", opener.end())
    close = (closer, closer + len(opener[1]) + 3) if closer >= 0 else (len(text), len(text))
    tags = (opener.span(), close) if closer >= 0 else (opener.span(),)
    value = Parameter("command", *_trim(text, opener.end(), close[0]))
    return [Call(_TAGS[opener[1]], opener.start(), close[1], (value,), tags, form="tag")]


_KEYS = re.compile(r"<keystrokes\b[^<>\n]*>")
_KEYS_END = re.compile(r"</keystrokes>(?=\s*(?:<keystrokes\b|</commands>|\Z))")
_AROUND_KEYS = re.compile(r"</?(?:response|analysis|plan|commands|task_complete)>")


def _parse_keystrokes(text: str) -> list[Call]:
    """Terminus-2's XML: each `<keystrokes>` in the `<commands>` that the text begins with (or has after its plan)."""
    if not (_AROUND_KEYS.match(text.lstrip()) or _KEYS.match(text.lstrip())):
        return []
    calls: list[Call] = []
    position = 0
    while opener := _KEYS.search(text, position):
        tags: list[CharSpan] = [m.span() for m in _AROUND_KEYS.finditer(text, position, opener.start())]
        closer = _KEYS_END.search(text, opener.end())
        end, after = closer.span() if closer else (len(text), len(text))
        tags += [opener.span(), (end, after)] if closer else [opener.span()]
        value = Parameter("keystrokes", *_trim(text, opener.end(), end))
        calls.append(Call("bash", tags[0][0], after, (value,), tuple(tags), form="tag"))
        position = after
    rest = tuple(m.span() for m in _AROUND_KEYS.finditer(text, position))
    if not calls:
        return [Call("", rest[0][0], rest[-1][1], (), rest, form="tag")] if "<commands>" in text else []
    if rest:
        calls[-1] = calls[-1]._replace(end=rest[-1][1], tags=(*calls[-1].tags, *rest))
    return calls


_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$", re.MULTILINE)


def _parse_fenced(text: str) -> list[Call]:
    """The fenced blocks of a text that begins with one (or ends with one after stray text), else none."""
    fences = list(_FENCE.finditer(text))
    ends = len(fences) > 1 and not fences[-1][2] and not text[fences[-1].end() :].strip()
    if not fences or not (ends or text.lstrip().startswith(("```", "~~~"))):
        return []
    blocks = _blocks(fences)
    if any(not _blank(text, a[1].end() if a[1] else len(text), b[0].start()) for a, b in pairwise(blocks)):
        blocks = [(blocks[0][0], fences[-1])]  # fences inside the command: one block from the first to the last
    return [call for opener, closer in blocks for call in _fence_calls(text, opener, closer)]


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


def _fence_calls(text: str, opener: re.Match[str], closer: re.Match[str] | None) -> list[Call]:
    tag = opener[2].strip("{}.").lower()
    name = "bash" if not tag or tool_runs(tag) == "shell" else tag
    end, after = closer.span() if closer else (len(text), len(text))
    fences = (opener.span(), closer.span()) if closer else (opener.span(),)
    if tag in ("", "json", "xml", "tool_call"):
        block = text[opener.end() : end]
        calls = _parse_functions(block) or _parse_marked(block) or whole_json(block)
        if inner := [call.shifted(opener.end()) for call in calls]:
            inner[0] = inner[0]._replace(start=opener.start(), fences=fences[:1])
            if closer:
                inner[-1] = inner[-1]._replace(end=after, fences=(*inner[-1].fences, closer.span()))
            return inner
    value = Parameter("command", *_trim(text, opener.end(), end))
    return [Call(name, opener.start(), after, (value,), fences=fences, form="fence")]


def _parse_whole(text: str) -> list[Call]:
    return [Call("bash", 0, len(text), (Parameter("command", *_trim(text, 0, len(text))),))]


# --- where in a message the calls are ---------------------------------------------------------------------------------

_FUNCTION = re.compile(r"<(?:antml:|｜DSML｜)?(?:function|invoke)")
_TOOL_CALL = re.compile(
    r"<(?:[a-z]{2,12}[:_]|｜DSML｜)?(?:tool_call|tool_use|function_call|invoke|TOOL_?CALL)|<｜tool▁call|\[TOOL_CALLS\]"
    r"|<\|(?:tool_call|channel|start|python_tag|START_ACTION|action_start|tools_prefix)"
)
_COMMANDS = re.compile(r"(<commands>)\s*(?:<keystrokes\b|</commands>)")
_COMMANDS_END = re.compile(r"</commands>(?:\s*<task_complete>[^<>]{0,20}</task_complete>)?(?:\s*</response>)?")
_EXECUTE = re.compile(r"^[ \t]*<(execute_(?:bash|ipython|ipython_cell|browse))>", re.MULTILINE)
_MSWEA = re.compile("<(mswea_bash_command)>")
_LINE_FENCE = re.compile(r"^```(\S*)\s*\n|^```\s*$", re.MULTILINE)
_OBJECT = re.compile(r"^(```(?:json)?[ \t]*\n\s*|[ \t]*)(?=\{\s*\")", re.MULTILINE)
_ASKS = re.compile(r'"(?:command|arguments"|parameters"|action_input")')
_THOUGHT_STRING = re.compile(r'"(?:thought|analysis|plan)"\s{0,20}:\s{0,20}"((?:[^"\\]|\\.)*)"', re.DOTALL)


def _calls_after(opening: re.Pattern[str]) -> Callable[[str], Spans]:
    """The spans of `find_calls` in a text with an `opening`."""

    def find(text: str) -> Spans:
        first = opening.search(text)
        if not first:
            return ()
        # behind `</think>` when reasoning before it (opening tag or not) quotes a call
        close, start = text.find("</think>"), 0
        if first.start() < close and (text.find("<think>", 0, first.start()) >= 0 or opening.search(text, close)):
            start = close
        return ((call.start, call.end) for call in find_calls(text, start))

    return find


def _find_keystrokes(text: str) -> Spans:
    if opening := _COMMANDS.search(text):
        closing = _COMMANDS_END.search(text, opening.end(1))
        yield opening.start(), closing.end() if closing else len(text)


def _find_tagged(opening: re.Pattern[str], *, may_be_open: bool) -> Callable[[str], Spans]:
    """Every tag that `opening` matches, to its closing tag or, where it `may_be_open`, to the end."""

    def find(text: str) -> Spans:
        position = 0
        while match := opening.search(text, position):
            closing = text.find(f"</{match[1]}>", match.end())
            if closing < 0 and not may_be_open:
                return
            position = closing + len(match[1]) + 3 if closing >= 0 else len(text)
            yield match.start(), position

    return find


def _find_command(text: str) -> Spans:
    start, end = text.rfind("<command>"), text.rfind("</command>")
    if 0 <= start < end:
        yield start, end + len("</command>")


def _find_last_fence(text: str) -> Spans:
    last: CharSpan | None = None
    opened: list[int] = []
    for match in _LINE_FENCE.finditer(text):
        if opened and not match[1]:
            start = opened.pop()
            last = last if opened else (start, match.end())
        elif match[1] is not None:
            opened.append(match.start())
    return [last] if last else []


def _fences_of(opening: str) -> Callable[[str], Spans]:
    """Blocks of `opening`, spaces, newline, anything, newline, three back ticks: the first such close counts."""

    def find(text: str) -> Spans:
        position = 0
        while (start := text.find(opening, position)) >= 0:
            position = start + len(opening)
            newline = text.find("\n", position)
            end = text.find("\n```", newline + 1)
            if newline < 0 or end < 0:
                return
            if not text[position:newline].strip():
                position = end + len("\n```")
                yield start, position

    return find


def _find_mswea(text: str) -> Spans:
    return list(_fences_of("```mswea_bash_command")(text)) or _find_tagged(_MSWEA, may_be_open=False)(text)


def _find_json(text: str) -> Spans:
    """A text that is a JSON object with a command, or has it after (and before) other text, fenced or not."""
    opening = _OBJECT.search(text)
    if not opening or not _ASKS.search(text):
        return
    start, closing = opening.start(), call_json_end(text, opening.end(1))
    if closing is None:
        return
    fence = _FENCE_END.match(text, closing) if opening[1] else None
    end = fence.end() if fence else closing
    for match in _THOUGHT_STRING.finditer(text, start, end):
        yield start, match.start(1)
        start = match.end(1)
    yield start, end


class CallForm(NamedTuple):
    """One way of writing calls: `find` gives their spans in a message, `parse` the calls of an action (or none)."""

    name: str
    find: Callable[[str], Spans]
    parse: Callable[[str], list[Call]]


CALL_FORMS = {
    form.name: form
    for form in (  # actions are parsed by the first form that is theirs
        CallForm("function", _calls_after(_FUNCTION), _parse_functions),
        CallForm("tool_call", _calls_after(_TOOL_CALL), _parse_marked),
        CallForm("keystrokes", _find_keystrokes, _parse_keystrokes),
        CallForm("execute", _find_tagged(_EXECUTE, may_be_open=True), _parse_tagged),
        CallForm("command", _find_command, _parse_tagged),
        CallForm("mswea", _find_mswea, _parse_tagged),
        CallForm("json", _find_json, whole_json),
        CallForm("bash", _fences_of("```bash"), _parse_fenced),
        CallForm("fence", _find_last_fence, _parse_fenced),
        CallForm("whole", lambda text: [(0, len(text))] if text else [], _parse_whole),
        CallForm("none", lambda text: [], lambda text: []),
    )
}
_PARSERS = tuple(dict.fromkeys(form.parse for form in CALL_FORMS.values()))
GUESSED = ("function", "tool_call", "mswea", "json", "keystrokes", "execute", "command", "fence")


# --- the door ---------------------------------------------------------------------------------------------------------


def guess_form(texts: Iterable[str], forms: Sequence[str] = GUESSED) -> str:
    """The form that most assistant texts of a trajectory have calls in (one may merely quote a call).

    Args:
        texts: one an assistant message.
        forms: keys of `CALL_FORMS`; the first wins a draw.

    Returns:
        One of `forms`; `none` where no text has a call.
    """
    texts = [text for text in texts if text.strip()]
    counts = {form: sum(any(True for _ in CALL_FORMS[form].find(text)) for text in texts) for form in forms}
    best = max(forms, key=lambda form: counts[form])
    return best if counts[best] else "none"


def find_calls(text: str, start: int = 0) -> list[Call]:
    """The calls between tags, or control strings, in a whole message from `start` on; those only mentioned are text."""
    marks = list(_marks(text, start))
    return (_FunctionReader(text, marks).calls(search=True) if marks else []) or _find_marked(text, start)


def parse_action(text: str) -> list[Call]:
    """The calls in `text`, in order; spans lie in `text`, tags and values do not overlap. Never raises."""
    return list(_parse(text))


@lru_cache(maxsize=256)  # every filter asks for the calls of an action, and render=native for all of a trajectory
def _parse(text: str) -> tuple[Call, ...]:
    if not text.strip():
        return ()
    calls = next(calls for parse in _PARSERS if (calls := parse(text)))
    if calls[0].form != "text" and (turn_end := _TURN_END.match(text, calls[-1].end)):
        calls[-1] = calls[-1]._replace(tags=(*calls[-1].tags, turn_end.span()))
    return tuple(calls)


_TURN_END = re.compile(r"\s*(?:<\|\w{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|</s>)\s*\Z")
