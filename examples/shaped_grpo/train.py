"""Train a tiny model with plain GRPO and with the entropy-shaped advantage, several seeds each, on one core.

    OMP_NUM_THREADS=1 python examples/shaped_grpo/train.py

writes results.csv, beside figure.py's figure, into `--out` (the folder `results` here).
"""

from __future__ import annotations

import argparse
import copy
import csv
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from evaluate import KS, SATURATED, ability
from task import ANSWER, make_model, make_tokenizer, problems, reward, warm_up
from transformers import LlamaForCausalLM, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hesnr_tasks.rl.trl import EntropyShapedGRPOTrainer

ARMS: dict[str, tuple[type, dict[str, float]]] = {
    "plain": (GRPOTrainer, {}),
    "shaped": (EntropyShapedGRPOTrainer, {"alpha": 0.4, "kappa": 2.0}),
}
LOGGED = ("reward", "entropy", "shaping/capped", "shaping/relative_bonus")
Row = tuple[str, int, int, str, float]


class Evaluate(TrainerCallback):
    """Ability on the held-out problems every so many steps."""

    def __init__(self, arm: str, seed: int, every: int, held_out: list[str]) -> None:
        self.arm, self.seed, self.every, self.held_out = arm, seed, every, held_out
        self.rows: list[Row] = []

    def measure(self, model: LlamaForCausalLM, step: int) -> None:
        """Add the rows of one step."""
        measured = ability(model, self.held_out, seed=1000 + self.seed)
        values = {f"pass@{k}": value for k, value in zip(KS, measured.passes, strict=True)}
        values |= {"held-out entropy": measured.entropy, "saturated": measured.saturated}
        self.rows += [(self.arm, self.seed, step, name, value) for name, value in values.items()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each optimizer step."""
        if state.global_step % self.every == 0:
            self.measure(kwargs["model"], state.global_step)


def config(seed: int, steps: int, learning_rate: float) -> GRPOConfig:
    """Eight prompts by eight answers a step; clip-higher; no reference model."""
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=ANSWER,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        epsilon_high=0.28,
        temperature=1.0,
        top_k=0,
        logging_steps=10,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def run(arm: str, seed: int, start: LlamaForCausalLM, options: argparse.Namespace) -> list[Row]:
    """One arm from the warmed-up model; rows of results.csv."""
    kind, strength = ARMS[arm]
    strength = strength | {"alpha": options.alpha} if strength else strength
    held_out = problems(options.held_out, seed=99)
    watch = Evaluate(arm, seed, options.every, held_out)
    model = copy.deepcopy(start)
    watch.measure(model, 0)
    prompts = problems(4000, seed, without=frozenset(held_out))
    trainer = kind(
        model=model,
        reward_funcs=reward,
        args=config(seed, options.steps, options.learning_rate),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=make_tokenizer(),
        callbacks=[watch],
        **strength,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logged = [(entry["step"], name, entry.get(name)) for entry in trainer.state.log_history for name in LOGGED]
    return watch.rows + [(arm, seed, step, name, value) for step, name, value in logged if value is not None]


def runs(options: argparse.Namespace) -> Iterator[Row]:
    """All rows; both arms of a seed start from the same warmed-up weights and see the same prompts."""
    began = time.monotonic()
    for seed in range(options.seeds):
        start = make_model(seed)
        solved = problems(4000, seed + 500, without=frozenset(problems(options.held_out, seed=99)))
        loss = warm_up(start, solved, options.warm_up, seed)
        print(f"seed {seed}: warm-up ends at {loss:.3f} nats a token", flush=True)
        for arm in ARMS:
            rows = run(arm, seed, start, options)
            last = {name: value for _, _, _, name, value in sorted(rows, key=lambda row: row[2])}
            first = {name: value for _, _, step, name, value in rows if step == 0}
            print(
                f"  {arm}: pass@1 {first['pass@1']:.3f} -> {last['pass@1']:.3f}, pass@32 {first['pass@32']:.3f} -> "
                f"{last['pass@32']:.3f}; above {SATURATED:.2f} nats {first['saturated']:.1%} -> "
                f"{last['saturated']:.1%} of tokens; {time.monotonic() - began:.0f} s",
                flush=True,
            )
            yield from rows


def main(arguments: list[str] | None = None) -> int:
    """Train, write results.csv, print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--warm-up", type=int, default=90, help="supervised steps before")
    parser.add_argument("--held-out", type=int, default=128, help="problems for Pass@K")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--alpha", type=float, default=0.4, help="of the shaped arm")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["arm", "seed", "step", "quantity", "value"])
        table.writerows((*row[:-1], f"{row[-1]:.6g}") for row in runs(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
