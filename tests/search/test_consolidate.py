"""A planted repository, patches and tests: what is kept, what is dropped and why, and that nothing can cheat."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.consolidate import Consolidation, Kept, Suite, consolidate, patch_key
from hesnr_tasks.search.consolidate_collect import REPOSITORY, collect, put, read, source_only, written
from hesnr_tasks.search.consolidate_run import COLLECT, HUNG, PASSED, Limits, _junit, outcomes
from hesnr_tasks.search.types import Leaf
from tests.search.plain_workspace import PlainWorkspace, patch_of, repository

LIMITS = Limits(sys.executable, timeout=30, alone=2)
WRONG, RIGHT, LOOP = ("def f(x):\n    return x\n", "def f(x):\n    return 2 * x\n", "def f(x):\n    while x: pass\n")
RUN_ALL = f"{sys.executable} -m pytest -q"


def writes(path, text, end="EOF"):
    return f"cat > {path} <<'{end}'\n{text}{end}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    files = {
        "f.py": "def f(x):\n    return None\n",
        "tests/test_old.py": "from f import f\n\ndef test_callable():\n    assert callable(f)\n",
        "conftest.py": "import sys\nsys.path.insert(0, '.')\n",
    }
    place = tmp_path_factory.mktemp("place")
    return PlainWorkspace(repository(tmp_path_factory.mktemp("repo"), files), place)


def leaf(base, name, source, *commands, files=None):
    patch = patch_of(base, {"f.py": source, **(files or {})})
    return Leaf(name, patch, "Submitted", Path(), commands)


# --- gathering ---


def test_here_documents_are_read_as_the_shell_would_write_them(base):
    root = Path("/repo")
    commands = [
        writes("tests/test_a.py", "one $HOME `x`\n"),
        "cat <<EOF > b.py\nplain\nEOF",
        "cat <<EOF > c.py\nexpands $HOME\nEOF",
        "cd /repo && tee /repo/sub/d.py <<'X' >/dev/null\nd\nX\ncat > e.py <<'Y'\ne\nY",
        "cat <<-'END' > tabs.py\n\t\tif 1:\n\t\t  pass\n\tEND",
        writes("/etc/passwd", "no\n"),
        writes("../outside.py", "no\n"),
        "cat >> a.py <<'EOF'\nappended\nEOF",
        "python - <<'EOF' > out.py\nprint(1)\nEOF",
        "cat > never.py <<'EOF'\nnot closed",
    ]
    assert written(commands, root) == {
        "tests/test_a.py": "one $HOME `x`\n",
        "b.py": "plain\n",
        "sub/d.py": "d\n",
        "e.py": "e\n",
        "tabs.py": "if 1:\n  pass\n",
    }


def test_tests_come_from_commands_patches_and_the_repository_with_their_authors(base):
    text = "def test_x():\n    pass\n"
    leaves = [
        leaf(base, "a", RIGHT, writes("tests/test_a.py", text)),
        leaf(base, "b", RIGHT, f"{RUN_ALL} tests/test_old.py", files={"tests/test_b.py": text}),
        leaf(
            base, "c", RIGHT, writes("tests/test_a.py", text), f"{sys.executable} -c 'import f'", "python -c 'import f'"
        ),
    ]
    found = {one.name: one.authors for one in collect(base, leaves, own=True, commands=True)}
    assert found == {
        "tests/test_a.py": ("a", "c"),
        "tests/test_b.py": ("b",),
        "$ python -c 'import f'": ("c",),
        "tests/test_old.py": (REPOSITORY,),
    }


def test_debug_scripts_bring_their_file_and_writers_are_left_out(base):
    commands = (
        writes("repro.py", "from f import f\nassert f(2) == 4\n"),
        "python repro.py",
        "python -c \"open('f.py', 'w').write('')\"",
        "python nowhere.py",
    )
    found = collect(base, [leaf(base, "a", RIGHT, *commands)], own=True, commands=True)
    assert [(one.command, one.files) for one in found] == [
        ("python repro.py", (("repro.py", "from f import f\nassert f(2) == 4\n"),))
    ]


def test_a_patch_loses_its_tests_and_caches(base):
    mixed = patch_of(base, {"f.py": RIGHT, "tests/test_old.py": "x = 1\n", "conftest.py": "", "__pycache__/f.pyc": "x"})
    assert source_only(mixed) == patch_of(base, {"f.py": RIGHT})
    assert patch_key(mixed) == patch_key(patch_of(base, {"f.py": RIGHT}))


# --- the matrix ---

GOOD = """from f import f

