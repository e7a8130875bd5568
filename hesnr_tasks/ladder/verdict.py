"""What a ladder shows: which checkpoint to take, which ones tie with it, and whether HE-SNR predicts better than PPL.

All of it is arithmetic on sums per trajectory (checkpoints × trajectories) and downstream scores; no text, no model.
Checkpoints of different families or stages are never pooled unsaid.

Intervals of rank correlations: Fisher's z with the variance of Bonett and Wright (2000) for Spearman's coefficient and
of Fieller et al. (1957) for Kendall's. Their difference, of two proxies on the same checkpoints: Zou (2007), which
recovers it from both intervals and the correlation of the two coefficients. Student's t with n - 3 degrees of freedom
stands for the normal quantile; n is less by one for each family beyond the first, whose level is fitted. The errors of
proxies and scores, because trajectories and instances are finitely many, are in the values that are observed, so they
are in these intervals already; resampling them on top of the checkpoints would count them twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError, number_of
from hesnr_tasks.ladder.downstream import Outcome
from hesnr_tasks.stats import correlations

__all__ = [
    "Choice",
    "Claim",
    "Prediction",
    "Proxy",
    "SignalNoise",
    "choose",
    "claim",
    "predictions",
    "signals",
    "values",
]

FloatArray = npt.NDArray[np.float64]
FEWEST = 4  # checkpoints for a coefficient
FEW = 8  # checkpoints below which a coefficient is believed by nobody
ALPHA = 0.05
LAST = 5  # checkpoints of a run whose scatter is its noise


class Proxy(NamedTuple):
    """A metric of every checkpoint as sums per trajectory; both arrays have shape (C, T)."""

    name: str
    numerator: FloatArray
    denominator: FloatArray
    exponentiate: bool
    higher_is_better: bool
    title: str = ""  # for sentences

    @property
    def label(self) -> str:
        """What people call it."""
        return self.title or self.name


def values(proxy: Proxy, counts: npt.NDArray[Any] | None = None) -> FloatArray:
    """The pooled metric of each checkpoint, oriented so that higher is better (perplexities as minus the mean loss).

    Args:
        proxy: its sums.
        counts: how often each trajectory counts, shape (R, T); None: once.

    Returns:
        Shape (R, C), or (C,) without counts; NaN where nothing counts.
    """
    weights = np.ones((1, proxy.numerator.shape[1])) if counts is None else counts.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (weights @ proxy.numerator.T) / (weights @ proxy.denominator.T)
    ratio = np.where(np.isfinite(ratio), ratio, np.nan) * (1 if proxy.higher_is_better else -1)
    return ratio[0] if counts is None else ratio


# --- which checkpoint -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The best of a group of checkpoints by one proxy.

    Attributes:
        proxy: name of the metric.
        best: the checkpoint with the best value.
        ties: checkpoints that a paired test (Holm over the group) cannot tell from it.
        p: the Holm-corrected p-value of every other checkpoint.
        trajectories: how many were scored.
        needed: how many would tell each tie from the best, if the difference seen is the true one; None: more than
            1000 times as many, or unknown.
    """

    proxy: str
    best: str
    ties: tuple[str, ...]
    p: Mapping[str, float]
    trajectories: int
    needed: Mapping[str, int | None]

    @property
    def sentence(self) -> str:
        """The choice in words."""
        if not self.p:
            return f"{self.best} is the only checkpoint of its group: there is nothing to choose."
        if not self.ties:
            clear = f"{self.trajectories} trajectories tell it from every other"
            return f"Choose {self.best}: best by {self.proxy}, and {clear}."
        feasible = [count for name in self.ties if (count := self.needed.get(name)) is not None]
        more = (
            f"about {max(feasible):,} trajectories like these would break the tie ({self.trajectories} were scored)"
            if len(feasible) == len(self.ties)
            else "no feasible number of trajectories would break every tie: take the cheaper one, or another criterion"
        )
        others = "is a tie" if len(self.ties) == 1 else "are ties"
        return f"Choose {self.best} by {self.proxy}, but {', '.join(self.ties)} {others}: {more}."


