"""`hesnr_tool_entropy` in the real lm_eval with a real model: right numbers, one pass, same bits from score files."""

import argparse
import json
import logging
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hesnr_tasks import formats
from hesnr_tasks.analysis import tool_entropy
from hesnr_tasks.analysis.frame import load, selection
from hesnr_tasks.analysis.tool_entropy import MEASURES
from hesnr_tasks.cli.analyze import analyze, analyze_arguments
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.tasks.settings import ToolEntropySettings
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import render
from tests import tiny
from tests.lm_eval_run import SMALL, call, evaluate, write
from tests.lm_eval_run import run as trajectory_of
from tests.reference import metrics as reference

PUBLIC = {"mean": "tool_entropy", "steps": "tool_steps", "unmeasured": "tool_steps_unmeasured"}
WITH_SUBMIT = trajectory_of("four", ("Look.", call("ls"), ""), ("", "\n\n<function=submit>\n</function>", ""))
ALL = [*SMALL, WITH_SUBMIT]
VERBS = {  # what says what is done, by hand; the name of the tool `submit` is call syntax and filtered
    "one": ["ls", "cat"],
    "two": ["python -m pytest", "grep"],
    "three": ["sed -i", "submit"],
    "four": ["ls", None],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("checkpoint")), steps=60)


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """lm_eval's results beside hesnr_swe, and where the scores are; one trajectory is there twice."""
    folder = tmp_path_factory.mktemp("run")
    twins = [*ALL, SMALL[0].__class__("twin", SMALL[0].messages)]
    metadata = {"trajectories": write(folder / "t.jsonl", twins), "scores": str(folder / "scores"), "resamples": 200}
    return evaluate(checkpoint, ["hesnr_swe", "hesnr_tool_entropy"], metadata), folder / "scores"


def numbers(result, ending=""):
    row = result["results"]["hesnr_tool_entropy"]
    return {name: row[f"{PUBLIC.get(name, f'tool_entropy_{name}')}{ending},none"] for name in MEASURES}


def analyzed(scores, *words):
    """The first row of `hesnr analyze --tool-entropy`, as JSON has it."""
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    words = [scores, "--tool-entropy", "--format", "json", "--resamples", 200, "--seed", 1234, *words]
    return json.loads(analyze(parser.parse_args([*map(str, words)])))["tables"]["tool_entropy"][0]


