"""Languages without a grammar of our own: the comment tokens of Pygments' lexers (nothing is downloaded)."""

from __future__ import annotations

from functools import cache
from typing import Any

from pygments.lexers import get_lexer_by_name
from pygments.token import Comment

from hesnr_tasks.filters.views import CharSpan

__all__ = ["MARKS", "comments"]

MARKS = {  # what a comment begins with: a text without it is not lexed
    "cmake": ("#",),
    "elixir": ("#",),
    "erlang": ("%",),
    "haskell": ("--", "{-"),
    "julia": ("#",),
    "lua": ("--",),
    "perl": ("#",),
    "powershell": ("#",),
    "r": ("#",),
    "terraform": ("#", "//", "/*"),
}
_CODE = (Comment.Hashbang, Comment.Preproc, Comment.PreprocFile, Comment.Special)


@cache
def _lexer(language: str) -> Any:
    return get_lexer_by_name(language, stripnl=False, ensurenl=False)


def comments(text: str, language: str) -> list[CharSpan]:
    """Spans of the comments of `text` in one of the languages of `MARKS`."""
    if not any(mark in text for mark in MARKS[language]):
        return []
    return [
        (at, at + len(value.rstrip("\r\n")))
        for at, kind, value in _lexer(language).get_tokens_unprocessed(text)
        if kind in Comment and not any(kind in code for code in _CODE)
    ]
