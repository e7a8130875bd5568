"""`hesnr passk` as a user runs it: tables, files, figure, refusals."""

import argparse
import csv
import json
import random

import pytest

from hesnr_tasks.cli import answers
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.passk import pass_at_k


def passk(*words):
    parser = argparse.ArgumentParser()
    answers.passk_arguments(parser)
    return answers.run_passk(parser.parse_args([*map(str, words), "--resamples", "300"]))


def table(path, seed, problems=40, n=8, lift=0.0):
    rng = random.Random(seed)
    rows = [(f"p{i:02}", int(rng.random() < i / problems * 0.6 + lift)) for i in range(problems) for _ in range(n)]
    path.write_text("problem,ok\n" + "".join(f"{p},{ok}\n" for p, ok in rows))
    return path


@pytest.fixture
def two(tmp_path):
    return table(tmp_path / "base.csv", 1), table(tmp_path / "tuned.csv", 2, lift=0.25)


def test_the_curve(two):
    report = json.loads(passk(two[0], "--format", "json"))
    rows, counts = report["tables"]["passk"], report["counts"]["base.csv"]
    assert [row["k"] for row in rows] == [1, 2, 4, 8]
    for row in rows:
        exact = sum(pass_at_k(problem["n"], problem["c"], row["k"]) for problem in counts) / len(counts)
        assert row["pass@k"]["value"] == pytest.approx(exact)
        assert row["pass@k"]["low"] < exact < row["pass@k"]["high"]
    assert [row["averaged"] for row in rows] == [True, True, True, False]
    assert any("at k = 8 uses all answers" in note for note in report["notes"])


def test_text_says_what_it_means(two):
    text = passk(*two, "--compare", "--k", "2", "8")
    assert "Difference to base.csv, 40 problems, paired" in text
    assert "Problems solved by base.csv or tuned.csv alone" in text
    assert "warning: tuned.csv at k = 8 uses all answers of some problems" in text
    assert "–" in text or "detectable" in text


def test_several_files_are_samples_of_one_model(two):
    report = json.loads(passk(*two, "--format", "json"))
    assert {problem["n"] for problem in report["counts"]["all"]} == {16}


def test_checkpoints_may_be_named_and_have_several_files(two, tmp_path):
    more = table(tmp_path / "more.csv", 3, lift=0.25)
    report = json.loads(passk(f"old={two[0]}", f"new={two[1]},{more}", "--compare", "--format", "json"))
    assert {name: rows[0]["n"] for name, rows in report["counts"].items()} == {"old": 8, "new": 16}
    assert max(row["k"] for row in report["tables"]["passk"]) == 8  # what both have


def test_three_checkpoints_are_corrected_for_being_many(two, tmp_path):
    third = table(tmp_path / "third.csv", 9, lift=0.1)
    rows = json.loads(passk(*two, third, "--compare", "--k", "1", "--format", "json"))["tables"]["difference"]
    assert all(row["p_holm"] >= row["p"] for row in rows)
    assert max(row["p_holm"] / row["p"] for row in rows) == pytest.approx(2)


def test_files_and_figure(two, tmp_path):
    out = tmp_path / "out"
    passk(*two, "--compare", "-o", out)
    names = {path.name for path in out.iterdir()}
    assert names == {"passk.csv", "difference.csv", "discordant.csv", "passk.json", "passk.svg", "passk.png"}
    rows = list(csv.DictReader((out / "passk.csv").open()))
    assert {row["run"] for row in rows} == {"base.csv", "tuned.csv"}
    assert "pass@k_stderr" in rows[0]
    assert json.loads((out / "passk.json").read_text())["tables"]["difference"][0]["k"] == 1


def test_other_problems_are_refused_unless_common(two, tmp_path):
    short = table(tmp_path / "short.csv", 5, problems=30)
    with pytest.raises(DataError, match=r"only base\.csv has p30, p31, p32 and 7 more"):
        passk(two[0], short, "--compare")
    assert "30 problems, paired" in passk(two[0], short, "--compare", "--common")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--k", "9"], "has 8 answers to 'p00'"),
        (["--k", "0"], "at least 1"),
        (["--compare"], "two checkpoints"),
        (["a.csv,"], "names no file"),
        (["a=", "--compare"], "names no file"),
        (["-o", __file__], "no folder"),
    ],
)
def test_settings_that_cannot_be(two, words, why):
    with pytest.raises(SettingsError, match=why):
        passk(two[0], *words)


def test_two_checkpoints_of_one_name(two):
    with pytest.raises(SettingsError, match="same name"):
        passk(f"a={two[0]}", f"a={two[1]}", "--compare")
