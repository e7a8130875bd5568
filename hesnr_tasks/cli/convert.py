"""`hesnr convert`: trajectories of any supported format to one file of normalised records, and a table of counts."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import IO

from tqdm import tqdm

from hesnr_tasks.errors import DataError, SettingsError, printable
from hesnr_tasks.files.atomic import open_output
from hesnr_tasks.formats import ReadReport, content_hash, no_trajectory_message, read_trajectories, source_label
from hesnr_tasks.formats.outcomes import read_outcomes
from hesnr_tasks.tasks.settings import add_flags
from hesnr_tasks.trajectory import Trajectory

__all__ = ["ConversionTotals", "add_arguments", "convert", "run"]

_SAME = "with the content of an earlier one"
_OUTCOMES = {True: "resolved", False: "not resolved", None: "outcome unknown"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr convert`."""
    parser.set_defaults(execute=run)
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


def run(args: argparse.Namespace) -> int:
    """Convert and print the closing table; 0 when the file was written."""
    report = ReadReport()
    totals = convert(
        args.source,
        args.output,
        config=args.config,
        split=args.split,
        only_resolved=args.only_resolved,
        outcomes=read_outcomes(args.outcomes) if args.outcomes else None,
        limit=args.limit,
        on_error=args.on_error,
        force=args.force,
        deduplicate=args.deduplicate,
        report=report,
    )
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
    chosen = _selected(read, outcomes, only_resolved, deduplicate, totals)
    selected = itertools.islice(chosen, limit and min(limit, sys.maxsize))
    with open_output(output) as raw, _compressed(raw, output) as file:
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


def _selected(
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


def _compressed(raw: IO[bytes], output: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if not output.endswith(".gz"):
        return contextlib.nullcontext(raw)
    packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # neither time nor place: deterministic
    return contextlib.closing(io.BufferedWriter(packed, 1 << 20))
