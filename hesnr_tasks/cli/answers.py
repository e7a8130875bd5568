"""What models solve and write: `hesnr passk`, `hesnr behaviours`; and what agents cost and choose: `egss`, `select`."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples, unique_names
from hesnr_tasks.analysis.tables import Table, interval, show, text_table, write_tables
from hesnr_tasks.cli.analyze import add_shared
from hesnr_tasks.egss import SWEBENCH_CONFIG, calibrate
from hesnr_tasks.egss.judges import ChatModel, Spent, check_model
from hesnr_tasks.egss.runs import (
    PRICE,
    InstanceRun,
    TaskCost,
    collect,
    curve_table,
    curves,
    kinds_table,
    load_instances,
    paired_table,
    read_run,
    savings_table,
)
from hesnr_tasks.egss.suite import METHODS, PatchTester, SelectSettings, sandbox_config, select_instance
from hesnr_tasks.errors import DataError, SettingsError, listed, nearest, number_of, printable
from hesnr_tasks.exploration import (
    FEWEST_CLUSTERS,
    MEASURES,
    OUTCOMES,
    AnswerSet,
    compared,
    load_lexicon,
    matched_passk,
    mean_of,
    measure,
    problem_means,
    rarity,
    read_corpus,
)
from hesnr_tasks.files.atomic import Journal, write_output
from hesnr_tasks.formats.outcomes import read_outcomes
from hesnr_tasks.passk import Query, aligned, curve, differences, discordant, powers, read
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, holm
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory

_MOST_SHOWN = 20  # discordant problems in text
_CURVE_NOTES = (
    "value ± standard error (of the mean over problems, as lm_eval prints it), then the 95 % interval and its method",
    '"(wide)": too few problems for a t interval; the interval is rather too wide than too narrow',
)
_COMPARE_NOTES = (
    "p: of “both are as good at every problem”, two-sided, by flipping the signs of the differences (McNemar's "
    "exact test where all count 0 or 1); p mean: of “the means over all such problems are equal”, as the interval",
    "detectable: smallest true difference found at 5 % with 80 % power; needed: problems to find the one seen",
    "fewer than 6 problems that differ cannot give p < 0.05; no detectable difference is then named",
)


def passk_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr passk`."""
    parser.set_defaults(execute=run_passk)
    add = parser.add_argument
    files = (
        "lm-eval sample logs or their folder, SWE-bench reports (several: as many answers a problem), CSV or JSON "
        "Lines of (problem, ok). With --compare one checkpoint each: [NAME=]FILE[,FILE…]; the first is the reference"
    )
    add("files", nargs="+", metavar="FILE", help=files)
    add("--compare", action="store_true", help="each FILE is a checkpoint; paired differences to the first")
    add("--common", action="store_true", help="compare on the problems that all have, if they differ")
    _add_answers(parser, k="default: powers of two, up to the number of answers")


def _add_answers(parser: argparse.ArgumentParser, *, k: str) -> None:
    """How logs of answers are read, which Pass@K, the bootstrap and the output; `k`: help of `--k`."""
    add = parser.add_argument
    add("--k", type=int, nargs="+", metavar="K", help=k)
    add("--metric", metavar="NAME", help="of an lm-eval log: what says right or wrong (default: pass@1, exact_match)")
    add("--filter", metavar="NAME", help="of an lm-eval log with several filters")
    add("--task", metavar="NAME", help="of a folder with logs of several tasks")
    add_shared(parser, "resamples", "seed", "format", "wide")
    add("-o", "--output", type=Path, metavar="OUT", help="folder for CSV, JSON and the figure (SVG, PNG)")


def run_passk(args: argparse.Namespace) -> str:
    """The tables as text, CSV or JSON; with -o they are written, with the figure."""
    results, about = passk_tables(args)
    if args.output:
        write_tables(args.output, "passk", results, about)
        _draw_curves(results, args.output / "passk")
    for i, table in enumerate(results):
        more = len(table.rows) - _MOST_SHOWN
        if args.format == "text" and table.name.startswith("discordant") and more > 0:
            note = f"and {more} more: --format csv, or -o OUT"
            results[i] = table._replace(rows=table.rows[:_MOST_SHOWN], notes=(*table.notes, note))
    return show(results, args.format, about, wide=args.wide)


