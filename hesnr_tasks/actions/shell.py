"""Shell text: its simple commands, one canonical spelling, and what each command does to which files.

The lexer reads the POSIX shell language with bash's additions: quotes, `$(…)`, backquotes, `${…}`, arithmetic,
here-documents and here-strings. It runs on a stack of contexts, so nesting costs no recursion, and ends quietly
wherever the text ends. A `#` starts a comment only at the start of a word. `edit N:M … end_of_edit` (SWE-agent's line
editor) is a here-document. Texts are never executed, and nothing here raises, whatever the text.
"""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hesnr_tasks.actions import CharSpan
from hesnr_tasks.actions.tools import (
    ALIKE,
    PROGRAMS,
    RUNNERS,
    SUBCOMMANDS,
    TAKES_VALUE,
    TEXT_TOOLS,
    WRAPPER_VALUES,
    WRAPPERS,
    WRITERS,
    table,
)

# how `LineIndex.find` compares lines
EXACT = "="
TABS = "\t"  # tabs before a line do not count
LOOSE = "~"  # nor white space around it and closing brackets, quotes and punctuation after it


class LineIndex:
    """Where lines of a given content begin; indexed at the first question."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts: dict[str, list[int]] | None = None

    def find(self, line: str, position: int, comparison: str = EXACT) -> int:
        """Start of the first line at or after `position` that is `line`, or -1."""
        if self._starts is None:
            self._starts, start = {}, 0
            for content in self.text.split("\n"):
                if len(content) <= 100:
                    bare = content.removesuffix("\r")
                    loose = bare.strip().rstrip(")\"';,.`")
                    for key in (EXACT + bare, TABS + bare.lstrip("\t"), LOOSE + loose):
                        self._starts.setdefault(key, []).append(start)
                start += len(content) + 1
        starts = self._starts.get(comparison + line, [])
        index = bisect_left(starts, position)
        return starts[index] if index < len(starts) else -1


@dataclass(slots=True)
class ShellWord:
    """One word of a command."""

    start: int
    end: int
    quote: str = ""  # the quotes around all of it: ' or " or $', else an empty string
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The word without its quotes; expansions are left out."""
        return "".join(self.parts)


@dataclass(slots=True)
class Command:
    """A simple command: its words, and the files its output goes to."""

    words: list[ShellWord] = field(default_factory=list)
    targets: list[ShellWord] = field(default_factory=list)


@dataclass(slots=True)
class HereDocument:
    """The body of a here-document, the command that reads it, and the pipeline that command is in."""

    delimiter: str
    tabs: bool  # `<<-`: lines may begin with tabs
    command: Command
    pipeline: list[Command]
    start: int = 0
    end: int = 0


@dataclass(slots=True)
class Script:
    """What a shell text holds."""

    comments: list[CharSpan] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    documents: list[HereDocument] = field(default_factory=list)


def lex_shell(text: str) -> Script:
    """Lex a shell script or fragment. Never raises; time is linear in the length."""
    return _ShellLexer(text).run()


_NESTED = r"(?P<escape>\\[\s\S]?)|(?P<nest>\$\(\(?|\$\{)|(?P<tick>`)|(?P<double>\")"
_PATTERNS = {  # of the tokens in each kind of context, by the name of the method that handles them
    "code": re.compile(
        r"""(?P<leave_word>[ \t\r]+|\\\r?\n|<<<)|(?P<newline>\n)|(?P<comment>\#[^\n]*)
        |(?P<quoted>\$'[^'\\]*(?:\\[\s\S][^'\\]*)*(?:'|\\?\Z)|'[^']*(?:'|\Z))|(?P<double>\$?")
        |(?P<nest>\$?\(\(|[$<>]\(|\$\{)|(?P<tick>`)
        |(?P<heredoc><<-?(?!<)[ \t]*)|(?P<redirect>(?:&|\d+)?>>?[|&]?|\d*<&?)
        |(?P<open>\()|(?P<close>\))|(?P<pipe>\|&?(?!\|))|(?P<leave_command>;;?&?|\|\||&&?)|(?P<escape>\\[\s\S]?)
        |(?P<add>[^\s\\'"$`\#<>();&|]+|\$[\w\#?!$@*-]?|.)""",
        re.VERBOSE,
    ),
    "double": re.compile(_NESTED + r"|(?P<add>[^\\\"`$]+|\$)"),
    "brace": re.compile(_NESTED + r"|(?P<quoted>'[^'}\n]*')|(?P<close>\})|(?P<add>[^\\\"`$'}]+|[$'])"),
    "arithmetic": re.compile(
        _NESTED + r"|(?P<quoted>'[^')\n]*')|(?P<open>\()|(?P<close>\))|(?P<add>[^\\\"`$'()]+|[$'])"
    ),
}
_DELIMITER = re.compile(r"'([^'\n]*)'|\"([^\"\n]*)\"|\\?([^\s'\"<>();&|\\`]+)")


