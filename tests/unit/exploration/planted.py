"""Score files of made-up agent prose in which we decide how entropy depends on words, places and trajectories."""

import itertools

import numpy as np

from hesnr_tasks.scores import ScoreStore, Source, Text
from hesnr_tasks.scores.schema import SequenceScores, TokenScores
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, Span
from tests.unit.scores import made as parts

PIVOTAL = ("because", "but", "therefore", "however", "so", "although")
PLAIN = ("parser", "module", "config", "branch", "server", "client")  # as often as the pivotal ones
COMMON = ("the", "file", "test", "code", "value", "line", "is", "in", "it", "has")
REFLECTIVE = ("Let me verify the new fix", "Let me run the tests again", "Wait, I read the file wrong")
USUAL = ("Let me open the new file", "Let me read the tests first", "Well, I see the file there")


def pick(rng, items):
    """As `rng.choice`, without an array made of the items."""
    return items[int(rng.integers(len(items)))]


def words(rng, level, opening):
    """Clauses of 4 to 8 words; with probability `opening(level)` one opens with a pivotal word, else with a plain one.

    Yields (turn, text with the space before it, word, words before it in its clause).
    """
    for turn in range(1, 7):
        for _ in range(int(rng.integers(3, 7))):
            for clause in range(2):
                opens = rng.random()
                for place in range(int(rng.integers(4, 9))):
                    word = pick(rng, COMMON)
                    if place == 0 and opens < opening(level):
                        word = pick(rng, PIVOTAL)
                    elif place == 0 or rng.random() < 0.06:
                        word = pick(rng, PLAIN)
                    elif rng.random() < 0.03:
                        word = pick(rng, ("because", "but", "however"))
                    shown = word.capitalize() if clause == 0 and place == 0 else word
                    yield turn, (" " + shown if clause or place else shown), word, place
                yield turn, "," if clause == 0 else ". ", "", -1


def sentences(rng, level, opening):
    """Texts of 3 to 6 sentences; the first reflects with probability `opening(level)`, the others with half of it.

    Yields (turn, text with the space before it, "reflective" or "usual", sentences before it).
    """
    for turn in range(1, 7):
        for place in range(int(rng.integers(3, 7))):
            reflects = rng.random() < opening(level) / (1 + (place > 0))
            rest = [pick(rng, (*COMMON, *PLAIN, "parsers", "queue")) for _ in range(rng.integers(2, 6))]
            for i, word in enumerate([*pick(rng, REFLECTIVE if reflects else USUAL).split(), *rest]):
                yield turn, " " + word if i else word, "reflective" if reflects else "usual", place
            yield turn, ". ", "reflective" if reflects else "usual", place


def split_sentences(rng, level, opening):
    """As `sentences`, with short words where a sentence reflects and, one time in twelve, long words nobody else uses.

    Yields (turn, text with the space before it, kind, words before it in its sentence).
    """
    for turn in range(1, 7):
        for _ in range(int(rng.integers(3, 7))):
            reflects, odd = rng.random() < opening(level) / 2, rng.random() < 1 / 12
            opener = pick(rng, REFLECTIVE if reflects else USUAL).split()
            vocabulary = COMMON if reflects else (*COMMON, *PLAIN, *PLAIN)
            if odd:
                rest = ["".join(pick(rng, "bdfgklmnprstvz") for _ in range(9)) for _ in range(4)]
            else:
                rest = [pick(rng, vocabulary) for _ in range(rng.integers(2, 6))]
            for place, word in enumerate([*opener, *rest]):
                yield turn, " " + word if place else word, "reflective" if reflects else "usual", place
            yield turn, ". ", "", -1


def run_of(folder, entropy, make=words, opening=lambda level: 0.5, trajectories=24, seed=0):
    """A store whose tokens have the entropy `entropy(word, place, the trajectory's level, rng)`."""
    store = ScoreStore.open(folder, parts.signature())
    for index in range(trajectories):
        rng = np.random.default_rng([seed, index])
        level = rng.normal(0, 0.15)
        scores, text = _scored(index, list(make(rng, level, opening)), entropy, level, rng, make is sentences)
        source = Source(f"run{index}", f"task{index}", index % 2 == 0)
        store.write(scores, text=text, mask=parts.THOUGHT, sources=[source])
    return store


def _scored(index, pieces, entropy, level, rng, every):
    """`every`: all tokens have the entropy asked for, not only those that begin a word."""
    text, spans, start, end, turns, values = "", [], [], [], [], []
    for turn, shown, word, place in pieces:
        if not spans or spans[-1].turn != turn:
            spans.append(Span(len(text), len(text), Kind.THOUGHT, turn, False))
        cuts = [0, len(shown)] if len(shown) < 7 or place < 0 else [0, 4, len(shown)]  # long words are two tokens
        for i, (a, b) in enumerate(itertools.pairwise(cuts)):
            start.append(len(text) + a)
            end.append(len(text) + b)
            turns.append(turn)
            values.append(entropy(word, place, level, rng) if every or (i == 0 and place >= 0) else 0.05)
        text += shown
        spans[-1] = spans[-1]._replace(end=len(text))
    n = len(start)
    top = candidates(np.clip(values, 0.01, 2.2))
    columns = [np.array(column, dtype=np.int32) for column in (start, end, turns)]
    scores = TokenScores(
        key=f"{index:064x}",
        position=np.arange(1, n + 1, dtype=np.int32),
        token_id=np.arange(n, dtype=np.int32) % 600,
        turn=columns[2],
        label=np.full(n, 1 << 2, dtype=np.uint64),
        char_start=columns[0],
        char_end=columns[1],
        scores=SequenceScores(top[:, 0].copy(), np.ones(n, dtype=np.int32), top, np.zeros((n, 10), dtype=np.int32)),
        tokens_total=n + 1,
        labels_cut=np.zeros(0, dtype=np.uint64),
        run=parts.RUN,
    )
    return scores, Text(Rendered(text, tuple(spans)), np.arange(n + 1, dtype=np.int32) % 600)


def candidates(values):
    """Top-10 log-probabilities (n, 10) whose renormalised entropy is `values` (n,): one candidate and nine equal."""
    low, high = np.full(len(values), 1e-9), np.full(len(values), 0.9)  # mass of the nine
    for _ in range(60):
        mass = (low + high) / 2
        h = -(1 - mass) * np.log1p(-mass) - mass * np.log(mass / 9)
        low, high = np.where(h < values, mass, low), np.where(h < values, high, mass)
    top = np.column_stack([np.log1p(-mass), *([np.log(mass / 9)] * 9)])
    return np.ascontiguousarray(top + np.log(0.99), dtype=np.float32)
