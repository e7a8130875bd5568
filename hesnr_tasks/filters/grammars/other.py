"""Less common languages, with the tokens that matter: strings, comments, here-documents."""

from __future__ import annotations

import re
from collections.abc import Callable

from hesnr_tasks.filters.grammars.clike import BLOCK, CHARACTER, DOUBLE, LINE, LONG, SINGLE, many_lines, raw
from hesnr_tasks.filters.lexing import LOOSE, Lexer, LineIndex, Rule
from hesnr_tasks.filters.views import CharSpan

__all__ = ["OTHER"]

_HASH: Rule = ("comment", r"#[^\r\n]*")
_HASH_WORD: Rule = ("comment", r"#(?<![^\s;{}()]#)[^\r\n]*")  # at the start of a word
_MANY: Rule = ("string", many_lines('"'))
_HEREDOC: Rule = ("hole", r"<<[-~]?(?P<q>[\"']?)(?P<label>[A-Z_]{2,})(?P=q)")


def _here_document(lines: LineIndex, match: re.Match[str]) -> CharSpan | None:
    start = lines.text.find("\n", match.end()) + 1
    end = lines.find(match["label"], start, LOOSE) if start else -1
    return (start, end) if end >= 0 else None


def _nested(opening: str, closing: str) -> dict[str, list[Rule]]:
    return {"comment": [("push comment", opening), ("pop", closing)]}


_LEXERS: dict[str, tuple[tuple[str, ...], Lexer]] = {  # the marks without which a text is not lexed, and the lexer
    "cmake": (
        ("#",),
        Lexer(
            {
                "code": [
                    ("comment", r"#\[(?P<d>=*)\[[\s\S]*?(?:\](?P=d)\]|\Z)"),
                    _HASH,
                    ("string", raw(r"\[\[", r"\]\]")),
                    _MANY,
                ]
            }
        ),
    ),
    "elixir": (
        ("#",),
        Lexer({"code": [("skip", r"\?#|~[rR]/[^/\r\n]*/?"), _HASH, LONG, _MANY, ("string", many_lines("'"))]}),
    ),
    "erlang": (
        ("%",),
        Lexer({"code": [("skip", r"\$[\"'%]"), ("comment", r"%[^\r\n]*"), _MANY, ("string", many_lines("'"))]}),
    ),
    "haskell": (
        ("--", "{-"),
        Lexer(
            {
                "code": [
                    ("push comment", r"\{-(?!#)"),
                    ("comment", r"-{2,}(?![!#$%&*+./<=>?@\\^|~:])[^\r\n]*"),
                    DOUBLE,
                    CHARACTER,
                ],
                **_nested(r"\{-", r"-\}"),
            }
        ),
    ),
    "julia": (("#",), Lexer({"code": [("push comment", "#="), _HASH, LONG, _MANY, CHARACTER], **_nested("#=", "=#")})),
    "lua": (
        ("--",),
        Lexer(
            {
                "code": [
                    ("comment", r"--\[(?P<d>=*)\[[\s\S]*?(?:\](?P=d)\]|\Z)|--[^\r\n]*"),
                    ("string", r"\[(?P<e>=*)\[[\s\S]*?(?:\](?P=e)\]|\Z)"),
                    DOUBLE,
                    SINGLE,
                ]
            }
        ),
    ),
    "perl": (
        ("#", "\n="),
        Lexer(
            {"code": [("comment", r"^=[a-z]\w*[\s\S]*?(?:^=cut\b[^\r\n]*|\Z)"), _HASH_WORD, _HEREDOC, DOUBLE, SINGLE]},
            hole=_here_document,
        ),
    ),
    "powershell": (
        ("#",),
        Lexer(
            {
                "code": [
                    ("comment", raw("<#", "#>")),
                    _HASH_WORD,
                    ("string", raw('@"', '^"@')),
                    ("string", raw("@'", "^'@")),
                    ("string", r'"[^"`]*(?:`[\s\S][^"`]*)*(?:"|`?\Z)'),
                    ("string", raw("'", "'")),
                ]
            }
        ),
    ),
    "r": (
        ("#",),
        Lexer({"code": [_HASH, ("string", raw(r"\b[rR]\"\(", r"\)\"")), _MANY, ("string", many_lines("'"))]}),
    ),
    "terraform": (("#", "//", "/*"), Lexer({"code": [_HASH, LINE, BLOCK, _HEREDOC, DOUBLE]}, hole=_here_document)),
}


def _guarded(marks: tuple[str, ...], lexer: Lexer) -> Callable[[str], list[CharSpan]]:
    return lambda text: lexer.scan(text).comments if any(mark in text for mark in marks) else []


OTHER: dict[str, Callable[[str], list[CharSpan]]] = {name: _guarded(*entry) for name, entry in _LEXERS.items()}
