"""`hesnr demo`: `hesnr ladder run` on the shipped miniature."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

from hesnr_tasks import demo
from hesnr_tasks.cli.ladder import score_and_report
from hesnr_tasks.errors import HesnrError
from hesnr_tasks.ladder.run import LocalPool

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr demo`."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out/demo"), help="where results go (default: out/demo)"
    )
    parser.add_argument("--tasks", help="tasks of lm_eval, in place of the ladder's")


def run(args: argparse.Namespace) -> int:
    """Score the shipped ladder, print its verdict and leaderboard, and write its report."""
    for needed in ("lm_eval", "torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            raise HesnrError(f"the demo needs {needed}. Install it with: pip install 'hesnr-tasks[hf]'")
    path, here = demo.ladder_file(), Path.cwd()
    short = path.relative_to(here) if path.is_relative_to(here) else path
    print(
        "Twelve small models each read 100 agent runs with lm_eval, two models at a time. Then: which of them\n"
        "HE-SNR chooses, and whether it tells what they solve after fine-tuning better than perplexity does.\n"
        f"$ hesnr ladder run {short} -o {args.output}",
        flush=True,
    )
    workers = min(2, os.cpu_count() or 1)
    score_and_report(short, args.output, tasks=args.tasks, pool=lambda _: LocalPool(workers))
    return 0
