"""The `hesnr` command. This file only routes: what adds a sub-command's arguments also sets what executes it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from hesnr_tasks import __version__
from hesnr_tasks.errors import HesnrError

__all__ = ["command_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; errors a user can mend end with their message and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["eval"]:  # everything after it is lm_eval's
            from hesnr_tasks.cli.evaluate import evaluate

            return evaluate(words[1:])
        parser = command_parser()
        if not words:
            parser.print_help()
            return 0
        args = parser.parse_args(words)
        outcome = args.execute(args)
        if isinstance(outcome, str):
            print(outcome)
            return 0
        return int(outcome)
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


class _Parser(argparse.ArgumentParser):
    """Of this command and, by inheritance, of all below it."""

    def error(self, message: str) -> NoReturn:
        """What is wrong and where help is, in two lines: a page of usage above it hides it."""
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists the arguments.\n")


def command_parser() -> argparse.ArgumentParser:
    """All sub-commands. `execute` of a parsed command line does the work and returns text or an exit status."""
    from hesnr_tasks.cli import analyze, answers, check, evaluate, ladder, report, setup, trajectories

    parser = _Parser(prog="hesnr", description="HE-SNR, HE-PPL and PPL over agent trajectories.")
    parser.add_argument("--version", action="version", version=f"hesnr-tasks {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("eval", help="lm_eval with our tasks on its path; takes lm_eval's own arguments")
    table: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
        "doctor": (setup.doctor_arguments, "what is installed here, which engines can work, and what is missing"),
        "demo": (setup.demo_arguments, "score the shipped ladder of tiny checkpoints and print its leaderboard"),
        "check": (
            check.add_arguments,
            "before a run: what would be read and scored, what the chat template does, memory and time",
        ),
        "convert": (trajectories.convert_arguments, "any supported trajectory format to one clean file"),
        "inspect": (trajectories.inspect_arguments, "see what was read and what counts, in the terminal or as a page"),
        "analyze": (analyze.analyze_arguments, "any threshold, k, kinds, filters and breakdown, from score files"),
        "compare": (analyze.compare_arguments, "is one run better than another? paired, from score files"),
        "report": (report.add_arguments, "leaderboard, correlations, figures and one page, of lm-eval results"),
        "ladder": (
            ladder.add_arguments,
            "which checkpoint to take: write, check, run a ladder of checkpoints, and its verdict",
        ),
        "watch": (evaluate.watch_arguments, "score each checkpoint of a training run as it is completed"),
        "weights": (
            evaluate.weights_arguments,
            "sampling weights for training data, by what a checkpoint makes of each document",
        ),
        "passk": (answers.passk_arguments, "Pass@K with intervals, from logs, reports or tables"),
        "egss": (answers.egss_arguments, "costs and calibration of agents that draw more where they hesitate (EGSS)"),
        "select": (
            answers.select_arguments,
            "one patch an instance from finished runs, by their tests and by votes (EGSS)",
        ),
        "behaviours": (
            answers.behaviours_arguments,
            "what models write: length, reflection, repetition, rarity, from their answers",
        ),
    }
    for name, (add_arguments, purpose) in table.items():
        add_arguments(commands.add_parser(name, help=purpose))

    tasks = commands.add_parser("tasks", help="print the folder for lm_eval --include_path")
    tasks.set_defaults(execute=_tasks)

    register = commands.add_parser("register", help="let plain lm_eval find our tasks from now on")
    register.add_argument("--undo", action="store_true", help="take it back")
    register.set_defaults(execute=_register)
    return parser


def _tasks(args: argparse.Namespace) -> str:
    from hesnr_tasks.tasks import tasks_path

    return str(tasks_path())


def _register(args: argparse.Namespace) -> str:
    from hesnr_tasks.tasks import register, unregister

    if args.undo:
        folder = unregister()
        return f"removed {folder}" if folder else "nothing was registered"
    return f"lm_eval now finds our tasks; the files are in {register()} (undo: hesnr register --undo)"
