"""Programs inside other text: here-documents and scripts in shell, sides of patches, fenced blocks in markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from hesnr_tasks.filters.languages import by_file_name, by_interpreter, by_look, by_tag
from hesnr_tasks.filters.patches import sides
from hesnr_tasks.filters.shell import Command, HereDocument, Word, lex_shell
from hesnr_tasks.filters.views import View, unescape

__all__ = ["embedded"]

Piece = tuple[View, str]


def embedded(view: View, language: str) -> Iterator[Piece]:
    """The pieces of other languages inside `view`, one level deep."""
    if language == "shell":
        yield from _in_shell(view)
    elif language == "patch":
        yield from sides(view)
    elif language in ("markdown", "rst", "text", "prose"):
        yield from _in_fences(view)


# --- shell ----------------------------------------------------------------------------------------------------------


def _in_shell(view: View) -> Iterator[Piece]:
    if not any(mark in view.text for mark in ("<<", " -", "edit ", "apply_patch")):
        return
    script = lex_shell(view.text)
    for document in script.documents:
        body = view.cut(document.start, document.end)
        language = _document_language(document, body.text)
        if language:
            yield body, language
    for command in script.commands:
        for word, language in _inline(command):
            yield _unquoted(view, word), language


def _document_language(document: HereDocument, body: str) -> str | None:
    """By the files it is written to, else by the program that reads it, else by its shebang."""
    after = document.pipeline[document.pipeline.index(document.command) :]
    names = [word.text for command in after for word in command.targets]
    names += [word.text for command in after if _program(command, "tee") for word in command.words[1:]]
    for name in names:
        language = by_file_name(name)
        if language:
            return language
    if document.delimiter == "end_of_edit":
        return by_look(body)
    readers = (_reader(command) for command in after)
    return next((language for language in readers if language), None) or _by_shebang(body)


def _by_shebang(body: str) -> str | None:
    return by_look(body) if body.lstrip().startswith("#!") else None


def _program(command: Command, *names: str) -> bool:
    return any(word.text.rpartition("/")[2] in names for word in command.words)


def _reader(command: Command) -> str | None:
    """The language of the program that `command` reads from its standard input, if it does."""
    if _program(command, "patch", "apply_patch", "applypatch"):
        return "patch"
    words = [word.text for word in command.words]
    if "git" in words and ("apply" in words or "am" in words):
        return "patch"
    for i, word in enumerate(words):
        language = by_interpreter(word)
        if language and (language == "sql" or not _has_script(words[i + 1 :])):
            return language
    return None


def _has_script(arguments: list[str]) -> bool:
    """Whether an interpreter is given its program as an argument, so that its input is data."""
    first = next((a for a in arguments if a != "--" and (a == "-" or not a.startswith("-"))), "-")
    options = [a for a in arguments if a.startswith("-") and len(a) > 1]
    return first not in ("-", "/dev/stdin") or any(_SCRIPT_OPTION.fullmatch(a) or a == "-m" for a in options)


_SCRIPT_OPTION = re.compile(r"-\w*[ce]|--(?:eval|execute|command|print)|-pe?|-r|-i?p?n?e")
_OPTIONS = {
    "python": re.compile(r"-\w*c"),
    "shell": re.compile(r"-\w*c"),
    "javascript": re.compile(r"-e|-p|-pe|--eval|--print|eval"),
    "typescript": re.compile(r"-e|-p|-pe|--eval|--print"),
    "ruby": re.compile(r"-\w*e"),
    "perl": re.compile(r"-\w*[eE]"),
    "php": re.compile(r"-r"),
    "sql": re.compile(r"-c|-e|--command|--execute"),
    "lua": re.compile(r"-e"),
    "r": re.compile(r"-e"),
    "julia": re.compile(r"-e|-E"),
    "elixir": re.compile(r"-e"),
}


def _inline(command: Command) -> Iterator[tuple[Word, str]]:
    """Words that are programs given on the command line: the word after `-c`, `-e` … of an interpreter."""
    language: str | None = None
    option: re.Pattern[str] | None = None
    words = command.words
    for word, following in pairwise(words):
        if word.text == "apply_patch" and following.quote:
            yield following, "patch"
        named = by_interpreter(word.text) if not word.text.startswith("-") else None
        if named in _OPTIONS:
            language, option = named, _OPTIONS[named]
        elif language and option and option.fullmatch(word.text):
            if following.quote:
                yield following, language
            language = option = None


_DOUBLE_ESCAPE = re.compile(r"\\(?:\r?\n|[\"\\$`])")
_ANSI_ESCAPE = re.compile(r"\\[\s\S]")
_ANSI_VALUES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}


def _unquoted(view: View, word: Word) -> View:
    inner = view.cut(word.start + len(word.quote), max(word.start + len(word.quote), word.end - 1))
    if word.quote == '"':
        return unescape(inner, _DOUBLE_ESCAPE, lambda escape: "" if escape[-1] == "\n" else escape[1:])
    if word.quote == "$'":
        return unescape(inner, _ANSI_ESCAPE, lambda escape: _ANSI_VALUES.get(escape, escape[1:]))
    return inner


# --- fences in markdown ---------------------------------------------------------------------------------------------

_FENCED = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*\n", re.MULTILINE)


def _in_fences(view: View) -> Iterator[Piece]:
    position = 0
    while opener := _FENCED.search(view.text, position):
        closer = re.compile(rf"^[ \t]*{opener[2]}[`~]*[ \t]*$", re.MULTILINE).search(view.text, opener.end())
        end = closer.start() if closer else len(view.text)
        language = by_tag(opener[3])
        if language:
            yield view.cut(opener.end(), end), language
        position = closer.end() if closer else end
