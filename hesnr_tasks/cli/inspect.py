"""The command `hesnr inspect`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from hesnr_tasks.alignment import Encoder
from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.formats import ReadReport, read_trajectories
from hesnr_tasks.trajectory import Trajectory
from hesnr_tasks.viewer import page, terminal
from hesnr_tasks.viewer.model import ScoredRun, Totals, View, load_tokenizer, tokenize, totals, view_of

__all__ = ["add_arguments", "run"]

_LIMIT = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr inspect`."""
    parser.add_argument("sources", nargs="+", metavar="SRC", help="files, globs, folders or a hub id")
    parser.add_argument("--id", help="only trajectories of this id or instance id")
    parser.add_argument("--limit", type=_positive, default=_LIMIT, help=f"show at most this many (default: {_LIMIT})")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="write one self-contained page instead")
    parser.add_argument("--tokenizer", metavar="PATH", help="also count tokens, and show their borders in the page")
    parser.add_argument("--scores", metavar="FOLDER", help="colour tokens by a run's score files (with --html)")
    parser.add_argument("--compare", metavar="FOLDER", help="a second run's score files: show the difference")
    parser.add_argument("--config", help="configuration of a hub data set")
    parser.add_argument("--split", help="split of a hub data set")
    parser.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="records that cannot be read")
    parser.add_argument("--format", help="read the files as this format instead of detecting it")
    parser.add_argument("--full", action="store_true", help="in the terminal, every line of long texts")


def run(args: argparse.Namespace) -> int:
    """Show the trajectories that `args` name."""
    report = ReadReport()
    found = _Found(args, report)
    encoder = load_tokenizer(args.tokenizer) if args.tokenizer else None
    runs = [ScoredRun(folder) for folder in (args.scores, args.compare) if folder]
    _refuse_clashes(args, runs)
    if args.html:
        _write_page(args.html, found, encoder, runs)
    else:
        terminal.write(_text(found, encoder, terminal.style_of(sys.stdout, full=args.full)))
    for line in [*report.lines(), *found.notes()]:
        print(f"hesnr inspect: {terminal.printable(line)}", file=sys.stderr)
    return 0


def _refuse_clashes(args: argparse.Namespace, runs: list[ScoredRun]) -> None:
    if args.compare and not args.scores:
        raise SettingsError("--compare needs --scores: the run to compare with")
    if runs and (args.tokenizer or not args.html):
        raise SettingsError("--scores needs --html OUT.html, and no --tokenizer: score files have the tokens")
    if len({run.rendering for run in runs}) > 1:
        raise SettingsError("the two runs were scored in different renderings; their tokens cannot be compared")


class _Found:
    """The trajectories asked for, as they are read; then what is to be said about them."""

    def __init__(self, args: argparse.Namespace, report: ReadReport) -> None:
        self._args = args
        self._report = report
        self._more = False

    def __iter__(self) -> Iterator[Trajectory]:
        shown, others = 0, []
        for trajectory in self._read():
            if self._args.id not in (None, trajectory.id, trajectory.instance_id):
                others.append(trajectory.id)
                continue
            if shown == self._args.limit:
                self._more = True
                return
            shown += 1
            yield trajectory
        if not shown:
            raise DataError(self._nothing(others))

    def notes(self) -> list[str]:
        """Whether there are more than were shown."""
        return [f"stopped after {self._args.limit} trajectories; --limit shows more"] if self._more else []

    def _read(self) -> Iterator[Trajectory]:
        a = self._args
        return read_trajectories(
            a.sources, config=a.config, split=a.split, on_error=a.on_error, format=a.format, report=self._report
        )

    def _nothing(self, others: list[str]) -> str:
        if self._args.id is None or not others:
            why = " ".join(line.rstrip(".") + "." for line in self._report.lines())
            return f"no trajectory was found in {', '.join(self._args.sources)}. {why}".rstrip()
        return (
            f"none of the {len(others)} trajectories in {', '.join(self._args.sources)} has the id {self._args.id!r}."
            f"{nearest(self._args.id, others[:5000])} The first is {others[0]!r}."
        )


def _text(found: _Found, encoder: Encoder | None, style: terminal.Style) -> Iterator[str]:
    yield terminal.legend(style)
    everything: list[Totals] = []
    for i, trajectory in enumerate(found):
        view = view_of(trajectory)
        turns = tokenize(view, encoder).turns if encoder else totals(view)
        yield ""
        yield from terminal.lines(view, turns, style)
        everything += turns
        count = i + 1
    if count > 1:
        yield ""
        yield from terminal.total_lines(f"all {count} trajectories", everything, style)


def _write_page(path: Path, found: _Found, encoder: Encoder | None, runs: list[ScoredRun]) -> None:
    rendering = runs[0].rendering if runs else "transcript"
    views: list[View] = [view_of(trajectory, rendering) for trajectory in found]
    scored = [[run.tokens(view) for view in views] for run in runs]
    if encoder:
        scored = [[tokenize(view, encoder).tokens for view in views]]
    tokens, compare = [*scored, None, None][:2]
    text = page.render_views(views, tokens, compare, _names(runs))
    write_output(path, text)
    print(f"{path}: {len(views)} trajectories, {len(text.encode()) / 1e6:.1f} MB; open it in a browser")


def _names(runs: list[ScoredRun]) -> tuple[str, str]:
    names = [run.name for run in runs] + ["A", "B"][len(runs) :]
    return names[0], names[1]


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text!r}")
    return value
