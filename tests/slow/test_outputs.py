"""Where files are written: through links, into devices, with the rights they had; nothing steers a terminal."""

import contextlib
import csv
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import pytest

from hesnr_tasks import cli
from hesnr_tasks.analysis.tables import Table, show
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.files.atomic import open_output, write_output

HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202eabc\u2066\x7f\r"


def source(folder: Path, name: str = "a") -> str:
    own = {"role": "assistant", "content": "<function=bash>\n<parameter=command>ls</parameter>\n</function>"}
    file = folder / "runs.jsonl"
    file.write_text(json.dumps({"id": name, "messages": [{"role": "user", "content": "x"}, own]}) + "\n")
    return str(file)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_convert_to_the_null_device_leaves_it_a_device(tmp_path, capsys):
    for path in ("/dev/null", tmp_path / "link"):
        if path != "/dev/null":
            path.symlink_to("/dev/null")
        before = Path("/dev/null").stat()
        assert cli.main(["convert", source(tmp_path), "-o", str(path)]) == 0
        assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
        assert Path("/dev/null").stat().st_ino == before.st_ino


def test_convert_replaces_an_existing_file_only_when_told_to(tmp_path, capsys):
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    out.write_text("precious")
    link.symlink_to("out.jsonl")
    for path in (out, link):
        assert cli.main(["convert", source(tmp_path), "-o", str(path)]) == 2
        assert out.read_text() == "precious"
        assert "is there already; --force replaces it" in capsys.readouterr().err
    assert cli.main(["convert", source(tmp_path), "-o", str(link), "--force"]) == 0
    assert link.is_symlink()
    assert json.loads(out.read_text())["id"] == "a"
    assert cli.main(["convert", str(out), "-o", str(out), "--force"]) == 0  # also of itself
    assert json.loads(out.read_text())["id"] == "a"


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    assert cli.main(["convert", source(tmp_path), "-o", str(pipe)]) == 0
    reader.join()
    assert json.loads(received[0])["id"] == "a"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "out.jsonl", tmp_path / "link.jsonl"
    for existing in (False, True):
        if existing:
            target.write_text("old")
        link.unlink(missing_ok=True)
        link.symlink_to("there/out.jsonl")
        write_output(link, "new\n")
        assert link.is_symlink()
        assert target.read_text() == "new\n"
        target.unlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o777])
def test_the_mode_of_a_file_is_kept(mode, tmp_path):
    file = tmp_path / "out.jsonl"
    file.write_text("old")
    file.chmod(mode)
    write_output(file, "new")
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_a_new_file_gets_what_the_umask_allows(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_output(tmp_path / "new" / "out.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "out.txt").stat().st_mode) == 0o666 & ~mask


def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    file = tmp_path / "out.txt"
    file.write_text("old")
    with contextlib.suppress(KeyError), open_output(file) as output:
        output.write(b"half")
        raise KeyError
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"out.txt": "old"}


def test_what_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path, tmp_path / "circle", tmp_path / ("x" * 300), "a\0b", "/proc/none/x", "/dev/null/x"):
        with pytest.raises(SettingsError, match="cannot be written"):
            write_output(path, "x")


# --- terminals and spreadsheets ---------------------------------------------------------------------------------------


