"""What reading found: how much was read and kept, what was skipped and why, what was odd, which formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hesnr_tasks.errors import printable
from hesnr_tasks.formats.fields import Where

__all__ = ["EXAMPLES", "Found", "Problem", "ReadReport", "Skipped", "named", "nothing_left"]

EXAMPLES = 5  # places named per reason


class Problem(NamedTuple):
    """A record that cannot be read: where, the kind of problem (for counting) and what is wrong."""

    where: Where
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class Found(NamedTuple):
    """The format of a file: the reader that won, by which rule and how sure (0 to 1)."""

    name: str
    rule: str
    confidence: float


@dataclass
class Skipped:
    """How many records were skipped for one reason, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class ReadReport:
    """Counts of one reading; `read` = `kept` + everything in `skipped`."""

    read: int = 0
    kept: int = 0
    skipped: dict[str, Skipped] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    formats: dict[str, Found] = field(default_factory=dict)
    left_out: int = 0  # characters of text that no reader could use (the warnings say where)

    def skip(self, problem: Problem) -> None:
        """Count a record that is not kept."""
        skipped = self.skipped.setdefault(problem.reason, Skipped())
        skipped.count += 1
        if len(skipped.examples) < EXAMPLES:
            skipped.examples.append(str(problem))

    def warn(self, text: str, count: int = 1) -> None:
        """Count something odd that is kept."""
        self.warnings[text] = self.warnings.get(text, 0) + count

    def lines(self) -> list[str]:
        """Everything that was skipped or odd, one line each, for people."""
        skipped = [
            f"skipped {s.count} ({reason}): {'; '.join(s.examples)}{'; …' if s.count > len(s.examples) else ''}"
            for reason, s in self.skipped.items()
        ]
        warned = [f"{text} ({count} times)" if count > 1 else text for text, count in self.warnings.items()]
        if self.left_out:
            warned.append(f"{self.left_out:,} characters of text in fields of the wrong type are left out, see above")
        return [printable(line) for line in skipped + warned]


def named(source: str | Sequence[str]) -> str:
    """What the user named, for a message."""
    names = [source] if isinstance(source, str) else list(source)
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def nothing_left(
    source: str | Sequence[str], only_resolved: bool, outcomes: Counter[bool | None], report: ReadReport
) -> str:
    """What to tell a user when no trajectory is left; `outcomes` counts those that were read well."""
    if only_resolved and outcomes:
        return (
            f"no resolved trajectory is left in {named(source)}: {outcomes[True]} are resolved, "
            f"{outcomes[False]} are not, {outcomes[None]} have no known outcome. Join the evaluation reports with "
            f"`hesnr convert --outcomes report.json`, or set only_resolved=false."
        )
    why = " ".join(line.rstrip(".") + "." for line in report.lines())
    return f"no trajectory was found in {named(source)}. {why}".rstrip()
