"""What a ladder shows: which checkpoint to take, which ones tie with it, and whether HE-SNR predicts better than PPL.

All of it is arithmetic on sums per trajectory (checkpoints × trajectories) and downstream scores; no text, no model.
Checkpoints of different families or stages are never pooled unsaid: choices and claims say what they span.

Intervals of rank correlations: Fisher's z with the variance of Bonett and Wright (2000) for Spearman's coefficient and
of Fieller et al. (1957) for Kendall's. Their difference, of two proxies on the same checkpoints: Zou (2007), which
recovers it from both intervals and the correlation of the two coefficients. Student's t with n - 3 degrees of freedom
stands for the normal quantile; n is less by one for each family beyond the first, whose level is fitted. The errors of
proxies and scores, because trajectories and instances are finitely many, are in the values that are observed, so they
are in these intervals already. The bootstrap over checkpoints, trajectories and instances is given beside and decides
nothing: it covers too little of six checkpoints, and of opposite metrics of any number (scripts/simulate_claims.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError, number_of
from hesnr_tasks.ladder.downstream import Outcome
from hesnr_tasks.ladder.schema import Checkpoint
from hesnr_tasks.stats import SEED, bootstrap_sums, correlations, holm, paired, trajectories_needed

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


def values(proxy: Proxy) -> FloatArray:
    """The pooled metric of each checkpoint, shape (C,), oriented so that higher is better; NaN where nothing counts.

    Perplexities are minus the mean loss.
    """
    return _oriented(proxy, proxy.numerator.sum(axis=1), proxy.denominator.sum(axis=1))


def _oriented(proxy: Proxy, numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator / denominator
    return np.where(np.isfinite(ratio), ratio, np.nan) * (1 if proxy.higher_is_better else -1)


# --- which checkpoint -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The best of a group of checkpoints by one proxy.

    Attributes:
        group: what these checkpoints are called.
        proxy: name of the metric.
        best: the checkpoint with the best value.
        ties: checkpoints that a paired test (Holm over the group) cannot tell from it.
        p_holm: the Holm-corrected p-value of every other checkpoint.
        trajectories: how many were scored.
        needed: how many would tell each tie from the best, if the difference seen is the true one; None: more than
            1000 times as many, or unknown.
        stages: how many checkpoints with a value each stage has.
    """

    group: str
    proxy: str
    best: str
    ties: tuple[str, ...]
    p_holm: Mapping[str, float]
    trajectories: int
    needed: Mapping[str, int | None]
    stages: Mapping[str, int]

    @property
    def sentence(self) -> str:
        """The choice in words."""
        if not self.p_holm:
            return f"{self.best} is the only checkpoint of its group: there is nothing to choose."
        best = f"{self.best} of {spanned(self.stages)}" if any(self.stages) else self.best
        if not self.ties:
            return (
                f"Choose {best}: best by {self.proxy}, and {self.trajectories} trajectories tell it from every other."
            )
        feasible = [count for name in self.ties if (count := self.needed.get(name)) is not None]
        more = (
            f"about {max(feasible):,} trajectories like these would break the tie ({self.trajectories} were scored)"
            if len(feasible) == len(self.ties)
            else "no feasible number of trajectories would break every tie: take the cheaper one, or another criterion"
        )
        others = "is a tie" if len(self.ties) == 1 else "are ties"
        return f"Choose {best} by {self.proxy}, but {', '.join(self.ties)} {others}: {more}."

    @property
    def brief(self) -> str:
        """The choice in a few words."""
        ties = f", tied with {', '.join(self.ties)}" if self.ties else ""
        return f"{self.group} ({number_of(sum(self.stages.values()), 'checkpoint')}) {self.best}{ties}"


def stages_of(checkpoints: Iterable[Checkpoint]) -> dict[str, int]:
    """How many checkpoints of each stage there are; "" where it is unknown."""
    return dict(Counter(c.stage or "sft" * c.tuned for c in checkpoints))


def spanned(checkpoints: Iterable[Checkpoint] | Mapping[str, int]) -> str:
    """How many checkpoints there are, and of which stages, in words."""
    stages = checkpoints if isinstance(checkpoints, Mapping) else stages_of(checkpoints)
    if len(stages) == 1:
        ((stage, count),) = stages.items()
        return number_of(count, f"{stage} checkpoint".strip())
    each = ", ".join(f"{count} {stage or 'of no stage'}" for stage, count in stages.items())
    return number_of(sum(stages.values()), "checkpoint") + (f" ({each})" if each else "")


