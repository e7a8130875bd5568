"""`hesnr register`: plain lm_eval finds the tasks, and nothing else about lm-eval changes."""

import importlib.metadata
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from hesnr_tasks import cli
from hesnr_tasks.tasks import register, tasks_path, unregister
from tests import tiny

KEPT = ("gsm8k", "arithmetic", "hellaswag")  # of lm-eval's own tasks: thousands of files would be copied and indexed


def _left_out(folder, names):
    tasks = Path(folder) == Path(lm_eval.__file__).parent / "tasks"
    return [n for n in names if n == "__pycache__" or (tasks and n not in KEPT and Path(folder, n).is_dir())]


@pytest.fixture
def lm_eval_copy(tmp_path, monkeypatch):
    """The folder of tasks of an lm-eval of our own: beside us other tests walk through the installed one."""
    package = tmp_path / "site" / "lm_eval"
    shutil.copytree(Path(lm_eval.__file__).parent, package, ignore=_left_out)
    monkeypatch.setattr("hesnr_tasks.tasks._lm_eval_tasks", lambda: package / "tasks")
    return package / "tasks"


def tree(tasks):
    """Every task file, with its content's size and time."""
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in tasks.rglob("*yaml")}


@pytest.fixture
def registered(lm_eval_copy):
    before = tree(lm_eval_copy)
    assert lm_eval_copy in register().parents
    return before


def test_register_is_idempotent_and_undone_without_a_trace(registered, lm_eval_copy):
    once = {p: s for p, (s, _) in tree(lm_eval_copy).items()}
    register()
    assert {p: s for p, (s, _) in tree(lm_eval_copy).items()} == once
    unregister()
    assert tree(lm_eval_copy) == registered
    assert unregister() is None


def test_plain_lm_eval_then_finds_our_tasks_and_ends_with_what_must_not_be_overlooked(
    registered, lm_eval_copy, tmp_path
):
    model, loggers = tiny.llama(str(tmp_path / "model")), lm_eval_copy.parent / "loggers" / "utils.py"
    words = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "hesnr_swe", "--limit", 2]
    describe = "from torch.utils.collect_env import get_pretty_env_info"  # runs programs for seconds
    (lm_eval_copy.parent.parent / "sitecustomize.py").write_text("import gc; gc.disable()")  # a third of imports' time
    loggers.write_text(loggers.read_text().replace(describe, "get_pretty_env_info = str"))
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(lm_eval_copy.parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "|hesnr_swe|" in done.stdout
    assert "NUMBERS ARE OF 2 SHIPPED DEMO TRAJECTORIES, NOT OF YOURS" in done.stdout.splitlines()[-1]  # after the table
    closing = done.stdout.splitlines()[-2]
    assert closing.startswith(f"hesnr-tasks: hesnr_swe of {tmp_path.name}/model: he_snr ")
    assert closing.endswith(
        "2 trajectories of the demo. Next: the same with --output_path results/, then hesnr report results/"
    )


def test_a_short_context_pass_ends_with_the_folder_of_its_scores(warm_python, tmp_path):
    model = tiny.llama(str(tmp_path / "model"))
    words = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "hesnr_swe"]
    words += ["--limit", "1", "--metadata", '{"window": 64}', "--output_path", str(tmp_path / "results")]
    words += ["--include_path", str(tasks_path())]
    done = subprocess.run(
        [warm_python.python, "-m", "lm_eval", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=True,
    )  # fmt: skip
    (folder,) = (path.parent for path in tmp_path.glob("results/scores/*/run.json"))
    assert f"Next: hesnr analyze WHOLE --against {folder} (WHOLE: " in done.stdout


def test_every_task_is_registered_and_may_include_a_template(registered):
    manager = TaskManager(include_path=str(register()), include_defaults=False)
    assert {path.stem for path in tasks_path().rglob("*.yaml")} <= set(manager.all_tasks)
    assert len(manager.load(["hesnr_passk_arithmetic"])["tasks"]["hesnr_passk_arithmetic"].test_docs()) > 10


def test_a_file_someone_else_put_there_stays(registered):
    other = register() / "mine.yaml"
    other.write_text("task: mine\n")
    unregister()
    assert [path.name for path in other.parent.iterdir()] == ["mine.yaml"]


def test_an_lm_eval_that_cannot_load_the_tasks_is_named_before_anything_is_written(monkeypatch, capsys, lm_eval_copy):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.4.11")
    before = tree(lm_eval_copy)
    assert cli.main(["register"]) == 2
    assert capsys.readouterr().err == (
        "hesnr: lm-eval 0.4.11 cannot load these tasks: they need 0.4.12 or later (tested up to 0.5.0.dev1).\n"
        "Update it: pip install -U 'lm-eval>=0.4.12'\n"
    )
    assert tree(lm_eval_copy) == before
    with pytest.raises(SystemExit, match=r"lm-eval 0\.4\.11 cannot load these tasks"):  # what 0.4.11 itself would run
        runpy.run_path(str(tasks_path() / "hesnr_tasks.tasks.task.py"))


def test_doctor_names_what_is_missing_and_what_to_do(monkeypatch, capsys, registered):
    assert cli.main(["doctor"]) == 0
    assert "lm_eval finds the tasks" in capsys.readouterr().out
    (register() / "hesnr_swe.yaml").write_text(
        "# Copied here by `hesnr register`; `hesnr register --undo` removes it.\n"
    )
    assert cli.main(["doctor", "--json"]) == 1
    results = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert results["registration"]["status"] == "missing"
    assert results["registration"]["text"].endswith("of another version: hesnr register")
    assert results["lm-eval"]["status"] == results["torch"]["status"] == "ok"
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    assert cli.main(["doctor"]) == 1
    assert "MISSING torch          not installed; for --model hf: pip install" in capsys.readouterr().out
