"""What models write, measured on their own answers: length, steps, reflection, pivotal words, repetition, rarity.

After arXiv 2506.14758, which reports longer and deeper chains, more reflection and behaviours rare for the base model.
An answer is one generated text of an lm-eval sample log, or the thoughts of a trajectory. Problems are what is averaged
over and resampled: each counts with the mean over its answers.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError
from hesnr_tasks.exploration.contrast import FEWEST
from hesnr_tasks.exploration.text import (
    CODE,
    NEIGHBOURS,
    Embed,
    Lexicon,
    Sentence,
    distances,
    load_lexicon,
    prose,
    sentences,
)
from hesnr_tasks.formats import ReadReport, read_trajectories
from hesnr_tasks.passk.estimator import listed
from hesnr_tasks.passk.outcome_files import Query, log_files, read_log
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, estimates, holm, paired
from hesnr_tasks.trajectory import Kind

__all__ = [
    "MEASURES",
    "OUTCOMES",
    "Answer",
    "Corpus",
    "Difference",
    "Matched",
    "compared",
    "difference_of",
    "matched_passk",
    "mean_of",
    "measure",
    "problem_means",
    "rarity",
    "read_corpus",
]

FloatArray = npt.NDArray[np.float64]
MEASURES: Mapping[str, str] = {
    "words": "words separated by white space",
    "steps": "paragraphs and list items; of a trajectory: turns",
    "sentences": "sentences of prose, code left out",
    "reflective": "reflective sentences, in per cent of sentences",
    "pivotal": "pivotal words, in per cent of words of prose",
    "distinct": "different pairs of neighbouring words, in per cent of pairs",
    "repetition": "words in fours that the answer had before, in per cent of fours",
    "unlike": "different fours of words that no other answer to the problem has, in per cent",
    "rare": "sentences farther from the reference's than its own farthest tenth, in per cent of sentences",
}
OUTCOMES = ("all", "right", "wrong")
_SHORTEST = 3  # words of a sentence that can be rare
_RATIO = 1.25  # lengths within one bin differ by less than this factor
_PARAGRAPH = re.compile(r"\n[ \t]*\n|\n(?=[ \t]*(?:[-*+•]|#{1,6}|\(?\d{1,3}[.)])[ \t])")


@dataclass(slots=True)
class Answer:
    """One text a model wrote. `right`: None where it is not known."""

    problem: str
    text: str
    right: bool | None
    prompt: str = ""
    turns: int | None = None  # of a trajectory
    values: dict[str, float] = field(default_factory=dict)  # measure → value; NaN: not defined


@dataclass(frozen=True, slots=True)
class Corpus:
    """The answers of one checkpoint, and notes on what was left out."""

    name: str
    answers: list[Answer]
    labels: dict[str, str]
    notes: list[str]


# --- reading ----------------------------------------------------------------------------------------------------------


def read_corpus(name: str, paths: Sequence[Path], query: Query, kinds: Sequence[Kind]) -> Corpus:
    """The answers in lm-eval sample logs, or the text of `kinds` in trajectories.

    Raises:
        DataError: With file and line, for what cannot be read, and where there is no answer.
    """
    logs = log_files(paths, query.task)
    if logs and any(not path.is_dir() and path not in logs for path in paths):
        raise DataError(f"{name}: sample logs and trajectories together; name one kind")
    corpus = _of_logs(name, logs, query) if logs else _of_trajectories(name, paths, kinds)
    if not corpus.answers:
        raise DataError(f"{name}: there is no answer in {', '.join(map(str, paths))}")
    unknown = sum(answer.right is None for answer in corpus.answers)
    if unknown:
        corpus.notes.append(
            f"{name}: of {unknown} of {len(corpus.answers)} answers it is not known whether they are right; they count "
            "as neither right nor wrong (our Pass@K tasks log a verdict an answer)"
        )
    empty = sum(not answer.text.strip() for answer in corpus.answers)
    if empty:
        corpus.notes.append(f"{name}: {empty} of {len(corpus.answers)} answers are empty; they count, with no words")
    return corpus


def _of_logs(name: str, paths: Sequence[Path], query: Query) -> Corpus:
    answers, labels, notes = [], dict[str, str](), list[str]()
    for path in paths:
        problems, told = read_log(path, query)
        notes += [f"{name}: {note}" for note in told]
        missing = [logged.label for logged in problems if not logged.texts]
        if missing:
            notes.append(f"{name}: no answer to {listed(missing)}")
        for logged in problems:
            labels.setdefault(logged.problem, logged.label)
            prompt = logged.prompt if isinstance(logged.prompt, str) else json.dumps(logged.prompt, ensure_ascii=False)
            for text, right in zip(logged.texts, logged.right or [None] * len(logged.texts), strict=True):
                answers.append(Answer(logged.problem, text, right, prompt))
    return Corpus(name, answers, labels, notes)


def _of_trajectories(name: str, paths: Sequence[Path], kinds: Sequence[Kind]) -> Corpus:
    answers, labels, report = [], dict[str, str](), ReadReport()
    for trajectory in read_trajectories([str(path) for path in paths], on_error="skip", report=report):
        problem = trajectory.instance_id or trajectory.id
        written = [message for message in trajectory.messages if message.generated]
        text = "\n\n".join(
            s.text for message in written for s in message.segments if s.kind in kinds and s.text.strip()
        )
        labels[problem] = problem
        answers.append(Answer(problem, text, trajectory.resolved, turns=len(written)))
    notes = [f"{name}: {line}" for line in report.lines()]
    return Corpus(name, answers, labels, notes)


# --- measures of one text ---------------------------------------------------------------------------------------------


def measure(corpus: Corpus, lexicon: Lexicon | None = None) -> None:
    """Fill in every measure but `rare`, for all answers."""
    lexicon = lexicon or load_lexicon()
    by_problem: dict[str, list[Answer]] = defaultdict(list)
    for answer in corpus.answers:
        answer.values |= _measured(answer, lexicon)
        by_problem[answer.problem].append(answer)
    for answers in by_problem.values():
        grams = [set(_grams(answer.text, 4)) for answer in answers]
        holders = Counter(gram for some in grams for gram in some)
        for answer, some in zip(answers, grams, strict=True):
            alone = sum(holders[gram] == 1 for gram in some)
            answer.values["unlike"] = _percent(alone, len(some)) if len(answers) > 1 else math.nan


def _measured(answer: Answer, lexicon: Lexicon) -> dict[str, float]:
    flat = prose(answer.text)
    found = sentences(flat)
    words = sum(len(sentence.words) for sentence in found)
    pairs, fours = _grams(answer.text, 2), _grams(answer.text, 4)
    paragraphs = sum(bool(part.strip()) for part in _PARAGRAPH.split(answer.text))
    return {
        "words": float(len(answer.text.split())),
        "steps": float(paragraphs if answer.turns is None else answer.turns),
        "sentences": float(len(found)),
        "reflective": _percent(sum(bool(lexicon.reflects(flat, s)) for s in found), len(found)),
        "pivotal": _percent(sum(len(lexicon.hits(flat, s)) for s in found), words),
        "distinct": _percent(len(set(pairs)), len(pairs)),
        "repetition": _percent(len(fours) - len(set(fours)), len(fours)),
        "unlike": math.nan,
        "rare": math.nan,
    }


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(*(words[i:] for i in range(n)), strict=False)) if len(words) >= n else []


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else math.nan


def rarity(corpora: Sequence[Corpus], reference: Corpus, embed: Embed | None = None) -> str:
    """Fill in `rare`, relative to what the reference writes; returns a note on how."""
    base = [text for answer in reference.answers for text in _texts(answer)]
    own = distances(base, embed=embed)
    if not len(own) or np.isnan(own).any():
        raise DataError(f"--reference {reference.name}: fewer than {NEIGHBOURS + 1} sentences of three words or more")
    limit = float(np.quantile(own, 0.9))
    for corpus in corpora:
        texts = [_texts(answer) for answer in corpus.answers]
        # the reference's own answers: a sentence is no neighbour of its own
        flat = [text for some in texts for text in some]
        apart = own if corpus is reference else distances(flat, base, embed=embed)
        ends = list(itertools.accumulate(map(len, texts), initial=0))
        for answer, start, end in zip(corpus.answers, ends, ends[1:], strict=False):
            answer.values["rare"] = _percent(int((apart[start:end] > limit).sum()), end - start)
    return (
        f"rare: farther from its {NEIGHBOURS} nearest of {len(base)} sentences of {reference.name} "
        f"({'embeddings' if embed else 'TF-IDF'}) than {limit:.3f}, as {np.mean(own > limit):.0%} of its own are"
    )


def _texts(answer: Answer) -> list[str]:
    found = sentences(prose(answer.text))
    return [_shown(sentence) for sentence in found if len(sentence.words) >= _SHORTEST]


def _shown(sentence: Sentence) -> str:
    return " ".join("` " + word.text if CODE in word.gap else word.text for word in sentence.words)


# --- means over problems, and differences -----------------------------------------------------------------------------


def problem_means(corpus: Corpus, name: str, outcome: str = "all") -> dict[str, float]:
    """Problem → mean of a measure over its answers of an outcome; problems without such answers are not there."""
    values: dict[str, list[float]] = defaultdict(list)
    for answer in corpus.answers:
        value = answer.values[name]
        if not math.isnan(value) and (outcome == "all" or answer.right is (outcome == "right")):
            values[answer.problem].append(value)
    return {problem: math.fsum(some) / len(some) for problem, some in values.items()}


def mean_of(means: Iterable[float], resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Mean over problems, standard error (bootstrap over problems) and 95 % interval (none of fewer than `FEWEST`)."""
    values = np.array(sorted(means), dtype=np.float64)[:, None]
    if not len(values):
        return Estimate(math.nan)
    if len(values) < FEWEST or np.ptp(values) == 0:
        return Estimate(math.fsum(values[:, 0]) / len(values))
    made = estimates(values, np.ones_like(values), resamples=resamples, seed=seed)
    return Estimate(*(float(column[0]) for column in made))


