"""The lm-eval task on a tiny Hugging Face model: template, seeds, verifiers, refusals, going on after a stop."""

import argparse
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager

from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.passk import command
from hesnr_tasks.passk.hf_sampler import SeededSampler, sampling_of
from hesnr_tasks.passk.registered import KeepAll, passk
from hesnr_tasks.passk.task_settings import PassKSettings, all_answers, verifier_of
from hesnr_tasks.registration import tasks_path
from tests import tiny

CHECKS = Path(__file__).with_name("checks.py")
TEMPLATE = tasks_path() / "passk" / "_passk_template_yaml"
YAML = """
include: {template}
task: {name}
custom_dataset: !function hesnr_tasks.passk.example.dataset
test_split: test
doc_to_text: "{{{{question}}}} ="
doc_to_target: "{{{{answer}}}}"
repeats: 4
process_results: !function checks.even
metric_list: [{{metric: even}}]
generation_kwargs: {{do_sample: true, temperature: 0.7, max_gen_toks: 6, until: []}}
{more}
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("passk_model")), seed=3)


@pytest.fixture
def tasks(tmp_path):
    """A folder with a user's own task that includes the template, and its verifier beside it."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "checks.py").write_text(CHECKS.read_text())

    def write(name="even", more=""):
        (folder / f"{name}.yaml").write_text(YAML.format(template=TEMPLATE, name=name, more=more))
        return folder

    write()
    return write


def evaluate(checkpoint, folder, name="even", passk=None, batch_size=8, **kwargs):
    metadata = {"passk": {"answers": "none", **(passk or {})}}
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    return lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={checkpoint},dtype=float32", tasks=[name], task_manager=manager,
        device="cpu", batch_size=batch_size, **{"limit": 5, **kwargs},
    )  # fmt: skip


def answers_of(result, name="even"):
    return [[one[0] for one in sample["resps"]] for sample in result["samples"][name]]


