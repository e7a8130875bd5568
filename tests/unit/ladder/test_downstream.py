"""Downstream scores find their checkpoint, have one unit, or say that they do not."""

import json

import pytest

from hesnr_tasks.errors import DataError
from hesnr_tasks.ladder.downstream import add_downstream, outcomes
from hesnr_tasks.ladder.names import read_ladder
from hesnr_tasks.ladder.schema import Checkpoint, DownstreamScore, Ladder

NAMES = ["step100-32k", "step1000-32k", "runs/step2000"]


def report(folder, stem, resolved=50, total=500, **others):
    path = folder / f"{stem}.json"
    path.write_text(json.dumps({"total_instances": total, "resolved_instances": resolved, **others}))
    return path


def table(folder, text):
    path = folder / "scores.csv"
    path.write_text(text, encoding="utf-8")
    return path


def scores(files, names=NAMES):
    named = read_ladder(names, None, files)
    return {c.name: dict(c.downstream) for c in named.checkpoints if c.downstream}, named


def test_csv_with_and_without_n(tmp_path):
    text = (
        "\ufeffcheckpoint,score,n\nstep100-32k,0.1,500\nSTEP1000_32K,0.25,\n\n/ckpt/step2000/,0.3,500\nbase,0.4,500\n"
    )
    actual, named = scores([table(tmp_path, text)])
    assert actual == {
        "step100-32k": {"score": DownstreamScore(0.1, 500)},
        "step1000-32k": {"score": DownstreamScore(0.25)},
        "runs/step2000": {"score": DownstreamScore(0.3, 500)},
    }
    assert len(named.notes) == 1
    assert "'base'" in named.notes[0]


def test_per_cent_is_told_by_the_whole_file(tmp_path):
    """0.8 beside 21.4 is 0.8 per cent, not 80."""
    _, named = scores([table(tmp_path, "checkpoint,swe,n\nstep100-32k,0.8,500\nstep1000-32k,21.4,500\n")])
    remarks: list[str] = []
    low, high = outcomes(named.ladder, "swe", remarks)["step100-32k"].interval
    assert 0 < low < 0.8 < high < 3
    assert remarks == ["swe: 0.8 (step100-32k) beside 21.4 is taken for per cent; a share is 100 times that"]


@pytest.mark.parametrize(("value", "n"), [(0.0, 20), (0.13, 500), (1.0, 7)])
def test_ends_are_where_the_score_test_rejects(value, n):
    """Wilson's interval by its definition: (p - x)² = z² x (1 - x) / n at both ends."""
    for end in DownstreamScore(value, n).interval(percent=False):
        assert (value - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / n, abs=1e-12)


