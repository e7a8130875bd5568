"""`hesnr convert` and `hesnr inspect`: trajectories of any format, to one file of normalised records, or to be read.

In the terminal turn by turn, kinds and filters marked, with colour or without. Without colour, kinds have bars of their
own, and on a terminal a row of letters under a line names the filters that drop the characters above; what is piped is
the text alone, with the counts of each turn. White space is never marked: it never counts. Nothing of a trajectory
reaches the terminal as a control character.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hesnr_tasks.analysis.frame import run_names
from hesnr_tasks.analysis.tables import display_width
from hesnr_tasks.errors import DataError, SettingsError, nearest, number_of, printable
from hesnr_tasks.files.atomic import open_output, write_output
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.formats import (
    ReadReport,
    content_hash,
    no_trajectory_message,
    read_trajectories,
    source_label,
    warnings_of,
)
from hesnr_tasks.formats.outcomes import read_outcomes
from hesnr_tasks.tasks.settings import TaskSettings, add_flags, native_template
from hesnr_tasks.trajectory import Kind, Trajectory
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import Block, Passed
from hesnr_tasks.viewer import (
    CANDIDATES,
    ScoredRun,
    Totals,
    TrajectoryView,
    candidates_kept,
    load_pretrained,
    render_page,
    tokenize,
    totals,
    view_of,
)

_SAME = "with the content of an earlier one"
_OUTCOMES = {True: "resolved", False: "not resolved", None: "outcome unknown"}


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr convert`."""
    parser.set_defaults(execute=run_convert)
    parser.add_argument("source", nargs="+", metavar="SRC", help="file, glob, folder or hub id")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.jsonl", help="file to write (also .jsonl.gz)")
    parser.add_argument("--force", action="store_true", help="replace OUT.jsonl if it is there already")
    parser.add_argument(
        "--deduplicate", action="store_true", help="of trajectories with the same content, write only the first"
    )
    add_flags(parser, "config", "split", "only_resolved", "limit", "on_error")
    parser.add_argument(
        "--outcomes", action="append", default=[], metavar="REPORT", help="evaluation report to join; may be repeated"
    )


def run_convert(args: argparse.Namespace) -> int:
    """Convert and print the closing table; 0 when the file was written."""
    report = ReadReport()
    names = ("config", "split", "only_resolved", "limit", "on_error", "force", "deduplicate")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    outcomes = read_outcomes(args.outcomes) if args.outcomes else None
    totals = convert(args.source, args.output, outcomes=outcomes, report=report, **options)
    print("\n".join(totals.lines(report, args.output)))
    return 0


@dataclass
class ConversionTotals:
    """Counts of what was written, and of what was read but not selected."""

    written: int = 0
    turns: int = 0
    joined: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    fidelity: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    seen: Counter[bool | None] = field(default_factory=Counter)

    def add(self, trajectory: Trajectory) -> None:
        """Count a trajectory that is written."""
        self.written += 1
        self.turns += sum(message.generated for message in trajectory.messages)
        for message in trajectory.messages:
            for segment in message.segments:
                self.characters[segment.kind.value] += len(segment.text)
        self.fidelity[trajectory.fidelity.value] += 1
        self.formats[trajectory.source or "not named"] += 1
        self.outcomes[_OUTCOMES[trajectory.resolved]] += 1

    def lines(self, report: ReadReport, output: str) -> list[str]:
        """The closing table."""
        skipped = sum(s.count for s in report.skipped.values()) + sum(self.dropped.values())
        table = [
            ("read", f"{report.read:,}"),
            ("written", f"{self.written:,} to {output}"),
            ("skipped", f"{skipped:,}"),
        ]
        table += [("", f"{count:,} {reason}") for reason, count in sorted(self.dropped.items())]
        table += [("", f"{s.count:,} {reason}: {s.examples[0]}") for reason, s in sorted(report.skipped.items())]
        table += [("turns", f"{self.turns:,}"), ("characters", f"{sum(self.characters.values()):,}")]
        table += [("", f"{self.characters[kind]:,} {kind}") for kind in sorted(self.characters)]
        for name in ("fidelity", "outcomes", "formats"):
            counts: Counter[str] = getattr(self, name)
            table.append((name, ", ".join(f"{count:,} {key}" for key, count in sorted(counts.items()))))
        table += [("warning", f"{text}{f' ({n:,} times)' if n > 1 else ''}") for text, n in report.warnings.items()]
        repeated = report.repetitions(removed=self.dropped[_SAME] > 0)
        table += [("warning", text) for text in repeated]
        return [printable(f"{name:<12}{value}") for name, value in table]


