"""The real files: labels cover the stored text, the same run in two formats gives the same thoughts and actions."""

import json

import pytest

from hesnr_tasks.formats import load, read_trajectories
from hesnr_tasks.trajectory import Fidelity, Kind, Trajectory


def _lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def test_one_run_stored_as_xml_messages_and_as_traj_has_the_same_thoughts_and_actions(real, own):
    xml = load(str(real / "swesmith_xml_messages.jsonl"))[0]
    traj = load(str(real / "pandas-dev__pandas.95280573.pr_53652.traj"))[0]
    assert own(xml) == own(traj)
    assert len(own(xml)) == 72
    assert (xml.id, xml.fidelity, traj.fidelity) == (traj.id, Fidelity.SYNTHETIC, Fidelity.RENDERED)


def test_the_same_run_has_the_same_observations_up_to_the_final_patch(real):
    def answers(trajectory):
        return [m.text for m in trajectory.messages if any(s.kind is Kind.OBSERVATION for s in m.segments)]

    xml = load(str(real / "swesmith_xml_messages.jsonl"))[0]
    traj = load(str(real / "pandas-dev__pandas.95280573.pr_53652.traj"))[0]
    assert answers(xml) == answers(traj)[:-1]
    assert answers(traj)[-1].startswith("OBSERVATION:\ndiff --git")


def test_xml_messages_concatenate_to_the_stored_text(real):
    path = real / "swesmith_xml_messages.jsonl"
    for row, trajectory in zip(_lines(path), load(str(path)), strict=True):
        assert [m.text for m in trajectory.messages] == [m["content"] for m in row["messages"]]


def test_every_swesmith_turn_is_thought_then_action(real):
    for trajectory in load(str(real / "swesmith_xml_messages.jsonl")):
        for message in (m for m in trajectory.messages if m.role == "assistant"):
            assert [s.kind for s in message.segments][-1] is Kind.ACTION
            assert message.segments[-1].text.lstrip().startswith("<function=")
            assert message.segments[-1].text.startswith("\n\n")


@pytest.mark.parametrize("name", ["pandas-dev__pandas.95280573.pr_53652", "sweagent_function_calling_marshmallow-1867"])
def test_a_traj_keeps_its_messages_and_labels_the_submitted_patch_as_observation(real, name, own):
    path = real / f"{name}.traj"
    history = json.loads(path.read_bytes())["history"]
    trajectory = load(str(path))[0]
    assert [m.role for m in trajectory.messages] == [item["role"] for item in history]
    patch = trajectory.messages[-1]
    assert {s.kind for s in patch.segments} == {Kind.OBSERVATION}
    assert "diff --git" in patch.text
    assert not any("diff --git a/" in text for kind, text in own(trajectory) if kind == "thought")
    for item, message in zip(history, trajectory.messages, strict=True):
        if item["role"] == "assistant":
            thought = "".join(s.text for s in message.segments if s.kind is Kind.THOUGHT)
            assert thought == item["content"].rstrip()
            assert f"<function={item['tool_calls'][0]['function']['name']}>" in message.segments[-1].text


def test_what_is_read_survives_the_normalised_file(real, tmp_path):
    first = list(read_trajectories([str(real / "swesmith_xml_messages.jsonl"), str(real / "*.traj")]))
    path = tmp_path / "normalised.jsonl"
    path.write_text("".join(json.dumps(t.to_json()) + "\n" for t in first), encoding="utf-8")
    assert [Trajectory.from_json(t.to_json()) for t in first] == first
    assert list(read_trajectories(str(path))) == first


def test_a_mini_swe_agent_run_concatenates_to_the_stored_text_and_each_turn_ends_in_its_command(real):
    path = real / "mini_swe_agent_v1_messages.traj.json"
    stored = json.loads(path.read_bytes())
    (trajectory,) = load(str(path))
    assert trajectory.fidelity is Fidelity.EXACT
    assert [m.text for m in trajectory.messages] == [m["content"] for m in stored]
    for message in (m for m in trajectory.messages if m.role == "assistant"):
        assert [s.kind for s in message.segments] == [Kind.THOUGHT, Kind.ACTION]
        assert message.segments[1].text.strip().startswith("```mswea_bash_command\n")


def test_openhands_turns_are_the_stored_responses_once_each(real):
    path = real / "openhands_events_output.jsonl"
    for row, trajectory in zip(_lines(path), load(str(path)), strict=True):
        responses = {}
        for event in row["history"]:
            response = (event.get("tool_call_metadata") or {}).get("model_response")
            if response and "action" in event:
                responses[response["id"]] = response["choices"][0]["message"]
        turns = [m for m in trajectory.messages if m.generated]
        assert len(turns) == len(responses)
        for message, turn in zip(responses.values(), turns, strict=True):
            thought = "".join(s.text for s in turn.segments if s.kind is Kind.THOUGHT)
            action = "".join(s.text for s in turn.segments if s.kind is Kind.ACTION)
            assert thought == (message["content"] or "").rstrip()
            assert action.count("<function=") >= len(message["tool_calls"])
            for call in message["tool_calls"]:
                for key, value in json.loads(call["function"]["arguments"]).items():
                    assert f"<parameter={key}>" in action
                    assert (value if isinstance(value, str) else json.dumps(value)) in action


def test_openhands_observations_are_the_stored_ones(real):
    path = real / "openhands_events_output.jsonl"
    hidden = ("recall", "agent_state_changed", "null")
    for row, trajectory in zip(_lines(path), load(str(path)), strict=True):
        stored = [e["content"] for e in row["history"] if e.get("observation") not in (None, *hidden)]
        read = [m.text for m in trajectory.messages if m.role == "tool"]
        assert read == stored


def test_the_old_resolver_row_gives_its_thoughts_and_leaves_the_outcome_open(real, own):
    path = real / "openhands_legacy_resolver_output.jsonl"
    (row,) = _lines(path)
    (trajectory,) = load(str(path))
    thoughts = [event["thought"] for event in row["history"] if event.get("thought")]
    assert [text for kind, text in own(trajectory) if kind == "thought"] == thoughts
    assert trajectory.resolved is None
    assert row["success"] is True


def test_convert_of_all_real_files_counts_what_is_there(real, tmp_path):
    from hesnr_tasks.cli.trajectories import convert

    files = [str(real / name) for name in sorted(p.name for p in real.iterdir() if p.suffix != ".md")]
    totals = convert(files, str(tmp_path / "all.jsonl"))
    kept = load(str(tmp_path / "all.jsonl"))
    assert totals.written == len(kept) == 8
    assert totals.turns == sum(m.role == "assistant" for t in kept for m in t.messages)
    assert sum(totals.characters.values()) == sum(len(m.text) for t in kept for m in t.messages)
