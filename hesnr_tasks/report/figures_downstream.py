"""Figures of what metrics are worth: against the downstream score (Fig. 6), and over the threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hesnr_tasks.analysis.measures import Number, measure
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.metrics import EPSILON, MIN_TOKENS
from hesnr_tasks.report.digest import UNFILTERED
from hesnr_tasks.report.drawing import NAMES, Drawing, about, bars, bound_axis, label, series, tokens_name
from hesnr_tasks.report.figures_entropy import spread
from hesnr_tasks.report.study import Study
from hesnr_tasks.report.style import COLOURS, MARKERS, figure
from hesnr_tasks.report.tables import AGREED, agreements, sweep_agreements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["downstream_drawings", "scatter_rows", "sweep_rows"]

_NAMED = 12  # more points than that are not named
_Rows = Sequence[Mapping[str, Any]]


def downstream_drawings(study: Study) -> Iterator[Drawing]:
    """Figure 6 with downstream scores; the threshold sweep with score files."""
    rows = scatter_rows(study)
    if rows:
        yield _scatter(study, rows)
    if any(len(one.sweep) for one in study.digests):
        yield _sweep(study)
    found = sweep_agreements(study)
    if found.rows:
        yield _sweep_agreement(study, found)


def scatter_rows(study: Study) -> list[dict[str, Any]]:
    """A row a checkpoint and set of tokens: the three metrics and the downstream score, each with its interval."""
    return [
        {
            "checkpoint": one.name,
            "select": select,
            **{name: study.values[select][one.name][name] for name in AGREED},
            "downstream": Number(score.value, math.nan, *score.ends),
        }
        for select in dict.fromkeys((UNFILTERED, study.filtered))
        for one in study.named(study.values.get(select, {}))
        for score in [study.downstream.get(one.name)]
        if score is not None
    ]


def _scatter(study: Study, rows: _Rows) -> Drawing:
    title = "Metrics against the downstream score"
    table = agreements(study)
    known = [one.name for one in study.named({row["checkpoint"]: row for row in rows})]
    numbered = "Points are numbered in the order of training. " if len(known) <= _NAMED else ""
    caption = (
        f"PPL, HE-PPL and HE-SNR of {len(known)} checkpoints against their downstream score; above "
        f"{tokens_name(UNFILTERED)}, below {tokens_name(study.filtered)}; {study.about(study.filtered)}. {numbered}"
        "r, ρ, τ: Pearson, Spearman, Kendall (tau-b), the sign of PPL and HE-PPL "
        f"turned, so +1 is perfect. {study.bars} Vertical: Wilson's 95 % interval, where the number of tasks is known."
    )
    draw = partial(_draw_scatter, rows, table.rows, known)
    tables = (Table("fig06_downstream", title, rows), table)
    told = f"{len(known)} checkpoints, {about(study, study.filtered)}"
    return Drawing("fig06_downstream", "Fig. 6", title, told, caption, tables, draw)


def _draw_scatter(rows: _Rows, agreed: _Rows, known: Sequence[str]) -> Figure:
    selects = list(dict.fromkeys(row["select"] for row in rows))
    drawn, axes = figure(len(selects), len(AGREED), width=3.0, height=2.7)
    for i, select in enumerate(selects):
        own = [row for row in rows if row["select"] == select]
        for j, name in enumerate(AGREED):
            _points(axes[i, j], own, name, known)
            told = next((r for r in agreed if (r["select"], r["metric"]) == (select, name)), {})
            signs = zip("rρτ", ("pearson", "spearman", "kendall"), strict=True)
            text = "   ".join(f"{sign} = {told[key]:+.2f}" for sign, key in signs if key in told)
            axes[i, j].set_title(text, fontsize=8)
            axes[i, j].set(xlabel=NAMES[name], ylabel=NAMES["downstream"] if j == 0 else "")
        axes[i, 0].annotate(
            tokens_name(select), (-0.32, 0.5), xycoords="axes fraction", rotation=90, ha="center", va="center",
            fontsize=8, weight="bold",
        )  # fmt: skip
    return drawn


def _points(panel: Any, rows: _Rows, name: str, known: Sequence[str]) -> None:
    """A checkpoint has the same number in every panel, whichever others are in it."""
    x, y = [row[name] for row in rows], [row["downstream"] for row in rows]
    values = [one.value for one in x], [one.value for one in y]
    panel.errorbar(*values, yerr=bars(y), xerr=bars(x), fmt="none", ecolor="#999999", elinewidth=0.9, capsize=1.5)
    bound_axis(panel, x, "x")
    bound_axis(panel, y)
    few = len(known) <= _NAMED
    for row, a, b in zip(rows, *values, strict=True):
        at = known.index(row["checkpoint"])
        panel.plot([a], [b], MARKERS[at % len(MARKERS)] if few else "o", color=COLOURS[at % 7 if few else 0])
        if few:
            panel.annotate(str(at + 1), (a, b), xytext=(4, 3), textcoords="offset points", fontsize=7)


def sweep_rows(study: Study) -> list[dict[str, Any]]:
    """A row a threshold and checkpoint: HE-SNR and |H| on filtered actions."""
    rows = []
    for one in study.digests:
        if len(one.sweep):
            found = measure(
                one.sweep, one.copies[one.filtered], ("he_snr", "he_tokens"),
                resamples=study.resamples, seed=study.seed, min_tokens=MIN_TOKENS,
            )  # fmt: skip
            rows += [
                {"checkpoint": one.name, "epsilon": epsilon, "ways": math.exp(epsilon)}
                | {"he_snr": line["he_snr"], "he_tokens": round(line["he_tokens"].value)}
                for epsilon, line in zip(one.epsilons, found, strict=True)
            ]
    return rows


def _sweep(study: Study) -> Drawing:
    rows = sweep_rows(study)
    names = [one.name for one in spread([one for one in study.digests if len(one.sweep)])]
    title = "HE-SNR over the threshold ε"
    caption = (
        f"HE-SNR of {len(names)} checkpoints on {tokens_name(study.filtered)} as ε goes from ln 2 to ln 5, "
        f"{study.about(study.filtered)}; dotted: the ε in use, {study.epsilon:.4f}. Bands: 95 % interval (cluster "
        "bootstrap over trajectories)."
    )
    draw = partial(_draw_sweep, rows, names, study.epsilon)
    told = about(study, study.filtered)
    return Drawing("sweep", "threshold sweep", title, told, caption, (Table("sweep", title, rows),), draw)


def _draw_sweep(rows: _Rows, names: Sequence[str], epsilon: float) -> Figure:
    drawn, ((axes,),) = figure(width=5.6, height=3.8)
    for at, name in enumerate(names):
        own = [row for row in rows if row["checkpoint"] == name]
        x = [row["epsilon"] for row in own]
        look = series(at)
        axes.plot(x, [row["he_snr"].value for row in own], label=label(name), markersize=3.5, **look)
        low, high = ([getattr(row["he_snr"], end) for row in own] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=look["color"], alpha=0.08, linewidth=0)
    bound_axis(axes, [row["he_snr"] for row in rows])
    _thresholds(axes, epsilon)
    axes.set(ylabel=NAMES["he_snr"])
    drawn.legend(loc="outside lower center", ncols=4)
    return drawn


def _thresholds(axes: Any, epsilon: float) -> None:
    axes.axvline(epsilon, color="#333333", linewidth=1, linestyle=":")
    for n in (2, 3, 4, 5):
        axes.annotate(
            f"ln {n}", (math.log(n), 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=7, color="#444444",
        )  # fmt: skip
    axes.set(xlabel="threshold ε, nats")


def _sweep_agreement(study: Study, table: Table) -> Drawing:
    title = "Agreement of HE-SNR with the downstream score over ε"
    n = table.rows[0]["checkpoints"]
    caption = (
        f"Pearson r and Kendall τ of HE-SNR ({tokens_name(study.filtered)}) with the downstream score of {n} "
        "checkpoints as ε goes from ln 2 to ln 5; dotted: the ε in use. Bands: 95 % interval over trajectories."
    )
    draw = partial(_draw_sweep_agreement, table.rows, study.epsilon)
    told = f"{n} checkpoints, {about(study, study.filtered)}"
    return Drawing("sweep_correlations", "threshold sweep", title, told, caption, (table,), draw)


def _draw_sweep_agreement(rows: _Rows, epsilon: float = EPSILON) -> Figure:
    drawn, ((axes,),) = figure(width=5.2, height=3.2)
    x = [row["epsilon"] for row in rows]
    for at, (name, shown) in enumerate((("pearson", "Pearson r"), ("kendall", "Kendall τ"))):
        look = series(at)
        axes.plot(x, [row[name] for row in rows], label=shown, **look)
        ends = (np.array([row[f"{name}_trajectories_{end}"] for row in rows]) for end in ("low", "high"))
        axes.fill_between(x, *ends, color=look["color"], alpha=0.15, linewidth=0)
    _thresholds(axes, epsilon)
    axes.set(ylabel="agreement with downstream", ylim=(None, 1.05))
    axes.legend()
    return drawn
