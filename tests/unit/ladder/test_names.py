"""Names are read as people mean them, and checkpoints stand in the order of training."""

from dataclasses import replace

import pytest

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.ladder.downstream import outcomes
from hesnr_tasks.ladder.names import boundaries, families, parse_name, read_ladder, training_order
from hesnr_tasks.ladder.schema import DownstreamScore


@pytest.mark.parametrize(
    ("name", "step", "context", "stage"),
    [
        ("step2000", 2000, None, ""),
        ("step1004-8k", 1004, 8192, ""),
        ("step_0125_2k", 125, 2048, ""),
        ("iter_0012000", 12000, None, ""),
        ("global_step500", 500, None, ""),
        ("checkpoint-750", 750, None, ""),
        ("run3/checkpoint-750/hf", 750, None, ""),
        ("pythia-160m@step3000", 3000, None, ""),
        ("OLMo-2-7B@stage1-step140000-tokens588B", 140000, None, ""),
        ("step12k", 12000, None, ""),
        ("step12k-32k", 12000, 32768, ""),
        ("500steps-128k", 500, 131072, ""),
        ("step2000-128k-sft", 2000, 131072, "sft"),
        ("Qwen2.5-Coder-32B-Instruct", None, None, "sft"),
        ("Qwen2.5-Coder-32B", None, None, ""),
        ("model-ctx32768-step10", 10, 32768, ""),
        ("step300-grpo", 300, None, "rl"),
        ("step300-sft-dpo", 300, None, "rl"),
        ("steppe-7b", None, None, ""),
        ("final", None, None, ""),
    ],
)
def test_a_name_tells_step_context_and_stage(name, step, context, stage):
    actual = parse_name(name)
    assert (actual.step, actual.context, actual.stage) == (step, context, stage)


def test_the_order_of_training_with_steps_that_begin_anew():
    names = ["step100-128k", "step2000-32k-sft", "step2000-32k", "step500-32k", "step100-128k-sft", "step0-128k"]
    want = ["step500-32k", "step2000-32k", "step0-128k", "step100-128k", "step2000-32k-sft", "step100-128k-sft"]
    assert [entry.name for entry in training_order(map(parse_name, names))] == want


def test_boundaries_of_context_and_stage():
    ladder = training_order(map(parse_name, ["step1", "step2", "step3-32k", "step4-128k", "step4-128k-sft"]))
    actual = [(entry.position, entry.kind, entry.label) for entry in boundaries(ladder)]
    assert actual == [(2, "context", "→ 32K"), (3, "context", "→ 128K"), (4, "stage", "SFT")]
    assert boundaries(training_order(map(parse_name, ["step1-2k", "step2-2k"]))) == []
    assert (
        boundaries(training_order(map(parse_name, ["step1-2k-sft", "step1-8k-sft"]))) == []
    )  # of two models, not of one in training


def test_a_yaml_file_says_what_names_do_not(tmp_path):
    path = tmp_path / "ladder.yaml"
    path.write_text(
        "checkpoints:\n- {name: b, step: 1, context: 32k, label: first, downstream: {score: {value: 0.2, n: 500}}}\n"
        "- {name: a, step: 2, stage: sft, before: b}\n"
    )
    ladder = read_ladder(["a", "b"], path)
    assert [entry.name for entry in ladder.checkpoints] == ["b", "a"]
    first, second = ladder.checkpoints
    assert (first.step, first.context, first.stage, first.label, first.before) == (1, 32768, "", "first", "")
    assert (second.stage, second.before) == ("sft", "b")
    assert first.downstream == {"score": DownstreamScore(0.2, 500)}
    path.write_text("checkpoints: [{name: a, step: 9}]\n")  # of one alone: the others keep what their names say
    assert [entry.name for entry in read_ladder(["a", "step20", "step3"], path).checkpoints] == ["step3", "a", "step20"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{name: step10O, step: 1}", "Did you mean 'step100'"),
        ("{name: step100, stpe: 1}", "Did you mean 'step'"),
        ("{name: step100, step: many}", "step must be a number"),
        ("{name: step100, context: long}", "32768 or 32k"),
        ("{name: step100, step: .inf}", "step must be a number"),
        ("{name: step100, step: 1.5}", "step must be a whole number"),
        ("{name: step100, downstream: {score: .nan}}", "downstream: score must be a number"),
        ("{name: step100, downstream: {score: {value: 0.1, n: many}}}", "downstream: score: n must be a number"),
        ("{name: step100, step: 2024-13-45}", "step must be a number"),
        ("{step: 1}", "checkpoint 1 of the list has no name"),
        ("[", "cannot read"),
    ],
)
def test_a_wrong_yaml_file_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "ladder.yaml"
    path.write_text(f"checkpoints:\n- {content}\n")
    with pytest.raises(SettingsError, match=message):
        read_ladder(["step100", "step200"], path)


def test_a_yaml_file_makes_no_objects(tmp_path):
    path = tmp_path / "ladder.yaml"
    path.write_text("!!python/object/apply:os.system ['touch " + str(tmp_path / "hacked") + "']")
    with pytest.raises(SettingsError):
        read_ladder(["a"], path)
    assert not (tmp_path / "hacked").exists()


def test_a_ladder_file_means_results_by_name_or_by_model_and_revision(tmp_path):
    path = tmp_path / "ladder.yaml"
    path.write_text(
        "checkpoints:\n"
        "- {name: early, model: org/m, revision: r1, family: a, step: 1}\n"
        "- {name: other, model: org/n, family: b, step: 1}\n"
        "- {name: late, model: org/m, revision: r2, family: a, step: 2}\n"
        "- {name: late-sft, sft_of: late, downstream: {swe: {value: 30, n: 500}, lcb: 3}}\n"
        "- {name: planned}\n"
    )
    named = read_ladder(["m@r1", "m@r2", "n"], path)
    assert [c.name for c in named.checkpoints] == ["m@r1", "m@r2", "n"]  # a family after the other
    assert list(families(named.checkpoints)) == ["a", "b"]
    assert outcomes(named.ladder, "swe")["m@r2"].measured == "late-sft"
    assert named.ladder.benchmarks == ["swe", "lcb"]
    assert len(named.notes) == 1
    assert "'planned' has no results" in named.notes[0]


def test_of_two_families_no_boundary_is_a_context_extension():
    ladder = [replace(parse_name(name), family=name[0]) for name in ("a-step1-2k", "a-step2-2k", "b-step1-8k")]
    assert [(entry.position, entry.kind, entry.label) for entry in boundaries(ladder)] == [(2, "stage", "b")]


def test_a_score_of_the_fine_tuned_run_judges_the_base_checkpoint(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text("model,swe_verified\nstep1_sft,20\nstep2-SFT,30\n")
    named = read_ladder(["step1", "step2"], None, [table])
    judged = outcomes(named.ladder, "swe_verified")
    assert {name: (score.value, score.measured) for name, score in judged.items()} == {
        "step1": (20, "after sft"), "step2": (30, "after sft"),
    }  # fmt: skip
    table.write_text("model,swe_verified\nstep1,2\nstep1_sft,20\n")
    named = read_ladder(["step1", "step2"], None, [table])
    assert outcomes(named.ladder, "swe_verified")["step1"].value == 20
    assert "not its own" in named.notes[0]
