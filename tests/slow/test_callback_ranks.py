"""Several processes: the work is split, the numbers are those of one process, and none is left waiting.

Started by torchrun, this file is the training script.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hesnr_tasks.errors import HesnrError
from hesnr_tasks.integrations import HESNRCallback
from tests import ROOT
from tests.slow.test_callback import RUNS, gpt2, hesnr, train
from tests.slow.test_task import write

SETTINGS = {"every": 2, "limit": None, "min_tokens": 0}


def test_two_processes_give_the_numbers_of_one_and_fail_together(tmp_path, capsys):
    corpus = write(tmp_path / "five.jsonl", RUNS)
    found = torchrun(corpus, tmp_path)
    alone = hesnr(train(gpt2(), tmp_path, HESNRCallback(corpus, **SETTINGS), steps=1))[0]
    assert numbers(found[0]["logged"][0]) == numbers(alone)
    assert [entry["step"] for entry in found[0]["logged"]] == [0, 2]
    assert [numbers(entry) for entry in found[0]["logged"]] == [numbers(entry) for entry in found[1]["logged"]]
    assert sorted(found[0]["read"] + found[1]["read"]) == [0, 1, 2, 3, 4]
    assert all(len(one["read"]) < 5 for one in found)
    assert all(one["same"] for one in found)
    assert found[0]["problem"] == found[1]["problem"]
    assert "NaN" in found[0]["problem"]


def numbers(entry):
    return {name: value for name, value in entry.items() if "second" not in name}


def torchrun(corpus, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.slow.test_callback_ranks", corpus, str(folder)]
    root = ROOT
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("read each time, split over 2 processes") == 1
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def main(corpus, folder):
    torch.set_num_threads(1)
    callback = HESNRCallback(corpus, **SETTINGS)
    trainers = [train(gpt2(), folder, *callbacks, steps=2) for callbacks in ([callback], [])]
    weights = [trainer.model.state_dict() for trainer in trainers]
    evaluator = callback._evaluator
    found = {
        "logged": hesnr(trainers[0]),
        "read": sorted(evaluator._sums()),
        "same": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "problem": problem(ruined, trainers[0].model, evaluator),
    }
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def ruined(model, evaluator):
    """Only the second process's model is broken; both must hear of it."""
    if dist.get_rank() == 1:
        model.transformer.wte.weight.data.fill_(math.nan)
    evaluator.run(3)


def problem(function, *args):
    try:
        function(*args)
    except HesnrError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
