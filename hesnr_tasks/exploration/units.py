"""The words and sentences of a run's prose, with the tokens they begin with and what they are matched on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection
from hesnr_tasks.exploration.lexicon import Lexicon
from hesnr_tasks.exploration.text import CODE, Sentence, prose, sentences
from hesnr_tasks.rendering import Rendered

__all__ = ["COLUMNS", "TURNS", "Sentences", "Words", "band", "collect", "turn_bin"]

COLUMNS = ("char_start", "char_end")  # what a frame must have been loaded with
TURNS = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-")
_TURN_STARTS = (2, 3, 5, 9, 17, 33, 65)
_WORD_PLACES = (1, 2, 3, 6, 11)  # words before it in the sentence
_CLAUSE_PLACES = (1, 2)
_SENTENCE_PLACES = (1, 2)
_LENGTHS = (3, 5, 9, 17)  # words
_WHITE = np.array([i for i in range(0x3001) if chr(i).isspace()], dtype=np.uint32)

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Words:
    """n words whose first token was scored: their trajectory, the frame's index of that token, and so on, each (n,).

    `group`: index into the lexicon's groups, -1 for other words. `entry`: index into `entries`, -1 likewise.
    """

    trajectory: IntArray
    token: IntArray
    turn: IntArray  # index into TURNS
    cell: IntArray  # position in sentence and clause, frequency band, turn
    group: IntArray
    entry: IntArray
    entries: tuple[str, ...]
    unscored: int  # words beyond the context
    inside: int  # words that begin inside a token, such as a bracket's


@dataclass(frozen=True, slots=True)
class Sentences:
    """n sentences all of whose words were scored, each array (n,) where nothing else is said.

    `token`: the frame's index of the first token of each of their words, (m,); those of sentence i are
    `token[start[i]:start[i + 1]]`, at least one.
    """

    trajectory: IntArray
    token: IntArray
    start: IntArray  # (n + 1,)
    turn: IntArray
    cell: IntArray  # place in the text, length, mean frequency of its words, turn
    kinds: BoolArray  # (n, kinds of the lexicon)
    length: IntArray  # words
    texts: tuple[str, ...]  # words, and ` for each piece of code

    def mean(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Mean of `values`, one a token of the frame, over the first tokens of the words of each sentence, (n,).

        Later pieces of a word are nearly certain: with them a mean would say how words split into tokens, and rare
        words split more.
        """
        total = np.add.reduceat(values[self.token], self.start[:-1]) if len(self.texts) else np.zeros(0)
        return np.asarray(total / np.diff(self.start), dtype=np.float64)


