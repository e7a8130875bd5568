"""Figures of entropies: histograms with their peaks (Fig. 3, 4, 5, 10, 11), all checkpoints laid over each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hesnr_tasks.analysis.density import POPULATIONS
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.plotting import COLOURS, figure, label
from hesnr_tasks.report.data import OBSERVATION, Digest, Shape, Study
from hesnr_tasks.report.drawing import Drawing, series, tokens_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "entropy_drawings", "histogram_rows", "spread"]

_WAYS = (2, 3, 4, 5)
_OVER: dict[str, Any] = {"clip_on": False, "zorder": 5}
_MOST = 8  # checkpoints with a row of histograms of their own
_TITLES = {"all": "all tokens", "non-top-1": "Non-Top-1 (rank > 1)", "non-top-2": "Non-Top-2 (rank > 2)"}
_Rows = Sequence[Mapping[str, Any]]


def entropy_drawings(study: Study) -> Iterator[Drawing]:
    """Histograms and overlaid densities of filtered actions and, where they were scored, of observations."""
    for select, ways in ((study.filtered, _WAYS), (OBSERVATION, (2, 3, 4, 5, 10))):
        known = [one for one in study.digests if any(shape.select == select for shape in one.shapes)]
        if known:
            yield _histograms(study, known, select, ways)
        if len(known) > 1:
            yield _overlaid(study, known, select, ways)


def histogram_rows(digests: Sequence[Digest], select: str) -> list[dict[str, Any]]:
    """A row a bin: numbers of tokens whose entropy lies from `low` to `high` (nats), and their density."""
    return [
        {
            "checkpoint": one.name,
            "population": shape.population,
            "low": round(low, 6),
            "high": round(high, 6),
            "tokens": count,
            "density": round(count / shape.tokens / (high - low), 6) if shape.tokens else 0.0,
        }
        for one in digests
        for shape in one.shapes
        if shape.select == select
        for (low, high), count in zip(itertools.pairwise(shape.edges.tolist()), shape.counts.tolist(), strict=True)
    ]


def curves(digests: Sequence[Digest], select: str) -> list[dict[str, Any]]:
    """A row a grid point of every kernel density, in 1 / nats; `peak`: "mode", "peak" or nothing."""
    return [
        {
            "checkpoint": one.name,
            "population": shape.population,
            "entropy": round(entropy, 5),
            "density": round(height, 5),
            "peak": kind,
        }
        for one in digests
        for shape in one.shapes
        if shape.select == select
        for entropy, height, kind in _points(shape)
    ]


def _points(shape: Shape) -> Iterator[tuple[float, float, str]]:
    for entropy, height in zip(shape.grid.tolist(), shape.height.tolist(), strict=True):
        yield entropy, height, ""
    for at, peak in enumerate(shape.peaks):
        yield peak.entropy, peak.height, "peak" if at else "mode"


def spread(items: Sequence[Digest], most: int = _MOST) -> list[Digest]:
    """At most so many, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _histograms(study: Study, known: Sequence[Digest], select: str, ways: Sequence[int]) -> Drawing:
    observed = select == OBSERVATION
    name = "fig05_observation_entropy" if observed else "fig03_entropy"
    some = spread(known)
    title = f"Entropies of {'Observation' if observed else 'filtered Action'} tokens"
    left = "" if len(some) == len(known) else f" ({len(some)} of {len(known)} checkpoints drawn; the CSV has all)"
    caption = (
        f"Histograms of H_top{study.k} on {tokens_name(select)}, {study.about(select)}: all tokens, those that are not "
        f"the model's first choice, and those that are neither its first nor its second{left}. Heights are densities "
        f"(area 1); the curve is the kernel density, ▼ its mode (the global peak). Dashed: {_lines(ways)}. "
        "Shapes of single runs; no error bars."
    )
    rows, lines = histogram_rows(known, select), curves(known, select)
    told = f"H_top{study.k}, {study.about(select)}"
    tables = (Table(name, title, rows), Table(f"{name}_density", title, lines))
    draw = partial(_draw_histograms, rows, lines, [one.name for one in some], ways)
    return Drawing(name, "Fig. 5" if observed else "Fig. 3, 4, 10, 11", title, told, caption, tables, draw)


def _lines(ways: Sequence[int]) -> str:
    return ", ".join(f"ln {n}" for n in ways)


