"""Train the demo ladder: one tokenizer and six tiny Llama checkpoints, hesnr_tasks/demo/ladder/.

    python scripts/make_demo_trajectories.py --training training.jsonl
    python scripts/train_demo_ladder.py training.jsonl

Four checkpoints at a context of 2048 tokens, then the RoPE base is raised and the context extended to 8192: one
checkpoint right after the change, one after more training. Data: Python's standard library (of the Python that runs
this) and the training trajectories; never the demo trajectories. Seeded, counted in steps, two threads, float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from hesnr_tasks.trajectory import Trajectory  # noqa: E402
from hesnr_tasks.trajectory.rendering import render  # noqa: E402

LADDER = HERE.parent / "hesnr_tasks" / "demo" / "ladder"

SEED = 20260120
VOCABULARY = 2048
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # noqa: E501

SOURCE_CHARACTERS = 6_000_000
TOKENIZER_SOURCE_CHARACTERS = 1_500_000
TRAJECTORY_SHARE = 0.4  # of the training tokens
SKIPPED = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "turtledemo",
    "pydoc_data",
    "__pycache__",
}

SHORT, LONG = 2048, 8192
STEP_TOKENS = {SHORT: 4096, LONG: 8192}
SHORT_STEPS = (125, 250, 500, 1000)  # checkpoints
LONG_STEPS = (1004, 1100)
RATE, WARM_UP, LAST_RATE = 4e-3, 50, 0.1  # LAST_RATE: share of RATE left at the last step
THETA = {SHORT: 10_000.0, LONG: 500_000.0}


# --- data -----------------------------------------------------------------------------------------------------------


def trajectories(path: Path) -> list[str]:
    rows = path.read_text(encoding="utf-8").splitlines()
    return [render(Trajectory.from_json(json.loads(row)), "transcript").text for row in rows]


def library() -> list[str]:
    """A seeded sample of the standard library's source files."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if not SKIPPED & set(p.relative_to(root).parts)]
    random.Random(SEED).shuffle(paths)
    texts: list[str] = []
    for path in paths:
        if sum(map(len, texts)) >= SOURCE_CHARACTERS:
            break
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return texts


def first(texts: list[str], characters: int) -> list[str]:
    kept: list[str] = []
    for text in texts:
        if sum(map(len, kept)) < characters:
            kept.append(text)
    return kept


def endless(documents: list[list[int]], longest: int, rng: random.Random) -> Iterator[list[int]]:
    """The documents in shuffled order, over and over, in pieces of at most `longest` tokens."""
    while True:
        for document in rng.sample(documents, len(documents)):
            for start in range(0, len(document), longest):
                yield document[start : start + longest]


def mixed(runs: list[list[int]], source: list[list[int]], length: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of token ids, [rows, length]: documents of both kinds one after the other, no padding."""
    rng, size = random.Random(seed), STEP_TOKENS[length]
    streams = (endless(runs, length, rng), endless(source, length, rng))
    sampled, row = [0, 0], list[int]()
    while True:
        while len(row) < size:
            kind = sampled[0] >= TRAJECTORY_SHARE * sum(sampled)
            piece = next(streams[kind])
            sampled[kind] += len(piece)
            row += piece
        yield torch.tensor(row[:size]).view(-1, length)
        row = row[size:]


# --- tokenizer ------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END, additional_special_tokens=[IM_START, IM_END]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, after an end-of-text token."""
    end = tokenizer.eos_token_id
    return [[end, *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids] for text in texts]


# --- model ----------------------------------------------------------------------------------------------------------


def make_model(context: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            rope_parameters={"rope_type": "default", "rope_theta": THETA[context]},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def extended(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same weights with the long context and its RoPE base."""
    longer = make_model(LONG)
    longer.load_state_dict(model.state_dict())
    return longer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Weights in bfloat16 (a copy: training goes on in float32), with the tokenizer beside them."""
    context = model.config.max_position_embeddings
    copy = make_model(context)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(LADDER / name)
    tokenizer.save_pretrained(LADDER / name)
    tidy(LADDER / name, context)


def tidy(folder: Path, context: int) -> None:
    """Make the files readable by transformers 4, which knows other keys than 5, and by everyone."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit(folder / "config.json", rope_theta=THETA[context], transformers_version=None)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=None,  # they are marked as special in tokenizer.json
        backend=None,
        model_max_length=None,  # the context is the model's, the tokenizer has none
    )
    for path in folder.iterdir():
        path.chmod(0o644)


def edit(path: Path, **changes: object) -> None:
    """Set (None: remove) keys of a JSON file."""
    record = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    record = {key: value for key, value in sorted(record.items()) if key not in changes or value is not None}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def train(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[torch.Tensor],
    steps: range,
) -> float:
    """Train from the first to the last step, return the mean loss (nats per token) of the last 20."""
    losses, started = [], time.time()
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        batch = next(batches)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 19:
            seconds = (time.time() - started) / len(losses)
            print(f"  step {step + 1:5d}  loss {sum(losses[-20:]) / 20:.4f}  {seconds:.2f} s/step", flush=True)
    return sum(losses[-20:]) / len(losses[-20:])


def rate(step: int) -> float:
    """Linear warm-up, then linear decay to LAST_RATE at the end of the long phase."""
    if step < WARM_UP:
        return RATE * (step + 1) / WARM_UP
    done = (step - WARM_UP) / (LONG_STEPS[-1] - WARM_UP)
    return RATE * (1 - (1 - LAST_RATE) * done)


def optimizer_for(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), foreach=False)


def climb(tokenizer: PreTrainedTokenizerFast, runs: list[list[int]], source: list[list[int]]) -> None:
    """The ladder: short context, then long, a checkpoint saved at each of the listed steps."""
    torch.manual_seed(SEED)
    model, step = make_model(SHORT), 0
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    for context, checkpoints in ((SHORT, SHORT_STEPS), (LONG, LONG_STEPS)):
        model = model if context == SHORT else extended(model)
        optimizer = optimizer_for(model)
        batches = mixed(runs, source, context, SEED + context)
        for checkpoint in checkpoints:
            loss = train(model, optimizer, batches, range(step, checkpoint))
            step = checkpoint
            save(model, tokenizer, f"step{step:04d}-{context // 1024}k")
            print(f"saved step{step:04d}-{context // 1024}k, training loss {loss:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trajectories", type=Path, help="made by make_demo_trajectories.py --training")
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    print(f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    runs, source = trajectories(parser.parse_args().trajectories), library()
    tokenizer = train_tokenizer([*runs, *first(source, TOKENIZER_SOURCE_CHARACTERS)])
    run_tokens, source_tokens = tokens(tokenizer, runs), tokens(tokenizer, source)
    for name, texts, ids in (("trajectories", runs, run_tokens), ("source files", source, source_tokens)):
        print(f"{len(texts)} {name}, {sum(map(len, texts))} characters, {sum(map(len, ids))} tokens", flush=True)
    shutil.rmtree(LADDER, ignore_errors=True)
    climb(tokenizer, run_tokens, source_tokens)


if __name__ == "__main__":
    main()
