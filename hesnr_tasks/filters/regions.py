"""The pieces of an action, each in one language: parameters, commands, and the programs inside commands.

A value's language comes from, in this order: a sibling parameter that names a file (`path`, `filename` …), what the
tool runs (`execute_bash`: shell, `execute_ipython_cell`: Python), the fence tag, a shebang, its look (only for editing
tools without a file). Shell text is opened further (here-documents, scripts given to an interpreter), and so are
patches and fenced blocks in prose. A file or script inside another piece is a piece of its own, so a character can lie
in several; a piece of shell excludes nothing, because the shell lexer itself does not look into quotes and
here-documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from hesnr_tasks.actions import Call, View, join, json_decoded, unescape
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.actions.shell_lexer import Command, HereDocument, ShellWord, lex_shell
from hesnr_tasks.actions.tools import is_editor, is_patch, is_prose, names, parameter_role, tool_runs, works_on_files
from hesnr_tasks.filters.languages import LANGUAGES, PROSE, by_file, by_file_name, by_interpreter, by_look, by_tag


class Region(NamedTuple):
    """A piece of the action and the language it is in (a key of `languages.LANGUAGES`)."""

    view: View
    language: str


_DEPTH = 6  # scripts in scripts in scripts …


@lru_cache(maxsize=8)
def regions(text: str) -> tuple[Region, ...]:
    """All pieces of an action's text whose language is known, each followed by those inside it. Never raises."""
    pieces = []
    for call in parse_action(text):
        for region in _in_call(text, call):
            level = [region]
            for _ in range(_DEPTH):
                pieces += level
                level = [inner for outer in level for inner in _inside(outer)]
    return tuple(pieces)


def _inside(outer: Region) -> Iterator[Region]:
    """The pieces of other languages inside a piece, one level deep."""
    view, language = outer
    if language == "shell":
        yield from _in_shell(view)
    elif language == "patch":
        yield from _in_patch(view)
    elif language in PROSE:
        yield from _in_fences(view)


# --- calls ------------------------------------------------------------------------------------------------------------


def _in_call(text: str, call: Call) -> Iterator[Region]:
    path = _value(text, call, "path")
    for parameter in call.parameters:
        view = parameter.view(text)
        if path is not None and (blocks := _SEARCH_REPLACE.search(view.text)):
            for mark, following in pairwise(_SIDE.finditer(view.text, blocks.start())):
                side = view.cut(mark.end(), following.start())
                if language := by_file(path, side.text):
                    yield Region(side, language)
        elif language := _language(text, call, parameter.name, view, path):
            is_list = language == "shell" and _ARGUMENTS.fullmatch(view.text)
            yield from _in_arguments(view) if is_list else [Region(view, language)]
        elif path is not None and view.text[:1] in ("[", "{"):
            # several edits of one file: `[{"old_string": "…", "new_string": "…"}, …]`
            for match in _EDIT.finditer(view.text):
                if parameter_role(match[1], "content") and (language := by_file(path, match[2])):
                    yield Region(json_decoded(view.cut(*match.span(2))), language)


def _value(text: str, call: Call, role: str) -> str | None:
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
        return by_tag(_value(text, call, "language") or "")
    own = path is not None and works_on_files(call.name)
    return "shell" if name in ("command", "cmd", "keystrokes", "bash_command") and not own else None


_STRING = r'"([^"\\]*(?:\\[\s\S][^"\\]*)*)"'
_ARGUMENT = re.compile(_STRING)
_ARGUMENTS = re.compile(rf"\s*\[\s*{_STRING}\s*(?:,\s*{_STRING}\s*)*\]\s*")
_EDIT = re.compile(rf'"(\w+)"\s*:\s*{_STRING}')
_SEARCH_REPLACE = re.compile(r"^[<-]{5,9} ?SEARCH\b", re.MULTILINE)
_SIDE = re.compile(r"^(?:[<-]{5,9} ?SEARCH.*|={5,9}|[>+]{5,9} ?REPLACE.*)\r?$", re.MULTILINE)


def _in_arguments(view: View) -> Iterator[Region]:
    """A command given as the list of its words: `["bash", "-lc", "…"]`; one word is no list but a test: `[ "$x" ]`."""
    words = list(_ARGUMENT.finditer(view.text))
    language = by_interpreter(words[0][1]) if len(words) == 3 else None
    option = r"-\w*c" if language in ("shell", "python", "sql") else r"-\w*e|--eval"
    if language and re.fullmatch(option, words[1][1]):
        yield Region(json_decoded(view.cut(*words[2].span(1))), language)
    elif len(words) == 2 and words[0][1] == "apply_patch":
        yield Region(json_decoded(view.cut(*words[1].span(1))), "patch")


# --- patches ----------------------------------------------------------------------------------------------------------

_HEADER = re.compile(
    r"(?:\+\+\+|---) (?:[ab]/)?([^\t\r\n]+)|\*\*\* (?:Add|Update|Delete) File: (.+)|diff --git \S+ (?:b/)?(\S+)"
)


