"""The words and sentences of a run's prose, with the tokens they begin with and what they are matched on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection, selection
from hesnr_tasks.analysis.groups import grouped
from hesnr_tasks.analysis.tables import Question, Table, interval
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.exploration.contrast import (
    FEWEST,
    Bounds,
    Contrast,
    contrast,
    difference_bounds,
    frame_bounds,
    vocabulary_size,
)
from hesnr_tasks.exploration.text import CODE, Embed, Lexicon, Sentence, distances, load_lexicon, prose, rare, sentences
from hesnr_tasks.rendering import Rendered
from hesnr_tasks.stats import Estimate, estimates, holm, paired
from hesnr_tasks.trajectory import Kind

__all__ = ["COLUMNS", "PARTS", "TURNS", "Line", "Sentences", "Words", "band", "collect", "draw", "drawn", "exploration"]

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
    for block in rendered.blocks():
        if block.kind in one.kinds:
            yield block.start, block.end, block.turn


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


# --- The tables of `hesnr analyze --exploration`, for one run, and their figure ---

PARTS = ("pivotal words", "reflective sentences", "rare sentences")
_SHORTEST = 3  # words of a sentence that can be rare
_NOTES = (
    "entropies: H of the k most likely tokens, renormalised, in nats: a stand-in for that of the whole vocabulary",
    "difference: mean of these less mean of the others; matched: within cells of equal position, word frequency and "
    "turn, each trajectory's own level taken out",
    "of a word: at its first token; of a sentence: the mean over the first tokens of its words, so that it does not "
    "depend on how words split into tokens; code is left out",
    f"±: standard error; intervals: 95 %, cluster bootstrap over trajectories, where {FEWEST} or more have such; p: of "
    "the matched difference being 0, two-sided; p holm: corrected for all comparisons of the table",
    "matched share: of these that have others to compare with; trajectories: those with such words or sentences",
    "an interval that holds 0 does not show that there is no difference: look at how far it reaches",
    "the entropies are of the model scored, the text may be another's; the lexicon is English, and what share of such "
    "words and sentences it finds is not known",
)

FloatArray = npt.NDArray[np.float64]


class _Units(NamedTuple):
    """Words or sentences, whichever: what can be compared."""

    trajectory: IntArray
    turn: IntArray
    cell: IntArray
    value: FloatArray
    bounds: Bounds

    def at(self, places: IntArray) -> _Units:
        """Some of them."""
        low, high = self.bounds
        columns = self.trajectory[places], self.turn[places], self.cell[places]
        return _Units(*columns, self.value[places], Bounds(low[places], high[places]))


class _Ask(NamedTuple):
    """One comparison: which units are meant, against which others."""

    part: str
    group: str
    units: _Units
    treated: BoolArray
    others: BoolArray


class _Answer(NamedTuple):
    """A comparison's counts and means, and the difference raw and matched."""

    ask: _Ask
    raw: Contrast
    matched: Contrast
    copies: IntArray  # (T,): trajectories that count


def _check_scored(frame: Frame, one: Selection) -> None:
    """Refuse, and say how to get them, where the tokens of prose were not scored."""
    try:
        frame.counted(one.mask)
    except SettingsError as error:
        raise SettingsError(
            f"--exploration reads what the agent thinks. {error} The tasks hesnr_swe_thought and hesnr_swe_unfiltered "
            "score thoughts."
        ) from None


def _prose_of(asked: Question, filters: Sequence[str]) -> list[Selection]:
    """What of the token sets asked for is prose: actions are left out."""
    found = [selection(filters, [kind for kind in one.kinds if kind is not Kind.ACTION], []) for one in asked.chosen]
    kept = list({one.name: one for one in found if one.kinds}.values())
    if not kept:
        raise SettingsError("--exploration reads sentences, and actions have none; leave --kinds out, or name thought")
    return kept


