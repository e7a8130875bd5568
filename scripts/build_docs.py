"""Build the documentation site from docs/, README.md and the other pages: `make docs`.

The pages are written for code hosts, with links that lead through the repository. Here they are staged into one tree,
links follow, and the pages of metrics and the references of commands and of the Python API are generated from code.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hesnr_tasks
from hesnr_tasks.cli import command_parser
from hesnr_tasks.metrics import METRICS, page

ROOT = Path(__file__).resolve().parent.parent
STAGE = ROOT / "build" / "docs"
PAGES = {  # file of the repository → page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "results/README.md": "results/index.md",
    "results/egss/README.md": "results/egss/index.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def main() -> int:
    pages = {**PAGES, **{f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}}
    shutil.rmtree(STAGE, ignore_errors=True)
    for source, target in pages.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        write(target, LINK.sub(lambda match, source=source: relink(match, source, pages), text))
    for name in METRICS:
        write(f"metrics/{name}.md", page(name))
    listed = (STAGE / "metrics.md").read_text(encoding="utf-8")
    write("metrics.md", re.sub(r"^\| `(\w+)` \|", r"| [`\1`](metrics/\1.md) |", listed, flags=re.MULTILINE))
    write("reference/cli.md", cli_reference())
    write("reference/api.md", api_reference())
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a notice of its authors, not about these pages
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def write(path: str, text: str) -> None:
    target = STAGE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def relink(match: re.Match[str], source: str, pages: dict[str, str]) -> str:
    """A link between files of the repository as one between pages; what is no page is named, or copied if an image."""
    image, text, target = match.groups()
    path, _, fragment = target.partition("#")
    if "://" in target or not path:
        return match[0]
    goal = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    folder = posixpath.dirname(pages[source])
    if goal in pages:
        relative = posixpath.relpath(pages[goal], folder or ".")
        return f"{image}[{text}]({relative}{'#' + fragment if fragment else ''})"
    if image:
        copy = STAGE / "images" / goal
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / goal, copy)
        return f"![{text}]({posixpath.relpath('images/' + goal, folder or '.')})"
    return text if goal in text else f"{text} (`{goal}`)"


def cli_reference() -> str:
    """Every command's own help."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands\n\nThe help of every command, as `hesnr COMMAND --help` prints it.\n"]

    def add(parser: argparse.ArgumentParser) -> None:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
        for command in (command for group in groups for command in group.choices.values()):
            add(command)

    add(command_parser())
    return "\n".join(parts)


def api_reference() -> str:
    """The public names of the package."""
    parts = ["# Python API\n\n`import hesnr_tasks as hesnr`; each name below is `hesnr.NAME`, imported on first use.\n"]
    homes = {name: getattr(hesnr_tasks, name).__module__ for name in sorted(hesnr_tasks.__all__)}
    return "\n".join([*parts, *(f"::: {home}.{name}\n" for name, home in homes.items())])


if __name__ == "__main__":
    sys.exit(main())
