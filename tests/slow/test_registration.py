"""`hesnr register`: plain lm_eval finds the tasks, and nothing else about lm-eval changes."""

import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest

from hesnr_tasks.tasks.registration import register, tasks_path, unregister


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


def test_the_index_of_lm_eval_then_holds_our_tasks(registered):
    code = "from lm_eval.tasks import TaskManager as T; t=T(); print([n for n in t.all_tasks if 'hesnr' in n])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for path in tasks_path().rglob("*.yaml"):
        assert repr(path.stem) in out


def test_a_file_someone_else_put_there_stays(registered):
    other = register() / "mine.yaml"
    other.write_text("task: mine\n")
    try:
        unregister()
        assert other.exists()
    finally:
        other.unlink()
        other.parent.rmdir()


def test_a_registered_task_may_include_a_template(registered):
    code = (
        "from lm_eval.tasks import TaskManager as T; t=T(); "
        "print(len(t.load_task_or_group('hesnr_passk_arithmetic')['hesnr_passk_arithmetic'].test_docs()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout.splitlines()[-1]) > 10