def convert(
    source: list[str],
    output: str,
    *,
    config: str | None = None,
    split: str | None = None,
    only_resolved: bool = False,
    outcomes: Mapping[str, bool | None] | None = None,
    limit: int | None = None,
    on_error: str = "fail",
    force: bool = False,
    deduplicate: bool = False,
    report: ReadReport | None = None,
) -> ConversionTotals:
    """Write the trajectories of `source` to `output`, one line each; the file appears complete or not at all.

    Args:
        source: files, globs, folders or a hub id.
        output: file to write, gzip-compressed if its name ends in `.gz`.
        config: configuration of a hub data set.
        split: split of a hub data set.
        only_resolved: leave out what is not known to be resolved.
        outcomes: instance id → resolved; replaces what the files say.
        limit: stop after this many.
        on_error: `fail` or `skip`, for bad records.
        force: replace an existing file.
        deduplicate: of trajectories whose messages are the same, whatever their ids, write only the first.
        report: counts what is read and skipped.

    Raises:
        DataError: a record is bad (`on_error="fail"`), no outcome fits any trajectory, or nothing is left to write.
        SettingsError: `output` exists, is not a device or a pipe, and `force` is not set; or `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"--limit is {limit}; it must be 1 or more")
    if not force and os.path.isfile(output):  # noqa: PTH113 - unlike Path's, it takes any name
        raise SettingsError(f"{output!r} is there already; --force replaces it")
    report = report if report is not None else ReadReport()
    totals = ConversionTotals()
    read = read_trajectories(source, config=config, split=split, on_error=on_error, report=report)
    chosen = _with_outcomes(read, outcomes, only_resolved, deduplicate, totals)
    selected = itertools.islice(chosen, limit and min(limit, sys.maxsize))
    with open_output(output) as raw, contextlib.ExitStack() as stack:
        file: IO[bytes] = raw
        if output.endswith(".gz"):
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # no time, no place: deterministic
            file = stack.enter_context(contextlib.closing(io.BufferedWriter(packed, 1 << 20)))
        for trajectory in tqdm(selected, unit=" trajectories", disable=None):
            record = trajectory.to_json()
            try:
                line = json.dumps(record, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # half a character in what a file had under `meta`
                line = json.dumps(record).encode()
            file.write(line + b"\n")
            totals.add(trajectory)
        if outcomes is not None and totals.seen and not totals.joined:
            raise DataError(
                f"no instance of the evaluation reports ({repr(min(outcomes)) if outcomes else 'none'}, …) occurs in "
                f"{source_label(source)}; check that report and runs belong together"
            )
        if not totals.written:
            raise DataError(no_trajectory_message(source, only_resolved, totals.seen, report))
    return totals


def _with_outcomes(
    trajectories: Iterable[Trajectory],
    outcomes: Mapping[str, bool | None] | None,
    only_resolved: bool,
    deduplicate: bool,
    totals: ConversionTotals,
) -> Iterator[Trajectory]:
    """The trajectories to write, with the outcomes of the reports."""
    contents: set[bytes] = set()
    for trajectory in trajectories:
        names = (trajectory.instance_id, trajectory.id)
        name = next((name for name in names if name is not None and name in (outcomes or {})), None)
        if outcomes is not None and name is not None:
            totals.joined += 1
            meta = {**trajectory.meta, "outcome_from": "report"}
            trajectory = replace(trajectory, resolved=outcomes[name], meta=meta)
        totals.seen[trajectory.resolved] += 1
        if only_resolved and not trajectory.resolved:
            totals.dropped[_OUTCOMES[trajectory.resolved]] += 1
            continue
        if deduplicate:
            content = content_hash(trajectory)
            if content in contents:
                totals.dropped[_SAME] += 1
                continue
            contents.add(content)
        yield trajectory


# --- a trajectory in the terminal -------------------------------------------------------------------------------------


class Style(NamedTuple):
    """How to write.

    With ANSI colours, wrapped to `width` columns (None: not), every line of long texts, ASCII bars, rows of letters
    under what filters drop (without colours).
    """

    colour: bool = False
    width: int | None = None
    full: bool = False
    ascii: bool = False
    marks: bool = False


_KIND_SGR = {Kind.CONTEXT: "2", Kind.OBSERVATION: "36", Kind.THOUGHT: "33", Kind.ACTION: "32", Kind.SCAFFOLD: "2;3"}
_FILTER_SGR = ("2;9;37", "2;9;35", "2;9;31", "2;9;34", "2;9;36")
_BARS = dict(zip(Kind, "┊│╎┃ ", strict=True))
_ASCII_BARS = dict(zip(Kind, ":|!# ", strict=True))
_FOLDED = (Kind.CONTEXT, Kind.OBSERVATION)
_COUNTED = (Kind.CONTEXT, Kind.OBSERVATION, Kind.THOUGHT, Kind.ACTION)
_LONG, _HEAD, _TAIL = 60, 30, 10  # of more than 60 lines, the first 30 and the last 10
_GUTTER = 14  # columns before the text


def legend(style: Style) -> str:
    """What the marks mean, in one line."""
    kinds = "  ".join(_sgr(f"{_bar(kind, style)} {kind.value}", _KIND_SGR[kind], style) for kind in Kind)
    if style.colour:
        dropped = "  ".join(_sgr(name, _FILTER_SGR[i], style) for i, name in enumerate(FILTERS))
    elif style.marks:
        dropped = "  ".join(f"{letter} {name}" for letter, name in zip(_LETTERS, FILTERS, strict=True))
    else:
        return kinds
    return f"{kinds}   dropped: {dropped}"


def lines(view: TrajectoryView, turns: Sequence[Totals], style: Style) -> Iterator[str]:
    """The trajectory, line by line, without line ends. `turns`: totals of each turn."""
    yield from _heading(view, style)
    for number, in_turn in itertools.groupby(view.blocks, key=lambda block: block.turn):
        yield ""
        yield from _bold(f"-- turn {number} -- {_counts(turns[number - 1])}", style)
        for block in in_turn:
            yield from _block(view, block, style)
    yield ""
    yield from total_lines("total", turns, style)


def total_lines(name: str, turns: Sequence[Totals], style: Style) -> Iterator[str]:
    """The sum of `turns`, and what the filters dropped."""
    total = Totals()
    for turn in turns:
        total.add(turn)
    yield from _bold(f"{name}: {_counts(total)}", style)
    dropped = ", ".join(f"{name} {total.dropped[name]:,}" for name in FILTERS)
    yield f"dropped from actions: {dropped} (a character may be dropped by several)"


# --- pieces -----------------------------------------------------------------------------------------------------------


_LETTERS: list[str] = []  # one for each filter: its first that no filter before it has
for _name in FILTERS:
    _LETTERS.append(next((c for c in f"{_name}0123456789" if c not in _LETTERS), "?"))


def _heading(view: TrajectoryView, style: Style) -> Iterator[str]:
    t = view.trajectory
    outcome = {True: "resolved", False: "not resolved", None: "outcome not known"}[t.resolved]
    facts = [outcome, f"{printable(t.source) or 'unknown format'}, {t.fidelity.value}", number_of(view.turns, "turn")]
    if t.instance_id and t.instance_id != t.id:
        facts.insert(0, f"instance {printable(t.instance_id)}")
    yield _sgr(f"==== {printable(t.id)} ====", "1", style)
    yield "  ".join(facts)
    for warning in warnings_of(t):
        yield f"warning: {printable(warning)}"


def _bold(text: str, style: Style) -> Iterator[str]:
    """A heading in as many lines as it needs on a terminal; in one where it is piped."""
    width = sys.maxsize if style.width is None else max(20, style.width)
    folded = textwrap.wrap(text, width, subsequent_indent="   ", break_on_hyphens=False)
    yield from (_sgr(line, "1", style) for line in folded)


def _counts(turn: Totals) -> str:
    parts = [f"{kind.value} {turn.characters[kind]:,}" for kind in _COUNTED if turn.characters[kind]]
    if action := turn.characters[Kind.ACTION]:
        parts.append(f"kept {turn.kept:,} of action ({100 * turn.kept / action:.0f} %)")
    if turn.tokens is not None:
        parts.append(f"tokens {turn.tokens:,}, {turn.counted:,} count")
    return ", ".join(parts)


def _block(view: TrajectoryView, block: Block, style: Style) -> Iterator[str]:
    text, start = view.text[block.start : block.end], block.start
    if block.kind is Kind.SCAFFOLD:
        text = text.strip("\n")  # role headers, there only to part messages; no filter drops any of it
    label = block.kind.value
    for row in _folded(text, view.bits[start : start + len(text)], block.kind, style):
        yield f"{label:>11} {_sgr(_bar(block.kind, style), _KIND_SGR[block.kind], style)} {row}".rstrip()
        label = ""


def _folded(text: str, bits: npt.NDArray[np.uint8], kind: Kind, style: Style) -> Iterator[str]:
    lengths = [len(line) for line in text.removesuffix("\n").split("\n")] if text else []
    starts = itertools.accumulate((length + 1 for length in lengths), initial=0)
    bounds = [(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    skipped = range(0)
    if kind in _FOLDED and len(bounds) > _LONG and not style.full:
        skipped = range(_HEAD, len(bounds) - _TAIL)
    for i, (start, end) in enumerate(bounds):
        if i not in skipped:
            yield from _rows(text[start:end], bits[start:end], kind, style)
        elif i == skipped[0]:
            hidden = f"{number_of(len(skipped), 'line')}, {number_of(bounds[skipped[-1]][1] - start, 'character')}"
            yield _sgr(f"... {hidden} not shown (--full shows them) ...", "2", style)


def _rows(line: str, bits: npt.NDArray[np.uint8], kind: Kind, style: Style) -> Iterator[str]:
    """One line of text as one row, or several where it is too wide, each with its marks."""
    cells = list(line) if line.isascii() and line.isprintable() else list(map(_sign, line))
    whole = [(0, len(cells))]
    for start, end in whole if style.width is None else _wrapped(cells, max(20, style.width - _GUTTER)):
        if style.colour:
            yield "".join(_painted(cells[start:end], bits[start:end], kind, style))
        else:
            yield "".join(cells[start:end])
            if style.marks and (marks := _marks(cells[start:end], bits[start:end])):
                yield marks


def _wrapped(cells: list[str], room: int) -> Iterator[tuple[int, int]]:
    start = used = 0
    for i, cell in enumerate(cells):
        width = display_width(cell)
        if used + width > room:
            yield start, i
            start, used = i, 0
        used += width
    yield start, len(cells)


def _painted(cells: list[str], bits: npt.NDArray[np.uint8], kind: Kind, style: Style) -> Iterator[str]:
    position = 0
    for hit, run in itertools.groupby(bits.tolist()):
        length = len(list(run))
        text = "".join(cells[position : position + length])
        position += length
        dropped = hit and text.strip()
        yield _sgr(text, _FILTER_SGR[_first(hit) % len(_FILTER_SGR)] if dropped else _KIND_SGR[kind], style)


def _marks(cells: list[str], bits: npt.NDArray[np.uint8]) -> str:
    """A letter under each dropped character that is not white space."""
    marks = (
        (_LETTERS[_first(hit)] if hit and cell.strip() else " ") * display_width(cell)
        for cell, hit in zip(cells, bits.tolist(), strict=True)
    )
    return "".join(marks).rstrip()


def _first(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _bar(kind: Kind, style: Style) -> str:
    return (_ASCII_BARS if style.ascii else _BARS)[kind]


def _sgr(text: str, code: str, style: Style) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if style.colour and text else text


def _sign(char: str) -> str:
    """What stands for one character: itself, or something that can neither move the cursor nor turn text round."""
    if char == "\t":
        return "    "
    if char == "\r":
        return ""  # nearly always part of a line's end
    if char < " ":
        return chr(0x2400 + ord(char))
    if char == "\x7f":
        return "\u2421"
    return "\ufffd" if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs") and char != "\u200d" else char


# --- output: the user's pager when there is a terminal, else standard output ------------------------------------------


def style_of(stream: TextIO, *, full: bool) -> Style:
    """What `stream` can show. NO_COLOR (no-color.org) and TERM=dumb turn colours off."""
    terminal = stream.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else None
    bars = "┊┃"
    no_bars = _encoded(bars, stream.encoding or "ascii") != bars
    return Style(colour, width, full, ascii=no_bars, marks=terminal and not colour)


def _encoded(text: str, encoding: str) -> str:
    return text.encode(encoding, errors="replace").decode(encoding)


def write(lines: Iterable[str]) -> None:
    """Write `lines` as they come, to `$PAGER` (else less) if standard output is a terminal; a pager may quit early."""
    try:
        command = shlex.split(os.environ.get("PAGER") or "less -R")
    except ValueError:
        command = []
    if not (sys.stdout.isatty() and command and shutil.which(command[0])):
        for line in lines:
            sys.stdout.write(_encoded(line, sys.stdout.encoding) + "\n")
        sys.stdout.flush()
        return
    environment = {"LESS": "FRX", **os.environ}  # as git does: no pager for what fits on a screen
    with subprocess.Popen(command, stdin=subprocess.PIPE, encoding="utf-8", errors="replace", env=environment) as pager:
        assert pager.stdin is not None
        try:
            for line in lines:
                pager.stdin.write(_encoded(line, "utf-8") + "\n")
            pager.stdin.close()
        except BrokenPipeError:
            pass


# --- hesnr inspect: trajectories with their labels, in the terminal or as an HTML page --------------------------------

_LIMIT = 20


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr inspect`."""
    parser.set_defaults(execute=run_inspect)
    parser.add_argument("sources", nargs="+", metavar="SRC", help="files, globs, folders or a hub id")
    parser.add_argument("--id", help="only trajectories of this id or instance id")
    parser.add_argument("--limit", type=_positive, default=_LIMIT, help=f"show at most this many (default: {_LIMIT})")
    parser.add_argument("--html", type=Path, metavar="OUT.html", help="write one self-contained page instead")
    parser.add_argument("--tokenizer", metavar="PATH", help="also count tokens, and show their borders in the page")
    parser.add_argument("--scores", metavar="FOLDER", help="colour tokens by a run's score files (with --html)")
    parser.add_argument("--compare", metavar="FOLDER", help="a second run's score files: show the difference")
    add_flags(parser, "config", "split", "on_error", "render", "thoughts", "template_kwargs", "calls")
    parser.add_argument("--full", action="store_true", help="in the terminal, every line of long texts")


