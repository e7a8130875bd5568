"""TRL's trainers gather numbers of their own between logs; an evaluation in between must not take them."""

import pytest
import torch

from hesnr_tasks.integrations import HESNRCallback
from tests import tiny
from tests.slow.training import RUNS, gpt2, hesnr, introduce, losses, write

trl = pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")


def train(folder, *callbacks):
    lines = [line for line in tiny.sample_text().split("\n") if len(line) > 40][:64]
    args = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=6,
        logging_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_length=32,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=True,
    )
    tokenizer = tiny.byte_level.__wrapped__()
    tokenizer.pad_token = tokenizer.eos_token
    data = datasets.Dataset.from_dict({"text": lines})
    trainer = trl.SFTTrainer(gpt2(), args, train_dataset=data, processing_class=tokenizer, callbacks=list(callbacks))
    introduce(trainer, callbacks)
    trainer.train()
    return trainer


def test_sft_trainer_logs_and_learns_as_without_it(tmp_path, capsys):
    corpus = write(tmp_path / "five.jsonl", RUNS)
    plain, watched = train(tmp_path), train(tmp_path, HESNRCallback(corpus, every=2, min_tokens=0))
    assert [entry["step"] for entry in hesnr(watched)] == [0, 2, 4, 6]
    assert len({entry["hesnr/ppl"] for entry in hesnr(watched)}) == 4
    assert [entry["step"] for entry in losses(watched)] == [3, 6, 6]
    assert "mean_token_accuracy" in losses(watched)[0]
    assert losses(watched) == losses(plain)
    for (name, a), (_, b) in zip(plain.model.state_dict().items(), watched.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
