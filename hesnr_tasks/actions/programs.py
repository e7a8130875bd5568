"""What one simple shell command does and to which files: a table of programs, and rules for those it cannot hold."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

from hesnr_tasks.actions.shell import Simple, operands, program, program_name, values
from hesnr_tasks.actions.tools import names, table

__all__ = ["CLASSES", "FILTER", "Part", "classify", "inner_script", "written_files"]

# from what matters most to what matters least: the first of them that an action contains is the action's class
CLASSES = ("submit", "edit", "test", "run", "install", "vcs", "search", "read", "think", "other", "none")
FILTER = "filter"  # works on what another command prints: says nothing of its own


class Part(NamedTuple):
    """One of `CLASSES` (or `FILTER`), the files it is about, and what it looks for."""

    kind: str
    targets: tuple[str, ...] = ()
    pattern: str = ""


# --- the table of programs ---


KINDS = table(
    submit="submit finish complete exit_agent",
    edit="rm mv cp mkdir rmdir touch chmod chown ln patch tee truncate dd create edit insert undo_edit apply_patch ed "
    "ex black isort autopep8 yapf unlink install str_replace append rename",
    test="pytest py.test pytest-3 nosetests nose2 tox nox trial ctest jest vitest mocha rspec phpunit bats "
    "runtests.py runtests",
    run="python node ruby perl php lua java javac bash sh zsh ipython make cmake ninja gcc g++ clang rustc mypy "
    "flake8 pylint pyflakes ruff tsc eslint pre-commit docker sqlite3 psql curl wget tar unzip zip gunzip",
    install="apt apt-get yum dnf apk brew gem",
    vcs="git hg svn gh",
    search="grep egrep fgrep zgrep rg ag ack find fd fdfind ls ll dir tree locate which whereis du search_dir "
    "search_file find_file type",
    read="cat bat head tail less more nl od xxd hexdump strings wc file stat diff cmp comm md5sum sha256sum jq yq sed "
    "awk gawk cut sort uniq column tac rev fold open goto scroll_down scroll_up view show_file realpath readlink "
    "basename dirname tr paste xmllint printenv env uname df free ps id whoami hostname date",
    other="cd pushd popd export source . set unset alias true false : pwd echo printf sleep kill pkill wait ulimit "
    "umask shopt read trap exit return eval clear test disown jobs fg bg deactivate conda",
)  # fmt: skip
TEXT_TOOLS = names(
    "cat bat head tail less more nl sed awk gawk cut sort uniq column tac rev fold tr paste wc jq yq "
    "tee grep egrep fgrep zgrep rg ag ack strings xxd od hexdump"
)
WRITERS = names("cat echo printf sed awk gawk head tail sort uniq cut tr nl jq yq envsubst base64")
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


def classify(simple: Simple) -> Part:
    """What one simple command does. Targets are as written; `keys` makes one path of them. Never raises."""
    words = list(simple.words[program(simple.words) :])
    if not words:
        return Part("edit", simple.writes) if simple.writes else Part("none")
    if _MARKERS.search(" ".join(words[1:3])) and words[0] in ("echo", "printf"):
        return Part("submit")
    name = program_name(words[0])
    if simple.writes and name in WRITERS:
        return Part("edit", simple.writes)
    by_hand = _BY_HAND.get(name)
    if by_hand is not None:
        return by_hand(words[1:], simple)
    kind = _unknown(words[0]) if "/" in words[0] and name == "test" else KINDS.get(name) or _unknown(words[0])
    places = operands(words)
    if kind == "read" and simple.piped and name in TEXT_TOOLS and not places:
        return Part(FILTER)
    if kind in ("run", "install"):
        return Part(kind, (name,))
    return Part(kind, tuple(places) if kind not in ("other", "submit") else ())


def _unknown(word: str) -> str:
    return "test" if _TEST_FILE.search(word) else "run"


# --- commands that need a look at their arguments; each takes the words after the name ------------------------------


def _grep(words: list[str], simple: Simple) -> Part:
    places = operands(["rg" if simple.words[-len(words) - 1 :][0] in ("rg", "ag", "ack") else "grep", *words])
    patterns = values(words, "-e", "--regexp")
    if not patterns and "--files" not in words:
        patterns, places = places[:1], places[1:]
    return Part("search", tuple(places), " ".join(patterns))


def _find(words: list[str], simple: Simple) -> Part:
    starts = [i for i, word in enumerate(words) if word.startswith("-") or word in ("(", "!", "\\(")]
    places = words[: starts[0]] if starts else words
    skipped = {i + 2 for i, word in enumerate(words) if word in ("-not", "!", "\\!")}
    words = [word for i, word in enumerate(words) if i not in skipped]
    names = tuple(values(words, "-name", "-iname", "-path", "-wholename", "-ipath", "-regex", "-iregex"))
    for flag in ("-exec", "-execdir", "-ok"):
        if flag in words:
            inner = [word for word in words[words.index(flag) + 1 :] if word not in (";", "\\;", "+", "{}")]
            part = classify(Simple(tuple(inner), ())) if inner else Part(FILTER)
            if CLASSES.index(part.kind if part.kind in CLASSES else "none") < CLASSES.index("search"):
                return Part(part.kind, part.targets or names or tuple(places))
    return Part("edit" if "-delete" in words else "search", names or tuple(places))


def _named_search(words: list[str], simple: Simple) -> Part:
    """SWE-agent's search_dir, search_file and find_file: pattern, then place."""
    places = operands(["find_file", *words])
    return Part("search", tuple(places[1:]), places[0] if places else "")


