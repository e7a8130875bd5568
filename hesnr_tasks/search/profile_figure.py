"""The histogram of tool entropies over steps: mostly low, with a thin tail of steps that decide (EGSS)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.report.style import COLOURS, LINES, figure, save
from hesnr_tasks.search.profile_measures import quantile, skewness

__all__ = ["Drawn", "draw", "drawn"]

BINS = 40
FloatArray = npt.NDArray[np.float64]


class Drawn(NamedTuple):
    """What the figure shows."""

    edges: FloatArray  # (bins + 1,) nats
    share: FloatArray  # (bins,) of steps, in per cent
    marks: dict[str, float]  # vertical lines, nats
    skewness: float
    steps: int


def drawn(values: FloatArray, k: int) -> Drawn:
    """The numbers of the figure, from entropies of steps in nats."""
    top = math.log(k)
    counts, edges = np.histogram(np.minimum(values, top), bins=BINS, range=(0.0, top))
    ordered = np.sort(values)
    marks = {
        "mean": float(values.mean()) if len(values) else math.nan,
        "90 %": quantile(ordered, 0.9),
        "99 %": quantile(ordered, 0.99),
    }
    sums = np.array([[len(values), values.sum(), (values**2).sum(), (values**3).sum()]])
    share = 100 * counts / max(1, len(values))
    return Drawn(edges, share, marks, float(skewness(sums)[0]), len(values))


def draw(values: FloatArray, k: int, stem: Path, name: str) -> list[Path]:
    """Draw the histogram of one run to `stem`.svg and .png; returns both paths."""
    shown = drawn(values, k)
    made, axes = figure(width=4.6, height=2.9)
    axis = axes[0, 0]
    axis.stairs(shown.share, shown.edges, fill=True, color=COLOURS[0], alpha=0.75)
    for (label, at), colour, line in zip(shown.marks.items(), COLOURS[1:], LINES, strict=False):
        if math.isfinite(at):
            axis.axvline(at, color=colour, linestyle=line, label=f"{label}: {at:.2f}")
    axis.set_xlim(0, math.log(k))
    axis.set_xlabel("tool entropy of a step (nats)")
    axis.set_ylabel("steps (%)")
    axis.set_title(f"{name}: {shown.steps} steps, skewness {shown.skewness:.2f}", fontsize=9)
    if shown.steps:
        axis.legend(fontsize=8, frameon=False)
    return save(made, stem)
