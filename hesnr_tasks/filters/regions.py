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
from itertools import pairwise
from typing import NamedTuple

from hesnr_tasks.actions import Call, parse_action
from hesnr_tasks.actions.tools import is_editor, is_patch, is_prose, parameter_role, tool_runs, works_on_files
from hesnr_tasks.actions.views import View, json_decoded
from hesnr_tasks.filters.embedded import embedded
from hesnr_tasks.filters.languages import by_file, by_interpreter, by_look, by_tag

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


def _call(text: str, call: Call) -> Iterator[Region]:
    path = _named(text, call, "path")
    for parameter in call.parameters:
        view = parameter.view(text)
        if path is not None and (blocks := _SEARCH_REPLACE.search(view.text)):
            yield from _replaced(view, blocks, path)
            continue
        language = _language(text, call, parameter.name, view, path)
        if language:
            listed = language == "shell" and _ARGUMENTS.fullmatch(view.text)
            yield from _arguments(view) if listed else [Region(view, language)]
        elif path is not None and view.text[:1] in ("[", "{"):
            yield from _edits(view, path)


def _named(text: str, call: Call, role: str) -> str | None:
    """The value of the parameter that has `role`."""
    return next((p.view(text).text for p in call.parameters if parameter_role(p.name, role)), None)


def _language(text: str, call: Call, name: str, view: View, path: str | None) -> str | None:
    """The language of the value of parameter `name`; None if it is not known to be in any."""
    runs = tool_runs(call.name)
    if is_patch(call.name) or is_patch(name) or view.text.lstrip().startswith("*** Begin Patch"):
        return "patch"
    if parameter_role(name, "prose") or (is_prose(call.name) and parameter_role(name, "answer")):
        return "prose"
    if runs and (not name or parameter_role(name, "command", "code")):
        return runs
    if call.form == "fence":
        return by_tag(call.name)
    if parameter_role(name, "content"):
        if path is not None:
            return by_file(path, view.text)
        if is_editor(call.name):
            return by_look(view.text)
        return by_tag(_named(text, call, "language") or "")
    own = path is not None and works_on_files(call.name)
    return "shell" if name in ("command", "cmd", "keystrokes", "bash_command") and not own else None


# --- values that are JSON -------------------------------------------------------------------------------------------

_STRING = r'"([^"\\]*(?:\\[\s\S][^"\\]*)*)"'
_ARGUMENT = re.compile(_STRING)
_ARGUMENTS = re.compile(rf"\s*\[\s*{_STRING}\s*(?:,\s*{_STRING}\s*)*\]\s*")
_EDIT = re.compile(rf'"(\w+)"\s*:\s*{_STRING}')


_SEARCH_REPLACE = re.compile(r"^[<-]{5,9} ?SEARCH\b", re.MULTILINE)
_SIDE = re.compile(r"^(?:[<-]{5,9} ?SEARCH.*|={5,9}|[>+]{5,9} ?REPLACE.*)\r?$", re.MULTILINE)


def _replaced(view: View, first: re.Match[str], path: str) -> Iterator[Region]:
    """Edits as blocks of `<<<<<<< SEARCH`, `=======`, `>>>>>>> REPLACE`."""
    marks = list(_SIDE.finditer(view.text, first.start()))
    for mark, following in pairwise(marks):
        side = view.cut(mark.end(), following.start())
        if language := by_file(path, side.text):
            yield Region(side, language)


def _arguments(view: View) -> Iterator[Region]:
    """A command given as the list of its words: `["bash", "-lc", "…"]`; one word is no list but a test: `[ "$x" ]`."""
    words = list(_ARGUMENT.finditer(view.text))
    language = by_interpreter(words[0][1]) if len(words) == 3 else None
    option = r"-\w*c" if language in ("shell", "python", "sql") else r"-\w*e|--eval"
    if language and re.fullmatch(option, words[1][1]):
        yield Region(json_decoded(view.cut(*words[2].span(1))), language)
    elif len(words) == 2 and words[0][1] == "apply_patch":
        yield Region(json_decoded(view.cut(*words[1].span(1))), "patch")


def _edits(view: View, path: str) -> Iterator[Region]:
    """Several edits of one file: `[{"old_string": "…", "new_string": "…"}, …]`."""
    for match in _EDIT.finditer(view.text):
        language = by_file(path, match[2]) if parameter_role(match[1], "content") else None
        if language:
            yield Region(json_decoded(view.cut(*match.span(2))), language)
