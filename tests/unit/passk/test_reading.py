"""Every kind of file, and what must be an error with its place."""

import json
import re
import tracemalloc

import pytest

from hesnr_tasks.analysis.tables import Table, show
from hesnr_tasks.errors import DataError
from hesnr_tasks.passk import Query, log_files, pass_at_ks, read, read_log


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def counts(run):
    return {label: (n, c) for label, n, c in zip(run.labels, run.n.tolist(), run.c.tolist())}


def sample(doc_id, answers, score, *, scored=None, filter="none", metric="exact_match", **more):
    kept = answers if scored is None else answers[:scored]
    return {
        "doc_id": doc_id, "doc": {"task_id": f"T/{doc_id}"}, "target": "1", "arguments": {}, "resps": [answers],
        "filtered_resps": [kept] if len(kept) > 1 else kept, "filter": filter, "metrics": [metric],
        "doc_hash": f"hash{doc_id}", metric: score, **more,
    }  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------

ROWS = [("a", 1), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("c", 1)]
EXPECTED = {"a": (3, 2), "b": (2, 0), "c": (1, 1)}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json"])
def test_tables_of_answers(tmp_path, name):
    rows = [{"problem": p, "ok": bool(ok)} for p, ok in ROWS]
    mark = "\t" if name == "t.tsv" else ","
    text = f"problem{mark}ok\n" + "".join(f"{p}{mark}{ok}\n" for p, ok in ROWS)
    path = write(tmp_path / name, {"csv": text, "tsv": text, "jsonl": rows, "json": json.dumps(rows)}[name[2:]])
    assert counts(read("x", [path])) == EXPECTED


def test_humaneval_results(tmp_path):
    rows = [{"task_id": "H/0", "completion": "x", "result": "failed: AssertionError", "passed": False}]
    assert counts(read("x", [write(tmp_path / "r.jsonl", rows)])) == {"H/0": (1, 0)}


def test_several_tables_are_more_answers(tmp_path):
    paths = [write(tmp_path / f"{i}.csv", f"problem,ok\na,{i}\nb,0\n") for i in (0, 1)]
    assert counts(read("x", paths)) == {"a": (2, 1), "b": (2, 0)}


def test_unknown_outcomes_are_left_out(tmp_path):
    path = write(tmp_path / "t.csv", "problem,ok\na,1\na,\nb,\n")
    run = read("x", [path])
    assert counts(run) == {"a": (1, 1)}
    assert "no outcome is known for b" in run.notes[0]


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("problem,ok\na,1\nb,0.37\n", "t.csv:3", "neither right"),
        ("problem,ok\na,1\nb,maybe\n", "t.csv:3", "neither right"),
        ("problem,ok\na,1\n,1\n", "t.csv:3", "no problem"),
        ("problem,ok\na,1,9\n", "t.csv:2", "cells"),
        ("problem,ok\na\n", "t.csv:2", "cells"),
        ("problem,value\na,1\n", "t.csv:2", "nothing says"),
        ("problem,n,c\na,2,1\n", "t.csv:2", "nothing says"),
        ("problem,sample,ok\na,0,1\na,0,1\n", "t.csv:3", "is there already"),
        ('problem,ok\na,"1\n', "t.csv:2", "CSV"),
        ("problem,ok, ok\na,1,0\n", "t.csv:1", "two columns"),
    ],
)
def test_bad_tables_are_errors_with_their_line(tmp_path, text, place, why):
    with pytest.raises(DataError, match=rf"{re.escape(place)}: .*{why}"):
        read("x", [write(tmp_path / "t.csv", text)])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"problem": "a", "ok": 1}\n{"problem": "b", "ok": 1\n', r"t\.jsonl:2: not valid JSON"),
        ('{"problem": "a", "ok": 1}\n[1]\n', r"t\.jsonl:2\[?"),
        ('{"problem": "a", "ok": 1}\n{"problem": "b"}\n', r"t\.jsonl:2: nothing says"),
        ("", r"t\.jsonl: the file is empty"),
    ],
)
def test_bad_lines_are_errors_with_their_line(tmp_path, text, why):
    with pytest.raises(DataError, match=why):
        read("x", [write(tmp_path / "t.jsonl", text)])


def test_a_cell_may_hold_any_sign(tmp_path):
    """Signs at which Python, but no CSV file, ends a line."""
    path = write(tmp_path / "t.csv", 'problem,ok\na\u2028b\x85,1\n"c\nd",0\n')
    assert counts(read("x", [path])) == {"a\u2028b\x85": (1, 1), "c\nd": (1, 0)}