class Paired(NamedTuple):
    """Of one pair of checkpoints: difference, its standard error, and the two-sided p-value."""

    difference: float
    stderr: float
    p: float


def choose(
    proxy: Proxy,
    names: Sequence[str],
    test: Callable[[int, int], Paired],
    holm: Callable[[Mapping[str, float]], Mapping[str, float]],
    needed: Callable[[float, float, int, float], int | None],
) -> Choice:
    """The best checkpoint by one proxy and those that tie with it.

    Args:
        proxy: sums of the group's checkpoints.
        names: their names, in the order of the sums.
        test: the paired test of two checkpoints, by their positions.
        holm: corrects p-values for their number.
        needed: trajectories that would show a difference, given it, its standard error, their number now, and the level
            of the test. Holm tests the hardest tie at 5 %, the next one at half of that, and so on.

    Raises:
        SettingsError: no checkpoint has a value.
    """
    level = values(proxy)
    if not np.isfinite(level).any():
        raise SettingsError(f"{proxy.name} is defined for none of {', '.join(names)}; nothing to choose from")
    best = int(np.nanargmax(level))
    pairs = {name: test(best, i) for i, name in enumerate(names) if i != best and np.isfinite(level[i])}
    corrected = dict(holm({name: pair.p for name, pair in pairs.items()}))
    ties = tuple(name for name in pairs if not corrected[name] <= ALPHA)  # an unknown p is a tie
    n = proxy.numerator.shape[1]
    hardest = sorted(ties, key=lambda name: -pairs[name].p if pairs[name].p >= 0 else -math.inf)  # NaN first
    levels = {name: ALPHA / rank for rank, name in enumerate(hardest, 1)}
    wanted = {name: needed(pairs[name].difference, pairs[name].stderr, n, levels[name]) for name in ties}
    feasible = {name: count if count is not None and count <= 1000 * n else None for name, count in wanted.items()}
    return Choice(proxy.label, names[best], ties, corrected, n, feasible)


