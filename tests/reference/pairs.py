"""Metrics of two score folders, token by token and character by character, in plain Python and float64."""

import math


def rows(store, key, mask=None):
    """The scored tokens of one text as dictionaries, in order."""
    scores = store.read(key)
    columns = zip(
        scores.position.tolist(), scores.scores.logprob.astype(float).tolist(), scores.char_start.tolist(),
        scores.char_end.tolist(), scores.label.tolist(),
    )  # fmt: skip
    names = ("position", "logprob", "start", "end", "label")
    tokens = [dict(zip(names, values)) for values in columns]
    return [token for token in tokens if mask is None or token["label"] & int(mask)]


def hidden(position, window, prefix):
    """Tokens that LongPPL's truncated pass does not see, by its loop."""
    stride, start = max(1, window // 4), 0
    while position - prefix >= start + window + stride:
        start += stride
    return start


def is_key(whole, short, alpha=2.0, beta=2.0):
    """Losses in nats."""
    return short - whole > alpha and whole < beta


def context(whole, short, mask, window, prefix=0):
    """Benefit, the windows hidden, and whether it is key, of the tokens from which something is hidden."""
    tokens = []
    for key in whole:
        others = {token["position"]: token for token in rows(short, key)}
        for token in rows(whole, key, mask):
            gone = hidden(token["position"], window, prefix)
            if gone:
                losses = -token["logprob"], -others[token["position"]]["logprob"]
                tokens.append((losses[1] - losses[0], gone / window, is_key(*losses), losses[0]))
    return tokens


def long_ppl(judged, whole, short, mask, window, prefix=0):
    """LongPPL of `judged` under an evaluator that may have another tokenizer."""
    losses = []
    for key in judged:
        short_of = {token["position"]: -token["logprob"] for token in rows(short, key)}
        key_character, other = set(), set()
        for token in rows(whole, key):
            beyond = hidden(token["position"], window, prefix) > 0
            good = beyond and is_key(-token["logprob"], short_of[token["position"]])
            (key_character if good else other).update(range(token["start"], token["end"]))
        for token in rows(judged, key, mask):
            characters = set(range(token["start"], token["end"]))
            if characters and characters <= key_character - other:
                losses.append(-token["logprob"])
    return (math.exp(math.fsum(losses) / len(losses)) if losses else math.nan), len(losses)


def rbridge(judged, teacher, mask):
    """rBridge: min-max scaled means over characters of the teacher's probabilities as weights."""
    weighted = total = 0.0
    for key in judged:
        of_character = {}
        for token in rows(teacher, key):
            for place in range(token["start"], token["end"]):
                of_character.setdefault(place, []).append(math.exp(token["logprob"]))
        raw = []
        for token in rows(judged, key, mask):
            values = [
                math.fsum(of_character[c]) / len(of_character[c])
                for c in range(token["start"], token["end"]) if c in of_character
            ]  # fmt: skip
            raw.append((-token["logprob"], math.fsum(values) / len(values) if values else None))
        present = [weight for _, weight in raw if weight is not None]
        low, high = min(present), max(present)
        for loss, weight in raw:
            if weight is not None:
                scaled = (weight - low) / (high - low) if high > low else 1.0
                weighted, total = weighted + scaled * loss, total + scaled
    return weighted / total
