"""`mini-extra swebench` with the shipped configuration, as a user runs it: killed, resumed, reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.egss.server import Server, serving
from benchmarks.egss.world import load
from hesnr_tasks.cli import main
from hesnr_tasks.egss import SWEBENCH_CONFIG

NAMES = ("csvline", "lru", "money", "pages", "roman")
MINI = Path(sys.executable).parent / "mini-extra"


def bubblewrap_works():
    words = ["bwrap", "--unshare-user-try", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "true"]
    return bool(shutil.which("bwrap")) and subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture
def data(tmp_path):
    """A data set of five small repositories, and what mini must know of this machine."""
    rows = []
    for name in NAMES:
        repository = load(name)
        repository.write(tmp_path / "repositories" / name)
        rows.append({"instance_id": name, "problem_statement": repository.task})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = ["/usr", "/bin", "/lib", "/lib64", "/etc", str(tmp_path / "repositories")]
    bound = [word for place in places if Path(place).exists() for word in ("--ro-bind", place, place)]
    wrapper = ["--unshare-user-try", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", *bound, "--new-session"]
    local = {
        "environment": {"environment_class": "bubblewrap", "cwd": "", "wrapper_args": wrapper, "env": {"BASH_ENV": ""}},
        "run": {"env_startup_command": f"cp -a {tmp_path}/repositories/{{{{instance_id}}}}/. ."},
        "model": {"cost_tracking": "ignore_errors"},
        "agent": {"step_limit": 40},
    }
    (tmp_path / "local.yaml").write_text(json.dumps(local))  # JSON is YAML
    return tmp_path


def start(data, address, *more):
    words = [MINI, "swebench", "--subset", data / "data", "--split", "test", "-w", "4", "-o", data / "runs"]
    words += ["-c", "swebench.yaml", "-c", SWEBENCH_CONFIG, "-c", data / "local.yaml", "-m", "openai/bench"]
    words += ["-c", f"model.model_kwargs.api_base={address}", "-c", "model.model_kwargs.api_key=none", *more]
    home = {"HF_HOME": str(data / "hf"), "MSWEA_GLOBAL_CONFIG_DIR": str(data / "mini"), "HF_HUB_OFFLINE": "1"}
    quiet = {"MSWEA_SILENT_STARTUP": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "COLUMNS": "200"}
    log = (data / "log.txt").open("ab")
    return subprocess.Popen(list(map(str, words)), env=os.environ | home | quiet, stdout=log, stderr=log)


def predictions(data):
    try:
        return json.loads((data / "runs" / "preds.json").read_text())
    except (OSError, ValueError):  # not there yet, or being written
        return {}


@pytest.mark.skipif(not bubblewrap_works(), reason="needs bubblewrap and user namespaces")
def test_killed_resumed_and_reported(data, capsys):
    server = Server(prefix="")
    server.delay = 0.02
    with serving(server) as address:
        first = start(data, address)
        deadline = time.monotonic() + 240
        while not predictions(data) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        done = predictions(data)
        assert 0 < len(done) < len(NAMES), (data / "log.txt").read_text()[-3_000:]
        times = {name: (data / "runs" / name / f"{name}.traj.json").stat().st_mtime_ns for name in done}
        server.delay = 0
        assert start(data, address).wait(timeout=240) == 0
    found = predictions(data)
    assert set(found) == set(NAMES)
    assert all((data / "runs" / n / f"{n}.traj.json").stat().st_mtime_ns == at for n, at in times.items())
    resolved = []
    for name in NAMES:
        patch, clone = found[name]["model_patch"], data / "clones" / name
        trajectory = json.loads((data / "runs" / name / f"{name}.traj.json").read_text())
        if trajectory["info"]["exit_status"] == "Submitted":  # its own submission is a patch that applies
            subprocess.run(["git", "clone", "-q", data / "repositories" / name, clone], check=True)
            subprocess.run(["git", "apply", "-"], cwd=clone, input=patch, text=True, check=True)
            resolved.append(name)
        else:  # an agent that loops has none
            assert (trajectory["info"]["exit_status"], patch) == ("LimitsExceeded", "")
        stats = trajectory["info"]["model_stats"]["egss"]
        assert stats["steps"] == trajectory["info"]["model_stats"]["api_calls"]
        assert 0 < stats["fired"] < stats["steps"]
        assert stats["usage"]["judge"]["calls"] > 0
    assert len(resolved) >= 3
    (data / "runs" / "report.json").write_text(json.dumps({"resolved_ids": resolved, "unresolved_ids": []}))
    assert main(["egss", "report", str(data / "runs")]) == 0
    text = capsys.readouterr().out
    assert "gate threshold:0, votes of 2, 4 draws, judge same model" in text
