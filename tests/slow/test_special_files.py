"""Pipes and devices where a file is expected are refused, in a process that would hang or burst if it read them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hesnr_tasks.scores import ScoreStore
from tests.unit.scores import made

TRIAL = {"schema_version": "ATIF-v1.4", "session_id": "s", "agent": {"name": "a", "version": "1"}, "steps": [
    {"step_id": 1, "source": "user", "message": "do it"},
    {"step_id": 2, "source": "agent", "message": "I do", "tool_calls": [
        {"tool_call_id": "c", "function_name": "bash", "arguments": {"command": "ls"}}]},
]}  # fmt: skip
REPORT = {"resolved_ids": ["a"], "unresolved_ids": ["b"]}
RUN = """
import contextlib, io, json, sys
from hesnr_tasks import cli
done = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    print(*words, file=sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        done.append([cli.main(words), out.getvalue(), err.getvalue()])
json.dump(done, sys.stdout)
"""
REFUSED = [
    ("samples_t_2026.jsonl", ["passk", "samples_t_2026.jsonl"]),
    ("t.csv", ["passk", "t.csv"]),
    ("t.json", ["passk", "t.json"]),
    ("logs/samples_t_2026.jsonl", ["passk", "logs"]),
    ("logs/samples_t_2026.jsonl", ["behaviours", "logs"]),
    ("reports/a.json", ["passk", "reports"]),
    ("judged/preds.json", ["passk", "judged/report.json"]),
    ("run/i/i.traj.json", ["egss", "report", "run", "--resolved", "judged/report.json"]),
    ("run/i/i.traj.json", ["egss", "calibrate", "run", "-o", "c.json"]),
    ("settings/run.json", ["analyze", "settings", "--all"]),
    ("scored/{parquet}", ["analyze", "scored", "--all"]),
    ("spelled/vocabulary.pq", ["analyze", "spelled", "--all", "--cases"]),
]
BESIDE = ["result.json", "verifier/reward.json", "verifier/reward.txt"]


def hesnr(commands, cwd):
    """What each of several commands returns and prints, all in one process."""
    # a limit on memory, so that a device that never ends does not take all there is
    limited = ["bash", "-c", 'ulimit -v 16000000; exec "$@"', "-", sys.executable, "-c", RUN]
    done = subprocess.run(limited, input=json.dumps(commands), capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def put(kind, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_a_special_file_is_refused_wherever_a_file_is_read(kind, tmp_path):
    made.filled(tmp_path / "scored", [1, 2])
    ScoreStore.open(tmp_path / "scored").save_token_bytes(lambda: [b"a"] * 600)
    for name in ("settings", "spelled"):
        shutil.copytree(tmp_path / "scored", tmp_path / name)
    parquet = next((tmp_path / "scored").glob("*.parquet")).name
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "report.json").write_text(json.dumps(REPORT))
    names = [name.format(parquet=parquet) for name, _ in REFUSED]
    for name in names:
        put(kind, tmp_path / name)
    trials = [tmp_path / "jobs" / f"task__{i}" for i in range(len(BESIDE))]
    for trial, name in zip(trials, BESIDE):
        put(kind, trial / name)
        (trial / "agent").mkdir()
        (trial / "agent" / "trajectory.json").write_text(json.dumps(TRIAL))
    converts = [["convert", f"{trial}/agent/trajectory.json", "-o", f"{trial.name}.jsonl"] for trial in trials]

    *done, a, b, c = hesnr([words for _, words in REFUSED] + converts, tmp_path)

    for name, (status, _, error) in zip(names, done, strict=True):
        assert status == 2, name
        assert Path(name).name in error
        assert kind in error
    for trial, name, (status, out, error) in zip(trials, BESIDE, (a, b, c)):
        assert status == 0, error
        assert f"a {Path(name).name} beside a trajectory cannot be read" in out
        assert json.loads((tmp_path / f"{trial.name}.jsonl").read_text())["resolved"] is None


DAMAGE = """
import io, random, sys
import pyarrow as pa, pyarrow.parquet as pq
from hesnr_tasks.formats import ReadReport, read_trajectories
messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "ls"}]
out, rng = io.BytesIO(), random.Random(1)
pq.write_table(pa.table({"id": ["a"] * 20, "messages": [messages] * 20}), out)
for _ in range(150):
    damaged = bytearray(out.getvalue())
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    open("damaged.parquet", "wb").write(damaged)
    list(read_trajectories("damaged.parquet", on_error="skip", report=ReadReport()))
"""


def test_a_damaged_parquet_file_does_not_end_the_process(tmp_path):
    command = [sys.executable, "-c", DAMAGE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[:500]
