"""Sentences and words of what an agent writes: prose with code spans, paths, lists and headings in it.

Code is found first and never read as words. Offsets are characters of the text given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["CODE", "Sentence", "Word", "prose", "sentences"]

CODE = "\ue000"  # stands for each character of code


class Word(NamedTuple):
    """A word, lower-cased; how many words stand before it in its sentence and in its clause."""

    start: int
    end: int
    text: str
    place: int
    clause: int
    gap: str  # what stands between the word before and this one, code as `CODE`


class Sentence(NamedTuple):
    """Characters `start` to `end`, and the words there; `place`: sentences before it in the text."""

    start: int
    end: int
    place: int
    words: tuple[Word, ...]


_OPENER = r"(?:The|This|That|These|We|I|It|Let|Now|Since|Given|To|In|All|If|So|But|However|Next|First|Then|There|Our)\b"
_CODE = re.compile(
    r"""
    (?P<fence>^[ \t]*(```+|~~~+).*?(?:^[ \t]*\2[ \t]*$|\Z))        # fenced block
  | (?P<tick>`+)(?!`)[^\n]*?(?<!`)(?P=tick)(?!`)                    # code span
  | ^[ \t]*(?:>>>|\$[ ]|@@[ ]|diff[ ]--git|\+\+\+[ ]|---[ ]|File[ ]")[^\n]*  # prompt, diff, traceback
  | </?[A-Za-z_][^<>\n]{0,200}>                                     # tag
  | \w+://\S+                                                       # address
  | (?<![\w/])(?:~|\.{1,2})?/[\w.@*-]*\w(?:/[\w.@*-]*)*             # /absolute, ./relative
  | \w[\w.@-]*(?:/[\w.@*-]+)*/\w[\w@-]*\.\w+ | \w+(?:/\w+){2,}/?    # a/b.py, a/b/c
  | [A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\((?!e?s\))[^()\n]*\)            # call(…), but not file(s)
  | (?<!\w)(?!(?:e\.g|i\.e)\b)[A-Za-z_]\w*(?:\.(?!OPENER)[A-Za-z_]\w*)+  # dotted.name, file.py
  | (?<!\w)(?:[^\W_]+_|_)\w+                                        # snake_case, _private
  | (?<!\w)[a-z]*(?:[A-Z][a-z0-9]+){2,}\w*                          # CamelCase
  | (?<![\w-])--?[A-Za-z][\w-]*(?:=\S+)? | \$\w+                    # -f, --flag=…, $NAME
    """.replace("OPENER", _OPENER),
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_LINE = re.compile(r"[^\n]*\n?")
_MARKER = re.compile(r"[ \t]*(?:(?:[-*+•‣>]|#{1,6}|\(?\d{1,3}[.)]|\(?[a-z]\))[ \t]+)+")
_JOINED = rf"(?<=[a-z{CODE})][.!?])(?={_OPENER})"  # the space was forgotten
_END = re.compile(rf"[.!?…]+[\"'”’)\]*_]*(?:\s+|{_JOINED})|[。！？]+[”’」』）]*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CLAUSE = re.compile(r"[,;:()\[\]!?.…—–\"“”]|\s-+\s")
_SHORT = frozenset(("e.g", "i.e", "vs", "cf", "mr", "mrs", "dr", "fig", "eq", "approx", "resp", "incl"))
_OPENERS = "\"'“‘([*_"


def prose(text: str) -> str:
    """`text`, of the same length, with code made unreadable."""
    return _CODE.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    # a path or name at the end of a sentence does not swallow the full stop
    found = match[0]
    kept = "" if match["fence"] or match["tick"] else found[len(found.rstrip(".")) :]
    return re.sub(r"[^\n]", CODE, found[: len(found) - len(kept)]) + kept


def sentences(flat: str) -> list[Sentence]:
    """The sentences of one stretch of `prose` that have a word; a list item or heading is one or several of its own."""
    found: list[Sentence] = []
    for block_start, block_end in _blocks(flat):
        for start, end in _split(flat, block_start, block_end):
            words = tuple(_words(flat, start, end))
            if words:
                found.append(Sentence(start, end, len(found), words))
    return found


def _blocks(flat: str) -> Iterator[tuple[int, int]]:
    """Paragraphs, list items and headings. A line that goes on in lower case belongs to the one before it."""
    start = end = -1
    for match in _LINE.finditer(flat):
        line = match[0]
        marker = _MARKER.match(line)
        body = match.start() + (marker.end() if marker else 0)
        ending = flat[start:end].rstrip()[-1:] if start >= 0 else ""
        goes_on = start >= 0 and not marker and line.lstrip()[:1].islower() and ending not in (*".!?:", CODE)
        if not goes_on and start >= 0:
            yield start, end
            start = -1
        if line.strip():
            start, end = (start if goes_on else body), match.end()
    if start >= 0:
        yield start, end


def _split(flat: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    at = start
    for match in _END.finditer(flat, start, end):
        if _ends(flat, at, match, end):
            yield _trimmed(flat, at, match.end())
            at = match.end()
    if at < end:
        yield _trimmed(flat, at, end)


def _ends(flat: str, start: int, match: re.Match[str], end: int) -> bool:
    """Whether the sentence that began at `start` ends with this full stop."""
    if match[0][0] in "。！？":
        return True
    rest = flat[match.end() : min(end, match.end() + 8)].lstrip(_OPENERS)
    if not rest or rest[0].islower():
        return not rest
    before = flat[start : match.start()].rsplit(None, 1)[-1:]
    last = before[0].lstrip(_OPENERS).lower() if before else ""
    return match[0][0] != "." or not (last in _SHORT or (len(last) == 1 and last.isalpha() and last != "i"))


def _trimmed(flat: str, start: int, end: int) -> tuple[int, int]:
    piece = flat[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


def _words(flat: str, start: int, end: int) -> Iterator[Word]:
    place = clause = 0
    last = start
    for match in _WORD.finditer(flat, start, end):
        gap = flat[last : match.start()]
        if CODE in gap:  # code has its place in the sentence as a word has
            place, clause = place + 1, clause + 1
        if _CLAUSE.search(gap.rsplit(CODE, 1)[-1]):
            clause = 0
        yield Word(match.start(), match.end(), match[0].lower().replace("’", "'"), place, clause, gap)
        place, clause, last = place + 1, clause + 1, match.end()
