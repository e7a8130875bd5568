"""Entropy at pivotal words, in reflective and in rare sentences: `hesnr analyze --exploration`, for one run.

The entropy of a word is that at its first token, of a sentence the mean of its words': later pieces of a word are
nearly certain, so a mean over all tokens would be lower for sentences of words that split more, which rare sentences
have, and no matching on position or frequency corrects that.

The difference between some units (words, sentences) and the others is given raw and matched: within cells of equal
position, frequency and turn, with every trajectory's own level taken out. That is the coefficient d of the
least-squares fit  y = cell + trajectory + d · treated, over the cells that have both treated and other units (Frisch,
Waugh and Lovell: residuals of y on residuals of `treated`). It is a ratio of sums over trajectories, so the package's
cluster bootstrap gives its interval; the residual of the ratio is the influence of a trajectory on d, in which the
error of the controls is contained.

Bounds: given are the k largest probabilities p_1 ≥ … ≥ p_k and so the mass r = 1 − Σ p of all other tokens, none of
which is more likely than p_k. The entropy over the whole vocabulary is smallest where that mass is packed into as few
tokens as possible (each p_k, one with what is left), and largest where it is spread evenly over the V − k others.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.breakdowns import grouped
from hesnr_tasks.analysis.frame import Frame, Selection, selection
from hesnr_tasks.analysis.tables import Question, Table, interval
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.exploration import FEWEST_CLUSTERS, Lexicon, distances, load_lexicon, prose, rare, sentences
from hesnr_tasks.scores import Entry, ScoreStore
from hesnr_tasks.stats import Estimate, estimates, holm, paired
from hesnr_tasks.trajectory import Kind

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


# --- differences, raw and matched -------------------------------------------------------------------------------------

_RIDGE = 1e-10  # levels are known up to a constant; this picks one of them
_NEGLIGIBLE_LIFT = 1e-6  # a unit of less lift is explained by its cell and trajectory alone


class Contrast(NamedTuple):
    """Over T trajectories and n units; the ratio of sums of `numerator` and `denominator` is the difference."""

    numerator: FloatArray  # (T,)
    denominator: FloatArray  # (T,)
    lift: FloatArray  # (n,): how much each unit weighs in it, 0 where it is not compared
    used: float  # share of treated units compared
    clusters: int  # trajectories that have such

    def value(self, multiplicity: IntArray) -> float:
        """The difference, trajectory t counted `multiplicity[t]` times; NaN where nothing can be compared."""
        total = float(self.denominator @ multiplicity)
        return float(self.numerator @ multiplicity) / total if total > 0 else float("nan")


def contrast(
    values: FloatArray, treated: BoolArray, trajectory: IntArray, multiplicity: IntArray, cell: IntArray | None = None
) -> Contrast:
    """Treated units against the others.

    Args:
        values, treated, trajectory: entropy (nats), whether treated, and trajectory of each unit, (n,).
        multiplicity: how often each trajectory counts, (T,).
        cell: the cell of each unit, (n,); None: the plain difference of means.
    """
    n, trajectories = len(values), len(multiplicity)
    weight = multiplicity[trajectory] > 0
    cells = np.zeros(n, dtype=np.int64) if cell is None else cell
    _, codes = np.unique(cells, return_inverse=True)
    counts = [
        np.bincount(codes[side & weight], minlength=int(codes.max(initial=0)) + 1) for side in (treated, ~treated)
    ]
    keep = weight & ((counts[0] > 0) & (counts[1] > 0))[codes]  # of cells that have both
    nothing = Contrast(np.zeros(trajectories), np.zeros(trajectories), np.zeros(n), 0.0, 0)
    if not keep.any():
        return nothing
    _, codes = np.unique(cells[keep], return_inverse=True)
    owner = trajectory[keep]
    y, d = values[keep], treated[keep].astype(np.float64)
    columns = np.column_stack([d, y - y.mean()])
    fitted = _fitted(codes, owner, columns, multiplicity, with_trajectories=cell is not None)
    d, y = (columns - fitted).T
    if np.abs(d).max() < _NEGLIGIBLE_LIFT:
        return nothing
    lift = nothing.lift
    lift[keep] = d
    sums = [np.bincount(owner, part, trajectories).astype(np.float64) for part in (d * y, d * d)]
    compared = treated & (np.abs(lift) >= _NEGLIGIBLE_LIFT)
    used = int(compared.sum()) / max(1, int((treated & weight).sum()))
    return Contrast(sums[0], sums[1], lift, used, len(np.unique(trajectory[compared])))


def difference_bounds(lift: FloatArray, weight: FloatArray, low: FloatArray, high: FloatArray) -> tuple[float, float]:
    """Least and greatest matched difference (nats), where each unit's entropy lies between `low` and `high`, (n,).

    `lift`: of `Contrast`; `weight`: how often each unit counts, both (n,). NaN where nothing is compared.
    """
    used = lift != 0
    a, down, up = (lift * weight)[used], low[used], high[used]
    scale = float((lift[used] * a).sum())
    if not scale > 0:
        return float("nan"), float("nan")
    least = np.where(a > 0, a * down, a * up).sum() / scale
    return float(least), float(np.where(a > 0, a * up, a * down).sum() / scale)


def _fitted(
    cell: IntArray, trajectory: IntArray, columns: FloatArray, multiplicity: IntArray, *, with_trajectories: bool
) -> FloatArray:
    """Least-squares levels of cells (and of trajectories) for each of `columns` (n, m), at every unit."""
    shape = (int(cell.max()) + 1, len(multiplicity))

    def table(values: FloatArray | None = None) -> FloatArray:
        """Sums (or counts) of each cell in each trajectory."""
        sums = np.bincount(cell * shape[1] + trajectory, values, shape[0] * shape[1])
        return sums.reshape(shape).astype(np.float64) * multiplicity

    counts, sums = table(), np.stack([table(column) for column in columns.T], axis=2)
    if not with_trajectories:
        return (sums.sum(axis=1) / counts.sum(axis=1)[:, None])[cell]
    if shape[0] < shape[1]:  # the system to solve is as large as the smaller side
        of_trajectory, of_cell = _levels(counts.T, sums.transpose(1, 0, 2))
    else:
        of_cell, of_trajectory = _levels(counts, sums)
    return of_cell[cell] + of_trajectory[trajectory]


def _levels(counts: FloatArray, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Levels of the rows and of the columns of tables of counts (a, b) and sums (a, b, m)."""
    rows, total = counts.sum(axis=1), sums.sum(axis=1)
    share = np.divide(counts, rows[:, None], out=np.zeros_like(counts), where=rows[:, None] > 0)
    system = np.diag(counts.sum(axis=0)) - counts.T @ share
    system[np.diag_indices_from(system)] += _RIDGE * counts.sum() / len(system)
    level = np.linalg.solve(system, sums.sum(axis=0) - share.T @ total)
    rest = total - counts @ level
    return np.divide(rest, rows[:, None], out=np.zeros_like(rest), where=rows[:, None] > 0), level


