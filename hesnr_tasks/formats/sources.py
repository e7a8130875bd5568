"""From what the user named to decoded records: paths and hub ids, then JSON Lines, JSON, Parquet and `.eval` archives.

Files are read in a fixed order, also compressed, streaming where they hold rows. Lines end at `\\n` and nowhere else,
so U+2028 and similar characters inside strings survive. In a folder, some files are not a run each: one file per event,
one log per model call, and files beside the runs.
"""

from __future__ import annotations

import contextlib
import glob  # not Path.glob: patterns may be absolute
import io
import itertools
import json
import os
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.errors import DataError, nearest
from hesnr_tasks.files import cache_if_unreachable
from hesnr_tasks.files.bounded import (
    COMPRESSED,
    READ_ERRORS,
    DuplicateKeys,
    Growth,
    TooLongError,
    check_parquet,
    lines,
    open_bounded,
    open_regular,
    parse_json,
    read_bytes,
    read_rest,
    record_limit,
    zstandard_reader,
)
from hesnr_tasks.formats.base import Problem, ReadReport, Where, uncompressed

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".traj", ".parquet", ".eval")
_SUFFIXES_NAMED = 5
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EVENT_FILE = re.compile(r"event-\d+-.*\.json")
_BESIDE = re.compile(
    r"preds\.json|all_preds\.jsonl|results?\.json|report\.json|config\.json|metadata\.json|base_state\.json|lock\.json|"
    r"reward\.json|output_errors\.jsonl|.*\.swebench_eval\.jsonl|output\.critic_attempt_\d+\.jsonl|"
    r"trajectory\.summarization-.*\.json"
)
_BOM = b"\xef\xbb\xbf"
_SNIFFED_LINES = 50
_ZSTD = 93  # method of zip members that the standard library reads from Python 3.14 on
_ARCHIVE_ERRORS = (*READ_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error)


class Record(NamedTuple):
    """A decoded value, where it was, whether it is a line of a file of many, and keys its objects held twice."""

    value: Any
    where: Where
    is_line: bool
    duplicates: DuplicateKeys = DuplicateKeys()


# --- paths ------------------------------------------------------------------------------------------------------------


def source_paths(source: str | Sequence[str], report: ReadReport) -> Iterator[tuple[str, bool] | Problem]:
    """The paths to read, in order; hub ids come as they are.

    Args:
        source: files, globs, folders, hub ids.
        report: takes in what is passed over in folders.

    Yields:
        A path and whether the user named it (false: it lies in a folder); or why one cannot be read.

    Raises:
        DataError: for what is not there.
    """
    names = [source] if isinstance(source, str) else list(source)
    if not names:
        raise DataError("no trajectories were named; give a file, a glob, a folder or a hub id")
    for name in names:
        if is_hub_id(name):
            yield name, True
        else:
            try:
                yield from _local(name, report)
            except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL, an unknown ~user, no right
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"{name[:100]!r} cannot be looked at ({reason})") from error


def is_hub_id(name: str) -> bool:
    """Whether `name` is `owner/name` and nothing of that name lies here."""
    path = Path(name)
    if not _HUB_ID.fullmatch(name) or path.exists() or path.parent.is_dir():
        return False
    return not _has_suffix(path)


def _has_suffix(path: Path) -> bool:
    return uncompressed(path.name).lower().endswith(_SUFFIXES)


def _local(name: str, report: ReadReport) -> Iterator[tuple[str, bool] | Problem]:
    path = Path(name).expanduser()
    if path.is_dir():
        yield from (item if isinstance(item, Problem) else (item, False) for item in _inside(path, report))
    elif path.exists() or path.is_symlink():
        yield str(path), True
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            raise DataError(f"no file matches {name!r} (looked from {Path.cwd()})")
        for match in matches:
            yield from _local(match, report) if Path(match).is_dir() else [(match, True)]
    elif not path.parent.is_dir():
        raise DataError(f"there is no file or folder {name!r}: the folder {str(path.parent)!r} does not exist")
    else:
        near = nearest(path.name, [p.name for p in path.parent.iterdir()])
        advice = near or " Check the path, or give a glob in quotes."
        raise DataError(f"there is no file or folder {name!r}.{advice}")


