"""`hesnr egss report`: what runs cost against what they resolve, from the files that mini-swe-agent wrote.

Each argument is the output folder of a run (RUN/INSTANCE/INSTANCE.traj.json), several joined by + where one answer was
chosen among them. With each goes an evaluation report. Runs with the same settings but for their outcome are one
method; without a gate the method is `plain`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hesnr_tasks import __version__
from hesnr_tasks.analysis.measures import Number
from hesnr_tasks.analysis.options import check_resamples
from hesnr_tasks.analysis.output import FORMATS, Table, show
from hesnr_tasks.bounded_io import read_json
from hesnr_tasks.egss import SWEBENCH_CONFIG
from hesnr_tasks.egss.costs import KINDS, Spent, spent_of
from hesnr_tasks.egss.curves import CURRENCIES, PRICE, Curve, Record, at_equal_rate, curves, mean_number, paired_ratio
from hesnr_tasks.egss.estimators import Estimator
from hesnr_tasks.egss.gates import Calibration, calibrate
from hesnr_tasks.errors import DataError, SettingsError, nearest, printable
from hesnr_tasks.formats.evaluations import read_outcomes
from hesnr_tasks.formats.fields import deep
from hesnr_tasks.stats import RESAMPLES, SEED

__all__ = ["InstanceRun", "add_arguments", "curve_table", "read_instance", "read_run", "run", "savings_table", "spans"]


class InstanceRun(NamedTuple):
    """What one trajectory of mini-swe-agent says about its costs."""

    instance: str
    method: str
    model: str
    spent: Mapping[str, Spent]  # by kind; without a gate all of it is "draw"
    steps: int
    fired: int
    notes: Mapping[str, int]
    estimates: tuple[float, ...]  # nats, of the steps that have one
    estimator: Mapping[str, Any]

    @property
    def total(self) -> Spent:
        """All kinds together."""
        return Spent.sum(self.spent.values())


# --- reading --------------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> list[InstanceRun]:
    """Every trajectory in the output folder of a run. Raises `DataError` for a folder of anything else."""
    files = sorted(folder.glob("*/*.traj.json")) or sorted(folder.glob("*.traj.json"))
    if not files:
        raise DataError(
            f"{folder}: no trajectory of mini-swe-agent in it (INSTANCE/INSTANCE.traj.json).\n"
            "Give the folder that mini-extra swebench -o wrote."
        )
    return [read_instance(read_json(path), str(path)) for path in files]


def read_instance(trajectory: Any, where: str) -> InstanceRun:
    """One trajectory as mini-swe-agent writes it. Raises `DataError` for what it would not write."""
    info, messages = deep(trajectory, "info"), deep(trajectory, "messages")
    if not isinstance(info, dict) or not isinstance(messages, list):
        raise DataError(f"{where}: not a trajectory of mini-swe-agent 2 (no info, or no messages).")
    config = deep(info, "config", "model")
    config = config if isinstance(config, dict) else {}
    instance = str(trajectory.get("instance_id") or Path(where).name.removesuffix(".traj.json"))
    extras = [m["extra"] for m in messages if isinstance(m, dict) and isinstance(m.get("extra"), dict)]
    replies = [extra for extra in extras if "response" in extra]
    steps = [extra["egss"] for extra in replies if isinstance(extra.get("egss"), dict)]
    spent: dict[str, Spent] = {}
    try:
        if steps:
            for kind, usage in ((kind, usage) for step in steps for kind, usage in step["usage"].items()):
                spent[kind] = Spent.sum((spent.get(kind, Spent()), Spent.read(usage)))
        else:
            calls = [spent_of(_usage(extra), float(extra.get("cost") or 0.0)) for extra in replies]
            spent["draw"] = Spent.sum(calls)
        notes: Counter[str] = Counter()
        for step in steps:
            notes.update(step.get("notes", {}))
        estimates = tuple(float(step["estimate"]) for step in steps if "estimate" in step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: its record of costs is damaged ({error}).") from None
    stated = {name: deep(info, "model_stats", "egss", name) for name in Estimator().identity}
    identity = {name: value for name, value in stated.items() if value is not None}
    fired = sum(bool(step.get("fired")) for step in steps)
    model = str(config.get("model_name") or "")
    return InstanceRun(instance, _method(config), model, spent, len(replies), fired, notes, estimates, identity)


def _usage(extra: Mapping[str, Any]) -> Any:
    return extra["response"].get("usage") if isinstance(extra["response"], dict) else None


def _method(config: Mapping[str, Any]) -> str:
    """The settings that tell methods apart, in words."""
    if "gate" not in config:
        return "plain"
    words = [f"gate {config['gate']}"]
    if str(config["gate"]).startswith(("threshold", "quantile")):
        words.append(f"{config.get('estimator')} of {config.get('probes')}")
    judge = config.get("judge_model") or "same model"
    words.append(f"{config.get('draws')} draws, " + ("votes" if config.get("judge") == "votes" else f"judge {judge}"))
    return ", ".join(words)


# --- the commands ---------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr egss`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="cost curves and ratios of cost at equal resolve rate")
    add = report.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of mini-extra swebench; A+B+C: one answer chosen of three")
    add("--resolved", nargs="+", type=Path, metavar="FILE", help="evaluation reports, one a RUN in the same order")
    add("--reference", metavar="METHOD", help="what others are compared with (default: plain, else the first)")
    add("--at", nargs="+", type=int, metavar="N", help="runs of the reference (default: as many as it has)")
    add("--cached-price", type=float, default=PRICE, help=f"of a cached prompt token (default: {PRICE})")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap over tasks (default: {RESAMPLES})")
    add("--bootstrap-seed", type=int, default=SEED, help=f"default: {SEED}")
    add("--format", choices=FORMATS, default="text", help="default: text")
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
    print("\n".join(_rules(calibration)))
    return 0


def _rules(calibration: Calibration) -> Iterator[str]:
    for share in (0.5, 0.3, 0.2, 0.1, 0.05):
        threshold, chance = calibration.rule(share)
        at = "" if chance in (0.0, 1.0) else f", and of those at it {chance:.0%}"
        yield f"  quantile:{share:g}  fires above {threshold:.4f} nats{at}"


def _report(args: argparse.Namespace) -> int:
    check_resamples(args.resamples, args.bootstrap_seed)
    if not 0 <= args.cached_price <= 1:
        raise SettingsError(f"--cached-price is {args.cached_price:g}; it is a share of a prompt token's price: 0 to 1")
    records, instances, notes = _records(args.runs, args.resolved or [])
    methods, left_out = curves(records, args.cached_price)
    reference = _reference(methods, args.reference)
    if left_out:
        names = ", ".join(printable(task) for task in left_out[:5])
        notes.append(f"{len(left_out)} task(s) are not in every run with outcome and cost, and left out: {names}")
    counts = _counts(methods[reference], args.at)
    options = (args.resamples, args.bootstrap_seed)
    tables = [curve_table(methods, *options, notes=notes)]
    tables += [savings_table(methods, name, n, *options) for name in _references(methods, reference)
               for n in counts if len(methods) > 1 and n in methods[name].runs]  # fmt: skip
    tables += [_paired_table(methods, reference, *options), kinds_table(instances)]
    about = {"hesnr_tasks": __version__, "reference": reference, "cached_price": args.cached_price}
    print(show([table for table in tables if table.rows], args.format, {**about, "resamples": args.resamples}))
    return 0


def _records(
    arguments: Sequence[str], reports: Sequence[Path]
) -> tuple[list[Record], list[tuple[str, int, InstanceRun]], list[str]]:
    """A record a task of each argument; the instances behind them; what is to be said."""
    if len(reports) != len(arguments):
        own = [Path(argument) / "report.json" for argument in arguments]
        if reports or not all(path.is_file() for path in own):
            raise SettingsError(
                f"{len(arguments)} run(s) and {len(reports)} report(s): costs are compared at equal resolve rate, and "
                "every run has outcomes of its own.\nGive --resolved one evaluation report for each RUN, in the same "
                "order, or put it into the folder as report.json."
            )
        reports = own
    records, every, notes = [], [], []
    for argument, report in zip(arguments, reports, strict=True):
        pools = [read_run(Path(folder)) for folder in argument.split("+")]
        outcomes = read_outcomes([str(report)])
        by_instance = [{instance.instance: instance for instance in pool} for pool in pools]
        names = {instance.method for pool in pools for instance in pool}
        if len(names) > 1:
            raise DataError(f"{argument}: runs of several methods in one: {', '.join(sorted(names))}.")
        method, unknown, unstated = names.pop(), 0, 0
        every += [(method, len(pools), instance) for pool in pools for instance in pool]
        for task in sorted(set.intersection(*(set(pool) for pool in by_instance))):
            spent = Spent.sum(pool[task].total for pool in by_instance)
            solved = outcomes.get(task)
            unknown += solved is None
            unstated += spent.unstated > 0
            if solved is not None and not spent.unstated:
                records.append(Record(task, method, len(pools), float(solved), spent))
        if unknown:
            notes.append(f"{argument}: {unknown} task(s) without an outcome in {report}")
        if unstated:
            notes.append(f"{argument}: {unstated} task(s) with calls whose usage the server did not state")
        lacking = len(set.union(*(set(pool) for pool in by_instance))) - len(
            set.intersection(*(set(pool) for pool in by_instance))
        )
        if lacking:
            notes.append(f"{argument}: {lacking} task(s) that only some of its runs have")
    return records, every, notes


def _reference(methods: Mapping[str, Curve], name: str | None) -> str:
    if name is not None and name not in methods:
        raise SettingsError(f"--reference {name!r} is none of {', '.join(methods)}.{nearest(name, methods)}")
    return name or ("plain" if "plain" in methods else next(iter(methods)))


def _references(methods: Mapping[str, Curve], reference: str) -> list[str]:
    """The reference, then the controls that are there."""
    controls = [name for name in methods if name.startswith(("gate random", "gate edit"))]
    return list(dict.fromkeys([reference, *controls]))


def _counts(reference: Curve, asked: Sequence[int] | None) -> list[int]:
    for n in asked or ():
        if n not in reference.runs:
            has = ", ".join(map(str, reference.runs))
            raise SettingsError(f"--at {n}: {reference.method!r} was run with {has} run(s).")
    return list(asked or reference.runs)


# --- tables ---------------------------------------------------------------------------------------------------------


def curve_table(
    methods: Mapping[str, Curve], resamples: int = RESAMPLES, seed: int = SEED, notes: Sequence[str] = ()
) -> Table:
    """Every point of every curve."""
    rows: list[dict[str, Any]] = []
    for curve in methods.values():
        for i, runs in enumerate(curve.runs):
            row: dict[str, Any] = {"method": curve.method, "runs": runs, "tasks": len(curve.tasks)}
            row["resolved"] = mean_number(curve.resolved[:, i], resamples, seed)
            for c, currency in enumerate(CURRENCIES):
                number = mean_number(curve.costs[:, i, c], resamples, seed)
                row[currency] = number if currency == "money" else _whole(number)
            rows.append(row)
    about = (
        "± is one standard error over tasks; costs: mean a task, probes, draws and judge included",
        "prompt: all prompt tokens; cached: those read from a cache at their price; output: generated tokens; money: "
        "as mini-swe-agent counts it, – where no price is known",
    )
    return Table("curves", "Cost curves", rows, (*about, *notes))


def savings_table(
    methods: Mapping[str, Curve], reference: str, runs: int, resamples: int = RESAMPLES, seed: int = SEED
) -> Table:
    """Costs of every other method over those of the reference at the rate that it reaches with `runs` runs."""
    target = methods[reference]
    others = [curve for curve in methods.values() if curve.method != reference]
    rows = [
        {"method": curve.method, **spans(at_equal_rate(curve, target, target, runs, resamples, seed))}
        for curve in others
    ]
    rate = target.resolved[:, target.runs.index(runs)].mean()
    title = f"Costs at equal resolve rate, over those of {printable(reference)} with {runs} run(s) (rate {rate:.3f})"
    notes = (
        "below 1: cheaper; [95 % interval, tasks resampled]; ∞: the rate is not reached with the runs that were made",
        "a method whose single run is above that rate is counted with the whole run: the ratio is then an upper bound",
    )
    return Table(f"savings_at_{runs}_of_{reference}", title, rows, notes)


def _paired_table(methods: Mapping[str, Curve], reference: str, resamples: int, seed: int) -> Table:
    """The same number of runs: what is resolved more, and what it costs more."""
    base, rows = methods[reference], []
    for curve in methods.values():
        for runs in (n for n in curve.runs if n in base.runs and curve.method != reference):
            i, j = curve.runs.index(runs), base.runs.index(runs)
            gain = mean_number(curve.resolved[:, i] - base.resolved[:, j], resamples, seed)
            ratios = [
                paired_ratio(base.costs[:, j, c], curve.costs[:, i, c], resamples, seed) for c in range(len(CURRENCIES))
            ]
            rows.append(
                {"method": curve.method, "runs": runs, "resolved_more": _span(gain, sign=True), **spans(ratios)}
            )
    title = f"As many runs as {printable(reference)}: difference of resolve rates, ratio of costs"
    return Table("paired", title, rows, ("[95 % interval, tasks resampled]",))


def kinds_table(instances: Sequence[tuple[str, int, InstanceRun]]) -> Table:
    """Where the tokens went, how often the gate fired, what was noted."""
    rows: list[dict[str, Any]] = []
    about = ["mean a trajectory; cached: the part of the prompt that was read from a cache; fires: share of steps"]
    for method in dict.fromkeys(method for method, _, _ in instances):
        same = [instance for name, _, instance in instances if name == method]
        notes: Counter[str] = Counter()
        for instance in same:
            notes.update(instance.notes)
        steps = sum(instance.steps for instance in same)
        fires = sum(instance.fired for instance in same) / steps if steps else math.nan
        for kind in KINDS:
            spent = Spent.sum(instance.spent.get(kind, Spent()) for instance in same)
            if spent.calls:
                row: dict[str, Any] = {"method": method, "trajectories": len(same), "fires": fires, "kind": kind}
                row |= {name: getattr(spent, name) / len(same) for name in ("calls", "prompt", "cached", "output")}
                rows.append(row)
        words = (f"{name} {count}" for name, count in sorted(notes.items()))
        about += [f"{method}: {', '.join(words)}"] if notes else []
    return Table("kinds", "Calls and tokens by kind", rows, about)


def spans(numbers: Sequence[Number]) -> dict[str, str]:
    """Numbers with their intervals in words, by currency."""
    return {currency: _span(number) for currency, number in zip(CURRENCIES, numbers, strict=True)}


def _span(number: Number, sign: bool = False) -> str:
    def short(value: float) -> str:
        if math.isnan(value):
            return "–"
        return "∞" if value == math.inf else f"{value:+.3f}" if sign else f"{value:.2f}"

    ends = "" if np.isnan(number.low) else f" [{short(number.low)}, {short(number.high)}]"
    return f"{short(number.value)}{ends}"


def _whole(number: Number) -> Number:
    return Number(*(float(round(part)) if math.isfinite(part) else part for part in number))
