"""Python comments equal those of the standard tokenizer, character for character."""

import random
import sysconfig
from pathlib import Path

import pytest

from hesnr_tasks.filters import FILTERS
from hesnr_tasks.filters.regions import by_file_name, comments_of, regions
from hesnr_tasks.formats import load
from hesnr_tasks.trajectory import Kind
from tests.reference import filters as reference
from tests.unit.filters.marked import positions


def standard_library(count, seed):
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for path in random.Random(seed).sample(files, count):
        yield path, path.read_bytes().decode("utf-8", "replace")


def test_modules_of_the_standard_library():
    checked = 0
    for path, text in standard_library(60, seed=1):
        if reference.tokenizes(text):
            checked += 1
            assert comments_of(text, "python") == reference.python_comments(text), path
    assert checked > 50


def test_random_pieces_of_modules_lose_little():
    """Pieces of 2 to 40 lines, also such as begin or end in a docstring: far harder than what agents edit."""
    rng = random.Random(2)
    wanted = missed = code = lost = 0
    for _, text in standard_library(60, seed=3):
        if not reference.tokenizes(text):
            continue
        comments = positions(reference.python_comments(text))
        lines = text.splitlines(keepends=True)
        for _ in range(10):
            first = rng.randrange(len(lines))
            start = sum(map(len, lines[:first]))
            piece = "".join(lines[first : first + rng.randint(2, 40)])
            expected = {i - start for i in comments if start <= i < start + len(piece)}
            dropped = positions(comments_of(piece, "python"))
            wanted, missed = wanted + len(expected), missed + len(expected - dropped)
            code, lost = code + len(piece) - len(expected), lost + len(dropped - expected)
    assert missed <= 0.01 * wanted
    assert lost <= 0.002 * code


@pytest.mark.parametrize("name", ["swesmith_xml_messages.jsonl", "sweagent_function_calling_marshmallow-1867.traj"])
def test_python_in_real_trajectories(shared, name):
    checked = 0
    for trajectory in load(str(shared / name)):
        for message in trajectory.messages:
            for segment in message.segments:
                if segment.kind is Kind.ACTION:
                    checked += check_action(segment.text)
    assert checked > 0


def check_action(text):
    """Compare every Python piece that tokenizes when put into a block; how many there were."""
    checked = 0
    dropped = positions(FILTERS["comments"](text))
    for region in regions(text):
        piece = f"if 1:\n{region.view.text}" if region.view.text.startswith(" ") else region.view.text
        if region.language != "python" or not reference.tokenizes(piece):
            continue
        shift = len(piece) - len(region.view.text)
        expected = {region.view.offsets[i - shift] for i in positions(reference.python_comments(piece))}
        inside = {region.view.offsets[i] for i in range(len(region.view.text))}
        assert dropped & inside == expected
        checked += 1
    return checked


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("/testbed/a/b.py", "python"),
        ("setup.cfg", "ini"),
        ("Dockerfile.dev", "dockerfile"),
        ("src/Makefile", "make"),
        ("requirements-dev.txt", "requirements"),
        ("CMakeLists.txt", "cmake"),
        ("notes.txt", "text"),
        ("README", "text"),
        (".github/workflows/ci.yml", "yaml"),
        ("a.test.tsx", "typescript"),
        ("build.gradle.kts", "kotlin"),
        ("config.py.j2", "python"),
        ("C:\\src\\Main.java", "java"),
        ("Gemfile", "ruby"),
        ("data.json", None),
        ("LICENSE.foo", None),
        ("no_extension", None),
        ("", None),
    ],
)
def test_the_language_of_a_file_name(name, language):
    assert by_file_name(name) == language
