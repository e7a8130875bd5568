"""The default benchmarks, in ten minutes: `python -m benchmarks` (or `--minutes N`).

What is short comes first; `scoring` gets what is left and leaves out what does not fit. A benchmark that does not end
in time is stopped and named. Each says how long it took, its processor seconds, which others hardly change, and how
much of the machine other programs had meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time

from benchmarks.machine import ROOT, busy, own_time, watched

SHORT: dict[str, tuple[str, ...]] = {
    "filters": ("speed", "--trajectories", "40"),
    "many_trajectories": ("--counts", "100", "400", "--size", "10000"),
    "weights": (),
}
LEAST = 30.0  # seconds without which a benchmark is not begun


def run(name: str, arguments: tuple[str, ...], seconds: float) -> str:
    """One benchmark, for so many seconds at most; what it took, in words."""
    if seconds < LEAST:
        return "not begun: the time is over"
    start, before, own = time.perf_counter(), busy(), own_time()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            end = f"failed with status {process.returncode}" if process.wait(max(0.0, seconds)) else "done"
        except subprocess.TimeoutExpired:
            end = "stopped: the time is over"
        finally:  # with the runs that it started, which would disturb what comes next
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    took = time.perf_counter() - start
    processor = own_time() - own
    others = max(0.0, busy() - before - processor) / took / (os.cpu_count() or 1)
    return f"{end} after {took:.0f} s ({processor:.0f} of a processor); other programs took {others:.0%} of the machine"


def main() -> None:
    """Run all, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    stop = time.monotonic() + 60 * parser.parse_args().minutes
    ends = {}
    for name, arguments in SHORT.items():
        print(f"\n== {name} {' '.join(arguments)}", flush=True)
        ends[name] = run(name, arguments, stop - time.monotonic())
    print("\n== scoring", flush=True)
    left = stop - time.monotonic()
    # the last repetition is longer than it expects where others disturb it
    ends["scoring"] = run("scoring", ("--minutes", f"{left / 120:.2f}", "--models", "small"), left)
    print("\n== in all")
    for name, end in ends.items():
        print(f"{name:18} {end}")


if __name__ == "__main__":
    with watched():
        main()
