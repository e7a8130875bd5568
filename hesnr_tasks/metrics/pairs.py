"""Metrics of two or more score folders of the same texts: another context, another model beside the one that is judged.

`hesnr_tasks.analysis.pairs` fills the columns that they need from the folders of `hesnr analyze --against`; one folder
alone never has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.metrics import paper, proxies  # noqa: F401  (before these, in all tables)
from hesnr_tasks.metrics.registry import LEAST_ENTROPY, TokenColumns, metric
from hesnr_tasks.stats import Scale

LONGPPL = "arXiv 2410.23771; PKU-ML/LongPPL"
CONTEXT = "EssentialAI LongPPL-eai, context ladder"
_FIXED = "after arXiv 2601.20255"
_NEAR, _FAR = 1.0, 4.0  # windows of context that the short pass hides


# --- a short context beside the whole one -----------------------------------------------------------------------------


@metric(
    "long_ppl", better="down", title="LongPPL ↓", scale=Scale.EXP, needs=("key",), own_denominator=True,
    source=LONGPPL, suite="pairs",
)  # fmt: skip
def _long_ppl(tokens: TokenColumns) -> Any:
    """Perplexity of the key tokens: those whose loss the text beyond the window lowers by more than 2 nats, below 2.

    Which tokens are key is decided by an evaluator that read the texts twice (whole, and with `window`): another model,
    or the model itself. Characters carry it to other tokenizers: a token is key if all of its own are key tokens'.
    """
    assert tokens.key is not None
    chosen = tokens.key == 1
    return np.where(chosen, -tokens.logprob, 0.0), chosen


@metric(
    "key_share", title="key tokens", scale=Scale.SHARE, needs=("key",), own_denominator=True, source=CONTEXT,
    suite="pairs",
)  # fmt: skip
def _key_share(tokens: TokenColumns) -> Any:
    """Share of key tokens (of `long_ppl`) among those from which the window hides something."""
    assert tokens.key is not None
    return tokens.key == 1, tokens.key >= 0


def _benefit(tokens: TokenColumns, low: float = 0.0, high: float = np.inf) -> tuple[Any, Any]:
    """Loss with the window less loss with all context, of tokens from which it hides more than `low` windows."""
    assert tokens.short_logprob is not None
    assert tokens.hidden is not None
    chosen = (tokens.hidden > low) & (tokens.hidden <= high)
    return np.where(chosen, tokens.logprob - tokens.short_logprob, 0.0), chosen


_BENEFIT: dict[str, Any] = {"needs": ("short_logprob", "hidden"), "own_denominator": True, "suite": "pairs"}


@metric("context_benefit", better="up", unit="nats", title="context benefit ↑", source=CONTEXT, **_BENEFIT)
def _context_benefit(tokens: TokenColumns) -> Any:
    """Mean loss with the window less loss with all context, of the tokens from which the window hides something.

    `hesnr analyze --against` shows the median beside it (`context_benefit_median`): a few tokens can make the mean.
    """
    return _benefit(tokens)


@metric(
    "context_benefit_share", better="up", title="share with benefit ↑", scale=Scale.SHARE, source=CONTEXT, **_BENEFIT
)
def _context_benefit_share(tokens: TokenColumns) -> Any:
    """Share of the tokens from which the window hides something whose loss is lower with all context."""
    benefit, chosen = _benefit(tokens)
    return chosen & (benefit > 0), chosen


for _name, _low, _high, _where in (
    ("near", 0.0, _NEAR, "at most one window"),
    ("mid", _NEAR, _FAR, "more than one and at most four windows"),
    ("far", _FAR, np.inf, "more than four windows"),
):

    def _at_distance(tokens: TokenColumns, low: float = _low, high: float = _high) -> Any:
        return _benefit(tokens, low, high)

    _at_distance.__doc__ = f"Context benefit of the tokens from which {_where} of text is hidden."
    metric(
        f"context_benefit_{_name}", better="up", unit="nats", title=f"context benefit, {_name} ↑",
        source=CONTEXT, **_BENEFIT,
    )(_at_distance)  # fmt: skip


# --- another model beside it ------------------------------------------------------------------------------------------


@metric(
    "rbridge", better="down", unit="nats", title="rBridge ↓", scale=Scale.POSITIVE, needs=("teacher", "trajectory"),
    own_denominator=True, source="arXiv 2509.21013", suite="pairs",
)  # fmt: skip
def _rbridge(tokens: TokenColumns) -> Any:
    """Cross-entropy with a teacher's probabilities as weights, scaled to 0 … 1 within each trajectory.

    The weight of a token is the mean over its characters of the teacher's probability of the token that covers the
    character (their mean where several do), so tokenizers may differ; then minimum and maximum of the trajectory become
    0 and 1. Where all are equal, all weights are 1; a token of which the teacher has no character weighs nothing.
    """
    assert tokens.teacher is not None
    assert tokens.trajectory is not None
    weights = np.zeros(len(tokens))
    starts = np.flatnonzero(np.diff(tokens.trajectory, prepend=-1))
    for part in np.split(np.arange(len(tokens)), starts[1:]) if len(starts) else []:
        weights[part] = _scaled(tokens.teacher[part])
    return -weights * tokens.logprob, weights


def _scaled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 to 1; 0 for NaN, 1 where all are equal."""
    present = ~np.isnan(values)
    low, high = (float(f(values[present])) if present.any() else 0.0 for f in (np.min, np.max))
    scaled = (values - low) / (high - low) if high > low else np.ones(len(values))
    return np.where(present, scaled, 0.0)


@metric(
    "he_snr_fixed", better="up", unit="1/nat", title="HE-SNR, fixed 𝓗 ↑", scale=Scale.POSITIVE,
    needs=("reference_decision",), own_denominator=True, source=_FIXED, suite="pairs",
)  # fmt: skip
def _he_snr_fixed(tokens: TokenColumns) -> Any:
    """Mean of p(x_t) / max(H_topk, 0.01) over the decisions of a reference checkpoint.

    The paper's 𝓗 is chosen by the checkpoint that is judged; this one is the same for all. A checkpoint that is sure
    of such a token has H near 0, so the value has no upper bound near 1 / ε, and few tokens can make most of it.
    """
    assert tokens.reference_decision is not None
    terms = np.exp(tokens.logprob) / np.maximum(tokens.entropy, LEAST_ENTROPY)
    return np.where(tokens.reference_decision, terms, 0.0), tokens.reference_decision


@metric(
    "he_ppl_fixed", better="down", title="HE-PPL, fixed 𝓗 ↓", scale=Scale.EXP, needs=("reference_decision",),
    own_denominator=True, source=_FIXED, suite="pairs",
)  # fmt: skip
def _he_ppl_fixed(tokens: TokenColumns) -> Any:
    """Perplexity of the decisions of a reference checkpoint."""
    assert tokens.reference_decision is not None
    return np.where(tokens.reference_decision, -tokens.logprob, 0.0), tokens.reference_decision


@metric(
    "he_snr_shared", better="up", unit="1/nat", title="HE-SNR, shared 𝓗 ↑", scale=Scale.POSITIVE, over="decisions",
    needs=("reference_decision",), own_denominator=True, source=_FIXED, suite="pairs",
)  # fmt: skip
def _he_snr_shared(tokens: TokenColumns) -> Any:
    """Mean of p(x_t) / H_topk over the tokens that are decisions of this checkpoint and of a reference checkpoint."""
    assert tokens.reference_decision is not None
    return np.where(tokens.reference_decision, np.exp(tokens.logprob) / tokens.entropy, 0.0), tokens.reference_decision
