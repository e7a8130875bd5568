"""Figures of entropies: histograms with their peaks (Fig. 3, 4, 5, 10, 11), densities of all checkpoints overlaid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from hesnr_tasks.analysis.breakdowns import POPULATIONS
from hesnr_tasks.analysis.summary import OBSERVATION, CheckpointSummary, EntropyDistribution
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.errors import number_of
from hesnr_tasks.plotting import COLOURS, figure, label, legend, series
from hesnr_tasks.report.data import ReportData, ReportFigure
from hesnr_tasks.report.tables import token_set_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
_MOST = 8  # checkpoints in one figure
_SPIKE = 0.25  # nats; axes are scaled by what is to the right of it
_TITLES = {"all": "all tokens", "non-top-1": "Non-Top-1 (rank > 1)", "non-top-2": "Non-Top-2 (rank > 2)"}
_TableRows = Sequence[Mapping[str, Any]]


def action_histograms(data: ReportData) -> ReportFigure | None:
    """Figures 3, 4, 10, 11: entropies of filtered actions."""
    return _histograms(data, data.filtered, "fig03_entropy", "Fig. 3, 4, 10, 11", (2, 3, 4, 5))


def action_densities(data: ReportData) -> ReportFigure | None:
    """Figures 4, 11: the same, checkpoints overlaid."""
    return _densities(data, data.filtered, "fig03", "Fig. 4, 11", (2, 3, 4, 5))


def observation_histograms(data: ReportData) -> ReportFigure | None:
    """Figure 5: entropies of observations, where they were scored."""
    return _histograms(data, OBSERVATION, "fig05_observation_entropy", "Fig. 5", (2, 3, 4, 5, 10))


def observation_densities(data: ReportData) -> ReportFigure | None:
    """Figure 5: the same, checkpoints overlaid."""
    return _densities(data, OBSERVATION, "fig05_observation", "Fig. 5", (2, 3, 4, 5, 10))


def histogram_rows(summaries: Sequence[CheckpointSummary], select: str) -> list[dict[str, Any]]:
    """A row a bin: number of tokens with an entropy from `low` to `high` (nats), and their density per nat."""
    return [
        {"checkpoint": name, "population": d.population, "low": round(low, 6), "high": round(high, 6), "tokens": count}
        | {"density": round(count / d.tokens / (high - low), 6) if d.tokens else 0.0}
        for name, d in _distributions(summaries, select)
        for (low, high), count in zip(itertools.pairwise(d.edges.tolist()), d.counts.tolist(), strict=True)
    ]


def density_rows(summaries: Sequence[CheckpointSummary], select: str) -> list[dict[str, Any]]:
    """A row a grid point of every kernel density, per nat; `peak`: "mode", "peak" or empty."""
    return [
        {"checkpoint": name, "population": d.population, "entropy": round(entropy, 5)}
        | {"density": round(height, 5), "peak": kind}
        for name, d in _distributions(summaries, select)
        for entropy, height, kind in [
            *zip(d.grid.tolist(), d.height.tolist(), itertools.repeat("")),
            *((peak.entropy, peak.height, "peak" if i else "mode") for i, peak in enumerate(d.peaks)),
        ]
    ]


def evenly_spaced(items: Sequence[T], most: int = _MOST) -> list[T]:
    """At most `most` of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _distributions(summaries: Sequence[CheckpointSummary], select: str) -> Iterator[tuple[str, EntropyDistribution]]:
    return ((s.name, d) for s in summaries for d in s.distributions if d.select == select)


def _histograms(data: ReportData, select: str, name: str, paper: str, peaks: Sequence[int]) -> ReportFigure | None:
    summaries = data.scored(select)
    if not summaries:
        return None
    shown = evenly_spaced(summaries)
    partly = f" ({len(shown)} of {number_of(len(summaries), 'checkpoint')} drawn; the CSV has all)"
    title = f"Entropies of {_token_type(select)} tokens"
    caption = (
        f"Histograms of H_top{data.k} on {token_set_title(select)}, {data.sample_size(select)}: all tokens, those that "
        "are not the model's first choice, and those that are neither its first nor its second"
        f"{partly * (len(shown) < len(summaries))}. Heights are densities (area 1), on one "
        "scale in each column; ↑: a spike at 0 that ends higher. The curve is the kernel density, ▼ "
        f"its mode (the global peak). Dashed: {', '.join(f'ln {n}' for n in peaks)}. Shapes of single runs; no error "
        "bars."
    )
    bins, curves = histogram_rows(summaries, select), density_rows(summaries, select)
    tables = (Table(name, title, bins), Table(f"{name}_density", title, curves))
    draw = partial(_draw_histograms, bins, curves, [summary.name for summary in shown], peaks)
    return ReportFigure(name, paper, title, f"H_top{data.k}, {data.sample_size(select)}", caption, tables, draw)


def _token_type(select: str) -> str:
    return "Observation" if select == OBSERVATION else "filtered Action"


