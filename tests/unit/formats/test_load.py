"""Sources and errors: files, globs, folders, lists, hub ids; what a user is told when nothing can be read."""

import gzip
import json
import sys
import types

import pytest

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.formats import ReadReport, load, read_trajectories


def row(name="run", resolved=None, **more):
    call = "Look.\n\n<function=bash>\n<parameter=command>ls</parameter>\n</function>"
    messages = [{"role": "user", "content": "Fix it."}, {"role": "assistant", "content": call}]
    return {"instance_id": name, "resolved": resolved, "messages": messages, **more}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def test_files_globs_folders_lists_and_gz_are_read_in_sorted_order(tmp_path):
    write(tmp_path / "b.jsonl", row("b"))
    write(tmp_path / "deep" / "a.jsonl", row("a"))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(row("c")).encode()))
    (tmp_path / "notes.txt").write_text("not read")
    assert [t.id for t in load(str(tmp_path))] == ["b", "c", "a"]
    assert [t.id for t in load(str(tmp_path / "*.jsonl"))] == ["b"]
    assert [t.id for t in load(str(tmp_path / "**" / "*.jsonl*"))] == ["b", "c", "a"]
    named = [str(tmp_path / "deep" / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert [t.id for t in load(named)] == ["a", "b"]


def test_a_json_list_of_rows_is_read_row_by_row(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([row("x"), row("y")], indent=1))
    assert [t.id for t in load(str(tmp_path / "rows.json"))] == ["x", "y"]


def test_shards_are_each_nth_of_what_is_left(tmp_path):
    path = write(tmp_path / "a.jsonl", *(row(str(i)) for i in range(9)))
    parts = [[t.id for t in load(path, limit=7, shard=f"{i}/3")] for i in (1, 2, 3)]
    assert parts == [["0", "3", "6"], ["1", "4"], ["2", "5"]]
    sampled = [t.id for t in load(path, sample=5, sample_seed=1)]
    parts = [[t.id for t in load(path, sample=5, sample_seed=1, shard=f"{i}/2")] for i in (1, 2)]
    assert parts == [sampled[::2], sampled[1::2]]
    with pytest.raises(DataError):
        load(path, limit=2, shard="3/3")


def test_a_missing_file_suggests_near_names(tmp_path):
    write(tmp_path / "trajectories.jsonl", row())
    with pytest.raises(
        DataError, match=r"there is no file or folder '.*trajectory\.jsonl'\. Did you mean 'trajectories\.jsonl'"
    ):
        load(str(tmp_path / "trajectory.jsonl"))
    with pytest.raises(DataError, match=r"the folder '.*deep' does not exist"):
        load(str(tmp_path / "nowhere" / "deep" / "x.jsonl"))
    with pytest.raises(DataError, match="no file matches"):
        load(str(tmp_path / "*.traj"))
    with pytest.raises(DataError, match="no trajectories were named"):
        load([])


def test_empty_files_and_folders_are_errors(tmp_path):
    (tmp_path / "empty.jsonl").write_text(" \n")
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty"):
        load(str(tmp_path / "empty.jsonl"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="holds no file that ends in"):
        load(str(tmp_path / "folder"))


def test_a_wrong_format_names_the_keys_seen_and_the_formats_supported(tmp_path):
    with pytest.raises(DataError) as error:
        load(write(tmp_path / "x.jsonl", {"question": "?", "reply": "!"}))
    assert "x.jsonl" in str(error.value)
    assert "an object with the keys 'question', 'reply'" in str(error.value)
    assert "swe-agent" in str(error.value)
    assert "chat-tools" in str(error.value)


def test_a_file_of_no_known_format_in_a_folder_is_counted_not_fatal(tmp_path):
    write(tmp_path / "runs.jsonl", row())
    (tmp_path / "settings.json").write_text('{"a": 1}')
    report = ReadReport()
    assert len(list(read_trajectories(str(tmp_path), report=report))) == 1
    assert report.skipped["unknown format"].count == 1
    assert "settings.json" in report.skipped["unknown format"].examples[0]


def test_bad_records_beyond_the_limit_stop_the_reading(tmp_path):
    path = write(tmp_path / "x.jsonl", row("ok"), *[{"bad": i} for i in range(30)])
    with pytest.raises(DataError, match=r"20 records cannot be read \(reading stopped there\)") as error:
        load(path)
    assert str(error.value).count("no known format") == 20


def test_a_malformed_normalised_line_names_line_and_field(tmp_path):
    record = {"format": "hesnr-trajectory-1", "id": "x", "messages": [{"role": "robot", "segments": []}]}
    with pytest.raises(DataError, match=r"x\.jsonl:1: messages\[0\]\.role is 'robot'"):
        load(write(tmp_path / "x.jsonl", record))
    newer = {"format": "hesnr-trajectory-2", "id": "x", "messages": []}
    with pytest.raises(DataError, match=r"'hesnr-trajectory-2', which this version cannot read"):
        load(write(tmp_path / "x.jsonl", newer))


def test_a_run_without_an_assistant_turn_is_counted_and_named(tmp_path):
    silent = {"format": "hesnr-trajectory-1", "id": "silent", "messages": []}
    path = write(tmp_path / "x.jsonl", row("talks"), silent)
    report = ReadReport()
    assert [t.id for t in read_trajectories(path, report=report)] == ["talks"]
    assert "x.jsonl:2: trajectory 'silent' has no assistant turn" in report.skipped["no assistant turn"].examples[0]
    with pytest.raises(DataError, match="'silent' has no assistant turn"):
        load(write(tmp_path / "y.jsonl", silent))


def test_only_resolved_keeps_solved_runs_or_says_how_many_there_were(tmp_path):
    path = write(tmp_path / "x.jsonl", row("a", False), row("b", 1), row("c"))
    assert [t.id for t in load(path, only_resolved=True)] == ["b"]
    path = write(tmp_path / "y.jsonl", row("a", False), row("c"))
    with pytest.raises(DataError, match="0 are resolved, 1 are not, 1 have no known outcome"):
        load(path, only_resolved=True)


def test_limit_stops_the_reading_before_later_errors(tmp_path):
    path = write(tmp_path / "x.jsonl", row("a"), row("b"), {"bad": 1})
    assert [t.id for t in load(path, limit=2)] == ["a", "b"]


def test_ids_that_repeat_get_a_suffix_and_a_warning(tmp_path, caplog):
    path = write(tmp_path / "x.jsonl", row("a"), row("b"), row("a"), row("a"))
    assert [t.id for t in load(path)] == ["a", "b", "a#2", "a#3"]
    assert "an id occurs more than once: 'a' (3 times); the later ones" in caplog.text
    assert "3 of 4 trajectories repeat the content of another word for word" in caplog.text


def test_skipped_records_are_logged_as_warnings(tmp_path, caplog):
    path = write(tmp_path / "x.jsonl", row("a"), {"bad": 1})
    assert len(load(path, on_error="skip")) == 1
    assert "skipped 1 (unknown format)" in caplog.text
    assert "x.jsonl:2" in caplog.text


def test_bad_records_are_refused_or_left_out_and_nothing_else(tmp_path):
    with pytest.raises(SettingsError, match="on_error is 'ignore'"):
        list(read_trajectories(write(tmp_path / "x.jsonl", row("a")), on_error="ignore"))


def _hub(monkeypatch, answer):
    module = types.ModuleType("datasets")
    module.load_dataset = answer
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_id_is_streamed_split_by_split_in_order(monkeypatch):
    def answer(name, config, split=None, streaming=False):
        assert (name, streaming) == ("owner/data", True)
        if config == "other":
            return [row("o")]
        parts = {"tool": [row("t")], "xml": [row("x1"), row("x2", True)]}
        return parts[split] if split else parts

    _hub(monkeypatch, answer)
    assert [t.id for t in load("owner/data")] == ["t", "x1", "x2"]
    assert [t.id for t in load("owner/data", split="xml", only_resolved=True)] == ["x2"]
    assert [t.id for t in load("owner/data", config="other", split="any")] == ["o"]


def test_a_hub_id_that_cannot_be_had_is_explained(monkeypatch):
    def answer(name, config, split=None, streaming=False):
        raise ConnectionError("no network\nlong story")

    _hub(monkeypatch, answer)
    with pytest.raises(DataError, match=r"'owner/data' cannot be read from the hub \(ConnectionError: no network\)"):
        load("owner/data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs `datasets`: pip install 'hesnr-tasks\[hf\]'"):
        load("owner/data")


def test_a_session_with_a_cut_last_line_is_read_and_the_cut_reported(tmp_path, fixtures):
    data = (fixtures / "codex" / "rollout.jsonl").read_bytes()
    (tmp_path / "s.jsonl").write_bytes(data[:-20])
    report = ReadReport()
    (trajectory,) = read_trajectories(str(tmp_path / "s.jsonl"), report=report)
    assert trajectory.id == "thread-1"
    assert any("last line is cut off" in text and "s.jsonl:20" in text for text in report.warnings)


def test_reading_twice_gives_the_same(fixtures):
    once, again = (list(read_trajectories(str(fixtures), on_error="skip")) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("name", "text"), [("notes.txt", "some notes"), ("notes.txt", "[a] note"), ("x.json", "notes")]
)
def test_a_file_without_json_is_not_said_to_be_cut_off(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"not a format that is read.*Parquet") as caught:
        load(str(tmp_path / name))
    assert "cut off" not in str(caught.value)
    assert '"on_error": "skip"' in str(caught.value)


def test_half_a_json_file_may_be_cut_off(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(row("a"))[:-5])
    with pytest.raises(DataError, match="may be cut off"):
        load(str(tmp_path / "x.json"))
