"""`hesnr search run`: search tasks with entropy-guided branching; `hesnr search report`: what searches cost.

The output folder holds one folder for each instance: tree.jsonl, ledger.jsonl, leaves/*.traj.json and *.patch,
chosen.patch, result.json. The same command with the same output goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.search.decide import MODES, SOURCES, SearchSettings
from hesnr_tasks.search.forks import KINDS

if TYPE_CHECKING:
    from hesnr_tasks.search.task import How, Task

__all__ = ["add_arguments", "read_tasks", "run"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+]*")
_USUAL = SearchSettings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr search`."""
    from hesnr_tasks.search import report

    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    runner = commands.add_parser("run", help="search tasks; the same command again goes on where it was stopped")
    _run_arguments(runner)
    runner.set_defaults(run=_run)
    reporter = commands.add_parser("report", help="cost curves, and savings at equal resolve rate")
    report.add_arguments(reporter)
    reporter.set_defaults(run=report.run)


def run(args: argparse.Namespace) -> int:
    """Run the sub-command."""
    return int(args.run(args))


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("task").add_argument
    add("--task", metavar="TEXT", help="what is to be done (@FILE: from a file); with --repo")
    add("--repo", type=Path, metavar="DIR", help="the repository; it is only read (docker: its path in the image)")
    add("--instances", type=Path, metavar="FILE", help="JSONL of {instance_id, repo, problem_statement}")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for everything that is found")
    add = parser.add_argument_group("model").add_argument
    add("-c", "--config", action="append", metavar="SPEC", help="as mini's -c, also several (default: mini.yaml)")
    add("--model", metavar="NAME", help="as litellm names it; with --base-url the server's own name does")
    add("--base-url", metavar="URL", help="of an OpenAI-compatible server, ending in /v1")
    add("--temperature", type=float, help="of the samples (default: the server's)")
    add = parser.add_argument_group("where to branch").add_argument
    add("--gate", default="threshold:0.5", help="never, always, random:RATE, threshold:NATS, relative:NATS[:mean|"
        "initial], quantile:SHARE:SCORES_FOLDER (default: threshold:0.5)")  # fmt: skip
    add("--entropy", choices=SOURCES, default=_USUAL.source, help="of votes, or log-probabilities (default: vote)")
    add(
        "--key",
        choices=("class", "file", "whole"),
        default=_USUAL.resolution,
        help=f"two actions are one if this is the same (default: {_USUAL.resolution})",
    )
    add("--n", type=int, default=_USUAL.n, help=f"draws where the gate fires (default: {_USUAL.n})")
    add("--probe", type=int, default=0, help="draws before the gate is asked (default: n by votes, 1 by logprob)")
    add("--max-forks", type=int, help="then the gate stays shut")
    add("--seed", type=int, default=1234, help="of random gates (default: 1234)")
    add = parser.add_argument_group("what to do there").add_argument
    add("--mode", choices=MODES, default=_USUAL.mode, help="one candidate, or live branches (default: choose)")
    add("--width", type=int, default=_USUAL.width, help=f"most branches of a run (default: {_USUAL.width})")
    add("--runs", type=int, default=1, help="independent runs; with --gate never: best-of-N (default: 1)")
    add("--judge", choices=("none", "llm", "logprob"), default="none", help="of candidates (default: none, votes)")
    add("--select", choices=("none", "llm"), default="none", help="of patches that pass equally (default: none)")
    add("--judge-model", metavar="NAME", help="for --judge and --select llm (default: --model)")
    add("--judge-url", metavar="URL", help="its server (default: --base-url)")
    add("--no-tests", action="store_true", help="do not run the tests of all leaves on all patches")
    add = parser.add_argument_group("limits and isolation").add_argument
    add("--step-limit", type=int, help="decisions in a whole tree (default: the config's)")
    add("--cost-limit", type=float, help="money for a whole tree; 0: none (default: the config's)")
    add("--token-limit", type=int, default=0, help="prompt and output tokens of a whole tree; 0: none")
    add("--fork", choices=KINDS, default="copy", help="how working states are copied (default: copy)")
    add("--image", default="", help="for --fork docker")


