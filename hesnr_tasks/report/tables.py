"""The report's tables: the leaderboard, agreement with the downstream score, the ablation, neighbouring checkpoints.

Results that were made with other settings (data, filters, context …) are never ranked together: they are in tables, or
columns, of their own.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.tables import REPRODUCIBLE, Table, escape_markdown, show, text_table
from hesnr_tasks.errors import number_of
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.ladder.schema import Checkpoint
from hesnr_tasks.ladder.verdict import FEW, FEWEST, spanned
from hesnr_tasks.metrics import METRICS, TrajectorySums, evaluate
from hesnr_tasks.report.results import TaskResult, group_comparable
from hesnr_tasks.stats import FEWEST_CHECKPOINTS, Estimate, agreement, bootstrap_sums, paired

if TYPE_CHECKING:
    from hesnr_tasks.report.data import ReportData


FloatArray = npt.NDArray[np.float64]
AGREED = ("ppl", "he_ppl", "he_snr")
# Pearson r and Kendall tau of HE-SNR with post-SFT SWE-bench Verified (arXiv 2601.20255, "token type x filter")
_PAPER = {
    "thought": (0.558, 0.519),
    "action": (0.967, 0.944),
    "action-xml": (0.953, 0.956),
    "action-xml-format": (0.952, 0.968),
    "action-xml-format-comments": (0.965, 0.979),
}
_UNFILTERED = "thought+action"
_KINDS = {"thought": "Thought", "action": "Action", "thought+action": "Thought + Action", "observation": "Observation"}
_BOARD_TITLES = {"entropy": "H_top10", "he_tokens": "𝓗 tokens", "tokens": "tokens", "scored": "scored"}
_CSV_ONLY = ("top2_acc", "top5_acc", "top10_acc")  # the boards have no room for them
_HEADLINES = ("he_snr", "he_ppl", "ppl")  # of ours beside other benchmarks
_BENCHMARK_METRICS = 3  # of one benchmark on a board; the CSV has all
_UNDEFINED = Estimate(math.nan)
_SIGN = "signs of PPL and HE-PPL are turned (lower is better), so +1 always means: orders as the downstream score does"
_BOTH = "95 % intervals: over checkpoints, and over trajectories; neither knows the downstream scores' own error"


def metric_title(name: str) -> str:
    """The heading of a metric, with an arrow in the better direction."""
    return METRICS[name].title if name in METRICS else name


def token_set_title(select: str) -> str:
    """`action-xml-format` as `Action − xml − format`."""
    kind, *filters = select.split("-")
    return " − ".join([_KINDS.get(kind, kind), *filters]) if filters else f"{_KINDS.get(kind, kind)}, no filter"


def with_interval(number: Estimate) -> str:
    """A value with its standard error, and its interval where it has one."""
    return number.text if math.isnan(number.ci_low) else f"{number.text} {number.interval}"


def csv_text(table: Table) -> str:
    """A table as CSV, with as many digits as float32 scores reproduce on any CPU."""
    return show([table], "csv", {}, REPRODUCIBLE) + "\n"


# --- the leaderboard --------------------------------------------------------------------------------------------------


class Board(NamedTuple):
    """A table of formatted cells; the first column is the checkpoint."""

    title: str
    about: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def boards(results: Sequence[TaskResult], ladder: Sequence[Checkpoint], sort: str = "step") -> list[Board]:
    """Ours and the benchmarks side by side, where there are any, then each of ours in full.

    Args:
        results: of lm-eval.
        ladder: the checkpoints in the order of training.
        sort: "step" or "he_snr".
    """
    groups = group_comparable([result for result in _sorted(results, ladder, sort) if result.signature])
    ours = []
    for group in groups:
        task, settings = json.loads(group[0].comparable)
        rows = [(result.model, result.values) for result in group]
        ours.append(_metric_board(task, _settings_text(settings), rows))
    return [_side_by_side(results, ladder, sort), *ours] if any(not r.signature for r in results) else ours


def context_boards(data: ReportData) -> list[Board]:
    """Checkpoints whose own contexts differ, compared at the context of the report, from their score files."""
    at_context = []
    for select in (data.filtered, _UNFILTERED) if data.context is not None else ():
        rows = [
            (s.name, {**data.values[select][s.name], "scored": Estimate(s.share_scored(select))})
            for s in data.scored(select)
        ]
        about = f"{data.sample_size(select)}, from score files: the tokens that all these checkpoints could see"
        if rows:
            at_context.append(_metric_board(f"{select} at a context of {data.context:,}", about, rows))
    return at_context


def write_leaderboard(
    results: Sequence[TaskResult], ladder: Sequence[Checkpoint], folder: Path, sort: str = "step",
    extra: Sequence[Board] = (),
) -> None:  # fmt: skip
    """Write leaderboard.md, with `extra` boards after the others, and leaderboard.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    write_output(folder / "leaderboard.md", leaderboard_markdown([*boards(results, ladder, sort), *extra]) + "\n")
    write_output(folder / "leaderboard.csv", leaderboard_csv(results, ladder))


