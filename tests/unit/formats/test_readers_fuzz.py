"""Nothing that is fed to a reader raises anything but `DataError`, hangs, or loses a character or a record."""

import contextlib
import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.actions.grammar import CALL_FORMS, split_calls
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats.base import Where
from hesnr_tasks.formats.registry import FORMATS, choose, read_record, unpacked
from hesnr_tasks.trajectory import Kind, Trajectory
from tests.unit.formats import mutations

SOURCES = mutations.sources(Path(__file__).parent / "fixtures")
PIECES = (
    *("<function=", "<function=bash>", "</function>", "<parameter=", "<parameter=k>", "</parameter>", "<parameter>"),
    *("<tool_call>", "</tool_call>", "<command>", "</command>", "<think>", "</think>", "```", "```bash\n", "\n```\n"),
    *("```mswea_bash_command\n", "<mswea_bash_command>", "</mswea_bash_command>", '{"thought": "', '", "command": {}}'),
    *("\n", " ", "\t\r\n", "x", "\\", '"', "\u2028", "\x00", "é", "😀", "{", "}", ">", "<", "="),
)
KEYS = (
    *("messages", "trajectory", "history", "conversations", "trajectory_steps", "attempts", "steps", "samples", "eval"),
    *("role", "from", "content", "value", "text", "tool_calls", "function", "name", "arguments", "type", "thinking"),
    *("action", "observation", "response", "args", "extras", "kind", "source", "tool_call_metadata", "model_response"),
    *("choices", "message", "schema_version", "trajectory_format", "info", "replay_config", "prompt", "completion"),
    *("payload", "timestamp", "sessionId", "parentUuid", "uuid", "id", "instance_id", "resolved", "reward", "format"),
    *("segments", "thought", "llm_message", "tool_call", "output", "object", "extra", "scores", "inspect_sample"),
)
WORDS = (
    *(
        "assistant",
        "user",
        "system",
        "tool",
        "ai",
        "human",
        "agent",
        "run",
        "finish",
        "message",
        "ATIF-v1.7",
        "session_meta",
    ),
    *(
        "hesnr-trajectory-1",
        "mini-swe-agent-1.1",
        "ActionEvent",
        "MessageEvent",
        "response_item",
        "function_call",
        "reasoning",
    ),
    *("<function=a>", "[", '{"a": 1}', "\ud83d", "", "text", "tool_use", "thinking", "response"),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_mutated_fixtures_are_read_or_reported(start, tmp_path):
    for seed in range(start, start + 50):
        path = SOURCES[seed % len(SOURCES)]
        outcome = mutations.read(path, mutations.mutant(path, seed), tmp_path)
        assert outcome.seconds < 1 or seed < 50  # the first ones also import what reads archives


@pytest.mark.parametrize("style", sorted(CALL_FORMS))
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_splitting_any_text_keeps_every_character_and_the_normal_form(style, pieces):
    whole = "".join(pieces)
    segments = split_calls(whole, style)
    assert "".join(segment.text for segment in segments) == whole
    assert all(segment.text and segment.kind in (Kind.THOUGHT, Kind.ACTION) for segment in segments)
    assert all(a.kind is not b.kind for a, b in itertools.pairwise(segments))


@settings(max_examples=400, deadline=None)
@given(record=VALUES)
def test_any_value_is_recognised_or_not_and_read_or_refused(record):
    record = unpacked(record)
    assert all(0 <= reader.detect(record) <= 1 for reader in FORMATS)
    chosen = choose(record)
    for reader in FORMATS if chosen is None else (chosen[0],):
        with contextlib.suppress(DataError):
            assert isinstance(read_record(reader, record, Where("x.jsonl", 1)), Trajectory)


@pytest.mark.parametrize(
    "piece", [*PIECES, "<function=a><parameter=x></parameter>z", "<function=a>\n<parameter=k>", '\\"']
)
def test_long_runs_of_any_piece_take_linear_time(piece):
    long = piece * (200_000 // len(piece))
    for style in CALL_FORMS:
        start = time.process_time()
        split_calls(long, style)
        assert time.process_time() - start < 1, style


def test_a_long_run_inside_a_thought_string_takes_linear_time():
    start = time.process_time()
    split_calls('{"command": 1, ' + '"thought": "' * 20_000, "json")
    assert time.process_time() - start < 1