def _run(args: argparse.Namespace) -> int:
    """Search every task. One that fails is told and does not stop the others."""
    tasks, how = _prepared(args)
    from hesnr_tasks.search.task import search

    failed = 0
    for task in tasks:
        try:
            print(_told(search(task, how, args.output / task.instance), args.output), flush=True)
        except HesnrError as error:
            failed += 1
            print(f"hesnr: {task.instance}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"stopped in {task.instance}; nothing is lost, the same command goes on", file=sys.stderr)
            return 130
    return 2 if failed else 0


def _told(found: Mapping[str, Any], output: Path) -> str:
    tokens = found["tokens"]["all"]
    ended = ", ".join(f"{leaf} {status}" for leaf, status in found["statuses"].items())
    failed = f" (the judge failed at {found['judge_failures']})" if found["judge_failures"] else ""
    return (
        f"{found['instance_id']}: {found['steps']} steps, {found['forks']} forks{failed}; {ended}; "
        f"chosen {found['chosen']} by {found['decided_by']}; tokens {tokens['prompt']} prompt "
        f"({tokens['cached']} cached), {tokens['output']} output; {output / found['instance_id'] / 'chosen.patch'}"
    )


def _prepared(args: argparse.Namespace) -> tuple[list[Task], How]:
    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
    if args.base_url:  # litellm would fetch a price list, which a server of one's own is not on
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    for module in ("minisweagent", "litellm"):
        if importlib.util.find_spec(module) is None:
            raise HesnrError(f"{module} is not installed in this Python: pip install 'hesnr-tasks[search]'")
    from hesnr_tasks.search.settings import how_of

    return read_tasks(args), how_of(args)


def read_tasks(args: argparse.Namespace) -> list[Task]:
    """The tasks that the command line names. Raises `HesnrError` for what cannot be one."""
    from hesnr_tasks.search.task import Task

    if (args.instances is None) == (args.task is None) or (args.task is not None and args.repo is None):
        raise SettingsError("give either --task and --repo, or --instances.")
    if args.instances is None:
        name = re.sub(r"[^A-Za-z0-9_.\-+]", "_", args.repo.resolve().name).lstrip(".-+") or "task"
        return [Task(name, _repository(args, args.repo, "--repo"), _text(args.task))]
    found = [
        _task(args, line, f"{args.instances}:{n}") for n, line in enumerate(_lines(args.instances), start=1) if line
    ]
    names = [task.instance for task in found]
    if double := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{args.instances}: instance_id {double[0]!r} is there twice.")
    if not found:
        raise DataError(f"{args.instances}: no instance in it.")
    return found


def _task(args: argparse.Namespace, line: str, where: str) -> Task:
    from hesnr_tasks.search.task import Task

    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). One object a line is needed.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is needed.")
    values = {name: row.get(name) for name in ("instance_id", "repo", "problem_statement")}
    if missing := [name for name, value in values.items() if not isinstance(value, str) or not value]:
        raise DataError(f"{where}: {missing[0]} is missing or no text.")
    name, repository, text = (str(value) for value in values.values())
    if not _NAME.fullmatch(name):
        raise DataError(f"{where}: instance_id {name!r} cannot name a folder; letters, digits and _.-+ can.")
    return Task(name, _repository(args, args.instances.parent / repository, where), text)


def _repository(args: argparse.Namespace, folder: Path, where: str) -> Path:
    if args.fork != "docker" and not folder.is_dir():
        raise SettingsError(f"{where}: there is no folder {folder}.")
    return folder if args.fork == "docker" else folder.resolve()


def _text(text: str) -> str:
    if not text.startswith("@"):
        return text
    return _read(Path(text[1:]))


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).split("\n")]  # JSON may hold other line ends, as U+2028


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}.") from None
