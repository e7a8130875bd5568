"""`hesnr analyze --exploration`: what it prints, draws and refuses, on planted and on really scored files."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json

import numpy as np
import pytest

from hesnr_tasks.analysis.frame import load, selection
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.cli.analyze import analyze, analyze_arguments
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.exploration import distances, load_lexicon, rare
from hesnr_tasks.exploration.entropy_profile import COLUMNS, collect, contrast, figure_data
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.stats import Estimate, estimates
from hesnr_tasks.trajectory import Kind
from tests.unit.analysis import made
from tests.unit.exploration import planted

__all__ = []


def ask(*words):
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    return analyze(parser.parse_args(["--resamples", "200", *map(str, words)]))


def flat(mean):
    return lambda word, place, level, rng: mean + level + rng.normal(0, 0.1)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """Two runs on the same texts."""
    folder = tmp_path_factory.mktemp("ladder")
    for step in (100, 200):
        planted.run_of(folder / f"step{step}", flat(0.8 + step / 1000), trajectories=8, seed=3)
    return folder


@pytest.fixture(scope="module")
def tables(ladder):
    return json.loads(ask(ladder, "--exploration", "--format", "json"))["tables"]


def test_text_csv_and_json_have_the_same_tables(ladder, tables):
    text = ask(ladder / "step100", "--exploration")
    assert "Where entropy is high, select = thought, k = 10" in text
    assert f"lexicon {load_lexicon().version}" in text
    assert "bounds of the entropy over the whole vocabulary (600 tokens)" in text
    names = ["results", "exploration", "exploration_by_turn", "exploration_by_resolved", "exploration_bounds"]
    assert list(tables) == names
    assert [row["run"] for row in tables["exploration"]] == ["step100"] * 11 + ["step200"] * 11
    blocks = ask(ladder / "step100", "--exploration", "--format", "csv").split("# exploration\n")[1]
    row = next(csv.DictReader(io.StringIO(blocks)))
    assert float(row["matched_low"]) == tables["exploration"][0]["matched"]["low"]
    assert int(row["n"]) == tables["exploration"][0]["n"]


def test_checkpoints_on_the_same_texts_have_the_same_words(tables):
    rows = tables["exploration"]
    for low, high in zip(rows[:11], rows[11:]):
        for name in ("part", "group", "n", "others", "trajectories"):
            assert low[name] == high[name]
    assert rows[11]["entropy"] - rows[0]["entropy"] == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("over", ["run", "turn"])
def test_the_figure_draws_the_numbers_of_the_tables(ladder, tmp_path, over):
    """Groups of the last run; the course over runs, or over turns where there is one run."""
    folder = ladder if over == "run" else ladder / "step200"
    output = json.loads(ask(folder, "--exploration", "--format", "json", *(["-o", tmp_path] if over == "run" else [])))
    if over == "run":
        assert output["figures"] == [str(tmp_path / "exploration.svg"), str(tmp_path / "exploration.png")]
        assert (tmp_path / "exploration.png").stat().st_size > 10_000
        assert b"matched difference" in (tmp_path / "exploration.svg").read_bytes()
    tables = [Table(name, name, [_numbers(row) for row in rows]) for name, rows in output["tables"].items()]
    (run, groups, courses), rows = figure_data(tables), {table.name: table.rows for table in tables}
    last = [row for row in rows["exploration"] if row["run"] == rows["exploration"][-1]["run"]]
    assert [[*line.values()] for line in groups.values()] == [[r[n] for r in last] for n in ("difference", "matched")]
    course = [
        r for r in rows["exploration" if over == "run" else "exploration_by_turn"] if r.get("group", "all") == "all"
    ]
    assert run == last[0]["run"]
    words = courses["pivotal words"]
    assert [*words] == (["step100", "step200"] if over == "run" else ["1", "2", "3-4", "5-8"])
    assert [*words.values()] == [row["matched"] for row in course if row["part"] == "pivotal words"]


def _numbers(row):
    """A row of JSON with numbers as they were."""
    return {name: Estimate(*value.values()) if isinstance(value, dict) else value for name, value in row.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "action"], "--exploration reads sentences, and actions have none"),
        (["--kinds", "observation"], "not all tokens asked for were scored .* hesnr_swe_thought and hesnr_swe_unfilt"),
    ],
)
def test_what_cannot_be_explored_says_why(tmp_path, words, message):
    made.run_of(tmp_path / "run", 3, 100)
    with pytest.raises(SettingsError, match=message):
        ask(tmp_path / "run", "--exploration", *words)


def test_scores_of_actions_alone_are_refused_with_the_tasks_that_score_thoughts(tmp_path):
    from tests.unit.scores import made as parts

    store = ScoreStore.open(tmp_path / "run", parts.signature())
    parts.put(store, 1, parts.ACTION)
    with pytest.raises(SettingsError, match=r"--exploration reads what the agent thinks.*hesnr_swe_thought"):
        ask(tmp_path / "run", "--exploration")


def test_a_place_for_figures_without_figures_is_refused(ladder):
    with pytest.raises(SettingsError, match="-o is where figures go"):
        ask(ladder, "-o", "x")


def test_texts_without_a_sentence_give_empty_rows_and_no_error(tmp_path):
    """Made-up thoughts of one phrase over and over, two trajectories: no interval, nothing rare."""
    made.run_of(tmp_path / "run", 2, 60)
    tables = json.loads(ask(tmp_path / "run", "--exploration", "--format", "json"))["tables"]
    assert [row["n"] for row in tables["exploration"]] == [0] * 11
    assert tables["exploration"][0]["matched"] == {"value": None, "stderr": None, "low": None, "high": None}


# --- Corpora in which the truth is known: an effect of words, none, or one of places or trajectories alone ---

STEP = 0.6  # nats


def tables_of(folder):
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    words = [str(folder), "--exploration", "--resamples", "100", "--format", "json"]
    return json.loads(analyze(parser.parse_args(words)))["tables"]


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
    return {"low": ends[0].ci_low, "value": ends[0].value, "high": ends[0].ci_high}


def test_how_words_split_into_tokens_is_no_effect_of_sentences(tmp_path):
    """First tokens have one mean everywhere, later pieces next to nothing; words are long where sentences are rare,
    short where they reflect. A mean over all tokens finds an effect, that over first tokens does not.
    """
    planted.run_of(tmp_path / "run", lambda word, place, level, rng: noisy(0, level, rng), planted.split_sentences)
    frame = load(tmp_path / "run", extra=COLUMNS)
    chosen = selection(frame.filters, [Kind.THOUGHT], [])
    _, collected, _ = collect(frame, chosen, load_lexicon())
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
