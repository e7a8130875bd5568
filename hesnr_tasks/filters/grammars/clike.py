"""Languages with `//` and `/* … */`: C, C++, C#, Dart, Go, Groovy, Java, JavaScript, Kotlin, PHP, Rust, Scala, Swift,
CSS.

A fragment may begin inside a block comment or a long string: see `begin.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hesnr_tasks.actions.views import CharSpan
from hesnr_tasks.filters.grammars.begin import after_comment, after_string
from hesnr_tasks.filters.lexing import Lexer, Rule, Scan

__all__ = ["CLIKE", "interpolated"]

_ANY = r"\\(?:\r\n|[\s\S])"  # an escape


def one_line(quote: str) -> str:
    """A string that ends at its quote or at the end of the line."""
    plain = rf"[^{quote}\\\r\n]*"
    return rf"{quote}{plain}(?:{_ANY}{plain})*(?:{quote}|\\?\Z|(?=[\r\n]))"


def many_lines(quote: str) -> str:
    """A string that ends at its quote or at the end of the text."""
    plain = rf"[^{quote}\\]*"
    return rf"{quote}{plain}(?:{_ANY}{plain})*(?:{quote}|\\?\Z)"


def raw(opening: str, closing: str) -> str:
    """A string without escapes."""
    return rf"{opening}[\s\S]*?(?:{closing}|\Z)"


LINE: Rule = ("comment", r"//[^\r\n]*")
LINE_CONTINUED: Rule = ("comment", r"//[^\\\r\n]*(?:\\(?:\r?\n)?[^\\\r\n]*)*")
BLOCK: Rule = ("comment", r"/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/|\Z)")
NESTED: Rule = ("push comment", r"/\*")
DOUBLE: Rule = ("string", one_line('"'))
SINGLE: Rule = ("string", one_line("'"))
CHARACTER: Rule = ("string", r"'(?:[^'\\\r\n]{1,4}|\\[^\r\n][^'\r\n]{0,8})'")
LONG: Rule = ("string", r'"""[^"\\]*(?:(?:\\[\s\S]|"(?!""))[^"\\]*)*(?:"""|\\?\Z)')
REGEX: Rule = (
    "maybe",
    r"/(?![*/])(?:[^/\\\[\r\n]|\\[^\r\n]|\[(?:[^\]\\\r\n]|\\[^\r\n]){0,200}\]){1,400}/\w{0,8}",
)
BACKTICKS: Rule = ("string", raw("`", "`"))

LINE_END = r'"|(?=[\r\n])'  # of a string on one line

_COMMENT_MODE = {"comment": [("push comment", r"/\*"), ("pop", r"\*/")]}


def _nesting(mode: str, opening: str, closing: str, rules: list[Rule]) -> dict[str, list[Rule]]:
    """The inside of an interpolation: code up to the bracket that closes it."""
    return {mode: [*rules, (f"push {mode}", opening), ("pop", closing)]}


def interpolated(rules: list[Rule], hole: str, *strings: tuple[str, str]) -> dict[str, list[Rule]]:
    """Modes for code with `strings` (opening, closing) that may hold code after `hole`, such as `${`."""
    modes: dict[str, list[Rule]] = {}
    openers: list[Rule] = []
    for i, (opening, closing) in enumerate(strings):
        openers.append((f"push string_{i}", opening))
        escape = r"\\\\|\\[^({]" if hole == r"\\\(" else _ANY
        modes[f"string_{i}"] = [("push nest", hole), ("skip", escape), ("pop", closing)]
    code = [*openers, *rules]
    brackets = (r"\(", r"\)") if hole.endswith(r"\(") else (r"\{", r"\}")
    return {"code": code, **modes, **_nesting("nest", *brackets, code)}


_OPERAND = re.compile(r"(?:[\w$)\]}\"'`]|[\w$)\]](?:!|\+\+|--))\Z")
_KEYWORD = re.compile(
    r"(?<![\w$.])(?:return|typeof|case|in|of|delete|void|throw|new|else|do|yield|await|instanceof|from|import|default)\Z"
)


def _begins_literal(text: str, match: re.Match[str]) -> bool:
    """Whether `/` begins a regular expression, and `'` is no apostrophe in the text of JSX."""
    before = text[max(0, match.start() - 120) : match.start()]
    token = match[0]
    if token[0] == "'":
        return not (before[-1:].isalpha() and token[1:2].isalpha() and not _KEYWORD.search(before))
    code = before.rstrip(" \t\r\n")
    if before.endswith("<"):
        return False
    return not _OPERAND.search(code) or bool(_KEYWORD.search(code))


