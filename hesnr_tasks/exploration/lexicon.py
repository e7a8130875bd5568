"""The shipped lexicon: which words are pivotal, and which sentences reflect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.bounded_io import read_json
from hesnr_tasks.errors import DataError
from hesnr_tasks.exploration.text import CODE, Sentence, Word

__all__ = ["Hit", "Lexicon", "load_lexicon"]

_PATH = Path(__file__).with_name("lexicon.json")
_NONE = "none"
_JOINERS = ("and", "or", "but")
_BETWEEN = re.compile(r"[ \t\n*_-]*")  # within a phrase: no comma, no code


class _Entry(NamedTuple):
    words: tuple[str, ...]
    group: str
    head: int  # the word that is measured
    opens: bool  # only where a clause begins
    comma: bool  # only before a comma

    @property
    def name(self) -> str:
        return " ".join(self.words)


class Hit(NamedTuple):
    """A pivotal word: its place among the words of its sentence, its group, and the entry it is there by."""

    word: int
    group: str
    entry: str


class Lexicon:
    """Words and sentences to look for; `groups` and `kinds` name them, `version` is that of the file."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.version = str(content["version"])
        self.groups = tuple(name for name in content["words"] if name != _NONE)
        self.kinds = tuple(content["sentences"])
        self._entries: dict[str, list[_Entry]] = {}
        for group, words in content["words"].items():
            for one in words:
                entry = _entry(one, group)
                self._entries.setdefault(entry.words[0], []).append(entry)
        for entries in self._entries.values():
            entries.sort(key=lambda entry: -len(entry.words))
        self._patterns = {kind: re.compile("|".join(found)) for kind, found in content["sentences"].items()}

    def hits(self, flat: str, sentence: Sentence) -> list[Hit]:
        """The pivotal words of a sentence of `flat` (`text.prose`), in order."""
        words, found, at = sentence.words, [], 0
        while at < len(words):
            known = self._entries.get(words[at].text)
            entry = next((e for e in known if _fits(e, flat, words, at)), None) if known else None
            if entry is not None and entry.group != _NONE:
                found.append(Hit(at + entry.head, entry.group, entry.name))
            at += len(entry.words) if entry else 1
        return found

    def reflects(self, flat: str, sentence: Sentence) -> tuple[str, ...]:
        """The kinds of reflection that a sentence of `flat` shows; most show none."""
        line = re.sub(rf"{CODE}+", "`", flat[sentence.start : sentence.end].lower().replace("’", "'"))
        line = re.sub(r"\s+", " ", line)
        return tuple(kind for kind, pattern in self._patterns.items() if pattern.search(line))


def _entry(written: str, group: str) -> _Entry:
    parts = written.strip("^,").split()
    head = next((i for i, part in enumerate(parts) if part.startswith("|")), 0)
    words = tuple(part.lstrip("|") for part in parts)
    return _Entry(words, group, head, written.startswith("^"), written.endswith(","))


def _fits(entry: _Entry, flat: str, words: Sequence[Word], at: int) -> bool:
    if at + len(entry.words) > len(words):
        return False
    there = words[at : at + len(entry.words)]
    if any(word.text != wanted for word, wanted in zip(there, entry.words, strict=True)):
        return False
    if entry.opens and words[at].clause > 0 and not (at and words[at - 1].text in _JOINERS):
        return False
    if entry.comma and flat[there[-1].end : there[-1].end + 1] != ",":
        return False
    return all(_BETWEEN.fullmatch(word.gap) for word in there[1:])


@lru_cache
def load_lexicon(path: Path = _PATH) -> Lexicon:
    """The lexicon in a JSON file, the shipped one by default; `DataError` where it is not one."""
    try:
        return Lexicon(read_json(path))
    except DataError as error:
        raise DataError(f"cannot read the lexicon: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise DataError(
            f"{path} is no lexicon ({error}): it needs version, words and sentences, as the shipped {_PATH.name} has"
        ) from None
