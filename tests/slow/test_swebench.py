"""`mini-extra swebench` as a user runs it, killed and resumed; then `hesnr select` and `hesnr egss report`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.egss.server import Server
from benchmarks.egss.world import load
from hesnr_tasks.cli import main
from hesnr_tasks.egss import SWEBENCH_CONFIG
from hesnr_tasks.testing import fake_server
from tests import processes

NAMES = ("csvline", "lru", "money")
BIN = Path(sys.executable).parent


def bubblewrap_works():
    words = ["bwrap", "--unshare-user-try", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "true"]
    return bool(shutil.which("bwrap")) and subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture
def data(tmp_path):
    """A data set of three small repositories, and what mini must know of this machine."""
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


def reach(address):
    """Where the server is, for litellm."""
    return {"api_base": address, "api_key": "none"}


def start(data, words):
    home = {"HF_HOME": str(data / "hf"), "MSWEA_GLOBAL_CONFIG_DIR": str(data / "mini"), "HF_HUB_OFFLINE": "1"}
    quiet = {"MSWEA_SILENT_STARTUP": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "COLUMNS": "200"}
    log = (data / "log.txt").open("ab")
    return subprocess.Popen(list(map(str, words)), env=os.environ | home | quiet, stdout=log, stderr=log)


@pytest.fixture
def agents(data, tmp_path_factory):
    """`mini-extra swebench` into a folder, under way."""
    with processes.warm_python(tmp_path_factory.mktemp("warm"), "litellm") as warm:
        yield partial(start_agents, data, [warm.python, "-m", "minisweagent.run.utilities.mini_extra"])


def start_agents(data, mini, address, run, *more):
    words = [*mini, "swebench", "--subset", data / "data", "--split", "test", "-w", "4", "-o", data / run]
    words += ["-c", "swebench.yaml", "-c", SWEBENCH_CONFIG, "-c", data / "local.yaml", "-m", "openai/bench"]
    return start(data, [*words, *(w for k, v in reach(address).items() for w in ("-c", f"model.model_kwargs.{k}={v}")),
                        *more])  # fmt: skip


def predictions(folder):
    try:
        return json.loads((folder / "preds.json").read_text())
    except (OSError, ValueError):  # not there yet, or being written
        return {}


def resolved(data, folder):
    """Instances whose submission applies and has both right mends; written as a report of an evaluation."""
    solved = []
    for name, row in predictions(folder).items():
        trajectory = json.loads((folder / name / f"{name}.traj.json").read_text())
        if trajectory["info"]["exit_status"] != "Submitted":  # an agent that loops has no patch
            assert (trajectory["info"]["exit_status"], row["model_patch"]) == ("LimitsExceeded", "")
            continue
        clone = data / "clones" / folder.name / name
        subprocess.run(["git", "clone", "-q", data / "repositories" / name, clone], check=True)
        subprocess.run(["git", "apply", "-"], cwd=clone, input=row["model_patch"], text=True, check=True)
        mends = [part["right"] for part in load(name).edits.values()]
        if all(new in (clone / path).read_text() for path, changes in mends for _, new in changes):
            solved.append(name)
    report = data / f"{folder.name}.json"
    report.write_text(json.dumps({"resolved_ids": solved, "unresolved_ids": sorted(set(NAMES) - set(solved))}))
    return report


@pytest.mark.skipif(not bubblewrap_works(), reason="needs bubblewrap and user namespaces")
def test_killed_resumed_selected_and_reported(data, agents, capsys, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    scripted, task, go_on = Server(prefix=""), load(NAMES[0]).task, threading.Event()

    def first_alone(request):
        """Nobody but the first instance's agents gets on until a run was killed."""
        if "tools" in request and task not in request["messages"][1]["content"]:
            go_on.wait()
        return scripted.reply(request)

    gated, plain = data / "runs" / "egss-1", data / "runs" / "plain-1"
    with fake_server(answer=first_alone) as server:
        address = server.url
        first, stock = agents(address, gated), agents(address, plain, "-c", "model.gate=never")
        deadline = time.monotonic() + 1200
        while not predictions(gated) and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        done = predictions(gated)
        assert set(done) == {NAMES[0]}, (data / "log.txt").read_text()[-3_000:]
        times = {name: (gated / name / f"{name}.traj.json").stat().st_mtime_ns for name in done}
        go_on.set()
        assert agents(address, gated).wait(timeout=1200) == 0
        assert stock.wait(timeout=1200) == 0
        assert set(predictions(gated)) == set(predictions(plain)) == set(NAMES)
        assert all((gated / n / f"{n}.traj.json").stat().st_mtime_ns == mtime for n, mtime in times.items())
        for name in NAMES:
            stats = json.loads((gated / name / f"{name}.traj.json").read_text())["info"]["model_stats"]
            assert stats["egss"]["steps"] == stats["api_calls"]
            assert 0 < stats["egss"]["fired"] < stats["egss"]["steps"]
            assert stats["egss"]["usage"]["judge"]["calls"] > 0
            assert "egss" not in json.loads((plain / name / f"{name}.traj.json").read_text())["info"]["model_stats"]
        chosen, python = data / "preds.json", [sys.prefix, sys.base_prefix, str(BIN.resolve())]
        binds = [*json.loads((data / "local.yaml").read_text())["environment"]["wrapper_args"]]
        binds += [word for place in dict.fromkeys(python) for word in ("--ro-bind", place, place)]
        models = [
            "--selector",
            "openai/bench",
            "--augment",
            "openai/bench",
            "--model-kwargs",
            json.dumps(reach(address)),
        ]
        quick = [
            "--repeats",
            "1",
            "--env",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
            "--env",
            f"PATH={BIN}:{os.environ['PATH']}",
        ]
        where = ["-c", data / "local.yaml", "-c", f"environment.wrapper_args={json.dumps(binds)}"]
        select = ["select", gated, plain, "-o", chosen, "-w", "2", *models, *quick, *where]
        assert main(list(map(str, select))) == 0
    assert "3 instances: " in capsys.readouterr().out
    why = json.loads((data / "preds.why.json").read_text())
    assert not any("environment" in note for note in why["notes"]), why["notes"]
    for name, row in json.loads(chosen.read_text()).items():
        submitted = [predictions(folder)[name]["model_patch"] for folder in (gated, plain)]
        assert row["model_patch"] in submitted
        assert row["model_patch"] or not any(submitted)
        record = why["instances"][name]
        assert record["suite"]["tests"] or not any(submitted)
        assert bool(record["ballots"]) == (record["decided_by"] == "votes")
    reports = [resolved(data, folder) for folder in (plain, gated)]
    assert main(["egss", "report", str(plain), str(gated), "--resolved", *map(str, reports)]) == 0
    text = capsys.readouterr().out
    for words in ("plain", "gate threshold:0, votes of 2, 4 draws, judge same model", "Costs at equal resolve rate"):
        assert words in text
