"""What a search cost: one line for every call of a model, by kind, in tokens.

A line: {"kind", "node", "n", "prompt", "cached", "output", "cost"}. It is written as soon as the call has been
answered, so a search that is killed has lost no expense; a call that is made again has two lines, and was paid twice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from hesnr_tasks.errors import DataError
from hesnr_tasks.search.tree import Journal
from hesnr_tasks.search.types import Usage, total

__all__ = ["KINDS", "Entry", "Ledger", "read_ledger"]

KINDS = ("sample", "judge", "select", "test")


class Entry(NamedTuple):
    """One call: `n` continuations of one prompt, which is counted once however often it is billed."""

    kind: str
    usage: Usage
    node: str = ""
    n: int = 1
    cost: float = 0.0


class Ledger:
    """The calls of one search, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self.entries = [_entry(record, path, line) for line, record in enumerate(self._journal.records, start=1)]

    def add(self, kind: str, usage: Usage, *, node: str = "", n: int = 1, cost: float = 0.0) -> None:
        """Note a call. Raises `SearchError` when it cannot be written."""
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {KINDS}")
        entry = Entry(kind, Usage(*usage), node, n, cost)
        self._journal.append({"kind": kind, "node": node, "n": n, **entry.usage._asdict(), "cost": cost})
        self.entries.append(entry)

    def sums(self) -> dict[str, Usage]:
        """Tokens by kind; every kind that was called."""
        found: dict[str, list[Usage]] = defaultdict(list)
        for entry in self.entries:
            found[entry.kind].append(entry.usage)
        return {kind: total(found[kind]) for kind in KINDS if kind in found}

    @property
    def tokens(self) -> int:
        """Prompt and output tokens of all calls."""
        return sum(entry.usage.prompt + entry.usage.output for entry in self.entries)

    @property
    def cost(self) -> float:
        """Money of all calls, where the model has a price list."""
        return sum(entry.cost for entry in self.entries)

    def close(self) -> None:
        """Let another process write it."""
        self._journal.close()


def read_ledger(path: Path) -> list[Entry]:
    """The calls in a ledger file. Raises `DataError`, with the line, for a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}. Without it nobody knows what the search cost.") from None
    found = []
    for line, text in enumerate(lines, start=1):
        try:
            record = json.loads(text)
        except ValueError:
            raise DataError(
                f"{path}:{line}: not JSON. If the search was killed there, run it again: it goes on."
            ) from None
        found.append(_entry(record, path, line))
    return found


def _entry(record: object, path: Path, line: int) -> Entry:
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        raise DataError(f"{path}:{line}: not a call; 'kind' must be one of {', '.join(KINDS)}.")
    numbers = [record.get(name) for name in Usage._fields]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise DataError(f"{path}:{line}: prompt, cached and output must be numbers of tokens, not {numbers}.")
    n, cost = record.get("n", 1), record.get("cost", 0)
    if type(n) is not int or type(cost) not in (int, float):
        raise DataError(f"{path}:{line}: n and cost must be numbers, not {n!r} and {cost!r}.")
    return Entry(record["kind"], Usage(*map(int, numbers)), str(record.get("node", "")), n, float(cost))  # type: ignore[arg-type]
