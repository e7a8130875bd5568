"""What runs of several agents hold: submissions, tests, and what cannot be used."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.egss.runs import changed_files, collect, load_instances, patch_key, source_patch
from hesnr_tasks.errors import DataError
from tests.unit.egss import runs


def test_each_agents_own_submission_is_found_with_its_tests(tmp_path):
    notes = Counter()
    candidates = collect(runs.three_runs(tmp_path), notes)
    assert list(candidates) == sorted(f"demo__{name}-1" for name in runs.NAMES)
    assert not notes
    for number, name in enumerate(runs.NAMES):
        first, second, third = candidates[f"demo__{name}-1"]
        assert [c.run for c in (first, second, third)] == ["first", "second", "third"]
        assert first.patch == runs.patch(name, runs.WRONG if number % 2 else runs.RIGHT)
        assert third.patch == runs.patch(name, runs.WRONG)
        assert dict(first.tests) == {f"test_{name}.py": runs.TESTS[name]}
        assert first.task == second.task == third.task == runs.TASKS[name]


def test_real_trajectories_have_their_submissions(shared):
    names = ("openhands_events_output.jsonl", "pandas-dev__pandas.95280573.pr_53652.traj",
             "openhands_legacy_resolver_output.jsonl", "sweagent_function_calling_marshmallow-1867.traj")  # fmt: skip
    candidates = collect([str(shared / name) for name in names], Counter())
    assert {"ponylang__ponyc-4595", "ponylang__ponyc-4593", "neubig__pr-viewer-5"} <= set(candidates)
    assert len(candidates) == 5
    assert all("diff --git " in c.patch for several in candidates.values() for c in several)


def test_what_agents_wrote_and_edited_and_ran(tmp_path):
    commands = [
        "mkdir -p tests && cat <<'END' > /testbed/tests/test_a.py\nassert 1\nEND",
        "cat > /tmp/test_outside.py <<'EOF'\nx = 1\nEOF",
        "cat > test_open.py <<EOF\n$HOME\nEOF",  # the shell would put something else in its place
        "cd /testbed && python -m pytest tests/test_old.py::test_x -q",
        "cat > notes.md <<'EOF'\nno test\nEOF",
    ]
    runs.mini(tmp_path / "r", "a", "T", "", commands)
    (only,) = collect([str(tmp_path / "r")], Counter())["a"]
    assert dict(only.tests) == {"tests/test_a.py": "assert 1\n", "test_outside.py": "x = 1\n"}
    assert only.ran == ("tests/test_old.py",)


def test_predictions_without_trajectories_and_damaged_neighbours_are_used_and_counted(tmp_path):
    run, notes = tmp_path / "r", Counter()
    runs.mini(run, "a", "T", "diff --git a/x b/x\n")
    rows = {**json.loads((run / "preds.json").read_text()), "b": {"instance_id": "b", "model_patch": "P"}}
    (run / "preds.json").write_text(json.dumps(rows))
    (run / "c").mkdir()
    (run / "c" / "c.traj.json").write_text('{"info": {"mini_version"')
    (run / "d.json").write_text('{"unrelated": 1}')
    candidates = collect([str(run)], notes)
    assert {name: [c.patch for c in several] for name, several in candidates.items()} == {
        "a": ["diff --git a/x b/x\n"], "b": ["P"]
    }  # fmt: skip
    assert sum(notes.values()) == 2
    assert [c.patch for c in collect([str(run / "preds.json")], Counter())["b"]] == ["P"]


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": 3}', "null", '[{"instance_id": 4}]', "\x00\xff"])
def test_runs_without_a_submission_are_an_error(tmp_path, content):
    (tmp_path / "preds.json").write_text(content)
    with pytest.raises(DataError, match="holds a submitted patch"):
        collect([str(tmp_path)], Counter())
    with pytest.raises(DataError, match="no such run"):
        collect([str(tmp_path / "nowhere")], Counter())


def test_an_instance_without_an_id_is_named(tmp_path):
    path = tmp_path / "i.jsonl"
    path.write_text('{"instance_id": "a", "image_name": "x"}\n{"problem_statement": "y"}\n')
    with pytest.raises(DataError, match=r"i.jsonl:2: a row without an instance_id"):
        load_instances(str(path))


def test_tests_and_caches_are_no_part_of_a_source_patch():
    source = runs.patch("clamp", runs.RIGHT)
    noise = "".join(
        runs.diff(path, "", "x = 1\n") for path in ("tests/test_b.py", "c_test.py", "conftest.py", "__pycache__/a.pyc")
    )
    assert source_patch(noise + source + noise) == source
    assert patch_key(noise + source) == patch_key(source) != patch_key(runs.patch("clamp", runs.WRONG))
    assert [path for path, _ in changed_files(noise)] == [
        "tests/test_b.py",
        "c_test.py",
        "conftest.py",
        "__pycache__/a.pyc",
    ]
    indexed = source.replace("--- a", "index 123abc..456def 100644\n--- a")
    assert patch_key(indexed) == patch_key(source)


@given(st.text(max_size=200))
def test_any_text_is_a_patch_without_a_traceback(text):
    assert source_patch(text, r"test") is not None
    assert len(patch_key(text)) == 12
