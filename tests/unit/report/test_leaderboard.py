"""The leaderboard shows what lm-eval saved, and never ranks what was made differently together."""

import csv
import io
import json
from types import SimpleNamespace

import pytest

from hesnr_tasks import cli
from hesnr_tasks.errors import DataError
from hesnr_tasks.ladder.names import read_ladder
from hesnr_tasks.metrics import metric, unregister
from hesnr_tasks.report.data import _notes_on_other_data
from hesnr_tasks.report.results import read_results
from hesnr_tasks.report.tables import boards, leaderboard_csv, leaderboard_markdown
from hesnr_tasks.stats import Estimate
from tests.unit.report.ladders import result


def board(folder, sort="step"):
    results = read_results([str(folder)])
    ladder = read_ladder({result.model for result in results}).checkpoints
    return leaderboard_markdown(boards(results, ladder, sort))


def test_checkpoints_are_in_natural_order_with_errors(tmp_path):
    for name, snr in (("step1600", 0.3), ("step800", 0.2), ("step1600-8k", 0.25)):
        result(tmp_path, name, snr, others={})
    lines = board(tmp_path).splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| step800", "| step1600", "| step1600-8k"]
    assert "| 0.200 ± 0.010 |" in lines[4]
    assert "| 3 |" in lines[4]


def test_the_newest_result_of_a_checkpoint_counts(tmp_path):
    result(tmp_path, "a", 0.1, date=1.0, others={})
    result(tmp_path, "a", 0.9, date=2.0, others={})
    assert [row.values["he_snr"][0] for row in read_results([str(tmp_path)])] == [0.9]


