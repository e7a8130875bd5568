"""The grammars of the languages: C and its descendants, languages of scripts and functions, shell, data and markup.

A fragment of a language with `/* … */` may begin inside a block comment or a string of several lines.

Comment: an `old_str` that starts at ` * @param`. A `*/` that no `/*` opens may also be in a regular expression, a glob
or a string, and then all before it is code; a wrong guess costs a whole file, a missed one some lines. So the text
before it is comment only where the language, read as code, has that `*/` outside of its tokens, and it stands first
on its line or after lines that read like prose. Without any `*/`, lines that all begin with `* ` are comment if they
read like documentation.

String: everything up to the first quote is string if that quote can only close: what follows it ends an expression,
what comes before it on its line opens none, and no line before looks like code or comment.

Python has every string form, and f-strings with nested expressions (PEP 701; earlier f-strings are a part of it). A
fragment of it may begin inside a docstring: both readings are lexed and the one that leaves less prose where code
should be is taken; on a tie the fragment begins in code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from hesnr_tasks.actions import CharSpan
from hesnr_tasks.actions.shell import EXACT, LOOSE, LineIndex, lex_shell
from hesnr_tasks.filters.lexer import (
    BLOCK,
    CHARACTER,
    DOUBLE,
    ESCAPE,
    HASH,
    HASH_WORD,
    LINE,
    LINE_END,
    MANY,
    REGEX,
    SINGLE,
    Grammar,
    Lexer,
    Rule,
    Scan,
    here_document,
    if_any,
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


# --- C and its descendants --------------------------------------------------------------------------------------------

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

# --- Python -----------------------------------------------------------------------------------------------------------

_F = r"(?<![\w])(?:[fFtT][rR]?|[rR][fFtT])"
_STRINGS: list[Rule] = [
    ("push string_long_d", _F + '"""'),
    ("push string_long_s", _F + "'''"),
    ("push string_d", _F + '"'),
    ("push string_s", _F + "'"),
    ("string", tripled('"')),
    ("string", tripled("'")),
    DOUBLE,
    SINGLE,
]


def _f_strings(field: str, **ends: str) -> Iterator[tuple[str, list[Rule]]]:
    """The modes of f-strings that end with `ends`, and of their replacement fields.

    A comment may stand in a field only where the string has several lines (`field` is `long`).
    """
    for name, end in ends.items():
        literal: Rule = ("skip", r"\\N\{[^}\r\n]*\}|\\\r\n|\\[^{}]|\{\{|\}\}")
        yield f"string_{name}", [literal, (f"push expression_{field}", r"\{"), ("pop", end)]
    comment = [HASH] if field == "long" else []
    opening, spec = (f"push nest_{field}", r"[(\[{]"), (f"push spec_{field}", ":")
    yield f"expression_{field}", [*comment, *_STRINGS, opening, ("skip", "!="), spec, ("pop", r"\}")]
    yield f"nest_{field}", [*comment, *_STRINGS, opening, ("pop", r"[)\]}]")]
    yield f"spec_{field}", [(f"push expression_{field}", r"\{"), ("pop", r"(?=\})|(?=\n)")]


_PYTHON = Lexer(
    [HASH, *_STRINGS],
    dict(_f_strings("short", d=LINE_END, s=LINE_END.replace('"', "'"))),
    dict(_f_strings("long", long_d='"""', long_s="'''")),
)


def python(text: str) -> list[CharSpan]:
    """Spans of the comments of a Python file or fragment."""
    if "#" not in text:
        return []
    plain = _PYTHON.scan(text)
    if _BEGINS_IN_CODE.match(text):
        return plain.comments
    doubt = _misread(text, plain)
    if not doubt:
        return plain.comments
    first = _TRIPLE.search(text)
    end = first.end() if first else len(text)
    inside = _PYTHON.scan(text, position=end)  # the text begins inside a docstring, which ends at `end`
    inside.strings.insert(0, (0, end))
    gain = doubt - _misread(text, inside)
    return (inside if gain > (0 if _may_be_doc(text, plain, end) else 2) else plain).comments


