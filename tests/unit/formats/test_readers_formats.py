"""Every format: what each fixture is read as, which rule found it, and that text formats lose no character."""

import itertools
import json
from pathlib import Path

import pytest

from hesnr_tasks.formats import ReadReport, load, read_trajectories
from hesnr_tasks.formats.registry import FORMATS as REGISTERED
from hesnr_tasks.formats.registry import choose, format_of_name
from hesnr_tasks.trajectory import Kind, Trajectory

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
FORMATS = {
    "atif": "atif",
    "chat_text": "chat-text",
    "chat_tools": "chat-tools",
    "chat_xml": "chat-xml",
    "claude_code": "claude-code",
    "codex": "codex",
    "completions": "openhands-completions",
    "inspect_ai": "inspect-ai",
    "mini": "mini-swe-agent",
    "nebius": "nebius-swe-agent",
    "normalised": "hesnr",
    "openhands": "openhands-v0",
    "openhands_sdk": "openhands-sdk",
    "plain": "text",
    "r2e": "r2e-gym",
    "sweagent": "swe-agent",
}


def _seen(trajectory):
    return {
        "id": trajectory.id,
        "instance_id": trajectory.instance_id,
        "resolved": trajectory.resolved,
        "source": trajectory.source,
        "fidelity": trajectory.fidelity.value,
        "meta": trajectory.meta,
        "messages": [[m.role, *[[s.kind.value, s.text] for s in m.segments]] for m in trajectory.messages],
    }


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_fixture_is_read_as_written_down(name):
    assert [_seen(t) for t in read_trajectories(str(FIXTURES / name))] == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_format_is_found_by_content_and_the_rule_is_reported(name, tmp_path):
    source = FIXTURES / name
    if source.is_file():  # under a name that says nothing
        (tmp_path / "data").write_bytes(source.read_bytes())
        source = tmp_path / "data"
    report = ReadReport()
    list(read_trajectories(str(source), report=report))
    (found,) = report.formats.values()
    assert found.name == FORMATS[name.split("/")[0]]
    assert found.confidence >= 0.5
    assert found.rule


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_segments_are_in_normal_form_and_survive_the_normalised_file(name):
    for trajectory in read_trajectories(str(FIXTURES / name)):
        for message in trajectory.messages:
            assert all(segment.text for segment in message.segments)
            kinds = [segment.kind for segment in message.segments]
            assert all(a is not b for a, b in itertools.pairwise(kinds))
        line = json.dumps(trajectory.to_json(), ensure_ascii=False, allow_nan=False)
        assert Trajectory.from_json(json.loads(line)) == trajectory


def _stored_texts(record):
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
        "mini/v1.traj.json",
        "mini/v2_text.traj.json",
        "mini/bare_list.traj.json",
        "sweagent/text.traj",
        "chat_xml/sft.jsonl",
        "chat_text/mini_rows.jsonl",
        "chat_text/ticks.jsonl",
        "chat_text/sharegpt.jsonl",
        "nebius/rows.jsonl",
    ],
)
def test_segments_of_text_formats_concatenate_to_the_stored_text(name):
    data = (FIXTURES / name).read_text(encoding="utf-8")
    records = [json.loads(line) for line in data.split("\n") if line] if name.endswith("jsonl") else [json.loads(data)]
    for record, trajectory in zip(records, load(str(FIXTURES / name)), strict=True):
        assert [m.text for m in trajectory.messages] == list(_stored_texts(record))


def test_one_run_has_the_same_actions_as_tool_calls_and_as_xml_text():
    calls = [("bash", {"command": "ls"}), ("edit", {"old_str": "a", "new_str": "b", "n": [1, 2]})]
    tools, xml = [], []
    for name, arguments in calls:
        call = {"function": {"name": name, "arguments": json.dumps(arguments)}}
        tools.append({"role": "assistant", "content": "Go.", "tool_calls": [call]})
        body = "".join(
            f"<parameter={k}>\n{v}\n</parameter>\n" if k.endswith("_str") else f"<parameter={k}>{v}</parameter>\n"
            for k, v in arguments.items()
        )
        xml.append({"role": "assistant", "content": f"Go.\n\n<function={name}>\n{body}</function>"})
    (first,), (second,) = (_read({"messages": messages}) for messages in (tools, xml))
    assert first.source != second.source
    assert [m.segments for m in first.messages] == [m.segments for m in second.messages]


def _read(record):
    reader, _ = choose(record)
    from hesnr_tasks.formats.base import Where

    return [reader.read(record, Where("rows.jsonl", 1))]


def test_parallel_calls_of_one_openhands_response_are_written_once():
    (trajectory,) = load(str(FIXTURES / "openhands/output.jsonl"))
    actions = [s.text for m in trajectory.messages for s in m.segments if s.kind is Kind.ACTION]
    assert len(actions) == 2
    assert actions[0].count("<function=") == 2
    assert trajectory.meta["think_tool"] == "action"