def _draw_histograms(bins: _TableRows, curves: _TableRows, names: Sequence[str], peaks: Sequence[int]) -> Figure:
    canvas, axes = figure(len(names), len(POPULATIONS), width=2.75, height=1.55)
    of_bins, of_curves = _by_panel(bins), _by_panel(curves)
    for column, population in zip(axes.T, POPULATIONS, strict=True):
        keys = [(name, population) for name in names]
        # one axis for all checkpoints; the spike at 0 may be cut off
        heights = [row["density"] for key in keys for row in of_bins[key] if row["low"] > _SPIKE]
        heights += [row["density"] for key in keys for row in of_curves[key] if row["entropy"] > _SPIKE]
        top = 1.6 * max(heights, default=0.0)
        for panel, key in zip(column, keys, strict=True):
            edges = [of_bins[key][0]["low"], *(row["high"] for row in of_bins[key])]
            panel.stairs([row["density"] for row in of_bins[key]], edges, fill=True, color=COLOURS[5], alpha=0.55)
            smooth = [(row["entropy"], row["density"]) for row in of_curves[key] if not row["peak"]]
            panel.plot([x for x, _ in smooth], [y for _, y in smooth], color=COLOURS[0], linewidth=1)
            _mark_logarithms(panel, peaks)
            for mode in (row["entropy"] for row in of_curves[key] if row["peak"] == "mode"):
                above = {"transform": panel.get_xaxis_transform(), "clip_on": False, "zorder": 5}
                panel.plot([mode], [0.93], "v", color=COLOURS[1], ms=5, **above)
            highest = max(row["density"] for row in of_bins[key])
            panel.set(xlim=(0, edges[-1]), ylim=(0, top or None))
            if highest > top > 0:
                text = f"↑ {highest:.1f}"
                panel.annotate(text, (0.07, 0.97), xycoords="axes fraction", va="top", fontsize=7, color="#333333")
            panel.set_title(f"{label(key[0])}, n = {sum(row['tokens'] for row in of_bins[key])}", fontsize=8, pad=12)
            panel.tick_params(labelbottom=panel is column[-1])
        column[0].annotate(
            _TITLES[population], (0.5, 1), xycoords="axes fraction", xytext=(0, 26), textcoords="offset points",
            ha="center", weight="bold",
        )  # fmt: skip
        column[-1].set_xlabel("entropy, nats")
    for panel in axes[:, 0]:
        panel.set_ylabel("density, 1/nat")
    return canvas


def _by_panel(rows: _TableRows) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["checkpoint"], row["population"]), []).append(row)
    return panels


def _mark_logarithms(panel: Any, numbers: Sequence[int]) -> None:
    for n in numbers:
        panel.axvline(math.log(n), color="#444444", linewidth=0.8, linestyle="--", zorder=1)
        panel.annotate(
            f"ln {n}", (math.log(n), 1), xycoords=("data", "axes fraction"), xytext=(0, 1), textcoords="offset points",
            ha="center", va="bottom", fontsize=6.5, color="#444444",
        )  # fmt: skip
    panel.grid(axis="x", visible=False)


def _densities(data: ReportData, select: str, prefix: str, paper: str, peaks: Sequence[int]) -> ReportFigure | None:
    summaries = data.scored(select)
    if len(summaries) < 2:
        return None
    shown = evenly_spaced(summaries)
    title = f"Densities of entropies over checkpoints, {_token_type(select)} tokens"
    caption = (
        f"Kernel densities of H_top{data.k} of {number_of(len(shown), 'checkpoint')} laid over each other, "
        f"{token_set_title(select)}, {data.sample_size(select)}. Mass that moves from ln 4 to ln 3 is the paper's "
        "“shift to ln 3”. The axis ends above the highest peak right of 0.25 nats; no error bars."
    )
    curves = density_rows(summaries, select)
    tables = (Table(f"{prefix}_entropy_density", title, curves),)
    draw = partial(_draw_densities, curves, [summary.name for summary in shown], peaks)
    subtitle = f"H_top{data.k}, {data.sample_size(select)}"
    return ReportFigure(f"{prefix}_density", paper, title, subtitle, caption, tables, draw)


def _draw_densities(curves: _TableRows, names: Sequence[str], peaks: Sequence[int]) -> Figure:
    canvas, (panels,) = figure(1, len(POPULATIONS), width=3.2, height=3.0)
    of_curves = _by_panel(curves)
    for panel, population in zip(panels, POPULATIONS, strict=True):
        highest = 0.0
        for i, name in enumerate(names):
            own = [row for row in of_curves[name, population] if not row["peak"]]
            x, y = [row["entropy"] for row in own], [row["density"] for row in own]
            panel.plot(x, y, label=label(name), linewidth=1.3, **{**series(i), "marker": None})
            highest = max([highest, *(b for a, b in zip(x, y, strict=True) if a > _SPIKE)])
        _mark_logarithms(panel, peaks)
        panel.set(xlim=(0, max(x)), ylim=(0, 1.15 * highest or None), xlabel="entropy, nats", ylabel="density, 1/nat")
        panel.set_title(_TITLES[population], pad=14)
    handles, texts = panels[0].get_legend_handles_labels()
    legend(canvas, handles, texts)
    return canvas