# --- bounds of the entropy over the vocabulary ------------------------------------------------------------------------


def entropy_bounds(topk_logprobs: npt.NDArray[np.floating], vocabulary: int | None) -> tuple[FloatArray, FloatArray]:
    """Least and greatest entropy over the vocabulary, (n,) each, from descending log-probabilities (n, k); all in nats.

    See the module. `vocabulary`: its size; None: unknown, and the upper bound is infinite.
    """
    logs = np.asarray(topk_logprobs, dtype=np.float64)
    chances = np.exp(logs)
    stored = -(chances * np.where(chances > 0, logs, 0.0)).sum(axis=1)
    tail = np.clip(1.0 - chances.sum(axis=1), 0.0, None)  # rounding can make it a little less than nothing
    last = chances[:, -1]
    full = np.floor(np.divide(tail, last, out=np.zeros_like(tail), where=last > 0))
    low = stored + full * _entropy_term(last) + _entropy_term(np.clip(tail - full * last, 0.0, None))
    if vocabulary is None:
        return low, np.full(len(low), np.inf)
    others = max(1, vocabulary - logs.shape[1])
    return low, np.maximum(low, stored + others * _entropy_term(tail / others))


def _entropy_term(chance: FloatArray) -> FloatArray:
    """-p ln p, 0 at 0."""
    return -chance * np.log(np.where(chance > 0, chance, 1.0))


def frame_bounds(frame: Frame) -> tuple[FloatArray, FloatArray]:
    """Bounds (nats) of every token's entropy over the whole vocabulary, from all candidates that were stored."""
    size = vocabulary_size(frame.store)
    order = {entry.key: i for i, entry in enumerate(frame.entries)}

    def work(entry: Entry, columns: dict[str, npt.NDArray[np.float32]]) -> tuple[FloatArray, FloatArray]:
        i = order[entry.key]
        return entropy_bounds(columns["topk_logprobs"][frame.row[frame.bounds[i] : frame.bounds[i + 1]]], size)

    low, high = zip(*frame.store.load_columns(["topk_logprobs"], work), strict=True)
    return np.concatenate(low), np.concatenate(high)


