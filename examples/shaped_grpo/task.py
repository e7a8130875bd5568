"""A task with an exact verifier, small enough for a model that trains on one core: write the digits in order."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", ">", *"0123456789"]
DIGITS = 8
PROMPT, ANSWER = DIGITS + 1, DIGITS + 1  # tokens: digits and ">", digits and "<eos>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_model(seed: int) -> LlamaForCausalLM:
    """A Llama of two layers, about 84 000 parameters, with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=32,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


def problems(count: int, seed: int, without: frozenset[str] = frozenset()) -> list[str]:
    """Distinct prompts such as `73029518>`, none of them in `without`."""
    draw = random.Random(seed)
    unique: dict[str, None] = {}
    while len(unique) < count:
        prompt = "".join(draw.choices("0123456789", k=DIGITS)) + ">"
        if prompt not in without:
            unique[prompt] = None
    return list(unique)


def solution(prompt: str) -> str:
    """The only right answer to a prompt."""
    return "".join(sorted(prompt[:-1]))


def right(prompt: str, answer: str) -> bool:
    """Whether `answer` holds the prompt's digits in order, and nothing else."""
    return answer == solution(prompt)


def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """1 for a right answer, -1 for any other."""
    return [1.0 if right(prompt, answer) else -1.0 for prompt, answer in zip(prompts, completions, strict=True)]


def warm_up(model: LlamaForCausalLM, prompts: list[str], steps: int, seed: int) -> float:
    """Supervised training on solved problems, in place; returns the last loss (nats for each answer token)."""
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer(prompt + solution(prompt))["input_ids"] + [1] for prompt in prompts])
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(ids), (64,), generator=draw)
        loss = model(input_ids=ids[rows], labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
