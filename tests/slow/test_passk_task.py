"""The lm-eval task on a tiny Hugging Face model: template, seeds, verifiers, refusals, going on after a stop."""

import argparse
import json
import re
import sqlite3
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from hesnr_tasks.cli import answers
from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.passk.lm_tasks import PassKSettings
from hesnr_tasks.passk.seeded_generation import SeededSampler, sampling_arguments
from hesnr_tasks.tasks import tasks_path
from tests import tiny
from tests.lm_eval_run import lm_eval_command

SINCE_0_5 = hasattr(ConfigurableTask, "process_instances")
CHECKS = Path(__file__).with_name("checks.py")
YAML = """
task: {name}
class: !function hesnr_tasks.passk.lm_tasks.PassKTask
custom_dataset: !function hesnr_tasks.passk.lm_tasks.arithmetic
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
    """A folder with a user's own task, and its verifier beside it."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "checks.py").write_text(CHECKS.read_text())

    def write(name="even", more=""):
        (folder / f"{name}.yaml").write_text(YAML.format(name=name, more=more))
        return folder

    write()
    return write


@pytest.fixture(scope="session")
def model(checkpoint):
    return HFLM(checkpoint, device="cpu", dtype="float32", batch_size=8)


def evaluate(model, folder, name="even", passk=None, batch_size=8, **kwargs):
    metadata = {"passk": {"answers": "none", **(passk or {})}}
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    model.batch_size_per_gpu = batch_size
    kwargs = {"limit": 5, "bootstrap_iters": 0, **kwargs}
    return lm_eval.simple_evaluate(model=model, tasks=[name], task_manager=manager, **kwargs)


def answers_of(result, name="even"):
    return [sample["resps"][0] for sample in result["samples"][name]]


def rows_of(path):
    return sorted(path.read_text().splitlines())


def test_plain_lm_eval_and_hesnr_passk_give_the_same_numbers(checkpoint, tasks, tmp_path):
    out = tmp_path / "out"
    words = ["--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--tasks", "even"]
    words += ["--include_path", tasks(), "--device", "cpu", "--batch_size", "16", "--limit", "12"]
    command_result = lm_eval_command(*words, "--log_samples", "--output_path", out)
    assert command_result.status == 0, command_result.stderr[-3000:]
    printed = dict(re.findall(r"\|(pass@\d+)\s*\|[^|]*\|\s*([\d.]+)\|", command_result.stdout))
    (results,) = out.rglob("results_*.json")
    saved = json.loads(results.read_text())["results"]["even"]
    parser = argparse.ArgumentParser()
    answers.passk_arguments(parser)
    (curve,), _ = answers.passk_tables(parser.parse_args([str(out)]))
    points = {row["k"]: row["pass@k"] for row in curve.rows}
    assert [*points] == [1, 2, 4]
    for k, point in points.items():
        assert point.value == pytest.approx(saved[f"pass@{k},none"], rel=1e-12)
        assert point.stderr == pytest.approx(saved[f"pass@{k}_stderr,none"], rel=1e-12)
        assert f"{point.value:.4f}" == printed[f"pass@{k}"]
    assert 0 < points[1].value < points[4].value <= 1
    (kept,) = (out / "answers").glob("even-*.jsonl")
    assert len(rows_of(kept)) == 12 * 4
    (log,) = out.rglob("samples_even_*.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        assert len(set(row["resps"][0])) == 4
        assert sum(row["right_answers"]) / 4 == row["pass@1"]
    assert len({row["arguments"]["gen_args_0"]["arg_1"]["seed"] for row in rows}) == 12
    assert saved["right_answers,none"] == sum(sum(row["right_answers"]) for row in rows)


def test_the_same_run_gives_the_same_answers_and_another_seed_others(model, tasks):
    first = answers_of(evaluate(model, tasks()))
    assert answers_of(evaluate(model, tasks())) == first
    assert answers_of(evaluate(model, tasks(), passk={"seed": 99})) != first
    assert answers_of(evaluate(model, tasks(), limit=3)) == first[:3]  # whatever else is in the batch
    more = answers_of(evaluate(model, tasks(), passk={"repeats": 6}, limit=3))
    assert [some[:4] for some in more] == first[:3]


def test_going_on_after_a_stop_gives_the_undisturbed_answers(model, tasks, tmp_path):
    whole = evaluate(model, tasks(), passk={"answers": str(tmp_path)})
    (path,) = tmp_path.glob("even-*.0.jsonl")
    kept = rows_of(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:8]) + lines[8][:20])  # as a kill leaves it
    again = evaluate(model, tasks(), passk={"answers": str(tmp_path)})
    assert answers_of(again) == answers_of(whole)
    assert rows_of(path) == kept


