"""The whole way: files on disk, the real lm_eval, real (tiny) models, against the float64 reference."""

import importlib.metadata
import json
import math
import re
from functools import cache
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from hesnr_tasks import formats
from hesnr_tasks.errors import DataError, HesnrError, ScoringError, SettingsError
from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.metrics import EPSILON, names_of
from hesnr_tasks.tasks import tasks_path
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.rendering import label_mask, render
from tests import tiny
from tests.lm_eval_run import SMALL, call, evaluate, lm_eval_command, run, values, write
from tests.reference import metrics as reference
from tests.reference import pipeline


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("checkpoint")), steps=40)


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small.jsonl", SMALL)


# --- right numbers ----------------------------------------------------------------------------------------------------

CASES = {
    "hesnr_swe": ([Kind.ACTION], list(FILTERS)),
    "hesnr_swe_unfiltered": ([Kind.THOUGHT, Kind.ACTION], []),
    "hesnr_swe_thought": ([Kind.THOUGHT], []),
}


@cache
def loaded(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), AutoTokenizer.from_pretrained(
        checkpoint
    )


def expected(checkpoint, trajectories, kinds, filters, max_length, rendering="transcript", template=None):
    """Per-trajectory reference tokens."""
    model, tokenizer = loaded(checkpoint)
    mask = int(label_mask(kinds, filters, list(FILTERS)))
    tokens = []
    for trajectory in trajectories:
        rendered = render(trajectory, rendering, template)
        kept = [bool(mask >> int(code) & 1) for code in char_codes(rendered)]
        tokens.append(pipeline.tokens_of(model, tokenizer, rendered, kept, max_length))
    return tokens


def check_against_reference(result, task, tokens):
    want = reference.metrics([t for trajectory_tokens in tokens for t in trajectory_tokens], EPSILON)
    measured = values(result, task)
    for name in names_of():
        assert measured[name] == pytest.approx(want[name], rel=1e-5), name
    rng = np.random.default_rng(1234)
    keys = np.argsort([s["he_snr"].payload.key for s in result["samples"][task]])
    draws = [[int(keys[i]) for i in rng.integers(0, len(keys), len(keys))] for _ in range(100)]
    resamples = reference.resampled(tokens, draws, EPSILON)
    for name in ("he_snr", "he_ppl", "ppl", "entropy"):
        error = result["results"][task][f"{name}_stderr,none"]
        counts = [
            reference.metrics(trajectory_tokens, EPSILON)["he_tokens" if "he_" in name else "tokens"]
            for trajectory_tokens in tokens
        ]
        if sum(counts) ** 2 < 2 * sum(n * n for n in counts):  # as unequal as fewer than two of equal length
            assert error == "N/A", name
        else:
            assert error == pytest.approx(reference.error(resamples, name), rel=1e-4), name


SWE_SMITH, SWE_AGENT = "swesmith_xml_messages.jsonl", "sweagent_function_calling_marshmallow-1867.traj"


@pytest.mark.numbers
@pytest.mark.parametrize("files", [[SWE_SMITH, SWE_AGENT], [SWE_SMITH], [SWE_AGENT]], ids=["3", "2 unequal", "1"])
def test_every_result_key_equals_the_reference_on_real_trajectories(checkpoint, shared, files):
    path = [str(shared / file) for file in files]
    metadata = {"trajectories": path, "resamples": 100}
    result = evaluate(checkpoint, list(CASES), metadata, "dtype=float32,max_length=10000")
    trajectories = [trajectory for name in path for trajectory in formats.load(name)]
    for task, (kinds, filters) in CASES.items():
        tokens = expected(checkpoint, trajectories, kinds, filters, 10000)
        assert sum(map(len, tokens)) > 20
        if len(trajectories) > 1:
            check_against_reference(result, task, tokens)
        else:
            want = reference.metrics(tokens[0], EPSILON)
            assert values(result, task) == pytest.approx(want, rel=1e-5)
            assert result["results"][task]["he_snr_stderr,none"] == "N/A"


