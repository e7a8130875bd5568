"""The metrics of Wang et al., "HE-SNR", arXiv 2601.20255, and counts.

M: the tokens that count. 𝓗, the decisions: tokens of M with H_topk > ε and the target among the k candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hesnr_tasks.metrics.registry import TokenColumns, metric
from hesnr_tasks.stats import Scale

_PAPER = "arXiv 2601.20255"


@metric("he_snr", better="up", source=_PAPER, title="HE-SNR ↑", over="decisions", scale=Scale.POSITIVE, unit="1/nat")
def _he_snr(tokens: TokenColumns) -> Any:
    """Mean of p(x_t) / H_topk, p over the full vocabulary."""
    return np.exp(tokens.logprob) / tokens.entropy


@metric("he_ppl", better="down", source=_PAPER, title="HE-PPL ↓", over="decisions", scale=Scale.EXP)
def _he_ppl(tokens: TokenColumns) -> Any:
    """Perplexity of the decisions."""
    return -tokens.logprob


@metric("ppl", better="down", source=_PAPER, title="PPL ↓", scale=Scale.EXP)
def _ppl(tokens: TokenColumns) -> Any:
    """Perplexity."""
    return -tokens.logprob


@metric("he_tokens", unit="tokens", source=_PAPER, title="|𝓗|", over="decisions", average="total")
def _he_tokens(tokens: TokenColumns) -> Any:
    """The number of decisions."""
    return 1.0


@metric("tokens", unit="tokens", source=_PAPER, title="|M|", average="total")
def _tokens(tokens: TokenColumns) -> Any:
    """The number of tokens that count."""
    return 1.0


def _top(j: int) -> Callable[[TokenColumns], Any]:
    def accuracy(tokens: TokenColumns) -> Any:
        # undefined where it is unknown of one token: rank -m is beyond the m most likely
        hit = (tokens.rank >= 1) & (tokens.rank <= j)
        return np.where((tokens.rank < 0) & (-tokens.rank < j), np.nan, hit)

    accuracy.__doc__ = f"Share of tokens with rank at most {j}."
    return accuracy


for _j in (1, 2, 5, 10):
    metric(f"top{_j}_acc", better="up", source=_PAPER, title=f"Top-{_j} ↑", scale=Scale.SHARE)(_top(_j))


@metric("entropy", unit="nats", source=_PAPER, title="entropy", scale=Scale.POSITIVE)
def _entropy(tokens: TokenColumns) -> Any:
    """Mean of H_topk."""
    return tokens.entropy


@metric("density", source=_PAPER, title="|𝓗|/|M|", over=("decisions", "tokens"), scale=Scale.SHARE)
def _density(tokens: TokenColumns) -> Any:
    """Share of tokens that are decisions."""
    return 1.0
