"""`hesnr behaviours`: how models' own answers differ in length, reflection, repetition and rarity, with Pass@K."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.analysis.frame import check_resamples
from hesnr_tasks.analysis.tables import FORMATS, Table, interval, show, write_tables
from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.cli.passk import checkpoints
from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.exploration.behaviours import (
    MEASURES,
    OUTCOMES,
    Corpus,
    compared,
    matched_passk,
    mean_of,
    measure,
    problem_means,
    rarity,
    read_corpus,
)
from hesnr_tasks.exploration.contrast import FEWEST_CLUSTERS
from hesnr_tasks.exploration.text import embedder, load_lexicon
from hesnr_tasks.passk.estimator import listed, powers
from hesnr_tasks.passk.outcome_files import Query
from hesnr_tasks.stats import RESAMPLES, SEED
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory

__all__ = ["add_arguments", "run", "tables"]

_DEFAULT_KS = 5  # powers of two
_NOTES = (
    "each problem counts with the mean over its answers; ±: standard error; intervals: 95 %, Student's t, "
    f"where {FEWEST_CLUSTERS} or more have such answers",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr behaviours`."""
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="lm-eval sample logs (--log_samples) or their folder, or trajectories; a checkpoint each, as "
        "[NAME=]FILE[,FILE…]; the others are compared with the first, paired by problem",
    )
    add("--reference", metavar="FILE", help="what the base model wrote: rare is what is unlike that")
    add("--kinds", metavar="KIND+…", default="thought", help="of trajectories: what is read (default: thought)")
    add("--k", type=int, nargs="+", metavar="K", help="for Pass@K at matched length (default: powers of two, to 16)")
    add("--metric", metavar="NAME", help="of a log: what says right or wrong (default: pass@1, exact_match)")
    add("--filter", metavar="NAME", help="of a log with several filters")
    add("--task", metavar="NAME", help="of a folder with logs of several tasks")
    add("--embed", metavar="MODULE:FUNCTION", help="texts to vectors, for rare sentences (default: TF-IDF)")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default: {RESAMPLES})")
    add("--seed", type=int, default=SEED, help=f"of the bootstrap (default: {SEED})")
    add("--format", choices=FORMATS, default="text", help="default: text")
    add("-o", "--output", type=Path, metavar="OUT", help="folder for CSV, JSON and the figure (SVG, PNG)")
    add(
        "--trajectories",
        type=Path,
        metavar="FILE",
        help="also write the answers of the one log given as trajectories (prompt context, answer thought), for "
        "hesnr_swe_thought to score on the model that wrote them",
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables, and write them and the figure with -o."""
    made, notes = tables(args)
    about = {"hesnr_tasks": __version__, "files": args.files, "reference": args.reference, "notes": notes}
    about |= {"resamples": args.resamples, "seed": args.seed, "lexicon": load_lexicon().version}
    if args.output:
        write_tables(args.output, "behaviours", made, about)
        _draw(made, args.output / "behaviours")
    print(show(made, args.format, about))
    return 0


def tables(args: argparse.Namespace) -> tuple[list[Table], list[str]]:
    """Read, measure and compare; `HesnrError` for files or settings that give no number."""
    check_resamples(args.resamples, args.seed)
    query = Query(args.metric, args.filter, args.task)
    kinds = _kinds(args.kinds)
    named = checkpoints(args.files, compare=len(args.files) > 1)
    if args.trajectories and len(named) > 1:
        raise SettingsError("--trajectories writes the answers of one checkpoint, and several were given; name one")
    corpora = [read_corpus(name, paths, query, kinds) for name, paths in named.items()]
    for corpus in corpora:
        measure(corpus)
    notes = [note for corpus in corpora for note in corpus.notes]
    if args.reference:
        notes += _rarity(args, corpora, query, kinds)
    if args.trajectories:
        notes.append(_write_trajectories(corpora[0], args.trajectories))
    found = [_means(corpora, args, notes), *_right_and_wrong(corpora, args)]
    for corpus in corpora[1:]:
        found += _comparison(corpora[0], corpus, args, len(corpora) > 2)
    return found, notes


def _kinds(words: str) -> list[Kind]:
    names = words.replace(",", "+").split("+")
    known = [kind.value for kind in (Kind.THOUGHT, Kind.ACTION)]
    for name in names:
        if name not in known:
            raise SettingsError(f"--kinds {name!r}: a model writes {' and '.join(known)}.{nearest(name, known)}")
    return [Kind(name) for name in names]


def _rarity(args: argparse.Namespace, corpora: Sequence[Corpus], query: Query, kinds: Sequence[Kind]) -> list[str]:
    (name, paths), *_ = checkpoints([args.reference], compare=False).items()
    wanted = {path.resolve() for path in paths}
    given = [checkpoints([word], compare=False) for word in args.files]
    same = [i for i, one in enumerate(given) if {p.resolve() for paths in one.values() for p in paths} == wanted]
    if same and len(args.files) == len(corpora):  # one of those compared: its sentences are no neighbours of their own
        return [rarity(corpora, corpora[same[0]], embedder(args.embed) if args.embed else None)]
    reference = read_corpus(name, paths, query, kinds)
    return [*reference.notes, rarity(corpora, reference, embedder(args.embed) if args.embed else None)]


# --- tables -----------------------------------------------------------------------------------------------------------


def _measures(corpora: Sequence[Corpus]) -> list[str]:
    """The measures that some answer has."""
    answers = [answer for corpus in corpora for answer in corpus.answers]
    return [name for name in MEASURES if any(not math.isnan(answer.values[name]) for answer in answers)]


def _means(corpora: Sequence[Corpus], args: argparse.Namespace, notes: Sequence[str]) -> Table:
    rows = []
    for corpus in corpora:
        for name in _measures(corpora):
            for outcome in OUTCOMES:
                means = problem_means(corpus, name, outcome)
                number = mean_of(means.values(), args.resamples, args.seed)
                row: dict[str, Any] = {"run": corpus.name, "measure": name, "answers": outcome, "mean": number}
                rows.append({**row, "interval": interval(number), "problems": len(means)})
    meaning = [f"{name}: {MEASURES[name]}" for name in _measures(corpora)]
    about = f"lexicon {load_lexicon().version}, English; what share of such sentences it finds is not known"
    return Table("behaviours", "What was written", rows, (*_NOTES, *meaning, about, *notes))


def _right_and_wrong(corpora: Sequence[Corpus], args: argparse.Namespace) -> Iterator[Table]:
    rows = []
    for corpus in corpora:
        pairs = {
            name: (problem_means(corpus, name, "wrong"), problem_means(corpus, name, "right"))
            for name in _measures(corpora)
        }
        for name, difference, p in compared(pairs, args.resamples, args.seed):
            row: dict[str, Any] = {"run": corpus.name, "measure": name, "difference": difference.value}
            row |= {"interval": interval(difference.value), "p": difference.p, "p_holm": p}
            rows.append({**row, "problems": difference.problems})
    if any(row["problems"] for row in rows):
        note = "within problems that have both; p_holm: corrected for the number of measures"
        yield Table("right_less_wrong", "Right answers less wrong ones", rows, (note,))


def _comparison(a: Corpus, b: Corpus, args: argparse.Namespace, several: bool) -> Iterator[Table]:
    problems = [{answer.problem for answer in corpus.answers} for corpus in (a, b)]
    shared = problems[0] & problems[1]
    if not shared:
        raise DataError(f"{a.name} and {b.name} have no problem in common")
    notes = []
    for corpus, extra in ((a, problems[0] - shared), (b, problems[1] - shared)):
        if extra:
            notes.append(f"only {corpus.name} has {listed(sorted(corpus.labels[one] for one in extra))}: not compared")
    pairs = {
        (name, outcome): (problem_means(a, name, outcome), problem_means(b, name, outcome))
        for outcome in OUTCOMES
        for name in _measures((a, b))
    }
    words = {f"{name}|{outcome}": pair for (name, outcome), pair in pairs.items()}
    rows = []
    for key, difference, p in compared(words, args.resamples, args.seed):
        name, _, outcome = key.partition("|")
        row: dict[str, Any] = {"run": b.name, "measure": name, "answers": outcome, "difference": difference.value}
        row |= {"interval": interval(difference.value), "p": difference.p, "p_holm": p, "problems": difference.problems}
        rows.append(row)
    end = f"_{b.name}" if several else ""
    note = f"p_holm: corrected for all {len(rows)} comparisons of this table"
    yield Table(f"difference{end}", f"{b.name} less {a.name}, {len(shared)} problems, paired", rows, (*notes, note))
    yield from _matched(a, b, args, end)


def _matched(a: Corpus, b: Corpus, args: argparse.Namespace, end: str) -> Iterator[Table]:
    counts = [_most(corpus) for corpus in (a, b)]
    if not all(counts):
        return
    ks = sorted(set(args.k)) if args.k else powers(min(*counts, 1 << (_DEFAULT_KS - 1)))
    if min(ks) < 1 or max(ks) > min(counts):
        raise SettingsError(
            f"--k {max(ks) if min(ks) >= 1 else min(ks)}: k must be between 1 and {min(counts)}, the most answers of "
            "known outcome that both have to a problem"
        )
    rows = []
    for found in matched_passk(a, b, ks, args.resamples, args.seed):
        row: dict[str, Any] = {"run": b.name, "k": found.k, "difference": found.raw.value}
        row |= {"interval": interval(found.raw.value), "matched": found.matched.value}
        row |= {"matched_interval": interval(found.matched.value), "p": found.matched.p, "problems": found.problems}
        row |= {"left_out": found.left_out, "used": found.used}
        rows.append({**row, "words": found.words[0], "words_other": found.words[1]})
    notes = (
        "difference: of Pass@k with all answers; matched: with as many answers of either in every bin of length, "
        "within problems (lengths in a bin differ by less than a quarter); both on the same problems",
        "left out: problems with fewer than k pairs of equal length; used: share of answers with a partner; words: "
        f"mean length of the matched answers of {a.name} and of {b.name}",
    )
    yield Table(f"matched_passk{end}", f"Pass@k at matched length, {b.name} less {a.name}", rows, notes)


def _most(corpus: Corpus) -> int:
    counts: dict[str, int] = {}
    for answer in corpus.answers:
        if answer.right is not None:
            counts[answer.problem] = counts.get(answer.problem, 0) + 1
    return max(counts.values(), default=0)


# --- files ------------------------------------------------------------------------------------------------------------


def _draw(made: Sequence[Table], stem: Path) -> None:
    """A panel a measure, a row a run, with all answers, the right and the wrong; then Pass@k raw and matched."""
    from hesnr_tasks.plotting import error_bars, figure, label, save

    means = made[0].rows
    names = list(dict.fromkeys(row["measure"] for row in means))
    runs = list(dict.fromkeys(row["run"] for row in means))
    matched = [table for table in made if table.name.startswith("matched_passk") and table.rows]
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


def _write_trajectories(corpus: Corpus, path: Path) -> str:
    """The answers as normalised trajectories; returns a note on what they are."""
    if any(answer.turns is not None for answer in corpus.answers):
        raise SettingsError("--trajectories is for lm-eval sample logs; these are trajectories already")
    lines, times = [], dict[str, int]()
    for answer in corpus.answers:
        if not answer.text.strip():
            continue
        number = times[answer.problem] = times.get(answer.problem, 0) + 1
        segments = [Segment(Kind.CONTEXT, answer.prompt), Segment(Kind.THOUGHT, answer.text)]
        kept = tuple(segment for segment in segments if segment.text)
        trajectory = Trajectory(
            f"{corpus.labels[answer.problem]}:{number}",
            (Message("assistant", kept),),
            instance_id=corpus.labels[answer.problem],
            resolved=answer.right,
            source="lm-eval",
            fidelity=Fidelity.EXACT,
        )
        lines.append(json.dumps(trajectory.to_json(), ensure_ascii=True))
    write_output(path, ("\n".join(lines) + "\n").encode())
    special = sum("<|" in answer.prompt for answer in corpus.answers)
    odd = f"; {special} prompts hold special tokens, which will be read as text" if special else ""
    return f"{len(lines)} answers of {len(corpus.answers)} written to {path} (the others are empty){odd}"
