"""Where reasoning explores: the entropy of pivotal words, reflective sentences and rare sentences, against controls.

After "Reasoning with Exploration: An Entropy Perspective" (arXiv 2506.14758), which finds high entropy at logical
connectives, at self-verification and at rare sentences. Connectives open clauses, though, where entropy is high
anyway; so each difference is also given within cells of equal position, word frequency and turn.

Here: the words and sentences of what an agent writes. Code is found first and never read as words. Offsets are
characters of the text given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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