def steers(text: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cf") and c != "\n" for c in text)


def test_no_escape_sequence_reaches_the_terminal(tmp_path, capsys):
    folder = tmp_path / f"run{HOSTILE}s"
    folder.mkdir()
    message = {"role": "assistant", "segments": [{"kind": "action", "text": HOSTILE}]}
    own = {"format": "hesnr-trajectory-1", "id": HOSTILE, "source": HOSTILE, "instance_id": HOSTILE}
    lines = [
        {**own, "messages": [message], "meta": {"warnings": [HOSTILE], "format": HOSTILE}},
        {**own, "messages": [message]},
        {HOSTILE: HOSTILE},
        {
            "messages": [
                {"role": HOSTILE, "content": [{"type": HOSTILE}], HOSTILE: 1},
                {"role": "assistant", "content": "x"},
            ]
        },
        {"format": "hesnr-trajectory-1", "id": "x", "fidelity": HOSTILE, "messages": []},
    ]
    file = folder / f"x{HOSTILE}.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    (folder / f"file.{HOSTILE}").write_text("")
    report = folder / f"results_{HOSTILE}.json"
    report.write_text(json.dumps({"results": {HOSTILE: 1}, "configs": {}}))
    for words in (
        ["convert", str(folder), "-o", str(folder / f"out{HOSTILE}"), "--on-error", "skip"],
        ["convert", str(folder), "-o", str(tmp_path / "out"), "--on-error", "fail"],
        ["convert", HOSTILE, "-o", str(tmp_path / "out")],
        ["inspect", str(folder)],
        ["report", str(report)],
        ["analyze", str(folder)],
    ):
        cli.main(words)
        shown = capsys.readouterr()
        assert shown.out + shown.err
        assert not steers(shown.out), (words[0], shown.out)
        assert not steers(shown.err), (words[0], shown.err)


def test_errors_and_log_lines_quote_nothing_that_steers(caplog):
    assert not steers(str(DataError(HOSTILE)))
    with caplog.at_level(logging.INFO, logger="hesnr_tasks"):
        logging.getLogger("hesnr_tasks").warning("%s: %d", HOSTILE, 3)
        logging.getLogger("hesnr_tasks").warning("100%")
    assert not any(steers(message) for message in caplog.messages)
    assert caplog.messages[-1] == "100%"


@pytest.mark.parametrize("start", "=+-@\t\r")
def test_no_cell_of_a_csv_is_a_formula_its_heading_included(start):
    table = Table(f"{start}t", "", [{f"{start}name": f"{start}value", "n": -1.5}])
    for tables in ([table], [table, table]):
        cells = [cell for row in csv.reader(show(tables, "csv", {}).splitlines()) for cell in row]
        assert not any(cell[:1] in "=+-@\t\r" for cell in cells if cell and cell != "-1.5")


# --- registering ------------------------------------------------------------------------------------------------------

REGISTER = "import hesnr_tasks.tasks as r; from pathlib import Path; r._lm_eval_tasks = lambda: Path({!r}); {}"


@pytest.mark.slow
def test_many_may_register_at_once_and_a_stray_file_does_not_matter(tmp_path):
    folder = tmp_path / "hesnr_tasks_registered"
    folder.mkdir()
    (folder / "stray.yaml").write_bytes(b"\xff not ours")
    (folder / "gone.yaml").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.yaml")
    at_once = "import threading; [t.start() for t in [threading.Thread(target=r.register) for _ in range(12)]]"
    running = [
        subprocess.Popen([sys.executable, "-c", REGISTER.format(str(tmp_path), at_once)], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [process.communicate()[1] for process in running] == [b""] * 4
    from hesnr_tasks.tasks import tasks_path

    ours = {path.name for path in folder.rglob("*yaml") if path.is_file()} - {"stray.yaml"}
    assert ours == {path.name for path in tasks_path().rglob("*yaml")}
    assert not list(folder.rglob(".*.tmp"))
    undone = subprocess.run([sys.executable, "-c", REGISTER.format(str(tmp_path), "r.unregister()")], check=True)
    assert undone.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["gone.yaml", "pipe.yaml", "stray.yaml"]


# --- the vocabulary beside score files --------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_flipped_bit_changes_a_spelling(tmp_path):
    schema = pytest.importorskip("hesnr_tasks.scores.schema")
    from hesnr_tasks.scores import StoreError

    spellings = [None if i % 7 == 0 else f"token{i}".encode() + bytes([i % 256]) for i in range(300)]
    file = tmp_path / "vocabulary.pq"
    data = schema.encode_vocabulary(spellings)
    file.write_bytes(data)
    assert schema.read_vocabulary(file) == spellings
    for i in range(400):
        bit = i * len(data) * 8 // 400
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        try:
            assert schema.read_vocabulary(file) == spellings
        except StoreError:
            continue
