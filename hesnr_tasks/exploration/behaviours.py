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
from typing import Any

import numpy as np

from hesnr_tasks.analysis.tables import interval
from hesnr_tasks.errors import DataError
from hesnr_tasks.exploration import NEIGHBOURS, distances, load_lexicon, prose, sentences
from hesnr_tasks.exploration.entropy_profile import FEWEST_CLUSTERS
from hesnr_tasks.formats import ReadReport, read_trajectories
from hesnr_tasks.passk import listed, pass_at_k
from hesnr_tasks.passk.outcome_files import Query, log_files, read_log
from hesnr_tasks.stats import Estimate, estimates, holm, paired
from hesnr_tasks.trajectory import Kind

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
class AnswerSet:
    """The answers of one checkpoint, and notes on what was left out."""

    name: str
    answers: list[Answer]
    labels: dict[str, str]
    notes: list[str]


# --- reading ----------------------------------------------------------------------------------------------------------


def read_corpus(name: str, paths: Sequence[Path], query: Query) -> AnswerSet:
    """The answers of one checkpoint: of lm-eval sample logs or their folders, or else the thoughts of trajectories.

    Raises:
        DataError: With file and line, for what cannot be read, and where there is no answer.
    """
    logs = log_files(paths, query.task)
    if logs and any(not path.is_dir() and path not in logs for path in paths):
        raise DataError(f"{name}: sample logs and trajectories together; name one kind")
    corpus = AnswerSet(name, [], {}, [])
    answers, notes = corpus.answers, corpus.notes
    for path in logs:
        problems, log_notes = read_log(path, query)
        notes += [f"{name}: {note}" for note in log_notes]
        if missing := [logged.label for logged in problems if not logged.texts]:
            notes.append(f"{name}: no answer to {listed(missing)}")
        for logged in problems:
            corpus.labels.setdefault(logged.problem, logged.label)
            prompt = logged.prompt if isinstance(logged.prompt, str) else json.dumps(logged.prompt, ensure_ascii=False)
            for text, right in zip(logged.texts, logged.right or [None] * len(logged.texts), strict=True):
                answers.append(Answer(logged.problem, text, right, prompt))
    if not logs:
        report = ReadReport()
        for trajectory in read_trajectories([str(path) for path in paths], on_error="skip", report=report):
            problem = trajectory.instance_id or trajectory.id
            messages = [message for message in trajectory.messages if message.generated]
            segments = [segment for message in messages for segment in message.segments if segment.kind is Kind.THOUGHT]
            text = "\n\n".join(segment.text for segment in segments if segment.text.strip())
            corpus.labels[problem] = problem
            answers.append(Answer(problem, text, trajectory.resolved, turns=len(messages)))
        notes += [f"{name}: {line}" for line in report.lines()]
    if not answers:
        raise DataError(f"{name}: there is no answer in {', '.join(map(str, paths))}")
    if unknown := sum(answer.right is None for answer in answers):
        notes.append(
            f"{name}: of {unknown} of {len(answers)} answers it is not known whether they are right; they count "
            "as neither right nor wrong (our Pass@K tasks log a verdict an answer)"
        )
    if empty := sum(not answer.text.strip() for answer in answers):
        notes.append(f"{name}: {empty} of {len(answers)} answers are empty; they count, with no words")
    return corpus


# --- measures of one text ---------------------------------------------------------------------------------------------


def measure(corpus: AnswerSet) -> None:
    """Fill in every measure but `rare`, for all answers."""
    lexicon = load_lexicon()
    by_problem: dict[str, list[tuple[Answer, set[tuple[str, ...]]]]] = defaultdict(list)
    for answer in corpus.answers:
        flat = prose(answer.text)
        split = sentences(flat)
        pairs, fours = _ngrams(answer.text, 2), _ngrams(answer.text, 4)
        paragraphs = sum(bool(part.strip()) for part in _PARAGRAPH.split(answer.text))
        answer.values |= {
            "words": float(len(answer.text.split())),
            "steps": float(paragraphs if answer.turns is None else answer.turns),
            "sentences": float(len(split)),
            "reflective": _percent(sum(bool(lexicon.reflects(flat, s)) for s in split), len(split)),
            "pivotal": _percent(sum(len(lexicon.hits(flat, s)) for s in split), sum(len(s.words) for s in split)),
            "distinct": _percent(len(set(pairs)), len(pairs)),
            "repetition": _percent(len(fours) - len(set(fours)), len(fours)),
            "unlike": math.nan,
            "rare": math.nan,
        }
        by_problem[answer.problem].append((answer, set(fours)))
    for answers in by_problem.values():
        holders = Counter(ngram for _, ngrams in answers for ngram in ngrams)
        for answer, ngrams in answers if len(answers) > 1 else ():
            answer.values["unlike"] = _percent(sum(holders[ngram] == 1 for ngram in ngrams), len(ngrams))


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else math.nan


