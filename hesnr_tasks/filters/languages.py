"""Which language a piece of text is in: by file name, fence tag, shebang, interpreter or, failing these, its look."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["by_file", "by_file_name", "by_interpreter", "by_look", "by_tag"]

_EXTENSIONS = {
    "python": "ipynb py pyi pyw pyx pxd pyt wsgi bzl star",
    "javascript": "js jsx mjs cjs es6 json5 jsonc",
    "typescript": "ts tsx mts cts",
    "java": "java",
    "groovy": "groovy gradle",
    "go": "go",
    "rust": "rs",
    "c": "c h",
    "cpp": "cc cpp cxx c++ hh hpp hxx h++ ipp inl tpp cu cuh ino m mm proto",
    "csharp": "cs csx",
    "ruby": "rb rake gemspec ru podspec builder",
    "php": "php phtml php5 php7 php8",
    "kotlin": "kt kts",
    "swift": "swift",
    "scala": "scala sc sbt",
    "dart": "dart",
    "shell": "sh bash zsh ksh bats command env envrc",
    "yaml": "yaml yml",
    "toml": "toml",
    "ini": "ini cfg conf properties editorconfig",
    "sql": "sql ddl dml psql mysql",
    "dockerfile": "dockerfile containerfile",
    "make": "mk mak make",
    "html": "html htm vue svelte erb jsp jinja j2 xhtml xml svg xsd xsl xslt rss atom plist csproj vbproj",
    "css": "css",
    "scss": "scss sass less",
    "markdown": "md markdown mdx mkd mdown rmd qmd",
    "rst": "rst rest",
    "text": "txt text adoc",
    "patch": "patch diff",
    "lua": "lua",
    "perl": "pl pm",
    "r": "r",
    "julia": "jl",
    "elixir": "ex exs",
    "erlang": "erl hrl",
    "haskell": "hs",
    "powershell": "ps1 psm1",
    "terraform": "tf tfvars hcl",
    "cmake": "cmake",
}
_BY_EXTENSION = {extension: language for language, all_ in _EXTENSIONS.items() for extension in all_.split()}
_NAMES = (
    (re.compile(r"(?:Docker|Container)file(?:[._-].*)?|.*\.dockerfile", re.IGNORECASE), "dockerfile"),
    (re.compile(r"(?:GNU|BSD)?makefile(?:[._-].*)?", re.IGNORECASE), "make"),
    (re.compile(r"CMakeLists\.txt", re.IGNORECASE), "cmake"),
    (re.compile(r".*(?:requirements|constraints).*\.(?:txt|in)", re.IGNORECASE), "requirements"),
    (re.compile(r"robots\.txt", re.IGNORECASE), "requirements"),
    (re.compile(r"(?:Gem|Rake|Vagrant|Brew|Guard|Pod|Fast|Cap|Danger)file|config\.ru|\.irbrc|\.pryrc"), "ruby"),
    (re.compile(r"Jenkinsfile(?:\..*)?"), "groovy"),
    (
        re.compile(r"SCons(?:truct|cript)|BUILD(?:\.bazel)?|WORKSPACE(?:\.bazel)?|Snakefile|wscript|\.pythonrc"),
        "python",
    ),
    (re.compile(r"Pipfile|poetry\.lock|Cargo\.lock|uv\.lock|pdm\.lock"), "toml"),
    (
        re.compile(
            r"\.(?:bash|zsh|k?sh)rc|\.(?:bash_)?profile|\.bash_aliases|\.zshenv|\.envrc|\.env(?:\..*)?|PKGBUILD"
        ),
        "shell",
    ),
    (
        re.compile(r"\.(?:git|docker|npm|eslint|prettier|hg|helm)ignore|\.gitattributes|CODEOWNERS|\.mailmap"),
        "requirements",
    ),
    (re.compile(r"\.clang-(?:format|tidy)|\.(?:yamllint|prettierrc|rubocop\.yml)"), "yaml"),
    (
        re.compile(
            r"\.(?:coveragerc|flake8|pylintrc|npmrc|gitconfig|gitmodules|pypirc|editorconfig)|setup\.cfg|tox\.ini"
        ),
        "ini",
    ),
    (
        re.compile(r"(?:README|CHANGELOG|CHANGES|CONTRIBUTING|NEWS|HISTORY|AUTHORS|LICENSE|COPYING)", re.IGNORECASE),
        "text",
    ),
)


@lru_cache(maxsize=4096)
def by_file_name(path: str) -> str | None:
    """The language of a file of that name, or None."""
    name = re.split(r"[/\\]", path.strip().strip("'\""))[-1]
    name = re.sub(r"\.(?:in|tmpl|tpl|template|j2|jinja2?|bak|orig|new|old|tmp)$", "", name) or name
    for pattern, language in _NAMES:
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


_TAGS = {
    **{language: language for language in _EXTENSIONS},
    **_BY_EXTENSION,
    "python3": "python",
    "py3": "python",
    "ipython": "python",
    "pycon": "console",
    "node": "javascript",
    "typescriptreact": "typescript",
    "javascriptreact": "javascript",
    "golang": "go",
    "c++": "cpp",
    "c#": "csharp",
    "objective-c": "cpp",
    "objc": "cpp",
    "zsh": "shell",
    "bash": "shell",
    "docker": "dockerfile",
    "makefile": "make",
    "xml": "html",
    "hcl": "terraform",
    "postgresql": "sql",
    "plpgsql": "sql",
    "sqlite": "sql",
    "cfg": "ini",
    "tool_code": "python",
    "console": "console",
    "shell-session": "console",
}


def by_tag(tag: str) -> str | None:
    """The language a fence tag names, or None."""
    return _TAGS.get(tag.strip().strip("{}.").lower())


_INTERPRETERS = (
    (re.compile(r"(?:python|pypy|ipython)[\d.]*w?|uv-python"), "python"),
    (re.compile(r"(?:ba|z|k|da|a)?sh"), "shell"),
    (re.compile(r"node(?:js)?|deno|bun|qjs|d8"), "javascript"),
    (re.compile(r"ts-node|tsx"), "typescript"),
    (re.compile(r"j?ruby[\d.]*|irb"), "ruby"),
    (re.compile(r"php[\d.]*"), "php"),
    (re.compile(r"psql|mysql|mariadb|sqlite3?|duckdb"), "sql"),
    (re.compile(r"make|gmake"), "make"),
    (re.compile(r"perl[\d.]*"), "perl"),
    (re.compile(r"lua(?:jit)?[\d.]*"), "lua"),
    (re.compile(r"Rscript|R"), "r"),
    (re.compile(r"julia"), "julia"),
    (re.compile(r"elixir|iex"), "elixir"),
    (re.compile(r"pwsh|powershell"), "powershell"),
)


def by_interpreter(program: str) -> str | None:
    """The language that a program such as `/usr/bin/python3.11` runs, or None."""
    name = program.rpartition("/")[2].removesuffix(".exe")
    return next((language for pattern, language in _INTERPRETERS if pattern.fullmatch(name)), None)


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
