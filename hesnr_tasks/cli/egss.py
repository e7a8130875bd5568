"""`hesnr egss`: costs of runs at equal resolve rate, calibration of gates, and the file for mini-swe-agent."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples
from hesnr_tasks.analysis.tables import show
from hesnr_tasks.cli.options import add_format
from hesnr_tasks.egss import SWEBENCH_CONFIG
from hesnr_tasks.egss.gates import calibrate
from hesnr_tasks.egss.judges import Spent
from hesnr_tasks.egss.report import (
    PRICE,
    InstanceRun,
    TaskCost,
    curve_table,
    curves,
    kinds_table,
    paired_table,
    read_run,
    savings_table,
)
from hesnr_tasks.errors import DataError, SettingsError, nearest, printable
from hesnr_tasks.formats.outcomes import read_outcomes
from hesnr_tasks.stats import RESAMPLES, SEED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr egss`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="cost curves and ratios of cost at equal resolve rate")
    add = report.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of mini-extra swebench; A+B+C: one answer chosen of three")
    add("--resolved", nargs="+", type=Path, metavar="FILE", help="evaluation reports, one a RUN in the same order")
    add("--reference", metavar="METHOD", help="what others are compared with (default: plain, else the first)")
    add("--cached-price", type=float, default=PRICE, help=f"of a cached prompt token (default: {PRICE})")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap over tasks (default: {RESAMPLES})")
    add_format(report)
    report.set_defaults(egss=_report)
    calibration = commands.add_parser("calibrate", help="the estimates of finished runs, for quantile gates")
    calibration.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs with model.gate=threshold:inf")
    calibration.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="for model.calibration")
    calibration.set_defaults(egss=_calibrate)
    config = commands.add_parser("config", help="print the file for mini-extra swebench -c")
    config.set_defaults(egss=lambda args: print(SWEBENCH_CONFIG) or 0)


def run(args: argparse.Namespace) -> int:
    """Run one of the commands."""
    return int(args.egss(args))


def _calibrate(args: argparse.Namespace) -> int:
    instances = [instance for folder in args.runs for instance in read_run(folder)]
    with_estimates = [instance for instance in instances if instance.estimates]
    identities = {json.dumps([instance.estimator, instance.model], sort_keys=True) for instance in with_estimates}
    if len(identities) > 1:
        raise DataError(
            "these runs have several estimators or models, and their estimates cannot be put together:\n"
            + "\n".join(sorted(identities))
        )
    estimates = [value for instance in with_estimates for value in instance.estimates]
    first = with_estimates[0] if with_estimates else None
    calibration = calibrate(estimates, first.estimator if first else {}, first.model if first else "")
    if any(instance.fired for instance in with_estimates):
        print("note: the gate fired in these runs; what it led to is part of the calibration")
    calibration.write(args.output)
    print(f"{args.output}: {len(estimates)} steps of {len(with_estimates)} trajectories")
    for share in (0.5, 0.3, 0.2, 0.1, 0.05):
        threshold, chance = calibration.rule(share)
        ties = "" if chance in (0.0, 1.0) else f", and of those at it {chance:.0%}"
        print(f"  quantile:{share:g}  fires above {threshold:.4f} nats{ties}")
    return 0


def _report(args: argparse.Namespace) -> int:
    check_resamples(args.resamples, SEED)
    if not 0 <= args.cached_price <= 1:
        raise SettingsError(f"--cached-price is {args.cached_price:g}; it is a share of a prompt token's price: 0 to 1")
    records, instances, notes = _records(args.runs, args.resolved or [])
    methods, left_out = curves(records, args.cached_price)
    if args.reference is not None and args.reference not in methods:
        hint = nearest(args.reference, methods)
        raise SettingsError(f"--reference {args.reference!r} is none of {', '.join(methods)}.{hint}")
    reference = args.reference or ("plain" if "plain" in methods else next(iter(methods)))
    if left_out:
        names = ", ".join(printable(task) for task in left_out[:5])
        notes.append(f"{len(left_out)} task(s) are not in every run with outcome and cost, and left out: {names}")
    controls = [name for name in methods if name.startswith(("gate random", "gate edit"))]
    tables = [curve_table(methods, args.resamples, notes)]
    if len(methods) > 1:
        for name in dict.fromkeys([reference, *controls]):
            both = [n for n in methods[reference].runs if n in methods[name].runs]
            tables += [savings_table(methods, name, n, args.resamples) for n in both]
    tables += [paired_table(methods, reference, args.resamples), kinds_table(instances)]
    about = {"hesnr_tasks": __version__, "reference": reference, "cached_price": args.cached_price}
    filled, about = [table for table in tables if table.rows], {**about, "resamples": args.resamples}
    print(show(filled, args.format, about, wide=args.wide))
    return 0


def _records(arguments: Sequence[str], reports: Sequence[Path]) -> tuple[list[TaskCost], list[InstanceRun], list[str]]:
    """A record a task of each argument; the trajectories behind them; footnotes."""
    if len(reports) != len(arguments):
        own = [Path(argument) / "report.json" for argument in arguments]
        if reports or not all(path.is_file() for path in own):
            raise SettingsError(
                f"{len(arguments)} run(s) and {len(reports)} report(s): costs are compared at equal resolve rate, and "
                "every run has outcomes of its own.\nGive --resolved one evaluation report for each RUN, in the same "
                "order, or put it into the folder as report.json."
            )
        reports = own
    records, instances, notes = [], [], []
    for argument, report in zip(arguments, reports, strict=True):
        pools = [read_run(Path(folder)) for folder in argument.split("+")]
        outcomes = read_outcomes([str(report)])
        by_task = [{instance.instance: instance for instance in pool} for pool in pools]
        method, *others = sorted({instance.method for pool in pools for instance in pool})
        if others:
            raise DataError(f"{argument}: runs of several methods in one: {', '.join([method, *others])}.")
        instances += [instance for pool in pools for instance in pool]
        common = set.intersection(*map(set, by_task))
        unstated = 0
        for task in sorted(common):
            spent, resolved = Spent.sum(pool[task].total for pool in by_task), outcomes.get(task)
            unstated += spent.unstated > 0
            if resolved is not None and not spent.unstated:
                records.append(TaskCost(task, method, len(pools), float(resolved), spent))
        for count, problem in (
            (sum(outcomes.get(task) is None for task in common), f"without an outcome in {report}"),
            (unstated, "with calls whose usage the server did not state"),
            (len(set.union(*map(set, by_task)) - common), "that only some of its runs have"),
        ):
            notes += [f"{argument}: {count} task(s) {problem}"] if count else []
    return records, instances, notes
