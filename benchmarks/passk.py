"""How often the intervals of `hesnr passk` hold the truth, and its tests cry wolf, by simulation.

    python benchmarks/passk.py [ROUNDS]   # default: 1000

A population of problems whose chances of a right answer are beta-distributed; 30 and 500 problems are drawn, 16 answers
each. Coverage is of 95 % intervals; alarms are p < 0.05 between two checkpoints that are equally good at every problem;
found is the share of rounds in which a true difference as large as the detectable one (80 %) gives p < 0.05.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from hesnr_tasks.passk import AnswerCounts, curve, differences  # noqa: E402

KS = [1, 4, 16]
N = 16
SHAPES = {"bimodal": (0.3, 0.7), "hard": (0.2, 1.5), "very hard": (0.1, 3.0), "even": (2.0, 3.0), "easy": (2.0, 0.3)}


def outcomes(c):
    names = tuple(map(str, range(len(c))))
    return AnswerCounts("run", names, names, np.full(len(c), N), c)


def coverage(problems, shape, rounds, rng):
    """Coverage, mean width and methods for every k."""
    truth = [1 - np.mean((1 - rng.beta(*shape, 2_000_000)) ** k) for k in KS]
    hits, width, methods = np.zeros(len(KS)), np.zeros(len(KS)), [Counter() for _ in KS]
    for _ in range(rounds):
        for i, point in enumerate(curve(outcomes(rng.binomial(N, rng.beta(*shape, problems))), KS)):
            hits[i] += point.low <= truth[i] <= point.high
            width[i] += point.high - point.low
            methods[i][point.method] += 1
    return truth, hits / rounds, width / rounds, methods


def alarms(problems, shape, rounds, rng):
    """How often two equal checkpoints are told apart: by sign flips, and by the bootstrap of the mean."""
    rates = np.zeros((len(KS), 2))
    for _ in range(rounds):
        chance = rng.beta(*shape, problems)
        a, b = (outcomes(rng.binomial(N, chance)) for _ in range(2))
        rates += [[row.p < 0.05, row.p_mean < 0.05] for row in differences(a, b, KS, resamples=1000)]
    return rates / rounds


def power(problems, rounds, rng):
    """How often the detectable difference of Pass@1 is found, were it the true one."""
    chance = rng.uniform(0.2, 0.6, problems)
    errors = []
    for _ in range(50):
        a, b = (outcomes(rng.binomial(N, chance)) for _ in range(2))
        errors.append(differences(a, b, [1], resamples=1000)[0].detectable)
    lift, detected = float(np.nanmean(errors)), 0
    for _ in range(rounds):
        a, b = outcomes(rng.binomial(N, chance)), outcomes(rng.binomial(N, chance + lift))
        detected += differences(a, b, [1], resamples=1000)[0].p < 0.05
    return lift, detected / rounds


def main(rounds):
    rng = np.random.default_rng(0)
    print(f"{rounds} rounds, {N} answers a problem; k = {', '.join(map(str, KS))}")
    for problems in (30, 500):
        for name, shape in SHAPES.items():
            truth, hits, width, methods = coverage(problems, shape, rounds, rng)
            used = " / ".join(count.most_common(1)[0][0] for count in methods)
            print(
                f"{problems:3} problems, {name:9}: pass@k {np.round(truth, 3)} coverage {np.round(hits, 3)} "
                f"width {np.round(width, 3)} mostly {used}"
            )
        for name in ("bimodal", "hard"):
            rates = alarms(problems, SHAPES[name], rounds, rng)
            print(f"{problems:3} problems, {name:9}: alarms, flips {rates[:, 0]} bootstrap {rates[:, 1]}")
        lift, rates = power(problems, rounds, rng)
        print(f"{problems:3} problems: a true difference of {lift:.3f}, detectable at 80 %, found in {rates:.1%}")


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
