"""`hesnr ladder` as people call it, on real score files and on made-up ones with downstream scores."""

import importlib.util
import json
import re
import shutil
from types import SimpleNamespace

import pytest

from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.cli import ladder as command
from hesnr_tasks.cli import main
from hesnr_tasks.ladder.evidence import Verdict, comparable_groups
from hesnr_tasks.ladder.run import Job, JobResult
from hesnr_tasks.ladder.schema import Checkpoint
from hesnr_tasks.stats import Estimate
from tests.golden.commands import HERE
from tests.unit.analysis import made

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
    code, out, err = run(capsys, "check", path)
    assert code == 1  # the models of these runs are not there any more
    assert ": there is no folder hesnr_tasks/demo/" in err
    assert 'step1000-2k  1000     2048\n    model: "hesnr_tasks/demo/ladder/step1000-2k"' in out
    code, out, _ = run(capsys, "verdict", RUNS, "--ladder", path, *QUICK)
    assert code == 0
    assert out.startswith("Choose step1000-2k: best by HE-SNR, and 8 trajectories tell it from every other")


def test_check_says_what_a_run_would_miss_and_fits_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "ladder.yaml"
    name = "a-checkpoint-of-a-rather-long-name"
    entries = [
        f"- {{name: {name}, family: fam, stage: long-context, step: 1000000, context: 32k, model: ./nowhere}}",
        f"- {{name: tuned, sft_of: {name}, downstream: {{swe verified: 31.2, live: 20}}}}",
    ]
    path.write_text("trajectories: [none.jsonl]\ntasks: [hesnr_swee, hesnr_sw*]\ncheckpoints:\n" + "\n".join(entries))
    code, out, err = run(capsys, "check", path)
    assert code == 1
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "there is no file or folder 'none.jsonl'" in err
    assert f"{name}: there is no folder ./nowhere" in err
    assert "there is no task 'hesnr_swee'. Did you mean 'hesnr_swe'?" in err
    assert len(err.splitlines()) == 3
    code, _, again = run(capsys, "run", path, "-o", tmp_path / "out")
    assert code == 2
    assert again.count("\n") == (3 if importlib.util.find_spec("lm_eval") else 1)  # before anything is scored
    assert not (tmp_path / "out").exists()
    path.write_text(path.read_text().replace("tasks: [", "model: local-completions\ntasks: ["))
    assert "no folder" not in run(capsys, "check", path)[2]  # a server has folders of its own


def test_learned_rankers_are_in_every_format(ladder_of_six, tmp_path, capsys):
    table = tmp_path / "scores.csv"
    table.write_text("checkpoint,s|w_e\n" + "".join(f"c{i},{30 + 3 * (i % 2) + i}\n" for i in range(6)))
    words = ["verdict", ladder_of_six, "--downstream", table, "--proxies", "he_snr", "ppl", "bpb", *QUICK]
    _, markdown, _ = run(capsys, *words, "--format", "markdown")
    assert "**Learned rankers, cross-validated**" in markdown
    assert "| task | ranker | left out | checkpoints | error | of the mean | nearer | ordered | uses |" in markdown
    (row,) = (line for line in markdown.splitlines() if "linear RankSVM" in line)
    assert row.startswith("| s\\|w_e | linear RankSVM | checkpoint | 6 | ")
    assert "fewer than 8 checkpoints: nothing learned from so few can be believed" in markdown
    _, latex, _ = run(capsys, *words, "--format", "latex")
    assert latex.count(r"\begin{tabular}") == 2
    assert r"s|w\_e & linear RankSVM & checkpoint & 6 & " in latex
    outside = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", "", latex, flags=re.S)
    assert all(line.startswith("%") for line in outside.splitlines() if line)
    _, text, _ = run(capsys, *words, "--format", "json")
    assert len(json.loads(text)["learned"]["s|w_e"]) == 6


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
    assert claims["lcb", "pooled"]["notes"][0].startswith("c4 is the only checkpoint of family small")
    assert ("lcb", "big") not in claims  # the same four
    assert claims["swe", "pooled"]["checkpoints"] == 1
    assert claims["swe", "pooled"]["verdict"] == "undecided"
    assert any("trained on swe-smith" in note for note in verdict["notes"])
    measured = {row["checkpoint"]: row["swe_measured"] for row in verdict["tables"]["ladder"]}
    assert measured["c0"] == "c5"


