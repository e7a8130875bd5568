"""Where reasoning explores: the entropy of pivotal words, reflective sentences and rare sentences, against controls.

After "Reasoning with Exploration: An Entropy Perspective" (arXiv 2506.14758), which finds high entropy at logical
connectives, at self-verification and at rare sentences. Connectives open clauses, though, where entropy is high
anyway; so each difference is also given within cells of equal position, word frequency and turn.

Here: the words and sentences of what an agent writes (code is found first and never read as words; offsets are
characters of the text given), and what models write, measured on their own answers: length, steps, reflection, pivotal
words, repetition, rarity. The paper reports longer and deeper chains, more reflection and behaviours rare for the base
model. An answer is one generated text of an lm-eval sample log, or the thoughts of a trajectory. Problems are what is
averaged over and resampled: each counts with the mean over its answers.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.tables import interval
from hesnr_tasks.errors import DataError, listed
from hesnr_tasks.formats import ReadReport, read_trajectories
from hesnr_tasks.passk import Query, log_files, pass_at_k, read_log
from hesnr_tasks.stats import Estimate, estimates, holm, paired
from hesnr_tasks.trajectory import Kind

# --- sentences and words of what an agent writes: prose with code spans, paths, lists and headings in it --------------

CODE = "\ue000"  # stands for each character of code


class Word(NamedTuple):
    """A word, lower-cased; how many words stand before it in its sentence and in its clause."""

    start: int
    end: int
    text: str
    place: int
    clause: int
    gap: str  # what stands between the word before and this one, code as `CODE`


class Sentence(NamedTuple):
    """Characters `start` to `end`, and the words there; `place`: sentences before it in the text."""

    start: int
    end: int
    place: int
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The words, separated by spaces, and ` for each piece of code before one."""
        return " ".join("` " + word.text if CODE in word.gap else word.text for word in self.words)


