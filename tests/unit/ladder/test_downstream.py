"""Downstream scores find their checkpoint, have one unit, or say that they do not."""

import json

import pytest

from hesnr_tasks.errors import DataError
from hesnr_tasks.ladder.names import read_ladder
from hesnr_tasks.ladder.schema import Checkpoint, DownstreamScore, Ladder, outcomes

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
    low, high = outcomes(named.ladder, "swe")["step100-32k"].interval
    assert 0 < low < 0.8 < high < 3


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
    _, named = scores([table(tmp_path, f"checkpoint,swe,n\nstep100-32k,{value},500")])
    with pytest.raises(DataError, match=r"swe of step100-32k: .* is no share"):
        outcomes(named.ladder, "swe")


def test_names_outside_ascii_are_names(tmp_path):
    names = ["模型一", "Шаг-2"]
    actual, named = scores([table(tmp_path, "checkpoint,score\nдругая,0.9\nшаг_2,0.3\n")], names)
    assert actual == {"Шаг-2": {"score": DownstreamScore(0.3)}}
    assert len(named.notes) == 1
    reports = [report(tmp_path, "模型一.verified"), report(tmp_path, "другая")]
    assert list(scores(reports, names)[0]) == ["模型一"]


def test_shares_and_per_cent_make_no_common_order(tmp_path):
    ladder = tmp_path / "ladder.yaml"
    ladder.write_text("a: {downstream: 31}\n")
    file = table(tmp_path, "checkpoint,score,n\nb,0.4,500\n")
    with pytest.raises(DataError, match=r"shares \(b: 0.4\) and some per cent \(a: 31\)"):
        read_ladder(["a", "b"], ladder, [file])
    ladder.write_text("a: {downstream: 0.3}\n")
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