def _inside(folder: Path, report: ReadReport) -> list[str | Problem]:
    """The units of a folder, sorted, after the problems of those that cannot be read."""
    units: set[Path] = set()
    problems, others, beside = [], Counter[str](), 0
    for path in walk(folder):
        if isinstance(path, Problem):
            problems.append(path)
        elif not _has_suffix(path):
            others[path.suffix or path.name] += 1
        elif path.is_symlink() and not path.exists():
            problems.append(Problem(Where(str(path)), "dangling link", "a link to what is not there"))
        elif not path.is_file():
            problems.append(Problem(Where(str(path)), "special file", "a pipe, socket or device, not a plain file"))
        elif _BESIDE.fullmatch(uncompressed(path.name)):
            report.warn(f"a file beside the runs is not read: {path.name}")
            beside += 1
        else:
            in_events = path.parent.name == "events" and _EVENT_FILE.fullmatch(path.name)
            units.add(path.parent if in_events else path)
    if others:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(_SUFFIXES_NAMED))
        more = ", …" if len(others) > _SUFFIXES_NAMED else ""
        report.warn(f"files of other kinds are not read: {listed}{more}")
    if not (units or beside or problems):
        suffixes = f"{', '.join(_SUFFIXES)} (also with {', '.join(COMPRESSED)})"
        raise DataError(f"the folder {str(folder)!r} holds no file that ends in {suffixes}")
    logs = [path for path in units if path.parent.parent.name == "llm_completions"]
    last = {path.parent: path for path in sorted(logs)}  # a log of a run's model calls repeats all logs before it
    kept: dict[Path, str] = {}  # by what they lead to
    for path in sorted(units.difference(logs).union(last.values()), key=lambda path: (path.is_symlink(), path)):
        if (target := path.resolve()) in kept:
            report.warn(f"a link to a file that is read anyway is passed over: {path.name}")
        else:
            kept[target] = str(path)
    return [*problems, *sorted(kept.values())]


def walk(folder: Path) -> Iterator[Path | Problem]:
    """Every file below `folder`, through links to folders too, each folder once; and folders that cannot be read."""
    seen: set[tuple[int, int]] = set()
    todo = [folder]
    linked: list[Path] = []  # after all that are really there, so that these keep their own names
    while todo or linked:
        place = todo.pop() if todo else linked.pop(0)
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen and os.name != "nt":
                continue
            seen.add((status.st_dev, status.st_ino))
            inside = [(path, path.is_dir()) for path in sorted(place.iterdir())]
        except OSError as error:
            reason = f"the folder cannot be read ({error.strerror})"
            yield Problem(Where(str(place)), "unreadable folder", reason)
            continue
        for path, is_folder in inside:
            if not is_folder:
                yield path
            else:
                (linked if path.is_symlink() else todo).append(path)


# --- records ----------------------------------------------------------------------------------------------------------


def records(path: str) -> Iterator[Record | Problem]:
    """The records of a file, whatever its kind; one at a time where the kind allows it.

    Yields:
        A record, or what is wrong with it; for a file that cannot be read at all, one problem.
    """
    where = Where(path)
    try:
        if Path(path).is_dir():
            yield _event_folder(Path(path))
            return
        with open_bounded(path) as file:
            start = file.read(4096)
        if not start.strip():
            yield Problem(where, "empty file", "the file is empty; convert or download it again")
        elif start.startswith(b"version https://git-lfs"):
            reason = "a Git LFS pointer lies here instead of the data; run `git lfs pull`"
            yield Problem(where, "Git LFS pointer", reason)
        elif start.startswith(b"PK"):
            yield from _eval_samples(path)
        elif start.startswith(b"PAR1"):
            yield from _parquet(where)
        elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
            yield Problem(where, "not UTF-8", "the file is UTF-16; save it as UTF-8")
        else:
            yield from _json_or_lines(where)
    except TooLongError as error:
        yield Problem(where, "too large", str(error))
    except DataError as error:
        yield Problem(where, "unreadable file", str(error))
    except READ_ERRORS as error:
        yield Problem(where, "unreadable file", f"the file cannot be read ({error}); copy or download it again")