_C = Lexer({"code": [LINE_CONTINUED, BLOCK, DOUBLE, CHARACTER]})
_CPP = Lexer(
    {"code": [LINE_CONTINUED, BLOCK, ("string", raw(r'R"(?P<d>[^()\\\s"]{0,16})\(', r'\)(?P=d)"')), DOUBLE, CHARACTER]}
)
_JAVA = Lexer({"code": [LINE, BLOCK, LONG, DOUBLE, CHARACTER]})
_GO = Lexer({"code": [LINE, BLOCK, BACKTICKS, DOUBLE, CHARACTER]})
_DOLLAR_SLASHY: Rule = ("string", r"\$/(?:[^$/]|\$[\s\S]|/(?!\$)){0,2000}/\$")
_GROOVY = Lexer(
    {"code": [LINE, BLOCK, LONG, ("string", LONG[1].replace('"', "'")), _DOLLAR_SLASHY, REGEX, DOUBLE, SINGLE]},
    check=_begins_literal,
)
_DART_RAW = r"""\br(?:\"{3}[\s\S]*?(?:\"{3}|\Z)|'{3}[\s\S]*?(?:'{3}|\Z)|"[^"\r\n]*"?|'[^'\r\n]*'?)"""
_DART_ENDS = (('"""', '"""'), ("'''", "'''"), ('"', LINE_END), ("'", LINE_END.replace('"', "'")))
_DART = Lexer({**interpolated([LINE, NESTED, ("string", _DART_RAW)], r"\$\{", *_DART_ENDS), **_COMMENT_MODE})
_RUST = Lexer(
    {
        "code": [
            LINE,
            NESTED,
            ("string", r'\b[bc]?r(?P<h>#*)"[^"]*(?:"(?!(?P=h))[^"]*)*(?:"(?P=h)|\Z)'),
            ("string", many_lines('"')),
            ("string", r"'(?:[^'\\\r\n]|\\(?:u\{[^}\r\n]*\}|[^\r\n][^'\r\n]?))'|'[^'\\\s]{2,4}'(?!\w)"),
        ],
        **_COMMENT_MODE,
    }
)
_KOTLIN_RULES: list[Rule] = [LINE, NESTED, CHARACTER, ("string", r"`[^`\r\n]*`")]
_KOTLIN = Lexer({**interpolated(_KOTLIN_RULES, r"\$\{", ('"""', '"""+'), ('"', LINE_END)), **_COMMENT_MODE})
_SCALA = _KOTLIN
_SWIFT_RAW: Rule = ("string", r'(?<!#)(?P<h>#{1,9})(?:"""[\s\S]*?(?:"""(?P=h)|\Z)|"[^\r\n]*?(?:"(?P=h)|(?=[\r\n])|\Z))')
_SWIFT_RULES = interpolated([LINE, NESTED, _SWIFT_RAW, REGEX], r"\\\(", ('"""', '"""'), ('"', LINE_END))
_SWIFT = Lexer({**_SWIFT_RULES, **_COMMENT_MODE}, check=_begins_literal)

_CSHARP_CODE: list[Rule] = [
    LINE,
    BLOCK,
    ("string", raw('\\$*(?P<q>"{3,})', "(?P=q)")),
    ("push string_verbatim", r'\$@"|@\$"'),
    ("string", r'@"[^"]*(?:""[^"]*)*(?:"|\Z)'),
    ("push string_plain", r'\$"'),
    DOUBLE,
    CHARACTER,
]
_CSHARP = Lexer(
    {
        "code": _CSHARP_CODE,
        "string_verbatim": [("skip", r'""|\{\{'), ("push nest", r"\{"), ("pop", '"')],
        "string_plain": [("skip", r"\\.|\{\{"), ("push nest", r"\{"), ("pop", LINE_END)],
        **_nesting("nest", r"\{", r"\}", _CSHARP_CODE),
    }
)
_CSS = Lexer({"code": [BLOCK, DOUBLE, SINGLE]})
_SCSS = Lexer({"code": [("skip", r"\burl\([^)\r\n]*\)?|\w:(?=//)"), LINE, BLOCK, DOUBLE, SINGLE]})


# --- PHP ------------------------------------------------------------------------------------------------------------

_PHP_CODE: list[Rule] = [
    ("comment", r"(?://|#(?!\[))[^\r\n?]*(?:\?(?!>)[^\r\n?]*)*"),
    BLOCK,
    ("string", r"<<<[ \t]*(?P<q>[\"']?)(?P<label>[A-Za-z_]\w*)(?P=q)\r?\n[\s\S]*?(?:^[ \t]*(?P=label)\b|\Z)"),
    ("string", many_lines("'")),
    ("push string_d", '"'),
]
_PHP = Lexer(
    {
        "html": [("push code", r"<\?(?:php\b|=)?"), ("comment", r"<!--[\s\S]*?-->")],
        "code": [*_PHP_CODE, ("pop", r"\?>")],
        "string_d": [("skip", _ANY), ("push nest", r"\{(?=\$)"), ("pop", '"')],
        **_nesting("nest", r"\{", r"\}", _PHP_CODE),
    }
)


_PHP_SIGN = re.compile(r"\$\w|[;{][ \t]*\n|^[ \t]*(?:/?\*|//|#)|->|=>", re.MULTILINE)


