"""Files in folders that several processes write into: complete or absent, and nothing left behind."""

import os
import resource
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hesnr_tasks.errors import HesnrError
from hesnr_tasks.files import atomic
from hesnr_tasks.files.atomic import ScratchFile, create_file, locked, remove_abandoned, replace_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replace_puts_the_new_bytes_and_leaves_nothing_beside_them(tmp_path):
    path = tmp_path / "a"
    for data in (b"old", b"new" * 100_000, b""):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == ["a"]


def test_create_keeps_what_another_writer_put_there(tmp_path, monkeypatch):
    assert create_file(tmp_path / "a", b"first")
    assert not create_file(tmp_path / "a", b"second")

    def no_links(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    assert not create_file(tmp_path / "a", b"third")
    assert create_file(tmp_path / "b", b"b")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a", "b"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a"
    replace_file(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (replace_file, create_file):
        with pytest.raises(OSError, match="No space left"):
            write(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_temporary_file_that_somebody_removed_is_written_once_more(tmp_path, monkeypatch):
    replace, calls = Path.replace, []

    def removed_first(self, target):
        calls.append(self)
        if len(calls) == 1:
            self.unlink()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", removed_first)
    replace_file(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "no folder" / "a", b"x")


def test_only_temporary_files_of_dead_or_very_old_writers_are_removed(tmp_path):
    token, host = "0" * 16, "".join(c if c.isalnum() and c.isascii() else "-" for c in socket.gethostname())
    files = {
        "dead": f".{host}.{2**22 + 5}.{token}.tmp",
        "own": f".{host}.{os.getpid()}.{token}.tmp",
        "elsewhere": f".other.{2**22 + 5}.{token}.tmp",
        "old": f".other.1.{token[1:]}1.tmp",
        "else": ".notes.tmp",
    }
    for name in files.values():
        (tmp_path / name).write_bytes(b"x")
    day_ago = time.time() - 25 * 3600
    os.utime(tmp_path / files["old"], (day_ago, day_ago))
    remove_abandoned(tmp_path)
    assert set(names(tmp_path)) == {files["own"], files["elsewhere"], files["else"]}
    remove_abandoned(tmp_path / "no folder")


def test_a_lock_excludes_and_is_released(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with locked(tmp_path), (tmp_path / ".lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with locked(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), locked(tmp_path / "no folder"):
        pass


# --- scratch files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [1 << 24, 100])
def test_a_scratch_file_gives_back_what_was_put_in_any_order_and_from_threads(in_memory, monkeypatch, tmp_path):
    """In memory or on the disk, where nothing of it can be seen."""
    monkeypatch.setattr(atomic, "_IN_MEMORY", in_memory)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch, rng, records = ScratchFile(), np.random.default_rng(0), []
    for i in range(60):
        value = {"text": f"\u4e2d\ud800 {i}" * i, "n": [i, None, 0.1 * i]}
        arrays = [
            rng.integers(0, 99, (i, 5)).astype(np.int32), np.zeros(0, np.uint64), rng.random(i % 7).astype(np.float32)
        ]  # fmt: skip
        records.append((scratch.put(value, *arrays), value, arrays))

    def same(record):
        place, value, arrays = record
        again, columns = scratch.get(place)
        assert again == value
        for column, array in zip(columns, arrays, strict=True):
            assert column.dtype == array.dtype
            assert np.array_equal(column, array)
            assert column.shape == array.shape
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, rng.permutation(np.array(records, dtype=object)).tolist() * 3))
    assert names(tmp_path) == []


def test_a_full_disk_is_said_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(atomic, "_IN_MEMORY", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = ScratchFile()
    place = scratch.put("before")
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(HesnrError, match=r"temporary files.*\n.*TMPDIR"):
            scratch.put(np.random.default_rng(0).random(2000).tolist())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    assert scratch.get(place) == ("before", [])
