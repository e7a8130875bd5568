"""Cost curves, and the ratio of costs at equal resolve rate, paired by task.

A method is a curve over its number of independent runs: mean cost a task against resolve rate. The cost of a rate is
read from the curve by straight lines between its points (rates made non-decreasing: who has more runs can ignore some).
Below the first point there is nothing to read: one run costs what it costs, so the ratio is then an upper bound. Above
the last point the rate is not reached: infinity. The interval resamples tasks (seeded, those of `statistics`) with all
of their runs: percentiles, as a ratio of interpolated curves has no standard error to studentise with.

Currencies: `prompt` (every prompt token), `cached` (those read from a cache count `price`), `output` (tokens), `money`.
Probes, draws and judges are in all of them; NaN where a call did not state it: unknown is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.measures import Number
from hesnr_tasks.egss.costs import Spent
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.stats import RESAMPLES, SEED, resample_counts, standard_error

__all__ = ["CURRENCIES", "PRICE", "Curve", "Record", "at_equal_rate", "curves", "mean_number", "paired_ratio"]

FloatArray = npt.NDArray[np.float64]
CURRENCIES = ("prompt", "cached", "output", "money")
PRICE = 0.1  # of a cached prompt token, in prompt tokens


class Record(NamedTuple):
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


def curves(records: Sequence[Record], price: float = PRICE) -> tuple[dict[str, Curve], list[str]]:
    """The curve of each method on the tasks that all have, and the tasks left out because some lack them.

    Records of the same task, method and number of runs are averaged. Raises `DataError` where no task is left.
    """
    if not 0 <= price <= 1:
        raise SettingsError(f"--cached-price must lie in [0, 1], not {price}.")
    cells: dict[tuple[str, int], dict[str, list[Record]]] = {}
    for record in records:
        cells.setdefault((record.method, record.runs), {}).setdefault(record.task, []).append(record)
    every = {record.task for record in records}
    tasks = tuple(sorted(every.intersection(*cells.values()))) if cells else ()
    if not tasks:
        raise DataError("these runs have no task in common whose outcome and cost are known; there is no comparison.")
    found = {}
    for method in dict.fromkeys(method for method, _ in cells):
        runs = tuple(sorted(count for name, count in cells if name == method))
        grid = [[cells[method, count][task] for count in runs] for task in tasks]
        resolved = np.array([[np.mean([record.resolved for record in cell]) for cell in row] for row in grid])
        costs = np.array([[np.mean([_costs(r.spent, price) for r in cell], axis=0) for cell in row] for row in grid])
        found[method] = Curve(method, tasks, runs, resolved, costs)
    return found, sorted(every - set(tasks))


def _costs(spent: Spent, price: float) -> FloatArray:
    if spent.unstated:
        return np.full(len(CURRENCIES), math.nan)
    money = spent.cost if spent.cost > 0 else math.nan
    weighted = spent.prompt - (1 - price) * spent.cached
    return np.array([spent.prompt, weighted, spent.output, money], dtype=np.float64)


def mean_number(values: Sequence[float] | FloatArray, resamples: int = RESAMPLES, seed: int = SEED) -> Number:
    """The mean over tasks with its standard error and 95 % interval (NaN from fewer than 4 tasks)."""
    column = np.asarray(values, dtype=np.float64)
    means = resample_counts(len(column), resamples, seed).astype(np.float64) @ column / len(column)
    return _number(float(column.mean()), means, len(column))


def paired_ratio(a: FloatArray, b: FloatArray, resamples: int = RESAMPLES, seed: int = SEED) -> Number:
    """mean(b) / mean(a) over the same tasks, each of shape (T,)."""
    counts = resample_counts(len(a), resamples, seed).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _number(float(b.mean() / a.mean()), (counts @ b) / (counts @ a), len(a))


def at_equal_rate(
    method: Curve, reference: Curve, target: Curve, runs: int, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Number]:
    """Costs of `method` over costs of `reference` at the resolve rate of `target` with `runs` runs, by currency.

    Returns:
        Value, bootstrap standard error (NaN where infinite values occur) and 95 % interval of each currency; NaN where
        the costs are not known.
    """
    if runs not in target.runs:
        raise SettingsError(f"{target.method!r} was not run with {runs} runs; it was with {target.runs}.")
    n = len(method.tasks)
    weights = np.vstack([np.full(n, 1 / n), resample_counts(n, resamples, seed) / n])  # the first row: the value itself
    rate = weights @ target.resolved[:, target.runs.index(runs)]
    ratios = []
    for currency in range(len(CURRENCIES)):
        with np.errstate(invalid="ignore", divide="ignore"):  # neither reaches it: NaN
            ratio = _at_rate(method, weights, rate, currency) / _at_rate(reference, weights, rate, currency)
        unknown = any(np.isnan(curve.costs[..., currency]).any() for curve in (method, reference))
        ratios.append(Number(*[math.nan] * 4) if unknown else _number(float(ratio[0]), ratio[1:], n))
    return ratios


def _number(value: float, replicates: FloatArray, n: int) -> Number:
    if math.isnan(value) and np.isnan(replicates).all():
        return Number(*[math.nan] * 4)
    bounded = np.where(np.isnan(replicates), np.inf, replicates)  # neither reaches the rate: nothing is saved
    low, high = np.quantile(bounded, [0.025, 0.975], method="inverted_cdf") if n > 3 else (math.nan, math.nan)
    return Number(value, standard_error(replicates), float(low), float(high))


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
