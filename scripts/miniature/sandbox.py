"""Runs the code of a task: never in this process, never through a shell.

Each run is a new `python -I -S` with an empty environment in an empty folder. The program inside first gives up what
it could do harm with (processor time, memory, file sizes, every file descriptor beyond the three it has, also those it
closes, and whatever Python reports to audit hooks but compiling and running code: no socket, file, folder, process or
import), then refuses every file that is not of the closed language (one-line functions that return arithmetic of their
parameters), and only then runs what is left. The language is the wall; the limits stand behind it, for a mistake in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["SECONDS", "Failure", "run_code", "run_tests"]

SECONDS = 2  # of processor time; twice that of the clock
MEMORY = 256 * 1024 * 1024  # bytes of address space
OUTPUT = 1024 * 1024  # bytes

_LIMITS = f"""
import ast, json, os, resource, sys
if os.getuid() == 0:  # limits on processes do not hold for root
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
def limit(kind, soft):
    resource.setrlimit(kind, (soft, soft))
limit(resource.RLIMIT_CPU, {SECONDS})
limit(resource.RLIMIT_AS, {MEMORY})
limit(resource.RLIMIT_FSIZE, {OUTPUT})
limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_NPROC, 0)
limit(resource.RLIMIT_NOFILE, 0)  # with 3, who closes one may open another in its place
def refuse(event, arguments):
    if event not in ("compile", "exec"):
        raise PermissionError(event)
sys.addaudithook(refuse)
"""

_TESTS = """
ALLOWED = (ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.BinOp, ast.Add, ast.Sub, ast.Mult,
           ast.FloorDiv, ast.Mod, ast.Call, ast.Name, ast.Load, ast.Constant)
def check(tree):
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED):
            raise SyntaxError(type(node).__name__)
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in ("max", "min")):
            raise SyntaxError("call")
        if isinstance(node, ast.Constant) and not (type(node.value) is int and 0 <= node.value < 1000):
            raise SyntaxError("constant")
        if isinstance(node, ast.FunctionDef) and (node.decorator_list or node.returns or node.args.defaults):
            raise SyntaxError("function")
def failures(files, tests):
    spaces, failed = {}, []
    for path, lines in files.items():
        spaces[path] = None
        try:
            tree = ast.parse("\\n".join(lines))
            check(tree)
            space = {"__builtins__": {"max": max, "min": min}}
            exec(compile(tree, path, "exec"), space)
            spaces[path] = space
        except Exception:
            pass
    for path, name, arguments, result in tests:
        value = "no code"
        if spaces[path] is not None:
            try:
                value = spaces[path][name](*arguments)
                value = value if type(value) is int else "error"
            except Exception:
                value = "error"
        if value != result:
            failed.append([path, name, arguments, str(value)[:20], result])
    return failed
print(json.dumps([failures(*request) for request in json.loads(sys.stdin.read())]))
"""

Test = tuple[str, str, Sequence[int], int]  # file, function, arguments, right result


class Failure(NamedTuple):
    """A test that fails: what came out is a number, "error" or "no code"."""

    path: str
    name: str
    arguments: list[int]
    value: str
    result: int


def run_code(code: str, text: str = "") -> tuple[int, str]:
    """Run a Python program within the limits.

    Args:
        code: the program; runs after the limits are set.
        text: its standard input.

    Returns:
        Its exit status (negative: the signal that ended it; that of SIGKILL when the clock ran out), and the first
        MiB of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="hesnr-miniature-") as folder, tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LIMITS + code],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.DEVNULL,
            close_fds=True,
        )
        try:
            process.communicate(text.encode(), timeout=2 * SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        printed.seek(0)
        return process.returncode, printed.read(OUTPUT).decode("utf-8", "replace")


def run_tests(requests: Sequence[tuple[Mapping[str, Sequence[str]], Sequence[Test]]]) -> list[list[Failure]]:
    """The tests that fail, for each pair of files and tests; all in one process, or each in its own if that is ended.

    Args:
        requests: the lines of each file (untrusted), and the tests.

    Returns:
        For each: file, function, arguments, what came out (a number, "error" or "no code"), and what is right.
    """
    if not requests:
        return []
    status, output = run_code(_TESTS, json.dumps([[dict(files), tests] for files, tests in requests]))
    if status == 0:
        return [[Failure(*row) for row in rows] for rows in json.loads(output)]
    if len(requests) > 1:
        return [rows for request in requests for rows in run_tests([request])]
    return [[Failure(path, name, list(arguments), "error", result) for path, name, arguments, result in requests[0][1]]]