class Difference(NamedTuple):
    """`b` less `a` over the problems both have, paired. `p` is NaN where there is no interval."""

    value: Estimate
    p: float
    problems: int


def difference_of(
    a: Mapping[str, float], b: Mapping[str, float], resamples: int = RESAMPLES, seed: int = SEED
) -> Difference:
    """The difference of two sets of problem means."""
    shared = sorted(a.keys() & b.keys())
    left, right = (np.array([side[problem] for problem in shared]) for side in (a, b))
    if not shared:
        return Difference(Estimate(math.nan), math.nan, 0)
    if len(shared) < FEWEST or np.ptp(right - left) == 0:
        return Difference(Estimate(math.fsum(right - left) / len(shared)), math.nan, len(shared))
    ones = np.ones(len(shared))
    made = paired((left, ones), (right, ones), resamples=resamples, seed=seed)
    return Difference(Estimate(made.value, made.stderr, made.ci_low, made.ci_high), made.p, len(shared))


def compared(
    pairs: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]], resamples: int, seed: int
) -> Iterator[tuple[str, Difference, float]]:
    """Name, difference and Holm's p-value, corrected over all of them."""
    made = {name: difference_of(a, b, resamples, seed) for name, (a, b) in pairs.items()}
    corrected = holm({name: difference.p for name, difference in made.items()})
    yield from ((name, difference, corrected[name]) for name, difference in made.items())


