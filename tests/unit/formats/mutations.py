"""Broken copies of files, the same for the same seed: bytes changed, and JSON values replaced by others."""

import copy
import json
import random
import time
from pathlib import Path
from typing import NamedTuple

from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import ReadReport, read_trajectories

SUFFIXES = (".jsonl", ".json", ".traj", ".eval", ".gz")
_BYTES = (
    b"",
    b"\x00",
    b"\n",
    b"\r",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\xff",
    b"\xed\xa0\xbd",
    b"null",
    b"1e999",
)
_VALUES = (
    *(None, True, 0, -1, 1.5, float("nan"), 10**30, "", "text", "\ud83d", "{", "[]", "<function=", "```\n"),
    *([], {}, [None], [[]], [{}], {"a": 1}, [1, "x"], {"role": "assistant"}, [{"type": "text"}], "<think>", "[" * 200),
)


class Outcome(NamedTuple):
    """What became of one mutant."""

    kept: int
    skipped: int
    seconds: float


def sources(*folders: Path) -> list[Path]:
    """The files that are mutated, in a fixed order; folders of event files count as single files here."""
    results = [p for folder in folders for p in sorted(folder.rglob("*")) if p.suffix in SUFFIXES]
    return [path for path in results if path.name != "expected.json"]


def mutant(path: Path, seed: int) -> bytes:
    """A broken copy of the file."""
    rng = random.Random(f"{path.name} {seed}")
    data = path.read_bytes()
    if rng.random() < 0.5 and path.suffix not in (".eval", ".gz"):
        return _values(data, rng)
    return _bytes(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 1, 8, 200)))
        kind = rng.randrange(5)
        if kind == 0:  # replace
            data = data[:a] + rng.choice(_BYTES) + data[b:]
        elif kind == 1:  # insert
            data = data[:a] + rng.choice(_BYTES) * rng.choice((1, 1, 50)) + data[a:]
        elif kind == 2:  # repeat
            data = data[:b] + data[a:b] * rng.choice((1, 3)) + data[b:]
        elif kind == 3:  # cut off
            data = data[:a] if rng.random() < 0.3 else data[:a] + data[b:]
        elif data:  # flip a bit
            a = min(a, len(data) - 1)
            data = data[:a] + bytes([data[a] ^ (1 << rng.randrange(8))]) + data[a + 1 :]
    return data


def _values(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    try:
        parts = [json.loads(text)]
    except ValueError:
        parts = [_decoded(line) for line in text.split("\n") if line.strip()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        holders = list(_holders(parts))
        holder, key = rng.choice(holders)
        kind = rng.randrange(4)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1:
            other, place = rng.choice(holders)
            holder[key] = copy.deepcopy(other[place])  # never itself
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return "\n".join(json.dumps(part) for part in parts).encode()


def _decoded(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _holders(parts: list) -> list[tuple]:
    results, todo = [], [parts]
    while todo:
        value = todo.pop()
        keys = range(len(value)) if isinstance(value, list) else list(value)
        for key in keys:
            results.append((value, key))
            if isinstance(value[key], (dict, list)):
                todo.append(value[key])
    return results


def read(path: Path, data: bytes, folder: Path) -> Outcome:
    """Read a mutant; anything but a counted problem propagates, and so does a record not accounted for."""
    file = folder / f"mutant{''.join(path.suffixes[-2:])}"
    file.write_bytes(data)
    report = ReadReport()
    start = time.process_time()
    kept = 0
    try:
        for trajectory in read_trajectories(str(file), on_error="skip", report=report):
            json.dumps(trajectory.to_json())
            kept += 1
    except DataError as error:
        raise AssertionError(f"on_error='skip' raised {error}") from error
    seconds = time.process_time() - start
    skipped = sum(s.count for s in report.skipped.values())
    assert report.read == report.kept + skipped, "a record is unaccounted for"
    assert kept == report.kept
    assert kept + skipped > 0, "nothing was read and nothing reported"
    assert all(file.name in example for s in report.skipped.values() for example in s.examples)
    return Outcome(kept, skipped, seconds)