@dataclass(slots=True)
class _Context:
    kind: str  # a key of _PATTERNS
    closer: str = ""
    depth: int = 1
    pipeline: list[Command] = field(default_factory=lambda: [Command()])
    word: ShellWord | None = None
    redirected: bool = False  # the next word is the target of a redirection


class _ShellLexer:
    def __init__(self, text: str) -> None:
        self.text, self.position, self.script = text, 0, Script()
        self.stack = [_Context("code")]
        self.pending: list[HereDocument] = []
        self.lines = LineIndex(text)

    def run(self) -> Script:
        size = len(self.text)
        while self.position < size:
            context = self.stack[-1]
            match = _PATTERNS[context.kind].match(self.text, self.position)
            if match is None:  # every pattern takes any character; this is the guard against a loop
                break
            start, self.position = match.span()
            _HANDLERS[match.lastgroup or "add"](self, context, match[0], start)
        while self.stack:
            self.leave_command(self.stack.pop())
        return self.script

    # --- handlers of tokens: each takes the context, the token's text and where it starts ---

    def add(self, context: _Context, token: str, start: int, quote: str = "") -> None:
        """Add a piece to the present word, or begin one."""
        if context.word is None:
            context.word = ShellWord(start, self.position, quote)
        elif context.kind == "code":
            context.word.quote = ""
        context.word.parts.append(token)
        context.word.end = self.position

    def leave_word(self, context: _Context, token: str = "", start: int = 0) -> None:
        word, context.word = context.word, None
        if word is not None:
            command = context.pipeline[-1]
            (command.targets if context.redirected else command.words).append(word)
            context.redirected = False

    def leave_command(self, context: _Context, token: str = "", start: int = 0) -> None:
        if context.kind == "code":
            self.leave_word(context)
            self.script.commands += [command for command in context.pipeline if command.words or command.targets]
            context.pipeline, context.redirected = [Command()], False

    def leave_context(self) -> None:
        self.leave_command(self.stack.pop())
        outer = self.stack[-1]
        if outer.word is not None:
            outer.word.end = self.position

    def newline(self, context: _Context, token: str, start: int) -> None:
        self.leave_word(context)
        words = [word.text for word in context.pipeline[-1].words]
        if len(words) == 2 and words[0] == "edit" and re.fullmatch(r"\d+:\d+", words[1]):
            document = HereDocument("end_of_edit", False, context.pipeline[-1], context.pipeline)
            if self.delimiter_line(document) >= 0:
                self.pending.append(document)
        for document in self.pending:  # its body begins here and ends before its delimiter, or with the text
            document.start = self.position
            line = self.delimiter_line(document)
            document.end = self.position = line if line >= 0 else len(self.text)
            if line >= 0:
                self.position = self.text.index(document.delimiter, line) + len(document.delimiter)
            self.script.documents.append(document)
        self.pending.clear()
        self.leave_command(context)

    def delimiter_line(self, document: HereDocument) -> int:
        """Start of the line that ends `document`, or -1: as the shell reads it, else with loose ends."""
        line = self.lines.find(document.delimiter, self.position, TABS if document.tabs else EXACT)
        return line if line >= 0 else self.lines.find(document.delimiter, self.position, LOOSE)

    def comment(self, context: _Context, token: str, start: int) -> None:
        if context.word is not None:
            self.position = start + 1
            self.add(context, "#", start)
            return
        tick = token.find("`") if context.closer == "`" else -1
        self.position = start + tick if tick >= 0 else self.position
        self.script.comments.append((start, self.position - token.endswith("\r")))

    def quoted(self, context: _Context, token: str, start: int) -> None:
        quote = "$'" if token[0] == "$" else "'"
        self.add(context, token[len(quote) :].removesuffix("'"), start, quote)

    def escape(self, context: _Context, token: str, start: int) -> None:
        literal = context.kind == "double" and token[1:] not in ('"', "\\", "$", "`", "\n")
        self.add(context, (token if literal else token[1:]).removesuffix("\n"), start)

    def double(self, context: _Context, token: str, start: int) -> None:
        if context.kind == "double":
            self.leave_context()
        else:
            self.add(context, "", start, '"')
            self.stack.append(_Context("double", word=context.word))

    def nest(self, context: _Context, token: str, start: int) -> None:
        self.add(context, "", start)
        if token.endswith("(("):
            self.stack.append(_Context("arithmetic", depth=2))
        else:
            self.stack.append(_Context("brace") if token == "${" else _Context("code", closer=")"))

    def tick(self, context: _Context, token: str, start: int) -> None:
        if context.closer == "`":
            self.leave_context()
        else:
            self.add(context, "", start)
            self.stack.append(_Context("code", closer="`"))

    def open(self, context: _Context, token: str, start: int) -> None:
        if context.kind == "arithmetic":
            context.depth += 1
        else:
            self.leave_command(context)
            self.stack.append(_Context("code", closer=")"))

    def close(self, context: _Context, token: str, start: int) -> None:
        context.depth -= 1
        if context.kind == "code" and context.closer != ")":  # the `)` of a case pattern
            self.leave_command(context)
        elif context.depth <= 0:
            self.leave_context()

    def pipe(self, context: _Context, token: str, start: int) -> None:
        self.leave_word(context)
        context.pipeline.append(Command())

    def redirect(self, context: _Context, token: str, start: int) -> None:
        self.leave_word(context)
        context.redirected = ">" in token

    def heredoc(self, context: _Context, token: str, start: int) -> None:
        self.leave_word(context)
        match = _DELIMITER.match(self.text, self.position)
        if match:
            self.position = match.end()
            name = match[1] or match[2] or match[3] or ""
            document = HereDocument(name, token.startswith("<<-"), context.pipeline[-1], context.pipeline)
            self.pending.append(document)


