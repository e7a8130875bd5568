"""`hesnr report`: the leaderboard on the terminal; with -o also correlations, every figure, and one page of it all."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hesnr_tasks.analysis.frame import check_resamples
from hesnr_tasks.analysis.tables import REPRODUCIBLE, Table, show
from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.cli.options import add_context, add_run_option
from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.report import leaderboard
from hesnr_tasks.report.ladder import Ladder, Score, in_one_unit, read_downstream, read_ladder, scaled
from hesnr_tasks.report.results import Row, hidden, read_results
from hesnr_tasks.stats import RESAMPLES, SEED

if TYPE_CHECKING:
    from hesnr_tasks.report.data import Study
    from hesnr_tasks.report.page import Drawn

__all__ = ["add_arguments", "run", "write_report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr report`."""
    add = parser.add_argument
    add("results", nargs="+", help="lm-eval result files, folders of them, or folders of score files")
    add("-o", "--output", type=Path, metavar="OUT", help="write leaderboard, figures and report.html here")
    add(
        "--downstream", nargs="+", type=Path, metavar="FILE", default=[],
        help="checkpoint,score[,n] as CSV, or SWE-bench report files (.json), one a checkpoint",
    )  # fmt: skip
    add("--ladder", type=Path, metavar="YAML", help="steps, stages, labels where names do not tell them")
    add("--scores", nargs="+", default=[], metavar="FOLDER", help="score files that do not lie next to their results")
    add_context(parser)
    add_run_option(parser)
    add("--sort", choices=("step", "he_snr"), default="step", help="order of the leaderboard (default: step)")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default: {RESAMPLES})")
    add("--seed", type=int, default=SEED, help=f"of the bootstrap (default: {SEED})")


def run(args: argparse.Namespace) -> int:
    """Print the leaderboard of the results named; write the report if asked to."""
    check_resamples(args.resamples, args.seed)
    rows, folders, remarks = _found(args)
    ladder = read_ladder({*(row.model for row in rows), *folders}, args.ladder)
    if not ladder.checkpoints:
        raise DataError(f"no checkpoint is left to report on: {'; '.join(remarks)}")
    scores, strange = _downstream(args.downstream, ladder)
    if rows:
        print(leaderboard.markdown(rows, ladder.checkpoints, args.sort))
    if args.output is None and not scores:
        _tell(remarks)
        return _nothing_more(rows)
    from hesnr_tasks.report.data import study

    made = study(
        rows, ladder.checkpoints, folders, scores,
        remarks=[*remarks, *strange], run=args.run, resamples=args.resamples, seed=args.seed, context=args.context,
    )  # fmt: skip
    if scores:
        print("\n" + show([_short(table) for table in _agreed(made)], "text", {}))
    if args.output:
        write_report(made, args.output, args.sort)
    else:
        _tell(made.notes)
    return 0


def _nothing_more(rows: Sequence[Row]) -> int:
    if rows:
        return 0
    raise SettingsError(
        "a leaderboard is made of result files, and there are only score files here. Add -o OUT for figures and page, "
        "or ask hesnr analyze for their numbers."
    )


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"hesnr: {note}", file=sys.stderr)


def _found(args: argparse.Namespace) -> tuple[list[Row], dict[str, Path], list[str]]:
    """Results, and the score files that belong to them (looked for only where they are used)."""
    trees = [Path(source) for source in args.results if Path(source).is_dir()]
    scored = bool(args.scores) or any(next(tree.rglob("run.json"), None) for tree in trees)
    rows = read_results(args.results, optional=scored)
    remarks = hidden(rows)
    if args.output is None and not args.downstream and rows:
        return rows, {}, remarks
    from hesnr_tasks.report.results import find_scores

    folders, strange = find_scores(rows, args.results, args.scores)
    return rows, folders, [*remarks, *strange]


