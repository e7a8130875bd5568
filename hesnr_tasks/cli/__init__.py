"""The `hesnr` command. Each sub-command lives in the module that does its work; this file only routes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks import __version__
from hesnr_tasks.errors import HesnrError, nearest

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; errors a user can mend end with their message and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["eval"]:  # everything after it is lm_eval's
            return _eval(words[1:])
        parser = _parser()
        if not words:
            parser.print_help()
            return 0
        args = parser.parse_args(words)
        return int(args.execute(args))
    except HesnrError as error:
        print(f"hesnr: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that cannot be written: the user's to mend, like the above
        if not error.strerror:
            raise
        print(f"hesnr: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    from hesnr_tasks.cli import (
        analyze,
        behaviours,
        check,
        compare,
        convert,
        demo,
        doctor,
        egss,
        inspect,
        ladder,
        passk,
        report,
        select,
        watch,
        weights,
    )

    parser = argparse.ArgumentParser(prog="hesnr", description="HE-SNR, HE-PPL and PPL over agent trajectories.")
    parser.add_argument("--version", action="version", version=f"hesnr-tasks {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("eval", help="lm_eval with our tasks on its path; takes lm_eval's own arguments")
    modules: dict[str, tuple[Any, str]] = {
        "doctor": (doctor, "what is installed here, which engines can work, and what is missing"),
        "demo": (demo, "score the shipped ladder of tiny checkpoints and print its leaderboard"),
        "check": (check, "before a run: what would be read and scored, what the chat template does, memory and time"),
        "convert": (convert, "any supported trajectory format to one clean file"),
        "inspect": (inspect, "see what was read and what counts, in the terminal or as a page"),
        "analyze": (analyze, "any threshold, k, kinds, filters and breakdown, from score files"),
        "compare": (compare, "is one run better than another? paired, from score files"),
        "report": (report, "leaderboard, correlations, figures and one page, of lm-eval results"),
        "ladder": (ladder, "which checkpoint to take: write, check, run a ladder of checkpoints, and its verdict"),
        "watch": (watch, "score each checkpoint of a training run as it is completed"),
        "weights": (weights, "sampling weights for training data, by what a checkpoint makes of each document"),
        "passk": (passk, "Pass@K with intervals, from logs, reports or tables"),
        "egss": (egss, "costs and calibration of agents that draw more where they hesitate (EGSS)"),
        "select": (select, "one patch an instance from finished runs, by their tests and by votes (EGSS)"),
        "behaviours": (behaviours, "what models write: length, reflection, repetition, rarity, from their answers"),
    }
    for name, (module, purpose) in modules.items():
        command = commands.add_parser(name, help=purpose)
        module.add_arguments(command)
        command.set_defaults(execute=module.run)

    tasks = commands.add_parser("tasks", help="print the folder for lm_eval --include_path")
    tasks.set_defaults(execute=_tasks)

    register = commands.add_parser("register", help="let plain lm_eval find our tasks from now on")
    register.add_argument("--undo", action="store_true", help="take it back")
    register.set_defaults(execute=_register)
    return parser


def _tasks(args: argparse.Namespace) -> int:
    from hesnr_tasks.tasks.registration import tasks_path

    print(tasks_path())
    return 0


def _register(args: argparse.Namespace) -> int:
    from hesnr_tasks.tasks.registration import register, unregister

    if args.undo:
        folder = unregister()
        print(f"removed {folder}" if folder else "nothing was registered")
    else:
        print(f"lm_eval now finds our tasks; the files are in {register()} (undo: hesnr register --undo)")
    return 0


def _eval(words: list[str]) -> int:
    from hesnr_tasks.tasks.registration import check_lm_eval, tasks_path

    check_lm_eval()
    from lm_eval.__main__ import cli_evaluate

    if not any(word.split("=")[0] == "--include_path" for word in words) and words:
        words = [*words, "--include_path", str(tasks_path())]
    sys.argv = ["lm_eval", *words]  # `cli_evaluate` takes no arguments
    try:
        _refuse_before_loading()
        cli_evaluate()
    except OSError as error:  # of transformers: the model is neither here nor on a hub that can be reached
        if error.errno is not None:
            raise
        raise HesnrError(
            f"the model cannot be loaded: {str(error).strip().splitlines()[0]}\n"
            "Name a folder that exists, or a model of a hub that this machine can reach, in --model_args."
        ) from None
    except SystemExit as exit:
        if isinstance(exit.__cause__, HesnrError):
            raise exit.__cause__ from None
        raise
    return 0


def _refuse_before_loading() -> None:
    """Refuse what lm_eval would fail on later, with a traceback: models that cannot score texts, paths that are not."""
    from lm_eval._cli import HarnessCLI

    from hesnr_tasks.backends import refuse_unscorable

    if not sys.argv[1:]:
        return
    given = vars(HarnessCLI().parse_args())
    tasks, model, arguments = given.get("tasks") or "", given.get("model"), given.get("model_args") or {}
    names = ",".join([tasks] if isinstance(tasks, str) else map(str, tasks)).replace(" ", ",").split(",")
    if any(name.startswith("hesnr") and not name.startswith("hesnr_passk") for name in names):
        refuse_unscorable(str(model))
        if isinstance(metadata := given.get("metadata") or {}, dict):
            _refuse_settings(metadata)
    for name in ("pretrained", "peft", "tokenizer", "model_path"):
        value = arguments.get(name) if isinstance(arguments, dict) else None
        if not isinstance(value, str) or not value:
            continue
        path = Path(value)
        is_path = value[0] in "/.~" or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir())
        if is_path and not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = " (~ is not expanded here)" if value[0] == "~" else nearest(path.name, siblings)
            raise HesnrError(
                f"{name}={value} in --model_args: there is no such file or folder.{hint}\n"
                "Name the folder of a checkpoint in Hugging Face format, or a model of the hub."
            )
        usable = ("config.json", "adapter_config.json", "params.json", "*.gguf")
        if name != "pretrained" or not path.is_dir() or "subfolder" in arguments:
            continue
        if not any(True for pattern in usable for _ in path.glob(pattern)):
            inner = sorted(file.parent.name for file in path.glob("*/config.json"))[:5]
            below = f" Below it are {', '.join(inner)}." if inner else ""
            raise HesnrError(
                f"{name}={value} in --model_args: the folder has no config.json.{below}\nName the folder of a "
                "checkpoint in Hugging Face format (docs/engines.md#checkpoints-of-other-frameworks)."
            )


def _refuse_settings(metadata: Mapping[str, Any]) -> None:
    """Refuse settings and paths that cannot be used."""
    from hesnr_tasks.formats import read_trajectories
    from hesnr_tasks.tasks.settings import TaskSettings

    settings = TaskSettings.read(metadata)
    if settings.trajectories:
        first = read_trajectories(
            settings.trajectories, config=settings.config, split=settings.split, on_error=settings.on_error
        )
        next(first, None)