# --- Pass@K at matched length -----------------------------------------------------------------------------------------


class Matched(NamedTuple):
    """Pass@k of two checkpoints on the same problems, with all their answers and with answers of equal length."""

    k: int
    problems: int
    left_out: int  # problems with fewer than k pairs of equal length
    used: float  # share of the answers to `problems` that have a partner
    words: tuple[float, float]  # mean length of the matched answers
    raw: Difference
    matched: Difference


def matched_passk(
    a: Corpus, b: Corpus, ks: Sequence[int], resamples: int = RESAMPLES, seed: int = SEED
) -> Iterator[Matched]:
    """Is a better Pass@k more than longer answers?

    Within each problem and each bin of length (lengths in a bin differ by less than a quarter) as many answers of
    either are kept as the scarcer has. Which ones, would be a draw; the mean over all draws is computed exactly.
    """
    sides = [_strata(corpus) for corpus in (a, b)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    kept = {problem: _kept(sides[0][problem], sides[1][problem]) for problem in shared}
    for k in ks:
        usable = [problem for problem in shared if sum(kept[problem].values()) >= k]
        values = [
            {problem: chance(side[problem], kept[problem], k) for problem in usable}
            for side in sides
            for chance in (_raw_pass, _matched_pass)
        ]
        answers = sum(n for side in sides for problem in usable for n, _, _ in side[problem].values())
        pairs = sum(sum(kept[problem].values()) for problem in usable)
        words = [
            sum(m * side[p][bin_][2] / side[p][bin_][0] for p in usable for bin_, m in kept[p].items()) / max(1, pairs)
            for side in sides
        ]
        yield Matched(
            k,
            len(usable),
            len(shared) - len(usable),
            2 * pairs / answers if answers else math.nan,
            (words[0], words[1]),
            difference_of(values[0], values[2], resamples, seed),
            difference_of(values[1], values[3], resamples, seed),
        )


_Strata = dict[int, tuple[int, int, float]]  # bin of length → answers, wrong ones, words in all


def _strata(corpus: Corpus) -> dict[str, _Strata]:
    found: dict[str, _Strata] = defaultdict(dict)
    for answer in corpus.answers:
        if answer.right is not None:
            words = answer.values["words"]
            bin_ = math.floor(math.log(words + 1) / math.log(_RATIO))
            n, wrong, total = found[answer.problem].get(bin_, (0, 0, 0.0))
            found[answer.problem][bin_] = (n + 1, wrong + (not answer.right), total + words)
    return found


def _kept(a: _Strata, b: _Strata) -> dict[int, int]:
    return {bin_: min(a[bin_][0], b[bin_][0]) for bin_ in a.keys() & b.keys()}


def _raw_pass(strata: _Strata, kept: Mapping[int, int], k: int) -> float:
    n, wrong = sum(row[0] for row in strata.values()), sum(row[1] for row in strata.values())
    return 1 - math.comb(wrong, k) / math.comb(n, k)


def _matched_pass(strata: _Strata, kept: Mapping[int, int], k: int) -> float:
    """1 less the chance that k of the kept answers, drawn at random, are all wrong.

    Of k answers k_j fall into bin j with the multivariate hypergeometric weight Π C(m_j, k_j) / C(Σ m, k), and k_j of
    m_j of n_j answers, drawn at random, are k_j of n_j: all wrong with chance C(w_j, k_j) / C(n_j, k_j).
    """
    ways = np.zeros(k + 1)
    ways[0] = 1.0
    for bin_, m in kept.items():
        n, wrong, _ = strata[bin_]
        own = [math.comb(m, j) * math.comb(wrong, j) / math.comb(n, j) for j in range(min(k, m) + 1)]
        ways = np.convolve(ways, own)[: k + 1]
    return min(1.0, max(0.0, 1 - float(ways[k]) / math.comb(sum(kept.values()), k)))
