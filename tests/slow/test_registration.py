"""`hesnr register`: plain lm_eval finds the tasks, and nothing else about lm-eval changes."""

import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from hesnr_tasks.tasks.registration import register, tasks_path, unregister
from tests import tiny


def tree():
    """Every file of the installed lm-eval, with its content's size and time."""
    root = Path(lm_eval.__file__).parent
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*yaml")}


@pytest.fixture
def registered():
    before = tree()
    register()
    yield before
    unregister()


def test_register_is_idempotent_and_undone_without_a_trace(registered):
    once = {p: s for p, (s, _) in tree().items()}
    register()
    assert {p: s for p, (s, _) in tree().items()} == once
    unregister()
    assert tree() == registered
    assert unregister() is None


def test_plain_lm_eval_then_finds_our_tasks_and_ends_with_what_must_not_be_overlooked(registered, tmp_path):
    model = tiny.llama(str(tmp_path / "model"))
    words = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "hesnr_swe", "--limit", 2]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "|hesnr_swe|" in done.stdout
    assert "NUMBERS ARE OF 2 SHIPPED DEMO TRAJECTORIES, NOT OF YOURS" in done.stdout.splitlines()[-1]  # after the table


def test_every_task_is_registered_and_may_include_a_template(registered):
    manager = TaskManager(include_path=str(register()), include_defaults=False)
    assert {path.stem for path in tasks_path().rglob("*.yaml")} <= set(manager.all_tasks)
    assert len(manager.load(["hesnr_passk_arithmetic"])["tasks"]["hesnr_passk_arithmetic"].test_docs()) > 10


def test_a_file_someone_else_put_there_stays(registered):
    other = register() / "mine.yaml"
    other.write_text("task: mine\n")
    try:
        unregister()
        assert other.exists()
    finally:
        other.unlink()
        other.parent.rmdir()
