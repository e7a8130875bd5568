"""The vLLM backend against a plain forward, on the real engine (CPU), in the environment that `make vllm` makes."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hesnr_tasks.backends.base import batches_of_tokens
from hesnr_tasks.backends.vllm import _scores, logits_of_a_step, refuse_too_large_steps
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.scores.schema import SequenceScores
from tests import ROOT
from tests.server_model import (
    assert_same,
    entropy,
    find_vllm_python,
    load,
    passage,
    reference,
    run_group,
    save_model,
)

TOKENS = int(os.environ.get("HESNR_TEST_TOKENS", "3500"))  # of the long passage; 20000 takes a minute


@pytest.fixture(scope="module")
def passages():
    """A long one, and two that share its first 600 tokens."""
    long, text, two = passage("long", 0, TOKENS), passage("one", 0, 700, every=3), passage("two", 0, 640, every=7)
    two.ids[600:] = two.ids[600:][::-1]
    return {p.name: p for p in (long, text, two)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, passages):
    """One start of the engine, all that is asked of it; see server_engine.py."""
    python = find_vllm_python()
    folder = tmp_path_factory.mktemp("vllm")
    model = save_model(folder / "model")
    arrays = {
        f"{p.name}/{name}": value for p in passages.values() for name, value in p._asdict().items() if name != "name"
    }
    np.savez(folder / "passages.npz", **arrays)
    script = Path(__file__).with_name("server_engine.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    code, output = run_group([python, script, model, folder], environment, timeout=600)
    assert code == 0, output[-8000:]
    reported = json.loads((folder / "told.json").read_text())
    print(f"engine test: {time.perf_counter() - started:.0f} s, scoring {reported['seconds']:.1f} s")
    return np.load(folder / "scores.npz"), reported, load(folder / "model")


def arrays_of(run, kind, name):
    columns = (f"{kind}/{name}/{field}" for field in SequenceScores._fields)
    return SequenceScores(*(run[0][column] for column in columns if column in run[0]))


def test_agrees_with_a_plain_forward(run, passages):
    for name, text in passages.items():
        actual, want = arrays_of(run, "flat", name), reference(run[2], text)
        assert_same(actual, want)
        differences = (
            np.abs(actual.logprob - want.logprob).max(),
            np.abs(entropy(actual.topk_logprobs) - entropy(want.topk_logprobs)).max(),
        )
        print(f"{name}: {len(text.ids)} tokens, |Δ logprob| {differences[0]:.1e}, |Δ H| {differences[1]:.1e}")


def test_prefix_cache_and_order_change_nothing(run, passages):
    for name in passages:
        first, again = arrays_of(run, "flat", name), arrays_of(run, "again", name)
        assert np.abs(first.logprob - again.logprob).max() < 1e-4
        assert np.abs(first.topk_logprobs - again.topk_logprobs).max() < 1e-4


def test_the_older_answer_form_gives_the_same(run, passages):
    for name in passages:
        flat, dicts = arrays_of(run, "flat", name), arrays_of(run, "dicts", name)
        assert np.abs(flat.logprob - dicts.logprob).max() < 1e-4
        assert (flat.rank != dicts.rank).mean() < 0.01


def test_longest_prompt_is_one_below_the_context(run):
    reported = run[1]
    assert reported["max_length"] == reported["context"] - 1
    assert reported["longest"] == "no error"
    assert "'long'" in reported["too long"]


def test_passages_to_skip_are_not_scored(run):
    assert run[1]["skipping"] == [1, 2]


def test_k_above_max_logprobs_names_the_setting(run):
    assert "max_logprobs=25" in run[1]["k"]


def test_a_dead_engine_is_an_error_that_names_the_trajectory(run):
    assert run[1]["dead"].startswith("vLLM failed on trajectory 'long'")
    assert "max_num_batched_tokens" in run[1]["dead"]


def test_description_identifies_the_model(run):
    described = run[1]["describe"]
    assert described["backend"] == "vllm"
    assert described["dtype"] == "float32"
    assert described["model"].endswith("model")
    assert run[1]["bos"] is None


def test_steps_too_large_for_memory_are_refused_with_the_setting():
    refuse_too_large_steps(8192, 152_000, 10 << 30, 256)
    with pytest.raises(ScoringError, match=r"max_num_batched_tokens=5632 to --model_args\.$"):
        refuse_too_large_steps(8192, 152_000, 8 << 30, 256)
    with pytest.raises(ScoringError, match=r"max_num_batched_tokens=512,max_num_seqs=512 to .* gpu_memory_utilization"):
        refuse_too_large_steps(8192, 152_000, 1 << 30, 1024)


@pytest.mark.parametrize(
    ("runner", "rows", "advised"),
    [({"use_v2_model_runner": True}, 1024, False), ({"use_v2_model_runner": False}, 8192, True), ({}, 8192, False)],
)
def test_the_second_model_runner_is_counted_on_where_it_runs_and_advised_where_it_could(runner, rows, advised):
    model = SimpleNamespace(max_model_len=32768, get_vocab_size=lambda: 152_000)
    engine = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=8192), model_config=model, **runner
    )
    held, advice = logits_of_a_step(engine)
    assert held == rows
    assert ("VLLM_USE_V2_MODEL_RUNNER=1" in advice and "10.0 GB" in advice and "1.2 GB" in advice) is advised
    if advised:
        with pytest.raises(ScoringError, match=r"(?s)max_num_batched_tokens=5632.*\nOr: .*VLLM_USE_V2"):
            refuse_too_large_steps(held, 152_000, 8 << 30, 256, advice)


@dataclass
class Answer:
    """What a vLLM engine hands back for one prompt, in the older form."""

    prompt_token_ids: list
    prompt_logprobs: list | None
    num_cached_tokens: int = 0


@dataclass
class Logprob:
    logprob: float | None
    rank: int | None = None


def answer_to(text):
    """Every token but the first is the most likely, with ln 0.5; the next has ln 0.25."""
    entries = [{int(token): Logprob(-0.69, 1), 1999: Logprob(-1.39, 2)} for token in text.ids[1:]]
    return Answer(text.ids.tolist(), [None, *entries])


def test_a_whole_answer_becomes_scores():
    text = passage("t", 0, 6, every=2)
    scores = _scores(text, answer_to(text), 2, 2000)
    assert np.allclose(scores.logprob, -0.69)
    assert scores.rank.tolist() == [1, 1, 1]
    assert scores.topk_ids.tolist() == [[token, 1999] for token in text.ids[text.targets]]


@pytest.mark.parametrize(
    ("spoil", "reported"),
    [
        (lambda a: setattr(a, "prompt_logprobs", None), "0 positions came back for 6"),
        (lambda a: a.prompt_logprobs.pop(), "5 positions came back for 6"),
        (lambda a: a.prompt_token_ids.reverse(), "another prompt"),
        (lambda a: setattr(a, "num_cached_tokens", 16), "16 tokens were read from the prefix cache"),
        (lambda a: a.prompt_logprobs.__setitem__(5, None), "other tokens than token"),
        (lambda a: a.prompt_logprobs[5].pop(1999), "1 tokens came back, 2 were asked for"),
        (lambda a: setattr(a.prompt_logprobs[5][1999], "logprob", None), "token 1999 is null"),
        (lambda a: setattr(a.prompt_logprobs[5][1999], "logprob", -0.5), "rank and top disagree"),
        (lambda a: setattr(a.prompt_logprobs[5][1999], "logprob", 7.5), "raw logits"),
    ],
)
def test_an_answer_with_a_fault_is_an_error_that_names_the_trajectory(spoil, reported):
    text = passage("t-17", 0, 6, every=2)
    answer = answer_to(text)
    spoil(answer)
    with pytest.raises(ScoringError, match=reported) as caught:
        _scores(text, answer, 2, 2000)
    assert "'t-17'" in str(caught.value)


def test_batches_hold_every_passage_once_and_few_tokens():
    sizes = [5, 100, 40, 40, 30, 1]
    batches = list(batches_of_tokens([passage(str(n), 0, n) for n in sizes], {3}, 100))
    assert batches == [[0], [1], [2, 4, 5]]
