"""How fast and how small the analysis of score files is, and how often its intervals and tests are right.

    python benchmarks/analysis.py speed      # 2.5 M scored tokens: grid with intervals, comparison of two runs
    python benchmarks/analysis.py coverage   # simulation: coverage of intervals, false alarms of comparisons

The scores are generated: 500 trajectories of 5000 scored tokens, correlated within trajectories, through the real
writer. Each measured step runs in a process of its own, from opening the files to the last number; its peak memory
is the process's.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

TRAJECTORIES, TOKENS = 500, 5000
KS = (6, 8, 10)  # the sweep ends at ln 5, which k = 5 cannot exceed


def speed(folder):
    """Generate two runs if they are not there, then measure each step."""
    for name, seed in (("a", 1), ("b", 2)):
        if not (folder / name / "run.json").exists():
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, __file__, "write", str(folder), "--name", name, "--seed", str(seed)], check=True
            )
            print(f"write {name}: {time.perf_counter() - began:.0f} s")
    size = sum(path.stat().st_size for path in (folder / "a").glob("*.parquet"))
    print(
        f"{size / TRAJECTORIES / TOKENS:.1f} bytes a scored token (made-up float32 scores, text and all ids included)"
    )
    for step in ("grid", "compare"):
        done = subprocess.run([sys.executable, __file__, step, str(folder)], check=True, capture_output=True, text=True)
        print(done.stdout.strip())


def write(folder, name, seed):
    """One run of 2.5 M scored tokens."""
    from tests.unit.analysis import made

    made.run_of(folder / name, TRAJECTORIES, TOKENS, seed=seed, quality=0.02 * seed)


def grid(folder):
    """8 masks, 20 thresholds, 3 k: every metric with its standard error and interval, 10 000 resamples."""
    from hesnr_tasks.analysis.frame import load, selections
    from hesnr_tasks.analysis.tables import SWEEP, Question, results
    from hesnr_tasks.scores import ScoreStore

    began = time.perf_counter()
    chosen = selections(ScoreStore.open(folder / "a").signature["filters"], ["action"], ["every"])
    frame = load(folder / "a", KS, masks=[selection.mask for selection in chosen])
    read = time.perf_counter()
    table = results(frame, Question(chosen, KS, SWEEP))
    report(f"grid of {len(chosen)} masks, {len(SWEEP)} thresholds, {len(KS)} k: {len(table.rows)} rows", began, read)


def compare(folder):
    """The whole of `hesnr compare a b`."""
    from hesnr_tasks.cli import analyze as command

    began = time.perf_counter()
    parser = argparse.ArgumentParser()
    command.compare_arguments(parser)
    command.compare(parser.parse_args([str(folder / "a"), str(folder / "b")]))
    report("compare two runs, 3 metrics", began)


def report(what, began, read=None):
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    part = f" (reading {read - began:.1f} s)" if read else ""
    print(f"{what}: {seconds:.1f} s{part}, {peak:.2f} GB")


def coverage(trials):
    """Coverage of 95 % intervals and false alarms of comparisons at 5 %, for several numbers of trajectories."""
    from hesnr_tasks.stats import estimates, paired

    rng = np.random.default_rng(1)
    print("spread of lengths (sd of ln), trajectories: coverage, naive per-token coverage, false alarms of compare")
    for spread in (0.3, 0.6, 1.0):
        for n in (10, 30, 100, 500):
            hits = naive = alarms = 0
            for _ in range(trials):
                size = np.maximum(5, rng.lognormal(math.log(60), spread, n)).astype(int)
                level = 0.3 * rng.gamma(4, 1 / 4, n)
                tokens = np.repeat(level, size) + rng.normal(0, 0.3, size.sum())
                total = np.add.reduceat(tokens, np.concatenate([[0], np.cumsum(size)[:-1]]))
                sides = [total + size * rng.normal(0, 0.05, n) for _ in range(2)]
                intervals = estimates(total[:, None], size[:, None].astype(float), resamples=999)
                hits += intervals[0].ci_low < 0.3 < intervals[0].ci_high
                naive += abs(tokens.mean() - 0.3) < 1.96 * tokens.std() / math.sqrt(len(tokens))
                alarms += paired((sides[0], size * 1.0), (sides[1], size * 1.0), resamples=999).p <= 0.05
            shares = (100 * count / trials for count in (hits, naive, alarms))
            print("{:.1f} {:4d}: {:.1f} %, {:.1f} %, {:.1f} %".format(spread, n, *shares), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "coverage", "write", "grid", "compare"))
    parser.add_argument("folder", nargs="?", type=Path, help="where generated scores are kept (default: a new folder)")
    parser.add_argument("--name", default="a")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=2000)
    args = parser.parse_args()
    if args.what == "coverage":
        coverage(args.trials)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        steps = {"speed": speed, "grid": grid, "compare": compare}
        write(folder, args.name, args.seed) if args.what == "write" else steps[args.what](folder)


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