def choose(proxy: Proxy, checkpoints: Sequence[Checkpoint], group: str = "") -> Choice:
    """The best checkpoint by a proxy, and which ones a paired test over trajectories cannot tell from it.

    Args:
        proxy: sums of all checkpoints; one without a value cannot be the best and ties with none.
        checkpoints: whose sums they are, on the same trajectories in the same order.
        group: what they are called.

    Raises:
        SettingsError: no checkpoint has a value.
    """
    level, names = values(proxy), [checkpoint.name for checkpoint in checkpoints]
    if not np.isfinite(level).any():
        raise SettingsError(f"{proxy.name} is defined for none of {', '.join(names)}; nothing to choose from")
    best = int(np.nanargmax(level))
    sides = list(zip(proxy.numerator, proxy.denominator, strict=True))
    pairs = {
        name: paired(sides[best], sides[i], proxy.exponentiate, bootstrap=False)
        for i, name in enumerate(names)
        if i != best and np.isfinite(level[i])
    }
    p_holm = holm({name: pair.p for name, pair in pairs.items()})
    ties = tuple(name for name in pairs if not p_holm[name] <= ALPHA)  # an unknown p is a tie
    n = proxy.numerator.shape[1]
    hardest = sorted(ties, key=lambda name: -pairs[name].p if pairs[name].p >= 0 else -math.inf)  # NaN first
    needed: dict[str, int | None] = {}
    for rank, name in enumerate(hardest, 1):  # the one with the largest p is tested last, at 5 %
        count = trajectories_needed(pairs[name].value, pairs[name].stderr, n, alpha=ALPHA / rank)
        needed[name] = count if count is not None and count <= 1000 * n else None
    needed = {name: needed[name] for name in ties}
    valued = [checkpoint for checkpoint, value in zip(checkpoints, level, strict=True) if np.isfinite(value)]
    return Choice(group, proxy.label, names[best], ties, p_holm, n, needed, stages_of(valued))


# --- does it predict? -------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A value and its 95 % interval; NaN: none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def text(self) -> str:
        """Value and interval with their signs, as differences have them."""
        return f"{self.value:+.2f}" + ("" if math.isnan(self.low) else f" [{self.low:+.2f}, {self.high:+.2f}]")


