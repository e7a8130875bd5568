"""`hesnr egss`: costs of runs at equal resolve rate, gates, the file for mini-swe-agent; and `hesnr select`."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples
from hesnr_tasks.analysis.tables import show
from hesnr_tasks.cli.analyze import add_format
from hesnr_tasks.egss import SWEBENCH_CONFIG
from hesnr_tasks.egss.collect import collect, load_instances
from hesnr_tasks.egss.gates import calibrate
from hesnr_tasks.egss.judges import ChatModel, Spent, check_model
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
from hesnr_tasks.egss.suite import METHODS, PatchTester, SelectSettings, sandbox_config, select_instance
from hesnr_tasks.errors import DataError, SettingsError, nearest, number_of, printable
from hesnr_tasks.files.atomic import Journal, write_output
from hesnr_tasks.formats.outcomes import read_outcomes
from hesnr_tasks.stats import RESAMPLES, SEED


def egss_arguments(parser: argparse.ArgumentParser) -> None:
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
    report.set_defaults(execute=_report)
    calibration = commands.add_parser("calibrate", help="the estimates of finished runs, for quantile gates")
    calibration.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs with model.gate=threshold:inf")
    calibration.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="for model.calibration")
    calibration.set_defaults(execute=_calibrate)
    config = commands.add_parser("config", help="print the file for mini-extra swebench -c")
    config.set_defaults(execute=lambda args: str(SWEBENCH_CONFIG))


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
    print(f"{args.output}: {number_of(len(estimates), 'step')} of {number_of(len(with_estimates), 'trajectory')}")
    for share in (0.5, 0.3, 0.2, 0.1, 0.05):
        threshold, chance = calibration.rule(share)
        ties = "" if chance in (0.0, 1.0) else f", and of those at it {chance:.0%}"
        print(f"  quantile:{share:g}  fires above {threshold:.4f} nats{ties}")
    return 0


def _report(args: argparse.Namespace) -> str:
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
    return show(filled, args.format, about, wide=args.wide)


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


# --- hesnr select: one patch an instance from finished runs (EGSS, stage 2) -------------------------------------------


def select_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr select`."""
    parser.set_defaults(execute=run_select)
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("runs", nargs="+", metavar="RUN", help="output folders (or files) of mini-swe-agent, SWE-agent, OpenHands …")
    output = "the patches chosen, as SWE-bench reads them"
    add("-o", "--output", type=Path, required=True, metavar="PREDS.json", help=output)
    config = "mini-swe-agent configuration: where tests run; as mini-extra swebench takes it (default: swebench.yaml)"
    add("-c", "--config", **many, metavar="SPEC", help=config)
    classes = "docker, singularity, bubblewrap or local (no protection), over -c"
    add("--environment-class", metavar="CLASS", help=classes)
    rows = "SWE-bench rows (JSON, JSON Lines, Parquet): problem_statement, image_name …"
    add("--instances", metavar="FILE", help=rows)
    variable = "variable that tests may see; others that look like keys are hidden from them"
    add("--env", **many, metavar="NAME[=VALUE]", help=variable)
    add("--selector", **many, metavar="MODEL", help="a voter, as litellm names it; several may be given")
    add("--augment", metavar="MODEL", help="model that writes missing tests (default: none)")
    add("--model-kwargs", default="{}", metavar="JSON", help="for litellm: api_base, temperature, max_tokens …")
    for item in fields(SelectSettings):
        kind, flag = type(item.default), f"--{item.name.replace('_', '-')}"
        metavar = "N" if kind is int else item.name.upper()
        add(flag, type=kind, default=item.default, metavar=metavar, help=item.metadata["help"])
    add("--name", default="", help="model_name_or_path in PREDS.json (default: hesnr-select-METHOD)")
    add("-w", "--workers", type=int, default=1, metavar="N", help="instances at a time (default: 1)")


