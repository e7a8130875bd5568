"""Tool entropy: how undecided the model was over what the agent does next, from labelled tokens, without a model.

A step is one action. Its decision tokens are the tokens that count (kinds and filters) and cover a character of its
decision words (`actions.classes.decision_words`). With all filters the tool's name is call syntax and does not count:
what remains is what a shell agent decides by. A step's entropy is H_topk at its decision tokens, the maximum by
default. A step all of whose decision tokens were filtered or lie beyond the context has none (NaN): it is counted, and
takes no part in any average.

The lm-eval task `hesnr_tool_entropy` and `hesnr analyze --tool-entropy` both come here, so they agree to the last bit.
Standard errors resample trajectories; sums are exact (`fsum`) and quantiles are observed values, so neither the order
of trajectories nor the number of ranks changes a bit.
"""

from __future__ import annotations

import argparse
import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hesnr_tasks.actions import CharSpan
from hesnr_tasks.actions.classes import action_class, canonical_key, decision_words
from hesnr_tasks.actions.shell import CLASSES
from hesnr_tasks.analysis.breakdowns import outcome_of
from hesnr_tasks.analysis.frame import Frame, Selection, check_epsilons, folders, selections
from hesnr_tasks.analysis.tables import Table, TokenTexts, decision
from hesnr_tasks.errors import SettingsError, nearest, number_of
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, bootstrap_sums, count_blocks, estimates, standard_error
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
COLUMNS = ("char_start", "char_end")  # of score files, beside those every frame has

# how the entropies of a step's decision tokens become one, in nats. `max`: a hesitation anywhere in the words, on the
# scale of one token, so that it can be held against the threshold of 𝓗; `sum`: grows with their number
COMBINE: dict[str, Callable[[FloatArray], Any]] = {
    "max": np.max,
    "mean": np.mean,
    "first": lambda h: h[0],
    "sum": np.sum,
}


# --- the steps of one trajectory --------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One action: its turn, its characters in the text, and its decision words there."""

    turn: int
    start: int
    end: int
    words: tuple[CharSpan, ...]


class Steps(NamedTuple):
    """The measurements at the s steps of one trajectory."""

    entropy: FloatArray  # (s,) nats; NaN: no decision token was scored
    decisive: npt.NDArray[np.bool_]  # (s,) one of its decision tokens is in 𝓗
    peak: IntArray  # (s,) the decision token with the greatest entropy; -1: none


def steps_of(rendered: Rendered, arguments: int = 0) -> list[Step]:
    """The actions of a text, in order; neighbouring action spans of one turn are one action. Never raises.

    Args:
        rendered: the text with its spans.
        arguments: how many words after the verb decide too.
    """
    steps = []
    for start, end, kind, turn in rendered.blocks():
        if kind is Kind.ACTION and rendered.text[start:end].strip():
            words = decision_words(rendered.text[start:end], arguments)
            steps.append(Step(turn, start, end, tuple((start + a, start + b) for a, b in words)))
    return steps


def measure(
    steps: Sequence[Step],
    char_start: npt.NDArray[np.integer],
    char_end: npt.NDArray[np.integer],
    entropy: FloatArray,
    decisive: npt.NDArray[np.bool_],
    combine: str = "max",
) -> Steps:
    """The entropies of a trajectory's steps from its n tokens that count, in order.

    Args:
        steps: as `steps_of` has them.
        char_start, char_end: each token's characters in the text, shape (n,).
        entropy: H_topk of each token, nats, shape (n,).
        decisive: whether each token is in 𝓗, shape (n,).
        combine: one of `COMBINE`.
    """
    s = len(steps)
    measured = Steps(np.full(s, math.nan), np.zeros(s, dtype=bool), np.full(s, -1))
    for i, step in enumerate(steps):
        covered = [
            np.arange(np.searchsorted(char_end, a, "right"), np.searchsorted(char_start, b, "left"))
            for a, b in step.words
        ]
        tokens = np.unique(np.concatenate(covered)) if covered else np.empty(0, dtype=np.int64)
        if len(tokens):
            measured.entropy[i] = COMBINE[combine](entropy[tokens])
            measured.decisive[i] = decisive[tokens].any()
            measured.peak[i] = tokens[int(np.argmax(entropy[tokens]))]
    return measured


