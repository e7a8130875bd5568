"""`hesnr analyze` and `hesnr compare`, from score files alone; before them, the options that sub-commands share."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.breakdowns import BREAKDOWNS, COLUMNS
from hesnr_tasks.analysis.compare import (
    CompareConfig,
    best_run,
    comparisons,
    matched,
    missing,
    named_folders,
    pair_table,
    read_run,
    sentence,
)
from hesnr_tasks.analysis.frame import (
    EVERY,
    Frame,
    check_epsilons,
    check_resamples,
    context_for,
    folders,
    load,
    run_names,
    selections,
)
from hesnr_tasks.analysis.tables import (
    FORMATS,
    Question,
    Table,
    breakdown,
    case_table,
    histograms,
    notes_on_runs,
    paragraphs,
    profiles,
    results,
    show,
    sweep,
)
from hesnr_tasks.errors import SettingsError, listed, nearest
from hesnr_tasks.metrics import METRICS, MIN_TOKENS, names_of
from hesnr_tasks.scores import ScoreStore, choose_runs
from hesnr_tasks.stats import RESAMPLES, SEED


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
    add_shared(parser, "context", "min-tokens", "run", "resamples", "seed")


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options of several sub-commands; `run` comes with `--all`: `args.run` is what `scores.choose_runs` takes."""
    for name in names:
        if name == "run":
            group = parser.add_mutually_exclusive_group()
            group.add_argument("--run", **_SHARED["run"])
            whole = "everything that was ever scored into each folder"
            group.add_argument("--all", dest="run", action="store_const", const="all", help=whole)
        else:
            parser.add_argument(f"--{name}", **_SHARED[name])


def _context(word: str) -> int | str:
    if word in ("common", "own"):
        return word
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number of tokens nor common, own")
    return int(word)


_SHARED: dict[str, dict[str, Any]] = {
    "context": {
        "type": _context, "metavar": "N",
        "help": "count only the first N tokens of a text; common: those all runs could see; own: each run as it is "
        "(default: common, where a context cut a run)",
    },
    "min-tokens": {
        "type": int, "default": MIN_TOKENS, "metavar": "N",
        "help": f"a metric over fewer tokens is N/A (default: {MIN_TOKENS})",
    },
    "run": {
        "default": "latest", "metavar": "N|DATA",
        "help": "the run of each folder to read, by number or by the hash of its data (default: the latest)",
    },
    "resamples": {"type": int, "default": RESAMPLES, "help": f"of the bootstrap (default: {RESAMPLES})"},
    "seed": {"type": int, "default": SEED, "help": f"of the bootstrap (default: {SEED})"},
    "format": {"choices": FORMATS, "default": "text", "help": "default: text"},
    "wide": {"action": "store_true", "help": "all columns, also where the terminal is too narrow"},
}  # fmt: skip


# --- hesnr analyze: any threshold, k, kind and filter, broken down in any direction -----------------------------------

_OF_TOOLS = ("decision_arguments", "combine", "forks", "quantile")