def test_a_file_named_twice_counts_once(tmp_path, monkeypatch):
    path = write(tmp_path / "t.csv", "problem,ok\na,1\n")
    (tmp_path / "link.csv").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert counts(read("x", [path, type(path)("t.csv"), tmp_path / "link.csv"])) == {"a": (1, 1)}


def test_a_missing_file_names_its_like(tmp_path):
    write(tmp_path / "table.csv", "problem,ok\na,1\n")
    with pytest.raises(DataError, match=r"Did you mean 'table\.csv'"):
        read("x", [tmp_path / "tabel.csv"])


# --- reports ----------------------------------------------------------------------------------------------------------


def report(resolved, unresolved, errors=(), **more):
    lists = {"resolved_ids": list(resolved), "unresolved_ids": list(unresolved), "error_ids": list(errors)}
    return {"total_instances": 9, "submitted_ids": [*resolved, *unresolved, *errors], **lists, **more}


def test_reports_of_several_runs_are_answers(tmp_path):
    paths = [
        write(tmp_path / "m.r1.json", report("ab", "c")),
        write(tmp_path / "m.r2.json", report("a", "bc")),
        write(tmp_path / "m.r3.json", report("c", "a", "b")),
    ]
    expected = {"a": (3, 2), "b": (2, 1), "c": (3, 1)}
    assert counts(read("x", paths)) == counts(read("x", [tmp_path])) == expected


def test_reports_of_instances_in_a_folder(tmp_path):
    for run, solved in (("r1", True), ("r2", False)):
        write(tmp_path / run / "a" / "report.json", {"a": {"resolved": solved, "patch_exists": True}})
    assert counts(read("x", [tmp_path])) == {"a": (2, 1)}


def test_a_run_and_its_instances_are_not_counted_twice(tmp_path):
    write(tmp_path / "m.r1.json", report("a", ""))
    write(tmp_path / "logs" / "a" / "report.json", {"a": {"resolved": True}})
    with pytest.raises(DataError, match="twice"):
        read("x", [tmp_path])


def test_mini_swe_agent_runs_need_the_report(tmp_path):
    predictions = {i: {"model_name_or_path": "m", "instance_id": i, "model_patch": ""} for i in "abc"}
    path = write(tmp_path / "preds.json", predictions)
    for named in (path, tmp_path):
        with pytest.raises(DataError, match="not what was solved"):
            read("x", [named])
    write(tmp_path / "m.r1.json", report("a", "b"))
    run = read("x", [tmp_path])
    assert counts(run) == {"a": (1, 1), "b": (1, 0)}
    assert "no outcome is known for c" in run.notes[0]


def test_a_report_of_successes_alone_is_no_pass_of_one(tmp_path):
    path = write(tmp_path / "r.json", {"resolved": ["a", "b"], "no_logs": []})
    with pytest.raises(DataError, match="not those that were tried"):
        read("x", [path])
    write(path, {"resolved": ["a"], "generated": ["a", "b", "c"]})
    assert counts(read("x", [path])) == {"a": (1, 1), "b": (1, 0), "c": (1, 0)}


def test_neither_report_nor_table_nor_log(tmp_path):
    with pytest.raises(DataError, match="no evaluation report"):
        read("x", [write(tmp_path / "x.json", {"a": 1})])


# --- lm-eval logs -----------------------------------------------------------------------------------------------------


def log(folder, rows, task="t", date="2026-01-01T00-00-00.000001", model=None):
    if model:
        write(folder / f"results_{date}.json", {"model_name": model})
    return write(folder / f"samples_{task}_{date}.jsonl", rows)


def test_a_log_with_pass_at_k(tmp_path):
    rows = [sample(i, list("abcd"), None, metric="pass@1", **{"pass@1": i / 4, "pass@4": float(i > 0)}) for i in (0, 3)]
    assert counts(read("x", [log(tmp_path, rows)])) == {"T/0": (4, 0), "T/3": (4, 3)}


def test_a_mean_over_repeats_is_taken_apart(tmp_path):
    """With take_first_k, lm-eval's exact_match is silently the mean over the repeats."""
    assert counts(read("x", [log(tmp_path, [sample(0, list("abcde"), 0.2)])])) == {"T/0": (5, 1)}


def test_a_pass_at_k_that_one_number_of_right_answers_gives_is_taken_apart(tmp_path):
    rows = [sample(0, list("abcd"), 0.5, metric="pass@2"), sample(1, list("abcd"), 0.0, metric="pass@2")]
    assert counts(read("x", [log(tmp_path, rows)])) == {"T/0": (4, 1), "T/1": (4, 0)}


