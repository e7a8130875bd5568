"""`hesnr analyze`: any threshold, k, kind and filter, broken down in any direction, from score files alone."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.cases import case_table
from hesnr_tasks.analysis.frame import (
    Frame,
    check_epsilons,
    check_resamples,
    context_for,
    folders,
    load,
    run_names,
    selections,
)
from hesnr_tasks.analysis.groups import BREAKDOWNS, COLUMNS
from hesnr_tasks.analysis.pairs import named_folders, pair_table
from hesnr_tasks.analysis.tables import (
    Question,
    Table,
    breakdown,
    histograms,
    notes_on_runs,
    profiles,
    results,
    show,
    sweep,
)
from hesnr_tasks.cli.options import add_format, add_selection
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.scores import ScoreStore, StoredRun, choose_runs

__all__ = ["add_arguments", "analyze", "run"]

_OF_TOOLS = ("decision_arguments", "combine", "forks", "quantile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr analyze`."""
    add = parser.add_argument
    add("scores", nargs="+", help="folders of score files, or folders of such folders")
    add_selection(parser, several=True)
    add("--by", nargs="+", choices=(*BREAKDOWNS, "trajectory"), default=[], help="break the numbers down")
    add("--histogram", action="store_true", help="entropy histograms, density peaks, ε from the data")
    add("--bins", type=int, default=100, help="of the histograms (default: 100)")
    add("--sweep", action="store_true", help="20 thresholds from ln 2 to ln 5")
    add("--cases", nargs="?", type=int, const=5, default=0, metavar="N", help="N decision tokens near ln 2, ln 3, ln 4")
    add(
        "--against", nargs="+", default=[], metavar="FOLDER",
        help="scores of the same texts: a short-context pass (context benefit, LongPPL), another model (rBridge)",
    )  # fmt: skip
    add("--common", action="store_true", help="of --against: take the trajectories that both have, if they differ")
    add(
        "--exploration", action="store_true", help="entropy at pivotal words, reflective and rare sentences of thoughts"
    )
    add("--tool-entropy", action="store_true", help="entropy where actions are chosen")
    add("--decision-arguments", type=int, metavar="N", help="of --tool-entropy: words after the verb that decide too")
    add("--combine", metavar="HOW", help="of --tool-entropy: entropies of a step's words to one, max|mean|first|sum")
    add("--forks", type=int, metavar="N", help="of --tool-entropy: steps of greatest entropy to list (default: 10)")
    add("--quantile", type=float, nargs="+", metavar="Q", help="of --tool-entropy: more gate thresholds, at quantiles")
    add("-o", "--output", type=Path, metavar="FOLDER", help="where figures go (default: no figures)")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    print(analyze(args))
    return 0