@dataclass
class _Found:
    """Columns that grow."""

    words: list[tuple[int, ...]] = field(default_factory=list)
    sentences: list[tuple[int, ...]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    kinds: list[tuple[bool, ...]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    vocabulary: dict[str, int] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)
    unscored: int = 0
    inside: int = 0


def collect(frame: Frame, one: Selection, lexicon: Lexicon) -> tuple[Words, Sentences]:
    """The words and sentences of all texts of `one`'s kinds; `frame` needs `COLUMNS`."""
    counted = frame.counted(one.mask)
    found, columns = _Found(), []
    for i, entry in enumerate(frame.entries):
        rendered = frame.store.text(entry.key).rendered
        at = np.flatnonzero(counted[frame.bounds[i] : frame.bounds[i + 1]]) + frame.bounds[i]
        tokens = _Tokens.of(rendered.text, at, frame.extra["char_start"][at], frame.extra["char_end"][at])
        for start, end, turn in _stretches(rendered, one):
            flat = prose(rendered.text[start:end])
            for sentence in sentences(flat):
                _add(found, i, turn_bin(turn), sentence, flat, lexicon, tokens, start)
        columns.append(np.array(found.words, dtype=np.int64).reshape(-1, 8))  # an array is smaller than tuples
        found.words.clear()
    return _words(found, np.concatenate(columns)), _sentences(found, len(lexicon.kinds))


class _Tokens(NamedTuple):
    """The tokens of one text that count: their index in the frame, their characters, the first that is no space."""

    at: IntArray
    start: IntArray
    end: IntArray
    anchor: IntArray

    @classmethod
    def of(cls, text: str, at: IntArray, start: npt.NDArray[Any], end: npt.NDArray[Any]) -> _Tokens:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        solid = np.where(np.isin(points, _WHITE), len(points), np.arange(len(points)))
        following = np.append(np.minimum.accumulate(solid[::-1])[::-1], len(points)) if len(points) else np.zeros(1)
        anchor = following[start].astype(np.int64)
        return cls(at, start.astype(np.int64), end.astype(np.int64), np.where(anchor < end, anchor, start))

    def beginning(self, place: int) -> int:
        """The token with which the word at character `place` begins; -1: not scored, -2: it begins inside one.

        A token may have spaces before the word. Of several tokens within one character the first is meant.
        """
        i = int(np.searchsorted(self.end, place, side="right"))
        if i == len(self.end) or self.start[i] > place:
            return -1
        return i if self.anchor[i] == place else -2


def _stretches(rendered: Rendered, one: Selection) -> Iterator[tuple[int, int, int]]:
    """Start, end and turn of each text: neighbouring spans of one kind and turn are one text."""
    for (kind, turn), spans in itertools.groupby(rendered.spans, lambda span: (span.kind, span.turn)):
        run = list(spans)
        if kind in one.kinds:
            yield run[0].start, run[-1].end, turn


def _add(
    found: _Found, owner: int, turn: int, sentence: Sentence, flat: str, lexicon: Lexicon, tokens: _Tokens, start: int
) -> None:
    hits = {hit.word: hit for hit in lexicon.hits(flat, sentence)}
    places = [tokens.beginning(start + word.start) for word in sentence.words]
    ids = [found.vocabulary.setdefault(word.text, len(found.vocabulary)) for word in sentence.words]
    found.unscored += places.count(-1)
    found.inside += places.count(-2)
    for i, (word, token) in enumerate(zip(sentence.words, places, strict=True)):
        if token >= 0:
            hit = hits.get(i)
            group = lexicon.groups.index(hit.group) if hit else -1
            entry = found.entries.setdefault(hit.entry, len(found.entries)) if hit else -1
            found.words.append((owner, int(tokens.at[token]), turn, word.place, word.clause, ids[i], group, entry))
    begun = [int(tokens.at[token]) for token in places if token >= 0]
    if begun and -1 not in places:
        shown = " ".join("` " + word.text if CODE in word.gap else word.text for word in sentence.words)
        found.tokens += begun
        found.starts.append(len(found.tokens))
        found.sentences.append((owner, turn, sentence.place, len(sentence.words)))
        kinds = lexicon.reflects(flat, sentence)
        found.kinds.append(tuple(kind in kinds for kind in lexicon.kinds))
        found.texts.append(shown)


def _words(found: _Found, table: IntArray) -> Words:
    owner, token, turn, place, clause, word, group, entry = table.T
    bands = band(np.bincount(word, minlength=len(found.vocabulary)))[word]
    position = [np.searchsorted(_WORD_PLACES, place, side="right"), np.searchsorted(_CLAUSE_PLACES, clause, "right")]
    cell = _cells(*position, bands, turn)
    return Words(owner, token, turn, cell, group, entry, tuple(found.entries), found.unscored, found.inside)


def _sentences(found: _Found, kinds: int) -> Sentences:
    owner, turn, place, length = np.array(found.sentences, dtype=np.int64).reshape(-1, 4).T
    usual = _usual(found)
    edges = np.quantile(usual, [0.25, 0.5, 0.75]) if len(usual) else np.zeros(3)
    cell = _cells(
        np.searchsorted(_SENTENCE_PLACES, place, side="right"),
        np.searchsorted(_LENGTHS, length, side="right"),
        np.searchsorted(edges, usual, side="right"),
        (turn + 1) // 2,  # sentences are fewer than words: two bins in one
    )
    shown = np.array(found.kinds, dtype=bool).reshape(-1, kinds)
    token, start = (np.array(column, dtype=np.int64) for column in (found.tokens, found.starts))
    return Sentences(owner, token, start, turn, cell, shown, length, tuple(found.texts))


def _usual(found: _Found) -> npt.NDArray[np.float64]:
    """How usual the words of each sentence are: the mean logarithm of their counts."""
    split = [[found.vocabulary[word] for word in text.split() if word != "`"] for text in found.texts]
    counts = np.bincount([word for one in split for word in one], minlength=len(found.vocabulary))
    logs = np.log(np.maximum(counts, 1))
    return np.array([logs[one].mean() for one in split])


def band(counts: npt.NDArray[np.integer]) -> IntArray:
    """Frequency bands: within one, counts differ by less than a factor of 4."""
    return (np.log2(np.maximum(counts, 1)) // 2).astype(np.int64)


def turn_bin(turn: int) -> int:
    """Index into `TURNS`."""
    return int(np.searchsorted(_TURN_STARTS, turn, side="right"))


def _cells(*columns: npt.NDArray[Any]) -> IntArray:
    """One number for each combination of values."""
    if not len(columns[0]):
        return np.zeros(0, dtype=np.int64)
    return np.asarray(np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1]).reshape(-1)