def test_a_metric_whose_k_is_no_number_is_none_of_ours(tmp_path):
    assert counts(read("x", [log(tmp_path, [sample(0, list("ab"), 0.5, **{"pass@²": 0.9})])])) == {"T/0": (2, 1)}


def test_logs_and_tables_are_not_mixed(tmp_path):
    table = write(tmp_path / "t.csv", "problem,ok\na,1\n")
    for task in (None, "t"):
        with pytest.raises(DataError, match="sample logs and other files together"):
            read("x", [log(tmp_path, [sample(0, ["a"], 1.0)]), table], Query(task=task))


def test_several_logs_of_one_answer_each(tmp_path):
    for run in range(3):
        log(tmp_path / str(run), [sample(i, [f"{run}{i}"], float(run == i)) for i in range(2)])
    assert counts(read("x", [tmp_path])) == {"T/0": (3, 1), "T/1": (3, 1)}


def test_multiple_choice_is_one_answer(tmp_path):
    row = sample(0, [], 1.0, metric="acc") | {"resps": [[["-1.5", "False"]], [["-2.5", "True"]]]}
    row["filtered_resps"] = [["-1.5", "False"], ["-2.5", "True"]]
    assert counts(read("x", [log(tmp_path, [row])])) == {"T/0": (1, 1)}


def test_two_answers_of_which_one_is_a_truth_value_are_two(tmp_path):
    assert counts(read("x", [log(tmp_path, [sample(0, ["x", "True"], 0.5)])])) == {"T/0": (2, 1)}


def test_equal_documents_are_different_problems(tmp_path):
    rows = [sample(i, list("ab"), 0.5) | {"doc_hash": "same"} for i in range(2)]
    assert len(read("x", [log(tmp_path, rows)]).problems) == 2