def _downstream(paths: Sequence[Path], ladder: Ladder) -> tuple[dict[str, Score], list[str]]:
    """Scores of the ladder file and of `paths`, in the order of the ladder; a score that both give must be the same."""
    told = scaled({name: Score(value, n) for name, (value, n) in ladder.downstream.items()})
    if not paths:
        return told, []
    found, strange = read_downstream(paths, [one.name for one in ladder.checkpoints])
    for name in told.keys() & found.keys():
        if told[name].value != found[name].value:
            raise DataError(f"{name} has two downstream scores: {told[name].value:g} and {found[name].value:g}")
    whole = in_one_unit(told | found)
    return {one.name: whole[one.name] for one in ladder.checkpoints if one.name in whole}, strange


def write_report(made: Study, folder: Path, by: str = "step") -> None:
    """leaderboard.md and .csv, tables/*.csv, figures/*.svg, .png and .csv with captions.md, and report.html."""
    from hesnr_tasks.report.page import render

    try:
        leaderboard.write(made.rows, made.ladder, folder, by, leaderboard.context_boards(made))
        tables = _tables(made)
        for table in tables.values():
            if table.rows:
                write_output(folder / "tables" / f"{table.name}.csv", show([table], "csv", {}, REPRODUCIBLE) + "\n")
        figures = list(_figures(made, folder / "figures"))
        captions = [
            f"**{d.name}** – {d.title} (paper: {d.paper}). {leaderboard.plain(d.caption)}\n" for d, _, _ in figures
        ]
        write_output(folder / "figures" / "captions.md", "\n".join(captions))
        write_output(folder / "report.html", render(made, tables, figures, by))
    except OSError as error:
        raise HesnrError(
            f"cannot write {error.filename or folder} ({error.strerror}); name another folder with -o"
        ) from None
    _tell(made.notes)
    for one in made.missing:
        print(f"hesnr: without {one.what}: {one.why}. It takes: {one.command}", file=sys.stderr)
    print(f"\nSaved: {folder / 'report.html'}, leaderboard.md and .csv, tables/, {len(figures)} figures in figures/")


def _tables(made: Study) -> dict[str, Table]:
    """Every table of the page; the cases are those of the last checkpoint."""
    from hesnr_tasks.report import tables

    cases = [one.cases for one in made.digests if one.cases is not None]
    found = [tables.agreements(made), tables.ablation(made), tables.neighbours(made), tables.entropy_peaks(made)]
    found.append(cases[-1] if cases else Table("cases", "", []))
    return {table.name: table for table in found}


def _agreed(made: Study) -> list[Table]:
    from hesnr_tasks.report.tables import agreements

    return [agreements(made)]


def _short(table: Table) -> Table:
    """For the terminal: intervals over trajectories and checkpoints are in the CSV."""
    wide = [name for row in table.rows[:1] for name in row if name.endswith(("_low", "_high"))]
    return table._replace(wide=wide, notes=[*table.notes, "with -o OUT: intervals in tables/correlations.csv"])


def _figures(made: Study, folder: Path) -> Iterator[Drawn]:
    from hesnr_tasks.plotting import look, save
    from hesnr_tasks.report.data import Missing
    from hesnr_tasks.report.figures.entropy import entropy_drawings
    from hesnr_tasks.report.figures.metrics import downstream_drawings, ladder_drawings
    from hesnr_tasks.report.page import Drawn

    if importlib.util.find_spec("matplotlib") is None:
        made.missing.append(Missing("figures", "matplotlib is not installed", "pip install 'hesnr-tasks[report]'"))
        return
    for source in (ladder_drawings, downstream_drawings, entropy_drawings):
        for drawing in source(made):
            with look():
                picture = drawing.draw()
                about = textwrap.fill(drawing.about, int(13 * picture.get_figwidth()))  # a line would be clipped
                picture.suptitle(f"{drawing.title}\n{about}", fontsize=9)
            svg, _ = save(picture, folder / drawing.name)
            csvs = {f"{table.name}.csv": show([table], "csv", {}, REPRODUCIBLE) + "\n" for table in drawing.tables}
            for file, content in csvs.items():
                write_output(folder / file, content)
            yield Drawn(drawing, svg.read_bytes(), csvs)