_HANDLERS = {name: getattr(_ShellLexer, name) for pattern in _PATTERNS.values() for name in pattern.groupindex}


# --- commands ---------------------------------------------------------------------------------------------------------

# from what matters most to what matters least: the first of them that an action contains is the action's class
CLASSES = ("submit", "edit", "test", "run", "install", "vcs", "search", "read", "think", "other", "none")
FILTER = "filter"  # works on what another command prints: says nothing of its own


class Simple(NamedTuple):
    """One simple command: its words without quotes, where they stand, and the files its output goes to."""

    words: tuple[str, ...]
    spans: tuple[CharSpan, ...]
    writes: tuple[str, ...] = ()
    body: str | None = None  # of a here-document that it reads
    piped: bool = False  # it reads what the command before it prints


class ActionPart(NamedTuple):
    """One of `CLASSES` (or `FILTER`), the files it is about, and what it looks for."""

    kind: str
    targets: tuple[str, ...] = ()
    pattern: str = ""


# --- simple commands --------------------------------------------------------------------------------------------------

_ASSIGNMENT = re.compile(r"\w+\+?=")
_OPENERS = ("do", "then", "else", "if", "elif", "while", "until", "!", "{", "time")
_NO_COMMAND = ("for", "case", "select", "function", "done", "fi", "esac", "}", "in", "[", "[[", "((", "")
_REDIRECTION = re.compile(r"(\d*|&)>>?[|&]?[ \t]*$")
_PIPE = re.compile(r"(?<!\|)\|(?!\|)")