def rarity(corpora: Sequence[AnswerSet], reference: AnswerSet) -> str:
    """Fill in `rare`: sentences unlike those of a reference (whose own farthest tenth sets the limit), in per cent.

    Returns a note on how it was measured. Raises `DataError` where the reference has too few sentences.
    """
    base = [text for answer in reference.answers for text in _sentence_texts(answer)]
    own = distances(base)
    if not len(own) or np.isnan(own).any():
        raise DataError(f"--reference {reference.name}: fewer than {NEIGHBOURS + 1} sentences of three words or more")
    limit = float(np.quantile(own, 0.9))
    for corpus in corpora:
        texts = [_sentence_texts(answer) for answer in corpus.answers]
        # the reference's own answers: a sentence is no neighbour of its own
        apart = own if corpus is reference else distances(list(itertools.chain(*texts)), base)
        ends = list(itertools.accumulate(map(len, texts), initial=0))
        for answer, start, end in zip(corpus.answers, ends, ends[1:], strict=False):
            answer.values["rare"] = _percent(int((apart[start:end] > limit).sum()), end - start)
    return (
        f"rare: farther from its {NEIGHBOURS} nearest of {len(base)} sentences of {reference.name} "
        f"(TF-IDF) than {limit:.3f}, as {np.mean(own > limit):.0%} of its own are"
    )


def _sentence_texts(answer: Answer) -> list[str]:
    return [sentence.text for sentence in sentences(prose(answer.text)) if len(sentence.words) >= _SHORTEST]


# --- means over problems, and differences -----------------------------------------------------------------------------


def problem_means(corpus: AnswerSet, name: str, outcome: str = "all") -> dict[str, float]:
    """Problem → mean of a measure over its answers (`outcome`: all, right or wrong); problems without such are not
    there.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for answer in corpus.answers:
        value = answer.values[name]
        if not math.isnan(value) and (outcome == "all" or answer.right is (outcome == "right")):
            values[answer.problem].append(value)
    return {problem: math.fsum(some) / len(some) for problem, some in values.items()}


def mean_of(means: Iterable[float], resamples: int, seed: int) -> Estimate:
    """Mean over problems; the value alone for fewer than `FEWEST_CLUSTERS` problems, or where all are equal."""
    values = np.array(sorted(means), dtype=np.float64)[:, None]
    if len(values) < FEWEST_CLUSTERS or np.ptp(values) == 0:
        return Estimate(math.fsum(values[:, 0]) / len(values) if len(values) else math.nan)
    columns = estimates(values, np.ones_like(values), resamples=resamples, seed=seed)
    return Estimate(*(float(column[0]) for column in columns))


def difference_of(
    a: Mapping[str, float], b: Mapping[str, float], resamples: int, seed: int
) -> tuple[Estimate, float, int]:
    """The mean over the problems that both have of `b` less `a`, paired; its p-value; the number of problems.

    The value alone for fewer than `FEWEST_CLUSTERS` problems, or where all differ by the same amount.
    """
    shared = sorted(a.keys() & b.keys())
    left, right = (np.array([side[problem] for problem in shared]) for side in (a, b))
    if len(shared) < FEWEST_CLUSTERS or np.ptp(right - left) == 0:
        mean = math.fsum(right - left) / len(shared) if shared else math.nan
        return Estimate(mean), math.nan, len(shared)
    ones = np.ones(len(shared))
    test = paired((left, ones), (right, ones), resamples=resamples, seed=seed)
    return Estimate(test.value, test.stderr, test.ci_low, test.ci_high), test.p, len(shared)


def compared(
    pairs: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]], resamples: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and row of a table of each pair of means by problem; p-values are corrected by Holm's method over all."""
    tests = {name: difference_of(a, b, resamples, seed) for name, (a, b) in pairs.items()}
    corrected = holm({name: p for name, (_, p, _) in tests.items()})
    for name, (value, p, n) in tests.items():
        row = {"difference": value, "interval": interval(value), "p": p, "p_holm": corrected[name], "problems": n}
        yield name, row