def passk_tables(args: argparse.Namespace) -> tuple[list[Table], dict[str, Any]]:
    """Read and compute: curves, differences, problems that one alone solves; and what JSON says about them.

    Raises:
        HesnrError: files or settings give no number.
    """
    check_resamples(args.resamples, args.seed)
    query = Query(args.metric, args.filter, args.task)
    runs = [read(name, paths, query) for name, paths in checkpoints(args.files, compare=args.compare).items()]
    notes = [note for counts in runs for note in counts.notes]
    if args.compare:
        runs, left_out = aligned(runs, common=args.common)
        notes += left_out
    ks = sorted(set(args.k)) if args.k else powers(min(int(counts.n.min()) for counts in runs))
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {"hesnr_tasks": __version__, "files": args.files, "notes": notes}
    about |= {"resamples": args.resamples, "seed": args.seed, "counts": {}}
    for counts in runs:
        for point in curve(counts, ks):
            value = Estimate(*point[1:5])
            row: dict[str, Any] = {"run": counts.name, "k": point.k, "pass@k": value, "interval": interval(value, 4)}
            rows.append(row | {"method": point.method, "averaged": point.averaged, "problems": len(counts.problems)})
        if not_averaged := [k for k in ks if (counts.n == k).any()]:
            notes.append(
                f"warning: {counts.name} at k = {not_averaged[-1]} uses all answers of some problems: nothing is "
                "averaged there, it says how many problems had a right answer in this one run"
            )
        least, most = counts.n.min(), counts.n.max()
        if least < most:
            notes.append(f"{counts.name}: problems have {least} to {most} answers; each counts by its own n")
        each = zip(counts.labels, counts.n.tolist(), counts.c.tolist(), strict=True)
        about["counts"][counts.name] = [{"problem": label, "n": n, "c": c} for label, n, c in each]
    first, *others = runs
    results = [Table("passk", "Pass@k", rows, (*_CURVE_NOTES, *notes))]
    bootstrap = {"resamples": args.resamples, "seed": args.seed}
    against = {counts.name: differences(first, counts, ks, **bootstrap) for counts in others}
    rows = []
    for name, of_run in against.items():
        for i, test in enumerate(of_run):
            value = Estimate(*test[1:5])
            row = {"run": name, "k": test.k, "difference": value, "interval": interval(value, 4)}
            row |= {key: getattr(test, key) for key in ("method", "p", "p_mean", "detectable", "needed")}
            if len(others) > 1:
                row["p_holm"] = holm({other: tests[i].p for other, tests in against.items()})[name]
            rows.append(row | {"better": test.better, "worse": test.worse})
    if rows:
        title = f"Difference to {first.name}, {number_of(len(first.problems), 'problem')}, paired"
        results.append(Table("difference", title, rows, _COMPARE_NOTES))
    for counts in others:
        rows = list(discordant(first, counts))
        title = f"Problems solved by {first.name} or {counts.name} alone: {len(rows)}"
        results.append(Table(f"discordant_{counts.name}" if len(others) > 1 else "discordant", title, rows))
    return results, about


def checkpoints(words: Sequence[str], *, compare: bool) -> dict[str, list[Path]]:
    """Name → files. Without `compare` all files are of one checkpoint."""
    named: list[tuple[str, list[Path]]] = []
    for word in words:
        name, sign, rest = word.partition("=")
        files = (rest if sign else name).split(",")
        if Path(word).exists():  # a file whose own name has such signs is one file
            name, sign, files = "", "", [word]
        if "" in files:
            raise SettingsError(
                f"{word!r} names no file before or after a sign; write [NAME=]FILE[,FILE…] without spaces"
            )
        named.append((name if sign else "", [Path(file) for file in files]))
    if not compare:
        paths = [path for _, files in named for path in files]
        return {"all" if len(words) > 1 else unique_names(named[0][1])[0]: paths}
    if len(words) < 2:
        raise SettingsError("--compare needs two checkpoints or more, each as [NAME=]FILE[,FILE…] or a folder")
    short = unique_names([paths[0] for _, paths in named])
    by_name = {name or short[i]: paths for i, (name, paths) in enumerate(named)}
    if len(by_name) < len(words):
        raise SettingsError("two checkpoints have the same name; name them apart with NAME=FILE")
    return by_name