def simple_commands(text: str) -> list[Simple]:
    """The commands of `text` in order, without reserved words and leading assignments."""
    script = lex_shell(text)
    bodies = {id(document.command): text[document.start : document.end] for document in script.documents}
    commands: list[Simple] = []
    end = before = 0
    for command in sorted(script.commands, key=lambda command: _extent(command)[0]):
        start, stop = _extent(command)
        if start < end:  # in a substitution of the command before
            continue
        piped = bool(commands) and bool(_PIPE.search(text[before:start].split("\n")[0]))
        words, i = command.words, 0
        while i < len(words) and (words[i].text in _OPENERS or _ASSIGNMENT.match(text, words[i].start, words[i].end)):
            i += 1
        words = [] if i < len(words) and words[i].text in _NO_COMMAND else words[i:]
        if words or command.targets:
            spans = tuple((word.start, word.end) for word in words)
            values = tuple(_value(word, text) for word in words)
            files = []  # that standard output goes to; not other streams, not devices
            for target in command.targets:
                operator = _REDIRECTION.search(text[max(0, target.start - 20) : target.start])
                stream, copied = (operator[1], ">&" in operator[0]) if operator else ("", False)
                if stream in ("", "1", "&") and not copied and not target.text.startswith("/dev/"):
                    files.append(_value(target, text))
            commands.append(Simple(values, spans, tuple(files), bodies.get(id(command)), piped))
            end = stop
        before = stop
    return commands


def _extent(command: Command) -> CharSpan:
    places = [*command.words, *command.targets]
    return min(word.start for word in places), max(word.end for word in places)


def _value(word: ShellWord, text: str) -> str:
    """The word without quotes; as it stands where something would be put in its place."""
    raw = text[word.start : word.end]
    return raw if word.quote != "'" and re.search(r"\$[({]|`", raw) else word.text


# --- canonical spelling -----------------------------------------------------------------------------------------------

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

    Here-documents keep their bodies, and lose the name of their delimiter.
    """
    script = lex_shell(text)
    marks: list[tuple[int, int, str | None]] = [(start, end, None) for start, end in script.comments]
    for document in script.documents:
        body = "\n".join(line.rstrip() for line in text[document.start : document.end].splitlines())
        delimiter = text.find(document.delimiter, document.end) if document.delimiter else -1
        stop = delimiter + len(document.delimiter) if delimiter >= 0 else document.end
        marks.append((document.start, stop, f"<{body}>"))
    for command in script.commands:
        marks += [(word.start, word.end, _quoted(word, text)) for word in [*command.words, *command.targets]]
    pieces: list[str] = []
    position = 0
    for start, end, mark in sorted([*marks, (len(text), len(text), None)], key=lambda item: (item[0], -item[1])):
        if start < position:  # inside a word
            continue
        for match in _GAP.finditer(text[position:start]):
            if match.lastgroup == "newline" or match[0] == ";":
                pieces += [";"] if pieces and pieces[-1] not in _JOINERS else []
            elif match.lastgroup != "space":
                pieces.append("<<" if match.lastgroup == "heredoc" else match[0])
        pieces += [mark] if mark is not None else []
        position = end
    while pieces[-1:] == [";"]:
        pieces.pop()
    return re.sub(r"([<>]&?) (?=\S)", r"\1", " ".join(pieces))


def _quoted(word: ShellWord, text: str) -> str:
    raw = text[word.start : word.end]
    if word.quote != "'" and ("$" in raw or "`" in raw):
        return raw
    return raw if not word.quote and _SPECIAL.search(raw) else shlex.quote(word.text)


# --- the words of a command -------------------------------------------------------------------------------------------

_PYTHON = re.compile(r"^(i?python|pypy)[\d.]*w?$")


def program(words: Sequence[str]) -> int:
    """The index of the word that names the program, behind `sudo`, `timeout 60`, `poetry run` and the like."""
    place = 0
    while place < len(words) and words[place] in WRAPPERS:
        name, after = words[place], place + 1
        if name in RUNNERS:
            if list(words[after : after + 1]) != [RUNNERS[name]]:
                return place
            after += 1
        while after < len(words) and words[after].startswith("-") and words[after] != "-":
            after += 2 if words[after] in WRAPPER_VALUES else 1
        after += name == "timeout"
        while name == "env" and after < len(words) and re.match(r"\w+=", words[after]):
            after += 1
        if after >= len(words):
            return place
        place = after
    return place


def program_name(word: str) -> str:
    """The program's name, without its folder; one name for programs that take the same arguments."""
    name = word.rsplit("/", 1)[-1] if not word.endswith("/") else word
    name = "python" if _PYTHON.match(name) else name
    return ALIKE.get(name, name)


