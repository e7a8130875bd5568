"""README and docs/: every block of commands, Python, JSON and YAML is run or read as it stands there, page by page.

They run in this process, in a folder that has what the pages name. `<!-- not run: REASON -->` says why one
is not, and with a `BEGINNING`: before the reason, why the commands that begin so are not.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hesnr_tasks import cli, demo
from hesnr_tasks.formats import read_trajectories
from hesnr_tasks.ladder.schema import read_ladder_file
from hesnr_tasks.metrics import METRICS, unregister
from tests import ROOT, lm_eval_run
from tests.slow.test_docs import PAGES, blocks, commands
from tests.unit.egss import test_report as test_egss
from tests.unit.exploration import test_behaviours
from tests.unit.passk import test_command as test_passk

REASONS = {"GPU", "hub", "network", "server", "cluster", "containers", "minutes", "training", "installation"}
pytestmark = pytest.mark.usefixtures("blank_figures")
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the checkpoints, trajectories, score files and tables that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    checkpoints = dict(demo.ladder_paths())
    for name, checkpoint in {"CKPT": "code-1205-long", "LATER": "code-1700-long"}.items():
        shutil.copytree(checkpoints[checkpoint], folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
        write(folder / name / "chat_template.jinja", CHATML)
    for name in ("CHECKPOINT", "MODEL"):
        (folder / name).symlink_to("CKPT")
    for name in ("ladders", "benchmarks", "task_configs"):
        (folder / name).symlink_to(ROOT / name)
    runs = "".join(demo.trajectories_path().read_text(encoding="utf-8").splitlines(keepends=True)[:5])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("my_runs/one.jsonl", "runs/two.traj", "own.jsonl", "a.jsonl"):
        write(folder / name, runs)
    shutil.copytree(ROOT / "tests" / "golden" / "runs", folder / "tests" / "golden" / "runs")
    shutil.copytree(ROOT / "tests" / "golden" / "runs", folder / "out" / "demo" / "runs")
    write(folder / "docs" / "web.jsonl", json.dumps({"text": readme, "source": "web"}) + "\n")
    names = ("step1000-2k", "step1004-8k", "CKPT", "LATER")
    write(folder / "swebench.csv", "checkpoint,verified\n" + "".join(f"{name},0.{i}\n" for i, name in enumerate(names)))
    entries = (f"- {{name: {name}, downstream: {{verified: 0.{i}}}}}\n" for i, name in enumerate(names))
    write(folder / "hesnr_tasks" / "demo" / "miniature" / "ladder.yaml", "checkpoints:\n" + "".join(entries))
    for name in ("checkpoints", "trajectories.jsonl"):
        (folder / "hesnr_tasks/demo/miniature" / name).symlink_to(demo.ladder_file().parent / name)
    for name, checkpoint, more in (("A", "CKPT", ""), ("B", "LATER", ""), ("SHORT", "LATER", "window=4096")):
        arguments = f"eval --model hf --model_args pretrained={folder}/{checkpoint} --tasks hesnr_swe --output_path"
        metadata = f"--metadata trajectories={folder}/my_runs scores={folder}/results/scores/{name} {more}"
        assert run(["hesnr", *arguments.split(), f"{folder}/results", *metadata.split()]) == 0
    for name, copy in {"STEP1": "A", "STEP2": "B"}.items():
        (folder / "results" / "scores" / name).symlink_to(copy)
    for name, scores in {"TEACHER": "B", "EVALUATOR": "B", "EVALUATOR_SHORT": "SHORT"}.items():
        (folder / name).symlink_to(folder / "results" / "scores" / scores)
    (folder / "scores").mkdir()
    (folder / "scores" / "step2000").symlink_to("../results/scores/A")
    for seed, name in enumerate(("out", "out_base", "out_tuned")):
        test_behaviours.write(folder / name, test_behaviours.rows_of(seed))
    for seed, name in enumerate(("base", "tuned")):
        test_passk.table(folder / f"{name}.csv", seed)
    for name in ("run1.json", "run2.json", "run3.json", "plain-1.json", "egss-1.json"):
        test_egss.write_report(folder / name, test_egss.TASKS[:2])
    test_egss.write_run(folder / "runs" / "plain-1", gate="never")
    test_egss.write_run(folder / "runs" / "egss-1", gate="edit", judge="votes")
    return folder


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, workplace, tmp_path, monkeypatch, capfd):
    shutil.copytree(workplace, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    names, before = {}, set(METRICS)
    for block in blocks("console", "python", pages=[page]):
        if block.language == "python":
            code = compile(block.text, f"{page.name}:{block.line}", "exec")
            if "model, tokenizer" in block.text and not names:
                names |= {"model": AutoModelForCausalLM.from_pretrained("CKPT")}
                names |= {"tokenizer": AutoTokenizer.from_pretrained("CKPT")}
            try:
                if not block.not_run:
                    exec(code, names)
            finally:
                for name in set(METRICS) - before:
                    unregister(name)
            continue
        for command in commands([block]):
            if not command.not_run:
                scored = sorted(Path("results/scores").glob("CKPT*"), key=os.path.getmtime)
                stands_for = dict(zip(("WHOLE", "SHORT"), map(str, scored)))  # for what analysis.md scores first
                words = [stands_for.get(word, word) for word in command.words]
                words = [path for word in words for path in sorted(map(str, Path().glob(word))) or [word]]
                status, output = run(words), capfd.readouterr()
                assert status == 0, (command.place, words, output.out[-2000:], output.err[-4000:])


def run(words):
    """The status of a command, in this process."""
    program, *arguments = words
    with lm_eval_run.in_process():
        if program == "lm_eval":
            return cli.main(["eval", *arguments])
        if program == "hesnr":
            return cli.main(arguments)
    raise AssertionError(words)


def test_what_is_not_run_has_a_reason():
    for block in blocks():
        assert block.language or block.page.name == "design.md", f"{block.page.name}:{block.line}: which language?"
        assert block.language in {"console", "python", "json", "yaml", ""}, f"{block.page.name}:{block.line}"
        for why in block.not_run.values():
            assert REASONS & set(re.findall(r"\w+", why)), f"{block.page.name}:{block.line}: {why}"
    skipped = [command for command in commands() if command.not_run]
    assert len(skipped) < len(list(commands())) / 2


@pytest.mark.parametrize("block", list(blocks("json", "yaml")), ids=lambda block: f"{block.page.name}:{block.line}")
def test_data_is_what_the_page_says(block, tmp_path):
    path = tmp_path / f"data.{block.language}"
    if block.language == "json":
        path.write_text(json.dumps(json.loads(block.text)))
        assert [trajectory.source for trajectory in read_trajectories(str(path))]
    else:
        path.write_text("trajectories: [a.jsonl]\n" + block.text)
        assert read_ladder_file(path).checkpoints
