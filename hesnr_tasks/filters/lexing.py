"""The lexer behind the grammars: modes on a stack, each one compiled pattern of the tokens that matter.

A grammar names only the tokens that can hold, or hide, a comment mark (comments, strings, regular expressions, brackets
of interpolations); everything between them is skipped by one search. That makes it fast, linear, independent of any
installed compiler, and tolerant: text that no compiler would take still has its strings and comments found.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hesnr_tasks.actions.views import CharSpan

__all__ = ["EXACT", "LOOSE", "TABS", "Lexer", "LineIndex", "Rule", "Scan"]

Rule = tuple[str, str]
"""What to do with a token, and its pattern (multi-line: `^` and `$` are ends of lines). What to do is one of

- `comment`, `string`, `skip`: pass over it, and note it as what it is;
- `push MODE`, `pop`: enter a mode, leave it (modes named `string…` and `comment…` are noted as such when left);
- `hole`: ask the lexer's `hole` for a later stretch of text to pass over (the body of a here-document);
- `maybe`, `maybe MODE`: a string, or the beginning of one, iff the lexer's `check` agrees.
"""


@dataclass(slots=True)
class Scan:
    """What one pass found."""

    comments: list[CharSpan] = field(default_factory=list)
    strings: list[CharSpan] = field(default_factory=list)
    stack: list[tuple[str, int]] = field(default_factory=list)  # open modes and where they began
    holes: list[CharSpan] = field(default_factory=list)  # still to come, the last one first


class Lexer:
    """Tokens by mode. `check` decides about `maybe` tokens, `hole` about `hole` tokens; both see text and match."""

    def __init__(
        self,
        modes: Mapping[str, Sequence[Rule]],
        check: Callable[[str, re.Match[str]], bool] | None = None,
        hole: Callable[[LineIndex, re.Match[str]], CharSpan | None] | None = None,
    ) -> None:
        self._modes = {name: _compile(rules) for name, rules in modes.items()}
        self._check, self._hole = check, hole

    def scan(self, text: str, *modes: str, position: int = 0, end: int | None = None) -> Scan:
        """Lex `text` from `position` to `end`, beginning in `modes` (the innermost last). Never raises; linear time."""
        limit = len(text) if end is None else end
        result = Scan(stack=[(mode, position) for mode in modes or ("code",)])
        lines = LineIndex(text)
        pattern, actions = self._modes[result.stack[-1][0]]
        while position <= limit and (match := pattern.search(text, position, limit)):
            action, target = actions[match.lastgroup or ""]
            start, stop = match.span()
            if result.holes and start >= result.holes[-1][0]:
                position = max(position, result.holes.pop()[1])
                continue
            position = stop if stop > start else stop + 1
            if action == "maybe" and target and self._check and self._check(text, match):
                action = "push"
            if action in ("push", "pop"):
                if _move(result, match, target):
                    position = stop  # a token of no width may end a mode: the stack is shorter, so this ends
                    pattern, actions = self._modes[result.stack[-1][0]]
            elif action == "comment":
                result.comments.append((start, stop))
            elif action == "string":
                result.strings.append((start, stop))
            elif action != "skip" and (target or not self._special(lines, match, action, result)):
                position = start + 1
        _finish(result, limit)
        return result

    def _special(self, lines: LineIndex, match: re.Match[str], action: str, scan: Scan) -> bool:
        """Deal with a `maybe` or a `hole`; whether the token is what it seemed to be."""
        if action == "maybe":
            agreed = self._check is None or self._check(lines.text, match)
            scan.strings += [match.span()] if agreed else []
            return agreed
        span = self._hole(lines, match) if self._hole else None
        if span and (not scan.holes or span[0] < scan.holes[0][0]):
            scan.holes.insert(0, span)
        elif span:  # several on one line: the bodies follow each other
            scan.holes[0] = (scan.holes[0][0], max(span[1], scan.holes[0][1]))
        return True


def _move(scan: Scan, match: re.Match[str], target: str) -> bool:
    """Enter mode `target`, or leave the present one where there is no target; False if there is none to leave."""
    if target:
        scan.stack.append((target, match.start()))
        return True
    if len(scan.stack) == 1:
        return False
    _leave(scan, match.end())
    return True


def _leave(scan: Scan, end: int) -> None:
    mode, start = scan.stack.pop()
    if mode.startswith("string"):
        scan.strings.append((start, end))
    elif mode.startswith("comment") and not (scan.stack and scan.stack[-1][0].startswith("comment")):
        scan.comments.append((start, end))


def _finish(scan: Scan, end: int) -> None:
    """Close the modes that are open where the text ends; `stack` keeps them."""
    stack = list(scan.stack)
    while scan.stack:
        _leave(scan, end)
    scan.stack = stack


def _compile(rules: Sequence[Rule]) -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    pattern = "|".join(f"(?P<r{i}>{token})" for i, (_, token) in enumerate(rules))
    actions = {}
    for i, (what, _) in enumerate(rules):
        action, _, target = what.partition(" ")
        actions[f"r{i}"] = (action, target)
    return re.compile(pattern, re.MULTILINE), actions


EXACT, TABS, LOOSE = "=", "\t", "~"  # ways for lines to be alike, see `LineIndex.find`


class LineIndex:
    """Where lines of a given content begin, made when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts: dict[str, list[int]] | None = None

    def find(self, line: str, position: int, how: str = EXACT) -> int:
        """Start of the first line at or after `position` that is `line`, or -1.

        `how`: `EXACT`; `TABS`: tabs before it do not count; `LOOSE`: nor white space around it and closing brackets,
        quotes and punctuation after it.
        """
        if self._starts is None:
            self._starts = _line_starts(self.text)
        starts = self._starts.get(how + line, [])
        at = bisect_left(starts, position)
        return starts[at] if at < len(starts) else -1


def _line_starts(text: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    start = 0
    for line in text.split("\n"):
        if len(line) <= 100:
            plain = line.removesuffix("\r")
            for key in (EXACT + plain, TABS + plain.lstrip("\t"), LOOSE + plain.strip().rstrip(")\"';,.`")):
                found.setdefault(key, []).append(start)
        start += len(line) + 1
    return found
