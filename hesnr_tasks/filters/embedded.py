"""Programs inside other text: here-documents and scripts in shell, sides of patches, fenced blocks in markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from hesnr_tasks.actions.tools import is_editor, names, parameter_role
from hesnr_tasks.actions.views import View, unescape
from hesnr_tasks.filters.languages import by_file, by_file_name, by_interpreter, by_look, by_tag
from hesnr_tasks.filters.patches import sides
from hesnr_tasks.filters.shell import Command, HereDocument, Word, lex_shell

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
            if word.quote or _SINGLE.fullmatch(view.text, word.start, word.end):
                yield _unquoted(view, word), language


def _document_language(document: HereDocument, body: str) -> str | None:
    """That of the program that reads it or else of the file it is written to, else what its shebang says.

    The text goes down the pipeline as long as programs hand on what they read; what any other program makes of it,
    and writes to a file, is not the text.
    """
    if document.delimiter == "end_of_edit":
        return by_look(body)
    first = document.pipeline.index(document.command)
    for command in document.pipeline[first : first + _LONGEST_PIPELINE]:
        for reader in _inner(command):
            if language := _reader(reader):
                return language
            name, arguments = _program(reader)
            if name and name not in _PASSING:
                return _by_shebang(body)
            files = arguments if name == "tee" else [a[3:] for a in arguments if name == "dd" and a.startswith("of=")]
            written = files + [word.text for word in reader.targets]
            for path in written:
                if language := by_file(path, body):
                    return language
    return _by_shebang(body)


def _by_shebang(body: str) -> str | None:
    return by_look(body) if body.lstrip().startswith("#!") else None


_LONGEST_PIPELINE = 8
_PASSING = names("cat tee sed tr head tail grep egrep envsubst sponge dd awk sort uniq iconv dos2unix")
_PASSING_ON = names(  # programs that run another one, with the same input
    "sudo doas env time nice nohup command exec builtin timeout stdbuf unbuffer setsid xvfb-run poetry uv pipenv hatch "
    "pdm conda mamba npx docker podman docker-compose compose kubectl oc nerdctl lxc ssh su chroot runuser gosu "
    "singularity apptainer srun bundle rlwrap winpty"
)
_SSH_VALUES = names("-i -p -l -o -F -J -b -c -D -L -R -W")  # options followed by a value


def _program(command: Command) -> tuple[str, list[str]]:
    """The name of the program a command runs, through such as `sudo`, and its arguments."""
    words = [word.text for word in command.words]
    while words and _ASSIGNMENT.match(words[0]):
        del words[0]
    if words and _name(words[0]) in _PASSING_ON:
        for i, word in enumerate(words[1:], 1):
            if _name(word) in _PASSING or by_interpreter(word) or _name(word) in _PROGRAMS:
                return _name(word), words[i + 1 :]
    return (_name(words[0]), words[1:]) if words else ("", [])


_ASSIGNMENT = re.compile(r"\w+=")
_PROGRAMS = names("patch apply_patch applypatch git manage.py django-admin flask rails")


def _name(word: str) -> str:
    return word.rpartition("/")[2]


def _inner(command: Command) -> Iterator[Command]:
    """The commands that read the input of `command`: itself, or the first ones of `ssh host 'script'`, `sh -c`."""
    words = command.words
    name = _name(words[0].text) if words else ""
    shell = by_interpreter(name) == "shell"
    last = words[-1] if words else None
    scripted = shell and any(re.fullmatch(r"-\w*c", word.text) for word in words[1:-1])
    if last and last.quote and len(last.text) < 2_000 and (scripted or (name in _PASSING_ON and len(words) > 2)):
        inner = lex_shell(last.text).commands
        if inner and (scripted or " " in last.text):
            yield from (Command(one.words, one.targets or command.targets) for one in inner[:4])
            return
    plain = [b for a, b in pairwise(words) if not b.text.startswith("-") and a.text not in _SSH_VALUES]
    if name == "ssh" and len(plain) == 1:  # no command: a shell that reads its input
        yield Command([Word(0, 0, "", ["bash"])], command.targets)
        return
    yield command


def _reader(command: Command) -> str | None:
    """The language of the program that `command` reads from its standard input, if it does."""
    name, arguments = _program(command)
    if name in ("patch", "apply_patch", "applypatch") or (name == "git" and {"apply", "am"} & set(arguments)):
        return "patch"
    language = by_interpreter(name)
    if name == "manage.py" or (language == "python" and arguments and _name(arguments[0]) == "manage.py"):
        command_name = arguments[0] if name == "manage.py" else "".join(arguments[1:2])
        return {"shell": "python", "shell_plus": "python", "dbshell": "sql"}.get(command_name)
    if (name, "".join(arguments[:1])) in _CONSOLES:
        return _CONSOLES[name, arguments[0]]
    return language if language and (language == "sql" or not _has_script(arguments)) else None


_CONSOLES = {
    ("django-admin", "shell"): "python",
    ("flask", "shell"): "python",
    ("rails", "console"): "ruby",
    ("rails", "c"): "ruby",
    ("rails", "runner"): "ruby",
}


def _has_script(arguments: list[str]) -> bool:
    """Whether an interpreter is given its program as an argument, so that its input is data."""
    rest = [a for i, a in enumerate(arguments) if i == 0 or arguments[i - 1] not in ("-W", "-X")]
    if "-s" in rest:  # of a shell: the words after it are arguments
        return False
    first = next((a for a in rest if a != "--" and (a == "-" or not a.startswith("-"))), "-")
    options = [a for a in rest if a.startswith("-") and len(a) > 1]
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
    if words and _name(words[0].text) in _TEXT_TOOLS:
        return
    if words and is_editor(words[0].text):
        yield from _edited(words)
        return
    for word, following in pairwise(words):
        if word.text == "apply_patch" and following.quote:
            yield following, "patch"
        named = by_interpreter(word.text) if not word.text.startswith("-") else None
        if named in _OPTIONS:
            language, option = named, _OPTIONS[named]
        elif language and option and option.fullmatch(word.text):
            yield following, language
            language = option = None


_TEXT_TOOLS = names("echo printf grep egrep fgrep rg ag ack sed awk cat ls which type find_file search_dir")

_DOUBLE_ESCAPE = re.compile(r"\\(?:\r?\n|[\"\\$`])")
_ANSI_ESCAPE = re.compile(r"\\[\s\S]")
_ANSI_VALUES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}


def _edited(words: list[Word]) -> Iterator[tuple[Word, str]]:
    """The values of an editing tool written as a command: `str_replace_editor create a.py --file_text '…'`."""
    path = next((word.text for word in words[1:3] if by_file_name(word.text)), None)
    for option, value in pairwise(words):
        language = by_file(path, value.text) if path and parameter_role(option.text[2:], "content") else None
        if language and option.text.startswith("--"):
            yield value, language


_SINGLE = re.compile(r"'[^']*(?:'(?:\"'\"|\\')'[^']*)*'")
_SINGLE_ESCAPE = re.compile(r"'(?:\"'\"|\\')'")


def _unquoted(view: View, word: Word) -> View:
    raw = view.cut(word.start, word.end)
    if _SINGLE.fullmatch(raw.text):
        return unescape(raw.cut(1, len(raw.text) - 1), _SINGLE_ESCAPE, lambda escape: "'")
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
