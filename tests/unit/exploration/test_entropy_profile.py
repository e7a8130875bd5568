"""Differences against dense least squares, intervals against the truth, bounds against built distributions."""

from __future__ import annotations

import argparse
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.analysis.frame import load, selection
from hesnr_tasks.cli.analyze import analyze, analyze_arguments
from hesnr_tasks.exploration import load_lexicon
from hesnr_tasks.exploration.entropy_profile import COLUMNS, collect, contrast, difference_bounds, entropy_bounds
from hesnr_tasks.metrics import topk_entropy
from hesnr_tasks.scores import ScoreStore, Source, Text
from hesnr_tasks.scores.schema import SequenceScores, TokenScores
from hesnr_tasks.stats import estimates
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import Rendered, Span
from tests import tiny
from tests.reference import exploration as reference
from tests.unit.exploration import demo_scores
from tests.unit.scores import made as parts

__all__ = []


def simulated(seed, n=160, runs=8, cells=12):
    rng = np.random.default_rng(seed)
    trajectory, cell = rng.integers(0, runs, n), rng.integers(0, cells, n)
    treated = rng.random(n) < 0.1 + 0.05 * (cell % 5)
    values = rng.gamma(2.0, 0.5, n) + 0.3 * cell + 0.2 * trajectory + 0.5 * treated
    return values, treated, trajectory, rng.integers(0, 3, runs), cell


@pytest.mark.parametrize(("seed", "runs", "cells"), [(0, 8, 12), (1, 20, 5), (2, 3, 40), (3, 1, 4)])
def test_differences_are_those_of_dense_least_squares(seed, runs, cells):
    """With fewer cells than trajectories and the other way round, some texts twice, some not at all."""
    values, treated, trajectory, copies, cell = simulated(seed, runs=runs, cells=cells)
    copies = np.maximum(copies, 1) if runs == 1 else copies
    rows = list(zip(values.tolist(), treated.tolist(), trajectory.tolist(), cell.tolist(), copies[trajectory].tolist()))
    matched = contrast(values, treated, trajectory, copies, cell)
    assert matched.value(copies) == pytest.approx(reference.matched(rows), abs=1e-7)
    raw = contrast(values, treated, trajectory, copies)
    assert raw.value(copies) == pytest.approx(reference.raw(rows), abs=1e-12)


def test_nothing_to_compare_is_no_number():
    values, treated, trajectory, copies, _ = simulated(0)
    apart = contrast(values, treated, trajectory, copies, treated.astype(np.int64))  # a cell has one kind only
    assert np.isnan(apart.value(copies))
    assert (apart.used, apart.clusters) == (0.0, 0)
    own = contrast(values, trajectory == 2, trajectory, np.ones_like(copies), np.zeros(len(values), dtype=np.int64))
    assert np.isnan(own.value(np.ones_like(copies)))  # treated is what the trajectory is


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """250 corpora of 24 trajectories with levels, effects of cells, and effects that differ by trajectory."""
    truth, hits, sizes = 0.3, 0, []
    for seed in range(250):
        rng = np.random.default_rng([7, seed])
        trajectory = np.repeat(np.arange(24), rng.integers(30, 120, 24))
        cell = rng.integers(0, 9, len(trajectory))
        treated = rng.random(len(cell)) < 0.05 + 0.04 * cell
        own = rng.normal(0, 0.3, 24)[trajectory] + treated * rng.normal(truth, 0.1, 24)[trajectory]
        values = own + 0.2 * cell + rng.gamma(1, 0.5, len(cell))
        difference = contrast(values, treated, trajectory, np.ones(24, dtype=np.int64), cell)
        ends = estimates(difference.numerator[:, None], difference.denominator[:, None], resamples=300, seed=seed)
        hits += bool(ends[0].ci_low <= truth <= ends[0].ci_high)
        sizes.append(ends[0].ci_high - ends[0].ci_low)
    assert 0.91 <= hits / 250 <= 0.99
    assert np.median(sizes) < 0.4


@settings(max_examples=60)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.floats(0, 0.6), st.integers(5, 90))
def test_bounds_are_the_extreme_distributions_built_token_by_token(weights, tail, vocabulary):
    chances = np.sort(np.array(weights))[::-1]
    chances = chances / chances.sum() * (1 - tail)
    if tail > (vocabulary - 3) * chances[-1]:  # no distribution has these as its largest
        return
    low, high = entropy_bounds(np.log(chances)[None], vocabulary)
    want = reference.extremes(chances.tolist(), vocabulary)
    assert low[0] == pytest.approx(want[0], abs=1e-9)
    assert high[0] == pytest.approx(want[1], abs=1e-9)


