"""Where the code of a fragment begins, if the fragment begins inside a block comment or a string of several lines.

Comment: an `old_str` that starts at ` * @param`; everything up to the first `*/` is comment. It is taken so if that
`*/` stands where code cannot have it and no `/*` comes before it, or if all lines begin with `* `.

String: everything up to the first quote is string if that quote can only close: what follows it ends an expression,
what comes before it on its line opens none, and no line before looks like code or comment.
"""

from __future__ import annotations

import re

__all__ = ["after_comment", "after_string"]

_STARS = re.compile(r"\s*\*(?:[ \t\r\n]|\Z)")
_LEAD = re.compile(r"[ \t]*(?:\*(?:[ \t][^\n]*)?)?\Z")


def after_comment(text: str) -> int:
    """The length of the part that a `/*` before the fragment takes up."""
    end = text.find("*/")
    opening = text.find("/*")
    if end < 0:
        lines = [line for line in text.split("\n") if line.strip()]
        return len(text) if lines and opening < 0 and all(map(_STARS.match, lines)) else 0
    if 0 <= opening < end:
        return 0
    line = text[text.rfind("\n", 0, end) + 1 : end]
    quotes = any(line.count(quote) % 2 for quote in "\"'`")
    return end + 2 if _LEAD.match(line) or not quotes else 0


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
