"""The wheel, built and installed beside the libraries of the tests: it has the tasks, the demo and the command."""

import json
import subprocess
import sys
import sysconfig

import pytest

from tests import ROOT

EVALUATE = """
import gc; gc.disable()  # a third of the time of imports
import json, lm_eval, torch.utils.collect_env
from lm_eval.tasks import TaskManager
import hesnr_tasks
from hesnr_tasks import demo
from hesnr_tasks.tasks import tasks_path

torch.utils.collect_env.get_pretty_env_info = lambda: ""  # takes seconds
result = lm_eval.simple_evaluate(
    model="hf", model_args=f"pretrained={demo.ladder_paths()[-1][1]},dtype=float32", tasks=["hesnr_swe"], limit=3,
    task_manager=TaskManager(
        include_path=str(tasks_path()), include_defaults=False,
        metadata={"trajectories": str(demo.ladder_trajectories_path())},
    ),
    device="cpu", bootstrap_iters=0,
)
print(json.dumps([hesnr_tasks.__file__, result["results"]["hesnr_swe"]["ppl,none"]]))
"""


def run(*words, **kwargs):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of a new environment with the wheel in it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    # a path, not a site: the clone that is installed in the test environment must not be seen
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def test_the_command_finds_the_tasks_in_the_wheel(installed, tmp_path):
    folder = run(installed / "bin" / "hesnr", "tasks", cwd=tmp_path)
    assert folder.startswith(str(installed))
    shipped = {path.relative_to(ROOT / "task_configs") for path in (ROOT / "task_configs").rglob("*yaml")}
    assert {path.relative_to(folder) for path in (installed / folder).rglob("*yaml")} == shipped


def test_a_task_runs_from_the_wheel_on_the_shipped_demo(installed, tmp_path):
    module, perplexity = json.loads(run(installed / "bin" / "python", "-c", EVALUATE, cwd=tmp_path).splitlines()[-1])
    assert module.startswith(str(installed))
    assert 1 < perplexity < 1000
