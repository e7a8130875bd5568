"""What can go wrong, in the user's words.

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
from collections.abc import Iterable

__all__ = [
    "DataError",
    "HesnrError",
    "ScoringError",
    "SearchError",
    "SettingsError",
    "nearest",
    "printable",
]


class HesnrError(Exception):
    """Something a user can mend; the message says what, where and how."""

    def __str__(self) -> str:
        """The message, with nothing in it that steers a terminal: it may quote files and servers."""
        return printable(super().__str__(), keep="\n")


class SettingsError(HesnrError):
    """A setting is unknown or has a value that cannot be used."""


class DataError(HesnrError):
    """A trajectory file cannot be read, or holds nothing to score."""


class ScoringError(HesnrError):
    """The model, tokenizer or server cannot give the numbers asked for."""


class SearchError(HesnrError):
    """An agent, a judge, a selector or an environment cannot go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'X'?"` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def printable(text: str, keep: str = "") -> str:
    """`text` with a space for whatever is neither printable nor in `keep`: no foreign word steers a terminal."""
    return "".join(c if c.isprintable() or c in keep else " " for c in text)


class _PrintableFilter(logging.Filter):
    """Takes what steers a terminal out of log lines: they quote files, servers and settings."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage(), keep="\n"), ()
        return True


logging.getLogger("hesnr_tasks").addFilter(_PrintableFilter())
logging.getLogger("lm_eval.hesnr_passk").addFilter(_PrintableFilter())
