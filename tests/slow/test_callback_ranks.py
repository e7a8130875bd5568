"""Several processes: numbers and training are those of one, whether each holds the whole model or a part of it, and
none is left waiting. One start (`callback_main`) does all of it, and ends with a process that runs out of memory.
"""

import pytest

from tests import processes
from tests.slow import callback_main
from tests.slow.training import (
    RUNS,
    assert_trained_as_whole,
    gpt2,
    hesnr,
    records,
    scoring,
    train,
    trajectory,
    without_times,
    write,
)

LONG = trajectory("long", *[("Look.", f"ls -la dir{i} | head -{i}", "a.py " * 6) for i in range(40)])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return write(folder / "five.jsonl", RUNS), write(folder / "six.jsonl", [*RUNS, LONG])


@pytest.fixture(scope="module")
def two_processes(corpora, tmp_path_factory):
    """What both processes wrote down, the folder, and how the run ended."""
    folder = tmp_path_factory.mktemp("out")
    done = processes.torchrun(folder, callback_main.main, *corpora, str(folder))
    return records(folder, done), folder, done


def test_two_processes_give_the_numbers_of_one_and_fail_together(two_processes, corpora, tmp_path, capsys):
    (first, second), done = [record["split"] for record in two_processes[0]], two_processes[2]
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


def test_a_sharded_model_has_the_numbers_of_the_whole_one_and_trains_the_same(two_processes, corpora, tmp_path, capsys):
    written, folder, done = [record["sharded"] for record in two_processes[0]], *two_processes[1:]
    assert_trained_as_whole(written, folder, callback_main.llama, corpora[1], **callback_main.SHARDED)
    assert written[0]["sharded"] == [True, False]  # the model, and not its plain copy
    assert done.stderr.count("read each time, by all of 2 processes") >= 1


def test_a_process_that_runs_out_of_memory_ends_the_run_and_leaves_none_waiting(two_processes):
    done = two_processes[2]
    assert done.returncode != 0
    assert "process 1 failed inside a forward pass that all processes run together" in done.stderr
