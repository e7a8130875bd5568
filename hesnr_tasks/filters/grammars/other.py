"""Less common languages, with the tokens that matter: strings, comments, here-documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from hesnr_tasks.actions.views import CharSpan
from hesnr_tasks.filters.grammars.clike import (
    BLOCK,
    CHARACTER,
    DOUBLE,
    LINE,
    LINE_END,
    REGEX,
    SINGLE,
    interpolated,
    many_lines,
    raw,
)
from hesnr_tasks.filters.lexing import LOOSE, Lexer, LineIndex, Rule

__all__ = ["OTHER"]

_HASH: Rule = ("comment", r"#[^\r\n]*")
_HASH_WORD: Rule = ("comment", r"#(?<![^\s;{}()]#)[^\r\n]*")  # at the start of a word
_HASH_CLAUSE: Rule = ("comment", r"#(?<![^\s;,{}()]#)[^\r\n]*")
_MANY: Rule = ("string", many_lines('"'))
_HEREDOC_ANY: Rule = ("hole", r"<<-?(?P<q>)(?P<label>[A-Za-z_]\w*)")  # `<<` is no operator there
_HEREDOC: Rule = ("hole", r"<<[-~]?(?P<q>[\"']?)(?P<label>[A-Z_]{2,})(?P=q)")


def _here_document(lines: LineIndex, match: re.Match[str]) -> CharSpan | None:
    start = lines.text.find("\n", match.end()) + 1
    end = lines.find(match["label"], start, LOOSE) if start else -1
    return (start, end) if end >= 0 else None


def _nested(opening: str, closing: str) -> dict[str, list[Rule]]:
    return {"comment": [("push comment", opening), ("pop", closing)]}


_SIGIL = (
    r"""~[a-zA-Z]+(?:\"{3}[\s\S]*?(?:\"{3}|\Z)|'{3}[\s\S]*?(?:'{3}|\Z)|\([^)]*\)?|\[[^\]]*\]?|\{[^}]*\}?|<[^>]*>?"""
    r"""|/[^/\r\n]*/?|\|[^|\r\n]*\|?|"[^"]*"?|'[^']*'?)"""
)
_JULIA = interpolated(
    [("push comment", "#="), _HASH, ("string", raw("`", "`")), CHARACTER], r"\$\(", ('"""', '"""'), ('"', '"')
)


def _perl_quotes() -> Iterator[Rule]:
    """`q{…}`, `qw(…)`, `m|…|`, `s/…/…/`: operators whose text ends at the sign, or the bracket, that begins it."""
    operator = r"(?<![\w$@%&>\-])"
    signs = r"(?P<{0}>[/|!~\#'\"^@%+])(?:(?!(?P={0}))[^\\]|\\[\s\S])*(?:(?P={0})|\Z)"
    for i, (opening, closing) in enumerate(((r"\{", r"\}"), (r"\(", r"\)"), (r"\[", r"\]"), ("<", ">"))):
        plain = rf"[^{opening}{closing}\\]|\\[\s\S]"
        text = rf"{opening}(?:{plain}|{opening}(?:{plain})*(?:{closing}|\Z))*(?:{closing}|\Z)"
        yield "string", rf"{operator}(?:q[qwrx]?|m)\s*{text}"
        yield "string", rf"{operator}(?:s|tr|y)\s*{text}\s*(?:{text}|{signs.format(f'b{i}')})"
    second = r"(?:(?!(?P=two))[^\\]|\\[\s\S])*(?:(?P=two)|\Z)"
    yield "string", operator + r"(?:q[qwrx]?|m)" + signs.format("one")
    yield "string", operator + r"(?:s|tr|y)" + signs.format("two") + second


_PERL_QUOTES = tuple(_perl_quotes())
_PERL_OPERAND = re.compile(r"[\w)\]}\"']\Z")
_PERL_WORD = re.compile(r"(?<![\w$@%&])(?:split|if|unless|while|until|and|or|not|xor|return|grep|when|x|push|join)\Z")


def _begins_perl_pattern(text: str, match: re.Match[str]) -> bool:
    """Whether `/` begins a pattern: where no operand is."""
    before = text[max(0, match.start() - 40) : match.start()].rstrip(" \t\r\n")
    return not _PERL_OPERAND.search(before) or bool(_PERL_WORD.search(before))


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
        Lexer(
            interpolated(
                [("skip", r"\?#"), ("string", _SIGIL), _HASH],
                r"#\{",
                ('"""', '"""'),
                ("'''", "'''"),
                ('"', '"'),
                ("'", "'"),
            )
        ),
    ),
    "erlang": (
        ("%",),
        Lexer({"code": [("skip", r"\$(?:\\.|[\"'%])"), ("comment", r"%[^\r\n]*"), _MANY, ("string", many_lines("'"))]}),
    ),
    "haskell": (
        ("--", "{-"),
        Lexer(
            {
                "code": [
                    ("push comment", r"\{-(?!#)"),
                    ("comment", r"(?<![!#$%&*+./<=>?@\\^|~:-])-{2,}(?![!#$%&*+./<=>?@\\^|~:])[^\r\n]*"),
                    DOUBLE,
                    CHARACTER,
                ],
                **_nested(r"\{-", r"-\}"),
            }
        ),
    ),
    "julia": (("#",), Lexer({**_JULIA, **_nested("#=", "=#")})),
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
            {
                "code": [
                    ("comment", r"^=[a-z]\w*[\s\S]*?(?:^=cut\b[^\r\n]*|\Z)"),
                    ("string", r"^__(?:END|DATA)__\b[\s\S]*"),
                    ("skip", r"\$[#'\"`/&;,.!@$]"),
                    *_PERL_QUOTES,
                    _HASH_CLAUSE,
                    _HEREDOC,
                    ("string", r"[=!]~\s*/(?:[^/\\]|\\[\s\S])*(?:/\w*|\Z)"),
                    REGEX,
                    _MANY,
                    SINGLE,
                ]
            },
            check=_begins_perl_pattern,
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
        Lexer(
            {
                "code": [
                    _HASH,
                    ("string", raw(r"\b[rR]\"\(", r"\)\"")),
                    ("string", r"`[^`\r\n]*`?"),
                    _MANY,
                    ("string", many_lines("'")),
                ]
            }
        ),
    ),
    "terraform": (
        ("#", "//", "/*"),
        Lexer(interpolated([_HASH, LINE, BLOCK, _HEREDOC_ANY], r"[$%]\{", ('"', LINE_END)), hole=_here_document),
    ),
}


def _guarded(marks: tuple[str, ...], lexer: Lexer) -> Callable[[str], list[CharSpan]]:
    return lambda text: lexer.scan(text).comments if any(mark in text for mark in marks) else []


OTHER: dict[str, Callable[[str], list[CharSpan]]] = {name: _guarded(*entry) for name, entry in _LEXERS.items()}
