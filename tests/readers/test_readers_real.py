"""The real files: labels cover the stored text, the same run in two formats gives the same thoughts and actions."""

import json

import pytest

from hesnr_tasks.readers import load, read_trajectories
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
