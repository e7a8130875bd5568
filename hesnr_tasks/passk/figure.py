"""The curve over k with its intervals, and beside it the difference of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.passk.curve import Point
from hesnr_tasks.passk.paired import Difference
from hesnr_tasks.report.style import COLOURS, LINES, MARKERS, figure, save

__all__ = ["draw", "drawn"]

Series = dict[str, list[float]]


def drawn(
    curves: Mapping[str, Sequence[Point]], against: Mapping[str, Sequence[Difference]]
) -> dict[str, dict[str, Series]]:
    """The numbers in the figure, in per cent: panel → checkpoint → k, value, low, high."""
    panels = {"curve": {name: _series(points, "value") for name, points in curves.items()}}
    if against:
        panels["difference"] = {name: _series(found, "difference") for name, found in against.items()}
    return panels


def draw(
    curves: Mapping[str, Sequence[Point]],
    against: Mapping[str, Sequence[Difference]],
    reference: str,
    stem: Path,
) -> list[Path]:
    """Write the figure to `stem`.svg and `stem`.png; `HesnrError` without matplotlib."""
    panels = drawn(curves, against)
    picture, axes = figure(1, len(panels), width=4.2, height=3.1)
    order = {name: i for i, name in enumerate(curves)}
    for panel, plot in zip(panels, axes[0], strict=True):
        for name, series in panels[panel].items():
            _line(plot, name, series, order[name], len(panels[panel]))
        _frame(plot, sorted({int(k) for series in panels[panel].values() for k in series["k"]}))
    axes[0, 0].set_ylabel("Pass@k (%)")
    if len(curves) > 1:
        axes[0, 0].legend(loc="best")
    if against:
        axes[0, 1].axhline(0, color="#444444", linewidth=0.8)
        axes[0, 1].set_ylabel(f"difference to {reference} (points)")
    return save(picture, stem)


def _series(points: Sequence[Any], value: str) -> Series:
    columns = {"k": "k", "value": value, "low": "low", "high": "high"}
    return {
        name: [float(getattr(point, column)) * (1 if name == "k" else 100) for point in points]
        for name, column in columns.items()
    }


def _line(plot: Any, name: str, series: Series, i: int, together: int) -> None:
    shift = 1.05 ** (i - (together - 1) / 2) if together > 1 else 1.0  # so that error bars do not hide each other
    at = [k * shift for k in series["k"]]
    reach = [
        [max(0.0, v - x) for v, x in zip(series["value"], series["low"], strict=True)],
        [max(0.0, x - v) for v, x in zip(series["value"], series["high"], strict=True)],
    ]
    look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    plot.errorbar(at, series["value"], yerr=reach, label=name, linestyle=LINES[i % len(LINES)], elinewidth=1, **look)


def _frame(plot: Any, ks: Sequence[int]) -> None:
    plot.set_xscale("log", base=2)
    plot.set_xticks(ks, [str(k) for k in ks], minor=False)
    plot.minorticks_off()
    plot.set_xlabel("k")
