"""Build the miniature, or one stage of it: python -m scripts.miniature STAGE --output out/miniature

A stage whose results lie in the output folder is not done again, and training goes on at the last rung that was saved.
One thread, about an hour on one core: pre-training 12 minutes a family, fine-tuning and acting 90 seconds a rung.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from itertools import islice
from pathlib import Path

import torch
import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from . import train
from .agent import expert, record, solved, transcript, without_running
from .corpus import FAMILIES, documents
from .downstream import LONGEST_RUN, act
from .programs import Bucket, Task, make_task

SEED = 20260120
SHIPPED = Path(__file__).resolve().parents[2] / "hesnr_tasks" / "demo" / "miniature"
N_ACT, N_SCORE = 300, 100
STAGES = ("tokenizer", "trajectories", "pretrain", "rungs", "downstream", "ship", "all")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def held_out(which: Bucket, number: int, tokenizer: PreTrainedTokenizerFast) -> list[Task]:
    """Tasks of a bucket whose expert's run fits into the short context."""
    rng, tasks = random.Random(f"{which} {SEED}"), list[Task]()
    while len(tasks) < number:
        task = make_task(f"{which}-{len(tasks):03d}", which, rng)
        text, _ = transcript(expert(task, random.Random(task.name), without_running(task)))
        if len(train.encode(tokenizer, text)) <= LONGEST_RUN:
            tasks.append(task)
    return tasks


def make_tokenizer(recipe: train.Recipe) -> None:
    """A tokenizer of pre-training text of both families and of the expert's runs on training tasks."""
    if (OUTPUT / "tokenizer").exists():
        return

    def texts() -> list[str]:
        rng = random.Random(SEED)
        runs = [make_task("", "train", rng) for _ in range(1500)]
        return [
            *(text for family in FAMILIES for text in islice(documents(family, SEED), 3000)),
            *(transcript(expert(task, rng, without_running(task)))[0] for task in runs),
        ]

    train.train_tokenizer(iter(texts())).save_pretrained(OUTPUT / "tokenizer")


