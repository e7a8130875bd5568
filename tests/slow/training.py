"""Tiny trainings with a `HESNRCallback`, alone and in two processes, which import it too: it imports little."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator

from hesnr_tasks.integrations import HESNRCallback
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from tests import tiny

CALL = "\n\n<function=bash>\n<parameter=command>{}</parameter>\n</function>"


def trajectory(name, *turns):
    """A trajectory of (thought, command, observation) turns."""
    messages = [Message("user", (Segment(Kind.CONTEXT, "Fix it."),))]
    for thought, command, observation in turns:
        action = Segment(Kind.ACTION, CALL.format(command))
        messages.append(Message("assistant", (Segment(Kind.THOUGHT, thought), action)))
        messages.append(Message("tool", (Segment(Kind.OBSERVATION, observation),)))
    return Trajectory(name, tuple(messages))


RUNS = [
    trajectory(
        f"run{i}",
        ("Look.", f"ls -la dir{i} | head -{i}", "a.py " * i),
        ("Read.", f"sed -n '{i},9p' dir{i}/a.py && git diff", "x"),
    )
    for i in range(5)
]


def write(path, trajectories):
    path.write_text("".join(json.dumps(trajectory.to_json()) + "\n" for trajectory in trajectories))
    return str(path)


def gpt2():
    torch.manual_seed(0)
    config = {"vocab_size": len(tiny.byte_level()), "n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    return GPT2LMHeadModel(GPT2Config(**config, **dropout, initializer_range=0.2, bos_token_id=0, eos_token_id=0))


def blocks(n=64, length=48):
    ids = tiny.byte_level()(tiny.sample_text(), verbose=False)["input_ids"][: n * length]
    return [{"input_ids": part, "labels": part} for part in torch.tensor(ids).reshape(n, length)]


def train(model, folder, *callbacks, steps=4, kind=Trainer, **settings):
    """A trainer after some steps; callbacks know it, as a user's do."""
    usual = {"max_steps": steps, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2}
    usual |= {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 5}
    args = TrainingArguments(output_dir=str(folder), **usual | settings)
    data = {"train_dataset": blocks(), "eval_dataset": blocks(4), "data_collator": default_data_collator}
    trainer = kind(model, args, **data, processing_class=tiny.byte_level(), callbacks=list(callbacks))
    introduce(trainer, callbacks)
    trainer.train()
    return trainer


def scoring(corpus, **settings):
    """A callback for five short texts, which hold few high-entropy tokens."""
    return HESNRCallback(corpus, **{"min_tokens": 0, **settings})


def introduce(trainer, callbacks):
    """Tell the callbacks who trains, as a user does."""
    for callback in callbacks:
        if isinstance(callback, HESNRCallback) and callback.trainer is None:
            callback.trainer = trainer


def hesnr(trainer):
    """The logged records of the callback."""
    return [entry for entry in trainer.state.log_history if "hesnr/he_snr" in entry]


def losses(trainer):
    """The other logged records without what a clock says."""
    entries = [entry for entry in trainer.state.log_history if "hesnr/he_snr" not in entry]
    return [{k: v for k, v in entry.items() if not k.endswith(("runtime", "per_second"))} for entry in entries]


def without_times(entries):
    return [{k: v for k, v in entry.items() if "second" not in k and "runtime" not in k} for entry in entries]


def records(folder, done):
    """What the two processes wrote down."""
    assert Path(folder, "1.json").exists(), done.stderr[-20_000:]
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]


def assert_trained_as_whole(written, folder, whole_model, corpus, **settings):
    """Both processes logged the same, trained as without the callback, and have the numbers of the whole model."""
    first, second = written
    assert [entry["step"] for entry in first["logged"]] == [0, 1, 2]
    assert without_times(first["logged"]) == without_times(second["logged"])
    assert first["losses"] == second["losses"]
    assert without_times(first["losses"][0]) == without_times(first["losses"][1])
    assert first["same"] is second["same"] is True
    trained = whole_model()
    trained.load_state_dict(torch.load(Path(folder, "weights.pt"), weights_only=True))
    for model, logged in ((whole_model(), first["logged"][0]), (trained, first["logged"][-1])):
        whole = hesnr(train(model, folder, scoring(corpus, **settings), steps=1))[0]
        assert whole["hesnr/tokens"] == logged["hesnr/tokens"] > 100
        for name in ("he_snr", "he_ppl", "ppl", "he_tokens"):
            assert logged[f"hesnr/{name}"] == pytest.approx(whole[f"hesnr/{name}"], rel=1e-4), name
