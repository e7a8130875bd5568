"""What holds of every registered format; a new one needs fixtures in a folder of its name and a line in `BAD_FIELDS`.

A fixture is recognised by content as exactly its format and read as written down; no character is lost; what is read
survives `hesnr convert`; whatever is broken in a file is reported with its place, never a trace.
"""

import contextlib
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.cli.trajectories import convert
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import (
    FORMATS,
    choose,
    load,
    read_record,
    read_trajectories,
    unpacked,
)
from hesnr_tasks.formats.base import Where
from hesnr_tasks.trajectory import Kind, Trajectory
from tests import ROOT
from tests.unit.formats import mutations

FIXTURES = ROOT / "tests" / "unit" / "formats" / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
every_fixture = pytest.mark.parametrize("name", sorted(EXPECTED))
every_format = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)


def fixtures_of(format):
    return [FIXTURES / name for name in sorted(EXPECTED) if name.split("/")[0] == format.name]


def test_every_format_has_a_name_of_its_own_a_rule_and_fixtures():
    assert len({format.name for format in FORMATS}) == len(FORMATS)
    assert all(format.rule and fixtures_of(format) for format in FORMATS)


def seen(trajectory):
    return {
        "id": trajectory.id,
        "instance_id": trajectory.instance_id,
        "resolved": trajectory.resolved,
        "source": trajectory.source,
        "fidelity": trajectory.fidelity.value,
        "meta": trajectory.meta,
        "messages": [[m.role, *[[s.kind.value, s.text] for s in m.segments]] for m in trajectory.messages],
    }


@every_fixture
def test_a_fixture_is_recognised_by_content_and_read_as_written_down(name, tmp_path):
    source = FIXTURES / name
    trajectories = list(read_trajectories(str(source)))
    assert [seen(trajectory) for trajectory in trajectories] == EXPECTED[name]
    if source.is_file():  # under a name that says nothing
        (tmp_path / "data").write_bytes(source.read_bytes())
        again = [trajectory.source for trajectory in read_trajectories(str(tmp_path / "data"))]
        assert again == [trajectory.source for trajectory in trajectories]
    named = name.split("/")[0]
    assert named == "hesnr" or {trajectory.source for trajectory in trajectories} == {named}


@every_fixture
def test_segments_are_in_normal_form_and_survive_the_normalised_file(name):
    for trajectory in read_trajectories(str(FIXTURES / name)):
        for message in trajectory.messages:
            assert all(segment.text for segment in message.segments)
            kinds = [segment.kind for segment in message.segments]
            assert all(a is not b for a, b in itertools.pairwise(kinds))
            # text of the scaffold is not the model's
            own = "".join(s.text for s in message.segments if s.kind in (Kind.THOUGHT, Kind.ACTION))
            for words in ("Exit due to", "API Error", "Executed Bash", "copied", "taken back", "subagent"):
                assert words not in own
        line = json.dumps(trajectory.to_json(), ensure_ascii=False, allow_nan=False)
        assert Trajectory.from_json(json.loads(line)) == trajectory


@every_format
def test_what_is_read_survives_convert_and_ids_are_unique(format, tmp_path):
    sources = [str(path) for path in fixtures_of(format)] * 2  # the same ids twice
    convert(sources, str(tmp_path / "out.jsonl"), on_error="fail")
    trajectories = load(sources)
    assert load(str(tmp_path / "out.jsonl")) == trajectories
    ids = [trajectory.id for trajectory in trajectories]
    assert len(set(ids)) == len(ids)


def stored_texts(record):
    """The texts of a record of a text format, by a plain walk that knows nothing of the readers."""
    if isinstance(record, list):
        items = record
    else:
        items = record.get("messages") or record.get("history") or record.get("trajectory") or record["conversations"]
    for item in json.loads(items) if isinstance(items, str) else items:
        content = item.get("content", item.get("text", item.get("value")))
        if content is None:
            content = item["system_prompt"]
        yield content if isinstance(content, str) else "\n".join(part["text"] for part in content)


@pytest.mark.parametrize(
    "name",
    [
        "mini-swe-agent/v1.traj.json",
        "mini-swe-agent/v2_text.traj.json",
        "mini-swe-agent/bare_list.traj.json",
        "swe-agent/text.traj",
        "chat-xml/sft.jsonl",
        "chat-text/mini_rows.jsonl",
        "chat-text/ticks.jsonl",
        "chat-text/sharegpt.jsonl",
        "nebius-swe-agent/rows.jsonl",
    ],
)
def test_segments_of_text_formats_concatenate_to_the_stored_text(name):
    data = (FIXTURES / name).read_text(encoding="utf-8")
    records = [json.loads(line) for line in data.split("\n") if line] if name.endswith("jsonl") else [json.loads(data)]
    for record, trajectory in zip(records, load(str(FIXTURES / name)), strict=True):
        assert [m.text for m in trajectory.messages] == list(stored_texts(record))


