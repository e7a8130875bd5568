"""What leaves wrote to test their work: test files and commands, taken from patches and commands as text; not run."""

from __future__ import annotations

import base64
import binascii
import itertools
import posixpath
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.types import Leaf, Workspace

__all__ = [
    "REPOSITORY",
    "Probe",
    "changed",
    "collect",
    "is_test_path",
    "put",
    "read",
    "source_only",
    "written",
]

REPOSITORY = "repository"  # the author of tests that stood there before
_CHUNK = 90_000  # characters; one argument of a command holds 128 KiB
_TEST = re.compile(r"(^|/)(test_[^/]*|[^/]*_test)\.py$")
_CACHE = re.compile(r"(^|/)(__pycache__|\.pytest_cache|\.mypy_cache|\.ruff_cache)/|\.pyc$")
_HEREDOC = re.compile(r"^.*<<(?P<tabs>-?)\s*(?P<quote>['\"]?)(?P<end>\w+)(?P=quote)(?P<rest>[^\n]*)$", re.M)
_TARGET = re.compile(r"(?:>\s*|\btee\s+(?:--\s+)?)(?P<path>[^\s;|&<>]+)")
_PYTEST = re.compile(r"(?:^|[\s;&|(])(?:python[\d.]*\s+-m\s+)?(?:pytest|py\.test)(?P<rest>[^\n;&|>]*)")
_DEBUG = re.compile(r"^(?:cd\s+\S+\s*&&\s*)?python[\d.]*\s+(?:-c\s|(?P<script>[^\s-]\S*\.py)(?:\s|$))")
_WRITES = re.compile(r"write|open\([^)]*['\"][wax+]|unlink|remove|rename|shutil|>\s*[^&\s]")


class Probe(NamedTuple):
    """Something to run against every patch: a test file at `path`, or a `command`; with the files it needs."""

    name: str
    path: str  # of the test file; empty for a command
    command: str  # empty for a test file
    files: tuple[tuple[str, str], ...]  # path and content of what must be there
    authors: tuple[str, ...]  # leaves that wrote it, or REPOSITORY


def is_test_path(path: str) -> bool:
    """Whether a file is one that pytest collects by name, or its configuration: no part of a solution."""
    return bool(_TEST.search(path)) or PurePosixPath(path).name == "conftest.py"


def changed(patch: str) -> list[tuple[str, str]]:
    """(path, text) of each file of a git diff; the path is that after the change."""
    starts = [one.start() for one in re.finditer(r"^diff --git ", patch, re.M)]
    parts = [patch[a:b] for a, b in itertools.pairwise([*starts, len(patch)])]
    return [(_path_of(part), part) for part in parts]


def source_only(patch: str) -> str:
    """The patch without its changes to tests, as no patch may bring the tests it is measured by, and without caches."""
    return "".join(text for path, text in changed(patch) if not (is_test_path(path) or _CACHE.search(path)))


def written(commands: Sequence[str], root: Path) -> dict[str, str]:
    """Files that commands write from literal here-documents: path relative to `root` -> content (the latest)."""
    found: dict[str, str] = {}
    for command in commands:
        for path, content in _heredocs(command):
            if (inside := _inside(path, root)) is not None:
                found[inside] = content
    return found


def collect(base: Workspace, leaves: Sequence[Leaf], *, own: bool, commands: bool) -> list[Probe]:
    """Every test of every leaf once, in the leaves' order; equal ones share their authors.

    `own`: also the repository's tests that a leaf ran; `commands`: also debugging commands (pass: exit status 0).
    """
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[str]] = {}
    for leaf in leaves:
        files = {**written(leaf.commands, base.root), **_in_patch(base, leaf)}
        tests = [(path, "", ((path, text),)) for path, text in sorted(files.items()) if _TEST.search(path)]
        extra = list(_debugging(leaf, files, base.root)) if commands else []
        for one in (*tests, *extra):
            authors = found.setdefault(one, [])
            authors += [leaf.id] if leaf.id not in authors else []
    if own:
        written_paths = {path for path, _, _ in found}
        for path, text in _repository(base, leaves):
            authors = found.setdefault((path, "", ((path, text),)), [])
            authors += [REPOSITORY] if path not in written_paths or REPOSITORY not in authors else []
    return _named(found)


def _named(found: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[str]]) -> list[Probe]:
    """Two contents of one path are told apart by their first author."""
    paths = [path for path, _, _ in found]
    probes = []
    for (path, command, files), authors in found.items():
        name = (path if paths.count(path) == 1 else f"{path}@{authors[0]}") if path else f"$ {command}"
        probes.append(Probe(name, path, command, files, tuple(authors)))
    return probes


def put(workspace: Workspace, path: str, content: bytes, timeout: float = 60) -> None:
    """Write a file inside. Raises `SearchError`."""
    quoted, parent = shlex.quote(path), shlex.quote(posixpath.dirname(path) or ".")
    text = base64.b64encode(content).decode()
    _done(workspace, f"mkdir -p {parent} && rm -f {quoted} && : > {quoted}", timeout)
    for at in range(0, len(text), _CHUNK):
        _done(workspace, f"printf %s {text[at : at + _CHUNK]} | base64 -d >> {quoted}", timeout)


