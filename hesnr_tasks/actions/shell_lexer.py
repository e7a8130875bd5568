"""The lexer of shell text: commands, here-documents, comments.

A lexer of the POSIX shell language with bash's additions: quotes, `$(…)`, backquotes, `${…}`, arithmetic,
here-documents and here-strings. It runs on a stack of contexts, so nesting costs no recursion, and ends quietly
wherever the text ends. A `#` starts a comment only at the start of a word. `edit N:M … end_of_edit` (SWE-agent's line
editor) is a here-document.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field

from hesnr_tasks.actions import CharSpan

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
