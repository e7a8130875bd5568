"""Commands between one pair of tags, in fenced blocks, or bare."""

from __future__ import annotations

import re
from itertools import pairwise

from hesnr_tasks.actions.calls import Call, CharSpan, Parameter, blank, trim
from hesnr_tasks.actions.functions import functions
from hesnr_tasks.actions.json_calls import whole_json
from hesnr_tasks.actions.marked import marked
from hesnr_tasks.actions.tools import tool_runs

__all__ = ["bare", "fenced", "keystrokes", "tagged"]


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


_KEYS = re.compile(r"<keystrokes\b[^<>\n]*>")
_KEYS_END = re.compile(r"</keystrokes>(?=\s*(?:<keystrokes\b|</commands>|\Z))")
_AROUND_KEYS = re.compile(r"</?(?:response|analysis|plan|commands|task_complete)>")


def keystrokes(text: str) -> list[Call]:
    """Terminus-2's XML: each `<keystrokes>` in the `<commands>` that the text begins with (or has after its plan)."""
    if not (_AROUND_KEYS.match(text.lstrip()) or _KEYS.match(text.lstrip())):
        return []
    calls: list[Call] = []
    at = 0
    while opener := _KEYS.search(text, at):
        tags: list[CharSpan] = [m.span() for m in _AROUND_KEYS.finditer(text, at, opener.start())]
        closer = _KEYS_END.search(text, opener.end())
        end, after = closer.span() if closer else (len(text), len(text))
        tags += [opener.span(), (end, after)] if closer else [opener.span()]
        value = Parameter("keystrokes", *trim(text, opener.end(), end))
        calls.append(Call("bash", opener.start(), after, (value,), tuple(tags), form="tag"))
        at = after
    rest = tuple(m.span() for m in _AROUND_KEYS.finditer(text, at))
    if not calls:
        return [Call("", rest[0][0], rest[-1][1], (), rest, form="tag")] if "<commands>" in text else []
    calls[-1] = calls[-1]._replace(tags=(*calls[-1].tags, *rest))
    return calls


_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$", re.MULTILINE)


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
    name = "bash" if not tag or tool_runs(tag) == "shell" else tag
    end = closer.start() if closer else len(text)
    fences = (opener.span(),) if closer is None else (opener.span(), closer.span())
    if tag in ("", "json", "xml", "tool_call"):
        block = text[opener.end() : end]
        inner = [call.shifted(opener.end()) for call in functions(block) or marked(block) or whole_json(block)]
        if inner:
            inner[0] = inner[0]._replace(start=opener.start(), fences=fences[:1])
            inner[-1] = inner[-1]._replace(end=fences[-1][1], fences=(*inner[-1].fences, *fences[1:]))
            return inner
    value = Parameter("command", *trim(text, opener.end(), end))
    return [Call(name, opener.start(), closer.end() if closer else len(text), (value,), fences=fences, form="fence")]
