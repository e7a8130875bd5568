"""Run in two processes under torchrun's agent: trainings whose model each process holds whole, then in part."""

import json
import math
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from hesnr_tasks.errors import HesnrError
from hesnr_tasks.integrations.evaluation import is_sharded
from tests import tiny
from tests.slow.training import gpt2, hesnr, losses, scoring, train

SPLIT = {"every": 2, "limit": None}
SHARDED = {"every": 1, "limit": None, "epsilon": 0.1}


def split(corpus, folder):
    """Every process has the whole model (DistributedDataParallel) and reads its share of the trajectories."""
    callback = scoring(corpus, **SPLIT)
    trainers = [train(gpt2(), folder, *callbacks, steps=2) for callbacks in ([callback], [])]
    weights = [trainer.model.state_dict() for trainer in trainers]
    return {
        "logged": hesnr(trainers[0]),
        "scored": sorted(callback._evaluator.own_sums()),
        "same": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "problem": problem_of_the_second(trainers[0].model, callback._evaluator),
    }


def problem_of_the_second(model, evaluator):
    """Only the second process's model is broken; both must hear of it."""
    if dist.get_rank() == 1:
        model.transformer.wte.weight.data.fill_(math.nan)
    try:
        evaluator.run(3)
    except HesnrError as error:
        return str(error)
    return ""


# --- sharded ----------------------------------------------------------------------------------------------------------


class AsItIs(Trainer):
    """Trains a model that is sharded already: accelerate itself shards on GPUs only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accelerator.prepare_model = lambda model, **_: model


SETTINGS = {"kind": AsItIs, "max_grad_norm": 0}


def llama():
    """Of uneven sizes, so that parts differ."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 65, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"vocab_size": len(tiny.byte_level()), "max_position_embeddings": 4096, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**config, attention_dropout=0.1, initializer_range=0.2))


def parts():
    """The model, of which each process holds a half."""
    model = llama()
    mesh = dist.init_device_mesh("cpu", (2,))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
    return model


def sharded(corpus, folder):
    callbacks = ([scoring(corpus, **SHARDED)], [])
    trainers = [train(parts(), folder, *several, steps=2, **SETTINGS) for several in callbacks]
    weights = [
        {n: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for n, v in t.model.state_dict().items()}
        for t in trainers
    ]
    if dist.get_rank() == 0:
        torch.save(weights[0], Path(folder, "weights.pt"))
    return {
        "logged": hesnr(trainers[0]),
        "losses": [losses(trainer) for trainer in trainers],
        "same": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "sharded": [is_sharded(trainers[0].model), is_sharded(llama())],
    }


class Exhaust(TrainerCallback):
    """From the first step on, the second process has no memory for what comes after the first layer."""

    def on_step_begin(self, args, state, control, model, **_):
        def fail(module, *_):
            if not module.training:
                raise torch.OutOfMemoryError("not enough memory")

        if dist.get_rank() == 1:
            model.model.layers[1].mlp.register_forward_pre_hook(fail)


def main(short, long, folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=1200))  # a process that waits for ever fails
    record = {"split": split(short, folder), "sharded": sharded(long, folder)}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(record))
    dist.barrier()
    train(parts(), folder, Exhaust(), scoring(short, **SHARDED), steps=2, **SETTINGS)  # ends the run
