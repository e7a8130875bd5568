"""Costs against closed forms; the report from files alone; what cannot be compared is refused."""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import pytest

from hesnr_tasks.errors import DataError, SearchError, SettingsError
from hesnr_tasks.search.costs import Record, at_equal_rate, costs, points
from hesnr_tasks.search.ledger import Ledger
from hesnr_tasks.search.report import (
    add_arguments,
    draw_curves,
    kinds_table,
    report,
    run,
    savings_table,
)
from hesnr_tasks.search.report_read import read_records, write_records
from hesnr_tasks.search.types import Usage

TASKS = [f"t{i}" for i in range(8)]


def line(method, runs, rate, prompt, cached=0, output=0, judge=0, tasks=TASKS):
    usage = {"sample": Usage(prompt, cached, output), "judge": Usage(judge, 0, 0)}
    return [Record(task, method, runs, rate, usage) for task in tasks]


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def two():
    records = line("best-of-N", 1, 0.4, 100, 50, 10) + line("best-of-N", 4, 0.8, 400, 200, 40)
    return records + line("gated", 1, 0.6, 150, 50, 20, 10) + line("gated", 2, 1.0, 350, 100, 40)


def test_ratio_is_read_from_straight_lines():
    found = costs(two(), price=0.1)
    ratios = at_equal_rate(found["gated"], found["best-of-N"], found["best-of-N"], 4, resamples=200)
    prompt = 160 + 0.5 * (350 - 160)  # 0.8 lies half way between 0.6 and 1.0; the judge's tokens count
    cached = (160 - 45) + 0.5 * ((350 - 90) - (160 - 45))
    assert [one.value for one in ratios] == pytest.approx([prompt / 400, cached / 220, 30 / 40])
    assert (ratios[0].low, ratios[0].high) == pytest.approx((prompt / 400,) * 2)  # all tasks alike


def test_a_single_run_above_the_rate_counts_whole_and_a_rate_out_of_reach_is_infinite():
    records = line("best-of-N", 4, 0.5, 400) + line("strong", 1, 0.9, 100) + line("weak", 1, 0.2, 10)
    found = costs(records)
    target = found["best-of-N"]
    assert at_equal_rate(found["strong"], target, target, 4, 200)[0].value == 0.25
    assert math.isinf(at_equal_rate(found["weak"], target, target, 4, 200)[0].value)
    table = savings_table(found, "best-of-N", 4, 200)
    assert [row["prompt"] for row in table.rows] == ["0.25 [0.25, 0.25]", "∞ [∞, ∞]"]


def test_more_runs_that_resolve_less_do_not_lower_the_curve():
    records = line("best-of-N", 4, 0.7, 700)
    records += line("g", 1, 0.6, 100) + line("g", 2, 0.4, 200) + line("g", 4, 0.8, 400)
    found = costs(records)
    assert at_equal_rate(found["g"], found["best-of-N"], found["best-of-N"], 4, 200)[0].value == pytest.approx(
        300 / 700
    )


def test_interval_covers_the_truth_as_often_as_it_says():
    """Tasks of unequal cost and chance; the ratio of expected tokens is known; 95 % intervals over tasks."""
    rng, hits, trials, n = np.random.default_rng(3), 0, 120, 40
    for trial in range(trials):
        records = []
        for i in range(n):
            size, ease = rng.gamma(4, 25), rng.beta(4, 4)
            for runs, chance in ((1, ease * 0.5), (2, ease)):
                records.append(Record(f"t{i}", "best-of-N", runs, chance, {"sample": Usage(round(size * runs))}))
            other = round(size * rng.uniform(0.5, 1.0) * 2)
            records.append(Record(f"t{i}", "g", 1, 1.0, {"sample": Usage(other)}))
        found = costs(records)
        ratio = at_equal_rate(found["g"], found["best-of-N"], found["best-of-N"], 2, 400, seed=trial)[0]
        hits += ratio.low <= 0.75 <= ratio.high
    assert hits / trials > 0.88