# --- does it predict? -------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A value and its 95 % interval; NaN: none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether one proxy orders checkpoints as a downstream score does better than another proxy.

    Attributes:
        task: name of the downstream task.
        group: the family, or "pooled" (centred by family).
        proxy, baseline: names of the two metrics.
        checkpoints: how many there are with a downstream score.
        spearman, decision: of the proxy; `spearman_baseline`, `decision_baseline`: of the baseline.
        spearman_gain, decision_gain: differences, of the same checkpoints.
        verdict: "supported", "refuted" or "undecided".
        notes: what makes it less than it looks.
    """

    task: str
    group: str
    proxy: str
    baseline: str
    checkpoints: int
    spearman: Interval
    decision: Interval
    spearman_baseline: Interval
    decision_baseline: Interval
    spearman_gain: Interval
    decision_gain: Interval
    verdict: str
    notes: tuple[str, ...] = field(default=())

    @property
    def sentence(self) -> str:
        """The claim in words."""
        who = "" if self.group in ("", "pooled") else f" ({self.group})"
        if self.checkpoints < FEWEST:
            return (
                f"{self.task}{who}: {self.checkpoints} checkpoint{'s have' if self.checkpoints != 1 else ' has'} a "
                f"downstream score; from {FEWEST} on there is a coefficient, from {FEW} on one to be believed."
            )
        gain = self.decision_gain
        ends = "" if math.isnan(gain.low) else f" [{gain.low:+.2f}, {gain.high:+.2f}]"
        rank = self.spearman_gain
        rank_ends = "" if math.isnan(rank.low) else f" [{rank.low:+.2f}, {rank.high:+.2f}]"
        return (
            f"{self.task}{who}: this ladder {_VERBS[self.verdict]} that {self.proxy} predicts better than "
            f"{self.baseline}: rank correlation {self.spearman.value:+.2f} against {self.spearman_baseline.value:+.2f} "
            f"(difference {rank.value:+.2f}{rank_ends}), pairs ordered rightly {self.decision.value:.0%} against "
            f"{self.decision_baseline.value:.0%} ({gain.value:+.2f}{ends}), "
            f"{number_of(self.checkpoints, 'checkpoint')}."
        )


_VERBS = {"supported": "supports", "refuted": "refutes", "undecided": "leaves undecided"}


def claim(
    proxy: Proxy,
    baseline: Proxy,
    names: Sequence[str],
    families: Sequence[str],
    scores: Mapping[str, Outcome],
    task: str,
    *,
    group: str = "pooled",
) -> Claim:
    """Compare how two proxies order the checkpoints that have a downstream score.

    Args:
        proxy, baseline: sums of all checkpoints `names`, shape (C, T).
        names: checkpoints of one stage.
        families: the family of each; values are centred by family where there are several.
        scores: downstream score of each checkpoint that has one.
        task: its name.
        group: what to call these checkpoints.
    """
    where = task if group in ("", "pooled") else f"{task} ({group})"
    chosen = [i for i, name in enumerate(names) if name in scores]
    x = values(proxy), values(baseline)
    chosen = [i for i in chosen if np.isfinite(x[0][i]) and np.isfinite(x[1][i])]
    sizes = Counter(families[i] for i in chosen)
    alone = [i for i in chosen if sizes[families[i]] == 1 and len(sizes) > 1]  # centred by itself it says nothing
    chosen = [i for i in chosen if i not in alone]
    y = np.array([scores[names[i]].value for i in chosen])
    errors = np.array([scores[names[i]].stderr for i in chosen])
    family = np.unique([families[i] for i in chosen], return_inverse=True)[1] if chosen else np.array([], dtype=int)
    notes = [
        f"{where}: {names[i]} is the only checkpoint of family {families[i] or '(none)'} with a score; "
        "it is not counted"
        for i in alone
    ]
    if len(chosen) < FEWEST:
        none = Interval(math.nan)
        return Claim(
            task, group, proxy.label, baseline.label, len(chosen), none, none, none, none, none, none, "undecided",
            tuple(notes),
        )  # fmt: skip
    if len(chosen) < FEW:
        notes.append(
            f"{where}: {number_of(len(chosen), 'checkpoint')}; of fewer than {FEW}, a coefficient is weak evidence"
        )
    if np.isnan(errors).any():
        notes.append(f"{where}: {int(np.isnan(errors).sum())} scores without n or stderr count as exact")
    measured = [scores[names[i]].measured for i in chosen]
    if {*measured} != {"itself"} and not any(", " in place for place in measured):
        notes.append(
            f"{where}: each checkpoint was fine-tuned once; how far another fine-tuning would move scores is unknown"
        )
    if family.max(initial=0) > 0:
        notes.append(f"{where}: {int(family.max()) + 1} families, centred by family")
    ours, theirs = (_agreement(side[chosen], y, family) for side in x)
    between = _agreement(x[0][chosen], x[1][chosen], family)
    freedom = len(chosen) - int(family.max())
    spread = math.sqrt(float((_centred(y[None], family[None], np.unique(family)) ** 2).sum()) / (freedom - 1))
    error = float(np.sqrt(np.mean(errors**2)))  # NaN where some are unknown
    if error > spread / math.sqrt(2):  # then less than half of the variance is between checkpoints
        notes.append(
            f"{where}: the scores scatter by {spread:.3g} and their own standard error is {error:.3g}: most of "
            "their order is chance, which no metric can predict; measure more instances"
        )
    most = 1 - 6 / (freedom * (freedom**2 - 1)), 1 - 2 / (freedom * (freedom - 1))
    rank = _compared(ours[0], theirs[0], between[0], freedom, most[0], lambda r: (1 + r * r / 2) / max(freedom - 3, 1))
    # Kendall's coefficient is twice the decision accuracy less one
    ours_tau, theirs_tau, between_tau = (2 * side[1] - 1 for side in (ours, theirs, between))
    variance = 0.437 / (freedom - 4) if freedom > 4 else 0.0
    pairs = _compared(ours_tau, theirs_tau, between_tau, freedom, most[1], lambda _: variance)
    decision = [Interval(*((end + shift) / 2 for end in item)) for item, shift in zip(pairs, (1, 1, 0), strict=True)]
    gains = rank[2], decision[2]
    return Claim(
        task, group, proxy.label, baseline.label, len(chosen),
        rank[0], decision[0], rank[1], decision[1], *gains, _verdict(gains), tuple(notes),
    )  # fmt: skip


def _compared(
    ours: float, theirs: float, between: float, n: int, most: float, variance: Callable[[float], float]
) -> tuple[Interval, Interval, Interval]:
    """Two coefficients with one of their variables in common, and their difference (Zou 2007).

    Args:
        ours, theirs: coefficients of two proxies with the score.
        between: of the proxies with each other.
        n: checkpoints, less one for each family beyond the first.
        most: what a coefficient of 1 counts as: half way to the next one that so many checkpoints can have. Of few, an
            order without a fault happens by chance, and Fisher's z of 1 would make it certain.
        variance: of Fisher's z of a coefficient; not positive where n is too small.
    """
    from scipy.stats import t as student  # here: every sub-command imports this module, and scipy is slow to load

    points = Interval(ours), Interval(theirs), Interval(ours - theirs)
    if n < 4 or not min(variance(ours), variance(theirs)) > 0 or not math.isfinite(ours + theirs + between):
        return points
    quantile = float(student.ppf(0.975, n - 3))

    def interval(r: float) -> Interval:
        z, half = math.atanh(min(max(r, -most), most)), quantile * math.sqrt(variance(r))
        return Interval(r, min(math.tanh(z - half), r), max(math.tanh(z + half), r))

    (a, la, ua), (b, lb, ub) = interval(ours), interval(theirs)
    spread = (1 - a * a) * (1 - b * b)
    product = (between - a * b / 2) * (1 - a * a - b * b - between * between) + between**3
    shared = min(max(product / spread, -1.0), 1.0) if spread > 1e-12 else 0.0
    low = (a - la) ** 2 + (ub - b) ** 2 - 2 * shared * (a - la) * (ub - b)
    high = (ua - a) ** 2 + (b - lb) ** 2 - 2 * shared * (ua - a) * (b - lb)
    difference = Interval(a - b, a - b - math.sqrt(max(low, 0.0)), a - b + math.sqrt(max(high, 0.0)))
    return interval(ours), interval(theirs), difference


def _verdict(gains: Sequence[Interval]) -> str:
    """By the rank correlation; where the decision accuracy points the other way, undecided."""
    rank, decision = gains
    if rank.low > 0 and decision.value >= 0:
        return "supported"
    if rank.high < 0 and decision.value <= 0:
        return "refuted"
    return "undecided"


def _agreement(x: FloatArray, y: FloatArray, family: npt.NDArray[Any]) -> tuple[float, float]:
    """Spearman's coefficient and decision accuracy, centred and counted within families."""
    if family.max(initial=0) == 0:
        both = correlations(x, y)
        return float(both["spearman"][0]), float(both["decision"][0])
    x, y = (_centred(side[None], family[None], np.unique(family))[0] for side in (x, y))
    dx, dy = (np.sign(side[:, None] - side[None]) for side in (x, y))
    within = (family[:, None] == family[None]) & (dy != 0)
    right = float((within * (0.5 + 0.5 * dx * dy)).sum())
    return float(correlations(x, y)["spearman"][0]), right / within.sum() if within.any() else math.nan


