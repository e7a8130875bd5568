"""Several processes: numbers and training are those of one, whether each holds the whole model or a part of it, and
none is left waiting. One torchrun (`callback_main`) does all of it, and ends with a process that runs out of memory.
"""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from tests import ROOT
from tests.slow import callback_main
from tests.slow.training import RUNS, gpt2, hesnr, scoring, train, trajectory, without_times, write

LONG = trajectory("long", *[("Look.", f"ls -la dir{i} | head -{i}", "a.py " * 6) for i in range(40)])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return write(folder / "five.jsonl", RUNS), write(folder / "six.jsonl", [*RUNS, LONG])


@pytest.fixture(scope="module")
def torchrun(corpora, tmp_path_factory):
    """What both processes wrote down, the folder, and how the run ended."""
    folder, begin = tmp_path_factory.mktemp("out"), time.monotonic()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.slow.callback_main", *corpora, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400)
    done.seconds = time.monotonic() - begin
    assert (folder / "1.json").exists(), done.stderr[-20_000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder, done


def test_two_processes_give_the_numbers_of_one_and_fail_together(torchrun, corpora, tmp_path, capsys):
    (first, second), done = [record["split"] for record in torchrun[0]], torchrun[2]
    alone = hesnr(train(gpt2(), tmp_path, scoring(corpora[0], **callback_main.SPLIT), steps=1))[0]
    assert without_times(first["logged"][:1]) == without_times([alone])
    assert [entry["step"] for entry in first["logged"]] == [0, 2]
    assert without_times(first["logged"]) == without_times(second["logged"])
    assert sorted(first["scored"] + second["scored"]) == [0, 1, 2, 3, 4]
    assert all(len(record["scored"]) < 5 for record in (first, second))
    assert first["same"] is second["same"] is True
    assert first["problem"] == second["problem"]
    assert "NaN" in first["problem"]
    assert done.stderr.count("read each time, split over 2 processes") == 1


def test_a_sharded_model_has_the_numbers_of_the_whole_one_and_trains_the_same(torchrun, corpora, tmp_path, capsys):
    (first, second), folder, done = [record["sharded"] for record in torchrun[0]], *torchrun[1:]
    assert first["sharded"] == [True, False]  # the model, and not its plain copy
    assert [entry["step"] for entry in first["logged"]] == [0, 1, 2]
    assert without_times(first["logged"]) == without_times(second["logged"])
    assert first["losses"] == second["losses"]
    assert first["losses"][0] == first["losses"][1]
    assert first["same"] is second["same"] is True
    assert done.stderr.count("read each time, by all of 2 processes") >= 1
    trained = callback_main.llama()
    trained.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    for weights, logged in ((callback_main.llama(), first["logged"][0]), (trained, first["logged"][-1])):
        whole = hesnr(train(weights, tmp_path, scoring(corpora[1], **callback_main.SHARDED), steps=1))[0]
        assert whole["hesnr/tokens"] == logged["hesnr/tokens"] > 500
        for name in ("he_snr", "he_ppl", "ppl", "he_tokens"):
            assert logged[f"hesnr/{name}"] == pytest.approx(whole[f"hesnr/{name}"], rel=1e-4), name


def test_a_process_that_runs_out_of_memory_ends_the_run_and_leaves_none_waiting(torchrun):
    done = torchrun[2]
    assert done.returncode != 0
    assert "process 1 failed inside a forward pass that all processes run together" in done.stderr
    assert done.seconds < 390
