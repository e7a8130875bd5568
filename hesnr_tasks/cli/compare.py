"""`hesnr compare`: is one checkpoint better than another? Paired by trajectory, with errors that heed correlation."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import context_for
from hesnr_tasks.analysis.intervals import Paired, paired
from hesnr_tasks.analysis.measures import ALL_METRICS, Number, column, measure, share_scored
from hesnr_tasks.analysis.options import add_common, check_epsilons, check_resamples, folders, unique_names
from hesnr_tasks.analysis.output import FORMATS, Table, show
from hesnr_tasks.analysis.pairing import Run, matched, read_run
from hesnr_tasks.analysis.planning import diagnostics, holm, minimum_detectable, trajectories_needed
from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.stats import RESAMPLES, SEED

__all__ = ["Plan", "add_arguments", "compare", "comparisons", "run"]

_METRICS = ("he_snr", "he_ppl", "ppl")
_RANKED = tuple(name for name, metric in ALL_METRICS.items() if metric.higher_is_better is not None)
_COLUMNS = ("difference", "low", "high", "p", "p_holm", "p_worse", "detectable", "needed", "unpaired", "correlation")
_NOTES = (
    "low, high: 95 % interval of the difference, – where a few trajectories outweigh all others; p: two-sided",
    "p holm: corrected for the number of runs compared; scored: share of the tokens that would count, (!) below a half",
    "p worse: share of resamples in which the run is worse than the reference",
    "detectable: smallest true difference that a test at 5 % finds with the power asked for",
    "needed: trajectories to find the difference seen",
    "unpaired: trajectories that runs on different texts would need for the same error of the difference",
)


class Plan(NamedTuple):
    """How runs are compared: the bootstrap, and the power for what could have been found."""

    resamples: int = RESAMPLES
    seed: int = SEED
    power: float = 0.8
    min_tokens: int = 0


_USUAL = Plan()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr compare`."""
    add = parser.add_argument
    add("scores", nargs="+", help="two or more folders of score files; the first is the reference")
    add_common(parser, several=False)
    add("--metrics", nargs="+", default=list(_METRICS), metavar="METRIC", help=f"default: {' '.join(_METRICS)}")
    add("--reference", metavar="NAME", help="the run the others are compared with (default: the first)")
    add("--common", action="store_true", help="compare on the trajectories that all runs have, if they differ")
    add("--power", type=float, default=0.8, help="for the minimum detectable difference (default: 0.8)")
    add("--format", choices=FORMATS, default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    print(compare(args))
    return 0


def compare(args: argparse.Namespace) -> str:
    """The comparison as text, CSV or JSON. Raises `HesnrError` for runs that must not be compared."""
    _check(args)
    k = 10 if args.k is None else args.k
    epsilon = check_epsilons([args.epsilon] if args.epsilon is not None else None, [k])[0]
    paths = folders(args.scores)
    context, said = context_for(paths, args.context)
    read = [
        read_run(path, name, args.kinds, args.filters, epsilon, k, context, args.run)
        for path, name in zip(paths, unique_names(paths), strict=True)
    ]
    runs, notes = matched(read, common=args.common)
    notes = [*([said] if said else []), *notes, *(f"{one.name}: {one.about}" for one in runs)]
    reference = _reference(runs, args.reference)
    tables = comparisons(runs, reference, args.metrics, Plan(args.resamples, args.seed, args.power, args.min_tokens))
    tables[-1] = tables[-1]._replace(notes=(*_NOTES, *notes))
    about: dict[str, Any] = {"hesnr_tasks": __version__, "k": k, "epsilon": epsilon, "reference": reference}
    about |= {"resamples": args.resamples, "seed": args.seed, "power": args.power, "context": context, "notes": notes}
    return show(tables, args.format, about | {"runs": {one.name: dict(one.signature) for one in runs}})


def _check(args: argparse.Namespace) -> None:
    check_resamples(args.resamples, args.seed)
    if not 0.5 <= args.power < 1:
        raise SettingsError("--power must be at least 0.5 and below 1")
    for name in args.metrics:
        if name not in _RANKED:
            raise SettingsError(f"--metrics {name!r} must be one of {', '.join(_RANKED)}.{nearest(name, _RANKED)}")


def _reference(runs: Sequence[Run], name: str | None) -> str:
    names = [one.name for one in runs]
    if name is not None and name not in names:
        raise SettingsError(f"--reference {name!r} is none of {json.dumps(names)}.{nearest(name, names)}")
    return name or names[0]


def comparisons(runs: Sequence[Run], reference: str, names: Sequence[str], plan: Plan = _USUAL) -> list[Table]:
    """A table a metric: all runs, the best first, with the differences to `reference`; `runs`: from `matched`."""
    values = {
        one.name: measure(
            one.sums[None], one.copies, names, resamples=plan.resamples, seed=plan.seed, min_tokens=plan.min_tokens
        )[0]
        for one in runs
    }
    base = next(one for one in runs if one.name == reference)
    return [_table(runs, base, name, {run: found[name] for run, found in values.items()}, plan) for name in names]


def _table(runs: Sequence[Run], base: Run, name: str, values: Mapping[str, Number], plan: Plan) -> Table:
    metric = ALL_METRICS[name]
    against = {one.name: _against(base, one, name, plan) for one in runs if one is not base}
    corrected = holm({other: found.p for other, found in against.items()})
    worth = {other: number.value * (1 if metric.higher_is_better else -1) for other, number in values.items()}
    rows: list[dict[str, Any]] = []
    for one in sorted(runs, key=lambda one: -worth[one.name] if math.isfinite(worth[one.name]) else math.inf):
        row = {"run": one.name, "metric": name, name: values[one.name], **dict.fromkeys(_COLUMNS)}
        if one is not base:
            row |= _difference(against[one.name], int(one.copies.sum()), plan.power, bool(metric.higher_is_better))
            row["p_holm"] = corrected[one.name]
        row["scored"] = share_scored(float(column(one.sums, "tokens") @ one.copies), float(one.cut @ one.copies))
        rows.append({**row, "diagnostics": "; ".join(diagnostics(one.sums, one.copies, one.cut, name))})
    better = "higher" if metric.higher_is_better else "lower"
    title = f"{name}: difference to {base.name}, {int(base.copies.sum())} trajectories, paired ({better} is better)"
    return Table(f"compare_{name}", title, rows, wide=("metric", "correlation"))


def _against(base: Run, other: Run, name: str, plan: Plan) -> Paired:
    metric = ALL_METRICS[name]
    sides = [np.repeat(one.sums, base.copies, axis=0) for one in (base, other)]
    a, b = ((column(side, metric.numerator), column(side, metric.denominator or "")) for side in sides)
    if min(a[1].sum(), b[1].sum()) < plan.min_tokens:
        return Paired(*[math.nan] * 8)
    return paired(a, b, metric.exponentiate, resamples=plan.resamples, seed=plan.seed)


def _difference(found: Paired, n: int, power: float, higher_is_better: bool) -> dict[str, Any]:
    ratio = (found.stderr_apart / found.stderr) ** 2 if found.stderr > 0 else math.nan
    return {
        "difference": Number(found.difference, found.stderr),
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_worse": found.below if higher_is_better else 1 - found.below,
        "detectable": minimum_detectable(found.stderr, power),
        "needed": trajectories_needed(found.difference, found.stderr, n, power),
        "unpaired": round(n * ratio) if math.isfinite(ratio) else None,
        "correlation": found.correlation,
    }
