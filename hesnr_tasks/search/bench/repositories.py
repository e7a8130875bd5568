"""Ten small packages with planted bugs, from compact text files: source, tests to see, hidden tests, and edits.

A file of `repositories/` is a list of sections, each begun by a line `@@@ KIND …`:

    @@@ task                    what the agent is told
    @@@ file PATH               a source file; `visible PATH`: tests that the agent sees; `hidden PATH`: it does not
    @@@ right PART PATH         the edit that mends part A or B; `wrong PART NAME PATH`: a plausible one that does not
    @@@ test right|wrong PATH   a test that an agent writes: with the right expectation, or with a wrong one

Edits are `old`, a line `====`, `new`; several of one file are parted by a line `----`. Both parts must be mended.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hesnr_tasks.errors import SearchError

__all__ = ["PARTS", "Edit", "Repository", "load", "names"]

PARTS = ("A", "B")
_FOLDER = Path(__file__).parent / "repositories"
_EDITOR = """import pathlib
path = pathlib.Path({path!r})
text = path.read_text()
for old, new in {changes!r}:
    assert text.count(old) == 1, old
    text = text.replace(old, new)
path.write_text(text)"""


class Edit(NamedTuple):
    """One change of one file."""

    path: str
    changes: tuple[tuple[str, str], ...]

    def command(self, python: str) -> str:
        """A shell command that makes the change, and fails where the text is not as expected."""
        return f"{python} - <<'EDIT'\n{_EDITOR.format(path=self.path, changes=list(self.changes))}\nEDIT"


@dataclass
class Repository:
    """One package. `edits`: part -> name ("right" or a wrong one's) -> edit; `tests`: kind -> (path, text)."""

    name: str
    digest: str
    task: str = ""
    source: dict[str, str] = field(default_factory=dict)
    visible: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    edits: dict[str, dict[str, Edit]] = field(default_factory=lambda: {part: {} for part in PARTS})
    tests: dict[str, tuple[str, str]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """The repository as the agent finds it, with one git commit."""
        for path, text in {".gitignore": "__pycache__/\n", **self.source, **self.visible}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false"]
        for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "begin"]):
            subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
        return folder

    @property
    def module(self) -> str:
        """The file with the bug."""
        return self.edits["A"]["right"].path


def names() -> list[str]:
    """All repositories."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


def load(name: str) -> Repository:
    """One repository. Raises `SearchError` for an unknown one."""
    path = _FOLDER / f"{name}.txt"
    if name not in names():
        raise SearchError(f"the bench has no repository {name!r}; it has {', '.join(names())}")
    text = path.read_text(encoding="utf-8")
    found = Repository(name, hashlib.sha256(text.encode()).hexdigest()[:16])
    for words, body in _sections(text):
        _add(found, words, body)
    return found


def _sections(text: str) -> Iterator[tuple[list[str], str]]:
    parts = re.split(r"^@@@ (.+)\n", text, flags=re.M)
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        yield head.split(), body


def _add(found: Repository, words: list[str], body: str) -> None:
    kind = words[0]
    files: Mapping[str, dict[str, str]] = {"file": found.source, "visible": found.visible, "hidden": found.hidden}
    if kind == "task":
        found.task = body.strip()
    elif kind in files:
        files[kind][words[1]] = body
    elif kind in ("right", "wrong"):
        name, path = words[1 if kind == "right" else 2], words[-1]
        found.edits[words[1]]["right" if kind == "right" else name] = Edit(path, _changes(body))
    elif kind == "test":
        found.tests[words[1]] = (words[2], body)
    else:
        raise SearchError(f"repository {found.name}: unknown section {kind!r}")


def _changes(body: str) -> tuple[tuple[str, str], ...]:
    pairs = [block.split("====\n") for block in re.split(r"^----\n", body, flags=re.M)]
    return tuple((old.removesuffix("\n"), new.removesuffix("\n")) for old, new in pairs)
