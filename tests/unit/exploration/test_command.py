"""`hesnr analyze --exploration`: what it prints, draws and refuses, on planted and on really scored files."""

import argparse
import csv
import io
import json

import pytest

from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.cli import analyze
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.exploration.entropy_profile import figure_data
from hesnr_tasks.exploration.text import load_lexicon
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.stats import Estimate
from tests.unit.analysis import made
from tests.unit.exploration import planted


def ask(*words):
    parser = argparse.ArgumentParser()
    analyze.add_arguments(parser)
    return analyze.analyze(parser.parse_args(["--resamples", "200", *map(str, words)]))


def flat(mean):
    return lambda word, place, level, rng: mean + level + rng.normal(0, 0.1)


def letters(texts):
    """An embedding for the test: how often each letter occurs."""
    return [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz "] for text in texts]


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
    assert [line.values for line in groups] == [tuple(r[n] for r in last) for n in ("difference", "matched")]
    course = [
        r for r in rows["exploration" if over == "run" else "exploration_by_turn"] if r.get("group", "all") == "all"
    ]
    assert run == last[0]["run"]
    assert courses[0].places == (("step100", "step200") if over == "run" else ("1", "2", "3-4", "5-8"))
    assert courses[0].values == tuple(row["matched"] for row in course if row["part"] == "pivotal words")


def _numbers(row):
    """A row of JSON with numbers as they were."""
    return {name: Estimate(*value.values()) if isinstance(value, dict) else value for name, value in row.items()}


def test_embeddings_change_which_sentences_are_rare_and_nothing_else(ladder, tables):
    usual = tables["exploration"][:11]
    words = ["--exploration", "--format", "json", "--embed", f"{__name__}:letters"]
    other = json.loads(ask(ladder / "step100", *words))["tables"]["exploration"]
    assert usual[:-1] == [row | {"run": "step100"} for row in other[:-1]]
    assert usual[-1]["entropy"] != other[-1]["entropy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kinds", "action"], "--exploration reads sentences, and actions have none"),
        (["--kinds", "observation"], "not all tokens asked for were scored .* hesnr_swe_thought and hesnr_swe_unfilt"),
        (["--embed", "nowhere_at_all:f"], "cannot be used"),
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


@pytest.mark.parametrize(
    ("words", "message"), [(["-o", "x"], "-o is where figures go"), (["--embed", "a:b"], "add that")]
)
def test_options_without_what_they_are_for_are_refused(ladder, words, message):
    with pytest.raises(SettingsError, match=message):
        ask(ladder, *words)


def test_texts_without_a_sentence_give_empty_rows_and_no_error(tmp_path):
    """Made-up thoughts of one phrase over and over, two trajectories: no interval, nothing rare."""
    made.run_of(tmp_path / "run", 2, 60)
    tables = json.loads(ask(tmp_path / "run", "--exploration", "--format", "json"))["tables"]
    assert [row["n"] for row in tables["exploration"]] == [0] * 11
    assert tables["exploration"][0]["matched"] == {"value": None, "stderr": None, "low": None, "high": None}
