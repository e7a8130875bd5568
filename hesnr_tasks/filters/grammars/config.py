"""Configuration and data languages: YAML, TOML, INI, SQL, HTML, requirements files, Dockerfile, make."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from hesnr_tasks.actions.views import CharSpan
from hesnr_tasks.filters.grammars.clike import CLIKE, one_line
from hesnr_tasks.filters.lexing import Lexer, LineIndex
from hesnr_tasks.filters.shell import lex_shell

__all__ = ["CONFIG"]

Grammar = Callable[[str], list[CharSpan]]

# --- YAML -----------------------------------------------------------------------------------------------------------


_BEFORE = re.compile(r"(?:.*?:(?=[ \t]|\Z))?[ \t]*(?:[-?][ \t]+)*(?:[!&][^ \t]*[ \t]*)*")  # the value on a line


def _starts_value(text: str, match: re.Match[str]) -> bool:
    """Whether a value begins here, also inside `[…]` and `{…}`; elsewhere a quote is part of a plain value."""
    start = max(0, match.start() - 300)
    before = text[max(text.rfind("\n", start, match.start()) + 1, start) : match.start()]
    value = _BEFORE.sub("", before, count=1)
    return not value or (value[0] in "[{'\"" and value.rstrip()[-1:] in ("[", "{", ",", ":"))


def _block(lines: LineIndex, match: re.Match[str]) -> CharSpan | None:
    """The lines of a block scalar: those indented more than the key or dash it belongs to."""
    text = lines.text
    line = text.rfind("\n", 0, match.start()) + 1
    prefix = re.compile(r" *(?:- +)*").match(text, line, match.start())
    width = prefix.end() - line if prefix else 0
    if prefix and not text[prefix.end() : match.start()].strip():  # `- |`: the dash is what counts
        width = text.rfind("-", line, prefix.end()) - line if "-" in prefix[0] else -1
    start = text.find("\n", match.end()) + 1
    end = next((m.start() for m in _LINE.finditer(text, start) if len(m[1]) <= width), len(text)) if start else 0
    return (start, end) if start else None


_LINE = re.compile(r"^( *)(?![ \r\n])", re.MULTILINE)
_YAML = Lexer(
    {
        "code": [
            ("comment", r"#(?<![^\s]#)[^\r\n]*"),
            ("hole", r"[|>](?<=\s.)[+-]?\d?[+-]?(?=[ \t]*(?:\s#[^\r\n]*)?\r?$)"),
            ("maybe string_d", '"'),
            ("maybe string_s", "'"),
        ],
        "string_d": [("skip", r"\\[\s\S]"), ("pop", '"')],
        "string_s": [("pop", "'")],
    },
    check=_starts_value,
    hole=_block,
)

# --- lines and strings ----------------------------------------------------------------------------------------------

_LONG = [("string", r'"""[\s\S]*?(?:"""|\Z)'), ("string", r"'''[\s\S]*?(?:'''|\Z)")]
_TOML = Lexer({"code": [("comment", r"#[^\r\n]*"), *_LONG, ("string", one_line('"')), ("string", r"'[^'\r\n]*'?")]})
_INI = Lexer({"code": [("comment", r"^[ \t]*[#;][^\r\n]*")]})
_REQUIREMENTS = Lexer({"code": [("comment", r"#(?<![^\s]#)[^\r\n]*")]})
_SQL = Lexer(
    {
        "code": [
            ("comment", r"--[^\r\n]*|^[ \t]*#[^\r\n]*"),
            ("comment", r"/\*[\s\S]*?(?:\*/|\Z)"),
            ("string", r"'[^']*(?:'|\Z)"),
            ("string", r'"[^"\r\n]*"?'),
            ("string", r"`[^`\r\n]*`?"),
        ]
    }
)
_MARKUP = Lexer(
    {
        "code": [
            ("comment", r"<!--[\s\S]*?(?:-->|\Z)|<%--[\s\S]*?(?:--%>|\Z)|<%#[\s\S]*?(?:%>|\Z)"),
            ("comment", r"\{#[^}{]*#\}"),
            ("string", r"<!\[CDATA\[[\s\S]*?(?:\]\]>|\Z)"),
        ]
    }
)
_SECTION = re.compile(r"<(script|style)\b([^>]*)>([\s\S]*?)(?:</\1|\Z)", re.IGNORECASE)


def _html(text: str) -> list[CharSpan]:
    """Comments of the markup and those of its scripts and styles."""
    found: list[CharSpan] = []
    position = 0
    for m in _SECTION.finditer(text):
        found += _MARKUP.scan(text, position=position, end=m.start()).comments
        position = m.end()
        language = "scss" if m[1].lower() == "style" else "javascript"
        if "json" not in m[2] and "template" not in m[2]:
            found += [(a + m.start(3), b + m.start(3)) for a, b in CLIKE[language](m[3])]
    return found + _MARKUP.scan(text, position=position).comments


# --- files with shell in them ---------------------------------------------------------------------------------------

_RUN = re.compile(r"^[ \t]*(?:ONBUILD[ \t]+)?(?:RUN|CMD|ENTRYPOINT)\b[ \t]*(?!\[)", re.MULTILINE | re.IGNORECASE)
_CONTINUED = re.compile(r"(?:[^\n]*\\[ \t]*\r?\n|[ \t]*#[^\n]*\n|[ \t]*\r?\n(?=[ \t]+\S))*[^\n]*")


def _dockerfile(text: str) -> list[CharSpan]:
    """Lines that begin with `#`, and the shell's comments in commands."""
    found = [m.span(1) for m in re.finditer(r"^[ \t]*(#[^\r\n]*)", text, re.MULTILINE)]
    position = 0
    while instruction := _RUN.search(text, position):
        body = _CONTINUED.match(text, instruction.end())
        position = max(body.end() if body else 0, instruction.end())
        found += _shell_in(text, instruction.end(), position)
    return found


def _shell_in(text: str, start: int, end: int) -> Iterator[CharSpan]:
    return ((a + start, b + start) for a, b in lex_shell(text[start:end]).comments)


_RECIPE = re.compile(r"^\t[ \t]*[@+-]*((?:[^\n]*\\\r?\n)*[^\n]*)", re.MULTILINE)
_MAKE_COMMENT = re.compile(r"(?<!\\)#[^\\\n]*(?:\\(?:\r?\n)?[^\\\n]*)*")


def _make(text: str) -> list[CharSpan]:
    """In recipes the shell's comments; elsewhere `#` wherever it stands, except escaped or in `$(…)`."""
    found: list[CharSpan] = []
    position = 0
    for recipe in [*_RECIPE.finditer(text), None]:
        end = recipe.start() if recipe else len(text)
        if end >= position:
            found += _make_lines(text, position, end)
        if recipe:
            found += _shell_in(text, *recipe.span(1))
            position = recipe.end()
    return found


def _make_lines(text: str, start: int, end: int) -> Iterator[CharSpan]:
    for m in _MAKE_COMMENT.finditer(text, start, end):
        line = text.rfind("\n", start, m.start()) + 1
        before = text[max(line, start, m.start() - 300) : m.start()]
        if before.count("$(") <= before.count(")"):
            yield m.start(), m.end() - text.endswith("\r", start, m.end())


def _guarded(lexer: Lexer, *marks: str) -> Grammar:
    return lambda text: lexer.scan(text).comments if any(mark in text for mark in marks) else []


CONFIG: dict[str, Grammar] = {
    "dockerfile": lambda text: _dockerfile(text) if "#" in text else [],
    "html": _html,
    "ini": _guarded(_INI, "#", ";"),
    "make": lambda text: _make(text) if "#" in text else [],
    "markdown": _guarded(_MARKUP, "<!--"),
    "requirements": _guarded(_REQUIREMENTS, "#"),
    "sql": _guarded(_SQL, "--", "/*", "#"),
    "toml": _guarded(_TOML, "#"),
    "yaml": _guarded(_YAML, "#"),
}
