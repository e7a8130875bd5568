"""The tree of a search as a file that is only appended to: what was decided, then what came of it.

`tree.jsonl` holds, in the order in which they happened:

- `{"type": "search", "format": "hesnr-search-1", "instance", "task", "base", "settings"}`: once, first;
- `{"type": "node", "id", "parent", "draw", "messages", "state", "hash", "calls", "cost", "format_errors", "status"}`: a
  state and the messages that led to it after the drawn one; `draw` indexes the parent's draws (-1: none);
- `{"type": "draws", "node", "draws", "candidates", "entropy", "source", "fork", "reason", "scores", "judge_error",
  "chosen"}`: a decision, written before anything is executed; `chosen` indexes the candidates;
- `{"type": "leaf", "id", "node", "status", "patch", "score", "commands"}`: the end of a branch.

A branch is named by its run (`r`, `r2`, …) and where it left another: `r.3x1` is the second choice at step 3 of r.
A node is branch/depth.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError, SearchError, SettingsError
from hesnr_tasks.search.types import Message

__all__ = ["FORMAT", "Journal", "Node", "Tree"]

FORMAT = "hesnr-search-1"


class Journal:
    """A JSONL file written by one process at a time, line by line; a line is in it whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.records = self._load()
        except BlockingIOError:
            self._file.close()
            raise SearchError(f"{path} is being written by another run. Wait for it, or give another output.") from None
        except BaseException:
            self._file.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line and see it to the disk. Raises `SearchError` when that fails; the file is then as before."""
        line = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise SearchError(
                f"cannot write {self.path}: {error.strerror}. Nothing before it is lost: free some space, then run the "
                "same command again."
            ) from None

    def close(self) -> None:
        """Let another process write it."""
        self._file.close()

    def _load(self) -> list[dict[str, Any]]:
        """All whole lines; what a killed process left of a last one is cut off."""
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        return [self._parse(line, number) for number, line in enumerate(content[:whole].splitlines(), start=1)]

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(
                f"{self.path}:{number}: damaged, not a JSON object. Give another output, or remove the file."
            )
        return record


@dataclass
class Node:
    """A state of the search; `messages` are those after the drawn one."""

    id: str
    parent: str | None
    draw: int
    messages: list[Message]
    state: str
    hash: str
    calls: int = 0
    cost: float = 0.0
    format_errors: int = 0
    status: str = ""

    @property
    def branch(self) -> str:
        """The branch it is on."""
        return self.id.rpartition("/")[0]

    @property
    def run(self) -> str:
        """The independent run it is of."""
        return self.branch.partition(".")[0]

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return int(self.id.rpartition("/")[2])

    def child(self, rank: int) -> str:
        """The id of the child that the `rank`-th choice leads to; the first stays on the branch."""
        branch = f"{self.branch}.{self.depth}x{rank}" if rank else self.branch
        return f"{branch}/{self.depth + 1}"


@dataclass
class Tree:
    """The tree in memory and in its file. Nodes are in the order in which they were made."""

    journal: Journal
    nodes: dict[str, Node] = field(default_factory=dict)
    draws: dict[str, dict[str, Any]] = field(default_factory=dict)
    leaves: dict[str, dict[str, Any]] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Tree:
        """A new tree, or one to go on with. Raises `DataError` for a file that is none."""
        tree = cls(Journal(path))
        for number, record in enumerate(tree.journal.records, start=1):
            try:
                tree._take(record)
            except (KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: not a record of a search tree ({error}).") from None
        tree.journal.records.clear()
        return tree

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write the header, or hold it against the one that is there. Raises `SettingsError` where they differ."""
        full = json.loads(json.dumps({"type": "search", "format": FORMAT, **header}))
        if not self.header:
            return self.add(full)
        for name, value in full.items():
            there = self.header.get(name)
            if there != value:
                raise SettingsError(
                    f"{self.journal.path} was begun with another {_difference(name, there, value)}. Go on with the "
                    "same, or give another output."
                )
        return None

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record."""
        self.journal.append(record)
        self._take(dict(record))

    def add_node(self, node: Node) -> None:
        """Append a node."""
        self.add({"type": "node", **vars(node)})

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["type"]
        if kind == "node":
            node = Node(**{name: value for name, value in record.items() if name != "type"})
            self.nodes[node.id] = node
        elif kind == "draws":
            self.draws[record["node"]] = record
        elif kind == "leaf":
            self.leaves[record["id"]] = record
        elif kind == "search":
            self.header = record
        else:
            raise KeyError(f"type {kind!r}")

    def path(self, node: Node) -> list[Node]:
        """From the root to `node`."""
        found = [node]
        while found[-1].parent is not None:
            found.append(self.nodes[found[-1].parent])
        return found[::-1]

    def messages(self, node: Node) -> list[Message]:
        """The conversation that led to `node`."""
        found: list[Message] = []
        for step in self.path(node):
            if step.draw >= 0 and step.parent is not None:
                found.append(self.draws[step.parent]["draws"][step.draw]["message"])
            found.extend(step.messages)
        return found

    def waiting(self, node: Node) -> list[tuple[int, int]]:
        """(rank, candidate) of the choices at `node` whose child is not there yet."""
        chosen = self.draws[node.id]["chosen"] if node.id in self.draws else []
        return [(rank, index) for rank, index in enumerate(chosen) if node.child(rank) not in self.nodes]

    def open_nodes(self) -> list[Node]:
        """Nodes that something is still to be done at: level by level, each level in the order of making."""
        unfinished = [node for node in self.nodes.values() if self._unfinished(node)]
        return sorted(unfinished, key=lambda node: node.depth)

    def _unfinished(self, node: Node) -> bool:
        if node.status:
            return node.branch not in self.leaves
        if node.id in self.draws and self.draws[node.id]["chosen"]:
            return bool(self.waiting(node))
        return node.child(0) not in self.nodes

    def close(self) -> None:
        """Let another process write it."""
        self.journal.close()


def _difference(name: str, there: Any, value: Any) -> str:
    if isinstance(there, dict) and isinstance(value, dict):
        names = [key for key in {**there, **value} if there.get(key) != value.get(key)]
        return ", ".join(f"{key} ({there.get(key)!r}, now {value.get(key)!r})" for key in names[:3])
    return f"{name} ({str(there)[:60]!r}, now {str(value)[:60]!r})"