def test_a_checkpoint_of_a_ladder_has_the_name_under_which_it_was_scored(tmp_path, capsys):
    """Models may be called otherwise, as another checkpoint is called, or be the same with other settings."""
    for name, model, snr in (("a", "b", 0.1), ("b", "a", 0.2), ("c", "a", 0.3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ladder.json").write_text(json.dumps({"name": name}))
        result(tmp_path / name / model, model, snr, others={})
    ladder = tmp_path / "ladder.yaml"
    ladder.write_text("checkpoints: [{name: a, model: b}, {name: b, model: a}, {name: c, model: a}]")
    for words in ([], ["--ladder", str(ladder)]):
        assert cli.main(["report", str(tmp_path), *words]) == 0
        lines = capsys.readouterr().out.splitlines()[4:]
        assert [line[:15] for line in lines] == ["| a | 0.100 ± 0", "| b | 0.200 ± 0", "| c | 0.300 ± 0"]


def test_a_short_context_pass_is_on_no_leaderboard(tmp_path, capsys):
    result(tmp_path, "a", 0.9, date=3.0, others={}, window=512)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    result(tmp_path, "a", 0.1, date=2.0, others={})
    assert cli.main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| a | 0.100 ± 0.010 |" in printed.out
    assert "short-context passes are not shown: hesnr_swe in results_3.0.json (window=512)" in printed.err


@pytest.mark.parametrize("difference", [{"data": "y"}, {"run": {"tokenizer": "t", "weights": "2"}}])
def test_an_older_result_made_differently_is_named(tmp_path, capsys, difference):
    run = {"tokenizer": "t", "weights": "1"}
    for snr, date, other in ((0.9, 3.0, {}), (0.8, 2.0, {}), (0.2, 1.0, difference)):
        result(tmp_path, "a", snr, date=date, others={}, **({"run": run} | other))
    assert cli.main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| a | 0.900 ± 0.010 |" in printed.out
    assert "results_1.0.json is not shown" in printed.err
    assert "results_2.0.json" not in printed.err


def test_a_short_trial_does_not_take_the_place_of_the_whole_run(tmp_path, capsys):
    few = {"trajectories": 3, "data": "fff"}
    limited = {"effective": 3}
    for name in ("a", "b"):
        result(tmp_path, name, 0.9, date=1.0, trajectories=100)
    saved = result(tmp_path, "a", 0.1, date=2.0, **few)
    file = next((tmp_path / "a").glob("*2.0.json"))
    file.write_text(json.dumps({**saved, "n-samples": {"hellaswag": limited}}))
    rows = [row for row in read_results([tmp_path]) if row.model == "a"]
    assert [(row.task, row.documents) for row in rows] == [
        ("hesnr_swe", 100), ("hesnr_swe", 3), ("hellaswag", 100), ("hellaswag", 3)
    ]  # fmt: skip
    assert cli.main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "| a | 0.900 ± 0.010 | 3 |" in printed.out
    assert "| a | 0.100 ± 0.010 | 3 |" in printed.out
    assert "a: hesnr_swe has results of 100 and of 3 documents, both shown" in printed.err
    assert "results_2.0.json differs in trajectories: 100 → 3." in printed.err
    result(tmp_path, "a", 0.2, date=3.0, **few, run={"tokenizer": "t", "weights": "1"})
    assert {row.date for row in read_results([tmp_path]) if row.task == "hesnr_swe" and row.model == "a"} == {1.0, 3.0}


def test_a_trial_beside_the_whole_run_is_no_contradiction_of_the_figures():
    summary = SimpleNamespace(
        name="a", runs={"all": 1}, folder="scores/a", n_trajectories=lambda _: 100, has_data=lambda _, data: data == "d"
    )
    whole, trial = (
        SimpleNamespace(model="a", task="hesnr_swe", select="all", signature={"data": data, "trajectories": n})
        for data, n in (("d", 100), ("t", 3))
    )
    assert _notes_on_other_data([whole, trial], {summary.name: summary}) == []
    (note,) = _notes_on_other_data([trial], {summary.name: summary})
    assert note.startswith("a: the leaderboard's hesnr_swe is of 3 trajectories, the figures are of the 100 in")


def test_a_trial_of_other_weights_is_the_newest(tmp_path):
    for date, weights, n in ((1.0, "1", 100), (2.0, "2", 3)):
        result(tmp_path, "a", 0.9, date=date, others={}, trajectories=n, run={"tokenizer": "t", "weights": weights})
    (row,) = read_results([tmp_path])
    assert row.documents == 3
    assert "differs in trajectories: 100 → 3; weights: 1 → 2" in row.remarks[0]


@pytest.mark.parametrize(
    "difference",
    [
        {"k": 20}, {"epsilon": 1.0}, {"kinds": ["thought"]}, {"filters": []}, {"render": "chatml"}, {"data": "f"},
        {"tokens_cut": 5}, {"run": {"tokenizer": "u"}}, {"hesnr_tasks": "0.2.0"},
    ],
)  # fmt: skip
def test_different_signatures_are_in_different_tables(tmp_path, difference):
    result(tmp_path, "a", others={})
    result(tmp_path, "b", others={}, **difference)
    assert board(tmp_path).count("| checkpoint |") == 2


def test_a_context_limit_that_cuts_nothing_does_not_separate(tmp_path):
    result(tmp_path, "a", others={})
    result(tmp_path, "b", others={}, max_length=8192)
    assert board(tmp_path).count("| checkpoint |") == 1


def test_the_share_scored_is_a_column_and_marked_below_a_half(tmp_path):
    """Also of results of a version that did not save it; beside other benchmarks where anything was cut."""
    saved = result(tmp_path, "a", tokens_cut=900)
    for numbers, want in (({"tokens,none": 100}, "10.0% (!)"), ({"tokens,none": 100, "scored,none": 0.75}, "75.0%")):
        saved["results"]["hesnr_swe"] |= numbers
        (tmp_path / "a" / "results_1.0.json").write_text(json.dumps(saved))
        side, own = board(tmp_path).split("\n\n**")
        assert f"| {want} |" in side
        assert f"| {want} |" in own


def test_a_folder_without_results_says_how_to_make_some(tmp_path):
    with pytest.raises(DataError, match="--tasks hesnr_swe"):
        read_results([str(tmp_path)])
    with pytest.raises(DataError, match="no such file"):
        read_results([str(tmp_path / "none")])
    (tmp_path / "results_1.json").write_text("{")
    with pytest.raises(DataError, match="not an lm-eval result file"):
        read_results([str(tmp_path)])


# --- side by side with standard benchmarks ----------------------------------------------------------------------------


def test_benchmarks_stand_beside_ours_with_their_errors(tmp_path):
    gsm = {"gsm8k": {"exact_match,strict-match": 0.51, "exact_match_stderr,strict-match": 0.013}}
    result(tmp_path, "step2", 0.2)
    result(tmp_path, "step10", 0.3, others=gsm)
    lines = board(tmp_path).splitlines()
    heads = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert heads[0] == "checkpoint"
    assert heads[-2:] == ["gsm8k exact_match (strict-match)", "hellaswag acc ↑"]
    assert lines[4].startswith("| step2 | 0.200 ± 0.010 |")
    assert lines[4].endswith("| – | 0.3000 ± 0.0040 |")
    assert lines[5].endswith("| 0.510 ± 0.013 | – |")


def test_results_without_our_tasks_make_a_leaderboard_too(tmp_path):
    saved = result(tmp_path, "a")
    saved["results"].pop("hesnr_swe")
    next(tmp_path.rglob("*.json")).write_text(json.dumps(saved))
    assert board(tmp_path).splitlines()[-1] == "| a | 0.3000 ± 0.0040 |"


def test_numbers_made_differently_have_columns_of_their_own_and_no_common_rank(tmp_path):
    result(tmp_path, "step1", 0.1)
    result(tmp_path, "step2", 0.3, k=20)
    first = board(tmp_path, sort="he_snr").split("\n\n")[1].splitlines()
    assert "hesnr_swe \\[a\\] HE-SNR ↑" in first[0]
    assert "hesnr_swe \\[b\\] HE-SNR ↑" in first[0]
    assert [line.split(" | ")[0] for line in first[2:]] == ["| step1", "| step2"]
    result(tmp_path, "step2", 0.3, date=2.0)  # now made alike: the better one leads
    first = board(tmp_path, sort="he_snr").split("\n\n")[1].splitlines()
    assert [line.split(" | ")[0] for line in first[2:]] == ["| step2", "| step1"]


def test_metrics_of_a_task_of_its_own_are_numbers(tmp_path):
    saved = result(tmp_path, "a", others={})
    own = {"tool_entropy,none": 0.75, "tool_entropy_stderr,none": 0.02, "alias": "hesnr_tool_entropy"}
    saved["results"] = {"hesnr_tool_entropy": own}
    saved["configs"] = {"hesnr_tool_entropy": saved["configs"]["hesnr_swe"]}
    next((tmp_path / "a").glob("*.json")).write_text(json.dumps(saved))
    lines = board(tmp_path).splitlines()
    assert lines[2] == "| checkpoint | tool\\_entropy | scored |".replace("\\_", "_")
    assert lines[4].startswith("| a | 0.750 ± 0.020 |")


def test_a_group_stands_for_its_tasks(tmp_path):
    others = {"mmlu": {"acc,none": 0.4}, "mmlu_law": {"acc,none": 0.3, "alias": " - law"}}
    saved = result(tmp_path, "a", others=others)
    next(tmp_path.rglob("*.json")).write_text(json.dumps({**saved, "group_subtasks": {"mmlu": ["mmlu_law"]}}))
    assert "mmlu_law" not in board(tmp_path)
    rows = read_results([tmp_path])
    assert "\na,mmlu_law," in leaderboard_csv(rows, read_ladder(["a"]).checkpoints)


def test_groups_of_other_documents_have_columns_of_their_own(tmp_path):
    """lm-eval counts documents of tasks alone, so `--limit` is not seen at the group."""
    others = {"mmlu": {"acc,none": 0.4}, "mmlu_law": {"acc,none": 0.3}}
    for name, documents in (("a", 1000), ("b", 10)):
        saved = result(tmp_path, name, others=others)
        below = {"mmlu": ["mmlu_all"], "mmlu_all": ["mmlu_law"]}
        changed = {**saved, "group_subtasks": below, "n-samples": {"mmlu_law": {"effective": documents}}}
        next((tmp_path / name).glob("*.json")).write_text(json.dumps(changed))
    assert "mmlu \\[a\\] acc | mmlu \\[b\\] acc |" in board(tmp_path)


def test_a_signature_that_lacks_something_is_refused_by_name(tmp_path):
    saved = result(tmp_path, "a")
    del saved["configs"]["hesnr_swe"]["metadata"]["signature"]["filters"]
    next((tmp_path / "a").glob("*.json")).write_text(json.dumps(saved))
    with pytest.raises(DataError, match="signature of hesnr_swe lacks filters"):
        read_results([tmp_path])


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [(0.1072, 0.0041, "0.1072 ± 0.0041"), (1e300, 2.0, "1e+300 ± 2.0e+00"), (0.2, 3e-18, "0.2 ± 3.0e-18")],
)
def test_numbers_stay_short(value, error, shown):
    assert Estimate(value, error).text == shown


def test_revisions_and_folders_of_one_name_are_told_apart(tmp_path):
    for index, args in enumerate(
        (
            "pretrained=me/pythia,revision=step1",
            "pretrained=me/pythia,revision=step2",
            {"pretrained": "x/s1/hf"},
            {"pretrained": "x/s2/hf"},
        )
    ):
        result(tmp_path, f"f{index}", model_args=args)
    assert {row.model for row in read_results([tmp_path])} == {"pythia@step1", "pythia@step2", "s1/hf", "s2/hf"}


def test_an_output_path_that_ends_in_json_is_found_too(tmp_path):
    result(tmp_path, "a")
    old = next(tmp_path.rglob("*.json"))
    old.rename(tmp_path / "mine_2026-01-31T10-11-12.123456.json")
    (tmp_path / "other.json").write_text("{}")  # somebody else's
    assert {row.model for row in read_results([tmp_path])} == {"a"}


def test_hostile_names_stay_in_their_cell(tmp_path):
    name = "a|b<script>alert(1)</script>[x](javascript:1)\n# c"
    result(tmp_path, "f", model_args={"pretrained": name}, others={})
    row = board(tmp_path).splitlines()[-1]
    assert row.startswith("| script\\>\\[x\\](javascript:1) # c |")
    assert len(board(tmp_path).splitlines()) == 5


def test_the_csv_has_every_number_and_starts_no_formula(tmp_path):
    result(tmp_path, "f", model_args={"pretrained": "=1+1"})
    rows = read_results([tmp_path])
    bench, ours = csv.DictReader(io.StringIO(leaderboard_csv(rows, read_ladder(["=1+1"]).checkpoints)))
    assert (ours["checkpoint"], ours["task"], bench["task"]) == ("'=1+1", "hesnr_swe", "hellaswag")
    assert (float(ours["he_snr"]), float(ours["he_snr_stderr"])) == (0.2, 0.01)
    assert (float(bench["acc"]), float(bench["acc_stderr"])) == (0.3, 0.004)
    assert ours["acc"] == ours["ppl_stderr"] == ""
    assert json.loads(ours["signature"])[1]["k"] == 10


def test_a_new_metric_is_a_column_without_a_change_here(tmp_path):
    saved = result(tmp_path, "a", others={})
    saved["results"]["hesnr_swe"] |= {"toy,none": 0.25, "toy_stderr,none": 0.01, "tokens,none": 50}
    next(tmp_path.rglob("*.json")).write_text(json.dumps(saved))
    metric("toy", better="down", title="Toy ↓")(lambda tokens: tokens.entropy)
    try:
        lines = board(tmp_path).splitlines()
        text = leaderboard_csv(read_results([tmp_path]), read_ladder(["a"]).checkpoints)
    finally:
        unregister("toy")
    assert lines[2] == "| checkpoint | HE-SNR ↑ | PPL ↓ | Toy ↓ | tokens | scored |"
    assert lines[4] == "| a | 0.200 ± 0.010 | 3 | 0.250 ± 0.010 | 50 | 100.0% |"
    row = next(csv.DictReader(io.StringIO(text)))
    assert (row["toy"], row["toy_stderr"]) == ("0.25", "0.01")