def test_a_folder_of_completion_logs_gives_the_last_log_of_each_run():
    loaded = load(str(FIXTURES / "completions"))
    assert [(t.id, sum(m.generated for m in t.messages)) for t in loaded] == [
        ("owner__repo-6", 2),
        ("owner__repo-7", 2),
    ]


def test_a_trial_folder_gives_the_outcome_and_files_beside_the_run_are_named():
    report = ReadReport()
    (trajectory,) = read_trajectories(str(FIXTURES / "atif/calc__a1b2c3"), report=report)
    assert (trajectory.id, trajectory.instance_id, trajectory.resolved) == ("calc__a1b2c3", "calc", True)
    assert "a file beside the runs is not read: result.json" in report.warnings


def test_the_reward_file_of_a_trial_is_read_when_there_is_no_result(tmp_path):
    agent = tmp_path / "task__x" / "agent"
    agent.mkdir(parents=True)
    (agent / "trajectory.json").write_bytes((FIXTURES / "atif/raw.json").read_bytes())
    (tmp_path / "task__x" / "verifier").mkdir()
    (tmp_path / "task__x" / "verifier" / "reward.txt").write_text("0.0\n")
    (trajectory,) = load(str(tmp_path))
    assert (trajectory.id, trajectory.instance_id, trajectory.resolved) == ("task__x", "task", False)


@pytest.mark.parametrize(
    "scaffold_text", ["Exit due to", "API Error", "Executed Bash", "copied", "taken back", "subagent"]
)
def test_no_fixture_labels_text_of_the_scaffold_as_the_models(scaffold_text, own):
    for name in EXPECTED:
        for trajectory in read_trajectories(str(FIXTURES / name)):
            assert not any(scaffold_text in text for _, text in own(trajectory))


def test_all_readers_give_zero_confidence_to_values_that_are_no_records():
    for value in (None, 3, "text", [], {}, [1, 2], {"a": 1}, [[]], [{}], {"messages": 3}, {"history": [None]}):
        assert [format.detect(value) for format in REGISTERED] == [0] * len(REGISTERED)


def test_an_unknown_format_name_suggests_the_nearest():
    with pytest.raises(Exception, match="Did you mean 'swe-agent'"):
        format_of_name("sweagent")


def test_rows_of_parquet_are_read_like_lines_and_arrays_like_lists(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [json.loads(line) for line in (FIXTURES / "chat_tools/swegym.jsonl").read_text().split("\n") if line]
    for row in rows:
        row["tools"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    from_parquet = load(str(tmp_path / "rows.parquet"))
    assert [t.messages for t in from_parquet] == [t.messages for t in load(str(FIXTURES / "chat_tools/swegym.jsonl"))]
    frame = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pandas()
    assert [_read(dict(row))[0].messages for _, row in frame.iterrows()] == [t.messages for t in from_parquet]


@pytest.mark.parametrize(
    "call",
    [
        "<seed:tool_call>\n<function=bash>\n<parameter=command>ls</parameter>\n</function>\n</seed:tool_call>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="bash">\n<｜DSML｜parameter name="command" string="true">ls'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        '<invoke name="bash">\n<parameter name="command">ls</parameter>\n</invoke>',
        '<TOOLCALL>[{"name": "bash", "arguments": {"command": "ls"}}]</TOOLCALL>',
        "<tool_call>\n{'name': 'bash', 'arguments': {'command': 'ls'}}\n</tool_call>",
        '<tool_call>\n{"name": "a", "arguments": {"command": "ls"}}\n{"name": "b", "arguments": {}}\n</tool_call>',
        '<|tool_call|>[{"name": "bash", "arguments": {"command": "ls"}}]<|/tool_call|>',
        '<|START_ACTION|>[{"tool_name": "bash", "parameters": {"command": "ls"}}]<|END_ACTION|>',
        "<commands>\n<keystrokes>ls\n</keystrokes>\n</commands>\n<task_complete>false</task_complete>\n</response>",
        "<execute_bash>\nls\n</execute_bash>",
        "<execute_ipython>\nprint(1)\n</execute_ipython>",
        '{"name": "python", "arguments": {"code": "1"}}',
        "<function=bash>\n<parameter=command>ls</parameter>",
    ],
)
@pytest.mark.parametrize("after", ["", "\n\nThat should do."])
def test_the_calls_of_a_chat_are_found_in_text_around_them(call, after, tmp_path):
    content = f"I could use <tool_call> or <function=bash>.\n\n{call}{after}"
    row = {"messages": [{"role": "user", "content": "Go."}, {"role": "assistant", "content": content}]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    (trajectory,) = read_trajectories(str(path))
    actions = [s.text.strip() for s in trajectory.messages[-1].segments if s.kind is Kind.ACTION]
    assert actions == [call]
