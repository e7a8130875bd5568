"""Exceptions of the package, and text that is safe to print.

::

    HesnrError
    ├── SettingsError   a setting is unknown or has a value that cannot be used
    ├── DataError       a trajectory file cannot be read, or holds nothing to score
    ├── ScoringError    the model, tokenizer or server cannot give the numbers asked for
    └── SearchError     an agent, a judge, a selector or an environment cannot go on
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence
from typing import SupportsInt


class HesnrError(Exception):
    """An error that the user can fix; the message says what, where, and what to do."""

    def __str__(self) -> str:
        """The message without control and bidirectional characters: it may quote files and servers."""
        return printable(super().__str__(), keep="\n")


class SettingsError(HesnrError):
    """A setting is unknown or has a value that cannot be used."""


class DataError(HesnrError):
    """A trajectory file cannot be read, or holds nothing to score."""


class ScoringError(HesnrError):
    """The model, tokenizer or server cannot give the numbers asked for."""


class SearchError(HesnrError):
    """An agent, a judge, a selector or an environment cannot go on."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`" Did you mean 'X'?"` for the one of `names` closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def number_of(count: SupportsInt, noun: str) -> str:
    """`1 trajectory`, `2,000 trajectories`: a number and its noun, for people."""
    number = int(count)
    plural = f"{noun[:-1]}ies" if noun[-1] == "y" and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`: the first names, for people."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(text: str, keep: str = "") -> str:
    """`text` safe to print: what is not printable (control and bidirectional characters) becomes a space.

    Args:
        text: of others.
        keep: characters that stay.
    """
    return "".join(c if c.isprintable() or c in keep else " " for c in text)


class _PrintableFilter(logging.Filter):
    """Strips control and bidirectional characters from log lines, which quote files, servers and settings."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage(), keep="\n"), ()
        return True


logging.getLogger("hesnr_tasks").addFilter(_PrintableFilter())
logging.getLogger("lm_eval.hesnr_passk").addFilter(_PrintableFilter())