_BEGINS_IN_CODE = re.compile(
    r"""(?:[ \t]*(?:\#[^\n]*)?\r?\n)*(?:import[ ]\w|from[ ][\w.]+[ ]import[ ]|(?:async[ ])?def[ ]\w+\(|class[ ]\w+"""
    r"""[(:]|@\w|[rR]?(?:\"{3}|'{3})[A-Z])""",
    re.VERBOSE,
)
_TRIPLE = re.compile(r'"""|\'\'\'')
_DOC_PROSE = re.compile(
    r"^[ \t]*(?:[-*:]\s)?[A-Za-z]['\w-]*,?(?: [a-z`'\"(][\w`'\")-]*[,:;.]?){3}(?![^\s,:;.])[^=\[\]{}#\n]*$",
    re.MULTILINE,
)
_DOC_OPENS = re.compile(r"""(?:[=(\[{,+%]|:[ \t]|\b(?:return|yield|in))[ \t]*[rRbBuUfFtT]{0,2}(?:\"{3}|'{3})\Z""")
_DOC_CLOSES = re.compile(r"""(?:\"{3}|'{3})[)\],]""")
_DOC = re.compile(r"^[ \t]*(?:>>> |([-=~^])\1{3,}[ \t]*$|:\w+[^:\n]*: \w|\w+ : \w+)", re.MULTILINE)
_WORDS = re.compile(
    r"^[ \t]*(?:(?:async )?(?:for|if|elif|while|with|def)\b.*:|(?:from|import|return|yield|assert|raise|del|print"
    r"|lambda|and|or|not|in|global|nonlocal|else|except)\b.*)$"
)
_PYTHON_CODE = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(|class \w+[(:]|import \w|from [\w.]+ import |return\b.*[\w)\]]$"
    r"|@\w|self\.\w|raise \w+\(|(?:(?:if|for|elif|with|while|except) .+|else|try|finally|except):[ \t]*$"
    r"|[a-z_]\w*(?:\.\w+)* = )",
    re.MULTILINE,
)


def _may_be_doc(text: str, plain: Scan, end: int) -> bool:
    """Whether the text before the first triple quotes, up to `end`, could be the rest of a docstring."""
    strings = [(a, min(b, end)) for a, b in plain.strings if a < end]
    head = _blanked(text[:end], [*strings, *((a, b) for a, b in plain.comments if b <= end)])
    return _doc_lines(head) >= len(_PYTHON_CODE.findall(head))


def _doc_lines(text: str) -> int:
    """How many lines read like a docstring: prose, prompts, underlines."""
    prose = sum(not _WORDS.match(m[0]) for m in _DOC_PROSE.finditer(text))
    return prose + len(_DOC.findall(text))


def _misread(text: str, scan: Scan) -> int:
    """How much looks wrong where it is: prose in code, code in long strings, quotes that open but should close."""
    long = [text[a:b] for a, b in scan.strings if b - a > 6 and (a == 0 or _TRIPLE.search(text, a, a + 5))]
    ends = sum(2 if _DOC_OPENS.search(s, len(s) - 40) else not s.endswith(('"""', "'''")) for s in long)
    starts = sum(2 for s in long if _DOC_CLOSES.match(s))
    code = sum(len(_PYTHON_CODE.findall(s)) for s in long)
    return _doc_lines(_blanked(text, [*scan.strings, *scan.comments])) + ends + starts + code


def _blanked(text: str, spans: list[CharSpan]) -> str:
    """`text` with each of `spans` replaced by one `#`."""
    parts, position = [], 0
    for start, end in sorted(spans):
        if start >= position:
            parts += [text[position:start], "#"]
            position = end
    return "".join([*parts, text[position:]])


# --- Ruby -------------------------------------------------------------------------------------------------------------

