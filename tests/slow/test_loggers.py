"""lm-eval's own loggers, W&B and Trackio, offline: what they keep of a real run is what the run found."""

import importlib.util
import json
import math
import os
import sqlite3
import struct
from collections import defaultdict
from pathlib import Path

import pytest

from hesnr_tasks.integrations import HESNRCallback
from hesnr_tasks.metrics import names_of
from hesnr_tasks.tasks import tasks_path
from tests import tiny
from tests.lm_eval_run import SMALL, lm_eval_command, write
from tests.slow.training import RUNS, gpt2, hesnr, train

INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("wandb", "trackio")}
INSTALLED["trackio"] &= importlib.util.find_spec("lm_eval.loggers.trackio_logger") is not None  # not in lm-eval 0.5
_BLOCK, _WHOLE, _LAST = 32768, 1, 4  # of LevelDB's log format
TASKS = ("hesnr_swe", "hesnr_swe_thought")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """One run of the real command with both loggers: its folder, its results, what it said."""
    folder = tmp_path_factory.mktemp("loggers")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WANDB_DIR": folder, "WANDB_SILENT": "true"}.items():
            patch.setenv(name, str(value))
        done = lm_eval_command(*arguments(folder))
    assert done.status == 0, done.stderr
    results = next((folder / "out").rglob("results_*.json"))
    return folder, json.loads(results.read_text()), done.stderr.splitlines()


def arguments(folder):
    model = tiny.llama(str(folder / "model"), steps=10)
    words = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    words += ["--tasks", ",".join(TASKS), "--include_path", str(tasks_path()), "--log_samples"]
    words += [
        "--metadata",
        json.dumps({"trajectories": write(folder / "small.jsonl", SMALL), "epsilon": 2.0, "min_tokens": 0}),
    ]
    words += ["--output_path", str(folder / "out")]
    if INSTALLED["wandb"]:
        words += ["--wandb_args", f"mode=offline,project=hesnr,dir={folder}"]
    if INSTALLED["trackio"]:
        words += ["--trackio_args", "project=hesnr,name=tiny"]
    return words


def scalars(results, task):
    """Every number of the results of a task, by the name the loggers give it."""
    pairs = [(name.removesuffix(",none"), value) for name, value in results["results"][task].items()]
    return {f"{task}/{name}": value for name, value in pairs if isinstance(value, (int, float))}


def wandb_history(folder):
    """Every number of the offline run's history by its name, in the order in which they came."""
    numbers = defaultdict(list)
    for record in wandb_records(folder):
        for item in record.history.item:
            numbers["/".join(item.nested_key) or item.key].append(json.loads(item.value_json))
    return numbers


def wandb_records(folder):
    """The records of the offline run's file: a LevelDB log (blocks, chunks) of protocol buffers after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, offset, gathered = next(folder.rglob("run-*.wandb")).read_bytes(), 7, b""
    while offset + 7 <= len(data):
        left = _BLOCK - offset % _BLOCK
        length, kind = struct.unpack_from("<HB", data, offset + 4) if left >= 7 else (0, 0)
        if kind == 0:  # the rest of the block is padding
            offset += left
            continue
        gathered += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (_WHOLE, _LAST):
            yield wandb_internal_pb2.Record.FromString(gathered)
            gathered = b""


@pytest.mark.skipif(not INSTALLED["wandb"], reason="wandb is not installed")
def test_wandb_keeps_every_number_of_a_run(logged):
    folder, results, _ = logged
    history = {name: numbers[-1] for name, numbers in wandb_history(folder).items()}
    for task in TASKS:
        expected = scalars(results, task)
        assert expected[f"{task}/he_snr_stderr"] > 0
        assert {f"{task}/{name}" for name in names_of()} <= expected.keys()
        assert {name: history[name] for name in expected} == expected


@pytest.mark.skipif(not INSTALLED["wandb"], reason="wandb is not installed")
def test_wandb_keeps_the_samples(logged):
    folder, _, log_lines = logged
    assert not [line for line in log_lines if "Logging to" in line]
    for task in TASKS:
        table = json.loads(next(folder.rglob(f"{task}_eval_results_*.table.json")).read_text())
        assert len(table["data"]) == len(SMALL)
        assert {"id", "he_snr", "ppl"} <= set(table["columns"])


@pytest.mark.skipif(not INSTALLED["trackio"], reason="trackio is not installed")
def test_trackio_keeps_every_number_and_a_trace_a_trajectory(logged):
    _, results, log_lines = logged
    assert not [line for line in log_lines if "Logging to Trackio failed" in line]
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "hesnr.db") as base:
        rows = [json.loads(row[0]) for row in base.execute("SELECT metrics FROM metrics ORDER BY step")]
        traces = [json.loads(row[0]) for row in base.execute("SELECT metadata FROM traces")]
    for task in TASKS:
        assert scalars(results, task).items() <= rows[0].items()
        assert math.isfinite(rows[0][f"{task}/he_snr"])
        assert len([trace for trace in traces if trace["task"] == task]) == len(SMALL)


@pytest.mark.skipif(not INSTALLED["wandb"], reason="wandb is not installed")
def test_wandb_gets_what_the_callback_finds_in_training(tmp_path, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.init(mode="offline", project="hesnr", dir=str(tmp_path))
    entries, log = [], wandb.log  # what W&B is handed: on a busy machine its own process may end before it writes all
    monkeypatch.setattr(wandb, "log", lambda data, *args, **named: (entries.append(data), log(data, *args, **named)))
    callback = HESNRCallback(write(tmp_path / "five.jsonl", RUNS), every=2, min_tokens=0)
    logged = hesnr(train(gpt2(), tmp_path, callback, steps=4, report_to=["wandb"]))
    wandb.finish()
    scored = [entry for entry in entries if "train/hesnr/he_snr" in entry]
    assert len(scored) == len(logged) == 3
    for name in ("he_snr", "he_snr_stderr", "ppl", "tokens", "seconds"):
        assert [entry[f"train/hesnr/{name}"] for entry in scored] == [entry[f"hesnr/{name}"] for entry in logged]
    assert ["train/hesnr/he_snr_change" in entry for entry in scored] == [False, True, True]
