"""`hesnr passk`: Pass@K with intervals from logs, reports or tables; with --compare, whether checkpoints differ."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples, unique_names
from hesnr_tasks.analysis.tables import Table, interval, show, write_tables
from hesnr_tasks.cli.options import add_answers
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.passk import (
    AnswerCounts,
    PassAtK,
    PassAtKDifference,
    aligned,
    curve,
    differences,
    discordant,
    powers,
)
from hesnr_tasks.passk.outcome_files import Query, read
from hesnr_tasks.stats import Estimate, holm

_MOST_SHOWN = 20  # discordant problems in text
_CURVE_NOTES = (
    "value ± standard error (of the mean over problems, as lm_eval prints it), then the 95 % interval and its method",
    '"(wide)": too few problems for a t interval; the interval is rather too wide than too narrow',
)
_COMPARE_NOTES = (
    "p: of “both are as good at every problem”, two-sided, by flipping the signs of the differences (McNemar's "
    "exact test where all count 0 or 1); p mean: of “the means over all such problems are equal”, as the interval",
    "detectable: smallest true difference found at 5 % with 80 % power; needed: problems to find the one seen",
    "fewer than 6 problems that differ cannot give p < 0.05; no detectable difference is then named",
)


class PassKResult(NamedTuple):
    """Everything that was computed."""

    runs: Sequence[AnswerCounts]
    curves: Mapping[str, Sequence[PassAtK]]
    against: Mapping[str, Sequence[PassAtKDifference]]  # checkpoint → difference to the first, empty without --compare
    notes: Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr passk`."""
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="lm-eval sample logs or their folder, SWE-bench reports (several: as many answers a problem), CSV or JSON "
        "Lines of (problem, ok). With --compare one checkpoint each: [NAME=]FILE[,FILE…]; the first is the reference",
    )
    add("--compare", action="store_true", help="each FILE is a checkpoint; paired differences to the first")
    add("--common", action="store_true", help="compare on the problems that all have, if they differ")
    add_answers(parser, k="default: powers of two, up to the number of answers")


def run(args: argparse.Namespace) -> int:
    """Print the tables, and write them and the figure with -o."""
    result = examine(args)
    tables = _tables(result)
    about: dict[str, Any] = {"hesnr_tasks": __version__, "files": args.files, "notes": list(result.notes)}
    about |= {name: getattr(args, name) for name in ("resamples", "seed")} | {"counts": {}}
    for counts in result.runs:
        rows = zip(counts.labels, counts.n.tolist(), counts.c.tolist(), strict=True)
        about["counts"][counts.name] = [{"problem": label, "n": n, "c": c} for label, n, c in rows]
    if args.output:
        write_tables(args.output, "passk", tables, about)
        _draw(result, args.output / "passk")
    for i, table in enumerate(tables):
        more = len(table.rows) - _MOST_SHOWN
        if args.format == "text" and table.name.startswith("discordant") and more > 0:
            note = f"and {more} more: --format csv, or -o OUT"
            tables[i] = table._replace(rows=table.rows[:_MOST_SHOWN], notes=(*table.notes, note))
    print(show(tables, args.format, about, wide=args.wide))
    return 0


def examine(args: argparse.Namespace) -> PassKResult:
    """Read and compute; `HesnrError` for files or settings that give no number."""
    check_resamples(args.resamples, args.seed)
    query = Query(args.metric, args.filter, args.task)
    runs = [read(name, paths, query) for name, paths in checkpoints(args.files, compare=args.compare).items()]
    notes = [note for counts in runs for note in counts.notes]
    if args.compare:
        runs, left_out = aligned(runs, common=args.common)
        notes += left_out
    ks = sorted(set(args.k)) if args.k else powers(min(int(counts.n.min()) for counts in runs))
    curves = {counts.name: curve(counts, ks) for counts in runs}
    bootstrap = {"resamples": args.resamples, "seed": args.seed}
    against = {counts.name: differences(runs[0], counts, ks, **bootstrap) for counts in runs[1:]}
    for counts in runs:
        if not_averaged := [k for k in ks if (counts.n == k).any()]:
            notes.append(
                f"warning: {counts.name} at k = {not_averaged[-1]} uses all answers of some problems: nothing is "
                "averaged there, it says how many problems had a right answer in this one run"
            )
        least, most = counts.n.min(), counts.n.max()
        if least < most:
            notes.append(f"{counts.name}: problems have {least} to {most} answers; each counts by its own n")
    return PassKResult(runs, curves, against, notes)


