"""Ruby: interpolation, here-documents, %-literals, regular expressions, `=begin` … `=end`, `__END__`."""

from __future__ import annotations

import re

from hesnr_tasks.actions.views import CharSpan
from hesnr_tasks.filters.lexing import EXACT, LOOSE, Lexer, LineIndex, Rule

__all__ = ["comments"]

_ESCAPE: Rule = ("skip", r"\\[\s\S]")
_BRACKETS = {"paren": (r"\(", r"\)"), "square": (r"\[", r"\]"), "brace": (r"\{", r"\}"), "angle": ("<", ">")}

_CODE: list[Rule] = [
    ("comment", r"#(?!\{)[^\r\n]*"),
    ("comment", r"^=begin\b[\s\S]*?(?:^=end\b[^\r\n]*|\Z)"),
    ("string", r"^__END__[ \t]*$[\s\S]*"),
    ("skip", r"\?#(?=[\s),\]]|\Z)|\$['\"`/]"),
    ("hole", r"<<[~-]?(?P<q>[\"'`]?)(?P<label>[A-Za-z_]\w*)(?P=q)"),
    *((f"push string_{name}", rf"(?<![\w)\]}}])%[qQwWiIrsx]?{opening}") for name, (opening, _) in _BRACKETS.items()),
    ("string", r"(?<![\w)\]}])%[qQwWiIrsx](?P<d>[|!/^:,+])[^\r\n]*?(?P=d)"),
    ("push string_d", '"'),
    ("push string_tick", "`"),
    ("string", r"'[^'\\]*(?:\\[\s\S][^'\\]*)*(?:'|\\?\Z)"),
    ("maybe", r"/(?:[^/\\\r\n]|\\[^\r\n]){1,400}/[a-z]{0,5}"),
]
_HOLE: Rule = ("push nest", r"#\{")


def _check(text: str, match: re.Match[str]) -> bool:
    """Whether `/` begins a regular expression: where no operand is, or after a name and a space (`puts /x/`)."""
    before = text[max(0, match.start() - 120) : match.start()]
    code = before.rstrip(" \t")
    if not code or not re.search(r"[\w)\]}\"'?!]\Z", code):
        return True
    if re.search(
        r"(?<![\w.])(?:if|unless|when|and|or|not|while|until|return|puts|in|then|elsif|do|split|match)\Z", code
    ):
        return True
    return code != before and code[-1].isalpha() and not match[0][1:2].isspace()


def _here_document(lines: LineIndex, match: re.Match[str]) -> CharSpan | None:
    """The body of the here-document that `match` announces: from the next line to the one that is its label."""
    loose = match[0][2] in "~-"
    start = lines.text.find("\n", match.end()) + 1
    if not start:
        return None
    end = lines.find(match["label"], start, LOOSE if loose else EXACT)
    if end < 0:
        return (start, len(lines.text)) if loose and match["label"].isupper() else None
    return start, end


_LEXER = Lexer(
    {
        "code": _CODE,
        "nest": [*_CODE, ("push nest", r"\{"), ("pop", r"\}")],
        "string_d": [_ESCAPE, _HOLE, ("pop", '"')],
        "string_tick": [_ESCAPE, _HOLE, ("pop", "`")],
        **{
            f"string_{name}": [_ESCAPE, (f"push string_{name}", opening), ("pop", closing)]
            for name, (opening, closing) in _BRACKETS.items()
        },
    },
    check=_check,
    hole=_here_document,
)


def comments(text: str) -> list[CharSpan]:
    """Spans of the comments of a Ruby file or fragment."""
    if "#" not in text and "=begin" not in text:
        return []
    return _LEXER.scan(text).comments
