"""DeepSpeed ZeRO stage 3: all processes run all forward passes; numbers and training are those of the whole model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hesnr_tasks.integrations.evaluation import is_sharded
from tests import processes
from tests.slow.callback_main import SHARDED, llama
from tests.slow.training import (
    RUNS,
    assert_trained_as_whole,
    hesnr,
    losses,
    records,
    scoring,
    train,
    write,
)

CONFIG = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_a_partitioned_model_has_the_numbers_of_the_whole_one_and_trains_the_same(tmp_path, capsys):
    corpus = write(tmp_path / "five.jsonl", RUNS)
    done = processes.torchrun(tmp_path, main, corpus, str(tmp_path), DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-20_000:]
    first, second = records(tmp_path, done)
    assert_trained_as_whole((first, second), tmp_path, llama, corpus, **SHARDED)
    assert first["partitioned"] is True
    assert done.stderr.count("read each time, by all of 2 processes") == 1


def main(corpus, folder):
    import deepspeed
    import deepspeed.comm.torch

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # compiles C++ for a minute, and is not needed
    settings = {"steps": 2, "deepspeed": CONFIG, "max_grad_norm": 0, "optim": "adamw_torch"}
    callbacks = ([scoring(corpus, **SHARDED)], [])
    trainers = [train(llama(), folder, *several, **settings) for several in callbacks]
    partitioned = is_sharded(trainers[0].model)
    weights = []
    for trainer in trainers:
        with deepspeed.zero.GatheredParameters(list(trainer.model.parameters())):
            weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    if dist.get_rank() == 0:
        torch.save(weights[0], Path(folder, "weights.pt"))
    record = {
        "logged": hesnr(trainers[0]),
        "losses": [losses(trainer) for trainer in trainers],
        "partitioned": partitioned,
        "same": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
    }
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(record))
    dist.destroy_process_group()