def test_the_proxy_and_the_group_stay_where_the_terminal_is_narrow(ladder_of_six, tmp_path, capsys, monkeypatch):
    path = tmp_path / "ladder.yaml"
    entries = [f"- {{name: c{i}, family: a-family-with-quite-a-long-name, stage: long-context}}" for i in range(5)]
    path.write_text("\n".join(["checkpoints:", *entries, "- {name: c5, sft_of: c4}"]))
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run(capsys, "verdict", ladder_of_six, "--ladder", path, "--proxy", "top1_acc", *QUICK)
    heading = out.split("The ladder\n")[1].splitlines()[0]
    assert heading.split() == ["checkpoint", "verdict", "group", "Top-1", "↑"]


def test_sft_and_rl_are_never_in_one_order(ladder_of_six, tmp_path, capsys):
    stages = ("mid", "mid", "sft", "sft", "rl", "rl")
    rows = [f"- {{name: c{i}, stage: {s}, downstream: {{swe: {10 + i}}}}}\n" for i, s in enumerate(stages)]
    (tmp_path / "ladder.yaml").write_text("checkpoints:\n" + "".join(rows))
    options = "--ladder", tmp_path / "ladder.yaml", "--format", "json", *QUICK
    code, out, _ = run(capsys, "verdict", ladder_of_six, *options)
    assert code == 0
    verdict = json.loads(out)
    groups = [f"{kind} checkpoints" for kind in ("base", "fine-tuned (sft)", "fine-tuned (rl)")]
    assert [choice["group"] for choice in verdict["choices"]] == groups
    assert [claim["group"] for claim in verdict["claims"]] == ["pooled", *groups[1:]]
    assert "swe (fine-tuned (rl) checkpoints): 2 checkpoints" in verdict["claims"][2]["sentence"]
    four = "checkpoints:\n" + "".join(rows).replace("mid", "sft").replace("stage: rl", "stage: mid")
    (tmp_path / "ladder.yaml").write_text(four)
    code, out, _ = run(capsys, "verdict", ladder_of_six, *options)
    (tuned,) = (claim for claim in json.loads(out)["claims"] if claim["checkpoints"] == 4)
    assert (tuned["group"], tuned["stages"]) == ("fine-tuned checkpoints", {"sft": 4})


def test_a_stage_that_the_name_contradicts_is_said(ladder_of_six, tmp_path, capsys):
    shutil.copytree(ladder_of_six / "runs" / "c0", tmp_path / "runs" / "c0")
    (tmp_path / "runs" / "c0" / "ladder.json").write_text(json.dumps({"name": "c0-sft"}))
    (tmp_path / "ladder.yaml").write_text("checkpoints:\n- {name: c0-sft, stage: rl}\n")
    _, out, _ = run(capsys, "verdict", tmp_path / "runs", "--ladder", tmp_path / "ladder.yaml", *QUICK)
    assert "c0-sft: its name tells of sft and its stage is rl" in out


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


def test_latex_of_groups_with_other_metrics_leaves_cells_empty():
    common = {"verdict": "best"}
    rows = [{"checkpoint": "a", **common, "ppl": 2.0}, {"checkpoint": "b", **common, "bpb": 1.5}]
    text = command._latex(Verdict((), (), (), {}, Table("ladder", "The ladder", rows), ()))
    assert r"\textbf{a} & 2 & -- \\" in text
    assert r"\textbf{b} & -- & 1.5 \\" in text


