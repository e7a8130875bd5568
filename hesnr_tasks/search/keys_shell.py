"""The simple commands of a shell text, as far as they tell what it does, and the text in one canonical spelling."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from hesnr_tasks.filters.shell import Command, HereDocument, Script, Word, lex_shell

__all__ = ["Simple", "canonical", "simple_commands"]

CharSpan = tuple[int, int]


class Simple(NamedTuple):
    """One simple command: its words without quotes, where they stand, and the files its output goes to."""

    words: tuple[str, ...]
    spans: tuple[CharSpan, ...]
    writes: tuple[str, ...] = ()
    body: str | None = None  # of a here-document that it reads
    piped: bool = False  # it reads what the command before it prints


_ASSIGNMENT = re.compile(r"\w+\+?=")
_OPENERS = ("do", "then", "else", "if", "elif", "while", "until", "!", "{", "time")
_NO_COMMAND = ("for", "case", "select", "function", "done", "fi", "esac", "}", "in", "[", "[[", "((", "")
_PIPE = re.compile(r"(?<!\|)\|(?!\|)")


def simple_commands(text: str) -> list[Simple]:
    """The commands of `text` in order, without reserved words and leading assignments. Never raises."""
    script = lex_shell(text)
    bodies = {id(document.command): text[document.start : document.end] for document in script.documents}
    found: list[Simple] = []
    end = before = 0
    for command in sorted(script.commands, key=lambda one: _extent(one)[0]):
        start, stop = _extent(command)
        if start < end:  # in a substitution of the command before
            continue
        piped = bool(found) and bool(_PIPE.search(text[before:start].split("\n")[0]))
        words = _bare_words(command.words, text)
        if words or command.targets:
            spans = tuple((word.start, word.end) for word in words)
            values = tuple(_value(word, text) for word in words)
            found.append(Simple(values, spans, _writes(command, text), bodies.get(id(command)), piped))
            end = stop
        before = stop
    return found


def _extent(command: Command) -> CharSpan:
    places = [*command.words, *command.targets]
    return min(word.start for word in places), max(word.end for word in places)


def _bare_words(words: list[Word], text: str) -> list[Word]:
    """Without reserved words and assignments before the command."""
    at = 0
    while at < len(words) and (words[at].text in _OPENERS or _ASSIGNMENT.match(text, words[at].start, words[at].end)):
        at += 1
    return [] if at < len(words) and words[at].text in _NO_COMMAND else words[at:]


def _value(word: Word, text: str) -> str:
    """The word without quotes; as it stands where something would be put in its place."""
    raw = text[word.start : word.end]
    return raw if word.quote != "'" and re.search(r"\$[({]|`", raw) else word.text


def _writes(command: Command, text: str) -> tuple[str, ...]:
    """The files that standard output goes to; not other streams, not devices."""
    found = []
    for target in command.targets:
        operator = re.search(r"(\d*|&)>>?[|&]?[ \t]*$", text[max(0, target.start - 20) : target.start])
        stream, copied = (operator[1], ">&" in operator[0]) if operator else ("", False)
        if stream in ("", "1", "&") and not copied and not target.text.startswith("/dev/"):
            found.append(_value(target, text))
    return tuple(found)


# --- canonical spelling ---------------------------------------------------------------------------------------------

_SPECIAL = re.compile(r"[*?\[\]{}~!]")
_GAP = re.compile(
    r"""(?P<space>(?:[ \t\r]|\\\r?\n)+)|(?P<newline>\n)
    |(?P<heredoc><<-?(?!<)[ \t]*(?:'[^'\n]*'|"[^"\n]*"|\\?[^\s<>();&|]+))
    |(?P<redirect>(?:&|\d+)?(?:<<<|>>|>|<)[|&]?)|(?P<operator>&&|\|\|?&?|;;?&?|&|\(|\))|(?P<rest>.)""",
    re.VERBOSE,
)
_JOINERS = ("&&", "||", "|", "|&", ";", "&", "(", ";;", "do", "then", "else", "{", "")


def canonical(text: str) -> str:
    """One spelling for commands that differ only in white space, comments, quotes that change nothing and line ends.

    Here-documents keep their bodies, and lose the name of their delimiter. Never raises.
    """
    script = lex_shell(text)
    pieces: list[str] = []
    for piece in _pieces(text, script):
        if piece == ";" and (pieces[-1:] or [""])[0] in _JOINERS:
            continue
        pieces.append(piece)
    while pieces[-1:] == [";"]:
        pieces.pop()
    return re.sub(r"([<>]&?) (?=\S)", r"\1", " ".join(pieces))


def _pieces(text: str, script: Script) -> Iterator[str]:
    """Words in canonical quotes, and what stands between them, in order."""
    marks: list[tuple[int, int, str | None]] = [(start, end, None) for start, end in script.comments]
    marks += [
        (document.start, _after(document, text), "<" + _body(document, text) + ">") for document in script.documents
    ]
    for command in script.commands:
        marks += [(word.start, word.end, _quoted(word, text)) for word in [*command.words, *command.targets]]
    at = 0
    for start, end, piece in sorted(marks, key=lambda mark: (mark[0], -mark[1])):
        if start < at:  # inside a word
            continue
        yield from _between(text[at:start])
        if piece is not None:
            yield piece
        at = end
    yield from _between(text[at:])


def _between(gap: str) -> Iterator[str]:
    for match in _GAP.finditer(gap):
        kind, token = match.lastgroup, match[0]
        if kind == "newline":
            yield ";"
        elif kind == "heredoc":
            yield "<<"
        elif kind != "space":
            yield token


def _body(document: HereDocument, text: str) -> str:
    lines = text[document.start : document.end].splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _after(document: HereDocument, text: str) -> int:
    at = text.find(document.delimiter, document.end) if document.delimiter else -1
    return at + len(document.delimiter) if at >= 0 else document.end


def _quoted(word: Word, text: str) -> str:
    raw = text[word.start : word.end]
    if word.quote != "'" and ("$" in raw or "`" in raw):
        return raw
    if not word.quote and _SPECIAL.search(raw):
        return raw
    return shlex.quote(word.text)
