"""`hesnr ladder run`: every checkpoint once, what failed again, and on a Ray cluster of which a worker is killed."""

import json
import os
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from hesnr_tasks import demo
from hesnr_tasks.errors import HesnrError, SettingsError
from hesnr_tasks.ladder.run import Job, LocalPool, Progress, RayPool, SlurmPool, jobs, progress_of, run_job, run_jobs
from hesnr_tasks.ladder.schema import Checkpoint, DownstreamScore, Ladder, read_ladder_file
from hesnr_tasks.report.results import read_results

# stands for lm_eval: counts its runs, fails while a file says so, writes a result
STAND_IN = """
import json, os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1])
if out.suffix == ".json":  # a shard
    (out.parent / "shards").open("a").write(out.stem[-1])
    if (out.parent / f"{out.stem}.fails").exists():
        sys.exit(3)
    out.with_name(f"{out.stem}_x.json").write_text("{}")
    sys.exit(0)
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


def sharded(job, number):
    return job._replace(shards=tuple((*job.command, "--shard", f"{i + 1}/{number}") for i in range(number)))


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
    assert [r.state for r in run_jobs(todo, reports.append, pool=LocalPool(2))] == ["scored before", "scored"]
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
    with pytest.raises(SettingsError, match="put limit: N or sample: N into the ladder file"):
        jobs(ladder, tmp_path, extra=["--limit=3"], shards=2)
    with pytest.raises(SettingsError, match="differ only in signs"):
        jobs(Ladder((Checkpoint("a b"), Checkpoint("a/b"))), tmp_path)


def test_what_was_downloaded_is_dropped_and_nothing_else(tmp_path, monkeypatch):
    """Three revisions of one model: one that was there before, one that a neighbour reads, and the job's own."""
    manager = pytest.importorskip("huggingface_hub.utils._cache_manager")
    cache = tmp_path / "hub"
    monkeypatch.setattr(manager, "HF_HUB_CACHE", str(cache))
    repo = cache / "models--org--m"
    downloading = (
        "import sys\nfrom pathlib import Path\nrepo = Path(sys.argv[1])\nfor word in sys.argv[2:]:\n"
        "    name, _, commit = word.partition('=')\n    if not commit: continue\n"
        "    for part in ('refs', 'blobs', f'snapshots/{commit}'): (repo / part).mkdir(parents=True, exist_ok=True)\n"
        "    (repo / 'refs' / name).write_text(commit); (repo / 'blobs' / commit).write_text(name)\n"
        "    (repo / 'snapshots' / commit / 'model').unlink(missing_ok=True)\n"
        "    (repo / 'snapshots' / commit / 'model').symlink_to(repo / 'blobs' / commit)"
    )
    commits = {name: digit * 40 for name, digit in (("main", "a"), ("step1", "b"), ("step2", "c"))}

    def job(*names):
        words = [f"{name}={commits[name]}" for name in names]
        command = (sys.executable, "-c", downloading, str(repo), *words)
        return Job(names[0], command, tmp_path / "runs" / names[0], "org/m", names[0])

    assert run_job(job("main"), drop_downloads=False).state == "scored"
    assert run_job(job("step1", "step2"), drop_downloads=True).state == "scored"  # step2 comes while it runs
    left = {path.name for path in (repo / "snapshots").iterdir()}
    assert left == {commits["main"], commits["step2"]}
    (tmp_path / "runs" / "main" / "ladder.json").unlink()
    run_job(job("main")._replace(revision=""), drop_downloads=True)
    assert {path.name for path in (repo / "blobs").iterdir()} == left  # it was there before


def test_on_ray_a_killed_worker_is_replaced(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    todo = stand_ins(tmp_path, "a", "b", "c")
    (tmp_path / "runs" / "b.kills").touch()
    (tmp_path / "runs" / "c.fails").touch()
    try:
        results = run_jobs(todo, lambda _: None, pool=RayPool("local"))
    finally:
        ray.shutdown()
    assert [(r.name, r.state) for r in results] == [("a", "scored"), ("b", "scored"), ("c", "failed")]
    assert count(tmp_path, "b") == 2


def check_shards(folder, pool):
    """Three shards of each come before the whole, one that fails stops nothing, and what is done is not done again."""
    todo = [sharded(job, 3) for job in stand_ins(folder, "a", "b")]
    (folder / "runs" / "b").mkdir()
    (folder / "runs" / "b" / "shard-2.fails").touch()
    assert [(r.name, r.state) for r in run_jobs(todo, lambda _: None, pool=pool)] == [("a", "scored"), ("b", "scored")]
    for name in "ab":
        assert sorted((folder / "runs" / name / "shards").read_text()) == ["1", "2", "3"]
        assert count(folder, name) == 1
    assert not [*folder.rglob("shard-*_x.json")]  # numbers of a part are no results
    return todo


def test_shards_here(tmp_path):
    todo = check_shards(tmp_path, LocalPool(2))
    assert [r.state for r in run_jobs(todo, lambda _: None)] == ["scored before", "scored before"]
    assert (tmp_path / "runs" / "a" / "shards").read_text().count("1") == 1


def test_shards_on_ray(tmp_path):
    ray = pytest.importorskip("ray")
    try:
        check_shards(tmp_path, RayPool("local"))
    finally:
        ray.shutdown()


def test_shards_with_submitit_without_a_slurm(tmp_path):
    pytest.importorskip("submitit")
    settings = {"cluster": "local", "time": 5, "partition": "gpu", "cpus": 1}
    check_shards(tmp_path, SlurmPool(tmp_path / "slurm", settings))
    assert any((tmp_path / "slurm").iterdir())
    with pytest.raises(HesnrError, match="there is no Slurm here"):
        SlurmPool(tmp_path / "slurm", {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"setup": "rm -rf x"}, "'setup' must be one of partition, time"),
        ({"partition": "gpu\n#SBATCH --wrap=x"}, "is no single word"),
        ({"account": "a; b"}, "is no single word"),
        ({"time": "1:00:00"}, "must be a whole number of minutes"),
        ({"mem_gb": 0}, "must be a whole number of GB"),
    ],
)
def test_settings_of_slurm_are_few_single_words(tmp_path, settings, message):
    with pytest.raises(SettingsError, match=message):
        SlurmPool(tmp_path, settings)