def leaderboard_markdown(tables: Sequence[Board]) -> str:
    """The boards as Markdown tables."""
    texts = []
    for board in tables:
        lines = [f"**{escape_markdown(board.title)}** – {escape_markdown(board.about)}", ""]
        separator = "| --- |" + " ---: |" * (len(board.headings) - 1)
        cells = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in (board.headings, *board.rows)]
        texts.append("\n".join([*lines, cells[0], separator, *cells[1:]]))
    return "\n\n".join(texts)


def leaderboard_text(tables: Sequence[Board], *, wide: bool = False) -> str:
    """The boards as a terminal shows them."""
    return "\n\n".join(
        text_table(board.title, board.headings, board.rows, notes=[board.about], wide=wide) for board in tables
    )


def leaderboard_csv(results: Sequence[TaskResult], ladder: Sequence[Checkpoint]) -> str:
    """One line a checkpoint and task: every metric with its standard error, and the settings."""
    names = dict.fromkeys(_board_metrics(result.values for result in results if result.signature))
    names |= dict.fromkeys(name for result in results for name in result.values)
    checkpoints = {checkpoint.name: checkpoint for checkpoint in ladder}
    lines: list[dict[str, Any]] = []
    for result in _sorted(results, ladder, "step"):
        numbers = {name: result.values.get(name, _UNDEFINED) for name in names}
        cells = {f"{name}{end}": x for name, n in numbers.items() for end, x in (("", n.value), ("_stderr", n.stderr))}
        checkpoint = checkpoints[result.model]
        place = {"step": checkpoint.step, "context": checkpoint.context, "stage": checkpoint.stage}
        about = {"checkpoint": result.model, "task": result.task}
        lines.append({**about, **cells, **place, "signature": result.comparable})
    return csv_text(Table("leaderboard", "", lines))