# --- from trajectories to numbers -------------------------------------------------------------------------------------


class ToolEntropyItem(NamedTuple):
    """One trajectory's part in every number."""

    key: str
    entropies: array[float]  # of its measured steps, nats, in order: 8 bytes each where a tuple takes 32
    high: int  # how many of them exceed the threshold
    decisive: int  # how many have a token of 𝓗 among their decision tokens
    unmeasured: int  # steps without a decision token that was scored
    tokens_cut: int = 0  # tokens beyond the context

    def sums(self) -> list[float]:
        """Steps, Σh, Σh², Σh³, high, decisive, unmeasured."""
        powers = [math.fsum(h**power for h in self.entropies) for power in (1, 2, 3)]
        return [float(len(self.entropies)), *powers, float(self.high), float(self.decisive), float(self.unmeasured)]


def item_of(key: str, steps: Steps, epsilon: float, tokens_cut: int = 0) -> ToolEntropyItem:
    """The part of one trajectory; `epsilon` in nats."""
    measured = ~np.isnan(steps.entropy)
    entropy = steps.entropy[measured]
    high, decisive = int((entropy > epsilon).sum()), int(steps.decisive[measured].sum())
    return ToolEntropyItem(key, array("d", entropy.tobytes()), high, decisive, int((~measured).sum()), tokens_cut)


def _skewness(sums: FloatArray) -> FloatArray:
    """g1 = m3 / m2^1.5; NaN where nothing varies."""
    mean, square, cube = (sums[:, power] / sums[:, 0] for power in (1, 2, 3))
    m2 = square - mean**2
    m3 = cube - 3 * mean * square + 2 * mean**3
    return np.where(m2 > 1e-12 * square, m3 / m2**1.5, np.nan)


_OF_SUMS: dict[str, Callable[[FloatArray], FloatArray]] = {  # of rows of `ToolEntropyItem.sums`
    "mean": lambda sums: sums[:, 1] / sums[:, 0],
    "skewness": _skewness,
    "high": lambda sums: sums[:, 4] / sums[:, 0],
    "he": lambda sums: sums[:, 5] / sums[:, 0],
    "steps": lambda sums: sums[:, 0],
    "unmeasured": lambda sums: sums[:, 6],
}
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
MEASURES = ("mean", *_QUANTILES, "skewness", "high", "he", "steps", "unmeasured")


def number(name: str, items: Sequence[ToolEntropyItem]) -> float:
    """One of `MEASURES` over all steps of all trajectories, nats or a share or a count; NaN where there is no step."""
    if name in _QUANTILES:
        return quantile(np.concatenate([np.zeros(0), *(item.entropies for item in items)]), _QUANTILES[name])
    sums = [math.fsum(column) for column in zip(*(item.sums() for item in items), strict=True)] or [0.0] * 7
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(_OF_SUMS[name](np.array([sums]))[0])


