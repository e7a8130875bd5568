"""What a model can do on problems it was not trained on: Pass@K from samples, and how unsure it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from task import PROMPT, make_tokenizer, right
from transformers import LlamaForCausalLM

from hesnr_tasks.passk import pass_at_ks
from hesnr_tasks.rl import ALPHA_GRPO, KAPPA

SAMPLES = 32
KS = [1, 2, 4, 8, 16, 32]
SATURATED = 1 / (ALPHA_GRPO * KAPPA)  # nats: above, a token with |A| = 1 is capped


class Ability(NamedTuple):
    """Pass@K for each of `KS`; of the tokens sampled, mean `entropy` in nats and the share above the cap."""

    passes: list[float]
    entropy: float
    saturated: float


@torch.no_grad()
def ability(model: LlamaForCausalLM, prompts: list[str], seed: int) -> Ability:
    """Sample `SAMPLES` answers to each prompt at temperature 1; leaves the random state as it was."""
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer(prompt)["input_ids"] for prompt in prompts]).repeat_interleave(SAMPLES, 0)
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sampled = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=PROMPT
        )
    entropies, inside = _entropies(model, sampled)
    model.train(training)
    answers = tokenizer.batch_decode(sampled[:, PROMPT:], skip_special_tokens=True)
    good = torch.tensor([right(prompts[i // SAMPLES], text) for i, text in enumerate(answers)])
    counts = good.view(-1, SAMPLES).sum(1).tolist()
    passes = pass_at_ks([SAMPLES] * len(prompts), counts, KS).mean(0).tolist()
    return Ability(passes, entropies[inside].mean().item(), (entropies[inside] > SATURATED).float().mean().item())


def _entropies(model: LlamaForCausalLM, sampled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy in nats at the position that emits each answer token, and which of them stand up to `<eos>`."""
    answer = sampled[:, PROMPT:]
    ended = (answer == 1).long().cumsum(1) - (answer == 1).long()
    logp = torch.log_softmax(model(input_ids=sampled).logits[:, PROMPT - 1 : -1].float(), -1)
    return -(logp.exp() * logp).sum(-1), ended == 0