def test_kept_answers_of_other_settings_or_weights_are_not_mixed_in(model, tasks, tmp_path):
    settings = {"passk": {"answers": str(tmp_path / "kept")}, "limit": 1}
    first = answers_of(evaluate(model, tasks(), **settings))
    other = HFLM(tiny.llama(str(tmp_path / "other"), seed=4), device="cpu", dtype="float32", batch_size=8)
    assert answers_of(evaluate(model, tasks(), gen_kwargs="temperature=1.5", **settings)) != first
    assert answers_of(evaluate(other, tasks(), **settings)) != first
    assert answers_of(evaluate(model, tasks(), **settings)) == first
    assert len(list((tmp_path / "kept").glob("*.jsonl"))) == 3


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
def test_settings_that_cannot_be(model, tasks, case):
    settings, kwargs, why = REFUSED[case]
    with pytest.raises(SettingsError, match=why):
        evaluate(model, tasks(), passk=settings, limit=1, **kwargs)


def test_predict_only_keeps_the_answers(model, tasks):
    result = evaluate(model, tasks(), limit=2, predict_only=True)
    assert [len(some) for some in answers_of(result)] == [4, 4]


def test_lm_evals_cache_is_neither_read_nor_written(model, tasks, tmp_path):
    plain = answers_of(evaluate(model, tasks(), limit=2))
    for _ in range(2):
        assert answers_of(evaluate(model, tasks(), limit=2, use_cache=str(tmp_path / "cache"))) == plain
    with sqlite3.connect(tmp_path / "cache_rank0.db") as database:
        assert database.execute("SELECT COUNT(*) FROM unnamed").fetchone() == (0,)


def test_automatic_batch_size_and_one_at_a_time(model, tasks):
    automatic = answers_of(evaluate(model, tasks(), limit=2, batch_size="auto"))
    alone = answers_of(evaluate(model, tasks(), limit=2, batch_size=1))
    assert automatic == answers_of(evaluate(model, tasks(), limit=2, batch_size=16))
    assert sum(a == b for x, y in zip(alone, automatic) for a, b in zip(x, y)) >= 7  # padding moves the last bit


BASE = """
task: mine
custom_dataset: !function checks.rows
test_split: test
fewshot_split: train
num_fewshot: 5
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {do_sample: false, temperature: 0.0, max_gen_toks: 4, until: ["Question:"]}
"""


def test_a_task_gains_pass_at_k_by_its_name(model, tasks):
    """gsm8k as lm-eval ships it, on rows of our own: few-shot prompt, two filters with take_first, lenient match."""
    folder = tasks()
    (folder / "checks.py").write_text((folder / "checks.py").read_text() + GSM8K_ROWS)
    theirs = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    own = "custom_dataset: !function checks.rows\ndataset_kwargs: null\n"
    own += "generation_kwargs: {do_sample: false, temperature: 0.0, max_gen_toks: 4, until: ['Question:']}\n"
    (folder / "mine.yaml").write_text(f"include: {theirs}\ntask: mine\n{own}")
    (folder / "mine_passk.yaml").write_text(
        "task: mine_passk\nclass: !function hesnr_tasks.passk.lm_tasks.PassKTask\nbase: mine\nrepeats: 3\n"
    )
    result = evaluate(model, folder, "mine_passk", limit=2)
    metrics = result["results"]["mine_passk"]
    assert {"pass@1,strict-match", "pass@1,flexible-extract", "pass@3_stderr,flexible-extract"} <= set(metrics)
    assert result["versions"]["mine_passk"] == 3.0
    for sample in result["samples"]["mine_passk"]:
        assert len(set(sample["resps"][0])) == 3
        assert len(sample["filtered_resps"][0]) == 3
        kwargs = sample["arguments"][0][1]
        assert (kwargs["temperature"], kwargs["do_sample"], kwargs["max_gen_toks"]) == (0.6, True, 4)
        assert sample["arguments"][0][0].count("Question:") == 6


