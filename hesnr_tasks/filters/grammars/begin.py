"""Where the code of a fragment begins, if the fragment begins inside a block comment or a string of several lines.

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

from hesnr_tasks.actions.views import CharSpan

__all__ = ["after_comment", "after_string"]

Tokens = Callable[[str], list[CharSpan]]  # the comments and strings of a text that begins in code

_STARS = re.compile(r"\s*\*(?:[ \t\r\n]|\Z)")
_DOCUMENTED = re.compile(r"\s*\*[ \t]+(?:@\w|<\w|-[ \t]|[\w'\"`(][^\s;{}=]*[ \t]+[\w'\"`(]|[A-Z]\w+[.:]?\s*\Z)")
_CLAUSE = re.compile(
    r"[;{}\[(]\s*\Z|^\s*[)\]}@#.&|?]|[\w)\]]\(|\)\s*[,:]?\s*\Z|=>|->|\w\s?[-+*/%&|^<>!=]?=\s*\S|\w\.\w+\(|^\s*//"
    r"|^\s*\*[ \t]+html\b"
    r"|^\s*(?:import|export|const|let|var|function|class|package|fn|pub|mod|impl|struct|enum|return|public|private"
    r"|protected|static|else|case)\b(?! [a-z]+ [a-z])"
)

_PROSE = re.compile(r"[\s*]*[\w'\"(.-]+,?(?:[ \t]+[\w'\"(/.-]+[,.:;!?)'\"]*){3,}\s*\Z")


def after_comment(text: str, tokens: Tokens) -> int:
    """The length of the part that a `/*` before the fragment takes up."""
    end = text.find("*/")
    opening = text.find("/*")
    if end < 0:
        return len(text) if opening < 0 and _is_documentation(text) else 0
    if 0 <= opening < end or text.startswith("/*", end + 1):
        return 0
    start = text.rfind("\n", 0, end) + 1
    lines = [line for line in text[:start].split("\n") if line.strip()]
    last = text[start:end]
    if all(map(_STARS.match, lines)) and (lines or not last.strip()) and (not last.strip() or _STARS.match(last)):
        return end + 2
    stop = text.find("\n", end)
    line_end = stop if stop >= 0 else len(text)
    if any(a <= end < b for a, b in tokens(text[:line_end])):
        return 0
    if not last.strip():
        return end + 2
    clauses = sum(bool(_CLAUSE.search(line)) for line in (*lines, last))
    prose = sum(bool(_PROSE.match(line)) for line in (*lines, last))
    return end + 2 if 3 * clauses <= prose - clauses or not clauses else 0


def _is_documentation(text: str) -> bool:
    """Whether every line begins with a star and most read like documentation, not like `* { margin: 0; }`."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or not all(map(_STARS.match, lines)):
        return False
    documented = sum(bool(_DOCUMENTED.match(line)) for line in lines)
    return documented > (0 if len(lines) > 2 else sum(bool(_CLAUSE.search(line)) for line in lines))


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


def after_string(text: str, quote: str) -> int:
    """The length of the part that a string opened before the fragment takes up; it ends with `quote`."""
    at = text.find(quote)
    if at < 0:
        return 0
    line = text[text.rfind("\n", 0, at) + 1 : at]
    end = at + len(quote)
    closes = text[end : end + 1] in (*";),.}",) or (text.startswith("\n", end) and line.strip())
    if not closes or _OPENS.search(line[-100:]) or line.endswith("\\"):
        return 0
    return 0 if _CODE.search(text, 0, at) else end
