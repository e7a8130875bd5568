"""Figures over the ladder: PPL and accuracy, metrics over steps, through context extension, before and after SFT."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.metrics import EPSILON, MIN_TOKENS, measure
from hesnr_tasks.plotting import COLOURS, MARKERS, figure, label
from hesnr_tasks.report.data import UNFILTERED, Study
from hesnr_tasks.report.drawing import (
    NAMES,
    Drawing,
    about,
    bars,
    bound_axis,
    cells,
    checkpoint_axis,
    line,
    series,
    tokens_name,
)
from hesnr_tasks.report.figures.entropy import spread
from hesnr_tasks.report.ladder import Boundary, Checkpoint, boundaries
from hesnr_tasks.report.tables import AGREED, agreements, sweep_agreements
from hesnr_tasks.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "accuracy",
    "downstream_drawings",
    "extension",
    "ladder_drawings",
    "scatter_rows",
    "sft",
    "sft_pairs",
    "steps",
    "sweep_rows",
]

_TOPS = ("top1_acc", "top2_acc", "top5_acc", "top10_acc")
_CROWDED = 8  # with more checkpoints than that, horizontal bars would hide the points
_SFT = ("ppl", "he_ppl", "he_snr")
_Rows = Sequence[Mapping[str, Any]]


def ladder_drawings(study: Study) -> Iterator[Drawing]:
    """Those of Figures 1, 2, 7 and 8 that the numbers allow."""
    for make in (accuracy, steps, extension, sft):
        drawing = make(study)
        if drawing is not None:
            yield drawing


def _rows(study: Study, select: str, names: Sequence[str]) -> list[dict[str, Any]]:
    values = study.values.get(select, {})
    return [
        {
            "checkpoint": one.name,
            "step": one.step,
            "context": one.context,
            "select": select,
            **{name: values[one.name].get(name, Estimate(math.nan)) for name in names},
        }
        for one in study.named(values)
    ]


def accuracy(study: Study) -> Drawing | None:
    """Figure 1: PPL against Top-k accuracy, Thought + Action."""
    rows = _rows(study, UNFILTERED, ("ppl", *_TOPS))
    if len(rows) < 2:
        return None
    title = "PPL and Top-k accuracy over checkpoints"
    sideways = " Those of PPL are in the CSV alone, to keep the points in sight." if len(rows) > _CROWDED else ""
    caption = (
        f"PPL against Top-1, 2, 5 and 10 accuracy of {len(rows)} checkpoints on {tokens_name(UNFILTERED)} tokens, "
        f"{study.about(UNFILTERED)}; checkpoints joined in the order of training, the last one ringed. "
        f"{study.bars}{sideways}"
    )
    table = Table("fig01_ppl_accuracy", title, rows)
    return Drawing(
        "fig01_ppl_accuracy",
        "Fig. 1",
        title,
        about(study, UNFILTERED),
        caption,
        (table,),
        partial(_draw_accuracy, rows),
    )


def _draw_accuracy(rows: _Rows) -> Figure:
    drawn, ((axes,),) = figure(width=5.2, height=3.6)
    ppl = cells(rows, "ppl")
    sideways = bars(ppl) if len(rows) <= _CROWDED else None
    for at, name in enumerate(_TOPS):
        numbers = cells(rows, name)
        x = [one.value for one in ppl]
        shown = f"Top-{name[3:-4]}"
        axes.errorbar(
            x, [one.value for one in numbers], bars(numbers), sideways, label=shown, elinewidth=0.8, **series(at)
        )
        axes.plot(x[-1:], [numbers[-1].value], "o", markersize=11, markerfacecolor="none", color="#333333", mew=0.8)
    _log_if_wide(axes, ppl)
    bound_axis(axes, ppl, "x")
    bound_axis(axes, [number for name in _TOPS for number in cells(rows, name)])
    axes.set(xlabel="PPL ↓" + (" (log scale)" if axes.get_xscale() == "log" else ""), ylabel="accuracy ↑")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn


def _log_if_wide(axes: Any, numbers: Sequence[Estimate]) -> None:
    known = [one.value for one in numbers if one.value > 0]
    if known and max(known) > 4 * min(known):
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def steps(study: Study) -> Drawing | None:
    """Figure 2: PPL, Top-1 and HE-SNR over training, filtered Action tokens, with the downstream score."""
    rows = _rows(study, study.filtered, ("ppl", "top1_acc", "he_snr"))
    if len(rows) < 2:
        return None
    for row in rows:
        score = study.downstream.get(row["checkpoint"])
        row["downstream"] = Estimate(score.value, math.nan, *score.ends) if score else Estimate(math.nan)
    title = "Metrics over training, filtered Action tokens"
    told = " and the downstream score (bars: Wilson's 95 % interval where n is known)" if study.downstream else ""
    caption = (
        f"PPL, Top-1 accuracy, HE-SNR{told} of {len(rows)} checkpoints on {tokens_name(study.filtered)}, "
        f"{study.about(study.filtered)}. Checkpoints are evenly spaced in the order of training, not to the scale of "
        f"steps. {_marks(study)}{study.bars}"
    )
    ladder = study.named(study.values[study.filtered])
    draw = partial(_draw_steps, rows, ladder, boundaries(ladder))
    return Drawing(
        "fig02_steps",
        "Fig. 2",
        title,
        about(study, study.filtered),
        caption,
        (Table("fig02_steps", title, rows),),
        draw,
    )


def _marks(study: Study) -> str:
    kinds = {one.kind for one in boundaries(study.ladder)}
    step = "The grey band is “step 0”, the last checkpoint before the context extension. " if "context" in kinds else ""
    return step + ("Dotted lines part contexts (→ 128K: the extension to it) and stages. " if kinds else "")


def _draw_steps(rows: _Rows, ladder: Sequence[Checkpoint], found: Sequence[Boundary]) -> Figure:
    names = ["ppl", "top1_acc", "he_snr"]
    if any(not math.isnan(row["downstream"].value) for row in rows):
        names.append("downstream")
    drawn, axes = figure(1 + (len(names) > 3), min(len(names), 3) if len(names) < 4 else 2, width=3.3, height=2.8)
    for at, (panel, name) in enumerate(zip(axes.flat, names, strict=True)):
        line(panel, range(len(rows)), cells(rows, name), at)
        checkpoint_axis(panel, ladder, found)
        panel.set(ylabel=NAMES[name], xlabel="training step, context")
    return drawn


def extension(study: Study) -> Drawing | None:
    """Figure 7: |H| and HE-SNR through the context extension, steps counted from the checkpoint before it."""
    ladder = study.named(study.values.get(study.filtered, {}))
    at = next((one.at for one in boundaries(ladder) if one.kind == "context"), None)
    if at is None:
        return None
    stage = ladder[at - 1].stage
    kept = [one for one in ladder if one.stage == stage]
    after = _since(kept, ladder[at - 1])
    rows = [row for row in _rows(study, study.filtered, ("he_tokens", "he_snr")) if row["checkpoint"] in after]
    rows = [{**row, "since": after[row["checkpoint"]]} for row in rows]
    title = "|H| and HE-SNR through the context extension"
    caption = (
        f"Size of the High-Entropy Decision Set H and HE-SNR of {len(rows)} checkpoints, "
        f"{tokens_name(study.filtered)}, {study.about(study.filtered)}. Step 0 (grey band) is {ladder[at - 1].name}, "
        f"the last before the extension; evenly spaced. {study.bars} |H| is a count and has none."
    )
    draw = partial(_draw_extension, rows, next(i for i, one in enumerate(kept) if one.name == ladder[at].name))
    table = Table("fig07_extension", title, rows)
    return Drawing("fig07_extension", "Fig. 7", title, about(study, study.filtered), caption, (table,), draw)


def _since(ladder: Sequence[Checkpoint], zero: Checkpoint) -> dict[str, int | None]:
    """Steps since the extension; where they begin anew after it they are that already."""
    found: dict[str, int | None] = {}
    past = False
    for one in ladder:
        anew = past and one.step is not None and zero.step is not None and one.step < zero.step
        base = 0 if anew or zero.step is None else zero.step
        found[one.name] = None if one.step is None else one.step - base
        past = past or one.name == zero.name
    return found


def _draw_extension(rows: _Rows, at: int) -> Figure:
    drawn, (panels,) = figure(1, 2, width=3.6, height=2.9)
    shown = [label(row["checkpoint"]) if row["since"] is None else f"{row['since']:+d}" for row in rows]
    ladder = [
        Checkpoint(row["checkpoint"], label="0" if text == "+0" else text)
        for row, text in zip(rows, shown, strict=True)
    ]
    for i, (panel, name) in enumerate(zip(panels, ("he_tokens", "he_snr"), strict=True)):
        line(panel, range(len(rows)), cells(rows, name), i)
        checkpoint_axis(panel, ladder, [Boundary(at, "context", "extension")])
        panel.set(ylabel=NAMES[name], xlabel="steps since step 0")
    return drawn


def sft(study: Study) -> Drawing | None:
    """Figure 8: PPL, HE-PPL and HE-SNR before and after SFT."""
    rows = [row for select in (study.filtered, UNFILTERED) for row in _sft_rows(study, select)]
    if not rows:
        return None
    title = "Before and after SFT"
    pairs = len({row["after"] for row in rows})
    caption = (
        f"PPL, HE-PPL and HE-SNR of {pairs} checkpoint{'s' * (pairs > 1)} before and after the next stage of training, "
        f"{study.about(study.filtered)}; filtered Action tokens solid, Thought + Action dashed. {study.bars}"
    )
    draw = partial(_draw_sft, rows)
    return Drawing(
        "fig08_sft",
        "Fig. 8",
        title,
        f"{study.about(study.filtered)}; 95 % intervals",
        caption,
        (Table("fig08_sft", title, rows),),
        draw,
    )


def _sft_rows(study: Study, select: str) -> Iterator[dict[str, Any]]:
    values = study.values.get(select, {})
    ladder = study.named(values)
    for before, after in sft_pairs(ladder):
        sides = {"before": before, "after": after}
        yield {"select": select, **{key: one.name for key, one in sides.items()}} | {
            f"{name}_{key}": values[one.name][name] for name in _SFT for key, one in sides.items()
        }


def sft_pairs(ladder: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Each checkpoint of a later stage and the one it was made from: as said, of the same step and context, or last."""
    named = {one.name: one for one in ladder}
    found = []
    for at, one in enumerate(ladder):
        earlier = [other for other in ladder[:at] if other.stage != one.stage]
        if one.before in named:
            found.append((named[one.before], one))
        elif one.stage and earlier and at and (one.before is None):
            same = [x for x in earlier if (x.step, x.context) == (one.step, one.context) and one.step is not None]
            if same or ladder[at - 1].stage != one.stage:
                found.append(((same or earlier)[-1], one))
    return found


