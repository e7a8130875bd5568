"""HE-SNR in a training loop: the numbers of the saved checkpoint, and a training that does not notice."""

import json
import math
import random

import numpy as np
import peft
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    default_data_collator,
)
from transformers import TrainingArguments as Arguments

from hesnr_tasks.backends.hf import preserve_training_state
from hesnr_tasks.errors import HesnrError, ScoringError, SettingsError
from hesnr_tasks.integrations import HESNRCallback
from hesnr_tasks.integrations.evaluation import unwrap
from hesnr_tasks.stats import paired
from tests import tiny
from tests.lm_eval_run import evaluate
from tests.slow.training import RUNS, blocks, gpt2, hesnr, losses, scoring, train, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "five.jsonl", RUNS)


def llama(rope_type="dynamic"):
    """Rotary embeddings that grow with what they see: they remember the longest text in a buffer."""
    torch.manual_seed(0)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": rope_type, "factor": 4.0, "rope_theta": 1e4}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny.byte_level()),
            max_position_embeddings=32,
            attention_dropout=0.1,
            initializer_range=0.2,
            rope_parameters=rope,
            **config,
        )
    )


def lora():
    layers = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    model = peft.get_peft_model(gpt2(), peft.LoraConfig(r=4, lora_dropout=0.2, task_type="CAUSAL_LM", **layers))
    model.enable_input_require_grads()  # a hook on the embeddings, as gradient checkpointing needs it
    return model


class Witness(TrainerCallback):
    """Writes down, after every step, what an evaluation might have disturbed."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model, **_):
        flags = [(name, module.training) for name, module in model.named_modules()]
        grads = [None if p.grad is None else p.grad.sum().item() for p in model.parameters()]
        buffers = [(name, buffer.tolist(), buffer.is_inference()) for name, buffer in model.named_buffers()]
        switches = (model.config.use_cache, [getattr(m, "gradient_checkpointing", None) for m in model.modules()])
        memory = [getattr(module, "max_seq_len_cached", None) for module in model.modules()]
        draws = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        self.seen.append((flags, grads, buffers, switches, memory, draws))


CASES = {
    "dropout, gradient accumulation": (gpt2, {"gradient_accumulation_steps": 2}),
    "gradient checkpointing, growing rotary embeddings": (llama, {"gradient_checkpointing": True}),
    "bfloat16 autocast": (gpt2, {"bf16": True}),
    "LoRA with dropout, gradient checkpointing": (lora, {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_same_to_the_last_bit(case, corpus, tmp_path, capsys):
    make, settings = CASES[case]
    alone, beside = Witness(), Witness()
    plain = train(make(), tmp_path, alone, steps=3, **settings)
    watched = train(make(), tmp_path, scoring(corpus, every=1, max_length=400), beside, steps=3, **settings)
    capsys.readouterr()
    assert len(hesnr(watched)) == 4
    assert len({entry["hesnr/ppl"] for entry in hesnr(watched)}) == 4  # it was evaluated, on a model that moves
    assert losses(watched) == losses(plain)
    assert beside.seen == alone.seen
    for (name, a), (_, b) in zip(plain.model.state_dict().items(), watched.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    states = [t.optimizer.state_dict()["state"] for t in (plain, watched)]
    assert states[0].keys() == states[1].keys()
    for key, moments in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in moments.items())


def test_the_number_logged_is_that_of_the_saved_checkpoint(corpus, tmp_path, capsys):
    callback = scoring(corpus, every=2, limit=None, kinds="thought+action", epsilon=0.9)
    trainer = train(gpt2(), tmp_path, callback)
    announced = capsys.readouterr().err
    trainer.save_model(str(tmp_path / "saved"))
    settings = {"trajectories": corpus, "kinds": "thought+action", "epsilon": 0.9}
    result = evaluate(tmp_path / "saved", ["hesnr_swe"], settings)
    logged = hesnr(trainer)[-1]
    assert logged["step"] == 4
    assert logged["hesnr/he_tokens"] > 10
    for name in ("he_snr", "he_snr_stderr", "he_ppl", "he_ppl_stderr", "ppl", "ppl_stderr", "tokens", "he_tokens"):
        assert logged[f"hesnr/{name}"] == result["results"]["hesnr_swe"][f"{name},none"], name
    signature = result["configs"]["hesnr_swe"]["metadata"]["signature"]
    for name in ("data", "k", "epsilon", "kinds", "filters", "max_length", "tokens_cut", "trajectories"):
        assert callback.signature[name] == signature[name], name
    assert "HE-SNR every 2 steps: 5 trajectories" in announced
    assert logged["hesnr/seconds"] > 0


def test_the_change_is_paired_by_trajectory(corpus, tmp_path, capsys):
    callback = scoring(corpus, every=4)
    first, last = hesnr(train(gpt2(), tmp_path, callback))
    before, now = callback.evaluations
    expected = paired(before.sums.parts("he_snr"), now.sums.parts("he_snr"))
    assert "hesnr/he_snr_change" not in first
    assert last["hesnr/he_snr_change"] == pytest.approx(last["hesnr/he_snr"] - first["hesnr/he_snr"], rel=1e-9)
    assert last["hesnr/he_snr_change_stderr"] == expected.stderr
    assert last["hesnr/he_snr_change_low"] < last["hesnr/he_snr_change"] < last["hesnr/he_snr_change_high"]
    assert (last["hesnr/he_snr_change_low"], last["hesnr/he_snr_change_high"]) == (expected.ci_low, expected.ci_high)


def test_too_few_trajectories_for_an_error_log_none(corpus, tmp_path, capsys):
    alone = hesnr(train(gpt2(), tmp_path, scoring(corpus, every=4, limit=1)))[-1]
    assert math.isfinite(alone["hesnr/he_snr_change"])
    assert not [name for name in alone if "stderr" in name or name.endswith(("_low", "_high"))]
    three = hesnr(train(gpt2(), tmp_path, scoring(corpus, every=4, limit=3)))[-1]
    assert three["hesnr/he_snr_stderr"] > 0
    assert "hesnr/he_snr_change_low" not in three


class Reporter(TrainerCallback):
    """What a logger such as W&B's is told."""

    def __init__(self):
        self.logged = []

    def on_log(self, args, state, control, logs, **_):
        self.logged.append((state.global_step, sorted(logs)))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"every": 3}, [0, 3, 5]),
        ({"every": 3, "at_start": False, "at_end": False}, [3]),
        ({"every": 5}, [0, 5]),
        ({"every": 500, "at_start": False}, [5]),
    ],
)
def test_when_it_evaluates_and_who_is_told(settings, steps, corpus, tmp_path, capsys):
    reporter = Reporter()
    trainer = train(gpt2(), tmp_path, reporter, scoring(corpus, limit=2, **settings), steps=5)
    assert [entry["step"] for entry in hesnr(trainer)] == steps
    assert [step for step, names in reporter.logged if "hesnr/he_snr" in names] == steps
    assert [step for step, names in reporter.logged if "loss" in names] == [1, 2, 3, 4, 5]
    json.dumps(trainer.state.log_history, allow_nan=False)


