"""`hesnr watch`: score each checkpoint of a training run as it is completed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

from hesnr_tasks.errors import HesnrError, SettingsError
from hesnr_tasks.integrations.watch import WatchConfig, watch
from hesnr_tasks.tasks.registration import tasks_path

_LONGEST = 7 * 24 * 3600  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr watch`."""
    add = parser.add_argument
    add("checkpoints", type=Path, help="the folder into which the training writes its checkpoints, a folder each")
    add("-o", "--output_path", type=Path, required=True, help="where results, score files and the leaderboard go")
    add("--trajectories", nargs="+", required=True, help="files, globs, folders or a hub id")
    add("--tasks", default="hesnr_swe", help="tasks of lm_eval, ours and others (default: hesnr_swe)")
    add("--model", default="hf", help="lm_eval's --model (default: hf)")
    add("--model_args", default="", help="lm_eval's, without pretrained=, e.g. dtype=bfloat16,max_length=131072")
    add("--metadata", default="{}", help="further settings of our tasks, as JSON")
    add("--pattern", default="*", help="names of checkpoint folders, e.g. 'step*' (default: all)")
    add("--done-marker", metavar="FILE", help="a checkpoint is complete when it holds FILE (glob)")
    add(
        "--settle", type=float, default=60, help="without a marker: complete when unchanged for so long (default: 60 s)"
    )
    add("--convert", metavar="COMMAND", help="makes a Hugging Face folder: 'python convert.py {checkpoint} {output}'")
    add("--keep-converted", action="store_true", help="keep what --convert makes, in OUTPUT_PATH/converted")
    add("--interval", type=float, default=30, help="seconds between looks at the folder (default: 30)")
    add("--once", action="store_true", help="score what is complete now, then stop")
    add("--lm_eval_args", default="", metavar="WORDS", help="further arguments of lm_eval, e.g. '--batch_size auto'")


def run(args: argparse.Namespace) -> int:
    """Watch until interrupted, after everything that can be checked was."""
    if not args.checkpoints.is_dir():
        raise SettingsError(f"{args.checkpoints} is no folder; name the one into which checkpoints are written")
    if not (0 < args.interval <= _LONGEST and 0 <= args.settle <= _LONGEST):
        raise SettingsError(f"--interval must be above 0, --settle at least 0, and both at most {_LONGEST:,} seconds")
    if importlib.util.find_spec("lm_eval") is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    if re.search(r"(^|,)(pretrained|model)=", args.model_args):
        raise SettingsError("--model_args names a model; hesnr watch puts each checkpoint there, so leave it out")
    if args.convert and not {"{checkpoint}", "{output}"} <= set(re.findall(r"{\w+}", args.convert)):
        raise SettingsError(
            "--convert must have {checkpoint} and {output} in it, e.g. 'convert.sh {checkpoint} {output}'"
        )
    try:
        metadata = json.loads(args.metadata)
        if not isinstance(metadata, dict):
            raise TypeError(f"it is a {type(metadata).__name__}")
    except (ValueError, TypeError) as error:
        raise SettingsError(f"--metadata must be a JSON object: {error}") from None
    metadata["trajectories"] = [
        str(Path(name).resolve()) if Path(name).exists() else name for name in args.trajectories
    ]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", args.model, "--tasks", args.tasks]
    command += ["--include_path", str(tasks_path()), "--metadata", json.dumps(metadata)]
    config = WatchConfig(
        args.checkpoints,
        args.output_path,
        (*command, *shlex.split(args.lm_eval_args)),
        args.model_args,
        args.pattern,
        args.done_marker,
        args.settle,
        args.convert or "",
        args.keep_converted,
        args.interval,
        args.once,
    )
    return watch(config)
