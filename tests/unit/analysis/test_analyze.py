"""`hesnr analyze`: the numbers of a run without the run, and everything else that can be asked."""

import argparse
import csv
import io
import json
import math

import numpy as np
import pytest

from hesnr_tasks import cli
from hesnr_tasks.cli.analyze import analyze, analyze_arguments
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.scores import ScoreStore
from tests.unit.analysis import made
from tests.unit.scores import made as parts


def ask(*words):
    """What `hesnr analyze` prints."""
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    return analyze(parser.parse_args([str(word) for word in words]))


def tables(*words):
    return json.loads(ask(*words, "--format", "json"))["tables"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """30 trajectories; one is partly beyond the context."""
    folder = tmp_path_factory.mktemp("analyze") / "step200"
    made.run_of(folder, 30, 300, seed=1, cut=(3,))
    return folder


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    for step in (1600, 200, 800):
        made.run_of(folder / f"step{step}", 12, 200, seed=step, shift=step / 1600, quality=step / 4000)
    return folder


# --- the same numbers as a run ----------------------------------------------------------------------------------------


def test_many_settings_at_once_give_the_values_of_each_alone(run):
    """A row of the grid has the numbers of the same row asked alone."""
    options = ["--kinds", "action", "--filters", "every", "--k", 5, 10, "--epsilon", "ln2", 1.1, "--resamples", 500]
    grid = tables(run, *options)["results"]
    assert len(grid) == 8 * 2 * 2
    for index in (0, 13, 31):
        row = grid[index]
        filters = "+".join(row["select"].split("-")[1:]) or "none"
        words = ["--filters", filters, "--k", row["k"], "--epsilon", repr(row["epsilon"]), "--resamples", 500]
        alone = tables(run, *words)["results"][0]
        for name in ("he_snr", "he_ppl", "ppl", "top1_acc", "density"):
            assert row[name]["value"] == pytest.approx(alone[name]["value"], rel=1e-12)
            assert row[name]["stderr"] == pytest.approx(alone[name]["stderr"], rel=1e-12)
            assert row[name]["low"] == pytest.approx(alone[name]["low"], rel=1e-12)


def test_the_command_prints_or_says_what_is_wrong(run, capsys):
    assert cli.main(["analyze", str(run), "--resamples", "200"]) == 0
    assert capsys.readouterr().out.startswith("Metrics")
    assert cli.main(["analyze", str(run), "--k", "99"]) == 2
    assert capsys.readouterr().err.startswith("hesnr: ")
    assert cli.main(["compare", str(run), str(run.parent), "--resamples", "200"]) == 2  # the same run twice is one


# --- breakdowns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["turn", "position", "tool", "language", "resolved"])
def test_a_breakdown_adds_up_to_the_whole(run, by):
    tables_by_name = tables(run, "--kinds", "thought+action", "--filters", "none", "--by", by, "--resamples", 200)
    whole, parts = tables_by_name["results"][0], tables_by_name[f"by_{by}"]
    assert len(parts) > (0 if by == "position" else 1)
    assert sum(row["tokens"] for row in parts) == whole["tokens"]
    assert sum(row["he_tokens"] for row in parts) == whole["he_tokens"]
    ratio = sum(row["he_snr"]["value"] * row["he_tokens"] for row in parts if row["he_tokens"]) / whole["he_tokens"]
    assert ratio == pytest.approx(whole["he_snr"]["value"], rel=1e-12)


def test_a_group_of_trajectories_is_the_run_on_them_alone(run, tmp_path):
    """Value and error of the resolved ones are those of a store that has only these."""
    row = tables(run, "--by", "resolved")["by_resolved"][0]
    whole, alone = ScoreStore.open(run), ScoreStore.open(tmp_path / "few", parts.signature())
    for key in whole:
        if whole.entry(key).sources[0].resolved:
            sources = whole.entry(key).sources
            alone.write(whole.read(key), text=whole.text(key), mask=made.WANTED, sources=sources)
    want = tables(tmp_path / "few")["results"][0]
    assert (row["resolved"], row["trajectories"]) == ("resolved", len(alone))
    assert row["he_snr"] == pytest.approx(want["he_snr"], rel=1e-12)


def test_trajectories_are_ranked_by_density(run):
    rows = tables(run, "--by", "trajectory")["by_trajectory"]
    densities = [row["density"] for row in rows]
    assert len(rows) == 30
    assert densities == sorted(densities, reverse=True)
    assert densities[0] == rows[0]["he_tokens"] / rows[0]["tokens"]


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_the_sweep_goes_from_ln_2_to_ln_5_as_far_as_k_allows(run):
    rows = tables(run, "--sweep", "--k", 5, 10, "--resamples", 200)["sweep"]
    assert [row["epsilon"] for row in rows if row["k"] == 10] == np.linspace(math.log(2), math.log(5), 20).tolist()
    assert max(row["epsilon"] for row in rows if row["k"] == 5) < math.log(5)
    counts = [row["he_tokens"] for row in rows if row["k"] == 10]
    assert counts == sorted(counts, reverse=True)
    assert rows[-1]["he_snr"]["value"] is None  # nothing hesitates between five
    assert "ln 10 = 2.3026" in ask(run, "--sweep", "--resamples", 200)


def test_histograms_peaks_and_the_threshold_of_the_data(run):
    content = tables(run, "--histogram", "--bins", 50, "--resamples", 200)
    assert [row["n"] for row in content["states"]] == [1, 2, 3, 4, 5]
    whole = content["results"][0]
    for name, size in (("all", whole["tokens"]), ("non-top-1", None), ("non-top-2", None)):
        bins = [row for row in content["histogram"] if row["population"] == name]
        peaks = next(row for row in content["peaks"] if row["population"] == name)
        assert len(bins) == 50
        assert sum(row["tokens"] for row in bins) == peaks["tokens"] == (size or peaks["tokens"])
    assert content["peaks"][0]["mode"] == pytest.approx(0, abs=0.05)
    assert any(abs(peak - math.log(3)) < 0.05 for peak in content["peaks"][1]["peaks"])
    fixed, data = content["epsilon"][0], content["epsilon"][2]
    assert (fixed["source"], fixed["epsilon"]) == ("fixed", EPSILON)
    assert fixed["he_snr"]["value"] == whole["he_snr"]["value"]
    assert math.log(3) < data["epsilon"] < math.log(4)


def test_cases_are_decisions_near_ln_2_ln_3_ln_4_with_the_text_before(run):
    rows = tables(run, "--cases", 3, "--kinds", "thought+action", "--filters", "none")["cases"]
    assert [row["near"] for row in rows] == ["ln 2"] * 3 + ["ln 3"] * 3 + ["ln 4"] * 3
    store = ScoreStore.open(run)
    for row in rows:
        assert abs(row["entropy"] - math.log(int(row["near"][-1]))) < 0.05
        text = store.text(row["key"]).rendered.text
        assert row["before"] + row["token"] in text
        assert 1 <= row["rank"] <= 10
        assert len(row["candidates"]) == 10
        weights = [weight for _, weight in row["candidates"]]
        assert weights == sorted(weights, reverse=True)
        assert weights[row["rank"] - 1] == pytest.approx(row["p"], abs=1e-6)
    assert len({row["trajectory"] for row in rows[:3]}) == 3
    printed = ask(run, "--cases", 1)
    assert "    before: " in printed
    assert "    candidates: " in printed


def test_candidates_are_spelled_by_the_vocabulary_if_there_is_one(tmp_path):
    store = made.run_of(tmp_path / "run", 3, 100)
    store.save_token_bytes(lambda: [f"<{i}>".encode() for i in range(600)])
    row = tables(tmp_path / "run", "--cases", 1)["cases"][0]
    assert [word for word, _ in row["candidates"]] == [f"<{i}>" for i in row["candidate_ids"]]


# --- forms ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_runs_is_all_of_them_in_the_order_of_training(ladder):
    rows = tables(ladder, "--resamples", 200)["results"]
    assert [row["run"] for row in rows] == ["step200", "step800", "step1600"]
    assert len(tables(ladder / "step200", ladder / "step800", "--resamples", 200)["results"]) == 2


def test_csv_has_the_same_numbers_and_no_formulas(run, tmp_path):
    text = ask(run, "--format", "csv", "--resamples", 200)
    row = next(csv.DictReader(io.StringIO(text)))
    want = tables(run, "--resamples", 200)["results"][0]
    assert float(row["he_snr"]) == want["he_snr"]["value"]
    assert float(row["he_snr_low"]) == want["he_snr"]["low"]
    both = ask(run, "--format", "csv", "--sweep", "--resamples", 200)
    assert [line for line in both.splitlines() if line.startswith("#")] == ["# results", "# sweep"]
    made.run_of(tmp_path / "=1+1", 2, 50, model="made/=1+1")
    assert "'=1+1" in ask(tmp_path / "=1+1", "--format", "csv", "--resamples", 200)


def test_text_says_what_is_shared_once(run):
    lines = ask(run, "--by", "resolved", "--resamples", 200).splitlines()
    title = next(line for line in lines if line.startswith("By resolved"))
    assert title == f"By resolved, select = action-xml-format-comments, k = 10, ε = {EPSILON:.4f}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epsilon", "2.5"], r"must lie in \[0, ln k\): with k = 10 no entropy exceeds 2.3026"),
        (["--epsilon", "three"], "must be a number of nats, or such as ln3"),
        (["--k", "11"], "has the 10 most likely tokens"),
        (["--kinds", "actoin"], r"Did you mean 'action'\?"),
        (["--filters", "xlm"], r"Did you mean 'xml'\?"),
        (["--resamples", "5"], "--resamples must be at least 100"),
        (["--bins", "0"], "--bins must be at least 1"),
        (["--kinds", "observation"], r"not all tokens asked for were scored \(thought and action were"),
    ],
)
def test_what_cannot_be_answered_says_why(run, words, message):
    with pytest.raises(SettingsError, match=message):
        ask(run, *words)


def test_places_without_scores_say_so(tmp_path, ladder):
    with pytest.raises(DataError, match="no such folder"):
        ask(tmp_path / "nowhere")
    ScoreStore.open(tmp_path / "new", parts.signature())
    with pytest.raises(DataError, match="has no score files yet"):
        ask(tmp_path / "new")