# --- broken files -----------------------------------------------------------------------------------------------------


def test_no_format_is_sure_of_values_that_are_no_records():
    for value in (None, 3, "text", [], {}, [1, 2], {"a": 1}, [[]], [{}], {"messages": 3}, {"history": [None]}):
        assert [format.detect(value) for format in FORMATS] == [0] * len(FORMATS)


OTHER_SHAPES = (3, "text", [[]], {"a": 1}, {"messages": 3}, {"messages": [3]}, {"trajectory": "x"}, {"steps": [None]})
WITHOUT_FIELDS = ("claude-code", "codex")  # read whatever lines there are
STEP = {"action": "ls", "observation": "", "response": "ls"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "ls"}}]}
XML = {"role": "assistant", "content": "<function=ls>\n</function>"}
BAD_FIELDS = {  # format → a record that it recognises, and the field that is named
    "atif": ({"schema_version": "ATIF-v1.4", "steps": 3}, "'steps' must be a list, not a number"),
    "chat-text": ({"messages": [{"role": "assistant", "content": "Hi"}, 3]}, "messages[1] must be an object"),
    "chat-tools": ({"messages": [CALL, 3]}, "messages[1] must be an object"),
    "chat-xml": ({"messages": [XML, 3]}, "messages[1] must be an object"),
    "openhands-completions": ({"messages": [], "response": {"choices": []}}, "'response' holds no message"),
    "inspect-ai": ({"eval": {}, "samples": [{"messages": 3}]}, "'messages' must be a list"),
    "mini-swe-agent": ({"trajectory_format": "mini-swe-agent-1", "messages": [3]}, "messages[0] must be an object"),
    "nebius-swe-agent": ({"trajectory": [{"role": "ai", "text": ""}, 3]}, "trajectory[1] must be an object"),
    "hesnr": ({"format": "hesnr-trajectory-1", "id": "x", "messages": [{"role": "robot"}]}, "messages[0].role is"),
    "openhands-v0": ({"history": [{"action": "run", "args": {}}, 3]}, "history[1] must be an event object"),
    "openhands-sdk": ({"history": [{"kind": "MessageEvent"}, 3]}, "event 1 must be an object"),
    "text": ({"prompt": 3, "completion": "x"}, "'prompt' must be text or a list of messages"),
    "r2e-gym": ({"trajectory_steps": [3]}, "trajectory_steps[0] must be an object"),
    "swe-agent": ({"trajectory": [STEP, 3]}, "trajectory[1] must be an object"),
}


@every_format
def test_a_record_of_another_shape_is_refused_or_has_nothing_to_score(format):
    for value in OTHER_SHAPES:
        with contextlib.suppress(DataError):
            trajectory = read_record(format, value, Where("rows.jsonl", 1))
            assert not any(message.generated for message in trajectory.messages)


@every_format
def test_a_field_that_is_wrong_is_named_with_file_and_line(format, tmp_path):
    if format.name in WITHOUT_FIELDS:
        return
    record, message = BAD_FIELDS[format.name]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"text": "x"}, record]) if format.name != "inspect-ai" else json.dumps(record))
    with pytest.raises(DataError) as error:
        load(str(file))
    assert f"{file}:{1 if format.name == 'inspect-ai' else 2}: " in str(error.value)
    assert message in str(error.value)


@every_format
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes_or_refused_with_its_name(format, share, tmp_path):
    for path in (path for path in fixtures_of(format) if path.is_file()):
        data = path.read_bytes()
        file = tmp_path / f"cut{''.join(path.suffixes[-2:])}"
        file.write_bytes(data[: int(len(data) * share)])
        with contextlib.suppress(DataError):
            assert all(isinstance(t, Trajectory) for t in read_trajectories(str(file)))
        outcome = mutations.read(path, file.read_bytes(), tmp_path)  # whatever is not kept is named and counted
        assert outcome.kept + outcome.skipped > 0


SOURCES = mutations.sources(FIXTURES)


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_mutated_fixtures_are_read_or_reported(start, tmp_path):
    for seed in range(start, start + 50):
        path = SOURCES[seed % len(SOURCES)]
        outcome = mutations.read(path, mutations.mutant(path, seed), tmp_path)
        assert outcome.seconds < 10, seed  # a moment, on any machine


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


@settings(max_examples=400)
@given(record=VALUES)
def test_any_value_is_recognised_or_not_and_read_or_refused(record):
    record = unpacked(record)
    assert all(format.detect(record) in (True, False) for format in FORMATS)
    chosen = choose(record)
    for format in FORMATS if chosen is None else (chosen,):
        with contextlib.suppress(DataError):
            assert isinstance(read_record(format, record, Where("x.jsonl", 1)), Trajectory)
