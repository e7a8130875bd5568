"""A report without score files, without matplotlib, of bad input; and one page of made-up tables."""

import csv
import html
import importlib.util
import json

import matplotlib.figure
import pytest
from markupsafe import Markup

from hesnr_tasks import cli
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.report import page as page_module
from hesnr_tasks.report.data import ReportFigure
from hesnr_tasks.report.figures import SavedFigure
from hesnr_tasks.report.page import render
from tests.unit.analysis import made as analysis_made
from tests.unit.report import ladders
from tests.unit.report.ladders import report

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_cases_mark_the_token_of_the_text():
    row = {
        "run": "step1", "near": "ln 2", "trajectory": "<b>", "entropy": 0.7, "p": 0.4, "rank": 2, "turn": 3,
        "before": "a\n<i>", "token": " <u>\n", "token_id": 5, "candidates": [["x", 0.6], [" <u>\n", 0.4]],
        "candidate_ids": [4, 5],
    }  # fmt: skip
    names = ("correlations", "ablation", "neighbours", "entropy_peaks")
    tables = {name: Table(name, "", []) for name in names} | {"cases": Table("cases", "", [row])}
    text = render(ladders.report_data({}, downstream=False, names=["step1"]), tables, [])
    assert "a\n&lt;i&gt;<mark>␣&lt;u&gt;⏎</mark>" in text
    assert text.count("class=chosen") == 1
    assert "<small>&lt;b&gt;: H = 0.700 nats" in text
    assert "<i>" not in text


@pytest.mark.parametrize("coefficients", [[], [{"task": "swe"}]])
@pytest.mark.parametrize("name", ["fig02_steps", "fig06_downstream"])
def test_the_only_figure_stands_under_the_verdict(name, coefficients, monkeypatch):
    tables = {table: Table(table, "", []) for table in ("ablation", "neighbours", "entropy_peaks", "cases")}
    tables["correlations"] = Table("correlations", "", coefficients)
    monkeypatch.setattr(page_module, "_agreements", lambda data, table: [])
    figure = ReportFigure(name, "Fig. 1", "Title", "", "Caption.", (), matplotlib.figure.Figure)
    saved = SavedFigure(figure, Markup("<svg></svg>"), b"", {})
    text = render(ladders.report_data({}, downstream=False, names=["step1"]), tables, [saved])
    assert text.count(f'<figure id="{name}">') == 1
    assert '<section id="verdict">' in text
    assert '<section id="figures">' not in text


def test_without_score_files_there_is_what_json_gives_and_the_rest_is_named(tmp_path, capsys):
    for index, name in enumerate(("step1-2k", "step2-2k", "step3-8k")):
        ladders.result(tmp_path / "runs", name, 0.1 + 0.02 * index, filters=["xml", "format", "comments"])
    report(tmp_path / "runs", "-o", tmp_path / "out", "--resamples", 200)
    assert {path.name for path in (tmp_path / "out" / "figures").glob("*.svg")} == {
        "fig02_steps.svg",
        "fig07_extension.svg",
    }
    rows = list(csv.DictReader((tmp_path / "out" / "figures" / "fig02_steps.csv").open()))
    assert [float(row["he_snr"]) for row in rows] == pytest.approx([0.1, 0.12, 0.14])
    assert float(rows[0]["he_snr_high"]) == pytest.approx(0.1 + 1.96 * 0.01)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no (comparable) score files of step1-2k, step2-2k, step3-8k" in page
    assert "Bars: ± 1.96 standard errors (" in page
    printed = capsys.readouterr().err
    assert "lm_eval --model hf" in printed
    assert "--downstream" in printed


