"""Python: every string form, f-strings with nested expressions (PEP 701; earlier f-strings are a part of it).

A fragment may begin inside a docstring. Both readings are lexed and the one that leaves less prose where code should be
is taken; on a tie the fragment begins in code.
"""

from __future__ import annotations

import re

from hesnr_tasks.actions.views import CharSpan
from hesnr_tasks.filters.lexing import Lexer, Rule, Scan

__all__ = ["comments"]

_ESCAPE = r"\\(?:\r\n|[\s\S])"


def _string(quote: str, body: str) -> str:
    """A string from `quote` to `quote`, or to where it must end; `body` is a class of plain characters."""
    return rf"{quote}{body}*(?:{_ESCAPE}{body}*)*(?:{quote}|\\?\Z|(?=[\r\n]))"


def _long(quote: str) -> str:
    plain = rf"[^{quote}\\]*"
    return rf"{quote * 3}{plain}(?:(?:{_ESCAPE}|{quote}(?!{quote * 2})){plain})*(?:{quote * 3}|\\?\Z)"


_F = r"(?<![\w])(?:[fFtT][rR]?|[rR][fFtT])"
_STRINGS: list[Rule] = [
    ("push string_long_d", _F + '"""'),
    ("push string_long_s", _F + "'''"),
    ("push string_d", _F + '"'),
    ("push string_s", _F + "'"),
    ("string", _long('"')),
    ("string", _long("'")),
    ("string", _string('"', r'[^"\\\r\n]')),
    ("string", _string("'", r"[^'\\\r\n]")),
]


def _f_string(end: str, expression: str) -> list[Rule]:
    return [
        ("skip", r"\\N\{[^}\r\n]*\}|\\\r\n|\\[^{}]|\{\{|\}\}"),
        (f"push {expression}", r"\{"),
        ("pop", end),
    ]


def _expression(comment: list[Rule]) -> dict[str, list[Rule]]:
    """The inside of a replacement field; a comment may stand in it only where the string has several lines."""
    name = "long" if comment else "short"
    opening: Rule = (f"push nest_{name}", r"[(\[{]")
    spec: Rule = (f"push spec_{name}", ":")
    return {
        f"expression_{name}": [*comment, *_STRINGS, opening, ("skip", "!="), spec, ("pop", r"\}")],
        f"nest_{name}": [*comment, *_STRINGS, opening, ("pop", r"[)\]}]")],
        f"spec_{name}": [(f"push expression_{name}", r"\{"), ("pop", r"(?=\})|(?=\n)")],
    }


_COMMENT: Rule = ("comment", r"#[^\r\n]*")
_LEXER = Lexer(
    {
        "code": [_COMMENT, *_STRINGS],
        "string_d": _f_string(r'"|(?=[\r\n])', "expression_short"),
        "string_s": _f_string(r"'|(?=[\r\n])", "expression_short"),
        "string_long_d": _f_string('"""', "expression_long"),
        "string_long_s": _f_string("'''", "expression_long"),
        **_expression([]),
        **_expression([_COMMENT]),
    }
)


def comments(text: str) -> list[CharSpan]:
    """Spans of the comments of a Python file or fragment."""
    if "#" not in text:
        return []
    return _best(text).comments


def _best(text: str) -> Scan:
    plain = _LEXER.scan(text)
    if _BEGINS_IN_CODE.match(text):
        return plain
    first = _TRIPLE.search(text)
    end = first.end() if first else len(text)
    doubt = _misread(text, plain)
    if not doubt:
        return plain
    other = _scan_inside(text, end)
    gain = doubt - _misread(text, other)
    return other if gain > (0 if _may_be_doc(text, plain, end) else 2) else plain


def _may_be_doc(text: str, plain: Scan, end: int) -> bool:
    """Whether the text before the first triple quotes, up to `end`, could be the rest of a docstring."""
    strings = [(a, min(b, end)) for a, b in plain.strings if a < end]
    head = _blanked(text[:end], [*strings, *((a, b) for a, b in plain.comments if b <= end)])
    return _doc_lines(head) >= len(_CODE.findall(head))


def _scan_inside(text: str, end: int) -> Scan:
    """Lex a text that begins inside a docstring, which ends at `end`."""
    scan = _LEXER.scan(text, position=end)
    scan.strings.insert(0, (0, end))
    return scan


_BEGINS_IN_CODE = re.compile(
    r"""(?:[ \t]*(?:\#[^\n]*)?\r?\n)*(?:import[ ]\w|from[ ][\w.]+[ ]import[ ]|(?:async[ ])?def[ ]\w+\(|class[ ]\w+"""
    r"""[(:]|@\w|[rR]?(?:\"{3}|'{3})[A-Z])""",
    re.VERBOSE,
)
_TRIPLE = re.compile(r'"""|\'\'\'')
_PROSE = re.compile(
    r"^[ \t]*(?:[-*:]\s)?[A-Za-z]['\w-]*,?(?: [a-z`'\"(][\w`'\")-]*[,:;.]?){3}(?![^\s,:;.])[^=\[\]{}#\n]*$",
    re.MULTILINE,
)
_OPENS = re.compile(r"""(?:[=(\[{,+%]|:[ \t]|\b(?:return|yield|in))[ \t]*[rRbBuUfFtT]{0,2}(?:\"{3}|'{3})\Z""")
_CLOSES = re.compile(r"""(?:\"{3}|'{3})[)\],]""")
_DOC = re.compile(r"^[ \t]*(?:>>> |([-=~^])\1{3,}[ \t]*$|:\w+[^:\n]*: \w|\w+ : \w+)", re.MULTILINE)
_WORDS = re.compile(
    r"^[ \t]*(?:(?:async )?(?:for|if|elif|while|with|def)\b.*:|(?:from|import|return|yield|assert|raise|del|print"
    r"|lambda|and|or|not|in|global|nonlocal|else|except)\b.*)$"
)
_CODE = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(|class \w+[(:]|import \w|from [\w.]+ import |return\b.*[\w)\]]$"
    r"|@\w|self\.\w|raise \w+\(|(?:(?:if|for|elif|with|while|except) .+|else|try|finally|except):[ \t]*$"
    r"|[a-z_]\w*(?:\.\w+)* = )",
    re.MULTILINE,
)


def _doc_lines(text: str) -> int:
    """How many lines read like a docstring: prose, prompts, underlines."""
    prose = sum(not _WORDS.match(m[0]) for m in _PROSE.finditer(text))
    return prose + len(_DOC.findall(text))


def _misread(text: str, scan: Scan) -> int:
    """How much looks wrong where it is: prose in code, code in long strings, quotes that open but should close."""
    long = [text[a:b] for a, b in scan.strings if b - a > 6 and (a == 0 or _TRIPLE.search(text, a, a + 5))]
    ends = sum(2 if _OPENS.search(s, len(s) - 40) else not s.endswith(('"""', "'''")) for s in long)
    starts = sum(2 for s in long if _CLOSES.match(s))
    code = sum(len(_CODE.findall(s)) for s in long)
    return _doc_lines(_blanked(text, [*scan.strings, *scan.comments])) + ends + starts + code


def _blanked(text: str, spans: list[CharSpan]) -> str:
    """`text` with `spans` taken out, each leaving one sign behind."""
    parts, position = [], 0
    for start, end in sorted(spans):
        if start >= position:
            parts += [text[position:start], "#"]
            position = end
    return "".join([*parts, text[position:]])
