"""What a call is, and the helpers the parsers of its forms share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hesnr_tasks.actions.views import CharSpan, View, json_decoded

__all__ = ["Call", "CharSpan", "Parameter", "between", "blank", "trim"]


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

    def value(self, text: str, *names: str) -> str | None:
        """The value of the first parameter that has one of `names`, as it stands in `text`."""
        found = (text[p.value_start : p.value_end] for p in self.parameters if p.name in names)
        return next(found, None)

    def shifted(self, by: int) -> Call:
        """The same call in a text that has `by` characters more before it."""
        moved = tuple(p._replace(value_start=p.value_start + by, value_end=p.value_end + by) for p in self.parameters)
        tags, fences = (tuple((a + by, b + by) for a, b in spans) for spans in (self.tags, self.fences))
        return self._replace(start=self.start + by, end=self.end + by, parameters=moved, tags=tags, fences=fences)

    def values(self, text: str) -> dict[str, str]:
        """The values of all parameters, as the tool gets them; the first of two with the same name counts."""
        values: dict[str, str] = {}
        for parameter in self.parameters:
            if parameter.name not in values:
                values[parameter.name] = parameter.view(text).text
        return values


def trim(text: str, start: int, end: int) -> CharSpan:
    """Without one newline at each end."""
    if text.startswith("\r\n", start, end):
        start += 2
    elif text.startswith("\n", start, end):
        start += 1
    if end > start and text[end - 1] == "\n":
        end -= 2 if end - 1 > start and text[end - 2] == "\r" else 1
    return start, end


def blank(text: str, start: int, end: int) -> bool:
    """Whether there is (a little) white space and nothing else from `start` to `end`."""
    return end - start < 200 and not text[start:end].strip()


def between(start: int, end: int, parameters: Sequence[Parameter]) -> tuple[CharSpan, ...]:
    """What of `start` to `end` is not the value of one of `parameters`, which are in order."""
    starts = [start, *(parameter.value_end for parameter in parameters)]
    ends = [*(parameter.value_start for parameter in parameters), end]
    return tuple((a, b) for a, b in zip(starts, ends, strict=True) if a < b)