def exploration(
    frame: Frame, asked: Question, *, embed: Embed | None = None, lexicon: Lexicon | None = None
) -> Iterator[Table]:
    """Differences, by turn, by outcome, and bounds; `frame` must have `units.COLUMNS`. See `PARTS` for what differs."""
    lexicon = lexicon or load_lexicon()
    limits = frame_bounds(frame)
    rows: dict[str, list[dict[str, Any]]] = {"": [], "_by_turn": [], "_by_resolved": [], "_bounds": []}
    skipped = ""
    for one in _prose_of(asked, frame.filters):
        _check_scored(frame, one)
        words, sentences = collect(frame, one, lexicon)
        skipped = f"{words.unscored} words were beyond the context and {words.inside} begin inside a token"
        far = _rare(sentences, embed)
        for k in asked.ks:
            named = {"run": frame.name, "select": one.name, "k": k}
            asks = list(_asks(words, sentences, far, frame.entropy[k], limits, lexicon))
            for name, found in _all_rows(frame, asked, one, asks):
                rows[name] += [{**named, **row} for row in found]
    yield from _tables(rows, frame, lexicon, skipped, embed)


def _tables(
    rows: dict[str, list[dict[str, Any]]], frame: Frame, lexicon: Lexicon, skipped: str, embed: Embed | None
) -> Iterator[Table]:
    size = vocabulary_size(frame.store)
    neighbours = "embeddings" if embed else "TF-IDF"
    about = f"lexicon {lexicon.version}; rare: the tenth of sentences farthest from their 5 nearest ({neighbours})"
    yield Table("exploration", "Where entropy is high", rows[""], (*_NOTES, about, f"{skipped}; they are left out"))
    yield Table("exploration_by_turn", "Where entropy is high, by turn", rows["_by_turn"], ())
    yield Table("exploration_by_resolved", "Where entropy is high, by outcome", rows["_by_resolved"], ())
    note = (
        f"low, high: bounds of the entropy over the whole vocabulary ({size} tokens), from the {frame.store.k} stored "
        "candidates and the mass beyond them; the matched difference of those entropies lies in difference bounds"
        if size
        else "the size of the vocabulary is not known, so there are lower bounds only"
    )
    yield Table("exploration_bounds", "Bounds of the full entropy", rows["_bounds"], (note,))


def _rare(found: Sentences, embed: Embed | None) -> tuple[BoolArray, BoolArray]:
    """Which sentences are rare, and which are long enough to be asked about."""
    long = found.length >= _SHORTEST
    far = np.zeros(len(long), dtype=bool)
    far[long] = rare(distances([found.texts[i] for i in np.flatnonzero(long)], embed=embed))
    return far, long & ~far


def _asks(
    words: Words,
    found: Sentences,
    far: tuple[BoolArray, BoolArray],
    entropy: FloatArray,
    limits: Bounds,
    lexicon: Lexicon,
) -> Iterator[_Ask]:
    at = words.token
    units = _Units(words.trajectory, words.turn, words.cell, entropy[at], Bounds(limits.low[at], limits.high[at]))
    plain = words.group < 0
    yield _Ask(PARTS[0], "all", units, ~plain, plain)
    for i, group in enumerate(lexicon.groups):
        yield _Ask(PARTS[0], group, units, words.group == i, plain)
    mean = Bounds(found.mean(limits.low), found.mean(limits.high))
    units = _Units(found.trajectory, found.turn, found.cell, found.mean(entropy), mean)
    plain = np.asarray(~found.kinds.any(axis=1))
    yield _Ask(PARTS[1], "all", units, ~plain, plain)
    for i, kind in enumerate(lexicon.kinds):
        yield _Ask(PARTS[1], kind, units, found.kinds[:, i], plain)
    yield _Ask(PARTS[2], "all", units, *far)