def _sed(words: list[str], simple: Simple) -> Part:
    in_place = any(re.match(r"-[nErsuz]*i|--in-place", word) for word in words)
    scripts = values(words, "-e", "--expression", "-f", "--file")
    places = operands(["sed", *words])[0 if scripts else 1 :]
    if not places and simple.piped and not in_place:
        return Part(FILTER)
    return Part("edit" if in_place else "read", tuple(places))


def _awk(words: list[str], simple: Simple) -> Part:
    places = operands(["awk", *words])[0 if values(words, "-f") else 1 :]
    return Part("read", tuple(places)) if places or not simple.piped else Part(FILTER)


def _copy(words: list[str], simple: Simple) -> Part:
    return Part("edit", tuple(operands(["cp", *words])[-1:]))


def _mode(words: list[str], simple: Simple) -> Part:
    return Part("edit", tuple(operands(["chmod", *words])[1:]))


def _patch(words: list[str], simple: Simple) -> Part:
    body = simple.body or " ".join(words)
    files = re.findall(r"^(?:\*\*\* (?:Update|Add|Delete) File: |\+\+\+ (?:b/)?)(\S+)", body, re.MULTILINE)
    named = [word for word in operands(["patch", *words]) if "\n" not in word]
    return Part("edit", tuple(files or named[:1]))


def _edit_lines(words: list[str], simple: Simple) -> Part:
    """SWE-agent's `edit 3:5` works on the open file; other editors name theirs."""
    return Part("edit", tuple(word for word in operands(["edit", *words]) if not re.fullmatch(r"\d+(:\d+)?", word))[:1])


def _python(words: list[str], simple: Simple) -> Part:
    i = 0
    while i < len(words) and words[i].startswith("-") and words[i] not in ("-", "-c", "-m"):
        i += 2 if words[i] in ("-W", "-X") else 1
    rest = words[i:]
    if rest[:1] == ["-m"] and len(rest) > 1:
        return _module(rest[1:], simple)
    if rest[:1] == ["-c"] or not rest or rest == ["-"]:
        code = rest[1] if rest[:1] == ["-c"] and len(rest) > 1 else simple.body or ""
        written = written_files(code)
        return Part("edit", tuple(path for path in written if path)) if written else Part("run", ("-",))
    script = rest[0]
    if script.endswith("manage.py") and rest[1:2] == ["test"]:
        return Part("test", tuple(operands(rest[1:])))
    if script.endswith("setup.py"):
        sub = (operands(rest) or [""])[0]
        return Part({"test": "test", "install": "install", "develop": "install"}.get(sub, "run"), (script,))
    if re.search(r"(^|/)(runtests\.py|bin/test|run_tests\.py)$", script):
        return Part("test", tuple(operands(["pytest", *rest[1:]])))
    return Part("test" if _TEST_FILE.search(script) else "run", (script,))