def _side_by_side(results: Sequence[TaskResult], ladder: Sequence[Checkpoint], sort: str = "step") -> Board:
    """One line a checkpoint, a column for each headline; [a], [b] … mark columns made with different settings."""
    columns: dict[str, dict[str, str]] = {}  # heading -> checkpoint -> cell
    ranked: dict[str, dict[str, float]] = {}  # headings of HE-SNR -> checkpoint -> value
    variants: dict[str, list[str]] = {}
    for result in results:
        variants.setdefault(result.task, []).append(result.comparable)
    truncated = {result.task for result in results if result.signature and result.values["scored"].value < 1}
    for result in sorted(results, key=lambda result: (result.signature is None, result.task, result.comparable)):
        if result.in_group:  # the group is shown instead
            continue
        settings = list(dict.fromkeys(variants[result.task]))
        mark = f" [{_letter(settings.index(result.comparable))}]" if len(settings) > 1 else ""
        if result.signature:
            shown = {name: metric_title(name) for name in _HEADLINES}
            shown |= {"scored": "scored"} if result.task in truncated else {}
        else:
            shown = {}
            for name in list(result.values)[:_BENCHMARK_METRICS]:
                higher = result.higher_is_better.get(name.partition(" ")[0])
                shown[name] = name if higher is None else f"{name} {'↑' if higher else '↓'}"
        for name, title in shown.items():
            heading = f"{result.task}{mark} {title}"
            number = result.values.get(name, _UNDEFINED)
            columns.setdefault(heading, {})[result.model] = _cell(name if result.signature else "", number)
            if heading.endswith("HE-SNR ↑"):
                ranked.setdefault(heading, {})[result.model] = number.value
    names = [checkpoint.name for checkpoint in ladder]
    if sort != "step" and len(ranked) == 1:  # several were made with different settings: no common rank
        ((_, values),) = ranked.items()
        names.sort(key=lambda name: _descending(values.get(name, math.nan)))
    rows = [
        (name, *(cells.get(name, "–") for cells in columns.values()))
        for name in names
        if any(name in cells for cells in columns.values())
    ]
    about = "± is one standard error; [a], [b]: made differently"
    return Board("Side by side", about, ("checkpoint", *columns), tuple(rows))


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else str(index)


def _sorted(results: Sequence[TaskResult], ladder: Sequence[Checkpoint], sort: str) -> list[TaskResult]:
    position = {checkpoint.name: i for i, checkpoint in enumerate(ladder)}
    by_step = sorted(results, key=lambda result: (position[result.model], result.task))
    if sort == "step":
        return by_step
    return sorted(by_step, key=lambda result: _descending(result.values.get("he_snr", _UNDEFINED).value))


def _descending(value: float) -> float:
    return math.inf if math.isnan(value) else -value


def _board_metrics(rows: Iterable[Mapping[str, Estimate]]) -> list[str]:
    """The metrics in `rows`: registered ratios, then counts, then those of a task's own, then the share scored."""
    present = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in METRICS if name in present and name not in _CSV_ONLY]
    own = [name for name in present if name not in METRICS and name != "scored"]
    counts_last = sorted(names, key=lambda name: METRICS[name].denominator is None)
    return [*counts_last, *own, *(["scored"] if present else [])]


def _metric_board(title: str, about: str, rows: Sequence[tuple[str, Mapping[str, Estimate]]]) -> Board:
    names = _board_metrics(values for _, values in rows)
    lines = tuple((model, *(_cell(name, values.get(name, _UNDEFINED)) for name in names)) for model, values in rows)
    headings = (_BOARD_TITLES.get(name) or metric_title(name) for name in names)
    return Board(title, about, ("checkpoint", *headings), lines)


def _settings_text(settings: Mapping[str, Any]) -> str:
    filters = " − ".join(["", *settings["filters"]]) if settings["filters"] else ", no filter"
    n_truncated = settings["tokens_cut"]
    truncated = f", {n_truncated} tokens beyond the context of {settings['max_length']}" if n_truncated else ""
    return (
        f"{' + '.join(settings['kinds'])}{filters}; {number_of(settings['trajectories'], 'trajectory')} "
        f"({settings['data'][:10]}), "
        f"{settings['render']}, k = {settings['k']}, ε = {settings['epsilon']:.4f}{truncated}; "
        "± is one standard error; scored: share of the tokens that would count, (!) below a half"
    )


def _cell(name: str, number: Estimate) -> str:
    value = number.value
    if math.isnan(value):
        return "–"
    if name == "scored":
        return f"{value:.1%}{' (!)' * (value < 0.5)}"
    return f"{value:.0f}" if name in METRICS and METRICS[name].denominator is None else number.text


# --- agreement with the downstream score ------------------------------------------------------------------------------


def orient_higher_is_better(metric: str, values: FloatArray) -> FloatArray:
    """`values` of a metric with the sign turned where lower is better."""
    return -values if METRICS[metric].higher_is_better is False else values


