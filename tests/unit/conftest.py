"""Unit tests start no process: what is about processes is in tests/slow."""

import sys

import pytest

_STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
STARTED: list[str] = []
_OF_LIBRARIES = {"uname", "lsb_release", "fc-list"}  # platform and distro about the machine, matplotlib about fonts


def _note(event, arguments):
    if event in _STARTS and not (arguments and str(arguments[0]) in _OF_LIBRARIES):  # a fork has none
        STARTED.append(f"{event}{arguments[:2]}"[:500])


sys.addaudithook(_note)


@pytest.fixture(autouse=True)
def no_processes():
    """Fails a test that started a process, whatever became of it."""
    STARTED.clear()
    yield
    assert not STARTED, f"unit tests start no process; this belongs under tests/slow: {STARTED}"
