"""The tasks on public data sets: what they name, and that rows of those data sets' schemas become what they should.

The rows lie in parquet files with the columns and types of each data set's card, because parquet fills in nulls for
keys that only some messages have, and gives JSON text where a card says string.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lm_eval.tasks import TaskManager

from hesnr_tasks.formats import load
from hesnr_tasks.tasks import tasks_path
from hesnr_tasks.tasks.settings import TaskSettings
from hesnr_tasks.trajectory import Fidelity, Kind

CALL = "<function={}>\n<parameter=command>{}</parameter>\n</function>"
COMMAND = "sed -i 's/a - b/a + b/' calc.py  # mend"

FUNCTION = pa.struct([("arguments", pa.string()), ("name", pa.string())])
TOOL_CALL = pa.struct([("function", FUNCTION), ("id", pa.string()), ("index", pa.int64()), ("type", pa.string())])


def chat(name, arguments, **more):
    """A run as messages with tool calls, every key present as parquet has it."""
    call = {"function": {"arguments": arguments, "name": name}, "id": "c1", "index": None, "type": "function"}
    messages = [
        {"role": "system", "content": "You are an agent. Example:\n<function=example>\n</function>"},
        {"role": "user", "content": "Fix add()."},
        {"role": "assistant", "content": "Mend it.", "tool_calls": [call]},
        {"role": "tool", "content": "OBSERVATION:\ndone", "tool_call_id": "c1", "name": name},
    ]
    return [{**m, **more} if m["role"] == "assistant" else m for m in messages]


def message_type(*more):
    text = ("content", "role", "name", "tool_call_id", *more)
    return pa.list_(pa.struct([*((key, pa.string()) for key in text), ("tool_calls", pa.list_(TOOL_CALL))]))


def swe_smith_xml():
    """Split `xml`: `messages` is JSON text, the calls are text."""
    text = "Mend it.\n\n" + CALL.format("bash", COMMAND)
    messages = [
        {"role": "system", "content": "You have functions, e.g. <function=example_function_name>."},
        {"role": "user", "content": "Fix add()."},
        {"role": "assistant", "content": text},
        {"role": "user", "content": "OBSERVATION:\ndone"},
    ]
    return smith([messages] * 4)


def swe_smith_tool():
    """Split `tool`: SWE-agent's own history items, some of them in lists of one."""
    call = {"function": {"name": "bash", "arguments": json.dumps({"command": COMMAND})}, "id": "c1", "type": "function"}
    messages = [
        {"role": "system", "content": "s", "agent": "main", "message_type": "system_prompt"},
        {"role": "user", "content": [{"type": "text", "text": "Fix add()."}], "message_type": "observation"},
        {"role": "assistant", "content": "Mend it.", "thought": "Mend it.", "action": COMMAND, "tool_calls": [call],
         "message_type": "action"},
        {"role": "tool", "content": [{"type": "text", "text": "OBSERVATION:\ndone"}], "tool_call_ids": ["c1"],
         "message_type": "observation"},
    ]  # fmt: skip
    return smith([messages, messages, messages, [[message] for message in messages]])


def smith(runs):
    return pa.table(
        {
            "messages": [json.dumps(messages) for messages in runs],
            "instance_id": ["o__calc.0123abcd.pr_1"] * 4,
            "resolved": [True, False, None, True],
            "model": ["some/model"] * 4,
            "traj_id": [f"o__calc.0123abcd.pr_1.{i}" for i in range(4)],
            "patch": ["", None, "diff", "diff"],
        }
    )


def swe_gym():
    """Split `train.raw`: messages of which every one has every key."""
    result = pa.struct([("git_patch", pa.string())])
    messages = chat("execute_bash", json.dumps({"command": COMMAND}))
    return pa.table(
        {
            "instance_id": pa.array(["o__calc-1"] * 4),
            "run_id": pa.array(["a", "b", "c", "d"]),
            "resolved": pa.array([True, False, None, True]),
            "messages": pa.array([messages] * 4, message_type("function_call")),
            "tools": pa.array([[]] * 4, pa.list_(pa.string())),
            "test_result": pa.array([{"git_patch": "diff"}] * 4, result),
        }
    )


def nebius_openhands():
    """`trajectory` instead of `messages`; `resolved` is 0 or 1."""
    messages = chat("execute_bash", json.dumps({"command": COMMAND}))
    return pa.table(
        {
            "trajectory_id": pa.array([f"chatcmpl-{i}" for i in range(4)]),
            "instance_id": pa.array(["o__calc-1"] * 4),
            "repo": pa.array(["o/calc"] * 4),
            "trajectory": pa.array([messages] * 4, message_type()),
            "tools": pa.array([[{"type": "function"}]] * 4),
            "model_patch": pa.array(["diff"] * 4),
            "exit_status": pa.array(["submit"] * 4),
            "resolved": pa.array([1, 0, 0, 1], pa.int64()),
            "gen_tests_correct": pa.array([0.0, None, None, 1.0], pa.float64()),
            "pred_passes_gen_tests": pa.array([1.0, None, None, 1.0], pa.float64()),
        }
    )