_TEST_MODULES = (
    "pytest",
    "unittest",
    "nose",
    "nose2",
    "tox",
    "nox",
    "doctest",
    "trial",
    "django",
    "coverage",
    "pytest_cov",
)


def _module(words: list[str], simple: Simple) -> Part:
    """`python -m MODULE …`."""
    name = words[0].split(".")[0]
    if name in ("pip", "black", "isort", "autopep8", "yapf"):
        return classify(Simple((name, *words[1:]), (), body=simple.body, piped=simple.piped))
    if name == "coverage" and words[1:2] == ["run"]:
        return _python(words[2:], simple)
    if name in _TEST_MODULES and (name != "django" or "test" in words) and name != "coverage":
        return Part("test", tuple(word for word in operands(["pytest", *words[1:]]) if word != "test"))
    return Part("run", (words[0],))


def _sub(kinds: dict[str, str], otherwise: str) -> Callable[[list[str], Simple], Part]:
    """A command whose first operand says what it does."""

    def look(words: list[str], simple: Simple) -> Part:
        plain = [word for word in words if not word.startswith("-")]
        plain = plain[1:] if plain[:1] == ["run"] else plain
        sub = plain[0] if plain else ""
        kind = next((kinds[name] for name in (sub, sub.split(":")[0]) if name in kinds), otherwise)
        return Part(kind, tuple(plain[1:]) if kind in ("test", "search", "install") else simple.words[:1])

    return look


def _git(words: list[str], simple: Simple) -> Part:
    i = 0
    while i < len(words) and words[i].startswith("-"):
        i += 2 if words[i] in ("-C", "-c", "--git-dir", "--work-tree") else 1
    sub, rest = (words[i], words[i + 1 :]) if i < len(words) else ("", [])
    if sub == "grep":
        return _grep(rest, Simple(("grep", *rest), ()))
    if sub == "ls-files":
        return Part("search", tuple(operands(["ls", *rest])))
    return Part("vcs", (sub,) if sub else ())


def _format(words: list[str], simple: Simple) -> Part:
    """ruff only writes when it formats or fixes."""
    writes = words[:1] == ["format"] or "--fix" in words
    return Part("edit", tuple(operands(["ruff", *words])[1:])) if writes else Part("run", ("ruff",))


def _perl(words: list[str], simple: Simple) -> Part:
    writes = any(re.match(r"-[pn0lw]*i", word) for word in words)
    names = operands(["perl", *_split_e(words)])
    return Part("edit", tuple(names)) if writes else Part("run", tuple(names[:1]) or ("-",))


def _split_e(words: list[str]) -> list[str]:
    """`-pie` and `-0pe` end in the -e that takes the script."""
    return ["-e" if re.fullmatch(r"-\w*e", word) else word for word in words]


def _script(words: list[str], simple: Simple) -> Part:
    """An interpreter and the script it runs."""
    place = [word for word in words if not word.startswith("-")][:1]
    kind = "test" if place and _TEST_FILE.search(place[0]) else "run"
    return Part(kind, tuple(place) or ("-",))


def _make(words: list[str], simple: Simple) -> Part:
    goals = operands(["make", *words])
    return Part("test") if any(re.match(r"(unit)?tests?|check", goal) for goal in goals) else Part("run", ("make",))


def _editor_tool(words: list[str], simple: Simple) -> Part:
    """`str_replace_editor view PATH …` typed as a command."""
    sub, path = (*words, "", "")[:2]
    return Part("read" if sub == "view" else "edit", (path,) if path else ())


def _pytest(words: list[str], simple: Simple) -> Part:
    return Part("test", tuple(operands(["pytest", *words])))


def _open(words: list[str], simple: Simple) -> Part:
    """SWE-agent's `open FILE LINE`."""
    return Part("read", tuple(word for word in operands(["open", *words])[:1] if not word.isdigit()))


def _echo(words: list[str], simple: Simple) -> Part:
    return Part("other")