@pytest.mark.parametrize(
    "judged",
    [
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]",
        "process_results: !function checks.odd_or_even\n"
        "metric_list: [{metric: even, aggregation: mean, higher_is_better: true}, "
        "{metric: odd, aggregation: mean, higher_is_better: true}]",
        "metric_list: [{metric: !function checks.lists, aggregation: mean, higher_is_better: true}]\n"
        "filter_list: [{name: a, filter: [{function: custom, filter_fn: !function checks.pairs}]}]",
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "filter_list: [{name: a, filter: [{function: majority_vote}, {function: take_first}]}]",
    ],
    ids=["metric", "process_results", "code runner", "vote"],
)
def test_every_answer_is_judged_as_the_tasks_only_answer_is(model, tasks, judged):
    """Verdicts of the wrapped task equal those the base task gives to each answer alone."""
    folder = tasks()
    more = "\n\ndef odd_or_even(doc, results):\n    n = len(results[0])\n    return {'even': 1 - n % 2, 'odd': n % 2}\n"
    more += (
        "\n\ndef pairs(resps, docs):\n    return [[d['question'] + r for r in one] for one, d in zip(resps, docs)]\n"
    )
    more += "\n\ndef lists(references, predictions, **kwargs):\n"
    more += f"    return {{'pass@1': {'[len(predictions[0]) % 2]' if SINCE_0_5 else 'len(predictions[0][0]) % 2'}}}\n"
    (folder / "checks.py").write_text((folder / "checks.py").read_text() + GSM8K_ROWS + more)
    (folder / "mine.yaml").write_text(BASE + judged + "\n")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    base = manager.load(["mine"])["tasks"]["mine"]
    (folder / "mine_passk.yaml").write_text(
        "task: mine_passk\nclass: !function hesnr_tasks.passk.lm_tasks.PassKTask\nbase: mine\nrepeats: 4\n"
    )
    (samples,) = evaluate(model, folder, "mine_passk", limit=6)["samples"].values()
    seen = set()
    for sample in samples:
        for answer, right in zip(sample["resps"][0], sample["right_answers"]):
            base.build_all_requests(limit=1)
            base.instances[0].resps, base.instances[0].doc = [answer], sample["doc"]
            if SINCE_0_5:
                base.process_instances()
                scores = base.scorers[0].reduced_docs[0]
            else:
                base.apply_filters()
                (name,) = base.instances[0].filtered_resps
                scores = base.process_results(sample["doc"], [base.instances[0].filtered_resps[name]])
            assert right == next(iter(scores.values()))
            seen.add(right)
    assert seen == {0, 1} or "exact_match" in judged


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        ("", r"Pass@K of which task\? Name one"),
        ("base: gsm8kk\n", r"no task 'gsm8kk'.*Did you mean 'gsm8k"),
        ("base: even\ndoc_to_text: x\n", "doc_to_text cannot be set beside `base: even`"),
        ("base: choice\n", "not of multiple_choice"),
    ],
)
def test_tasks_that_cannot_be(model, tasks, yaml, why):
    folder = tasks()
    (folder / "choice.yaml").write_text(
        "task: choice\ncustom_dataset: !function hesnr_tasks.passk.lm_tasks.arithmetic\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: x\ndoc_to_choice: [a, b]\ndoc_to_target: a\n"
    )
    (folder / "bad.yaml").write_text(f"task: bad\nclass: !function hesnr_tasks.passk.lm_tasks.PassKTask\n{yaml}")
    with pytest.raises(SettingsError, match=why):
        TaskManager(include_path=str(folder), include_defaults=False).load(["bad"])


def test_answers_of_digits_are_judged_as_text():
    """lm-eval 0.5 makes a number of a target of digits, which no answer would equal."""
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False)
    task = manager.load(["hesnr_passk_arithmetic"])["tasks"]["hesnr_passk_arithmetic"]
    task.build_all_requests(limit=2)
    first, second = task.instances
    first.doc["answer"], first.resps, second.resps = "9", ["9", " 9.", "x", "8", "9", "99", "", "9"], ["x"] * 8
    if SINCE_0_5:
        task.process_instances()
        (metrics, _) = task.scorers[0].reduced_docs.values()
    else:
        task.apply_filters()
        metrics = task.process_results(first.doc, [first.filtered_resps["first_integer"]])
    assert metrics["right_answers"] == [1, 1, 0, 0, 1, 0, 0, 1]
    assert metrics["pass@1"] == 0.5


