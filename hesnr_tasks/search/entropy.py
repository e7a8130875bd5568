"""How undecided an agent is at a step: entropies over its actions, in nats.

Three sources, from what costs most to what costs nothing:

- *votes*: n continuations were drawn and their action keys counted (`vote_entropy`). Works with every server. n draws
  allow few values: four give 0, 0.562, 0.693, 1.040 or 1.386 and nothing between.
- *log-probabilities* at the decision tokens of one draw (`decision_entropy`), from the k most likely tokens that a
  server or a score file gives; what the missing tail can add at most and at least: `entropy_bounds`.
- *change* of either against earlier steps (`relative`): entropy is high anywhere after an observation, so ARPO (arXiv
  2507.19849) looks at the rise over the first step, not at the level.

EGSS (arXiv 2602.05242, Eq. 1) is -sum P(a | s) ln P(a | s) over actions; where P comes from is not public. The vote
estimator is its plug-in; the others are cheaper stand-ins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SearchError, SettingsError, nearest
from hesnr_tasks.metrics import topk_entropy

__all__ = [
    "BASELINES",
    "COMBINE",
    "ESTIMATORS",
    "Bounds",
    "combine",
    "decision_entropy",
    "disagreement",
    "entropy_bounds",
    "miller_madow",
    "normalised",
    "plug_in",
    "relative",
    "shares",
    "top_margin",
    "vote_entropy",
]

FloatArray = npt.NDArray[np.float64]


# --- from draws -----------------------------------------------------------------------------------------------------


def shares(keys: Iterable[Hashable]) -> dict[Hashable, float]:
    """The share of the draws that each action key has, the largest first (ties: as drawn); empty for no draws."""
    counts = Counter(keys)
    total = counts.total() if hasattr(counts, "total") else sum(counts.values())
    return {key: count / total for key, count in counts.most_common()}


def plug_in(counts: Sequence[int]) -> float:
    """Maximum-likelihood entropy of the draws that were counted: -sum (c/n) ln (c/n), in [0, ln n].

    Biased downwards, by about (actions - 1) / 2n nats. Raises `SearchError` for no draws.
    """
    n, known = _counted(counts)
    return max(0.0, math.log(n) - math.fsum(c * math.log(c) for c in known) / n)


def miller_madow(counts: Sequence[int]) -> float:
    """`plug_in` + (distinct actions - 1) / 2n (Miller 1955): less biased, may exceed ln n."""
    n, known = _counted(counts)
    return plug_in(counts) + (len(known) - 1) / (2 * n)


def normalised(counts: Sequence[int]) -> float:
    """`plug_in` / ln n, in [0, 1]: comparable between numbers of draws. Raises `SearchError` for fewer than two."""
    n, _ = _counted(counts)
    if n < 2:
        raise SearchError("a normalised vote entropy needs at least 2 draws of a step; draw more, or use plug_in")
    return plug_in(counts) / math.log(n)


def top_margin(counts: Sequence[int]) -> float:
    """Share of the most frequent action minus that of the second, in [0, 1]; 1 if all draws agree."""
    n, known = _counted(counts)
    first, second = (*sorted(known, reverse=True), 0)[:2]
    return (first - second) / n


def disagreement(counts: Sequence[int]) -> float:
    """1 - `top_margin`: the other uncertainty of CATTS (arXiv 2602.12276); not in nats."""
    return 1.0 - top_margin(counts)


ESTIMATORS = {
    "plug_in": plug_in,
    "miller_madow": miller_madow,
    "normalised": normalised,
    "disagreement": disagreement,
}


def vote_entropy(keys: Iterable[Hashable], estimator: str = "plug_in") -> float:
    """One of `ESTIMATORS` over the action keys of the draws of a step. Raises `SearchError` for no draws."""
    if estimator not in ESTIMATORS:
        raise SettingsError(
            f"estimator is {estimator!r}; it must be one of {', '.join(ESTIMATORS)}.{nearest(estimator, ESTIMATORS)}"
        )
    return ESTIMATORS[estimator](list(Counter(keys).values()))


def _counted(counts: Sequence[int]) -> tuple[int, list[int]]:
    """The number of draws, and the counts that are not 0."""
    if any(count < 0 for count in counts):
        raise ValueError(f"counts must not be negative: {list(counts)}")
    known = [int(count) for count in counts if count]
    if not known:
        raise SearchError("no draw of this step can be counted: all were malformed, or none was made")
    return sum(known), known


# --- from log-probabilities -----------------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """Of each row, shape (n,): H of the k tokens renormalised; least and greatest H of the whole vocabulary; tail mass.

    All in nats but `tail`. Lower and upper bound are attained: no better ones follow from the k probabilities.
    """

    topk: FloatArray
    low: FloatArray
    high: FloatArray
    tail: FloatArray


def entropy_bounds(topk_logprobs: npt.NDArray[np.floating], vocabulary: int | None = None) -> Bounds:
    """What the k most likely tokens tell about the entropy over the whole vocabulary.

    `topk_logprobs`: shape (n, k), falling, over the full vocabulary (not renormalised), nats. `vocabulary`: its size;
    None: unknown, then `high` is infinite where mass is missing. The tail's entropy is least when it is packed into as
    few tokens as can be, none more likely than the k-th; it is greatest when it is spread evenly.
    """
    logs = np.asarray(topk_logprobs, dtype=np.float64)
    p = np.exp(logs)
    head = -np.where(p > 0, p * np.where(p > 0, logs, 0), 0).sum(axis=1)
    tail = np.clip(1.0 - p.sum(axis=1), 0.0, 1.0)
    last = p[:, -1] if p.shape[1] else np.zeros(len(p))
    low = head + _packed(tail, last)
    if vocabulary is None:
        return Bounds(topk_entropy(logs, logs.shape[1]), low, np.where(tail > 0, np.inf, head), tail)
    left = max(0, vocabulary - logs.shape[1])
    high = head + (_x_log_x(tail) + tail * math.log(left) if left else 0.0)
    return Bounds(topk_entropy(logs, logs.shape[1]), low, np.maximum(high, low), tail)


def _packed(tail: FloatArray, largest: FloatArray) -> FloatArray:
    """-sum p ln p of mass `tail` in tokens of mass `largest` each, and one with the rest; 0 where none fits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        full = np.where(largest > 0, np.floor(tail / largest), 0.0)
    rest = np.clip(tail - full * largest, 0.0, None)
    return full * _x_log_x(largest) + _x_log_x(rest)


