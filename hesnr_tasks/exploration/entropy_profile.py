"""Entropy at pivotal words, in reflective and in rare sentences: `hesnr analyze --exploration`, for one run.

The entropy of a word is that at its first token, of a sentence the mean of its words': later pieces of a word are
nearly certain, so a mean over all tokens would be lower for sentences of words that split more, which rare sentences
have, and no matching on position or frequency corrects that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection, selection
from hesnr_tasks.analysis.groups import grouped
from hesnr_tasks.analysis.tables import Question, Table, interval
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.exploration.contrast import (
    FEWEST_CLUSTERS,
    Bounds,
    Contrast,
    contrast,
    difference_bounds,
    frame_bounds,
    vocabulary_size,
)
from hesnr_tasks.exploration.text import Embed, Lexicon, distances, load_lexicon, prose, rare, sentences
from hesnr_tasks.stats import Estimate, estimates, holm, paired
from hesnr_tasks.trajectory import Kind

COLUMNS = ("char_start", "char_end")  # what a frame must have been loaded with
PARTS = ("pivotal words", "reflective sentences", "rare sentences")
_TURNS = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-")
_TURN_STARTS = (2, 3, 5, 9, 17, 33, 65)
_WORD_POSITIONS = (1, 2, 3, 6, 11)  # words before it in the sentence
_CLAUSE_POSITIONS = (1, 2)
_SENTENCE_POSITIONS = (1, 2)
_LENGTHS = (3, 5, 9, 17)  # words
_SHORTEST = 3  # words of a sentence that can be rare
_WHITE = np.array([i for i in range(0x3001) if chr(i).isspace()], dtype=np.uint32)
_NOTES = (
    "entropies: H of the k most likely tokens, renormalised, in nats: a stand-in for that of the whole vocabulary",
    "difference: mean of these less mean of the others; matched: within cells of equal position, word frequency and "
    "turn, each trajectory's own level taken out",
    "of a word: at its first token; of a sentence: the mean over the first tokens of its words, so that it does not "
    "depend on how words split into tokens; code is left out",
    f"±: standard error; intervals: 95 %, cluster bootstrap over trajectories, where {FEWEST_CLUSTERS} or more have "
    "such; p: of the matched difference being 0, two-sided; p holm: corrected for all comparisons of the table",
    "matched share: of these that have others to compare with; trajectories: those with such words or sentences",
    "an interval that holds 0 does not show that there is no difference: look at how far it reaches",
    "the entropies are of the model scored, the text may be another's; the lexicon is English, and what share of such "
    "words and sentences it finds is not known",
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


# --- words and sentences with their tokens ----------------------------------------------------------------------------


class Words(NamedTuple):
    """n words whose first token was scored, each array (n,)."""

    trajectory: IntArray
    token: IntArray  # the frame's index of the first token
    turn: IntArray  # bin
    cell: IntArray  # position in sentence and clause, frequency band, turn
    group: IntArray  # index into the lexicon's groups, -1 for other words
    unscored: int  # words beyond the context
    inside: int  # words that begin inside a token, such as a bracket's


class Sentences(NamedTuple):
    """n sentences all of whose words were scored, each array (n,) where nothing else is said."""

    trajectory: IntArray
    token: IntArray  # the frame's index of the first token of each word, (m,)
    start: IntArray  # those of sentence i are token[start[i]:start[i + 1]], at least one; (n + 1,)
    turn: IntArray
    cell: IntArray  # place in the text, length, mean frequency of its words, turn
    kinds: BoolArray  # (n, kinds of the lexicon)
    length: IntArray  # words
    texts: tuple[str, ...]  # words, and ` for each piece of code

    def mean(self, values: FloatArray) -> FloatArray:
        """Mean of `values`, one a token of the frame, over the first tokens of the words of each sentence, (n,)."""
        total = np.add.reduceat(values[self.token], self.start[:-1]) if len(self.texts) else np.zeros(0)
        return np.asarray(total / np.diff(self.start), dtype=np.float64)


def collect(frame: Frame, chosen: Selection, lexicon: Lexicon) -> tuple[Words, Sentences]:
    """The words and sentences of all texts of the chosen kinds; `frame` needs `COLUMNS`."""
    counted = frame.counted(chosen.mask)
    vocabulary: dict[str, int] = {}
    word_rows: list[npt.NDArray[np.int64]] = []  # a text's: an array is smaller than tuples
    sentence_rows: list[tuple[int, ...]] = []
    kinds: list[list[bool]] = []
    texts: list[str] = []
    tokens, starts = list[int](), [0]
    unscored = inside = 0
    for i, entry in enumerate(frame.entries):
        rendered = frame.store.text(entry.key).rendered
        index = np.flatnonzero(counted[frame.bounds[i] : frame.bounds[i + 1]]) + frame.bounds[i]
        first_tokens = _first_tokens(rendered.text, *(frame.extra[name][index].astype(np.int64) for name in COLUMNS))
        rows: list[tuple[int, ...]] = []
        for block in rendered.blocks():
            if block.kind not in chosen.kinds:
                continue
            flat, turn_bin = prose(rendered.text[block.start : block.end]), int(_binned(_TURN_STARTS, block.turn))
            for sentence in sentences(flat):
                words = sentence.words
                local = first_tokens(np.array([block.start + word.start for word in words]))
                ids = [vocabulary.setdefault(word.text, len(vocabulary)) for word in words]
                groups = {hit.word: lexicon.groups.index(hit.group) for hit in lexicon.hits(flat, sentence)}
                unscored += int((local == -1).sum())
                inside += int((local == -2).sum())
                scored = np.flatnonzero(local >= 0).tolist()
                begun = index[local[scored]].tolist()
                for j, first in zip(scored, begun, strict=True):
                    rows.append((i, first, turn_bin, words[j].place, words[j].clause, ids[j], groups.get(j, -1)))
                if begun and -1 not in local:
                    reflects = lexicon.reflects(flat, sentence)
                    tokens += begun
                    starts.append(len(tokens))
                    sentence_rows.append((i, turn_bin, sentence.place, len(words)))
                    kinds.append([kind in reflects for kind in lexicon.kinds])
                    texts.append(sentence.text)
        word_rows.append(np.array(rows, dtype=np.int64).reshape(-1, 7))
    owner, token, turn, position, clause, word, group = np.concatenate(word_rows).T
    band = _frequency_band(np.bincount(word, minlength=len(vocabulary)))[word]
    cell = _cells(_binned(_WORD_POSITIONS, position), _binned(_CLAUSE_POSITIONS, clause), band, turn)
    all_words = Words(owner, token, turn, cell, group, unscored, inside)
    owner, turn, position, length = np.array(sentence_rows, dtype=np.int64).reshape(-1, 4).T
    words_of = [[vocabulary[word] for word in text.split() if word != "`"] for text in texts]
    counts = np.bincount([word for row in words_of for word in row], minlength=len(vocabulary))
    logs = np.log(np.maximum(counts, 1))
    frequency = np.array([logs[row].mean() for row in words_of])
    quartiles = np.quantile(frequency, [0.25, 0.5, 0.75]) if len(frequency) else np.zeros(3)
    position, length_bin = _binned(_SENTENCE_POSITIONS, position), _binned(_LENGTHS, length)
    cell = _cells(position, length_bin, _binned(quartiles, frequency), (turn + 1) // 2)  # fewer than words: wider bins
    token, start = np.array(tokens, dtype=np.int64), np.array(starts, dtype=np.int64)
    kind = np.array(kinds, dtype=bool).reshape(-1, len(lexicon.kinds))
    return all_words, Sentences(owner, token, start, turn, cell, kind, length, tuple(texts))


def _first_tokens(text: str, start: IntArray, end: IntArray) -> Callable[[IntArray], IntArray]:
    """A function from places of words' first characters to the tokens with which the words begin.

    A token may have spaces before the word; of several tokens within one character the first is meant. -1: not scored,
    -2: the word begins inside a token. `start`, `end`: the characters of the tokens, (n,).
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    solid = np.where(np.isin(points, _WHITE), len(points), np.arange(len(points)))
    following = np.append(np.minimum.accumulate(solid[::-1])[::-1], len(points)) if len(points) else np.zeros(1)
    anchor = following[start].astype(np.int64)  # the first character that is no space
    anchor = np.where(anchor < end, anchor, start)

    def first_tokens(places: IntArray) -> IntArray:
        token = np.searchsorted(end, places, side="right")
        covered = token < len(end)
        covered[covered] = start[token[covered]] <= places[covered]
        begins = covered.copy()
        begins[covered] = anchor[token[covered]] == places[covered]
        return np.where(begins, token, np.where(covered, -2, -1))

    return first_tokens


