"""Figures of metrics: over the ladder (Fig. 1, 2, 7, 8), against the downstream score (Fig. 6), over the threshold."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hesnr_tasks.analysis.summary import UNFILTERED
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.errors import number_of
from hesnr_tasks.ladder.names import Boundary, boundaries, sft_pairs
from hesnr_tasks.ladder.schema import Checkpoint, kinds_of
from hesnr_tasks.metrics import MIN_TOKENS, measure
from hesnr_tasks.plotting import COLOURS, MARKERS, bar_lengths, error_bars, figure, hover, label, legend, limit_axis
from hesnr_tasks.plotting import series as style_of
from hesnr_tasks.report.data import ReportData, ReportFigure
from hesnr_tasks.report.figures.entropy import evenly_spaced
from hesnr_tasks.report.tables import AGREED, agreements, metric_title, sweep_agreements, token_set_title, with_interval
from hesnr_tasks.stats import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOPS = ("top1_acc", "top2_acc", "top5_acc", "top10_acc")
_DECISIONS = "ℋ"  # 𝓗, which figures' fonts lack
_AXES = {"top1_acc": "Top-1 accuracy ↑", "he_tokens": f"|{_DECISIONS}|, tokens", "downstream": "downstream score ↑"}
_CROWDED = 8  # with more checkpoints, horizontal bars would hide the points
_NUMBERED = 12  # with more points, they are not numbered
_TICKS = 7  # more labels run into each other
_TableRows = Sequence[Mapping[str, Any]]


def accuracy(data: ReportData) -> ReportFigure | None:
    """Figure 1: PPL against Top-k accuracy, Thought + Action."""
    rows = _ladder_rows(data, UNFILTERED, ("ppl", *_TOPS))
    if len(rows) < 2:
        return None
    title = "PPL and Top-k accuracy over checkpoints"
    crowded = " Those of PPL are in the CSV alone, to keep the points in sight." if len(rows) > _CROWDED else ""
    caption = (
        f"PPL against Top-1, 2, 5 and 10 accuracy of {number_of(len(rows), 'checkpoint')} on "
        f"{token_set_title(UNFILTERED)} tokens, "
        f"{data.sample_size(UNFILTERED)}; checkpoints joined in the order of training, the last one ringed, fine-tuned "
        f"ones apart{', a panel a family' * (len(_families(data.among(data.values[UNFILTERED]))) > 1)}. "
        f"{data.error_bars}{crowded}"
    )
    tables = (Table("fig01_ppl_accuracy", title, rows),)
    subtitle = _subtitle(data, UNFILTERED)
    draw = partial(_draw_accuracy, rows, data.among(data.values[UNFILTERED]))
    return ReportFigure("fig01_ppl_accuracy", "Fig. 1", title, subtitle, caption, tables, draw)


def _draw_accuracy(rows: _TableRows, ladder: Sequence[Checkpoint]) -> Figure:
    families = _families(ladder)
    canvas, (panels,) = figure(1, len(families), width=5.2 if len(families) == 1 else 3.6, height=3.6)
    for panel, (family, positions) in zip(panels, families.items(), strict=True):
        own = [rows[i] for i in positions]
        for line in _lines([ladder[i] for i in positions]):
            _accuracy_lines(panel, own[line.start : line.stop], crowded=len(rows) > _CROWDED, first=line.start == 0)
        _accuracy_axes(panel, rows, bars=len(rows) <= _CROWDED)
        panel.set_title(label(family) if len(families) > 1 else "")
    handles, names = panels[0].get_legend_handles_labels()
    legend(canvas, handles, names)
    return canvas


def _accuracy_lines(axes: Any, rows: _TableRows, *, crowded: bool, first: bool) -> None:
    x = [row["ppl"].value for row in rows]
    for i, name in enumerate(_TOPS):
        numbers = [row[name] for row in rows]
        bars = bar_lengths(numbers), None if crowded else bar_lengths([row["ppl"] for row in rows])
        y, top = [number.value for number in numbers], f"Top-{name[3:-4]}"
        container = axes.errorbar(x, y, *bars, label=top if first else "_", elinewidth=0.8, **style_of(i))
        hover(
            container.lines[0],
            [f"{row['checkpoint']}: PPL {with_interval(row['ppl'])}, {top} {with_interval(row[name])}"
             for row in rows],
        )  # fmt: skip
        axes.plot(x[-1:], y[-1:], "o", markersize=11, markerfacecolor="none", markeredgecolor="#333333", mew=0.8)


def _accuracy_axes(axes: Any, rows: _TableRows, *, bars: bool) -> None:
    ppl = [row["ppl"] if bars else Estimate(row["ppl"].value) for row in rows]
    positive = [number.value for number in ppl if number.value > 0]
    log = bool(positive) and max(positive) > 4 * min(positive)
    if log:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(axis="x", nbins=6)
    limit_axis(axes, ppl, "x")
    limit_axis(axes, [row[name] for name in _TOPS for row in rows])
    axes.set(xlabel="PPL ↓" + " (log scale)" * log, ylabel="accuracy ↑")


def steps(data: ReportData) -> ReportFigure | None:
    """Figure 2: PPL, Top-1 and HE-SNR over training, filtered Action tokens, with the downstream score."""
    rows = _ladder_rows(data, data.filtered, ("ppl", "top1_acc", "he_snr"))
    if len(rows) < 2:
        return None
    for row in rows:
        row["downstream"] = _downstream_number(data, row["checkpoint"])
    ladder = data.among(data.values[data.filtered])
    task = next(iter(data.downstream), "")
    title = "Metrics over training, filtered Action tokens"
    scores = f" and the score on {task} (bars: Wilson's 95 % interval where n is known)" if task else ""
    marks = boundaries(data.ladder)
    extended = next((f" ({mark.label}: the extension to it)" for mark in marks if mark.kind == "context"), "")
    step_0 = "The grey band is “step 0”, the last checkpoint before the context extension. " * bool(extended)
    apart = "A row of panels a family, on the same scales. " * (len(_families(ladder)) > 1)
    dotted = f"Dotted lines part contexts{extended} and stages. " * bool(marks)
    caption = (
        f"PPL, Top-1 accuracy, HE-SNR{scores} of {number_of(len(rows), 'checkpoint')} on "
        f"{token_set_title(data.filtered)}, "
        f"{data.sample_size(data.filtered)}. Checkpoints are evenly spaced in the order of training, not to the scale "
        f"of steps. {step_0}{dotted}{apart}{data.error_bars}"
    )
    draw = partial(_draw_steps, rows, ladder)
    tables = (Table("fig02_steps", title, rows),)
    return ReportFigure("fig02_steps", "Fig. 2", title, _subtitle(data, data.filtered), caption, tables, draw)


def _draw_steps(rows: _TableRows, ladder: Sequence[Checkpoint]) -> Figure:
    names = ["ppl", "top1_acc", "he_snr"]
    names += ["downstream"] if any(not math.isnan(row["downstream"].value) for row in rows) else []
    families = _families(ladder)
    if len(families) == 1:
        canvas, axes = figure(1 + (len(names) > 3), 3 if len(names) == 3 else 2, width=3.3, height=2.8)
    else:
        canvas, axes = figure(len(families), len(names), width=2.7, height=2.5)
    for row, (family, positions) in enumerate(families.items()):
        own, checkpoints = [rows[i] for i in positions], [ladder[i] for i in positions]
        for i, (panel, name) in enumerate(zip(axes.flat if len(families) == 1 else axes[row], names, strict=True)):
            for line in _lines(checkpoints):
                _line(panel, own, name, i, line)
            limit_axis(panel, [row[name] for row in rows])
            _checkpoint_axis(panel, [checkpoint.axis_label for checkpoint in checkpoints], boundaries(checkpoints))
            panel.set(ylabel=_AXES.get(name, metric_title(name)), xlabel="training step, context")
        if len(families) > 1:
            _row_title(axes[row, 0], label(family))
    return canvas


def extension(data: ReportData) -> ReportFigure | None:
    """Figure 7: |H| and HE-SNR through the context extension, steps counted from the checkpoint before it."""
    extensions = list(_extensions(data.among(data.values.get(data.filtered, {}))))
    if not extensions:
        return None
    by_name = {row["checkpoint"]: row for row in _ladder_rows(data, data.filtered, ("he_tokens", "he_snr"))}
    parts: list[tuple[str, int, list[dict[str, Any]]]] = []
    for first, stage in extensions:
        zero, since = stage[first - 1], _steps_since(stage, stage[first - 1])
        step_0 = {"step_0": zero.name} if len(extensions) > 1 else {}
        rows = [{**by_name[name], "since": steps, **step_0} for name, steps in since.items()]
        parts.append((zero.name, first, rows))
    title = f"|{_DECISIONS}| and HE-SNR through the context extension{'s' * (len(parts) > 1)}"
    checkpoints = len({row["checkpoint"] for _, _, rows in parts for row in rows})
    zeros = ", ".join(zero for zero, _, _ in parts)
    caption = (
        f"Size of the high-entropy decision set {_DECISIONS} and HE-SNR of {number_of(checkpoints, 'checkpoint')}, "
        f"{token_set_title(data.filtered)}, {data.sample_size(data.filtered)}. Step 0 (grey band) is the last "
        f"checkpoint before {'each' if len(parts) > 1 else 'the'} extension: {zeros}; evenly spaced. {data.error_bars} "
        f"|{_DECISIONS}| is a count and has none."
    )
    draw = partial(_draw_extension, parts)
    tables = (Table("fig07_extension", title, [row for _, _, rows in parts for row in rows]),)
    return ReportFigure("fig07_extension", "Fig. 7", title, _subtitle(data, data.filtered), caption, tables, draw)


def _extensions(ladder: Sequence[Checkpoint]) -> Iterator[tuple[int, list[Checkpoint]]]:
    """Of each extension of a context: checkpoints up to the next one and since the last, and which is its first."""
    for family in dict.fromkeys(checkpoint.family for checkpoint in ladder):
        run = [checkpoint for checkpoint in ladder if checkpoint.family == family and not checkpoint.tuned]
        starts = [boundary.position for boundary in boundaries(run) if boundary.kind == "context"]
        for before, start, after in zip([0, *starts], starts, [*starts[1:], len(run)], strict=False):
            yield start - before, run[before:after]


def _steps_since(ladder: Sequence[Checkpoint], zero: Checkpoint) -> dict[str, int | None]:
    """Steps since `zero`; of checkpoints whose steps restart after it, their own."""
    since: dict[str, int | None] = {}
    after = False
    for checkpoint in ladder:
        restarted = after and checkpoint.step is not None and zero.step is not None and checkpoint.step < zero.step
        base = 0 if restarted or zero.step is None else zero.step
        since[checkpoint.name] = None if checkpoint.step is None else checkpoint.step - base
        after = after or checkpoint.name == zero.name
    return since


def _draw_extension(parts: Sequence[tuple[str, int, _TableRows]]) -> Figure:
    canvas, axes = figure(len(parts), 2, width=3.6, height=2.9 if len(parts) == 1 else 2.5)
    every = [row for _, _, rows in parts for row in rows]
    for panels, (zero, first, rows) in zip(axes, parts, strict=True):
        names = [
            label(row["checkpoint"]) if row["since"] is None else _signed(row["since"], "d") if row["since"] else "0"
            for row in rows
        ]
        for i, (panel, name) in enumerate(zip(panels, ("he_tokens", "he_snr"), strict=True)):
            _line(panel, rows, name, i, range(len(rows)))
            limit_axis(panel, [row[name] for row in every])
            _checkpoint_axis(panel, names, [Boundary(first, "context", "extension")])
            panel.set(ylabel=_AXES.get(name, metric_title(name)), xlabel=f"steps since {label(zero)}")
    return canvas


def sft(data: ReportData) -> ReportFigure | None:
    """Figure 8: PPL, HE-PPL and HE-SNR before and after SFT."""
    rows: list[dict[str, Any]] = []
    for select in (data.filtered, UNFILTERED):
        values = data.values.get(select, {})
        for before, after in sft_pairs(data.among(values)):
            pair = {"before": before.name, "after": after.name}
            numbers = {f"{name}_{side}": values[pair[side]][name] for name in AGREED for side in pair}
            rows.append({"select": select, **pair, **numbers})
    if not rows:
        return None
    title = "Before and after SFT"
    pairs = len({row["after"] for row in rows})
    size = data.sample_size(data.filtered)
    caption = (
        f"PPL, HE-PPL and HE-SNR of {pairs} checkpoint{'s' * (pairs > 1)} before and after the next stage of training, "
        f"{size}; filtered Action tokens solid, Thought + Action dashed. {data.error_bars}"
    )
    tables = (Table("fig08_sft", title, rows),)
    subtitle = f"{size}; 95 % intervals"
    return ReportFigure("fig08_sft", "Fig. 8", title, subtitle, caption, tables, partial(_draw_sft, rows))


def _draw_sft(rows: _TableRows) -> Figure:
    canvas, (panels,) = figure(1, 3, width=2.7, height=2.9)
    colours = {name: i for i, name in enumerate(dict.fromkeys(row["after"] for row in rows))}
    for panel, name in zip(panels, AGREED, strict=True):
        for row in rows:
            unfiltered = row["select"] == UNFILTERED
            look = style_of(colours[row["after"]]) | {"linestyle": "--" if unfiltered else "-"}
            numbers = [row[f"{name}_before"], row[f"{name}_after"]]
            text = f"{label(row['after'])}{', unfiltered' * unfiltered}"
            values = [number.value for number in numbers]
            panel.errorbar([0, 1], values, bar_lengths(numbers), label=text, elinewidth=1, **look)
        limit_axis(panel, [row[f"{name}_{side}"] for row in rows for side in ("before", "after")])
        panel.set_xticks([0, 1], ["before", "after"])
        panel.set(xlim=(-0.4, 1.4), ylabel=metric_title(name))
        panel.grid(axis="x", visible=False)
    handles, names = panels[0].get_legend_handles_labels()
    legend(canvas, handles, names, handlelength=4)
    return canvas


def downstream(data: ReportData) -> ReportFigure | None:
    """Figure 6: PPL, HE-PPL and HE-SNR against the score on the first downstream task."""
    task = next(iter(data.downstream), "")
    rows: list[dict[str, Any]] = [
        {"checkpoint": checkpoint.name, "task": task, "group": group, "select": select}
        | {name: data.values[select][checkpoint.name][name] for name in AGREED}
        | {"downstream": _downstream_number(data, checkpoint.name)}
        for select in dict.fromkeys((UNFILTERED, data.filtered))
        for group, checkpoints in (data.groups(task, data.values.get(select, {})) if task else {}).items()
        for checkpoint in checkpoints
    ]
    if not rows:
        return None
    title = f"Metrics against the score on {task}"
    table = agreements(data)
    statistics = [row for row in table.rows if row["task"] == task]
    names = [checkpoint.name for checkpoint in data.among([row["checkpoint"] for row in rows])]
    numbered = "Points are numbered in the order of training. " * (len(names) <= _NUMBERED)
    families = {_family_of(row["group"]) for row in rows}
    apart = "a row of panels a family, on the same scales; " * (len(families) > 1)
    caption = (
        f"PPL, HE-PPL and HE-SNR of {number_of(len(names), 'checkpoint')} against their score on {task}; above "
        f"{token_set_title(UNFILTERED)}, below {token_set_title(data.filtered)}; {apart}"
        f"{data.sample_size(data.filtered)}. "
        "Fine-tuned checkpoints are hollow; coefficients are of one group, never of several pooled. "
        f"{numbered}r, ρ, τ: Pearson, Spearman, Kendall (tau-b), the sign of PPL and HE-PPL turned, so +1 is perfect. "
        f"{data.error_bars} Vertical: Wilson's 95 % interval, where the number of tasks is known."
    )
    tables = (Table("fig06_downstream", title, rows), table)
    subtitle = f"{number_of(len(names), 'checkpoint')}, {_subtitle(data, data.filtered)}"
    draw = partial(_draw_downstream, rows, statistics, names)
    return ReportFigure("fig06_downstream", "Fig. 6", title, subtitle, caption, tables, draw)


def _draw_downstream(rows: _TableRows, statistics: _TableRows, names: Sequence[str]) -> Figure:
    """A checkpoint has the same number in every panel, whichever others are in it."""
    selects = list(dict.fromkeys((row["select"], _family_of(row["group"])) for row in rows))
    families = list(dict.fromkeys(family for _, family in selects))
    numbered = len(names) <= _NUMBERED
    handles: dict[str, Any] = {}
    canvas, axes = figure(len(selects), len(AGREED), width=3.0, height=2.7 if len(families) == 1 else 2.3)
    for panel, ((select, family), name) in zip(axes.flat, ((s, n) for s in selects for n in AGREED), strict=True):
        of_select = [row for row in rows if row["select"] == select]
        shown = [row for row in of_select if _family_of(row["group"]) == family]
        x, y = [row[name] for row in shown], [row["downstream"] for row in shown]
        values = [number.value for number in x], [number.value for number in y]
        bars = {"xerr": bar_lengths(x), "yerr": bar_lengths(y)}
        panel.errorbar(*values, **bars, fmt="none", ecolor="#999999", elinewidth=0.9, capsize=1.5)
        limit_axis(panel, [row[name] for row in of_select], "x")
        limit_axis(panel, [row["downstream"] for row in of_select])
        for row, a, b in zip(shown, *values, strict=True):
            i = names.index(row["checkpoint"])
            (point,) = panel.plot(
                [a], [b], MARKERS[i % len(MARKERS)] if numbered else "o", color=COLOURS[i % 7 if numbered else 0],
                fillstyle="none" if row["group"].startswith("fine-tuned") else "full",
            )  # fmt: skip
            handles[row["checkpoint"]] = point
            text = f"{row['checkpoint']}: {metric_title(name)[:-2]} {with_interval(row[name])}"
            hover(point, [f"{text}, {row['task']} {with_interval(row['downstream'])}"])
            if numbered:
                panel.annotate(str(i + 1), (a, b), xytext=(4, 3), textcoords="offset points", fontsize=7)
        own = [r for r in statistics if (r["select"], r["metric"]) == (select, name)]
        own = [r for r in own if _family_of(r["group"]) == family]
        signs = list(zip("rρτ", ("pearson", "spearman", "kendall"), strict=True))
        lines = ["   ".join(f"{sign} = {_signed(r[key], '.2f')}" for sign, key in signs) for r in own]
        if len(own) > 1:
            lines = [f"{r['group'].partition(',')[0]}: {line}" for r, line in zip(own, lines, strict=True)]
        panel.set_title("\n".join(lines), fontsize=8 if len(own) < 2 else 7)
        panel.locator_params(axis="x", nbins=5)  # more labels run into each other
        panel.set(xlabel=metric_title(name), ylabel=_AXES["downstream"] if name == AGREED[0] else "")
    for panel, (select, family) in zip(axes[:, 0], selects, strict=True):
        lines = [label(family), *(textwrap.wrap(token_set_title(select), 24) if family else [token_set_title(select)])]
        _row_title(panel, "\n".join(filter(None, lines)))
    if numbered:
        numbers = [f"{i} {label(name)}" for i, name in enumerate(names, 1)]
        legend(canvas, [handles[name] for name in names], numbers, fontsize=7, columnspacing=1.2)
    return canvas


def _signed(number: float, form: str) -> str:
    return "–" if math.isnan(number) else f"{number:+{form}}".replace("-", "−")


def _family_of(group: str) -> str:
    """Of one of `ReportData.groups`; empty where there is one family only."""
    return group.partition(", ")[2]


def _row_title(panel: Any, text: str) -> None:
    panel.annotate(
        text, (-0.32, 0.5), xycoords="axes fraction", rotation=90, ha="center", va="center", fontsize=7.5, weight="bold"
    )  # fmt: skip


def _families(ladder: Sequence[Checkpoint]) -> dict[str, list[int]]:
    """Positions of the checkpoints of each family."""
    families: dict[str, list[int]] = {}
    for i, checkpoint in enumerate(ladder):
        families.setdefault(checkpoint.family or "no family", []).append(i)
    return families


def sweep(data: ReportData) -> ReportFigure | None:
    """HE-SNR and |H| on filtered actions over the threshold."""
    summaries = [summary for summary in data.summaries if len(summary.sweep)]
    if not summaries:
        return None
    rows: list[dict[str, Any]] = []
    for summary in summaries:
        estimates = measure(
            summary.sweep, summary.runs[data.filtered].multiplicity, ("he_snr", "he_tokens"),
            resamples=data.resamples, seed=data.seed, min_tokens=MIN_TOKENS,
        )  # fmt: skip
        rows += [
            {"checkpoint": summary.name, "epsilon": epsilon, "ways": math.exp(epsilon)}
            | {"he_snr": numbers["he_snr"], "he_tokens": round(numbers["he_tokens"].value)}
            for epsilon, numbers in zip(summary.epsilons, estimates, strict=True)
        ]
    title = "HE-SNR over the threshold ε"
    names = [summary.name for summary in evenly_spaced(summaries)]
    caption = (
        f"HE-SNR of {number_of(len(names), 'checkpoint')} on {token_set_title(data.filtered)} as ε goes from ln "
        f"2 to ln 5, "
        f"{data.sample_size(data.filtered)}; dotted: the ε in use, {data.epsilon:.4f}. Bands: 95 % interval (cluster "
        "bootstrap over trajectories)."
    )
    draw = partial(_draw_sweep, rows, names, data.epsilon)
    tables = (Table("sweep", title, rows),)
    return ReportFigure("sweep", "threshold sweep", title, _subtitle(data, data.filtered), caption, tables, draw)


def _draw_sweep(rows: _TableRows, names: Sequence[str], epsilon: float) -> Figure:
    canvas, ((axes,),) = figure(width=5.6, height=3.8)
    for i, name in enumerate(names):
        points = [(row["epsilon"], row["he_snr"]) for row in rows if row["checkpoint"] == name]
        x = [point[0] for point in points]
        look = style_of(i)
        (line,) = axes.plot(x, [number.value for _, number in points], label=label(name), markersize=3.5, **look)
        hover(line, [f"{name}: ε = {e:.3f}, HE-SNR {with_interval(number)}" for e, number in points])
        low, high = [number.ci_low for _, number in points], [number.ci_high for _, number in points]
        axes.fill_between(x, low, high, color=look["color"], alpha=0.08, linewidth=0)
    limit_axis(axes, [row["he_snr"] for row in rows])
    _threshold_axis(axes, epsilon)
    axes.set(ylabel=metric_title("he_snr"))
    legend(canvas, *axes.get_legend_handles_labels())
    return canvas


def sweep_agreement(data: ReportData) -> ReportFigure | None:
    """Agreement of HE-SNR with the downstream score over the threshold."""
    table = sweep_agreements(data)
    if not table.rows:
        return None
    n = table.rows[0]["checkpoints"]
    task, _, checkpoints = data.main_group({run.name: run for run in data.aligned(data.filtered)})
    title = f"Agreement of HE-SNR with the score on {task} over ε"
    caption = (
        f"Pearson r and Kendall τ of HE-SNR ({token_set_title(data.filtered)}) with the score on {task} of {n} "
        f"checkpoints ({checkpoints[0].name} to {checkpoints[-1].name}, the largest group that may be pooled) "
        "as ε goes from ln 2 to ln 5; dotted: the ε in use. Bands: 95 % interval over trajectories."
    )
    subtitle = f"{number_of(n, 'checkpoint')}, {_subtitle(data, data.filtered)}"
    draw = partial(_draw_sweep_agreement, table.rows, data.epsilon)
    return ReportFigure("sweep_correlations", "threshold sweep", title, subtitle, caption, (table,), draw)


def _draw_sweep_agreement(rows: _TableRows, epsilon: float) -> Figure:
    canvas, ((axes,),) = figure(width=5.2, height=3.2)
    x = [row["epsilon"] for row in rows]
    for i, (name, title) in enumerate((("pearson", "Pearson r"), ("kendall", "Kendall τ"))):
        look = style_of(i)
        axes.plot(x, [row[name] for row in rows], label=title, **look)
        ends = (np.array([row[f"{name}_trajectories_{end}"] for row in rows]) for end in ("low", "high"))
        axes.fill_between(x, *ends, color=look["color"], alpha=0.15, linewidth=0)
    _threshold_axis(axes, epsilon)
    axes.set(ylabel="agreement with downstream", ylim=(None, 1.05))
    axes.legend()
    return canvas


# --- shared -----------------------------------------------------------------------------------------------------------


def _ladder_rows(data: ReportData, select: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a checkpoint that has numbers on a set of tokens."""
    values = data.values.get(select, {})
    return [
        {"checkpoint": c.name, "step": c.step, "context": c.context, "select": select}
        | {name: values[c.name].get(name, Estimate(math.nan)) for name in names}
        for c in data.among(values)
    ]


