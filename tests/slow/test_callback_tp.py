"""Tensor parallelism by transformers' `tp_plan`: all processes run all forward passes; numbers and training are those
of the whole model.
"""

import importlib.util
import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, Trainer

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.integrations.evaluation import is_sharded
from tests import processes
from tests.slow.callback_main import SHARDED, llama
from tests.slow.test_callback_ranks import LONG
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

PLANS = importlib.util.find_spec("transformers.distributed") and importlib.util.find_spec(
    "transformers.distributed.tensor_parallel"
)


@pytest.mark.skipif(not PLANS, reason="this transformers does not split weights as DTensors")
def test_a_tensor_parallel_model_has_the_numbers_of_the_whole_one_and_trains_the_same(tmp_path, capsys):
    corpus = write(tmp_path / "six.jsonl", [*RUNS, LONG])
    llama().save_pretrained(tmp_path / "model")
    done = processes.torchrun(tmp_path, main, corpus, str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-20_000:]
    first, second = records(tmp_path, done)
    assert_trained_as_whole((first, second), tmp_path, llama, corpus, **SHARDED)
    assert first["split"] == [True, True]
    assert done.stderr.count("read each time, by all of 2 processes") == 1
    for record in (first, second):
        assert "of the 600 vocabulary entries" in record["not_gathered"]
    assert first["logged"][0]["hesnr/ppl"] != pytest.approx(first["logged"][-1]["hesnr/ppl"], rel=1e-2)


def load(folder, plan):
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(tp_size=2, tp_plan=plan)
    return LlamaForCausalLM.from_pretrained(Path(folder, "model"), distributed_config=config)


class OnCPU(Trainer):
    """accelerate accepts tensor parallelism on GPUs only, though all that it does for it runs on a CPU as well."""

    def create_accelerator_and_postprocess(self):
        from accelerate import ParallelismConfig

        validate = ParallelismConfig._validate_accelerator
        ParallelismConfig._validate_accelerator = lambda *_: None
        try:
            super().create_accelerator_and_postprocess()
        finally:
            ParallelismConfig._validate_accelerator = validate
        self.accelerator.prepare_model = lambda model, **_: model


def main(corpus, folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=1200))  # a process that waits for ever fails
    callbacks = ([scoring(corpus, **SHARDED)], [])
    trainers = [train(load(folder, "auto"), folder, *several, steps=2, kind=OnCPU) for several in callbacks]
    model = trainers[0].model
    weights = [
        {n: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for n, v in t.model.state_dict().items()}
        for t in trainers
    ]
    if dist.get_rank() == 0:
        torch.save(weights[0], Path(folder, "weights.pt"))
    not_gathered = ""
    try:
        train(load(folder, {"lm_head": "colwise"}), folder, scoring(corpus, **SHARDED), steps=1, kind=OnCPU)
    except ScoringError as error:
        not_gathered = str(error)
    record = {
        "logged": hesnr(trainers[0]),
        "losses": [losses(trainer) for trainer in trainers],
        "split": [is_sharded(model), isinstance(model.lm_head.weight, DTensor)],
        "same": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "not_gathered": not_gathered,
    }
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(record))
    dist.destroy_process_group()