READY = {"gsm8k": "gsm8k", "aime24": "aime24", "aime25": "aime25", "math500": "minerva_math500",
         "humaneval_plus": "humaneval_plus"}  # fmt: skip


@pytest.mark.parametrize("name", READY)
def test_ready_tasks_name_tasks_that_lm_eval_has(name):
    """Their data are a network away; their bases are not."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from hesnr_tasks.passk.lm_tasks import _yaml_of

    config = load_yaml(tasks_path() / "passk" / f"hesnr_passk_{name}.yaml")
    assert config["base"] == READY[name]
    base = load_yaml(_yaml_of(config["base"], str(tasks_path() / "passk" / "x.yaml")), resolve_func=False)
    assert (base["task"], base["output_type"]) == (READY[name], "generate_until")
    verifier = (config.get("passk") or {}).get("verifier")
    assert verifier is None or verifier in [metric["metric"] for metric in base["metric_list"]]


# --- parts ------------------------------------------------------------------------------------------------------------


def token_shares(scores, sampling, rows=4000):
    sampler = SeededSampler(sampling, list(range(rows)))
    out = sampler(torch.zeros(rows, 1, dtype=torch.long), torch.tensor(scores).repeat(rows, 1))
    assert torch.isfinite(out).sum() == rows
    return np.bincount(out.argmax(-1).numpy(), minlength=len(scores)) / rows


def test_draws_follow_the_probabilities():
    scores = [1.0, 0.0, -1.0, 2.0, -float("inf")]
    expected = torch.softmax(torch.tensor(scores) / 0.7, 0).numpy()
    assert token_shares(scores, {"temperature": 0.7}) == pytest.approx(expected, abs=0.03)
    assert token_shares(scores, {"top_k": 1}).tolist() == [0, 0, 0, 1, 0]
    cut = token_shares(scores, {"top_p": 0.85})
    assert cut[2] == cut[4] == 0
    assert cut[3] == pytest.approx(np.e**2 / (np.e**2 + np.e), abs=0.03)


def test_a_rows_draws_depend_on_its_seed_alone():
    scores = torch.randn(3, 50)
    alone = [SeededSampler({}, [seed]) for seed in (5, 6, 7)]
    together = SeededSampler({}, [5, 6, 7])
    ids = torch.zeros(3, 1, dtype=torch.long)
    for _ in range(5):
        expected = [sampler(ids[:1], scores[i : i + 1]).argmax().item() for i, sampler in enumerate(alone)]
        assert together(ids, scores).argmax(-1).tolist() == expected
    with pytest.raises(ScoringError, match="2 rows"):
        together(ids[:2], scores[:2])


def test_the_models_own_configuration_counts_where_nothing_is_said():
    class Model:
        generation_config = type("C", (), {"to_diff_dict": staticmethod(lambda: {"top_k": 20, "top_p": 0.8})})

    assert sampling_arguments({"temperature": 0.6, "top_p": 1.0}, Model()) == {"temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize(
    "given", [{"seed": "x"}, {"seed": -1}, {"threshold": True}, {"verifier": 3}, {"answers": 5}, {"base": 1}]
)
def test_settings_of_the_wrong_kind_are_refused_before_anything_is_sampled(given):
    with pytest.raises(SettingsError, match=f"passk: {next(iter(given))} must be"):
        PassKSettings.read(given)


def test_settings_from_yaml_and_command_line():
    settings = PassKSettings.read({"repeats": 4}, {"repeats": 8, "k": [1, 8]}, {"repeats": 16})
    assert (settings.repeats, settings.ks) == (16, [1, 8])
    assert PassKSettings.read({"repeats": 6}, None).ks == [1, 2, 4, 6]
    for block, why in (({"seed": -1}, "seed"), ({"repeats": 0}, "repeats"), ({"k": "x"}, "k must"), (3, "block")):
        with pytest.raises(SettingsError, match=why):
            PassKSettings.read(block)
