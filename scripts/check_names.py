"""Refuse filler names: a name says what it holds. Usage: python scripts/check_names.py [PATH …]"""

import ast
import sys
from pathlib import Path

WORDS = "found one at made told known drawn asked said thing things way how worth kin got"
FOLDERS = ("hesnr_tasks", "tests", "benchmarks", "scripts")
FILLERS = set(WORDS.split())


def bindings(tree):
    """Every name that a module binds, with its line: functions, classes, arguments, variables."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)):
            yield node.name or "", node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias):
            yield node.asname or "", node.lineno
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def main(paths):
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    refused = [
        f"{file}:{line}: {name} says nothing; name what it holds"
        for file in files
        for name, line in bindings(ast.parse(file.read_text(encoding="utf-8")))
        if name.strip("_").lower() in FILLERS
    ]
    print("\n".join(refused), end="\n" if refused else "")
    return bool(refused)


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]] or list(map(Path, FOLDERS))))
