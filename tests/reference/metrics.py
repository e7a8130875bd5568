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


def candidates(logits, k=10):
    """ln p of the k most likely, falling."""
    top = max(logits)
    log_z = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - log_z for x in sorted(logits, reverse=True)[:k]]


def proxies(tokens):
    """The proxies of one token set, from (ln p, rank, H_topk, UTF-8 bytes, candidates)."""
    statistics = {
        "loss": lambda t: -t[0],
        "top1": lambda t: float(t[1] == 1),
        "top3": lambda t: float(t[1] <= 3),
        "rank": lambda t: t[1],
        "reciprocal_rank": lambda t: 1 / t[1],
        "margin": lambda t: math.exp(t[4][0]) - math.exp(t[0]),
        "wrong_confidence": lambda t: math.exp(t[4][0]) if t[1] != 1 else 0.0,
        "uncertainty": lambda t: t[2],
    }
    weights = {"p": lambda t: math.exp(t[0]), "1mp": lambda t: 1 - math.exp(t[0]), "h": lambda t: t[2]}
    values = {}
    for name, statistic in statistics.items():
        values[name] = math.fsum(map(statistic, tokens)) / len(tokens) if tokens else math.nan
        for key, weight in weights.items():
            total = math.fsum(map(weight, tokens))
            weighted = math.fsum(weight(t) * statistic(t) for t in tokens)
            values[f"{name}_w_{key}"] = weighted / total if total > 0 else math.nan
    del values["top1"]
    values["confidence"] = _mean([-math.fsum(t[4]) / len(t[4]) for t in tokens])
    values["relative_rank"] = _mean([_relative_rank(t) for t in tokens])
    return values


def _mean(numbers):
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _relative_rank(t):
    p = [math.exp(x) for x in t[4]]
    expected = math.fsum(i * x for i, x in enumerate(p, 1)) + (len(p) + 1) * max(0.0, 1 - math.fsum(p))
    return 2 ** (1 / math.log2(t[1] + 1) - 1 / math.log2(expected + 1))


def macro_bits_per_byte(per_trajectory):
    """Mean over trajectories of each one's bits per byte; those without tokens do not count."""
    return _mean([-math.fsum(t[0] for t in ts) / math.log(2) / sum(t[3] for t in ts) for ts in per_trajectory if ts])


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


def everything(per_trajectory, epsilon, k=10):
    """Metrics and, where tokens have candidates, proxies of several trajectories."""
    tokens = [t for ts in per_trajectory for t in ts]
    values = metrics(tokens, epsilon, k)
    if all(len(t) > 4 for t in tokens):
        values |= proxies(tokens) | {"bpb_macro": macro_bits_per_byte(per_trajectory)}
    return values


def bootstrap(per_trajectory, metric_name, draws, epsilon, k=10):
    """Standard error by a plain loop over resamples (lists of indices): pools the tokens, then evaluates."""
    values = []
    for resample in draws:
        values.append(everything([per_trajectory[index] for index in resample], epsilon, k)[metric_name])
    values = [v for v in values if math.isfinite(v)]
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