def vocabulary_size(store: ScoreStore) -> int | None:
    """Tokens of the tokenizer, as the run's signature says; None if it does not."""
    match = re.match(r"(\d+) tokens", str(store.signature["run"].get("tokenizer", "")))
    stored = store.token_bytes()
    return max([*([int(match[1])] if match else []), *([len(stored)] if stored else [])], default=None)


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


# --- words and sentences with their tokens ----------------------------------------------------------------------------


class Units(NamedTuple):
    """n words whose first token was scored, or n sentences all of whose words were; each array (n,) unless stated."""

    trajectory: IntArray
    turn: IntArray  # bin
    cell: IntArray  # place, frequency of the word or words, turn; of sentences their length, too
    token: IntArray  # the frame's index of the first token of each word, (m,)
    start: IntArray  # those of unit i are token[start[i]:start[i + 1]], at least one; (n + 1,)
    kinds: BoolArray  # (n, the lexicon's groups of words or kinds of sentences)
    texts: tuple[str, ...] = ()  # of sentences: words, and ` for each piece of code

    def mean(self, values: FloatArray) -> FloatArray:
        """Mean of `values`, one a token of the frame, over the first tokens of the words of each unit, (n,)."""
        total = np.add.reduceat(values[self.token], self.start[:-1]) if len(self.turn) else np.zeros(0)
        return np.asarray(total / np.diff(self.start), dtype=np.float64)


def collect(frame: Frame, chosen: Selection, lexicon: Lexicon) -> tuple[Units, Units, Counter[int]]:
    """Words and sentences of all texts of the chosen kinds, of a frame loaded with `COLUMNS`, and what is left out.

    Left out, and counted, are words beyond the context (-1), and those that begin inside a token (-2), such as a
    bracket's.

    Raises:
        SettingsError: not all tokens of these kinds were scored.
    """
    counted = frame.counted(chosen.mask)
    vocabulary: dict[str, int] = {}
    word_rows: list[npt.NDArray[np.int64]] = []  # a text's: an array is smaller than tuples
    sentence_rows: list[tuple[int, ...]] = []
    kinds: list[list[bool]] = []
    texts: list[str] = []
    tokens, starts = list[int](), [0]
    left_out = Counter[int]()
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
                left_out.update(local[local < 0].tolist())
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
    counts = np.maximum(np.bincount(word, minlength=len(vocabulary)), 1)
    band = (np.log2(counts) // 2).astype(np.int64)[word]  # within a band, counts differ by less than a factor of 4
    cell = _cells(_binned(_WORD_POSITIONS, position), _binned(_CLAUSE_POSITIONS, clause), band, turn)
    pivotal = group[:, None] == np.arange(len(lexicon.groups))
    all_words = Units(owner, turn, cell, token, np.arange(len(token) + 1), pivotal)
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
    return all_words, Units(owner, turn, cell, token, start, kind, tuple(texts)), left_out


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


def _cells(*columns: npt.NDArray[Any]) -> IntArray:
    """One number for each combination of values."""
    if not len(columns[0]):
        return np.zeros(0, dtype=np.int64)
    return np.asarray(np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1]).reshape(-1)


# --- comparisons ------------------------------------------------------------------------------------------------------


class _Comparison(NamedTuple):
    """Words or sentences, and which of them are compared with the others; each array (n,), entropies in nats."""

    trajectory: IntArray
    turn: IntArray
    cell: IntArray
    entropy: FloatArray
    low: FloatArray  # bounds of the entropy over the vocabulary
    high: FloatArray
    treated: BoolArray
    part: str
    group: str = "all"

    def within(self, keep: BoolArray) -> _Comparison:
        """Of some units alone; `keep`: (n,)."""
        return _Comparison._make([*(column[keep] for column in self[:7]), self.part, self.group])