def run_select(args: argparse.Namespace) -> str:
    """Select; what was chosen by what, as text; the same command goes on where it was stopped."""
    settings, kwargs = _checked(args)
    journal_path = args.output.with_name(f"{args.output.stem}.work.jsonl")
    if not journal_path.exists():  # else the answers may all be there
        for name in filter(None, [*args.selector, args.augment]):
            check_model(name, kwargs)
    notes: Counter[str] = Counter()
    candidates = collect(args.runs, notes, args.test_files)
    rows = load_instances(args.instances) if args.instances else {}
    needs_suite = args.method in ("egss", "suite")
    config = sandbox_config(args.config or ["swebench.yaml"], args.environment_class, args.env) if needs_suite else {}
    why_path = args.output.with_name(f"{args.output.stem}.why.json")
    predictions: dict[str, dict[str, str]] = {}
    why: dict[str, dict[str, Any]] = {}
    with Journal(journal_path) as journal:

        def work(instance_id: str) -> tuple[str, dict[str, Any], Counter[str]]:
            row = {"problem_statement": candidates[instance_id][0].task, **rows.get(instance_id, {})}
            row["instance_id"] = instance_id
            counted: Counter[str] = Counter()
            models = [ChatModel(name, journal, counted, kwargs) for name in args.selector]
            writer = ChatModel(args.augment, journal, counted, kwargs) if args.augment else None
            tester = PatchTester(config, row, settings, journal, counted) if needs_suite else None
            patch, record = select_instance(candidates[instance_id], row, settings, tester, models, writer)
            return patch, record, counted

        pool = ThreadPoolExecutor(args.workers)
        futures = {pool.submit(work, instance_id): instance_id for instance_id in candidates}
        try:
            for future in as_completed(futures):
                instance_id = futures[future]
                patch, why[instance_id], counted = future.result()
                notes.update(counted)
                row = {"model_name_or_path": args.name or f"hesnr-select-{args.method}", "instance_id": instance_id}
                predictions[instance_id] = {**row, "model_patch": patch}
                predictions, why = (dict(sorted(rows.items())) for rows in (predictions, why))
                record = {"notes": dict(sorted(notes.items())), "instances": why}
                write_output(args.output, json.dumps(predictions, indent=2))
                write_output(why_path, json.dumps(record, indent=2))
        finally:
            pool.shutdown(cancel_futures=True)
    return _summary(why, notes, args.output, why_path)


def _checked(args: argparse.Namespace) -> tuple[SelectSettings, dict[str, Any]]:
    """The settings and litellm's arguments. Raises `SettingsError`."""
    if args.method not in METHODS:
        raise SettingsError(
            f"--method {args.method!r} must be one of {', '.join(METHODS)}.{nearest(args.method, METHODS)}"
        )
    if args.method == "best-of-n" and not args.selector:
        raise SettingsError("--method best-of-n asks a judge; name one with --selector MODEL")
    for name in ("votes", "timeout", "repeats", "budget", "top", "limit", "workers"):
        if getattr(args, name) < 1:
            raise SettingsError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if "{file}" not in args.runner or "{junit}" not in args.runner:
        raise SettingsError(
            f"--runner {args.runner!r} must hold {{file}}, the tests, and {{junit}}, the report it writes"
        )
    try:
        re.compile(args.test_files)
        kwargs = json.loads(args.model_kwargs)
    except re.error as error:
        raise SettingsError(f"--test-files {args.test_files!r} is no regular expression: {error}") from None
    except ValueError as error:
        raise SettingsError(f"--model-kwargs {args.model_kwargs!r} is no JSON: {error}") from None
    if not isinstance(kwargs, dict):
        raise SettingsError(f'--model-kwargs {args.model_kwargs!r} must be an object, such as {{"temperature": 0}}')
    return SelectSettings(**{item.name: getattr(args, item.name) for item in fields(SelectSettings)}), kwargs


def _summary(why: Mapping[str, Mapping[str, Any]], notes: Mapping[str, int], output: Path, why_path: Path) -> str:
    lines = [f"{'instance':40} {'runs':>4} {'patches':>7} {'tests':>5}  chosen from (by)"]
    for instance_id, record in why.items():
        patches = len({candidate["patch"] for candidate in record["candidates"]})
        by = record["decided_by"] + (", tie broken at random" if record["tie_broken_at_random"] else "")
        chosen = f"{', '.join(record['runs'])} ({by})"
        counts = f"{len(record['candidates']):4} {patches:7} {len(record['suite']['tests']):5}"
        lines.append(printable(f"{instance_id:40} {counts}  {chosen}"))
    ties = sum(record["tie_broken_at_random"] for record in why.values())
    decided = Counter(record["decided_by"] for record in why.values())
    lines.append(
        f"{len(why)} instances: "
        + ", ".join(f"{count} by {name}" for name, count in decided.most_common())
        + f"; {ties} ties broken at random"
    )
    lines += [printable(f"  {count} × {note}") for note, count in sorted(notes.items())]
    lines.append(f"{output}, {why_path}")
    return "\n".join(lines)
