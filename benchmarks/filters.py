"""Filters: how fast they label, and how well they find comments beside other lexers.

    python benchmarks/filters.py speed [--trajectories 500] [--size 100000] [--beside FOLDER]
    python benchmarks/filters.py fragments
    python benchmarks/filters.py files FOLDER... [--pieces 10]
    python benchmarks/filters.py guesses FOLDER... [--pieces 60]

`speed` writes trajectories of `--size` characters made of the turns of real ones (../shared/trajectories, else the
demo), and reads, renders and labels them; then the same with nothing but actions, in all languages; `--beside` does it
with another working tree too, in turn, and prints the ratio. `fragments` prints
recall and loss on the labelled fragments of the tests, `files` on whole files of clones of repositories and on random
pieces of 2 to 40 lines of them; the truth is then tree-sitter's tree of the whole file. Both compare with Pygments and,
where its wheels (`tree-sitter`, `tree-sitter-python` …) are installed, with tree-sitter. `guesses` needs nothing but
files: on such pieces, and on all around a `*/` that ends no comment, it compares what is found in the piece with what
is found in the whole file.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise
from pathlib import Path

from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, String
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [os.environ.get("HESNR_TREE", str(ROOT)), str(ROOT)]

from hesnr_tasks.filters import char_codes  # noqa: E402
from hesnr_tasks.filters.regions import by_file_name, comments_of  # noqa: E402
from hesnr_tasks.formats import load, read_trajectories  # noqa: E402
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory  # noqa: E402
from hesnr_tasks.trajectory.rendering import render  # noqa: E402
from tests.unit.filters.marked import FRAGMENTS, fragments  # noqa: E402

LANGUAGES = sorted(path.stem for path in FRAGMENTS.glob("*.txt"))
EXTENSIONS = {
    "cpp": "cc",
    "csharp": "cs",
    "javascript": "js",
    "kotlin": "kt",
    "python": "py",
    "ruby": "rb",
    "rust": "rs",
}
EXTENSIONS |= {"shell": "sh", "typescript": "ts", "make": "mk", "yaml": "yml"}

# --- speed ----------------------------------------------------------------------------------------------------------


def speed(count: int, size: int, beside: str) -> None:
    trees = {"here": str(ROOT)} | ({"beside": beside} if beside else {})
    for name, turns in (("as in real runs", real_turns()), ("actions only", action_turns())):
        print(
            f"\n{name}\n{'':8} {'trajectories':>12} {'MB':>7} {'actions':>8} {'seconds':>8} {'MB/s':>7} {'peak MB':>8}"
        )
        for number in (count // 4, count // 2, count):
            with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
                write(file, turns, number, size)
                seconds = {}
                for label, tree in trees.items():
                    command = [sys.executable, __file__, "measure", file.name]
                    env = {**os.environ, "HESNR_TREE": tree}
                    line = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
                    seconds[label] = float(line.split()[3])
                    print(f"{label:>8} {line}", end="")
            if beside:
                print(f"{'ratio':>8} {seconds['here'] / seconds['beside']:.2f}")


def real_turns() -> list[tuple[Message, ...]]:
    shared = ROOT.parent / "shared" / "trajectories"
    source = shared if shared.is_dir() else ROOT / "hesnr_tasks" / "demo" / "trajectories.jsonl"
    messages = [m for trajectory in load(str(source)) for m in trajectory.messages]
    starts = [i for i, m in enumerate(messages) if m.generated]
    return [tuple(messages[a:b]) for a, b in pairwise(starts)]


def action_turns() -> list[tuple[Message, ...]]:
    turns = []
    for language in LANGUAGES:
        for _, text, _ in fragments(language):
            path = f"/testbed/src/file.{EXTENSIONS.get(language, language)}"
            value = f"<parameter=path>{path}</parameter>\n<parameter=new_str>\n{text}\n</parameter>"
            action = f"<function=str_replace_editor>\n{value}\n</function>"
            turns.append((Message("assistant", (Segment(Kind.ACTION, action),)),))
    return turns


def write(file: object, turns: list[tuple[Message, ...]], count: int, size: int) -> None:
    rng = random.Random(0)
    for i in range(count):
        messages: list[Message] = []
        length = 0
        while length < size:
            turn = rng.choice(turns)
            messages += turn
            length += sum(len(m.text) for m in turn)
        print(json.dumps(Trajectory(f"t{i}", tuple(messages)).to_json()), file=file)  # type: ignore[call-overload]
    file.flush()  # type: ignore[attr-defined]


def measure(path: str) -> None:
    start, count, characters, actions = time.process_time(), 0, 0, 0
    for trajectory in read_trajectories(path):
        rendered = render(trajectory)
        codes = char_codes(rendered)
        count, characters, actions = count + 1, characters + len(codes), actions + int((codes >= 4).sum())
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = characters / 1e6
    print(f"{count:12} {size:7.1f} {actions / characters:8.0%} {seconds:8.2f} {size / seconds:7.1f} {peak:8.0f}")


# --- other lexers ---------------------------------------------------------------------------------------------------

Finder = Callable[[str], Iterable[tuple[int, int]]]
CODE = (Comment.Hashbang, Comment.Preproc, Comment.PreprocFile, Comment.Special)
PYGMENTS = {"dockerfile": "docker", "shell": "bash"}
TREES = {"csharp": "c_sharp", "shell": "bash", "typescript": "typescript", "scss": "css"}
FUNCTIONS = {"typescript": "language_tsx", "php": "language_php"}


def pygments_finder(language: str) -> Finder:
    name = PYGMENTS.get(language, language)
    lexer, inline = (get_lexer_by_name(name, stripnl=False, ensurenl=False, startinline=s) for s in (False, True))

    def is_comment(kind: object) -> bool:
        if language != "python" and kind in String.Doc:
            return True
        return kind in Comment and kind not in CODE and not (language in ("c", "cpp") and kind is Comment)

    def find(text: str) -> list[tuple[int, int]]:
        chosen = lexer if "<?" in text else inline
        return [(i, i + len(v)) for i, kind, v in chosen.get_tokens_unprocessed(text) if is_comment(kind)]

    return find


class Tree:
    """Comments as tree-sitter sees them; `whole` says whether the last text was parsed without an error."""

    def __init__(self, language: str) -> None:
        module = importlib.import_module(f"tree_sitter_{TREES.get(language, language)}")
        tree_sitter = importlib.import_module("tree_sitter")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grammar = tree_sitter.Language(getattr(module, FUNCTIONS.get(language, "language"))())
        self.parser, self.whole = tree_sitter.Parser(grammar), True

    def __call__(self, text: str) -> list[tuple[int, int]]:
        tree = self.parser.parse(text.encode())
        self.whole = not tree.root_node.has_error
        spans, stack = [], [tree.root_node]
        while stack:
            node = stack.pop()
            if "comment" in node.type:
                spans.append((node.start_byte, node.end_byte))
            else:
                stack += node.children
        characters = [i for i, c in enumerate(text) for _ in c.encode()] + [len(text)]
        return [(characters[start], characters[end]) for start, end in spans]


def finders(language: str) -> dict[str, Finder]:
    lexers: dict[str, Finder] = {"ours": lambda text: comments_of(text, language)}
    with contextlib.suppress(ClassNotFound):
        lexers["Pygments"] = pygments_finder(language)
    with contextlib.suppress(ImportError):
        lexers["tree-sitter"] = Tree(language)
    return lexers


# --- quality --------------------------------------------------------------------------------------------------------


class Tally:
    """Comment characters wanted and missed, code characters seen and lost; white space does not count."""

    def __init__(self) -> None:
        self.wanted = self.missed = self.code = self.lost = 0

    def add(self, text: str, wanted: set[int], spans: Iterable[tuple[int, int]]) -> None:
        marked = visible(text, spans)
        self.wanted += len(wanted)
        self.missed += len(wanted - marked)
        self.code += sum(not c.isspace() for c in text) - len(wanted)
        self.lost += len(marked - wanted)

    def __str__(self) -> str:
        return f"{1 - self.missed / max(1, self.wanted):8.2%} {self.lost / max(1, self.code):8.3%}"


def visible(text: str, spans: Iterable[tuple[int, int]]) -> set[int]:
    return {i for start, end in spans for i in range(start, end) if not text[i].isspace()}


def show(language: str, kind: str, number: int, tallies: dict[str, Tally]) -> None:
    cells = "  ".join(f"{name} {tally}" for name, tally in tallies.items())
    print(f"{language:12} {kind:9} {number:5}  {cells}")


def on_fragments() -> None:
    print("recall of comment characters, code characters lost")
    for language in LANGUAGES:
        lexers = finders(language)
        tallies = {name: Tally() for name in lexers}
        labelled = fragments(language)
        for _, text, marked in labelled:
            wanted = {i for i in marked if not text[i].isspace()}
            for name, find in lexers.items():
                tallies[name].add(text, wanted, find(text))
        show(language, "fragments", len(labelled), tallies)


def on_files(folders: list[str], pieces: int) -> None:
    files: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for path in sorted(p for folder in folders for p in Path(folder).rglob("*") if p.is_file()):
        language = by_file_name(path.name)
        if language in files and ".min." not in path.name and 20 < path.stat().st_size < 200_000:
            files[language].append(path.read_bytes().decode("utf-8", "replace"))
    for language, texts in files.items():
        on_language(language, random.Random(0).sample(texts, min(100, len(texts))), pieces)


def on_language(language: str, texts: list[str], pieces: int) -> None:
    lexers, rng = finders(language), random.Random(1)
    tree = lexers.get("tree-sitter")
    if not texts or not isinstance(tree, Tree):
        return
    whole, parts = ({name: Tally() for name in lexers} for _ in range(2))
    number = 0
    for text in texts:
        wanted = visible(text, tree(text))
        if not tree.whole:
            continue
        number += 1
        if text.startswith("#!"):
            wanted -= set(range(text.find("\n")))
        for name, find in lexers.items():
            whole[name].add(text, wanted, find(text))
        for start, piece in cut(text, pieces, rng):
            inside = {i - start for i in wanted if start <= i < start + len(piece)}
            for name, find in lexers.items():
                parts[name].add(piece, inside, find(piece))
    show(language, "files", number, whole)
    show(language, "pieces", number * pieces, parts)


def on_guesses(folders: list[str], pieces: int) -> None:
    print("comment characters missed, code characters lost, pieces that lose code, of pieces")
    rng = random.Random(0)
    paths: dict[str, list[Path]] = {language: [] for language in LANGUAGES}
    for path in sorted(p for folder in folders for p in Path(folder).rglob("*") if p.is_file()):
        language = by_file_name(path.name)
        if language in paths and ".min." not in path.name and 20 < path.stat().st_size < 200_000:
            paths[language].append(path)
    for language, candidates in paths.items():
        tally, losing, number = Tally(), 0, 0
        for path in rng.sample(candidates, min(150, len(candidates))):
            text = path.read_bytes().decode("utf-8", "replace")
            truth = visible(text, comments_of(text, language))
            for start, piece in [*cut(text, pieces, rng), *around_signs(text, truth)]:
                inside = {i - start for i in truth if start <= i < start + len(piece)}
                before = tally.lost
                tally.add(piece, inside, comments_of(piece, language))
                losing, number = losing + (tally.lost > before), number + 1
        if number:
            missed, lost = tally.missed / max(1, tally.wanted), tally.lost / max(1, tally.code)
            print(f"{language:12} {missed:8.2%} {lost:8.4%} {losing:5} {number:6}")


def around_signs(text: str, truth: set[int]) -> Iterable[tuple[int, str]]:
    """Pieces with a `*/` that is no comment's, from 0 to 10 lines before it to two after it."""
    lines = text.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    for i, line in enumerate(lines):
        sign = line.find("*/")
        if sign >= 0 and starts[i] + sign not in truth:
            for before in (0, 1, 3, 10):
                first = max(0, i - before)
                yield starts[first], "\n".join(lines[first : i + 3])


def cut(text: str, pieces: int, rng: random.Random) -> Iterable[tuple[int, str]]:
    lines = text.split("\n")
    for _ in range(pieces):
        first = rng.randrange(len(lines))
        start = sum(len(line) + 1 for line in lines[:first])
        yield start, "\n".join(lines[first : first + rng.randint(2, 40)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("speed", "measure", "fragments", "files", "guesses"))
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--trajectories", type=int, default=500)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--pieces", type=int, default=10)
    parser.add_argument("--beside", default="", help="another working tree, for `speed`")
    args = parser.parse_args()
    if args.what == "speed":
        speed(args.trajectories, args.size, args.beside)
    elif args.what == "measure":
        measure(*args.folders)
    elif args.what == "fragments":
        on_fragments()
    elif args.what == "guesses":
        on_guesses(args.folders, args.pieces)
    else:
        on_files(args.folders, args.pieces)


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
