"""Score analysis the slow way: tokens one by one, resamples one by one, plain Python. Uses nothing of the package."""

import math

__all__ = ["bootstrap_t", "density", "holm", "paired_t", "tally"]


def entropy(logprobs):
    """H of a few candidates, renormalised to sum to 1, in nats."""
    weights = [math.exp(x) for x in logprobs]
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)


def tally(tokens, epsilon, k):
    """(|M|, sum of -ln p, |H|, sum of -ln p over H, sum of p / H over H) of (ln p, rank, candidates' ln p) triples."""
    n, nll, high, high_nll, ratio = 0, 0.0, 0, 0.0, 0.0
    for logprob, rank, candidates in tokens:
        n += 1
        nll -= logprob
        h = entropy(candidates[:k])
        if h > epsilon and 1 <= rank <= k:
            high += 1
            high_nll -= logprob
            ratio += math.exp(logprob) / h
    return n, nll, high, high_nll, ratio


def ratio_and_error(pairs):
    """Pooled ratio of (numerator, denominator) pairs and its linearised standard error."""
    d = math.fsum(b for _, b in pairs)
    value = math.fsum(a for a, _ in pairs) / d
    return value, math.sqrt(math.fsum((a - value * b) ** 2 for a, b in pairs)) / d


def bootstrap_t(pairs, draws, level=0.95):
    """Value and both ends of the symmetric bootstrap-t interval; `draws`: lists of indices."""
    value, error = ratio_and_error(pairs)
    deviations = []
    for draw in draws:
        drawn, spread = ratio_and_error([pairs[i] for i in draw])
        deviations.append(abs(drawn - value) / spread)
    q = _quantile(deviations, level)
    return value, value - q * error, value + q * error


def paired_t(a, b, draws, exponentiate=False, level=0.95):
    """(difference b - a, low, high, p) of two lists of (numerator, denominator) pairs."""
    difference, error = _difference(a, b, exponentiate)
    deviations = []
    for draw in draws:
        drawn, spread = _difference([a[i] for i in draw], [b[i] for i in draw], exponentiate)
        deviations.append(abs(drawn - difference) / spread)
    q = _quantile(deviations, level)
    p = (1 + sum(t >= abs(difference) / error for t in deviations)) / (1 + len(deviations))
    return difference, difference - q * error, difference + q * error, p


def _difference(a, b, exponentiate):
    influences, values = [], []
    for pairs in (a, b):
        d = math.fsum(y for _, y in pairs)
        ratio = math.fsum(x for x, _ in pairs) / d
        values.append(math.exp(ratio) if exponentiate else ratio)
        slope = values[-1] if exponentiate else 1.0
        influences.append([slope * (x - ratio * y) / d for x, y in pairs])
    error = math.sqrt(math.fsum((right - left) ** 2 for left, right in zip(*influences, strict=True)))
    return values[1] - values[0], error


def _quantile(values, level):
    return sorted(values)[math.ceil(level * (len(values) + 1)) - 1]


def holm(p_values):
    """Corrected p-values: the i-th smallest of m is multiplied by m - i, and none is below a smaller one's."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [0.0] * len(p_values)
    for place, i in enumerate(order):
        found[i] = max(min(1.0, (len(order) - j) * p_values[order[j]]) for j in range(place + 1))
    return found


def density(values, x, width, top):
    """Kernel density at x on [0, top], mirrored at both ends: a sum over all values."""
    images = [image for value in values for image in (value, -value, 2 * top - value)]
    kernel = (math.exp(-0.5 * ((x - image) / width) ** 2) for image in images)
    return math.fsum(kernel) / (len(values) * width * math.sqrt(2 * math.pi))
