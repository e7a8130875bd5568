"""Measure how the package is built: python scripts/house.py [COMMIT …] prints a table of these commits and of now.

With --only, of some parts: python scripts/house.py --only actions formats errors.py
"""

import argparse
import ast
import io
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from check_names import FILLERS, bindings

ROOT = Path(__file__).parent.parent
PACKAGE = "hesnr_tasks"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)


def imports(trees):
    """What modules and packages directly below ours import of each other, also inside functions and for types."""
    edges = defaultdict(set)
    for path, tree in trees.items():
        importer = path.with_suffix("").parts[1]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                imported = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                edges[importer] |= set(imported) - {importer}
    edges.pop("__init__", None)  # hands out the API lazily
    return edges


def floors(edges):
    """Modules and packages on the longest chain of imports (a circle counts as one); how many are in circles."""
    below = edges
    for _ in edges:
        below = {name: reached.union(*(below.get(other, ()) for other in reached)) for name, reached in below.items()}
    heights = {}

    def height(name):
        if name not in heights:
            lower = [other for other in below.get(name, ()) if name not in below.get(other, ())]
            heights[name] = 1 + max(map(height, lower), default=0)
        return heights[name]

    return max(map(height, edges)), sum(name in reached for name, reached in below.items())


def private_functions(tree):
    """How many private functions a module has, how many of them it mentions once, and of these calls (no tables)."""
    names = [node.name for node in tree.body if isinstance(node, FUNCTIONS) and node.name.startswith("_")]
    mentions = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    once = [name for name in names if mentions[name] == 1]
    return len(names), len(once), len(called.intersection(once))


def spread(sizes):
    """Median, 90 %, most."""
    sizes = sorted(sizes)
    return f"{sizes[len(sizes) // 2]}, {sizes[len(sizes) * 9 // 10]}, {sizes[-1]}"


def measure(root, parts):
    """Every figure of one version, or of some parts of it, by its name."""
    files = {path.relative_to(root): path.read_text(encoding="utf-8") for path in root.glob(f"{PACKAGE}/**/*.py")}
    files = {path: text for path, text in files.items() if not parts or path.parts[1] in parts}
    trees = {path: ast.parse(text) for path, text in files.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    assigned = [node for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    sizes = [text.count("\n") for text in files.values()]
    classes = Counter(node.name.strip("_") for node in nodes if isinstance(node, ast.ClassDef))
    names = [name.strip("_").lower() for tree in trees.values() for name, _ in bindings(tree) if name]
    private, once, called = map(sum, zip(*map(private_functions, trees.values()), strict=True))
    docstrings = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, DEFINITIONS)]
    detailed = sum(any(section in text for section in ("Args:", "Returns:", "Raises:")) for text in docstrings)
    longest, in_circles = floors(imports(trees))
    return {
        "files; lines": f"{len(files)}; {sum(sizes):,}",
        "lines a file: median, 90 %, most": spread(sizes),
        "lines a function": spread(n.end_lineno - n.lineno + 1 for n in nodes if isinstance(n, FUNCTIONS)),
        "floors: longest chain of imports; in circles": f"{longest}; {in_circles}",
        "names in `__all__`": sum(len(getattr(node.value, "elts", ())) for node in assigned),
        "private functions of modules; with one use; with one caller": f"{private}; {once}; {called}",
        "filler names, of all names that are bound": f"{sum(name in FILLERS for name in names):,} of {len(names):,}",
        "names that several classes have": sum(number > 1 for number in classes.values()),
        "docstrings with Args, Returns or Raises": detailed,
    }


def main(commits, parts):
    columns = {}
    for commit in commits:
        archive = subprocess.run(["git", "archive", commit, PACKAGE], cwd=ROOT, check=True, capture_output=True).stdout
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
            columns[commit] = measure(Path(folder), parts)
    columns["now"] = measure(ROOT, parts)
    print(f"| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for figure in columns["now"]:
        print(f"| {figure} | {' | '.join(str(column[figure]) for column in columns.values())} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="files and folders below the package")
    given = parser.parse_args()
    main(given.commits, given.only)
