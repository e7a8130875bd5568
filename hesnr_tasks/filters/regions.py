"""The pieces of an action, each in one language: parameters, commands, and the programs inside commands.

A value's language comes from, in this order: a sibling parameter that names a file (`path`, `filename` …), what the
tool runs (`execute_bash`: shell, `execute_ipython_cell`: Python), the fence tag, a shebang, its look (only for editing
tools without a file). Shell text is opened further (here-documents, scripts given to an interpreter), and so are
patches and fenced blocks in prose. A file or script inside another piece is a piece of its own, so a character can lie
in several; a piece of shell excludes nothing, because the shell lexer itself does not look into quotes and
here-documents.

To add a language, add a line to `_TABLE` and, if its comments are to be found, a grammar in `grammars`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from hesnr_tasks.actions import Call, CharSpan, View, join, json_decoded, unescape
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.actions.shell import Command, HereDocument, ShellWord, lex_shell
from hesnr_tasks.actions.tools import is_for, names, parameter_role, tool_runs
from hesnr_tasks.filters import grammars
from hesnr_tasks.filters.lexer import Grammar


class Language(NamedTuple):
    """How a language is recognised and lexed; words are separated by spaces, patterns match whole names."""

    name: str
    comments: Grammar | None = None
    extensions: str = ""  # of its files, in lower case; also tags of its fences
    tags: str = ""  # further tags of its fences
    program: str = ""  # pattern of the names of its interpreters
    script: str = ""  # pattern of the interpreter's options that a program follows
    files: str = ""  # pattern of file names that the extension does not tell


# where several patterns match a file name, the first line counts
# fmt: off
_TABLE = (
    Language("dockerfile", grammars.dockerfile, "dockerfile containerfile", "docker",
             files=r"(?i:(?:Docker|Container)file(?:[._-].*)?|.*\.dockerfile)"),
    Language("make", grammars.make, "mk mak make", "makefile", r"g?make",
             files=r"(?i:(?:GNU|BSD)?makefile(?:[._-].*)?)"),
    Language("cmake", grammars.cmake, "cmake", files=r"(?i:CMakeLists\.txt)"),
    Language("requirements", grammars.requirements,
             files=r"(?i:.*(?:requirements|constraints).*\.(?:txt|in)|robots\.txt)|\.gitattributes|CODEOWNERS|\.mailmap"
                   r"|\.(?:git|docker|npm|eslint|prettier|hg|helm)ignore"),
    Language("ruby", grammars.ruby, "rb rake gemspec ru podspec builder", "", r"j?ruby[\d.]*|irb", r"-\w*e",
             r"(?:Gem|Rake|Vagrant|Brew|Guard|Pod|Fast|Cap|Danger)file|config\.ru|\.irbrc|\.pryrc"),
    Language("groovy", grammars.groovy, "groovy gradle", files=r"Jenkinsfile(?:\..*)?"),
    Language("python", grammars.python, "ipynb py pyi pyw pyx pxd pyt wsgi bzl star", "python3 py3 ipython tool_code",
             r"(?:python|pypy|ipython)[\d.]*w?|uv-python", r"-\w*c",
             r"SCons(?:truct|cript)|BUILD(?:\.bazel)?|WORKSPACE(?:\.bazel)?|Snakefile|wscript|\.pythonrc"),
    Language("toml", grammars.toml, "toml", files=r"Pipfile|poetry\.lock|Cargo\.lock|uv\.lock|pdm\.lock"),
    Language("shell", grammars.shell, "sh bash zsh ksh bats command env envrc", "", r"(?:ba|z|k|da|a)?sh", r"-\w*c",
             r"\.(?:bash|zsh|k?sh)rc|\.(?:bash_)?profile|\.bash_aliases|\.zshenv|\.envrc|\.env(?:\..*)?|PKGBUILD"),
    Language("yaml", grammars.yaml, "yaml yml",
             files=r"\.clang-(?:format|tidy)|\.(?:yamllint|prettierrc|rubocop\.yml)"),
    Language("ini", grammars.ini, "ini cfg conf properties editorconfig", files=r"setup\.cfg|tox\.ini"
             r"|\.(?:coveragerc|flake8|pylintrc|npmrc|gitconfig|gitmodules|pypirc|editorconfig)"),
    Language("text", None, "txt text adoc",
             files=r"(?i:README|CHANGELOG|CHANGES|CONTRIBUTING|NEWS|HISTORY|AUTHORS|LICENSE|COPYING)"),
    Language("javascript", grammars.javascript, "js jsx mjs cjs es6 json5 jsonc", "node javascriptreact",
             r"node(?:js)?|deno|bun|qjs|d8", r"-e|-p|-pe|--eval|--print|eval"),
    Language("typescript", grammars.javascript, "ts tsx mts cts", "typescriptreact", r"ts-node|tsx",
             r"-e|-p|-pe|--eval|--print"),
    Language("java", grammars.java, "java"),
    Language("go", grammars.go, "go", "golang"),
    Language("rust", grammars.rust, "rs"),
    Language("c", grammars.c, "c h"),
    Language("cpp", grammars.cpp, "cc cpp cxx c++ hh hpp hxx h++ ipp inl tpp cu cuh ino m mm proto",
             "objective-c objc"),
    Language("csharp", grammars.csharp, "cs csx", "c#"),
    Language("php", grammars.php, "php phtml php5 php7 php8", "", r"php[\d.]*", r"-r"),
    Language("kotlin", grammars.kotlin, "kt kts"),
    Language("swift", grammars.swift, "swift"),
    Language("scala", grammars.kotlin, "scala sc sbt"),
    Language("dart", grammars.dart, "dart"),
    Language("sql", grammars.sql, "sql ddl dml psql mysql", "postgresql plpgsql sqlite",
             r"psql|mysql|mariadb|sqlite3?|duckdb", r"-c|-e|--command|--execute"),
    Language("html", grammars.html,
             "html htm vue svelte erb jsp jinja j2 xhtml xml svg xsd xsl xslt rss atom plist csproj vbproj"),
    Language("css", grammars.css, "css"),
    Language("scss", grammars.scss, "scss sass less"),
    Language("markdown", grammars.markdown, "md markdown mdx mkd mdown rmd qmd"),
    Language("rst", None, "rst rest"),
    Language("patch", None, "patch diff"),
    Language("lua", grammars.lua, "lua", "", r"lua(?:jit)?[\d.]*", r"-e"),
    Language("perl", grammars.perl, "pl pm", "", r"perl[\d.]*", r"-\w*[eE]"),
    Language("r", grammars.r, "r", "", r"Rscript|R", r"-e"),
    Language("julia", grammars.julia, "jl", "", r"julia", r"-e|-E"),
    Language("elixir", grammars.elixir, "ex exs", "", r"elixir|iex", r"-e"),
    Language("erlang", grammars.erlang, "erl hrl"),
    Language("haskell", grammars.haskell, "hs"),
    Language("powershell", grammars.powershell, "ps1 psm1", "", r"pwsh|powershell"),
    Language("terraform", grammars.terraform, "tf tfvars hcl"),
    Language("console", None, "", "console pycon shell-session"),
    Language("prose"),
)
# fmt: on
LANGUAGES = {language.name: language for language in _TABLE}
PROSE = ("markdown", "rst", "text", "prose")  # the languages in which marks of markdown are marks


def comments_of(text: str, language: str) -> list[CharSpan]:
    """Spans of the comments of a file or fragment. A shebang, which chooses the interpreter, is not a comment.

    Args:
        text: of the file.
        language: a key of `LANGUAGES`; there are no comments in others, and in those without a grammar.
    """
    grammar = LANGUAGES[language].comments if language in LANGUAGES else None
    spans = grammar(text) if grammar else []
    return [span for span in spans if span[0] > 0] if text.startswith("#!") else spans


# --- files ------------------------------------------------------------------------------------------------------------

_FILES = [(re.compile(language.files), language.name) for language in _TABLE if language.files]
_BY_EXTENSION = {extension: language.name for language in _TABLE for extension in language.extensions.split()}


@lru_cache(maxsize=4096)
def by_file_name(path: str) -> str | None:
    """The language of a file of that name, or None."""
    name = re.split(r"[/\\]", path.strip().strip("'\""))[-1]
    name = re.sub(r"\.(?:in|tmpl|tpl|template|j2|jinja2?|bak|orig|new|old|tmp)$", "", name) or name
    for pattern, language in _FILES:
        if pattern.fullmatch(name):
            return language
    _, dot, extension = name.rpartition(".")
    return _BY_EXTENSION.get(extension.lower()) if dot else None


_SHARED = {  # extensions of several languages: what each looks like, and the language; else the name's own
    "inc": ((r"<\?(?:php|=|\s)|\$\w+\s*(?:=|->|\[)|^\s*(?:namespace|use) [\w\\\\]+;", "php"),
            (r"^\s*#\s*(?:include|define|ifdef|ifndef|if|pragma)\b|\w::\w|^\s*(?://|/\*)", "cpp")),
    "m": ((r"^\s*(?:%|function\b[^(]*=|end\s*$)", None),),
    "pl": ((r"^\s*:-|^[a-z]\w*\(.*\)\s*(?::-|\.\s*$)", None),),
    "ts": ((r"\A\s*<(?:\?xml|!DOCTYPE|TS\b)", "html"),),
}  # fmt: skip


def by_file(path: str, text: str) -> str | None:
    """The language of a file of that name that holds `text` (or has it as a part); or None.

    Some extensions are those of several languages; where the text does not decide, and where the name says nothing,
    only a shebang does.
    """
    extension = path.strip().strip("'\"").rpartition(".")[2].lower()
    for pattern, language in _SHARED.get(extension, ()):
        if re.search(pattern, text[:20_000], re.MULTILINE):
            return language
    return by_file_name(path) or (by_look(text) if text.lstrip().startswith("#!") else None)


# --- fences and programs ----------------------------------------------------------------------------------------------

_TAGS = (
    {language.name: language.name for language in _TABLE if language.extensions}
    | _BY_EXTENSION
    | {tag: language.name for language in _TABLE for tag in language.tags.split()}
)
_INTERPRETERS = [(re.compile(language.program), language.name) for language in _TABLE if language.program]


def by_tag(tag: str) -> str | None:
    """The language a fence tag names, or None."""
    return _TAGS.get(tag.strip().strip("{}.").lower())


def by_interpreter(program: str) -> str | None:
    """The language that a program such as `/usr/bin/python3.11` runs, or None."""
    name = program.rpartition("/")[2].removesuffix(".exe")
    return next((language for pattern, language in _INTERPRETERS if pattern.fullmatch(name)), None)


# --- looks ------------------------------------------------------------------------------------------------------------

_SHEBANG = re.compile(r"#![ \t]*(?:\S*/env[ \t]+(?:-\S+[ \t]+)*)?(\S+)")
_NOT_PYTHON = re.compile(
    r"[;{][ \t]*(?:\n|\Z)|^[ \t]*(?://|/\*|#[ \t]*(?:include|define|if|ifdef|ifndef|endif|pragma)\b|<\w|\}|end$)",
    re.MULTILINE,
)
_PYTHON = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(.*|class \w+.*:|from [\w.]+ import .+|import \w[\w., ]*|@\w[\w.]*(?:\(.*\))?"
    r"|(?:if|elif|for|while|with|except) .+:|(?:else|try|finally):|return\b.*|raise\b.*"
    r"|\w[\w.\[\]]* [-+*/]?= .+|\w[\w.]*\(.*)$",
    re.MULTILINE,
)


def by_look(text: str) -> str | None:
    """The language of a text with a shebang, or Python if it looks like Python and like nothing else; or None."""
    shebang = _SHEBANG.match(text.lstrip("\r\n"))
    if shebang:
        return by_interpreter(shebang[1])
    head = text[:20_000]
    return "python" if _PYTHON.search(head) and not _NOT_PYTHON.search(head) else None


# --- pieces -----------------------------------------------------------------------------------------------------------


class Region(NamedTuple):
    """A piece of the action and the language it is in (a key of `LANGUAGES`)."""

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
                if not any(language in _OPENED for _, language in level):
                    break
                level = [inner for view, language in level if language in _OPENED for inner in _OPENED[language](view)]
    return tuple(pieces)


# --- calls ------------------------------------------------------------------------------------------------------------

_STRING = r'"([^"\\]*(?:\\[\s\S][^"\\]*)*)"'
_ARGUMENT = re.compile(_STRING)
_ARGUMENTS = re.compile(rf"\s*\[\s*{_STRING}\s*(?:,\s*{_STRING}\s*)*\]\s*")
_EDIT = re.compile(rf'"(\w+)"\s*:\s*{_STRING}')
_PATCH = re.compile(r"\s*\*\*\* Begin Patch")
_SEARCH_REPLACE = re.compile(r"^[<-]{5,9} ?SEARCH\b", re.MULTILINE)
_SIDE = re.compile(r"^(?:[<-]{5,9} ?SEARCH.*|={5,9}|[>+]{5,9} ?REPLACE.*)\r?$", re.MULTILINE)
_BY_FILE, _BY_LOOK, _BY_SIBLING = "by file", "by look", "by sibling"  # how the language of a value is told


def _in_call(text: str, call: Call) -> Iterator[Region]:
    values = [(parameter.name, parameter.view(text)) for parameter in call.parameters]
    path = next((view.text for name, view in values if parameter_role(name, "path")), None)
    for name, view in values:
        value = view.text
        if path is not None and "SEARCH" in value and (blocks := _SEARCH_REPLACE.search(value)):
            for mark, following in pairwise(_SIDE.finditer(value, blocks.start())):
                side = view.cut(mark.end(), following.start())
                if language := by_file(path, side.text):
                    yield Region(side, language)
            continue
        language = "patch" if _PATCH.match(value) else _language(call.name, call.form, name, path is not None)
        if language == _BY_FILE:
            language = by_file(path or "", value)
        elif language == _BY_LOOK:
            language = by_look(value)
        elif language == _BY_SIBLING:
            language = by_tag(next((view.text for name, view in values if parameter_role(name, "language")), ""))
        if language == "shell" and _ARGUMENTS.fullmatch(value):
            # the list of a command's words: `["bash", "-lc", "…"]`; one word is no list but a test: `[ "$x" ]`
            words = list(_ARGUMENT.finditer(value))
            program = by_interpreter(words[0][1]) if len(words) == 3 else None
            option = r"-\w*c" if program in ("shell", "python", "sql") else r"-\w*e|--eval"
            if program and re.fullmatch(option, words[1][1]):
                yield Region(json_decoded(view.cut(*words[2].span(1))), program)
            elif len(words) == 2 and words[0][1] == "apply_patch":
                yield Region(json_decoded(view.cut(*words[1].span(1))), "patch")
        elif language:
            yield Region(view, language)
        elif path is not None and value[:1] in ("[", "{"):
            # several edits of one file: `[{"old_string": "…", "new_string": "…"}, …]`
            for match in _EDIT.finditer(value):
                if parameter_role(match[1], "content") and (language := by_file(path, match[2])):
                    yield Region(json_decoded(view.cut(*match.span(2))), language)


@lru_cache(maxsize=4096)
def _language(tool: str, form: str, name: str, has_path: bool) -> str | None:
    """The language of the values of parameter `name`, how it is to be told, or None if it is in none that is known."""
    runs = tool_runs(tool)
    if is_for("patch", tool) or is_for("patch", name):
        return "patch"
    if parameter_role(name, "prose") or (is_for("prose", tool) and parameter_role(name, "answer")):
        return "prose"
    if runs and (not name or parameter_role(name, "command", "code")):
        return runs
    if form == "fence":
        return by_tag(tool)
    if parameter_role(name, "content"):
        return _BY_FILE if has_path else _BY_LOOK if is_for("edit", tool) else _BY_SIBLING
    own = has_path and is_for("files", tool)
    return "shell" if name in ("command", "cmd", "keystrokes", "bash_command") and not own else None


# --- patches, fences in markdown --------------------------------------------------------------------------------------

_HEADER = re.compile(
    r"(?:\+\+\+|---) (?:[ab]/)?([^\t\r\n]+)|\*\*\* (?:Add|Update|Delete) File: (.+)|diff --git \S+ (?:b/)?(\S+)"
)
_FENCED = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`\n]*\n", re.MULTILINE)


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
            for absent in "-+" if path else "":
                if any(line.text[0] not in (" ", absent) for line in hunk) or (hunk and absent == "-"):
                    side = join([ln.cut(ln.text[0] in " +-", len(ln.text)) for ln in hunk if ln.text[0] != absent])
                    if language := by_file(path, side.text):
                        yield Region(side, language)
            hunk = []
            if header:
                name = header[1] or header[2] or header[3]
                path = path if name == "/dev/null" else name
        elif line.text[0] in " +-\n\r":
            hunk.append(line)


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
_SINGLE = re.compile(r"'[^']*(?:'(?:\"'\"|\\')'[^']*)*'")
_SINGLE_ESCAPE = re.compile(r"'(?:\"'\"|\\')'")
_DOUBLE_ESCAPE = re.compile(r"\\(?:\r?\n|[\"\\$`])")
_ANSI_ESCAPE = re.compile(r"\\[\s\S]")
_ANSI_VALUES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}


def _in_shell(view: View) -> Iterator[Region]:
    text = view.text
    if not any(mark in text for mark in ("<<", " -", "edit ", "apply_patch")):
        return
    script = lex_shell(text)
    for document in script.documents:
        body = view.cut(document.start, document.end)
        if language := _document_language(document, body.text):
            yield Region(body, language)
    for command in script.commands:
        for word, language in _inline(command):
            whole, inner = view.cut(word.start, word.end), view.cut(word.start + len(word.quote), word.end)
            inner = inner.cut(0, max(0, len(inner.text) - 1))
            if _SINGLE.fullmatch(whole.text):
                inner = unescape(whole.cut(1, len(whole.text) - 1), _SINGLE_ESCAPE, lambda escape: "'")
            elif not word.quote:
                continue
            elif word.quote == '"':
                inner = unescape(inner, _DOUBLE_ESCAPE, lambda escape: "" if escape[-1] == "\n" else escape[1:])
            elif word.quote == "$'":
                inner = unescape(inner, _ANSI_ESCAPE, lambda escape: _ANSI_VALUES.get(escape, escape[1:]))
            yield Region(inner, language)


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
        name, arguments = _program(reader)
        if language := _reads(name, arguments):
            return language
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


def _reads(name: str, arguments: list[str]) -> str | None:
    """The language of the program that a command reads from its standard input, if it does."""
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
    if is_for("edit", words[0].text):  # `str_replace_editor create a.py --file_text '…'`
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


_OPENED = {"shell": _in_shell, "patch": _in_patch, **dict.fromkeys(PROSE, _in_fences)}
