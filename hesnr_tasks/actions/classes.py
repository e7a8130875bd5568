"""What an action is: its class, a canonical key by which two draws of it are one, and the words that say what is done.

A shell command or a tool call is told from others at three resolutions:

- `action_class`: one of `CLASSES`: submit, edit, test, run, install, vcs, search, read, think, other, none;
- `canonical_key`: the class and what it is about: files, else directories, else the pattern looked for
  (`read:src/a.py`, `search:def f`, `test`, `vcs:diff`);
- `canonical_command`: the whole command in one spelling (white space, comments, needless quotes and the delimiters of
  here-documents do not count).

Commands are parsed, never executed. An action of several commands has the class of the one that matters most (the
order above), and the targets of all commands of that class: `cd x && grep -n f a.py | head` is `search:x/a.py`.
Paths are relative to the repository where its place is a usual one (/testbed, /repo, /workspace, and in it or in / a
folder OWNER__NAME…); the repository itself is no target. EGSS (arXiv 2602.05242) has entropies over "tool or action
choices" and does not say what a choice is; with an agent whose one tool is a shell only something like this can tell
choices apart.

The *decision words* of an action name what is done: the tool's name, then the verb of the first command that does
something (`grep`, `git diff`, `sed -n`, `python -m pytest`; not `cd`, `export`, `timeout 60`) or, of a tool that is no
shell, the first word of its first parameter (`view`). Live gates and `hesnr_tool_entropy` both measure there.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import shlex
from collections.abc import Iterator

from hesnr_tasks.actions import Call, CharSpan, Parameter, View
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.actions.shell import (
    CLASSES,
    FILTER,
    ActionPart,
    Simple,
    canonical,
    classify,
    inner_script,
    program,
    python_part,
    simple_commands,
    verb,
)
from hesnr_tasks.actions.tools import EDITORS, KINDS, PATTERNS, parameter_role, tool_runs

_ROOT = re.compile(r"^/(?:testbed|repo|workspace(?:/[\w.-]+__[\w.-]+)?|[\w.-]+__[\w.-]+)(?:/|$)")
_NO_PATHS = ("vcs", "install")  # their targets are sub-commands and packages
_LONGEST = 240  # characters of a key; longer ones are cut and end in a hash of the whole
_DEPTH = 4  # scripts within scripts


def canonical_key(command: str) -> str:
    """The class of an action and what it is about.

    Args:
        command: a shell command, or tool calls in any form `parse_action` knows.

    Returns:
        The key, at most 240 characters and never empty; `none` for a text without an action.
    """
    parts = action_parts(command)
    kind = min((part.kind for part in parts), key=CLASSES.index, default="none")  # the part that matters most
    targets = sorted({target for part in parts if part.kind == kind for target in part.targets})
    return _short(f"{kind}:{','.join(targets)}") if targets else kind


def action_class(command: str) -> str:
    """The class of an action, one of `CLASSES`."""
    return canonical_key(command).split(":")[0]


def action_parts(command: str) -> list[ActionPart]:
    """What each command of an action does, in order, with canonical paths."""
    parts: list[ActionPart] = []
    for call in parse_action(command):
        script = _shell_text(call, command)
        if script is not None:
            parts += _shell_parts(script, "", _DEPTH)
        else:
            part = _tool_part(call, command)
            parts.append(part._replace(targets=_targets(part, "")))
    return parts


def _shell_parts(script: str, place: str, depth: int) -> Iterator[ActionPart]:
    """The parts of a script that starts in directory `place`."""
    before = ActionPart("none")
    for simple in simple_commands(script):
        if simple.words[:1] == ("cd",):
            place = posixpath.join(place, simple.words[1]) if len(simple.words) > 1 else place
            continue
        inner = inner_script(simple) if depth else None
        if inner is not None:
            parts = list(_shell_parts(inner, place, depth - 1))
            yield from parts
            before = parts[-1] if parts else before
            continue
        before = _in_pipeline(simple, before, place)
        if before.kind != FILTER:
            yield before


def _in_pipeline(simple: Simple, before: ActionPart, place: str) -> ActionPart:
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


def _targets(part: ActionPart, place: str) -> tuple[str, ...]:
    """The targets of a part in one spelling; those that are paths seen from `place`. The repository itself is none."""
    words = [word for word in part.targets if word.strip()]
    if part.kind not in _NO_PATHS:  # nor are programs, which have no dot or slash in their names
        words = [canonical_path(word, place) if part.kind != "run" or set(word) & set("./") else word for word in words]
    return tuple(dict.fromkeys(word for word in words if word != "."))


def canonical_path(word: str, place: str = "") -> str:
    """One spelling of a path: without test ids, relative to the repository if that is where it is.

    Args:
        word: the path as written; `FILE::TEST` names `FILE`.
        place: the folder that it is relative to; empty: the repository.
    """
    word = re.sub(r"\s+", " ", word.split("::")[0].strip())
    full = posixpath.normpath(posixpath.join(place, word))
    inside = _ROOT.sub("", full, count=1)
    return posixpath.normpath(inside) if inside else "."


def canonical_command(command: str) -> str:
    """An action in one spelling, at most 240 characters; `none` for a text without one."""
    pieces = []
    for call in parse_action(command):
        script = _shell_text(call, command)
        if script is None:  # name and parameters in one order, without white space at the ends of lines and values
            pieces.append(call.name.strip() or "call")
            for key, value in sorted(call.values(command).items()):
                trimmed = "\n".join(line.rstrip() for line in value.strip().splitlines())
                pieces[-1] += f" {key}={json.dumps(trimmed, ensure_ascii=False)}"
            continue
        text = canonical(script)
        match = re.match(r"cd (\S+) (?:&&|;) ", text)  # to the directory that commands start in anyway
        at_root = match and canonical_path(match[1]) == "." and match[1] != "."
        pieces.append(text[match.end() :] if match and at_root else text)
    return _short(" ; ".join(pieces) or "none")


def _short(key: str) -> str:
    if len(key) <= _LONGEST:
        return key
    return f"{key[: _LONGEST - 13]}~{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


# --- tools that are not shells ---

_PATCHED = re.compile(r"^\*\*\* (?:Update|Add|Delete) File: (\S+)", re.MULTILINE)


def _is_shell(call: Call) -> bool:
    return call.form == "text" or tool_runs(call.name) == "shell"


def _script(call: Call) -> Parameter | None:
    """The parameter that holds the program that a call runs."""
    for role in ("command", "code"):
        for parameter in call.parameters:
            if parameter_role(parameter.name, role):
                return parameter
    return next((parameter for parameter in call.parameters if not parameter.name), None)


def _shell_text(call: Call, text: str) -> str | None:
    """The shell script that a call runs, or None if it is a tool of another kind."""
    if not _is_shell(call):
        return None
    script = _script(call)
    if script is None:
        return None if call.parameters else ""
    value = script.view(text).text
    if value.lstrip().startswith('["'):  # some shells take a list of words: `["bash", "-lc", "ls"]`
        try:
            words = json.loads(value)
        except ValueError:
            return value
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return shlex.join(words)
    return value


def _tool_part(call: Call, text: str) -> ActionPart:
    """What a call does that is no shell command; an unknown tool is `other`, with its name for a target."""
    raw = call.values(text)
    values = {key: value.strip() for key, value in raw.items()}
    name = call.name.lower().rsplit("__", 1)[-1].strip().replace("-", "_")
    path = tuple(value for key, value in values.items() if value and parameter_role(key, "path", "folder"))[:1]
    if name in EDITORS:
        return ActionPart("read" if values.get("command") == "view" else "edit", path)
    kind = KINDS.get(name, "other")
    if kind == "run":
        script = _script(call)
        return python_part(script.view(text).text if script else "")
    if kind in ("submit", "think"):
        return ActionPart(kind)
    if kind == "edit" and not path:
        path = tuple(file for value in raw.values() for file in _PATCHED.findall(value))
    if kind == "search" and not path:
        path = tuple(values[key] for key in PATTERNS if values.get(key))[:1]
    return ActionPart(kind, path or ((call.name,) if kind == "other" and call.name else ()))


# --- decision words ---


def decision_words(action: str, arguments: int = 0) -> list[CharSpan]:
    """Spans of the words of an action's text that say what is done; empty for a text without any. Never raises.

    Args:
        action: the text of one action, of any form that `parse_action` knows.
        arguments: how many words after the verb decide too.
    """
    words: list[CharSpan] = []
    for call in parse_action(action):
        name: list[CharSpan] = []  # the tool's name in the call's own syntax
        if call.form in ("function", "json") and call.name:
            stop = call.parameters[0].value_start if call.parameters and call.form == "function" else call.end
            start = action.find(call.name, call.start, stop)
            name = [(start, start + len(call.name))] if start >= 0 else []
        if _is_shell(call):
            script = _script(call)
            verbs, acts = _command_words(script.view(action), arguments) if script else ([], False)
        else:  # the first words of its first parameters
            views = [parameter.view(action) for parameter in call.parameters]
            firsts = [(view, match) for view in views if (match := re.search(r"\S+", view.text))]
            verbs = [(view.offsets[m.start()], view.offsets[m.end()]) for view, m in firsts[: arguments + 1]]
            acts = True
        words = words or [*name, *verbs]
        if acts:
            return [*name, *verbs]
    return words


def _command_words(view: View, arguments: int) -> tuple[list[CharSpan], bool]:
    """The words of the first command that does more than preparation, else of the first; and whether one does."""
    first: list[CharSpan] = []
    for simple in simple_commands(view.text):
        start = program(simple.words)
        stop = start + verb(simple.words[start:]) + arguments
        spans = [(view.offsets[a], view.offsets[b]) for a, b in simple.spans[start:stop]]
        if classify(simple).kind not in ("other", "none", FILTER):
            return spans, True
        first = first or spans
    return first, False
