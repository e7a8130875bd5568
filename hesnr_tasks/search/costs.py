"""What a result costs: cost curves, and the ratio of tokens at equal resolve rate, paired by task.

A method is a curve over its number of independent runs: mean tokens against resolve rate. "Tokens at a rate" are read
from the curve by straight lines between its points (rates made non-decreasing: who has more runs can ignore some).
Below the first point there is nothing to read: one run costs what it costs, so the ratio is then an upper bound. Above
the last point the rate is not reached: infinity. The interval resamples tasks (seeded resamples of `statistics`) with
all of their runs: percentiles, as a ratio of interpolated curves has no standard error to studentise with; an end that
is not reached in that many resamples is infinite.

Currencies, in tokens: `prompt` (every prompt token), `cached` (those read from a cache count `price`), `output`. Calls
of judges and selectors are in all of them; running tests costs no tokens (their number is reported).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.measures import Number
from hesnr_tasks.errors import SearchError, SettingsError
from hesnr_tasks.search.types import Usage
from hesnr_tasks.statistics import RESAMPLES, SEED, resample_counts, standard_error

__all__ = ["CURRENCIES", "PRICE", "Costs", "Point", "Record", "at_equal_rate", "costs", "mean_number", "points"]

FloatArray = npt.NDArray[np.float64]
CURRENCIES = ("prompt", "cached", "output")
PRICE = 0.1  # of a cached prompt token, in prompt tokens


class Record(NamedTuple):
    """One search, or the mean of many like it: the share resolved, with how many runs, at what cost by kind."""

    task: str
    method: str
    runs: int
    resolved: float
    usage: Mapping[str, Usage]
    tests: float = 0.0  # executions of test files


class Costs(NamedTuple):
    """One method: task by task, run number by run number. Arrays: (T, K), tokens (T, K, currencies)."""

    method: str
    tasks: tuple[str, ...]
    runs: tuple[int, ...]
    resolved: FloatArray
    tokens: FloatArray
    tests: FloatArray


class Point(NamedTuple):
    """One point of a cost curve with its interval."""

    method: str
    runs: int
    resolved: Number
    tokens: tuple[Number, ...]  # by currency
    tests: float


def costs(records: Sequence[Record], price: float = PRICE) -> dict[str, Costs]:
    """Arrays of each method; records of the same task, method and runs are averaged.

    Raises `SearchError` where methods were not run on the same tasks: they could not be paired.
    """
    if not 0 <= price <= 1:
        raise SettingsError(f"the price of a cached token must lie in [0, 1], not {price}")
    if not records:
        raise SearchError("there is no finished search to report on")
    cells: dict[tuple[str, int, str], list[Record]] = {}
    for one in records:
        cells.setdefault((one.method, one.runs, one.task), []).append(one)
    tasks = tuple(sorted({one.task for one in records}))
    found = {}
    for method in dict.fromkeys(one.method for one in records):
        runs = tuple(sorted({one.runs for one in records if one.method == method}))
        _all_there(method, runs, tasks, cells)
        grid = [[cells[method, k, task] for k in runs] for task in tasks]
        resolved = np.array([[np.mean([one.resolved for one in cell]) for cell in row] for row in grid])
        tests = np.array([[np.mean([one.tests for one in cell]) for cell in row] for row in grid])
        tokens = np.array([[np.mean([_spent(one, price) for one in cell], axis=0) for cell in row] for row in grid])
        found[method] = Costs(method, tasks, runs, resolved, tokens, tests)
    return found


def _all_there(
    method: str, runs: Sequence[int], tasks: Sequence[str], cells: Mapping[tuple[str, int, str], object]
) -> None:
    for k in runs:
        missing = [task for task in tasks if (method, k, task) not in cells]
        if missing:
            raise SearchError(
                f"method {method!r} with {k} run(s) lacks the task(s) {', '.join(missing[:5])}, which others have; "
                "methods are compared on the same tasks only. Leave those tasks or that method out."
            )


def _spent(record: Record, price: float) -> FloatArray:
    prompt = sum(one.prompt for one in record.usage.values())
    cached = sum(one.cached for one in record.usage.values())
    output = sum(one.output for one in record.usage.values())
    return np.array([prompt, prompt - (1 - price) * cached, output], dtype=np.float64)


def points(one: Costs, resamples: int = RESAMPLES, seed: int = SEED) -> list[Point]:
    """The method's curve; intervals over tasks (from four tasks on)."""
    found = []
    for at, runs in enumerate(one.runs):
        rate = _number(one.resolved[:, at], resamples, seed)
        tokens = tuple(_number(one.tokens[:, at, c], resamples, seed) for c in range(len(CURRENCIES)))
        found.append(Point(one.method, runs, rate, tokens, float(one.tests[:, at].mean())))
    return found


def mean_number(values: Sequence[float], resamples: int = RESAMPLES, seed: int = SEED) -> Number:
    """The mean over tasks with its standard error and interval."""
    return _number(np.asarray(values, dtype=np.float64), resamples, seed)


def _number(values: FloatArray, resamples: int, seed: int) -> Number:
    n = len(values)
    drawn = resample_counts(n, resamples, seed).astype(np.float64) @ values / n
    return _interval(float(values.mean()), drawn, n)


def at_equal_rate(
    method: Costs, reference: Costs, target: Costs, runs: int, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Number]:
    """Tokens of `method` over tokens of `reference` at the resolve rate of `target` with `runs` runs, by currency.

    Value, bootstrap standard error (NaN where infinite values are drawn), 95 % interval (NaN from fewer than 4 tasks).
    """
    if runs not in target.runs:
        raise SettingsError(f"{target.method!r} was not run with {runs} runs; it was with {target.runs}")
    if not method.tasks == reference.tasks == target.tasks:
        raise SearchError("these methods were not run on the same tasks")
    n = len(method.tasks)
    weights = np.vstack([np.full(n, 1 / n), resample_counts(n, resamples, seed) / n])  # the first row: the value itself
    rate = weights @ target.resolved[:, target.runs.index(runs)]
    found = []
    for c in range(len(CURRENCIES)):
        with np.errstate(invalid="ignore"):  # neither reaches it: NaN
            ratio = _at_rate(method, weights, rate, c) / _at_rate(reference, weights, rate, c)
        found.append(_interval(float(ratio[0]), ratio[1:], n))
    return found


def _interval(value: float, drawn: FloatArray, n: int) -> Number:
    known = np.where(np.isnan(drawn), np.inf, drawn)  # neither reaches the rate: nothing is saved in that resample
    ends = np.quantile(known, [0.025, 0.975], method="inverted_cdf") if n > 3 else (math.nan, math.nan)
    return Number(value, standard_error(drawn), float(ends[0]), float(ends[1]))


def _at_rate(one: Costs, weights: FloatArray, rate: FloatArray, currency: int) -> FloatArray:
    """Tokens at each row's `rate` from each row's curve; infinite where the curve does not reach it."""
    rates = np.maximum.accumulate(weights @ one.resolved, axis=1)
    tokens = weights @ one.tokens[:, :, currency]
    found = np.full(len(rate), np.inf)
    found = np.where(rates[:, 0] >= rate - 1e-12, tokens[:, 0], found)
    for at in range(1, len(one.runs)):
        low, high = rates[:, at - 1], rates[:, at]
        between = np.isinf(found) & (high >= rate - 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(high > low, (rate - low) / (high - low), 1.0)
        found = np.where(between, tokens[:, at - 1] + share * (tokens[:, at] - tokens[:, at - 1]), found)
    return found