def _draw_curves(results: Sequence[Table], stem: Path) -> None:
    from matplotlib.ticker import PercentFormatter

    from hesnr_tasks.plotting import error_bars, figure, label, save

    panels = {"pass@k": results[0].rows} | {t.name: t.rows for t in results[1:] if t.name == "difference"}
    picture, axes = figure(1, len(panels), width=4.2, height=3.1)
    names = list(dict.fromkeys(row["run"] for row in results[0].rows))
    ks = sorted({row["k"] for row in results[0].rows})
    for (column, rows), axis in zip(panels.items(), axes[0], strict=True):
        for i, name in enumerate(names):
            if own := [row for row in rows if row["run"] == name]:
                shift = 1.05 ** (i - (len(names) - 1) / 2)  # error bars do not hide each other
                error_bars(axis, i, label(name), [row["k"] * shift for row in own], [row[column] for row in own])
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("k")
        axis.set_ylabel(f"difference to {label(names[0])}" if column == "difference" else "Pass@k")
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    if len(names) > 1:
        axes[0, 0].legend(loc="best")
    if "difference" in panels:
        axes[0, 1].axhline(0, color="#444444", linewidth=0.8)
    save(picture, stem)


# --- hesnr behaviours: how models' own answers differ in length, reflection, repetition and rarity, with Pass@K -------

_LARGEST_DEFAULT_K = 16
_BEHAVIOUR_NOTES = (
    "each problem counts with the mean over its answers; ±: standard error; intervals: 95 %, Student's t, "
    f"where {FEWEST_CLUSTERS} or more have such answers",
)


