"""Score analysis the slow way: tokens and trajectories one by one, plain Python. Uses nothing of the package."""

import math

from scipy.stats import t as student

__all__ = ["density", "holm", "paired_t", "robust_t", "tally"]


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


def robust_t(pairs, level=0.95):
    """Value, both ends of the interval, by matrices: CR2 variance, Satterthwaite's degrees of freedom, Student's t."""
    d = math.fsum(b for _, b in pairs)
    value, weights = math.fsum(a for a, _ in pairs) / d, [b / d for _, b in pairs]
    influences = [(a - value * b) / d for a, b in pairs]
    error, q = _error_and_quantile(influences, weights, weights, level)
    return value, value - q * error, value + q * error


def paired_t(a, b, exponentiate=False, level=0.95):
    """(difference b - a, low, high, p) of two lists of (numerator, denominator) pairs."""
    values, influences, weights = [], [], []
    for pairs in (a, b):
        d = math.fsum(y for _, y in pairs)
        ratio = math.fsum(x for x, _ in pairs) / d
        values.append(math.exp(ratio) if exponentiate else ratio)
        slope = values[-1] if exponentiate else 1.0
        own = [y / d for _, y in pairs]
        influences.append([slope * (x - ratio * y) / d / math.sqrt(1 - w) for (x, y), w in zip(pairs, own)])
        weights.append(own)
    mean = [(x + y) / 2 for x, y in zip(*weights)]
    change = [y - x for x, y in zip(*influences)]
    error, freedom = _error_and_freedom(change, mean)
    q = student.ppf((1 + level) / 2, freedom)
    difference = values[1] - values[0]
    p = 2 * (1 - student.cdf(abs(difference) / error, freedom))
    return difference, difference - q * error, difference + q * error, p


def _error_and_quantile(influences, leverages, weights, level):
    scaled = [u / math.sqrt(1 - w) for u, w in zip(influences, leverages)]
    error, freedom = _error_and_freedom(scaled, weights)
    return error, student.ppf((1 + level) / 2, freedom)


def _error_and_freedom(scaled, weights):
    """Of sum(scaled²), made unbiased for trajectories of equal variance; M = (I - 1w')(I - w1') as a matrix."""
    n = len(weights)
    project = [[(i == j) - weights[j] for j in range(n)] for i in range(n)]
    a = [w**2 / (1 - w) for w in weights]
    g = [
        [math.sqrt(a[i] * a[j]) * math.fsum(x * y for x, y in zip(project[i], project[j])) for j in range(n)]
        for i in range(n)
    ]
    trace = math.fsum(g[i][i] for i in range(n))
    squares = math.fsum(x * x for row in g for x in row)
    variance = math.fsum(u * u for u in scaled) * math.fsum(w * w for w in weights) / trace
    return math.sqrt(variance), trace**2 / squares


def holm(p_values):
    """Corrected p-values: the i-th smallest of m is multiplied by m - i, and none is below a smaller one's."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    for place, i in enumerate(order):
        corrected[i] = max(min(1.0, (len(order) - j) * p_values[order[j]]) for j in range(place + 1))
    return corrected


def density(values, x, width, top):
    """Kernel density at x on [0, top], mirrored at both ends: a sum over all values."""
    images = [image for value in values for image in (value, -value, 2 * top - value)]
    kernel = (math.exp(-0.5 * ((x - image) / width) ** 2) for image in images)
    return math.fsum(kernel) / (len(values) * width * math.sqrt(2 * math.pi))
