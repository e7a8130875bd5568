"""Commands between one pair of tags, in fenced blocks, or bare."""

from __future__ import annotations

import re
from itertools import pairwise

from hesnr_tasks.actions.calls import Call, Parameter, blank, trim
from hesnr_tasks.actions.json_calls import whole_json

__all__ = ["bare", "fenced", "tagged"]


def bare(text: str) -> Call:
    """The whole text as one shell command."""
    return Call("bash", 0, len(text), (Parameter("command", *trim(text, 0, len(text))),))


_TAGS = {
    "command": "bash",
    "mswea_bash_command": "bash",
    "execute_bash": "bash",
    "bash": "bash",
    "execute_ipython": "python",
    "execute_ipython_cell": "python",
    "execute_browse": "browse",
    "finish": "finish",
}
_TAG = re.compile(rf"<({'|'.join(sorted(_TAGS, key=len, reverse=True))})>")


def tagged(text: str) -> list[Call]:
    """The command between the tags that the text begins with, if it does."""
    opener = _TAG.match(text, len(text) - len(text.lstrip()))
    if not opener:
        return []
    at = text.rfind(f"</{opener[1]}>", opener.end())
    end = at if at >= 0 else len(text)
    tags = [opener.span()] + ([(at, at + len(opener[1]) + 3)] if at >= 0 else [])
    value = Parameter("command", *trim(text, opener.end(), end))
    return [Call(_TAGS[opener[1]], opener.start(), tags[-1][1] if at >= 0 else end, (value,), tuple(tags), form="tag")]


_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$", re.MULTILINE)
_SHELLS = ("", "bash", "sh", "shell", "console", "zsh", "mswea_bash_command", "terminal", "shell-session")


def fenced(text: str) -> list[Call]:
    """The fenced blocks of a text that begins with one (or ends with one after stray text), else none."""
    fences = list(_FENCE.finditer(text))
    if not fences or not (text.lstrip().startswith(("```", "~~~")) or _closes(text, fences)):
        return []
    blocks = _blocks(fences)
    between = pairwise(blocks)
    if any(not blank(text, a[1].end() if a[1] else len(text), b[0].start()) for a, b in between):
        blocks = [(blocks[0][0], fences[-1])]  # fences inside the command: one block from the first to the last
    return [call for opener, closer in blocks for call in _fence_calls(text, opener, closer)]


def _closes(text: str, fences: list[re.Match[str]]) -> bool:
    return len(fences) > 1 and not fences[-1][2] and not text[fences[-1].end() :].strip()


def _blocks(fences: list[re.Match[str]]) -> list[tuple[re.Match[str], re.Match[str] | None]]:
    """Blocks that lie in no other: a fence with a language opens, one without closes the innermost (or opens)."""
    blocks: list[tuple[re.Match[str], re.Match[str] | None]] = []
    stack: list[re.Match[str]] = []
    for fence in fences:
        if fence[2] or not stack:
            stack.append(fence)
        else:
            opener = stack.pop()
            if not stack:
                blocks.append((opener, fence))
    if stack:
        last = fences[-1] if len(fences) > 1 and not fences[-1][2] and stack[0] is not fences[-1] else None
        blocks = [b for b in blocks if b[0].start() < stack[0].start()]
        blocks.append((stack[0], last))
    return blocks


def _fence_calls(text: str, opener: re.Match[str], closer: re.Match[str] | None) -> list[Call]:
    tag = opener[2].strip("{}.").lower()
    name = "bash" if tag in _SHELLS else tag
    end = closer.start() if closer else len(text)
    fences = (opener.span(),) if closer is None else (opener.span(), closer.span())
    if tag in ("", "json", "tool_call"):
        inner = [call.shifted(opener.end()) for call in whole_json(text[opener.end() : end])]
        if inner:
            inner[0] = inner[0]._replace(start=opener.start(), fences=fences[:1])
            inner[-1] = inner[-1]._replace(end=fences[-1][1], fences=(*inner[-1].fences, *fences[1:]))
            return inner
    value = Parameter("command", *trim(text, opener.end(), end))
    return [Call(name, opener.start(), closer.end() if closer else len(text), (value,), fences=fences, form="fence")]
