"""Processes for tests, forked from one that has imported everything and computed nothing: faster than starting anew."""

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from typing import NamedTuple
from unittest import mock

__all__ = ["Ended", "WarmPython", "finish", "start", "torchrun", "warm_python"]

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["tests.preloaded"])


class Ended(NamedTuple):
    """How processes of a group ended: 0 or 1, and what all of them wrote to their standard errors."""

    returncode: int
    stderr: str


def start(target, *arguments):
    """A process that runs `target(*arguments)`; both must be picklable."""
    process = _FORKSERVER.Process(target=_run, args=(target, arguments))
    process.start()
    return process


def finish(*processes, seconds=1200):
    """Wait for processes; their exit codes."""
    for process in processes:
        process.join(seconds)
    return [process.exitcode for process in processes]


def torchrun(folder, target, *arguments, **environment):
    """`target(*arguments)` in two processes under torchrun's own agent, which ends both where one fails.

    Args:
        folder: for their logs.
        environment: further variables of theirs.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = DefaultLogsSpecs(str(folder), redirects=Std.ERR)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=0, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        start_method="forkserver", local_addr="localhost", logs_specs=logs, signals_to_handle="",
    )  # fmt: skip
    status = 0
    with mock.patch.dict(os.environ):  # the agent writes there
        try:
            elastic_launch(config, _in_environment)(environment, target, arguments)
        except ChildFailedError:
            status = 1
    return Ended(status, "".join(path.read_text(errors="replace") for path in sorted(folder.rglob("stderr.log"))))


class WarmPython(NamedTuple):
    """What stands for a Python that need not import first."""

    python: str  # a program that does what `python -m MODULE …` does
    site: str  # on PYTHONPATH, it makes `python -m lm_eval` the same


_CLIENT = """#!{python} -IS
import json, os, socket, sys, time
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
    for _ in range(6000):  # the server imports much first
        try:
            link.connect({address!r})
            break
        except OSError:
            time.sleep(0.1)
    words = sys.argv[sys.argv.index("-m") + 1:]
    socket.send_fds(link, [json.dumps([words, os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
    os._exit(int(link.recv(9) or 1))
"""


@contextlib.contextmanager
def warm_python(folder, *modules):
    """A `WarmPython` of which every start is a process forked from one that has imported lm-eval and this package.

    Arguments, environment, folder, streams and exit status are its own; whoever kills the program kills that process.
    What lm-eval spends seconds on in each run is left out (`lm_eval_run.quick`).

    Args:
        folder: an empty one, for the program.
        modules: what else is imported before.
    """
    program, address, package = folder / "python", str(folder / "socket"), folder / "site" / "lm_eval"
    program.write_text(_CLIENT.format(python=sys.executable, address=address))
    program.chmod(0o755)
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import os, sys\nos.execv({str(program)!r}, [{str(program)!r}, '-m', 'lm_eval', *sys.argv[1:]])\n"
    )
    server = start(_serve, address, modules)
    try:
        yield WarmPython(str(program), str(package.parent))
    finally:
        server.kill()
        server.join()


def _serve(address, modules):
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            link, _ = listener.accept()
            if not os.fork():
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _keep(link)
            link.close()


def _keep(link):
    """Run what a client asks for, until that ends or the client does."""
    message, streams, *_ = socket.recv_fds(link, 1 << 20, 3)
    child = os.fork()
    if not child:
        link.close()
        _become(*json.loads(message), streams)
    for stream in streams:
        os.close(stream)
    if link in select.select([link, os.pidfd_open(child)], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        link.send(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


def _become(words, folder, environment, streams):
    """As `python -m` with these words; does not return."""
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        if "OMP_NUM_THREADS" in environment:  # which PyTorch reads when it is imported
            sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
        sys.argv = words
        with importlib.import_module("tests.lm_eval_run").quick():
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status)


def _in_environment(environment, target, arguments):
    os.environ.update(environment)
    _run(target, arguments)


def _run(target, arguments):
    try:
        target(*arguments)
    except SystemExit:
        raise
    except BaseException:  # as a process of its own would end, without multiprocessing's own words
        traceback.print_exc()
        raise SystemExit(1) from None