def _downstream_number(data: ReportData, name: str) -> Estimate:
    """The checkpoint's score on the first downstream task."""
    score = next(iter(data.downstream.values()), {}).get(name)
    return Estimate(score.value, score.stderr, *score.interval) if score else Estimate(math.nan)


def _subtitle(data: ReportData, select: str) -> str:
    return f"{token_set_title(select)}; {data.sample_size(select)}; 95 % intervals"


def _lines(ladder: Sequence[Checkpoint]) -> list[range]:
    """Positions that one line joins: of one family, before fine-tuning or of one stage after it."""
    kinds = kinds_of(ladder)
    keys = [(checkpoint.family, kinds[checkpoint.name]) for checkpoint in ladder]
    starts = [i for i in range(len(keys)) if i == 0 or keys[i] != keys[i - 1]]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(keys)], strict=True)]


def _line(panel: Any, rows: _TableRows, name: str, index: int, positions: range) -> None:
    numbers = [rows[i][name] for i in positions]
    error_bars(panel, index, None, positions, numbers, texts=_hover_texts(rows, positions, name))


def _hover_texts(rows: _TableRows, positions: Sequence[int], name: str) -> list[str]:
    title = _AXES.get(name, metric_title(name)).rstrip(" ↑↓")
    return [f"{rows[i]['checkpoint']}: {title} {with_interval(rows[i][name])}" for i in positions]