@pytest.mark.numbers
def test_chatml_and_the_models_own_template(checkpoint, tmp_path, small):
    """Labels survive the other two renderings, control tokens and all."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = tiny.llama(str(tmp_path / "chat"), seed=3, steps=40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    kinds, filters = CASES["hesnr_swe"]
    chatml = evaluate(folder, ["hesnr_swe"], {"trajectories": small, "render": "chatml", "resamples": 100})
    tokens = expected(folder, SMALL, kinds, filters, 32768, "chatml")
    check_against_reference(chatml, "hesnr_swe", tokens)
    templated = evaluate(folder, ["hesnr_swe"], {"trajectories": small, "resamples": 100}, apply_chat_template=True)
    assert values(templated, "hesnr_swe") == values(chatml, "hesnr_swe")
    assert templated["configs"]["hesnr_swe"]["metadata"]["signature"]["render"] == "template"
    with pytest.raises(SettingsError, match="exclude each other"):
        evaluate(folder, ["hesnr_swe"], {"trajectories": small, "render": "chatml"}, apply_chat_template=True)


@pytest.mark.numbers
def test_permuting_trajectories_changes_no_bit(checkpoint, tmp_path, small):
    other = write(tmp_path / "other.jsonl", [SMALL[2], SMALL[0], SMALL[1]])
    a = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small})["results"]["hesnr_swe"]
    b = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": other})["results"]["hesnr_swe"]
    assert a == b


@pytest.mark.numbers
def test_a_trailing_observation_changes_no_number(checkpoint, tmp_path, small):
    longer = [
        Trajectory(t.id, (*t.messages, Message("tool", (Segment(Kind.OBSERVATION, "late news " * 50),)))) for t in SMALL
    ]
    other = write(tmp_path / "longer.jsonl", longer)
    a = evaluate(checkpoint, ["hesnr_swe", "hesnr_swe_unfiltered"], {"trajectories": small})
    b = evaluate(checkpoint, ["hesnr_swe", "hesnr_swe_unfiltered"], {"trajectories": other})
    for task in ("hesnr_swe", "hesnr_swe_unfiltered"):
        assert values(a, task) == values(b, task)


@pytest.mark.numbers
def test_the_ablation_reads_each_trajectory_once(checkpoint, small, monkeypatch):
    from hesnr_tasks.backends import hf

    read = []
    score = hf.HuggingFaceBackend.score

    def counting(self, passages, k, progress, skip=()):
        read.extend(p.name for p in passages)
        return score(self, passages, k, progress, skip)

    monkeypatch.setattr(hf.HuggingFaceBackend, "score", counting)
    result = evaluate(checkpoint, ["hesnr_swe_ablation", "hesnr_swe"], {"trajectories": small})
    assert sorted(read) == ["one", "three", "two"]
    full = values(result, "hesnr_ablation_action_xml_format_comments")
    assert full == values(result, "hesnr_swe")
    counted = [values(result, t)["tokens"] for t in (
        "hesnr_ablation_action", "hesnr_ablation_action_xml", "hesnr_ablation_action_xml_format",
        "hesnr_ablation_action_xml_format_comments")]  # fmt: skip
    assert counted == sorted(counted, reverse=True)
    assert len(set(counted)) == 4


# --- what lm-eval prints and saves ----------------------------------------------------------------------------------


def test_the_command_line_beside_a_standard_task(checkpoint, small, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "choice.jsonl").write_text('{"q": "1+1=", "choices": ["2", "3"], "gold": 0}\n' * 3)
    (tmp_path / "tasks" / "choice.yaml").write_text(
        f"task: choice\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/choice.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: gold\nmetric_list: [{metric: acc}]\n"
    )
    for path in tasks_path().glob("*.yaml"):
        (tmp_path / "tasks" / path.name).write_text(path.read_text())
    done = lm_eval_command(
        "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--tasks", "hesnr_swe,choice",
        "--include_path", str(tmp_path / "tasks"), "--metadata", json.dumps({"trajectories": small, "min_tokens": 0}),
        "--limit", "2", "--log_samples", "--output_path", str(tmp_path / "out"),
    )  # fmt: skip
    for name in names_of():
        # two trajectories of unequal length have no standard error, and a count never has
        assert re.search(rf"\|{name}\s*\|[↑↓ ]*\|\s*[\d.]+\|±\s*\|\s*N/A\|", done.stdout), name
    assert re.search(r"\|scored\s*\|\s*\|\s*1\.0000\|", done.stdout)
    assert re.search(r"\|acc\s*\|↑", done.stdout)
    assert "Traceback" not in done.stderr
    saved = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    signature = saved["configs"]["hesnr_swe"]["metadata"]["signature"]
    assert signature["trajectories"] == 2
    assert signature["run"]["backend"] == "hf"
    assert {"k", "epsilon", "kinds", "filters", "render", "max_length", "tokens_cut", "data"} <= set(signature)
    samples = next((tmp_path / "out").rglob("samples_hesnr_swe*.jsonl"))
    assert len(samples.read_text().splitlines()) == 2
    assert samples.stat().st_size < 2 * 8000
    assert "list" not in samples.read_text()  # the text itself is not in it
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    values = saved["results"]["hesnr_swe"]
    assert sum(row["tokens"] for row in rows) == values["tokens,none"]
    loss = sum(math.log(row["ppl"]) * row["tokens"] for row in rows) / values["tokens,none"]
    assert loss == pytest.approx(math.log(values["ppl,none"]), rel=1e-9)


@pytest.mark.xfail(
    importlib.metadata.version("lm_eval") == "0.5.0.dev1",
    raises=IndexError,
    reason="its log of samples takes a document's number for its place in --samples, for every task",
)
def test_samples_are_the_ones_named(checkpoint, small):
    result = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small}, samples={"hesnr_swe": [2, 0]})
    assert [(s["doc_id"], s["doc"]["id"]) for s in result["samples"]["hesnr_swe"]] == [(0, "one"), (2, "three")]


def test_samples_that_are_not_there_are_refused(checkpoint, small):
    with pytest.raises(SettingsError, match="outside"):
        evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small}, samples={"hesnr_swe": [7]})


def test_stale_request_caches_are_refused(checkpoint, small, caplog):
    evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small}, cache_requests=True)
    assert "--cache_requests is ignored" in caplog.text


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_run_without_assistant_turns_has_nothing_to_score(checkpoint, tmp_path, caplog):
    prompt_only = run("silent")
    with pytest.raises(DataError, match="nothing to score"):
        evaluate(checkpoint, ["hesnr_swe"], {"trajectories": write(tmp_path / "a.jsonl", [prompt_only])})
    result = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": write(tmp_path / "b.jsonl", [prompt_only, *SMALL])})
    assert "trajectory 'silent' has no assistant turn" in caplog.text
    assert result["n-samples"]["hesnr_swe"]["effective"] == 3


def test_no_action_tokens_is_nan_and_said(checkpoint, tmp_path, caplog):
    talk = write(tmp_path / "talk.jsonl", [run("talk", ("Only words.", "", "ok")), run("talk2", ("More.", "", "ok"))])
    result = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": talk})
    assert math.isnan(values(result, "hesnr_swe")["he_snr"])
    assert math.isnan(values(result, "hesnr_swe")["ppl"])
    assert values(result, "hesnr_swe")["tokens"] == 0
    assert "no token counts in 2 of 2 trajectories" in caplog.text
    assert "he_snr and he_ppl are NaN" in caplog.text


def test_fewer_tokens_than_the_floor_give_no_number_and_say_so(checkpoint, small, caplog):
    unrestricted = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small})
    counts = values(unrestricted, "hesnr_swe")
    high, tokens = int(counts["he_tokens"]), int(counts["tokens"])
    assert 1 < high < tokens
    for floor, missing in ((high, ()), (high + 1, ("he_snr", "he_ppl")), (tokens + 1, ("he_snr", "he_ppl", "ppl"))):
        caplog.clear()
        result = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small, "min_tokens": floor})
        for name in ("he_snr", "he_ppl", "ppl"):
            want = pytest.approx(math.nan, nan_ok=True) if name in missing else counts[name]
            assert values(result, "hesnr_swe")[name] == want, (floor, name)
        for name in missing:
            assert result["results"]["hesnr_swe"][f"{name}_stderr,none"] == "N/A"
        assert ("fewer than min_tokens" in caplog.text) == bool(missing)
        assert values(result, "hesnr_swe")["tokens"] == tokens


@pytest.mark.numbers
def test_overflow_policies(checkpoint, small, tmp_path, caplog):
    args = "dtype=float32,max_length=60"
    whole = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small})
    right = evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small}, args)
    assert "3 of 3 texts are longer than the model's context of 60 tokens" in caplog.text
    signature = right["configs"]["hesnr_swe"]["metadata"]["signature"]
    assert signature["tokens_cut"] == values(whole, "hesnr_swe")["tokens"] - values(right, "hesnr_swe")["tokens"] > 0
    assert signature["trajectories_cut"] == 3
    share = values(right, "hesnr_swe")["tokens"] / values(whole, "hesnr_swe")["tokens"]
    assert right["results"]["hesnr_swe"]["scored,none"] == pytest.approx(share)
    assert whole["results"]["hesnr_swe"]["scored,none"] == 1
    assert f"LESS THAN HALF: only {share:.1%}" in caplog.text
    tokens = expected(checkpoint, SMALL, *CASES["hesnr_swe"], 60)
    assert values(right, "hesnr_swe")["tokens"] == sum(map(len, tokens)) > 0
    assert values(right, "hesnr_swe")["ppl"] == pytest.approx(
        reference.metrics([t for trajectory_tokens in tokens for t in trajectory_tokens], EPSILON)["ppl"], rel=1e-5
    )
    with pytest.raises(ScoringError, match=r"'one' has \d+ tokens, the model reads 60"):
        evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small, "overflow": "error"}, args)
    long = run("long", *[("Again.", call(f"cat src/{i}.py"), "x = 1\n" * 9) for i in range(9)])
    # nothing of these counts before the context ends: they are skipped, and the message is not about them
    silent = [run(f"silent{i}", (" ".join(["wait"] * 400), call("ls"), "a.py")) for i in range(4)]
    mixed = write(tmp_path / "mixed.jsonl", [*SMALL, long, *silent])
    skipped = evaluate(
        checkpoint, ["hesnr_swe"], {"trajectories": mixed, "overflow": "skip"}, "dtype=float32,max_length=300"
    )
    signature = skipped["configs"]["hesnr_swe"]["metadata"]["signature"]
    assert (signature["trajectories"], signature["trajectories_skipped"], signature["tokens_cut"]) == (3, 5, 0)
    share = skipped["results"]["hesnr_swe"]["scored,none"]
    every = expected(checkpoint, [*SMALL, long, *silent], *CASES["hesnr_swe"], 32768)
    assert share == pytest.approx(values(skipped, "hesnr_swe")["tokens"] / sum(map(len, every)))
    assert f"only {share:.1%} of the tokens that count were scored" in caplog.text
    assert "no token counts" not in caplog.text
    assert values(skipped, "hesnr_swe") == values(whole, "hesnr_swe")


def test_a_trajectory_is_left_out_of_the_tasks_it_is_too_long_for_and_of_no_other(checkpoint, tmp_path):
    """Its last thought is beyond the context, all actions fit: the thoughts' task skips it, alone or not."""
    late = run("late", ("Look.", call("ls src"), "a.py"), ("", call("pwd"), ""), (" ".join(["wait"] * 300), "", ""))
    metadata = {"trajectories": write(tmp_path / "late.jsonl", [*SMALL, late]), "overflow": "skip"}
    both = evaluate(checkpoint, ["hesnr_swe", "hesnr_swe_thought"], metadata, "dtype=float32,max_length=300")
    assert both["n-samples"]["hesnr_swe"]["effective"] == 4
    everything = evaluate(checkpoint, ["hesnr_swe"], metadata)
    for name in ("tokens", "he_tokens"):
        assert values(both, "hesnr_swe")[name] == values(everything, "hesnr_swe")[name]
    fewer = evaluate(checkpoint, ["hesnr_swe_thought"], metadata | {"trajectories": str(tmp_path / "late.jsonl")},
                     "dtype=float32,max_length=300")  # fmt: skip
    assert values(both, "hesnr_swe_thought") == pytest.approx(values(fewer, "hesnr_swe_thought"), rel=1e-5)
    assert values(fewer, "hesnr_swe_thought")["tokens"] == sum(
        map(len, expected(checkpoint, SMALL, *CASES["hesnr_swe_thought"], 300))
    )