def analyze(args: argparse.Namespace) -> str:
    """All tables as text, CSV or JSON. Raises `HesnrError` for what cannot be computed."""
    ks = args.k or [10]
    epsilons = check_epsilons(args.epsilon, ks)
    paths = folders(args.scores)
    _check(args, paths)
    explored = ("char_start", "char_end") if args.exploration else ()
    explored = (*explored, "topk_logprobs") if args.histogram else explored
    extra = tuple(dict.fromkeys([*(column for by in args.by for column in COLUMNS[by]), *explored]))
    kinds = args.kinds or (["thought"] if args.exploration else None)
    beside = folders(args.against) if args.against else []
    context, note = context_for([*paths, *beside], args.context)
    about: dict[str, Any] = {"hesnr_tasks": __version__, "resamples": args.resamples, "seed": args.seed, "runs": {}}
    tables: dict[str, Table] = {}
    abouts: dict[str, str] = {}
    for name, path, stored in _named_runs(paths, args.run):  # one at a time: memory holds one run
        chosen = selections(ScoreStore.open(path).signature["filters"], kinds, args.filters)
        masks = [item.mask for item in chosen]
        frame = load(path, ks, masks=masks, extra=extra, name=name, context=context, run=stored)
        about["runs"][name] = {"folder": str(path), "trajectories": len(frame.entries), "read": frame.about}
        about["runs"][name] |= frame.signature
        abouts[name] = frame.about
        question = Question(chosen, ks, epsilons, args.resamples, args.seed, args.min_tokens)
        for table in _tables(frame, question, args):
            if table.name != "histogram" or args.format != "text":  # people do not read histograms as numbers
                rows = [*tables[table.name].rows, *table.rows] if table.name in tables else table.rows
                tables[table.name] = tables.get(table.name, table)._replace(rows=rows)
    if beside:
        chosen = selections(ScoreStore.open(paths[0]).signature["filters"], kinds, args.filters)
        question = Question(chosen, ks, epsilons, args.resamples, args.seed, args.min_tokens)
        judged, others = (named_folders(side) for side in (paths, beside))
        options: dict[str, Any] = {"context": context, "common": args.common, "run": args.run}
        tables["pairs"] = pair_table(judged, others, question, **options)
    listed = list(tables.values())
    listed[0] = listed[0]._replace(notes=(*([note] if note else []), *listed[0].notes, *notes_on_runs(abouts)))
    about["context"] = context
    if args.exploration and args.output:
        from hesnr_tasks.exploration.entropy_profile import draw

        about["figures"] = [str(path) for path in draw(listed, args.output / "exploration")]
    return show(listed, args.format, about, wide=args.wide)


def _named_runs(paths: Sequence[Path], requested: str) -> Iterator[tuple[str, Path, StoredRun]]:
    """The run of each folder that is read, and a name for it; a run whose tasks had different data is several."""
    for name, path in zip(run_names(paths), paths, strict=True):
        runs = choose_runs(path, requested)
        for stored in runs:
            yield (name if len(runs) == 1 else f"{name}:{stored.data[:6]}"), path, stored


def _check(args: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Raise `SettingsError` for values out of range, and for options without the one they belong to."""
    check_resamples(args.resamples, args.seed)
    if args.bins < 1 or args.cases < 0:
        raise SettingsError("--bins must be at least 1 and --cases at least 0")
    if args.common and not args.against:
        raise SettingsError("--common is for --against; add that")
    if args.output and not (args.exploration or args.tool_entropy):
        raise SettingsError("-o is where figures go, and only --exploration and --tool-entropy draw some here; add one")
    for name in _OF_TOOLS:
        if getattr(args, name) is not None and not args.tool_entropy:
            raise SettingsError(f"--{name.replace('_', '-')} is for the steps of --tool-entropy; add that")
    if args.tool_entropy:
        from hesnr_tasks.analysis.tool_entropy import check

        check(args)


def _tables(frame: Frame, question: Question, args: argparse.Namespace) -> Iterator[Table]:
    exploration: Iterable[Table] = ()
    if args.exploration:
        from hesnr_tasks.exploration.entropy_profile import exploration as explore

        # before all others: it refuses unsuitable tokens with its own message
        exploration = list(explore(frame, question))
    yield results(frame, question)
    yield from exploration
    if args.tool_entropy:
        from hesnr_tasks.analysis import tool_entropy

        store = frame.store  # actions are read whole, whatever tokens were selected
        options: dict[str, Any] = {"extra": tool_entropy.COLUMNS, "context": frame.context, "run": store.run or "all"}
        yield from tool_entropy.tables(load(store.folder, args.k or [10], name=frame.name, **options), args)
    for by in args.by:
        yield from profiles(frame, question) if by == "trajectory" else [breakdown(frame, question, by)]
    if args.sweep:
        yield sweep(frame, question)
    if args.histogram:
        yield from histograms(frame, question, args.bins)
    if args.cases:
        for chosen, k in itertools.product(question.chosen, question.ks):
            yield case_table(frame, chosen, k, args.cases)
