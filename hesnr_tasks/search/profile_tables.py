"""The tables of `hesnr analyze --tool-entropy` for one run and one setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions.classes import CLASSES, action_class
from hesnr_tasks.analysis.intervals import estimates
from hesnr_tasks.analysis.measures import Number
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.search.entropy import COMBINE
from hesnr_tasks.search.gates import StepState, calibrate
from hesnr_tasks.search.profile_measures import MEASURES, Part, number, part_of, stderr_of
from hesnr_tasks.search.profile_run import UNSHOWN, Profile
from hesnr_tasks.search.profile_steps import ARGUMENTS, Measured

__all__ = ["BINS", "GROUPS", "breakdown", "distribution", "gates", "totals"]

BINS = 40
_QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.99)
_TURNS = (1, 2, 3, 4, 5, 6, 11, 21, 41, 81)  # where a group of turns begins
_COMBINED = {"max": "the greatest", "mean": "the mean", "first": "the first", "sum": "the sum of"}
_RATIOS = {"mean": "total", "high": "above", "he": "decisive"}  # over steps; fields of Part


def totals(made: Profile, resamples: int, seed: int) -> Table:
    """The numbers of the lm-eval task, to the last bit."""
    row: dict[str, Any] = dict(made.named)
    for name in MEASURES:
        value = number(name, made.parts)
        plain = name in ("steps", "unmeasured")
        row[name] = round(value) if plain else Number(value, stderr_of(name, made.parts, resamples, seed))
    row |= {"trajectories": len(made.parts), "tokens_cut": sum(part.cut for part in made.parts)}
    notes = (
        f"of a step: {_COMBINED[made.how]} H_topk, in nats, among the tokens of the words that say what is done"
        + (f" and of {made.arguments} after them" if made.arguments else ""),
        "high: share of steps above ε; he: share with a token of 𝓗 there",
        "unmeasured: steps all of whose such tokens were filtered or lie beyond the context; they are in no average",
    )
    return Table("tool_entropy", "Tool entropy", [row], notes, wide=UNSHOWN)


# --- by class of action, turn, outcome ------------------------------------------------------------------------------

_Grouping = Callable[[Profile, int], Sequence[str]]  # the group of each step of one trajectory


def _class(made: Profile, at: int) -> Sequence[str]:
    text = made.text(at)
    return [action_class(text[step.start : step.end]) for step in made.steps[at]]


def _turn(made: Profile, at: int) -> Sequence[str]:
    names = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in itertools.pairwise(_TURNS)] + [f"{_TURNS[-1]}-"]
    return [names[int(np.searchsorted(_TURNS, step.turn, side="right")) - 1] for step in made.steps[at]]


def _resolved(made: Profile, at: int) -> Sequence[str]:
    outcomes = {source.resolved for source in made.frame.entries[made.place[at]].sources} or {None}
    named = {True: "resolved", False: "unresolved", None: "unknown"}
    return [named[outcomes.pop()] if len(outcomes) == 1 else "mixed"] * len(made.steps[at])


GROUPS: dict[str, _Grouping] = {"class": _class, "turn": _turn, "resolved": _resolved}


def breakdown(made: Profile, name: str, resamples: int, seed: int) -> Table:
    """Mean, shares and 90 % quantile of each group of steps of one of `GROUPS`; all trajectories are resampled."""
    of_step = [np.array(GROUPS[name](made, at), dtype=object) for at in range(len(made.parts))]
    groups = sorted({group for one in of_step for group in one}, key=_order)
    parts = [[_within(made, at, of_step[at] == group) for at in range(len(of_step))] for group in groups]
    total = math.fsum(part.steps for part in made.parts)
    rows = []
    for group, some, line in zip(groups, parts, _ratios(parts, resamples, seed), strict=True):
        steps = math.fsum(part.steps for part in some)
        share = {"steps": round(steps), "share": steps / total if total else math.nan}
        rows.append({**made.named, name: group, **share, **line, "p90": number("p90", some)})
    note = "share: of all measured steps; ± resamples all trajectories"
    return Table(f"tool_entropy_by_{name}", f"Tool entropy by {name}", rows, (note,), wide=UNSHOWN)


def _order(group: str) -> tuple[int, str]:
    """Classes as they matter, turns as they come, outcomes by name."""
    if group in CLASSES:
        return CLASSES.index(group), group
    first = group.split("-")[0]
    return (int(first), "") if first.isdigit() else (0, group)


def _within(made: Profile, at: int, keep: npt.NDArray[np.bool_]) -> Part:
    steps = made.measured[at]
    chosen = Measured(steps.value[keep], steps.decides[keep], steps.peak[keep])
    return part_of(made.parts[at].key, chosen, made.epsilon)


def _ratios(groups: Sequence[Sequence[Part]], resamples: int, seed: int) -> Iterator[dict[str, Number]]:
    """Mean, high and he of each group with standard error and interval, all groups at once."""
    ordered = [sorted(parts) for parts in groups]  # by key, as a run's bootstrap has them
    columns = [[getattr(part, field) for part in parts] for parts in ordered for field in _RATIOS.values()]
    numerators = np.array(columns, dtype=np.float64).T
    denominators = np.repeat([[part.steps for part in parts] for parts in ordered], len(_RATIOS), axis=0).T
    found = estimates(numerators, denominators.astype(np.float64), resamples=resamples, seed=seed)
    exact = [number(name, parts) for parts in ordered for name in _RATIOS]
    ends = list(zip(exact, *(end.tolist() for end in found[1:]), strict=True))
    for at in range(len(ordered)):
        lines = ends[at * len(_RATIOS) : (at + 1) * len(_RATIOS)]
        yield {name: Number(*line) for name, line in zip(_RATIOS, lines, strict=True)}


# --- what a gate would do, and the shape ----------------------------------------------------------------------------


def gates(made: Profile, more: Sequence[float] = ()) -> Table:
    """For some shares of steps, the threshold at which a gate fires at the others, and how often it does here."""
    rows = []
    values = made.values()
    for quantile in sorted({*_QUANTILES, *more}) if len(values) else ():
        gate = calibrate(values, quantile)
        fires = sum(bool(gate(StepState(str(i), value))) for i, value in enumerate(values.tolist()))
        told = {"threshold": gate.threshold, "fires": fires / len(values), "forks_each": fires / len(made.parts)}
        rows.append({**made.named, "quantile": quantile, **told, "tie": gate.tie})
    usual = made.arguments == ARGUMENTS and made.how == COMBINE[0]  # what a gate calibrated on a folder takes
    note = "for `quantile:SHARE:SCORES`" if usual else "for `threshold:NATS`, where steps are measured so"
    note += "; fires: share of these steps; forks each: a trajectory; holds for this model only"
    return Table("tool_entropy_gates", "Gate thresholds", rows, (note,), wide=(*UNSHOWN, "tie"))


def distribution(made: Profile) -> Table:
    """The histogram of the figure, over [0, ln k]; `combine` = sum can exceed that, which the last bin takes."""
    top = math.log(made.k)
    counts, edges = np.histogram(np.minimum(made.values(), top), bins=BINS, range=(0.0, top))
    rows = [
        {**made.named, "low": low, "high": high, "steps": count}
        for (low, high), count in zip(itertools.pairwise(edges.tolist()), counts.tolist(), strict=True)
    ]
    return Table("tool_entropy_distribution", "Tool entropy: distribution", rows)
