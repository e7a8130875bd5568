"""What HESNRCallback costs a training run: its share of the time at several `every`, in one process.

    python benchmarks/callback.py [--steps 60] [--every 1 5 20] [--limit 4]

A tiny Llama is trained on the demo trajectories' text with transformers' Trainer, plain and with the callback, by
turns. Printed beside the measured overhead is the share that the callback itself logs (`hesnr/seconds` over the time
of the run): what it says must be what it costs. Beyond the evaluations there is one fixed cost, the engine's
self-check and the tokenising before the first step, in a column of its own. What carries over to other models is the
rule: an evaluation reads its tokens forward once; a training step does about three times the work for each of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import redirect_stderr
from io import StringIO

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_callback import TrainerCallback

from hesnr_tasks import demo
from hesnr_tasks.formats import load
from hesnr_tasks.integrations import HESNRCallback
from hesnr_tasks.trajectory.rendering import render

_LENGTH, _BATCH = 512, 8


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(demo.ladder_paths()[0][1])
    data = blocks(tokenizer, args.steps)
    run(tokenizer, data, 2, None)  # warms up
    plain, watched = [], {every: [] for every in args.every}
    for _ in range(args.repeats):
        plain.append(run(tokenizer, data, args.steps, None)[0])
        for every in args.every:
            callback = HESNRCallback(every=every, limit=args.limit, at_start=False, at_end=False)
            watched[every].append(run(tokenizer, data, args.steps, callback))
    show(args, statistics.median(plain), watched)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def blocks(tokenizer, steps):
    text = "".join(render(trajectory, "transcript").text for trajectory in load(str(demo.trajectories_path())))
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    wanted = (steps + 1) * _BATCH * _LENGTH
    rows = ids.repeat(-(-wanted // len(ids)))[:wanted].reshape(-1, _LENGTH)
    return [{"input_ids": row, "labels": row} for row in rows]


class Clock(TrainerCallback):
    """The time from the first step's begin to the last step's end, evaluations included."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.start = time.perf_counter()

    def on_epoch_end(self, args, state, control, **_):
        self.seconds = time.perf_counter() - self.start


class Before(TrainerCallback):
    """The time that the callbacks after it take before the first step."""

    def on_train_begin(self, args, state, control, **_):
        self.start = time.perf_counter()

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.seconds = time.perf_counter() - self.start


def run(tokenizer, data, steps, callback):
    """Seconds of all steps, seconds before the first, and the evaluations that were logged."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **size))
    before, clock = Before(), Clock()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        settings = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
        settings |= {"max_steps": steps, "per_device_train_batch_size": _BATCH, "logging_strategy": "no"}
        trainer = Trainer(
            model,
            TrainingArguments(folder, **settings),
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=default_data_collator,
            callbacks=[before, *([callback] if callback else []), clock],
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "hesnr/seconds" in entry]
    return clock.seconds, before.seconds, logged


def show(args, plain, watched):
    print(f"\n{args.steps} steps of {_BATCH} x {_LENGTH} tokens, {args.limit} trajectories, median of {args.repeats}")
    print(f"plain training: {1000 * plain / args.steps:.1f} ms a step\n")
    print("| every | evaluations | overhead | as logged | ms each | tokens/s | before step 1 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for every, runs in watched.items():
        seconds, before, logged = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        each = statistics.median(entry["hesnr/seconds"] for entry in logged)
        rate = statistics.median(entry["hesnr/tokens_per_second"] for entry in logged)
        share = sum(entry["hesnr/seconds"] for entry in logged) / plain
        print(
            f"| {every} | {len(logged)} | {seconds / plain - 1:+.1%} | {share:+.1%} | {1000 * each:.0f} | {rate:,.0f} "
            f"| {1000 * before:.0f} ms |"
        )


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