def test_reports_of_the_harness_belong_to_the_checkpoint_in_their_name(tmp_path):
    folder = tmp_path / "reports"
    folder.mkdir()
    report(folder, "me__step1000-32k.verified")
    report(folder, "me__step100-32k.verified", 20, resolved_ids=["a"])
    report(folder, "me__step10.verified", 1)
    actual, named = scores([folder])
    assert {name: own["swe_bench"].value for name, own in actual.items()} == {"step1000-32k": 0.1, "step100-32k": 0.04}
    assert len(named.notes) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("checkpoint,score\nstep100-32k,nan", "score must be a number"),
        ("score,checkpoint\n0.1,x", "no downstream score belongs"),
        ("checkpoint,score\nother,0.1", "no downstream score belongs"),
        ("checkpoint,score,score\nstep100-32k,0.1,0.2", "two columns are called 'score'"),
        ("checkpoint,score,n\nstep100-32k,0.1,0", "n must be at least 1"),
        ("checkpoint,score,stderr\nstep100-32k,0.1,-1", "stderr must be at least 0"),
    ],
)
def test_wrong_tables_say_what_is_wrong(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        scores([table(tmp_path, text)])


@pytest.mark.parametrize("value", ["250", "-0.1"])
def test_a_score_with_n_is_a_share(tmp_path, value):
    _, named = scores([table(tmp_path, f"checkpoint,swe,n\nstep100-32k,{value},500\nstep1000-32k,0.5,500")])
    remarks: list[str] = []
    assert list(outcomes(named.ladder, "swe", remarks)) == ["step1000-32k"]
    assert f"swe of step100-32k: {value} is no share" in remarks[-1]


def test_names_outside_ascii_are_names(tmp_path):
    names = ["模型一", "Шаг-2"]
    actual, named = scores([table(tmp_path, "checkpoint,score\nдругая,0.9\nшаг_2,0.3\n")], names)
    assert actual == {"Шаг-2": {"score": DownstreamScore(0.3)}}
    assert len(named.notes) == 1
    reports = [report(tmp_path, "模型一.verified"), report(tmp_path, "другая")]
    assert list(scores(reports, names)[0]) == ["模型一"]


def test_shares_and_per_cent_make_no_common_order(tmp_path):
    ladder = tmp_path / "ladder.yaml"
    ladder.write_text("checkpoints: [{name: a, downstream: {score: 31}}]\n")
    file = table(tmp_path, "checkpoint,score,n\nb,0.4,500\n")
    with pytest.raises(DataError, match=r"shares \(b: 0.4\) and some per cent \(a: 31\)"):
        read_ladder(["a", "b"], ladder, [file])
    ladder.write_text("checkpoints: [{name: a, downstream: {score: 0.3}}]\n")
    assert len(outcomes(read_ladder(["a", "b"], ladder, [file]).ladder, "score")) == 2
    named = read_ladder(["a"], ladder, [table(tmp_path, "checkpoint,score\na,0.4\n")])
    assert not outcomes(named.ladder, "score")
    assert "second score of a: 0.3 and 0.4; neither counts" in " ".join(named.notes)


@pytest.mark.parametrize(("resolved", "total"), [(5, 0), (6, 5), (-1, 5), ("1", 5), (None, 5)])
def test_wrong_reports_are_refused(tmp_path, resolved, total):
    with pytest.raises(DataError, match="no SWE-bench report"):
        scores([report(tmp_path, "step100-32k", resolved, total)])
    with pytest.raises(DataError, match="no such file"):
        scores([tmp_path / "none.csv"])


LADDER = Ladder(
    (
        Checkpoint("lc-1", model="org/m", revision="s1"),
        Checkpoint("lc-2", model="org/m", revision="s2"),
        Checkpoint("lc-2-dpo", stage="rl"),
    )
)


def judged_by(files, ladder=LADDER):
    ladder, remarks = add_downstream(ladder, files)
    return {
        c.name: {task: (score.value, score.after) for task, score in c.downstream.items()}
        for c in ladder.checkpoints if c.downstream
    }, remarks  # fmt: skip


def test_reports_are_called_model_and_run(tmp_path):
    """The harness writes MODEL.RUN.json with `/` as `__`; runs are often called by a date."""
    assert judged_by([report(tmp_path, "org__lc-1.20260101")])[0] == {"lc-1": {"swe_bench": (0.1, "")}}
    assert judged_by([report(tmp_path, "org__lc-1-sft.run1")])[0] == {"lc-1": {"swe_bench": (0.1, "sft")}}
    assert judged_by([report(tmp_path, "org__lc-1-sft.20260101")])[0] == {"lc-1": {"swe_bench": (0.1, "sft")}}
    assert judged_by([report(tmp_path, "org__lc-2-dpo.run1")])[0] == {"lc-2-dpo": {"swe_bench": (0.1, "")}}
    assert judged_by([report(tmp_path, "lc-1-against-lc-2")][:0])[0] == {}
    with pytest.raises(DataError, match="no downstream score belongs"):
        judged_by([report(tmp_path, "lc-1-against-lc-2")])
    (folder := tmp_path / "eval" / "lc-2").mkdir(parents=True)
    report(folder, "output.report")
    assert judged_by([tmp_path / "eval"])[0] == {"lc-2": {"swe_bench": (0.1, "")}}


def test_what_weakens_a_report_is_said(tmp_path):
    others = {"submitted_instances": 480, "error_instances": 3, "infra_failure_instances": 2, "schema_version": 2}
    files = [report(tmp_path, "lc-1.run", **others), report(tmp_path, "lc-2.run", total=300)]
    remarks = " ".join(judged_by(files)[1])
    assert "480 of 500 instances were submitted; the others count as not resolved" in remarks
    assert "5 of 500 instances could not be evaluated; they count as not resolved" in remarks
    assert "reports of 300 and 500 instances are of different sets" in remarks


def test_a_folder_may_hold_other_files(tmp_path):
    single = tmp_path / "logs" / "report.json"
    single.parent.mkdir()
    single.write_text('{"django__django-1": {"resolved": true, "patch_exists": true}}')
    (tmp_path / "preds.json").write_text('{"django__django-1": {"model_patch": "x"}}')
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        judged_by([tmp_path])
    report(tmp_path, "lc-1.run")
    judged, remarks = judged_by([tmp_path])
    assert judged == {"lc-1": {"swe_bench": (0.1, "")}}
    assert len(remarks) == 2
    assert "cut.json" in remarks[0]
    assert "a report of single instances" in remarks[1]
    with pytest.raises(DataError, match="the report of the whole run"):
        judged_by([single])


def test_lm_eval_results_belong_to_model_and_revision(tmp_path):
    document = {
        "model_name": "org/m",
        "config": {"model_args": {"pretrained": "org/m", "revision": "s2"}},
        "results": {
            "mmlu": {"alias": "mmlu", "acc,none": 0.4, "acc_stderr,none": 0.01},
            "mmlu_law": {"alias": " - law", "acc,none": 0.2, "acc_stderr,none": 0.02},
            "wikitext": {"word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
            "hellaswag": {"acc,none": 0.5, "acc_stderr,none": "N/A", "acc_norm,none": 0.6},
            "bleu": {"bleu,none": 25.0, "bleu_stderr,none": 0.5},
        },
        "group_subtasks": {"mmlu": ["mmlu_law"]},
        "higher_is_better": {"wikitext": {"word_perplexity": False}, "hellaswag": {"acc": True}},
        "n-samples": {"hellaswag": {"original": 1000, "effective": 20}, "bleu": {"original": 9, "effective": 9}},
    }
    file = tmp_path / "results_2026-01-01.json"
    file.write_text(json.dumps(document))
    ladder, remarks = add_downstream(LADDER, [file])
    assert [c.name for c in ladder.checkpoints if c.downstream] == ["lc-2"]
    assert ladder["lc-2"].downstream == {
        "mmlu": DownstreamScore(0.4, None, 0.01, "lm-eval acc"),
        "hellaswag": DownstreamScore(0.5, 20, None, "lm-eval acc"),
        "bleu": DownstreamScore(25.0, None, 0.5, "lm-eval bleu"),
    }
    assert "wikitext has only metrics that are better when lower" in remarks[0]
    assert "hellaswag of lc-2: only 20 of 1000 instances" in remarks[1]
    document["config"] = {"model_args": "pretrained=org/m,revision=s9"}
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match="there are scores of org/m@s9"):
        add_downstream(LADDER, [file])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_scores_after_fine_tuning_neither_counts_in_any_order(order):
    pair = (
        Checkpoint("base", downstream={"swe": DownstreamScore(30.0, 500, after="sft")}),
        Checkpoint("tuned", sft_of="base", stage="sft", downstream={"swe": DownstreamScore(31.0, 500)}),
    )
    remarks: list[str] = []
    judged = outcomes(Ladder(tuple(pair[i] for i in order)), "swe", remarks)
    assert list(judged) == ["tuned"]
    assert len(remarks) == 1
    assert remarks[0].startswith("swe: base has two scores after fine-tuning: 3")


def test_a_column_that_is_better_when_lower_is_no_score(tmp_path):
    table = tmp_path / "wide.csv"
    table.write_text("checkpoint,params,ppl_wiki,eval-loss,Rank,swe\na,1,20.5,2.2,2,10\nb,1,18.5,2.1,1,20\n")
    ladder, remarks = add_downstream(Ladder((Checkpoint("a"), Checkpoint("b"))), [table])
    assert ladder.benchmarks == ["swe"]
    for column in ("ppl_wiki", "eval-loss", "Rank"):
        assert any(f"the column {column!r} is better when lower" in remark for remark in remarks)
    by_hand = Ladder((Checkpoint("a", downstream={"loss": DownstreamScore(2.0)}),))
    notes: list[str] = []
    outcomes(by_hand, "loss", notes)
    assert any("better when lower" in note for note in notes)
