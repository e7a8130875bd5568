"""Trajectories of any agent: files, globs, folders, compressed files, hub ids; formats are recognised by content.

A format is a `base.Format`: two functions of decoded JSON, `detect` and `read`. `FORMATS` lists them in the order in
which they are tried: the first that is sure wins; a new format is one line there. `sources` finds and decodes records.
A reading of many files either stops with every bad record named, or goes on without them.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hesnr_tasks.errors import DataError, SettingsError, listed
from hesnr_tasks.formats.agents import MINI_SWE_AGENT, NEBIUS, OPENHANDS, OPENHANDS_SDK, R2E_GYM, SWE_AGENT
from hesnr_tasks.formats.base import (
    READING,
    Format,
    Problem,
    TrajectoryBuilder,
    Where,
    as_list,
    decoded,
    deep,
    string,
)
from hesnr_tasks.formats.base import ReadReport as ReadReport
from hesnr_tasks.formats.chat import CHAT_TEXT, CHAT_TOOLS, CHAT_XML, COMPLETIONS, PLAIN
from hesnr_tasks.formats.logs import ATIF, CLAUDE_CODE, CODEX, INSPECT_AI
from hesnr_tasks.formats.sources import Record, hub_rows, is_hub_id, records, source_paths
from hesnr_tasks.trajectory import FORMAT, Trajectory, clean
from hesnr_tasks.trajectory.chat_messages import stored_schemas

# --- the formats ------------------------------------------------------------------------------------------------------

_PACKED = ("messages", "trajectory", "conversations", "messages_json", "history", "trajectory_steps", "replay_config")


def _read_normalised(record: Any, builder: TrajectoryBuilder) -> Trajectory:
    """The project's own file: one trajectory a line, every segment labelled."""
    if record.get("format") != FORMAT:
        raise DataError(
            f"'format' is {record.get('format')!r}, which this version cannot read (it reads {FORMAT!r}); "
            f"update hesnr-tasks or convert the file again"
        )
    return Trajectory.from_json(record)


FORMATS: tuple[Format, ...] = (
    Format(
        "hesnr",
        "'format' starts with hesnr-trajectory-",
        lambda record: string(record, "format").startswith("hesnr-trajectory-"),
        _read_normalised,
    ),
    ATIF,
    MINI_SWE_AGENT,
    SWE_AGENT,
    R2E_GYM,
    OPENHANDS_SDK,
    OPENHANDS,
    INSPECT_AI,
    CODEX,
    CLAUDE_CODE,
    NEBIUS,
    COMPLETIONS,
    CHAT_TOOLS,
    CHAT_XML,
    CHAT_TEXT,
    PLAIN,
)


def choose(record: Any) -> Format | None:
    """The first format that is sure of the record; None for a record of no known format."""
    return next((format for format in FORMATS if format.detect(record)), None)


def unpacked(record: Any) -> Any:
    """A row whose list of messages is JSON text, with the list instead: decoded once, not by every format."""
    if not isinstance(record, Mapping):
        return record
    changed = {key: decoded(record[key]) for key in _PACKED if isinstance(record.get(key), str)}
    return {**record, **changed} if changed else record


def read_record(format: Format, record: Any, where: Where) -> Trajectory:
    """`format.read`, whatever the record.

    Text in fields of a wrong type, which the reader could not use, is named in the trajectory's warnings and counted
    under `left_out_characters`.

    Args:
        format: of the record.
        record: decoded JSON.
        where: for messages, and for an id where the record has none.

    Raises:
        DataError: the record has another shape.
    """
    builder = TrajectoryBuilder(format.name, where)
    token = READING.set(builder)
    try:
        trajectory = format.read(record, builder)
        stated, tools = _origin(record), _tools(record)
    except DataError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"this is {_shape(record)}, not a record of {format.name} ({format.rule})") from error
    finally:
        READING.reset(token)
    return replace(trajectory, meta={**stated, **trajectory.meta, **({"tools": tools} if tools else {})})


