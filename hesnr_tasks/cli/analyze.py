"""`hesnr analyze`: any threshold, k, kind and filter, broken down any way, from score files alone."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.cases import case_table
from hesnr_tasks.analysis.frame import Frame, context_for, load
from hesnr_tasks.analysis.groups import BREAKDOWNS, COLUMNS
from hesnr_tasks.analysis.options import (
    add_common,
    add_explorations,
    check_epsilons,
    check_explorations,
    check_resamples,
    explored_columns,
    folders,
    selections,
    unique_names,
)
from hesnr_tasks.analysis.output import FORMATS, Table, show
from hesnr_tasks.analysis.profile import WEIGHTS, profile_rows, profile_table, write_weights
from hesnr_tasks.analysis.sums import token_sums
from hesnr_tasks.analysis.tables import Question, breakdown, histograms, results, sweep
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.scores import ScoreStore, StoredRun, choose_runs

__all__ = ["add_arguments", "analyze", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr analyze`."""
    add = parser.add_argument
    add("scores", nargs="+", help="folders of score files, or folders of such folders")
    add_common(parser, several=True)
    add("--by", nargs="+", choices=(*BREAKDOWNS, "trajectory"), default=[], help="break the numbers down")
    add("--histogram", action="store_true", help="entropy histograms, density peaks, ε from the data")
    add("--bins", type=int, default=100, help="of the histograms (default: 100)")
    add("--sweep", action="store_true", help="20 thresholds from ln 2 to ln 5")
    add("--cases", nargs="?", type=int, const=5, default=0, metavar="N", help="N decision tokens near ln 2, ln 3, ln 4")
    add("--weights", type=Path, metavar="OUT", help="write weights for data selection, one JSON line a trajectory")
    add("--weight-by", choices=WEIGHTS, default="density", help="what weights grow with (default: density)")
    add_explorations(parser)
    add("--format", choices=FORMATS, default="text", help="default: text")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    print(analyze(args))
    return 0


def analyze(args: argparse.Namespace) -> str:
    """The whole answer as text, CSV or JSON. Raises `HesnrError` for what cannot be answered."""
    ks = args.k or [10]
    epsilons = check_epsilons(args.epsilon, ks)
    paths = folders(args.scores)
    _check(args, paths)
    extra = tuple(dict.fromkeys([*(column for by in args.by for column in COLUMNS[by]), *explored_columns(args)]))
    kinds = args.kinds or (["thought"] if args.exploration else None)
    about: dict[str, Any] = {"hesnr_tasks": __version__, "resamples": args.resamples, "seed": args.seed, "runs": {}}
    parts: list[list[Table]] = []
    context, said = context_for(paths, args.context)
    read: list[str] = []
    for name, path, run in _named_runs(paths, args.run):  # one at a time: memory holds one run
        chosen = selections(ScoreStore.open(path).signature["filters"], kinds, args.filters)
        frame = load(path, ks, masks=[one.mask for one in chosen], extra=extra, name=name, context=context, run=run)
        about["runs"][name] = {"folder": str(path), "trajectories": len(frame.entries), "read": frame.about}
        about["runs"][name] |= frame.signature
        read.append(f"{name}: {frame.about}")
        asked = Question(chosen, ks, epsilons, args.resamples, args.seed, args.min_tokens)
        parts.append(list(_tables(frame, asked, args)))
    tables = _joined(parts, args.format)
    tables[0] = tables[0]._replace(notes=(*([said] if said else []), *tables[0].notes, *read))
    about["context"] = context
    if args.exploration and args.output:
        from hesnr_tasks.exploration.entropy_profile import draw

        about["figures"] = [str(path) for path in draw(tables, args.output / "exploration")]
    return show(tables, args.format, about)


def _named_runs(paths: Sequence[Path], which: str) -> Iterator[tuple[str, Path, StoredRun]]:
    """The run of each folder that is read, and a name for it; a run whose tasks had different data is several."""
    for name, path in zip(unique_names(paths), paths, strict=True):
        runs = choose_runs(path, which)
        for run in runs:
            yield (name if len(runs) == 1 else f"{name}:{run.data[:6]}"), path, run


def _check(args: argparse.Namespace, paths: Sequence[Path]) -> None:
    check_resamples(args.resamples, args.seed)
    if args.bins < 1 or args.cases < 0:
        raise SettingsError("--bins must be at least 1 and --cases at least 0")
    check_explorations(args)
    if args.tool_entropy:
        from hesnr_tasks.analysis.tool_entropy import check

        check(args)
    if args.weights and len(paths) > 1:
        raise SettingsError(f"--weights are made from one run, and {len(paths)} were given; name one")


def _tables(frame: Frame, asked: Question, args: argparse.Namespace) -> Iterator[Table]:
    exploring = list(_exploration(frame, asked, args.embed)) if args.exploration else []  # refuses with its own words
    yield results(frame, asked)
    yield from exploring
    if args.tool_entropy:
        yield from _tool_entropy(frame, args)
    for by in args.by:
        yield from _profiles(frame, asked) if by == "trajectory" else [breakdown(frame, asked, by)]
    if args.sweep:
        yield sweep(frame, asked)
    if args.histogram:
        yield from histograms(frame, asked, args.bins)
    if args.cases:
        for one, k in itertools.product(asked.chosen, asked.ks):
            yield case_table(frame, one, k, args.cases)
    if args.weights:
        first = next(_profiles(frame, asked))
        write_weights(args.weights, first.rows, args.weight_by)


def _exploration(frame: Frame, asked: Question, embed: str | None) -> Iterable[Table]:
    from hesnr_tasks.exploration.entropy_profile import exploration
    from hesnr_tasks.exploration.text import embedder

    return exploration(frame, asked, embed=embedder(embed) if embed else None)


def _tool_entropy(frame: Frame, args: argparse.Namespace) -> Iterable[Table]:
    """Of all scored tokens, whatever was asked for otherwise: actions are looked at whole."""
    from hesnr_tasks.analysis import tool_entropy

    store, ks = frame.store, args.k or [10]
    whole = load(
        store.folder, ks, extra=tool_entropy.COLUMNS, name=frame.name, context=frame.context, run=store.run or "all"
    )
    return tool_entropy.tables(whole, args)


def _profiles(frame: Frame, asked: Question) -> Iterator[Table]:
    for one, k, epsilon in itertools.product(asked.chosen, asked.ks, asked.epsilons):
        sums = token_sums(frame, frame.counted(one.mask), epsilon, k)
        yield profile_table(frame, one, k, epsilon, profile_rows(frame, one, sums))


def _joined(parts: Sequence[Sequence[Table]], format: str) -> list[Table]:
    """One table of each name with the rows of all runs; people do not read histograms as numbers."""
    found: dict[str, Table] = {}
    for table in itertools.chain.from_iterable(parts):
        if table.name == "histogram" and format == "text":
            continue
        known = found.get(table.name)
        found[table.name] = table if known is None else known._replace(rows=[*known.rows, *table.rows])
    return list(found.values())
