"""Cross-validated prediction from proxies by plain loops: everything is refitted without what is predicted."""

import math

import numpy as np

PENALTIES = [10 ** (-2 + i / 2) for i in range(11)]


def standardised(x, rest):
    center, scale = np.mean(x[rest], axis=0), np.std(x[rest], axis=0)
    return (x - center) / np.where(scale > 0, scale, np.inf)


def line(z, y, new):
    slope = math.fsum((a - np.mean(z)) * (b - np.mean(y)) for a, b in zip(z, y)) / math.fsum((z - np.mean(z)) ** 2)
    return np.mean(y) + slope * (new - np.mean(z))


def best_single(z, y, new):
    """The proxy with the least error when each checkpoint is left out in turn; its line at `new`."""
    errors = []
    for p in range(z.shape[1]):
        squares = []
        for i in range(len(y)):
            rest = [j for j in range(len(y)) if j != i]
            squares.append((line(z[rest, p], y[rest], z[i, p]) - y[i]) ** 2)
        errors.append(math.fsum(squares))
    best = int(np.argmin(errors))
    return line(z[:, best], y, new[best])


def _ridge_at(z, y, new, penalty):
    zc, yc = z - z.mean(axis=0), y - y.mean()
    weights = np.linalg.solve(zc.T @ zc + penalty * np.eye(z.shape[1]), zc.T @ yc)
    return y.mean() + (new - z.mean(axis=0)) @ weights


def ridge(z, y, new):
    """The penalty with the least leave-one-out error."""
    errors = []
    for penalty in PENALTIES:
        squares = []
        for i in range(len(y)):
            rest = [j for j in range(len(y)) if j != i]
            squares.append((_ridge_at(z[rest], y[rest], z[i], penalty) - y[i]) ** 2)
        errors.append(math.fsum(squares))
    return _ridge_at(z, y, new, PENALTIES[int(np.argmin(errors))])


def leave_one_out(method, x, y):
    """Root mean squared errors of a method and of the mean; one family."""
    squares, plain = [], []
    for i in range(len(y)):
        rest = [j for j in range(len(y)) if j != i]
        z = standardised(x, rest)
        squares.append((method(z[rest], y[rest], z[i]) - y[i]) ** 2)
        plain.append((np.mean(y[rest]) - y[i]) ** 2)
    return math.sqrt(np.mean(squares)), math.sqrt(np.mean(plain))
