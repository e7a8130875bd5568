"""The tool loop: a file tree with three tools, the transcript that models read, and an expert who knows the repair.

A turn of the agent is a thought and one call, written as in many agents' trajectories:

    <function=edit>
    <parameter=path>cat.py</parameter>
    <parameter=line>4</parameter>
    <parameter=text>def bend(a, b): return a + b</parameter>
    </function>

Tools: `test` runs all tests and shows the first failure of each function, `read` shows a file with line numbers,
`edit` replaces a line, `submit` ends the run. A task is solved if all tests pass when the run has ended.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .programs import Task, value
from .sandbox import Failure, Test, run_tests

__all__ = ["END_OF_CALL", "MAX_TURNS", "Session", "expert", "observe", "prompt", "transcript"]

END_OF_CALL = "</function>"
MAX_TURNS = 10
_CALL = re.compile(r"<function=(\w+)>\n((?:<parameter=\w+>[^\n]*</parameter>\n)*)</function>")
_PARAMETER = re.compile(r"<parameter=(\w+)>([^\n]*)</parameter>\n")

THOUGHTS = {
    "start": ("Run the tests.", "Which tests fail?"),
    "read": ("Read {path}.", "The tests fail in {path}."),
    "other": ("Read {path} too.",),
    "edit": ("{name} is wrong.", "Line {line} is wrong."),
    "test": ("Run the tests.", "Run the tests again."),
    "submit": ("All tests pass.", "Done."),
}


def prompt(task: Task) -> str:
    return f"Make all tests pass. Files: {' '.join(task.files)}"


def call(name: str, **parameters: str) -> str:
    inside = "".join(f"<parameter={key}>{text}</parameter>\n" for key, text in parameters.items())
    return f"\n\n<function={name}>\n{inside}{END_OF_CALL}"


def parse(answer: str) -> tuple[str, dict[str, str]]:
    """The first call of an answer; ("", {}) where there is none."""
    match = _CALL.search(answer)
    return (match[1], dict(_PARAMETER.findall(match[2]))) if match else ("", {})


class Session:
    """One run on one task: the files as they are now, and the messages so far, (role, thought, action or text)."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.files = task.texts()
        self.turns: list[tuple[str, str]] = []  # thought, action
        self.observations: list[str] = []
        self.ended = False
        self.pending = False  # tests are to be run

    def act(self, thought: str, action: str) -> None:
        """Take one turn; where it is a run of the tests, `observe` completes it."""
        self.turns.append((thought, action))
        name, parameters = parse(action)
        if name == "test":
            self.pending = True
            return
        if name == "submit":
            self.ended = True
            return
        self.observations.append(self._answer(name, parameters))
        self.ended = len(self.turns) >= MAX_TURNS

    def _answer(self, name: str, parameters: dict[str, str]) -> str:
        if name not in ("read", "edit"):
            return "Unknown call."
        lines = self.files.get(parameters.get("path", ""))
        if lines is None:
            return "No such file."
        if name == "read":
            return "\n".join(f"{number} {line}" for number, line in enumerate(lines, 1))
        line = parameters.get("line", "")
        if not (line.isascii() and line.isdecimal() and len(line) < 4 and 1 <= int(line) <= len(lines)):
            return "No such line."
        lines[int(line) - 1] = parameters.get("text", "")
        return "Done."

    def see(self, failures: Sequence[Failure]) -> None:
        """What the tests printed."""
        first: dict[tuple[str, str], Failure] = {}
        for failure in failures:
            first.setdefault((failure.path, failure.name), failure)
        self.observations.append(
            "\n".join(
                f"FAIL {f.path} {f.name}({', '.join(map(str, f.arguments))}): {f.value}, not {f.result}"
                for f in first.values()
            )
            or "All tests pass."
        )
        self.pending = False
        self.ended = len(self.turns) >= MAX_TURNS


Requests = Sequence[tuple[Mapping[str, Sequence[str]], Sequence[Test]]]
Runner = Callable[[Requests], list[list[Failure]]]


