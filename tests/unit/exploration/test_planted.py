"""Corpora in which the truth is known: an effect of words, none, or one of places or trajectories alone."""

import argparse
import itertools
import json

import numpy as np
import pytest

from hesnr_tasks.analysis.frame import load, selection
from hesnr_tasks.cli import analyze
from hesnr_tasks.exploration.entropy_profile import COLUMNS, collect, contrast
from hesnr_tasks.exploration.text import distances, load_lexicon, rare
from hesnr_tasks.stats import estimates
from hesnr_tasks.trajectory import Kind
from tests.unit.exploration import planted

STEP = 0.6  # nats


def tables_of(folder):
    parser = argparse.ArgumentParser()
    analyze.add_arguments(parser)
    words = [str(folder), "--exploration", "--resamples", "100", "--format", "json"]
    return json.loads(analyze.analyze(parser.parse_args(words)))["tables"]


def rows(folder):
    return tables_of(folder)["exploration"]


def row_of(table, part, group="all"):
    return next(row for row in table if (row["part"], row["group"]) == (part, group))


def covers(number, value):
    return number["low"] <= value <= number["high"]


def noisy(value, level, rng):
    return 0.6 + value + level + rng.normal(0, 0.1)


def test_an_effect_of_words_is_found_and_that_of_places_taken_off(tmp_path):
    """Pivotal words have STEP more, clause openings 0.5 more: raw has both, matched the words' alone."""
    store = planted.run_of(
        tmp_path / "run",
        lambda word, place, level, rng: noisy(STEP * (word in planted.PIVOTAL) + 0.5 * (place == 0), level, rng),
    )
    collected = rows(store.folder)
    row = row_of(collected, "pivotal words")
    assert covers(row["matched"], STEP)
    assert row["matched"]["low"] > 0.5
    assert row["matched"]["high"] < 0.7
    assert row["difference"]["low"] > STEP + 0.1
    assert row["matched_share"] > 0.95
    for group in ("causal", "contrastive"):
        assert covers(row_of(collected, "pivotal words", group)["matched"], STEP)


def test_an_effect_of_places_alone_shows_raw_and_is_gone_when_matched(tmp_path):
    store = planted.run_of(tmp_path / "run", lambda word, place, level, rng: noisy(STEP * (place == 0), level, rng))
    row = row_of(rows(store.folder), "pivotal words")
    assert row["difference"]["low"] > 0.2
    assert covers(row["matched"], 0)
    assert abs(row["matched"]["value"]) < 0.05


def test_an_effect_of_trajectories_alone_shows_raw_and_is_gone_when_matched(tmp_path):
    """Trajectories that hesitate more have more pivotal words; within each there is no difference."""
    store = planted.run_of(
        tmp_path / "run",
        lambda word, place, level, rng: noisy(2 * level, level, rng),
        opening=lambda level: float(np.clip(0.5 + 2.5 * level, 0.02, 0.98)),
    )
    row = row_of(rows(store.folder), "pivotal words")
    assert row["difference"]["value"] > 0.08
    assert covers(row["matched"], 0)
    assert abs(row["matched"]["value"]) < 0.04


@pytest.mark.parametrize(("effect", "truth"), [("kind", STEP), ("place", 0.0)], ids=["reflective", "positional"])
def test_reflective_sentences_are_measured_against_sentences_in_the_same_place(tmp_path, effect, truth):
    """First sentences reflect twice as often: an effect of the place shows raw, and not when matched."""

    def entropy(word, place, level, rng):
        value = {"kind": word == "reflective", "place": place == 0}[effect]
        return noisy(STEP * value, level, rng)

    store = planted.run_of(tmp_path / "run", entropy, planted.sentences, lambda level: 0.6)
    row = row_of(rows(store.folder), "reflective sentences")
    assert covers(row["matched"], truth)
    assert row["matched"]["high"] - row["matched"]["low"] < 0.2
    if effect == "place":
        assert row["difference"]["low"] > 0.05


def interval(values, treated, collected, copies):
    """The matched difference of sentences, with its interval."""
    difference = contrast(values, treated, collected.trajectory, copies, collected.cell)
    ends = estimates(difference.numerator[:, None], difference.denominator[:, None], resamples=100, seed=1)
    return {"low": ends.ci_low[0], "value": ends.value[0], "high": ends.ci_high[0]}


def test_how_words_split_into_tokens_is_no_effect_of_sentences(tmp_path):
    """First tokens have one mean everywhere, later pieces next to nothing; words are long where sentences are rare,
    short where they reflect. A mean over all tokens finds an effect, that over first tokens does not.
    """
    planted.run_of(tmp_path / "run", lambda word, place, level, rng: noisy(0, level, rng), planted.split_sentences)
    frame = load(tmp_path / "run", extra=COLUMNS)
    chosen = selection(frame.filters, [Kind.THOUGHT], [])
    _, collected = collect(frame, chosen, load_lexicon())
    begin = np.append(collected.token[collected.start[:-1]], len(frame.label))  # all text is sentences
    everything = np.array([frame.entropy[10][a:b].mean() for a, b in itertools.pairwise(begin)])
    copies, lines = frame.multiplicity(chosen.mask), rows(tmp_path / "run")
    for part, treated in (("reflective", collected.kinds.any(axis=1)), ("rare", rare(distances(collected.texts)))):
        old = interval(everything, treated, collected, copies)
        assert old["low"] > 0.01 if part == "reflective" else old["high"] < -0.03
        new = interval(collected.mean(frame.entropy[10]), treated, collected, copies)
        assert covers(new, 0)
        assert new["high"] - new["low"] < 0.06
        row = row_of(lines, f"{part} sentences")
        assert row["matched"]["value"] == pytest.approx(new["value"], abs=1e-9)
        assert covers(row["matched"], 0)


def test_turns_and_outcomes_split_what_the_whole_has(tmp_path):
    """Counts add up; an effect in resolved trajectories alone is found in them alone."""

    def entropy(word, place, level, rng):
        return noisy(STEP * (word in planted.PIVOTAL and resolved[0]), level, rng)

    resolved = [True]

    def make(rng, level, opening):
        yield from planted.words(rng, level, opening)
        resolved[0] = not resolved[0]

    # entropies are drawn after all words of a trajectory: the outcome of trajectory i is i % 2 == 0
    resolved[0] = False
    store = planted.run_of(tmp_path / "run", entropy, make)
    tables = tables_of(store.folder)
    whole = row_of(tables["exploration"], "pivotal words")
    for by, names in (("turn", {"1", "2", "3-4", "5-8"}), ("resolved", {"resolved", "unresolved"})):
        split = [row for row in tables[f"exploration_by_{by}"] if row["part"] == "pivotal words"]
        assert {row[by] for row in split} == names
        assert sum(row["n"] for row in split) == whole["n"]
        assert sum(row["others"] for row in split) == whole["others"]
    by = {row["resolved"]: row["matched"] for row in split}
    assert covers(by["resolved"], STEP)
    assert covers(by["unresolved"], 0)
    assert not covers(by["unresolved"], STEP)


def test_bounds_enclose_what_the_stored_candidates_leave_open(tmp_path):
    """Of the entropies that were planted, one part in a hundred of the mass lies beyond the ten candidates."""
    store = planted.run_of(tmp_path / "run", lambda word, place, level, rng: noisy(0, level, rng), trajectories=6)
    for row in tables_of(store.folder)["exploration_bounds"]:
        if row["matched"] is not None:
            assert row["low"] < row["high"]
            assert row["others_low"] < row["others_high"]
            assert row["difference_low"] < row["difference_high"]
            assert row["topk"] - 0.05 < row["high"]