def behaviours_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr behaviours`."""
    parser.set_defaults(execute=run_behaviours)
    add = parser.add_argument
    files = (
        "lm-eval sample logs (--log_samples) or their folder, or trajectories; a checkpoint each, as "
        "[NAME=]FILE[,FILE…]; the others are compared with the first, paired by problem"
    )
    add("files", nargs="+", metavar="FILE", help=files)
    add("--reference", metavar="FILE", help="what the base model wrote: rare is what is unlike that")
    _add_answers(parser, k="for Pass@K at matched length (default: powers of two, to 16)")
    written = (
        "also write the answers of the one log given as trajectories (prompt context, answer thought), for "
        "hesnr_swe_thought to score on the model that wrote them"
    )
    add("--trajectories", type=Path, metavar="FILE", help=written)


def run_behaviours(args: argparse.Namespace) -> str:
    """The tables as text, CSV or JSON; with -o they are written, with the figure."""
    results, notes = behaviour_tables(args)
    about = {"hesnr_tasks": __version__, "files": args.files, "reference": args.reference, "notes": notes}
    about |= {"resamples": args.resamples, "seed": args.seed, "lexicon": load_lexicon().version}
    if args.output:
        write_tables(args.output, "behaviours", results, about)
        _draw_means(results, args.output / "behaviours")
    return show(results, args.format, about, wide=args.wide)


def behaviour_tables(args: argparse.Namespace) -> tuple[list[Table], list[str]]:
    """Read, measure and compare; `HesnrError` for files or settings that give no number."""
    check_resamples(args.resamples, args.seed)
    query = Query(args.metric, args.filter, args.task)
    named = checkpoints(args.files, compare=len(args.files) > 1)
    if args.trajectories and len(named) > 1:
        raise SettingsError("--trajectories writes the answers of one checkpoint, and several were given; name one")
    corpora = [read_corpus(name, paths, query) for name, paths in named.items()]
    for corpus in corpora:
        measure(corpus)
    notes = [note for corpus in corpora for note in corpus.notes]
    if args.reference:
        ((name, paths),) = checkpoints([args.reference], compare=False).items()
        files = {path.resolve() for path in paths}
        # one of those compared: its sentences are no neighbours of their own
        same = [i for i, given in enumerate(named.values()) if {path.resolve() for path in given} == files]
        reference = corpora[same[0]] if same else read_corpus(name, paths, query)
        notes += [] if same else reference.notes
        notes.append(rarity(corpora, reference))
    if args.trajectories:
        notes.append(_write_trajectories(corpora[0], args.trajectories))
    results = [_means(corpora, args, notes), *_right_and_wrong(corpora, args)]
    for corpus in corpora[1:]:
        results += _comparison(corpora[0], corpus, args, f"_{corpus.name}" if len(corpora) > 2 else "")
    return results, notes


def _measures(corpora: Sequence[AnswerSet]) -> list[str]:
    """The measures that some answer has."""
    answers = [answer for corpus in corpora for answer in corpus.answers]
    return [name for name in MEASURES if any(not math.isnan(answer.values[name]) for answer in answers)]


def _means(corpora: Sequence[AnswerSet], args: argparse.Namespace, notes: Sequence[str]) -> Table:
    rows, measures = [], _measures(corpora)
    for corpus, name, outcome in itertools.product(corpora, measures, OUTCOMES):
        means = problem_means(corpus, name, outcome)
        mean = mean_of(means.values(), args.resamples, args.seed)
        row: dict[str, Any] = {"run": corpus.name, "measure": name, "answers": outcome, "mean": mean}
        rows.append(row | {"interval": interval(mean), "problems": len(means)})
    meaning = [f"{name}: {MEASURES[name]}" for name in measures]
    about = f"lexicon {load_lexicon().version}, English; what share of such sentences it finds is not known"
    return Table("behaviours", "What was written", rows, (*_BEHAVIOUR_NOTES, *meaning, about, *notes))


def _right_and_wrong(corpora: Sequence[AnswerSet], args: argparse.Namespace) -> Iterator[Table]:
    rows = []
    for corpus in corpora:
        pairs = {
            name: (problem_means(corpus, name, "wrong"), problem_means(corpus, name, "right"))
            for name in _measures(corpora)
        }
        for name, row in compared(pairs, args.resamples, args.seed):
            rows.append({"run": corpus.name, "measure": name} | row)
    if any(row["problems"] for row in rows):
        note = "within problems that have both; p_holm: corrected for the number of measures"
        yield Table("right_less_wrong", "Right answers less wrong ones", rows, (note,))


def _comparison(a: AnswerSet, b: AnswerSet, args: argparse.Namespace, suffix: str) -> Iterator[Table]:
    problems = [{answer.problem for answer in corpus.answers} for corpus in (a, b)]
    shared = problems[0] & problems[1]
    if not shared:
        raise DataError(f"{a.name} and {b.name} have no problem in common")
    notes = []
    for corpus, extra in ((a, problems[0] - shared), (b, problems[1] - shared)):
        if extra:
            labels = sorted(corpus.labels[problem] for problem in extra)
            notes.append(f"only {corpus.name} has {listed(labels)}: not compared")
    pairs = {
        f"{name}|{outcome}": (problem_means(a, name, outcome), problem_means(b, name, outcome))
        for outcome, name in itertools.product(OUTCOMES, _measures((a, b)))
    }
    rows = []
    for key, row in compared(pairs, args.resamples, args.seed):
        name, _, outcome = key.partition("|")
        rows.append({"run": b.name, "measure": name, "answers": outcome} | row)
    notes.append(f"p_holm: corrected for all {len(rows)} comparisons of this table")
    yield Table(
        f"difference{suffix}", f"{b.name} less {a.name}, {number_of(len(shared), 'problem')}, paired", rows, notes
    )
    yield from _matched(a, b, args, suffix)


def _matched(a: AnswerSet, b: AnswerSet, args: argparse.Namespace, suffix: str) -> Iterator[Table]:
    judged = [Counter(answer.problem for answer in corpus.answers if answer.right is not None) for corpus in (a, b)]
    most = min(max(counts.values(), default=0) for counts in judged)
    if not most:
        return
    ks = sorted(set(args.k)) if args.k else powers(min(most, _LARGEST_DEFAULT_K))
    for k in ks:
        if not 1 <= k <= most:
            raise SettingsError(
                f"--k {k}: k must be between 1 and {most}, the most answers of known outcome that both have to a "
                "problem"
            )
    rows = [{"run": b.name} | row for row in matched_passk(a, b, ks, args.resamples, args.seed)]
    notes = (
        "difference: of Pass@k with all answers; matched: with as many answers of either in every bin of length, "
        "within problems (lengths in a bin differ by less than a quarter); both on the same problems",
        "left out: problems with fewer than k pairs of equal length; used: share of answers with a partner; words: "
        f"mean length of the matched answers of {a.name} and of {b.name}",
    )
    yield Table(f"matched_passk{suffix}", f"Pass@k at matched length, {b.name} less {a.name}", rows, notes)


def _draw_means(results: Sequence[Table], stem: Path) -> None:
    """A panel a measure, a row a run, with all answers, the right and the wrong; then Pass@k raw and matched."""
    from hesnr_tasks.plotting import error_bars, figure, label, save

    means = results[0].rows
    names, runs = ([*dict.fromkeys(row[key] for row in means)] for key in ("measure", "run"))
    matched = [table for table in results if table.name.startswith("matched_passk") and table.rows]
    count = len(names) + bool(matched)
    columns = min(4, count)
    picture, axes = figure(math.ceil(count / columns), columns, width=2.6, height=1.9)
    for name, axis in zip(names, axes.flat, strict=False):
        for i, outcome in enumerate(OUTCOMES):
            rows = [row for row in means if row["measure"] == name and row["answers"] == outcome]
            places = [runs.index(row["run"]) + 0.2 * (i - 1) for row in rows]
            error_bars(axis, i, outcome, places, [row["mean"] for row in rows], across=True)
        axis.set_yticks(range(len(runs)), [label(run) for run in runs])
        axis.set_ylim(len(runs) - 0.5, -0.5)
        axis.set_xlabel(name if name in ("words", "steps", "sentences") else f"{name} (%)")
    axes.flat[0].legend(fontsize=7)
    for axis in list(axes.flat)[count:]:
        axis.set_visible(False)
    if matched:
        axis = axes.flat[len(names)]
        ks = [row["k"] for row in matched[0].rows]
        for i, (table, column) in enumerate(itertools.product(matched, ("difference", "matched"))):
            name = f"{label(table.rows[0]['run'])} {'all' if column == 'difference' else 'matched'}"
            error_bars(axis, i, name, ks, [row[column] for row in table.rows], line=False)
        axis.axhline(0, color="#444444", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ks, [str(k) for k in ks])
        axis.set_xlabel("k")
        axis.set_ylabel(f"Pass@k less {label(runs[0])}'s")
        axis.legend(fontsize=7)
    save(picture, stem)


def _write_trajectories(corpus: AnswerSet, path: Path) -> str:
    """The answers as normalised trajectories; returns a note on what they are."""
    if any(answer.turns is not None for answer in corpus.answers):
        raise SettingsError("--trajectories is for lm-eval sample logs; these are trajectories already")
    lines, numbers = [], Counter[str]()
    for answer in corpus.answers:
        if not answer.text.strip():
            continue
        numbers[answer.problem] += 1
        label = corpus.labels[answer.problem]
        segments = (Segment(Kind.CONTEXT, answer.prompt), Segment(Kind.THOUGHT, answer.text))
        trajectory = Trajectory(
            f"{label}:{numbers[answer.problem]}",
            (Message("assistant", tuple(segment for segment in segments if segment.text)),),
            instance_id=label,
            resolved=answer.right,
            source="lm-eval",
            fidelity=Fidelity.EXACT,
        )
        lines.append(json.dumps(trajectory.to_json(), ensure_ascii=True))
    write_output(path, ("\n".join(lines) + "\n").encode())
    special = sum("<|" in answer.prompt for answer in corpus.answers)
    odd = f"; {special} prompts hold special tokens, which will be read as text" if special else ""
    return f"{number_of(len(lines), 'answer')} of {len(corpus.answers)} written to {path} (the others are empty){odd}"


# --- hesnr egss: costs of runs at equal resolve rate, gates, the file for mini-swe-agent ------------------------------


def egss_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr egss`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="cost curves and ratios of cost at equal resolve rate")
    add = report.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of mini-extra swebench; A+B+C: one answer chosen of three")
    add("--resolved", nargs="+", type=Path, metavar="FILE", help="evaluation reports, one a RUN in the same order")
    add("--reference", metavar="METHOD", help="what others are compared with (default: plain, else the first)")
    add("--cached-price", type=float, default=PRICE, help=f"of a cached prompt token (default: {PRICE})")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap over tasks (default: {RESAMPLES})")
    add_shared(report, "format", "wide")
    report.set_defaults(execute=_report)
    calibration = commands.add_parser("calibrate", help="the estimates of finished runs, for quantile gates")
    calibration.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs with model.gate=threshold:inf")
    calibration.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="for model.calibration")
    calibration.set_defaults(execute=_calibrate)
    config = commands.add_parser("config", help="print the file for mini-extra swebench -c")
    config.set_defaults(execute=lambda args: str(SWEBENCH_CONFIG))


