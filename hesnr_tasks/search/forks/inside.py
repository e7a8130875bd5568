"""Started as a script: runs one command where only a copied state can be written.

    python -I -S inside.py PLAN     JSON: root, binds [[source, target]], hide [path], show [folder], command,
                                    report (a descriptor)

In a new user, mount, process and IPC namespace, everything is made read-only, the copies are bound over the paths they
stand for, and what must not be seen or reached is covered. The command itself runs in a further user namespace, which
owns none of these mounts and so cannot undo them. When the command ends, or this process is killed, every process it
started is killed with it. Needs Linux 5.12 (mount_setattr) and unprivileged user namespaces; no root, no other program.

It imports nothing of this package: it is started once for every command, without site-packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from typing import Any

__all__: list[str] = []

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000  # linux/sched.h
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
_NOSUID, _NODEV = 0x2, 0x4
_AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY, _MOUNT_SETATTR = -100, 0x8000, 0x1, 442
_PDEATHSIG = 1  # linux/prctl.h
_KERNEL = ("sys", "sysrq-trigger", "irq", "bus", "fs")  # of /proc: settings of the whole machine, which root may write
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    done = _libc.mount(*words, ctypes.c_ulong(flags), data.encode() if data else None)
    _checked(done, f"mount on {target}")


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _read_only(path: str, on: bool) -> None:
    """Set or clear read-only on a mount; setting reaches the mounts below it too."""
    change = _Attributes(set=_ATTR_RDONLY) if on else _Attributes(clear=_ATTR_RDONLY)
    flags = _AT_RECURSIVE if on else 0
    arguments = (_AT_FDCWD, path.encode(), flags, ctypes.byref(change), ctypes.sizeof(change))
    _checked(_libc.syscall(_MOUNT_SETATTR, *arguments), f"mount_setattr on {path}")


def _unshare(flags: int) -> None:
    """New namespaces in which this process keeps its user and group."""
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(flags), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib is slow to import
            file.write(text)


def _arrange(plan: dict[str, Any]) -> None:
    """All mounts but /proc."""
    binds = [(os.open(source, os.O_PATH | os.O_DIRECTORY), target) for source, target in plan["binds"]]
    shown = [(os.open(folder, os.O_PATH | os.O_DIRECTORY), folder) for folder in plan["show"]]
    _mount(None, "/", flags=_REC | _PRIVATE)
    _read_only("/", on=True)
    for path in plan["hide"]:
        if os.path.isdir(path):  # noqa: PTH112
            _mount("none", path, "tmpfs", _NOSUID | _NODEV, "size=4k,mode=555")
            _read_only(path, on=True)
        else:
            _mount("/dev/null", path, flags=_BIND)
    for source, target in binds:
        _mount(f"/proc/self/fd/{source}", target, flags=_BIND)
        _read_only(target, on=False)
        os.close(source)  # through /proc/1/fd the command would see what lies beside the copies
    for source, target in shown:  # as read-only as what they are taken from
        _mount(f"/proc/self/fd/{source}", target, flags=_BIND | _REC)
        os.close(source)
    if os.path.isdir("/dev/shm"):  # noqa: PTH112
        _mount("none", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")
    os.chdir(plan["root"])


def _die_with_parent(parent: int) -> None:
    _libc.prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _mount_proc() -> None:
    """A /proc of this namespace's processes alone, whose settings of the machine not even root can write."""
    _mount("proc", "/proc", "proc")
    for path in (f"/proc/{name}" for name in _KERNEL):
        if os.path.exists(path):  # noqa: PTH110
            _mount(path, path, flags=_BIND | _REC)
            _read_only(path, on=True)


def _first_process(plan: dict[str, Any], result: int) -> None:
    """Process 1 of the namespace: starts the command, waits, and tells how it ended."""
    _mount_proc()
    _unshare(_NEWUSER)
    _libc.prctl(_PDEATHSIG, signal.SIGKILL)
    os.close(plan["report"])
    command = os.fork()
    if command == 0:
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.execv("/bin/sh", ["/bin/sh", "-c", plan["command"]])
    while True:
        ended, status = os.wait()
        if ended == command:
            os.write(result, str(status).encode())
            os._exit(0)


def _report(plan: dict[str, Any], error: BaseException) -> None:
    with contextlib.suppress(OSError):
        os.write(plan["report"], f"{error}".encode())
    os._exit(1)


def _run(plan: dict[str, Any]) -> int:
    """The command's wait status."""
    os.set_inheritable(plan["report"], False)
    parent = os.getppid()
    _unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWIPC)
    _die_with_parent(parent)
    _arrange(plan)
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            _first_process(plan, write)
        except BaseException as error:
            _report(plan, error)
    os.close(write)
    told = os.read(read, 16)
    os.wait()
    return int(told) if told else int(signal.SIGKILL)


def _main() -> None:
    plan = json.loads(sys.argv[1])
    try:
        status = _run(plan)
    except BaseException as error:
        _report(plan, error)
    if os.WIFSIGNALED(status):  # end as the command did
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    _main()
