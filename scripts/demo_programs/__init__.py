"""Small programs, each with one bug planted, which the agent of the demo trajectories repairs.

A program is one text file of sections (`=== key`, `=== file NAME`); the first file is the one with the bug. `old` and
`new` are the repair (`old2`, `new2` a second place), `wrong` a first attempt that fails its tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RUNTESTS", "Program", "load"]

HERE = Path(__file__).resolve().parent
SECTION = re.compile(r"^=== (.+)\n", re.MULTILINE)

RUNTESTS = '''\
"""Run all test functions and print a line for each."""

import glob
import importlib
import sys


def equal(got, wanted):
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"


def main():
    passed = failed = 0
    for path in sorted(glob.glob("test_*.py")):
        module = importlib.import_module(path[:-3])
        for name in [n for n in vars(module) if n.startswith("test_")]:
            try:
                getattr(module, name)()
                print("ok  ", name)
                passed += 1
            except Exception as error:
                print("FAIL", name, "-", type(error).__name__ + ":", error)
                failed += 1
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
'''


@dataclass(frozen=True)
class Program:
    name: str
    files: dict[str, str]
    text: dict[str, str]  # the other sections

    @property
    def target(self) -> str:
        """The file with the bug."""
        return next(iter(self.files))

    @property
    def repair(self) -> list[tuple[str, str]]:
        pairs = [(self.text["old"], self.text["new"])]
        return pairs + ([(self.text["old2"], self.text["new2"])] if "old2" in self.text else [])

    @property
    def tests(self) -> str:
        return next(name for name in self.files if name.startswith("test_"))

    @property
    def others(self) -> list[str]:
        """Code that is neither the buggy file nor the tests."""
        return [n for n in self.files if n.endswith(".py") and n not in (self.target, self.tests, "runtests.py")]

    def lines(self, key: str) -> list[str]:
        return self.text[key].splitlines()


def load() -> list[Program]:
    """All programs, by name."""
    return [_program(path) for path in sorted(HERE.glob("*.txt"))]


def _program(path: Path) -> Program:
    pieces = SECTION.split(path.read_text(encoding="utf-8"))[1:]
    sections = {key: body.rstrip("\n") for key, body in zip(pieces[::2], pieces[1::2], strict=True)}
    files = {key[5:]: body + "\n" for key, body in sections.items() if key.startswith("file ")}
    text = {key: body for key, body in sections.items() if not key.startswith("file ")}
    return Program(path.stem, {**files, "runtests.py": RUNTESTS}, text)
