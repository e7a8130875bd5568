"""Commands under a deadline: their output is kept up to a limit, and no process of theirs outlives them."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.types import Ran

__all__ = ["LIMIT", "check_namespaces", "run_group", "run_inside"]

LIMIT = 64 * 2**20  # bytes of output; what comes after is read and dropped
_INSIDE = Path(__file__).with_name("inside.py")
_MEND = (
    "Commands run in private namespaces, which needs Linux 5.12 or newer and unprivileged user namespaces (sysctl "
    "user.max_user_namespaces > 0; on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0; in a container "
    "--privileged, or --security-opt with each of seccomp=, apparmor= and systempaths=unconfined). The alternative "
    "is --fork docker, with an image."
)


def run_inside(
    root: Path,
    binds: Mapping[Path, Path],
    hide: Sequence[Path],
    show: Sequence[Path],
    command: str,
    timeout: float,
    env: Mapping[str, str] | None,
) -> Ran:
    """Run a shell command at `root` where only the `binds` (folder -> the path it stands for) can be written.

    `hide`: folders and files it cannot see; `show`: folders that a bind would cover, to be read all the same.

    Raises `SearchError` when the namespaces cannot be made; the command was not started then.
    """
    read, write = os.pipe()
    pairs = [[str(source), str(target)] for source, target in binds.items()]
    seen = {"hide": [str(path) for path in hide], "show": [str(path) for path in show]}
    plan = {"root": str(root), "binds": pairs, **seen, "command": command, "report": write}
    words = [sys.executable, "-I", "-S", str(_INSIDE), json.dumps(plan)]
    with os.fdopen(read, "rb") as report:
        try:
            ran = run_group(words, timeout, env, keep=(write,))
        finally:
            os.close(write)
        if problem := report.read().decode(errors="replace"):
            raise SearchError(f"no isolated place to run commands can be made here ({problem}). {_MEND}")
    return ran


def check_namespaces() -> None:
    """Raises `SearchError`, naming the alternatives, where commands cannot be isolated."""
    if sys.platform != "linux":
        raise SearchError(f"commands cannot be isolated on {sys.platform}. {_MEND}")
    run_inside(Path("/"), {}, [], [], "true", 20, None)


def run_group(
    words: Sequence[str],
    timeout: float,
    env: Mapping[str, str] | None = None,
    *,
    keep: Sequence[int] = (),
    cwd: Path | None = None,
) -> Ran:
    """Run a program with its output (stdout and stderr) read; when the time is over, its process group is killed.

    The same happens when this process is interrupted: nothing it started goes on.
    """
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, pass_fds=keep,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            output, ended = _read(process.stdout, deadline)
            ended = ended and _ends(process, deadline)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        output += b"" if ended else _read(process.stdout, time.monotonic() + 1)[0]
        status = process.wait()
    return Ran(_text(output), status, timed_out=not ended)


def _ends(process: subprocess.Popen[bytes], deadline: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    return process.poll() is not None


def _read(stream: IO[bytes], deadline: float) -> tuple[bytes, bool]:
    """What came until the end (true) or the deadline (false)."""
    kept = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                return bytes(kept), True
            kept += chunk[: max(0, LIMIT - len(kept))]
    return bytes(kept), False


def _text(output: bytes) -> str:
    """As Python reads text: UTF-8 with replacements, every line end a newline."""
    return output.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
