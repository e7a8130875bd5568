"""Where text goes: into the user's pager when there is a terminal, else to standard output."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from typing import IO, TextIO

from hesnr_tasks.viewer.terminal import Style

__all__ = ["style_of", "write"]


def style_of(stream: TextIO, *, full: bool) -> Style:
    """What `stream` can show. NO_COLOR (no-color.org) and TERM=dumb turn colours off."""
    terminal = stream.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else None
    return Style(colour, width, full, ascii=not _can(stream, "┊┃"))


def write(lines: Iterable[str]) -> None:
    """Write `lines` as they come; quitting the pager early is no error."""
    command = _pager() if sys.stdout.isatty() else None
    if command is None:
        for line in lines:
            _put(sys.stdout, line, sys.stdout.encoding)
        sys.stdout.flush()
        return
    environment = {"LESS": "FRX", **os.environ}  # as git does: no pager for what fits on a screen
    with subprocess.Popen(command, stdin=subprocess.PIPE, encoding="utf-8", errors="replace", env=environment) as pager:
        assert pager.stdin is not None
        try:
            for line in lines:
                _put(pager.stdin, line, "utf-8")
            pager.stdin.close()
        except BrokenPipeError:
            pass


def _pager() -> list[str] | None:
    """The user's `$PAGER`, or less, if it can be found."""
    try:
        command = shlex.split(os.environ.get("PAGER") or "less -R")
    except ValueError:
        return None
    return command if command and shutil.which(command[0]) else None


def _put(stream: IO[str], line: str, encoding: str) -> None:
    stream.write(line.encode(encoding, errors="replace").decode(encoding) + "\n")


def _can(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