def make_trajectories(recipe: train.Recipe) -> None:
    """The expert's runs that are scored, every test really run."""
    path = OUTPUT / "trajectories.jsonl"
    if path.exists():
        return
    tokenizer = train.load_tokenizer(OUTPUT / "tokenizer")
    sessions = [expert(task, random.Random(task.name)) for task in held_out("score", N_SCORE, tokenizer)]
    rows = [record(session, resolved=ok) for session, ok in zip(sessions, solved(sessions), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pretrain(recipe: train.Recipe) -> None:
    tokenizer = train.load_tokenizer(OUTPUT / "tokenizer")
    for number, family in enumerate(FAMILIES):
        train.pretrain(family, recipe, tokenizer, OUTPUT / "pretrained" / family, SEED % 1000 + number, say)


def rungs(recipe: train.Recipe) -> list[tuple[str, str, int, bool]]:
    """(name, family, step, whether at the long context) of every rung, in the order of training."""
    return [
        (f"{family}-{step:04d}{'-long' if long else ''}", family, step, long)
        for family in FAMILIES
        for steps, long in ((recipe.rungs, False), (recipe.long_rungs, True))
        for step in steps
    ]


def store_rungs(recipe: train.Recipe) -> None:
    """The rungs as they are shipped, in bfloat16: what is scored and what is fine-tuned are the same weights."""
    for name, family, step, long in rungs(recipe):
        folder = OUTPUT / "checkpoints" / name
        source = OUTPUT / "pretrained" / family / f"step-{step}"
        if folder.exists() or not source.exists():
            continue
        model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
        train.save(model.to(torch.bfloat16), train.load_tokenizer(OUTPUT / "tokenizer"), folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        theta = recipe.long_theta if long else recipe.theta
        edit(folder / "config.json", rope_theta=theta, transformers_version=None)
        edit(
            folder / "tokenizer_config.json",
            tokenizer_class="PreTrainedTokenizerFast",
            model_input_names=["input_ids", "attention_mask"],
            backend=None,
            model_max_length=None,
        )
        for path in folder.iterdir():
            path.chmod(0o644)


def edit(path: Path, **changes: object) -> None:
    """Set (None: remove) keys of a JSON file, so that transformers 4 reads it as well."""
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    values = {key: value for key, value in sorted(values.items()) if key not in changes or value is not None}
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(recipe: train.Recipe) -> None:
    """Fine-tune every rung and let it act; `downstream/NAME.json` has the share solved and every run.

    Another seed (its folder is `downstream-SEED`) takes other runs of the expert; the tasks to act on are the same.
    """
    folder = OUTPUT / (f"downstream-{FINE_TUNING_SEED}" if FINE_TUNING_SEED else "downstream")
    folder.mkdir(exist_ok=True)
    tokenizer = train.load_tokenizer(OUTPUT / "tokenizer")
    tasks = held_out("act", N_ACT, tokenizer)
    for name, *_ in rungs(recipe):
        path, rung = folder / f"{name}.json", OUTPUT / "checkpoints" / name
        if path.exists() or not rung.exists():
            continue
        say(f"{name}: fine-tuning")
        model = LlamaForCausalLM.from_pretrained(rung, dtype=torch.float32)
        train.fine_tune(model, recipe, tokenizer, SEED + FINE_TUNING_SEED, say)
        results, sessions = act(model, tokenizer, tasks)
        by_size = {
            size: [sum(ok for ok, task in pairs), len(pairs)]
            for size in (1, 2, 3)
            if (pairs := [(ok, task) for ok, task in zip(results, tasks, strict=True) if task.operators == size])
        }
        runs = [{"task": s.task.name, "solved": ok, "turns": s.turns} for s, ok in zip(sessions, results, strict=True)]
        row = {"value": sum(results) / len(results), "n": len(results), "by_operators": by_size, "runs": runs}
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        say(f"{name}: solved {sum(results)} of {len(results)} {by_size}")


def ship(recipe: train.Recipe) -> None:
    """Checkpoints, trajectories, ladder.yaml and downstream.json of hesnr_tasks/demo/miniature/."""
    SHIPPED.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(OUTPUT / "trajectories.jsonl", SHIPPED / "trajectories.jsonl")
    entries: list[dict[str, object]] = []
    previous: dict[str, str] = {}
    for name, family, step, long in rungs(recipe):
        source = OUTPUT / "checkpoints" / name
        if not source.exists():
            continue
        shutil.rmtree(SHIPPED / "checkpoints" / name, ignore_errors=True)
        shutil.copytree(source, SHIPPED / "checkpoints" / name)
        context = recipe.long if long else recipe.short
        entry: dict[str, object] = {"name": name, "model": f"checkpoints/{name}", "family": family}
        entry |= {"stage": "long-context" if long else "pretrain", "step": step, "context": context}
        entry |= {"tokens": step * (recipe.tokens_per_step // context * context)}
        if family in previous:
            entry["before"] = previous[family]
        previous[family] = name
        result = OUTPUT / "downstream" / f"{name}.json"
        if result.exists():
            row = json.loads(result.read_text(encoding="utf-8"))
            entry["downstream"] = {"repaired": {"value": round(row["value"], 4), "n": row["n"], "after": "sft"}}
        entries.append(entry)
    lines = [
        "# The miniature, made by `python -m scripts.miniature ship`. repaired: share of 300 held-out tasks that the",
        "# model fine-tuned from the checkpoint solves by itself. hesnr demo is hesnr ladder run on this file.",
        "trajectories: [trajectories.jsonl]",
        "tasks: [hesnr_swe, hesnr_swe_unfiltered]",
        "model_args: {dtype: float32}",
        "metadata: {keep: observation+thought+action}  # observations too: one of the figures is of them",
        "checkpoints:",
        *(
            f"  - {yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000).strip()}"
            for entry in entries
        ),
    ]
    (SHIPPED / "ladder.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (SHIPPED / "downstream.json").write_text(json.dumps(solved_tasks(recipe), indent=1) + "\n", encoding="utf-8")


def solved_tasks(recipe: train.Recipe) -> dict[str, dict[str, str]]:
    """Which held-out tasks were solved: fine-tuning seed -> rung -> a digit for each task, 1 where it was solved."""
    seeds: dict[str, dict[str, str]] = {}
    for folder in sorted(OUTPUT.glob("downstream*")):
        runs = {name: folder / f"{name}.json" for name, *_ in rungs(recipe)}
        seeds[folder.name.partition("-")[2] or "0"] = {
            name: "".join("01"[run["solved"]] for run in json.loads(path.read_text(encoding="utf-8"))["runs"])
            for name, path in runs.items()
            if path.exists()
        }
    return seeds


WORK = {
    "tokenizer": make_tokenizer,
    "trajectories": make_trajectories,
    "pretrain": pretrain,
    "rungs": store_rungs,
    "downstream": measure,
    "ship": ship,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--output", type=Path, default=Path("out/miniature"))
    parser.add_argument("--fine-tuning-seed", type=int, default=0, help="to see how much another one changes")
    arguments = parser.parse_args()
    OUTPUT, FINE_TUNING_SEED = arguments.output, arguments.fine_tuning_seed
    OUTPUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for stage in STAGES[:5] if arguments.stage == "all" else [arguments.stage]:
        WORK[stage](train.Recipe())
        say(f"{stage}: done")
    sys.exit(0)
