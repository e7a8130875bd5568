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
    """(ln p, rank, H_topk, bytes) of every token that covers a kept character; `kept`: a bool per character."""
    ids, offsets, logits = _full_logits(model, tokenizer, rendered.text, max_length)
    tokens = []
    for t in range(1, len(ids)):
        start, end = offsets[t]
        if any(kept[c] for c in range(start, end)):
            own = range(max(start, offsets[t - 1][1]), end)  # a character that two tokens share is the first one's
            size = sum(len(rendered.text[c].encode()) for c in own)
            tokens.append((*reference.token(logits[t - 1].double().tolist(), ids[t], k), size))
    return tokens
