"""A piece of an action's text as the program that reads it sees it, with the way back to the action's characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["CharSpan", "View", "join", "json_decoded", "unescape"]

CharSpan = tuple[int, int]


@dataclass(frozen=True, slots=True)
class View:
    """Decoded text; its character i stands at `at[i]` of the original, and `at` has one entry more, for the end."""

    text: str
    at: Sequence[int]

    @classmethod
    def of(cls, text: str, start: int = 0, end: int | None = None) -> View:
        """Characters `start` to `end` of `text` as they are."""
        end = len(text) if end is None else end
        return cls(text[start:end], range(start, end + 1))

    def cut(self, start: int, end: int) -> View:
        """The part from `start` to `end`."""
        return View(self.text[start:end], self.at[start : end + 1])

    def back(self, spans: Iterable[CharSpan]) -> Iterator[CharSpan]:
        """Spans of the original, split at newlines: between two lines the original may hold marks of its own."""
        for start, end in spans:
            while start < end:
                stop = self.text.find("\n", start, end)
                stop = end if stop < 0 else stop
                if start < stop:
                    yield self.at[start], self.at[stop]
                start = stop + 1


def join(views: Sequence[View]) -> View:
    """One view of several pieces, one after the other."""
    at = [position for view in views for position in view.at[:-1]]
    return View("".join(view.text for view in views), [*at, views[-1].at[-1] if views else 0])


def unescape(view: View, pattern: re.Pattern[str], decode: Callable[[str], str]) -> View:
    """`view` with each match of `pattern` replaced by `decode` of it, which is one character or none."""
    if not pattern.search(view.text):
        return view
    text: list[str] = []
    at: list[int] = []
    position = 0
    for m in pattern.finditer(view.text):
        value = decode(m[0])
        text += [view.text[position : m.start()], value]
        at += view.at[position : m.start()]
        at += view.at[m.start() : m.start() + len(value)]
        position = m.end()
    text.append(view.text[position:])
    return View("".join(text), [*at, *view.at[position:]])


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