def verb(words: Sequence[str]) -> int:
    """How many words of a command, from the program on, say what is done: `git diff`, `sed -n`, `python -m pytest`."""
    name = program_name(words[0]) if words else ""
    following = words[1] if len(words) > 1 else ""
    if name == "python":
        return min(len(words), 3 if following == "-m" else 2 if following.startswith("-") else 1)
    two = name in SUBCOMMANDS or (name == "sed" and following.startswith("-"))
    return min(len(words), 2 if two else 1)


def _operands(name: str, words: Sequence[str]) -> list[str]:
    """The words after the name `name` that are neither options nor values of options."""
    takes = TAKES_VALUE.get(name, "").split()
    operands, i, options = [], 0, True
    while i < len(words):
        word = words[i]
        if options and word == "--":
            options = False
        elif options and word.startswith("-") and len(word) > 1:
            i += word in takes
        elif word != "-":
            operands.append(word)
        i += 1
    return operands


def _option_values(words: Sequence[str], *options: str) -> list[str]:
    """The values of `options` among words: `-e X`, `--regexp=X`."""
    following = [after for word, after in itertools.pairwise(words) if word in options]
    return following + [word.split("=", 1)[1] for word in words if "=" in word and word.split("=", 1)[0] in options]


# --- what a command does ----------------------------------------------------------------------------------------------

_MARKERS = re.compile(r"\b(COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT|MINI_SWE_AGENT_FINAL_OUTPUT)\b")
_TEST_FILE = re.compile(r"(^|/)(test_[^/]*|[^/]*_tests?|runtests?)\.(py|sh|js|ts|rb)$|(^|/)(bin/test|run_?tests?)$")


def inner_script(simple: Simple) -> str | None:
    """The script in `bash -c SCRIPT`, else None."""
    words = simple.words[program(simple.words) :]
    if not words or words[0].rsplit("/", 1)[-1] not in ("bash", "sh", "zsh", "dash"):
        return None
    flags = [i for i, word in enumerate(words[1:], 1) if re.fullmatch(r"-[a-z]*c[a-z]*", word)]
    if flags:
        return words[flags[0] + 1] if flags[0] + 1 < len(words) else ""
    return simple.body if all(word.startswith("-") for word in words[1:]) else None


def classify(simple: Simple) -> ActionPart:
    """What one simple command does. Targets are as written; `classes` makes one path of them."""
    words = list(simple.words[program(simple.words) :])
    if not words:
        return ActionPart("edit", simple.writes) if simple.writes else ActionPart("none")
    if _MARKERS.search(" ".join(words[1:3])) and words[0] in ("echo", "printf"):
        return ActionPart("submit")
    name = program_name(words[0])
    if simple.writes and name in WRITERS:
        return ActionPart("edit", simple.writes)
    by_arguments = _BY_ARGUMENTS.get(name)
    if by_arguments is not None:
        return by_arguments(words[1:], simple)
    unknown = "test" if _TEST_FILE.search(words[0]) else "run"
    kind = unknown if "/" in words[0] and name == "test" else PROGRAMS.get(name, unknown)
    places = _operands(name, words[1:])
    if kind == "read" and simple.piped and name in TEXT_TOOLS and not places:
        return ActionPart(FILTER)
    if kind in ("run", "install"):
        return ActionPart(kind, (name,))
    return ActionPart(kind, tuple(places) if kind not in ("other", "submit") else ())


# Commands that need a look at their arguments. Each function takes the words after the name.


def _grep(words: list[str], simple: Simple) -> ActionPart:
    is_rg = simple.words[-len(words) - 1 :][0] in ("rg", "ag", "ack")
    places = _operands("rg" if is_rg else "grep", words)
    patterns = _option_values(words, "-e", "--regexp")
    if not patterns and "--files" not in words:
        patterns, places = places[:1], places[1:]
    return ActionPart("search", tuple(places), " ".join(patterns))


