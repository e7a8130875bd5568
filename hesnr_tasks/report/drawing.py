"""What the figures share: a drawing is made of tables of numbers and of nothing else, so its data can be tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.plotting import COLOURS, LINES, MARKERS, label
from hesnr_tasks.report.ladder import Boundary, Checkpoint
from hesnr_tasks.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesnr_tasks.report.data import Study

__all__ = [
    "NAMES",
    "TOKENS",
    "Drawing",
    "about",
    "bars",
    "bound_axis",
    "cells",
    "checkpoint_axis",
    "line",
    "series",
    "tokens_name",
]

NAMES = {
    "he_snr": "HE-SNR ↑",
    "he_ppl": "HE-PPL ↓",
    "ppl": "PPL ↓",
    "top1_acc": "Top-1 accuracy ↑",
    "he_tokens": "|H|, tokens",
    "downstream": "downstream score ↑",
}
TOKENS = {"thought": "Thought", "action": "Action", "thought+action": "Thought + Action", "observation": "Observation"}
_TICKS = 7  # more labels than that run into each other


class Drawing(NamedTuple):
    """One figure: `tables` hold every number in it, `draw` makes it of them."""

    name: str
    paper: str  # its counterpart in the paper
    title: str
    about: str  # what it stands on: number of trajectories, what error bars are
    caption: str
    tables: tuple[Table, ...]
    draw: Callable[[], Figure]


def tokens_name(select: str) -> str:
    """`Action − xml − format`, in words people read."""
    kind, *filters = select.split("-")
    return " − ".join([TOKENS.get(kind, kind), *filters]) if filters else f"{TOKENS.get(kind, kind)}, no filter"


def series(at: int) -> dict[str, Any]:
    """Colour, marker and line of the at-th series."""
    return {
        "color": COLOURS[at % len(COLOURS)],
        "marker": MARKERS[at % len(MARKERS)],
        "linestyle": LINES[at % len(LINES)],
    }


def bars(numbers: Iterable[Estimate]) -> list[list[float]]:
    """Distances to both ends of the intervals, as errorbar takes them; 0 where there is no interval."""
    pairs = [(one.value - one.low, one.high - one.value) for one in numbers]
    return [[0.0 if math.isnan(pair[side]) else max(0.0, pair[side]) for pair in pairs] for side in (0, 1)]


def bound_axis(axes: Any, numbers: Iterable[Estimate], axis: str = "y") -> None:
    """Limit an axis by the values: bars may widen it by the values' own span on each side, and end beyond it."""
    kept = [one for one in numbers if math.isfinite(one.value)]
    log = getattr(axes, f"get_{axis}scale")() == "log"
    shown = [one for one in kept if one.value > 0] if log else kept
    if not shown:
        return

    def place(value: float) -> float:
        return math.log(max(value, 1e-300)) if log else value

    values = [place(one.value) for one in shown]
    ends = [place(end) for one in shown for end in (one.low, one.high) if math.isfinite(end)]
    least, most = min(values), max(values)
    span = max(most - least, 0.1 * max(map(abs, values)), 1e-9)
    low, high = max(least - span, min([*ends, least])), min(most + span, max([*ends, most]))
    pad = 0.06 * max(high - low, span / 2)
    start = max(low - pad, 0.0) if low >= 0 and not log else low - pad  # no room for values that cannot be
    getattr(axes, f"set_{axis}lim")(*(math.exp(x) if log else x for x in (start, high + pad)))


def line(axes: Any, x: Sequence[float], numbers: Sequence[Estimate], at: int = 0, name: str | None = None) -> None:
    """Values with their intervals, joined."""
    axes.errorbar(x, [one.value for one in numbers], yerr=bars(numbers), label=name, elinewidth=1, **series(at))
    bound_axis(axes, numbers)


def checkpoint_axis(axes: Any, ladder: Sequence[Checkpoint], found: Sequence[Boundary], *, named: bool = True) -> None:
    """Checkpoints evenly spaced along x, in the order of training; context extension and stages marked."""
    every = max(1, math.ceil(len(ladder) / _TICKS))
    places = list(range(0, len(ladder), every))
    axes.set_xticks(places, ["\n".join(map(label, ladder[at].shown.split("\n"))) for at in places])
    axes.set_xlim(-0.5, len(ladder) - 0.5)
    axes.grid(axis="x", visible=False)
    for one in found:
        axes.axvline(one.at - 0.5, color="#555555", linewidth=1, linestyle=":", zorder=1)
        if named:
            axes.annotate(
                label(one.label), (one.at - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                textcoords="offset points", ha="center", va="bottom", fontsize=7, color="#333333",
            )  # fmt: skip
        if one.kind == "context":
            axes.axvspan(one.at - 1.3, one.at - 0.7, color="#999999", alpha=0.18, linewidth=0, zorder=0)


def about(study: Study, select: str) -> str:
    """Under a figure's title: what it stands on, and what its error bars are."""
    return f"{tokens_name(select)}; {study.about(select)}; 95 % intervals"


def cells(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """One column of a table."""
    return [row[name] for row in rows]