_ORIGIN_AT = {  # where formats keep which model wrote a run and how the run ended, in a record or in its first events
    "model": (
        ("model",), ("model_name",), ("agent", "model_name"), ("info", "config", "model", "model_name"),
        ("replay_config", "agent", "model", "name"), ("metadata", "llm_config", "model"), ("inspect_eval", "model"),
        ("metadata", "llm", "model"), ("agent", "llm", "model"), ("message", "model"), ("payload", "model"),
    ),
    "exit_status": (("exit_status",), ("info", "exit_status"), ("exit_reason",)),
}  # fmt: skip


def _origin(record: Any) -> dict[str, Any]:
    """What a record says of its `model` and its `exit_status`, for people: nothing here reads it."""
    stated = {}
    for name, paths in _ORIGIN_AT.items():
        values = (deep(place, *path) for place in _places(record) for path in paths)
        if text := next((clean(value) for value in values if isinstance(value, str) and 0 < len(value) <= 200), None):
            stated[name] = text
    return stated


_TOOLS_AT = (  # where formats keep the schemas of the agent's tools, in a record or in one of its first events
    ("tools",), ("metadata", "tools"), ("kwargs", "tools"), ("request", "tools"), ("raw_completions", "tools"),
    ("agent", "tool_definitions"), ("args", "tools"), ("payload", "dynamic_tools"),
)  # fmt: skip


def _tools(record: Any) -> list[dict[str, Any]]:
    """The schemas of tools that a record carries, in OpenAI's form; those of a normalised record are in its meta."""
    for place in _places(record):
        for path in _TOOLS_AT:
            stored = as_list(decoded(deep(place, *path)))
            if schemas := stored_schemas([decoded(tool) for tool in stored or []]):
                return [{"type": "function", "function": function} for function in schemas.values()]
    return []


def _places(record: Any) -> list[Mapping[str, Any]]:
    """The objects that say something of a whole run: a record, and its first events."""
    events = as_list(record) or as_list(deep(record, "history")) or as_list(deep(record, "events")) or []
    return [place for place in [record, *events[:5]] if isinstance(place, Mapping)]


def warnings_of(trajectory: Trajectory) -> list[str]:
    """The warnings of reading a trajectory; files of others may hold anything there."""
    warnings = trajectory.meta.get("warnings")
    return [text for text in as_list(warnings) or [warnings] if isinstance(text, str)]


def _shape(record: Any) -> str:
    listed = as_list(record)
    if isinstance(record, Mapping):
        return f"an object with the keys {', '.join(map(repr, list(record)[:12]))}" if record else "an empty object"
    return f"a list of {len(listed)} items" if listed is not None else f"a {type(record).__name__}"


# --- a reading of many records ----------------------------------------------------------------------------------------

_MAX_PROBLEMS = 20
_TIMES = re.compile(r"(.*) \((\d{1,9}) times\)", re.DOTALL)
_SNIFFED = 16  # lines looked at to see whether a file is one session

Items = Iterable["Record | Problem"]