def test_points_have_means_and_errors():
    records = [Record(f"t{i}", "m", 1, float(i % 2), {"sample": Usage(100 * i, 0, i)}, tests=6.0) for i in range(8)]
    (point,) = points(costs(records)["m"], resamples=2_000)
    assert point.resolved.value == 0.5
    assert point.resolved.stderr == pytest.approx(0.5 / math.sqrt(8), rel=0.1)
    assert [one.value for one in point.tokens] == [350, 350, 3.5]
    assert point.tests == 6.0


def test_methods_on_other_tasks_cannot_be_compared():
    with pytest.raises(SearchError, match=r"'gated' with 1 run\(s\) lacks the task\(s\) t7"):
        costs(line("best-of-N", 1, 0.5, 10) + line("gated", 1, 0.5, 10, tasks=TASKS[:7]))
    with pytest.raises(SearchError, match="no finished search"):
        costs([])
    with pytest.raises(SettingsError):
        costs(two(), price=1.5)


def test_kinds_add_up_to_the_whole():
    rows = {(row["method"], row["runs"], row["kind"]): row for row in kinds_table(two()).rows}
    assert rows["gated", 1, "sample"]["prompt"] + rows["gated", 1, "judge"]["prompt"] == 160


# --- files ---


def searched(folder, instance, method=None, resolved=None, runs=1):
    place = folder / instance
    ledger = Ledger(place / "ledger.jsonl")
    ledger.add("sample", Usage(100, 40, 7), node="r/0", n=4)
    ledger.add("sample", Usage(200, 90, 9))
    ledger.add("judge", Usage(50, 0, 5))
    ledger.close()
    result = {"instance_id": instance, "method": method, "runs": runs, "resolved": resolved, "tests": {"runs": 12}}
    (place / "result.json").write_text(json.dumps(result))


def test_a_search_is_read_from_its_ledger(tmp_path):
    for i in range(4):
        searched(tmp_path / "a", f"i{i}", "gate", resolved=i > 0)
    records = read_records([tmp_path / "a"])
    assert records[0] == Record("i0", "gate", 1, 0.0, {"sample": Usage(300, 130, 16), "judge": Usage(50, 0, 5)}, 12.0)
    assert [one.resolved for one in records] == [0, 1, 1, 1]


def test_outcomes_may_come_from_a_report(tmp_path):
    for i in range(4):
        searched(tmp_path / "a", f"i{i}")
    told = tmp_path / "swe.json"
    told.write_text(json.dumps({"resolved_ids": ["i1"], "unresolved_ids": ["i0", "i2"], "error_ids": ["i3"]}))
    assert [one.resolved for one in read_records([tmp_path / "a"], told)] == [0, 1, 0, 0]
    told.write_text(json.dumps({"i0": True, "i1": False, "i2": "perhaps", "i3": 1}))
    with pytest.raises(DataError, match="i2"):
        read_records([tmp_path / "a"], told)
    told.write_text(json.dumps({"i0": True, "i1": False, "i2": "yes", "i3": 0}))
    assert [(one.method, one.resolved) for one in read_records([tmp_path / "a"], told)] == [
        ("a", x) for x in (1, 0, 1, 0)
    ]


def test_a_search_without_outcome_or_ledger_is_refused(tmp_path):
    searched(tmp_path / "a", "i0")
    with pytest.raises(DataError, match=r"'i0' has no outcome.*--resolved"):
        read_records([tmp_path / "a"])
    with pytest.raises(DataError, match=r"no result\.json"):
        read_records([tmp_path])
    (tmp_path / "a" / "i0" / "result.json").write_text("[1]")
    with pytest.raises(DataError, match="one JSON object"):
        read_records([tmp_path / "a"])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("ledger.jsonl", None, "cannot be read"),
        ("ledger.jsonl", b"\xff\n", "cannot be read"),
        ("ledger.jsonl", b'{"kind":"sample","prompt":0,"cached":0,"output":0}\n', "stated no usage"),
        ("result.json", b'{"resolved": true, "tests": {"runs": "x"}}', "tests.runs"),
        ("resolved.json", b'{"resolved_ids": "i0"}', "lists of instance ids"),
        ("resolved.json", b'{"resolved_ids": [["i0"]]}', "lists of instance ids"),
    ],
)
def test_damaged_files_are_errors_not_costs(tmp_path, name, content, told):
    searched(tmp_path / "a", "i0", resolved=True)
    path = tmp_path / "a" / "i0" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_records([tmp_path / "a"], path if name == "resolved.json" else None)


