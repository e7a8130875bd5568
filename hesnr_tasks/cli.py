"""The `hesnr` command. Each sub-command lives in the module that does its work; this file only routes."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence

from hesnr_tasks import __version__
from hesnr_tasks.errors import HesnrError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; errors a user can mend end with their message and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["eval"]:  # everything after it is lm_eval's
            return _eval(words[1:])
        args = _parser().parse_args(words)
        return int(args.run(args))
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
    from hesnr_tasks import convert, demo_run, inspect
    from hesnr_tasks.analysis import analyze, compare
    from hesnr_tasks.passk import command as passk
    from hesnr_tasks.report import command as report
    from hesnr_tasks.search import command as search

    parser = argparse.ArgumentParser(prog="hesnr", description="HE-SNR, HE-PPL and PPL over agent trajectories.")
    parser.add_argument("--version", action="version", version=f"hesnr-tasks {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="score the shipped ladder of tiny checkpoints and print its leaderboard")
    demo_run.add_arguments(demo)
    demo.set_defaults(run=demo_run.run)

    commands.add_parser("eval", help="lm_eval with our tasks on its path; takes lm_eval's own arguments")

    converter = commands.add_parser("convert", help="any supported trajectory format to one clean file")
    convert.add_arguments(converter)
    converter.set_defaults(run=convert.run)

    inspector = commands.add_parser("inspect", help="see what was read and what counts, in the terminal or as a page")
    inspect.add_arguments(inspector)
    inspector.set_defaults(run=inspect.run)

    analyzer = commands.add_parser("analyze", help="any threshold, k, kinds, filters and breakdown, from score files")
    analyze.add_arguments(analyzer)
    analyzer.set_defaults(run=analyze.run)

    comparer = commands.add_parser("compare", help="is one run better than another? paired, from score files")
    compare.add_arguments(comparer)
    comparer.set_defaults(run=compare.run)

    reporter = commands.add_parser("report", help="leaderboard, correlations, figures and one page, of lm-eval results")
    report.add_arguments(reporter)
    reporter.set_defaults(run=report.run)

    reach = commands.add_parser("passk", help="Pass@K with intervals, from logs, reports or tables")
    passk.add_arguments(reach)
    reach.set_defaults(run=passk.run)

    searcher = commands.add_parser("search", help="an agent that branches where it hesitates (EGSS)")
    search.add_arguments(searcher)
    searcher.set_defaults(run=search.run)

    tasks = commands.add_parser("tasks", help="print the folder for lm_eval --include_path")
    tasks.set_defaults(run=_tasks)

    register = commands.add_parser("register", help="let plain lm_eval find our tasks from now on")
    register.add_argument("--undo", action="store_true", help="take it back")
    register.set_defaults(run=_register)
    return parser


def _tasks(args: argparse.Namespace) -> int:
    from hesnr_tasks.registration import tasks_path

    print(tasks_path())
    return 0


def _register(args: argparse.Namespace) -> int:
    from hesnr_tasks.registration import register, unregister

    if args.undo:
        folder = unregister()
        print(f"removed {folder}" if folder else "nothing was registered")
    else:
        print(f"lm_eval now finds our tasks; the files are in {register()} (undo: hesnr register --undo)")
    return 0


def _eval(words: list[str]) -> int:
    from hesnr_tasks.registration import tasks_path

    if importlib.util.find_spec("lm_eval") is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    from lm_eval.__main__ import cli_evaluate

    if not any(word.split("=")[0] == "--include_path" for word in words) and words:
        words = [*words, "--include_path", str(tasks_path())]
    sys.argv = ["lm_eval", *words]
    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