def read(workspace: Workspace, path: str, timeout: float = 60) -> str | None:
    """The text of a file inside; None where there is none."""
    ran = workspace.execute(f"base64 < {shlex.quote(path)}", timeout=timeout)
    if ran.status or ran.timed_out:
        return None
    try:
        return base64.b64decode(ran.output).decode("utf-8", "replace")
    except binascii.Error:
        return None


def _done(workspace: Workspace, command: str, timeout: float) -> None:
    ran = workspace.execute(command, timeout=timeout)
    if ran.status or ran.timed_out:
        raise SearchError(f"a file cannot be written in the fork at {workspace.root}: {ran.output.strip()[:300]}")


def _path_of(part: str) -> str:
    for pattern in (r"^\+\+\+ (?:b/)?([^\t\n]+)", r"^rename to (.+)$", r"^--- (?:a/)?([^\t\n]+)"):
        match = re.search(pattern, part, re.M)
        if match and match[1] != "/dev/null":
            return match[1]
    match = re.match(r"diff --git a/(.+) b/(.+)$", part.partition("\n")[0])
    return match[2] if match else ""


def _heredocs(command: str) -> Iterator[tuple[str, str]]:
    """(path, content) of `cat > PATH <<'END'` and the like, where the shell takes the text as it stands."""
    at = 0
    while match := _HEREDOC.search(command, at):
        indent = r"\t*" if match["tabs"] else ""
        closing = re.compile(rf"^{indent}{match['end']}$", re.M).search(command, match.end())
        if not closing:
            return
        body, line = command[match.end() + 1 : closing.start()], command[match.start() : match.end()]
        at = closing.end()
        target = _TARGET.search(line.replace(f"<<{match['tabs']}", " ", 1))
        literal = match["quote"] or not re.search(r"[$`\\]", body)
        if target and literal and ">>" not in line and not re.search(r"\bpython", line):
            text = re.sub(r"^\t+", "", body, flags=re.M) if match["tabs"] else body
            yield target["path"].strip("'\""), text


def _inside(path: str, root: Path) -> str | None:
    """`path` relative to `root`, or None where it leads out of it."""
    relative = posixpath.normpath(posixpath.relpath(path, str(root)) if path.startswith("/") else path)
    return None if relative.startswith("..") or relative in (".", "") or set(relative) & set("$*~`\n") else relative


def _in_patch(base: Workspace, leaf: Leaf) -> dict[str, str]:
    """New or changed tests and scripts of a leaf's patch, as they stand when it is applied."""
    paths = [path for path, text in changed(leaf.patch) if path.endswith(".py") and _new_or_test(path, text)]
    if not paths:
        return {}
    fork = base.fork()
    try:
        fork.apply(leaf.patch)
        found = {path: read(fork, path) for path in paths}
    except SearchError:  # that the patch does not apply is reported where it is tested
        return {}
    finally:
        fork.close()
    return {path: text for path, text in found.items() if text is not None}


def _new_or_test(path: str, text: str) -> bool:
    return is_test_path(path) or "\nnew file mode" in text


def _debugging(leaf: Leaf, files: dict[str, str], root: Path) -> Iterator[tuple[str, str, tuple[tuple[str, str], ...]]]:
    for command in dict.fromkeys(one.strip() for one in leaf.commands):
        match = _DEBUG.match(command)
        if not match or _WRITES.search(command) or "pytest" in command:
            continue
        script = _inside(match["script"], root) if match["script"] else None
        if script is None and not match["script"]:
            yield "", command, ()
        elif script in files and not is_test_path(script):
            yield "", command, ((script, files[script]),)


def _repository(base: Workspace, leaves: Sequence[Leaf]) -> Iterator[tuple[str, str]]:
    """Test files that were there before and that some leaf ran: all of them where a command names none."""
    wanted = [target for leaf in leaves for command in leaf.commands for target in _pytest_targets(command)]
    if not wanted:
        return
    listed = base.execute(
        "find . \\( -name 'test_*.py' -o -name '*_test.py' \\) -not -path '*/.*/*' -size -512k | sort", timeout=60
    )
    for path in (line.removeprefix("./") for line in listed.output.splitlines()):
        named = [_inside(target, base.root) for target in wanted if target]
        everything = "" in wanted or any(target in (".", "./") for target in wanted)
        if everything or any(one and (path == one or path.startswith(f"{one}/")) for one in named):
            text = read(base, path)
            if text is not None:
                yield path, text


def _pytest_targets(command: str) -> Iterator[str]:
    """Paths that pytest was told in a command; one empty text where it was told none."""
    for match in _PYTEST.finditer(command):
        words = match["rest"].split()
        paths = [word.partition("::")[0].strip("'\"") for word in words if word.partition("::")[0].endswith(".py")]
        paths += [word.rstrip("/") for word in words if not word.startswith("-") and "/" in word and ".py" not in word]
        yield from paths or [""]
