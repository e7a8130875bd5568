"""`hesnr convert`: what is written and counted, outcomes joined from reports, and no half-written file."""

import argparse
import gzip
import json
from collections import Counter

import pytest

from hesnr_tasks.cli import trajectories
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.formats import ReadReport, load
from hesnr_tasks.formats.outcomes import read_outcomes


def row(name, resolved=None):
    call = "Look.\n\n<function=bash>\n<parameter=command>ls</parameter>\n</function>"
    messages = [{"role": "user", "content": "Fix it."}, {"role": "assistant", "content": call}]
    return {"instance_id": name, "resolved": resolved, "messages": messages}


def write(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def hesnr_convert(*words):
    parser = argparse.ArgumentParser()
    trajectories.convert_arguments(parser)
    return trajectories.run_convert(parser.parse_args([str(word) for word in words]))


def test_the_totals_equal_a_plain_count_of_the_written_file(fixtures, tmp_path):
    out = tmp_path / "out.jsonl"
    report = ReadReport()
    totals = trajectories.convert([str(fixtures)], str(out), on_error="skip", report=report)
    records = [json.loads(line) for line in out.read_bytes().split(b"\n") if line]
    segments = [s for r in records for m in r["messages"] for s in m["segments"]]
    characters = Counter()
    for segment in segments:
        characters[segment["kind"]] += len(segment["text"])
    own = [any(s["kind"] in ("thought", "action") for s in m["segments"]) for r in records for m in r["messages"]]
    assert totals.characters == characters
    assert totals.turns == sum(own)
    assert totals.written == len(records) == report.kept
    assert totals.fidelity == Counter(r["fidelity"] for r in records)
    assert report.read == report.kept + sum(s.count for s in report.skipped.values())


def test_converting_twice_gives_the_same_bytes_also_compressed(fixtures, tmp_path):
    for name in ("a.jsonl", "b.jsonl", "a.jsonl.gz", "b.jsonl.gz"):
        hesnr_convert(fixtures, "-o", tmp_path / name, "--on-error", "skip")
    plain, again = (tmp_path / "a.jsonl").read_bytes(), (tmp_path / "b.jsonl").read_bytes()
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert plain == again
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == plain


def test_the_table_says_what_was_read_written_and_skipped(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", row("a", True), row("b", False), {"bad": 1}, row("c"))
    hesnr_convert(source, "-o", tmp_path / "out.jsonl", "--only-resolved", "--on-error", "skip")
    table = " ".join(capsys.readouterr().out.split())
    for part in ("read 4", "written 1 to", "skipped 3", "1 not resolved", "1 outcome unknown", "1 unknown format: "):
        assert part in table
    assert "turns 1 characters 75 63 action 7 context 5 thought fidelity 1 synthetic" in table
    assert [t.id for t in load(str(tmp_path / "out.jsonl"))] == ["a"]


def test_an_error_leaves_neither_the_file_nor_a_part_of_it(tmp_path):
    source = write(tmp_path / "in.jsonl", row("a"), {"bad": 1})
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.jsonl").write_text("old")
    for name in ("new.jsonl", "old.jsonl"):
        with pytest.raises(DataError, match=r"in\.jsonl:2"):
            hesnr_convert(source, "-o", out / name, "--force")
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("old.jsonl", "old")]


def test_the_limit_is_obeyed(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", row("a"), row("b"), row("c"))
    hesnr_convert(source, "-o", tmp_path / "out.jsonl", "--limit", 2)
    assert [(t.id, t.source) for t in load(str(tmp_path / "out.jsonl"))] == [("a", "chat-xml"), ("b", "chat-xml")]
    with pytest.raises(SystemExit):
        hesnr_convert(source, "-o", tmp_path / "out.jsonl", "--limit", 0)
    assert "--limit: limit must be a number of at least 1" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    source = write(tmp_path / "in.jsonl", row("a"))
    with pytest.raises(SettingsError, match="cannot be written"):
        hesnr_convert(source, "-o", tmp_path / "in.jsonl" / "out.jsonl")


RUN_REPORT = {
    "total_instances": 4,
    "resolved_ids": ["a"],
    "unresolved_ids": ["b"],
    "error_ids": ["c"],
    "completed_ids": ["a"],
}
OLD_REPORT = {"resolved": ["a"], "no_generation": ["b"], "applied": ["a", "b"]}
INSTANCES = {"a": {"resolved": True, "patch_exists": True}, "b": {"resolved": False}}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("run.json", RUN_REPORT, {"a": True, "b": False, "c": None}),
        ("old.json", OLD_REPORT, {"a": True, "b": False}),
        ("instances.json", INSTANCES, {"a": True, "b": False}),
        ("flat.json", {"instance_id": "a", "resolved": True, "tests": {}}, {"a": True}),
        ("empty.json", {"resolved_ids": [], "unresolved_ids": []}, None),
    ],
)
def test_reports_of_every_shape_are_read(name, content, expected, tmp_path):
    (tmp_path / name).write_text(json.dumps(content, indent=1))
    if expected is None:
        with pytest.raises(DataError, match=r"empty\.json is no evaluation report"):
            read_outcomes([str(tmp_path / name)])
    else:
        assert read_outcomes([str(tmp_path / name)]) == expected


