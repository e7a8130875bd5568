"""Comments by language: each grammar is a function from the text of a file or fragment to the spans of its comments."""

from __future__ import annotations

from collections.abc import Callable

from hesnr_tasks.filters.grammars import python
from hesnr_tasks.filters.shell import lex_shell
from hesnr_tasks.filters.views import CharSpan

__all__ = ["GRAMMARS", "comments_of"]

Grammar = Callable[[str], list[CharSpan]]


def _shell(text: str) -> list[CharSpan]:
    found = lex_shell(text).comments if "#" in text else []
    return [span for span in found if not (span[0] == 0 and text.startswith("#!"))]


GRAMMARS: dict[str, Grammar] = {"python": python.comments, "shell": _shell}


def comments_of(text: str, language: str) -> list[CharSpan]:
    """Spans of the comments of `text` in `language`; none for a language without a grammar."""
    grammar = GRAMMARS.get(language)
    return grammar(text) if grammar else []
