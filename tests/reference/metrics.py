"""Every metric from full logits, one token at a time, in plain Python loops and float64 (arXiv 2601.20255)."""

import math
from typing import NamedTuple


class Token(NamedTuple):
    """What every metric is computed from."""

    logprob: float
    rank: int
    entropy: float
    n_bytes: int
    candidates: list
    full_entropy: float
    expected_rank: float
    frequency: int
    kind: str
    turn: int
    short_logprob: float
    hidden: float
    key: int
    teacher: float
    reference_decision: bool


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


def of_the_vocabulary(logits):
    """Entropy in nats and expected rank over the whole vocabulary."""
    top = max(logits)
    log_z = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    p = [math.exp(x - log_z) for x in sorted(logits, reverse=True)]
    return -math.fsum(x * math.log(x) for x in p if x > 0), math.fsum(i * x for i, x in enumerate(p, 1))


STATISTICS = {
    "loss": lambda t: -t[0],
    "top1": lambda t: float(t[1] == 1),
    "top3": lambda t: float(t[1] <= 3),
    "rank": lambda t: t[1],
    "reciprocal_rank": lambda t: 1 / t[1],
    "margin": lambda t: math.exp(t[4][0]) - math.exp(t[0]),
    "wrong_confidence": lambda t: math.exp(t[4][0]) if t[1] != 1 else 0.0,
    "uncertainty": lambda t: t[2],
}


def proxies(tokens):
    """The proxies of one token set, from (ln p, rank, H_topk, UTF-8 bytes, candidates)."""
    weights = {"p": lambda t: math.exp(t[0]), "1mp": lambda t: 1 - math.exp(t[0]), "h": lambda t: t[2]}
    weights |= {"ih": lambda t: 1 / max(t[2], 0.01), "f": lambda t: t.frequency, "if": lambda t: 1 / t.frequency}
    values = {}
    for name, statistic in STATISTICS.items():
        values[name] = math.fsum(map(statistic, tokens)) / len(tokens) if tokens else math.nan
        for key, weight in weights.items():
            total = math.fsum(map(weight, tokens))
            weighted = math.fsum(weight(t) * statistic(t) for t in tokens)
            values[f"{name}_w_{key}"] = weighted / total if total > 0 else math.nan
    del values["top1"]
    values["confidence"] = _mean([-math.fsum(t[4]) / len(t[4]) for t in tokens])
    values["relative_rank"] = _mean([_relative_rank(t) for t in tokens])
    values["full_entropy"] = _mean([t.full_entropy for t in tokens])
    f = [(1 / math.log2(t.rank + 1), 1 / math.log2(t.expected_rank + 1)) for t in tokens]
    values["relative_rank_full"] = _mean([2 ** (a - b) for a, b in f])
    for n in (2, 3, 4):
        values[f"near_ln{n}"] = _mean([float(abs(t.entropy - math.log(n)) <= 0.1) for t in tokens])
        values[f"state_{n}"] = _mean([float(_state(t.candidates) == n) for t in tokens])
    for name, kind in (("world_ppl", "observation"), ("action_ppl", "action")):
        own = [-t.logprob for t in tokens if t.kind == kind]
        values[name] = math.exp(_mean(own)) if own else math.nan
    return values


def of_trajectories(per_trajectory, recent=1000, window=2048):
    """The proxies that need the order of a trajectory's tokens."""
    texts = [tokens for tokens in per_trajectory if tokens]
    values = {
        f"{name}_last1000": _mean([_mean([s(t) for t in ts[-recent:]]) for ts in texts])
        for name, s in STATISTICS.items()
    }
    forking = []
    for tokens in texts:
        least = _quantile([t.entropy for t in tokens], 0.8)
        forking += [t for t in tokens if t.entropy >= least]
    values["ppl_forking"] = math.exp(_mean([-t.logprob for t in forking])) if forking else math.nan
    values["top1_forking"] = _mean([float(t.rank == 1) for t in forking])
    groups, tails = [], []
    for tokens in texts:
        confidence = [-math.fsum(t.candidates) / len(t.candidates) for t in tokens]
        size = min(window, len(tokens))
        groups.append([_mean(confidence[i : i + size]) for i in range(len(tokens) - size + 1)])
        tails.append(_mean(confidence[-window:]))
    values["confidence_least"] = _mean([min(means) for means in groups])
    values["confidence_low"] = _mean([_mean(sorted(means)[: max(1, len(means) // 10)]) for means in groups])
    values["confidence_tail"] = _mean(tails)
    turns = {}
    for i, tokens in enumerate(texts):
        for t in tokens:
            turns.setdefault((i, t.turn), []).append(t.rank == 1)
    values["exact_action"] = _mean([float(all(hits)) for hits in turns.values()])
    return values


def pairs(per_trajectory, epsilon, k=10):
    """The metrics that need other scores of the same texts."""
    tokens = [t for ts in per_trajectory for t in ts]
    key, beyond = [t for t in tokens if t.key == 1], [t for t in tokens if t.hidden > 0]
    values = {"long_ppl": math.exp(_mean([-t.logprob for t in key])) if key else math.nan}
    values["key_share"] = _mean([float(t.key == 1) for t in tokens if t.key != -1])
    for name, low, high in (("", 0, math.inf), ("_near", 0, 1), ("_mid", 1, 4), ("_far", 4, math.inf)):
        inside = [t for t in beyond if low < t.hidden <= high]
        values[f"context_benefit{name}"] = _mean([-t.short_logprob - -t.logprob for t in inside])
    values["context_benefit_share"] = _mean([float(-t.short_logprob - -t.logprob > 0) for t in beyond])
    weighted = total = 0.0
    for ts in per_trajectory:
        present = [t for t in ts if not math.isnan(t.teacher)]
        low, high = (f((t.teacher for t in present), default=0.0) for f in (min, max))
        for t in present:
            weight = (t.teacher - low) / (high - low) if high > low else 1.0
            weighted, total = weighted - weight * t.logprob, total + weight
    values["rbridge"] = weighted / total if total > 0 else math.nan
    fixed = [t for t in tokens if t.reference_decision]
    shared = [t for t in fixed if t.entropy > epsilon and t.rank <= k]
    values["he_snr_fixed"] = _mean([math.exp(t.logprob) / max(t.entropy, 0.01) for t in fixed])
    values["he_ppl_fixed"] = math.exp(_mean([-t.logprob for t in fixed])) if fixed else math.nan
    values["he_snr_shared"] = _mean([math.exp(t.logprob) / t.entropy for t in shared])
    return values


def _quantile(numbers, q):
    ordered = sorted(numbers)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _mean(numbers):
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _state(candidates, most=0.2):
    """The number that the renormalised candidates are nearest uniform on; 0 beyond a total variation of 0.2."""
    total = math.fsum(map(math.exp, candidates))
    p, distances = [math.exp(x) / total for x in candidates], []
    for n in range(1, len(p) + 1):
        distances.append(math.fsum(abs(x - (1 / n if i < n else 0.0)) for i, x in enumerate(p)) / 2)
    return 1 + distances.index(min(distances)) if min(distances) <= most else 0


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
        values |= of_trajectories(per_trajectory) | pairs(per_trajectory, epsilon, k)
    return values


def resampled(per_trajectory, draws, epsilon, k=10):
    """Every metric of each resample (a list of indices): pools its tokens, then evaluates."""
    return [everything([per_trajectory[index] for index in resample], epsilon, k) for resample in draws]


def error(resamples, metric_name):
    """Standard error of a metric over what `resampled` returned."""
    values = [values[metric_name] for values in resamples if math.isfinite(values[metric_name])]
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
