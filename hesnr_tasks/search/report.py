"""`hesnr search report`: what searches cost against what they resolve, from their files alone.

Each OUT is a folder of searched instances (OUT/<instance>/result.json and ledger.jsonl), or a records file that the
bench wrote (records.jsonl). Methods are told apart by `method` in result.json, else by the folder's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.measures import Number
from hesnr_tasks.analysis.options import check_resamples
from hesnr_tasks.analysis.output import FORMATS, Table, show
from hesnr_tasks.errors import SettingsError, nearest, printable
from hesnr_tasks.report.drawing import label
from hesnr_tasks.report.style import COLOURS, LINES, MARKERS, figure, save
from hesnr_tasks.search.costs import CURRENCIES, PRICE, Costs, Record, at_equal_rate, costs, points
from hesnr_tasks.search.report_read import read_records
from hesnr_tasks.search.types import Usage, total
from hesnr_tasks.statistics import RESAMPLES, SEED

__all__ = [
    "add_arguments",
    "curve_table",
    "draw_curves",
    "kinds_table",
    "report",
    "run",
    "savings_table",
    "spans",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr search report`."""
    add = parser.add_argument
    add("outputs", nargs="+", type=Path, metavar="OUT", help="folders of searches, or records files of the bench")
    add("--resolved", type=Path, metavar="FILE", help="outcomes: a SWE-bench report, or JSON {instance: true | false}")
    add(
        "--reference",
        metavar="METHOD",
        help="what others are compared with (default: without branching, else the first)",
    )
    add(
        "--at", nargs="+", type=int, metavar="N", help="runs of the reference (default: 4 and 8, as far as it has them)"
    )
    add("--cached-price", type=float, default=PRICE, help=f"of a cached prompt token (default: {PRICE})")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap over tasks (default: {RESAMPLES})")
    add("--seed", type=int, default=SEED, help=f"default: {SEED}")
    add("--format", choices=FORMATS, default="text", help="default: text")
    add("--figure", type=Path, metavar="STEM", help="also draw the cost curves: STEM.svg and STEM.png")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    print(report(args))
    return 0


def report(args: argparse.Namespace) -> str:
    """The tables as text, CSV or JSON; draws the figure where asked for."""
    check_resamples(args.resamples, args.seed)
    records = read_records(args.outputs, args.resolved)
    methods = costs(records, args.cached_price)
    reference = _reference(methods, args.reference)
    at = _counts(methods[reference], args.at)
    tables = [curve_table(methods, args.resamples, args.seed)]
    tables += [savings_table(methods, reference, n, args.resamples, args.seed) for n in at if len(methods) > 1]
    tables.append(kinds_table(records))
    if args.figure:
        paths = save(draw_curves(methods), args.figure)
        tables[-1] = tables[-1]._replace(notes=(*tables[-1].notes, f"drawn: {', '.join(map(str, paths))}"))
    about = {"hesnr_tasks": __version__, "reference": reference, "cached_price": args.cached_price, "seed": args.seed}
    return show(tables, args.format, about | {"resamples": args.resamples})


def _reference(methods: Mapping[str, Costs], name: str | None) -> str:
    if name is not None and name not in methods:
        raise SettingsError(f"--reference {name!r} is none of {', '.join(methods)}.{nearest(name, methods)}")
    plain = [method for method in methods if method == "best-of-N" or method.startswith("gate=never ")]
    return name or next(iter([*plain, *methods]))


def _counts(reference: Costs, asked: Sequence[int] | None) -> list[int]:
    for n in asked or ():
        if n not in reference.runs:
            has = ", ".join(map(str, reference.runs))
            raise SettingsError(f"--at {n}: {reference.method!r} was run with {has} run(s)")
    usual: list[int] = [n for n in (4, 8) if n in reference.runs]
    return list(asked or usual or [reference.runs[-1]])


_AXES = {"prompt": "prompt tokens", "cached": "prompt tokens, cached ones at their price", "output": "output tokens"}

# --- tables ---------------------------------------------------------------------------------------------------------