def test_without_the_trainer_the_numbers_are_in_the_history_and_it_says_so(corpus, tmp_path, capsys, caplog):
    reporter = Reporter()
    args = Arguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no", logging_steps=1)
    data = {"train_dataset": blocks(), "data_collator": default_data_collator, "processing_class": tiny.byte_level()}
    trainer = Trainer(gpt2(), args, **data, callbacks=[reporter, scoring(corpus, limit=2)])
    trainer.train()
    assert [entry["step"] for entry in hesnr(trainer)] == [0, 1]
    assert not [step for step, names in reporter.logged if "hesnr/he_snr" in names]
    assert "HESNRCallback has no trainer" in caplog.text

    caplog.clear()
    trainer = Trainer(gpt2(), args, **data, callbacks=[reporter])
    trainer.add_callback(scoring(corpus, limit=2, trainer=trainer))
    trainer.train()
    assert [step for step, names in reporter.logged if "hesnr/he_snr" in names] == [0, 1]
    assert "no trainer" not in caplog.text


def test_another_trainer_than_the_one_that_trains_is_refused(corpus, tmp_path):
    args = Arguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True)
    other = Trainer(gpt2(), args, train_dataset=blocks(), processing_class=tiny.byte_level())
    with pytest.raises(SettingsError, match="another Trainer"):
        train(gpt2(), tmp_path, scoring(corpus, trainer=other))


class Stop(TrainerCallback):
    """Ends training after the first epoch, later than any other callback could see."""

    def on_evaluate(self, args, state, control, **_):
        control.should_training_stop = True


