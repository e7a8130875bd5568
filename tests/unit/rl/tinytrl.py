"""A tiny model, tokenizer and GRPO trainer, all made here: nothing is fetched."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

WORDS = ["<pad>", "<eos>", *"0123456789+=abcdef"]


def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def model(seed=0, sharpness=1.0):
    """Two layers, random weights; `sharpness` scales the head, so that entropies fall on both sides of the cap."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    llama.lm_head.weight.data.mul_(sharpness)
    return llama


def reward(completions, **_):
    """Share of even digits and letters: differs between completions of almost every group."""
    return [sum(letter in "02468bdf" for letter in text) / (len(text) + 1) for text in completions]


def trainer(kind, *, tiny=None, steps=2, peft_config=None, shaping=None, evaluation=False, rewards=reward, **config):
    settings = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "num_generations": 4,
        "num_generations_eval": 4, "max_completion_length": 6, "max_steps": steps, "logging_steps": 1,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "optim": "sgd", "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "bf16": False,
        "gradient_checkpointing": False, "seed": 3, "output_dir": tempfile.mkdtemp(),
    } | config  # fmt: skip
    rows = Dataset.from_dict({"prompt": ["1+2=", "3+45=", "7=", "60+1="]})
    return kind(
        model=model(sharpness=80.0) if tiny is None else tiny,
        reward_funcs=rewards,
        args=GRPOConfig(**settings),
        train_dataset=rows,
        eval_dataset=rows if evaluation else None,
        processing_class=tokenizer(),
        peft_config=peft_config,
        **(shaping or {}),
    )


def batch(rows=3, prompt=3, completion=5, *, tool=False, items=None, seed=1):
    """A batch as TRL hands it to its loss: ragged completions, old log-probabilities a little off, mixed signs."""
    make = torch.Generator().manual_seed(seed)
    mask = (
        torch.arange(completion)[None] < torch.tensor([completion, completion - 2, completion - 1])[:rows, None]
    ).long()
    tensors = {
        "prompt_ids": torch.randint(2, len(WORDS), (rows, prompt), generator=make),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": torch.randint(2, len(WORDS), (rows, completion), generator=make),
        "completion_mask": mask,
        "advantages": torch.tensor([0.9, -1.2, 0.05])[:rows],
        "num_items_in_batch": mask.sum() if items is None else torch.tensor(items),
    }
    tensors["prompt_mask"][1, 0] = 0
    if tool:
        tensors["tool_mask"] = torch.ones_like(mask)
        tensors["tool_mask"][:, 1:3] = 0
    return tensors
