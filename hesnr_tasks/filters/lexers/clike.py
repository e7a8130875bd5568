"""Languages with `//` and `/* … */`: C and its descendants, JavaScript, PHP, Rust, Swift, CSS.

A fragment may begin inside a block comment or a string of several lines.

Comment: an `old_str` that starts at ` * @param`. A `*/` that no `/*` opens may also be in a regular expression, a glob
or a string, and then all before it is code; a wrong guess costs a whole file, a missed one some lines. So the text
before it is comment only where the language, read as code, has that `*/` outside of its tokens, and it stands first
on its line or after lines that read like prose. Without any `*/`, lines that all begin with `* ` are comment if they
read like documentation.

String: everything up to the first quote is string if that quote can only close: what follows it ends an expression,
what comes before it on its line opens none, and no line before looks like code or comment.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hesnr_tasks.actions import CharSpan
from hesnr_tasks.filters.lexers import (
    BLOCK,
    CHARACTER,
    DOUBLE,
    ESCAPE,
    LINE,
    LINE_END,
    MANY,
    REGEX,
    SINGLE,
    Grammar,
    Lexer,
    Rule,
    Scan,
    interpolated,
    many_lines,
    nesting,
    one_line,
    raw,
    tripled,
)

# --- where the code of a fragment begins ------------------------------------------------------------------------------

_STARS = re.compile(r"\s*\*(?:[ \t\r\n]|\Z)")
_DOCUMENTED = re.compile(r"\s*\*[ \t]+(?:@\w|<\w|-[ \t]|[\w'\"`(][^\s;{}=]*[ \t]+[\w'\"`(]|[A-Z]\w+[.:]?\s*\Z)")
_CLAUSE = re.compile(
    r"[;{}\[(]\s*\Z|^\s*[)\]}@#.&|?]|[\w)\]]\(|\)\s*[,:]?\s*\Z|=>|->|\w\s?[-+*/%&|^<>!=]?=\s*\S|\w\.\w+\(|^\s*//"
    r"|^\s*\*[ \t]+html\b"
    r"|^\s*(?:import|export|const|let|var|function|class|package|fn|pub|mod|impl|struct|enum|return|public|private"
    r"|protected|static|else|case)\b(?! [a-z]+ [a-z])"
)
_PROSE = re.compile(r"[\s*]*[\w'\"(.-]+,?(?:[ \t]+[\w'\"(/.-]+[,.:;!?)'\"]*){3,}\s*\Z")


def _after_comment(text: str, tokens: Callable[[str], list[CharSpan]]) -> int:
    """The length of the part that a `/*` before the fragment takes up; `tokens`: comments and strings of code."""
    end = text.find("*/")
    opening = text.find("/*")
    if end < 0:  # whether every line begins with a star and most read like documentation, not like `* { margin: 0; }`
        lines = [line for line in text.split("\n") if line.strip()] if opening < 0 else []
        if not lines or not all(map(_STARS.match, lines)):
            return 0
        documented = sum(bool(_DOCUMENTED.match(line)) for line in lines)
        enough = 0 if len(lines) > 2 else sum(bool(_CLAUSE.search(line)) for line in lines)
        return len(text) if documented > enough else 0
    if 0 <= opening < end or text.startswith("/*", end + 1):
        return 0
    start = text.rfind("\n", 0, end) + 1
    lines = [line for line in text[:start].split("\n") if line.strip()]
    last = text[start:end]
    if all(map(_STARS.match, lines)) and (lines or not last.strip()) and (not last.strip() or _STARS.match(last)):
        return end + 2
    stop = text.find("\n", end)
    if any(a <= end < b for a, b in tokens(text[: stop if stop >= 0 else len(text)])):
        return 0
    if not last.strip():
        return end + 2
    clauses = sum(bool(_CLAUSE.search(line)) for line in (*lines, last))
    prose = sum(bool(_PROSE.match(line)) for line in (*lines, last))
    return end + 2 if 3 * clauses <= prose - clauses or not clauses else 0


_OPENS = re.compile(
    r"(?:[=(\[{,:+&|?<!]|=>|>[ \t]|\b(?:return|case|in|throw|yield|await|b|r|br|cr))[ \t]*"
    r"(?:\#*|[\w.$]+(?:\([^()]*\))?(?:<[^<>]*>)?)\Z"  # the signs of raw strings, the tag of a template
)
_CODE = re.compile(
    r"^[ \t]*(?:import|export|const|let|var|function|class|package|use|fn|pub|mod|impl|struct|enum|type|interface"
    r"|return|public|private|protected|static|if|else|for|func|fun|val|async|await|case)\b"
    r"|^[ \t]*(?://|/\*|\*[ \n]|[)}])|=>|;$",
    re.MULTILINE,
)


def _after_string(text: str, quote: str) -> int:
    """The length of the part that a string opened before the fragment takes up; it ends with `quote`."""
    start = text.find(quote)
    if start < 0:
        return 0
    line = text[text.rfind("\n", 0, start) + 1 : start]
    end = start + len(quote)
    closes = text[end : end + 1] in (*";),.}",) or (text.startswith("\n", end) and line.strip())
    if not closes or _OPENS.search(line[-100:]) or line.endswith("\\"):
        return 0
    return 0 if _CODE.search(text, 0, start) else end


_MARKS = ("//", "/*", "*/", "* ")


def _grammar(lexer: Lexer | Callable[[str, int], Scan], quote: str = "", marks: tuple[str, ...] = _MARKS) -> Grammar:
    """Comments of a text that may begin inside one, or in a string that ends with `quote`.

    `lexer` may be a function that lexes a text from a position on. A text without any of `marks` is not lexed.
    """

    def scan(text: str, position: int) -> Scan:
        return lexer.scan(text, position=position) if isinstance(lexer, Lexer) else lexer(text, position)

    def tokens(text: str) -> list[CharSpan]:
        result = scan(text, 0)
        return result.comments + result.strings

    def comments(text: str) -> list[CharSpan]:
        if not any(mark in text for mark in marks):
            return []
        start = _after_comment(text, tokens)
        if start:
            return [(0, start), *scan(text, start).comments]
        return scan(text, _after_string(text, quote) if quote else 0).comments

    return comments


# --- lexers -----------------------------------------------------------------------------------------------------------

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


_LINE_CONTINUED: Rule = ("comment", r"//[^\\\r\n]*(?:\\(?:\r?\n)?[^\\\r\n]*)*")
_NESTED: Rule = ("push comment", r"/\*")
_COMMENT = nesting("comment", r"/\*", r"\*/")
_LONG: Rule = ("string", tripled('"'))
_BACKTICKS: Rule = ("string", raw("`", "`"))

c = _grammar(Lexer([_LINE_CONTINUED, BLOCK, DOUBLE, CHARACTER]))
_CPP_RAW: Rule = ("string", raw(r'R"(?P<d>[^()\\\s"]{0,16})\(', r'\)(?P=d)"'))
cpp = _grammar(Lexer([_LINE_CONTINUED, BLOCK, _CPP_RAW, DOUBLE, CHARACTER]))
java = _grammar(Lexer([LINE, BLOCK, _LONG, DOUBLE, CHARACTER]), '"""')
go = _grammar(Lexer([LINE, BLOCK, _BACKTICKS, DOUBLE, CHARACTER]), "`")
css = _grammar(Lexer([BLOCK, DOUBLE, SINGLE]))
scss = _grammar(Lexer([("skip", r"\burl\([^)\r\n]*\)?|\w:(?=//)"), LINE, BLOCK, DOUBLE, SINGLE]))