_OPENER = r"(?:The|This|That|These|We|I|It|Let|Now|Since|Given|To|In|All|If|So|But|However|Next|First|Then|There|Our)\b"
_CODE = re.compile(
    r"""
    (?P<fence>^[ \t]*(```+|~~~+).*?(?:^[ \t]*\2[ \t]*$|\Z))        # fenced block
  | (?P<tick>`+)(?!`)[^\n]*?(?<!`)(?P=tick)(?!`)                    # code span
  | ^[ \t]*(?:>>>|\$[ ]|@@[ ]|diff[ ]--git|\+\+\+[ ]|---[ ]|File[ ]")[^\n]*  # prompt, diff, traceback
  | </?[A-Za-z_][^<>\n]{0,200}>                                     # tag
  | \w+://\S+                                                       # address
  | (?<![\w/])(?:~|\.{1,2})?/[\w.@*-]*\w(?:/[\w.@*-]*)*             # /absolute, ./relative
  | \w[\w.@-]*(?:/[\w.@*-]+)*/\w[\w@-]*\.\w+ | \w+(?:/\w+){2,}/?    # a/b.py, a/b/c
  | [A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\((?!e?s\))[^()\n]*\)            # call(…), but not file(s)
  | (?<!\w)(?!(?:e\.g|i\.e)\b)[A-Za-z_]\w*(?:\.(?!OPENER)[A-Za-z_]\w*)+  # dotted.name, file.py
  | (?<!\w)(?:[^\W_]+_|_)\w+                                        # snake_case, _private
  | (?<!\w)[a-z]*(?:[A-Z][a-z0-9]+){2,}\w*                          # CamelCase
  | (?<![\w-])--?[A-Za-z][\w-]*(?:=\S+)? | \$\w+                    # -f, --flag=…, $NAME
    """.replace("OPENER", _OPENER),
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_LINE = re.compile(r"[^\n]*\n?")
_MARKER = re.compile(r"[ \t]*(?:(?:[-*+•‣>]|#{1,6}|\(?\d{1,3}[.)]|\(?[a-z]\))[ \t]+)+")
_JOINED = rf"(?<=[a-z{CODE})][.!?])(?={_OPENER})"  # the space was forgotten
_END = re.compile(rf"[.!?…]+[\"'”’)\]*_]*(?:\s+|{_JOINED})|[。！？]+[”’」』）]*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CLAUSE = re.compile(r"[,;:()\[\]!?.…—–\"“”]|\s-+\s")
_SHORT = frozenset(("e.g", "i.e", "vs", "cf", "mr", "mrs", "dr", "fig", "eq", "approx", "resp", "incl"))
_OPENERS = "\"'“‘([*_"


def prose(text: str) -> str:
    """`text` with the code in it masked; of the same length, so offsets stay as they were."""
    return _CODE.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    # a path or name at the end of a sentence does not swallow the full stop
    code = match[0] if match["fence"] or match["tick"] else match[0].rstrip(".")
    return re.sub(r"[^\n]", CODE, code) + match[0][len(code) :]


def sentences(flat: str) -> list[Sentence]:
    """The sentences of one stretch of `prose` that have a word; a list item or heading is one or several of its own."""
    result: list[Sentence] = []
    for start, block_end in _blocks(flat):
        for match in _END.finditer(flat, start, block_end):
            if _ends(flat, start, match, block_end):
                _append(result, flat, start, match.end())
                start = match.end()
        _append(result, flat, start, block_end)
    return result


def _append(result: list[Sentence], flat: str, start: int, end: int) -> None:
    """A sentence between these characters, without the space around it, if it has a word."""
    piece = flat[start:end]
    start, end = start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
    if words := tuple(_words(flat, start, end)):
        result.append(Sentence(start, end, len(result), words))


def _blocks(flat: str) -> Iterator[tuple[int, int]]:
    """Paragraphs, list items and headings. A line that goes on in lower case belongs to the one before it."""
    start = end = -1
    for match in _LINE.finditer(flat):
        line = match[0]
        marker = _MARKER.match(line)
        body = match.start() + (marker.end() if marker else 0)
        ending = flat[start:end].rstrip()[-1:] if start >= 0 else ""
        goes_on = start >= 0 and not marker and line.lstrip()[:1].islower() and ending not in (*".!?:", CODE)
        if not goes_on and start >= 0:
            yield start, end
            start = -1
        if line.strip():
            start, end = (start if goes_on else body), match.end()
    if start >= 0:
        yield start, end


def _ends(flat: str, start: int, match: re.Match[str], end: int) -> bool:
    """Whether the sentence that began at `start` ends with this full stop."""
    if match[0][0] in "。！？":
        return True
    rest = flat[match.end() : min(end, match.end() + 8)].lstrip(_OPENERS)
    if not rest or rest[0].islower():
        return not rest
    before = flat[start : match.start()].rsplit(None, 1)[-1:]
    last = before[0].lstrip(_OPENERS).lower() if before else ""
    return match[0][0] != "." or not (last in _SHORT or (len(last) == 1 and last.isalpha() and last != "i"))


def _words(flat: str, start: int, end: int) -> Iterator[Word]:
    place = clause = 0
    last = start
    for match in _WORD.finditer(flat, start, end):
        gap = flat[last : match.start()]
        if CODE in gap:  # code has its place in the sentence as a word has
            place, clause = place + 1, clause + 1
        if _CLAUSE.search(gap.rsplit(CODE, 1)[-1]):
            clause = 0
        yield Word(match.start(), match.end(), match[0].lower().replace("’", "'"), place, clause, gap)
        place, clause, last = place + 1, clause + 1, match.end()


# --- the shipped lexicon: which words are pivotal, and which sentences reflect ----------------------------------------

_NONE = "none"
_JOINERS = ("and", "or", "but")
_BETWEEN = re.compile(r"[ \t\n*_-]*")  # within a phrase: no comma, no code


class _Phrase(NamedTuple):
    words: tuple[str, ...]
    group: str
    head: int  # the word that is measured
    opens: bool  # only where a clause begins
    comma: bool  # only before a comma


class PivotalWord(NamedTuple):
    """A pivotal word: its place among the words of its sentence, and its group."""

    word: int
    group: str


class Lexicon:
    """Words and sentences to look for; `groups` and `kinds` name them, `version` is that of the file."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.version = str(content["version"])
        self.groups = tuple(name for name in content["words"] if name != _NONE)
        self.kinds = tuple(content["sentences"])
        self._phrases: dict[str, list[_Phrase]] = {}  # by first word, the longest first
        for group, entries in content["words"].items():
            for entry in entries:
                parts = entry.strip("^,").split()
                head = next((i for i, part in enumerate(parts) if part.startswith("|")), 0)
                words = tuple(part.lstrip("|") for part in parts)
                phrase = _Phrase(words, group, head, entry.startswith("^"), entry.endswith(","))
                self._phrases.setdefault(words[0], []).append(phrase)
        for phrases in self._phrases.values():
            phrases.sort(key=lambda phrase: -len(phrase.words))
        self._patterns = {kind: re.compile("|".join(some)) for kind, some in content["sentences"].items()}

    def hits(self, flat: str, sentence: Sentence) -> list[PivotalWord]:
        """The pivotal words of a sentence of `flat` (`text.prose`), in order."""
        words, hits, i = sentence.words, [], 0
        while i < len(words):
            phrases = self._phrases.get(words[i].text, ())
            phrase = next((phrase for phrase in phrases if _fits(phrase, flat, words, i)), None)
            if phrase is not None and phrase.group != _NONE:
                hits.append(PivotalWord(i + phrase.head, phrase.group))
            i += len(phrase.words) if phrase else 1
        return hits

    def reflects(self, flat: str, sentence: Sentence) -> tuple[str, ...]:
        """The kinds of reflection that a sentence of `flat` shows; most show none."""
        line = re.sub(rf"{CODE}+", "`", flat[sentence.start : sentence.end].lower().replace("’", "'"))
        line = re.sub(r"\s+", " ", line)
        return tuple(kind for kind, pattern in self._patterns.items() if pattern.search(line))


def _fits(phrase: _Phrase, flat: str, words: Sequence[Word], start: int) -> bool:
    here = words[start : start + len(phrase.words)]
    if tuple(word.text for word in here) != phrase.words:
        return False
    if phrase.opens and here[0].clause > 0 and not (start and words[start - 1].text in _JOINERS):
        return False
    if phrase.comma and flat[here[-1].end : here[-1].end + 1] != ",":
        return False
    return all(_BETWEEN.fullmatch(word.gap) for word in here[1:])


@lru_cache
def load_lexicon() -> Lexicon:
    """The shipped lexicon of pivotal words and reflective sentences."""
    return Lexicon(json.loads(Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8")))


# --- how unlike others a sentence is: the mean cosine distance to its nearest neighbours, by TF-IDF -------------------

FloatArray = npt.NDArray[np.float64]
NEIGHBOURS = 5
FEWEST_CLUSTERS = 8  # trajectories, or problems: with fewer, intervals are withheld
REFERENCES = 10_000
_SHARE = 0.1


def distances(texts: Sequence[str], reference: Sequence[str] | None = None) -> FloatArray:
    """Mean cosine distance of each text (words separated by spaces) to its `NEIGHBOURS` nearest neighbours by TF-IDF.

    `reference`: among which neighbours are sought, and whose term frequencies weigh; None: among the other texts. Of
    more than `REFERENCES` so many are drawn.

    Returns:
        Shape (n,), in [0, 1]; NaN where there are too few.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    own = reference is None
    corpus = texts if reference is None else reference
    if not len(texts) or len(corpus) < NEIGHBOURS + own:
        return np.full(len(texts), np.nan)
    rows = np.arange(len(corpus))
    if len(corpus) > REFERENCES:
        rows = np.sort(np.random.default_rng(0).permutation(len(corpus))[:REFERENCES])
    terms = TfidfVectorizer(lowercase=False, token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True)
    of_corpus = terms.fit_transform(corpus)
    of_texts = of_corpus if own else terms.transform(texts)
    search = NearestNeighbors(n_neighbors=NEIGHBOURS + own, metric="cosine", algorithm="brute").fit(of_corpus[rows])
    apart, nearest_rows = search.kneighbors(of_texts)
    if own:  # a text is no neighbour of its own; where equal texts crowd it out, all of these are at distance 0
        itself = rows[nearest_rows] == np.arange(len(texts))[:, None]
        itself[~itself.any(axis=1), -1] = True
        apart = apart[~itself].reshape(len(texts), NEIGHBOURS)
    return np.clip(apart.mean(axis=1, dtype=np.float64), 0.0, None)


def rare(apart: FloatArray) -> npt.NDArray[np.bool_]:
    """Which texts are of the tenth with the greatest distances; ties at the limit are not, NaN never."""
    finite = apart[~np.isnan(apart)]
    if not len(finite):
        return np.zeros(len(apart), dtype=bool)
    limit = np.sort(finite)[::-1][int(_SHARE * len(finite))]  # the first one beyond the share
    return np.nan_to_num(apart, nan=-np.inf) > limit


# --- what models write, measured on their own answers -----------------------------------------------------------------

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
        raise DataError(f"{name}: there is no answer in it. Name a log of lm_eval --log_samples, or trajectories.")
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
    return estimates(values, np.ones_like(values), resamples=resamples, seed=seed)[0]


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