def exploration(frame: Frame, question: Question) -> Iterator[Table]:
    """Tables of differences: whole, by turn, by outcome, and bounds of the entropy over the vocabulary.

    Of a frame loaded with `COLUMNS`; the actions of the question's token sets are left out.

    Raises:
        SettingsError: Where no token set has prose, or prose was not scored.
    """
    lexicon = load_lexicon()
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
            words, of_sentences, left_out = collect(frame, chosen, lexicon)
        except SettingsError as error:
            raise SettingsError(
                f"--exploration reads what the agent thinks. {error} The tasks hesnr_swe_thought and "
                "hesnr_swe_unfiltered score thoughts."
            ) from None
        skipped = f"{left_out[-1]} words were beyond the context and {left_out[-2]} begin inside a token"
        long = np.array([len(text.replace("`", "").split()) >= _SHORTEST for text in of_sentences.texts], dtype=bool)
        far = np.zeros(len(long), dtype=bool)
        far[long] = rare(distances([of_sentences.texts[i] for i in np.flatnonzero(long)]))
        for k in question.ks:
            named = {"run": frame.name, "select": chosen.name, "k": k}
            comparisons = list(_comparisons(words, of_sentences, far, long, (frame.entropy[k], *limits), lexicon))
            for name, rows_of_table in _rows(frame, question, chosen, comparisons).items():
                rows[name] += [named | row for row in rows_of_table]
    size = vocabulary_size(frame.store)
    about = f"lexicon {lexicon.version}; rare: the tenth of sentences farthest from their 5 nearest (TF-IDF)"
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
    words: Units, of_sentences: Units, far: BoolArray, long: BoolArray, columns: Sequence[FloatArray], lexicon: Lexicon
) -> Iterator[_Comparison]:
    """`far`: sentences that are rare; `long`: those that can be, each (n,); `columns`: entropies and their bounds."""
    for part, units, names in ((PARTS[0], words, lexicon.groups), (PARTS[1], of_sentences, lexicon.kinds)):
        plain = np.asarray(~units.kinds.any(axis=1))
        entropy, low, high = map(units.mean, columns)
        whole = _Comparison(units.trajectory, units.turn, units.cell, entropy, low, high, ~plain, part)
        for group, treated in zip(("all", *names), (~plain, *units.kinds.T), strict=True):
            yield whole._replace(group=group, treated=treated).within(treated | plain)
    yield whole._replace(part=PARTS[2], treated=far).within(long)


def _rows(
    frame: Frame, question: Question, chosen: Selection, comparisons: Sequence[_Comparison]
) -> dict[str, list[dict[str, Any]]]:
    """Rows by the end of their table's name."""
    multiplicity, groups = frame.multiplicity(chosen.mask), grouped(frame, "resolved")
    full = np.diff(frame.bounds) > 0
    group = np.where(full, groups.of_token[np.minimum(frame.bounds[:-1], len(groups.of_token) - 1)], -1)
    compared = [_compared(comparison, multiplicity, question) for comparison in comparisons]
    rows = {"": [row for row, _ in compared], "_by_turn": [], "_by_resolved": []}
    for comparison in (comparison for comparison in comparisons if comparison.group == "all"):
        part = {"part": comparison.part}
        for i, turn in enumerate(_TURNS):
            row, _ = _compared(comparison.within(comparison.turn == i), multiplicity, question)
            rows["_by_turn"].append(part | {"turn": turn} | row)
        for i, outcome in enumerate(groups.names):
            row, _ = _compared(comparison, np.where(group == i, multiplicity, 0), question)
            rows["_by_resolved"].append(part | {"resolved": outcome} | row)
    for name in ("_by_turn", "_by_resolved"):
        rows[name] = [{key: value for key, value in row.items() if key != "group"} for row in rows[name] if row["n"]]
    for of_table in rows.values():
        p_values = holm({str(i): row["p"] for i, row in enumerate(of_table)})
        for i, row in enumerate(of_table):
            row["p_holm"] = p_values[str(i)]
    return {**rows, "_bounds": [bounds for _, bounds in compared]}