def _draw_sft(rows: _Rows) -> Figure:
    drawn, (panels,) = figure(1, 3, width=2.7, height=2.9)
    places = {name: at for at, name in enumerate(dict.fromkeys(cells(rows, "after")))}
    for panel, name in zip(panels, _SFT, strict=True):
        for row in rows:
            look = series(places[row["after"]]) | {"linestyle": "--" if row["select"] == UNFILTERED else "-"}
            numbers = [row[f"{name}_before"], row[f"{name}_after"]]
            text = f"{label(row['after'])}{', unfiltered' * (row['select'] == UNFILTERED)}"
            panel.errorbar([0, 1], [one.value for one in numbers], bars(numbers), label=text, elinewidth=1, **look)
        bound_axis(panel, [row[f"{name}_{side}"] for row in rows for side in ("before", "after")])
        panel.set_xticks([0, 1], ["before", "after"])
        panel.set(xlim=(-0.4, 1.4), ylabel=NAMES[name])
        panel.grid(axis="x", visible=False)
    handles, names = panels[0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside lower center", ncols=2, handlelength=4)
    return drawn


# --- Figures of what metrics are worth: against the downstream score (Fig. 6), and over the threshold ---

_NAMED = 12  # more points than that are not named


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
            "downstream": Estimate(score.value, math.nan, *score.ends),
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