@pytest.mark.parametrize("change", [{"resolved": 2}, {"runs": 0}, {"usage": {"sample": {"prompt": -1}}}])
def test_records_out_of_range_are_refused(tmp_path, change):
    record = {"task": "a", "method": "m", "runs": 1, "resolved": 1.0, "usage": {}, "tests": 0}
    (tmp_path / "r.jsonl").write_text(json.dumps(record | change) + "\n")
    with pytest.raises(DataError, match=r"r\.jsonl:1"):
        read_records([tmp_path / "r.jsonl"])
    (tmp_path / "r.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        read_records([tmp_path / "r.jsonl"])


def test_the_reference_is_the_search_without_branching(tmp_path):
    for i in range(4):
        searched(tmp_path / "a", f"i{i}", "gate=always \x1b[2J", resolved=i > 0)
        searched(tmp_path / "b", f"i{i}", "gate=never n=4", resolved=i > 0)
    text = report(parsed(tmp_path / "a", tmp_path / "b", "--resamples", 200))
    assert "over those of gate=never n=4 with 1 run(s)" in text
    words = ("--reference", "gate=always \x1b[2J", "--resamples", 200)
    assert "\x1b" not in report(parsed(tmp_path / "a", tmp_path / "b", *words))


def test_records_come_back_as_they_were(tmp_path):
    write_records(two(), tmp_path / "records.jsonl")
    assert read_records([tmp_path / "records.jsonl"]) == two()
    (tmp_path / "records.jsonl").write_text('{"task": "a"}\n')
    with pytest.raises(DataError, match=r"records\.jsonl:1"):
        read_records([tmp_path / "records.jsonl"])


def test_the_report_prints_tables_and_draws(tmp_path, capsys):
    write_records(two(), tmp_path / "records.jsonl")
    args = parsed(tmp_path / "records.jsonl", "--resamples", 200, "--figure", tmp_path / "curves")
    assert run(args) == 0
    text = capsys.readouterr().out
    assert "over those of best-of-N with 4 run(s) (rate 0.800)" in text
    assert "0.64 [0.64, 0.64]" in text
    assert (tmp_path / "curves.svg").exists()
    found = json.loads(report(parsed(tmp_path / "records.jsonl", "--resamples", 200, "--format", "json")))
    assert found["tables"]["curves"][0]["prompt"]["value"] == 100.0


def test_what_was_not_run_cannot_be_asked_for(tmp_path):
    write_records(two(), tmp_path / "r.jsonl")
    with pytest.raises(SettingsError, match="--at 8"):
        report(parsed(tmp_path / "r.jsonl", "--at", 8, "--resamples", 200))
    with pytest.raises(SettingsError, match=r"gaited.*'gated'"):
        report(parsed(tmp_path / "r.jsonl", "--reference", "gaited", "--resamples", 200))


def test_the_figure_shows_a_methods_name_as_it_is():
    named = costs([one._replace(method=f"$\\x{{ {one.method}") for one in two()])
    draw_curves(named).canvas.draw()


def test_the_figure_draws_the_curves_numbers():
    found = costs(two())
    axis = draw_curves(found).axes[0]
    drawn = {tuple(round(float(x), 6) for x in bars.lines[0].get_xdata()) for bars in axis.containers}
    assert drawn == {(0.1, 0.4), (0.16, 0.35)}