def _binned(edges: Sequence[float] | FloatArray, values: Any) -> IntArray:
    return np.searchsorted(edges, values, side="right")


def _frequency_band(counts: npt.NDArray[np.integer]) -> IntArray:
    """Within a band, counts differ by less than a factor of 4."""
    return (np.log2(np.maximum(counts, 1)) // 2).astype(np.int64)


def _cells(*columns: npt.NDArray[Any]) -> IntArray:
    """One number for each combination of values."""
    if not len(columns[0]):
        return np.zeros(0, dtype=np.int64)
    return np.asarray(np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1]).reshape(-1)


# --- comparisons ------------------------------------------------------------------------------------------------------


class _Units(NamedTuple):
    """Words or sentences: what is compared; each (n,), entropies in nats."""

    trajectory: IntArray
    turn: IntArray
    cell: IntArray
    entropy: FloatArray
    low: FloatArray  # bounds of the entropy over the vocabulary
    high: FloatArray


class _Comparison(NamedTuple):
    """Which units are compared with which others."""

    part: str
    group: str
    units: _Units
    treated: BoolArray
    others: BoolArray


class _ContrastResult(NamedTuple):
    """A comparison's units, those that are in it, and the difference raw and matched."""

    comparison: _Comparison
    raw: Contrast
    matched: Contrast
    multiplicity: IntArray  # (T,)

    def mean(self, values: FloatArray, which: BoolArray) -> float:
        """Weighted mean of one value a unit over some units; NaN where it is not finite."""
        weight = self.multiplicity[self.comparison.units.trajectory].astype(np.float64)[which]
        mean = float((values[which] * weight).sum() / weight.sum()) if weight.sum() > 0 else math.nan
        return mean if math.isfinite(mean) else math.nan