class _RecordReader:
    """The state of one reading: its report, its problems so far, and the ids in use."""

    def __init__(self, report: ReadReport, on_error: str) -> None:
        self.report = report
        self._skip = on_error == "skip"
        self._problems: list[Problem] = []
        self._ids: set[str] = set()
        self._copies: Counter[str] = Counter()
        self._contents: set[bytes] = set()

    def trajectories(self, path: str, source: Callable[[], Items], was_named: bool) -> Iterator[Trajectory]:
        """The trajectories among the decoded records of a file, which `source` gives anew at each call.

        A record of no known format is only counted where the user did not name the file.
        """
        for record in self._units(path, source):
            trajectory = self._read(record, was_named)
            if trajectory is not None and not self._problems:
                yield trajectory

    def problem(self, problem: Problem) -> None:
        """Count a record, or a place that may not be read, that is bad; raise all of them once there are too many."""
        if self._skip:
            self.report.skip(problem)
            return
        self.report.read += 1
        self._problems.append(problem)
        if len(self._problems) >= _MAX_PROBLEMS:
            self.close()

    def close(self) -> None:
        """Raise the problems of this reading as one `DataError`."""
        if not self._problems:
            return
        full = len(self._problems) >= _MAX_PROBLEMS
        listed = "\n".join(f"  {problem}" for problem in self._problems)
        raise DataError(
            f"{len(self._problems)} record{'s' if len(self._problems) > 1 else ''} cannot be read"
            f"{' (reading stopped there)' if full else ''}:\n{listed}\n"
            'Mend or remove them, or leave them out, counted: "on_error": "skip" in --metadata of lm_eval, '
            "--on-error skip of hesnr."
        )

    # --- units: what one trajectory is read from ---

    def _units(self, path: str, source: Callable[[], Items]) -> Iterator[Record | Problem]:
        items = self._with_remarks(source())
        first = list(itertools.islice(items, _SNIFFED))
        lines = [r.value for r in first if isinstance(r, Record) and r.is_line]
        rest = itertools.chain(first, items)
        session = choose(lines) if lines and not choose(lines[0]) else None
        if session and session.is_session:
            yield from self._session(path, rest)
            return
        ranks = (format.prefix_rank for format in FORMATS if format.prefix_rank and lines)
        if prefix_rank := next((rank for rank in ranks if rank(lines[0])), None):
            yield from self._without_prefixes(rest, source(), prefix_rank)
            return
        for record in rest:
            yield from _expanded(record)

    def _with_remarks(self, items: Items) -> Iterator[Record | Problem]:
        for record in items:
            if isinstance(record, Record):
                for key, size in record.duplicates.items():
                    self.report.warn(f"the key {key!r} is in one object more than once; only the last value is read")
                    self.report.left_out += size
            yield record

    def _session(self, path: str, items: Items) -> Iterator[Record | Problem]:
        """All lines of a file as one record; a half-written last line is only warned about."""
        listed = list(items)
        if isinstance(listed[-1], Problem):
            self.report.warn(f"a session's last line is cut off and is left out ({listed.pop().where})")
        yield from (record for record in listed if isinstance(record, Problem))
        yield Record([record.value for record in listed if isinstance(record, Record)], Where(path), False)

    def _without_prefixes(
        self, items: Items, again: Items, prefix_rank: Callable[[Any], tuple[str, tuple[int, str]] | None]
    ) -> Iterator[Record | Problem]:
        """The rows without those that a later row of the same run repeats; `again` are all of them."""
        last: dict[str, tuple[int, str]] = {}
        for record in again:
            if isinstance(record, Record) and (ranked := prefix_rank(record.value)):
                last[ranked[0]] = max(last.get(ranked[0], (-1, "")), ranked[1])
        for record in items:
            ranked = prefix_rank(record.value) if isinstance(record, Record) else None
            if ranked and ranked[1] < last[ranked[0]]:
                self.report.skip(
                    Problem(record.where, "earlier episode", "a later episode of the trial repeats this row")
                )
            else:
                yield record

    # --- one record ---

    def _read(self, record: Record | Problem, was_named: bool) -> Trajectory | None:
        if isinstance(record, Problem):
            self.problem(record)
            return None
        value = unpacked(record.value)
        format = choose(value)
        if format is None:
            supported = ", ".join(format.name for format in FORMATS)
            text = f"no known format: {_shape(record.value)}. Supported: {supported}"
            problem = Problem(record.where, "unknown format", text)
            (self.problem if was_named or record.is_line else self.report.skip)(problem)
            return None
        try:
            trajectory = read_record(format, value, record.where)
        except DataError as error:
            self.problem(Problem(record.where, "malformed record", str(error)))
            return None
        if format.attach:
            trajectory = format.attach(trajectory, record.where.path, self.report)
        return self._counted(trajectory, record.where)

    def _counted(self, trajectory: Trajectory, where: Where) -> Trajectory | None:
        if not any(message.generated for message in trajectory.messages):
            text = f"trajectory {trajectory.id!r} has no assistant turn: there is nothing to score"
            self.report.skip(Problem(where, "no assistant turn", text))
            return None
        self.report.read += 1
        self.report.kept += 1
        for warning in warnings_of(trajectory):  # it may say itself how often it occurred
            times = _TIMES.fullmatch(warning)
            self.report.warn(*((times[1], int(times[2])) if times else (warning, 1)))
        lost = trajectory.meta.get("left_out_characters")
        self.report.left_out += lost if type(lost) is int and lost > 0 else 0
        content, name = content_hash(trajectory), trajectory.id
        self.report.duplicates += content in self._contents
        self._contents.add(content)
        if name in self._ids:  # ids are made unique
            self._copies[name] += 1
            self.report.repeated_ids[name] = 1 + self._copies[name]
            while (renamed := f"{name}#{self._copies[name] + 1}") in self._ids:
                self._copies[name] += 1
            trajectory = replace(trajectory, id=renamed)
        self._ids.add(trajectory.id)
        return trajectory


