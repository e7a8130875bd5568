"""The metrics: of the paper, further published proxies, and those of several score folders of the same texts.

The paper is Wang et al., "HE-SNR", arXiv 2601.20255. M: the tokens that count. 𝓗, the decisions: tokens of M with
H_topk > ε and the target among the k candidates.

Most proxies are of Patel et al., "Forecasting Downstream Performance of LLMs With Proxy Metrics" (arXiv 2605.18607),
known from secondary texts: the exact form of wrong confidence, the clipping of weights and the corpus of token
frequencies are not verified. Here entropy as a weight is that of the top k, and frequencies are those of the texts that
were scored.

`hesnr_tasks.analysis.compare` fills the columns that metrics of several folders need from those of `hesnr analyze
--against`; one folder alone never has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.metrics.registry import LEAST_ENTROPY, TokenColumns, metric
from hesnr_tasks.stats import Scale
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import kind_code

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


# --- statistics of teacher-forced tokens that predict downstream performance ------------------------------------------

FORECASTING = "arXiv 2605.18607"
_TermsFunction = Callable[[TokenColumns], Any]


def _bits_per_byte(tokens: TokenColumns) -> Any:
    """Negative log-likelihood in bits over the UTF-8 bytes of the tokens: comparable across tokenizers."""
    return -tokens.logprob / math.log(2), tokens.n_bytes


metric(
    "bpb", better="down", unit="bits/byte", title="BPB ↓", scale=Scale.POSITIVE, needs=("n_bytes",),
    own_denominator=True, across_tokenizers=True, source="olmo-eval, BPBMetricByteAvg",
)(_bits_per_byte)  # fmt: skip
metric(
    "bpb_macro", better="down", unit="bits/byte", title="BPB, mean of trajectories ↓", scale=Scale.POSITIVE,
    needs=("n_bytes",), own_denominator=True, average="macro", across_tokenizers=True,
    source="olmo-eval, BPBMetricInstanceAvg", suite="proxies",
)(_bits_per_byte)  # fmt: skip


def _loss(tokens: TokenColumns) -> Any:
    """Cross-entropy: -ln p."""
    return -tokens.logprob


def _rank(tokens: TokenColumns) -> Any:
    """Rank of the target, 1 = most likely."""
    return np.where(tokens.rank >= 1, tokens.rank, np.nan)  # where only a bound is known, NaN


def _reciprocal_rank(tokens: TokenColumns) -> Any:
    """1 / rank."""
    return 1 / _rank(tokens)


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


def _entropy_term(tokens: TokenColumns) -> Any:
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
    return 2 ** (1 / np.log2(_rank(tokens) + 1) - 1 / np.log2(expected + 1))


# name: (terms, better, title, scale, needs, source)
_STATISTICS: dict[str, tuple[_TermsFunction, str, str, Scale, tuple[str, ...], str]] = {
    "loss": (_loss, "down", "cross-entropy", Scale.POSITIVE, (), FORECASTING),
    "top1": (_top(1), "up", "Top-1", Scale.SHARE, (), FORECASTING),
    "top3": (_top(3), "up", "Top-3", Scale.SHARE, (), FORECASTING),
    "rank": (_rank, "down", "rank", Scale.POSITIVE, (), FORECASTING),
    "reciprocal_rank": (_reciprocal_rank, "up", "1/rank", Scale.SHARE, (), FORECASTING),
    "margin": (_margin, "down", "margin", Scale.SHARE, ("topk_logprobs",), FORECASTING),
    "wrong_confidence": (_wrong_confidence, "down", "wrong confidence", Scale.SHARE, ("topk_logprobs",), FORECASTING),
    "uncertainty": (_entropy_term, "down", "H_topk", Scale.POSITIVE, (), FORECASTING),
    "confidence": (_confidence, "up", "DeepConf", Scale.POSITIVE, ("topk_logprobs",), "arXiv 2508.15260"),
    "relative_rank": (_relative_rank, "up", "relative rank", Scale.POSITIVE, ("topk_logprobs",), "arXiv 2602.01745"),
}
_WEIGHTS: dict[str, tuple[_TermsFunction, str, tuple[str, ...]]] = {
    "p": (lambda tokens: np.exp(tokens.logprob), "p", ()),
    "1mp": (lambda tokens: -np.expm1(tokens.logprob), "1 - p", ()),
    "h": (lambda tokens: tokens.entropy, "H", ()),
    "ih": (lambda tokens: 1 / np.maximum(tokens.entropy, LEAST_ENTROPY), "1 / max(H, 0.01)", ()),
    "f": (lambda tokens: tokens.frequency, "f, occurrences in the texts of the run", ("frequency",)),
    "if": (
        lambda tokens: 1 / np.asarray(tokens.frequency),
        "1 / f, f = occurrences in the texts of the run",
        ("frequency",),
    ),
}
RECENT = 1000  # tokens of a trajectory


def _weighted(terms: _TermsFunction, weight: _TermsFunction, symbol: str) -> _TermsFunction:
    def weighted(tokens: TokenColumns) -> Any:
        weights = weight(tokens)
        return weights * terms(tokens), weights

    weighted.__doc__ = f"{(terms.__doc__ or '').rstrip('.')}; mean with weights {symbol}."
    return weighted


def _recent(terms: _TermsFunction) -> _TermsFunction:
    def recent(tokens: TokenColumns) -> Any:
        last = _from_the_end(tokens) < RECENT
        return np.where(last, terms(tokens), 0.0), last

    recent.__doc__ = f"{(terms.__doc__ or '').rstrip('.')}; over the last {RECENT:,} tokens that count."
    return recent


def _starts(tokens: TokenColumns) -> npt.NDArray[np.int64]:
    """Where each trajectory begins."""
    assert tokens.trajectory is not None
    return np.flatnonzero(np.diff(tokens.trajectory, prepend=-1))


def _from_the_end(tokens: TokenColumns) -> npt.NDArray[np.int64]:
    """How many tokens of the same trajectory follow each."""
    starts, n = _starts(tokens), len(tokens)
    ends = np.append(starts, n)[1:]
    return np.repeat(ends, ends - starts) - 1 - np.arange(n)


for _name, (_terms, _better, _title, _scale, _needs, _source) in _STATISTICS.items():
    _arrow = "↑" if _better == "up" else "↓"
    _common: dict[str, Any] = {"better": _better, "scale": _scale, "source": _source, "suite": "proxies"}
    if _name != "top1":  # it is top1_acc of the core
        metric(_name, title=f"{_title} {_arrow}", needs=_needs, **_common)(_terms)
    if _source == FORECASTING:
        for _key, (_weight, _symbol, _also) in _WEIGHTS.items():
            metric(
                f"{_name}_w_{_key}", title=f"{_title}, w = {_symbol.split(',')[0]} {_arrow}", needs=(*_needs, *_also),
                own_denominator=True, **_common,
            )(_weighted(_terms, _weight, _symbol))  # fmt: skip
        metric(
            f"{_name}_last1000", title=f"{_title}, last {RECENT} {_arrow}", needs=(*_needs, "trajectory"),
            own_denominator=True, average="macro", **_common,
        )(_recent(_terms))  # fmt: skip


# --- of the whole vocabulary ------------------------------------------------------------------------------------------


@metric(
    "full_entropy", better="down", unit="nats", title="H ↓", scale=Scale.POSITIVE, needs=("full_entropy",),
    source=FORECASTING, suite="proxies",
)  # fmt: skip
def _full_entropy(tokens: TokenColumns) -> Any:
    """Entropy over the whole vocabulary (the paper divides by ln V, the same for all checkpoints of a tokenizer)."""
    return tokens.full_entropy


@metric(
    "relative_rank_full", better="up", title="relative rank, whole vocabulary ↑", scale=Scale.POSITIVE,
    needs=("expected_rank",), source="arXiv 2602.01745", suite="proxies",
)  # fmt: skip
def _relative_rank_full(tokens: TokenColumns) -> Any:
    """2^(f(r) - f(E)), f(x) = 1 / log2(x + 1), E the expected rank."""
    assert tokens.expected_rank is not None
    return 2 ** (1 / np.log2(_rank(tokens) + 1) - 1 / np.log2(np.maximum(tokens.expected_rank, 1) + 1))


# --- of whole trajectories --------------------------------------------------------------------------------------------

FORKING = 0.2  # share of tokens
_GROUP = 2048  # tokens
_Values = Callable[[npt.NDArray[np.float64]], float]


def _forking(tokens: TokenColumns) -> npt.NDArray[np.bool_]:
    """The 20 % of each trajectory's tokens with the highest H_topk, and those as high as the least of them."""
    starts = _starts(tokens)
    parts = np.split(tokens.entropy, starts[1:]) if len(starts) else []
    return np.concatenate([part >= np.quantile(part, 1 - FORKING) for part in parts] or [np.zeros(0, dtype=bool)])


