"""Pipes and devices where a file is expected are refused, in a process that would hang or burst if it read them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hesnr_tasks.scores import ScoreStore
from tests import ROOT
from tests.unit.formats.test_hostile_files import line
from tests.unit.scores import made

TRIAL = {"schema_version": "ATIF-v1.4", "session_id": "s", "agent": {"name": "a", "version": "1"}, "steps": [
    {"step_id": 1, "source": "user", "message": "do it"},
    {"step_id": 2, "source": "agent", "message": "I do", "tool_calls": [
        {"tool_call_id": "c", "function_name": "bash", "arguments": {"command": "ls"}}]},
]}  # fmt: skip
REPORT = {"resolved_ids": ["a"], "unresolved_ids": ["b"]}
RUN = """
import contextlib, io, json, os, sys
from hesnr_tasks import cli
done = []
for folder, words in json.load(sys.stdin):
    os.chdir(folder)
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


def hesnr(commands):
    """What each of several commands (a folder, words) returns and prints, all in one process."""
    # a limit on memory, so that a device that never ends does not take all there is
    limited = ["bash", "-c", 'ulimit -v 16000000; exec "$@"', "-", sys.executable, "-c", RUN]
    done = subprocess.run(limited, input=json.dumps(commands), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def put(kind, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


def special_files(kind, folder):
    """A folder in which each file of REFUSED and BESIDE is of that kind; the names of those of REFUSED, the trials."""
    made.filled(folder / "scored", [1, 2])
    ScoreStore.open(folder / "scored").save_token_bytes(lambda: [b"a"] * 600)
    for name in ("settings", "spelled"):
        shutil.copytree(folder / "scored", folder / name)
    parquet = next((folder / "scored").glob("*.parquet")).name
    (folder / "judged").mkdir()
    (folder / "judged" / "report.json").write_text(json.dumps(REPORT))
    names = [name.format(parquet=parquet) for name, _ in REFUSED]
    for name in names:
        put(kind, folder / name)
    trials = [folder / "jobs" / f"task__{i}" for i in range(len(BESIDE))]
    for trial, name in zip(trials, BESIDE):
        put(kind, trial / name)
        (trial / "agent").mkdir()
        (trial / "agent" / "trajectory.json").write_text(json.dumps(TRIAL))
    return names, trials


def test_a_special_file_is_refused_wherever_a_file_is_read(tmp_path):
    kinds = ("a pipe", "a device")
    folders = [tmp_path / kind.split()[1] for kind in kinds]
    prepared = [special_files(kind, folder) for kind, folder in zip(kinds, folders)]
    commands = []
    for folder, (_, trials) in zip(folders, prepared):
        converts = [["convert", f"{trial}/agent/trajectory.json", "-o", f"{trial.name}.jsonl"] for trial in trials]
        commands += [(str(folder), words) for words in [*(words for _, words in REFUSED), *converts]]

    done = iter(hesnr(commands))

    for kind, folder, (names, trials) in zip(kinds, folders, prepared):
        for name in names:
            status, _, error = next(done)
            assert status == 2, name
            assert Path(name).name in error
            assert kind in error
        for trial, name in zip(trials, BESIDE):
            status, out, error = next(done)
            assert status == 0, error
            assert f"a {Path(name).name} beside a trajectory cannot be read" in out
            assert json.loads((folder / f"{trial.name}.jsonl").read_text())["resolved"] is None


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
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[:500]


# --- folders and files of others --------------------------------------------------------------------------------------

READ_AS_OTHER = """
import os, sys
from hesnr_tasks.formats import ReadReport, read_trajectories
import encodings.utf_8_sig  # what only the first user may read
if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)
report = ReadReport()
kept = [t.id for t in read_trajectories(sys.argv[1], report=report, on_error="skip")]
print(kept, {reason: s.count for reason, s in report.skipped.items()})
"""


def test_folders_and_files_that_may_not_be_read_are_counted():
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        (top / "a.jsonl").write_bytes(line("a"))
        for kind, mode in (("closed", 0o000), ("listed", 0o444)):
            (top / kind).mkdir()
            (top / kind / "b.jsonl").write_bytes(line("b"))
            (top / kind).chmod(mode)
        (top / "secret.jsonl").write_bytes(line("c"))
        (top / "secret.jsonl").chmod(0)
        try:
            ran = subprocess.run(
                [sys.executable, "-c", READ_AS_OTHER, name],
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
        finally:
            for kind in ("closed", "listed"):
                (top / kind).chmod(0o755)
    assert ran.stderr == ""
    assert ran.stdout.strip() == "['a'] {'unreadable folder': 2, 'unreadable file': 1}"
