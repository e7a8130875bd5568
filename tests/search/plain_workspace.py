"""A minimal real workspace: a copy of a folder, commands by subprocess. No isolation; for tests that need none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.types import Ran


class PlainWorkspace:
    def __init__(self, source: Path, place: Path) -> None:
        self.place = place
        self.root = Path(tempfile.mkdtemp(dir=place)) / "tree"
        shutil.copytree(source, self.root, symlinks=True)

    def execute(self, command, *, timeout, env=None):
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.root,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
            return Ran(output.decode("utf-8", "replace"), process.returncode)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return Ran(output.decode("utf-8", "replace"), -9, True)

    def fork(self):
        return PlainWorkspace(self.root, self.place)

    def tree_hash(self):
        return self.execute("find . -type f | sort | xargs sha256sum | sha256sum", timeout=30).output

    def diff(self):
        return self.execute("git add -A -N . && git diff", timeout=30).output

    def apply(self, patch):
        done = subprocess.run(["git", "apply", "-"], cwd=self.root, input=patch.encode(), capture_output=True)
        if done.returncode:
            raise SearchError(f"the patch does not apply: {done.stderr.decode()}")

    def close(self):
        shutil.rmtree(self.root.parent)


def repository(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "begin"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def patch_of(base: PlainWorkspace, files: dict[str, str]) -> str:
    fork = base.fork()
    for path, text in files.items():
        (fork.root / path).parent.mkdir(parents=True, exist_ok=True)
        (fork.root / path).write_text(text)
    try:
        return fork.diff()
    finally:
        fork.close()
