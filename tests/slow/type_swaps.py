"""Files whose text sits in a value of the wrong type: a marked string somewhere, and each holder of it swapped.

The check is independent of the readers: a marker is put in the place of one string that a reader takes as text; then
the string, or one of the objects and lists around it, is wrapped or turned into another JSON type. The marker is still
in the file, so it must be in the trajectory's text, or in the count of characters left out, or the record is refused.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.formats import ReadReport, read_trajectories

MARKER = "qzxjvwkymarker" * 3
Steps = tuple[str | int, ...]

SWAPS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda value: value,
    "in a list": lambda value: [value],
    "in two lists": lambda value: [[value]],
    "in a list of two": lambda value: [value, 7],
    "in an object": lambda value: {"other": value},
    "in an object of text": lambda value: {"text": value},
    "in an object in a list": lambda value: [{"other": value}],
    "in an object of another type": lambda value: {"type": "strange", "text": value},
    "as JSON text": lambda value: json.dumps(value),
    "list as object": lambda value: {str(i): v for i, v in enumerate(value)} if isinstance(value, list) else [value],
    "object as list": lambda value: list(value.values()) if isinstance(value, dict) else {"a": {"b": value}},
}
OTHERS: tuple[Any, ...] = (None, True, 0, -1.5, float("inf"), 10**30, "", "text", [], {}, [None], [[]], {"a": 1})


class Swap(NamedTuple):
    """One broken copy of a file: where, how, and the values to write."""

    place: str
    swap: str
    parts: list[Any]


class Sample(NamedTuple):
    """A file as decoded values: one for a document, one a line for lines."""

    path: Path
    parts: list[Any]

    def write(self, parts: list[Any], folder: Path) -> Path:
        file = folder / f"swapped{''.join(self.path.suffixes[-2:])}"
        file.write_text("\n".join(json.dumps(part) for part in parts), encoding="utf-8")
        return file


def sample(path: Path) -> Sample | None:
    """The file, or None if it is no JSON text."""
    try:
        text = path.read_bytes().decode()
        try:
            return Sample(path, [json.loads(text)])
        except ValueError:
            return Sample(path, [json.loads(line) for line in text.split("\n") if line.strip()])
    except ValueError:
        return None


def strings(value: Any, steps: Steps = ()) -> Iterator[tuple[Steps, str]]:
    """Every string inside, and the way to it."""
    if isinstance(value, str):
        yield steps, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, (*steps, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from strings(item, (*steps, i))


def field(steps: Steps) -> str:
    """A path without its indices."""
    return ".".join("[]" if isinstance(step, int) else step for step in steps)


def replaced(parts: list[Any], steps: Steps, change: Callable[[Any], Any]) -> list[Any]:
    """A copy with the value at `steps` changed."""
    changed = copy.deepcopy(parts)
    holder: Any = changed
    for step in steps[:-1]:
        holder = holder[step]
    holder[steps[-1]] = change(holder[steps[-1]])
    return changed


def read(file: Path) -> tuple[str, ReadReport]:
    """The text read, and the report."""
    report = ReadReport()
    texts = []
    for trajectory in read_trajectories(str(file), on_error="skip", report=report):
        json.dumps(trajectory.to_json(), allow_nan=False)
        texts.extend(message.text for message in trajectory.messages)
    return "\n".join(texts), report


def marked(sample: Sample, folder: Path) -> Iterator[Steps]:
    """One place a field whose string a reader takes as text: with the marker there, the marker is read."""
    seen: set[str] = set()
    for steps, text in strings(sample.parts):
        name = field(steps)
        if len(text) < 2 or name in seen:
            continue
        parts = replaced(sample.parts, steps, lambda text: text + MARKER)
        if MARKER in read(sample.write(parts, folder))[0]:
            seen.add(name)
            yield steps


def swaps(sample: Sample, steps: Steps) -> Iterator[Swap]:
    """The marker at `steps`, and each holder of it (the record as a whole aside) as another type."""
    parts = replaced(sample.parts, steps, lambda text: text + MARKER)
    for length in range(2, len(steps) + 1):
        for swap_name, swap in SWAPS.items():
            yield Swap(field(steps[1:]), f"{field(steps[1:length])} {swap_name}", replaced(parts, steps[:length], swap))


def lost(sample: Sample, swap: Swap, folder: Path, before: ReadReport) -> bool:
    """Whether the marker is neither read nor reported."""
    text, report = read(sample.write(swap.parts, folder))
    if MARKER in text or report.left_out - before.left_out >= len(MARKER):
        return False
    return sum(s.count for s in report.skipped.values()) <= sum(s.count for s in before.skipped.values())


def values(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """The way to every value inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*steps, key)
        yield from values(item, (*steps, key))