def agreements(data: ReportData) -> Table:
    """PPL, HE-PPL and HE-SNR against each downstream task, on every set of tokens that has numbers, in each group."""
    if "correlations" in data.tables:  # terminal, figure and page need it, and it is the slowest of all
        return data.tables["correlations"]
    rows: list[dict[str, Any]] = []
    spans: dict[str, dict[str, None]] = {}  # which stages groups span, and whether those are enough
    for task in data.downstream:
        for select in dict.fromkeys([_UNFILTERED, data.filtered, *data.ablation]):
            for group, checkpoints in data.groups(task, data.values.get(select, {})).items():
                n = len(checkpoints)
                span = spanned(checkpoints)
                if n < FEWEST:
                    span += f"; from {FEWEST} on there is a coefficient"
                elif n < FEW:
                    span += f"; of fewer than {FEW}, a coefficient is weak evidence"
                spans.setdefault(span, {})[f"{task}, {group}"] = None
                for metric in AGREED:
                    if columns := _agreement(data, task, checkpoints, select, metric):
                        rows.append({"task": task, "group": group, "select": select, "metric": metric, **columns})
    notes = [f"{'; '.join(groups)}: {span}" for span, groups in spans.items()]
    table = Table("correlations", "Agreement with the downstream score", rows, (*notes, _SIGN, _BOTH))
    return data.tables.setdefault("correlations", table)


def ablation(data: ReportData) -> Table:
    """The paper's table "token type × filter": HE-SNR of each checkpoint, and its agreement where there is one."""
    keys = ("task", "group", "select", "metric")
    statistics = {tuple(row[key] for key in keys): row for row in agreements(data).rows}
    rows = []
    for select in data.ablation:
        kind, *filters = select.split("-")
        values = data.values.get(select, {})
        task, group, _ = data.main_group(values)
        if values:
            pearson, kendall = _PAPER.get(select, (None, None))
            own = statistics.get((task, group, select, "he_snr"), {})
            rows.append(
                {"tokens": kind, "filter": " + ".join(filters) or "none"}
                | {checkpoint.name: values[checkpoint.name]["he_snr"] for checkpoint in data.among(values)}
                | {name: value for name, value in own.items() if name not in keys}
                | {"paper_pearson": pearson, "paper_kendall": kendall}
            )
    return Table("ablation", "HE-SNR by token type and filter", rows, (_BOTH,))


def sweep_agreements(data: ReportData) -> Table:
    """HE-SNR's agreement with the downstream score, on filtered actions, as ε goes from ln 2 to ln 5."""
    rows = []
    runs = {run.name: run for run in data.aligned(data.filtered)}
    task, _, checkpoints = data.main_group(runs)
    by_name = {summary.name: summary for summary in data.summaries}
    summaries = [by_name[checkpoint.name] for checkpoint in checkpoints]
    if len(summaries) >= FEWEST:
        y = np.array([data.downstream[task][s.name].value for s in summaries])
        for i, epsilon in enumerate(summaries[0].epsilons):
            sums = [s.sweep[i].repeat(runs[s.name].multiplicity) for s in summaries]
            totals = np.array([[math.fsum(part) for part in of_one.parts("he_snr")] for of_one in sums])
            x = evaluate(METRICS["he_snr"], totals[:, 0], totals[:, 1])
            columns = _agreement_columns(data, x, y, _resampled(data, sums, "he_snr"))
            rows.append({"epsilon": epsilon, "ways": math.exp(epsilon), **columns})
    return Table("sweep_correlations", "Agreement of HE-SNR with the downstream score over ε", rows, (_BOTH,))


