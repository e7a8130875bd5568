"""`hesnr inspect`: read trajectories with their labels, in the terminal or as an HTML page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from hesnr_tasks.analysis.frame import run_names
from hesnr_tasks.errors import DataError, SettingsError, nearest, number_of
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.formats import ReadReport, read_trajectories
from hesnr_tasks.tasks.settings import TaskSettings, add_flags, native_template
from hesnr_tasks.trajectory import Trajectory
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import Passed
from hesnr_tasks.viewer import page, terminal
from hesnr_tasks.viewer.page import (
    CANDIDATES,
    ScoredRun,
    Totals,
    TrajectoryView,
    load_tokenizer,
    tokenize,
    totals,
    view_of,
)

_LIMIT = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr inspect`."""
    parser.set_defaults(execute=run)
    parser.add_argument("sources", nargs="+", metavar="SRC", help="files, globs, folders or a hub id")
    parser.add_argument("--id", help="only trajectories of this id or instance id")
    parser.add_argument("--limit", type=_positive, default=_LIMIT, help=f"show at most this many (default: {_LIMIT})")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="write one self-contained page instead")
    parser.add_argument("--tokenizer", metavar="PATH", help="also count tokens, and show their borders in the page")
    parser.add_argument("--scores", metavar="FOLDER", help="colour tokens by a run's score files (with --html)")
    parser.add_argument("--compare", metavar="FOLDER", help="a second run's score files: show the difference")
    add_flags(parser, "config", "split", "on_error", "render", "thoughts", "template_kwargs", "calls")
    parser.add_argument("--full", action="store_true", help="in the terminal, every line of long texts")


def run(args: argparse.Namespace) -> int:
    """Show the trajectories that `args` name."""
    report = ReadReport()
    notes: list[str] = []
    trajectories = _selected(args, report, notes)
    encoder = load_tokenizer(args.tokenizer) if args.tokenizer else None
    runs = [ScoredRun(folder) for folder in (args.scores, args.compare) if folder]
    if args.compare and not args.scores:
        raise SettingsError("--compare needs --scores: the run to compare with")
    if len({run.rendering for run in runs}) > 1:
        raise SettingsError("the two runs were scored in different renderings; their tokens cannot be compared")
    rendering = runs[0].rendering if runs else args.render
    if runs and not args.html:
        raise SettingsError("--scores needs --html OUT.html")
    if rendering == "native" and encoder is None:
        raise SettingsError("the rendering native needs --tokenizer CKPT: the chat template is the checkpoint's own")
    if runs and encoder and rendering != "native":
        raise SettingsError("--scores needs no --tokenizer: score files have the tokens")
    settings = TaskSettings(thoughts=args.thoughts, template_kwargs=args.template_kwargs, calls=args.calls)
    native = native_template(encoder.tokenizer, settings) if encoder and rendering == "native" else None
    views: Iterator[TrajectoryView] = (view_of(t, rendering, native) for t in trajectories)
    passed: list[Passed] = []
    if native is not None:
        views = _noting(views, passed)
    if args.html:
        _write_page(args.html, list(views), None if runs else encoder, runs)
    else:
        terminal.write(_text(views, encoder, terminal.style_of(sys.stdout, full=args.full)))
    if native is not None:
        notes += [f"native: {json.dumps(native.describe(passed), ensure_ascii=False)}", native.dropped_text(passed)]
    for line in filter(None, [*report.lines(), *notes]):
        print(f"hesnr inspect: {terminal.printable(line)}", file=sys.stderr)
    return 0


def _noting(views: Iterator[TrajectoryView], passed: list[Passed]) -> Iterator[TrajectoryView]:
    """`views`, each with its entry in `passed`."""
    for view in views:
        passed += [view.rendered.passed] if view.rendered.passed else []
        yield view


def _selected(args: argparse.Namespace, report: ReadReport, notes: list[str]) -> Iterator[Trajectory]:
    """The trajectories to show, as they are read; a note is added where there are more than that."""
    shown, others = 0, []
    for trajectory in read_trajectories(
        args.sources, config=args.config, split=args.split, on_error=args.on_error, report=report
    ):
        if args.id not in (None, trajectory.id, trajectory.instance_id):
            others.append(trajectory.id)
            continue
        if shown == args.limit:
            notes.append(f"stopped after {number_of(args.limit, 'trajectory')}; --limit shows more")
            return
        shown += 1
        yield trajectory
    if shown:
        return
    sources = ", ".join(args.sources)
    if args.id is not None and others:
        raise DataError(
            f"none of the {len(others)} trajectories in {sources} has the id {args.id!r}."
            f"{nearest(args.id, others[:5000])} The first is {others[0]!r}."
        )
    reasons = " ".join(line.rstrip(".") + "." for line in report.lines())
    raise DataError(f"no trajectory was found in {sources}. {reasons}".rstrip())


def _text(views: Iterator[TrajectoryView], encoder: Encoder | None, style: terminal.Style) -> Iterator[str]:
    everything: list[Totals] = []
    count = 0
    for view in views:
        if not count:
            yield terminal.legend(style)
        turns = tokenize(view, encoder)[1] if encoder else totals(view)
        yield ""
        yield from terminal.lines(view, turns, style)
        everything += turns
        count += 1
    if count > 1:
        yield ""
        yield from terminal.total_lines(f"all {count} trajectories", everything, style)


def _write_page(path: Path, views: list[TrajectoryView], encoder: Encoder | None, runs: list[ScoredRun]) -> None:
    if encoder:
        tokens = [[tokenize(view, encoder)[0] for view in views]]
    else:
        tokens = [[run.tokens(view) for view in views] for run in runs]
    first, second = [*tokens, None, None][:2]
    names = run_names([run.folder for run in runs]) + ["A", "B"][len(runs) :]
    text = page.render_page(views, first, second, names, [[run.summary(view) for view in views] for run in runs])
    write_output(path, text)
    shown = "1 trajectory" if len(views) == 1 else f"{len(views)} trajectories"
    print(f"{path}: {shown}, {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    if (kept := page.candidates_kept(first, second)) < CANDIDATES:
        print(
            f"Outside actions, tokens show their {kept} most likely candidates instead of {CANDIDATES}, to keep the "
            "page small. All are shown for fewer trajectories (--limit, --id)."
        )


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text!r}")
    return value
