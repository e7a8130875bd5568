"""Shell, configuration, data and markup: YAML, TOML, INI, SQL, HTML, Dockerfile, make, CMake, Terraform."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hesnr_tasks.actions import CharSpan
from hesnr_tasks.actions.shell_lexer import LineIndex, lex_shell
from hesnr_tasks.filters.lexers import (
    BLOCK,
    DOUBLE,
    HASH,
    HASH_WORD,
    LINE,
    LINE_END,
    MANY,
    Lexer,
    Rule,
    here_document,
    if_any,
    interpolated,
    raw,
)
from hesnr_tasks.filters.lexers.clike import javascript, scss

# --- YAML -------------------------------------------------------------------------------------------------------------

_BEFORE = re.compile(r"(?:.*?:(?=[ \t]|\Z))?[ \t]*(?:[-?][ \t]+)*(?:[!&][^ \t]*[ \t]*)*")  # the value on a line
_INDENTED = re.compile(r"^( *)(?![ \r\n])", re.MULTILINE)


def _starts_value(text: str, match: re.Match[str]) -> bool:
    """Whether a value begins here, also inside `[…]` and `{…}`; elsewhere a quote is part of a plain value."""
    start = max(0, match.start() - 300)
    before = text[max(text.rfind("\n", start, match.start()) + 1, start) : match.start()]
    value = _BEFORE.sub("", before, count=1)
    return not value or (value[0] in "[{'\"" and value.rstrip()[-1:] in ("[", "{", ",", ":"))


def _block_scalar(lines: LineIndex, match: re.Match[str]) -> CharSpan | None:
    """The lines of a block scalar: those indented more than the key or dash it belongs to."""
    text = lines.text
    start = text.find("\n", match.end()) + 1
    if not start:
        return None
    line = text.rfind("\n", 0, match.start()) + 1
    prefix = re.compile(r" *(?:- +)*").match(text, line, match.start())
    width = prefix.end() - line if prefix else 0
    if prefix and not text[prefix.end() : match.start()].strip():  # `- |`: the dash is what counts
        width = text.rfind("-", line, prefix.end()) - line if "-" in prefix[0] else -1
    return start, next((m.start() for m in _INDENTED.finditer(text, start) if len(m[1]) <= width), len(text))


_YAML_MODES: dict[str, list[Rule]] = {
    "code": [
        HASH_WORD,
        ("hole", r"[|>](?<=\s.)[+-]?\d?[+-]?(?=[ \t]*(?:\s#[^\r\n]*)?\r?$)"),
        ("maybe string_d", '"'),
        ("maybe string_s", "'"),
    ],
    "string_d": [("skip", r"\\[\s\S]"), ("pop", '"')],
    "string_s": [("pop", "'")],
}
yaml = if_any("#", Lexer(_YAML_MODES, check=_starts_value, hole=_block_scalar))

# --- lines and strings ------------------------------------------------------------------------------------------------

_LONG: list[Rule] = [("string", raw('"""', '"""')), ("string", raw("'''", "'''"))]
toml = if_any("#", Lexer([HASH, *_LONG, DOUBLE, ("string", r"'[^'\r\n]*'?")]))
ini = if_any("# ;", Lexer([("comment", r"^[ \t]*[#;][^\r\n]*")]))
requirements = if_any("#", Lexer([HASH_WORD]))

_SQL: list[Rule] = [
    ("comment", r"--[^\r\n]*|^[ \t]*#[^\r\n]*"),
    BLOCK,
    ("string", r"'[^']*(?:'|\Z)"),
    ("string", r'"[^"\r\n]*"?'),
    ("string", r"`[^`\r\n]*`?"),
]
sql = if_any("-- /* #", Lexer(_SQL))

_CMAKE_BLOCK: Rule = ("comment", r"#\[(?P<d>=*)\[[\s\S]*?(?:\](?P=d)\]|\Z)")
cmake = if_any("#", Lexer([_CMAKE_BLOCK, HASH, ("string", raw(r"\[\[", r"\]\]")), MANY]))

_TERRAFORM_HEREDOC: Rule = ("hole", r"<<-?(?P<label>[A-Za-z_]\w*)")  # `<<` is no operator there
_TERRAFORM = interpolated([HASH, LINE, BLOCK, _TERRAFORM_HEREDOC], r"[$%]\{", ('"', LINE_END))
terraform = if_any("# // /*", Lexer(_TERRAFORM, hole=here_document))

# --- markup -----------------------------------------------------------------------------------------------------------

_MARKUP = Lexer(
    [
        ("comment", r"<!--[\s\S]*?(?:-->|\Z)|<%--[\s\S]*?(?:--%>|\Z)|<%#[\s\S]*?(?:%>|\Z)"),
        ("comment", r"\{#[^}{]*#\}"),
        ("string", raw(r"<!\[CDATA\[", r"\]\]>")),
    ]
)
_SECTION = re.compile(r"<(script|style)\b([^>]*)>([\s\S]*?)(?:</\1|\Z)", re.IGNORECASE)
markdown = if_any("<!--", _MARKUP)


def html(text: str) -> list[CharSpan]:
    """Spans of the comments of the markup and of those of its scripts and styles."""
    comments: list[CharSpan] = []
    position = 0
    for m in _SECTION.finditer(text):
        comments += _MARKUP.scan(text, position=position, end=m.start()).comments
        position = m.end()
        if "json" not in m[2] and "template" not in m[2]:
            inner = scss if m[1].lower() == "style" else javascript
            comments += [(a + m.start(3), b + m.start(3)) for a, b in inner(m[3])]
    return comments + _MARKUP.scan(text, position=position).comments


# --- shell, and files with shell in them ------------------------------------------------------------------------------

_FRAGMENT_DELIMITER = re.compile(r"^(?:[A-Z_]*EO[A-Z]+|END|[A-Z]+_EOF|HEREDOC)$", re.MULTILINE)


def shell(text: str) -> list[CharSpan]:
    """Spans of the comments of a script or fragment, which may begin inside a here-document."""
    if "#" not in text:
        return []
    delimiter = _FRAGMENT_DELIMITER.search(text)
    start = delimiter.end() if delimiter and "<<" not in text[: delimiter.start()] else 0
    return [(a + start, b + start) for a, b in lex_shell(text[start:]).comments]


_RUN = re.compile(r"^[ \t]*(?:ONBUILD[ \t]+)?(?:RUN|CMD|ENTRYPOINT)\b[ \t]*(?!\[)", re.MULTILINE | re.IGNORECASE)
_CONTINUED = re.compile(r"(?:[^\n]*\\[ \t]*\r?\n|[ \t]*#[^\n]*\n|[ \t]*\r?\n(?=[ \t]+\S))*[^\n]*")


def dockerfile(text: str) -> list[CharSpan]:
    """Spans of the lines that begin with `#`, and of the shell's comments in commands."""
    if "#" not in text:
        return []
    comments = [m.span(1) for m in re.finditer(r"^[ \t]*(#[^\r\n]*)", text, re.MULTILINE)]
    position = 0
    while instruction := _RUN.search(text, position):
        body = _CONTINUED.match(text, instruction.end())
        position = max(body.end() if body else 0, instruction.end())
        comments += _shell_comments(text, instruction.end(), position)
    return comments