def _calibrate(args: argparse.Namespace) -> int:
    instances = [instance for folder in args.runs for instance in read_run(folder)]
    with_estimates = [instance for instance in instances if instance.estimates]
    identities = {json.dumps([instance.estimator, instance.model], sort_keys=True) for instance in with_estimates}
    if len(identities) > 1:
        raise DataError(
            "these runs have several estimators or models, and their estimates cannot be put together:\n"
            + "\n".join(sorted(identities))
        )
    estimates = [value for instance in with_estimates for value in instance.estimates]
    first = with_estimates[0] if with_estimates else None
    calibration = calibrate(estimates, first.estimator if first else {}, first.model if first else "")
    if any(instance.fired for instance in with_estimates):
        print("note: the gate fired in these runs; what it led to is part of the calibration")
    calibration.write(args.output)
    print(f"{args.output}: {number_of(len(estimates), 'step')} of {number_of(len(with_estimates), 'trajectory')}")
    for share in (0.5, 0.3, 0.2, 0.1, 0.05):
        threshold, chance = calibration.rule(share)
        ties = "" if chance in (0.0, 1.0) else f", and of those at it {chance:.0%}"
        print(f"  quantile:{share:g}  fires above {threshold:.4f} nats{ties}")
    return 0


def _report(args: argparse.Namespace) -> str:
    check_resamples(args.resamples, SEED)
    if not 0 <= args.cached_price <= 1:
        raise SettingsError(f"--cached-price is {args.cached_price:g}; it is a share of a prompt token's price: 0 to 1")
    records, instances, notes = _records(args.runs, args.resolved or [])
    methods, left_out = curves(records, args.cached_price)
    if args.reference is not None and args.reference not in methods:
        hint = nearest(args.reference, methods)
        raise SettingsError(f"--reference {args.reference!r} is none of {', '.join(methods)}.{hint}")
    reference = args.reference or ("plain" if "plain" in methods else next(iter(methods)))
    if left_out:
        names = ", ".join(printable(task) for task in left_out[:5])
        notes.append(f"{len(left_out)} task(s) are not in every run with outcome and cost, and left out: {names}")
    controls = [name for name in methods if name.startswith(("gate random", "gate edit"))]
    tables = [curve_table(methods, args.resamples, notes)]
    if len(methods) > 1:
        for name in dict.fromkeys([reference, *controls]):
            both = [n for n in methods[reference].runs if n in methods[name].runs]
            tables += [savings_table(methods, name, n, args.resamples) for n in both]
    tables += [paired_table(methods, reference, args.resamples), kinds_table(instances)]
    about = {"hesnr_tasks": __version__, "reference": reference, "cached_price": args.cached_price}
    filled, about = [table for table in tables if table.rows], {**about, "resamples": args.resamples}
    return show(filled, args.format, about, wide=args.wide)


