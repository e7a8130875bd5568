"""Bombs, special files, links and odd folders: read, or named and counted; never a hang, never gigabytes."""

import bz2
import gzip
import json
import lzma
import os
import socket
import zipfile
from pathlib import Path

import pytest

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.files import bounded
from hesnr_tasks.formats import ReadReport, read_trajectories
from hesnr_tasks.formats.outcomes import read_outcomes

MIB = 1 << 20


def row(name: str = "a", content: object = "hello", **more: object) -> dict:
    own = {"role": "assistant", "content": "<function=bash>\n<parameter=command>ls</parameter>\n</function>"}
    return {"id": name, "messages": [{"role": "user", "content": content}, own], **more}


def line(name: str = "a", content: object = "hello", **more: object) -> bytes:
    return json.dumps(row(name, content, **more)).encode() + b"\n"


def read(source: object, **settings: object) -> tuple[list, ReadReport]:
    report = ReadReport()
    return list(read_trajectories(source, report=report, on_error="skip", **settings)), report


def skipped(report: ReadReport) -> dict[str, int]:
    return {reason: entry.count for reason, entry in report.skipped.items()}


@pytest.fixture
def one_mib(monkeypatch):
    monkeypatch.setenv("HESNR_MAX_RECORD_MB", "1")


# --- compressed files -------------------------------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("folder", [True, False])
def test_compressed_lines_are_read_in_folders_too(suffix, folder, tmp_path):
    file = tmp_path / f"runs.jsonl{suffix}"
    file.write_bytes(PACKERS[suffix](line("a") + line("b", "x" * 100_000) + line("c")))
    kept, report = read(str(tmp_path if folder else file))
    assert [t.id for t in kept] == ["a", "b", "c"]
    assert (report.read, skipped(report)) == (3, {})


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_that_is_cut_off_is_reported(suffix, tmp_path):
    packed = PACKERS[suffix](b"".join(line(str(i), os.urandom(500).hex()) for i in range(300)))
    (tmp_path / f"runs.jsonl{suffix}").write_bytes(packed[: len(packed) // 2])
    _, report = read(str(tmp_path))
    assert sum(skipped(report).values()) >= 1


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("filling", [b" ", b"\n"], ids=["line", "blank"])
def test_a_bomb_is_refused_before_it_is_unpacked(suffix, filling, tmp_path, one_mib):
    file = tmp_path / f"bomb.jsonl{suffix}"
    file.write_bytes(PACKERS[suffix](line("first") + filling * (4 * MIB // len(filling))))
    assert file.stat().st_size < MIB // 8
    with pytest.raises(DataError, match=r"grows more than 200-fold|larger than 1 MiB|20"):
        list(read_trajectories(str(file)))
    assert sum(skipped(read(str(file))[1]).values()) >= 1


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_in_an_archive_is_refused(method, tmp_path, one_mib):
    file = tmp_path / "log.eval"
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("header.json", json.dumps({"eval": {"model": "m"}}))
        archive.writestr("samples/1_epoch_1.json", json.dumps({"id": 1, "epoch": 1, "messages": row()["messages"]}))
        archive.writestr("samples/2_epoch_1.json", b'{"id": "' + b"a" * (32 * MIB) + b'"}')
    kept, report = read(str(file))
    assert [t.id for t in kept] == ["1_epoch_1"]
    assert skipped(report) == {"too large": 1}


def test_many_members_that_grow_are_refused_together(tmp_path, one_mib):
    file = tmp_path / "log.eval"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"eval": {"model": "m"}}))
        for i in range(200):
            archive.writestr(f"samples/{i}_epoch_1.json", b'{"id": "' + b"a" * (MIB // 2) + b'"}')
    assert file.stat().st_size * 200 < 200 * MIB // 2
    _, report = read(str(file))
    assert "unreadable sample" in skipped(report)


def test_a_parquet_file_of_one_repeated_value_is_refused(tmp_path, one_mib):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * (8 * MIB)]}), file, compression="zstd")
    assert file.stat().st_size < MIB // 8
    with pytest.raises(DataError, match="grows more than"):
        list(read_trajectories(str(file)))
    parquet.write_table(pyarrow.table({"text": ["x" * (2 * MIB), "short"]}), file, compression="none")
    kept, report = read(str(file))
    assert (len(kept), skipped(report)) == (1, {"too large": 1})


# --- records beyond the limit -----------------------------------------------------------------------------------------


