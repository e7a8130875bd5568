"""The tools of the scripted agent: a real bash and a small editor, in a temporary folder called /testbed.

What a command prints must be the same on every run: fixed environment, no locale, no timings, no carets in tracebacks
(they differ between Python versions). The folder's real name is replaced by /testbed in what was printed, and
/testbed by the real name in what is run; nothing else is touched.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

__all__ = ["NO_OUTPUT", "ROOT", "Sandbox"]

ROOT = "/testbed"
NO_OUTPUT = "The command ran without printing anything.\n"
AROUND = 2  # lines shown before and after an edit


class Sandbox:
    """A throw-away repository with the given files, under git."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hesnr-demo-")
        base = Path(self._folder.name).resolve()
        self._root, binaries = base / "repository", base / "bin"
        binaries.mkdir()
        python = binaries / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        self._environment = _environment(binaries, base)
        for name, text in files.items():
            self.write(name, text)
        self.bash("git init -q . && git add . && git commit -q -m start")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def write(self, name: str, text: str) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        return (self._root / name).read_text(encoding="utf-8")

    def run(self, command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["bash", "-c", command.replace(ROOT, str(self._root))],
            cwd=self._root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )

    def bash(self, command: str) -> str:
        """What `command` printed, standard output and error together."""
        return self.run(command).stdout.decode("utf-8").replace(str(self._root), ROOT) or NO_OUTPUT

    def passes(self, command: str) -> bool:
        return self.run(command).returncode == 0

    def editor(self, command: str, path: str, **values: str) -> str:
        name = path.removeprefix(ROOT).lstrip("/")
        if command == "view":
            return self._view(path, name)
        if command == "create":
            self.write(name, values["file_text"] + "\n")
            return f"File created successfully at: {path}\n"
        if command == "str_replace":
            return self._replace(path, name, values["old_str"], values["new_str"])
        raise ValueError(f"the editor has no command {command!r}")

    def _view(self, path: str, name: str) -> str:
        if (self._root / name).is_dir():
            listing = self.bash(f"find {path} -name .git -prune -o -type f -print | sort")
            return f"Here are the files in {path}:\n{listing}"
        return f"Here's the result of running `cat -n` on {path}:\n" + _numbered(self.read(name).splitlines(), 1)

    def _replace(self, path: str, name: str, old: str, new: str) -> str:
        text = self.read(name)
        if text.count(old) != 1:
            return f"No replacement was performed: old_str occurs {text.count(old)} times in {path}.\n"
        self.write(name, text.replace(old, new))
        first = max(0, text[: text.index(old)].count("\n") - AROUND)
        last = text[: text.index(old)].count("\n") + new.count("\n") + AROUND + 1
        snippet = _numbered(self.read(name).splitlines()[first:last], first + 1)
        return f"The file {path} has been edited. Here's the result of running `cat -n` on a snippet:\n{snippet}"


def _environment(binaries: Path, home: Path) -> dict[str, str]:
    return {
        "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LC_ALL": "C",
        "TZ": "UTC",
        "TERM": "dumb",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONNODEBUGRANGES": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "core.abbrev",
        "GIT_CONFIG_VALUE_0": "7",
        "GIT_CONFIG_KEY_1": "init.defaultBranch",
        "GIT_CONFIG_VALUE_1": "main",
        "GIT_AUTHOR_NAME": "demo",
        "GIT_AUTHOR_EMAIL": "demo@example.org",
        "GIT_COMMITTER_NAME": "demo",
        "GIT_COMMITTER_EMAIL": "demo@example.org",
    }


def _numbered(lines: list[str], first: int) -> str:
    return "".join(f"{number:6d}\t{line}\n" for number, line in enumerate(lines, first))