_RUBY_BRACKETS = {"paren": (r"\(", r"\)"), "square": (r"\[", r"\]"), "brace": (r"\{", r"\}"), "angle": ("<", ">")}
_RUBY_CODE: list[Rule] = [
    ("comment", r"#(?!\{)[^\r\n]*"),
    ("comment", r"^=begin\b[\s\S]*?(?:^=end\b[^\r\n]*|\Z)"),
    ("string", r"^__END__[ \t]*$[\s\S]*"),
    ("skip", r"\?#(?=[\s),\]]|\Z)|\$['\"`/]"),
    ("hole", r"<<[~-]?(?P<q>[\"'`]?)(?P<label>[A-Za-z_]\w*)(?P=q)"),
    *(
        (f"push string_{name}", rf"(?<![\w)\]}}])%[qQwWiIrsx]?{opening}")
        for name, (opening, _) in _RUBY_BRACKETS.items()
    ),
    ("string", r"(?<![\w)\]}])%[qQwWiIrsx](?P<d>[|!/^:,+])[^\r\n]*?(?P=d)"),
    ("push string_d", '"'),
    ("push string_tick", "`"),
    ("string", many_lines("'")),
    ("maybe", r"/(?:[^/\\\r\n]|\\[^\r\n]){1,400}/[a-z]{0,5}"),
]
_RUBY_ESCAPE: Rule = ("skip", r"\\[\s\S]")
_RUBY_WORD = re.compile(
    r"(?<![\w.])(?:if|unless|when|and|or|not|while|until|return|puts|in|then|elsif|do|split|match)\Z"
)


def _begins_ruby_pattern(text: str, match: re.Match[str]) -> bool:
    """Whether `/` begins a regular expression: where no operand is, or after a name and a space (`puts /x/`)."""
    before = text[max(0, match.start() - 120) : match.start()]
    code = before.rstrip(" \t")
    if not code or not re.search(r"[\w)\]}\"'?!]\Z", code) or _RUBY_WORD.search(code):
        return True
    return code != before and code[-1].isalpha() and not match[0][1:2].isspace()


def _ruby_here_document(lines: LineIndex, match: re.Match[str]) -> CharSpan | None:
    """The body of the here-document that `match` announces: from the next line to the one that is its label."""
    loose = match[0][2] in "~-"
    start = lines.text.find("\n", match.end()) + 1
    if not start:
        return None
    end = lines.find(match["label"], start, LOOSE if loose else EXACT)
    if end < 0:
        return (start, len(lines.text)) if loose and match["label"].isupper() else None
    return start, end


_RUBY_STRINGS: dict[str, list[Rule]] = {
    f"string_{name}": [_RUBY_ESCAPE, ("push nest", r"#\{"), ("pop", end)] for name, end in (("d", '"'), ("tick", "`"))
} | {
    f"string_{name}": [_RUBY_ESCAPE, (f"push string_{name}", opening), ("pop", closing)]
    for name, (opening, closing) in _RUBY_BRACKETS.items()
}
_RUBY_NEST = nesting("nest", r"\{", r"\}", _RUBY_CODE)
_RUBY = Lexer(_RUBY_CODE, _RUBY_NEST, _RUBY_STRINGS, check=_begins_ruby_pattern, hole=_ruby_here_document)
ruby = if_any("# =begin", _RUBY)

# --- Perl -------------------------------------------------------------------------------------------------------------


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
    yield "string", operator + r"(?:q[qwrx]?|m)" + signs.format("first")
    yield "string", operator + r"(?:s|tr|y)" + signs.format("two") + second


_PERL_OPERAND = re.compile(r"[\w)\]}\"']\Z")
_PERL_WORD = re.compile(r"(?<![\w$@%&])(?:split|if|unless|while|until|and|or|not|xor|return|grep|when|x|push|join)\Z")


def _begins_perl_pattern(text: str, match: re.Match[str]) -> bool:
    """Whether `/` begins a pattern: where no operand is."""
    before = text[max(0, match.start() - 40) : match.start()].rstrip(" \t\r\n")
    return not _PERL_OPERAND.search(before) or bool(_PERL_WORD.search(before))