def checkpoints(words: Sequence[str], *, compare: bool) -> dict[str, list[Path]]:
    """Name → files. Without `compare` all files are of one checkpoint."""
    named: list[tuple[str, list[Path]]] = []
    for word in words:
        name, sign, rest = word.partition("=")
        files = (rest if sign else name).split(",")
        if Path(word).exists():  # a file whose own name has such signs is one file
            name, sign, files = "", "", [word]
        if "" in files:
            raise SettingsError(
                f"{word!r} names no file before or after a sign; write [NAME=]FILE[,FILE…] without spaces"
            )
        named.append((name if sign else "", [Path(file) for file in files]))
    if not compare:
        paths = [path for _, files in named for path in files]
        return {"all" if len(words) > 1 else unique_names(named[0][1])[0]: paths}
    if len(words) < 2:
        raise SettingsError("--compare needs two checkpoints or more, each as [NAME=]FILE[,FILE…] or a folder")
    short = unique_names([paths[0] for _, paths in named])
    by_name = {name or short[i]: paths for i, (name, paths) in enumerate(named)}
    if len(by_name) < len(words):
        raise SettingsError("two checkpoints have the same name; name them apart with NAME=FILE")
    return by_name


def _estimate(row: PassAtK | PassAtKDifference, factor: int = 1) -> Estimate:
    return Estimate(*(factor * number for number in row[1:5]))


def _tables(result: PassKResult) -> list[Table]:
    rows: list[dict[str, Any]] = []
    for counts in result.runs:
        for point in result.curves[counts.name]:
            value = _estimate(point)
            row: dict[str, Any] = {"run": counts.name, "k": point.k, "pass@k": value, "interval": interval(value, 4)}
            rows.append(row | {"method": point.method, "averaged": point.averaged, "problems": len(counts.problems)})
    tables = [Table("passk", "Pass@k", rows, (*_CURVE_NOTES, *result.notes))]
    first, rows = result.runs[0], []
    for name, of_run in result.against.items():
        for i, test in enumerate(of_run):
            value = _estimate(test)
            row = {"run": name, "k": test.k, "difference": value, "interval": interval(value, 4)}
            row |= {key: getattr(test, key) for key in ("method", "p", "p_mean", "detectable", "needed")}
            if len(result.against) > 1:
                row["p_holm"] = holm({other: tests[i].p for other, tests in result.against.items()})[name]
            rows.append(row | {"better": test.better, "worse": test.worse})
    if rows:
        title = f"Difference to {first.name}, {len(first.problems)} problems, paired"
        tables.append(Table("difference", title, rows, _COMPARE_NOTES))
    for counts in result.runs[1:]:
        rows = list(discordant(first, counts))
        title = f"Problems solved by {first.name} or {counts.name} alone: {len(rows)}"
        tables.append(Table(f"discordant_{counts.name}" if len(result.runs) > 2 else "discordant", title, rows))
    return tables


def figure_data(result: PassKResult) -> dict[str, dict[str, list[Estimate]]]:
    """The numbers in the figure, in per cent: panel → checkpoint → an estimate for each k."""
    panels: dict[str, Mapping[str, Sequence[Any]]] = {"curve": result.curves, "difference": result.against}
    return {
        panel: {name: [_estimate(row, 100) for row in rows] for name, rows in of_panel.items()}
        for panel, of_panel in panels.items()
        if of_panel
    }


def _draw(result: PassKResult, stem: Path) -> None:
    from hesnr_tasks.plotting import error_bars, figure, label, save

    panels = figure_data(result)
    picture, axes = figure(1, len(panels), width=4.2, height=3.1)
    order = {name: i for i, name in enumerate(result.curves)}
    ks = [point.k for point in result.curves[result.runs[0].name]]
    for panel, axis in zip(panels, axes[0], strict=True):
        for name, numbers in panels[panel].items():
            shift = 1.05 ** (order[name] - (len(order) - 1) / 2)  # error bars do not hide each other
            error_bars(axis, order[name], label(name), [k * shift for k in ks], numbers)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("k")
    axes[0, 0].set_ylabel("Pass@k (%)")
    if len(result.curves) > 1:
        axes[0, 0].legend(loc="best")
    if result.against:
        axes[0, 1].axhline(0, color="#444444", linewidth=0.8)
        axes[0, 1].set_ylabel(f"difference to {label(result.runs[0].name)} (points)")
    save(picture, stem)