_NO_INTERVAL = Interval(math.nan)


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether one proxy orders checkpoints as a downstream score does better than another proxy.

    Attributes:
        task: name of the downstream task.
        group: the family, the stage, or "pooled" (centred by family).
        part: "family" or "stage" where it is of a part of the checkpoints of another claim; else "".
        proxy, baseline: names of the two metrics.
        stages: how many checkpoints with a downstream score each stage has.
        spearman, decision: of the proxy; `spearman_baseline`, `decision_baseline`: of the baseline.
        spearman_gain, decision_gain: differences, of the same checkpoints.
        bootstrap: of the difference of rank correlations over trajectories, checkpoints and instances; decides nothing.
        p: two-sided, of the difference of rank correlations; `p_holm`: corrected for the claims of one verdict.
        verdict: "supported", "refuted" or "undecided".
        notes: what makes it less than it looks.
    """

    task: str
    group: str
    part: str
    proxy: str
    baseline: str
    stages: Mapping[str, int]
    spearman: Interval = _NO_INTERVAL
    decision: Interval = _NO_INTERVAL
    spearman_baseline: Interval = _NO_INTERVAL
    decision_baseline: Interval = _NO_INTERVAL
    spearman_gain: Interval = _NO_INTERVAL
    decision_gain: Interval = _NO_INTERVAL
    bootstrap: Interval = _NO_INTERVAL
    p: float = math.nan
    p_holm: float = math.nan
    verdict: str = "undecided"
    notes: tuple[str, ...] = field(default=())

    @property
    def checkpoints(self) -> int:
        """How many there are with a downstream score."""
        return sum(self.stages.values())

    @property
    def where(self) -> str:
        """Task and group, for sentences."""
        return self.task if self.group == "pooled" else f"{self.task} ({self.group})"

    @property
    def sentence(self) -> str:
        """The claim in words."""
        n = number_of(self.checkpoints, "checkpoint")
        if self.checkpoints >= FEWEST and math.isnan(self.spearman_gain.value):
            return f"{self.where}: the scores or values of {spanned(self.stages)} are all alike: there is no order."
        if self.checkpoints < FEWEST:
            return (
                f"{self.where}: {n} {'has' if self.checkpoints == 1 else 'have'} a downstream score; from {FEWEST} on "
                f"there is a coefficient, from {FEW} on one to be believed."
            )
        return (
            f"{self.where}: this ladder {_VERBS[self.verdict]} that {self.proxy} predicts better than "
            f"{self.baseline}: rank correlation {self.spearman.value:+.2f} against {self.spearman_baseline.value:+.2f} "
            f"(difference {self.spearman_gain.text}), pairs ordered rightly {self.decision.value:.0%} against "
            f"{self.decision_baseline.value:.0%} ({self.decision_gain.text}), {spanned(self.stages)}."
        )

    @property
    def brief(self) -> str:
        """A part in a few words."""
        rest = f"{self.spearman_gain.text}, {self.verdict}"
        if math.isnan(self.spearman_gain.value):
            rest = "too few" if self.checkpoints < FEWEST else "no order"
        return f"{self.group} ({number_of(self.checkpoints, 'checkpoint')}) {rest}"


_VERBS = {"supported": "supports", "refuted": "refutes", "undecided": "leaves undecided"}


def claim(
    proxy: Proxy,
    baseline: Proxy,
    checkpoints: Sequence[Checkpoint],
    scores: Mapping[str, Outcome],
    task: str,
    *,
    group: str = "pooled",
    part: str = "",
    resamples: int = 1000,
    seed: int = SEED,
) -> Claim:
    """Compare how two proxies order the checkpoints that have a downstream score.

    Args:
        proxy, baseline: sums of all `checkpoints`, shape (C, T).
        checkpoints: of one group; values are centred by family where there are several.
        scores: downstream score of each checkpoint that has one.
        task: its name.
        group, part: what to call these checkpoints.
        resamples, seed: of the bootstrap; 0: none.
    """
    x = np.stack([values(proxy), values(baseline)])
    chosen = [i for i, c in enumerate(checkpoints) if c.name in scores and np.isfinite(x[:, i]).all()]
    sizes = Counter(checkpoints[i].family for i in chosen)
    alone = [i for i in chosen if sizes[checkpoints[i].family] == 1 and len(sizes) > 1]
    notes = [  # centred by itself it says nothing
        f"{checkpoints[i].name} is the only checkpoint of family {checkpoints[i].family or '(none)'} with a score; "
        "it is not counted"
        for i in alone
    ]
    chosen = [i for i in chosen if i not in alone]
    counted = [checkpoints[i] for i in chosen]
    empty = Claim(task, group, part, proxy.label, baseline.label, stages_of(counted), notes=tuple(notes))
    if len(chosen) < FEWEST:
        return empty
    judged = [scores[c.name] for c in counted]
    y, errors = (np.array([getattr(score, name) for score in judged]) for name in ("value", "stderr"))
    family = np.unique([c.family for c in counted], return_inverse=True)[1]
    if len(chosen) < FEW:
        notes.append(f"{number_of(len(chosen), 'checkpoint')}; of fewer than {FEW}, a coefficient is weak evidence")
    if np.isnan(errors).any():
        notes.append(f"{int(np.isnan(errors).sum())} scores without n or stderr count as exact")
    measured = {score.measured for score in judged}
    if measured != {"itself"} and not any(", " in place for place in measured):
        notes.append("each checkpoint was fine-tuned once; how far another fine-tuning would move scores is unknown")
    if family.max() > 0:
        notes.append(f"{int(family.max()) + 1} families, centred by family")
    elif not counted[0].family:
        notes.append(
            "no checkpoint has a family, so all are compared as one; if they are of several, whose levels differ, name "
            "them in the ladder file (family)"
        )
    freedom = len(chosen) - int(family.max())
    spread = math.sqrt(float((_centred(y, family) ** 2).sum()) / (freedom - 1))
    error = float(np.sqrt(np.mean(errors**2)))  # NaN where some are unknown
    if np.ptp(y) > 0 and error > spread / math.sqrt(2):  # then less than half of the variance is between checkpoints
        notes.append(
            f"the scores scatter by {spread:.3g} and their own standard error is {error:.3g}: most of "
            "their order is chance, which no metric can predict; measure more instances"
        )
    ours, theirs = x[:, chosen]
    agreements = [_agreement(a, b, family) for a, b in ((ours, y), (theirs, y), (ours, theirs))]
    most = 1 - 6 / (freedom * (freedom**2 - 1)), 1 - 2 / (freedom * (freedom - 1))
    rank = _Compared(
        [rho for rho, _ in agreements],
        freedom,
        most[0],
        lambda r: (1 + r * r / 2) / (freedom - 3) if freedom > 3 else math.nan,
    )
    # Kendall's coefficient is twice the decision accuracy less one
    tau = [2 * accuracy - 1 for _, accuracy in agreements]
    pairs = _Compared(tau, freedom, most[1], lambda _: 0.437 / (freedom - 4) if freedom > 4 else math.nan)
    decision, decision_baseline, decision_gain = (
        Interval(*((end + shift) / 2 for end in pairs.interval(which))) for which, shift in enumerate((1, 1, 0))
    )
    ends: list[float] = []
    if resamples:
        gains = _resampled_gains((proxy, baseline), chosen, y, errors, family, resamples, seed)
        ends = np.quantile(gains, (0.025, 0.975)).tolist() if len(gains) else []
    statement = replace(
        empty, spearman=rank.interval(0), spearman_baseline=rank.interval(1), spearman_gain=rank.interval(2),
        decision=decision, decision_baseline=decision_baseline, decision_gain=decision_gain,
        bootstrap=Interval(rank.interval(2).value, *ends), p=rank.p, notes=tuple(notes),
    )  # fmt: skip
    return _decided(statement, rank.p)


def corrected(claims: Sequence[Claim]) -> list[Claim]:
    """The claims of one verdict, decided at 5 % together (Holm): those of whole groups, and those of their parts."""
    p_holm: dict[str, float] = {}
    for parts in (False, True):
        p_holm |= holm({str(i): c.p for i, c in enumerate(claims) if bool(c.part) is parts})
    return [_decided(statement, p_holm[str(i)]) for i, statement in enumerate(claims)]


def _decided(statement: Claim, p: float) -> Claim:
    """By the rank correlation; where the decision accuracy points the other way, undecided."""
    rank, decision = statement.spearman_gain.value, statement.decision_gain.value
    verdict = "undecided"
    if p <= ALPHA and rank * decision >= 0:
        verdict = "supported" if rank > 0 else "refuted"
    notes = statement.notes
    if p > ALPHA >= statement.p:
        notes = (*notes, f"its interval excludes 0, but not after Holm's correction for the claims made (p = {p:.2g})")
    return replace(statement, p_holm=p, verdict=verdict, notes=notes)


def _resampled_gains(
    pair: tuple[Proxy, Proxy],
    chosen: Sequence[int],
    y: FloatArray,
    errors: FloatArray,
    family: npt.NDArray[Any],
    resamples: int,
    seed: int,
) -> FloatArray:
    """Differences of rank correlations over resamples of trajectories, of checkpoints of a family, and of scores."""
    rng = np.random.default_rng([seed, 1])  # independent of the resamples of trajectories
    picks = np.empty((resamples, len(chosen)), dtype=int)
    for label in np.unique(family):
        (members,) = np.nonzero(family == label)
        picks[:, members] = rng.choice(members, (resamples, len(members)))
    scores = y[picks] + np.nan_to_num(errors)[picks] * rng.normal(size=picks.shape)
    sides = []
    for proxy in pair:
        sums = np.concatenate([proxy.numerator[chosen], proxy.denominator[chosen]])
        level = _oriented(proxy, *np.split(bootstrap_sums(sums.T, resamples, seed), 2, axis=1))
        x = _centred(np.take_along_axis(level, picks, axis=1), family)
        sides.append(correlations(x, _centred(scores, family))["spearman"])
    gains = sides[0] - sides[1]
    return gains[np.isfinite(gains)]


@dataclass(frozen=True)
class _Compared:
    """Two coefficients with one of their variables in common, and their difference (Zou 2007).

    Attributes:
        coefficients: of two proxies with the score, and of the proxies with each other.
        n: checkpoints, less one for each family beyond the first.
        most: what a coefficient of 1 counts as: half way to the next one that so many checkpoints can have. Of few, an
            order without a fault happens by chance, and Fisher's z of 1 would make it certain.
        variance: of Fisher's z of a coefficient; NaN where n is too small for one.
    """

    coefficients: Sequence[float]
    n: int
    most: float
    variance: Callable[[float], float]

    def interval(self, which: int, quantile: float | None = None) -> Interval:
        """Of ours (0), theirs (1) or the difference (2); `quantile`: of Student's t (default: of 95 %)."""
        ours, theirs, between = self.coefficients
        value = (ours, theirs, ours - theirs)[which]
        if not math.isfinite(self.variance(value) + sum(self.coefficients)):
            return Interval(value)
        t = self._quantile if quantile is None else quantile
        if which < 2:
            z, half = math.atanh(min(max(value, -self.most), self.most)), t * math.sqrt(self.variance(value))
            return Interval(value, min(math.tanh(z - half), value), max(math.tanh(z + half), value))
        (a, la, ua), (b, lb, ub) = self.interval(0, t), self.interval(1, t)
        spread = (1 - a * a) * (1 - b * b)
        product = (between - a * b / 2) * (1 - a * a - b * b - between**2) + between**3
        shared = min(max(product / spread, -1.0), 1.0) if spread > 1e-12 else 0.0
        low = (a - la) ** 2 + (ub - b) ** 2 - 2 * shared * (a - la) * (ub - b)
        high = (ua - a) ** 2 + (b - lb) ** 2 - 2 * shared * (ua - a) * (b - lb)
        # two coefficients differ by at most 2: few checkpoints give more, since the ends are put together
        return Interval(value, max(value - math.sqrt(max(low, 0)), -2.0), min(value + math.sqrt(max(high, 0)), 2.0))

    @property
    def _quantile(self) -> float:
        from scipy.special import stdtrit  # here: every sub-command imports this module, and scipy is slow to load

        return float(stdtrit(self.n - 3, 1 - ALPHA / 2))

    @property
    def p(self) -> float:
        """Two-sided: the level at which the interval of the difference ends at 0; NaN where there is none."""
        from scipy.optimize import brentq
        from scipy.special import stdtr

        value, low, _ = self.interval(2)
        if math.isnan(low):
            return math.nan

        def nearest_end(quantile: float) -> float:
            _, low, high = self.interval(2, quantile)
            return low if value > 0 else -high

        least, most = (0.0, self._quantile) if nearest_end(self._quantile) <= 0 else (self._quantile, 1e3)
        if nearest_end(least) <= 0:
            return 1.0
        return float(2 * stdtr(self.n - 3, -(brentq(nearest_end, least, most) if nearest_end(most) < 0 else most)))


