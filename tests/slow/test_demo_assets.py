"""The shipped demo files: what the README of the demo promises about them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hesnr_tasks.demo import ladder_paths, miniature_file, trajectories_path
from hesnr_tasks.ladder.downstream import outcomes
from hesnr_tasks.ladder.schema import read_ladder_file
from hesnr_tasks.trajectory import FORMAT, Kind, Trajectory
from hesnr_tasks.trajectory.rendering import render
from tests import ROOT

PROJECT = ROOT
SCRIPTS = PROJECT / "scripts"
NAMES = [name for name, _ in ladder_paths()]

REPLAY = """
import sys
sys.path[:0] = sys.argv[1:3]
from demo_programs import load
from make_demo_trajectories import SEEDS, lines, play
sys.stdout.buffer.write("".join(lines([play(p, SEEDS[p.name])]) for p in load("shipped") if p.name == sys.argv[3]).encode())
"""  # noqa: E501

PROGRAMS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from demo_programs import load
json.dump({f: [[p.name, p.files, p.text["issue"]] for p in load(f)] for f in ("shipped", "training")}, sys.stdout)
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


@pytest.fixture(scope="module")
def programs() -> dict[str, list]:
    return json.loads(script(PROGRAMS, str(SCRIPTS)))


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


def test_training_and_demo_programs_are_disjoint(programs, trajectories):
    demo, training = programs["shipped"], programs["training"]
    assert {name for name, _, _ in demo} == {t.instance_id for t in trajectories}
    assert not {name for name, _, _ in demo} & {name.rpartition("-")[0] for name, _, _ in training}
    assert not {issue for _, _, issue in demo} & {issue for _, _, issue in training}
    own = [{text for path, text in files.items() if path != "runtests.py"} for _, files, _ in (*demo, *training)]
    assert not set.union(*own[: len(demo)]) & set.union(*own[len(demo) :])


def test_ladder_is_ordered_and_extends_the_context():
    assert len(NAMES) == 6
    assert sorted(NAMES) == NAMES
    contexts = [json.loads((path / "config.json").read_text())["max_position_embeddings"] for _, path in ladder_paths()]
    assert contexts == [2048] * 4 + [8192] * 2


def test_demo_files_stay_small():
    files = [path for path in trajectories_path().parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    sizes = {part: sum(p.stat().st_size for p in files if ("miniature" in p.parts) == part) for part in (False, True)}
    assert sizes[False] <= 12_000_000
    assert sizes[True] <= 15_000_000


def test_checkpoints_share_one_tokenizer():
    assert len({(path / "tokenizer.json").read_bytes() for _, path in ladder_paths()}) == 1


def test_every_trajectory_fits_the_short_context(trajectories):
    tokenizer = tokenizer_of(ladder_paths()[0][1])
    assert tokenizer.is_fast
    for rendering in ("transcript", "chatml"):
        lengths = {t.id: 1 + len(tokenizer(render(t, rendering).text)["input_ids"]) for t in trajectories}
        assert max(lengths.values()) <= 2048, lengths


def test_chat_template_is_chatml():
    tokenizer = tokenizer_of(ladder_paths()[0][1])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    assert tokenizer(text)["input_ids"].count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_loads_and_is_better_than_chance(name, trajectories):
    """Chance is ln 2048 = 7.6 nats per token."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = dict(ladder_paths())[name]
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    theta = 10_000.0 if name.endswith("-2k") else 500_000.0
    assert model.model.rotary_emb.inv_freq[1].item() == pytest.approx(theta ** (-2 / 32))
    ids = torch.tensor([tokenizer_of(path)(render(trajectories[0]).text)["input_ids"]])
    with torch.no_grad():
        assert 0 < model(input_ids=ids, labels=ids).loss.item() < 5


def test_the_miniature_has_two_families_with_downstream_scores():
    ladder = read_ladder_file(miniature_file())
    judged = outcomes(ladder, "repaired")
    families = {checkpoint.family for checkpoint in ladder.checkpoints}
    assert families == {"code", "prose"}
    for family in families:
        rungs = [checkpoint for checkpoint in ladder.checkpoints if checkpoint.family == family]
        assert len(rungs) >= 6
        assert {rung.stage for rung in rungs} == {"pretrain", "long-context"}
        assert all(judged[rung.name].measured == "after sft" for rung in rungs)
        assert len({judged[rung.name].value for rung in rungs}) >= 4
        assert max(judged[rung.name].value for rung in rungs) >= 0.2


@pytest.mark.parametrize("checkpoint", read_ladder_file(miniature_file()).checkpoints, ids=lambda c: c.name)
def test_a_rung_of_the_miniature_loads_and_reads_the_experts_runs(checkpoint):
    """Chance is ln 640 = 6.5 nats per token; the runs fit the short context."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = Path(checkpoint.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    assert model.config.max_position_embeddings == checkpoint.context
    assert model.num_parameters() < 1_000_000
    lines = (miniature_file().parent / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = tokenizer_of(path)
    texts = [render(Trajectory.from_json(json.loads(line)), "transcript").text for line in lines]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert len(lines) == 100
    assert max(lengths) <= 384
    ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
    with torch.no_grad():
        assert 0 < model(input_ids=ids, labels=ids).loss.item() < 6.4


def tokenizer_of(path: Path):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(path)
