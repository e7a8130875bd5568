"""Downstream scores find their checkpoint, or say that they do not."""

import json

import pytest

from hesnr_tasks.errors import DataError
from hesnr_tasks.report.ladder import DownstreamScore, Ladder, downstream_scores, parse_name, read_scores

NAMES = ["step100-32k", "step1000-32k", "runs/step2000"]


def report(folder, stem, resolved=50, total=500, **others):
    path = folder / f"{stem}.json"
    path.write_text(json.dumps({"total_instances": total, "resolved_instances": resolved, **others}))
    return path


def table(folder, text):
    path = folder / "scores.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_and_without_n(tmp_path):
    text = (
        "\ufeffcheckpoint,score,n\nstep100-32k,0.1,500\nSTEP1000_32K,0.25,\n\n/ckpt/step2000/,0.3,500\nbase,0.4,500\n"
    )
    actual, strange = read_scores([table(tmp_path, text)], NAMES)
    assert actual == {
        "step100-32k": DownstreamScore(0.1, 500),
        "step1000-32k": DownstreamScore(0.25),
        "runs/step2000": DownstreamScore(0.3, 500),
    }
    assert len(strange) == 1
    assert "'base'" in strange[0]


def test_per_cent_is_known_by_the_whole_file(tmp_path):
    """0.8 beside 21.4 is 0.8 per cent, not 80."""
    actual, _ = read_scores(
        [table(tmp_path, "checkpoint,score,n\nstep100-32k,0.8,500\nstep1000-32k,21.4,500\n")], NAMES
    )
    assert actual["step100-32k"] == DownstreamScore(0.8, 500, 100.0)
    low, high = actual["step100-32k"].interval
    assert 0 < low < 0.8 < high < 3


@pytest.mark.parametrize(("value", "n"), [(0.0, 20), (0.13, 500), (1.0, 7)])
def test_ends_are_where_the_score_test_rejects(value, n):
    """Wilson's interval by its definition: (p - x)² = z² x (1 - x) / n at both ends."""
    for end in DownstreamScore(value, n).interval:
        assert (value - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / n, abs=1e-12)


def test_reports_of_the_harness_belong_to_the_checkpoint_in_their_name(tmp_path):
    folder = tmp_path / "reports"
    folder.mkdir()
    report(folder, "me__step1000-32k.verified")
    report(folder, "me__step100-32k.verified", 20, resolved_ids=["a"])
    report(folder, "me__step10.verified", 1)
    actual, strange = read_scores([folder], NAMES)
    assert actual == {"step1000-32k": DownstreamScore(0.1, 500), "step100-32k": DownstreamScore(0.04, 500)}
    assert len(strange) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step100-32k,0.1", "first line must name"),
        ("", "first line must name"),
        ("checkpoint,score\nstep100-32k,many", r"scores.csv:2: score 'many' is no number"),
        ("checkpoint,score\nstep100-32k,nan", "no number"),
        ("checkpoint,score\nstep100-32k", "no number"),
        ("checkpoint,score,n\nstep100-32k,250,500", "no share"),
        ("checkpoint,score,n\nstep100-32k,-0.1,500", "no share"),
        ("score,checkpoint\n0.1", "no downstream score belongs"),
        ("checkpoint,score\nstep100-32k,31,2", r"scores.csv:2: 3 cells under 2 columns; write 31.2"),
        ("checkpoint,score,n\nstep100-32k,0.1,499.7", "scores.csv:2: n '499.7' is no number of tasks"),
        ("checkpoint,score\nother,0.1", "no downstream score belongs"),
        ("checkpoint,score\nstep100-32k,0.1\nstep100_32k,0.2", "second"),
    ],
)
def test_wrong_tables_say_where(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_scores([table(tmp_path, text)], NAMES)


def test_names_outside_ascii_are_names(tmp_path):
    actual, strange = read_scores([table(tmp_path, "checkpoint,score\nдругая,0.9\nшаг_2,0.3\n")], ["模型一", "Шаг-2"])
    assert actual == {"Шаг-2": DownstreamScore(0.3)}
    assert len(strange) == 1
    reports = [report(tmp_path, "模型一.verified"), report(tmp_path, "другая")]
    assert read_scores(reports, ["模型一", "Шаг-2"])[0] == {"模型一": DownstreamScore(0.1, 500)}


def test_shares_and_per_cent_make_no_common_order(tmp_path):
    ladder = Ladder((parse_name("a"), parse_name("b")), {"a": DownstreamScore(31, scale=100.0)})
    file = table(tmp_path, "checkpoint,score,n\nb,0.4,500\n")
    with pytest.raises(DataError, match=r"shares \(b: 0.4\) and some per cent \(a: 31\)"):
        downstream_scores(ladder, [file])
    scores = {"a": DownstreamScore(0.3), "b": DownstreamScore(0.4, 500)}
    assert downstream_scores(ladder._replace(downstream={"a": scores["a"]}), [file]) == (scores, [])


@pytest.mark.parametrize(("resolved", "total"), [(5, 0), (6, 5), (-1, 5), ("1", 5), (None, 5)])
def test_wrong_reports_are_refused(tmp_path, resolved, total):
    with pytest.raises(DataError, match="no SWE-bench report"):
        read_scores([report(tmp_path, "step100-32k", resolved, total)], NAMES)
    with pytest.raises(DataError, match="no such file"):
        read_scores([tmp_path / "none.csv"], NAMES)
