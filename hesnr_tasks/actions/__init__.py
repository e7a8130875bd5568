"""The calls in a model's text: what a call is, and the one form in which stored calls are written as text.

`grammar` reads calls, in every form models write them; `tools` is the table of tools and programs, `shell` reads shell
commands, `classes` says what an action does.

The canonical form of a stored call is the one SWE-smith's fine-tuning rows have, so that a run stored both ways gives
the same characters::

    THOUGHT

    <function=NAME>
    <parameter=KEY>VALUE</parameter>
    </function>

VALUE is the argument itself when it is a string, else its JSON; for the keys in `_WRAPPED` it has lines of its own.
Parallel calls follow each other on new lines. Reasoning stored apart from the text comes first, between `<think>` tags.
Results depend on this form: a change of it is a new `RENDERING`, which every trajectory carries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

CharSpan = tuple[int, int]


# --- views ------------------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """Decoded text; its character i stands at `offsets[i]` of the original; one more offset is for the end."""

    text: str
    offsets: Sequence[int]

    @classmethod
    def of(cls, text: str, start: int = 0, end: int | None = None) -> View:
        """Characters `start` to `end` of `text` as they are."""
        end = len(text) if end is None else end
        return cls(text[start:end], range(start, end + 1))

    def cut(self, start: int, end: int) -> View:
        """The part from `start` to `end`."""
        return View(self.text[start:end], self.offsets[start : end + 1])

    def back(self, spans: Iterable[CharSpan]) -> Iterator[CharSpan]:
        """Spans of the original, split at newlines: between two lines the original may hold marks of its own."""
        for start, end in spans:
            while start < end:
                stop = self.text.find("\n", start, end)
                stop = end if stop < 0 else stop
                if start < stop:
                    yield self.offsets[start], self.offsets[stop]
                start = stop + 1


def join(views: Sequence[View]) -> View:
    """One view of several pieces, one after the other."""
    offsets = [position for view in views for position in view.offsets[:-1]]
    return View("".join(view.text for view in views), [*offsets, views[-1].offsets[-1] if views else 0])


def unescape(view: View, pattern: re.Pattern[str], decode: Callable[[str], str]) -> View:
    """`view` with each match of `pattern` replaced by `decode` of it, which is one character or none."""
    if not pattern.search(view.text):
        return view
    text: list[str] = []
    offsets: list[int] = []
    position = 0
    for m in pattern.finditer(view.text):
        value = decode(m[0])
        text += [view.text[position : m.start()], value]
        offsets += view.offsets[position : m.start()]
        offsets += view.offsets[m.start() : m.start() + len(value)]
        position = m.end()
    text.append(view.text[position:])
    return View("".join(text), [*offsets, *view.offsets[position:]])


_JSON_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[\s\S])"  # a pair is one character
)
_JSON_VALUES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\b": "\b", "\\f": "\f"}


def json_decoded(view: View) -> View:
    """The inside of a JSON string with its escapes resolved; what is no escape of JSON stands for itself."""
    return unescape(view, _JSON_ESCAPE, _json_character)


def _json_character(escape: str) -> str:
    if len(escape) == 12:
        return chr(0x10000 + ((int(escape[2:6], 16) - 0xD800) << 10) + int(escape[8:], 16) - 0xDC00)
    return chr(int(escape[2:], 16)) if len(escape) == 6 else _JSON_VALUES.get(escape, escape[1:])


# --- calls as they are read -------------------------------------------------------------------------------------------


class Parameter(NamedTuple):
    """The value of one parameter: characters `value_start` to `value_end` of the action's text."""

    name: str
    value_start: int
    value_end: int
    encoded: int = 0  # how many times the value lies inside a JSON string: that often escapes are still in it

    def view(self, text: str) -> View:
        """The value as the tool gets it, each character with its place in `text`."""
        view = View.of(text, self.value_start, self.value_end)
        for _ in range(self.encoded):
            view = json_decoded(view)
        return view


class Call(NamedTuple):
    """One call. One written as a plain command has the name `bash` (or the fence's tag) and the parameter `command`."""

    name: str
    start: int
    end: int
    parameters: tuple[Parameter, ...]
    tags: tuple[CharSpan, ...] = ()  # call syntax: tags with their attributes, the JSON around values
    fences: tuple[CharSpan, ...] = ()  # the lines that open and close a fenced block
    form: str = "text"  # function | json | tag | fence | text

    def values(self, text: str) -> dict[str, str]:
        """The values of all parameters, as the tool gets them; the first of two with the same name counts."""
        values: dict[str, str] = {}
        for parameter in self.parameters:
            values.setdefault(parameter.name, parameter.view(text).text)
        return values

    def shifted(self, by: int) -> Call:
        """The same call in a text that has `by` characters more before it."""
        moved = tuple(p._replace(value_start=p.value_start + by, value_end=p.value_end + by) for p in self.parameters)
        tags, fences = (tuple((a + by, b + by) for a, b in spans) for spans in (self.tags, self.fences))
        return self._replace(start=self.start + by, end=self.end + by, parameters=moved, tags=tags, fences=fences)


# --- calls as they are stored, and their canonical form ---------------------------------------------------------------

RENDERING = "xml-1"
_WRAPPED = ("old_str", "new_str", "file_text")


class ToolCall(NamedTuple):
    """A stored call. `arguments` as text is what the model wrote where that was not valid JSON."""

    name: str
    arguments: Mapping[str, Any] | str


def render_call(call: ToolCall) -> str:
    """`call` in the canonical form."""
    if isinstance(call.arguments, str):
        body = f"{call.arguments}\n" if call.arguments else ""
    else:
        texts = {k: v if isinstance(v, str) else argument_json(v) for k, v in call.arguments.items()}
        lines = {key: f"\n{text}\n" if key in _WRAPPED else text for key, text in texts.items()}
        body = "".join(f"<parameter={key}>{text}</parameter>\n" for key, text in lines.items())
    return f"<function={call.name}>\n{body}</function>"


def argument_json(value: Any) -> str:
    """An argument that is no string, as JSON; arrays as Parquet readers give them are lists, unknown values text."""

    def default(item: Any) -> Any:
        listed = item.tolist() if hasattr(item, "tolist") and hasattr(item, "dtype") else None
        return listed if isinstance(listed, list) else str(item)

    return json.dumps(value, ensure_ascii=False, default=default)
