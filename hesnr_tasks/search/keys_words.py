"""The words of a shell command: which of them names the program, which are options, which are operands."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from hesnr_tasks.search.keys_tables import ALIKE, RUNNERS, TAKES_VALUE, WRAPPER_VALUES, WRAPPERS, names

__all__ = ["operands", "program", "program_name", "values", "verb"]

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
    found, at, options = [], 1, True
    while at < len(words):
        word = words[at]
        if options and word == "--":
            options = False
        elif options and word.startswith("-") and len(word) > 1:
            at += word in takes
        elif word != "-":
            found.append(word)
        at += 1
    return found


def program_name(word: str) -> str:
    """The program's name, without its folder; one name for programs that take the same arguments."""
    name = word.rsplit("/", 1)[-1] if not word.endswith("/") else word
    name = "python" if _PYTHON.match(name) else name
    return ALIKE.get(name, name)


def values(words: Sequence[str], *options: str) -> list[str]:
    """The values of `options` among words: `-e X`, `--regexp=X`."""
    found = [after for word, after in itertools.pairwise(words) if word in options]
    return found + [word.split("=", 1)[1] for word in words if "=" in word and word.split("=", 1)[0] in options]
