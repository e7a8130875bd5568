"""Cost curves, and the ratio of costs at equal resolve rate, paired by task.

A method is a curve over its number of independent runs: mean cost a task against resolve rate. The cost of a rate is
read from the curve by straight lines between its points (rates made non-decreasing: who has more runs can ignore some).
Below the first point there is nothing to read: one run costs what it costs, so the ratio is then an upper bound. Above
the last point the rate is not reached: infinity. The interval resamples tasks (seeded, those of `stats`) with all
of their runs: percentiles, as a ratio of interpolated curves has no standard error to studentise with.

Currencies: `prompt` (every prompt token), `cached` (those read from a cache count `price`), `output` (tokens), `money`.
Probes, draws and judges are in all of them; NaN where a call did not state it: unknown is not zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.egss.gates import Estimator
from hesnr_tasks.egss.judges import KINDS, Ledger, Spent, spent_of
from hesnr_tasks.errors import DataError, printable
from hesnr_tasks.files.bounded import read_json
from hesnr_tasks.formats.base import deep
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, resample_counts, standard_error

FloatArray = npt.NDArray[np.float64]
CURRENCIES = ("prompt", "cached", "output", "money")
PRICE = 0.1  # of a cached prompt token, in prompt tokens
_UNDEFINED = Estimate(*[math.nan] * 4)


class TaskCost(NamedTuple):
    """One task by one method: the share resolved with so many runs, and what all of it cost."""

    task: str
    method: str
    runs: int
    resolved: float
    spent: Spent


class Curve(NamedTuple):
    """One method, task by task and by number of runs: resolved (T, K), costs (T, K, currencies)."""

    method: str
    tasks: tuple[str, ...]
    runs: tuple[int, ...]
    resolved: FloatArray
    costs: FloatArray


def curves(records: Sequence[TaskCost], price: float = PRICE) -> tuple[dict[str, Curve], list[str]]:
    """The curve of each method on the tasks that all have, and the tasks left out because some lack them.

    Records of the same task, method and number of runs are averaged. Raises `DataError` where no task is left.
    """
    cells: dict[tuple[str, int], dict[str, list[TaskCost]]] = {}
    for record in records:
        cells.setdefault((record.method, record.runs), {}).setdefault(record.task, []).append(record)
    every = {record.task for record in records}
    tasks = tuple(sorted(every.intersection(*cells.values()))) if cells else ()
    if not tasks:
        raise DataError("these runs have no task in common whose outcome and cost are known; there is no comparison.")

    def costs(spent: Spent) -> FloatArray:
        money = spent.cost if spent.cost > 0 else math.nan
        weighted = spent.prompt - (1 - price) * spent.cached
        stated = np.array([spent.prompt, weighted, spent.output, money], dtype=np.float64)
        return np.full(len(CURRENCIES), math.nan) if spent.unstated else stated

    methods = {}
    for method in dict.fromkeys(method for method, _ in cells):
        runs = tuple(sorted(count for name, count in cells if name == method))
        grid = [[cells[method, count][task] for count in runs] for task in tasks]
        resolved = np.array([[np.mean([record.resolved for record in cell]) for cell in row] for row in grid])
        spent = np.array([[np.mean([costs(record.spent) for record in cell], axis=0) for cell in row] for row in grid])
        methods[method] = Curve(method, tasks, runs, resolved, spent)
    return methods, sorted(every - set(tasks))


def mean_over_tasks(values: FloatArray, resamples: int) -> Estimate:
    """The mean over tasks (T,), with its bootstrap standard error and 95 % interval of percentiles."""
    return paired_ratio(np.ones_like(values), values, resamples)


def paired_ratio(a: FloatArray, b: FloatArray, resamples: int, seed: int = SEED) -> Estimate:
    """mean(b) / mean(a) over the same tasks (T,), with bootstrap standard error and 95 % interval of percentiles."""
    counts = resample_counts(len(a), resamples, seed).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate(float(b.mean() / a.mean()), (counts @ b) / (counts @ a), len(a))


def at_equal_rate(
    method: Curve, reference: Curve, target: Curve, runs: int, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Costs of `method` over costs of `reference` at the resolve rate of `target` with `runs` runs, by currency.

    Value, bootstrap standard error (NaN where infinite values occur) and 95 % interval; NaN where costs are not
    stated.
    """
    n = len(method.tasks)
    weights = np.vstack([np.full(n, 1 / n), resample_counts(n, resamples, SEED) / n])  # the first row: the value itself
    rate = weights @ target.resolved[:, target.runs.index(runs)]
    ratios = []
    for currency in range(len(CURRENCIES)):
        with np.errstate(invalid="ignore", divide="ignore"):  # neither reaches it: NaN
            ratio = _at_rate(method, weights, rate, currency) / _at_rate(reference, weights, rate, currency)
        unstated = any(np.isnan(curve.costs[..., currency]).any() for curve in (method, reference))
        ratios.append(_UNDEFINED if unstated else _estimate(float(ratio[0]), ratio[1:], n))
    return ratios