_PERL_CODE: list[Rule] = [
    ("comment", r"^=[a-z]\w*[\s\S]*?(?:^=cut\b[^\r\n]*|\Z)"),
    ("string", r"^__(?:END|DATA)__\b[\s\S]*"),
    ("skip", r"\$[#'\"`/&;,.!@$]"),
    *_perl_quotes(),
    ("comment", r"#(?<![^\s;,{}()]#)[^\r\n]*"),
    ("hole", r"<<[-~]?(?P<q>[\"']?)(?P<label>[A-Z_]{2,})(?P=q)"),
    ("string", r"[=!]~\s*/(?:[^/\\]|\\[\s\S])*(?:/\w*|\Z)"),
    REGEX,
    MANY,
    SINGLE,
]
perl = if_any("# \n=", Lexer(_PERL_CODE, check=_begins_perl_pattern, hole=here_document))

# --- others -----------------------------------------------------------------------------------------------------------

_LUA_COMMENT: Rule = ("comment", r"--\[(?P<d>=*)\[[\s\S]*?(?:\](?P=d)\]|\Z)|--[^\r\n]*")
lua = if_any("--", Lexer([_LUA_COMMENT, ("string", r"\[(?P<e>=*)\[[\s\S]*?(?:\](?P=e)\]|\Z)"), DOUBLE, SINGLE]))

_R_RAW: Rule = ("string", raw(r"\b[rR]\"\(", r"\)\""))
r = if_any("#", Lexer([HASH, _R_RAW, ("string", r"`[^`\r\n]*`?"), MANY, ("string", many_lines("'"))]))

_JULIA_CODE: list[Rule] = [("push comment", "#="), HASH, ("string", raw("`", "`")), CHARACTER]
_JULIA = interpolated(_JULIA_CODE, r"\$\(", ('"""', '"""'), ('"', '"'))
julia = if_any("#", Lexer(_JULIA, nesting("comment", "#=", "=#")))

_POWERSHELL: list[Rule] = [
    ("comment", raw("<#", "#>")),
    ("comment", r"#(?<![^\s;{}()]#)[^\r\n]*"),
    ("string", raw('@"', '^"@')),
    ("string", raw("@'", "^'@")),
    ("string", r'"[^"`]*(?:`[\s\S][^"`]*)*(?:"|`?\Z)'),
    ("string", raw("'", "'")),
]
powershell = if_any("#", Lexer(_POWERSHELL))

_SIGIL = (
    r"""~[a-zA-Z]+(?:\"{3}[\s\S]*?(?:\"{3}|\Z)|'{3}[\s\S]*?(?:'{3}|\Z)|\([^)]*\)?|\[[^\]]*\]?|\{[^}]*\}?|<[^>]*>?"""
    r"""|/[^/\r\n]*/?|\|[^|\r\n]*\|?|"[^"]*"?|'[^']*'?)"""
)
_ELIXIR_STRINGS = [(quote, quote) for quote in ('"""', "'''", '"', "'")]
elixir = if_any("#", Lexer(interpolated([("skip", r"\?#"), ("string", _SIGIL), HASH], r"#\{", *_ELIXIR_STRINGS)))

_ERLANG_SIGN: Rule = ("skip", r"\$(?:\\.|[\"'%])")
erlang = if_any("%", Lexer([_ERLANG_SIGN, ("comment", r"%[^\r\n]*"), MANY, ("string", many_lines("'"))]))

_HASKELL_LINE: Rule = ("comment", r"(?<![!#$%&*+./<=>?@\\^|~:-])-{2,}(?![!#$%&*+./<=>?@\\^|~:])[^\r\n]*")
_HASKELL = Lexer([("push comment", r"\{-(?!#)"), _HASKELL_LINE, DOUBLE, CHARACTER], nesting("comment", r"\{-", r"-\}"))
haskell = if_any("-- {-", _HASKELL)

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

_TOML_LONG: list[Rule] = [("string", raw('"""', '"""')), ("string", raw("'''", "'''"))]
toml = if_any("#", Lexer([HASH, *_TOML_LONG, DOUBLE, ("string", r"'[^'\r\n]*'?")]))
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
