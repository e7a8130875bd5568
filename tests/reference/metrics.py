"""Every metric from full logits, one token at a time, in plain Python loops and float64 (arXiv 2601.20255)."""

import math


def token(logits, target, k=10):
    """ln p, rank and H_topk of one position; `logits` is the whole vocabulary's, a list of floats."""
    top = max(logits)
    log_z = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    logprob = logits[target] - log_z
    rank = 1 + sum(1 for x in logits if x > logits[target])
    candidates = sorted(logits, reverse=True)[:k]
    weights = [math.exp(x - log_z) for x in candidates]
    total = math.fsum(weights)
    entropy = -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)
    return logprob, rank, entropy


def metrics(tokens, epsilon, k=10):
    """All metrics from a list of (ln p, rank, H_topk, UTF-8 bytes)."""
    n = len(tokens)
    high = [t for t in tokens if t[2] > epsilon and t[1] <= k]
    values = {"tokens": float(n), "he_tokens": float(len(high)), "density": len(high) / n if n else math.nan}
    values["bpb"] = -math.fsum(t[0] for t in tokens) / math.log(2) / sum(t[3] for t in tokens) if n else math.nan
    values["ppl"] = math.exp(-math.fsum(t[0] for t in tokens) / n) if n else math.nan
    values["entropy"] = math.fsum(t[2] for t in tokens) / n if n else math.nan
    for j in (1, 2, 5, 10):
        values[f"top{j}_acc"] = sum(1 for t in tokens if t[1] <= j) / n if n else math.nan
    values["he_ppl"] = math.exp(-math.fsum(t[0] for t in high) / len(high)) if high else math.nan
    values["he_snr"] = math.fsum(math.exp(t[0]) / t[2] for t in high) / len(high) if high else math.nan
    return values


def bootstrap(per_trajectory, metric_name, draws, epsilon, k=10):
    """Standard error by a plain loop over resamples (lists of indices): pools the tokens, then evaluates."""
    values = []
    for resample in draws:
        pooled = [t for index in resample for t in per_trajectory[index]]
        values.append(metrics(pooled, epsilon, k)[metric_name])
    values = [v for v in values if math.isfinite(v)]
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
