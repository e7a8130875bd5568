"""Metrics of several score folders of the same texts (`hesnr analyze A --against B`): context benefit, LongPPL, …

What a folder is for follows from its signature: a short-context pass (`window`) of the model that is judged gives the
context benefit, and LongPPL with the model as its own evaluator; one of another model, whose whole-context pass is
named too, is an evaluator; a whole-context pass of another model is a teacher (rBridge) and a reference for 𝓗.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.frame import Frame, load, run_names
from hesnr_tasks.analysis.tables import Question, Table
from hesnr_tasks.errors import DataError, SettingsError, number_of
from hesnr_tasks.metrics import METRICS, TokenColumns, cell_sums
from hesnr_tasks.scores import ScoreStore, differences
from hesnr_tasks.scores.base import hidden_tokens
from hesnr_tasks.scores.runs import window_of
from hesnr_tasks.stats import Estimate, estimates, resample_counts, standard_error

__all__ = ["ALPHA", "BETA", "key_tokens", "mean_over_characters", "named_folders", "pair_table"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

ALPHA, BETA = 2.0, 2.0  # nats, of LongPPL: a key token's loss falls by more than α, to less than β
# what may differ between two passes of one model with its context alone different
_SAME_MODEL = {"window", "k", "max_length", "attention", "transformers", "torch", "engine", "overflow"}
_TOKENS = {"tokenizer", "bos"}  # what may not differ where tokens are compared one by one
_COLUMNS = ("position", "char_start", "char_end")
_OF_CONTEXT = tuple(name for name, entry in METRICS.items() if entry.needs == ("short_logprob", "hidden"))
_OF_KEYS = ("long_ppl", "key_share")
_OF_REFERENCE = ("he_snr_fixed", "he_ppl_fixed", "he_snr_shared")
_GRID = 2001  # values at which a median is looked for in every resample


class _Folder(NamedTuple):
    name: str
    store: ScoreStore
    signature: Mapping[str, Any]

    @property
    def window(self) -> int | None:
        return window_of(self.signature)

    def changed_from(self, other: _Folder) -> set[str]:
        return {change.name for change in differences(other.signature, self.signature)}

    def is_of_the_model(self, other: _Folder) -> bool:
        return self.changed_from(other) <= _SAME_MODEL


def pair_table(
    judged: Sequence[tuple[str, Path | ScoreStore]],
    against: Sequence[tuple[str, Path | ScoreStore]],
    question: Question,
    *,
    context: int | None = None,
    common: bool = False,
    run: str = "latest",
) -> Table:
    """The metrics of the suite "pairs" that the folders allow, a row each, with cluster-bootstrap intervals.

    Args:
        judged: whole-context passes, by name.
        against: short-context passes of them or of evaluators, teachers, references, by name.
        question: token sets, k, thresholds, bootstrap.
        context: as `frame.load`.
        common: take the trajectories that both have, where they differ.
        run: as `frame.load`.

    Raises:
        SettingsError: folders that cannot be paired, with what differs.
        DataError: folders of other trajectories or tokens.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    others = [_folder(name, path) for name, path in against]
    for name, path in judged:
        subject = _folder(name, path)
        if subject.window is not None:
            raise SettingsError(
                f"{name} is a short-context pass (window={subject.window}): it is no checkpoint to judge.\n"
                "Name the whole-context pass first and this one behind --against."
            )
        for other in others:
            part, remarks = _against(subject, other, others, question, context, run, common=common)
            rows += part
            notes += remarks
    about = ["interval: 95 %, by cluster bootstrap over trajectories; over: tokens that the metric is over"]
    if any(row["metric"] in _OF_KEYS for row in rows):
        about.append(f"key tokens: all context lowers their loss by more than {ALPHA:g} nats, to less than {BETA:g}")
    return Table(
        "pairs", "Against other scores of the same texts", rows, (*about, *dict.fromkeys(notes)), wide=("window",)
    )