def expected_steps(checkpoint, trajectory):
    """(greatest H_topk, whether some token is in 𝓗) of each verb: full logits, plain loops."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = render(trajectory).text
    encoded = tokenizer(text, return_offsets_mapping=True)
    with torch.inference_mode():
        logits = model(torch.tensor([encoded["input_ids"]])).logits[0].double()
    start, steps = 0, []
    for verb in VERBS[trajectory.id]:
        start = text.index("<parameter=command>", start) + len("<parameter=command>") if verb else start
        if verb:
            assert text.startswith(verb, start)
            spaces = {start + i for i, c in enumerate(verb) if c == " "}  # between words: not part of any
            wanted = set(range(start, start + len(verb))) - spaces
            places = [t for t, (a, b) in enumerate(encoded["offset_mapping"]) if wanted & set(range(a, b))]
            tokens = [reference.token(logits[t - 1].tolist(), encoded["input_ids"][t]) for t in places]
            steps.append((max(h for _, _, h in tokens), any(h > EPSILON and r <= 10 for _, r, h in tokens)))
    return steps


def test_every_number_equals_the_reference_from_full_logits(checkpoint, run):
    steps = [step for t in (*ALL, SMALL[0]) for step in expected_steps(checkpoint, t)]
    values = sorted(value for value, _ in steps)
    measured, n = numbers(run[0]), len(steps)
    assert n == 9
    assert measured["steps"] == n
    assert measured["unmeasured"] == 1
    assert measured["mean"] == pytest.approx(sum(values) / n, rel=1e-5)
    assert measured["high"] == pytest.approx(sum(value > EPSILON for value in values) / n)
    assert measured["he"] == pytest.approx(sum(high for _, high in steps) / n)
    for name in ("p50", "p90", "p99"):
        assert measured[name] == pytest.approx(values[math.ceil(int(name[1:]) * n / 100) - 1], rel=1e-5)
    deviations = np.array(values) - np.mean(values)
    assert measured["skewness"] == pytest.approx((deviations**3).mean() / (deviations**2).mean() ** 1.5, rel=1e-3)


def test_analyze_has_the_bits_of_the_run_values_and_errors_alike(run):
    result, scores = run
    row = analyzed(scores)
    values, errors = numbers(result), numbers(result, "_stderr")
    for name in MEASURES:
        if name in ("steps", "unmeasured"):
            assert row[name] == values[name]
        else:
            assert row[name]["value"] == values[name], name
            assert row[name]["stderr"] == errors[name], name
    assert row["mean"]["stderr"] > 0
    assert row["p50"]["stderr"] > 0
    assert row["trajectories"] == 5


@pytest.mark.parametrize(("arguments", "combine"), [(1, "mean"), (2, "sum"), (3, "first"), (1, "max")])
def test_analyze_has_the_bits_of_the_task_away_from_its_defaults_too(checkpoint, run, arguments, combine):
    """On the same score files, with other decision words, combination, k, threshold and filters."""
    scores = run[1]
    settings = {"decision_arguments": arguments, "combine": combine, "k": 8, "epsilon": 0.9, "filters": "xml"}
    metadata = {"trajectories": str(scores.parent / "t.jsonl"), "scores": str(scores), "resamples": 200, **settings}
    result = evaluate(checkpoint, ["hesnr_tool_entropy"], metadata)
    words = (word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value))
    row, values, errors = analyzed(scores, *words), numbers(result), numbers(result, "_stderr")
    assert values["mean"] != numbers(run[0])["mean"]
    for name in set(MEASURES) - {"steps", "unmeasured"}:
        assert row[name]["value"] == values[name], name
        assert row[name]["stderr"] == errors[name], name


def test_beside_other_tasks_each_trajectory_is_read_once(checkpoint, tmp_path, monkeypatch):
    read = []
    forward = torch.nn.Embedding.forward
    monkeypatch.setattr(
        torch.nn.Embedding, "forward", lambda self, ids: (read.append(ids.numel()), forward(self, ids))[1]
    )
    metadata = {"trajectories": write(tmp_path / "t.jsonl", SMALL), "scores": "none"}
    evaluate(checkpoint, ["hesnr_swe"], metadata)
    alone, read[:] = sum(read), []
    evaluate(checkpoint, ["hesnr_swe", "hesnr_tool_entropy"], metadata)
    assert sum(read) == alone


def test_settings_of_its_own(checkpoint, tmp_path, caplog):
    metadata = {"trajectories": write(tmp_path / "t.jsonl", ALL), "filters": "none"}
    with caplog.at_level(logging.WARNING, logger="hesnr_tasks"):
        plain = numbers(evaluate(checkpoint, ["hesnr_tool_entropy"], metadata))
        result = evaluate(checkpoint, ["hesnr_tool_entropy"], {**metadata, "decision_arguments": 1, "combine": "sum"})
    assert plain["unmeasured"] == 0  # without filters the names of tools count, so `submit` has decision tokens
    assert numbers(result)["mean"] > plain["mean"]
    signature = result["configs"]["hesnr_tool_entropy"]["metadata"]["signature"]
    assert (signature["decision_arguments"], signature["combine"]) == (1, "sum")
    for combine in tool_entropy.COMBINE:
        assert ToolEntropySettings.read({"combine": combine}).combine == combine


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"combine": "maxx"}, "Did you mean 'max'"),
        ({"combin": "max"}, "Did you mean 'combine'"),
        ({"decision_argument": 1}, "Did you mean 'decision_arguments'"),
        ({"decision_arguments": -1}, "at least 0"),
        ({"kinds": "thought"}, "cannot be set for this task"),
    ],
)
def test_settings_that_cannot_be_are_refused(checkpoint, tmp_path, setting, message):
    metadata = {"trajectories": write(tmp_path / "t.jsonl", SMALL), **setting}
    with pytest.raises(SettingsError, match=message):
        evaluate(checkpoint, ["hesnr_tool_entropy"], metadata)


def test_on_real_trajectories_every_action_is_measured_or_counted_as_not(checkpoint, shared, tmp_path):
    metadata = {"trajectories": str(shared / "swesmith_xml_messages.jsonl"), "scores": str(tmp_path / "scores")}
    measured = numbers(evaluate(checkpoint, ["hesnr_tool_entropy"], metadata, "dtype=float32,max_length=16000"))
    trajectories = formats.load(metadata["trajectories"])
    acted = [
        any(s.kind is Kind.ACTION and s.text.strip() for s in m.segments) for t in trajectories for m in t.messages
    ]
    assert measured["steps"] > 10
    assert measured["steps"] + measured["unmeasured"] == sum(acted)  # two of three lie beyond the context
    assert 0 <= measured["p50"] <= measured["p90"] <= measured["p99"] <= math.log(10)
    frame = load(tmp_path / "scores", extra=tool_entropy.COLUMNS)
    chosen = selection(frame.filters, [Kind.ACTION], frame.filters)
    entropies = tool_entropy.profile_of(frame, chosen).measured.entropy
    assert math.fsum(entropies) / len(entropies) == measured["mean"]