def content_hash(trajectory: Trajectory) -> bytes:
    """Of what the agent and its environment wrote: kinds and texts, whatever the id and the outcome."""
    digest = hashlib.blake2b(digest_size=16)
    for message in trajectory.messages:
        digest.update(f"{message.role}\0{len(message.segments)}\0".encode(errors="surrogatepass"))
        for segment in message.segments:
            text = segment.text.encode(errors="surrogatepass")
            digest.update(f"{segment.kind.value}\0{len(text)}\0".encode() + text)
    return digest.digest()


def _expanded(record: Record | Problem) -> Iterator[Record | Problem]:
    """The records inside one that holds several, such as a whole log, or a JSON list that is no trajectory itself."""
    if isinstance(record, Problem):
        yield record
        return
    expansions = (format.expand(record.value) for format in FORMATS if format.expand)
    values = next((inside for inside in expansions if inside is not None), None)
    if values is None and not record.is_line and not choose(record.value):
        values = iter(as_list(record.value) or [])
    empty = True
    for i, value in enumerate(values or [], 1):
        empty = False
        yield record._replace(value=value, where=replace(record.where, line=i))
    if empty:
        yield record


# --- what users call --------------------------------------------------------------------------------------------------

T = TypeVar("T")
_LOG = logging.getLogger("hesnr_tasks")


def read_trajectories(source: str | Sequence[str], **options: Any) -> Iterator[Trajectory]:
    """`read_by_source`, with its `options`, without the path or hub id that each is from."""
    return (trajectory for _, trajectory in read_by_source(source, **options))


def read_by_source(
    source: str | Sequence[str],
    *,
    config: str | None = None,
    split: str | None = None,
    on_error: str = "fail",
    report: ReadReport | None = None,
) -> Iterator[tuple[str, Trajectory]]:
    """Every trajectory of `source`, in a fixed order (named order; sorted paths inside globs and folders), streaming.

    Each comes with the path or hub id that it is from.

    Args:
        source: a file, glob, folder or hub id (`owner/name`), or a list of those.
        config: the configuration of a hub data set.
        split: the split of a hub data set (default: all, by name).
        on_error: `fail` or `skip` bad records, counted in `report`.
        report: takes in counts and warnings.

    Raises:
        DataError: with `on_error="fail"`, once everything is read, listing the bad records (20 at most).
        SettingsError: for an unknown `on_error`.
    """
    if on_error not in ("fail", "skip"):
        raise SettingsError(f"on_error is {on_error!r}; it must be fail or skip")
    reading = _RecordReader(report if report is not None else ReadReport(), on_error)
    for item in source_paths(source, reading.report):
        if isinstance(item, Problem):
            reading.problem(item)
            continue
        path, was_named = item
        rows = functools.partial(hub_rows, path, config, split) if is_hub_id(path) else functools.partial(records, path)
        yield from ((path, trajectory) for trajectory in reading.trajectories(path, rows, was_named))
    reading.close()


