"""How often the claim "HE-SNR predicts better than PPL" is decided, wrongly and rightly, on simulated ladders.

Usage: python scripts/simulate_claims.py [LADDERS]. A checkpoint has an ability, a downstream score (500 instances,
30 ± 8 %) and two proxies: the ability with an error of its own, measured on 60 trajectories. The error sets the
correlation of proxy and ability. Fine-tuning may move the score of each checkpoint, half of the proxies' errors may be
the same in both, and a ladder may be one training run, whose abilities rise with the step.
Written as Markdown tables of shares in per cent: supported / refuted (95 % intervals that hold the true difference of
rank correlations), as
the verdict decides, then as the bootstrap over checkpoints, trajectories and instances would.
"""

import sys

import numpy as np

from hesnr_tasks.ladder.downstream import Outcome
from hesnr_tasks.ladder.schema import Checkpoint, DownstreamScore
from hesnr_tasks.ladder.verdict import Proxy, claim

SIZES = (6, 8, 10, 20)
RESAMPLES = 400
TRAJECTORIES = 60
CASES = {  # correlation of each proxy with the ability, and what else there is
    "equal (0.8, 0.8)": ((0.8, 0.8), {}),
    "equal (0.95, 0.95)": ((0.95, 0.95), {}),
    "equal (0.95, 0.95), half of their errors shared": ((0.95, 0.95), {"shared": 0.5}),
    "equal (0.95, 0.95), one training run": ((0.95, 0.95), {"rising": True}),
    "equal (0.95, 0.95), fine-tuning moves scores by ± 3 %": ((0.95, 0.95), {"tuning": 0.03}),
    "0.95 against 0.5": ((0.95, 0.5), {}),
    "0.95 against 0.5, fine-tuning moves scores by ± 3 %": ((0.95, 0.5), {"tuning": 0.03}),
    "0.95 against 0": ((0.95, 0.0), {}),
    "0.98 against −0.9": ((0.98, -0.9), {}),
}


def proxy(name, level, rng):
    """Sums of a metric with these values and the errors of trajectories, which are partly shared by checkpoints."""
    n = len(level)
    weights = np.broadcast_to(rng.integers(20, 200, TRAJECTORIES).astype(float), (n, TRAJECTORIES))
    noise = rng.normal(0, 1, TRAJECTORIES) + rng.normal(0, 0.5, (n, TRAJECTORIES))
    return Proxy(name, weights * (level[:, None] + noise), weights, False, True)


def ladder(correlations, n, seed, *, shared=0.0, rising=False, tuning=0.0, resamples=0):
    rng = np.random.default_rng(seed)
    ability = np.linspace(-1.6, 1.6, n) + 0.3 * rng.normal(size=n) if rising else rng.normal(size=n)
    names = [f"c{i}" for i in range(n)]
    rate = 0.30 + 0.08 * ability + tuning * rng.normal(size=n)
    resolved = rng.binomial(500, np.clip(rate, 0.01, 0.99)) / 500
    outcomes = {
        name: Outcome(name, value, DownstreamScore(value, 500).error(percent=False), "itself")
        for name, value in zip(names, resolved.tolist(), strict=True)
    }
    both = rng.normal(size=n)
    pair = []
    for name, correlation in zip(("a", "b"), correlations, strict=True):
        error = np.sqrt(shared) * both + np.sqrt(1 - shared) * rng.normal(size=n)
        pair.append(proxy(name, correlation * ability + np.sqrt(1 - correlation**2) * error, rng))
    return claim(*pair, [Checkpoint(name) for name in names], outcomes, "swe", resamples=resamples)


def by_verdict(claims):
    return [claim.verdict for claim in claims], [claim.spearman_gain for claim in claims]


def by_bootstrap(claims):
    intervals = [claim.bootstrap for claim in claims]
    return ["supported" if i.low > 0 else "refuted" if i.high < 0 else "undecided" for i in intervals], intervals


def main(ladders):
    tables = {"The verdict": by_verdict, "The bootstrap": by_bootstrap}
    rows = {title: [] for title in tables}
    for case, (correlations, others) in CASES.items():
        truth = np.mean([ladder(correlations, 400, 10**6 + seed, **others).spearman_gain.value for seed in range(40)])
        cells = {title: [] for title in tables}
        for n in SIZES:
            claims = [ladder(correlations, n, seed, **others, resamples=RESAMPLES) for seed in range(ladders)]
            for title, decide in tables.items():
                verdicts, intervals = decide(claims)
                shares = [100 * verdicts.count(word) / ladders for word in ("supported", "refuted")]
                covered = 100 * np.mean([interval.low <= truth <= interval.high for interval in intervals])
                cells[title].append("{:.1f} / {:.1f} ({:.0f})".format(*shares, covered))
        for title, own in rows.items():
            own.append(f"| {case} | " + " | ".join(cells[title]) + " |")
    for title, own in rows.items():
        print(f"{title}\n\n| truth: correlation with ability | " + " | ".join(f"{n} checkpoints" for n in SIZES) + " |")
        print("| --- |" + " ---: |" * len(SIZES), *own, "", sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
