"""The table of languages: which files, fences and programs are in each, and how its comments are lexed.

To add a language, add a line to `_TABLE` and, if its comments are to be found, a grammar in `grammars`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from hesnr_tasks.actions import CharSpan
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
_PROGRAMS = [(re.compile(language.program), language.name) for language in _TABLE if language.program]


def by_tag(tag: str) -> str | None:
    """The language a fence tag names, or None."""
    return _TAGS.get(tag.strip().strip("{}.").lower())


def by_interpreter(program: str) -> str | None:
    """The language that a program such as `/usr/bin/python3.11` runs, or None."""
    name = program.rpartition("/")[2].removesuffix(".exe")
    return next((language for pattern, language in _PROGRAMS if pattern.fullmatch(name)), None)


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
