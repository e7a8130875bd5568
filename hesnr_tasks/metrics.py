"""The metrics: arrays in, numbers out. Neither torch nor lm-eval is imported here.

Definitions: Wang et al., "HE-SNR", arXiv 2601.20255. Every metric is a pure function of *sums over tokens*, kept per
trajectory in float64 and divided once, so averages are pooled over tokens (micro-averages), and errors, paired tests
and sub-groups need nothing but the sums. All logarithms are natural.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.backends.base import Scores

__all__ = ["EPSILON", "METRICS", "MIN_TOKENS", "SCORED", "SUMS", "Metric", "evaluate", "statistics_of", "topk_entropy"]

EPSILON = (math.log(3) + math.log(4)) / 2  # 1.2424533…: between two and three equally likely continuations … and four

MIN_TOKENS = 30  # over fewer tokens a mean says nothing: its relative error is some 20 % even of independent tokens

FloatArray = npt.NDArray[np.float64]

SUMS = (
    "tokens",  # |M|: tokens that count
    "nll",  # sum over M of -ln p(x_t)
    "top1",  # tokens of M with rank <= 1, 2, 5, 10
    "top2",
    "top5",
    "top10",
    "entropy",  # sum over M of H_topk
    "he_tokens",  # |𝓗|: tokens of M with H_topk > epsilon and the target among the k candidates
    "he_nll",  # sum over 𝓗 of -ln p(x_t)
    "he_ratio",  # sum over 𝓗 of p(x_t) / H_topk
)


class Metric(NamedTuple):
    """A ratio of two of the `SUMS` (or one of them), exponentiated if it is a perplexity."""

    numerator: str
    denominator: str | None
    exponentiate: bool
    higher_is_better: bool | None


METRICS = {
    "he_snr": Metric("he_ratio", "he_tokens", False, True),
    "he_ppl": Metric("he_nll", "he_tokens", True, False),
    "ppl": Metric("nll", "tokens", True, False),
    "he_tokens": Metric("he_tokens", None, False, None),
    "tokens": Metric("tokens", None, False, None),
    "top1_acc": Metric("top1", "tokens", False, True),
    "top2_acc": Metric("top2", "tokens", False, True),
    "top5_acc": Metric("top5", "tokens", False, True),
    "top10_acc": Metric("top10", "tokens", False, True),
    "entropy": Metric("entropy", "tokens", False, None),
}
SCORED = Metric("tokens", "wanted", False, None)  # "wanted": tokens that would count if the context had no limit


def topk_entropy(topk_logprobs: npt.NDArray[np.floating], k: int) -> FloatArray:
    """H_topk in nats of each row, from its first k log-probabilities renormalised to sum to 1; in [0, ln k].

    `topk_logprobs`: shape (n, >= k), falling. Returns shape (n,).
    """
    logs = np.asarray(topk_logprobs[:, :k], dtype=np.float64)
    logs = logs - logs.max(axis=1, keepdims=True, initial=-np.inf) if len(logs) else logs
    weights = np.exp(logs)
    total = weights.sum(axis=1)
    # H = ln Z - E[ln w]; a weight of 0 contributes 0 (0 ln 0 = 0)
    expected = np.where(weights > 0, weights * np.where(weights > 0, logs, 0), 0).sum(axis=1) / total
    return np.clip(np.log(total) - expected, 0.0, math.log(k))


def statistics_of(scores: Scores, counted: npt.NDArray[np.bool_], epsilon: float = EPSILON, k: int = 10) -> FloatArray:
    """The `SUMS` of one trajectory, shape (10,), over its tokens where `counted` (shape (n,)) is true."""
    logprob = scores.logprob[counted].astype(np.float64)
    rank = scores.rank[counted]
    entropy = topk_entropy(scores.topk_logprobs[counted], k)
    known = rank >= 1
    high = (entropy > epsilon) & known & (rank <= k)
    parts = [float(len(logprob)), -logprob.sum()]
    width = scores.topk_logprobs.shape[1]
    parts += [_within_top(np.where(rank == 0, -width, rank), j) for j in (1, 2, 5, 10)]
    parts += [entropy.sum(), float(high.sum()), -logprob[high].sum()]
    parts += [(np.exp(logprob[high]) / entropy[high]).sum()]
    return np.array(parts, dtype=np.float64)


def _within_top(rank: npt.NDArray[np.int32], j: int) -> float:
    """How many ranks are at most j; NaN if that is not known of one (rank -n: beyond the n most likely)."""
    unknown = (rank < 0) & (-rank < j)
    return math.nan if unknown.any() else float(((rank >= 1) & (rank <= j)).sum())


def evaluate(metric: Metric, numerator: FloatArray | np.float64, denominator: FloatArray | np.float64) -> FloatArray:
    """The metric's value for (arrays of) sums; NaN where nothing was counted, never 0."""
    if metric.denominator is None:
        return np.asarray(numerator, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.asarray(numerator, dtype=np.float64) / np.asarray(denominator, dtype=np.float64)
        ratio = np.where(np.asarray(denominator) > 0, ratio, np.nan)
        return np.exp(ratio) if metric.exponentiate else ratio
