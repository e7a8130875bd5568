"""The page: nothing of a name or a trajectory is markup, nothing is loaded, and what is missing is said."""

import argparse
import base64
import csv
import hashlib
import html
import io
import json
import re
import subprocess
import sys

import pytest

from hesnr_tasks.cli.analyze import analyze, analyze_arguments
from hesnr_tasks.metrics import metric, unregister
from hesnr_tasks.report import data as report_data
from hesnr_tasks.report import figures
from hesnr_tasks.report.results import find_score_folders
from hesnr_tasks.scores import ScoreStore, Source
from tests.slow import browser
from tests.unit.analysis import made as analysis_made
from tests.unit.report import ladders
from tests.unit.report.ladders import report
from tests.unit.scores import made

pytestmark = pytest.mark.slow

HOSTILE = (
    "step1-2k<script>window.__hacked=1<script>",
    'step2-8k&lt;"><img src=x onerror=alert(1)>',
    "step3-8k|a",
)


def hostile_scores(folder):
    """A ladder with hostile names, trajectory ids, texts and tokens."""
    for i, name in enumerate(HOSTILE):
        analysis_made.run_of(folder / f"s{i}", 4, 60, seed=i, model=f"made/{name}")
        store = ScoreStore.open(folder / f"s{i}")
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
    assert text.count("<script") == 1  # our own
    assert "<img" not in text
    assert "<svg onload" not in text
    assert " style=" not in text  # the policy would refuse it
    assert "\x1b" not in text
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1])
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_a_real_browser_shows_the_page_without_a_complaint(hostile_page):
    if browser.binary() is None:
        pytest.skip("no Chromium is installed (chromium, chromium-browser or google-chrome)")
    tab = browser.Browser()
    try:
        tab.open(hostile_page)
        assert tab.problems == []
        assert tab.requests == [hostile_page.as_uri()]
        assert tab.evaluate("typeof window.__hacked") == "undefined"
        assert tab.evaluate("document.querySelectorAll('figure svg').length") >= 7
        assert tab.evaluate("[...document.querySelectorAll('figure svg')].every((s) => s.getBBox().width > 100)")
        assert tab.evaluate("document.querySelectorAll('use title').length") >= 20
        assert tab.evaluate("document.scripts.length") == 1
        heads = tab.evaluate("[...document.querySelectorAll('#verdict th')].map((head) => head.textContent)")
        column = heads.index("HE-SNR ↑")
        tab.evaluate(f"document.querySelectorAll('#verdict th button')[{column}].click()")
        rows = f"[...document.querySelector('#verdict tbody').rows].map((row) => row.cells[{column}].textContent)"
        values = [float(text.split()[0]) for text in tab.evaluate(rows) if text[0].isdigit()]
        assert len(values) > 2
        assert values == sorted(values, reverse=True)
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
    actual = re.findall(r'<a download="([^"]+)" href="data:text/csv;base64,([^"]+)"', hostile_page.read_text())
    for name, data in actual:
        assert base64.b64decode(data).decode() == (hostile_page.parent / "figures" / name).read_text()
    assert "fig02_steps.csv" in dict(actual)


