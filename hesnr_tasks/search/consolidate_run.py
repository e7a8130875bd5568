"""Running a probe on a patch in a fork: pytest's own JUnit file says what passed; nobody's word is taken for it."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import NamedTuple

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.consolidate_collect import Probe, put, read
from hesnr_tasks.search.types import Workspace

__all__ = ["COLLECT", "FAILED", "HUNG", "PASSED", "SKIPPED", "Limits", "outcomes", "patched"]

PASSED, FAILED, SKIPPED, HUNG, COLLECT = "passed", "failed", "skipped", "hung", "collect"
_JUNIT = ".hesnr-junit.xml"
_COLLECTED = 200  # tests of a hanging file that are tried one by one


class Limits(NamedTuple):
    """How tests are run: the interpreter inside the fork, seconds for a file and for a single test, and variables."""

    python: str = "python"
    timeout: float = 120.0
    alone: float = 20.0
    environment: tuple[tuple[str, str], ...] = ()


def patched(base: Workspace, patch: str) -> Workspace:
    """A fork with the patch applied; the caller closes it. Raises `SearchError` where it does not fit."""
    fork = base.fork()
    try:
        if patch.strip():
            fork.apply(patch)
    except SearchError:
        fork.close()
        raise
    return fork


def outcomes(state: Workspace, probe: Probe, limits: Limits, repeat: int = 0) -> dict[str, str]:
    """The outcome of each test of `probe` in a fresh fork of `state`, by its name within the file.

    A file that cannot be collected has the single entry {COLLECT: COLLECT}. `repeat` also seeds Python's hashes, so
    that a test which hangs on the order of a set is found to flake.
    """
    fork = state.fork()
    try:
        for path, content in probe.files:
            put(fork, path, content.encode())
        return _command(fork, probe, limits, repeat) if probe.command else _file(fork, probe.path, limits, repeat)
    finally:
        fork.close()


def _environment(limits: Limits, repeat: int) -> dict[str, str]:
    return {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": str(repeat), **dict(limits.environment)}


def _command(fork: Workspace, probe: Probe, limits: Limits, repeat: int) -> dict[str, str]:
    ran = fork.execute(probe.command, timeout=limits.alone, env=_environment(limits, repeat))
    return {"": HUNG if ran.timed_out else FAILED if ran.status else PASSED}


def _file(fork: Workspace, path: str, limits: Limits, repeat: int) -> dict[str, str]:
    found = _pytest(fork, path, limits, limits.timeout, repeat)
    if found is not None:
        return found
    listed = fork.execute(
        f"{limits.python} -m pytest --collect-only -q -p no:cacheprovider {shlex.quote(path)}",
        timeout=limits.alone,
        env=_environment(limits, repeat),
    )
    ids = [line.strip() for line in listed.output.splitlines() if line.startswith(path) and "::" in line]
    if listed.timed_out or not ids:
        return {COLLECT: COLLECT}
    alone = {}
    for one in ids[:_COLLECTED]:
        single = _pytest(fork, one, limits, limits.alone, repeat)
        alone.update({one.partition("::")[2]: HUNG} if single is None else single)
    return alone


def _pytest(fork: Workspace, target: str, limits: Limits, timeout: float, repeat: int) -> dict[str, str] | None:
    """Outcomes by name; None where the time was up."""
    ran = fork.execute(
        f"rm -f {_JUNIT}; {limits.python} -m pytest -q -p no:cacheprovider --junitxml={_JUNIT} {shlex.quote(target)}",
        timeout=timeout,
        env=_environment(limits, repeat),
    )
    if ran.timed_out:
        return None
    if ran.status == 127 or "No module named pytest" in ran.output:
        raise SearchError(
            f"{limits.python!r} cannot run pytest inside the fork at {fork.root}: {ran.output.strip()[:200]}"
        )
    return _junit(read(fork, _JUNIT), target)


def _junit(text: str | None, target: str) -> dict[str, str]:
    """Outcomes in a JUnit file; one that is missing, broken or declares entities collects nothing."""
    if text is None or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return {COLLECT: COLLECT}
    try:
        cases = list(_cases(ElementTree.fromstring(text), target))
    except ElementTree.ParseError:
        return {COLLECT: COLLECT}
    if not cases or any(outcome == COLLECT for _, outcome in cases):
        return {COLLECT: COLLECT}
    merged: dict[str, str] = {}
    for name, outcome in cases:  # a test whose teardown fails stands there twice
        merged[name] = outcome if merged.get(name, PASSED) == PASSED else merged[name]
    return merged


def _cases(tree: ElementTree.Element, target: str) -> Iterator[tuple[str, str]]:
    module = target.partition("::")[0].removesuffix(".py").replace("/", ".")
    for case in tree.iter("testcase"):
        owner, name = case.get("classname", ""), case.get("name", "")
        error = case.find("error")
        if error is not None and "collection failure" in error.get("message", ""):
            yield name, COLLECT
            continue
        inner = owner.removeprefix(module).lstrip(".") if owner.startswith(module) else ""
        full = "::".join([*(inner.split(".") if inner else []), name])
        bad = error is not None or case.find("failure") is not None
        yield full, FAILED if bad else SKIPPED if case.find("skipped") is not None else PASSED