def _centred(x: FloatArray, family: npt.NDArray[Any], labels: npt.NDArray[Any]) -> FloatArray:
    out = np.array(x, dtype=np.float64)
    for label in labels:
        inside = np.broadcast_to(family == label, x.shape)
        count = np.maximum(inside.sum(axis=1, keepdims=True), 1)
        out = np.where(inside, x - np.where(inside, x, 0).sum(axis=1, keepdims=True) / count, out)
    return out


class SignalNoise(NamedTuple):
    """How far a metric tells checkpoints apart, beside how it wobbles from one checkpoint of a run to the next.

    Attributes:
        proxy: name of the metric.
        signal: largest difference of two checkpoints, as a share of the mean.
        noise: standard deviation of the last five checkpoints of a run, as a share of their mean; the mean of runs.
        ratio: signal / noise.
        improves: share of steps from one checkpoint of a run to the next at which the metric improves.
        runs: how many there are with five checkpoints or more.
    """

    proxy: str
    signal: float
    noise: float
    ratio: float
    improves: float
    runs: int


def signals(proxies: Sequence[Proxy], runs: Sequence[Sequence[int]]) -> list[SignalNoise]:
    """Signal and noise of every metric (arXiv 2508.13144), the best ratio first; perplexities as mean losses.

    Args:
        proxies: sums of all checkpoints.
        runs: positions of the checkpoints of each training run, in the order of their steps; those of fewer than `LAST`
            have no noise.
    """
    long = [list(run) for run in runs if len(run) >= LAST]
    results = []
    for proxy in proxies:
        x = values(proxy)
        if not long or not np.isfinite(x).all():
            continue
        signal = float(np.ptp(x) / abs(x.mean()))
        noise = float(np.mean([x[run[-LAST:]].std() / abs(x[run[-LAST:]].mean()) for run in long]))
        improves = float(np.mean(np.concatenate([np.diff(x[run]) > 0 for run in long])))
        results.append(
            SignalNoise(proxy.name, signal, noise, signal / noise if noise else math.nan, improves, len(long))
        )
    return sorted(results, key=lambda row: (math.isnan(row.ratio), -float(f"{row.ratio:.12g}")))


