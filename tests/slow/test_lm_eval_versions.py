"""The next lm-eval, in an environment of its own (`make lm-eval-next`): same command, same numbers."""

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

import pytest

from hesnr_tasks.report.results import read_results
from hesnr_tasks.tasks import tasks_path
from tests import ROOT, tiny
from tests.lm_eval_run import SMALL, lm_eval_command, write

NEXT = Path(os.environ.get("HESNR_LM_EVAL_NEXT_PYTHON", ROOT / ".venv-lm-eval-next" / "bin" / "python"))
COMMAND = """
import gc; gc.disable()  # a third of the time of imports
import importlib.metadata, runpy
from tests.lm_eval_run import quick
print(importlib.metadata.version("lm_eval"))
with quick():
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
"""
TASKS = "hesnr_swe,hesnr_swe_ablation,hesnr_tool_entropy"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What this environment's lm-eval saved, and what the next one saved, for one tiny checkpoint."""
    if not NEXT.exists():
        pytest.skip("no environment with the next lm-eval (make lm-eval-next)")
    folder = tmp_path_factory.mktemp("versions")
    model = tiny.llama(str(folder / "model"), steps=10)
    metadata = json.dumps({"trajectories": write(folder / "small.jsonl", SMALL), "epsilon": 1.0, "min_tokens": 0})
    command = ["run", "--model", "hf", "--device", "cpu", "--log_samples", "--tasks", TASKS, "--metadata", metadata]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", str(tasks_path())]
    assert lm_eval_command(*command, "--output_path", folder / "current").status == 0
    done = subprocess.run(
        [str(NEXT), "-c", COMMAND, *command, "--output_path", str(folder / "next")], capture_output=True, text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    (folder / "version").write_text(done.stdout.splitlines()[0])
    return folder / "current", folder / "next"


def numbers(folder):
    """Every value of every task, by the task's own name."""
    saved = json.loads(next(folder.rglob("results_*.json")).read_text())
    return {
        task.rsplit("::", 1)[-1]: {key: value for key, value in row.items() if "," in key}
        for task, row in saved["results"].items()
    }


def test_another_version_is_what_runs_there(outputs):
    assert (outputs[0].parent / "version").read_text() not in ("", importlib.metadata.version("lm_eval"))


def test_every_value_and_error_is_the_same(outputs):
    current, following = map(numbers, outputs)
    assert current == following
    assert len(current) == 8
    assert any(isinstance(value, float) for row in current.values() for key, value in row.items() if "_stderr," in key)


def test_every_sample_has_the_same_numbers(outputs):
    def samples(folder):
        texts = {
            path.name.split("samples_")[1].rsplit("_", 1)[0]: path.read_text() for path in folder.rglob("samples_*")
        }
        rows = {task.rsplit("::", 1)[-1]: map(json.loads, text.splitlines()) for task, text in texts.items()}
        return {
            task: {row["doc_id"]: {name: row[name] for name in row["metrics"]} for row in logged}
            for task, logged in rows.items()
        }

    current, following = map(samples, outputs)
    assert current == following
    assert len(current) == 7
    assert all(len(rows) == len(SMALL) for rows in current.values())


def test_a_report_reads_both_alike(outputs):
    def rows(folder):
        return {row.task: (str(row.values), row.comparable, row.in_group) for row in read_results([folder])}

    assert rows(outputs[0]) == rows(outputs[1])
    assert len(rows(outputs[0])) == 7
