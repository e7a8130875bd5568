"""The leaderboard shows what lm-eval saved, and never ranks what was made differently together."""

import json

import pytest

from hesnr_tasks.errors import DataError
from hesnr_tasks.report.leaderboard import markdown, read_results


def result(folder, name, snr=0.2, date=1.0, **signature):
    made = {
        "hesnr_tasks": "0.1.0", "k": 10, "epsilon": 1.2424533, "kinds": ["action"], "filters": ["xml"],
        "render": "transcript", "overflow": "right", "max_length": 2048, "tokens_cut": 0, "trajectories": 8,
        "data": "abcdef0123456", "run": {"model": name, "tokenizer": "t", "dtype": "torch.float32"},
    } | signature  # fmt: skip
    values = {
        "alias": "hesnr_swe",
        "he_snr,none": snr,
        "he_snr_stderr,none": 0.01,
        "ppl,none": 3.0,
        "ppl_stderr,none": "N/A",
    }
    saved = {
        "results": {"hesnr_swe": values, "hellaswag": {"acc,none": 0.3}},
        "configs": {"hesnr_swe": {"metadata": {"signature": made}}, "hellaswag": {"metadata": {"version": 1}}},
        "config": {"model_args": {"pretrained": f"/ckpt/{name}"}},
        "date": date,
    }
    path = folder / name / f"results_{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved))


def test_checkpoints_are_in_natural_order_with_errors(tmp_path):
    for name, snr in (("step1600", 0.3), ("step800", 0.2), ("step1600-8k", 0.25)):
        result(tmp_path, name, snr)
    lines = markdown(read_results([str(tmp_path)])).splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| step800", "| step1600", "| step1600-8k"]
    assert "| 0.200 ± 0.010 |" in lines[4]
    assert "| 3 |" in lines[4]


def test_the_newest_result_of_a_checkpoint_counts(tmp_path):
    result(tmp_path, "a", 0.1, date=1.0)
    result(tmp_path, "a", 0.9, date=2.0)
    assert [row.values["he_snr"][0] for row in read_results([str(tmp_path)])] == [0.9]


@pytest.mark.parametrize(
    "difference",
    [
        {"k": 20}, {"epsilon": 1.0}, {"kinds": ["thought"]}, {"filters": []}, {"render": "chatml"}, {"data": "f"},
        {"tokens_cut": 5}, {"run": {"tokenizer": "u"}}, {"hesnr_tasks": "0.2.0"},
    ],
)  # fmt: skip
def test_different_signatures_are_in_different_tables(tmp_path, difference):
    result(tmp_path, "a")
    result(tmp_path, "b", **difference)
    assert markdown(read_results([str(tmp_path)])).count("| checkpoint |") == 2


def test_a_context_limit_that_cuts_nothing_does_not_separate(tmp_path):
    result(tmp_path, "a")
    result(tmp_path, "b", max_length=8192)
    assert markdown(read_results([str(tmp_path)])).count("| checkpoint |") == 1


def test_a_folder_without_results_says_how_to_make_some(tmp_path):
    with pytest.raises(DataError, match="--tasks hesnr_swe"):
        read_results([str(tmp_path)])
    with pytest.raises(DataError, match="no such file"):
        read_results([str(tmp_path / "none")])
    (tmp_path / "results_1.json").write_text("{")
    with pytest.raises(DataError, match="not an lm-eval result file"):
        read_results([str(tmp_path)])