def _agreement(x: FloatArray, y: FloatArray, family: npt.NDArray[Any]) -> tuple[float, float]:
    """Spearman's coefficient and decision accuracy, centred and counted within families."""
    x, y = _centred(x, family), _centred(y, family)
    dx, dy = (np.sign(side[:, None] - side[None]) for side in (x, y))
    within = (family[:, None] == family[None]) & (dy != 0)
    right = float((within * (0.5 + 0.5 * dx * dy)).sum())
    return float(correlations(x, y)["spearman"][0]), right / within.sum() if within.any() else math.nan


def _centred(x: FloatArray, family: npt.NDArray[Any]) -> FloatArray:
    """The columns of x, shape (c,) or (r, c), less the mean of their family."""
    out = np.array(x, dtype=np.float64)
    for label in np.unique(family):
        out[..., family == label] -= out[..., family == label].mean(axis=-1, keepdims=True)
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

    `error`: root mean squared leave-one-out error of a straight line per family; `error_of_mean`: that of the mean;
    `stages`: how many checkpoints of each stage there are.
    """

    proxy: str
    checkpoints: int
    error: float
    error_of_mean: float
    stages: Mapping[str, int]


def predictions(
    proxies: Sequence[Proxy], checkpoints: Sequence[Checkpoint], scores: Mapping[str, Outcome]
) -> list[Prediction]:
    """Leave-one-out prediction of the downstream score by every proxy, best first (one slope, a level per family).

    A family of one checkpoint cannot be predicted and is left out.
    """
    chosen = [i for i, checkpoint in enumerate(checkpoints) if checkpoint.name in scores]
    sizes = Counter(checkpoints[i].family for i in chosen)
    chosen = [i for i in chosen if sizes[checkpoints[i].family] > 1]
    y = np.array([scores[checkpoints[i].name].value for i in chosen])
    family = np.array([checkpoints[i].family for i in chosen])
    stages = stages_of(checkpoints[i] for i in chosen)
    results = []
    for proxy in proxies:
        x = values(proxy)[chosen] if chosen else np.array([])
        if len(chosen) < FEWEST or not np.isfinite(x).all() or np.ptp(y) == 0:  # without an order there is no error
            results.append(Prediction(proxy.name, len(chosen), math.nan, math.nan, stages))
            continue
        errors, plain = [], []
        for i in range(len(chosen)):
            rest = np.arange(len(chosen)) != i
            own = rest & (family == family[i])
            dx, dy = (_centred(side[rest], family[rest]) for side in (x, y))
            slope = float(dx @ dy / (dx @ dx)) if dx @ dx > 0 else 0.0
            errors.append(y[i] - (y[own].mean() + slope * (x[i] - x[own].mean())))
            plain.append(y[i] - y[own].mean())
        rmse, rmse_mean = (float(np.sqrt(np.mean(np.square(side)))) for side in (errors, plain))
        results.append(Prediction(proxy.name, len(chosen), rmse, rmse_mean, stages))
    # twelve digits: proxies that order checkpoints alike stay in their order, however sums were rounded
    return sorted(results, key=lambda row: (math.isnan(row.error), float(f"{row.error:.12g}")))