def _php(text: str, position: int) -> Scan:
    """A file begins as HTML; a fragment begins in code unless an opening tag comes before anything that is code."""
    opening, closing = text.find("<?"), text.find("?>")
    inside = opening < 0 or 0 <= closing < opening or bool(_PHP_SIGN.search(text, 0, opening))
    return _PHP.scan(text, *(("html", "code") if inside else ("html",)), position=position)


# --- JavaScript, TypeScript -----------------------------------------------------------------------------------------

_JS_CODE: list[Rule] = [
    ("skip", r"//(?:(?<=\bhttps://)|(?<=\bhttp://)|(?<=\bfile://)|(?<=\bftp://)|(?<=\bwss://)|(?<=\bws://))"),
    LINE,
    BLOCK,
    REGEX,
    DOUBLE,
    ("maybe", one_line("'")),
    ("push string_template", "`"),
]
_JS = Lexer(
    {
        "code": _JS_CODE,
        "string_template": [("skip", _ANY), ("push nest", r"\$\{"), ("pop", "`")],
        **_nesting("nest", r"\{", r"\}", _JS_CODE),
    },
    check=_begins_literal,
)


_JSX_BEFORE, _JSX_AFTER = re.compile(r"<[A-Za-z][^<>]*>\s*\Z|/>\s*\Z|</[\w.]+>\s*\Z"), re.compile(r"\s*</?[A-Za-z]")


def _js(text: str, position: int) -> Scan:
    """A `//` in the text between two tags of JSX is text."""
    scan = _JS.scan(text, position=position)
    if "</" in text:
        scan.comments = [rest for span in scan.comments if not _in_jsx(text, *span) for rest in _after_jsx(text, *span)]
    return scan


def _after_jsx(text: str, start: int, end: int) -> list[CharSpan]:
    """The comments of what seems to be one; where it begins in the text of a tag that closes in it, those after it."""
    before = text[max(text.rfind("\n", 0, start) + 1, start - 1_000) : start]
    tag = _JSX_TEXT.match(before, max(0, before.rfind("<")))
    close = text.find(f"</{tag[1]}>", start, end) if tag else -1
    if close < 0:
        return [(start, end)]
    return _JS.scan(text, position=text.index(">", close) + 1, end=end).comments


_JSX_TEXT = re.compile(r"<([A-Za-z][\w.:]*)(?:\s[^<>]*)?>[^<>{}]*\Z")


def _in_jsx(text: str, start: int, end: int) -> bool:
    if not text.startswith("//", start):
        return False
    line = text.rfind("\n", max(0, start - 1_000), start) + 1
    before, tail = text[line:start].lstrip(), text[max(start, end - 100) : end].rstrip(" \t;,)")
    if re.match("<[A-Za-z]", before) and ">" in before and re.fullmatch(r"</[\w.:-]*>", tail[tail.rfind("<") :]):
        return True
    between = before and not re.search(r"[;{}()=]", before)
    return bool(between and _JSX_BEFORE.search(text[max(0, line - 300) : line]) and _JSX_AFTER.match(text, end))


# --- fragments ------------------------------------------------------------------------------------------------------

Read = Callable[[str, int], Scan]  # what a text holds from a position on


def _with_fragments(read: Read, marks: tuple[str, ...], quote: str = "") -> Callable[[str], list[CharSpan]]:
    """Comments of a text that may begin inside one, or in a string with `quote`; none if no comment mark is there."""

    def tokens(text: str) -> list[CharSpan]:
        scan = read(text, 0)
        return scan.comments + scan.strings

    def comments(text: str) -> list[CharSpan]:
        if not any(mark in text for mark in marks):
            return []
        start = after_comment(text, tokens)
        if start:
            return [(0, start), *read(text, start).comments]
        return read(text, after_string(text, quote) if quote else 0).comments

    return comments


def _plain(lexer: Lexer, quote: str = "") -> Callable[[str], list[CharSpan]]:
    return _with_fragments(lambda text, start: lexer.scan(text, position=start), _MARKS, quote)


_MARKS = ("//", "/*", "*/", "* ")

CLIKE: dict[str, Callable[[str], list[CharSpan]]] = {
    "c": _plain(_C),
    "cpp": _plain(_CPP),
    "csharp": _plain(_CSHARP),
    "css": _plain(_CSS),
    "dart": _plain(_DART),
    "go": _plain(_GO, "`"),
    "groovy": _plain(_GROOVY, '"""'),
    "java": _plain(_JAVA, '"""'),
    "javascript": _with_fragments(_js, _MARKS, "`"),
    "kotlin": _plain(_KOTLIN, '"""'),
    "php": _with_fragments(_php, (*_MARKS, "#", "<!--")),
    "rust": _plain(_RUST, '"'),
    "scala": _plain(_SCALA, '"""'),
    "scss": _plain(_SCSS),
    "swift": _plain(_SWIFT, '"""'),
    "typescript": _with_fragments(_js, _MARKS, "`"),
}
