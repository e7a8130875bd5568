"""`hesnr passk`: Pass@K with intervals from logs, reports or tables; with --compare, whether checkpoints differ."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples, unique_names
from hesnr_tasks.analysis.tables import Table, interval, show, write_tables
from hesnr_tasks.cli.options import add_answers
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.passk import aligned, curve, differences, discordant, powers
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
    results, about = tables(args)
    if args.output:
        write_tables(args.output, "passk", results, about)
        _draw(results, args.output / "passk")
    for i, table in enumerate(results):
        more = len(table.rows) - _MOST_SHOWN
        if args.format == "text" and table.name.startswith("discordant") and more > 0:
            note = f"and {more} more: --format csv, or -o OUT"
            results[i] = table._replace(rows=table.rows[:_MOST_SHOWN], notes=(*table.notes, note))
    print(show(results, args.format, about, wide=args.wide))
    return 0


def tables(args: argparse.Namespace) -> tuple[list[Table], dict[str, Any]]:
    """Read and compute: curves, differences, problems that one alone solves; and what JSON says about them.

    Raises:
        HesnrError: files or settings give no number.
    """
    check_resamples(args.resamples, args.seed)
    query = Query(args.metric, args.filter, args.task)
    runs = [read(name, paths, query) for name, paths in checkpoints(args.files, compare=args.compare).items()]
    notes = [note for counts in runs for note in counts.notes]
    if args.compare:
        runs, left_out = aligned(runs, common=args.common)
        notes += left_out
    ks = sorted(set(args.k)) if args.k else powers(min(int(counts.n.min()) for counts in runs))
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {"hesnr_tasks": __version__, "files": args.files, "notes": notes}
    about |= {"resamples": args.resamples, "seed": args.seed, "counts": {}}
    for counts in runs:
        for point in curve(counts, ks):
            value = Estimate(*point[1:5])
            row: dict[str, Any] = {"run": counts.name, "k": point.k, "pass@k": value, "interval": interval(value, 4)}
            rows.append(row | {"method": point.method, "averaged": point.averaged, "problems": len(counts.problems)})
        if not_averaged := [k for k in ks if (counts.n == k).any()]:
            notes.append(
                f"warning: {counts.name} at k = {not_averaged[-1]} uses all answers of some problems: nothing is "
                "averaged there, it says how many problems had a right answer in this one run"
            )
        least, most = counts.n.min(), counts.n.max()
        if least < most:
            notes.append(f"{counts.name}: problems have {least} to {most} answers; each counts by its own n")
        each = zip(counts.labels, counts.n.tolist(), counts.c.tolist(), strict=True)
        about["counts"][counts.name] = [{"problem": label, "n": n, "c": c} for label, n, c in each]
    first, *others = runs
    results = [Table("passk", "Pass@k", rows, (*_CURVE_NOTES, *notes))]
    bootstrap = {"resamples": args.resamples, "seed": args.seed}
    against = {counts.name: differences(first, counts, ks, **bootstrap) for counts in others}
    rows = []
    for name, of_run in against.items():
        for i, test in enumerate(of_run):
            value = Estimate(*test[1:5])
            row = {"run": name, "k": test.k, "difference": value, "interval": interval(value, 4)}
            row |= {key: getattr(test, key) for key in ("method", "p", "p_mean", "detectable", "needed")}
            if len(others) > 1:
                row["p_holm"] = holm({other: tests[i].p for other, tests in against.items()})[name]
            rows.append(row | {"better": test.better, "worse": test.worse})
    if rows:
        title = f"Difference to {first.name}, {len(first.problems)} problems, paired"
        results.append(Table("difference", title, rows, _COMPARE_NOTES))
    for counts in others:
        rows = list(discordant(first, counts))
        title = f"Problems solved by {first.name} or {counts.name} alone: {len(rows)}"
        results.append(Table(f"discordant_{counts.name}" if len(others) > 1 else "discordant", title, rows))
    return results, about


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


def _draw(results: Sequence[Table], stem: Path) -> None:
    from matplotlib.ticker import PercentFormatter

    from hesnr_tasks.plotting import error_bars, figure, label, save

    panels = {"pass@k": results[0].rows} | {t.name: t.rows for t in results[1:] if t.name == "difference"}
    picture, axes = figure(1, len(panels), width=4.2, height=3.1)
    names = list(dict.fromkeys(row["run"] for row in results[0].rows))
    ks = sorted({row["k"] for row in results[0].rows})
    for (column, rows), axis in zip(panels.items(), axes[0], strict=True):
        for i, name in enumerate(names):
            if own := [row for row in rows if row["run"] == name]:
                shift = 1.05 ** (i - (len(names) - 1) / 2)  # error bars do not hide each other
                error_bars(axis, i, label(name), [row["k"] * shift for row in own], [row[column] for row in own])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("k")
        axis.set_ylabel(f"difference to {label(names[0])}" if column == "difference" else "Pass@k")
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    if len(names) > 1:
        axes[0, 0].legend(loc="best")
    if "difference" in panels:
        axes[0, 1].axhline(0, color="#444444", linewidth=0.8)
    save(picture, stem)
