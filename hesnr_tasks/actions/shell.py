"""What a shell text runs: its simple commands, the words that name program and operands, one canonical spelling.

Texts are lexed (`filters.lexers.shell`), never executed. Nothing here raises, whatever the text.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hesnr_tasks.actions.tools import names
from hesnr_tasks.filters.lexers.shell import Command, HereDocument, Script, Word, lex_shell

__all__ = ["Simple", "canonical", "operands", "program", "program_name", "simple_commands", "values", "verb"]

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
    commands: list[Simple] = []
    end = before = 0
    for command in sorted(script.commands, key=lambda command: _extent(command)[0]):
        start, stop = _extent(command)
        if start < end:  # in a substitution of the command before
            continue
        piped = bool(commands) and bool(_PIPE.search(text[before:start].split("\n")[0]))
        words = _bare_words(command.words, text)
        if words or command.targets:
            spans = tuple((word.start, word.end) for word in words)
            values = tuple(_value(word, text) for word in words)
            commands.append(Simple(values, spans, _writes(command, text), bodies.get(id(command)), piped))
            end = stop
        before = stop
    return commands


def _extent(command: Command) -> CharSpan:
    places = [*command.words, *command.targets]
    return min(word.start for word in places), max(word.end for word in places)


def _bare_words(words: list[Word], text: str) -> list[Word]:
    """Without reserved words and assignments before the command."""
    i = 0
    while i < len(words) and (words[i].text in _OPENERS or _ASSIGNMENT.match(text, words[i].start, words[i].end)):
        i += 1
    return [] if i < len(words) and words[i].text in _NO_COMMAND else words[i:]


def _value(word: Word, text: str) -> str:
    """The word without quotes; as it stands where something would be put in its place."""
    raw = text[word.start : word.end]
    return raw if word.quote != "'" and re.search(r"\$[({]|`", raw) else word.text


def _writes(command: Command, text: str) -> tuple[str, ...]:
    """The files that standard output goes to; not other streams, not devices."""
    files = []
    for target in command.targets:
        operator = re.search(r"(\d*|&)>>?[|&]?[ \t]*$", text[max(0, target.start - 20) : target.start])
        stream, copied = (operator[1], ">&" in operator[0]) if operator else ("", False)
        if stream in ("", "1", "&") and not copied and not target.text.startswith("/dev/"):
            files.append(_value(target, text))
    return tuple(files)


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


# --- the words of a command ---


TAKES_VALUE: dict[str, str] = {  # options that are followed by a word of their own
    "grep": "-e -f -m -A -B -C -d --include --exclude --exclude-dir --max-count --color",
    "rg": "-e -f -m -A -B -C -g -t -T --type --glob -M --max-count --max-depth -d",
    "head": "-n -c", "tail": "-n -c", "sed": "-e -f --expression --file -l", "awk": "-F -v -f", "cut": "-d -f -c -b",
    "sort": "-k -t -o -S", "nl": "-b -n -w -s -v -h -f -i -l -d -p", "ls": "-I --ignore -w", "tree": "-L -I -P -o",
    "python": "-W -X", "perl": "-e -E -I", "jq": "--arg --indent", "touch": "-d -t -r", "cp": "-t", "mv": "-t",
    "du": "-d --max-depth --exclude", "patch": "-i -p -d -o", "mkdir": "-m", "truncate": "-s",
    "pytest": "-k -m -p -c -n -o -W --timeout --maxfail --tb --rootdir --ds --color --durations --cov --deselect "
    "--ignore --parallel --verbosity --settings --reuse-db --pyargs --confcutdir --junitxml --lf-file",
    "black": "-l --line-length -t", "od": "-A -t -N -j", "xxd": "-l -s", "make": "-C -f -j", "fd": "-e -t -d -E -H",
    "tox": "-e -c", "nox": "-s -e", "runtests.py": "--parallel --verbosity --settings",
}  # fmt: skip
ALIKE = {
    "egrep": "grep", "fgrep": "grep", "zgrep": "grep", "ag": "rg", "ack": "rg", "gawk": "awk", "py.test": "pytest",
    "pytest-3": "pytest", "fdfind": "fd", "ll": "ls", "dir": "ls", "nodejs": "node", "pip3": "pip", "rspec": "pytest",
}  # fmt: skip
WRAPPERS = names(
    "sudo env time nice nohup command exec stdbuf timeout xargs poetry uv pipenv hatch pdm bundle "
    "conda mamba npx unbuffer setsid xvfb-run builtin catchsegv coverage"
)
RUNNERS = {"poetry": "run", "uv": "run", "pipenv": "run", "hatch": "run", "pdm": "run", "bundle": "exec",
            "conda": "run", "mamba": "run", "coverage": "run"}  # fmt: skip
WRAPPER_VALUES = names("-n -u -I -P -d -L -s -k -p -g --name --prefix --signal --kill-after -o --source")


_PYTHON = re.compile(r"^(i?python|pypy)[\d.]*w?$")


def program(words: Sequence[str]) -> int:
    """The place of the word that names the program, behind `sudo`, `timeout 60`, `poetry run` and their like."""
    at = 0
    while at < len(words) and words[at] in WRAPPERS:
        name, after = words[at], at + 1
        if name in RUNNERS:
            if list(words[after : after + 1]) != [RUNNERS[name]]:
                return at
            after += 1
        after = _past_options(words, after)
        if name == "timeout":
            after += 1
        while name == "env" and after < len(words) and re.match(r"\w+=", words[after]):
            after += 1
        if after >= len(words):
            return at
        at = after
    return at


_SUBCOMMANDS = names(
    "git hg svn pip npm yarn pnpm cargo go poetry uv pipenv conda mvn gradle dotnet docker apt apt-get gh"
)


def verb(words: Sequence[str]) -> int:
    """How many words of a command, from the program on, say what is done: `git diff`, `sed -n`, `python -m pytest`."""
    name = program_name(words[0]) if words else ""
    following = words[1] if len(words) > 1 else ""
    if name == "python":
        return min(len(words), 3 if following == "-m" else 2 if following.startswith("-") else 1)
    if name in _SUBCOMMANDS or (name == "sed" and following.startswith("-")):
        return min(len(words), 2)
    return min(len(words), 1)


def _past_options(words: Sequence[str], at: int) -> int:
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        at += 2 if words[at] in WRAPPER_VALUES else 1
    return at


def operands(words: Sequence[str]) -> list[str]:
    """The words of a command that are neither its name nor options nor values of options."""
    takes = TAKES_VALUE.get(program_name(words[0]), "").split()
    operand_words, i, options = [], 1, True
    while i < len(words):
        word = words[i]
        if options and word == "--":
            options = False
        elif options and word.startswith("-") and len(word) > 1:
            i += word in takes
        elif word != "-":
            operand_words.append(word)
        i += 1
    return operand_words


def program_name(word: str) -> str:
    """The program's name, without its folder; one name for programs that take the same arguments."""
    name = word.rsplit("/", 1)[-1] if not word.endswith("/") else word
    name = "python" if _PYTHON.match(name) else name
    return ALIKE.get(name, name)


def values(words: Sequence[str], *options: str) -> list[str]:
    """The values of `options` among words: `-e X`, `--regexp=X`."""
    following = [after for word, after in itertools.pairwise(words) if word in options]
    return following + [word.split("=", 1)[1] for word in words if "=" in word and word.split("=", 1)[0] in options]
