"""`hesnr ladder` as people call it, on real score files and on made-up ones with downstream scores."""

import json
import shutil
from types import SimpleNamespace

import pytest

from hesnr_tasks.cli import main
from hesnr_tasks.ladder.evidence import comparable_groups
from hesnr_tasks.ladder.schema import Checkpoint
from tests.golden.commands import HERE

pytest.importorskip("pyarrow")
RUNS = HERE / "runs"
QUICK = ["--resamples", "300"]


@pytest.fixture(scope="module")
def ladder_of_six(tmp_path_factory):
    """Six copies of two real runs under other names: a family of four and one of two, and one fine-tuned."""
    folder = tmp_path_factory.mktemp("ladder")
    sources = sorted(RUNS.glob("*/scores/*"))
    for i in range(6):
        target = folder / "runs" / f"c{i}" / "scores" / f"c{i}"
        shutil.copytree(sources[i % 2], target)
        (folder / "runs" / f"c{i}" / "ladder.json").write_text(json.dumps({"name": f"c{i}"}))
    return folder


def run(capsys, *words):
    code = main(["ladder", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_init_writes_a_file_that_check_and_verdict_read(tmp_path, capsys):
    path = tmp_path / "ladder.yaml"
    assert run(capsys, "init", RUNS, "-o", path)[0] == 0
    assert run(capsys, "init", RUNS, "-o", path)[0] == 2  # it exists
    code, out, _ = run(capsys, "check", path)
    assert code == 0
    assert "step1000-2k: hesnr_tasks/demo/ladder/step1000-2k, step 1000, context 2,048" in out
    code, out, _ = run(capsys, "verdict", RUNS, "--ladder", path, *QUICK)
    assert code == 0
    assert out.startswith("Choose step1000-2k: best by HE-SNR, and 8 trajectories tell it from every other")


def test_the_table_has_the_numbers_of_compare(capsys):
    _, out, _ = run(capsys, "verdict", RUNS, "--format", "json", *QUICK)
    verdict = json.loads(out)
    assert main(["compare", *sorted(str(p) for p in RUNS.glob("*/scores")), "--format", "json", *QUICK]) == 0
    compared = json.loads(capsys.readouterr().out)
    want = {row["run"][:11]: row["he_snr"]["value"] for row in compared["tables"]["compare_he_snr"]}
    rows = {row["checkpoint"]: row["he_snr"]["value"] for row in verdict["tables"]["ladder"]}
    assert rows == want
    p = next(row["p"] for row in compared["tables"]["compare_he_snr"] if row["p"] is not None)
    assert next(iter(verdict["choices"][0]["p_holm"].values())) == pytest.approx(p, rel=1e-9)


def test_base_and_fine_tuned_and_families_are_told_apart(ladder_of_six, capsys):
    yaml = "checkpoints:\n"
    for i in range(5):
        yaml += (
            f"- {{name: c{i}, family: {'big' if i < 4 else 'small'}, stage: mid, step: {i}, trained_on: [swe-smith]}}\n"
        )
    yaml += "- {name: c5, family: big, stage: sft, sft_of: c0, downstream: {swe: {value: 30, n: 500}}}\n"
    (ladder_of_six / "ladder.yaml").write_text(yaml)
    (ladder_of_six / "d.csv").write_text(
        "checkpoint,lcb,lcb_n\nc0,10,100\nc1,20,100\nc2,30,100\nc3,15,100\nc4,50,100\n"
    )
    code, out, _ = run(
        capsys, "verdict", ladder_of_six, "--ladder", ladder_of_six / "ladder.yaml",
        "--downstream", ladder_of_six / "d.csv", "--format", "json", *QUICK,
    )  # fmt: skip
    assert code == 0
    verdict = json.loads(out)
    assert [(c["group"], c["best"]) for c in verdict["choices"]] == [
        ("base checkpoints", "c0"), ("fine-tuned checkpoints", "c5"),
    ]  # fmt: skip
    claims = {(c["task"], c["group"]): c for c in verdict["claims"]}
    assert claims["lcb", "pooled"]["checkpoints"] == 4
    assert claims["lcb", "pooled"]["notes"][0].startswith("lcb: c4 is the only checkpoint of family small")
    assert ("lcb", "big") not in claims  # the same four
    assert claims["swe", "pooled"]["checkpoints"] == 1
    assert claims["swe", "pooled"]["verdict"] == "undecided"
    assert any("trained on swe-smith" in note for note in verdict["notes"])
    measured = {row["checkpoint"]: row["swe_measured"] for row in verdict["tables"]["ladder"]}
    assert measured["c0"] == "c5"


def test_another_tokenizer_is_another_group():
    def member(name, tokenizer, stage=""):
        return Checkpoint(name, stage=stage), SimpleNamespace(signature={"run": {"tokenizer": tokenizer}})

    members = [member("a", "x"), member("b", "y"), member("c", "x"), member("d", "x", "sft")]
    groups = {label: [checkpoint.name for checkpoint, _ in part] for label, part in comparable_groups(members)}
    assert groups == {
        "base checkpoints with the tokenizer of a": ["a", "c"],
        "base checkpoints with the tokenizer of b": ["b"],
        "fine-tuned checkpoints": ["d"],
    }


def test_another_rendering_is_another_group():
    def member(name, rendering):
        return Checkpoint(name), SimpleNamespace(signature={"render": rendering, "run": {"tokenizer": "x"}})

    members = [member("a", "transcript"), member("b", "native"), member("c", "transcript"), member("d", "native")]
    groups = {label: [checkpoint.name for checkpoint, _ in part] for label, part in comparable_groups(members)}
    assert groups == {"base checkpoints in transcript": ["a", "c"], "base checkpoints in native": ["b", "d"]}


def test_a_pipeline_can_fail_on_the_verdict(capsys):
    assert run(capsys, "verdict", RUNS, "--fail-under", "he_snr=0.01", *QUICK)[0] == 0
    code, _, err = run(capsys, "verdict", RUNS, "--fail-under", "he_snr=0.9", *QUICK)
    assert code == 3
    assert "worse than 0.9" in err
    assert run(capsys, "verdict", RUNS, "--fail-under", "ppl=1000", *QUICK)[0] == 0
    assert run(capsys, "verdict", RUNS, "--fail-under", "nonsense", *QUICK)[0] == 2


def test_latex_marks_ties(ladder_of_six, capsys):
    _, out, _ = run(capsys, "verdict", ladder_of_six, "--format", "latex", *QUICK)
    assert r"\textbf{c0}" in out
    assert r"c2$^\dagger$" in out  # the same scores


def test_markdown_is_a_table_of_pipes_with_ties_marked(ladder_of_six, capsys):
    _, out, _ = run(capsys, "verdict", ladder_of_six, "--format", "markdown", *QUICK)
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| **c0** | ")
    assert any(line.startswith("| c2 † | ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--proxy", "he_snrr"], "'he_snrr' must be one of"),
        (["--proxy", "tokens"], "'tokens' must be one of"),
        (["--ladder", "nowhere.yaml"], "cannot read the ladder"),
        (["--downstream", "nowhere.csv"], "no such file"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    code, _, err = run(capsys, "verdict", RUNS, *words, *QUICK)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) <= 2


def test_a_ladder_of_other_checkpoints_is_refused(tmp_path, capsys):
    (tmp_path / "l.yaml").write_text("checkpoints: [{name: other}]")
    code, _, err = run(capsys, "verdict", RUNS, "--ladder", tmp_path / "l.yaml", *QUICK)
    assert code == 2
    assert "no score folder belongs to a checkpoint" in err


def test_a_checkpoint_with_too_few_tokens_is_not_chosen(capsys):
    code, _, err = run(capsys, "verdict", RUNS, "--epsilon", "2.29", *QUICK)  # hardly a token is above it
    assert code == 2
    assert "he_snr is defined for none of step1000-2k, step1004-8k" in err
