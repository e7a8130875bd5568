"""Draw results.csv, and say what differs between the arms with intervals over seeds.

python examples/shaped_grpo/figure.py [results.csv]
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from hesnr_tasks.plotting import COLOURS, LINES, MARKERS, figure, save

ARMS = ("plain", "shaped")
RESULTS = Path(__file__).parent / "results" / "results.csv"
Values = dict[tuple[str, str, int], dict[int, float]]  # (arm, quantity, step) -> seed -> value


class Curve(NamedTuple):
    """A line with the lowest and the highest seed around it."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


class Difference(NamedTuple):
    """Shaped minus plain of the same seed: mean over seeds and its 95 % interval (Student's t)."""

    plain: float
    shaped: float
    mean: float
    low: float
    high: float


def read(path: Path) -> Values:
    """results.csv by arm, quantity and step."""
    values: Values = defaultdict(dict)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values[row["arm"], row["quantity"], int(row["step"])][int(row["seed"])] = float(row["value"])
    return values


def steps(values: Values, arm: str, quantity: str) -> list[int]:
    """Steps at which a quantity was measured."""
    return sorted(step for of_arm, of_quantity, step in values if (of_arm, of_quantity) == (arm, quantity))


def over_steps(values: Values, arm: str, quantity: str) -> Curve:
    """A quantity over training steps."""
    x = steps(values, arm, quantity)
    return _curve([float(step) for step in x], [list(values[arm, quantity, step].values()) for step in x])


def over_k(values: Values, arm: str, step: int) -> Curve:
    """Pass@K over K after `step` steps."""
    ks = sorted(
        int(name[5:]) for of_arm, name, last in values if (of_arm, last) == (arm, step) and name.startswith("pass@")
    )
    return _curve([float(k) for k in ks], [list(values[arm, f"pass@{k}", step].values()) for k in ks])


def _curve(x: list[float], seeds: list[list[float]]) -> Curve:
    return Curve(x, [float(np.mean(s)) for s in seeds], [min(s) for s in seeds], [max(s) for s in seeds])


def difference(values: Values, quantity: str) -> Difference:
    """At the last step at which `quantity` was measured."""
    step = steps(values, "plain", quantity)[-1]
    plain, shaped = (values[arm, quantity, step] for arm in ARMS)
    each = np.array([shaped[seed] - plain[seed] for seed in plain])
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    means = [float(np.mean(list(of_arm.values()))) for of_arm in (plain, shaped)]
    return Difference(*means, float(each.mean()), float(each.mean() - half), float(each.mean() + half))


def panels(values: Values) -> list[tuple[str, str, str, dict[str, Curve]]]:
    """What is drawn: title, names of the axes, curves."""
    last = steps(values, "plain", "pass@1")[-1]
    passes = {"warm-up": over_k(values, "plain", 0)} | {arm: over_k(values, arm, last) for arm in ARMS}
    return [
        ("Reward in training", "step", "mean reward", {arm: over_steps(values, arm, "reward") for arm in ARMS}),
        ("Entropy in training", "step", "nats per token", {arm: over_steps(values, arm, "entropy") for arm in ARMS}),
        (f"Held-out problems, step {last}", "K", "Pass@K", passes),
    ]


def draw(values: Values, stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png."""
    panel, axes = figure(1, 3, width=3.2, height=2.7)
    look = {"plain": 0, "shaped": 1, "warm-up": 7}
    for axis, (title, x_name, y_name, curves) in zip(axes[0], panels(values), strict=True):
        for name, curve in curves.items():
            _line(axis, name, curve, look[name])
        axis.set(title=title, xlabel=x_name, ylabel=y_name)
        axis.legend()
    axes[0][2].set_xscale("log", base=2)
    axes[0][2].set_xticks(over_k(values, "plain", 0).x, [str(int(k)) for k in over_k(values, "plain", 0).x])
    return save(panel, stem)


def _line(axis: Any, name: str, curve: Curve, look: int) -> None:
    axis.fill_between(curve.x, curve.low, curve.high, color=COLOURS[look], alpha=0.15, linewidth=0)
    every = max(1, len(curve.x) // 8)
    axis.plot(
        curve.x,
        curve.mean,
        LINES[look % len(LINES)],
        marker=MARKERS[look],
        markevery=every,
        color=COLOURS[look],
        label=name,
    )


def table(values: Values) -> str:
    """Markdown: both arms and their difference, at the end of training."""
    lines = ["| at the end | plain | shaped | shaped − plain [95 %] |", "| --- | --- | --- | --- |"]
    for quantity in ("reward", "entropy", "held-out entropy", "pass@1", "pass@4", "pass@32"):
        pair = difference(values, quantity)
        interval = f"{pair.mean:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
        lines.append(f"| {quantity} | {pair.plain:.3f} | {pair.shaped:.3f} | {interval} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Figure beside the CSV, table on the standard output."""
    path = Path(arguments[0]) if arguments else RESULTS
    values = read(path)
    draw(values, path.with_name("figure"))
    print(table(values))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