def _estimate(value: float, replicates: FloatArray, tasks: int) -> Estimate:
    """With percentiles as its interval (NaN from fewer than 4 tasks)."""
    if math.isnan(value) and np.isnan(replicates).all():
        return _UNDEFINED
    bounded = np.where(np.isnan(replicates), np.inf, replicates)  # neither reaches the rate: nothing is saved
    low, high = np.quantile(bounded, [0.025, 0.975], method="inverted_cdf") if tasks > 3 else (math.nan, math.nan)
    return Estimate(value, standard_error(replicates), float(low), float(high))


def _at_rate(curve: Curve, weights: FloatArray, rate: FloatArray, currency: int) -> FloatArray:
    """Costs at each row's `rate` from each row's curve; infinite where the curve does not reach it."""
    rates = np.maximum.accumulate(weights @ curve.resolved, axis=1)
    costs = weights @ curve.costs[:, :, currency]
    cost = np.where(rates[:, 0] >= rate - 1e-12, costs[:, 0], np.inf)
    for i in range(1, len(curve.runs)):
        low, high = rates[:, i - 1], rates[:, i]
        between = np.isinf(cost) & (high >= rate - 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(high > low, (rate - low) / (high - low), 1.0)
        cost = np.where(between, costs[:, i - 1] + share * (costs[:, i] - costs[:, i - 1]), cost)
    return cost


# --- reading runs -----------------------------------------------------------------------------------------------------


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


def read_run(folder: Path) -> list[InstanceRun]:
    """Every trajectory in the folder that `mini-extra swebench -o` wrote, by path. Raises `DataError`."""
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
    ledger = Ledger()
    try:
        for extra in replies if not steps else ():
            usage = extra["response"].get("usage") if isinstance(extra["response"], dict) else None
            ledger.add("draw", spent_of(usage, float(extra.get("cost") or 0.0)))
        for step in steps:
            for kind, usage in step["usage"].items():
                ledger.add(kind, Spent.read(usage))
            ledger.notes.update(step.get("notes", {}))
        estimates = tuple(float(step["estimate"]) for step in steps if "estimate" in step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: its record of costs is damaged ({error}).") from None
    stated = {name: deep(info, "model_stats", "egss", name) for name in Estimator().identity}
    identity = {name: value for name, value in stated.items() if value is not None}
    fired = sum(bool(step.get("fired")) for step in steps)
    model = str(config.get("model_name") or "")
    return InstanceRun(
        instance, _method(config), model, ledger.spent, len(replies), fired, ledger.notes, estimates, identity
    )


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


# --- tables -----------------------------------------------------------------------------------------------------------


def curve_table(methods: Mapping[str, Curve], resamples: int = RESAMPLES, notes: Sequence[str] = ()) -> Table:
    """Every point of every curve: resolve rate and costs, mean over tasks."""
    rows: list[dict[str, Any]] = []
    for curve in methods.values():
        for i, runs in enumerate(curve.runs):
            row: dict[str, Any] = {"method": curve.method, "runs": runs, "tasks": len(curve.tasks)}
            row["resolved"] = mean_over_tasks(curve.resolved[:, i], resamples)
            for c, currency in enumerate(CURRENCIES):
                mean = mean_over_tasks(curve.costs[:, i, c], resamples)
                if currency != "money":  # whole tokens
                    mean = Estimate(*(float(round(part)) if math.isfinite(part) else part for part in mean))
                row[currency] = mean
            rows.append(row)
    about = (
        "± is one standard error over tasks; costs: mean a task, probes, draws and judge included",
        "prompt: all prompt tokens; cached: those read from a cache at their price; output: generated tokens; money: "
        "as mini-swe-agent counts it, – where no price is known",
    )
    return Table("curves", "Cost curves", rows, (*about, *notes))


def savings_table(methods: Mapping[str, Curve], reference: str, runs: int, resamples: int) -> Table:
    """Costs of every other method over those of the reference, at the resolve rate that it reaches with `runs` runs."""
    target = methods[reference]
    rows = [
        {"method": curve.method, **spans(at_equal_rate(curve, target, target, runs, resamples))}
        for curve in methods.values()
        if curve.method != reference
    ]
    rate = target.resolved[:, target.runs.index(runs)].mean()
    title = f"Costs at equal resolve rate, over those of {printable(reference)} with {runs} run(s) (rate {rate:.3f})"
    notes = (
        "below 1: cheaper; [95 % interval, tasks resampled]; ∞: the rate is not reached with the runs that were made",
        "a method whose single run is above that rate is counted with the whole run: the ratio is then an upper bound",
    )
    return Table(f"savings_at_{runs}_of_{reference}", title, rows, notes)


def paired_table(methods: Mapping[str, Curve], reference: str, resamples: int) -> Table:
    """What each method resolves more than the reference with as many runs, and the ratios of what they cost."""
    base, rows = methods[reference], []
    for curve in methods.values():
        for runs in (n for n in curve.runs if n in base.runs and curve.method != reference):
            i, j = curve.runs.index(runs), base.runs.index(runs)
            gain = mean_over_tasks(curve.resolved[:, i] - base.resolved[:, j], resamples)
            costs = zip(base.costs[:, j].T, curve.costs[:, i].T, strict=True)
            ratios = spans([paired_ratio(before, after, resamples) for before, after in costs])
            rows.append({"method": curve.method, "runs": runs, "resolved_more": _span(gain, sign=True), **ratios})
    title = f"As many runs as {printable(reference)}: difference of resolve rates, ratio of costs"
    return Table("paired", title, rows, ("[95 % interval, tasks resampled]",))


def kinds_table(instances: Sequence[InstanceRun]) -> Table:
    """Where the tokens went, how often the gate fired, what was noted."""
    rows: list[dict[str, Any]] = []
    about = ["mean a trajectory; cached: the part of the prompt that was read from a cache; fires: share of steps"]
    for method in dict.fromkeys(instance.method for instance in instances):
        same = [instance for instance in instances if instance.method == method]
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


def spans(estimates: Sequence[Estimate]) -> dict[str, str]:
    """Estimates with their intervals in words, by currency."""
    return {currency: _span(estimate) for currency, estimate in zip(CURRENCIES, estimates, strict=True)}


def _span(estimate: Estimate, sign: bool = False) -> str:
    def short(value: float) -> str:
        if math.isnan(value):
            return "–"
        return "∞" if value == math.inf else f"{value:+.3f}" if sign else f"{value:.2f}"

    interval = "" if math.isnan(estimate.ci_low) else f" [{short(estimate.ci_low)}, {short(estimate.ci_high)}]"
    return f"{short(estimate.value)}{interval}"
