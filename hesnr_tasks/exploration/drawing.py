"""The figure of `hesnr analyze --exploration`: what is drawn, as numbers, and its drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.analysis.measures import Number
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.exploration.tables import PARTS
from hesnr_tasks.exploration.units import TURNS
from hesnr_tasks.report.style import COLOURS, LINES, MARKERS, figure, save

__all__ = ["Drawn", "Line", "draw", "drawn"]


class Line(NamedTuple):
    """A series: what it is called, and a value with its interval at each of its places."""

    name: str
    places: tuple[str, ...]
    values: tuple[Number, ...]


class Drawn(NamedTuple):
    """`groups`: differences of the last run, raw and matched, a place a group. `course`: the matched difference of each
    part over runs, or over turns where there is one run only; `over` says which.
    """

    run: str
    groups: tuple[Line, Line]
    over: str
    course: tuple[Line, ...]


def drawn(tables: Sequence[Table]) -> Drawn:
    """The numbers of the figure, from the tables of all runs (of the first token set and k among them)."""
    rows = {name: _first(tables, name) for name in ("exploration", "exploration_by_turn")}
    runs = list(dict.fromkeys(row["run"] for row in rows["exploration"]))
    last = [row for row in rows["exploration"] if row["run"] == runs[-1]]
    places = tuple(_place(row) for row in last)
    groups = tuple(
        Line(name, places, tuple(row[key] for row in last)) for name, key in (("raw", "difference"), ("matched",) * 2)
    )
    if len(runs) > 1:
        whole = [row for row in rows["exploration"] if row["group"] == "all"]
        return Drawn(runs[-1], groups, "run", _course(whole, "run", runs))  # type: ignore[arg-type]
    turns = {row["turn"] for row in rows["exploration_by_turn"]}
    seen = [turn for turn in TURNS if turn in turns]
    return Drawn(runs[-1], groups, "turn", _course(rows["exploration_by_turn"], "turn", seen))  # type: ignore[arg-type]


def draw(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png; returns both paths."""
    found = drawn(tables)
    made, axes = figure(1, 2, width=4.2, height=3.6)
    _draw_groups(axes[0][0], found)
    _draw_course(axes[0][1], found)
    return save(made, stem)


def _first(tables: Sequence[Table], name: str) -> list[Mapping[str, Any]]:
    rows = next(table.rows for table in tables if table.name == name)
    return [row for row in rows if all(row[key] == rows[0][key] for key in ("select", "k"))]


def _place(row: Mapping[str, Any]) -> str:
    return str(row["part"] if row["group"] == "all" else row["group"])


def _course(rows: Sequence[Mapping[str, Any]], by: str, places: Sequence[str]) -> tuple[Line, ...]:
    lines = []
    for part in PARTS:
        known = {row[by]: row["matched"] for row in rows if row["part"] == part}
        lines.append(Line(part, tuple(places), tuple(known.get(place, Number(math.nan)) for place in places)))
    return tuple(lines)


def _draw_groups(axes: Any, found: Drawn) -> None:
    places = found.groups[0].places
    for i, line in enumerate(found.groups):
        at = [row + 0.14 * (2 * i - 1) for row in range(len(places))]
        values, errors = _bars(line.values)
        look = {"fmt": MARKERS[i], "color": COLOURS[0 if i else 7], "markerfacecolor": None if i else "white"}
        axes.errorbar(values, at, xerr=errors, label=line.name, linewidth=1.2, capsize=2, **look)
    limit = _limit(found.groups)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(-limit, limit)
    axes.set_yticks(range(len(places)), [name if name in PARTS else f"– {name}" for name in places])
    axes.set_ylim(len(places) + 0.6, -0.6)  # room for the legend
    axes.set_xlabel("entropy less that of the others (nats)")
    axes.set_title(found.run, fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", ncols=2, fontsize=8, frameon=False)


def _draw_course(axes: Any, found: Drawn) -> None:
    limit = _limit(found.course)
    for i, line in enumerate(found.course):
        at = [place + 0.08 * (i - 1) for place in range(len(line.places))]
        values, errors = _bars(line.values)
        errors = [[min(error, 2 * limit) for error in errors[0]], _clipped(values, errors[1], limit)]
        look = {"marker": MARKERS[i], "linestyle": LINES[i], "color": COLOURS[i]}
        axes.errorbar(at, values, yerr=errors, label=line.name, linewidth=1.2, capsize=2, **look)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(-limit, 1.5 * limit)  # room for the legend
    places = found.course[0].places
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, places)) > 5 else {}
    axes.set_xticks(range(len(places)), places, **slanted)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel("turn" if found.over == "turn" else "")
    axes.set_ylabel("matched difference (nats)")
    axes.set_title(f"{found.run}, by turn" if found.over == "turn" else "by run", fontsize=9)
    axes.legend(loc="upper center", fontsize=8, frameon=False)


def _clipped(values: Sequence[float], errors: Sequence[float], limit: float) -> list[float]:
    """Bars that stay out of the legend."""
    return [min(error, limit - value) for value, error in zip(values, errors, strict=True)]


def _limit(lines: Sequence[Line]) -> float:
    """Room for all values, and for intervals up to twice as far out; longer ones leave the axes."""
    numbers = [number for line in lines for number in line.values if math.isfinite(number.value)]
    farthest = max((abs(number.value) for number in numbers), default=0.0)
    ends = [abs(end) for number in numbers for end in (number.low, number.high) if math.isfinite(end)]
    return 1.1 * max(farthest, min(max(ends, default=0.0), 2 * farthest)) or 1.0


def _bars(values: Sequence[Number]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far the interval reaches below and above; no bar where there is no interval."""
    reach = [[abs(n.value - n.low), abs(n.high - n.value)] for n in values]
    errors = [list(side) for side in zip(*([0.0 if math.isnan(x) else x for x in both] for both in reach), strict=True)]
    return [n.value for n in values], errors