def test_a_line_beyond_the_limit_is_skipped_and_the_others_are_read(tmp_path, one_mib):
    file = tmp_path / "runs.jsonl"
    file.write_bytes(line("a") + line("long", "x" * (3 * MIB)) + line("b") + line("last", "x" * MIB).rstrip(b"\n"))
    kept, report = read(str(file))
    assert [t.id for t in kept] == ["a", "b"]
    assert skipped(report) == {"too large": 2}
    assert "runs.jsonl:2: the line is larger than 1 MiB; if that is meant, set HESNR_MAX_RECORD_MB" in str(
        report.skipped["too large"].examples[0]
    )


def test_a_first_line_beyond_the_limit_is_one_of_many(tmp_path, one_mib):
    file = tmp_path / "runs.jsonl"
    file.write_bytes(line("long", "x" * (3 * MIB)) + line("b"))
    kept, report = read(str(file))
    assert ([t.id for t in kept], skipped(report)) == (["b"], {"too large": 1})


def test_the_limit_is_a_setting(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    file.write_bytes(line("a", "x" * (3 * MIB)))
    monkeypatch.setenv("HESNR_MAX_RECORD_MB", "2")
    assert skipped(read(str(file))[1]) == {"too large": 1}
    monkeypatch.setenv("HESNR_MAX_RECORD_MB", "4")
    assert [t.id for t in read(str(file))[0]] == ["a"]
    for wrong in ("0", "-1", "many", "1e3", "99999999", "٣"):
        monkeypatch.setenv("HESNR_MAX_RECORD_MB", wrong)
        with pytest.raises(SettingsError, match="whole number of MiB"):
            read(str(file))


HOSTILE_JSON = {
    "deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "deep but within Python's limit": b'{"messages": ' + b"[" * 400 + b"]" * 400 + b"}\n",
    "a huge integer": b'{"id": ' + b"9" * 10_000 + b"}\n",
    "half a character as a key": b'{"\\ud800": 1}\n',
    "a huge literal": b'{"messages": "' + b"[(1,)," * 200_000 + b'"}\n',
    "a deep literal": b'{"messages": "[' + b"-" * 200_000 + b'1]"}\n',
    "a literal with a huge integer": b'{"messages": "[{\'role\': 0x' + b"f" * 20_000 + b'}]"}\n',
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_json_that_breaks_decoders_is_skipped(name, tmp_path):
    (tmp_path / "runs.jsonl").write_bytes(line("a") + HOSTILE_JSON[name] + line("b"))
    kept, report = read(str(tmp_path))
    assert [t.id for t in kept] == ["a", "b"]
    assert sum(skipped(report).values()) == 1


def test_a_key_that_is_there_twice_is_counted_with_its_text(tmp_path):
    text = line("a").replace(b'"content": "hello"', b'"content": "lost words", "content": "hello"')
    (tmp_path / "runs.jsonl").write_bytes(text + line("b"))
    kept, report = read(str(tmp_path))
    assert len(kept) == 2
    assert report.left_out == len("lost words")
    assert "the key 'content' is in one object more than once; only the last value is read" in report.warnings


@pytest.mark.parametrize("warnings", [5, True, "text", {"a": 1}, [1, None, ["x"]], None, [[]], 1.5])
def test_warnings_of_another_type_do_not_stop_a_folder(warnings, tmp_path):
    kept = list(read_trajectories([str(_normalised(tmp_path, {"warnings": warnings}))]))
    assert len(kept) == 1


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": [float("inf")]}, {"\ud800": "\udfff"}, {"x": 10**300}])
def test_a_converted_file_is_json_whatever_the_meta(meta, tmp_path):
    for trajectory in read_trajectories(str(_normalised(tmp_path, meta))):
        json.dumps(trajectory.to_json(), allow_nan=False, ensure_ascii=False).encode()


def _normalised(folder: Path, meta: object) -> Path:
    message = {"role": "assistant", "segments": [{"kind": "action", "text": "ls"}]}
    record = {"format": "hesnr-trajectory-1", "id": "a\ud800", "source": "\udfff", "messages": [message], "meta": meta}
    file = folder / "own.jsonl"
    file.write_text(json.dumps(record) + "\n")
    return file


def test_ids_are_unique_whatever_they_are(tmp_path):
    names = ["a", "a", "a#2", "a", "a#2", "a#3", "b"]
    (tmp_path / "runs.jsonl").write_bytes(b"".join(map(line, names)))
    kept, _ = read(str(tmp_path))
    assert len({t.id for t in kept}) == len(names)
    assert [t.id for t in kept][:2] == ["a", "a#2"]


# --- what is no plain file --------------------------------------------------------------------------------------------


@pytest.fixture
def special(tmp_path):
    folder = tmp_path / "special"
    folder.mkdir()
    os.mkfifo(folder / "fifo.jsonl")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket.jsonl"))
    (folder / "device.jsonl").symlink_to("/dev/zero")
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    (folder / "itself.jsonl").symlink_to("itself.jsonl")
    yield folder
    listening.close()


NAMES = ("fifo.jsonl", "socket.jsonl", "device.jsonl", "gone.jsonl", "itself.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_a_special_file_is_refused_at_once(name, special):
    with pytest.raises(DataError, match=name):
        list(read_trajectories(str(special / name)))
    for reader in (bounded.read_json, bounded.read_text, bounded.read_yaml, lambda p: read_outcomes([str(p)])):
        with pytest.raises(DataError, match=name):
            reader(special / name)


def test_special_files_in_a_folder_are_named_and_counted(special):
    (special / "good.jsonl").write_bytes(line("a"))
    kept, report = read(str(special))
    assert [t.id for t in kept] == ["a"]
    assert skipped(report) == {"special file": 3, "dangling link": 2}
    listed = " ".join(example for entry in report.skipped.values() for example in entry.examples)
    assert all(name in listed for name in NAMES)
    with pytest.raises(DataError, match="5 records cannot be read"):
        list(read_trajectories(str(special)))


def test_a_folder_named_like_a_file_is_read_through(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "x.jsonl" / "y.jsonl").write_bytes(line("a"))
    assert [t.id for t in read(str(tmp_path))[0]] == ["a"]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_linked_folders_are_read_once_and_circles_end(tmp_path):
    inside, outside = tmp_path / "runs", tmp_path / "elsewhere"
    (inside / "one").mkdir(parents=True)
    outside.mkdir()
    (inside / "one" / "a.jsonl").write_bytes(line("a"))
    (outside / "b.jsonl").write_bytes(line("b"))
    (inside / "linked").symlink_to(outside)
    (inside / "latest").symlink_to("one")
    (inside / "one" / "circle").symlink_to(inside)
    (inside / "again.jsonl").symlink_to("one/a.jsonl")
    kept, report = read(str(inside))
    assert sorted(t.id for t in kept) == ["a", "b"]
    assert "a link to a file that is read anyway is passed over: again.jsonl" in report.warnings


def test_files_of_other_kinds_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line("a"))
    for name in ("x.yaml", "y.yaml", "z.patch", "README", "runs.tar.gz"):
        (tmp_path / name).write_text("?")
    assert "files of other kinds are not read: 2 .yaml, 1 .patch, 1 README, 1 .gz" in _sorted(read(str(tmp_path))[1])


def _sorted(report: ReadReport) -> str:
    (text,) = (text for text in report.warnings if text.startswith("files of other kinds"))
    head, _, kinds = text.partition(": ")
    wanted = ["2 .yaml", "1 .patch", "1 README", "1 .gz"]
    return f"{head}: {', '.join(sorted(kinds.split(', '), key=wanted.index))}"


def test_names_no_file_can_have_are_errors_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 5000, "a\0b.jsonl", "~nobody-of-that-name/x.jsonl", ""):
        with pytest.raises(DataError):
            list(read_trajectories(name))


# --- YAML -------------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
MERGED = "a: &a {k0: 1, k1: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi")
)
YAML = {
    "aliases": BOMB,
    "merged": MERGED,
    "a circle": "a: &a [*a]\n",
    "deep": "[" * 5000,
    "deep flow": "{a: " * 3000,
    "python": "a: !!python/object/apply:os.system [id]\n",
    "an integer": f"a: {'9' * 9000}\n",
    "a list as a key": "? [a]\n: b\n",
    "a key twice": "a: 1\na: 2\n",
    "bytes": "a: \udcff\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "tabs": "a:\n\t- b",
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_a_trap_is_refused(name, tmp_path):
    file = tmp_path / "labels.yaml"
    file.write_bytes(YAML[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"labels\.yaml"):
        bounded.read_yaml(file)


def test_yaml_words_that_look_like_a_date_are_text(tmp_path):
    file = tmp_path / "labels.yaml"
    file.write_text("a: 2023-99-99\nb: 2023-09-09\n")
    assert bounded.read_yaml(file) == {"a": "2023-99-99", "b": "2023-09-09"}


def test_yaml_with_few_aliases_is_read(tmp_path):
    file = tmp_path / "labels.yaml"
    file.write_text("base: &base {stage: sft}\nstep1: {<<: *base, step: 1}\nstep2: {<<: *base, step: 2}\n")
    assert bounded.read_yaml(file)["step2"] == {"stage": "sft", "step": 2}
    file.write_text("")
    assert bounded.read_yaml(file) is None
