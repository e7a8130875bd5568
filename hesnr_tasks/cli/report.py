"""`hesnr report`: the leaderboard on the terminal; with -o also correlations, every figure, and one page of it all."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesnr_tasks.analysis.frame import check_resamples
from hesnr_tasks.analysis.summary import CheckpointSummary
from hesnr_tasks.analysis.summary_cache import uncached_bytes
from hesnr_tasks.analysis.tables import paragraphs, show
from hesnr_tasks.cli.analyze import add_shared
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.ladder.downstream import add_downstream
from hesnr_tasks.ladder.names import NamedLadder, read_ladder
from hesnr_tasks.ladder.pack import Pack, only_pack
from hesnr_tasks.report import tables
from hesnr_tasks.report.results import TaskResult, find_score_folders, read_results, remarks_on
from hesnr_tasks.stats import RESAMPLES, SEED

if TYPE_CHECKING:
    from hesnr_tasks.report.data import ReportData
    from hesnr_tasks.report.figures import SavedFigure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr report`."""
    parser.set_defaults(execute=run)
    add = parser.add_argument
    add("results", nargs="+", help="lm-eval result files, folders of them, folders of score files, or one pack")
    add("-o", "--output", type=Path, metavar="OUT", help="write leaderboard, figures and report.html here")
    add(
        "--downstream", nargs="+", type=Path, metavar="FILE", default=[],
        help="tables (CSV: checkpoint and any columns), SWE-bench reports or lm-eval results",
    )  # fmt: skip
    add(
        "--ladder",
        type=Path,
        metavar="YAML",
        help="a ladder file (hesnr ladder init): stages, families, sft_of, scores",
    )
    add("--scores", nargs="+", default=[], metavar="FOLDER", help="score files that do not lie next to their results")
    add_shared(parser, "context", "run")
    add("--sort", choices=("step", "he_snr"), default="step", help="order of the leaderboard (default: step)")
    forms = ("text", "markdown")
    add("--format", choices=forms, help="of the leaderboard (default: text on a terminal, markdown where it is piped)")
    add_shared(parser, "wide")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default: {RESAMPLES})")
    add("--seed", type=int, default=SEED, help=f"of the bootstrap (default: {SEED})")


def run(args: argparse.Namespace) -> int:
    """Print the leaderboard of the results; write the report with -o."""
    check_resamples(args.resamples, args.seed)
    report(
        args.results, args.output, ladder=args.ladder, downstream=args.downstream, scores=args.scores, sort=args.sort,
        format=args.format, wide=args.wide, run=args.run, resamples=args.resamples, seed=args.seed,
        context=args.context,
    )  # fmt: skip
    return 0


def report(
    sources: Sequence[str],
    output: Path | None,
    *,
    ladder: Path | None = None,
    downstream: Sequence[Path] = (),
    scores: Sequence[str] = (),
    sort: str = "step",
    format: str | None = None,
    wide: bool = False,
    **options: Any,
) -> None:
    """Print verdict and leaderboard of results and score files; write everything into `output`, if one is named.

    Args:
        sources: result files, or folders of results or score files.
        output: folder of the page, figures and tables.
        ladder: a ladder file.
        downstream: files of scores.
        scores: folders of score files that do not lie next to their results.
        sort: order of the leaderboard, "step" or "he_snr".
        format: of the leaderboard, "text" or "markdown"; None: text on a terminal, Markdown elsewhere.
        wide: all columns of the leaderboard and all sets of tokens, also where the terminal is too narrow.
        options: `run`, `resamples`, `seed` and `context` of `build_report_data`.
    """
    pack = only_pack(sources)
    if pack is None:
        results, named, score_folders, notes = _read(sources, output, ladder, downstream, scores)
    else:
        results, named, score_folders, notes = _unpacked(pack, ladder, downstream, scores, options)
    boards = tables.boards(results, named.checkpoints, sort) if results else []
    as_text = (format or ("text" if sys.stdout.isatty() else "markdown")) == "text"
    leaderboard = tables.leaderboard_text(boards, wide=wide) if as_text else tables.leaderboard_markdown(boards)
    if output is None and not named.ladder.benchmarks and not (results and score_folders):
        _print_notes([*notes, *named.notes])
        if not results:
            raise SettingsError(
                "a leaderboard is made of result files, and there are only score files here. Add -o OUT for figures "
                "and page, or ask hesnr analyze for their numbers."
            )
        print(leaderboard)
        return
    from hesnr_tasks.report.data import Workers, build_report_data

    sizes = [uncached_bytes(item) if isinstance(item, Path) else 0 for item in score_folders.values()]
    with Workers(sizes) as workers:
        data = build_report_data(results, named, score_folders, notes=notes, workers=workers, **options)
        figures: Iterable[SavedFigure] = ()
        if output:  # before the verdict, which they need not wait for
            from hesnr_tasks.report.figures import write_figures

            figures = write_figures(data, output / "figures", workers)
        sentences = [paragraphs(data.verdict.sentences)] if data.verdict else []
        print("\n\n".join(filter(None, [*sentences, leaderboard])))
        if data.downstream:
            _print_agreements(data, wide=wide)
        if output:
            save_report(data, output, figures, sort)
        else:
            _print_notes(data.notes + (data.verdict.remarks if data.verdict else []))


