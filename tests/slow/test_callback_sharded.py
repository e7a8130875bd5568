"""Models of which each process holds a part: all read together, numbers and training are those of whole models.

Started by torchrun, this file is the training script.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from hesnr_tasks.integrations.eval_model import is_sharded
from tests import ROOT, tiny
from tests.slow.test_callback import RUNS, hesnr, losses, scoring, train
from tests.slow.test_task import call, run, write

LONG = run("long", *[("Look.", call(f"ls -la dir{i} | head -{i}"), "a.py " * 6) for i in range(40)])
EVERY = {"every": 1, "limit": None, "epsilon": 0.1}


class AsItIs(Trainer):
    """Trains a model that is sharded already: accelerate itself shards on GPUs only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accelerator.prepare_model = lambda model, **_: model


SETTINGS = {"kind": AsItIs, "max_grad_norm": 0}


def model():
    """Of uneven sizes, so that parts differ."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 65, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"vocab_size": len(tiny.byte_level()), "max_position_embeddings": 4096, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**config, attention_dropout=0.1, initializer_range=0.2))


def test_numbers_are_those_of_the_whole_model_and_training_is_the_same(tmp_path, capsys):
    corpus = write(tmp_path / "six.jsonl", [*RUNS, LONG])
    torchrun("compare", corpus, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["sharded"] == [True, False]  # the model, and not its plain copy
    assert [entry["step"] for entry in first["logged"]] == [0, 1, 2]
    for name in ("logged", "losses", "same"):
        assert without_times(first[name]) == without_times(second[name]), name
    assert first["losses"][0] == first["losses"][1]
    assert first["same"] is True
    trained = model()
    trained.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for weights, logged in ((model(), first["logged"][0]), (trained, first["logged"][-1])):
        whole = hesnr(train(weights, tmp_path, scoring(corpus, **EVERY), steps=1))[0]
        assert whole["hesnr/tokens"] == logged["hesnr/tokens"] > 500
        for name in ("he_snr", "he_ppl", "ppl", "he_tokens"):
            assert logged[f"hesnr/{name}"] == pytest.approx(whole[f"hesnr/{name}"], rel=1e-4), name


def test_a_process_that_runs_out_of_memory_ends_the_run_and_leaves_none_waiting(tmp_path):
    corpus = write(tmp_path / "six.jsonl", RUNS)
    begin = time.monotonic()
    with pytest.raises(AssertionError, match="process 1 failed inside a forward pass that all processes run together"):
        torchrun("exhaust", corpus, tmp_path)
    assert time.monotonic() - begin < 200


def without_times(entries):
    if not isinstance(entries, list):
        return entries
    return [{k: v for k, v in e.items() if "second" not in k} if isinstance(e, dict) else e for e in entries]


def torchrun(what, corpus, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.slow.test_callback_sharded", what, corpus, str(folder)]
    root = ROOT
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-20_000:]
    assert done.stderr.count("read each time, by all of 2 processes") == 1


def compare(corpus, folder):
    trainers = [
        train(parts(), folder, *callbacks, steps=2, **SETTINGS) for callbacks in ([scoring(corpus, **EVERY)], [])
    ]
    weights = [whole(trainer.model) for trainer in trainers]
    entry = {
        "logged": hesnr(trainers[0]),
        "losses": [losses(trainer) for trainer in trainers],
        "same": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "sharded": [is_sharded(trainers[0].model), is_sharded(model())],
    }
    if dist.get_rank() == 0:
        torch.save(weights[0], Path(folder, "weights.pt"))
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(entry))
    dist.destroy_process_group()


def parts():
    """The model, of which each process holds a half."""
    made = model()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (2,))
    for part in (*made.model.layers, made):
        fully_shard(part, mesh=mesh)
    return made


def whole(sharded):
    """All weights, on every process."""
    state = sharded.state_dict().items()
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value).clone() for name, value in state}


class Exhaust(TrainerCallback):
    """From the first step on, the second process has no memory for what comes after the first layer."""

    def on_step_begin(self, args, state, control, model, **_):
        def fail(module, *_):
            if not module.training:
                raise torch.OutOfMemoryError("not enough memory")

        if dist.get_rank() == 1:
            model.model.layers[1].mlp.register_forward_pre_hook(fail)


def exhaust(corpus, folder):
    train(parts(), folder, Exhaust(), scoring(corpus, **EVERY), steps=2, **SETTINGS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"compare": compare, "exhaust": exhaust}[sys.argv[1]](*sys.argv[2:])
