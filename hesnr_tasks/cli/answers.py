"""What models solve and write: `hesnr passk`, Pass@K with intervals, and `hesnr behaviours`, length to rarity."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples, unique_names
from hesnr_tasks.analysis.tables import Table, interval, show, write_tables
from hesnr_tasks.cli.analyze import add_answers
from hesnr_tasks.errors import DataError, SettingsError, number_of
from hesnr_tasks.exploration import load_lexicon
from hesnr_tasks.exploration.behaviours import (
    MEASURES,
    OUTCOMES,
    AnswerSet,
    compared,
    matched_passk,
    mean_of,
    measure,
    problem_means,
    rarity,
    read_corpus,
)
from hesnr_tasks.exploration.entropy_profile import FEWEST_CLUSTERS
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.passk import aligned, curve, differences, discordant, listed, powers
from hesnr_tasks.passk.outcome_files import Query, read
from hesnr_tasks.stats import Estimate, holm
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
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="lm-eval sample logs or their folder, SWE-bench reports (several: as many answers a problem), CSV or JSON "
        "Lines of (problem, ok). With --compare one checkpoint each: [NAME=]FILE[,FILE…]; the first is the reference",
    )
    add("--compare", action="store_true", help="each FILE is a checkpoint; paired differences to the first")
    add("--common", action="store_true", help="compare on the problems that all have, if they differ")
    add_answers(parser, k="default: powers of two, up to the number of answers")


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
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="lm-eval sample logs (--log_samples) or their folder, or trajectories; a checkpoint each, as "
        "[NAME=]FILE[,FILE…]; the others are compared with the first, paired by problem",
    )
    add("--reference", metavar="FILE", help="what the base model wrote: rare is what is unlike that")
    add_answers(parser, k="for Pass@K at matched length (default: powers of two, to 16)")
    add(
        "--trajectories",
        type=Path,
        metavar="FILE",
        help="also write the answers of the one log given as trajectories (prompt context, answer thought), for "
        "hesnr_swe_thought to score on the model that wrote them",
    )


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
