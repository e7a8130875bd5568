"""Labelled actions, one a line, in `*.jsonl` beside this file; add a line to add a case.

    {"form": "xml", "language": "shell", "text": "…the action…", "kept": "…", "why": "what this case is about"}

`kept` is what all filters together leave of `text`, in order; white space in it does not count. Write it from what the
action means, never from what the filters answer. `form` and `language` are for grouping.

`pinned.json` holds a digest of the labels of every line as of `hesnr_tasks.filters.LABELS_VERSION`. After raising the
version, and after adding lines, write it again:

    python -m tests.unit.filters.corpus
"""

import hashlib
import json
from pathlib import Path

from hesnr_tasks.filters import LABELS_VERSION, filter_bits

FOLDER = Path(__file__).parent
PINNED = FOLDER / "pinned.json"
FIELDS = {"form", "language", "text", "kept", "why"}


def lines():
    """Where each line stands (`file:number`) and what it holds."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                yield f"{path.name}:{number}", line


def entry(place, line):
    """The case of one line; an `AssertionError` says where it is not one."""
    try:
        case = json.loads(line)
    except ValueError as error:
        raise AssertionError(f"{place}: not JSON: {error}") from None
    assert isinstance(case, dict), f"{place}: a line is an object"
    assert set(case) == FIELDS, f"{place}: a line has the fields {sorted(FIELDS)}"
    assert all(isinstance(value, str) for value in case.values()), f"{place}: every field is a string"
    return case


def texts():
    """The text of every case."""
    return [entry(place, line)["text"] for place, line in lines()]


def digest(text):
    return hashlib.sha256(filter_bits(text).tobytes()).hexdigest()[:12]


def labels():
    """The digest of the labels of each text, by the digest of the text."""
    return {hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]: digest(text) for text in texts()}


def pin():
    pinned = {"version": LABELS_VERSION, "labels": dict(sorted(labels().items()))}
    PINNED.write_text(json.dumps(pinned, indent=0) + "\n", encoding="utf-8")