def test_plain_lm_eval_and_hesnr_passk_give_the_same_numbers(checkpoint, tasks, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--tasks", "even"]
    words += ["--include_path", str(tasks()), "--device", "cpu", "--batch_size", "16", "--limit", "12"]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words, "--log_samples", "--output_path", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = dict(re.findall(r"\|(pass@\d+)\s*\|[^|]*\|\s*([\d.]+)\|", done.stdout))
    (results,) = out.rglob("results_*.json")
    saved = json.loads(results.read_text())["results"]["even"]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    found = command.examine(parser.parse_args([str(out)]))
    (points,) = found.curves.values()
    assert [point.k for point in points] == [1, 2, 4]
    for point in points:
        assert point.value == saved[f"pass@{point.k},none"]
        assert point.stderr == saved[f"pass@{point.k}_stderr,none"]
        assert f"{point.value:.4f}" == printed[f"pass@{point.k}"]
    assert 0 < points[0].value < points[2].value <= 1
    (kept,) = (out / "answers").glob("even-*.jsonl")
    assert kept.read_text().count("\n") == 1 + 12 * 4
    (log,) = out.rglob("samples_even_*.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        assert len({one["arg_1"]["seed"] for one in row["arguments"].values()}) == 4
        assert len({one[0] for one in row["resps"]}) == 4


def test_the_same_run_gives_the_same_answers_and_another_seed_others(checkpoint, tasks):
    first = answers_of(evaluate(checkpoint, tasks()))
    assert answers_of(evaluate(checkpoint, tasks())) == first
    assert answers_of(evaluate(checkpoint, tasks(), passk={"seed": 99})) != first
    assert answers_of(evaluate(checkpoint, tasks(), limit=3)) == first[:3]  # whatever else is in the batch
    more = answers_of(evaluate(checkpoint, tasks(), passk={"repeats": 6}, limit=3))
    assert [some[:4] for some in more] == first[:3]


def test_going_on_after_a_stop_gives_the_undisturbed_answers(checkpoint, tasks, tmp_path):
    whole = evaluate(checkpoint, tasks(), passk={"answers": str(tmp_path / "a")})
    kept = (tmp_path / "a" / "even.0.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "even.0.jsonl").write_bytes(b"".join(kept[:12]) + kept[12][:10])  # in the middle of a batch
    again = evaluate(checkpoint, tasks(), passk={"answers": str(tmp_path / "b")})
    assert answers_of(again) == answers_of(whole)
    assert sorted((tmp_path / "b" / "even.0.jsonl").read_bytes().splitlines()) == sorted(b"".join(kept).splitlines())


def test_kept_answers_of_other_settings_or_weights_are_refused(checkpoint, tasks, tmp_path):
    evaluate(checkpoint, tasks(), passk={"answers": str(tmp_path)}, limit=1)
    with pytest.raises(SettingsError, match=r"generation_kwargs\.temperature: 0\.7 there, 1\.5 here"):
        evaluate(checkpoint, tasks(), passk={"answers": str(tmp_path)}, limit=1, gen_kwargs="temperature=1.5")
    other = tiny.llama(str(tmp_path / "other"), seed=4)
    with pytest.raises(SettingsError, match=r"model\.weights"):
        evaluate(other, tasks(), passk={"answers": str(tmp_path)}, limit=1)


GSM8K_ROWS = """

def rows(**kwargs):
    import datasets

    made = [{"question": f"How much is {i} + 1?", "answer": f"Easy. #### {i + 1}"} for i in range(8)]
    return {split: datasets.Dataset.from_list(made) for split in ("train", "test")}
"""
REFUSED = {
    "greedy": ({}, {"gen_kwargs": "do_sample=False,temperature=0"}, "needs sampling"),
    "a seed for all": ({}, {"gen_kwargs": "seed=3"}, "all answers would share"),
    "k beyond n": ({"k": [8]}, {}, "pass@8 cannot be known from 4 answers"),
    "unknown setting": ({"repeat": 3}, {}, "Did you mean 'repeats'"),
    "other verifier": ({"verifier": "odd"}, {}, r"'odd' is not among the task's metrics \(even\)"),
    "beams": ({}, {"gen_kwargs": "num_beams=2"}, "num_beams"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_be(checkpoint, tasks, case):
    settings, kwargs, why = REFUSED[case]
    with pytest.raises(SettingsError, match=why):
        evaluate(checkpoint, tasks(), passk=settings, limit=1, **kwargs)


def test_predict_only_keeps_the_answers(checkpoint, tasks):
    result = evaluate(checkpoint, tasks(), limit=2, predict_only=True)
    assert [len(some) for some in answers_of(result)] == [4, 4]


def test_lm_evals_cache_is_neither_read_nor_written(checkpoint, tasks, tmp_path):
    plain = answers_of(evaluate(checkpoint, tasks(), limit=2))
    for _ in range(2):
        assert answers_of(evaluate(checkpoint, tasks(), limit=2, use_cache=str(tmp_path / "cache"))) == plain
    with sqlite3.connect(tmp_path / "cache_rank0.db") as database:
        assert database.execute("SELECT COUNT(*) FROM unnamed").fetchone() == (0,)


def test_automatic_batch_size_and_one_at_a_time(checkpoint, tasks):
    automatic = answers_of(evaluate(checkpoint, tasks(), limit=2, batch_size="auto"))
    alone = answers_of(evaluate(checkpoint, tasks(), limit=2, batch_size=1))
    assert automatic == answers_of(evaluate(checkpoint, tasks(), limit=2, batch_size=16))
    assert sum(a == b for x, y in zip(alone, automatic) for a, b in zip(x, y)) >= 7  # padding moves the last bit


def test_lm_evals_own_task_gains_pass_at_k_by_an_include(checkpoint, tasks):
    """Its few-shot prompt, its two filters and its lenient exact match, for every answer."""
    folder = tasks()
    (folder / "checks.py").write_text((folder / "checks.py").read_text() + GSM8K_ROWS)
    theirs = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    own = "task: gsm8k_passk\ncustom_dataset: !function checks.rows\ndataset_kwargs: null\nrepeats: 3\n"
    own += "generation_kwargs: {do_sample: true, temperature: 1.0, max_gen_toks: 4, until: ['Question:']}\n"
    (folder / "gsm8k_passk.yaml").write_text(f"include: [{TEMPLATE}, {theirs}]\n{own}")
    result = evaluate(checkpoint, folder, "gsm8k_passk", limit=2)
    found = result["results"]["gsm8k_passk"]
    assert {"pass@1,strict-match", "pass@1,flexible-extract", "pass@3_stderr,flexible-extract"} <= set(found)
    for sample in result["samples"]["gsm8k_passk"]:
        assert len({one[0] for one in sample["resps"]}) == 3
        assert sample["arguments"][0][0].count("Question:") == 6


# --- parts ------------------------------------------------------------------------------------------------------------


def drawn(scores, sampling, rows=4000):
    sampler = SeededSampler(sampling, list(range(rows)))
    out = sampler(torch.zeros(rows, 1, dtype=torch.long), torch.tensor(scores).repeat(rows, 1))
    assert torch.isfinite(out).sum() == rows
    return np.bincount(out.argmax(-1).numpy(), minlength=len(scores)) / rows


def test_draws_follow_the_probabilities():
    scores = [1.0, 0.0, -1.0, 2.0, -float("inf")]
    expected = torch.softmax(torch.tensor(scores) / 0.7, 0).numpy()
    assert drawn(scores, {"temperature": 0.7}) == pytest.approx(expected, abs=0.03)
    assert drawn(scores, {"top_k": 1}).tolist() == [0, 0, 0, 1, 0]
    cut = drawn(scores, {"top_p": 0.85})
    assert cut[2] == cut[4] == 0
    assert cut[3] == pytest.approx(np.e**2 / (np.e**2 + np.e), abs=0.03)


def test_a_rows_draws_depend_on_its_seed_alone():
    scores = torch.randn(3, 50)
    alone = [SeededSampler({}, [seed]) for seed in (5, 6, 7)]
    together = SeededSampler({}, [5, 6, 7])
    ids = torch.zeros(3, 1, dtype=torch.long)
    for _ in range(5):
        expected = [one(ids[:1], scores[i : i + 1]).argmax().item() for i, one in enumerate(alone)]
        assert together(ids, scores).argmax(-1).tolist() == expected
    with pytest.raises(ScoringError, match="2 rows"):
        together(ids[:2], scores[:2])


def test_the_models_own_configuration_counts_where_nothing_is_said():
    class Model:
        generation_config = type("C", (), {"to_diff_dict": staticmethod(lambda: {"top_k": 20, "top_p": 0.8})})

    assert sampling_of({"temperature": 0.6, "top_p": 1.0}, Model()) == {"temperature": 0.6, "top_k": 20}


def test_take_first_becomes_keep_all_and_lossy_filters_are_refused():
    regex = {"function": "regex", "regex_pattern": "x"}
    found = all_answers([{"name": "strict", "filter": [regex, {"function": "take_first"}]}])
    assert found == [{"name": "strict", "filter": [regex, {"function": "keep_all"}]}]
    assert all_answers(None) == [{"name": "none", "filter": [{"function": "keep_all"}]}]
    with pytest.raises(SettingsError, match="majority_vote"):
        all_answers([{"name": "maj", "filter": [{"function": "majority_vote"}]}])


@pytest.mark.parametrize(
    "given", [{"bootstrap_seed": "x"}, {"bootstrap_seed": -1}, {"threshold": True}, {"verifier": 3}, {"answers": 5}]
)
def test_settings_of_the_wrong_kind_are_refused_before_anything_is_sampled(given):
    with pytest.raises(SettingsError, match=f"passk: {next(iter(given))} must be"):
        PassKSettings.read(given, None, 4)


def test_the_verifier_is_the_tasks_first_metric_or_the_one_named():
    usual = {"aggregation": "mean", "higher_is_better": True}
    assert verifier_of([{"metric": "passk", "verifier": "acc", "x": 1}], None) == (
        "acc",
        [{**usual, "metric": "acc", "x": 1}],
    )
    assert verifier_of([{"metric": "f1"}, {"metric": "acc"}], "acc")[0] == "acc"
    assert verifier_of(None, None)[0] == "exact_match"


def test_the_registered_filter_and_metric_serve_stock_tasks():
    assert KeepAll().apply([["a", "b"], ("c",)], [{}, {}]) == [["a", "b"], ["c"]]
    assert passk(references=["7"], predictions=[["7", "8", "7 ", "9"]], k=[1, 2]) == {
        "pass@1": 0.25,
        "pass@2": 0.5,
    }
    found = passk(["seven"], [["Seven", "8"]], ignore_case=True)
    assert found == {"pass@1": 0.5, "pass@2": 1.0}


def test_settings_from_yaml_and_command_line():
    made = PassKSettings.read({"repeats": 8, "k": [1, 8]}, {"repeats": 16}, 4)
    assert (made.repeats, made.ks) == (16, [1, 8])
    assert PassKSettings.read(None, None, 6).ks == [1, 2, 4, 6]
    for block, why in (({"seed": -1}, "seed"), ({"repeats": 0}, "repeats"), ({"k": "x"}, "k must"), (3, "block")):
        with pytest.raises(SettingsError, match=why):
            PassKSettings.read(block, None, 4)