_PACKAGES = table(install="install uninstall add remove ci sync update upgrade i download wheel")
_QUERIES = table(read="list show freeze info check search")
_BUILDS = {"test": "test", "tests": "test", "t": "test", "check": "run"}
_BY_HAND: dict[str, Callable[[list[str], Simple], Part]] = {
    "grep": _grep, "rg": _grep, "find": _find, "search_dir": _named_search, "search_file": _named_search,
    "find_file": _named_search, "fd": _named_search, "sed": _sed, "awk": _awk, "cp": _copy, "ln": _copy,
    "chmod": _mode, "chown": _mode, "patch": _patch, "apply_patch": _patch, "applypatch": _patch, "edit": _edit_lines,
    "python": _python, "git": _git, "ruff": _format, "perl": _perl, "node": _script, "ruby": _script, "bash": _script,
    "sh": _script, "zsh": _script, "php": _script, "make": _make, "str_replace_editor": _editor_tool,
    "pytest": _pytest, "file_editor": _editor_tool, "str_replace_based_edit_tool": _editor_tool, "echo": _echo,
    "printf": _echo,
    "pip": _sub({**_PACKAGES, **_QUERIES}, "install"), "apt-get": _sub({**_PACKAGES, **_QUERIES}, "install"),
    "apt": _sub({**_PACKAGES, **_QUERIES}, "install"), "open": _open, "goto": _open,
    "uv": _sub({**_PACKAGES, **_QUERIES, "pip": "install"}, "install"),
    "poetry": _sub({**_PACKAGES, **_QUERIES}, "install"), "conda": _sub({**_PACKAGES, **_QUERIES}, "other"),
    "pipenv": _sub({**_PACKAGES, **_QUERIES}, "install"), "npm": _sub({**_PACKAGES, **_QUERIES, **_BUILDS}, "run"),
    "yarn": _sub({**_PACKAGES, **_QUERIES, **_BUILDS}, "run"),
    "pnpm": _sub({**_PACKAGES, **_QUERIES, **_BUILDS}, "run"),
    "cargo": _sub({**_BUILDS, "add": "install", "nextest": "test"}, "run"),
    "go": _sub({**_BUILDS, "get": "install"}, "run"), "mvn": _sub({**_BUILDS, "verify": "test"}, "run"),
    "gradle": _sub({**_BUILDS, "check": "test"}, "run"), "gradlew": _sub({**_BUILDS, "check": "test"}, "run"),
    "dotnet": _sub(_BUILDS, "run"), "bazel": _sub(_BUILDS, "run"), "swift": _sub(_BUILDS, "run"),
    "hatch": _sub(_BUILDS, "run"), "rake": _sub({**_BUILDS, "spec": "test"}, "run"),
}  # fmt: skip


# --- Python programs given on the command line ---

_WRITING_METHODS = ("write_text", "write_bytes", "touch", "unlink", "rename", "replace")
_WRITING_FUNCTIONS = {
    "os": ("remove", "rename", "replace", "unlink", "makedirs", "mkdir"),
    "shutil": ("copy", "copyfile", "move"),
}
_OPEN_CALL = re.compile(r"""open\(\s*[rf]?['"]([^'"\n]+)['"]\s*,\s*['"][wax]""")


def written_files(code: str) -> list[str]:
    """Paths (as far as they are constants) that `code` opens for writing; `""` for one that is not. Never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the program are its own affair
            tree = ast.parse(code)
            nodes = list(ast.walk(tree))
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
        return _constant_path(call.args[:1], names) if function.id == "open" and _writes(call, 1) else None
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value
    if isinstance(owner, ast.Name) and owner.id in _WRITING_FUNCTIONS:
        return _constant_path(call.args[-1:], names) if function.attr in _WRITING_FUNCTIONS[owner.id] else None
    if function.attr == "open":
        first = 1 if isinstance(owner, ast.Name) and owner.id in ("io", "codecs") else 0
        return _constant_path(call.args[:1] if first else [owner], names) if _writes(call, first) else None
    # str.replace takes two arguments or more, Path.replace one
    if function.attr in _WRITING_METHODS and (function.attr != "replace" or len(call.args) == 1):
        return _constant_path([owner], names)
    return None


def _writes(call: ast.Call, place: int) -> bool:
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
