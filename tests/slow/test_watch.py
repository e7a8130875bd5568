"""`hesnr watch`: checkpoints are scored once each, when they are complete, and the numbers are lm_eval's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hesnr_tasks.integrations.watch import _lacking
from tests import tiny
from tests.slow.test_task import SMALL, evaluate, values, write

CONVERT = "import shutil, sys; shutil.copytree(sys.argv[1] + '/weights', sys.argv[2])"


COMMAND = [
    sys.executable,
    "-m",
    "hesnr_tasks.cli",
    "watch",
    "checkpoints",
    "-o",
    "out",
    "--trajectories",
    "small.jsonl",
]
COMMAND += ["--model_args", "dtype=float32", "--settle", "0", "--metadata", '{"min_tokens": 0}']


def watch(folder, *words):
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """What a training run has written by now: whole checkpoints, a broken one, one half written, one begun."""
    folder = tmp_path_factory.mktemp("watch")
    write(folder / "small.jsonl", SMALL)
    checkpoints = folder / "checkpoints"
    for steps in (10, 5):
        tiny.llama(str(checkpoints / f"step{steps}"), steps=steps)
    broken = shutil.copytree(checkpoints / "step10", checkpoints / "step1")
    (broken / "model.safetensors").write_bytes(b"not weights")
    half = shutil.copytree(checkpoints / "step10", checkpoints / "step15")
    (half / "model.safetensors").unlink()
    (half / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    shutil.copytree(checkpoints / "step10", checkpoints / "tmp-step20")
    (checkpoints / "latest.txt").write_text("step15")
    return folder, watch(folder, "--once")


def test_complete_checkpoints_are_scored_in_the_order_of_their_steps(training):
    folder, done = training
    assert done.stdout.index("step5 scored") < done.stdout.index("step10 scored"), done.stdout + done.stderr
    assert "step15 (1 of 1 weight files still missing)" in done.stdout
    assert not (folder / "out" / "tmp-step20").exists()
    saved = json.loads(next((folder / "out" / "step5").rglob("results_*.json")).read_text())
    expected = evaluate(
        str(folder / "checkpoints" / "step5"), ["hesnr_swe"], {"trajectories": str(folder / "small.jsonl")}
    )
    want = values(expected, "hesnr_swe")  # with score files whole actions are read: float32's last bits differ
    assert values(saved, "hesnr_swe") == pytest.approx(want, rel=1e-5)
    board = (folder / "out" / "leaderboard.md").read_text()
    assert "step5" in board
    assert "step10" in board


def test_a_checkpoint_that_cannot_be_read_does_not_hold_up_the_others(training):
    _, done = training
    assert done.returncode == 1
    assert done.stdout.count("step1: lm_eval ended with status 1") == 2
    assert "left out until it changes" in done.stdout
    assert "step10 scored" in done.stdout


def test_the_same_command_again_scores_what_is_new(training):
    folder, _ = training
    half = folder / "checkpoints" / "step15"
    shutil.copy(folder / "checkpoints" / "step10" / "model.safetensors", half)
    (half / "model.safetensors.index.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step1")
    done = watch(folder, "--once")
    assert "step15 scored" in done.stdout, done.stdout + done.stderr
    assert "step10 scored" not in done.stdout
    again = watch(folder, "--once")
    assert (again.returncode, again.stdout) == (0, "")


def test_marker_and_converter(training, tmp_path):
    folder, _ = training
    shutil.copytree(folder / "checkpoints" / "step5", tmp_path / "checkpoints" / "iter_0005" / "weights")
    shutil.copy(folder / "small.jsonl", tmp_path)
    (tmp_path / "convert it.py").write_text(CONVERT)
    words = [
        "--once",
        "--done-marker",
        "done*",
        "--convert",
        f"{sys.executable} 'convert it.py' {{checkpoint}} {{output}}",
    ]
    waiting = watch(tmp_path, *words)
    assert "iter_0005 (no done* yet)" in waiting.stdout, waiting.stderr
    (tmp_path / "checkpoints" / "iter_0005" / "done.txt").touch()
    done = watch(tmp_path, *words)
    assert "iter_0005 scored" in done.stdout, done.stdout + done.stderr
    assert "iter_0005" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert not any((tmp_path / "out" / "converted").iterdir())
    (tmp_path / "convert it.py").write_text("raise SystemExit('no such layer')")
    failed = watch(tmp_path, *words, "--tasks", "hesnr_swe_thought")
    assert failed.returncode == 1
    assert "no such layer" in failed.stdout


def test_a_killed_watcher_goes_on_and_leaves_no_lm_eval_behind(training, tmp_path):
    folder, _ = training
    shutil.copytree(folder / "checkpoints" / "step10", tmp_path / "checkpoints" / "step10")
    shutil.copy(folder / "small.jsonl", tmp_path)
    watcher = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "step10" / "lm_eval.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = watch(tmp_path, "--once")
    assert second.returncode == 2
    assert "another `hesnr watch`" in second.stderr
    os.kill(watcher.pid, signal.SIGTERM)
    told, _ = watcher.communicate(timeout=60)
    assert "the same command goes on from here" in told
    assert not list((tmp_path / "out" / "step10").rglob("results_*.json"))
    assert "step10 scored" in watch(tmp_path, "--once").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_args", "pretrained=x"], "names a model"),
        (["--convert", "convert.sh"], "{checkpoint} and {output}"),
        (["--metadata", "[]"], "must be a JSON object"),
        (["--interval", "0"], "--interval must be above 0"),
    ],
)
def test_bad_settings_are_known_before_anything_runs(training, words, message):
    folder, _ = training
    done = watch(folder, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_index_is_not_trusted(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for content in ("", "[]", '{"weight_map": 3}', '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": null}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        assert "cannot be read" in _lacking(tmp_path) or "missing" in _lacking(tmp_path)