def named_folders(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """The folders with names for tables: the model's, and the window of a short-context pass."""
    windows = [window_of(ScoreStore.open(path).signature) for path in paths]
    names: dict[Path, str] = {}
    for window in dict.fromkeys(windows):
        of_window = [path for path, own in zip(paths, windows, strict=True) if own == window]
        suffix = "" if window is None else f" (window {window})"
        names |= {path: name + suffix for path, name in zip(of_window, run_names(of_window), strict=True)}
    return [(names[path], path) for path in paths]


def _folder(name: str, path: Path | ScoreStore) -> _Folder:
    store = path if isinstance(path, ScoreStore) else ScoreStore.open(path)
    return _Folder(name, store, store.signature)


def _against(
    subject: _Folder,
    other: _Folder,
    others: Sequence[_Folder],
    question: Question,
    context: int | None,
    run: str,
    *,
    common: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one checkpoint against one folder."""
    own = other.is_of_the_model(subject)
    if own and other.window is None:
        raise SettingsError(
            f"{subject.name} and {other.name} are scores of the same model with the same context: nothing differs.\n"
            'Name a short-context pass (scored with "window": N in --metadata), or another model.'
        )
    whole = subject
    if other.window is not None and not own:
        whole = next((f for f in others if f.window is None and other.is_of_the_model(f)), subject)
        if whole is subject:
            changed = "; ".join(map(str, differences(subject.signature, other.signature)[:3]))
            raise SettingsError(
                f"{other.name} is a short-context pass, but not of {subject.name} ({changed}).\n"
                "Name the whole-context pass of its model behind --against too: the two together find key tokens."
            )
    if subject.signature.get("render") != other.signature.get("render"):
        raise SettingsError(
            f"{subject.name} and {other.name} have other renderings ({subject.signature.get('render')}, "
            f"{other.signature.get('render')}), so no token of one stands beside a token of the other.\n"
            "Score the trajectories in one rendering with both."
        )
    notes: list[str] = []
    if own or other.window is not None:
        names = (*(_OF_CONTEXT if own else ()), *_OF_KEYS)
        role = "short context" if own else "evaluator"
    else:
        alike = _TOKENS.isdisjoint(other.changed_from(subject))
        names, role = ("rbridge", *(_OF_REFERENCE if alike else ())), "teacher"
        if not alike:
            notes.append(f"{other.name} has other tokens than {subject.name}: no metric over its 𝓗")
    base, beside, evaluator = (
        load(f.store, question.ks, name=f.name, extra=_COLUMNS, context=context, run=run, metrics=())
        for f in (subject, other, whole)
    )
    rows = []
    for chosen, k, epsilon, about in question.settings(base):
        for frame in (base,) if names == ("rbridge",) or role == "evaluator" else (base, beside):
            frame.counted(chosen.mask)  # refuses tokens that were not scored
        pairs = _shared(base, beside, common=common)
        if len(pairs) < len(base.entries):
            notes.append(f"{subject.name} against {other.name}: on the {len(pairs)} texts that both have")
        sides = [(_Side(base, i, chosen.mask), j) for i, j in pairs]
        cell = np.repeat(np.arange(len(sides)), [len(text.index) for text, _ in sides])
        index = np.concatenate([text.index for text, _ in sides])
        columns: dict[str, Any] = {"trajectory": cell}
        if role == "teacher":
            teachers = [(text, _Side(beside, j)) for text, j in sides]
            means = [
                mean_over_characters(text.start, text.end, teacher.start, teacher.end, np.exp(teacher.logprob))
                for text, teacher in teachers
            ]
            columns["teacher"] = np.concatenate(means)
            if lacking := int(np.isnan(columns["teacher"]).sum()):
                notes.append(f"rbridge is without {lacking} of {len(index)} tokens that {other.name} did not score")
            if len(names) > 1:
                decisions = [_decisions(text, _Side(beside, j, chosen.mask), k, epsilon) for text, j in sides]
                columns["reference_decision"] = np.concatenate(decisions)
        elif role == "short context":
            shorts = [(text, _Side(beside, j, chosen.mask)) for text, j in sides]
            columns["short_logprob"] = np.concatenate([short.like(text).logprob for text, short in shorts])
            hidden = np.concatenate([short.hidden(text.position) for text, short in shorts])
            columns["hidden"] = hidden / int(other.window or 0)
            logprob = np.concatenate([text.logprob for text, _ in sides])
            columns["key"] = key_tokens(logprob, columns["short_logprob"], columns["hidden"])
        else:
            keys = [_keys(text, evaluator, _Side(beside, j)) for text, j in sides]
            columns["key"] = np.concatenate(keys)
        tokens = replace(base.tokens(k, index), **columns)
        multiplicity = base.multiplicity(chosen.mask)[[i for i, _ in pairs]]
        multiplicity = multiplicity * beside.included(chosen.mask)[[j for _, j in pairs]]
        for name, estimate, count in _estimates(tokens, cell, multiplicity, names, k, epsilon, question):
            row = {**about, "against": other.name, "as": role, "window": other.window, "metric": name}
            rows.append({**row, "value": estimate, "interval": estimate.interval, "over": count})
    return rows, notes


def _shared(a: Frame, b: Frame, *, common: bool) -> list[tuple[int, int]]:
    """The places of the texts that both have, in the order of the first."""
    places = {entry.key: j for j, entry in enumerate(b.entries)}
    pairs = [(i, places[entry.key]) for i, entry in enumerate(a.entries) if entry.key in places]
    own = {entry.key for entry in a.entries}
    lacking = [entry for entry in a.entries if entry.key not in places]
    lacking += [entry for entry in b.entries if entry.key not in own]
    if lacking and not (common and pairs):
        ids = [entry.sources[0].id if entry.sources else entry.key[:12] for entry in lacking[:3]]
        remedy = "Score the same trajectories with both"
        remedy += ", or take those that both have with --common." if pairs else "."
        raise DataError(
            f"{a.name} and {b.name} share {number_of(len(pairs), 'text')}, and {len(lacking)} are in one alone "
            f"({', '.join(ids)}"
            f"{', …' if len(lacking) > 3 else ''}).\n{remedy}"
        )
    return pairs


# --- one text in one folder -------------------------------------------------------------------------------------------


class _Side:
    """The tokens of one text of a frame: those that count, or (without a mask) all that were scored."""

    def __init__(self, frame: Frame, place: int, mask: np.uint64 | None = None) -> None:
        self.frame, self.place = frame, place
        index = np.arange(frame.bounds[place], frame.bounds[place + 1])
        self.index: IntArray = index if mask is None else index[(frame.label[index] & mask) != 0]
        self.position: IntArray = frame.extra["position"][self.index].astype(np.int64)
        self.logprob: FloatArray = frame.logprob[self.index].astype(np.float64)
        self.start, self.end = (frame.extra[name][self.index].astype(np.int64) for name in ("char_start", "char_end"))

    def hidden(self, position: IntArray) -> FloatArray:
        """How many tokens before each position this short-context pass hides from the model, (n,)."""
        prefix = len((self.frame.signature.get("run") or {}).get("bos") or ())
        return hidden_tokens(position, int(window_of(self.frame.signature) or 0), prefix).astype(np.float64)

    def like(self, other: _Side) -> _Side:
        """Itself, if these are the tokens of `other`; `DataError` if not."""
        if np.array_equal(self.position, other.position):
            return self
        entry = self.frame.entries[self.place]
        name = entry.sources[0].id if entry.sources else entry.key[:12]
        raise DataError(
            f"{other.frame.name} and {self.frame.name} do not score the same tokens: of trajectory {name!r} "
            f"{len(other.position)} and {len(self.position)} count.\n"
            "Score both with the same tokenizer and max_length, or leave out --context own."
        )


def key_tokens(whole: FloatArray, short: FloatArray, hidden: FloatArray) -> npt.NDArray[np.int8]:
    """Which tokens are key tokens of LongPPL: 1, else 0; -1 where the short context hides nothing.

    Args:
        whole, short: ln p of the evaluator with all context and with its window.
        hidden: tokens that the window hides.
    """
    key = (whole - short > ALPHA) & (-whole < BETA)
    return np.where(hidden > 0, key, -1).astype(np.int8)


def _keys(text: _Side, evaluator: Frame, short: _Side) -> npt.NDArray[np.int8]:
    """Key tokens of another model's: a token is key where all its characters are those of key tokens."""
    key = short.frame.entries[short.place].key
    place = next((i for i, entry in enumerate(evaluator.entries) if entry.key == key), None)
    if place is None:
        raise DataError(
            f"{evaluator.name} and {short.frame.name} are not of the same trajectories (first: {key[:12]}).\n"
            "Score the same trajectories with the evaluator's two passes."
        )
    whole = _Side(evaluator, place)
    both, i, j = np.intersect1d(whole.position, short.position, return_indices=True)
    state = key_tokens(whole.logprob[i], short.logprob[j], short.hidden(both))
    size = max(int(text.end.max(initial=0)), int(whole.end.max(initial=0)))
    least = np.full(size, 2, dtype=np.int64)  # 2: no token
    owner, characters = _characters(whole.start[i], whole.end[i])
    np.minimum.at(least, characters, state[owner].astype(np.int64))
    least[least == 2] = -1
    owner, characters = _characters(text.start, text.end)
    result = np.full(len(text.index), 2, dtype=np.int64)
    np.minimum.at(result, owner, least[characters])
    return np.where(result == 2, -1, result).astype(np.int8)


def _characters(start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """Every (token, character) of tokens that cover the characters start to end."""
    length = end - start
    owner = np.repeat(np.arange(len(start)), length)
    first = np.cumsum(length) - length
    return owner, start[owner] + np.arange(len(owner)) - first[owner]


def mean_over_characters(
    start: IntArray, end: IntArray, other_start: IntArray, other_end: IntArray, value: FloatArray
) -> FloatArray:
    """Values of one tokenisation as those of another: the mean over a token's characters.

    Args:
        start, end: characters of n tokens.
        other_start, other_end: characters of m tokens of another tokenisation of the same text.
        value: of each of those, shape (m,); a character that several cover has their mean.

    Returns:
        Shape (n,); over the characters that have a value, NaN where none has.
    """
    size = max(int(end.max(initial=0)), int(other_end.max(initial=0)))
    owner, characters = _characters(other_start, other_end)
    count = np.bincount(characters, minlength=size)
    with np.errstate(invalid="ignore"):
        of_character = np.bincount(characters, value[owner], size) / count
    owner, characters = _characters(start, end)
    has = count[characters] > 0
    owner, characters = owner[has], characters[has]
    with np.errstate(invalid="ignore"):
        return np.asarray(
            np.bincount(owner, of_character[characters], len(start)) / np.bincount(owner, minlength=len(start))
        )


def _decisions(text: _Side, reference: _Side, k: int, epsilon: float) -> npt.NDArray[np.bool_]:
    """Which tokens are in the 𝓗 of the reference."""
    frame, index = reference.frame, reference.like(text).index
    rank = frame.rank[index]
    return np.asarray((frame.entropy[k][index] > epsilon) & (rank >= 1) & (rank <= k))


# --- numbers ----------------------------------------------------------------------------------------------------------


def _estimates(
    tokens: TokenColumns,
    cell: IntArray,
    multiplicity: IntArray,
    names: Sequence[str],
    k: int,
    epsilon: float,
    question: Question,
) -> list[tuple[str, Estimate, int]]:
    """Name, value with interval, and number of tokens; a value over fewer than `min_tokens` is NaN."""
    sums = cell_sums(tokens, cell, len(multiplicity), [epsilon], k, names)[0].repeat(multiplicity)
    options: dict[str, Any] = {"resamples": question.resamples, "seed": question.seed}
    results = []
    for name in names:
        numerator, denominator = (side[:, None] for side in sums.parts(name))
        if name == "rbridge" and tokens.teacher is not None:  # its denominator is a sum of weights
            count = int((~np.isnan(tokens.teacher) * multiplicity[cell]).sum())
        else:
            count = int(denominator.sum())
        estimate = Estimate(math.nan)
        if count >= max(1, question.min_tokens):
            estimate = estimates(numerator, denominator, METRICS[name].scale, **options).rows()[0]
        results.append((name, estimate, count))
        if name == "context_benefit":
            results.append(("context_benefit_median", _median(tokens, cell, multiplicity, count, question), count))
    return results


def _median(tokens: TokenColumns, cell: IntArray, multiplicity: IntArray, count: int, question: Question) -> Estimate:
    """Median context benefit, with the percentile interval of the cluster bootstrap.

    In resamples the median is looked for among 2 001 quantiles of all values: to a two-thousandth of their ranks.
    """
    if count < max(1, question.min_tokens) or tokens.hidden is None or tokens.short_logprob is None:
        return Estimate(math.nan)
    chosen = tokens.hidden > 0
    benefit = np.repeat((tokens.logprob - tokens.short_logprob)[chosen], multiplicity[cell[chosen]])
    value = float(np.median(benefit))
    grid = np.unique(np.quantile(benefit, np.linspace(0, 1, _GRID)))
    place = np.searchsorted(grid, (tokens.logprob - tokens.short_logprob)[chosen], side="left")
    below = np.zeros((len(multiplicity), len(grid)))
    np.add.at(below, (cell[chosen], np.minimum(place, len(grid) - 1)), 1.0)
    below = np.repeat(below.cumsum(axis=1), multiplicity, axis=0)  # tokens of a trajectory at most as large
    if len(below) < 4:
        return Estimate(value)
    counts = resample_counts(len(below), question.resamples, question.seed)
    medians = np.full(len(counts), math.nan)
    for start in range(0, len(counts), 1000):
        totals = counts[start : start + 1000].astype(np.float64) @ below
        half = totals[:, -1:] / 2
        middle = (totals >= half).argmax(axis=1)
        medians[start : start + 1000] = np.where(totals[:, -1] > 0, grid[middle], math.nan)
    low, high = np.nanpercentile(medians, [2.5, 97.5]).tolist()
    return Estimate(value, standard_error(medians), low, high)