def nebius_sweagent():
    """Role `ai`, the text in `text`, the outcome in `target`; no id of its own."""
    keys = [("cutoff_date", pa.string()), ("mask", pa.bool_()), ("role", pa.string())]
    item = pa.struct([*keys, ("system_prompt", pa.string()), ("text", pa.string())])
    runs = [
        [
            {"role": "system", "system_prompt": "SETTING: a shell.", "mask": False, "cutoff_date": "01.01.2023"},
            {"role": "user", "text": "Fix add().", "mask": False},
            {"role": "ai", "text": f"DISCUSSION\nMend it ({i}).\n\n```\n{COMMAND}\n```", "mask": True},
            {"role": "user", "text": "done\n(Open file: n/a)\nbash-$", "mask": False},
        ]
        for i in range(4)
    ]
    return pa.table(
        {
            "instance_id": pa.array(["o__calc-1"] * 4),
            "model_name": pa.array(["swe-agent-llama-70b"] * 4),
            "target": pa.array([True, False, False, True]),
            "trajectory": pa.array(runs, pa.list_(item)),
            "exit_status": pa.array(["submitted", "early_exit", "submitted (exit_context)", "submitted"]),
            "generated_patch": pa.array(["diff", None, None, "diff"]),
            "eval_logs": pa.array(["log"] * 4),
        }
    )


def open_swe_traces():
    """`resolved` is -1 where it is not known; `tools` and `metadata` are JSON text; there is a `reasoning_content`."""
    messages = chat("execute_bash", json.dumps({"command": COMMAND}), reasoning_content="First look.")
    return pa.table(
        {
            "trajectory_id": pa.array([f"run-{i}" for i in range(4)]),
            "instance_id": pa.array(["o__calc-1"] * 4),
            "messages": pa.array([messages] * 4, message_type("reasoning_content")),
            "tools": pa.array([[json.dumps({"type": "function"})]] * 4),
            "resolved": pa.array([1, 0, -1, 1], pa.int64()),
            "metadata": pa.array([json.dumps({"model_patch": "diff"})] * 4),
        }
    )


# task -> rows, data set, split, reader, fidelity, the action and the thought of the one turn
CASES = {
    "hesnr_swe_smith": (
        swe_smith_xml, "SWE-bench/SWE-smith-trajectories", "xml", "chat-xml", Fidelity.SYNTHETIC,
        CALL.format("bash", COMMAND), "Mend it.",
    ),
    "hesnr_swe_smith_tool": (
        swe_smith_tool, "SWE-bench/SWE-smith-trajectories", "tool", "chat-tools", Fidelity.RENDERED,
        CALL.format("bash", COMMAND), "Mend it.",
    ),
    "hesnr_swe_gym": (
        swe_gym, "SWE-Gym/OpenHands-Sampled-Trajectories", "train.raw", "chat-tools", Fidelity.RENDERED,
        CALL.format("execute_bash", COMMAND), "Mend it.",
    ),
    "hesnr_nebius_openhands": (
        nebius_openhands, "nebius/SWE-rebench-openhands-trajectories", "train", "chat-tools", Fidelity.RENDERED,
        CALL.format("execute_bash", COMMAND), "Mend it.",
    ),
    "hesnr_nebius_sweagent": (
        nebius_sweagent, "nebius/SWE-agent-trajectories", "train", "nebius-swe-agent", Fidelity.EXACT,
        f"```\n{COMMAND}\n```", "DISCUSSION\nMend it (0).",
    ),
    "hesnr_open_swe_traces": (
        open_swe_traces, "nvidia/Open-SWE-Traces", "openhands", "chat-tools", Fidelity.RENDERED,
        CALL.format("execute_bash", COMMAND), "First look.",
    ),
}  # fmt: skip
every = pytest.mark.parametrize("task", CASES)


@pytest.fixture
def rows(task, tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(CASES[task][0](), path)
    return str(path)


def text_of(trajectory, kind):
    return "".join(s.text for m in trajectory.messages for s in m.segments if s.kind is kind)


def task_of(name, **metadata):
    """The task as lm-eval makes it from the YAML file."""
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=metadata)
    return manager.load([name])["tasks"][name]


@every
def test_the_rows_are_read_as_what_they_are(task, rows):
    _, _, _, reader, fidelity, action, thought = CASES[task]
    trajectories = load(rows)
    assert [t.resolved for t in trajectories][:2] == [True, False]
    assert len({t.id for t in trajectories}) == len(trajectories) == 4
    assert {(t.source, t.fidelity) for t in trajectories} == {(reader, fidelity)}
    first = trajectories[0]
    assert text_of(first, Kind.ACTION).strip() == action
    assert thought in text_of(first, Kind.THOUGHT)
    assert "Fix add()." in text_of(first, Kind.CONTEXT)
    assert "done" in text_of(first, Kind.OBSERVATION)


@every
def test_the_task_takes_resolved_runs_of_its_data_set(task, rows):
    _, data_set, split, *_ = CASES[task]
    loaded = task_of(task, trajectories=rows)
    settings = loaded.settings
    assert (settings.split, settings.only_resolved) == (split, True)
    assert (settings.sample, settings.sample_seed) == (500, 1234)
    assert (settings.kinds, settings.filters) == (TaskSettings().kinds, TaskSettings().filters)
    assert [document.resolved for document in loaded.corpus.documents] == [True, True]
    text = (tasks_path() / f"{task}.yaml").read_text()
    assert f"\n  trajectories: {data_set}\n" in text


@pytest.mark.parametrize("task", ["hesnr_nebius_sweagent"])
def test_a_smaller_sample_can_be_asked_for_and_stays_put(task, rows, tmp_path):
    sampled = task_of(task, trajectories=rows, sample=1).corpus
    table = pq.read_table(rows)
    turned = tmp_path / "turned.parquet"
    pq.write_table(table.take(list(range(len(table)))[::-1]), turned)
    sampled_of_turned = task_of(task, trajectories=str(turned), sample=1).corpus
    assert len(sampled) == len(sampled_of_turned) == 1
    assert [t.messages for t in sampled] == [t.messages for t in sampled_of_turned]


def test_every_public_task_is_tested():
    names = {p.stem for p in tasks_path().glob("*.yaml") if "\n  sample: " in p.read_text()}
    assert names == set(CASES)
