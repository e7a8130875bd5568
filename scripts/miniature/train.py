"""Tokenizer, models, pre-training with a context extension, and fine-tuning; a stopped run goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .agent import expert, transcript, without_running
from .corpus import documents
from .programs import make_task

__all__ = ["Recipe", "encode", "fine_tune", "load_tokenizer", "make_model", "pretrain", "train_tokenizer"]

END = "<|end|>"
VOCABULARY = 640
PIECES = r" ?[a-z]+\.py|\n*</?(?:function|parameter)(?:=[a-z]+)?>\n*| ?[A-Za-z]+| ?[0-9]| ?//| ?[^\sA-Za-z0-9]|\n+|\s"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what comes out of the training of a family; the defaults are those of the ladder."""

    width: int = 128
    layers: int = 3
    inner: int = 256
    short: int = 384
    long: int = 1536
    tokens_per_step: int = 4608
    rungs: tuple[int, ...] = (200, 400, 700, 1200)
    long_rungs: tuple[int, ...] = (1205, 1700)
    rate: float = 0.02  # of Muon
    adam_rate: float = 0.005
    warm_up: int = 50
    theta: float = 10_000.0
    long_theta: float = 500_000.0
    sft_tasks: int = 2000
    sft_steps: int = 160
    sft_batch: int = 12
    sft_rate: float = 0.5  # of the rates of pre-training

    @property
    def steps(self) -> int:
        return self.long_rungs[-1]


# --- tokenizer and model ---------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterator[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE inside pieces: words, digits, signs, and whole tags with their line breaks."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def make_model(recipe: Recipe, *, long: bool = False) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=recipe.long if long else recipe.short,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.long_theta if long else recipe.theta},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


class Optimizers:
    """Muon for the matrices of the layers, AdamW for the embedding and the gains."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.parts = [
            torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"),
            torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = recipe.rate, recipe.adam_rate

    def step(self, share: float) -> None:
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad()


# --- pre-training ----------------------------------------------------------------------------------------------------


def batches(tokenizer: PreTrainedTokenizerFast, texts: Iterator[str], length: int, size: int) -> Iterator[torch.Tensor]:
    """Token ids [rows, length] of documents one after the other, each after an end-of-text token; no padding."""
    row: list[int] = []
    for text in texts:
        row += [0, *encode(tokenizer, text)]
        while len(row) >= size:
            yield torch.tensor(row[:size]).view(-1, length)
            row = row[size:]


def schedule(step: int, recipe: Recipe) -> float:
    """Warm-up, then constant, then linear to a tenth over the last third."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    left = (recipe.steps - step) / (recipe.steps / 3)
    return min(1.0, 0.1 + 0.9 * left)


def pretrain(
    family: str,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Train a family; writes `step-N` folders with weights, and `state.pt`, from which a stopped run goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model, step = make_model(recipe), 0
    optimizers = Optimizers(model, recipe)
    state_file = folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step = state["step"]
        model = make_model(recipe, long=state["long"])
        model.load_state_dict(state["model"])
        optimizers = Optimizers(model, recipe)
        for part, saved in zip(optimizers.parts, state["optimizers"], strict=True):
            part.load_state_dict(saved)
    if step >= recipe.steps:
        return
    # the text of a stretch starts anew from a seed of its own, so that a run that goes on need not skip what was read
    ends = [*recipe.rungs, *recipe.long_rungs]
    for end in ends:
        if end <= step:
            continue
        long = end in recipe.long_rungs
        if long and model.config.max_position_embeddings != recipe.long:
            longer = make_model(recipe, long=True)
            longer.load_state_dict(model.state_dict())
            model, optimizers = longer, Optimizers(longer, recipe)
        length = recipe.long if long else recipe.short
        texts = documents(family, seed * 1000 + ends.index(end))
        losses, started = [], time.time()
        for batch in batches(tokenizer, texts, length, max(1, recipe.tokens_per_step // length) * length):
            if step == end:
                break
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers.step(schedule(step, recipe))
            losses.append(loss.item())
            step += 1
            if step % 50 == 0 or step == end:
                rate = recipe.tokens_per_step * len(losses) / (time.time() - started)
                say(f"{family} step {step} loss {sum(losses[-50:]) / len(losses[-50:]):.4f} {rate:.0f} tokens/s")
        save(model, tokenizer, folder / f"step-{step}")
        state = {"step": step, "long": long, "model": model.state_dict()}
        torch.save({**state, "optimizers": [part.state_dict() for part in optimizers.parts]}, state_file)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def examples(tokenizer: PreTrainedTokenizerFast, number: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of the expert on training tasks: ids, and labels that are -100 outside the agent's own text."""
    rng = random.Random(f"sft {seed}")
    for index in range(number):
        task = make_task(f"train-{index}", "train", rng)
        text, own = transcript(expert(task, rng, without_running(task)))
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        labels = [
            token if any(a < stop and b > start for start, stop in own) else -100
            for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        yield encoding.ids, labels


def fine_tune(
    model: LlamaForCausalLM,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """The recipe of every rung: the same runs of the expert in the same order, the loss on the agent's text."""
    runs = list(examples(tokenizer, recipe.sft_tasks, seed))
    torch.manual_seed(seed)
    rng = random.Random(seed)
    optimizers = Optimizers(model, recipe)
    order: list[int] = []
    model.train()
    losses = []
    for step in range(recipe.sft_steps):
        while len(order) < recipe.sft_batch:
            order += rng.sample(range(len(runs)), len(runs))
        chosen, order = order[: recipe.sft_batch], order[recipe.sft_batch :]
        longest = max(len(runs[i][0]) for i in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, index in enumerate(chosen):
            ids[row, : len(runs[index][0])] = torch.tensor(runs[index][0])
            labels[row, : len(runs[index][1])] = torch.tensor(runs[index][1])
        loss = model(input_ids=ids, labels=labels).loss  # padding on the right: no token that counts sees it
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(recipe.sft_rate * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / recipe.sft_steps))
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            say(f"  SFT step {step + 1} loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
    model.eval()
