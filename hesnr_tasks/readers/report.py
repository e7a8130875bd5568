"""What reading found: how much was read and kept, what was skipped and why, what was odd, which formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hesnr_tasks.readers.fields import Where

__all__ = ["EXAMPLES", "Found", "Problem", "ReadReport", "Skipped"]

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
        return skipped + [f"{text} ({count} times)" if count > 1 else text for text, count in self.warnings.items()]
