"""Shell text: its comments, and the commands and here-documents in which programs of other languages stand.

A lexer of the POSIX shell language with bash's additions: quotes, `$(…)`, backquotes, `${…}`, arithmetic,
here-documents and here-strings. It runs on a stack of contexts, so nesting costs no recursion, and ends quietly
wherever the text ends. A `#` starts a comment only at the start of a word. `edit N:M … end_of_edit` (SWE-agent's line
editor) is a here-document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hesnr_tasks.actions.views import CharSpan
from hesnr_tasks.filters.lexing import EXACT, LOOSE, TABS, LineIndex

__all__ = ["Command", "HereDocument", "Script", "Word", "lex_shell"]


@dataclass(slots=True)
class Word:
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

    words: list[Word] = field(default_factory=list)
    targets: list[Word] = field(default_factory=list)


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
    return _Lexer(text).run()


_NESTED = (
    r"(?P<escape>\\[\s\S]?)|(?P<arithmetic>\$\(\()|(?P<substitute>\$\()|(?P<brace>\$\{)|(?P<tick>`)|(?P<double>\")"
)
_PATTERNS = {
    "code": re.compile(
        r"""(?P<space>[ \t\r]+|\\\r?\n)|(?P<newline>\n)|(?P<comment>\#[^\n]*)
        |(?P<ansi>\$'[^'\\]*(?:\\[\s\S][^'\\]*)*(?:'|\\?\Z))|(?P<single>'[^']*(?:'|\Z))|(?P<double>\$?")
        |(?P<arithmetic>\$?\(\()|(?P<substitute>\$\(|[<>]\()|(?P<brace>\$\{)|(?P<tick>`)
        |(?P<heredoc><<-?(?!<)[ \t]*)|(?P<herestring><<<)|(?P<redirect>(?:&|\d+)?>>?[|&]?|\d*<&?)
        |(?P<open>\()|(?P<close>\))|(?P<pipe>\|&?(?!\|))|(?P<end>;;?&?|\|\||&&?)|(?P<escape>\\[\s\S]?)
        |(?P<plain>[^\s\\'"$`\#<>();&|]+|\$[\w\#?!$@*-]?|.)""",
        re.VERBOSE,
    ),
    "double": re.compile(_NESTED + r"|(?P<plain>[^\\\"`$]+|\$)"),
    "brace": re.compile(_NESTED + r"|(?P<single>'[^'}\n]*')|(?P<close>\})|(?P<plain>[^\\\"`$'}]+|[$'])"),
    "arithmetic": re.compile(
        _NESTED + r"|(?P<single>'[^')\n]*')|(?P<open>\()|(?P<close>\))|(?P<plain>[^\\\"`$'()]+|[$'])"
    ),
}
_DELIMITER = re.compile(r"'([^'\n]*)'|\"([^\"\n]*)\"|\\?([^\s'\"<>();&|\\`]+)")


@dataclass(slots=True)
class _Context:
    kind: str  # a key of _PATTERNS
    closer: str = ""
    depth: int = 1
    pipeline: list[Command] = field(default_factory=lambda: [Command()])
    word: Word | None = None
    redirected: bool = False  # the next word is the target of a redirection


class _Lexer:
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
            name = match.lastgroup or "plain"
            getattr(self, f"_{name}")(context, match[0], start)
        while self.stack:
            self._leave_command(self.stack.pop())
        return self.script

    # --- words and commands ---

    def _add(self, context: _Context, value: str, start: int, quote: str = "") -> None:
        """Add a piece to the present word, or begin one."""
        if context.word is None:
            context.word = Word(start, self.position, quote)
        elif context.kind == "code":
            context.word.quote = ""
        context.word.parts.append(value)
        context.word.end = self.position

    def _leave_word(self, context: _Context) -> None:
        word, context.word = context.word, None
        if word is None:
            return
        command = context.pipeline[-1]
        (command.targets if context.redirected else command.words).append(word)
        context.redirected = False

    def _leave_command(self, context: _Context) -> None:
        if context.kind != "code":
            return
        self._leave_word(context)
        self.script.commands += [command for command in context.pipeline if command.words or command.targets]
        context.pipeline, context.redirected = [Command()], False

    # --- tokens; each takes the context, the token's text and where it starts ---

    def _space(self, context: _Context, token: str, start: int) -> None:
        self._leave_word(context)

    def _newline(self, context: _Context, token: str, start: int) -> None:
        self._leave_word(context)
        self._line_editor(context)
        for document in self.pending:
            self._read(document)
        self.pending.clear()
        self._leave_command(context)

    def _comment(self, context: _Context, token: str, start: int) -> None:
        if context.word is not None:
            self.position = start + 1
            self._add(context, "#", start)
            return
        tick = token.find("`") if context.closer == "`" else -1
        self.position = start + tick if tick >= 0 else self.position
        self.script.comments.append((start, self.position - token.endswith("\r")))

    def _single(self, context: _Context, token: str, start: int) -> None:
        self._add(context, token[1:].removesuffix("'"), start, "'")

    def _ansi(self, context: _Context, token: str, start: int) -> None:
        self._add(context, token[2:].removesuffix("'"), start, "$'")

    def _plain(self, context: _Context, token: str, start: int) -> None:
        self._add(context, token, start)

    def _escape(self, context: _Context, token: str, start: int) -> None:
        kept = token if context.kind == "double" and token[1:] not in ('"', "\\", "$", "`", "\n") else token[1:]
        self._add(context, kept.removesuffix("\n"), start)

    def _double(self, context: _Context, token: str, start: int) -> None:
        if context.kind == "double":
            self.stack.pop()
            outer = self.stack[-1]
            if outer.word is not None:
                outer.word.end = self.position
            return
        self._add(context, "", start, '"')
        self.stack.append(_Context("double", word=context.word))

    def _enter(self, context: _Context, start: int, inner: _Context) -> None:
        self._add(context, "", start)
        self.stack.append(inner)

    def _substitute(self, context: _Context, token: str, start: int) -> None:
        self._enter(context, start, _Context("code", closer=")"))

    def _arithmetic(self, context: _Context, token: str, start: int) -> None:
        self._enter(context, start, _Context("arithmetic", depth=2))

    def _brace(self, context: _Context, token: str, start: int) -> None:
        self._enter(context, start, _Context("brace"))

    def _tick(self, context: _Context, token: str, start: int) -> None:
        if context.closer == "`":
            self._close_context()
        else:
            self._enter(context, start, _Context("code", closer="`"))

    def _open(self, context: _Context, token: str, start: int) -> None:
        if context.kind == "arithmetic":
            context.depth += 1
            return
        self._leave_command(context)
        self.stack.append(_Context("code", closer=")"))

    def _close(self, context: _Context, token: str, start: int) -> None:
        context.depth -= 1
        if context.kind == "code" and context.closer != ")":  # the `)` of a case pattern
            self._leave_command(context)
        elif context.depth <= 0:
            self._close_context()

    def _close_context(self) -> None:
        self._leave_command(self.stack.pop())
        outer = self.stack[-1]
        if outer.word is not None:
            outer.word.end = self.position

    def _pipe(self, context: _Context, token: str, start: int) -> None:
        self._leave_word(context)
        context.pipeline.append(Command())

    def _end(self, context: _Context, token: str, start: int) -> None:
        self._leave_command(context)

    def _redirect(self, context: _Context, token: str, start: int) -> None:
        self._leave_word(context)
        context.redirected = ">" in token

    def _herestring(self, context: _Context, token: str, start: int) -> None:
        self._leave_word(context)

    def _heredoc(self, context: _Context, token: str, start: int) -> None:
        self._leave_word(context)
        match = _DELIMITER.match(self.text, self.position)
        if match:
            self.position = match.end()
            name = match[1] or match[2] or match[3] or ""
            document = HereDocument(name, token.startswith("<<-"), context.pipeline[-1], context.pipeline)
            self.pending.append(document)

    # --- here-documents ---

    def _line_editor(self, context: _Context) -> None:
        words = [word.text for word in context.pipeline[-1].words]
        if len(words) == 2 and words[0] == "edit" and re.fullmatch(r"\d+:\d+", words[1]):
            document = HereDocument("end_of_edit", False, context.pipeline[-1], context.pipeline)
            if self._delimiter_line(document) >= 0:
                self.pending.append(document)

    def _read(self, document: HereDocument) -> None:
        """Find the body: it begins here and ends before the line that is the delimiter, or at the end of the text."""
        document.start = self.position
        line = self._delimiter_line(document)
        document.end = line if line >= 0 else len(self.text)
        self.position = document.end
        if line >= 0:
            self.position = self.text.index(document.delimiter, line) + len(document.delimiter)
        self.script.documents.append(document)

    def _delimiter_line(self, document: HereDocument) -> int:
        """Where the line that ends `document` begins, or -1. First as the shell reads it, then with loose ends."""
        line = self.lines.find(document.delimiter, self.position, TABS if document.tabs else EXACT)
        return line if line >= 0 else self.lines.find(document.delimiter, self.position, LOOSE)
