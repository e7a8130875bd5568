"""A server that serves other weights under the same name is noticed with one tiny request."""

import json

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.tasks import tasks_path
from hesnr_tasks.testing import fake_server
from tests.lm_eval_run import SMALL, write
from tests.server_model import load, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("canary") / "model")


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_server(load(folder), AutoTokenizer.from_pretrained(folder)) as server:
        server.folder = folder
        yield server


def evaluate(server, scores, data):
    manager = TaskManager(
        include_path=str(tasks_path()), include_defaults=False, metadata={"trajectories": data, "scores": str(scores)}
    )
    args = (
        f"model=tiny,base_url={server.address},tokenizer={server.folder},max_length=32768,"
        "tokenizer_backend=huggingface,max_retries=1"
    )
    results = lm_eval.simple_evaluate(
        model="local-completions", model_args=args, tasks=["hesnr_swe"], task_manager=manager, bootstrap_iters=0
    )
    return json.dumps(results["results"]["hesnr_swe"], sort_keys=True)  # so that a NaN equals itself


def test_another_checkpoint_under_the_same_name(server, tmp_path):
    data, scores = write(tmp_path / "small.jsonl", SMALL), tmp_path / "scores"
    first = evaluate(server, scores, data)
    server.prompts.clear()
    assert evaluate(server, scores, data) == first
    assert [len(prompt) <= 64 for prompt in server.prompts] == [True]  # resumed at the price of the canary
    canary = json.loads((scores / "run.json").read_text())["signature"]["run"]["canary"]
    assert len(canary) > 20
    with torch.no_grad():
        server.model.lm_head.weight.mul_(1.1)
    server.passes.clear()
    with pytest.raises(SettingsError, match=r"serves other weights.*under the same name.*name another folder"):
        evaluate(server, scores, data)
    assert evaluate(server, tmp_path / "new", data) != first
    with torch.no_grad():
        server.model.lm_head.weight.div_(1.1)
    server.passes.clear()
    assert evaluate(server, scores, data) == first
    server.card = {"root": "/checkpoints/step2000", "created": 5, "meta": {"n_params": 7}}
    with pytest.raises(SettingsError, match=r"root: none → /checkpoints/step2000; meta: none"):
        evaluate(server, scores, data)


def test_times_and_permissions_of_a_served_model_do_not_count(server, tmp_path):
    data, scores = write(tmp_path / "small.jsonl", SMALL), tmp_path / "scores"
    server.card = {"root": "a", "created": 1, "permission": [{"id": "modelperm-1"}]}
    first = evaluate(server, scores, data)
    server.card = {"root": "a", "created": 2, "permission": [{"id": "modelperm-2"}]}
    assert evaluate(server, scores, data) == first
