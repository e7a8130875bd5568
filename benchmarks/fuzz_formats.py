"""Reads broken copies of files: no exception, no second spent on one, every record read or reported.

    python benchmarks/fuzz_formats.py [--mutants 20000] [--seed 0]

Mutates every fixture, and now and then a real file (../shared/trajectories), byte by byte or value by value. Prints
what became of the mutants and the slowest of them; stops at the first failure, naming file and seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.unit.formats import mutations  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real-share", type=float, default=0.02, help="share of mutants made of the real files")
    args = parser.parse_args()
    fixtures = mutations.sources(ROOT / "tests" / "unit" / "formats" / "fixtures")
    real = mutations.sources(ROOT.parent / "shared" / "trajectories")
    plan = [fixtures[i % len(fixtures)] for i in range(args.mutants)]
    if real:
        step = max(1, round(1 / args.real_share))
        plan[::step] = [real[i % len(real)] for i in range(len(plan[::step]))]
    return run(plan, args.seed)


def run(plan: list[Path], seed: int) -> int:
    outcomes, slowest = [], (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate(plan):
            data = mutations.mutant(path, seed + i)
            try:
                outcome = mutations.read(path, data, Path(folder))
            except Exception as error:
                print(f"FAILED on {path} with seed {seed + i}: {type(error).__name__}: {error}")
                raise
            outcomes.append(outcome)
            slowest = max(slowest, (outcome.seconds, f"{path.name}, seed {seed + i}"))
    kept, skipped = sum(o.kept for o in outcomes), sum(o.skipped for o in outcomes)
    print(
        f"{len(outcomes):,} mutants of {len(set(plan))} files: {kept:,} trajectories read, {skipped:,} records reported"
    )
    print(f"total {sum(o.seconds for o in outcomes):.1f} s, slowest {slowest[0]:.3f} s ({slowest[1]})")
    return 0 if slowest[0] <= 1 else 1


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        raise SystemExit(main())