def load(
    source: str | Sequence[str],
    *,
    config: str | None = None,
    split: str | None = None,
    only_resolved: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    sample_seed: int = 0,
    shard: str | None = None,
    on_error: str = "fail",
    report: ReadReport | None = None,
    keep: Callable[[Trajectory], Any] = lambda trajectory: trajectory,
) -> list[Any]:
    """The trajectories of `source` for a task; what was skipped or odd is logged as warnings.

    Args:
        source: as in `read_by_source`; so are `config`, `split` and `on_error`.
        only_resolved: keep the runs that solved their task.
        limit: at most so many, the first.
        sample: of these, a `seeded_subset` of so many, without holding more than that in memory.
        shard: of these, only each n-th: "2/4" takes the second of every four.
        report: filled with what was read; then nothing is logged.
        keep: what is held and returned of each trajectory (default: all of it).

    Raises:
        DataError: nothing is left, or as in `read_by_source`.
    """
    quiet, report = report is not None, report or ReadReport()
    outcomes: Counter[bool | None] = Counter()
    trajectories = read_trajectories(source, config=config, split=split, on_error=on_error, report=report)

    def counted() -> Iterator[Trajectory]:
        for trajectory in trajectories:
            outcomes[trajectory.resolved] += 1
            if trajectory.resolved or not only_resolved:
                yield trajectory

    first = itertools.islice(counted(), limit)
    number, count = map(int, (shard or "1/1").split("/"))
    if sample is None:
        loaded = [keep(trajectory) for trajectory in itertools.islice(first, number - 1, None, count)]
    else:
        chosen = seeded_subset(first, sample, sample_seed, key=trajectory_identity, keep=keep)
        loaded = chosen[number - 1 :: count]
    for line in [] if quiet else report.lines():
        _LOG.warning("%s: %s", source_label(source), line)
    if not loaded:
        raise DataError(no_trajectory_message(source, only_resolved, outcomes, report))
    return loaded


def seeded_subset(
    items: Iterable[T], n: int, seed: int, *, key: Callable[[T], str], keep: Callable[[T], Any] = lambda item: item
) -> list[Any]:
    """The `n` items of the lowest ranks, in the order of ranks; holds `n` of them, or of what `keep` makes of them.

    A rank is a hash of the seed and the identity `key` gives, so neither the order of files nor new rows reshuffle the
    subset: a new item joins only if its rank is among the lowest, and a smaller subset is the beginning of a larger.

    Raises:
        SettingsError: `n` < 1.
    """
    if n < 1:
        raise SettingsError(f"a sample must have at least 1 item, not {n}")

    lowest: list[tuple[int, int, Any]] = []  # a heap, the highest rank first; of equal ranks the earlier item stays
    for number, item in enumerate(items):
        digest = hashlib.sha256(f"{seed}\n{key(item)}".encode(errors="surrogatepass")).digest()
        place = -int.from_bytes(digest, "big"), -number
        if len(lowest) < n:
            heapq.heappush(lowest, (*place, keep(item)))
        elif place > lowest[0][:2]:
            heapq.heapreplace(lowest, (*place, keep(item)))
    return [kept for *_, kept in sorted(lowest, key=lambda entry: entry[:2], reverse=True)]


def trajectory_identity(trajectory: Trajectory) -> str:
    """The instance and a hash of the messages' text: ids may be given out in the order of rows."""
    digest = hashlib.sha256()
    for message in trajectory.messages:
        text = message.text.encode(errors="surrogatepass")
        digest.update(f"{message.role} {len(text)}\n".encode())
        digest.update(text)
    return f"{trajectory.instance_id or ''}\n{digest.hexdigest()}"


def source_label(source: str | Sequence[str]) -> str:
    """The name or names the user gave, for a message."""
    names = [source] if isinstance(source, str) else list(source)
    return listed(list(map(repr, names)))


def no_trajectory_message(
    source: str | Sequence[str], only_resolved: bool, outcomes: Counter[bool | None], report: ReadReport
) -> str:
    """The message for users when no trajectory is left.

    Args:
        source: what was read.
        only_resolved: whether runs had to have solved their task.
        outcomes: how many that were read well did, did not, or are unknown.
        report: what was skipped or odd.
    """
    if only_resolved and outcomes:
        return (
            f"no resolved trajectory is left in {source_label(source)}: {outcomes[True]} are resolved, "
            f"{outcomes[False]} are not, {outcomes[None]} have no known outcome. Join the evaluation reports with "
            f"`hesnr convert --outcomes report.json`, or set only_resolved=false."
        )
    why = " ".join(line.rstrip(".") + "." for line in report.lines())
    return f"no trajectory was found in {source_label(source)}. {why}".rstrip()
