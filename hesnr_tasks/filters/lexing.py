"""The lexer behind the grammars: modes on a stack, each one compiled pattern of the tokens that matter.

A grammar names only the tokens that can hold, or hide, a comment mark (comments, strings, regular expressions, brackets
of interpolations); everything between them is skipped by one search. That makes it fast, linear, independent of any
installed compiler, and tolerant: text that no compiler would take still has its strings and comments found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hesnr_tasks.filters.views import CharSpan

__all__ = ["Lexer", "Rule", "Scan"]

Rule = tuple[str, str]  # what to do (comment, string, skip, push MODE, pop) and the pattern of the token


@dataclass(slots=True)
class Scan:
    """What one pass found."""

    comments: list[CharSpan] = field(default_factory=list)
    strings: list[CharSpan] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)  # modes still open at the end


class Lexer:
    """Tokens by mode. `check`, if given, may refuse a match that needs more context than a pattern can see."""

    def __init__(
        self, modes: Mapping[str, Sequence[Rule]], check: Callable[[str, re.Match[str], str], bool] | None = None
    ) -> None:
        self._modes = {name: _compile(rules) for name, rules in modes.items()}
        self._check = check

    def scan(self, text: str, mode: str = "code") -> Scan:
        """Lex `text`, beginning in `mode`. Never raises; linear time."""
        result, opened = Scan(stack=[mode]), [0]
        pattern, actions = self._modes[mode]
        position = 0
        while match := pattern.search(text, position):
            action, target = actions[match.lastgroup or ""]
            start, end = match.span()
            position = end if end > start else end + 1
            if self._check is not None and not self._check(text, match, action):
                position = start + 1
            elif action == "comment":
                result.comments.append((start, end))
            elif action == "string":
                result.strings.append((start, end))
            elif action == "push" or (action == "pop" and len(opened) > 1):
                position = end  # a token of no width may end a mode: the stack is shorter, so this ends
                mode = _move(result, opened, match, target)
                pattern, actions = self._modes[mode]
            if position > len(text):
                break
        return result


def _move(scan: Scan, opened: list[int], match: re.Match[str], target: str) -> str:
    """Enter mode `target`, or leave the present one where there is no target; the mode that holds now."""
    if target:
        scan.stack.append(target)
        opened.append(match.start())
    else:
        left, start = scan.stack.pop(), opened.pop()
        if left.startswith("string"):
            scan.strings.append((start, match.end()))
    return scan.stack[-1]


def _compile(rules: Sequence[Rule]) -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    pattern = "|".join(f"(?P<r{i}>{token})" for i, (_, token) in enumerate(rules))
    actions = {}
    for i, (what, _) in enumerate(rules):
        action, _, target = what.partition(" ")
        actions[f"r{i}"] = (action, target)
    return re.compile(pattern), actions
