"""Whose key it is: settings of the task, arguments of the model, or nobody's; on every way into lm-eval."""

import json
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.tasks import tasks_path
from tests import tiny
from tests.lm_eval_run import SMALL, evaluate, lm_eval_command, values, write

TAKEN = "cannot return top-k log-likelihoods"  # the model is refused after all settings were taken


@register_model("hesnr-test-any-argument")
class AnyArgument(LM):
    """A model whose constructor takes any argument, as HFLM and VLLM do, and that cannot score."""

    def __init__(self, pretrained="", seed=1234, tensor_parallel_size=1, **kwargs):
        super().__init__()

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


MODEL_ARGS = {
    "pretrained": "x", "dtype": "bfloat16", "parallelize": True, "peft": "adapter", "add_bos_token": True,
    "tensor_parallel_size": 8, "trust_remote_code": True, "attn_implementation": "eager", "max_model_len": 4096,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "gpu_memory_utilization": 0.9, "seed": 7, "format": "gguf",
    "truncation": True, "data": 3, "base_url": "http://h:1", "num_concurrent": 8, "enforce_eager": False,
}  # fmt: skip


OURS = {"trajectories": write(Path(mkdtemp()) / "one.jsonl", SMALL[:1])}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("checkpoint")))


def ask(model_args, metadata, model="hesnr-test-any-argument"):
    """As the command line calls it: one mapping of both for the tasks, the arguments of the model beside it."""
    parsed = simple_parse_args_string(model_args) if isinstance(model_args, str) else model_args or {}
    manager = TaskManager(
        include_path=str(tasks_path()),
        include_defaults=False,
        metadata=parsed | OURS | metadata,
    )
    return lm_eval.simple_evaluate(model=model, model_args=model_args, tasks=["hesnr_swe"], task_manager=manager)


@pytest.mark.parametrize("as_text", [False, True])
def test_arguments_of_the_model_pass_whatever_they_are_called(as_text):
    plain = {name: value for name, value in MODEL_ARGS.items() if not isinstance(value, dict)}
    given = ",".join(f"{name}={value}" for name, value in plain.items()) if as_text else MODEL_ARGS
    with pytest.raises(ScoringError, match=TAKEN):
        ask(given, {"epsilon": 1.0, "limit": 2})


@pytest.mark.parametrize("key", ["seed", "data", "trust_remote_code", "attn_implementation", "tensor_parallel_size"])
def test_the_same_keys_are_refused_where_they_came_with_the_metadata(key):
    rest = {name: value for name, value in MODEL_ARGS.items() if name != key}
    with pytest.raises(SettingsError, match=f"unknown setting '{key}' in --metadata"):
        ask(rest, {key: "x"})
    with pytest.raises(SettingsError, match=f"unknown setting '{key}' in --metadata"):
        ask(MODEL_ARGS, {key: "another value"})


def test_simple_evaluate_with_its_own_task_manager(monkeypatch):
    # without the index of lm-eval's own tasks: to read it takes seconds
    monkeypatch.setattr("lm_eval.evaluator.TaskManager", partial(TaskManager, include_defaults=False))
    given = {"model": "hesnr-test-any-argument", "tasks": [str(tasks_path() / "hesnr_swe.yaml")]}
    with pytest.raises(SettingsError, match="Did you mean 'epsilon'"):
        lm_eval.simple_evaluate(**given, model_args=MODEL_ARGS, metadata={"eps": 1})


def test_beside_a_model_object_the_constructors_named_parameters_pass():
    """lm-eval was given no arguments then; a copy of those of the constructor in the metadata is no setting."""
    model = AnyArgument("x")
    for metadata in ({}, {"dtype": "float32", "trust_remote_code": True, "limit": 1}):
        with pytest.raises(ScoringError, match=TAKEN):
            ask(None, metadata, model)
    for key in ("seed", "data", "runs", "rope_scaling"):
        with pytest.raises(SettingsError, match=f"unknown setting '{key}'"):
            ask(None, {key: 1}, model)
    with pytest.raises(ScoringError, match=TAKEN):  # beside an object they are only copied into the metadata
        ask({"rope_scaling": 1}, {}, model)


def test_without_an_evaluation_the_named_parameters_of_models_pass_and_wrong_keys_do_not():
    assert HFLM  # imported: its constructor is known

    def load(**metadata):
        return TaskManager(
            include_path=str(tasks_path()),
            include_defaults=False,
            metadata=OURS | metadata,
        ).load("hesnr_swe")

    assert load(pretrained="x", dtype="float32", parallelize=True, peft="y", add_bos_token=True, limit=2)
    for key in ("seed", "dataset", "top_k", "resolved"):
        with pytest.raises(SettingsError, match=f"unknown setting '{key}'"):
            load(**{key: 1})


def test_keys_of_other_tasks_pass():
    with pytest.raises(ScoringError, match=TAKEN):
        ask({}, {"max_seq_lengths": [4096], "tokenizer": "x", "combine": "max", "passk": {"repeats": 2}})


def test_hf_with_arguments_for_its_kwargs(checkpoint):
    result = evaluate(checkpoint, ["hesnr_swe"], OURS, "dtype=float32,attn_implementation=eager")
    assert values(result, "hesnr_swe")["tokens"] > 0


def test_the_command_refuses_in_one_paragraph_without_a_traceback(checkpoint):
    refused = lm_eval_command(
        "--model", "hf", "--model_args", f"pretrained={checkpoint},attn_implementation=eager", "--tasks", "hesnr_swe",
        "--include_path", str(tasks_path()), "--metadata", json.dumps({"data": OURS["trajectories"]}),
    )  # fmt: skip
    assert refused.status == 1
    assert "Traceback" not in refused.stderr
    assert "unknown setting 'data' in --metadata. Did you mean 'trajectories'?" in refused.stderr.splitlines()[-1]