def test_a_downstream_task_may_be_called_as_a_column_of_the_table(ladder_of_six, tmp_path, capsys):
    table = tmp_path / "scores.csv"
    lines = [f"c{i},{i},{i},9" for i in range(6)]
    table.write_text("\n".join(["checkpoint,verdict,top1_acc,he_snr (score)", *lines]))
    words = ["verdict", ladder_of_six, "--downstream", table, "--format", "markdown", *QUICK]
    status, out, _ = run(capsys, *words)
    plain = run(capsys, *words[:2], *words[4:])[1]
    heading, row = (next(x for x in out.splitlines() if x.startswith(start)) for start in ("| checkpoint", "| c0"))
    assert status == 0
    assert heading.endswith("| verdict (score) | top1 acc (score) | he snr (score) |")
    assert row.endswith("| 0.0000 | 0.0000 | 9.0000 |")
    assert row.removesuffix("0.0000 | 0.0000 | 9.0000 |").rstrip() in plain  # the metric is the metric


def test_markdown_is_a_table_of_pipes_with_ties_marked(ladder_of_six, capsys):
    _, out, _ = run(capsys, "verdict", ladder_of_six, "--format", "markdown", *QUICK)
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| c0 | best | ")
    assert any(line.startswith("| c2 | tie | ") for line in lines)


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


def test_a_live_table_shows_state_share_and_metric(tmp_path, capsys):
    live, table = pytest.importorskip("rich.live").Live, pytest.importorskip("rich.table").Table
    todo = [Job(f"c{i}", ("x",), tmp_path / f"c{i}", "m", "") for i in range(4)]
    view = command._LiveTable(todo, live, table)
    (tmp_path / "c0").mkdir()
    shutil.copy(next(RUNS.rglob("results_*.json")), tmp_path / "c0")
    view.report(JobResult("c0", "scored", 3.0))
    view.report(JobResult("c1", "failed", 3.0, "no such luck"))
    (tmp_path / "c2").mkdir()
    todo[2].log.write_text("scoring: 30% of 1.2M tokens, 02:03 left (5k)\n")
    capsys.readouterr()
    view.close()
    shown = capsys.readouterr().out
    rows = {cells[1]: cells[2:-1] for line in shown.splitlines() if len(cells := re.split(r" *│ *", line)) > 3}
    assert "2 of 4 checkpoints" in shown
    assert rows["c0"][:3] == ["scored", "100%", ""]
    assert "±" in rows["c0"][3]
    assert rows["c1"] == ["failed", "", "", ""]
    assert rows["c2"] == ["running", "30%", "02:03", ""]
    assert rows["c3"] == ["waiting", "", "", ""]
    assert "c1: no such luck" in shown


