"""Words and sentences find their tokens, whatever the tokenizer."""

import numpy as np
import pytest

from hesnr_tasks.alignment import Encoder
from hesnr_tasks.analysis.frame import load, selection
from hesnr_tasks.backends.base import SequenceScores, TokenScores
from hesnr_tasks.exploration.entropy_profile import COLUMNS, collect
from hesnr_tasks.exploration.text import load_lexicon
from hesnr_tasks.rendering import Rendered, Span
from hesnr_tasks.scores import ScoreStore, Source, Text
from hesnr_tasks.trajectory import Kind
from tests import tiny
from tests.reference import exploration as reference
from tests.unit.scores import made as parts

TEXT = (
    "It fails because naïve café parsing (however odd) is 日本語 but 😀 so-so. “Therefore” we wait…\n\n"
    "Let me verify `x = because` in src/a/b.py.  Hmm, über-slow.\tYet it's done, so I stop."
)
WORDS = 29  # code and what is no letter left out
TOKENIZERS = {
    "byte": lambda: tiny.byte_level(),
    "byte, trimmed offsets": lambda: tiny.byte_level(trim_offsets=True),
    "llama 3": lambda: tiny.byte_level(tiny.LLAMA3, bos=True),
    "sentencepiece": tiny.sentencepiece_slow,
    "sentencepiece, fast": tiny.sentencepiece_fast,
}


def stored(folder, tokenizer, keep=None, text=TEXT):
    """A frame of `text` (a turn of thought and one of action), each token's entropy told by its place."""
    cut = text.index("Let me")
    spans = (Span(0, cut, Kind.THOUGHT, 1, False), Span(cut, len(text), Kind.THOUGHT, 2, False))
    rendered = Rendered(text, spans)
    encoded = Encoder(tokenizer).encode(rendered)
    index = np.flatnonzero(encoded.end > encoded.start)[:keep]
    n = len(index)
    top = -np.sort(np.random.default_rng(1).gamma(1, 2, (n, 10)), axis=1).astype(np.float32)[:, ::1]
    scores = TokenScores(
        key="0" * 64,
        position=index.astype(np.int32),
        token_id=encoded.ids[index],
        turn=np.where(encoded.start[index] < cut, 1, 2).astype(np.int32),
        label=np.full(n, 4, dtype=np.uint64),
        char_start=encoded.start[index],
        char_end=encoded.end[index],
        scores=SequenceScores(top[:, 0], np.ones(n, dtype=np.int32), top, np.zeros((n, 10), dtype=np.int32)),
        tokens_total=len(encoded.ids),
        labels_cut=np.zeros(0, dtype=np.uint64),
        run=parts.RUN,
    )
    store = ScoreStore.open(folder, parts.signature())
    store.write(scores, text=Text(rendered, encoded.ids), mask=parts.THOUGHT, sources=[Source("a")])
    return load(folder, extra=COLUMNS)


def thoughts(frame):
    return selection(frame.filters, [Kind.THOUGHT], [])


def first_token(frame, place):
    """Slowly: the first token that covers the character, or None where it begins with something else than spaces."""
    start, end = frame.extra["char_start"], frame.extra["char_end"]
    for i in range(len(start)):
        if start[i] <= place < end[i]:
            return None if TEXT[start[i] : place].strip() else i
    return None


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_pivotal_word_begins_with_its_first_token(tmp_path, name):
    """Spaces before it, pieces of characters, brackets, quotes: as a search character by character finds it."""
    frame = stored(tmp_path / "run", TOKENIZERS[name]())
    words, _ = collect(frame, thoughts(frame), load_lexicon())
    pivots = ("because", "however", "but", "so-so", "Therefore", "verify", "Hmm", "Yet", "so I")
    want = {first_token(frame, TEXT.index(word)) for word in pivots}
    assert {int(token) for token in words.token[words.group >= 0]} == want - {None}
    assert len(words.token) + words.inside == WORDS
    assert words.unscored == 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_mean_of_a_sentence_is_over_the_first_tokens_of_its_words_without_code(tmp_path, name):
    frame = stored(tmp_path / "run", TOKENIZERS[name]())
    _, collected = collect(frame, thoughts(frame), load_lexicon())
    start = TEXT.index("Let me")
    end = TEXT.index("Hmm,")
    code = [(TEXT.index("`x ="), TEXT.index(" in src")), (TEXT.index("src/a"), TEXT.index("src/a") + 10)]
    columns = (frame.extra["char_start"], frame.extra["char_end"], frame.entropy[10])
    tokens = list(zip(*(column.tolist() for column in columns)))
    firsts, everything = reference.sentence_means(TEXT, start, end, code, tokens)
    assert len(collected.texts) == 5
    assert collected.mean(frame.entropy[10])[2] == pytest.approx(firsts, abs=1e-12)
    assert abs(firsts - everything) > 1e-3
    assert np.isinf(collected.mean(np.full(len(tokens), np.inf))).all()  # an upper bound that is not known
    assert collected.texts[2] == "let me verify ` in"
    assert collected.turn.tolist() == [0, 0, 1, 1, 1]


def test_words_beyond_the_context_are_counted_and_left_out(tmp_path):
    frame = stored(tmp_path / "run", tiny.byte_level(), keep=40)
    words, sentences = collect(frame, thoughts(frame), load_lexicon())
    assert words.unscored > 10
    assert len(words.token) + words.unscored + words.inside == WORDS
    assert sentences.texts == ()  # no sentence has all its words
    assert sentences.mean(frame.entropy[10]).shape == (0,)
