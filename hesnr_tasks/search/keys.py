"""Action keys: what an agent does at a step, in one canonical form, so that draws of the same action can be counted.

The key of a shell command or a tool call at one of three resolutions:

- `class`: one of `CLASSES`: submit, edit, test, run, install, vcs, search, read, think, other, none;
- `file`: the class and what it is about: files, else directories, else the pattern looked for
  (`read:src/a.py`, `search:def f`, `test`, `vcs:diff`);
- `whole` (a search's default): the whole command in one spelling (white space, comments, needless quotes and the
  delimiters of here-documents do not count).

Commands are parsed, never executed. An action of several commands has the class of the one that matters most (the
order above), and the targets of all commands of that class: `cd x && grep -n f a.py | head` is `search:x/a.py`.
Paths are relative to the repository where its place is a usual one (/testbed, /repo, /workspace, and in it or in / a
folder OWNER__NAME…); the repository itself is no target.
EGSS (arXiv 2602.05242) has entropies over "tool or action choices" and does not say what a choice is; with an agent
whose one tool is a shell only something like this can tell choices apart.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator

from hesnr_tasks.actions import Call, parse_action
from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.search.keys_classes import CLASSES, FILTER, Part, classify, inner_script
from hesnr_tasks.search.keys_shell import Simple, canonical, simple_commands
from hesnr_tasks.search.keys_tools import shell_text, tool_part, tool_whole

__all__ = ["CLASSES", "RESOLUTIONS", "action_class", "action_key", "action_parts"]

RESOLUTIONS = ("class", "file", "whole")
_ROOT = re.compile(r"^/(?:testbed|repo|workspace(?:/[\w.-]+__[\w.-]+)?|[\w.-]+__[\w.-]+)(?:/|$)")
_NO_PATHS = ("vcs", "install")  # their targets are sub-commands and packages
_LONGEST = 240  # characters of a key; longer ones are cut and end in a hash of the whole
_DEPTH = 4  # scripts within scripts


def action_key(command: str, resolution: str = "file") -> str:
    """The key of one action: the text of a shell command, or of tool calls in any form `parse_action` knows.

    Equal keys mean the same action at that resolution. Whatever the text, there is a key, and it is not empty; a text
    without an action has the key `none`. Raises `SettingsError` for an unknown resolution only.
    """
    if resolution not in RESOLUTIONS:
        raise SettingsError(
            f"resolution is {resolution!r}; it must be one of {', '.join(RESOLUTIONS)}."
            f"{nearest(str(resolution), RESOLUTIONS)}"
        )
    if resolution == "whole":
        return _short(_whole(command) or "none")
    part = _combined(action_parts(command))
    if resolution == "class" or not part.targets:
        return part.kind
    return _short(f"{part.kind}:{','.join(part.targets)}")


def action_class(command: str) -> str:
    """`action_key` at resolution `class`."""
    return action_key(command, "class")


def action_parts(command: str) -> list[Part]:
    """What each command of an action does, in order, with canonical paths."""
    return [part for call in parse_action(command) for part in _call_parts(call, command)]


def _call_parts(call: Call, text: str) -> Iterator[Part]:
    script = shell_text(call, text)
    if script is not None:
        yield from _shell_parts(script, "", _DEPTH)
    else:
        part = tool_part(call, text)
        yield part._replace(targets=_targets(part, ""))


def _shell_parts(script: str, place: str, depth: int) -> Iterator[Part]:
    """The parts of a script that starts in directory `place`."""
    before = Part("none")
    for simple in simple_commands(script):
        if simple.words[:1] == ("cd",):
            place = posixpath.join(place, simple.words[1]) if len(simple.words) > 1 else place
            continue
        inner = inner_script(simple) if depth else None
        if inner is not None:
            found = list(_shell_parts(inner, place, depth - 1))
            yield from found
            before = found[-1] if found else before
            continue
        before = _in_pipeline(simple, before, place)
        if before.kind != FILTER:
            yield before


def _in_pipeline(simple: Simple, before: Part, place: str) -> Part:
    """The part of one command; what has no target of its own works on what the command before it names."""
    part = classify(simple)
    targets = _targets(part, place)
    if simple.piped and not targets and part.kind == "search":
        if before.kind not in ("search", "read"):
            return before._replace(kind=FILTER)
        targets = before.targets
    if simple.piped and part.kind == FILTER:
        return before
    if simple.piped and not targets and "xargs" in simple.words[:1]:
        targets = before.targets
    if not targets and part.pattern:
        targets = (re.sub(r"\s+", " ", part.pattern),)
    return part._replace(targets=targets)


def _combined(parts: Iterable[Part]) -> Part:
    """The part that matters most, with the targets of all like it."""
    found = list(parts)
    if not found:
        return Part("none")
    kind = min((part.kind for part in found), key=CLASSES.index)
    return Part(kind, tuple(sorted({target for part in found if part.kind == kind for target in part.targets})))


def _targets(part: Part, place: str) -> tuple[str, ...]:
    """The targets of a part in one spelling; those that are paths seen from `place`. The repository itself is none."""
    words = [word for word in part.targets if word.strip()]
    if part.kind not in _NO_PATHS:  # nor are programs, which have no dot or slash in their names
        words = [_path(word, place) if part.kind != "run" or set(word) & set("./") else word for word in words]
    return tuple(dict.fromkeys(word for word in words if word != "."))


def _path(word: str, place: str) -> str:
    """One spelling of a path: without test ids, relative to the repository if that is where it is."""
    word = re.sub(r"\s+", " ", word.split("::")[0].strip())
    full = posixpath.normpath(posixpath.join(place, word))
    inside = _ROOT.sub("", full, count=1)
    return posixpath.normpath(inside) if inside else "."


def _whole(command: str) -> str:
    calls = parse_action(command)
    texts = ((shell_text(call, command), call) for call in calls)
    return " ; ".join(tool_whole(call, command) if text is None else _canonical(text) for text, call in texts)


def _canonical(script: str) -> str:
    """Without a leading change to the directory that commands start in anyway."""
    found = canonical(script)
    match = re.match(r"cd (\S+) (?:&&|;) ", found)
    return found[match.end() :] if match and _path(match[1], "") == "." and match[1] != "." else found


def _short(key: str) -> str:
    if len(key) <= _LONGEST:
        return key
    return f"{key[: _LONGEST - 13]}~{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