def _print_agreements(data: ReportData, *, wide: bool) -> None:
    table = tables.agreements(data)
    ends = [name for row in table.rows[:1] for name in row if name.endswith(("_low", "_high"))]
    rows = [row for row in table.rows if wide or row["select"] == data.filtered] or table.rows
    notes = [*table.notes, "with -o OUT: intervals, and all sets of tokens, in tables/correlations.csv"]
    if rows:  # else the verdict says that there are too few
        print("\n" + show([table._replace(rows=rows, wide=ends, notes=notes)], "text", {}, wide=wide))


_Sources = tuple[list[TaskResult], NamedLadder, dict[str, Path | CheckpointSummary], list[str]]


def _read(
    sources: Sequence[str], output: Path | None, ladder: Path | None, downstream: Sequence[Path], scores: Sequence[str]
) -> _Sources:
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    has_scores = bool(scores) or any(next(folder.rglob("run.json"), None) for folder in folders)
    results = read_results(sources, optional=has_scores)
    notes = remarks_on(results)
    score_folders: dict[str, Path] = {}
    if output or downstream or not results or importlib.util.find_spec("pyarrow"):
        score_folders, unreadable = find_score_folders(results, sources, scores)
        notes += unreadable
    names = {*(result.model for result in results), *score_folders}
    if not names:
        raise DataError(f"no checkpoint is left to report on: {'; '.join(notes)}")
    return results, read_ladder(names, ladder, downstream), {**score_folders}, notes


def _unpacked(
    pack: Pack, ladder: Path | None, downstream: Sequence[Path], scores: Sequence[str], options: Mapping[str, Any]
) -> _Sources:
    """What `_read` gives, from a pack; another ladder file or further downstream scores may be named."""
    for option, given in (("--scores", scores), ("--context", options["context"]), ("--run", options["run"])):
        if given not in ([], (), None, "latest"):
            raise SettingsError(f"{option} chooses among score files, and a pack has their sums only; leave it out")
    results = [TaskResult.from_json(document) for document in pack.results]
    named, notes = pack.named, [*pack.notes]
    if ladder:
        names = {*(result.model for result in results), *(checkpoint.name for checkpoint in named.checkpoints)}
        named = read_ladder(names, ladder, downstream)
    elif downstream:
        whole, remarks = add_downstream(named.ladder, downstream)
        by_name = {checkpoint.name: checkpoint for checkpoint in whole.checkpoints}
        order = tuple(by_name[checkpoint.name] for checkpoint in named.checkpoints)
        named = NamedLadder(order, whole, (*named.notes, *remarks))
    notes += [*pack.remarks(named.ladder), *([pack.note_on_context] if pack.note_on_context else [])]
    notes.append("from a pack, which holds no texts: the table of single decision tokens is left out")
    return results, named, {summary.name: summary for summary in pack.summaries}, notes


def save_report(data: ReportData, folder: Path, figures: Iterable[SavedFigure], sort: str = "step") -> None:
    """Write the report, and print its notes and what it lacks."""
    from hesnr_tasks.report.page import write_report

    count = write_report(data, folder, figures, sort)
    _print_notes(data.notes + (data.verdict.remarks if data.verdict else []))
    for part in data.missing:
        print(f"hesnr: without {part.what}: {part.why}. It takes: {part.command}", file=sys.stderr)
    verdict = "verdict.json, " * (data.verdict is not None)
    print(f"\nSaved: {folder / 'report.html'}, {verdict}leaderboard.md and .csv, tables/, {count} figures in figures/")


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"hesnr: {note}", file=sys.stderr)