BAD_LOGS = {
    "take_first lost the others": ([sample(0, list("abcde"), 1.0, scored=1)], Query(), ":1: .*threw the others away"),
    "no count gives the value": ([sample(0, list("abc"), 0.5)], Query(), ":1: .*no number of right answers among 3"),
    "inconsistent": ([sample(0, list("abcd"), 0.25, **{"pass@2": 0.9})], Query(), ":1: pass@2 is 0.9"),
    "no such metric": ([sample(0, ["a"], 1.0)], Query(metric="exact_mach"), "Did you mean 'exact_match'"),
    "several metrics": (
        [sample(0, ["a"], 1.0, metric="f", g=0.0) | {"metrics": ["f", "g"]}], Query(), ":1: which metric .*f, g"
    ),
    "several filters": ([sample(0, ["a"], 1.0), sample(0, ["a"], 1.0, filter="x")], Query(), "filters none, x"),
    "no such filter": ([sample(0, ["a"], 1.0)], Query(filter="strict"), "no filter 'strict'"),
    "not a number": ([sample(0, ["a"], "yes")], Query(), ":1: exact_match is 'yes'"),
    "NaN": ([sample(0, ["a"], float("nan"))], Query(), ":1: exact_match is nan"),
    "infinite": ([sample(0, ["a"], float("inf"))], Query(), ":1: exact_match is inf"),
    "no answer": ([sample(0, [], 0.0) | {"filtered_resps": [[]]}], Query(), "no problem has an answer that is known"),
    "pass@4 of 4": ([sample(0, list("abcd"), 1.0, metric="pass@4")], Query(), ":1: .* 1 to 4 right answers of 4"),
    "foreign line": ([sample(0, ["a"], 1.0), {"problem": "a", "ok": 1}], Query(), ":2: no line of"),
    "no such task": ([sample(0, ["a"], 1.0)], Query(task="u"), "task 'u', only t"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LOGS)
def test_logs_that_cannot_be_counted(tmp_path, case):
    rows, query, why = BAD_LOGS[case]
    with pytest.raises(DataError, match=why):
        read("x", [log(tmp_path, rows)], query)


def test_one_of_several_filters_or_tasks(tmp_path):
    log(tmp_path, [sample(0, ["a"], 1.0), sample(0, ["a"], 0.0, filter="x")])
    log(tmp_path, [sample(0, ["a"], 0.0)], task="other")
    with pytest.raises(DataError, match="several tasks"):
        read("x", [tmp_path])
    assert counts(read("x", [tmp_path], Query(task="t", filter="x"))) == {"T/0": (1, 0)}


def test_the_same_run_twice_is_refused(tmp_path):
    seeds = {"gen_args_0": {"arg_0": "p", "arg_1": {"seed": 7}}}
    for run in "ab":
        log(tmp_path / run, [sample(0, [run], 1.0) | {"arguments": seeds}])
    with pytest.raises(DataError, match="same answers"):
        read("x", [tmp_path])
    for run in "cd":
        log(tmp_path / "copies" / run, [sample(i, ["same"], 1.0) for i in range(12)])
    with pytest.raises(DataError, match="same answers"):
        read("x", [tmp_path / "copies"])


def test_two_models_are_no_samples_of_one(tmp_path):
    for model in ("base", "tuned"):
        log(tmp_path / model, [sample(0, [model], 1.0)], model=model)
    with pytest.raises(DataError, match="answers of two models"):
        read("x", [tmp_path])


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_log_is_said_to_be_empty(tmp_path, text):
    with pytest.raises(DataError, match=r"samples_t_2026\.jsonl.* is empty"):
        read("x", [write(tmp_path / "samples_t_2026.jsonl", text)])


def test_lm_evals_own_repeats_since_0_5(tmp_path):
    """Its names `group::task`, its metrics `pass@1(exact_match)` and a score an answer."""
    rows = []
    for i, right in enumerate([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]):
        values = pass_at_ks([4], [sum(right)], (1, 2, 4))[0].tolist()
        names = {f"pass@{k}(exact_match)": value for k, value in zip((1, 2, 4), values)}
        more = {"metrics": list(names), "scores_per_repeat": {"exact_match": right}}
        rows.append(sample(i, list("abcd"), 0.0) | names | more)
        del rows[-1]["exact_match"]
    path = write(tmp_path / "samples_group::task_2026.jsonl", rows)
    expected = {"T/0": (4, 2), "T/1": (4, 0), "T/2": (4, 4)}
    assert counts(read("x", [path], Query(task="group::task"))) == expected
    assert next(logged.right for logged in read_log(path)[0]) == (True, False, False, True)
    for row in rows:
        del row["scores_per_repeat"]
    assert counts(read("x", [write(path, rows)])) == expected


def test_a_long_log_is_read_a_line_at_a_time(tmp_path):
    path = write(tmp_path / "samples_t_2026.jsonl", [sample(i, [f"{i}" * 100_000], i % 2) for i in range(60)])
    tracemalloc.start()
    try:
        run = read("x", [path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (run.n.sum(), run.c.sum()) == (60, 30)
    assert peak < path.stat().st_size / 3


def test_names_in_a_log_steer_no_terminal(tmp_path):
    rows = [sample(i, ["a"], 1.0) | {"doc": {"task_id": f"\x1b[2J{i}"}} for i in range(3)] + [sample(9, [], 1.0)]
    rows[-1]["doc"] = {"task_id": "\x1b[31mnone"}
    run = read("\x1b[1mrun", [log(tmp_path, rows)])
    table = Table("t", f"of {run.name}", [{"problem": label} for label in run.labels], run.notes)
    assert any("none" in note for note in run.notes)
    assert "\x1b" not in show([table], "text", {})


def test_estimates_that_are_not_those_of_the_verdicts_are_refused(tmp_path):
    for wrong in (0.5, float("nan")):
        rows = [sample(0, ["a", "b"], wrong, metric="pass@1", right_answers=[1, 1])]
        with pytest.raises(DataError, match=r"pass@1 is (0\.5|nan), but 2 right of 2 answers give 1"):
            read("x", [log(tmp_path, rows)])
    named = {"pass@1(a)": 0.5, "pass@1(b)": 1.0, "metrics": ["pass@1(a)", "pass@1(b)"]}
    path = log(tmp_path, [sample(0, ["x", "y"], 0.0) | named])
    for metric, right in (("pass@1(a)", 1), ("pass@1(b)", 2)):
        assert counts(read("x", [path], Query(metric=metric))) == {"T/0": (2, right)}


def test_likelihoods_are_no_answers_to_read(tmp_path):
    row = sample(0, [], 1.0, metric="acc") | {"resps": [[[-1.0, False]], [[-2.0, True]]]}
    row["filtered_resps"] = [[-1.0, False], [-2.0, True]]
    path = log(tmp_path, [row])
    assert counts(read("x", [path])) == {"T/0": (1, 1)}
    with pytest.raises(DataError, match="likelihoods where answers should be"):
        read_log(path)


def test_a_file_called_a_sample_log_that_is_none(tmp_path):
    path = log(tmp_path, [{"id": 1, "text": "hi"}])
    with pytest.raises(DataError, match=r":1: no line of an lm-eval sample log"):
        read("x", [path])
    assert log_files([path], None) == [path]
