"""`hesnr compare`: is one checkpoint better than another? Paired by trajectory, with cluster-robust errors."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.compare import CompareConfig, best_run, comparisons, matched, missing, read_run, sentence
from hesnr_tasks.analysis.frame import check_epsilons, check_resamples, context_for, folders, run_names
from hesnr_tasks.analysis.tables import notes_on_runs, paragraphs, show
from hesnr_tasks.cli.options import add_format, add_selection
from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.metrics import METRICS, names_of

__all__ = ["add_arguments", "compare", "run"]

_DEFAULT = ("he_snr", "he_ppl", "ppl")
_NOTES = (
    "interval: 95 % of the difference, – where a few trajectories outweigh all others; verdict: by the two-sided p at "
    "5 %, corrected for the number of runs (p holm); scored: share of the tokens that would count, (!) below a half",
    "p worse: share of resamples in which the run is worse than the reference",
    "detectable: smallest true difference that a test at 5 % finds with the power asked for",
    "needed: trajectories to find the difference seen",
    "unpaired: trajectories that runs on different texts would need for the same error of the difference",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr compare`."""
    add = parser.add_argument
    add("scores", nargs="+", help="two or more folders of score files, or a folder of such folders")
    add_selection(parser, several=False)
    add("--metrics", nargs="+", default=list(_DEFAULT), metavar="METRIC", help=f"default: {' '.join(_DEFAULT)}")
    add(
        "--reference",
        metavar="NAME",
        help="the run the others are compared with (default: the first that is named, else the best)",
    )
    add("--common", action="store_true", help="compare on the trajectories that all runs have, if they differ")
    add("--across-renderings", action="store_true", help="pair by trajectory id: what another rendering moves")
    add("--power", type=float, default=0.8, help="for the minimum detectable difference (default: 0.8)")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    print(compare(args))
    return 0


def compare(args: argparse.Namespace) -> str:
    """The comparison as text, CSV or JSON. Raises `HesnrError` for runs that must not be compared."""
    check_resamples(args.resamples, args.seed)
    if not 0.5 <= args.power < 1:
        raise SettingsError("--power must be at least 0.5 and below 1")
    ranked = [name for name in names_of("all") if METRICS[name].denominator]
    for name in args.metrics:
        if name in METRICS and METRICS[name].suite == "pairs":
            raise SettingsError(f"--metrics {name} needs other scores of the same texts: hesnr analyze A --against B")
        if name not in ranked:
            raise SettingsError(f"--metrics {name!r} must be one of {', '.join(ranked)}.{nearest(name, ranked)}")
    k = 10 if args.k is None else args.k
    epsilon = check_epsilons([args.epsilon] if args.epsilon is not None else None, [k])[0]
    paths = folders(args.scores)
    context, note = context_for(paths, args.context)
    runs, notes = matched(
        [
            read_run(path, name, args.kinds, args.filters, epsilon, k, context, args.run, args.metrics)
            for path, name in zip(paths, run_names(paths), strict=True)
        ],
        common=args.common,
        across_renderings=args.across_renderings,
    )
    notes = [*([note] if note else []), *notes, *notes_on_runs({item.name: item.about for item in runs})]
    names = [item.name for item in runs]
    # of folders named one by one the first; of those found in a folder, whose order means nothing, the best
    default = names[0] if len(args.scores) == len(paths) else best_run(runs, args.metrics[0])
    reference = default if args.reference is None else args.reference
    if reference not in names:
        raise SettingsError(f"--reference {reference!r} is none of {json.dumps(names)}.{nearest(reference, names)}")
    config = CompareConfig(args.resamples, args.seed, args.power, args.min_tokens)
    tables = comparisons(runs, reference, args.metrics, config)
    notes += missing(runs, args.metrics)
    tables[-1] = tables[-1]._replace(notes=(*tables[-1].notes, *_NOTES[: None if args.wide else 1], *notes))
    about: dict[str, Any] = {"hesnr_tasks": __version__, "k": k, "epsilon": epsilon, "reference": reference}
    about |= {"resamples": args.resamples, "seed": args.seed, "power": args.power, "context": context, "notes": notes}
    about["runs"] = {item.name: dict(item.signature) for item in runs}
    content = show(tables, args.format, about, wide=args.wide)
    sentences = [sentence(table, name, reference) for table, name in zip(tables, args.metrics, strict=True)]
    return f"{paragraphs(sentences)}\n\n{content}" if args.format == "text" else content