def _event_folder(folder: Path) -> Record | Problem:
    """The events of a run, one file each, in the order of their names."""
    if folder.name != "events":
        return Problem(Where(str(folder)), "a folder", "a folder lies where a file is expected; name its files")
    events, duplicates, size = [], DuplicateKeys(), 0
    for path in sorted(folder.glob("event-*.json")):
        data = read_bytes(path)
        size += len(data)
        if size > record_limit():
            raise TooLongError(f"the events are larger than {record_limit() >> 20:,} MiB together")
        record = _decoded(data, Where(str(path)), is_line=False)
        if isinstance(record, Problem):
            return record
        events.append(record.value)
        duplicates.update(record.duplicates)
    return Record(events, Where(str(folder.parent)), False, duplicates)


def _json_or_lines(where: Where) -> Iterator[Record | Problem]:
    """JSON Lines when the first line is a whole value and others follow (or the name says so), or when some line is."""
    filled = (line for line in _lines_of(where.path) if isinstance(line, TooLongError) or line.strip())
    first = next(filled, b"")
    if isinstance(first, TooLongError):
        several = where.is_lines
    else:
        several = _decodes(first) and (where.is_lines or isinstance(next(filled, None), bytes))
    if not several:
        with open_bounded(where.path) as file:
            whole = _decoded(read_rest(file), where, is_line=False)
        sniffed = itertools.islice(_lines_of(where.path), _SNIFFED_LINES)
        if isinstance(whole, Record) or not any(isinstance(x, bytes) and _decodes(x) for x in sniffed):
            yield whole
            return
    for number, line in enumerate(_lines_of(where.path), 1):
        here = Where(where.path, number)
        if isinstance(line, TooLongError):
            yield Problem(here, "too large", str(line))
        elif line.strip():
            record = _decoded(line, here, is_line=True)
            is_null = isinstance(record, Record) and record.value is None
            yield Problem(here, "invalid JSON", "not a JSON object (null)") if is_null else record


def _lines_of(path: str) -> Iterator[bytes | TooLongError]:
    with open_bounded(path) as file:
        yield from lines(file)


def _decodes(line: bytes) -> bool:
    """Whether a line alone is an object or list with something in it."""
    if not line.removeprefix(_BOM).startswith((b"{", b"[")):
        return False
    try:
        value = parse_json(line, DuplicateKeys())
    except ValueError:
        return False
    return isinstance(value, (dict, list)) and bool(value)


def _decoded(data: bytes, where: Where, *, is_line: bool) -> Record | Problem:
    duplicates = DuplicateKeys()
    try:
        return Record(parse_json(data, duplicates), where, is_line, duplicates)
    except UnicodeDecodeError as error:
        what, advice = ("line", "") if is_line else ("text", "; save it as UTF-8")
        return Problem(where, "not UTF-8", f"the {what} is not UTF-8 (byte {error.start}){advice}")
    except ValueError as error:
        if is_line and isinstance(error, json.JSONDecodeError):
            return Problem(where, "invalid JSON", f"not valid JSON: {error.msg} at column {error.colno}")
        if is_line:
            return Problem(where, "invalid JSON", f"not valid JSON ({error})")
        if _has_suffix(Path(where.path)) and data.removeprefix(_BOM).lstrip().startswith((b"{", b"[")):
            return Problem(where, "invalid JSON", f"not valid JSON ({error}); the file may be cut off: copy it again")
        read = "JSON, JSON Lines, .traj, Parquet and .eval (also compressed)"
        return Problem(where, "not a trajectory file", f"not a format that is read: it holds no JSON. Read are {read}")


