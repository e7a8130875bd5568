"""`hesnr passk`: Pass@K with intervals from logs, reports or tables; with --compare, whether checkpoints differ."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples, unique_names
from hesnr_tasks.analysis.tables import FORMATS, Table, interval, show, write_tables
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.passk.estimator import (
    AnswerCounts,
    IntervalSettings,
    PassAtK,
    PassAtKDifference,
    aligned,
    curve,
    differences,
    discordant,
    powers,
)
from hesnr_tasks.passk.outcome_files import Query, read
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, holm

__all__ = ["Result", "add_arguments", "checkpoints", "drawn", "examine", "run"]

_LISTED = 20  # discordant problems that text shows
_CURVE_NOTES = (
    "value ± standard error (cluster bootstrap over problems), then the 95 % interval and how it was made",
    '"(wide)": too few problems for the bootstrap; the interval is rather too wide than too narrow',
)
_COMPARE_NOTES = (
    "p: of “both are as good at every problem”, two-sided, by flipping the signs of the differences (McNemar's "
    "exact test where all count 0 or 1); p mean: of “the means over all such problems are equal”, as the interval",
    "detectable: smallest true difference found at 5 % with the power asked for; needed: problems to find the one seen",
    "fewer than 6 problems that differ cannot give p < 0.05; no detectable difference is then named",
)


class Result(NamedTuple):
    """Everything that was worked out."""

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
    add("--k", type=int, nargs="+", metavar="K", help="default: powers of two, up to the number of answers")
    add("--metric", metavar="NAME", help="of an lm-eval log: what says right or wrong (default: pass@1, exact_match)")
    add("--filter", metavar="NAME", help="of an lm-eval log with several filters")
    add("--task", metavar="NAME", help="of a folder with logs of several tasks")
    add("--unknown", choices=("skip", "fail"), default="skip", help="answers without outcome (default: skip)")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default: {RESAMPLES})")
    add("--seed", type=int, default=SEED, help=f"of the bootstrap (default: {SEED})")
    add("--power", type=float, default=0.8, help="for the minimum detectable difference (default: 0.8)")
    add("--format", choices=FORMATS, default="text", help="default: text")
    add("-o", "--output", type=Path, metavar="OUT", help="folder for CSV, JSON and the figure (SVG, PNG)")


def run(args: argparse.Namespace) -> int:
    """Print the tables, and write them and the figure with -o."""
    found = examine(args)
    tables = _tables(found)
    about = _about(args, found)
    if args.output:
        write_tables(args.output, "passk", tables, about)
        _draw(found, args.output / "passk")
    print(show(_shortened(tables) if args.format == "text" else tables, args.format, about))
    return 0


def examine(args: argparse.Namespace) -> Result:
    """Read and compute; `HesnrError` for files or settings that give no number."""
    check_resamples(args.resamples, args.seed)
    if not 0.5 <= args.power < 1:
        raise SettingsError("--power must be at least 0.5 and below 1")
    query = Query(args.metric, args.filter, args.task, args.unknown == "fail")
    runs = [read(name, paths, query) for name, paths in checkpoints(args.files, compare=args.compare).items()]
    notes = [note for run in runs for note in run.notes]
    if args.compare:
        runs, left_out = aligned(runs, common=args.common)
        notes += left_out
    ks = sorted(set(args.k)) if args.k else powers(min(int(one.n.min()) for one in runs))
    plan = IntervalSettings(args.resamples, args.seed, power=args.power)
    curves = {one.name: curve(one, ks, plan) for one in runs}
    against = {one.name: differences(runs[0], one, ks, plan) for one in runs[1:]}
    return Result(runs, curves, against, [*notes, *_warnings(runs, ks)])


def checkpoints(words: Sequence[str], *, compare: bool) -> dict[str, list[Path]]:
    """Name → files. Without --compare all files are of one checkpoint."""
    named = [_named(word) for word in words]
    if not compare:
        return {"all" if len(words) > 1 else unique_names(named[0][1])[0]: [p for _, paths in named for p in paths]}
    if len(words) < 2:
        raise SettingsError("--compare needs two checkpoints or more, each as [NAME=]FILE[,FILE…] or a folder")
    short = unique_names([paths[0] for _, paths in named])
    found = {name or short[i]: paths for i, (name, paths) in enumerate(named)}
    if len(found) < len(words):
        raise SettingsError("two checkpoints have the same name; name them apart with NAME=FILE")
    return found


def _named(word: str) -> tuple[str | None, list[Path]]:
    """`NAME=FILE,FILE` apart; a file whose own name has such signs is one file."""
    if Path(word).exists():
        return None, [Path(word)]
    name, sign, rest = word.partition("=")
    files = (rest if sign else name).split(",")
    if "" in files:
        raise SettingsError(f"{word!r} names no file before or after a sign; write [NAME=]FILE[,FILE…] without spaces")
    return (name if sign else None), [Path(one) for one in files]


def _warnings(runs: Sequence[AnswerCounts], ks: Sequence[int]) -> list[str]:
    told = []
    for one in runs:
        at = [k for k in ks if (one.n == k).any()]
        if at:
            told.append(
                f"warning: {one.name} at k = {at[-1]} uses all answers of some problems: nothing is averaged there, it "
                "says how many problems had a right answer in this one run"
            )
        if one.n.min() < one.n.max():
            told.append(f"{one.name}: problems have {one.n.min()} to {one.n.max()} answers; each counts by its own n")
    return told


def _tables(found: Result) -> list[Table]:
    tables = [_curve_table(found)]
    if found.against:
        rows = [row for name in found.against for row in _difference_rows(found, name)]
        first = found.runs[0]
        title = f"Difference to {first.name}, {len(first.problems)} problems, paired"
        tables.append(Table("difference", title, rows, _COMPARE_NOTES))
    for one in found.runs[1:]:
        rows = list(discordant(found.runs[0], one))
        title = f"Problems solved by {found.runs[0].name} or {one.name} alone: {len(rows)}"
        tables.append(Table(f"discordant_{one.name}" if len(found.runs) > 2 else "discordant", title, rows))
    return tables


def _curve_table(found: Result) -> Table:
    rows: list[dict[str, Any]] = []
    for one in found.runs:
        for point in found.curves[one.name]:
            number = Estimate(point.value, point.stderr, point.low, point.high)
            named = {"run": one.name, "k": point.k, "pass@k": number, "interval": interval(number, 4)}
            rows.append({**named, "method": point.method, "averaged": point.averaged, "problems": len(one.problems)})
    return Table("passk", "Pass@k", rows, (*_CURVE_NOTES, *found.notes))


def _difference_rows(found: Result, name: str) -> list[dict[str, Any]]:
    rows = []
    for i, one in enumerate(found.against[name]):
        number = Estimate(one.difference, one.stderr, one.low, one.high)
        row = {"run": name, "k": one.k, "difference": number, "interval": interval(number, 4)}
        row |= {
            "method": one.method,
            "p": one.p,
            "p_mean": one.p_mean,
            "detectable": one.detectable,
            "needed": one.needed,
        }
        if len(found.against) > 1:
            row["p_holm"] = holm({other: others[i].p for other, others in found.against.items()})[name]
        rows.append({**row, "better": one.better, "worse": one.worse})
    return rows


def _shortened(tables: Sequence[Table]) -> list[Table]:
    """For text: the first discordant problems, and how many more."""
    found = []
    for table in tables:
        more = len(table.rows) - _LISTED
        if table.name.startswith("discordant") and more > 0:
            note = f"and {more} more: --format csv, or -o OUT"
            table = table._replace(rows=table.rows[:_LISTED], notes=(*table.notes, note))
        found.append(table)
    return found


def _about(args: argparse.Namespace, found: Result) -> dict[str, Any]:
    about: dict[str, Any] = {"hesnr_tasks": __version__, "files": args.files, "resamples": args.resamples}
    about |= {"seed": args.seed, "power": args.power, "notes": list(found.notes)}
    about["counts"] = {
        one.name: [
            {"problem": label, "n": n, "c": c}
            for label, n, c in zip(one.labels, one.n.tolist(), one.c.tolist(), strict=True)
        ]
        for one in found.runs
    }
    return about


# --- figure -----------------------------------------------------------------------------------------------------------


def drawn(found: Result) -> dict[str, dict[str, list[Estimate]]]:
    """The numbers in the figure, in per cent: panel → checkpoint → one for each k."""
    panels = {"curve": {name: [_percent(one, one.value) for one in points] for name, points in found.curves.items()}}
    if found.against:
        panels["difference"] = {
            name: [_percent(one, one.difference) for one in rows] for name, rows in found.against.items()
        }
    return panels


def _percent(one: PassAtK | PassAtKDifference, value: float) -> Estimate:
    return Estimate(100 * value, 100 * one.stderr, 100 * one.low, 100 * one.high)


def _draw(found: Result, stem: Path) -> None:
    from hesnr_tasks.plotting import error_bars, figure, label, save

    panels = drawn(found)
    picture, axes = figure(1, len(panels), width=4.2, height=3.1)
    order = {name: i for i, name in enumerate(found.curves)}
    ks = [point.k for point in found.curves[found.runs[0].name]]
    for panel, axis in zip(panels, axes[0], strict=True):
        for name, numbers in panels[panel].items():
            shift = 1.05 ** (order[name] - (len(order) - 1) / 2)  # error bars do not hide each other
            error_bars(axis, order[name], label(name), [k * shift for k in ks], numbers)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("k")
    axes[0, 0].set_ylabel("Pass@k (%)")
    if len(found.curves) > 1:
        axes[0, 0].legend(loc="best")
    if found.against:
        axes[0, 1].axhline(0, color="#444444", linewidth=0.8)
        axes[0, 1].set_ylabel(f"difference to {label(found.runs[0].name)} (points)")
    save(picture, stem)