_SLASHY: Rule = ("string", r"\$/(?:[^$/]|\$[\s\S]|/(?!\$)){0,2000}/\$")
_GROOVY_RULES = [LINE, BLOCK, _LONG, ("string", tripled("'")), _SLASHY, REGEX, DOUBLE, SINGLE]
groovy = _grammar(Lexer(_GROOVY_RULES, check=_begins_literal), '"""')

_DART_RAW = r"""\br(?:\"{3}[\s\S]*?(?:\"{3}|\Z)|'{3}[\s\S]*?(?:'{3}|\Z)|"[^"\r\n]*"?|'[^'\r\n]*'?)"""
_DART_STRINGS = (('"""', '"""'), ("'''", "'''"), ('"', LINE_END), ("'", LINE_END.replace('"', "'")))
dart = _grammar(Lexer(interpolated([LINE, _NESTED, ("string", _DART_RAW)], r"\$\{", *_DART_STRINGS), _COMMENT))

_RUST_RAW: Rule = ("string", r'\b[bc]?r(?P<h>#*)"[^"]*(?:"(?!(?P=h))[^"]*)*(?:"(?P=h)|\Z)')
_RUST_CHARACTER = r"'(?:[^'\\\r\n]|\\(?:u\{[^}\r\n]*\}|[^\r\n][^'\r\n]?))'|'[^'\\\s]{2,4}'(?!\w)"
rust = _grammar(Lexer([LINE, _NESTED, _RUST_RAW, MANY, ("string", _RUST_CHARACTER)], _COMMENT), '"')

_KOTLIN_RULES: list[Rule] = [LINE, _NESTED, CHARACTER, ("string", r"`[^`\r\n]*`")]
kotlin = _grammar(Lexer(interpolated(_KOTLIN_RULES, r"\$\{", ('"""', '"""+'), ('"', LINE_END)), _COMMENT), '"""')