def test_without_matplotlib_there_is_a_page_that_says_so(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    analysis_made.run_of(tmp_path / "scores", 4, 60, seed=0, model="made/step1")
    report(tmp_path / "scores", "-o", tmp_path / "out", "--resamples", 200)
    assert "matplotlib is not installed" in (tmp_path / "out" / "report.html").read_text()
    assert "hesnr-tasks[report]" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.svg"))


def test_results_made_differently_share_no_figure(tmp_path):
    for name, k in (("step1", 10), ("step2", 10), ("step3", 20)):
        ladders.result(tmp_path / "runs", name, k=k, filters=["xml", "format", "comments"], trajectories=k)
    report(tmp_path / "runs", "-o", tmp_path / "out", "--resamples", 200)
    rows = list(csv.DictReader((tmp_path / "out" / "figures" / "fig02_steps.csv").open()))
    assert [row["checkpoint"] for row in rows] == ["step1", "step2"]
    captions = (tmp_path / "out" / "figures" / "captions.md").read_text()
    assert ", 10 trajectories." in captions
    assert "Bars: ± 1.96 standard errors (" in captions  # of no score files there is no other interval


def test_what_cannot_be_done_is_said(tmp_path, capsys):
    with pytest.raises(DataError, match="--tasks hesnr_swe"):
        report(tmp_path)
    ladders.result(tmp_path / "runs", "step1")
    (tmp_path / "file").write_text("")
    with pytest.raises(HesnrError, match="name another folder with -o"):
        report(tmp_path / "runs", "-o", tmp_path / "file" / "out")
    assert cli.main(["report", str(tmp_path / "runs"), "--downstream", str(tmp_path / "none.csv")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_score_files_alone_are_asked_for_a_page_and_unreadable_ones_end_the_report(tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"no checkpoint is left .*bad"):
        report(tmp_path / "bad", "-o", tmp_path / "out")
    ladders.score_files(tmp_path / "good", ["step1"], 4, 40)
    with pytest.raises(SettingsError, match="Add -o OUT"):
        report(tmp_path / "good")


def test_a_downstream_score_of_nobody_is_named_without_a_page_too(tmp_path, capsys):
    for name in ("step1", "step2"):
        ladders.result(tmp_path / "runs", name)
    (tmp_path / "down.csv").write_text("checkpoint,score\nstep1,0.3\nstep2,0.4\nstep3,0.5\n")
    report(tmp_path / "runs", "--downstream", tmp_path / "down.csv")
    assert "down.csv:4: a score of 'step3'" in capsys.readouterr().err


def test_shares_and_per_cent_of_two_sources_are_refused(tmp_path):
    for name in ("step1", "step2"):
        ladders.result(tmp_path / "runs", name)
    (tmp_path / "down.csv").write_text("checkpoint,swe_bench\nstep1,30\n")
    (tmp_path / "step2.json").write_text('{"resolved_instances": 200, "total_instances": 500}')
    with pytest.raises(DataError, match=r"\(step2: 0.4\) and some per cent \(step1: 30\)"):
        report(tmp_path / "runs", "--downstream", tmp_path / "down.csv", tmp_path / "step2.json")


def test_of_two_downstream_scores_of_one_checkpoint_neither_counts(tmp_path, capsys):
    ladders.result(tmp_path / "runs", "step1")
    (tmp_path / "ladder.yaml").write_text("checkpoints: [{name: step1, downstream: {score: 0.2}}]")
    (tmp_path / "down.csv").write_text("checkpoint,score\nstep1,0.3\n")
    report(tmp_path / "runs", "--ladder", tmp_path / "ladder.yaml", "--downstream", tmp_path / "down.csv")
    assert "down.csv:2: a second score of step1: 0.2 and 0.3; neither counts" in capsys.readouterr().err


def test_the_verdict_comes_first_and_tasks_and_families_stay_apart(tmp_path, capsys):
    names = [f"{family}-step{step}" for family in "ab" for step in range(1, 6)]
    ladders.score_files(tmp_path / "scores", names, 6, 80)
    lines = [f"{name}-sft,{10 + i},500,{i}" for i, name in enumerate(names)]
    (tmp_path / "down.csv").write_text("\n".join(["model,swe,swe_n,lcb", *lines]))
    entries = [f"- {{name: {name}, family: {name[0]}, stage: mid}}" for name in reversed(names)]
    (tmp_path / "ladder.yaml").write_text("\n".join(["checkpoints:", *entries]))
    out = tmp_path / "out"
    words = ["--ladder", tmp_path / "ladder.yaml", "--downstream", tmp_path / "down.csv", "--resamples", 200]
    report(tmp_path / "scores", "-o", out, *words)
    verdict = json.loads((out / "verdict.json").read_text())
    printed = capsys.readouterr().out
    sentences = [choice["sentence"] for choice in verdict["choices"]]
    sentences += [claim["sentence"] for claim in verdict["claims"] if not claim["part"]]
    assert printed.startswith(sentences[0])
    assert {(claim["task"], claim["group"]) for claim in verdict["claims"]} == {
        (task, group) for task in ("swe", "lcb") for group in ("pooled", "a", "b")
    }
    page = (out / "report.html").read_text()
    parts = "swe, difference of rank correlations by part: b (0 checkpoints) too few; a (5 checkpoints) "
    assert parts in html.unescape(page)
    assert page.index('<section id="verdict">') < page.index('<section id="agreement">')
    for sentence in sentences:
        assert sentence in html.unescape(page)
    rows = list(csv.DictReader((out / "tables" / "correlations.csv").open()))
    assert {(row["task"], row["group"], row["checkpoints"]) for row in rows} == {
        (task, f"base, {family}", "5") for task in ("swe", "lcb") for family in "ab"
    }
    order = [row["checkpoint"] for row in csv.DictReader((out / "figures" / "fig02_steps.csv").open())]
    assert order == list(reversed(names))
    pairs = {(row["from"][0], row["to"][0]) for row in csv.DictReader((out / "tables" / "neighbours.csv").open())}
    assert pairs == {("a", "a"), ("b", "b")}
