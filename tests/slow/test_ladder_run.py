"""`hesnr ladder run`: every checkpoint once, what failed again, and on a Ray cluster of which a worker is killed."""

import json
import os
import sys
from pathlib import Path

import pytest

from hesnr_tasks import demo
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.ladder.run import Job, jobs, run_jobs, run_jobs_on_ray
from hesnr_tasks.ladder.schema import Checkpoint, DownstreamScore, Ladder, read_ladder_file

# stands for lm_eval: counts its runs, fails while a file says so, writes a result
STAND_IN = """
import json, os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1])
runs = out / "count"
runs.write_text(str(int(runs.read_text()) + 1 if runs.exists() else 1))
if (out.parent / f"{out.name}.fails").exists():
    print("no such luck")
    sys.exit(3)
if (out.parent / f"{out.name}.kills").exists():
    (out.parent / f"{out.name}.kills").unlink()
    os.kill(os.getppid(), 9)
    os._exit(0)
(out / "results_x.json").write_text(json.dumps({"results": {}}))
"""


def stand_ins(folder, *names, words=()):
    (folder / "runs").mkdir(exist_ok=True)
    command = (sys.executable, "-c", STAND_IN, *words)
    return [Job(name, command, folder / "runs" / name, name, "") for name in names]


def count(folder, name):
    return int((folder / "runs" / name / "count").read_text())


def test_each_is_run_once_and_a_failure_again(tmp_path):
    todo = stand_ins(tmp_path, "a", "b")
    (tmp_path / "runs" / "b.fails").touch()
    reports = []
    results = run_jobs(todo, reports.append)
    assert [(r.name, r.state) for r in results] == [("a", "scored"), ("b", "failed")] == [r[:2] for r in reports]
    assert "no such luck" in results[1].error
    assert "lm_eval.log" in results[1].error
    (tmp_path / "runs" / "b.fails").unlink()
    assert [r.state for r in run_jobs(todo, reports.append, workers=2)] == ["scored before", "scored"]
    assert [count(tmp_path, name) for name in "ab"] == [1, 2]
    changed = stand_ins(tmp_path, "a", "b", words=("--limit", "3"))
    assert [r.state for r in run_jobs(changed, reports.append)] == ["scored", "scored"]


def test_a_memory_that_cannot_be_read_is_no_memory(tmp_path):
    todo = stand_ins(tmp_path, "a")
    run_jobs(todo, lambda _: None)
    (tmp_path / "runs" / "a" / "ladder.json").write_text("{")
    assert [r.state for r in run_jobs(todo, lambda _: None)] == ["scored"]


def test_an_entry_that_only_judges_is_not_scored(tmp_path):
    score = {"swe_verified": DownstreamScore(31.2, 500)}
    judge = Checkpoint("base-sft", sft_of="base", downstream=score)
    tuned = Checkpoint("tuned", model="org/tuned", sft_of="base", downstream=score)
    ladder = Ladder((Checkpoint("base", model="org/base"), judge, tuned))
    assert [job.name for job in jobs(ladder, tmp_path)] == ["base", "tuned"]


def test_the_command_of_a_checkpoint(tmp_path):
    ladder = Ladder(
        (Checkpoint("lc 4000", model="org/m", revision="lc-4000", tokenizer="org/t"), Checkpoint("other")),
        trajectories=("hub/set",), tasks=("hesnr_swe", "gsm8k"), model_args={"dtype": "bfloat16"}, metadata={"k": 10},
    )  # fmt: skip
    first, second = jobs(ladder, tmp_path, extra=["--batch_size", "auto"])
    words = dict(zip(first.command[4:-2:2], first.command[5:-2:2], strict=False))
    assert words["--model_args"] == "pretrained=org/m,revision=lc-4000,tokenizer=org/t,dtype=bfloat16"
    assert words["--tasks"] == "hesnr_swe,gsm8k"
    assert json.loads(words["--metadata"]) == {"k": 10, "trajectories": ["hub/set"]}
    assert first.folder == tmp_path / "runs" / "lc_4000"
    assert "pretrained=other,dtype=bfloat16" in second.command
    with pytest.raises(SettingsError, match="'x' is no checkpoint"):
        jobs(ladder, tmp_path, only=["x"])
    with pytest.raises(SettingsError, match="',' or '='"):
        jobs(Ladder((Checkpoint("a", model="org/m,b"),)), tmp_path)
    with pytest.raises(SettingsError, match="differ only in signs"):
        jobs(Ladder((Checkpoint("a b"), Checkpoint("a/b"))), tmp_path)


def test_on_ray_a_killed_worker_is_replaced(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    todo = stand_ins(tmp_path, "a", "b", "c")
    (tmp_path / "runs" / "b.kills").touch()
    (tmp_path / "runs" / "c.fails").touch()
    try:
        results = run_jobs_on_ray(todo, lambda _: None, address="local")
    finally:
        ray.shutdown()
    assert [(r.name, r.state) for r in results] == [("a", "scored"), ("b", "scored"), ("c", "failed")]
    assert count(tmp_path, "b") == 2


def test_the_shipped_ladder_and_inputs_that_change(tmp_path, monkeypatch):
    """Models and trajectories lie beside the file; a run is of their content, not of their names."""
    monkeypatch.chdir(tmp_path)
    ladder = read_ladder_file(demo.ladder_file())
    assert [checkpoint.name for checkpoint in ladder.checkpoints] == [name for name, _ in demo.ladder_paths()]
    first = jobs(ladder, tmp_path)[0]
    assert set(first.inputs) == {str(demo.ladder_paths()[0][1]), str(demo.trajectories_path())}
    trajectories = tmp_path / "runs.jsonl"
    trajectories.write_text("1")
    (job,) = stand_ins(tmp_path, "a")
    job = job._replace(inputs=(str(trajectories),))
    states = [run_jobs([job], lambda _: None)[0].state for _ in range(2)]
    trajectories.write_text("12")
    assert [*states, run_jobs([job], lambda _: None)[0].state] == ["scored", "scored before", "scored"]
