"""Further published statistics of teacher-forced tokens that predict downstream performance.

Most are of Patel et al., "Forecasting Downstream Performance of LLMs With Proxy Metrics" (arXiv 2605.18607), known from
secondary texts: entropy is that of the top k, not of the whole vocabulary, and weights are not clipped. Those with
weights by token frequency, and those over the last 1 000 tokens, are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hesnr_tasks.metrics.registry import TokenColumns, metric
from hesnr_tasks.stats import Scale

FORECASTING = "arXiv 2605.18607"
_TermsFunction = Callable[[TokenColumns], Any]


def _bits_per_byte(tokens: TokenColumns) -> Any:
    """Negative log-likelihood in bits over the UTF-8 bytes of the tokens: comparable across tokenizers."""
    return -tokens.logprob / math.log(2), tokens.n_bytes


metric(
    "bpb", better="down", unit="bits/byte", title="BPB ↓", scale=Scale.POSITIVE, needs=("n_bytes",),
    own_denominator=True, source="olmo-eval, BPBMetricByteAvg",
)(_bits_per_byte)  # fmt: skip
metric(
    "bpb_macro", better="down", unit="bits/byte", title="BPB, mean of trajectories ↓", scale=Scale.POSITIVE,
    needs=("n_bytes",), own_denominator=True, average="macro", source="olmo-eval, BPBMetricInstanceAvg",
    suite="proxies",
)(_bits_per_byte)  # fmt: skip


def _exact_rank(tokens: TokenColumns) -> Any:
    """Ranks, NaN where only a bound is known."""
    return np.where(tokens.rank >= 1, tokens.rank, np.nan)


def _loss(tokens: TokenColumns) -> Any:
    """Cross-entropy: -ln p."""
    return -tokens.logprob


def _top(j: int) -> _TermsFunction:
    def hit(tokens: TokenColumns) -> Any:
        unknown = (tokens.rank < 0) & (-tokens.rank < j)
        return np.where(unknown, np.nan, (tokens.rank >= 1) & (tokens.rank <= j))

    hit.__doc__ = f"Share of tokens with rank at most {j}."
    return hit


def _rank(tokens: TokenColumns) -> Any:
    """Rank of the target, 1 = most likely."""
    return _exact_rank(tokens)


def _reciprocal_rank(tokens: TokenColumns) -> Any:
    """1 / rank."""
    return 1 / _exact_rank(tokens)


def _best(tokens: TokenColumns) -> Any:
    """Probability of the most likely token: never below the target's own, which float32 may round higher."""
    assert tokens.topk_logprobs is not None
    return np.maximum(np.exp(tokens.topk_logprobs[:, 0].astype(np.float64)), np.exp(tokens.logprob))


def _margin(tokens: TokenColumns) -> Any:
    """Probability of the most likely token minus that of the target."""
    return _best(tokens) - np.exp(tokens.logprob)


def _wrong_confidence(tokens: TokenColumns) -> Any:
    """Probability of the most likely token where it is not the target, else 0."""
    return np.where(tokens.rank == 1, 0.0, _best(tokens))


def _entropy(tokens: TokenColumns) -> Any:
    """H_topk."""
    return tokens.entropy


def _confidence(tokens: TokenColumns) -> Any:
    """Mean over the k candidates of -ln p."""
    assert tokens.topk_logprobs is not None
    logs = tokens.topk_logprobs.astype(np.float64)
    return -np.where(np.isfinite(logs).all(axis=1), logs.mean(axis=1), np.nan)


def _relative_rank(tokens: TokenColumns) -> Any:
    """2^(f(r) - f(E)), f(x) = 1 / log2(x + 1), E the least possible expected rank given the k candidates."""
    assert tokens.topk_logprobs is not None
    p = np.exp(tokens.topk_logprobs.astype(np.float64))
    k = p.shape[1]
    expected = p @ np.arange(1, k + 1) + (k + 1) * np.clip(1 - p.sum(axis=1), 0, None)
    return 2 ** (1 / np.log2(_exact_rank(tokens) + 1) - 1 / np.log2(expected + 1))


# name: (terms, better, title, scale, needs, source)
_STATISTICS: dict[str, tuple[_TermsFunction, str, str, Scale, tuple[str, ...], str]] = {
    "loss": (_loss, "down", "cross-entropy", Scale.POSITIVE, (), FORECASTING),
    "top1": (_top(1), "up", "Top-1", Scale.SHARE, (), FORECASTING),
    "top3": (_top(3), "up", "Top-3", Scale.SHARE, (), FORECASTING),
    "rank": (_rank, "down", "rank", Scale.POSITIVE, (), FORECASTING),
    "reciprocal_rank": (_reciprocal_rank, "up", "1/rank", Scale.SHARE, (), FORECASTING),
    "margin": (_margin, "down", "margin", Scale.SHARE, ("topk_logprobs",), FORECASTING),
    "wrong_confidence": (_wrong_confidence, "down", "wrong confidence", Scale.SHARE, ("topk_logprobs",), FORECASTING),
    "uncertainty": (_entropy, "down", "H_topk", Scale.POSITIVE, (), FORECASTING),
    "confidence": (_confidence, "up", "DeepConf", Scale.POSITIVE, ("topk_logprobs",), "arXiv 2508.15260"),
    "relative_rank": (_relative_rank, "up", "relative rank", Scale.POSITIVE, ("topk_logprobs",), "arXiv 2602.01745"),
}
_WEIGHTS: dict[str, tuple[_TermsFunction, str]] = {
    "p": (lambda tokens: np.exp(tokens.logprob), "p"),
    "1mp": (lambda tokens: -np.expm1(tokens.logprob), "1 - p"),
    "h": (lambda tokens: tokens.entropy, "H"),
}


def _weighted(terms: _TermsFunction, weight: _TermsFunction, symbol: str) -> _TermsFunction:
    def weighted(tokens: TokenColumns) -> Any:
        weights = weight(tokens)
        return weights * terms(tokens), weights

    weighted.__doc__ = f"{(terms.__doc__ or '').rstrip('.')}; mean with weights {symbol}."
    return weighted


for _name, (_terms, _better, _title, _scale, _needs, _source) in _STATISTICS.items():
    _arrow = "↑" if _better == "up" else "↓"
    if _name != "top1":  # it is top1_acc of the core
        metric(
            _name, better=_better, title=f"{_title} {_arrow}", scale=_scale, needs=_needs, source=_source,
            suite="proxies",
        )(_terms)  # fmt: skip
    if _source == FORECASTING:
        for _key, (_weight, _symbol) in _WEIGHTS.items():
            metric(
                f"{_name}_w_{_key}", better=_better, title=f"{_title}, w = {_symbol} {_arrow}", scale=_scale,
                needs=_needs, source=_source, own_denominator=True, suite="proxies",
            )(_weighted(_terms, _weight, _symbol))  # fmt: skip
