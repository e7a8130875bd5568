"""`hesnr demo`: the real `lm_eval` command on each checkpoint of the shipped ladder, then its report."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hesnr_tasks import demo
from hesnr_tasks.cli.report import save_report
from hesnr_tasks.errors import HesnrError
from hesnr_tasks.ladder.names import read_ladder
from hesnr_tasks.ladder.run import run_command
from hesnr_tasks.report import tables
from hesnr_tasks.report.results import find_score_folders, read_results
from hesnr_tasks.tasks.registration import tasks_path

__all__ = ["add_arguments", "run"]

_TASKS = "hesnr_swe,hesnr_swe_unfiltered"
_KEEP = "observation+thought+action"  # observations too: one of the figures is of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr demo`."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out/demo"), help="where results go (default: out/demo)"
    )
    parser.add_argument("--tasks", default=_TASKS, help=f"default: {_TASKS}")


def run(args: argparse.Namespace) -> int:
    """Score the ladder and print its leaderboard."""
    for needed in ("lm_eval", "torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            raise HesnrError(f"the demo needs {needed}. Install it with: pip install 'hesnr-tasks[hf]'")
    ladder = demo.ladder_paths()
    folders = [args.output / "runs" / name for name, _ in ladder]
    for number, ((name, checkpoint), folder) in enumerate(zip(ladder, folders, strict=True), 1):
        command = _command(checkpoint, args.tasks, folder)
        if number == 1:
            print("$ " + shlex.join(["lm_eval", *command[3:]]) + "   (and so on for each checkpoint)")
        print(f"[{number}/{len(ladder)}] {name}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        run_command(command, args.output / "runs" / "lm_eval.log", f"lm_eval on {name}")
    return _report(folders, args.output)


def _report(folders: Sequence[Path], output: Path) -> int:
    """Leaderboard, figures and page; the leaderboard alone where pyarrow or matplotlib is missing."""
    results = read_results(folders)
    named = read_ladder({result.model for result in results})
    print(f"\n{tables.leaderboard_markdown(tables.boards(results, named.checkpoints))}")
    lacking = [name for name in ("pyarrow", "matplotlib") if importlib.util.find_spec(name) is None]
    if lacking:
        print(f"\nFigures and the page need {' and '.join(lacking)}: pip install 'hesnr-tasks[report]'")
        tables.write_leaderboard(results, named.checkpoints, output)
        return 0
    from hesnr_tasks.report.data import build_report_data

    score_folders, notes = find_score_folders(results, folders)
    data = build_report_data(results, named, score_folders, notes=notes)
    save_report(data, output)
    if data.verdict:
        print(f"\n{data.verdict.sentences[0]}")
    return 0


def _command(checkpoint: Path, tasks: str, output: Path) -> list[str]:
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={_short(checkpoint)},dtype=float32", "--tasks", tasks]
    command += ["--include_path", str(_short(tasks_path())), "--output_path", str(output)]
    return [*command, "--metadata", json.dumps({"keep": _KEEP})]


def _short(path: Path) -> Path:
    """Relative where that is shorter to read: in a clone."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
