"""The whole way from a labelled text to the metrics, one token at a time: full logits, plain loops, float64."""

import torch

from tests.reference import metrics as reference


def tokens_of(model, tokenizer, rendered, kept, max_length, k=10):
    """(ln p, rank, H_topk) of every token that covers a kept character; `kept` is a list of bools per character."""
    encoded = tokenizer(rendered.text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"][:max_length], encoded["offset_mapping"][:max_length]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].double()
    found = []
    for t in range(1, len(ids)):
        start, end = offsets[t]
        if any(kept[c] for c in range(start, end)):
            found.append(reference.token(logits[t - 1].tolist(), ids[t], k))
    return found
