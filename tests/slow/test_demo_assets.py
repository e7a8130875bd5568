"""The shipped demo files: what the README of the demo promises about them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hesnr_tasks.demo import ladder_file, ladder_paths, ladder_trajectories_path, trajectories_path
from hesnr_tasks.ladder.downstream import outcomes
from hesnr_tasks.ladder.schema import read_ladder_file
from hesnr_tasks.trajectory import FORMAT, Kind, Trajectory
from hesnr_tasks.trajectory.rendering import render
from tests import ROOT

PROJECT = ROOT
SCRIPTS = PROJECT / "scripts"
CHECKPOINTS = read_ladder_file(ladder_file()).checkpoints

REPLAY = """
import sys
sys.path[:0] = sys.argv[1:3]
from demo_programs import load
from make_demo_trajectories import SEEDS, lines, play
sys.stdout.buffer.write("".join(lines([play(p, SEEDS[p.name])]) for p in load() if p.name == sys.argv[3]).encode())
"""


def script(code: str, *arguments: str) -> bytes:
    """Run in an own process: scripts/ must not become importable for other tests."""
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return [json.loads(line) for line in trajectories_path().read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trajectories(records: list[dict]) -> list[Trajectory]:
    return [Trajectory.from_json(record) for record in records]


def test_trajectories_round_trip(records, trajectories):
    assert [t.to_json() for t in trajectories] == records
    assert {record["format"] for record in records} == {FORMAT}
    assert 8 <= len({t.id for t in trajectories}) == len(trajectories) <= 12
    assert all(t.resolved is True for t in trajectories)


def test_every_turn_has_a_thought_and_one_canonical_action(trajectories):
    for trajectory in trajectories:
        turns = [m for m in trajectory.messages if m.role == "assistant"]
        assert 6 <= len(turns) <= 12
        for turn in turns:
            thought, action = turn.segments
            assert (thought.kind, action.kind) == (Kind.THOUGHT, Kind.ACTION)
            assert thought.text == thought.text.strip() != ""
            assert action.text.startswith("\n\n<function=")
            assert action.text.endswith("\n</function>")
        assert "<function=submit>" in turns[-1].text


def test_actions_give_every_filter_something_to_do(trajectories):
    actions = "".join(s.text for t in trajectories for m in t.messages for s in m.segments if s.kind is Kind.ACTION)
    assert all(mark in actions for mark in ("<parameter=file_text>", "<<'EOF'", "\n# ", "\n## ", "- `", "old_str"))


@pytest.mark.parametrize("name", ["labels", "shifts"])
def test_playing_a_program_again_gives_the_same_bytes(name):
    stored = [
        line
        for line in trajectories_path().read_bytes().splitlines(keepends=True)
        if f'"id": "{name}.' in line.decode()
    ]
    assert [script(REPLAY, str(SCRIPTS), str(PROJECT), name)] == stored


def test_demo_files_stay_small():
    files = [path for path in ladder_file().parents[1].rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 15_000_000


def test_the_checkpoints_are_those_of_the_ladder_file_in_its_order_with_one_tokenizer():
    assert [(c.name, c.model) for c in CHECKPOINTS] == [(name, str(path)) for name, path in ladder_paths()]
    assert len({(path / "tokenizer.json").read_bytes() for _, path in ladder_paths()}) == 1


def test_the_miniature_has_two_families_with_downstream_scores():
    judged = outcomes(read_ladder_file(ladder_file()), "repaired")
    assert {checkpoint.family for checkpoint in CHECKPOINTS} == {"code", "prose"}
    for family in ("code", "prose"):
        rungs = [checkpoint for checkpoint in CHECKPOINTS if checkpoint.family == family]
        assert len(rungs) >= 6
        assert {rung.stage for rung in rungs} == {"pretrain", "long-context"}
        assert all(judged[rung.name].measured == "after sft" for rung in rungs)
        assert len({judged[rung.name].value for rung in rungs}) >= 4
        assert max(judged[rung.name].value for rung in rungs) >= 0.2


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda c: c.name)
def test_a_rung_of_the_miniature_loads_and_reads_the_experts_runs(checkpoint):
    """Chance is ln 640 = 6.5 nats per token; the runs fit the short context."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = Path(checkpoint.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    assert model.config.max_position_embeddings == checkpoint.context
    theta = 10_000.0 if checkpoint.context == 384 else 500_000.0
    assert model.model.rotary_emb.inv_freq[1].item() == pytest.approx(theta ** (-2 / 32))
    assert model.num_parameters() < 1_000_000
    lines = ladder_trajectories_path().read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    texts = [render(Trajectory.from_json(json.loads(line)), "transcript").text for line in lines]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert len(lines) == 100
    assert max(lengths) <= 384
    ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
    with torch.no_grad():
        assert 0 < model(input_ids=ids, labels=ids).loss.item() < 6.4