def test_reports_in_instance_folders_and_openhands_lines_are_read(tmp_path):
    for name, solved in (("a", True), ("b", False)):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "report.json").write_text(json.dumps({"resolved": solved}))
    lines = [
        {"instance_id": "c", "test_result": {"report": {"resolved": True}}},
        {"instance_id": "d", "report": {"resolved": False}},
    ]
    write(tmp_path / "output.swebench_eval.jsonl", *lines)
    results = read_outcomes([str(tmp_path / "logs"), str(tmp_path / "output.swebench_eval.jsonl")])
    assert results == {"a": True, "b": False, "c": True, "d": False}


def test_outcomes_from_reports_replace_those_in_the_file(tmp_path):
    source = write(tmp_path / "in.jsonl", row("a", False), row("b", True), row("c", True), row("d", True))
    (tmp_path / "run.json").write_text(json.dumps(RUN_REPORT))
    hesnr_convert(source, "-o", tmp_path / "out.jsonl", "--outcomes", tmp_path / "run.json")
    loaded = load(str(tmp_path / "out.jsonl"))
    assert [t.resolved for t in loaded] == [True, False, None, True]
    assert [t.meta.get("outcome_from") for t in loaded] == ["report", "report", "report", None]


def test_outcomes_that_fit_nothing_or_disagree_are_errors(tmp_path):
    source = write(tmp_path / "in.jsonl", row("x"))
    (tmp_path / "run.json").write_text(json.dumps(RUN_REPORT))
    with pytest.raises(DataError, match=r"no instance of the evaluation reports \('a', …\) occurs in"):
        hesnr_convert(source, "-o", tmp_path / "out.jsonl", "--outcomes", tmp_path / "run.json")
    (tmp_path / "other.json").write_text(json.dumps({"resolved_ids": ["b"]}))
    both = ["--outcomes", tmp_path / "run.json", "--outcomes", tmp_path / "other.json"]
    with pytest.raises(DataError, match=r"run\.json and .*other\.json judge 'b' differently"):
        hesnr_convert(source, "-o", tmp_path / "out.jsonl", *both)
    with pytest.raises(DataError, match=r"is no evaluation report"):
        hesnr_convert(source, "-o", tmp_path / "out.jsonl", "--outcomes", source)


def test_memory_does_not_grow_with_the_number_of_trajectories(tmp_path):
    import tracemalloc

    peaks = []
    for count in (20, 200):
        big = [{**row(f"r{i}"), "padding": "x" * 100_000} for i in range(count)]
        source = write(tmp_path / f"{count}.jsonl", *big)
        del big
        tracemalloc.start()
        trajectories.convert([source], str(tmp_path / "out.jsonl"), force=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_deduplicate_writes_the_first_of_each_content_and_inspect_says_how_many_there_are(tmp_path, capsys):
    other = row("c")
    other["messages"][0]["content"] = "Mend it."
    runs = write(tmp_path / "runs.jsonl", row("a"), row("b"), other, row("a", True))
    out = tmp_path / "out.jsonl"
    assert hesnr_convert(runs, "-o", str(out)) == 0
    printed = capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 4
    assert "2 of 4 trajectories repeat the content of another" in printed
    assert "--deduplicate" in printed
    assert "'a' (2 times)" in printed
    assert hesnr_convert(runs, "-o", str(out), "--force", "--deduplicate") == 0
    printed = capsys.readouterr().out
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "c"]
    assert "2 with the content of an earlier one" in printed
    assert "repeat the content" not in printed