def _agreement(
    data: ReportData, task: str, checkpoints: Sequence[Checkpoint], select: str, metric: str
) -> dict[str, Any]:
    """Empty where too few checkpoints have both numbers."""
    values = data.values.get(select, {})
    names = [checkpoint.name for checkpoint in checkpoints]
    if len(names) < FEWEST:
        return {}
    x = orient_higher_is_better(metric, np.array([values[name][metric].value for name in names]))
    y = np.array([data.downstream[task][name].value for name in names])
    runs = {run.name: run for run in data.aligned(select)}
    resampled = None
    if all(name in runs for name in names):
        resampled = _resampled(data, [runs[n].sums.repeat(runs[n].multiplicity) for n in names], metric)
    return _agreement_columns(data, x, y, resampled)


def _resampled(data: ReportData, sums: Sequence[TrajectorySums], metric: str) -> FloatArray | None:
    """The metric in each resample of the trajectories, (resamples, checkpoints), higher is better; None for too few."""
    if len(sums[0]) < FEWEST_CHECKPOINTS:
        return None
    entry = METRICS[metric]
    parts = [part for of_one in sums for part in of_one.parts(metric)]
    totals = bootstrap_sums(np.column_stack(parts), data.resamples, data.seed)
    return orient_higher_is_better(metric, evaluate(entry, totals[:, 0::2], totals[:, 1::2]))


def _agreement_columns(data: ReportData, x: FloatArray, y: FloatArray, resampled: FloatArray | None) -> dict[str, Any]:
    """The number of checkpoints, then each statistic with the ends of both intervals."""
    columns: dict[str, Any] = {"checkpoints": len(x)}
    for name, (value, *ends) in agreement(x, y, resampled, resamples=data.resamples, seed=data.seed).items():
        columns[name] = value
        for over, (low, high) in zip(("checkpoints", "trajectories"), ends, strict=True):
            columns |= {f"{name}_{over}_low": low, f"{name}_{over}_high": high}
    return columns


# --- differences and peaks --------------------------------------------------------------------------------------------


def neighbours(data: ReportData) -> Table:
    """Is the step from one checkpoint to the next larger than its noise? Differences are paired by trajectory."""
    rows = [row for select in (_UNFILTERED, data.filtered) for row in _neighbour_rows(data, select)]
    note = "steps: difference / standard error of the paired difference, + for the better; within ± 2 it may be noise"
    return Table("neighbours", "Differences of neighbouring checkpoints over their noise", rows, (note,))


def _neighbour_rows(data: ReportData, select: str) -> Iterator[dict[str, Any]]:
    runs = data.aligned(select)
    family = {checkpoint.name: checkpoint.family for checkpoint in data.ladder}
    for metric in AGREED:
        entry = METRICS[metric]
        for a, b in itertools.pairwise(runs):
            if family[a.name] != family[b.name]:
                continue
            parts = [run.sums.repeat(run.multiplicity).parts(metric) for run in (a, b)]
            d = paired(parts[0], parts[1], entry.exponentiate, resamples=data.resamples, bootstrap=False)
            gain = d.value if entry.higher_is_better else -d.value
            difference = Estimate(d.value, d.stderr, d.ci_low, d.ci_high)
            yield {
                "select": select, "metric": metric, "from": a.name, "to": b.name, "difference": difference, "p": d.p,
                "steps": gain / d.stderr if d.stderr > 0 else math.nan,
            }  # fmt: skip


def entropy_peaks(data: ReportData) -> Table:
    """Where entropies gather: the mode, the peaks, and the share of tokens near ln 1 … ln 5."""
    rows = [
        {"checkpoint": summary.name, "select": d.select, "population": d.population, "tokens": d.tokens}
        | {"mode": d.peaks[0].entropy if d.peaks else math.nan}
        | {"peaks": " ".join(f"{peak.entropy:.3f}" for peak in sorted(d.peaks))}
        | {f"ln{n}": share for n, share in d.near.items()}
        for summary in data.summaries
        for d in summary.distributions
    ]
    note = "mode and peaks of the kernel density of H_top10, in nats; ln1 … ln5: share of tokens within 0.1 nats"
    return Table("entropy_peaks", "Peaks of the entropies", rows, (note,))