def analyze_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr analyze`."""
    parser.set_defaults(execute=analyze)
    add = parser.add_argument
    add("scores", nargs="+", help="folders of score files, or folders of such folders")
    add_selection(parser, several=True)
    add("--by", nargs="+", choices=(*BREAKDOWNS, "trajectory"), default=[], help="break the numbers down")
    add("--histogram", action="store_true", help="entropy histograms, density peaks, ε from the data")
    add("--bins", type=int, default=100, help="of the histograms (default: 100)")
    add("--sweep", action="store_true", help="20 thresholds from ln 2 to ln 5")
    add("--cases", nargs="?", type=int, const=5, default=0, metavar="N", help="N decision tokens near ln 2, ln 3, ln 4")
    beside = "scores of the same texts: a short-context pass (context benefit, LongPPL), another model (rBridge)"
    add("--against", nargs="+", default=[], metavar="FOLDER", help=beside)
    add("--common", action="store_true", help="of --against: take the trajectories that both have, if they differ")
    explored = "entropy at pivotal words, reflective and rare sentences of thoughts"
    add("--exploration", action="store_true", help=explored)
    add("--tool-entropy", action="store_true", help="entropy where actions are chosen")
    add("--decision-arguments", type=int, metavar="N", help="of --tool-entropy: words after the verb that decide too")
    add("--combine", metavar="HOW", help="of --tool-entropy: entropies of a step's words to one, max|mean|first|sum")
    add("--forks", type=int, metavar="N", help="of --tool-entropy: steps of greatest entropy to list (default: 10)")
    add("--quantile", type=float, nargs="+", metavar="Q", help="of --tool-entropy: more gate thresholds, at quantiles")
    add("-o", "--output", type=Path, metavar="FOLDER", help="where figures go (default: no figures)")
    add_shared(parser, "format", "wide")


def analyze(args: argparse.Namespace) -> str:
    """All tables as text, CSV or JSON. Raises `HesnrError` for what cannot be computed."""
    ks = args.k or [10]
    epsilons = check_epsilons(args.epsilon, ks)
    paths = folders(args.scores)
    _check(args, paths)
    extra = {column: None for by in args.by for column in COLUMNS[by]}
    extra |= dict.fromkeys(("char_start", "char_end") if args.exploration else ())
    extra |= {"topk_logprobs": None} if args.histogram else {}
    kinds = args.kinds or (["thought"] if args.exploration else None)
    beside = folders(args.against) if args.against else []
    context, note = context_for([*paths, *beside], args.context)
    about: dict[str, Any] = {"hesnr_tasks": __version__, "resamples": args.resamples, "seed": args.seed, "runs": {}}
    tables: dict[str, Table] = {}
    abouts: dict[str, str] = {}
    runs = [(name, path, choose_runs(path, args.run)) for name, path in zip(run_names(paths), paths, strict=True)]
    several = [  # a run whose tasks had different data is several
        (name if len(of_path) == 1 else f"{name}:{stored.data[:6]}", path, stored)
        for name, path, of_path in runs
        for stored in of_path
    ]
    for name, path, stored in several:  # one at a time: memory holds one run
        chosen = selections(ScoreStore.open(path).signature["filters"], kinds, args.filters)
        masks = [item.mask for item in chosen]
        frame = load(path, ks, masks=masks, extra=tuple(extra), name=name, context=context, run=stored)
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
    explored: list[Table] = []
    if args.exploration:
        from hesnr_tasks.exploration.entropy_profile import exploration

        explored = list(exploration(frame, question))  # before all others: it refuses unsuitable tokens in its words
    yield results(frame, question)
    yield from explored
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


# --- hesnr compare: is one checkpoint better than another? Paired by trajectory, with cluster-robust errors -----------

_DEFAULT = ("he_snr", "he_ppl", "ppl")
_NOTES = (
    "interval: 95 % of the difference, – where a few trajectories outweigh all others; verdict: by the two-sided p at "
    "5 %, corrected for the number of runs (p holm); scored: share of the tokens that would count, (!) below a half",
    "p worse: share of resamples in which the run is worse than the reference",
    "detectable: smallest true difference that a test at 5 % finds with the power asked for",
    "needed: trajectories to find the difference seen",
    "unpaired: trajectories that runs on different texts would need for the same error of the difference",
)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr compare`."""
    parser.set_defaults(execute=compare)
    add = parser.add_argument
    add("scores", nargs="+", help="two or more folders of score files, or a folder of such folders")
    add_selection(parser, several=False)
    add("--metrics", nargs="+", default=list(_DEFAULT), metavar="METRIC", help=f"default: {' '.join(_DEFAULT)}")
    reference = "the run the others are compared with (default: the first that is named, else the best)"
    add("--reference", metavar="NAME", help=reference)
    add("--common", action="store_true", help="compare on the trajectories that all runs have, if they differ")
    add("--across-renderings", action="store_true", help="pair by trajectory id: what another rendering moves")
    add("--power", type=float, default=0.8, help="for the minimum detectable difference (default: 0.8)")
    add_shared(parser, "format", "wide")


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
            raise SettingsError(f"--metrics {name!r} must be one of {listed(ranked, 10)}.{nearest(name, ranked)}")
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