def exploration(
    frame: Frame, question: Question, *, embed: Embed | None = None, lexicon: Lexicon | None = None
) -> Iterator[Table]:
    """Tables of differences: whole, by turn, by outcome, and bounds of the entropy over the vocabulary.

    Args:
        frame: One run, loaded with `COLUMNS`.
        question: Token sets (their actions are left out), values of k, and the bootstrap's settings.
        embed: Vectors of sentences for rarity (default: TF-IDF).
        lexicon: Default: the shipped one.

    Raises:
        SettingsError: Where no token set has prose, or prose was not scored.
    """
    lexicon = lexicon or load_lexicon()
    limits = frame_bounds(frame)
    rows: dict[str, list[dict[str, Any]]] = {"": [], "_by_turn": [], "_by_resolved": [], "_bounds": []}
    skipped = ""
    without_actions = [
        selection(frame.filters, [kind for kind in chosen.kinds if kind is not Kind.ACTION], [])
        for chosen in question.chosen
    ]
    of_prose = {chosen.name: chosen for chosen in without_actions if chosen.kinds}
    if not of_prose:
        raise SettingsError("--exploration reads sentences, and actions have none; leave --kinds out, or name thought")
    for chosen in of_prose.values():
        try:
            words, sentences_of = collect(frame, chosen, lexicon)
        except SettingsError as error:
            raise SettingsError(
                f"--exploration reads what the agent thinks. {error} The tasks hesnr_swe_thought and "
                "hesnr_swe_unfiltered score thoughts."
            ) from None
        skipped = f"{words.unscored} words were beyond the context and {words.inside} begin inside a token"
        long = sentences_of.length >= _SHORTEST
        far = np.zeros(len(long), dtype=bool)
        far[long] = rare(distances([sentences_of.texts[i] for i in np.flatnonzero(long)], embed=embed))
        for k in question.ks:
            named = {"run": frame.name, "select": chosen.name, "k": k}
            comparisons = list(_comparisons(words, sentences_of, far, long, frame.entropy[k], limits, lexicon))
            for name, found_rows in _rows(frame, question, chosen, comparisons):
                rows[name] += [named | row for row in found_rows]
    size = vocabulary_size(frame.store)
    about = (
        f"lexicon {lexicon.version}; rare: the tenth of sentences farthest from their 5 nearest "
        f"({'embeddings' if embed else 'TF-IDF'})"
    )
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