def _shell_comments(text: str, start: int, end: int) -> Iterator[CharSpan]:
    return ((a + start, b + start) for a, b in lex_shell(text[start:end]).comments)


_RECIPE = re.compile(r"^\t[ \t]*[@+-]*((?:[^\n]*\\\r?\n)*[^\n]*)", re.MULTILINE)
_MAKE_COMMENT = re.compile(r"(?<!\\)#[^\\\n]*(?:\\(?:\r?\n)?[^\\\n]*)*")


def make(text: str) -> list[CharSpan]:
    """Spans of the shell's comments in recipes; elsewhere of `#` wherever it stands, except escaped or in `$(…)`."""
    comments: list[CharSpan] = []
    position = 0
    for recipe in [*_RECIPE.finditer(text), None] if "#" in text else []:
        end = recipe.start() if recipe else len(text)
        if end >= position:
            for m in _MAKE_COMMENT.finditer(text, position, end):
                line = max(text.rfind("\n", position, m.start()) + 1, position, m.start() - 300)
                before = text[line : m.start()]
                if before.count("$(") <= before.count(")"):
                    comments.append((m.start(), m.end() - text.endswith("\r", position, m.end())))
        if recipe:
            comments += _shell_comments(text, *recipe.span(1))
            position = recipe.end()
    return comments
