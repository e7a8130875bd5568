"""Options that several sub-commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hesnr_tasks.analysis.frame import EVERY
from hesnr_tasks.analysis.tables import FORMATS
from hesnr_tasks.metrics import MIN_TOKENS
from hesnr_tasks.stats import RESAMPLES, SEED

__all__ = ["add_answers", "add_bootstrap", "add_context", "add_format", "add_run_option", "add_selection", "add_wide"]


def add_selection(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """Which tokens and settings are analyzed; `several`: more than one value each."""
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    options: dict[str, tuple[Any, str]] = {
        "kinds": (str, "tokens that count, such as thought+action (default: action)"),
        "filters": (str, f"taken out of actions, such as xml+format; none; {EVERY}: all subsets (default: all)"),
        "epsilon": (str, "entropy threshold in nats, or such as ln3 (default: (ln3+ln4)/2)"),
        "k": (int, "candidates a token (default: 10)"),
    }
    for name, (kind, text) in options.items():
        parser.add_argument(f"--{name}", type=kind, metavar=name.upper(), help=text, **many)
    add_context(parser)
    parser.add_argument(
        "--min-tokens", type=int, default=MIN_TOKENS, metavar="N",
        help=f"a metric over fewer tokens is N/A (default: {MIN_TOKENS})",
    )  # fmt: skip
    add_run_option(parser)
    add_bootstrap(parser)


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """`--resamples` and `--seed`."""
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default: {RESAMPLES})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the bootstrap (default: {SEED})")


def add_answers(parser: argparse.ArgumentParser, *, k: str) -> None:
    """How logs of answers are read, which Pass@K, the bootstrap and the output; `k`: help of `--k`."""
    add = parser.add_argument
    add("--k", type=int, nargs="+", metavar="K", help=k)
    add("--metric", metavar="NAME", help="of an lm-eval log: what says right or wrong (default: pass@1, exact_match)")
    add("--filter", metavar="NAME", help="of an lm-eval log with several filters")
    add("--task", metavar="NAME", help="of a folder with logs of several tasks")
    add_bootstrap(parser)
    add_format(parser)
    add("-o", "--output", type=Path, metavar="OUT", help="folder for CSV, JSON and the figure (SVG, PNG)")


def add_format(parser: argparse.ArgumentParser) -> None:
    """`--format` and `--wide`, for what `analysis.tables.show` prints."""
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    add_wide(parser)


def add_wide(parser: argparse.ArgumentParser) -> None:
    """`--wide`."""
    parser.add_argument("--wide", action="store_true", help="all columns, also where the terminal is too narrow")


def add_context(parser: argparse.ArgumentParser) -> None:
    """`--context`, for every command that reads score files of several runs."""
    parser.add_argument(
        "--context", type=_context, metavar="N",
        help="count only the first N tokens of a text; common: those all runs could see; own: each run as it is "
        "(default: common, where a context cut a run)",
    )  # fmt: skip


def add_run_option(parser: argparse.ArgumentParser) -> None:
    """Which run of a folder is read: `args.run`, as `scores.choose_runs` takes it."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--run", default="latest", metavar="N|DATA",
        help="the run of each folder to read, by number or by the hash of its data (default: the latest)",
    )  # fmt: skip
    group.add_argument(
        "--all", dest="run", action="store_const", const="all", help="everything that was ever scored into each folder"
    )


def _context(word: str) -> int | str:
    if word in ("common", "own"):
        return word
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number of tokens nor common, own")
    return int(word)
