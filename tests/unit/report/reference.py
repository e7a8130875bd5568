"""Agreement the slow way: pairs of checkpoints one by one, resamples one by one, plain Python."""

import math


def decision(x, y):
    """Share of pairs with different y that x orders alike; a tie in x is half a pair."""
    right = total = 0.0
    for i in range(len(x)):
        for j in range(i):
            if y[i] != y[j]:
                total += 1
                right += 0.5 if x[i] == x[j] else float((x[i] > x[j]) == (y[i] > y[j]))
    return right / total if total else math.nan


def percentile(values, share):
    """Linear interpolation between order statistics, as numpy does it by default."""
    ordered = sorted(values)
    index = share * (len(ordered) - 1)
    low = math.floor(index)
    return ordered[low] + (index - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def pearson(x, y):
    a, b = math.fsum(x) / len(x), math.fsum(y) / len(y)
    over = math.fsum((p - a) * (q - b) for p, q in zip(x, y))
    return over / math.sqrt(math.fsum((p - a) ** 2 for p in x) * math.fsum((q - b) ** 2 for q in y))