def _comparisons(
    words: Words,
    of_sentences: Sentences,
    far: BoolArray,
    long: BoolArray,
    entropy: FloatArray,
    limits: Bounds,
    lexicon: Lexicon,
) -> Iterator[_Comparison]:
    columns = [values[words.token] for values in (entropy, *limits)]
    units, plain = _Units(words.trajectory, words.turn, words.cell, *columns), words.group < 0
    yield _Comparison(PARTS[0], "all", units, ~plain, plain)
    for i, group in enumerate(lexicon.groups):
        yield _Comparison(PARTS[0], group, units, words.group == i, plain)
    columns = [of_sentences.mean(values) for values in (entropy, *limits)]
    units = _Units(of_sentences.trajectory, of_sentences.turn, of_sentences.cell, *columns)
    plain = np.asarray(~of_sentences.kinds.any(axis=1))
    yield _Comparison(PARTS[1], "all", units, ~plain, plain)
    for i, kind in enumerate(lexicon.kinds):
        yield _Comparison(PARTS[1], kind, units, of_sentences.kinds[:, i], plain)
    yield _Comparison(PARTS[2], "all", units, far, long & ~far)


def _rows(
    frame: Frame, question: Question, chosen: Selection, comparisons: Sequence[_Comparison]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    multiplicity = frame.multiplicity(chosen.mask)
    results = [_compare(comparison, multiplicity) for comparison in comparisons]
    yield "", _holm([_row(result, question) for result in results])
    yield "_bounds", [_bounds_row(result) for result in results]
    whole = [comparison for comparison in comparisons if comparison.group == "all"]
    by_turn, by_outcome = [], []
    groups = grouped(frame, "resolved")
    full = np.diff(frame.bounds) > 0
    group = np.where(full, groups.of_token[np.minimum(frame.bounds[:-1], len(groups.of_token) - 1)], -1)
    for comparison in whole:
        for i, turn in enumerate(_TURNS):
            here = comparison.units.turn == i
            within = comparison._replace(treated=comparison.treated & here, others=comparison.others & here)
            by_turn.append({"turn": turn, **_row(_compare(within, multiplicity), question)})
        for i, outcome in enumerate(groups.names):
            result = _compare(comparison, np.where(group == i, multiplicity, 0))
            by_outcome.append({"resolved": outcome, **_row(result, question)})
    for name, rows in (("_by_turn", by_turn), ("_by_resolved", by_outcome)):
        kept = [{"part": row["part"], **row} for row in rows if row["n"]]
        yield name, _holm([{key: value for key, value in row.items() if key != "group"} for row in kept])


def _compare(comparison: _Comparison, multiplicity: IntArray) -> _ContrastResult:
    members = np.flatnonzero(comparison.treated | comparison.others)
    columns: Any = (column[members] for column in comparison.units)
    units, treated = _Units(*columns), comparison.treated[members]
    common = (units.entropy, treated, units.trajectory, multiplicity)
    subset = comparison._replace(units=units, treated=treated, others=~treated)
    return _ContrastResult(subset, contrast(*common), contrast(*common, units.cell), multiplicity)


def _estimates(result: _ContrastResult, question: Question) -> tuple[Estimate, Estimate, float]:
    """Both differences, raw and matched, and the p-value of the matched one being 0."""
    pairs = (result.raw, result.matched)
    sides = [np.stack([getattr(pair, name) for pair in pairs], axis=1) for name in ("numerator", "denominator")]
    numerators, denominators = (np.repeat(side, result.multiplicity, axis=0) for side in sides)
    if not len(numerators):
        return Estimate(math.nan), Estimate(math.nan), math.nan
    bootstrap: dict[str, Any] = {"resamples": question.resamples, "seed": question.seed}
    columns = zip(*(column.tolist() for column in estimates(numerators, denominators, **bootstrap)), strict=True)
    raw, matched = (
        Estimate(*column) if pair.clusters >= FEWEST_CLUSTERS else Estimate(column[0])
        for column, pair in zip(columns, pairs, strict=True)
    )
    numerator, denominator = numerators[:, 1], denominators[:, 1]
    if result.matched.clusters < FEWEST_CLUSTERS or not denominator.sum() > 0:
        return raw, matched, math.nan
    zero = (np.zeros_like(numerator), denominator)  # a ratio against one whose numerator is 0
    return raw, matched, paired(zero, (numerator, denominator), **bootstrap).p


def _holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With Holm's p-values over all rows."""
    p_values = holm({str(i): row["p"] for i, row in enumerate(rows)})
    return [{**row, "p_holm": p_values[str(i)]} for i, row in enumerate(rows)]


def _row(result: _ContrastResult, question: Question) -> dict[str, Any]:
    (part, group, units, treated, others), multiplicity = result.comparison, result.multiplicity
    raw, matched, p = _estimates(result, question)
    weight = multiplicity[units.trajectory]
    return {
        "part": part,
        "group": group,
        "n": int(weight[treated].sum()),
        "others": int(weight[others].sum()),
        "trajectories": int(multiplicity[np.unique(units.trajectory[treated])].sum()),
        "entropy": result.mean(units.entropy, treated),
        "others_entropy": result.mean(units.entropy, others),
        "difference": raw,
        "interval": interval(raw),
        "matched": matched,
        "matched_interval": interval(matched),
        "p": p,
        "matched_share": result.matched.used,
    }


def _bounds_row(result: _ContrastResult) -> dict[str, Any]:
    part, group, units, treated, others = result.comparison
    weight = result.multiplicity[units.trajectory].astype(np.float64)
    ends = difference_bounds(result.matched.lift, weight, units.low, units.high)
    least, greatest = (end if math.isfinite(end) else math.nan for end in ends)
    return {
        "part": part,
        "group": group,
        "topk": result.mean(units.entropy, treated),
        "low": result.mean(units.low, treated),
        "high": result.mean(units.high, treated),
        "others_low": result.mean(units.low, others),
        "others_high": result.mean(units.high, others),
        "matched": result.matched.value(result.multiplicity),
        "difference_low": least,
        "difference_high": greatest,
    }


# --- the figure -------------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """A series: its name, and an estimate at each of its places."""

    name: str
    places: tuple[str, ...]
    values: tuple[Estimate, ...]


def figure_data(tables: Sequence[Table]) -> tuple[str, list[Series], list[Series]]:
    """The numbers of the figure (of the first token set and k), from the tables of all runs.

    Returns:
        The name of the last run; its differences, raw and matched, a place a group; the matched difference of each
        part over runs, or over turns where there is one run.
    """
    whole, by_turn = (_first_setting(tables, name) for name in ("exploration", "exploration_by_turn"))
    run = whole[-1]["run"]
    last = [row for row in whole if row["run"] == run]
    places = tuple(str(row["part"] if row["group"] == "all" else f"– {row['group']}") for row in last)
    groups = [
        Series(name, places, tuple(row[key] for row in last)) for name, key in (("raw", "difference"), ("matched",) * 2)
    ]
    several = whole[0]["run"] != run
    rows, by = ([row for row in whole if row["group"] == "all"], "run") if several else (by_turn, "turn")
    seen = {row[by] for row in rows}
    names = tuple(dict.fromkeys(row[by] for row in rows) if several else (turn for turn in _TURNS if turn in seen))
    course = []
    for part in PARTS:
        values = {row[by]: row["matched"] for row in rows if row["part"] == part}
        course.append(Series(part, names, tuple(values.get(name, Estimate(math.nan)) for name in names)))
    return run, groups, course


def draw(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png; returns both paths."""
    from hesnr_tasks.plotting import error_bars, figure, label, save

    run, groups, course = figure_data(tables)
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


def _first_setting(tables: Sequence[Table], name: str) -> list[Mapping[str, Any]]:
    rows = next(table.rows for table in tables if table.name == name)
    return [row for row in rows if all(row[key] == rows[0][key] for key in ("select", "k"))]
