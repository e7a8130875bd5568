"""Several processes give the numbers of one, bit for bit, and no trajectory is read twice."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT, tiny
from tests.lm_eval_run import call, run, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("ranks")), steps=40)


@pytest.fixture
def corpus(tmp_path):
    runs = [
        run(
            f"run{i}",
            ("Look.", call(f"ls -la dir{i}"), "a.py " * i),
            ("Read.", call(f"cat dir{i}/a.py | head -{i}"), "x"),
        )
        for i in range(5)
    ]
    return write(tmp_path / "five.jsonl", runs)


def torchrun(processes, checkpoint, corpus, out):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.slow.ranks_main", checkpoint, json.dumps({"trajectories": corpus}), str(out)]
    root = ROOT
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=_environment(root), timeout=240)


def _environment(root):
    import os

    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def test_numbers_do_not_depend_on_the_number_of_processes(checkpoint, corpus, tmp_path):
    found = []
    for processes in (1, 3):
        done = torchrun(processes, checkpoint, corpus, tmp_path / f"{processes}.json")
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    assert found[0]["results"]["hesnr_swe"]["he_tokens,none"] > 10
    for task in ("hesnr_swe", "hesnr_swe_thought"):
        assert found[0]["results"][task] == found[1]["results"][task]
        signatures = [f["configs"][task]["metadata"]["signature"] for f in found]
        assert signatures[0] == signatures[1]


def test_fewer_trajectories_than_processes_says_so_on_every_process(checkpoint, corpus, tmp_path):
    one = tmp_path / "one.jsonl"
    one.write_text(Path(corpus).read_text().splitlines(keepends=True)[0])
    done = torchrun(2, checkpoint, str(one), tmp_path / "out.json")
    assert done.returncode != 0
    assert len(re.findall(r"1 trajectories cannot be split over 2 processes", done.stderr)) == 2
