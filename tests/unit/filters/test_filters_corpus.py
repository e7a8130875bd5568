"""The labelled actions of `corpus/`, and that no label changes without a new `LABELS_VERSION`."""

import json

import numpy as np
import pytest

from hesnr_tasks.filters import LABELS_VERSION, filter_bits
from tests.unit.filters.corpus import PINNED, entry, labels, lines


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize(("place", "line"), [pytest.param(*pair, id=pair[0]) for pair in lines()])
def test_what_is_kept_of_an_action(place, line):
    case = entry(place, line)
    text = case["text"]
    kept = "".join(text[i] for i in np.flatnonzero(filter_bits(text) == 0))
    assert squeezed(kept) == squeezed(case["kept"]), f"{place}: {case['why']}\n{text}"


def test_labels_change_only_with_their_version():
    """Fails if labels moved and LABELS_VERSION did not: raise it, then `python -m tests.unit.filters.corpus`."""
    pinned, now = json.loads(PINNED.read_text(encoding="utf-8")), labels()
    assert pinned["version"] == LABELS_VERSION, "the labels of this version are not pinned"
    moved = [text for text, label in pinned["labels"].items() if text in now and now[text] != label]
    assert not moved, f"{len(moved)} labels of {len(pinned['labels'])} changed"
    assert len(pinned["labels"]) > 0.5 * len(now), "most of the corpus is not pinned"


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"form": "xml"}', '{"form": 1, "language": "", "text": "", "kept": "", "why": ""}']
)
def test_a_line_that_is_no_case_is_named(line):
    with pytest.raises(AssertionError, match=r"forms\.jsonl:3"):
        entry("forms.jsonl:3", line)
