"""Sentences of agent prose, and what the lexicon finds in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.exploration import CODE, distances, load_lexicon, prose, rare, sentences
from hesnr_tasks.formats import load
from hesnr_tasks.trajectory import Kind
from tests.reference import exploration as reference

__all__ = []

SPLIT = [
    ("I see. Look at `a.b. C` in src/a.py. It fails.", ["I see.", "Look at `a.b. C` in src/a.py.", "It fails."]),
    ("Use numpy e.g. Version 1.2. Then stop! Why? OK", ["Use numpy e.g. Version 1.2.", "Then stop!", "Why?", "OK"]),
    ("Hmm... wait, no. That is i.e. Foo", ["Hmm... wait, no.", "That is i.e. Foo"]),
    ("# Plan\n1. Read code.\n2. Fix it\n   - run `x`\n* test\n", ["Plan", "Read code.", "Fix it", "run `x`", "test"]),
    ("A line that is\nwrapped by hand.\nAnother\nOne", ["A line that is\nwrapped by hand.", "Another", "One"]),
    ("Before:\n```python\nx = 1. Not. A. Sentence\n```\nAfter it.", ["Before:", "After it."]),
    ("Open the file.Let me read module.Class too.", ["Open the file.", "Let me read module.Class too."]),
    ("**cause**: it broke. (See below.) Done", ["**cause**: it broke.", "(See below.)", "Done"]),
    ("Das ist naïve. Ça va. 日本語です。次の文。", ["Das ist naïve.", "Ça va.", "日本語です。", "次の文。"]),
    ("$ ls -la\n>>> print(1)\nIt printed 1.", ["It printed 1."]),
    ("`only.code()`", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), SPLIT)
def test_sentences_of_agent_prose(text, want):
    assert [text[s.start : s.end] for s in sentences(prose(text))] == want


@pytest.mark.parametrize(
    "code",
    ["`a b`", "src/a/b.py", "./run.sh", "/tmp/x", "foo_bar", "DatetimeIndex", "np.array", "f(x, y)", "--verbose",
     "https://a.b/c?d", "<tag attr=1>", "$HOME", "setup.py", "~/x", "__init__", "``a`b``"],
)  # fmt: skip
def test_code_is_no_word(code):
    """What stands around it keeps its words, and code takes a place among them."""
    text = f"We open {code} because it fails."
    (sentence,) = sentences(prose(text))
    assert [word.text for word in sentence.words] == ["we", "open", "because", "it", "fails"]
    assert sentence.words[2].place == 3


def test_words_know_their_place_in_sentence_and_clause():
    (sentence,) = sentences(prose("It works, but the double-check (again) doesn’t."))
    assert [(w.text, w.place, w.clause) for w in sentence.words] == [
        ("it", 0, 0), ("works", 1, 1), ("but", 2, 0), ("the", 3, 1), ("double", 4, 2), ("check", 5, 3), ("again", 6, 0),
        ("doesn't", 7, 0),
    ]  # fmt: skip


@settings(max_examples=200)
@given(st.text(st.sampled_from("aB1 .\n`_-/(),:!?é日。\U0001f600*#<>$"), max_size=80))
def test_sentences_lie_in_the_text_in_order_and_words_are_prose(text):
    flat = prose(text)
    assert len(flat) == len(text)
    assert all(a == b or b == CODE for a, b in zip(text, flat))
    end = 0
    for number, sentence in enumerate(sentences(flat)):
        assert end <= sentence.start < sentence.end <= len(text)
        assert sentence.place == number
        end = sentence.end
        for word in sentence.words:
            assert sentence.start <= word.start < word.end <= sentence.end
            assert text[word.start : word.end].isalpha() or "'" in word.text


def hits(text):
    lexicon, flat = load_lexicon(), prose(text)
    return [(s.words[h.word].text, h.group) for s in sentences(flat) for h in lexicon.hits(flat, s)]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("It fails because of this, so I fix it.", [("because", "causal"), ("so", "causal")]),
        ("So far so good, so that it is so slow.", []),
        ("However, it works; and yet it is slow.", [("however", "contrastive"), ("yet", "contrastive")]),
        ("First, read it. The first argument. First argument.", [("first", "sequential")]),
        ("And then it stops. Since then it runs.", [("then", "sequential")]),
        ("This suggests that it means well.", [("suggests", "reasoning"), ("means", "reasoning")]),
        ("Wait, let me verify it. Wait for it.", [("wait", "agent"), ("verify", "agent"), ("wait", "agent")]),
        ("Let me double-check. Let's double check.", [("double", "agent"), ("double", "agent")]),
        ("The issue is here. See if the issue is fixed.", [("issue", "agent")]),
        ("Run the tests again. The tests, again.", [("again", "agent")]),
        ("Hmm. Actually no. We don’t wait.", [("hmm", "agent"), ("actually", "agent")]),
        ("`because` and so_far and but.py", []),
        ("BUT it is", [("but", "contrastive")]),
    ],
)
def test_the_lexicon_finds_words_where_they_pivot(text, want):
    assert hits(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Let me verify that the fix works.", ("verification",)),
        ("Let's see if `x` still fails.", ("verification", "correction")),
        ("Hmm, that was too quick.", ("correction",)),
        ("That is wrong.", ("correction",)),
        ("Let me try a different approach.", ("correction",)),
        ("Now let's run the tests again.", ("testing",)),
        ("Run it.", ()),
        ("Let me look at the file.", ()),
        ("Modify the code to check if the attribute exists.", ()),
        ("To fix this issue, I need to modify it.", ()),
    ],
)
def test_sentences_that_reflect(text, want):
    lexicon, flat = load_lexicon(), prose(text)
    (sentence,) = sentences(flat)
    assert lexicon.reflects(flat, sentence) == want


def test_real_thoughts_have_pivots_reflection_and_no_code_among_their_words(shared):
    """Real runs of four agents: sentences are short, every group is met, and words have no path or name in them."""
    lexicon = load_lexicon()
    groups, kinds, count = set(), set(), 0
    for path in sorted(shared.glob("*.*")):
        if path.suffix == ".md":
            continue
        for trajectory in load(str(path)):
            for message in trajectory.messages:
                for segment in (s for s in message.segments if s.kind is Kind.THOUGHT):
                    flat = prose(segment.text)
                    for sentence in sentences(flat):
                        count += 1
                        assert len(sentence.words) < 60, segment.text[sentence.start : sentence.end]
                        groups |= {hit.group for hit in lexicon.hits(flat, sentence)}
                        kinds |= set(lexicon.reflects(flat, sentence))
    assert count > 300
    assert groups == set(lexicon.groups)
    assert kinds == set(lexicon.kinds)


# --- Distances to the nearest sentences against all pairs compared one by one ---

WORDS = tuple("let me the a look at read open test file code fix run see again now first it is in to".split())  # noqa: SIM905


def corpus(n, seed=0):
    """Sentences of everyday words with a few that nobody else uses."""
    rng = np.random.default_rng(seed)
    odds = 1 / np.arange(1, len(WORDS) + 1)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(3, 12)), p=odds / odds.sum())) for _ in range(n)]
    for i in range(0, n, 20):
        texts[i] = " ".join(f"odd{rng.integers(10**9)}" for _ in range(6))
    return texts


@pytest.mark.parametrize("n", [7, 60, 300])
def test_distances_are_those_of_all_pairs(n):
    texts = corpus(n)
    assert distances(texts) == pytest.approx(reference.neighbours(texts), abs=1e-5)


def test_sentences_nobody_else_writes_are_rare_and_repeated_ones_are_not():
    texts = corpus(400) + ["let me read the file"] * 8
    is_rare = rare(distances(texts))
    assert is_rare[0:400:20].all()
    assert not is_rare[400:].any()
    assert 20 <= is_rare.sum() <= 40


def test_a_sample_of_references_gives_nearly_the_same_ones(monkeypatch):
    texts = corpus(1500)
    whole = rare(distances(texts))
    monkeypatch.setattr("hesnr_tasks.exploration.REFERENCES", 500)
    some = rare(distances(texts))
    assert (whole & some)[::20].all()
    assert (whole & some).sum() > 0.7 * whole.sum()
    assert (distances(texts) == distances(texts)).all()


def test_too_few_sentences_have_no_neighbours():
    assert np.isnan(distances(["a b c"] * 5)).all()
    assert not rare(distances(["a b c"] * 5)).any()
    assert not rare(distances(["a b c"] * 50)).any()
    assert not rare(np.zeros(0)).any()