def observe(sessions: Sequence[Session], runner: Runner = run_tests) -> None:
    """Run the tests of all sessions that wait for theirs."""
    waiting = [session for session in sessions if session.pending]
    for session, failures in zip(
        waiting, runner([(s.files, s.task.tests()) for s in waiting]) if waiting else [], strict=True
    ):
        session.see(failures)


def solved(sessions: Sequence[Session]) -> list[bool]:
    """Whether all tests pass with the files as they are now."""
    return [not failures for failures in run_tests([(s.files, s.task.tests()) for s in sessions])]


def without_running(task: Task) -> Runner:
    """What `run_tests` says of files whose lines are all of our own making, by arithmetic: to make training texts."""

    def runner(requests: Requests) -> list[list[Failure]]:
        return [failures(files) for files, _ in requests]

    def failures(files: Mapping[str, Sequence[str]]) -> list[Failure]:
        rows = []
        for path, functions in task.files.items():
            for function, line in zip(functions, files[path][1::2], strict=True):
                if line == function.code(repaired=True):
                    continue
                assert function.bug is not None
                assert line == function.code(repaired=False)
                for arguments, result in function.tests:
                    wrong = value(function.bug, dict(zip(function.parameters, arguments, strict=True)))
                    if wrong != result:
                        rows.append(Failure(path, function.name, list(arguments), str(wrong), result))
        return rows

    return runner


def expert(task: Task, rng: random.Random, runner: Runner = run_tests) -> Session:
    """A run of the expert, who compares every function with its description and never errs.

    Which file is opened first, whether the other one is opened as well, whether the tests are run after each repair
    or only after the last, and the words of the thoughts are random.
    """
    session = Session(task)

    def turn(kind: str, action: str, **words: object) -> None:
        session.act(rng.choice(THOUGHTS[kind]).format(**words), action)
        observe([session], runner)

    turn("start", call("test"))
    wrong = [path for path, functions in task.files.items() if any(f.bug is not None for f in functions)]
    rng.shuffle(wrong)
    others = [path for path in task.files if path not in wrong]
    for number, path in enumerate(wrong):
        turn("read", call("read", path=path), path=path)
        if others and rng.random() < 0.15:
            turn("other", call("read", path=others[0]), path=others.pop())
        for index, function in enumerate(task.files[path]):
            if function.bug is not None:
                line = str(2 * index + 2)
                action = call("edit", path=path, line=line, text=function.code(repaired=True))
                turn("edit", action, name=function.name, line=line)
        if number + 1 == len(wrong) or rng.random() < 0.5:
            turn("test", call("test"))
    turn("submit", call("submit"))
    return session


def transcript(session: Session) -> tuple[str, list[tuple[int, int]]]:
    """The run as the package's plain transcript, up to now, and where the agent's own text is in it."""
    text, own = f"User:\n{prompt(session.task)}\n\n", []
    for index, (thought, action) in enumerate(session.turns):
        text += "Assistant:\n"
        own.append((len(text), len(text) + len(thought + action)))
        text += f"{thought}{action}\n\n"
        if index < len(session.observations):
            text += f"User:\n{session.observations[index]}\n\n"
    return text, own


def record(session: Session, *, resolved: bool) -> dict[str, Any]:
    """The run in the package's own format."""
    task = session.task
    messages = [{"role": "user", "segments": [{"kind": "context", "text": prompt(task)}]}]
    for index, (thought, action) in enumerate(session.turns):
        parts = [{"kind": "thought", "text": thought}, {"kind": "action", "text": action}]
        messages.append({"role": "assistant", "segments": [part for part in parts if part["text"]]})
        if index < len(session.observations):
            messages.append(
                {"role": "user", "segments": [{"kind": "observation", "text": session.observations[index]}]}
            )
    return {
        "format": "hesnr-trajectory-1",
        "id": task.name,
        "instance_id": task.name,
        "resolved": resolved,
        "source": "scripted-miniature",
        "fidelity": "exact",
        "messages": messages,
    }