class Prediction(NamedTuple):
    """How well one proxy predicts the downstream score of a checkpoint it was not fitted on.

    `error`: root mean squared leave-one-out error of a straight line per family; `error_of_mean`: that of the mean.
    """

    proxy: str
    checkpoints: int
    error: float
    error_of_mean: float


def predictions(
    proxies: Sequence[Proxy], names: Sequence[str], families: Sequence[str], scores: Mapping[str, Outcome]
) -> list[Prediction]:
    """Leave-one-out prediction of the downstream score by every proxy, best first (one slope, a level per family).

    A family of one checkpoint cannot be predicted and is left out.
    """
    chosen = [i for i, name in enumerate(names) if name in scores]
    sizes = {label: sum(families[i] == label for i in chosen) for label in {families[i] for i in chosen}}
    chosen = [i for i in chosen if sizes[families[i]] > 1]
    y = np.array([scores[names[i]].value for i in chosen])
    family = np.array([families[i] for i in chosen])
    results = []
    for proxy in proxies:
        x = values(proxy)[chosen] if chosen else np.array([])
        if len(chosen) < FEWEST or not np.isfinite(x).all():
            results.append(Prediction(proxy.name, len(chosen), math.nan, math.nan))
            continue
        errors, plain = [], []
        for i in range(len(chosen)):
            rest = np.arange(len(chosen)) != i
            own = rest & (family == family[i])
            dx, dy = (_centred(side[None, rest], family[None, rest], np.unique(family[rest]))[0] for side in (x, y))
            slope = float(dx @ dy / (dx @ dx)) if dx @ dx > 0 else 0.0
            errors.append(y[i] - (y[own].mean() + slope * (x[i] - x[own].mean())))
            plain.append(y[i] - y[own].mean())
        rmse, rmse_mean = (float(np.sqrt(np.mean(np.square(side)))) for side in (errors, plain))
        results.append(Prediction(proxy.name, len(chosen), rmse, rmse_mean))
    # twelve digits: proxies that order checkpoints alike stay in their order, however sums were rounded
    return sorted(results, key=lambda row: (math.isnan(row.error), float(f"{row.error:.12g}")))
