"""The whole way from a labelled text to the metrics, one token at a time: full logits, plain loops, float64."""

from functools import lru_cache

import torch

from tests.reference import metrics as reference


@lru_cache(maxsize=4)
def _full_logits(model, tokenizer, text, max_length):
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"][:max_length], encoded["offset_mapping"][:max_length]
    with torch.inference_mode():
        return ids, offsets, model(torch.tensor([ids])).logits[0]


def tokens_of(model, tokenizer, rendered, kept, max_length, k=10):
    """(ln p, rank, H_topk) of every token that covers a kept character; `kept` is a list of bools per character."""
    ids, offsets, logits = _full_logits(model, tokenizer, rendered.text, max_length)
    return [
        reference.token(logits[t - 1].double().tolist(), ids[t], k)
        for t in range(1, len(ids))
        if any(kept[c] for c in range(*offsets[t]))
    ]