def _over_forking(terms: _TermsFunction, definition: str) -> _TermsFunction:
    def forking(tokens: TokenColumns) -> Any:
        chosen = _forking(tokens)
        return np.where(chosen, terms(tokens), 0.0), chosen

    forking.__doc__ = f"{definition} of the 20 % of a trajectory's tokens with the highest H_topk."
    return forking


for _name, _terms, _better, _title, _scale, _definition in (
    ("ppl_forking", _loss, "down", "PPL, forking ↓", Scale.EXP, "Perplexity"),
    ("top1_forking", _top(1), "up", "Top-1, forking ↑", Scale.SHARE, "Share with rank 1"),
):
    metric(
        _name, better=_better, title=_title, scale=_scale, needs=("trajectory",), own_denominator=True,
        source="arXiv 2506.01939; TRL, top_entropy_quantile", suite="proxies",
    )(_over_forking(_terms, _definition))  # fmt: skip


def _lowest_groups(confidence: npt.NDArray[np.float64]) -> float:
    groups = np.sort(_groups(confidence))
    return float(groups[: max(1, len(groups) // 10)].mean())


def _groups(confidence: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of all windows of 2 048 tokens, or of all tokens where there are fewer."""
    size = min(_GROUP, len(confidence))
    sums = np.cumsum(np.concatenate([[0.0], confidence]))
    return (sums[size:] - sums[:-size]) / size


def _of_trajectories(value: _Values, definition: str) -> _TermsFunction:
    """One number a trajectory, which stands at its first token."""

    def terms(tokens: TokenColumns) -> Any:
        starts, first = _starts(tokens), np.zeros(len(tokens))
        first[starts] = 1.0
        numbers = np.zeros(len(tokens))
        confidence = _confidence(tokens)
        if len(starts):
            numbers[starts] = [value(part) for part in np.split(confidence, starts[1:])]
        return numbers, first

    terms.__doc__ = definition
    return terms


for _name, _value, _title, _definition in (
    ("confidence_least", lambda c: float(_groups(c).min()), "least", "the window of 2,048 tokens that is lowest in it"),
    ("confidence_low", _lowest_groups, "lowest tenth", "the tenth of the windows of 2,048 tokens that is lowest in it"),
    ("confidence_tail", lambda c: float(c[-_GROUP:].mean()), "tail", "the last 2,048 tokens"),
):
    metric(
        _name, better="up", title=f"DeepConf, {_title} ↑", scale=Scale.POSITIVE, own_denominator=True,
        needs=("topk_logprobs", "trajectory"), source="arXiv 2508.15260", average="macro", suite="proxies",
    )(_of_trajectories(_value, f"Mean confidence of {_definition}."))  # fmt: skip


@metric(
    "exact_action", better="up", title="exact actions ↑", scale=Scale.SHARE, needs=("turn", "trajectory"),
    own_denominator=True, source="after NeMo AutoModel, tool_call/accuracy", suite="proxies",
)  # fmt: skip
def _exact_action(tokens: TokenColumns) -> Any:
    """Share of turns of which every token that counts is the most likely one."""
    assert tokens.turn is not None
    begins = np.diff(tokens.turn, prepend=-1) != 0
    begins[_starts(tokens)] = True
    starts = np.flatnonzero(begins)
    exact = np.zeros(len(tokens))
    if len(starts):
        exact[starts] = np.logical_and.reduceat(tokens.rank == 1, starts)
    return exact, begins


# --- compressed states ------------------------------------------------------------------------------------------------

_NEAR = 0.1  # nats
_CANDIDATES = 10


def state_order(topk_logprobs: npt.NDArray[np.floating], k: int, distance: float = 0.2) -> npt.NDArray[np.int64]:
    """Between how many equally likely continuations each token hesitates; shape (n,), 0: between no such number.

    A token is in a state of order j when its k candidates, renormalised, lie within total variation `distance` of the
    uniform distribution on the j most likely (the nearest j). An entropy near ln j alone does not say so:
    [0.75, 9 × 0.028] has H = 1.11, near ln 3.

    Args:
        topk_logprobs: shape (n, >= k), descending.
        k: candidates.
        distance: in [0, 1].
    """
    logs = np.asarray(topk_logprobs[:, :k], dtype=np.float64)
    p = np.exp(logs - logs.max(axis=1, keepdims=True, initial=-np.inf)) if len(logs) else logs
    p /= p.sum(axis=1, keepdims=True)
    uniform = np.tril(np.ones((k, k))) / np.arange(1, k + 1)[:, None]
    distances = np.stack([np.abs(p - row).sum(axis=1) / 2 for row in uniform], axis=1)
    nearest = distances.argmin(axis=1)
    return np.where(distances.min(axis=1, initial=np.inf) <= distance, nearest + 1, 0)


def _near(order: int) -> _TermsFunction:
    def near(tokens: TokenColumns) -> Any:
        return np.abs(tokens.entropy - math.log(order)) <= _NEAR

    near.__doc__ = f"Share of tokens with H_topk within {_NEAR} nats of ln {order}."
    return near


def _in_state(order: int) -> _TermsFunction:
    def in_state(tokens: TokenColumns) -> Any:
        assert tokens.topk_logprobs is not None
        return state_order(tokens.topk_logprobs, min(_CANDIDATES, tokens.topk_logprobs.shape[1])) == order

    in_state.__doc__ = f"""Share of tokens that hesitate between {order} equally likely continuations.

    The ten most likely candidates, renormalised, lie within total variation 0.2 of uniform on the first {order}, and no
    nearer to uniform on another number. `near_ln{order}` also counts other shapes of the same entropy. Compare the
    two checkpoints of a "shift to ln 3" with `hesnr compare A B --metrics near_ln3 state_3`.
    """
    return in_state


for _order in (2, 3, 4):
    metric(
        f"near_ln{_order}", title=f"near ln {_order}", scale=Scale.SHARE, source="arXiv 2601.20255, Eq. 8",
        suite="proxies",
    )(_near(_order))  # fmt: skip
    metric(
        f"state_{_order}", title=f"{_order}-way states", scale=Scale.SHARE, needs=("topk_logprobs",),
        source="after arXiv 2601.20255, Eq. 8", suite="proxies",
    )(_in_state(_order))  # fmt: skip


# --- a model of the world ---------------------------------------------------------------------------------------------

for _name, _kind, _title in (
    ("world_ppl", Kind.OBSERVATION, "PPL of observations"),
    ("action_ppl", Kind.ACTION, "PPL of actions"),
):

    def _of_kind(tokens: TokenColumns, bit: int = 1 << kind_code(_kind)) -> Any:
        assert tokens.kinds is not None
        chosen = (tokens.kinds & bit) != 0
        return np.where(chosen, -tokens.logprob, 0.0), chosen

    _of_kind.__doc__ = f"Perplexity of the {_kind.value} tokens among those that count, given everything before."
    metric(
        _name, better="down", title=f"{_title} ↓", scale=Scale.EXP, needs=("kinds",), own_denominator=True,
        source="after Marin, issue 4963", suite="world",
    )(_of_kind)  # fmt: skip


# --- several score folders of the same texts --------------------------------------------------------------------------

LONGPPL = "arXiv 2410.23771; PKU-ML/LongPPL"
CONTEXT = "EssentialAI LongPPL-eai, context ladder"
_FIXED = "after arXiv 2601.20255"
_ONE_WINDOW, _FOUR_WINDOWS = 1.0, 4.0  # windows of context that the short pass hides


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
    ("near", 0.0, _ONE_WINDOW, "at most one window"),
    ("mid", _ONE_WINDOW, _FOUR_WINDOWS, "more than one and at most four windows"),
    ("far", _FOUR_WINDOWS, np.inf, "more than four windows"),
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
    weights, starts = np.zeros(len(tokens)), _starts(tokens)
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