def test_time_left_counts_shards_and_only_what_was_scored_now(tmp_path, capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(command.time, "monotonic", lambda: clock.now)
    todo = [Job(f"c{i}", ("x",), tmp_path / f"c{i}", "m", "", shards=(("x",), ("x",), ("x",))) for i in range(4)]
    view = command._Lines(todo)
    view.report(JobResult("c0", "scored before", 0.0))
    view.watch({"c1": 0, "c2": 0, "c3": 3})
    clock.now = 70.0
    view.report(JobResult("c1", "scored", 5.0))
    # two of three checkpoints have their shards: 1 + 3/4 of 3 in 70 s
    assert "[2/4] c1: scored in 5 s, about 0:50 left" in capsys.readouterr().out
    plain = command._Lines([job._replace(shards=()) for job in todo])
    clock.now = 80.0
    plain.report(JobResult("c0", "scored before", 0.0))
    plain.report(JobResult("c1", "failed", 1.0))
    plain.report(JobResult("c2", "scored", 10.0))
    assert "about 0:10 left" in capsys.readouterr().out
    plain.report(JobResult("c3", "scored", 10.0))
    capsys.readouterr()
    todo = [job._replace(shards=()) for job in todo]
    two = command._Lines(todo)  # at a time: the second one is as far as the first, though it has printed nothing yet
    for job in todo[:2]:
        job.folder.mkdir()
        job.log.write_text("Loading\n")
    two.watch({})
    clock.now += 30.0
    two.report(JobResult("c0", "scored", 30.0))
    assert "[1/4] c0: scored in 30 s, about 0:30 left" in capsys.readouterr().out
    two.report(JobResult("c1", "scored", 30.0))
    assert "[2/4] c1: scored in 30 s, about 0:30 left" in capsys.readouterr().out
    assert "left" not in capsys.readouterr().out


# --- what makes a verdict less than it looks --------------------------------------------------------------------------


def verdict_of(capsys, folder, yaml, *words):
    """The verdict on made-up score files under folder/NAME."""
    (folder / "ladder.yaml").write_text("checkpoints:\n" + yaml)
    code, out, err = run(
        capsys, "verdict", folder, "--ladder", folder / "ladder.yaml", "--format", "json", *QUICK, *words
    )
    assert code == 0, err
    return json.loads(out)


def test_scores_that_judge_nothing_and_checkpoints_without_are_named(tmp_path, capsys):
    for i in range(3):
        made.run_of(tmp_path / f"c{i}", 6, 80, seed=i, model=f"org/c{i}")
    yaml = "- {name: c0, stage: mid, downstream: {lcb: 10}}\n- {name: c1, stage: mid}\n- {name: c2, stage: mid}\n"
    yaml += "- {name: x-sft, stage: sft, downstream: {swe: {value: 30, n: 500}}}\n"
    notes = verdict_of(capsys, tmp_path, yaml)["notes"]
    (other,) = (note for note in notes if note.startswith("swe:"))
    assert "its scores are of x-sft (stage: sft), and none of them judges a checkpoint that was scored" in other
    assert "sft_of" in other
    assert "lcb: no score judges c1, c2; not counted there" in notes


def test_tokenizers_are_compared_by_bits_per_byte_alone(tmp_path, capsys):
    for i, tokenizer in enumerate("xxyy"):
        made.run_of(tmp_path / f"c{i}", 6, 400, seed=i, quality=0.3 * i, model=f"org/c{i}", tokenizer=tokenizer)
    verdict = verdict_of(capsys, tmp_path, "".join(f"- {{name: c{i}}}\n" for i in range(4)))
    choices = {choice["group"]: choice for choice in verdict["choices"]}
    assert list(choices) == [
        "base checkpoints with the tokenizer of c0", "base checkpoints with the tokenizer of c2",
        "base checkpoints, across tokenizers",
    ]  # fmt: skip
    across = choices["base checkpoints, across tokenizers"]
    assert across["proxy"] == "BPB"
    rows = {row["checkpoint"]: row["bpb"]["value"] for row in verdict["tables"]["ladder"]}
    assert across["best"] == min(rows, key=rows.get)
    assert {*across["p_holm"]} == {*rows} - {across["best"]}
    assert any(
        "2 tokenizers, and metrics per token cannot be compared across them" in note for note in verdict["notes"]
    )


def test_a_checkpoint_with_few_of_the_trajectories_does_not_take_them_from_all(tmp_path, capsys):
    for i, count in enumerate((2, 9, 9, 8)):
        made.run_of(tmp_path / f"c{i}", count, 80, seed=i, model=f"org/c{i}")
    verdict = verdict_of(capsys, tmp_path, "".join(f"- {{name: c{i}}}\n" for i in range(4)))
    assert verdict["choices"][0]["trajectories"] == 8
    assert any(note.startswith("c0 has 2 trajectories and most have 9: it is left out") for note in verdict["notes"])
    assert [row["checkpoint"] for row in verdict["tables"]["ladder"]] == ["c1", "c2", "c3"]


def test_the_first_checkpoint_does_not_decide_which_ones_are_alike(tmp_path, capsys):
    made.run_of(tmp_path / "c0", 6, 80, first_key=100, model="org/c0")
    for i in (1, 2):
        made.run_of(tmp_path / f"c{i}", 6, 80, seed=i, model=f"org/c{i}")
    verdict = verdict_of(capsys, tmp_path, "".join(f"- {{name: c{i}}}\n" for i in range(3)))
    assert [row["checkpoint"] for row in verdict["tables"]["ladder"]] == ["c1", "c2"]
    assert any(note.startswith("c0 is left out: the runs have no text in common") for note in verdict["notes"])


def test_runs_that_failed_are_counted(tmp_path, capsys):
    made.run_of(tmp_path / "c0", 6, 80, model="org/c0")  # every third is known to have failed
    (note,) = (n for n in verdict_of(capsys, tmp_path, "- {name: c0}\n")["notes"] if "not to have solved" in n)
    assert note.startswith("base checkpoints: 2 of the 6 trajectories are known not to have solved their task")


def test_two_folders_of_one_checkpoint_the_larger_is_taken_and_both_are_shown(tmp_path, capsys):
    made.run_of(tmp_path / "a" / "c0", 3, 400, model="org/c0", dtype="torch.bfloat16")
    made.run_of(tmp_path / "b" / "c0", 9, 400, model="org/c0")
    verdict = verdict_of(capsys, tmp_path, "- {name: c0}\n")
    assert verdict["choices"][0]["trajectories"] == 9
    (note,) = (note for note in verdict["notes"] if "two folders" in note)
    assert "those of " + str(tmp_path / "a" / "c0") in note
    assert "dtype" in note
    assert "of 9 trajectories against" in note
    value = verdict["tables"]["ladder"][0]["he_snr"]
    assert f"{Estimate(value['value'], value['stderr']).text} of 9" in note  # as the table has it


def test_a_short_context_pass_never_stands_for_a_checkpoint(tmp_path, capsys):
    for i, name in enumerate(("c0", "c1")):
        made.run_of(tmp_path / "a" / name, 9, 400, seed=i, model=f"org/{name}", window=512)
    code, _, err = run(capsys, "verdict", tmp_path / "a")
    assert code == 2
    assert len(err.strip().splitlines()) == 2
    for i, name in enumerate(("c0", "c1")):
        made.run_of(tmp_path / "b" / name, 9, 400, seed=i + 2, model=f"org/{name}")
    yaml = "- {name: c0}\n- {name: c1}\n"
    both = verdict_of(capsys, tmp_path, yaml)
    assert "short-context passes are left out: c0 (window 512), c1 (window 512)" in both["notes"]
    assert both["choices"] == verdict_of(capsys, tmp_path / "b", yaml)["choices"]


def test_a_pipeline_fails_on_any_group_and_on_nonsense(tmp_path, capsys):
    for i in range(2):
        made.run_of(tmp_path / f"c{i}", 6, 400, seed=i, quality=0.9 * i, model=f"org/c{i}")
    yaml = "- {name: c0, stage: mid}\n- {name: c1, stage: sft}\n"
    rows = verdict_of(capsys, tmp_path, yaml)["tables"]["ladder"]
    low, high = sorted(row["top1_acc"]["value"] for row in rows)
    words = ["verdict", tmp_path, "--ladder", tmp_path / "ladder.yaml", *QUICK, "--fail-under"]
    assert run(capsys, *words, f"top1_acc={low}")[0] == 0
    code, _, err = run(capsys, *words, f"top1_acc={(low + high) / 2}")
    assert (code, err.count("worse than")) == (3, 1)
    for wrong in ("he_snr=nan", "he_snr", "tokens=5", "nothing=1"):
        assert run(capsys, *words, wrong)[0] == 2


def test_names_cannot_break_latex(tmp_path, capsys):
    made.run_of(tmp_path / "c0", 6, 400, model="org/c0")
    (tmp_path / "ladder.yaml").write_text("checkpoints:\n- {name: 'c0', family: 'a\\b_{c}~^#'}\n")
    _, out, _ = run(capsys, "verdict", tmp_path, "--ladder", tmp_path / "ladder.yaml", "--format", "latex", *QUICK)
    assert r"a\textbackslash{}b\_\{c\}\textasciitilde{}\textasciicircum{}\#" in out
