"""lm-eval on small trajectories: its library and its command, both in this process."""

import contextlib
import io
import json
import logging
import sys
from typing import NamedTuple
from unittest import mock

import lm_eval
import lm_eval.tasks
import lm_eval.utils
import torch.utils.collect_env
from lm_eval.tasks import TaskManager

from hesnr_tasks.metrics import names_of
from hesnr_tasks.tasks import tasks_path
from hesnr_tasks.testing import trajectory as run


def evaluate(checkpoint, tasks, metadata, model_args="dtype=float32", **kwargs):
    """lm-eval as a library; returns its whole result."""
    manager = TaskManager(
        include_path=str(tasks_path()), include_defaults=False, metadata={"min_tokens": 0, **metadata}
    )
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={checkpoint},{model_args}",
        tasks=tasks,
        task_manager=manager,
        device="cpu",
        **{"bootstrap_iters": 0, **kwargs},
    )


class CommandResult(NamedTuple):
    """What a command printed and logged, and its exit status."""

    stdout: str
    stderr: str
    status: int


def without_defaults(*args, **kwargs):
    """A TaskManager of what --include_path holds alone, whatever the command asks for (lm-eval 0.5 does)."""
    return TaskManager(*args, **kwargs | {"include_defaults": False})


@contextlib.contextmanager
def in_process():
    """For lm-eval's command in this process: `quick`, and with logging left as it is.

    The command takes its logger out of the tree, and pytest then hangs its handlers there, where tasks copy them.
    """
    with quick(), mock.patch.object(lm_eval.utils, "_LOGGING_CONFIGURED", True):
        yield


@contextlib.contextmanager
def quick():
    """For lm-eval's command: without the index of its own tasks and what ten programs say about the machine."""
    with (
        mock.patch.object(lm_eval.tasks, "TaskManager", without_defaults),
        mock.patch.object(torch.utils.collect_env, "get_pretty_env_info", return_value="not collected"),
    ):
        yield


def lm_eval_command(*words):
    """The `lm_eval` command in this process."""
    out, err = io.StringIO(), io.StringIO()
    handler, status = logging.StreamHandler(err), 0
    loggers = [logging.getLogger(name) for name in ("lm_eval", "hesnr_tasks")]
    with (
        mock.patch.object(sys, "argv", ["lm_eval", *map(str, words)]),
        in_process(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for logger in loggers:
            logger.addHandler(handler)
        try:
            from lm_eval.__main__ import cli_evaluate

            cli_evaluate()
        except SystemExit as exit:  # Python prints its text and ends with status 1
            print(exit.code, file=err)
            status = 1
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
    return CommandResult(out.getvalue(), err.getvalue(), status)


def values(result, task):
    """Every metric of one task."""
    rows = {name.rsplit("::", 1)[-1]: row for name, row in result["results"].items()}  # lm-eval 0.5: `group::task`
    return {name: rows[task][f"{name},none"] for name in names_of()}


def write(path, trajectories):
    """Write trajectories to a file; returns its path as text."""
    path.write_text("".join(json.dumps(t.to_json()) + "\n" for t in trajectories))
    return str(path)


def call(command):
    """The text of a call of bash."""
    return f"\n\n<function=bash>\n<parameter=command>{command}</parameter>\n</function>"


SMALL = [
    run("one", ("Look around.", call("ls -la src  # list"), "a.py"), ("Read it.", call("cat src/a.py"), "x = 1\n")),
    run(
        "two",
        ("Run the tests.", call("python -m pytest -q tests/test_a.py"), "1 failed"),
        ("", call("grep -rn 'def f' ."), ""),
    ),
    run(
        "three",
        ("Edit.", call("sed -i 's/1/2/' src/a.py && git diff"), "-x = 1\n+x = 2"),
        ("Done.", call("submit"), ""),
    ),
]
