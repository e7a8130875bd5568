"""What single formats do: SWE-agent's parsers and text that is not the model's, OpenHands, Harbor, Parquet."""

import json
from pathlib import Path

import pytest

from hesnr_tasks.formats import ReadReport, choose, load, read_record, read_trajectories
from hesnr_tasks.formats.agents import SWE_AGENT
from hesnr_tasks.formats.base import Where
from hesnr_tasks.trajectory import Fidelity, Kind

FIXTURES = Path(__file__).parent / "fixtures"


def _read(record):
    return [read_record(choose(record), record, Where("rows.jsonl", 1))]


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


def test_parallel_calls_of_one_openhands_response_are_written_once():
    (trajectory,) = load(str(FIXTURES / "openhands-v0/output.jsonl"))
    actions = [s.text for m in trajectory.messages for s in m.segments if s.kind is Kind.ACTION]
    assert len(actions) == 2
    assert actions[0].count("<function=") == 2


def test_a_folder_of_completion_logs_gives_the_last_log_of_each_run():
    loaded = load(str(FIXTURES / "openhands-completions"))
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


def test_rows_of_parquet_are_read_like_lines_and_arrays_like_lists(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [json.loads(line) for line in (FIXTURES / "chat-tools/swegym.jsonl").read_text().split("\n") if line]
    for row in rows:
        row["tools"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    from_parquet = load(str(tmp_path / "rows.parquet"))
    assert [t.messages for t in from_parquet] == [t.messages for t in load(str(FIXTURES / "chat-tools/swegym.jsonl"))]
    frame = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pandas()
    assert [_read(dict(row))[0].messages for _, row in frame.iterrows()] == [t.messages for t in from_parquet]


# --- SWE-agent --------------------------------------------------------------------------------------------------------

WHERE = Where("runs/owner__repo-1/owner__repo-1.traj")


def read_swe_agent(record):
    return read_record(SWE_AGENT, record, WHERE)


def message(role, content, **more):
    return {"role": role, "content": content, "agent": "main", **more}


def step(response, action, observation="ok"):
    return {"action": action, "observation": observation, "response": response, "thought": response, "state": {}}


def run(history, steps=(), parser=None, **info):
    config = {"agent": {"tools": {"parse_function": {"type": parser}}, "model": {"name": "m"}}}
    return {"history": history, "trajectory": list(steps), "info": info, "replay_config": config if parser else None}


PROMPT = [message("system", "Use ```\nls\n``` fences"), message("user", "Fix it", message_type="observation")]


@pytest.mark.parametrize(
    ("parser", "response", "thought", "action"),
    [
        ("thought_action", "I look.\n```\nls\n```", "I look.", "\n```\nls\n```"),
        ("thought_action", "See\n```py\nx\n```\nthen\n```\nls\n```\n", "See\n```py\nx\n```\nthen", "\n```\nls\n```\n"),
        ("xml_thought_action", "A <command>\n<command>ls</command>", "A <command>", "\n<command>ls</command>"),
        ("xml_function_calling", "A\n<function=bash>\n</function>", "A", "\n<function=bash>\n</function>"),
        ("single_bash_code_block", "A ```x``` b\n```bash\nls\n```", "A ```x``` b", "\n```bash\nls\n```"),
        ("json", '{"thought": "I \\"look\\"", "command": {"name": "ls"}}', 'I \\"look\\"', None),
        ("action_only", "ls -l", "", "ls -l"),
    ],
)  # fmt: skip
def test_a_text_parser_splits_the_response_and_keeps_every_character(parser, response, thought, action):
    read = read_swe_agent(run([*PROMPT, message("assistant", response)], parser=parser))
    segments = read.messages[-1].segments
    assert read.messages[-1].text == response
    assert "".join(s.text for s in segments if s.kind is Kind.THOUGHT) == thought
    expected = action if action is not None else response.replace(thought, "")
    assert "".join(s.text for s in segments if s.kind is Kind.ACTION) == expected
    assert read.fidelity is Fidelity.EXACT


def test_without_a_stored_parser_the_stored_actions_tell_which_it_was():
    text = "Example:\n```\nnot this\n```\n<command>\nls\n</command>"
    read = read_swe_agent(run([*PROMPT, message("assistant", text, action="ls")], [step(text, "ls")]))
    assert read.messages[-1].segments[-1].text == "\n<command>\nls\n</command>"


def test_demonstrations_and_prompts_are_context_even_from_the_assistant():
    demos = [
        message("user", "demo task", is_demo=True, message_type="demonstration"),
        message("assistant", "demo\n```\nls\n```", is_demo=True, action="ls"),
        message("user", "demo output", is_demo=True),
    ]
    history = [PROMPT[0], *demos, PROMPT[1], message("assistant", "Mine\n```\npwd\n```", action="pwd")]
    read = read_swe_agent(run(history, parser="thought_action"))
    assert [{s.kind for s in m.segments} for m in read.messages[:-1]] == [{Kind.CONTEXT}] * 5
    assert read.messages[-1].generated


def test_text_the_scaffold_wrote_for_the_agent_is_not_generated():
    history = [*PROMPT, message("assistant", "A\n```\nls\n```", action="ls"), message("user", "files")]
    history.append(message("assistant", "Exit due to cost limit", action="", thought="Exit due to cost limit"))
    read = read_swe_agent(run(history, parser="thought_action", exit_status="submitted (exit_cost)"))
    assert not read.messages[-1].generated
    assert read.messages[-1].text == "Exit due to cost limit"
    assert "scaffold wrote" in read.meta["warnings"][0]


def test_rejected_outputs_are_left_out_and_counted():
    good = "A\n```\nls\n```"
    history = [*PROMPT, message("assistant", good, action="ls"), message("user", "files")]
    steps = [step("no call", "", ""), step("again none", "", ""), step(good, "ls")]
    read = read_swe_agent(run(history, steps, parser="thought_action"))
    assert sum(m.generated for m in read.messages) == 1
    assert read.meta["warnings"] == [
        "an output that SWE-agent rejected or replaced is in no later prompt and is left out (2 times)"
    ]


def test_a_last_step_outside_the_history_is_read():
    history = [*PROMPT, message("assistant", "A\n```\nls\n```", action="ls"), message("user", "files")]
    steps = [step("A\n```\nls\n```", "ls"), step("Done\n```\nsubmit\n```", "submit", "diff --git a b")]
    read = read_swe_agent(run(history, steps, parser="thought_action"))
    assert [s.text for s in read.messages[-2].segments] == ["Done", "\n```\nsubmit\n```"]
    assert read.messages[-1].segments[0].kind is Kind.OBSERVATION


def test_steps_without_a_history_are_read_from_the_last_query():
    query = [*PROMPT, message("assistant", "A\n```\nls\n```", action="ls"), message("user", "files")]
    last = {**step("Done\n```\nsubmit\n```", "submit"), "query": query}
    read = read_swe_agent(run([], [step("A\n```\nls\n```", "ls"), last], parser="thought_action"))
    assert [m.role for m in read.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m.generated for m in read.messages] == [False, False, True, False, True, False]


def test_bare_steps_are_read_and_the_missing_prompt_is_reported():
    read = read_swe_agent(run([], [step("A\n```\nls\n```", "ls", "files")], parser="thought_action"))
    assert [m.text for m in read.messages] == ["A\n```\nls\n```", "files"]
    assert "the prompt is not stored" in read.meta["warnings"][0]


def test_the_chosen_attempt_is_read():
    attempts = [run([*PROMPT, message("assistant", f"{i}\n```\nls\n```")], parser="thought_action") for i in range(3)]
    chosen = read_swe_agent({"attempts": attempts, "info": {"best_attempt_idx": 1}})
    last = read_swe_agent({"attempts": attempts})
    assert chosen.messages[-1].text.startswith("1")
    assert last.messages[-1].text.startswith("2")
    assert "3 attempts" in last.meta["warnings"][0]


def test_a_function_call_is_rendered_and_reasoning_comes_first():
    calls = [{"function": {"name": "bash", "arguments": '{"command": "ls", "timeout": 5}'}, "id": "1"}]
    turn = message("assistant", "Look.", tool_calls=calls, thinking_blocks=[{"type": "thinking", "thinking": "Hm"}])
    read = read_swe_agent(run([*PROMPT, turn], parser="function_calling"))
    thought, action = read.messages[-1].segments
    assert thought.text == "<think>\nHm\n</think>\n\nLook."
    assert action.text == (
        "\n\n<function=bash>\n<parameter=command>ls</parameter>\n<parameter=timeout>5</parameter>\n</function>"
    )
    assert read.fidelity is Fidelity.RENDERED


def test_the_instance_is_named_by_the_problem_then_the_environment_then_the_file():
    history = [*PROMPT, message("assistant", "A\n```\nls\n```")]
    record = run(history)
    assert read_swe_agent(record).instance_id == "owner__repo-1"
    record["environment"] = "swe_main"
    assert read_swe_agent(record).instance_id == "owner__repo-1"
    record["environment"] = "env__name"
    assert read_swe_agent(record).instance_id == "env__name"
    record["replay_config"] = '{"problem_statement": {"id": "as__json-text"}}'
    assert read_swe_agent(record).instance_id == "as__json-text"