def _x_log_x(p: FloatArray) -> FloatArray:
    """-p ln p, 0 for p = 0."""
    return np.asarray(-np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), dtype=np.float64)


COMBINE = ("max", "mean", "first", "sum")


def combine(entropies: Sequence[float] | FloatArray, how: str = "max") -> float:
    """One number for a step from the entropies at its decision tokens, nats; NaN for none.

    `max` (default): a hesitation anywhere in the words that name the action; on the scale of one token, so that it can
    be held against the threshold of 𝓗. `sum`: by the chain rule an unbiased estimate of the entropy of the words
    together where the text is the model's own sample; grows with their number. `mean`, `first`: as named.
    """
    values = np.asarray(entropies, dtype=np.float64)
    if how not in COMBINE:
        raise SettingsError(f"combine is {how!r}; it must be one of {', '.join(COMBINE)}.{nearest(how, COMBINE)}")
    if not len(values):
        return math.nan
    if how == "first":
        return float(values[0])
    return float(values.max() if how == "max" else values.mean() if how == "mean" else values.sum())


def decision_entropy(decision: Sequence[Mapping[str, float]], how: str = "max") -> float:
    """A step's entropy from one draw's `Draw.decision`: token -> log-probability at each decision token, nats.

    H over the alternatives given, renormalised (H_topk), combined by `how`. Raises `SearchError` where the server gave
    no log-probabilities, or one that is no number: vote instead.
    """
    rows = [[value for value in token.values() if value != -math.inf] for token in decision]
    if not rows or not all(rows):
        raise SearchError("the server gave no log-probabilities at the decision tokens; gate on votes instead")
    if any(math.isnan(value) or value > 1e-3 for row in rows for value in row):
        raise SearchError(f"the server gave log-probabilities that are none: {rows}")
    entropies = [float(topk_entropy(np.array([sorted(row, reverse=True)]), len(row))[0]) for row in rows]
    return combine(entropies, how)


# --- against a baseline ---------------------------------------------------------------------------------------------

BASELINES = ("none", "mean", "initial")


def relative(value: float, history: Sequence[float], baseline: str = "mean") -> float:
    """`value` minus the mean of the steps before (`mean`), minus the first of them (`initial`), or as it is (`none`).

    The first step has nothing to be compared with: its change is 0. Nats; what is NaN in the history does not count.
    """
    if baseline not in BASELINES:
        raise SettingsError(
            f"baseline is {baseline!r}; it must be one of {', '.join(BASELINES)}.{nearest(baseline, BASELINES)}"
        )
    known = [earlier for earlier in history if not math.isnan(earlier)]
    if baseline == "none":
        return value
    if not known:
        return 0.0 if not math.isnan(value) else value
    return value - (known[0] if baseline == "initial" else math.fsum(known) / len(known))