def _in_patch(view: View) -> Iterator[Region]:
    """For every hunk its old and its new text (lines without their first sign), in the language of its file.

    Unified diffs (`diff --git`, `--- a/x`, `+++ b/x`, `@@`) and the `*** Begin Patch` form of apply_patch.
    """
    path = ""
    hunk: list[View] = []
    end = len(view.text)
    for start, stop in pairwise([0, *(m.end() for m in re.finditer("\n", view.text)), end, end]):
        line = view.cut(start, stop)
        header = _HEADER.match(line.text)
        if not line.text or header or line.text.startswith(("@@", "*** ")):
            for side in _sides(hunk) if path else ():
                if language := by_file(path, side.text):
                    yield Region(side, language)
            hunk = []
            if header:
                name = header[1] or header[2] or header[3]
                path = path if name == "/dev/null" else name
        elif line.text[0] in " +-\n\r":
            hunk.append(line)


def _sides(hunk: list[View]) -> Iterator[View]:
    for absent in "-+":
        kept = [
            line.cut(1, len(line.text)) if line.text[0] in " +-" else line for line in hunk if line.text[0] != absent
        ]
        if any(line.text[0] not in (" ", absent) for line in hunk) or (hunk and absent == "-"):
            yield join(kept)


# --- fences in markdown -----------------------------------------------------------------------------------------------

_FENCED = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*\n", re.MULTILINE)


def _in_fences(view: View) -> Iterator[Region]:
    position = 0
    while opener := _FENCED.search(view.text, position):
        closer = re.compile(rf"^[ \t]*{opener[2]}[`~]*[ \t]*$", re.MULTILINE).search(view.text, opener.end())
        end = closer.start() if closer else len(view.text)
        if language := by_tag(opener[3]):
            yield Region(view.cut(opener.end(), end), language)
        position = closer.end() if closer else end


# --- shell ------------------------------------------------------------------------------------------------------------

_LONGEST_PIPELINE = 8
_PASSING = names("cat tee sed tr head tail grep egrep envsubst sponge dd awk sort uniq iconv dos2unix")
_PASSING_ON = names(  # programs that run another one, with the same input
    "sudo doas env time nice nohup command exec builtin timeout stdbuf unbuffer setsid xvfb-run poetry uv pipenv hatch "
    "pdm conda mamba npx docker podman docker-compose compose kubectl oc nerdctl lxc ssh su chroot runuser gosu "
    "singularity apptainer srun bundle rlwrap winpty"
)
_SSH_VALUES = names("-i -p -l -o -F -J -b -c -D -L -R -W")  # options followed by a value
_ASSIGNMENT = re.compile(r"\w+=")
_PATCHERS = ("patch", "apply_patch", "applypatch")
_PROGRAMS = names("git manage.py django-admin flask rails") | set(_PATCHERS)
_CONSOLES = {"django-admin shell": "python", "flask shell": "python"}
_CONSOLES |= dict.fromkeys(("rails console", "rails c", "rails runner"), "ruby")
_SCRIPT_OPTION = re.compile(r"-\w*[ce]|--(?:eval|execute|command|print)|-pe?|-r|-i?p?n?e")
_TEXT_TOOLS = names("echo printf grep egrep fgrep rg ag ack sed awk cat ls which type find_file search_dir")


def _in_shell(view: View) -> Iterator[Region]:
    if not any(mark in view.text for mark in ("<<", " -", "edit ", "apply_patch")):
        return
    script = lex_shell(view.text)
    for document in script.documents:
        body = view.cut(document.start, document.end)
        if language := _document_language(document, body.text):
            yield Region(body, language)
    for command in script.commands:
        for word, language in _inline(command):
            if word.quote or _SINGLE.fullmatch(view.text, word.start, word.end):
                yield Region(_unquoted(view, word), language)


def _document_language(document: HereDocument, body: str) -> str | None:
    """That of the program that reads it or else of the file it is written to, else what its shebang says.

    The text goes down the pipeline as long as programs hand on what they read; what any other program makes of it,
    and writes to a file, is not the text.
    """
    if document.delimiter == "end_of_edit":
        return by_look(body)
    first = document.pipeline.index(document.command)
    readers = (reader for command in document.pipeline[first : first + _LONGEST_PIPELINE] for reader in _inner(command))
    for reader in readers:
        if language := _reads(reader):
            return language
        name, arguments = _program(reader)
        if name and name not in _PASSING:
            break
        files = arguments if name == "tee" else [a[3:] for a in arguments if name == "dd" and a.startswith("of=")]
        for path in files + [word.text for word in reader.targets]:
            if language := by_file(path, body):
                return language
    return by_look(body) if body.lstrip().startswith("#!") else None


def _base(word: str) -> str:
    return word.rpartition("/")[2]