def curve_table(methods: Mapping[str, Costs], resamples: int = RESAMPLES, seed: int = SEED) -> Table:
    """Every point of every curve."""
    rows: list[dict[str, Any]] = []
    for one in methods.values():
        for point in points(one, resamples, seed):
            tokens = {name: _whole(number) for name, number in zip(CURRENCIES, point.tokens, strict=True)}
            row = {"method": one.method, "runs": point.runs, "tasks": len(one.tasks), "resolved": point.resolved}
            rows.append({**row, **tokens, "test_runs": float(round(point.tests))})
    notes = (
        "± is one standard error over tasks; tokens: mean a task, judges and selectors included",
        "prompt: all prompt tokens; cached: those read from a cache at their price; output: generated tokens",
    )
    return Table("curves", "Cost curves", rows, notes)


def savings_table(
    methods: Mapping[str, Costs], reference: str, runs: int, resamples: int = RESAMPLES, seed: int = SEED
) -> Table:
    """Tokens of every other method over those of the reference at the rate that it reaches with `runs` runs."""
    rows = []
    target = methods[reference]
    for one in methods.values():
        if one.method != reference:
            ratios = at_equal_rate(one, target, target, runs, resamples, seed)
            rows.append({"method": one.method, **spans(ratios)})
    rate = target.resolved[:, target.runs.index(runs)].mean()
    title = f"Tokens at equal resolve rate, over those of {printable(reference)} with {runs} run(s) (rate {rate:.3f})"
    notes = (
        "below 1: cheaper; [95 % interval, tasks resampled]; ∞: the rate is not reached with the runs that were made",
        "0: the reference does not reach it, this method does; –: neither does",
        "a method whose single run is above that rate is counted with the whole run: the ratio is then an upper bound",
    )
    return Table(f"savings_at_{runs}", title, rows, notes)


def kinds_table(records: Sequence[Record]) -> Table:
    """Where the tokens went: by method, number of runs and kind of call."""
    rows: list[dict[str, Any]] = []
    for method, runs in dict.fromkeys((one.method, one.runs) for one in records):
        same = [one for one in records if (one.method, one.runs) == (method, runs)]
        for kind in sorted({kind for one in same for kind in one.usage}):
            spent = total(one.usage.get(kind, Usage()) for one in same)
            mean = {name: round(value / len(same)) for name, value in spent._asdict().items()}
            rows.append({"method": method, "runs": runs, "kind": kind, **mean})
    note = "mean a task; cached: the part of the prompt that was read from a cache"
    return Table("kinds", "Tokens by kind of call", rows, (note,))


def spans(ratios: Sequence[Number]) -> dict[str, str]:
    """Ratios with their intervals in words, by currency."""
    return {currency: _span(ratio) for currency, ratio in zip(CURRENCIES, ratios, strict=True)}


def _span(ratio: Number) -> str:
    if ratio.low != ratio.low:
        return _short(ratio.value)
    return f"{_short(ratio.value)} [{_short(ratio.low)}, {_short(ratio.high)}]"


def _short(value: float) -> str:
    if value == 0 or value != value:
        return "0" if value == 0 else "–"
    return "∞" if value == float("inf") else f"{value:.2f}"


def _whole(number: Number) -> Number:
    """Tokens without decimals."""
    return Number(*(float(round(part)) if part == part else part for part in number))


# --- the figure -----------------------------------------------------------------------------------------------------


def draw_curves(methods: Mapping[str, Costs]) -> Any:
    """Resolve rate against tokens, one panel a currency; error bars: one standard error over tasks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawn, axes = figure(1, len(CURRENCIES), width=3.3, height=3.6)
    for at, currency in enumerate(CURRENCIES):
        axis = axes[0, at]
        for number, one in enumerate(methods.values()):
            curve = points(one, 2_000)
            axis.errorbar(
                [point.tokens[at].value / 1000 for point in curve],
                [point.resolved.value for point in curve],
                yerr=[point.resolved.stderr for point in curve],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=LINES[number % len(LINES)],
                elinewidth=0.6,
                label=label(one.method),
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"{_AXES[currency]}\n(thousands a task)")
        axis.set_ylabel("resolved" if at == 0 else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return drawn
