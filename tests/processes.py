"""Processes for tests, forked from one that has imported everything and computed nothing: faster than starting anew."""

import multiprocessing
import traceback

__all__ = ["finish", "start"]

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["lm_eval.models.huggingface", "hesnr_tasks.tasks.task", "tests.lm_eval_run"])


def start(target, *arguments):
    """A process that runs `target(*arguments)`; both must be picklable."""
    process = _FORKSERVER.Process(target=_run, args=(target, arguments))
    process.start()
    return process


def finish(*processes, seconds=240):
    """Wait for processes; their exit codes."""
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]


def _run(target, arguments):
    try:
        target(*arguments)
    except SystemExit:
        raise
    except BaseException:  # as a process of its own would end, without multiprocessing's own words
        traceback.print_exc()
        raise SystemExit(1) from None