def test_double():
    assert f(3) == 6

class TestZero:
    def test_zero(self):
        assert f(0) == 0
"""
MISTAKEN = "from f import f\n\ndef test_same():\n    assert f(3) == 3\n"
FLAKY = """import os
from f import f

def test_f():
    assert f(3) == 6

def test_seed():
    assert f(3) == 6 and os.environ["PYTHONHASHSEED"] != "2"
"""
ODD = "import pytest\nfrom f import f\n\n@pytest.mark.skip\ndef test_skipped():\n    assert f(3) == 6\n"
BROKEN = "import does_not_exist\n\ndef test_x():\n    pass\n"
PRIVATE = "from f import helper\n\ndef test_helper():\n    assert helper() == 1\n"


@pytest.fixture(scope="module")
def suite(base):
    leaves = [
        leaf(base, "right", RIGHT, writes("tests/test_mine.py", GOOD), RUN_ALL),
        leaf(base, "wrong", WRONG, writes("tests/test_mine.py", MISTAKEN), writes("test_broken.py", BROKEN)),
        leaf(base, "again", RIGHT, writes("tests/test_mine.py", GOOD), writes("tests/test_odd.py", ODD)),
        leaf(base, "own", WRONG + "\ndef helper():\n    return 1\n", writes("tests/test_private.py", PRIVATE)),
        Leaf("misfit", "diff --git a/g.py b/g.py\n--- a/g.py\n+++ b/g.py\n@@ -1 +1 @@\n-a\n+b\n", "", Path(), ()),
    ]
    return consolidate(base, leaves, Consolidation(repeats=2, commands=False, limits=LIMITS))


def test_kept_tests_have_exact_verdicts_and_authors(suite):
    keys = suite.keys
    verdicts = {one.name: (one.authors, one.passes[keys["right"]], one.passes[keys["wrong"]]) for one in suite.tests}
    assert verdicts == {
        "tests/test_mine.py@right::test_double": (("right", "again"), True, False),
        "tests/test_mine.py@wrong::test_same": (("wrong",), False, True),
    }


def test_dropped_tests_say_why(suite):
    assert {one.name: one.reason for one in suite.dropped} == {
        "tests/test_mine.py@right::TestZero::test_zero": "all patches pass it",
        "test_broken.py": "it does not collect",
        "tests/test_odd.py::test_skipped": "it is skipped",
        "tests/test_private.py": "it collects only on its author's patch",
        "tests/test_old.py::test_callable": "all patches pass it",
    }


def test_a_patch_that_does_not_apply_is_reported(suite):
    assert "does not apply" in suite.problems["misfit"]
    assert "misfit" not in suite.keys


def test_rates_by_test_and_by_author(suite):
    rates = suite.rates()
    assert (rates["right"].share, rates["again"].share, rates["wrong"].share) == (0.5, 0.5, 0.5)
    weighted = suite.rates("author")
    assert weighted["right"] == (2.0, 3.0)
    assert weighted["wrong"] == (1.0, 3.0)
    with pytest.raises(SearchError):
        suite.rates("loudest")


def test_fewer_leaves_have_fewer_tests(suite):
    alone = suite.restrict(["wrong", "own"])
    assert alone.tests == ()  # both pass the mistaken test: it does not tell them apart
    pair = suite.restrict(["again", "wrong"])
    assert [one.authors for one in pair.tests] == [("again",), ("wrong",)]
    assert Suite().rates() == {}


def test_a_test_that_flakes_is_dropped(base):
    leaves = [leaf(base, "right", RIGHT, writes("tests/test_h.py", FLAKY)), leaf(base, "wrong", WRONG)]
    found = consolidate(base, leaves, Consolidation(repeats=3, commands=False, limits=LIMITS))
    assert [one.name for one in found.tests] == ["tests/test_h.py::test_f"]
    assert [(one.name, one.reason) for one in found.dropped] == [("tests/test_h.py::test_seed", "it flakes in 3 runs")]
    assert found.runs == 6
    twice = consolidate(base, leaves, Consolidation(repeats=2, commands=False, limits=LIMITS))
    assert len(twice.tests) == 2  # it shows in the third run only


def test_a_patch_on_which_a_test_hangs_fails_it_and_no_other(base):
    text = "from f import f\n\ndef test_f():\n    assert f(1) is not None\n\ndef test_zero():\n    assert f(0) != 0\n"
    leaves = [leaf(base, "right", RIGHT, writes("tests/test_l.py", text)), leaf(base, "loop", LOOP)]
    short = Consolidation(repeats=1, commands=False, limits=Limits(sys.executable, timeout=3, alone=3))
    found = consolidate(base, leaves, short)
    keys = found.keys
    assert [(one.name, one.passes[keys["right"]], one.passes[keys["loop"]]) for one in found.tests] == [
        ("tests/test_l.py::test_f", True, False),
        ("tests/test_l.py::test_zero", False, True),
    ]


def test_commands_pass_by_exit_status(base):
    check = f'{sys.executable.rpartition("/")[2]} -c "from f import f; assert f(3) == 6"'
    leaves = [leaf(base, "right", RIGHT, check), leaf(base, "wrong", WRONG)]
    found = consolidate(base, leaves, Consolidation(repeats=1, limits=LIMITS))
    assert found.tests == (Kept(f"$ {check}", ("right",), {found.keys["right"]: True, found.keys["wrong"]: False}),)


def test_no_patch_can_bring_its_own_verdict(base):
    forged = "import pytest\n\ndef pytest_collection_modifyitems(items):\n    items.clear()\n"
    leaves = [
        leaf(base, "right", RIGHT, writes("tests/test_mine.py", GOOD)),
        leaf(
            base, "wrong", WRONG, files={"conftest.py": forged, "tests/test_mine.py": "def test_double():\n    pass\n"}
        ),
    ]
    found = consolidate(base, leaves, Consolidation(repeats=1, commands=False, limits=LIMITS))
    (kept,) = found.tests
    assert kept.passes == {found.keys["right"]: True, found.keys["wrong"]: False}


# --- parts ---


def test_files_of_any_size_and_content_arrive_whole(base):
    fork = base.fork()
    content = "é'\"$`\\\n" * 40_000
    put(fork, "sub dir/it's.txt", content.encode())
    assert read(fork, "sub dir/it's.txt") == content
    assert read(fork, "nothing.txt") is None
    fork.close()


@pytest.mark.parametrize(
    "text", [None, "", "<x", "<!DOCTYPE a [<!ENTITY b 'c'>]><testsuites/>", "<testsuites><testsuite/></testsuites>"]
)
def test_a_junit_file_that_is_none_collects_nothing(text):
    assert _junit(text, "tests/test_a.py") == {COLLECT: COLLECT}


def test_a_fork_is_left_as_it_was(base):
    before = base.tree_hash()
    (probe,) = collect(base, [leaf(base, "a", RIGHT, writes("tests/test_mine.py", GOOD))], own=False, commands=False)
    assert outcomes(base, probe, LIMITS) == {"test_double": "failed", "TestZero::test_zero": "failed"}
    assert base.tree_hash() == before


def test_a_file_that_hangs_while_it_is_imported_collects_nothing(base):
    text = "import time\ntime.sleep(60)\n\ndef test_x():\n    pass\n"
    (probe,) = collect(base, [leaf(base, "a", RIGHT, writes("test_s.py", text))], own=False, commands=False)
    assert outcomes(base, probe, Limits(sys.executable, 1, 1)) == {COLLECT: COLLECT}
    assert HUNG != PASSED


@pytest.mark.parametrize("python", ["nowhere/python", "bare"])
def test_an_interpreter_without_pytest_drops_its_tests_and_says_so(base, tmp_path, python):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho No module named pytest\nexit 1\n")
    bare.chmod(0o755)
    limits = Limits(str(bare) if python == "bare" else python, 5, 5)
    leaves = [leaf(base, "right", RIGHT, writes("test_s.py", GOOD)), leaf(base, "wrong", WRONG)]
    found = consolidate(base, leaves, Consolidation(limits=limits))
    assert found.tests == ()
    assert "cannot run pytest" in found.dropped[0].reason