_SWIFT_RAW: Rule = ("string", r'(?<!#)(?P<h>#{1,9})(?:"""[\s\S]*?(?:"""(?P=h)|\Z)|"[^\r\n]*?(?:"(?P=h)|(?=[\r\n])|\Z))')
_SWIFT_MODES = interpolated([LINE, _NESTED, _SWIFT_RAW, REGEX], r"\\\(", ('"""', '"""'), ('"', LINE_END))
swift = _grammar(Lexer(_SWIFT_MODES, _COMMENT, check=_begins_literal), '"""')

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
_CSHARP_MODES: dict[str, list[Rule]] = {
    "code": _CSHARP_CODE,
    "string_verbatim": [("skip", r'""|\{\{'), ("push nest", r"\{"), ("pop", '"')],
    "string_plain": [("skip", r"\\.|\{\{"), ("push nest", r"\{"), ("pop", LINE_END)],
}
csharp = _grammar(Lexer(_CSHARP_MODES, nesting("nest", r"\{", r"\}", _CSHARP_CODE)))

# --- PHP --------------------------------------------------------------------------------------------------------------

_PHP_CODE: list[Rule] = [
    ("comment", r"(?://|#(?!\[))[^\r\n?]*(?:\?(?!>)[^\r\n?]*)*"),
    BLOCK,
    ("string", r"<<<[ \t]*(?P<q>[\"']?)(?P<label>[A-Za-z_]\w*)(?P=q)\r?\n[\s\S]*?(?:^[ \t]*(?P=label)\b|\Z)"),
    ("string", many_lines("'")),
    ("push string_d", '"'),
]
_PHP_MODES: dict[str, list[Rule]] = {
    "html": [("push code", r"<\?(?:php\b|=)?"), ("comment", r"<!--[\s\S]*?-->")],
    "code": [*_PHP_CODE, ("pop", r"\?>")],
    "string_d": [("skip", ESCAPE), ("push nest", r"\{(?=\$)"), ("pop", '"')],
}
_PHP = Lexer(_PHP_MODES, nesting("nest", r"\{", r"\}", _PHP_CODE))
_PHP_SIGN = re.compile(r"\$\w|[;{][ \t]*\n|^[ \t]*(?:/?\*|//|#)|->|=>", re.MULTILINE)


def _scan_php(text: str, position: int) -> Scan:
    """A file begins as HTML; a fragment begins in code unless an opening tag comes before anything that is code."""
    opening, closing = text.find("<?"), text.find("?>")
    inside = opening < 0 or 0 <= closing < opening or bool(_PHP_SIGN.search(text, 0, opening))
    return _PHP.scan(text, *(("html", "code") if inside else ("html",)), position=position)


# --- JavaScript, TypeScript -------------------------------------------------------------------------------------------

_JS_CODE: list[Rule] = [
    ("skip", r"//(?:(?<=\bhttps://)|(?<=\bhttp://)|(?<=\bfile://)|(?<=\bftp://)|(?<=\bwss://)|(?<=\bws://))"),
    LINE,
    BLOCK,
    REGEX,
    DOUBLE,
    ("maybe", one_line("'")),
    ("push string_template", "`"),
]
_JS_TEMPLATE: dict[str, list[Rule]] = {"string_template": [("skip", ESCAPE), ("push nest", r"\$\{"), ("pop", "`")]}
_JS = Lexer(_JS_CODE, _JS_TEMPLATE, nesting("nest", r"\{", r"\}", _JS_CODE), check=_begins_literal)
_JSX_BEFORE, _JSX_AFTER = re.compile(r"<[A-Za-z][^<>]*>\s*\Z|/>\s*\Z|</[\w.]+>\s*\Z"), re.compile(r"\s*</?[A-Za-z]")


def _scan_js(text: str, position: int) -> Scan:
    """A `//` in the text between two tags of JSX is text."""
    scan = _JS.scan(text, position=position)
    if "</" in text:
        candidates, scan.comments = scan.comments, []
        for start, end in candidates:
            if _in_jsx(text, start, end):
                continue
            # where it begins in the text of a tag that closes in it, only those after the tag are comments
            before = text[max(text.rfind("\n", 0, start) + 1, start - 1_000) : start]
            tag = _JSX_TEXT.match(before, max(0, before.rfind("<")))
            close = text.find(f"</{tag[1]}>", start, end) if tag else -1
            if close < 0:
                scan.comments.append((start, end))
            else:
                scan.comments += _JS.scan(text, position=text.index(">", close) + 1, end=end).comments
    return scan


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


javascript = _grammar(_scan_js, "`")
php = _grammar(_scan_php, marks=(*_MARKS, "#", "<!--"))