def test_all_trajectories_skipped_is_an_error_not_an_empty_table(checkpoint, small):
    with pytest.raises(ScoringError, match="longer than"):
        evaluate(checkpoint, ["hesnr_swe"], {"trajectories": small, "overflow": "skip"}, "dtype=float32,max_length=20")


@pytest.mark.numbers
def test_a_diverged_checkpoint_is_an_error(tmp_path, small):
    folder = tiny.llama(str(tmp_path / "diverged"), seed=9)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ScoringError, match=r"NaN or infinite.*token \d+ of trajectory '\w+'.*diverged"):
        evaluate(folder, ["hesnr_swe"], {"trajectories": small})


def test_a_tokenizer_that_cannot_spell_the_text_is_an_error(tmp_path, small):
    folder = tiny.llama(str(tmp_path / "words"), tokenizer=tiny.lower_casing)
    with pytest.raises(ScoringError, match=r"cannot represent \d+ of \d+ characters \(first in trajectory 'one'\)"):
        evaluate(folder, ["hesnr_swe"], {"trajectories": small})


def test_a_backend_without_the_request_type_lists_those_that_have_it(small):
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata={"trajectories": small})
    with pytest.raises(ScoringError, match="Use hf, vllm, sglang, or local-completions"):
        lm_eval.simple_evaluate(model="dummy", tasks=["hesnr_swe"], task_manager=manager)


def test_settings_are_checked_before_anything_is_read(checkpoint):
    with pytest.raises(SettingsError, match="Did you mean 'epsilon'"):
        evaluate(checkpoint, ["hesnr_swe"], {"epsilom": 1})
    with pytest.raises(HesnrError, match="cannot be set for this task"):
        evaluate(checkpoint, ["hesnr_swe_thought"], {"kinds": "action"})


@pytest.mark.numbers
def test_the_demo_trajectories_are_the_default(checkpoint):
    assert values(evaluate(checkpoint, ["hesnr_swe"], {}, limit=1), "hesnr_swe")["tokens"] > 50


def test_library_paths_are_the_clones(request):
    assert tasks_path() == Path(request.config.rootpath) / "task_configs"
