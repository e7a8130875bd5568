"""The entropy-shaped advantage one token at a time, in Python floats."""

import math


def shaped(advantages, entropies, mask, alpha, kappa):
    """Lists of lists; `advantages` holds one number or one list for each sequence."""
    rows = []
    for row, (of_row, of_mask) in enumerate(zip(entropies, mask)):
        line = []
        for column, (entropy, inside) in enumerate(zip(of_row, of_mask)):
            given = advantages[row][column] if isinstance(advantages[row], list) else advantages[row]
            line.append(given + min(alpha * entropy, abs(given) / kappa) if inside else given)
        rows.append(line)
    return rows


def token_loss(kind, logp, old, advantage, low=0.2, high=0.2, temperatures=(1.0, 1.05)):
    """The loss of one token, before masking and averaging, of a loss whose weight is the token's own ratio."""
    ratio = math.exp(logp - old)
    if kind == "cispo":
        return -min(ratio, high) * advantage * logp
    if kind == "sapo":
        temperature = temperatures[0] if advantage > 0 else temperatures[1]
        return -4 / temperature / (1 + math.exp(-temperature * (ratio - 1))) * advantage
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def vespo_weight(log_ratios, advantage, positive=(2.0, 3.0), negative=(3.0, 2.0)):
    """VESPO's weight of a sequence's ratio (no correction for another sampler)."""
    power, rate = positive if advantage >= 0 else negative
    log_ratio = min(max(sum(log_ratios), math.log(1e-8)), 20.0)
    return math.exp(rate + power * log_ratio - rate * math.exp(log_ratio))


def batch_loss(kind, tokens, mask, *, longest, items):
    """One number from the losses of all tokens: `longest` completion allowed, `items` in the accumulation window."""
    sums = [sum(loss for loss, inside in zip(*row) if inside) for row in zip(tokens, mask)]
    counts = [sum(row) for row in mask]
    if kind in ("grpo", "sapo"):
        return sum(total / max(count, 1) for total, count in zip(sums, counts)) / len(sums)
    divisor = {"bnpo": max(sum(counts), 1), "dr_grpo": len(sums) * longest}.get(kind, max(items, 1))
    return sum(sums) / divisor