def run_inspect(args: argparse.Namespace) -> int:
    """Show the trajectories that `args` name."""
    report = ReadReport()
    notes: list[str] = []
    trajectories = _within_limit(args, report, notes)
    encoder = Encoder(load_pretrained("tokenizer", args.tokenizer)) if args.tokenizer else None
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
    passed: list[Passed] = []

    def viewed(trajectory: Trajectory) -> TrajectoryView:
        view = view_of(trajectory, rendering, native)
        passed.extend([view.rendered.passed] if view.rendered.passed else [])
        return view

    views = map(viewed, trajectories)
    if args.html:
        _write_page(args.html, list(views), None if runs else encoder, runs)
    else:
        write(_text(views, encoder, style_of(sys.stdout, full=args.full)))
    if native is not None:
        notes += [f"native: {json.dumps(native.describe(passed), ensure_ascii=False)}", native.dropped_text(passed)]
    for line in filter(None, [*report.lines(), *notes]):
        print(f"hesnr inspect: {printable(line)}", file=sys.stderr)
    return 0


def _within_limit(args: argparse.Namespace, report: ReadReport, notes: list[str]) -> Iterator[Trajectory]:
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


def _text(views: Iterator[TrajectoryView], encoder: Encoder | None, style: Style) -> Iterator[str]:
    everything: list[Totals] = []
    count = 0
    for view in views:
        if not count:
            yield legend(style)
        turns = tokenize(view, encoder)[1] if encoder else totals(view)
        yield ""
        yield from lines(view, turns, style)
        everything += turns
        count += 1
    if count > 1:
        yield ""
        yield from total_lines(f"all {count} trajectories", everything, style)


def _write_page(path: Path, views: list[TrajectoryView], encoder: Encoder | None, runs: list[ScoredRun]) -> None:
    if encoder:
        tokens = [[tokenize(view, encoder)[0] for view in views]]
    else:
        tokens = [[run.tokens(view) for view in views] for run in runs]
    first, second = [*tokens, None, None][:2]
    names = run_names([run.folder for run in runs]) + ["A", "B"][len(runs) :]
    text = render_page(views, first, second, names, [[run.summary(view) for view in views] for run in runs])
    write_output(path, text)
    shown = "1 trajectory" if len(views) == 1 else f"{len(views)} trajectories"
    print(f"{path}: {shown}, {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    if (kept := candidates_kept(first, second)) < CANDIDATES:
        print(
            f"Outside actions, tokens show their {kept} most likely candidates instead of {CANDIDATES}, to keep the "
            "page small. All are shown for fewer trajectories (--limit, --id)."
        )


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text!r}")
    return value
