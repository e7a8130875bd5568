"""`hesnr watch`: checkpoints are scored once each, when they are complete, and the numbers are lm_eval's.

The real lm_eval runs once; elsewhere a stand-in that is found before it writes the same results in no time.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from hesnr_tasks.cli import main
from hesnr_tasks.cli.evaluate import _lacking
from tests import tiny
from tests.lm_eval_run import SMALL, evaluate, values, write

CONVERT = "import shutil, sys; shutil.copytree(sys.argv[1] + '/weights', sys.argv[2])"
STAND_IN = """import json, os, pathlib, sys, time
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
checkpoint = options["--model_args"].split(",")[0].removeprefix("pretrained=")
pathlib.Path(options["--output_path"], "pid").write_text(str(os.getpid()))
while os.environ.get("HOLD"):
    time.sleep(0.05)
if pathlib.Path(checkpoint, "model.safetensors").read_bytes()[:3] == b"not":
    sys.exit("no header in model.safetensors")
results = pathlib.Path(__file__).with_name("results.json").read_text()
target = pathlib.Path(options["--output_path"], "model", "results_2026-01-01T00-00-00.000000.json")
target.parent.mkdir(exist_ok=True)
target.write_text(results.replace("CHECKPOINT", checkpoint))
"""


def command(folder, *words):
    fixed = ["watch", str(folder / "checkpoints"), "-o", str(folder / "out")]
    fixed += ["--trajectories", str(folder / "small.jsonl"), "--model_args", "dtype=float32", "--settle", "0"]
    return [*fixed, "--metadata", '{"min_tokens": 0}', *words]


def watch(folder, *words):
    """The command in this process: its status and what it printed."""
    out, err, handler = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(command(folder, *words))
    finally:
        signal.signal(signal.SIGTERM, handler)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def scored(tmp_path_factory, warm_python):
    """A checkpoint that the real lm_eval scored."""
    folder = tmp_path_factory.mktemp("real")
    write(folder / "small.jsonl", SMALL)
    tiny.llama(str(folder / "checkpoints" / "step5"), steps=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", warm_python.site, prepend=os.pathsep)
        done = watch(folder, "--once")
    assert "step5 scored" in done.stdout, done.stdout
    return folder, next((folder / "out" / "step5").rglob("results_*.json"))


@pytest.fixture(scope="module", autouse=True)
def stand_in(scored, tmp_path_factory):
    """From here on `python -m lm_eval` is the stand-in."""
    folder, results = scored
    package = tmp_path_factory.mktemp("path") / "lm_eval"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    text = results.read_text().replace(str(folder / "checkpoints" / "step5"), "CHECKPOINT")
    (package / "results.json").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def training(scored, stand_in, tmp_path_factory):
    """What a training run has written by now: whole checkpoints, a broken one, one half written, one begun."""
    folder = tmp_path_factory.mktemp("watch")
    write(folder / "small.jsonl", SMALL)
    checkpoints = folder / "checkpoints"
    for name in ("step10", "step5", "step1", "step15", "tmp-step20"):
        shutil.copytree(scored[0] / "checkpoints" / "step5", checkpoints / name)
    (checkpoints / "step1" / "model.safetensors").write_bytes(b"not weights")
    half = checkpoints / "step15"
    (half / "model.safetensors").unlink()
    (half / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    (checkpoints / "latest.txt").write_text("step15")
    return folder, watch(folder, "--once")


def test_the_numbers_are_those_of_lm_eval(scored):
    folder, results = scored
    data = {"trajectories": str(folder / "small.jsonl")}
    expected = values(evaluate(str(folder / "checkpoints" / "step5"), ["hesnr_swe"], data), "hesnr_swe")
    # with score files whole actions are read: float32's last bits differ
    assert values(json.loads(results.read_text()), "hesnr_swe") == pytest.approx(expected, rel=1e-5)


def test_complete_checkpoints_are_scored_in_the_order_of_their_steps(training):
    folder, done = training
    assert done.stdout.index("step5 scored") < done.stdout.index("step10 scored"), done.stdout + done.stderr
    assert "step15 (1 of 1 weight files still missing)" in done.stdout
    assert not (folder / "out" / "tmp-step20").exists()
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
        f"{sys.executable} '{tmp_path}/convert it.py' {{checkpoint}} {{output}}",
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
    words = [sys.executable, "-m", "hesnr_tasks.cli", *command(tmp_path)]
    watcher = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"HOLD": "1"})
    deadline, pid = time.monotonic() + 600, tmp_path / "out" / "step10" / "pid"
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = watch(tmp_path, "--once")
    assert second.returncode == 2
    assert "another `hesnr watch`" in second.stderr
    os.kill(watcher.pid, signal.SIGTERM)
    printed, _ = watcher.communicate(timeout=600)
    assert "the same command goes on from here" in printed
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not list((tmp_path / "out" / "step10").rglob("results_*.json"))
    assert "step10 scored" in watch(tmp_path, "--once").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_args", "pretrained=x"], "names a model"),
        (["--convert", "convert.sh"], "{checkpoint} and {output}"),
        (["--metadata", "[]"], "must be key=value … or a JSON object"),
        (["--settle", "-1"], "--settle must be at least 0"),
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