def _program(command: Command) -> tuple[str, list[str]]:
    """The name of the program a command runs, through such as `sudo`, and its arguments."""
    words = [word.text for word in command.words]
    while words and _ASSIGNMENT.match(words[0]):
        del words[0]
    if words and _base(words[0]) in _PASSING_ON:
        for i, word in enumerate(words[1:], 1):
            if _base(word) in _PASSING or by_interpreter(word) or _base(word) in _PROGRAMS:
                return _base(word), words[i + 1 :]
    return (_base(words[0]), words[1:]) if words else ("", [])


def _inner(command: Command) -> Iterator[Command]:
    """The commands that read the input of `command`: itself, or the first ones of `ssh host 'script'`, `sh -c`."""
    words = command.words
    name = _base(words[0].text) if words else ""
    last = words[-1] if words else None
    scripted = by_interpreter(name) == "shell" and any(re.fullmatch(r"-\w*c", word.text) for word in words[1:-1])
    if last and last.quote and len(last.text) < 2_000 and (scripted or (name in _PASSING_ON and len(words) > 2)):
        inner = lex_shell(last.text).commands
        if inner and (scripted or " " in last.text):
            yield from (Command(c.words, c.targets or command.targets) for c in inner[:4])
            return
    plain = [b for a, b in pairwise(words) if not b.text.startswith("-") and a.text not in _SSH_VALUES]
    if name == "ssh" and len(plain) == 1:  # no command: a shell that reads its input
        yield Command([ShellWord(0, 0, "", ["bash"])], command.targets)
    else:
        yield command


def _reads(command: Command) -> str | None:
    """The language of the program that `command` reads from its standard input, if it does."""
    name, arguments = _program(command)
    if name in _PATCHERS or (name == "git" and {"apply", "am"} & set(arguments)):
        return "patch"
    language = by_interpreter(name)
    if name == "manage.py" or (language == "python" and arguments and _base(arguments[0]) == "manage.py"):
        subcommand = arguments[0] if name == "manage.py" else "".join(arguments[1:2])
        return {"shell": "python", "shell_plus": "python", "dbshell": "sql"}.get(subcommand)
    if console := _CONSOLES.get(" ".join([name, *arguments[:1]])):
        return console
    if language is None or language == "sql":
        return language
    # given its program as an argument, an interpreter reads data
    rest = [a for i, a in enumerate(arguments) if i == 0 or arguments[i - 1] not in ("-W", "-X")]
    if "-s" in rest:  # of a shell: the words after it are arguments
        return language
    first = next((a for a in rest if a != "--" and (a == "-" or not a.startswith("-"))), "-")
    options = (a for a in rest if a.startswith("-") and len(a) > 1)
    has_script = first not in ("-", "/dev/stdin") or any(_SCRIPT_OPTION.fullmatch(a) or a == "-m" for a in options)
    return None if has_script else language


def _inline(command: Command) -> Iterator[tuple[ShellWord, str]]:
    """Words that are programs given on the command line: the word after `-c`, `-e` … of an interpreter."""
    words = command.words
    if not words or _base(words[0].text) in _TEXT_TOOLS:
        return
    if is_editor(words[0].text):  # `str_replace_editor create a.py --file_text '…'`
        path = next((word.text for word in words[1:3] if by_file_name(word.text)), None)
        for option, value in pairwise(words):
            is_content = option.text.startswith("--") and parameter_role(option.text[2:], "content")
            if path and is_content and (language := by_file(path, value.text)):
                yield value, language
        return
    runs: str | None = None
    for word, following in pairwise(words):
        if word.text == "apply_patch" and following.quote:
            yield following, "patch"
        program = by_interpreter(word.text) if not word.text.startswith("-") else None
        if program and LANGUAGES[program].script:
            runs = program
        elif runs and re.fullmatch(LANGUAGES[runs].script, word.text):
            yield following, runs
            runs = None


_SINGLE = re.compile(r"'[^']*(?:'(?:\"'\"|\\')'[^']*)*'")
_SINGLE_ESCAPE = re.compile(r"'(?:\"'\"|\\')'")
_DOUBLE_ESCAPE = re.compile(r"\\(?:\r?\n|[\"\\$`])")
_ANSI_ESCAPE = re.compile(r"\\[\s\S]")
_ANSI_VALUES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}


def _unquoted(view: View, word: ShellWord) -> View:
    whole = view.cut(word.start, word.end)
    if _SINGLE.fullmatch(whole.text):
        return unescape(whole.cut(1, len(whole.text) - 1), _SINGLE_ESCAPE, lambda escape: "'")
    start = word.start + len(word.quote)
    inner = view.cut(start, max(start, word.end - 1))
    if word.quote == '"':
        return unescape(inner, _DOUBLE_ESCAPE, lambda escape: "" if escape[-1] == "\n" else escape[1:])
    if word.quote == "$'":
        return unescape(inner, _ANSI_ESCAPE, lambda escape: _ANSI_VALUES.get(escape, escape[1:]))
    return inner
