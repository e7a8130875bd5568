"""The pieces of an action, each in one language: parameters, commands, and the programs inside commands.

A value's language comes from, in this order: a sibling parameter that names a file (`path`, `filename` …), what the
tool runs (`execute_bash`: shell, `execute_ipython_cell`: Python), the fence tag, a shebang, its look (only for editing
tools without a file). Shell text is opened further: here-documents, scripts given to an interpreter, patches
(`shell.py`). A file or script inside another piece is a piece of its own, so a character can lie in several; a piece of
shell excludes nothing, because the shell lexer itself does not look into quotes and here-documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from hesnr_tasks.actions import Call, Parameter, parse_action
from hesnr_tasks.filters.embedded import embedded
from hesnr_tasks.filters.languages import by_file, by_interpreter, by_look, by_tag
from hesnr_tasks.filters.views import View, unescape

__all__ = ["Region", "regions"]


class Region(NamedTuple):
    """A piece of the action and the language it is in (a name of `languages.py`, or `prose`)."""

    view: View
    language: str


@lru_cache(maxsize=8)
def regions(text: str) -> tuple[Region, ...]:
    """All pieces of an action's text whose language is known. Never raises."""
    found = (region for call in parse_action(text) for region in _call(text, call))
    return tuple(piece for region in found for piece in _opened(region))


_DEPTH = 6  # scripts in scripts in scripts …


def _opened(region: Region) -> Iterator[Region]:
    level = [region]
    for _ in range(_DEPTH):
        yield from level
        level = [Region(view, language) for outer in level for view, language in embedded(outer.view, outer.language)]


_PATHS = frozenset(
    ("path", "file", "filepath", "filename", "targetfile", "targetpath", "absolutepath", "relativepath", "notebookpath")
)
_CONTENTS = re.compile(
    r"(?:(?:old|new|file|insert)_)?(?:str|string|code|text|source|contents?|insert)|replacement|search|replace|to_replace|code_edit"
)
_SHELL_TOOLS = re.compile(
    r"(?:\w*_)?(?:bash|shell|terminal|cmd|sh|console)(?:_\w+)?|run|execute|run_command|execute_command"
    r"|\w*exec",
    re.IGNORECASE,
)
_PYTHON_TOOLS = re.compile(r"(?:\w*_)?(?:i?python|jupyter)(?:_\w+)?", re.IGNORECASE)
_COMMANDS = (
    "command",
    "cmd",
    "code",
    "script",
    "commands",
    "input",
    "keystrokes",
    "python_code",
    "source",
    "bash_command",
)
_EDITORS = re.compile(
    r"edit|insert|create|write|append|\w*_?(?:edit|insert|create|replace|write)(?:_\w+)?", re.IGNORECASE
)
_PATCHES = re.compile(r"(?:\w*_)?(?:patch|diff)(?:_\w+)?", re.IGNORECASE)
_PROSE_TOOLS = re.compile(
    r"finish|submit|think|task_\w+|attempt_completion|ask\w*|message\w*|report\w*|done|complete", re.IGNORECASE
)
_PROSE = (
    "message",
    "summary",
    "thought",
    "final_thought",
    "description",
    "explanation",
    "question",
    "reason",
    "plan",
    "thinking",
)
_TEXTS = ("content", "text", "result", "answer", "output", "command", "response")


def _call(text: str, call: Call) -> Iterator[Region]:
    path = next((_value(text, p) for p in call.parameters if p.name.replace("_", "").lower() in _PATHS), None)
    for parameter in call.parameters:
        view = _view(text, parameter)
        language = _language(call, parameter.name, view, path)
        if language:
            listed = language == "shell" and _ARGUMENTS.fullmatch(view.text)
            yield from _arguments(view) if listed else [Region(view, language)]
        elif path is not None and view.text[:1] in ("[", "{"):
            yield from _edits(view, path)


def _value(text: str, parameter: Parameter) -> str:
    return text[parameter.value_start : parameter.value_end]


def _language(call: Call, name: str, view: View, path: str | None) -> str | None:
    """The language of the value of parameter `name`; None if it is not known to be in any."""
    if _PATCHES.fullmatch(call.name) or _PATCHES.fullmatch(name) or view.text.lstrip().startswith("*** Begin Patch"):
        return "patch"
    if name in _PROSE or (name in _TEXTS and _PROSE_TOOLS.fullmatch(call.name)):
        return "prose"
    if path is not None:
        return by_file(path, view.text) if _CONTENTS.fullmatch(name) else None
    if name in _COMMANDS or not (name or view.text.startswith("{")):
        if _SHELL_TOOLS.fullmatch(call.name):
            return "shell"
        if _PYTHON_TOOLS.fullmatch(call.name):
            return "python"
    if call.form == "fence":
        return by_tag(call.name)
    if _CONTENTS.fullmatch(name) and _EDITORS.fullmatch(call.name):
        return by_look(view.text)
    return "shell" if name in ("command", "cmd") else None


_JSON_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|[\s\S])")
_JSON_VALUES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\b": "\b", "\\f": "\f"}


def _view(text: str, parameter: Parameter) -> View:
    view = View.of(text, parameter.value_start, parameter.value_end)
    return _decoded(view) if parameter.encoded else view


def _decoded(view: View) -> View:
    return unescape(view, _JSON_ESCAPE, _json_character)


def _json_character(escape: str) -> str:
    return (
        chr(int(escape[2:], 16))
        if escape.startswith("\\u") and len(escape) == 6
        else _JSON_VALUES.get(escape, escape[1:])
    )


# --- values that are JSON -------------------------------------------------------------------------------------------

_STRING = r'"([^"\\]*(?:\\[\s\S][^"\\]*)*)"'
_ARGUMENT = re.compile(_STRING)
_ARGUMENTS = re.compile(rf"\s*\[\s*{_STRING}\s*(?:,\s*{_STRING}\s*)*\]\s*")
_EDIT = re.compile(rf'"(\w+)"\s*:\s*{_STRING}')


def _arguments(view: View) -> Iterator[Region]:
    """A command given as the list of its words: `["bash", "-lc", "…"]`; one word is no list but a test: `[ "$x" ]`."""
    words = list(_ARGUMENT.finditer(view.text))
    if len(words) == 3 and by_interpreter(words[0][1]) == "shell" and re.fullmatch(r"-\w*c", words[1][1]):
        yield Region(_decoded(view.cut(*words[2].span(1))), "shell")
    elif len(words) == 2 and words[0][1] == "apply_patch":
        yield Region(_decoded(view.cut(*words[1].span(1))), "patch")


def _edits(view: View, path: str) -> Iterator[Region]:
    """Several edits of one file: `[{"old_string": "…", "new_string": "…"}, …]`."""
    for match in _EDIT.finditer(view.text):
        language = by_file(path, match[2]) if _CONTENTS.fullmatch(match[1]) else None
        if language:
            yield Region(_decoded(view.cut(*match.span(2))), language)