def test_the_entropy_of_whole_distributions_lies_within_the_bounds():
    """Softmax of random logits over 500 tokens, of which ten are known, stored in float32."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, rng.uniform(0.5, 5, (300, 1)), (300, 500))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    entropy = -(np.exp(logs) * logs).sum(axis=1)
    top = -np.sort(-logs, axis=1)[:, :10].astype(np.float32)
    low, high = entropy_bounds(top, 500)
    assert (low <= entropy + 1e-5).all()
    assert (entropy <= high + 1e-5).all()
    assert np.isinf(entropy_bounds(top, None)[1]).all()
    assert (np.abs(topk_entropy(top, 10) - entropy) > 0.01).any()  # the renormalised one is neither


def test_bounds_of_the_difference_are_reached():
    """By taking every treated unit at one end and every other at the opposite one, or the other way where they lift."""
    values, treated, trajectory, copies, cell = simulated(4)
    difference = contrast(values, treated, trajectory, copies, cell)
    low, high = values - 0.1, values + np.random.default_rng(0).uniform(0, 0.5, len(values))
    least, most = difference_bounds(difference.lift, copies[trajectory].astype(float), low, high)
    for end, want in (
        (np.where(difference.lift > 0, low, high), least),
        (np.where(difference.lift > 0, high, low), most),
    ):
        assert contrast(end, treated, trajectory, copies, cell).value(copies) == pytest.approx(want, abs=1e-8)
    assert least < difference.value(copies) < most


# --- Words and sentences find their tokens, whatever the tokenizer ---

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
    words, _, left_out = collect(frame, thoughts(frame), load_lexicon())
    pivots = ("because", "however", "but", "so-so", "Therefore", "verify", "Hmm", "Yet", "so I")
    want = {first_token(frame, TEXT.index(word)) for word in pivots}
    assert {int(token) for token in words.token[words.kinds.any(axis=1)]} == want - {None}
    assert len(words.token) + left_out[-2] == WORDS
    assert left_out[-1] == 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_mean_of_a_sentence_is_over_the_first_tokens_of_its_words_without_code(tmp_path, name):
    frame = stored(tmp_path / "run", TOKENIZERS[name]())
    _, collected, _ = collect(frame, thoughts(frame), load_lexicon())
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
    words, sentences, left_out = collect(frame, thoughts(frame), load_lexicon())
    assert left_out[-1] > 10
    assert len(words.token) + left_out.total() == WORDS
    assert sentences.texts == ()  # no sentence has all its words
    assert sentences.mean(frame.entropy[10]).shape == (0,)


# --- The profile of the demo's last checkpoint equals that of the release before, to 1e-12 ---

GOLDEN = json.loads((demo_scores.GOLDEN / "tables.json").read_text())
FEWEST = 8


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = demo_scores.write(tmp_path_factory.mktemp("demo") / "scores")
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    words = [str(folder), "--exploration", "--format", "json", "--resamples", "2000"]
    return json.loads(analyze(parser.parse_args(words)))["tables"]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_tables(tables, name):
    """Intervals of fewer than eight trajectories were given before and are not now; p-values are new."""
    assert len(tables[name]) == len(GOLDEN[name])
    for row, golden in zip(tables[name], GOLDEN[name]):
        assert set(golden) <= set(row)
        for key, expected in golden.items():
            if isinstance(expected, dict):
                kept = row[key]["low"] is not None
                assert kept <= (row["trajectories"] >= FEWEST)
                for part, number in expected.items():
                    if kept or part == "value":
                        assert row[key][part] == (number and pytest.approx(number, rel=1e-12, abs=1e-12))
            elif isinstance(expected, float):
                assert row[key] == pytest.approx(expected, rel=1e-12, abs=1e-12)
            elif "interval" not in key:
                assert row[key] == expected


def test_p_values_are_those_of_the_intervals_and_corrected(tables):
    rows = [row for row in tables["exploration"] if row["p"] is not None]
    assert 4 <= len(rows) < len(tables["exploration"])
    for row in tables["exploration"]:
        assert (row["p"] is None) == (row["matched"]["low"] is None)
    for row in rows:
        if not 0.04 < row["p"] < 0.06:  # the same bootstrap, up to its quantile
            assert (row["p"] < 0.05) == (row["matched"]["low"] > 0 or row["matched"]["high"] < 0)
    ordered = sorted(rows, key=lambda row: row["p"])
    assert ordered[0]["p_holm"] == pytest.approx(min(1, ordered[0]["p"] * len(rows)))
    assert all(a["p_holm"] <= b["p_holm"] for a, b in itertools.pairwise(ordered))
