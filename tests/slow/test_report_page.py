"""The page: nothing of a name or a trajectory is markup, nothing is loaded, and what is missing is said."""

import argparse
import base64
import csv
import importlib.util
import io
import json
import re
import subprocess
import sys

import pytest

from hesnr_tasks import cli
from hesnr_tasks.cli import analyze
from hesnr_tasks.cli import report as command
from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.report import markup
from hesnr_tasks.report.results import find_scores
from hesnr_tasks.scores import ScoreStore, Source
from tests.slow import browser
from tests.unit.analysis import made as analysis_made
from tests.unit.report import ladders
from tests.unit.scores import made

HOSTILE = (
    "step1-2k<script>window.__hacked=1<script>",
    'step2-8k"><img src=x onerror=alert(1)>',
    "step3-8k|a",
    "step4-8k&lt;",
)


def report(*words):
    """Run `hesnr report` with its own arguments."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def hostile_scores(folder):
    """A ladder with hostile names, trajectory ids, texts and tokens."""
    for at, name in enumerate(HOSTILE):
        analysis_made.run_of(folder / f"s{at}", 4, 60, seed=at, model=f"made/{name}")
        store = ScoreStore.open(folder / f"s{at}")
        for index, key in enumerate(list(store)):
            text = store.text(key)
            bad = "</pre><script>window.__hacked=2</script><img src=x onerror='window.__hacked=3'>\x1b[31m"
            body = (bad * 99)[: len(text.rendered.text)]
            changed = text._replace(rendered=text.rendered.__class__(body, text.rendered.spans))
            source = Source(f"<svg onload=alert({index})>", None, True)
            store.write(store.read(key), text=changed, mask=made.BOTH, sources=[source])
    return folder


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    hostile_scores(folder / "scores")
    down = folder / "down.csv"
    with down.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows(
            [("checkpoint", "score", "n"), *((name.split("/")[-1], 0.1 * i, 50) for i, name in enumerate(HOSTILE, 1))]
        )
    report(folder / "scores", "--downstream", down, "-o", folder / "out", "--resamples", 200)
    return folder / "out" / "report.html"


def test_nothing_hostile_is_markup(hostile_page):
    text = hostile_page.read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "<svg" not in text
    assert re.findall(r"<img [^>]*?src=\"([^\"]{0,22})", text) == ["data:image/svg+xml;bas"] * text.count("<img ")
    assert "\x1b" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src &#x27;none&#x27;" in policy
    assert "script-src" not in policy  # so nothing is allowed


def test_a_real_browser_shows_the_page_without_a_complaint(hostile_page):
    if browser.binary() is None:
        pytest.skip("no Chromium is installed (chromium, chromium-browser or google-chrome)")
    tab = browser.Browser()
    try:
        tab.open(hostile_page)
        assert tab.problems == []
        assert tab.requests == [hostile_page.as_uri()]
        assert tab.evaluate("typeof window.__hacked") == "undefined"
        assert tab.evaluate("[...document.images].every((image) => image.naturalWidth > 100)")
        assert tab.evaluate("document.images.length") >= 7
        assert tab.evaluate("document.scripts.length") == 0
        shown = tab.evaluate("document.body.innerText")
        assert HOSTILE[2] in shown
        assert "<svg onload=alert(" in shown  # as text
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
        assert (
            tab.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") != "none"
        )  # the style is in use
    finally:
        tab.close()


def test_the_numbers_of_figures_are_in_the_page(hostile_page):
    found = re.findall(r'<a download="([^"]+)" href="data:text/csv;base64,([^"]+)"', hostile_page.read_text())
    for name, data in found:
        assert base64.b64decode(data).decode() == (hostile_page.parent / "figures" / name).read_text()
    assert "fig02_steps.csv" in dict(found)


def test_cases_mark_the_token_of_the_text():
    row = {
        "near": "ln 2", "trajectory": "<b>", "entropy": 0.7, "p": 0.4, "rank": 2, "turn": 3, "before": "a\n<i>",
        "token": " <u>\n", "token_id": 5, "candidates": [["x", 0.6], [" <u>\n", 0.4]], "candidate_ids": [4, 5],
    }  # fmt: skip
    text = markup.cases([row])
    assert "a\n&lt;i&gt;<mark>␣&lt;u&gt;⏎</mark>" in text
    assert text.count("class=chosen") == 1
    assert "<b>" not in text


# --- results alone ----------------------------------------------------------------------------------------------------


def test_without_score_files_there_is_what_json_gives_and_the_rest_is_named(tmp_path, capsys):
    for at, name in enumerate(("step1-2k", "step2-2k", "step3-8k")):
        ladders.result(tmp_path / "runs", name, 0.1 + 0.02 * at, filters=["xml", "format", "comments"])
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
    told = capsys.readouterr().err
    assert "lm_eval --model hf" in told
    assert "--downstream" in told


def test_without_matplotlib_there_is_a_page_that_says_so(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    analysis_made.run_of(tmp_path / "scores", 4, 60, seed=0, model="made/step1")
    report(tmp_path / "scores", "-o", tmp_path / "out")
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


def test_the_leaderboard_alone_loads_no_library_for_figures(tmp_path):
    ladders.result(tmp_path, "step1")
    code = (
        "import sys; from hesnr_tasks import cli; cli.main(['report', sys.argv[1]]);"
        "print([name for name in ('matplotlib', 'pyarrow', 'torch', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "step1" in done.stdout


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
    assert "down.csv:4: 'step3'" in capsys.readouterr().err


def test_shares_and_per_cent_of_two_sources_are_refused(tmp_path):
    for name in ("step1", "step2"):
        ladders.result(tmp_path / "runs", name)
    (tmp_path / "down.csv").write_text("checkpoint,score\nstep1,30\n")
    (tmp_path / "step2.json").write_text('{"resolved_instances": 200, "total_instances": 500}')
    with pytest.raises(DataError, match=r"\(step2: 0.4\) and some per cent \(step1: 30\)"):
        report(tmp_path / "runs", "--downstream", tmp_path / "down.csv", tmp_path / "step2.json")


def test_two_downstream_scores_of_one_checkpoint_are_refused(tmp_path):
    ladders.result(tmp_path / "runs", "step1")
    (tmp_path / "ladder.yaml").write_text("step1: {downstream: 0.2}")
    (tmp_path / "down.csv").write_text("checkpoint,score\nstep1,0.3\n")
    with pytest.raises(DataError, match="two downstream scores"):
        report(tmp_path / "runs", "--ladder", tmp_path / "ladder.yaml", "--downstream", tmp_path / "down.csv")


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Four tiny trained models through the real lm_eval, with score files where it puts them."""
    from tests import tiny
    from tests.lm_eval_run import SMALL, evaluate, write

    folder = tmp_path_factory.mktemp("real")
    shorter = [SMALL[i % 3].__class__(f"part{i}", SMALL[i % 3].messages[: 3 + i // 3]) for i in range(6)]
    mixed = [SMALL[i].__class__(f"mixed{i}", SMALL[i].messages + SMALL[i - 1].messages[1:]) for i in range(3)]
    data = write(folder / "t.jsonl", [*SMALL, *shorter, *mixed])
    for steps, name in ((5, "step5-2k"), (15, "step15-2k"), (25, "step25-8k"), (35, "step25-8k-sft")):
        place = folder / "runs" / name
        model = tiny.llama(str(folder / name), steps=steps)
        metadata = {"trajectories": data, "scores": str(place / "scores" / "run"), "keep": "observation+thought+action"}
        found = evaluate(model, ["hesnr_swe", "hesnr_swe_unfiltered"], metadata)
        found.pop("samples", None)
        (place / "model").mkdir(parents=True)
        (place / "model" / "results_1.json").write_text(json.dumps(found, default=str))
    (folder / "down.csv").write_text("checkpoint,score\nstep5-2k,1\nstep15-2k,2\nstep25-8k,3\nstep25-8k-sft,2.5\n")
    return folder


def test_real_runs_make_every_figure_with_the_bits_of_analyze(real, capsys):
    report(real / "runs", "--downstream", real / "down.csv", "-o", real / "out", "--resamples", 300)
    out = real / "out"
    assert capsys.readouterr().err == ""  # nothing is missing
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "fig01_ppl_accuracy", "fig02_steps", "fig03_density", "fig03_entropy", "fig05_observation_density",
        "fig05_observation_entropy", "fig06_downstream", "fig07_extension", "fig08_sft", "sweep", "sweep_correlations",
    }  # fmt: skip
    rows = list(csv.DictReader((out / "figures" / "fig02_steps.csv").open()))
    assert [row["checkpoint"] for row in rows] == ["step5-2k", "step15-2k", "step25-8k", "step25-8k-sft"]
    parser = argparse.ArgumentParser()
    analyze.add_arguments(parser)
    for row in rows:
        scores = str(real / "runs" / row["checkpoint"] / "scores")
        asked = parser.parse_args([scores, "--format", "json", "--resamples", "300"])
        want = json.loads(analyze.analyze(asked))["tables"]["results"][0]
        for name in ("he_snr", "ppl"):
            for part, end in (("value", ""), ("stderr", "_stderr"), ("low", "_low"), ("high", "_high")):
                analyzed = "" if want[name][part] is None else f"{want[name][part]:.6g}"  # empty: withheld
                assert row[name + end] == (analyzed and repr(float(analyzed))), (name, part)
    saved = json.loads((real / "runs" / "step5-2k" / "model" / "results_1.json").read_text())
    assert float(rows[0]["ppl"]) == pytest.approx(saved["results"]["hesnr_swe"]["ppl,none"], rel=1e-5)
    cases = list(csv.DictReader(io.StringIO((out / "tables" / "cases.csv").read_text())))
    assert {row["near"] for row in cases} <= {"ln 2", "ln 3", "ln 4"}
    assert {row["run"] for row in cases} == {"step25-8k-sft"}


def test_score_files_are_found_by_signature_not_by_name(real):
    from hesnr_tasks.report.results import read_results

    rows = read_results([real / "runs"])
    found, remarks = find_scores(rows, [real / "runs"])
    assert {name: folder.parent.parent.name for name, folder in found.items()} == {row.model: row.model for row in rows}
    assert remarks == []
    other = [row._replace(signature={**row.signature, "render": "chatml"}) for row in rows]
    assert find_scores(other, [real / "runs"])[0] == {}


def test_a_report_twice_is_the_same_to_the_byte(real, tmp_path):
    for name in ("a", "b"):
        report(real / "runs" / "step5-2k", "-o", tmp_path / name, "--resamples", 200)
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_intervals_do_not_depend_on_a_seed(real):
    from hesnr_tasks.report.data import study
    from hesnr_tasks.report.ladder import parse

    folder = real / "runs" / "step5-2k" / "scores" / "run"
    ends = [
        study([], [parse("step5-2k")], {"step5-2k": folder}, {}, resamples=200, seed=seed).values for seed in (1, 1, 2)
    ]
    highs = [one["action-xml-format-comments"]["step5-2k"]["ppl"].high for one in ends]
    assert highs[0] == highs[1] == highs[2]  # of a closed form: no seed is behind it
