"""Models act by themselves: greedy answers, real tools, and whether the task is solved in the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .agent import END_OF_CALL, MAX_TURNS, Session, observe, solved, transcript
from .programs import Task
from .train import encode

__all__ = ["act"]

LONGEST_ANSWER = 80  # tokens; the expert's longest have about 50
LONGEST_RUN = 384  # tokens after which no further turn begins: the short context, for every model alike
BATCH = 64


def act(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task]
) -> tuple[list[bool], list[Session]]:
    """Let a model act on each task until it submits, makes no call, or runs out of turns or context.

    Returns:
        For each task whether all its tests pass with the files as the model left them, and the runs.
    """
    stops = [i for i in range(len(tokenizer)) if END_OF_CALL in tokenizer.decode([i])]
    sessions = [Session(task) for task in tasks]
    model.eval()
    for _ in range(MAX_TURNS):
        prompts = []
        for session in sessions:
            if not session.ended:
                ids = encode(tokenizer, transcript(session)[0] + "Assistant:\n")
                session.ended = len(ids) >= LONGEST_RUN
                if not session.ended:
                    prompts.append((session, ids))
        if not prompts:
            break
        prompts.sort(key=lambda item: len(item[1]))
        for start in range(0, len(prompts), BATCH):
            chosen = prompts[start : start + BATCH]
            for (session, _), answer in zip(
                chosen, answers(model, tokenizer, [i for _, i in chosen], stops), strict=True
            ):
                thought, call, rest = answer.partition("\n\n<function=")
                session.act(thought, call + rest)
                session.ended |= END_OF_CALL not in answer
        observe(sessions)
    return solved(sessions), sessions


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[list[int]], stops: list[int]
) -> list[str]:
    """Greedy continuations up to the end of the first call."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    generated = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
        eos_token_id=stops,
        pad_token_id=0,
    )
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in generated[:, longest:]]
    return [text[: text.find(END_OF_CALL) + len(END_OF_CALL)] if END_OF_CALL in text else text for text in texts]