def _find(words: list[str], simple: Simple) -> ActionPart:
    starts = [i for i, word in enumerate(words) if word.startswith("-") or word in ("(", "!", "\\(")]
    places = words[: starts[0]] if starts else words
    negated = {i + 2 for i, word in enumerate(words) if word in ("-not", "!", "\\!")}
    words = [word for i, word in enumerate(words) if i not in negated]
    names = ("-name", "-iname", "-path", "-wholename", "-ipath", "-regex", "-iregex")
    targets = tuple(_option_values(words, *names)) or tuple(places)
    for flag in ("-exec", "-execdir", "-ok"):
        if flag in words:
            inner = [word for word in words[words.index(flag) + 1 :] if word not in (";", "\\;", "+", "{}")]
            part = classify(Simple(tuple(inner), ())) if inner else ActionPart(FILTER)
            if part.kind in CLASSES[: CLASSES.index("search")]:
                return ActionPart(part.kind, part.targets or targets)
    return ActionPart("edit" if "-delete" in words else "search", targets)


def _named_search(words: list[str], simple: Simple) -> ActionPart:
    """SWE-agent's search_dir, search_file and find_file: pattern, then place."""
    places = _operands("find_file", words)
    return ActionPart("search", tuple(places[1:]), places[0] if places else "")


def _sed(words: list[str], simple: Simple) -> ActionPart:
    in_place = any(re.match(r"-[nErsuz]*i|--in-place", word) for word in words)
    scripts = _option_values(words, "-e", "--expression", "-f", "--file")
    places = _operands("sed", words)[0 if scripts else 1 :]
    if not places and simple.piped and not in_place:
        return ActionPart(FILTER)
    return ActionPart("edit" if in_place else "read", tuple(places))


def _awk(words: list[str], simple: Simple) -> ActionPart:
    places = _operands("awk", words)[0 if _option_values(words, "-f") else 1 :]
    return ActionPart("read", tuple(places)) if places or not simple.piped else ActionPart(FILTER)


def _patch(words: list[str], simple: Simple) -> ActionPart:
    body = simple.body or " ".join(words)
    files = re.findall(r"^(?:\*\*\* (?:Update|Add|Delete) File: |\+\+\+ (?:b/)?)(\S+)", body, re.MULTILINE)
    named = [word for word in _operands("patch", words) if "\n" not in word]
    return ActionPart("edit", tuple(files or named[:1]))


def _python(words: list[str], simple: Simple) -> ActionPart:
    i = 0
    while i < len(words) and words[i].startswith("-") and words[i] not in ("-", "-c", "-m"):
        i += 2 if words[i] in ("-W", "-X") else 1
    rest = words[i:]
    if rest[:1] == ["-m"] and len(rest) > 1:
        return _module(rest[1:], simple)
    if rest[:1] == ["-c"] or not rest or rest == ["-"]:
        code = rest[1] if rest[:1] == ["-c"] and len(rest) > 1 else simple.body or ""
        return python_part(code)
    script = rest[0]
    if script.endswith("manage.py") and rest[1:2] == ["test"]:
        return ActionPart("test", tuple(_operands("test", rest[2:])))
    if script.endswith("setup.py"):
        sub = (_operands(program_name(script), rest[1:]) or [""])[0]
        return ActionPart({"test": "test", "install": "install", "develop": "install"}.get(sub, "run"), (script,))
    if re.search(r"(^|/)(runtests\.py|bin/test|run_tests\.py)$", script):
        return ActionPart("test", tuple(_operands("pytest", rest[1:])))
    return ActionPart("test" if _TEST_FILE.search(script) else "run", (script,))


_TEST_MODULES = ("pytest", "unittest", "nose", "nose2", "tox", "nox", "doctest", "trial", "pytest_cov")


def _module(words: list[str], simple: Simple) -> ActionPart:
    """`python -m MODULE …`."""
    name = words[0].split(".")[0]
    if name in ("pip", "black", "isort", "autopep8", "yapf"):
        return classify(Simple((name, *words[1:]), (), body=simple.body, piped=simple.piped))
    if name == "coverage" and words[1:2] == ["run"]:
        return _python(words[2:], simple)
    if name in _TEST_MODULES or (name == "django" and "test" in words):
        return ActionPart("test", tuple(word for word in _operands("pytest", words[1:]) if word != "test"))
    return ActionPart("run", (words[0],))