def _checkpoint_axis(panel: Any, names: Sequence[str], changes: Sequence[Boundary]) -> None:
    """Checkpoints evenly spaced along x, in the order of training; context extension and stages marked."""
    ticks = list(range(0, len(names), max(1, math.ceil(len(names) / _TICKS))))
    panel.set_xticks(ticks, ["\n".join(map(label, names[i].split("\n"))) for i in ticks])
    panel.set_xlim(-0.5, len(names) - 0.5)
    panel.grid(axis="x", visible=False)
    for change in changes:
        panel.axvline(change.position - 0.5, color="#555555", linewidth=1, linestyle=":", zorder=1)
        panel.annotate(
            label(change.label), (change.position - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", fontsize=7, color="#333333",
        )  # fmt: skip
        if change.kind == "context":
            band = change.position - 1.3, change.position - 0.7
            panel.axvspan(*band, color="#999999", alpha=0.18, linewidth=0, zorder=0)


def _threshold_axis(axes: Any, epsilon: float) -> None:
    axes.axvline(epsilon, color="#333333", linewidth=1, linestyle=":")
    for n in (2, 3, 4, 5):
        axes.annotate(
            f"ln {n}", (math.log(n), 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=7, color="#444444",
        )  # fmt: skip
    axes.set(xlabel="threshold ε, nats", xlim=(math.log(2) - 0.04, math.log(5) + 0.04))