# --- Pass@K at matched length -----------------------------------------------------------------------------------------


_Strata = dict[int, tuple[int, int, float]]  # bin of length → answers, wrong ones, words in all


def matched_passk(a: AnswerSet, b: AnswerSet, ks: Sequence[int], resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    """Is a better Pass@k more than longer answers?

    Within each problem and each bin of length (lengths in a bin differ by less than a quarter) as many answers of
    either are kept as the scarcer has. Which ones, would be a random choice; the mean over all choices is computed
    exactly. Answers of unknown outcome are left out.
    """
    sides: list[dict[str, _Strata]] = []
    for corpus in (a, b):
        strata: dict[str, _Strata] = defaultdict(dict)
        for answer in corpus.answers:
            if answer.right is not None:
                words = answer.values["words"]
                bin_ = math.floor(math.log(words + 1) / math.log(_RATIO))
                n, wrong, total = strata[answer.problem].get(bin_, (0, 0, 0.0))
                strata[answer.problem][bin_] = (n + 1, wrong + (not answer.right), total + words)
        sides.append(strata)
    left, right = sides
    shared = sorted(left.keys() & right.keys())
    kept = {
        problem: {
            bin_: min(left[problem][bin_][0], right[problem][bin_][0])
            for bin_ in left[problem].keys() & right[problem].keys()
        }
        for problem in shared
    }
    for k in ks:
        usable = [problem for problem in shared if sum(kept[problem].values()) >= k]
        raw = [{problem: _raw_pass(side[problem], k) for problem in usable} for side in sides]
        matched = [{problem: _matched_pass(side[problem], kept[problem], k) for problem in usable} for side in sides]
        all_of, _, _ = difference_of(raw[0], raw[1], resamples, seed)
        alike, p, _ = difference_of(matched[0], matched[1], resamples, seed)
        answers = sum(n for side in sides for problem in usable for n, _, _ in side[problem].values())
        pairs = sum(sum(kept[problem].values()) for problem in usable)
        words, words_other = (
            sum(m * side[p][bin_][2] / side[p][bin_][0] for p in usable for bin_, m in kept[p].items()) / max(1, pairs)
            for side in sides
        )
        row: dict[str, Any] = {"k": k, "difference": all_of, "interval": interval(all_of), "matched": alike}
        row |= {"matched_interval": interval(alike), "p": p, "problems": len(usable)}
        row |= {"left_out": len(shared) - len(usable), "used": 2 * pairs / answers if answers else math.nan}
        yield row | {"words": words, "words_other": words_other}


def _raw_pass(strata: _Strata, k: int) -> float:
    n, wrong = sum(n for n, _, _ in strata.values()), sum(wrong for _, wrong, _ in strata.values())
    return pass_at_k(n, n - wrong, k)


def _matched_pass(strata: _Strata, kept: Mapping[int, int], k: int) -> float:
    """1 less the chance that k of the kept answers, drawn at random, are all wrong.

    Of k answers k_j fall into bin j with the multivariate hypergeometric weight Π C(m_j, k_j) / C(Σ m, k), and k_j of
    m_j of n_j answers, drawn at random, are k_j of n_j: all wrong with chance C(w_j, k_j) / C(n_j, k_j).
    """
    weights = np.zeros(k + 1)
    weights[0] = 1.0
    for bin_, m in kept.items():
        n, wrong, _ = strata[bin_]
        own = [math.comb(m, j) * math.comb(wrong, j) / math.comb(n, j) for j in range(min(k, m) + 1)]
        weights = np.convolve(weights, own)[: k + 1]
    return min(1.0, max(0.0, 1 - float(weights[k]) / math.comb(sum(kept.values()), k)))