def _records(arguments: Sequence[str], reports: Sequence[Path]) -> tuple[list[TaskCost], list[InstanceRun], list[str]]:
    """A record a task of each argument; the trajectories behind them; footnotes."""
    if len(reports) != len(arguments):
        own = [Path(argument) / "report.json" for argument in arguments]
        if reports or not all(path.is_file() for path in own):
            raise SettingsError(
                f"{len(arguments)} run(s) and {len(reports)} report(s): costs are compared at equal resolve rate, and "
                "every run has outcomes of its own.\nGive --resolved one evaluation report for each RUN, in the same "
                "order, or put it into the folder as report.json."
            )
        reports = own
    records, instances, notes = [], [], []
    for argument, report in zip(arguments, reports, strict=True):
        pools = [read_run(Path(folder)) for folder in argument.split("+")]
        outcomes = read_outcomes([str(report)])
        by_task = [{instance.instance: instance for instance in pool} for pool in pools]
        method, *others = sorted({instance.method for pool in pools for instance in pool})
        if others:
            raise DataError(f"{argument}: runs of several methods in one: {', '.join([method, *others])}.")
        instances += [instance for pool in pools for instance in pool]
        common = set.intersection(*map(set, by_task))
        unstated = 0
        for task in sorted(common):
            spent, resolved = Spent.sum(pool[task].total for pool in by_task), outcomes.get(task)
            unstated += spent.unstated > 0
            if resolved is not None and not spent.unstated:
                records.append(TaskCost(task, method, len(pools), float(resolved), spent))
        for count, problem in (
            (sum(outcomes.get(task) is None for task in common), f"without an outcome in {report}"),
            (unstated, "with calls whose usage the server did not state"),
            (len(set.union(*map(set, by_task)) - common), "that only some of its runs have"),
        ):
            notes += [f"{argument}: {count} task(s) {problem}"] if count else []
    return records, instances, notes


