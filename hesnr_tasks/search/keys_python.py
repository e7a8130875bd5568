"""Files that a Python program given on the command line writes, read off its syntax tree; nothing is run."""

from __future__ import annotations

import ast
import re
import warnings

__all__ = ["written_files"]

_WRITERS = ("write_text", "write_bytes", "touch", "unlink", "rename", "replace")
_MODULES = {
    "os": ("remove", "rename", "replace", "unlink", "makedirs", "mkdir"),
    "shutil": ("copy", "copyfile", "move"),
}
_OPEN = re.compile(r"""open\(\s*[rf]?['"]([^'"\n]+)['"]\s*,\s*['"][wax]""")


def written_files(code: str) -> list[str]:
    """Paths (as far as they are constants) that `code` opens for writing; `""` for one that is not. Never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the program are its own affair
            tree = ast.parse(code)
            nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _OPEN.findall(code)
    names = {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = (_written(node, names) for node in nodes if isinstance(node, ast.Call))
    return [path for path in found if path is not None]


def _written(call: ast.Call, names: dict[str, ast.expr]) -> str | None:
    """The path that this call writes to; None: it writes to none."""
    function = call.func
    if isinstance(function, ast.Name):
        return _path(call.args[:1], names) if function.id == "open" and _writes(call, 1) else None
    if not isinstance(function, ast.Attribute):
        return None
    owner = function.value
    if isinstance(owner, ast.Name) and owner.id in _MODULES:
        return _path(call.args[-1:], names) if function.attr in _MODULES[owner.id] else None
    if function.attr == "open":
        first = 1 if isinstance(owner, ast.Name) and owner.id in ("io", "codecs") else 0
        return _path(call.args[:1] if first else [owner], names) if _writes(call, first) else None
    # str.replace takes two arguments or more, Path.replace one
    if function.attr in _WRITERS and (function.attr != "replace" or len(call.args) == 1):
        return _path([owner], names)
    return None


def _writes(call: ast.Call, place: int) -> bool:
    modes = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wax+") for m in modes)


def _path(nodes: list[ast.expr], names: dict[str, ast.expr]) -> str:
    """A constant path: text, a name that is bound to it, or Path(…) around it; else an empty string."""
    node = nodes[0] if nodes else None
    for _ in range(8):  # names may be bound to each other in a circle
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else ""
        if isinstance(node, ast.Name):
            node = names.get(node.id)
        elif isinstance(node, ast.Call) and len(node.args) == 1:
            node = node.args[0]
        else:
            return ""
    return ""