def _compared(
    comparison: _Comparison, multiplicity: IntArray, question: Question
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a comparison, and that of its bounds; `multiplicity`: of each trajectory, (T,)."""
    units, treated = comparison, comparison.treated
    common = (units.entropy, treated, units.trajectory, multiplicity)
    differences = (contrast(*common), contrast(*common, units.cell))
    raw, matched, p = _estimates(*differences, multiplicity, question)
    weight = multiplicity[units.trajectory].astype(np.float64)

    def mean(values: FloatArray, which: BoolArray) -> float:
        total = weight[which].sum()
        value = float((values[which] * weight[which]).sum() / total) if total > 0 else math.nan
        return value if math.isfinite(value) else math.nan

    row = {
        "part": units.part,
        "group": units.group,
        "n": int(weight[treated].sum()),
        "others": int(weight[~treated].sum()),
        "trajectories": int(multiplicity[np.unique(units.trajectory[treated])].sum()),
        "entropy": mean(units.entropy, treated),
        "others_entropy": mean(units.entropy, ~treated),
        "difference": raw,
        "interval": interval(raw),
        "matched": matched,
        "matched_interval": interval(matched),
        "p": p,
        "matched_share": differences[1].used,
    }
    ends = difference_bounds(differences[1].lift, weight, units.low, units.high)
    least, greatest = (end if math.isfinite(end) else math.nan for end in ends)
    bounds = {
        "part": units.part,
        "group": units.group,
        "topk": row["entropy"],
        "low": mean(units.low, treated),
        "high": mean(units.high, treated),
        "others_low": mean(units.low, ~treated),
        "others_high": mean(units.high, ~treated),
        "matched": differences[1].value(multiplicity),
        "difference_low": least,
        "difference_high": greatest,
    }
    return row, bounds


def _estimates(
    raw: Contrast, matched: Contrast, multiplicity: IntArray, question: Question
) -> tuple[Estimate, Estimate, float]:
    """Both differences, and the p-value of the matched one being 0."""
    pairs = (raw, matched)
    sides = [np.stack([getattr(pair, name) for pair in pairs], axis=1) for name in ("numerator", "denominator")]
    numerators, denominators = (np.repeat(side, multiplicity, axis=0) for side in sides)
    if not len(numerators):
        return Estimate(math.nan), Estimate(math.nan), math.nan
    bootstrap: dict[str, Any] = {"resamples": question.resamples, "seed": question.seed}
    values = estimates(numerators, denominators, **bootstrap)
    few = [pair.clusters < FEWEST_CLUSTERS for pair in pairs]
    first, second = (Estimate(value.value) if withheld else value for value, withheld in zip(values, few, strict=True))
    numerator, denominator = numerators[:, 1], denominators[:, 1]
    if few[1] or not denominator.sum() > 0:
        return first, second, math.nan
    zero = (np.zeros_like(numerator), denominator)  # a ratio against one whose numerator is 0
    return first, second, paired(zero, (numerator, denominator), **bootstrap).p


# --- the figure -------------------------------------------------------------------------------------------------------


Series = dict[str, dict[str, Estimate]]  # name → place → number


def figure_data(tables: Sequence[Table]) -> tuple[str, Series, Series]:
    """The numbers of the figure (of the first token set and k), from the tables of all runs.

    Returns:
        The name of the last run; its differences, raw and matched, a place a group; the matched difference of each
        part over runs, or over turns where there is one run.
    """
    whole, by_turn = (
        [row for row in rows if all(row[key] == rows[0][key] for key in ("select", "k"))]
        for name in ("exploration", "exploration_by_turn")
        for rows in [next(table.rows for table in tables if table.name == name)]
    )
    run = whole[-1]["run"]
    last = {row["part"] if row["group"] == "all" else f"– {row['group']}": row for row in whole if row["run"] == run}
    keys = {"raw": "difference", "matched": "matched"}
    groups = {name: {place: row[key] for place, row in last.items()} for name, key in keys.items()}
    rows, by = ([row for row in whole if row["group"] == "all"], "run") if whole[0]["run"] != run else (by_turn, "turn")
    places = sorted(dict.fromkeys(row[by] for row in rows), key=_TURNS.index if by == "turn" else lambda name: 0)
    course = {}
    for part in PARTS:
        values = {row[by]: row["matched"] for row in rows if row["part"] == part}
        course[part] = {place: values.get(place, Estimate(math.nan)) for place in places}
    return run, groups, course


def draw(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png; returns both paths."""
    from hesnr_tasks.plotting import error_bars, figure, label, save

    run, groups, course = figure_data(tables)
    picture, axes = figure(1, 2, width=4.2, height=3.6)
    (left, right), names, places = axes[0], list(groups["raw"]), list(course[PARTS[0]])
    for i, (name, values) in enumerate(groups.items()):
        error_bars(
            left, i, name, [row + 0.14 * (2 * i - 1) for row in range(len(names))], [*values.values()], across=True
        )
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) + 0.6, -0.6)  # room for the legend
    left.set_xlabel("entropy less that of the others (nats)")
    left.set_title(label(run), fontsize=9)
    left.legend(loc="lower center", ncols=2)
    for i, (name, values) in enumerate(course.items()):
        error_bars(right, i, name, [place + 0.08 * (i - 1) for place in range(len(places))], [*values.values()])
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, places)) > 5 else {}
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(range(len(places)), [label(place) for place in places], **slanted)
    right.margins(y=0.3)  # room for the legend
    right.set_ylabel("matched difference (nats)")
    right.set_title("by run" if places[-1] == run else f"{label(run)}, by turn", fontsize=9)
    right.legend(loc="upper center")
    return save(picture, stem)
