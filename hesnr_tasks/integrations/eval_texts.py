"""The texts of an evaluation, tokenised once: what is read of each and which tokens of it count."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np

from hesnr_tasks.alignment import Encoder, token_labels
from hesnr_tasks.backends.types import Passage
from hesnr_tasks.errors import DataError, ScoringError
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.labels import label_mask
from hesnr_tasks.tasks.corpus import Labelled, open_corpus
from hesnr_tasks.tasks.settings import Settings

__all__ = ["Text", "Texts", "prepare"]

_log = logging.getLogger("hesnr_tasks")


class Text(NamedTuple):
    """One trajectory; `cut`: tokens that count but lie beyond the context and are not scored."""

    name: str
    key: str
    passage: Passage
    cut: int
    lost: int  # characters the tokenizer cannot represent
    characters: int


class Texts(NamedTuple):
    """The texts in the order of their keys, as a run of lm-eval sorts them."""

    items: tuple[Text, ...]
    left_out: int = 0  # tokens that count, of trajectories that overflow=skip leaves out

    @property
    def tokens(self) -> int:
        """Tokens read in one evaluation."""
        return sum(len(text.passage.ids) for text in self.items)

    @property
    def counted(self) -> int:
        """Tokens scored in one evaluation."""
        return sum(len(text.passage.targets) for text in self.items)

    @property
    def scored(self) -> float:
        """The share of the tokens that would count that is scored."""
        return self.counted / (self.counted + sum(text.cut for text in self.items) + self.left_out)

    def share(self, rank: int, processes: int) -> set[int]:
        """The numbers of the texts that process `rank` reads: longest first, each to who has the least to read."""
        loads, shares = [0] * processes, [set[int]() for _ in range(processes)]
        for number in sorted(range(len(self.items)), key=lambda i: (-len(self.items[i].passage.ids), i)):
            least = loads.index(min(loads))
            loads[least] += len(self.items[number].passage.ids)
            shares[least].add(number)
        return shares[rank]


def prepare(settings: Settings, tokenizer: Any, bos: bool | None, max_length: int) -> Texts:
    """Read, render, label and tokenise. Raises `HesnrError` where nothing can be scored."""
    corpus, encoder = open_corpus(settings), Encoder(tokenizer, bos)
    mask = label_mask(settings.kinds, settings.filters, tuple(FILTERS))
    items, left_out = [], 0
    for index, trajectory in enumerate(corpus.trajectories):
        text = _text(trajectory.id, corpus.labelled(index, settings.render), encoder, mask, max_length)
        if text.cut and settings.overflow == "error":
            raise ScoringError(
                f"trajectory {text.name!r} is longer than the {max_length} tokens that are read; set overflow to "
                "'right' to score the part that fits, or 'skip' to leave it out"
            )
        if text.cut and settings.overflow == "skip":
            left_out += text.cut + len(text.passage.targets)
        else:
            items.append(text)
    _report(items, len(corpus.trajectories), max_length, tokenizer)
    return Texts(tuple(sorted(items, key=lambda text: text.key)), left_out)


def _text(name: str, labelled: Labelled, encoder: Encoder, mask: np.uint64, max_length: int) -> Text:
    encoded = encoder.encode(labelled.rendered)
    wanted = np.flatnonzero((token_labels(encoded, labelled.codes) & mask) != 0).astype(np.int32)
    wanted = wanted[wanted > 0]  # nothing precedes the first token
    fits = wanted[wanted < max_length]
    ids = encoded.ids[: int(fits[-1]) + 1] if len(fits) else encoded.ids[:0]
    cut = len(wanted) - len(fits)
    passage = Passage(name, ids, fits, min(len(encoded.ids), max_length))
    return Text(name, labelled.key, passage, cut, encoded.lost, len(labelled.rendered.text))


def _report(items: list[Text], found: int, max_length: int, tokenizer: Any) -> None:
    if not any(len(text.passage.targets) for text in items):
        raise DataError(
            f"no token of the {found} trajectories counts: kinds and filters leave nothing, or all of it lies beyond "
            f"the {max_length} tokens that are read"
        )
    cut, lost = sum(text.cut for text in items), sum(text.lost for text in items)
    if lost > 0.05 * sum(text.characters for text in items):
        raise ScoringError(
            f"the tokenizer {type(tokenizer).__name__} cannot represent {lost} characters of the trajectories; check "
            "that it belongs to the model"
        )
    if cut or len(items) < found:
        _log.warning(
            "%d tokens that count lie beyond the %d tokens that are read of a text and are not scored; %d of %d "
            "trajectories are left out", cut, max_length, found - len(items), found,
        )  # fmt: skip
    if lost:
        _log.warning("the tokenizer cannot represent %d characters; they are scored as what it makes of them", lost)
