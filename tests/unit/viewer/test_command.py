"""`hesnr inspect` as it is called."""

import argparse
import json

import pytest

from hesnr_tasks.cli import trajectories
from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from tests import tiny
from tests.unit.viewer import examples
from tests.unit.viewer.test_page import Parsed, data


def call(*words):
    parser = argparse.ArgumentParser()
    trajectories.inspect_arguments(parser)
    return trajectories.run_inspect(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "runs.jsonl"
    named = [examples.small(), examples.long(3000), examples.hostile()]
    path.write_text("".join(json.dumps(t.to_json()) + "\n" for t in named))
    return path


def test_all_trajectories_with_their_sum(source, capsys):
    assert call(source) == 0
    out = capsys.readouterr().out
    assert [line for line in out.split("\n") if line.startswith("====")] == [
        "==== small ====",
        "==== long ====",
        f"==== {examples.ATTACKS[0]} ====",
    ]
    assert "all 3 trajectories: context " in out
    assert "tokens" not in out.split("-- turn 1 --")[1].split("\n")[0]


def test_one_by_its_id_or_its_instance(source, capsys):
    for name in ("long", examples.ATTACKS[1]):
        call(source, "--id", name)
        assert capsys.readouterr().out.count("====") == 2
    with pytest.raises(DataError, match=r"none of the 3 trajectories .* id 'lung'\. Did you mean 'long'\?"):
        call(source, "--id", "lung")


def test_the_limit_is_told(source, capsys):
    call(source, "--limit", "2")
    assert "stopped after 2 trajectories; --limit shows more" in capsys.readouterr().err
    call(source, "--limit", "3")
    assert "stopped" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(source, "--limit", "0")
    assert "at least 1" in capsys.readouterr().err


def test_a_tokenizer_adds_counts(source, tmp_path, capsys):
    tiny.byte_level().save_pretrained(tmp_path / "tokenizer")
    call(source, "--id", "small", "--tokenizer", tmp_path / "tokenizer")
    assert "count" in capsys.readouterr().out.split("-- turn 1 --")[1].split("\n")[0]
    call(source, "--id", "small", "--tokenizer", tmp_path / "tokenizer", "--html", tmp_path / "out.html")
    shown = data(Parsed((tmp_path / "out.html").read_text(encoding="utf-8")), "trajectory-0")
    tokens = shown["columns"]
    assert sum(tokens["gap"].tolist()) + tokens["length"][-1] == len(shown["text"].encode("utf-16-le")) // 2


def test_html_is_one_file(source, tmp_path, capsys):
    out = tmp_path / "out.html"
    call(source, "--html", out)
    assert "3 trajectories" in capsys.readouterr().out
    assert [e["id"] for e in data(Parsed(out.read_text(encoding="utf-8")), "index")["trajectories"]][:2] == [
        "small",
        "long",
    ]


def test_what_cannot_be_done_is_told_in_words(source, tmp_path):
    with pytest.raises(HesnrError, match="cannot be written"):
        call(source, "--html", tmp_path)
    with pytest.raises(SettingsError, match="tokenizer"):
        call(source, "--tokenizer", tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"format": "hesnr-trajectory-1"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        call(bad)
    with pytest.raises(DataError, match=r"no trajectory was found in .*skipped 1"):
        call(bad, "--on-error", "skip")


def test_every_real_file_can_be_inspected(shared, tmp_path, capsys):
    call(shared, "--html", tmp_path / "out.html")
    entries = data(Parsed((tmp_path / "out.html").read_text(encoding="utf-8")), "index")["trajectories"]
    assert len(entries) == 8
    call(shared)
    out = capsys.readouterr().out
    assert out.count("\ntotal: ") == 8
    for entry in entries:
        assert f"kept {entry['kept']:,} of action" in out
