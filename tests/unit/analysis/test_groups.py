"""Breakdowns: every token in one group, and in the right one."""

import dataclasses

import numpy as np
import pytest

from hesnr_tasks.analysis.breakdowns import BREAKDOWNS, COLUMNS, grouped
from hesnr_tasks.analysis.frame import load
from hesnr_tasks.scores import ScoreStore, Source, Text
from hesnr_tasks.scores.schema import SequenceScores
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, Span
from tests.unit.analysis import made
from tests.unit.scores import made as parts

PIECES = (
    (Kind.THOUGHT, 1, "I look around.\n"),
    (Kind.ACTION, 1, "<function=bash>\n<parameter=command>ls -la && python -c 'import os'</parameter>\n</function>"),
    (Kind.OBSERVATION, 2, "a.py\n"),
    (Kind.THOUGHT, 2, "I edit.\n"),
    (
        Kind.ACTION,
        2,
        "<function=edit>\n<parameter=path>a.py</parameter>\n<parameter=content>x = 1\n</parameter>\n</function>",
    ),
)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """One trajectory, one token a character, with the columns of all breakdowns."""
    store = ScoreStore.open(tmp_path_factory.mktemp("groups") / "run", parts.signature())
    spans, text = [], ""
    for kind, turn, words in PIECES:
        spans.append(Span(len(text), len(text) + len(words), kind, turn, False))
        text += words
    n = len(text)
    codes = {Kind.THOUGHT: 2, Kind.ACTION: 4, Kind.OBSERVATION: 1}
    kinds = [span.kind for span in spans for _ in range(span.end - span.start)]
    base = parts.scores_of(1)
    top = np.tile(-np.arange(1, 11, dtype=np.float32), (n, 1))
    scores = dataclasses.replace(
        base,
        position=1000 * np.arange(n, dtype=np.int32),
        token_id=np.arange(n, dtype=np.int32),
        turn=np.array([span.turn for span in spans for _ in range(span.end - span.start)], dtype=np.int32),
        label=np.array([1 << codes[kind] for kind in kinds], dtype=np.uint64),
        char_start=np.arange(n, dtype=np.int32),
        char_end=np.arange(1, n + 1, dtype=np.int32),
        scores=SequenceScores(top[:, 0], np.ones(n, dtype=np.int32), top, np.zeros((n, 10), dtype=np.int32)),
        labels_cut=np.zeros(0, dtype=np.uint64),
    )
    store.write(
        scores, text=Text(Rendered(text, tuple(spans)), scores.token_id), mask=parts.BOTH | np.uint64(2), sources=[]
    )
    return load(store.folder, extra=sorted({name for names in COLUMNS.values() for name in names}))


def spelled(frame, by, name):
    """The text of the tokens in one group."""
    groups = grouped(frame, by)
    text = frame.store.text(frame.entries[0].key).rendered.text
    return "".join(text[i] for i in np.flatnonzero(groups.of_token == groups.names.index(name)))


@pytest.mark.parametrize("by", sorted(BREAKDOWNS))
def test_every_token_is_in_one_group(frame, by):
    groups = grouped(frame, by)
    assert groups.of_token.shape == frame.label.shape
    assert groups.of_token.min() >= 0
    assert groups.of_token.max() < len(groups.names)


def test_tools_are_the_calls_of_the_text(frame):
    assert spelled(frame, "tool", "bash") == PIECES[1][2]
    assert spelled(frame, "tool", "edit") == PIECES[4][2]
    assert spelled(frame, "tool", "(no call)") == "".join(PIECES[i][2] for i in (0, 2, 3))


def test_languages_are_those_of_the_innermost_piece(frame):
    assert spelled(frame, "language", "python") == "import osx = 1"
    assert spelled(frame, "language", "shell").startswith("ls -la && python -c '")
    assert "a.py" in spelled(frame, "language", "(none known)")


def test_turns_and_positions(frame):
    assert spelled(frame, "turn", "1") == PIECES[0][2] + PIECES[1][2]
    assert grouped(frame, "position").names[:3] == ("0-8K", "8-32K", "32-64K")
    assert len(spelled(frame, "position", "0-8K")) == 9  # positions 0, 1000 … 8000 < 8192
    assert len(spelled(frame, "position", "8-32K")) == 24


def test_outcomes_are_those_of_the_sources(tmp_path):
    store = made.run_of(tmp_path / "run", 3, 40)
    scores = store.read(f"{0:064x}")
    store.write(scores, text=store.text(scores.key), mask=made.WANTED, sources=[Source("twin", None, False)])
    frame = load(store.folder)
    groups = grouped(frame, "resolved")
    each = [groups.names[groups.of_token[index]] for index in frame.bounds[:-1]]
    assert each == ["mixed", "unresolved", "unknown"]