def stderr_of(name: str, items: Sequence[ToolEntropyItem], resamples: int = RESAMPLES, seed: int = SEED) -> float:
    """The cluster-bootstrap standard error of `number`; NaN for fewer than two trajectories."""
    if len(items) < 2:
        return math.nan
    ordered = sorted(items)
    if name in _QUANTILES:
        return standard_error(_resampled_quantiles(ordered, _QUANTILES[name], resamples, seed))
    sums = bootstrap_sums(np.array([item.sums() for item in ordered]), resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        return standard_error(_OF_SUMS[name](sums))


def quantile(values: Iterable[float] | FloatArray, share: float) -> float:
    """The least of the values that at least `share` of them do not exceed; NaN for none."""
    ordered = np.sort(np.fromiter(values, dtype=np.float64))
    return float(ordered[_rank(np.float64(len(ordered)), share) - 1]) if len(ordered) else math.nan


def _rank(n: np.float64 | FloatArray, share: float) -> IntArray:
    # 0.9 * 10 must be 9, whatever the last bit says
    return np.maximum(1, np.ceil(np.asarray(n) * share - 1e-9)).astype(np.int64)


_BLOCKS = 64  # of values: each takes 8 bytes a trajectory


def _resampled_quantiles(items: Sequence[ToolEntropyItem], share: float, resamples: int, seed: int) -> FloatArray:
    """The quantile in every resample, exactly: first the block of values it lies in, then the value; NaN for none."""
    values = np.concatenate([item.entropies for item in items])
    if not len(values):
        return np.full(resamples, np.nan)
    owner = np.repeat(np.arange(len(items)), [len(item.entropies) for item in items])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    size = math.ceil(len(values) / _BLOCKS)
    in_block = np.zeros((len(items), math.ceil(len(values) / size)))
    np.add.at(in_block, (owner, np.arange(len(values)) // size), 1)
    quantiles = [np.zeros(0)]
    for counts in count_blocks(len(items), resamples, seed):
        up_to = np.cumsum(counts @ in_block, axis=1)  # values of a resample up to each block's end
        wanted = _rank(up_to[:, -1], share)
        block_of = (up_to < wanted[:, None]).sum(axis=1)
        chosen = np.full(len(counts), np.nan)  # where the trajectories drawn have no step
        for block in np.unique(block_of[block_of < up_to.shape[1]]):
            rows, here = np.flatnonzero(block_of == block), slice(block * size, (block + 1) * size)
            before = up_to[rows, block - 1] if block else np.zeros(len(rows))
            reached = before[:, None] + np.cumsum(counts[np.ix_(rows, owner[here])], axis=1)
            chosen[rows] = values[here][(reached < wanted[rows][:, None]).sum(axis=1)]
        quantiles.append(chosen)
    return np.concatenate(quantiles)


def gate_threshold(entropies: npt.ArrayLike, share: float) -> tuple[float, float]:
    """The threshold at which a gate fires at a share 1 - `share` of the steps it is calibrated on.

    Args:
        entropies: of steps, nats; NaN is left out.
        share: of steps that do not fire, in [0, 1].

    Returns:
        The threshold in nats, and the share of the steps *at* it that must fire too: votes have few values.

    Raises:
        SettingsError: if there is no step with an entropy.
    """
    ordered = np.sort(np.asarray(entropies, dtype=np.float64))
    ordered = ordered[~np.isnan(ordered)]
    if not len(ordered):
        raise SettingsError("a gate cannot be calibrated: there is no step with an entropy")
    wanted = (1.0 - share) * len(ordered)
    if wanted >= len(ordered) - 1e-9:
        return float(np.nextafter(ordered[0], -np.inf)), 0.0
    # the greatest value that fewer than the wanted number exceed; of the steps with that very value, the share missing
    threshold = float(ordered[len(ordered) - 1 - math.floor(wanted + 1e-9)])
    above, equal = np.count_nonzero(ordered > threshold), np.count_nonzero(ordered == threshold)
    return threshold, float(np.clip((wanted - above) / equal, 0.0, 1.0))


# --- score files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """The steps of a run of score files under one setting; a text that two trajectories have is there twice."""

    frame: Frame
    about: dict[str, Any]  # what every row of a table begins with
    entries: list[int]  # (T,) index of each trajectory in the frame
    items: list[ToolEntropyItem]  # (T,)
    steps: pd.DataFrame  # trajectory, index, turn, start, end, entropy (nats), decisive, peak (index into the frame)

    @property
    def measured(self) -> pd.DataFrame:
        """The steps that have an entropy."""
        return self.steps[self.steps.entropy.notna()]

    def action(self, step: Any) -> str:
        """The text of a step, a row of `steps`."""
        key = self.frame.entries[self.entries[step.trajectory]].key
        return self.frame.store.text(key).rendered.text[step.start : step.end]


def profile_of(
    frame: Frame,
    chosen: Selection,
    k: int = 10,
    epsilon: float = EPSILON,
    *,
    arguments: int = 0,
    combine: str = "max",
) -> Profile:
    """The steps of every trajectory of a frame that was loaded with `COLUMNS`.

    Args:
        frame, chosen: the tokens, and which of them count.
        k, epsilon: candidates a token; the threshold in nats.
        arguments: words after the verb that decide too.
        combine: one of `COMBINE`.

    Raises:
        SettingsError: where the tokens of `chosen` were not all scored.
    """
    counted, included, cut = frame.counted(chosen.mask), frame.included(chosen.mask), frame.n_truncated(chosen.mask)
    entries: list[int] = []
    items: list[ToolEntropyItem] = []
    steps: list[pd.DataFrame] = []
    for i in np.flatnonzero(included):
        entry = frame.entries[i]
        tokens = frame.bounds[i] + np.flatnonzero(counted[frame.bounds[i] : frame.bounds[i + 1]])
        entropy, rank = frame.entropy[k][tokens], frame.rank[tokens]
        decisive = (entropy > epsilon) & (rank >= 1) & (rank <= k)
        actions = steps_of(frame.store.text(entry.key).rendered, arguments)
        spans = (frame.extra["char_start"][tokens], frame.extra["char_end"][tokens])
        measured = measure(actions, *spans, entropy, decisive, combine)
        table = pd.DataFrame(actions, columns=list(Step._fields)).drop(columns="words")
        peak = np.append(tokens, -1)[measured.peak]
        table = table.assign(index=range(len(actions)), entropy=measured.entropy, decisive=measured.decisive, peak=peak)
        for _ in range(max(1, len(entry.sources))):
            steps.append(table.assign(trajectory=len(entries)))
            entries.append(int(i))
            items.append(item_of(entry.key, measured, epsilon, int(cut[i])))
    about = {"run": frame.name, "select": chosen.name, "k": k, "epsilon": epsilon}
    about |= {"decision_arguments": arguments, "combine": combine}
    columns = ["trajectory", "index", "turn", "start", "end", "entropy", "decisive", "peak"]
    rows = pd.concat(steps, ignore_index=True) if steps else pd.DataFrame(columns=columns)
    return Profile(frame, about, entries, items, rows.astype({"entropy": float, "decisive": bool}))


# --- tables -----------------------------------------------------------------------------------------------------------

_WIDE = ("decision_arguments", "combine")  # a note says them to people
_TURNS = (1, 2, 3, 4, 5, 6, 11, 21, 41, 81)  # where a group of turns begins
_SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)
_BINS = 40


def check(args: argparse.Namespace) -> None:
    """Raise `SettingsError` for values that the options of `--tool-entropy` cannot have; None is the default."""
    if args.decision_arguments is not None and args.decision_arguments < 0:
        raise SettingsError(f"--decision-arguments must be at least 0, not {args.decision_arguments}")
    if args.combine is not None and args.combine not in COMBINE:
        hint = nearest(args.combine, COMBINE)
        raise SettingsError(f"--combine {args.combine!r} must be one of {', '.join(COMBINE)}.{hint}")
    if args.forks is not None and args.forks < 1:
        raise SettingsError(f"--forks must be at least 1, not {args.forks}")
    for share in args.quantile or ():
        if not 0 <= share <= 1:
            raise SettingsError(f"--quantile {share:g} must lie in [0, 1]: it is the share of steps that do not branch")


def tables(frame: Frame, args: argparse.Namespace) -> Iterable[Table]:
    """The tables of one run, for every combination of filters, k and ε; draws the figure where `args.output` is set.

    Args:
        frame: loaded with `COLUMNS`.
        args: as `hesnr analyze` parses them.

    Raises:
        SettingsError: where filtered actions were not all scored, or for a setting that cannot be.
    """
    check(args)
    ks = args.k or [10]
    chosen = selections(frame.filters, ["action"], args.filters)
    options: dict[str, Any] = {"arguments": args.decision_arguments or 0, "combine": args.combine or "max"}
    settings = itertools.product(chosen, ks, check_epsilons(args.epsilon, ks))
    profiles = [profile_of(frame, *setting, **options) for setting in settings]

    def joined(table_of: Callable[..., Table], *parameters: Any) -> Table:
        parts = [table_of(profile, *parameters) for profile in profiles]
        return parts[0]._replace(rows=[row for part in parts for row in part.rows])

    yield joined(_totals, args.resamples, args.seed)
    for name in _GROUPS:
        yield joined(_breakdown, name, args.resamples, args.seed)
    yield joined(_gates, args.quantile or ())
    yield joined(_forks, args.forks or 10)
    if args.format != "text":  # people look at the figure
        yield joined(_distribution)
    if args.output:
        several = len(folders(args.scores)) > 1
        draw(profiles[0], args.output / (f"tool_entropy-{frame.name.replace('/', '-')}" if several else "tool_entropy"))


def _totals(profile: Profile, resamples: int, seed: int) -> Table:
    row: dict[str, Any] = dict(profile.about)
    for name in MEASURES:
        value = number(name, profile.items)
        count = name in ("steps", "unmeasured")
        row[name] = round(value) if count else Estimate(value, stderr_of(name, profile.items, resamples, seed))
    row |= {"trajectories": len(profile.items), "tokens_cut": sum(item.tokens_cut for item in profile.items)}
    words = {"max": "the greatest", "mean": "the mean", "first": "the first", "sum": "the sum of"}
    arguments = profile.about["decision_arguments"]
    notes = (
        f"of a step: {words[profile.about['combine']]} H_topk, in nats, among the tokens of the words that say what is "
        "done" + (f" and of {arguments} after them" if arguments else ""),
        "high: share of steps above ε; he: share with a token of 𝓗 there",
        "unmeasured: steps all of whose such tokens were filtered or lie beyond the context; they are in no average",
    )
    return Table("tool_entropy", "Tool entropy", [row], notes, wide=_WIDE)


def _turn_group(profile: Profile, step: Any) -> str:
    i = int(np.searchsorted(_TURNS, step.turn, side="right")) - 1
    first, last = _TURNS[i], _TURNS[i + 1] - 1 if i + 1 < len(_TURNS) else ""
    return f"{first}" if first == last else f"{first}-{last}"


_GROUPS: dict[str, Callable[[Profile, Any], str]] = {
    "class": lambda profile, step: action_class(profile.action(step)),
    "turn": _turn_group,
    "resolved": lambda profile, step: outcome_of(profile.frame.entries[profile.entries[step.trajectory]]),
}


def _order(group: str) -> tuple[int, str]:
    """Classes in the order of `CLASSES`, turns by number, outcomes by name."""
    if group in CLASSES:
        return CLASSES.index(group), group
    first = group.split("-")[0]
    return (int(first), "") if first.isdigit() else (0, group)


def _breakdown(profile: Profile, name: str, resamples: int, seed: int) -> Table:
    """Mean, shares and 90 % quantile of each group of steps; all trajectories are resampled."""
    label = pd.Series([_GROUPS[name](profile, step) for step in profile.steps.itertuples()], profile.steps.index)
    groups = sorted(label.unique(), key=_order)
    high = profile.measured.entropy > profile.about["epsilon"]
    steps = profile.measured.assign(group=label, steps=1.0, high=high * 1.0)
    ratios = {"mean": "entropy", "high": "high", "he": "decisive"}
    sums = steps.groupby(["trajectory", "group"])[["steps", *ratios.values()]].sum().astype(float)
    cells = sums.unstack("group").reindex(range(len(profile.items)))
    columns = [(ratio, group) for group in groups for ratio in ratios.values()]
    numerator = cells.reindex(columns=columns).fillna(0.0).to_numpy()
    denominator = cells.reindex(columns=[("steps", group) for _, group in columns]).fillna(0.0).to_numpy()
    numbers = iter(estimates(numerator, denominator, resamples=resamples, seed=seed))
    rows = []
    for group in groups:
        entropies = steps.entropy[steps.group == group]
        share = {"steps": len(entropies), "share": len(entropies) / len(steps) if len(steps) else math.nan}
        line = {ratio: next(numbers) for ratio in ratios}
        rows.append({**profile.about, name: group, **share, **line, "p90": quantile(entropies, 0.9)})
    note = "share: of all measured steps; ± resamples all trajectories"
    return Table(f"tool_entropy_by_{name}", f"Tool entropy by {name}", rows, (note,), wide=_WIDE)


def _gates(profile: Profile, more: Sequence[float]) -> Table:
    """For some shares of steps, the threshold at which a gate fires at the others."""
    rows = []
    entropies = profile.measured.entropy.to_numpy()
    for share in sorted({*_SHARES, *more}) if len(entropies) else ():
        threshold, tie = gate_threshold(entropies, share)
        above, equal = np.count_nonzero(entropies > threshold), np.count_nonzero(entropies == threshold)
        fires = above + tie * equal
        rates = {"fires": fires / len(entropies), "forks_each": fires / len(profile.items)}
        rows.append({**profile.about, "quantile": share, "threshold": threshold, **rates, "tie": tie})
    note = "fires: share of these steps; forks each: a trajectory. For gates that measure steps so, of this model only"
    return Table("tool_entropy_gates", "Gate thresholds", rows, (note,), wide=(*_WIDE, "tie"))


def _forks(profile: Profile, each: int) -> Table:
    """The `each` steps of greatest entropy (texts that two trajectories have: once), and the candidates there."""
    entry = profile.measured.trajectory.map(dict(enumerate(profile.entries)))
    steps = profile.measured.assign(entry=entry).drop_duplicates(["entry", "index"])
    steps = steps.sort_values(["entropy", "entry", "index"], ascending=[False, True, True]).head(each)
    token_texts, rows = TokenTexts(profile.frame), []
    for rank, step in enumerate(steps.itertuples(), 1):
        token = decision(profile.frame, step.peak, profile.about["k"], token_texts)
        action = profile.action(step).strip()
        about = {"place": rank, "trajectory": token["trajectory"], "text_key": token["key"], "turn": step.turn}
        about |= {"class": action_class(action), "action_key": canonical_key(action), "entropy": step.entropy}
        about |= {name: token[name] for name in ("p", "rank", "token", "position")}
        shown = action if len(action) <= 240 else action[:240] + " …"
        rows.append({**profile.about, **about, "action": shown, "candidates": token["candidates"]})
    note = "candidates: of the most undecided token of the step, with probabilities over the full vocabulary"
    wide = ("select", "k", "epsilon", *_WIDE, "text_key", "position", "action_key")
    title = "Steps of greatest tool entropy"
    return Table("tool_entropy_forks", title, rows, (note,), wide=wide, below=("action", "candidates"))


def _histogram(profile: Profile) -> tuple[IntArray, FloatArray]:
    """Steps and edges over [0, ln k]; `combine` = sum can exceed that, which the last bin takes."""
    top = math.log(profile.about["k"])
    counts, edges = np.histogram(np.minimum(profile.measured.entropy, top), bins=_BINS, range=(0.0, top))
    return counts, edges


def _distribution(profile: Profile) -> Table:
    counts, edges = _histogram(profile)
    bins = zip(itertools.pairwise(edges.tolist()), counts.tolist(), strict=True)
    rows = [{**profile.about, "low": low, "high": high, "steps": count} for (low, high), count in bins]
    return Table("tool_entropy_distribution", "Tool entropy: distribution", rows)


def draw(profile: Profile, stem: Path) -> list[Path]:
    """Draw the histogram of a run's tool entropies: mostly low, with a thin tail of steps that decide (EGSS).

    Returns:
        `stem`.svg and `stem`.png.
    """
    from hesnr_tasks.plotting import COLOURS, LINES, figure, save

    drawing, axes = figure(width=4.6, height=2.9)
    axis = axes[0, 0]
    counts, edges = _histogram(profile)
    axis.stairs(100 * counts / max(1, counts.sum()), edges, fill=True, color=COLOURS[0], alpha=0.75)
    marks = {"mean": "mean", "90 %": "p90", "99 %": "p99"}
    for (label, name), colour, line in zip(marks.items(), COLOURS[1:], LINES, strict=False):
        value = number(name, profile.items)
        if math.isfinite(value):
            axis.axvline(value, color=colour, linestyle=line, label=f"{label}: {value:.2f}")
    axis.set_xlim(0, edges[-1])
    axis.set_xlabel("tool entropy of a step (nats)")
    axis.set_ylabel("steps (%)")
    skewness = number("skewness", profile.items)
    axis.set_title(f"{profile.frame.name}: {number_of(counts.sum(), 'step')}, skewness {skewness:.2f}", fontsize=9)
    if counts.sum():
        axis.legend(fontsize=8, frameon=False)
    return save(drawing, stem)