def test_it_evaluates_at_the_end_of_a_training_that_ends_early(corpus, tmp_path, capsys):
    settings = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 4}
    callbacks = scoring(corpus, limit=2, at_start=False), Stop()
    trainer = train(gpt2(), tmp_path, *callbacks, **settings)
    assert [entry["step"] for entry in hesnr(trainer)] == [trainer.state.global_step] == [4]


class Ruin(TrainerCallback):
    """Makes the weights NaN after a step, and good again after another."""

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step == 1:
            self.kept = model.transformer.wte.weight.detach().clone()
            model.transformer.wte.weight.data.fill_(math.nan)
        if state.global_step == 2:
            model.load_state_dict(gpt2().state_dict())


def test_an_evaluation_that_fails_warns_and_training_goes_on(corpus, tmp_path, capsys, caplog):
    trainer = train(gpt2(), tmp_path, Ruin(), scoring(corpus, every=1, limit=2), steps=2, max_grad_norm=0)
    assert [entry["step"] for entry in hesnr(trainer)] == [0, 1]
    assert trainer.state.global_step == 2
    assert "no HE-SNR at step 2, training goes on: the model gave NaN" in caplog.text
    with pytest.raises(ScoringError, match="diverged"):
        train(gpt2(), tmp_path, Ruin(), scoring(corpus, every=1, on_error="stop"), max_grad_norm=0)


def test_what_cannot_be_used_is_said_before_the_first_step(corpus, tmp_path):
    for wrong, words in (
        ({"every": 0}, "every must be"),
        ({"epsilonn": 1}, "unknown setting 'epsilonn'. Did you mean 'epsilon'"),
        ({"on_error": "ignore"}, "'warn' or 'stop'"),
        ({"scores": "x"}, "writes no score files"),
        ({"kinds": "actions"}, "action"),
    ):
        with pytest.raises(SettingsError, match=words):
            HESNRCallback(corpus, **wrong)
    with pytest.raises(HesnrError, match="no token of the 5 trajectories counts"):
        train(gpt2(), tmp_path, scoring(corpus, max_length=3))
    args = Arguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=1)
    nameless = Trainer(gpt2(), args, train_dataset=blocks(), callbacks=[scoring(corpus)])
    with pytest.raises(ScoringError, match="top 100000 asked for"):
        train(gpt2(), tmp_path, scoring(corpus, k=100_000))
    with pytest.raises(SettingsError, match="found no tokenizer"):
        nameless.train()


def test_models_of_which_a_process_has_only_a_part_are_refused():
    split = gpt2()
    split._tp_size = 2  # what transformers' tp_plan leaves on a model
    with torch.device("meta"):
        empty = gpt2()
    for model, words in ((split, "tensor parallelism over 2 of 1 processes"), (empty, "device meta")):
        with pytest.raises(ScoringError, match=f"{words}.*Evaluate saved checkpoints"):
            unwrap(model)
    model = gpt2()
    assert unwrap(torch.compile(torch.nn.DataParallel(model))) is model


class Messy(torch.nn.Module):
    """Does what a forward pass should not."""

    def __init__(self, size=3):
        super().__init__()
        self.register_buffer("count", torch.zeros(size))
        self.register_buffer("table", torch.ones(2))
        self.inner = torch.nn.Dropout()
        self.losses = [1.0]
        self.inner.training = False

    def forward(self):
        self.count += 1
        self.table = torch.rand(4)
        self.losses.append(2.0)
        self.cache = "made on the way"
        self.inner.register_forward_hook(lambda *_: None)
        return torch.rand(1), random.random(), np.random.rand()


def disturb(model, device):
    with preserve_training_state(model, device), torch.inference_mode():
        assert not any(module.training for module in model.modules())
        model()
        raise KeyError


def test_nothing_a_forward_pass_leaves_behind_remains():
    model, draw = Messy(), lambda: (torch.rand(1).item(), random.random(), np.random.rand())
    table, names = model.table, list(vars(model))
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with pytest.raises(KeyError):
        disturb(model, torch.device("cpu"))
    assert draw() == expected
    assert model.table is table
    assert model.count.tolist() == [0, 0, 0]
    assert (model.training, model.inner.training, model.losses) == (True, False, [1.0])
    assert list(vars(model)) == names
    assert not model.inner._forward_hooks


def test_a_large_buffer_that_is_written_is_an_error():
    model = Messy(size=2_000_000)
    with pytest.raises(ScoringError, match="writes into a buffer"), preserve_training_state(model, torch.device("cpu")):
        model()
