"""How long `hesnr report` takes with everything: verdict, all tables and figures, one page.

    python benchmarks/report.py                    # 4 checkpoints × 40 trajectories × 1,000 tokens, seconds to make
    python benchmarks/report.py --full /tmp/full   # 20 × 500 × 5,000: 50 M scored tokens, 2 GB
    python benchmarks/report.py --profile          # also where the time goes

The scores are made up with a fixed seed and written by the store that scoring uses. The command runs in a process of
its own, twice, at first without what an earlier report kept: wall clock, CPU of the process and its children, peak
memory. To compare two versions, run both on one folder in turns: on a busy machine only the ratio of their CPU time
means anything.
"""

import argparse
import cProfile
import io
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

SMALL, FULL = (4, 40, 1000), (20, 500, 5000)  # checkpoints, trajectories, tokens scored
EXTENDED, TUNED = 0.6, 0.85  # of the ladder, from where on the context is longer, checkpoints are fine-tuned
MOST_BYTES = 5_000_000  # of the page


def checkpoint_names(count):
    """A base run whose context is extended, then fine-tuned checkpoints."""
    extended, tuned = int(EXTENDED * count), max(int(TUNED * count), 1)
    names = [f"step{200 * (i + 1)}-{'8k' if i >= extended else '2k'}" for i in range(tuned)]
    return names + [f"step{200 * tuned}-8k-sft{i + 1}" for i in range(count - tuned)]


def write_checkpoint(folder, trajectories, tokens, total, index):
    """The score files of one checkpoint, unless they are there; each checkpoint is a little better than the last."""
    from tests.unit.analysis import made

    name, progress = checkpoint_names(total)[index], index / total
    if (folder / name / "whole").exists():
        return
    shutil.rmtree(folder / name, ignore_errors=True)
    made.run_of(folder / name, trajectories, tokens, index, progress, 0.6 * progress, model=f"made/{name}")
    (folder / name / "whole").touch()


def write_ladder(folder, checkpoints, trajectories, tokens, workers):
    """The score files of every checkpoint, and downstream.csv."""
    began = time.perf_counter()
    work = partial(write_checkpoint, folder, trajectories, tokens, checkpoints)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(work, range(checkpoints)))
    scores = [
        f"{name},{20 + 1.5 * i - 4 * (i % 3 == 1):.1f},500" for i, name in enumerate(checkpoint_names(checkpoints))
    ]
    (folder / "downstream.csv").write_text("\n".join(["checkpoint,swebench,swebench_n", *scores]) + "\n", "utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    print(f"{size / 1e6:,.0f} MB of score files, written in {time.perf_counter() - began:.0f} s", flush=True)


def measure(what, command, environment):
    """Wall clock, CPU and peak memory of a process with its children."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {seconds:.1f} s, {cpu:.1f} s of CPU, {after.ru_maxrss / 2**20:.2f} GB at most", flush=True)


def profile(words):
    """The functions of ours that most of the time of the main thread is spent in, or below."""
    from hesnr_tasks.cli import main

    profiler = cProfile.Profile()
    profiler.runcall(main, words)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("cumulative").print_stats(
        "hesnr|report|figures|stats", 60
    )
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(25)
    print(text.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where the scores are kept (default: a new folder)")
    parser.add_argument(
        "--full", action="store_true", help="{} checkpoints × {} trajectories × {} tokens".format(*FULL)
    )
    parser.add_argument("--size", type=int, nargs=3, metavar=("CHECKPOINTS", "TRAJECTORIES", "TOKENS"))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that write score files")
    parser.add_argument("--make", action="store_true", help="only write the score files")
    parser.add_argument("--profile", action="store_true", help="where the main thread spends its time")
    args = parser.parse_args()
    checkpoints, trajectories, tokens = args.size or (FULL if args.full else SMALL)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        write_ladder(folder, checkpoints, trajectories, tokens, args.workers)
        if args.make:
            return
        out = Path(temporary) / "report"
        words = ["report", str(folder), "-o", str(out), "--downstream", str(folder / "downstream.csv")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        print(f"{checkpoints} checkpoints × {trajectories} trajectories × {tokens:,} tokens")
        command = [sys.executable, "-m", "hesnr_tasks.cli", *words]
        for path in folder.glob("*/summary-*.cache"):
            path.unlink()
        measure("first", command, environment)
        measure("again", command, environment)
        page = (out / "report.html").stat().st_size
        print(f"report.html: {page / 1e6:.2f} MB{' (!)' if page > MOST_BYTES else ''}")
        if args.profile:
            profile(words)


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