def _git(words: list[str], simple: Simple) -> ActionPart:
    i = 0
    while i < len(words) and words[i].startswith("-"):
        i += 2 if words[i] in ("-C", "-c", "--git-dir", "--work-tree") else 1
    sub, rest = (words[i], words[i + 1 :]) if i < len(words) else ("", [])
    if sub == "grep":
        return _grep(rest, Simple(("grep", *rest), ()))
    if sub == "ls-files":
        return ActionPart("search", tuple(_operands("ls", rest)))
    return ActionPart("vcs", (sub,) if sub else ())


def _ruff(words: list[str], simple: Simple) -> ActionPart:
    """It only writes when it formats or fixes."""
    writes = words[:1] == ["format"] or "--fix" in words
    return ActionPart("edit", tuple(_operands("ruff", words)[1:])) if writes else ActionPart("run", ("ruff",))


def _perl(words: list[str], simple: Simple) -> ActionPart:
    writes = any(re.match(r"-[pn0lw]*i", word) for word in words)
    # `-pie` and `-0pe` end in the -e that takes the script
    files = _operands("perl", ["-e" if re.fullmatch(r"-\w*e", word) else word for word in words])
    return ActionPart("edit", tuple(files)) if writes else ActionPart("run", tuple(files[:1]) or ("-",))


def _interpreter(words: list[str], simple: Simple) -> ActionPart:
    """An interpreter and the script it runs."""
    script = tuple(word for word in words if not word.startswith("-"))[:1]
    return ActionPart("test" if script and _TEST_FILE.search(script[0]) else "run", script or ("-",))


def _make(words: list[str], simple: Simple) -> ActionPart:
    tests = any(re.match(r"(unit)?tests?|check", goal) for goal in _operands("make", words))
    return ActionPart("test") if tests else ActionPart("run", ("make",))


def _editor_tool(words: list[str], simple: Simple) -> ActionPart:
    """`str_replace_editor view PATH …` typed as a command."""
    sub, path = (*words, "", "")[:2]
    return ActionPart("read" if sub == "view" else "edit", (path,) if path else ())


Classifier = Callable[[list[str], Simple], ActionPart]


def _lines_of_file(kind: str) -> Classifier:
    """SWE-agent's `open FILE LINE` and, without a file for the one that is open, `goto LINE` and `edit 3:5`."""
    return lambda words, simple: ActionPart(
        kind, tuple(word for word in _operands("", words) if not re.fullmatch(r"\d+(:\d+)?", word))[:1]
    )


def _operands_of(kind: str, name: str, places: slice = slice(None)) -> Classifier:
    """A command of one class, about (some of) its operands."""
    return lambda words, simple: ActionPart(kind, tuple(_operands(name, words)[places]))


def _subcommand(kinds: dict[str, str], otherwise: str) -> Classifier:
    """A command whose first operand says what it does."""

    def look(words: list[str], simple: Simple) -> ActionPart:
        plain = [word for word in words if not word.startswith("-")]
        plain = plain[1:] if plain[:1] == ["run"] else plain
        sub = plain[0] if plain else ""
        kind = next((kinds[name] for name in (sub, sub.split(":")[0]) if name in kinds), otherwise)
        return ActionPart(kind, tuple(plain[1:]) if kind in ("test", "search", "install") else simple.words[:1])

    return look