def _parquet(where: Where) -> Iterator[Record | Problem]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        yield Problem(where, "no parquet reader", "reading parquet needs pyarrow: pip install 'hesnr-tasks[report]'")
        return
    number = 0
    try:
        with open_regular(where.path) as file:
            source = parquet.ParquetFile(file)
            check_parquet(source.metadata, os.fstat(file.fileno()).st_size)
            for batch in source.iter_batches(batch_size=16):
                for i in range(batch.num_rows):
                    number += 1
                    here = Where(where.path, number)
                    row = batch.slice(i, 1)
                    if row.get_total_buffer_size() > 16 * record_limit() or row.nbytes > record_limit():
                        yield Problem(here, "too large", f"the row is larger than {record_limit() >> 20:,} MiB")
                    else:
                        yield Record(row.to_pylist()[0], here, True)
    except DataError:
        raise
    except READ_ERRORS as error:
        yield Problem(where, "unreadable file", f"not a readable parquet file ({error})")


# --- inspect_ai's archives --------------------------------------------------------------------------------------------


def _eval_samples(path: str) -> Iterator[Record | Problem]:
    """One record per sample, in the order of their names; of members of one name the last counts."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            if not any(name == "header.json" or name.startswith("_journal/") for name in archive.namelist()):
                yield Problem(Where(path), "unknown format", "a zip archive that is no inspect_ai log; unpack it first")
                return
            growth = Growth(file.seek(0, io.SEEK_END))
            header: Any = None
            for name in ("header.json", "_journal/start.json"):
                with contextlib.suppress(*_ARCHIVE_ERRORS, KeyError, AttributeError, DataError):
                    header = parse_json(_member(archive, archive.getinfo(name), growth), DuplicateKeys()).get("eval")
                    break
            last = {
                info.filename: info
                for info in archive.infolist()
                if info.filename.startswith("samples/") and info.filename.endswith(".json")
            }
            if not last:
                yield Problem(Where(path), "no samples", "the inspect_ai log holds no samples")
            for number, name in enumerate(sorted(last), 1):
                where, duplicates = Where(path, number), DuplicateKeys()
                try:
                    sample = parse_json(_member(archive, last[name], growth), duplicates)
                except TooLongError as error:
                    yield Problem(where, "too large", f"the member {name!r}: {error}")
                except (*_ARCHIVE_ERRORS, DataError) as error:
                    yield Problem(where, "unreadable sample", f"the member {name!r} cannot be read ({error})")
                else:
                    value = {"inspect_sample": sample, "inspect_eval": header}
                    yield Record(value, where, False, duplicates)
    except _ARCHIVE_ERRORS as error:
        yield Problem(Where(path), "unreadable file", f"not a readable zip archive ({error}); copy it again")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, growth: Growth) -> bytes:
    """The decompressed member; one of method 93 is cut out by hand for whichever decoder is installed."""
    if info.compress_type != _ZSTD:
        with archive.open(info) as member:
            data = read_rest(member)
    else:
        file = archive.fp
        if file is None:
            raise ValueError("the archive is closed")
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
        file.seek(name_length + extra_length, 1)
        data = read_rest(zstandard_reader(io.BytesIO(file.read(info.compress_size))))
    growth.add(len(data))
    return data


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def hub_rows(name: str, config: str | None, split: str | None) -> Iterator[Record]:
    """The rows of a hub data set, streaming.

    Args:
        name: `owner/name`.
        config: its configuration, where it has several.
        split: default: all, by name.

    Raises:
        DataError: it cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name!r} is no file here, and reading it from the hub needs `datasets`: pip install 'hesnr-tasks[hf]'"
        ) from None
    try:
        with cache_if_unreachable(name):
            loaded = datasets.load_dataset(name, config, split=split, streaming=True)
            splits = {split: loaded} if split else dict(sorted(loaded.items()))
            for part, data in splits.items():
                for i, value in enumerate(data, 1):
                    yield Record(value, Where(f"{name}[{part}]", i), True)
    except Exception as error:  # the hub, the network and arrow raise what they like
        reason = str(error).strip().split("\n")[0][:300]
        raise DataError(
            f"the data set {name!r} cannot be read from the hub ({type(error).__name__}: {reason}).\n"
            "It is no file or folder here either; check the name, the config, the split and the network, or download "
            "it and give the path."
        ) from error