def _draw_histograms(rows: _Rows, lines: _Rows, names: Sequence[str], ways: Sequence[int]) -> Figure:
    drawn, axes = figure(len(names), len(POPULATIONS), width=2.75, height=1.55)
    for i, name in enumerate(names):
        for j, which in enumerate(POPULATIONS):
            panel = axes[i, j]
            own = [row for row in rows if (row["checkpoint"], row["population"]) == (name, which)]
            curve = [row for row in lines if (row["checkpoint"], row["population"]) == (name, which)]
            edges = [own[0]["low"], *(row["high"] for row in own)]
            panel.stairs([row["density"] for row in own], edges, fill=True, color=COLOURS[5], alpha=0.55)
            smooth = [row for row in curve if not row["peak"]]
            panel.plot([r["entropy"] for r in smooth], [r["density"] for r in smooth], color=COLOURS[0], linewidth=1)
            _marks(panel, ways, named=i == 0)
            _mode(panel, curve)
            _top(panel, own, smooth)
            tokens = sum(row["tokens"] for row in own)
            panel.set_title(f"{label(name)}, n = {tokens}", fontsize=8, pad=12)
            if i == 0:
                panel.annotate(
                    _TITLES[which], (0.5, 1), xycoords="axes fraction", xytext=(0, 26), textcoords="offset points",
                    ha="center", weight="bold",
                )  # fmt: skip
            panel.set_xlabel("entropy, nats" if i == len(names) - 1 else "")
            panel.set_ylabel("density" if j == 0 else "")
    return drawn


def _top(panel: Any, own: _Rows, smooth: _Rows) -> None:
    """Room for what is of interest: the spike at 0 may be cut off, and is then marked as such."""
    inner = [row["density"] for row in own if row["low"] > 0.25] + [r["density"] for r in smooth if r["entropy"] > 0.25]
    whole = max(row["density"] for row in own)
    top = 1.6 * max(inner, default=whole) if inner and max(inner) > 0 else whole
    if 0 < top < whole:
        panel.set_ylim(0, top)
        panel.annotate(
            f"↑ {whole:.1f}", (0.015, 0.97), xycoords="axes fraction", va="top", fontsize=7, color="#333333"
        )  # fmt: skip
    panel.set_xlim(0, max(row["high"] for row in own))


def _marks(panel: Any, ways: Sequence[int], *, named: bool = True) -> None:
    for n in ways:
        panel.axvline(math.log(n), color="#444444", linewidth=0.8, linestyle="--", zorder=1)
        panel.annotate(
            f"ln {n}", (math.log(n), 1), xycoords=("data", "axes fraction"), xytext=(0, 1), textcoords="offset points",
            ha="center", va="bottom", fontsize=6.5, color="#444444",
        )  # fmt: skip
    panel.grid(axis="x", visible=False)


def _mode(panel: Any, curve: _Rows) -> None:
    for row in curve:
        if row["peak"] == "mode":
            panel.plot(
                [row["entropy"]], [0.93], "v", color=COLOURS[1], transform=panel.get_xaxis_transform(), ms=5, **_OVER
            )


def _overlaid(study: Study, known: Sequence[Digest], select: str, ways: Sequence[int]) -> Drawing:
    observed = select == OBSERVATION
    name = "fig05_observation" if observed else "fig03"
    some = spread(known)
    title = f"Densities of entropies over checkpoints, {'Observation' if observed else 'filtered Action'} tokens"
    caption = (
        f"Kernel densities of H_top{study.k} of {len(some)} checkpoints laid over each other, {tokens_name(select)}, "
        f"{study.about(select)}. Mass that moves from ln 4 to ln 3 is the paper's “shift to ln 3”. The axis ends above "
        "the highest peak right of 0.25 nats; no error bars."
    )
    lines = curves(known, select)
    told = f"H_top{study.k}, {study.about(select)}"
    tables = (Table(f"{name}_entropy_density", title, lines),)
    draw = partial(_draw_overlaid, lines, [one.name for one in some], ways)
    return Drawing(f"{name}_density", "Fig. 5" if observed else "Fig. 4, 11", title, told, caption, tables, draw)


def _draw_overlaid(lines: _Rows, names: Sequence[str], ways: Sequence[int]) -> Figure:
    drawn, (panels,) = figure(1, len(POPULATIONS), width=3.2, height=3.0)
    for panel, which in zip(panels, POPULATIONS, strict=True):
        highest = 0.0
        for at, name in enumerate(names):
            own = [r for r in lines if (r["checkpoint"], r["population"], r["peak"]) == (name, which, "")]
            x, y = [row["entropy"] for row in own], [row["density"] for row in own]
            look = {key: value for key, value in series(at).items() if key != "marker"}
            panel.plot(x, y, label=label(name), linewidth=1.3, **look)
            highest = max([highest, *(b for a, b in zip(x, y, strict=True) if a > 0.25)])
        _marks(panel, ways)
        panel.set(xlim=(0, max(x)), ylim=(0, 1.15 * highest or None), xlabel="entropy, nats", ylabel="density")
        panel.set_title(_TITLES[which], pad=14)
    handles, shown = panels[0].get_legend_handles_labels()
    drawn.legend(handles, shown, loc="outside lower center", ncols=4)
    return drawn