# --- hesnr select: one patch an instance from finished runs (EGSS, stage 2) -------------------------------------------


def select_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr select`."""
    parser.set_defaults(execute=run_select)
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("runs", nargs="+", metavar="RUN", help="output folders (or files) of mini-swe-agent, SWE-agent, OpenHands …")
    output = "the patches chosen, as SWE-bench reads them"
    add("-o", "--output", type=Path, required=True, metavar="PREDS.json", help=output)
    config = "mini-swe-agent configuration: where tests run; as mini-extra swebench takes it (default: swebench.yaml)"
    add("-c", "--config", **many, metavar="SPEC", help=config)
    classes = "docker, singularity, bubblewrap or local (no protection), over -c"
    add("--environment-class", metavar="CLASS", help=classes)
    rows = "SWE-bench rows (JSON, JSON Lines, Parquet): problem_statement, image_name …"
    add("--instances", metavar="FILE", help=rows)
    variable = "variable that tests may see; others that look like keys are hidden from them"
    add("--env", **many, metavar="NAME[=VALUE]", help=variable)
    add("--selector", **many, metavar="MODEL", help="a voter, as litellm names it; several may be given")
    add("--augment", metavar="MODEL", help="model that writes missing tests (default: none)")
    add("--model-kwargs", default="{}", metavar="JSON", help="for litellm: api_base, temperature, max_tokens …")
    for item in fields(SelectSettings):
        kind, flag = type(item.default), f"--{item.name.replace('_', '-')}"
        metavar = "N" if kind is int else item.name.upper()
        add(flag, type=kind, default=item.default, metavar=metavar, help=item.metadata["help"])
    add("--name", default="", help="model_name_or_path in PREDS.json (default: hesnr-select-METHOD)")
    add("-w", "--workers", type=int, default=1, metavar="N", help="instances at a time (default: 1)")


def run_select(args: argparse.Namespace) -> str:
    """Select; what was chosen by what, as text; the same command goes on where it was stopped."""
    settings, kwargs = _checked(args)
    journal_path = args.output.with_name(f"{args.output.stem}.work.jsonl")
    if not journal_path.exists():  # else the answers may all be there
        for name in filter(None, [*args.selector, args.augment]):
            check_model(name, kwargs)
    notes: Counter[str] = Counter()
    candidates = collect(args.runs, notes, args.test_files)
    rows = load_instances(args.instances) if args.instances else {}
    needs_suite = args.method in ("egss", "suite")
    config = sandbox_config(args.config or ["swebench.yaml"], args.environment_class, args.env) if needs_suite else {}
    why_path = args.output.with_name(f"{args.output.stem}.why.json")
    predictions: dict[str, dict[str, str]] = {}
    why: dict[str, dict[str, Any]] = {}
    with Journal(journal_path) as journal:

        def work(instance_id: str) -> tuple[str, dict[str, Any], Counter[str]]:
            row = {"problem_statement": candidates[instance_id][0].task, **rows.get(instance_id, {})}
            row["instance_id"] = instance_id
            counted: Counter[str] = Counter()
            models = [ChatModel(name, journal, counted, kwargs) for name in args.selector]
            writer = ChatModel(args.augment, journal, counted, kwargs) if args.augment else None
            tester = PatchTester(config, row, settings, journal, counted) if needs_suite else None
            patch, record = select_instance(candidates[instance_id], row, settings, tester, models, writer)
            return patch, record, counted

        pool = ThreadPoolExecutor(args.workers)
        futures = {pool.submit(work, instance_id): instance_id for instance_id in candidates}
        try:
            for future in as_completed(futures):
                instance_id = futures[future]
                patch, why[instance_id], counted = future.result()
                notes.update(counted)
                row = {"model_name_or_path": args.name or f"hesnr-select-{args.method}", "instance_id": instance_id}
                predictions[instance_id] = {**row, "model_patch": patch}
                predictions, why = (dict(sorted(rows.items())) for rows in (predictions, why))
                record = {"notes": dict(sorted(notes.items())), "instances": why}
                write_output(args.output, json.dumps(predictions, indent=2))
                write_output(why_path, json.dumps(record, indent=2))
        finally:
            pool.shutdown(cancel_futures=True)
    return _summary(why, notes, args.output, why_path)


def _checked(args: argparse.Namespace) -> tuple[SelectSettings, dict[str, Any]]:
    """The settings and litellm's arguments. Raises `SettingsError`."""
    if args.method not in METHODS:
        raise SettingsError(
            f"--method {args.method!r} must be one of {', '.join(METHODS)}.{nearest(args.method, METHODS)}"
        )
    if args.method == "best-of-n" and not args.selector:
        raise SettingsError("--method best-of-n asks a judge; name one with --selector MODEL")
    for name in ("votes", "timeout", "repeats", "budget", "top", "limit", "workers"):
        if getattr(args, name) < 1:
            raise SettingsError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if "{file}" not in args.runner or "{junit}" not in args.runner:
        raise SettingsError(
            f"--runner {args.runner!r} must hold {{file}}, the tests, and {{junit}}, the report it writes"
        )
    try:
        re.compile(args.test_files)
        kwargs = json.loads(args.model_kwargs)
    except re.error as error:
        raise SettingsError(f"--test-files {args.test_files!r} is no regular expression: {error}") from None
    except ValueError as error:
        raise SettingsError(f"--model-kwargs {args.model_kwargs!r} is no JSON: {error}") from None
    if not isinstance(kwargs, dict):
        raise SettingsError(f'--model-kwargs {args.model_kwargs!r} must be an object, such as {{"temperature": 0}}')
    return SelectSettings(**{item.name: getattr(args, item.name) for item in fields(SelectSettings)}), kwargs


def _summary(why: Mapping[str, Mapping[str, Any]], notes: Mapping[str, int], output: Path, why_path: Path) -> str:
    rows = []
    for instance_id, record in why.items():
        counts = (
            len(record["candidates"]),
            len({c["patch"] for c in record["candidates"]}),
            len(record["suite"]["tests"]),
        )
        by = record["decided_by"] + (", tie broken at random" if record["tie_broken_at_random"] else "")
        rows.append([instance_id, *map(str, counts), f"{', '.join(record['runs'])} ({by})"])
    ties = sum(record["tie_broken_at_random"] for record in why.values())
    decided = Counter(record["decided_by"] for record in why.values()).most_common()
    by_what = ", ".join(f"{count} by {name}" for name, count in decided)
    lines = [f"{len(why)} instances: {by_what}; {ties} ties broken at random"]
    lines += [printable(f"  {count} × {note}") for note, count in sorted(notes.items())]
    table = text_table("", ["instance", "runs", "patches", "tests", "chosen from (by)"], rows, wide=True)
    return "\n".join([table, *lines, f"{output}, {why_path}"])