def _all_rows(
    frame: Frame, asked: Question, one: Selection, asks: Sequence[_Ask]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    copies = frame.multiplicity(one.mask)
    answers = [_answer(ask, copies) for ask in asks]
    yield "", _corrected([_row(answer, asked) for answer in answers])
    yield "_bounds", [_bounds_row(answer) for answer in answers]
    whole = [ask for ask in asks if ask.group == "all"]
    turns = [
        (name, _answer(_within(ask, ask.units.turn == i), copies)) for ask in whole for i, name in enumerate(TURNS)
    ]
    yield "_by_turn", _split_rows("turn", turns, asked)
    groups = grouped(frame, "resolved")
    full = np.diff(frame.bounds) > 0
    group = np.where(full, groups.of_token[np.minimum(frame.bounds[:-1], len(groups.of_token) - 1)], -1)
    outcomes = [
        (name, _answer(ask, np.where(group == i, copies, 0))) for ask in whole for i, name in enumerate(groups.names)
    ]
    yield "_by_resolved", _split_rows("resolved", outcomes, asked)


def _within(ask: _Ask, here: BoolArray) -> _Ask:
    return ask._replace(treated=ask.treated & here, others=ask.others & here)


def _answer(ask: _Ask, copies: IntArray) -> _Answer:
    at = np.flatnonzero(ask.treated | ask.others)
    units, treated = ask.units.at(at), ask.treated[at]
    few = ask._replace(units=units, treated=treated, others=~treated)
    common = (units.value, treated, units.trajectory, copies)
    return _Answer(few, contrast(*common), contrast(*common, units.cell), copies)


def _numbers(answer: _Answer, asked: Question) -> list[Estimate]:
    """Both differences with error and interval."""
    pairs = (answer.raw, answer.matched)
    sides = [np.stack([getattr(pair, name) for pair in pairs], axis=1) for name in ("numerator", "denominator")]
    numerators, denominators = (np.repeat(side, answer.copies, axis=0) for side in sides)
    if not len(numerators):
        return [Estimate(math.nan)] * len(pairs)
    made = estimates(numerators, denominators, resamples=asked.resamples, seed=asked.seed)
    found = (Estimate(*ends) for ends in zip(*(column.tolist() for column in made), strict=True))
    return [one if pair.clusters >= FEWEST else Estimate(one.value) for one, pair in zip(found, pairs, strict=True)]


def _p_value(answer: _Answer, asked: Question) -> float:
    """Of the matched difference being 0: that of a ratio against one whose numerator is 0."""
    pair = answer.matched
    numerator, denominator = (np.repeat(side, answer.copies) for side in (pair.numerator, pair.denominator))
    if pair.clusters < FEWEST or not denominator.sum() > 0:
        return math.nan
    zero = (np.zeros_like(numerator), denominator)
    return paired(zero, (numerator, denominator), resamples=asked.resamples, seed=asked.seed).p


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With Holm's p-values over all rows."""
    p_values = holm({str(i): row["p"] for i, row in enumerate(rows)})
    return [{**row, "p_holm": p_values[str(i)]} for i, row in enumerate(rows)]


def _split_rows(by: str, answers: Sequence[tuple[str, _Answer]], asked: Question) -> list[dict[str, Any]]:
    rows = []
    for name, answer in answers:
        row = _row(answer, asked)
        if row["n"]:
            rows.append(
                {"part": row["part"], by: name, **{key: row[key] for key in row if key not in ("part", "group")}}
            )
    return _corrected(rows)


def _row(answer: _Answer, asked: Question) -> dict[str, Any]:
    ask, (raw, matched) = answer.ask, _numbers(answer, asked)
    weight = answer.copies[ask.units.trajectory].astype(np.float64)
    return {
        "part": ask.part,
        "group": ask.group,
        "n": round(weight[ask.treated].sum()),
        "others": round(weight[ask.others].sum()),
        "trajectories": int(answer.copies[np.unique(ask.units.trajectory[ask.treated])].sum()),
        "entropy": _mean(ask.units.value, ask.treated, weight),
        "others_entropy": _mean(ask.units.value, ask.others, weight),
        "difference": raw,
        "interval": interval(raw),
        "matched": matched,
        "matched_interval": interval(matched),
        "p": _p_value(answer, asked),
        "matched_share": answer.matched.used,
    }


def _bounds_row(answer: _Answer) -> dict[str, Any]:
    ask, limits = answer.ask, answer.ask.units.bounds
    weight = answer.copies[ask.units.trajectory].astype(np.float64)
    ends = difference_bounds(answer.matched.lift, weight, *limits)
    least, greatest = (end if math.isfinite(end) else math.nan for end in ends)
    sides = (("", ask.treated), ("others_", ask.others))
    means = {
        f"{side}{name}": _mean(values, which, weight)
        for side, which in sides
        for name, values in zip(("low", "high"), limits, strict=True)
    }
    return {
        "part": ask.part,
        "group": ask.group,
        "topk": _mean(ask.units.value, ask.treated, weight),
        **means,
        "matched": answer.matched.value(answer.copies),
        "difference_low": least,
        "difference_high": greatest,
    }


def _mean(values: FloatArray, which: BoolArray, weight: FloatArray) -> float:
    total = weight[which].sum()
    mean = float((values[which] * weight[which]).sum() / total) if total > 0 else math.nan
    return mean if math.isfinite(mean) else math.nan


# --- the figure -------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A series: what it is called, and a value with its interval at each of its places."""

    name: str
    places: tuple[str, ...]
    values: tuple[Estimate, ...]


def drawn(tables: Sequence[Table]) -> tuple[str, list[Line], list[Line]]:
    """The numbers of the figure (of the first token set and k), from the tables of all runs: the name of the last run;
    its differences, raw and matched, a place a group; and the matched difference of each part over runs, or over turns
    where there is one run.
    """
    whole, by_turn = (_first(tables, name) for name in ("exploration", "exploration_by_turn"))
    run = whole[-1]["run"]
    last = [row for row in whole if row["run"] == run]
    places = tuple(str(row["part"] if row["group"] == "all" else f"– {row['group']}") for row in last)
    groups = [
        Line(name, places, tuple(row[key] for row in last)) for name, key in (("raw", "difference"), ("matched",) * 2)
    ]
    several = whole[0]["run"] != run
    rows, by = ([row for row in whole if row["group"] == "all"], "run") if several else (by_turn, "turn")
    seen = {row[by] for row in rows}
    names = tuple(dict.fromkeys(row[by] for row in rows) if several else (turn for turn in TURNS if turn in seen))
    course = []
    for part in PARTS:
        numbers = {row[by]: row["matched"] for row in rows if row["part"] == part}
        course.append(Line(part, names, tuple(numbers.get(name, Estimate(math.nan)) for name in names)))
    return run, groups, course


def draw(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png; returns both paths."""
    from hesnr_tasks.plotting import error_bars, figure, label, save

    run, groups, course = drawn(tables)
    picture, axes = figure(1, 2, width=4.2, height=3.6)
    left, right = axes[0]
    for i, line in enumerate(groups):
        rows = [row + 0.14 * (2 * i - 1) for row in range(len(line.places))]
        error_bars(left, i, line.name, rows, line.values, across=True)
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(groups[0].places)), groups[0].places)
    left.set_ylim(len(groups[0].places) + 0.6, -0.6)  # room for the legend
    left.set_xlabel("entropy less that of the others (nats)")
    left.set_title(label(run), fontsize=9)
    left.legend(loc="lower center", ncols=2)
    for i, line in enumerate(course):
        error_bars(right, i, line.name, [place + 0.08 * (i - 1) for place in range(len(line.places))], line.values)
    places = course[0].places
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, places)) > 5 else {}
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(range(len(places)), [label(place) for place in places], **slanted)
    right.margins(y=0.3)  # room for the legend
    right.set_ylabel("matched difference (nats)")
    right.set_title("by run" if places[-1] == run else f"{label(run)}, by turn", fontsize=9)
    right.legend(loc="upper center")
    return save(picture, stem)


def _first(tables: Sequence[Table], name: str) -> list[Mapping[str, Any]]:
    rows = next(table.rows for table in tables if table.name == name)
    return [row for row in rows if all(row[key] == rows[0][key] for key in ("select", "k"))]