def test_a_job_in_which_slurm_failed_is_a_failed_checkpoint(tmp_path):
    class Lost:
        poll_seconds = 0.0

        def submit(self, job, drop_downloads):
            future = Future()
            future.set_exception(RuntimeError("Job (task=0) failed during processing with trace:\nmore"))
            return future

        def close(self):
            pass

    (result,) = run_jobs(stand_ins(tmp_path, "a"), lambda _: None, pool=Lost())
    assert (result.state, "failed during processing" in result.error) == ("failed", True)


def test_shards_of_real_runs_are_the_numbers_of_the_whole(tmp_path, warm_python):
    """Two processes a checkpoint at a time into one folder: the same results, of one run."""

    def warm(command):
        assert command[:2] == (sys.executable, "-m")
        return warm_python.python, *command[1:]

    ladder = read_ladder_file(demo.ladder_file())
    ladder = replace(ladder, metadata={**ladder.metadata, "limit": 5, "resamples": 200}, tasks=("hesnr_swe",))
    (name, _), *_ = demo.ladder_paths()
    rows = []
    for shards in (1, 3):
        (job,) = jobs(ladder, tmp_path / str(shards), only=[name], shards=shards)
        job = job._replace(command=warm(job.command), shards=tuple(map(warm, job.shards)))
        (result,) = run_jobs([job], lambda _: None, pool=LocalPool(2))
        assert result.state == "scored", result.error
        (row,) = read_results([tmp_path / str(shards)])
        rows.append((row.values, {**row.signature, "date": None}))
        (folder,) = (tmp_path / str(shards)).rglob("run.json")
        assert [path.name for path in (folder.parent / "runs").iterdir()] == ["000001.json"]
        assert len([*folder.parent.glob("*.parquet")]) == 5
    assert repr(rows[0]) == repr(rows[1])


def test_how_far_a_job_is(tmp_path):
    (job,) = stand_ins(tmp_path, "a")
    assert progress_of(job, 0) == Progress("waiting")
    job.folder.mkdir()
    job.log.write_text("Loading\n")
    assert progress_of(job, 0) == Progress("running")
    assert progress_of(job, job.log.stat().st_mtime + 9) == Progress("waiting")  # of an earlier run
    job.log.write_text(
        "x scoring: 12% of 1.2M tokens, 09:59 left (5k)\nx scoring: 30% of 1.2M tokens, 02:03 left (5k)\n"
    )
    assert progress_of(job, 0) == Progress("running", 0.3, "02:03")
    whole = sharded(job, 2)
    whole._replace(shard=1).log.write_text("scoring: 40% of 9 tokens, 1:02:03 left (5k)\n")
    assert progress_of(whole, 0) == Progress("running", 0.2, "1:02:03")


def test_the_shipped_ladder_and_inputs_that_change(tmp_path, monkeypatch):
    """Models and trajectories lie beside the file; a run is of their content, not of their names."""
    monkeypatch.chdir(tmp_path)
    ladder = read_ladder_file(demo.ladder_file())
    assert [checkpoint.name for checkpoint in ladder.checkpoints] == [name for name, _ in demo.ladder_paths()]
    first = jobs(ladder, tmp_path)[0]
    assert set(first.inputs) == {str(demo.ladder_paths()[0][1]), str(demo.ladder_trajectories_path())}
    trajectories = tmp_path / "runs.jsonl"
    trajectories.write_text("1")
    (job,) = stand_ins(tmp_path, "a")
    job = job._replace(inputs=(str(trajectories),))
    states = [run_jobs([job], lambda _: None)[0].state for _ in range(2)]
    trajectories.write_text("12")
    assert [*states, run_jobs([job], lambda _: None)[0].state] == ["scored", "scored before", "scored"]
