"""The recipes of CONTRIBUTING.md, applied to a copy of the package and tried: one file and its line for each."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import ROOT

RECIPES = ("formats", "filters", "backends", "metrics", "report")
LOG = {
    "task": "Fix add().",
    "id": "o__calc-1",
    "passed": True,
    "shell_log": [
        {"thought": "Look.", "command": "$ cat calc.py", "output": "a - b"},
        {"thought": "Mend it.", "command": "root@box:/repo$ sed -i s/-/+/ calc.py", "output": ""},
    ],
}
TRY = """
import json, sys
from pathlib import Path

import lm_eval, torch.utils.collect_env
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

import hesnr_tasks as hesnr
from hesnr_tasks.metrics import METRICS
from hesnr_tasks.report.figures import write_figures
from tests.unit.report import ladders

torch.utils.collect_env.get_pretty_env_info = lambda: ""  # takes seconds
log, folder, checkpoint, configs = map(Path, sys.argv[1:])


class Uniform(LM):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    loglikelihood = loglikelihood_rolling = generate_until = None


metadata = {"trajectories": str(log), "min_tokens": 0}
manager = TaskManager(include_path=str(configs), include_defaults=False, metadata=metadata)
result = lm_eval.simple_evaluate(model=Uniform(), tasks=["hesnr_swe"], task_manager=manager, bootstrap_iters=0)
(run,) = hesnr.load(log)
scored = ladders.score_files(folder / "scores", ["step1-2k", "step2-2k"], 4, 40)
figures = [saved.figure.name for saved in write_figures(ladders.report_data(scored), folder)]
print(json.dumps({
    "package": hesnr.__file__, "source": run.source, "resolved": run.resolved,
    "kept": hesnr.label(run).kept(kinds="action", filters="all"), "values": result["results"]["hesnr_swe"],
    "signature": result["configs"]["hesnr_swe"]["metadata"]["signature"], "vocabulary": len(Uniform.tokenizer),
    "metrics": list(METRICS), "figures": figures,
}))
"""


def diffs():
    return re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What the patched package says of a file in the new format, scored by the new backend; and the folder."""
    folder = tmp_path_factory.mktemp("recipes")
    no_large_files = shutil.ignore_patterns("miniature", "trajectories.jsonl", "__pycache__")
    shutil.copytree(ROOT / "hesnr_tasks", folder / "hesnr_tasks", ignore=no_large_files)
    apart = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(["git", "apply"], cwd=folder, env=apart, input="".join(diffs()), text=True, check=True)
    (folder / "log.json").write_text(json.dumps(LOG))
    checkpoint = min((ROOT / "hesnr_tasks" / "demo" / "miniature" / "checkpoints").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", TRY, folder / "log.json", folder, checkpoint, ROOT / "task_configs"],
        env=apart | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), folder


def test_each_recipe_is_one_file_and_its_line():
    assert [re.search(r"^diff --git a/hesnr_tasks/(\w+)", diff)[1] for diff in diffs()] == list(RECIPES)
    for diff in diffs():
        registered = [line for line in diff.split("new file mode")[0].splitlines() if re.match(r"\+[^+]", line)]
        assert diff.count("new file mode") <= 1
        assert len(re.findall(r"^\+(?!\+\+)", diff, re.M)) <= 40
        assert len(registered) <= 6


def test_a_new_format_filter_backend_and_metric_are_in_a_run_of_lm_eval(tried):
    shown, folder = tried
    assert shown["package"].startswith(str(folder))
    assert (shown["source"], shown["resolved"]) == ("shell-log", True)
    assert shown["kept"] == "catcalc.pysed-is/-/+/calc.py"  # neither prompts nor spaces
    assert "prompts" in shown["signature"]["filters"]
    assert shown["signature"]["run"]["backend"] == "uniform"
    assert shown["values"]["ppl,none"] == pytest.approx(shown["vocabulary"], rel=1e-5)
    assert shown["values"]["log_rank,none"] == 0
    assert shown["values"]["tokens,none"] > 5


def test_a_new_figure_and_its_numbers_are_written(tried):
    shown, folder = tried
    assert "density" in shown["figures"]
    assert (folder / "density.svg").stat().st_size > 1000
    assert (folder / "density.csv").read_text().startswith("checkpoint,density")


def test_the_recipes_pass_the_lints(tried):
    _, folder = tried
    files = [match for diff in diffs() for match in re.findall(r"^\+\+\+ b/(\S+)", diff, re.M)]
    ruff = [sys.executable, "-m", "ruff", "check", "--quiet", "--config", ROOT / "pyproject.toml"]
    for command in (ruff, [sys.executable, ROOT / "scripts" / "check_names.py"]):
        done = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
