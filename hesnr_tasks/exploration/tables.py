"""The tables of `hesnr analyze --exploration`, for one run, and their figure.

The entropy of a word is that at its first token, of a sentence the mean of its words': later pieces of a word are
nearly certain, so a mean over all tokens would be lower for sentences of words that split more, which rare sentences
have, and nothing that they are matched on takes that off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, Selection, selection
from hesnr_tasks.analysis.groups import grouped
from hesnr_tasks.analysis.intervals import estimates, paired
from hesnr_tasks.analysis.measures import Number
from hesnr_tasks.analysis.output import Table, interval
from hesnr_tasks.analysis.planning import holm
from hesnr_tasks.analysis.tables import Question
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
from hesnr_tasks.exploration.lexicon import Lexicon, load_lexicon
from hesnr_tasks.exploration.rarity import Embed, distances, rare
from hesnr_tasks.exploration.units import TURNS, Sentences, Words, collect
from hesnr_tasks.trajectory import Kind

__all__ = ["PARTS", "Line", "draw", "drawn", "exploration"]

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
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


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
    copies = frame.copies(one.mask)
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


def _numbers(answer: _Answer, asked: Question) -> list[Number]:
    """Both differences with error and interval."""
    pairs = (answer.raw, answer.matched)
    sides = [np.stack([getattr(pair, name) for pair in pairs], axis=1) for name in ("numerator", "denominator")]
    numerators, denominators = (np.repeat(side, answer.copies, axis=0) for side in sides)
    if not len(numerators):
        return [Number(math.nan)] * len(pairs)
    made = estimates(numerators, denominators, resamples=asked.resamples, seed=asked.seed)
    found = (Number(*ends) for ends in zip(*(column.tolist() for column in made), strict=True))
    return [one if pair.clusters >= FEWEST else Number(one.value) for one, pair in zip(found, pairs, strict=True)]


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
    values: tuple[Number, ...]


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
        course.append(Line(part, names, tuple(numbers.get(name, Number(math.nan)) for name in names)))
    return run, groups, course


def draw(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png; returns both paths."""
    from hesnr_tasks.report.drawing import label
    from hesnr_tasks.report.style import error_bars, figure, save

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