_PACKAGES = table(
    install="install uninstall add remove ci sync update upgrade i download wheel",
    read="list show freeze info check search",
)
_BUILDS = {"test": "test", "tests": "test", "t": "test", "check": "run"}
_BY_ARGUMENTS: dict[str, Classifier] = {
    **dict.fromkeys(("grep", "rg"), _grep),
    **dict.fromkeys(("search_dir", "search_file", "find_file", "fd"), _named_search),
    **dict.fromkeys(("cp", "ln"), _operands_of("edit", "cp", slice(-1, None))),
    **dict.fromkeys(("chmod", "chown"), _operands_of("edit", "chmod", slice(1, None))),
    **dict.fromkeys(("patch", "apply_patch", "applypatch"), _patch),
    **dict.fromkeys(("node", "ruby", "bash", "sh", "zsh", "php"), _interpreter),
    **dict.fromkeys(("str_replace_editor", "file_editor", "str_replace_based_edit_tool"), _editor_tool),
    **dict.fromkeys(("echo", "printf"), lambda words, simple: ActionPart("other")),
    **dict.fromkeys(("open", "goto"), _lines_of_file("read")),
    **dict.fromkeys(("pip", "apt-get", "apt", "poetry", "pipenv"), _subcommand(_PACKAGES, "install")),
    **dict.fromkeys(("npm", "yarn", "pnpm"), _subcommand({**_PACKAGES, **_BUILDS}, "run")),
    "find": _find, "sed": _sed, "awk": _awk, "edit": _lines_of_file("edit"), "python": _python, "git": _git,
    "ruff": _ruff, "perl": _perl, "make": _make, "pytest": _operands_of("test", "pytest"),
    "uv": _subcommand({**_PACKAGES, "pip": "install"}, "install"),
    "conda": _subcommand(_PACKAGES, "other"),
    "cargo": _subcommand({**_BUILDS, "add": "install", "nextest": "test"}, "run"),
    "go": _subcommand({**_BUILDS, "get": "install"}, "run"),
    "mvn": _subcommand({**_BUILDS, "verify": "test"}, "run"),
    **dict.fromkeys(("gradle", "gradlew"), _subcommand({**_BUILDS, "check": "test"}, "run")),
    **dict.fromkeys(("dotnet", "bazel", "swift", "hatch"), _subcommand(_BUILDS, "run")),
    "rake": _subcommand({**_BUILDS, "spec": "test"}, "run"),
}  # fmt: skip


# --- Python programs given on the command line ------------------------------------------------------------------------

_WRITING_METHODS = ("write_text", "write_bytes", "touch", "unlink", "rename", "replace")
_WRITING_FUNCTIONS = {
    "os": ("remove", "rename", "replace", "unlink", "makedirs", "mkdir"),
    "shutil": ("copy", "copyfile", "move"),
}
_OPEN_CALL = re.compile(r"""open\(\s*[rf]?['"]([^'"\n]+)['"]\s*,\s*['"][wax]""")


def python_part(code: str) -> ActionPart:
    """An edit of the files that a Python program opens for writing (as far as they are constants), or a run."""
    written = _written_files(code)
    return ActionPart("edit", tuple(path for path in written if path)) if written else ActionPart("run", ("-",))


def _written_files(code: str) -> list[str]:
    """Paths that `code` writes to; `""` for one that is no constant."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the program are its own affair
            nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _OPEN_CALL.findall(code)
    names = {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    paths = (_written(node, names) for node in nodes if isinstance(node, ast.Call))
    return [path for path in paths if path is not None]


def _written(call: ast.Call, names: dict[str, ast.expr]) -> str | None:
    """The path that this call writes to; None: it writes to none."""
    function = call.func
    if isinstance(function, ast.Name):
        return _constant_path(call.args[:1], names) if function.id == "open" and _writes_mode(call, 1) else None
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value
    module = owner.id if isinstance(owner, ast.Name) else ""
    if module in _WRITING_FUNCTIONS:
        return _constant_path(call.args[-1:], names) if function.attr in _WRITING_FUNCTIONS[module] else None
    if function.attr == "open":
        first = int(module in ("io", "codecs"))
        return _constant_path(call.args[:1] if first else [owner], names) if _writes_mode(call, first) else None
    # str.replace takes two arguments or more, Path.replace one
    if function.attr in _WRITING_METHODS and (function.attr != "replace" or len(call.args) == 1):
        return _constant_path([owner], names)
    return None


def _writes_mode(call: ast.Call, place: int) -> bool:
    modes = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wax+") for m in modes)


def _constant_path(nodes: list[ast.expr], names: dict[str, ast.expr]) -> str:
    """A constant path: text, a name that is bound to it, or Path(…) around it; else an empty string."""
    node = nodes[0] if nodes else None
    for _ in range(8):  # names may be bound to each other in a circle
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else ""
        if isinstance(node, ast.Name):
            node = names.get(node.id)
        elif isinstance(node, ast.Call) and len(node.args) == 1:
            node = node.args[0]
        else:
            return ""
    return ""