def test_the_leaderboard_alone_loads_no_library_for_figures(tmp_path):
    ladders.result(tmp_path, "step1")
    code = (
        "import sys; from hesnr_tasks import cli; cli.main(['report', sys.argv[1]]);"
        "print([name for name in ('matplotlib', 'pyarrow', 'torch', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "step1" in done.stdout


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Three tiny trained models through the real lm_eval, with score files where it puts them."""
    from tests import tiny
    from tests.lm_eval_run import SMALL, evaluate, write

    folder = tmp_path_factory.mktemp("real")
    shorter = [SMALL[i % 3].__class__(f"part{i}", SMALL[i % 3].messages[: 3 + i // 3]) for i in range(6)]
    data = write(folder / "t.jsonl", [*SMALL, *shorter])
    for steps, name in ((5, "step5-2k"), (10, "step10-8k"), (15, "step10-8k-sft")):
        place = folder / "runs" / name
        model = tiny.llama(str(folder / name), steps=steps)
        metadata = {"trajectories": data, "scores": str(place / "scores" / "run"), "keep": "observation+thought+action"}
        actual = evaluate(model, ["hesnr_swe", "hesnr_swe_unfiltered"], metadata)
        actual.pop("samples", None)
        (place / "model").mkdir(parents=True)
        (place / "model" / "results_1.json").write_text(json.dumps(actual, default=str))
    (folder / "down.csv").write_text("checkpoint,score\nstep5-2k,1\nstep10-8k,3\nstep10-8k-sft,2.5\n")
    return folder


def test_real_runs_make_every_figure_with_the_bits_of_analyze(real, capsys):
    report(real / "runs", "--downstream", real / "down.csv", "-o", real / "out", "--resamples", 300)
    out = real / "out"
    assert "hesnr: without" not in capsys.readouterr().err  # nothing is missing
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "fig01_ppl_accuracy", "fig02_steps", "fig03_density", "fig03_entropy", "fig05_observation_density",
        "fig05_observation_entropy", "fig06_downstream", "fig07_extension", "fig08_sft", "sweep",
    }  # fmt: skip
    rows = list(csv.DictReader((out / "figures" / "fig02_steps.csv").open()))
    assert [row["checkpoint"] for row in rows] == ["step5-2k", "step10-8k", "step10-8k-sft"]
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    for row in rows:
        scores = str(real / "runs" / row["checkpoint"] / "scores")
        arguments = parser.parse_args([scores, "--format", "json", "--resamples", "300"])
        want = json.loads(analyze(arguments))["tables"]["results"][0]
        for name in ("he_snr", "ppl"):
            for part, end in (("value", ""), ("stderr", "_stderr"), ("low", "_low"), ("high", "_high")):
                analyzed = "" if want[name][part] is None else f"{want[name][part]:.6g}"  # empty: withheld
                assert row[name + end] == (analyzed and repr(float(analyzed))), (name, part)
    saved = json.loads((real / "runs" / "step5-2k" / "model" / "results_1.json").read_text())
    assert float(rows[0]["ppl"]) == pytest.approx(saved["results"]["hesnr_swe"]["ppl,none"], rel=1e-5)
    cases = list(csv.DictReader(io.StringIO((out / "tables" / "cases.csv").read_text())))
    assert {row["near"] for row in cases} <= {"ln 2", "ln 3", "ln 4"}
    assert {row["run"] for row in cases} == {"step10-8k-sft"}


def test_score_files_are_found_by_signature_not_by_name(real):
    from hesnr_tasks.report.results import read_results

    rows = read_results([real / "runs"])
    actual, remarks = find_score_folders(rows, [real / "runs"])
    assert {name: folder.parent.parent.name for name, folder in actual.items()} == {
        row.model: row.model for row in rows
    }
    assert remarks == []
    other = [row._replace(signature={**row.signature, "render": "chatml"}) for row in rows]
    assert find_score_folders(other, [real / "runs"])[0] == {}


def test_a_report_twice_is_the_same_to_the_byte(tmp_path):
    ladders.score_files(tmp_path / "scores", ["step5-2k"], 4, 200)
    for name in ("a", "b"):
        report(tmp_path / "scores", "-o", tmp_path / name, "--resamples", 200)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".csv", ".html", ".json", ".md", ".png", ".svg"}
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_intervals_do_not_depend_on_a_seed(real):
    from hesnr_tasks.ladder.names import read_ladder
    from hesnr_tasks.report.data import build_report_data

    folder = real / "runs" / "step5-2k" / "scores" / "run"
    ladder = read_ladder(["step5-2k"])
    values = [
        build_report_data([], ladder, {"step5-2k": folder}, resamples=200, seed=seed).values for seed in (1, 1, 2)
    ]
    highs = [entry["action-xml-format-comments"]["step5-2k"]["ppl"].ci_high for entry in values]
    assert highs[0] == highs[1] == highs[2]  # of a closed form: no seed is behind it


def _no_pool(*_):
    raise OSError("no semaphores here")


def test_in_processes_in_this_one_and_where_none_starts_the_files_are_the_same(tmp_path, monkeypatch):
    for index, name in enumerate(("step1-2k", "step2-2k", "step3-8k")):
        analysis_made.run_of(tmp_path / "scores" / name, 5, 80, seed=index, model=f"made/{name}")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    contents = {}
    for where in ("processes", "this process", "no process starts"):
        for path in tmp_path.glob("scores/*/summary-*.cache"):
            path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(report_data, "_MANY", 1e12 if where == "this process" else 0)
            if where == "processes":  # this process has neither
                patch.delattr(report_data, "cached_summary")
                patch.delattr(report_data, "measure")
                patch.delattr(figures, "look")
            if where == "no process starts":
                patch.setattr(report_data, "ProcessPoolExecutor", _no_pool)
            report(tmp_path / "scores", "-o", tmp_path / where, "--resamples", 200)
        files = sorted(path for path in (tmp_path / where).rglob("*") if path.is_file())
        contents[where] = {str(path.relative_to(tmp_path / where)): path.read_bytes() for path in files}
    assert len(list(tmp_path.glob("scores/*/summary-*.cache"))) == 3
    assert any(name.endswith(".png") for name in contents["this process"])
    assert contents["processes"] == contents["this process"] == contents["no process starts"]


def test_metrics_of_users_are_computed_in_the_process_that_has_them(tmp_path, monkeypatch):
    folders = {}
    for index, name in enumerate(("step1", "step2")):
        analysis_made.run_of(tmp_path / name, 4, 60, seed=index, model=f"made/{name}")
        folders[name] = tmp_path / name
    monkeypatch.setattr(report_data, "_MANY", 0)

    @metric("of_a_user")
    def of_a_user(tokens):
        return tokens.logprob

    try:
        summaries, _, notes = report_data.read_summaries([], folders)
    finally:
        unregister("of_a_user")
    assert not notes
    sums = summaries[0].runs["action"].sums
    assert sums.column("of_a_user").tolist() == (-sums.column("ppl")).tolist()
