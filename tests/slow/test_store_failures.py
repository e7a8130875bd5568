"""What must not be lost is not lost: killed writers, racing writers, damaged files, full disks, read-only folders."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest

from hesnr_tasks.scores import ScoreStore, StoreError
from tests import ROOT
from tests.unit.scores import made


def run_main(*words):
    command = [sys.executable, "-m", "tests.slow.crash_main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def run_code(code, *words, before=()):
    """Python in a process of its own; returns what it printed."""
    command = [*before, sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- processes that die, processes that meet --------------------------------------------------------------------------


def test_a_writer_killed_at_random_moments_loses_nothing_it_wrote(tmp_path):
    """Every file is whole after each kill, what was acknowledged is there, and the end is as if nothing happened."""
    results = run_main("kill", tmp_path / "killed", 12, 7)
    assert results["rounds"] == 12
    assert results["acknowledged"] >= 12
    whole = made.filled(tmp_path / "whole", range(12))
    killed = ScoreStore.open(tmp_path / "killed", made.signature())
    assert whole.keys() == killed.keys()
    assert all(made.same(whole.read(key), killed.read(key)) for key in whole)


def test_writers_at_once_lose_nothing_of_each_other_and_two_kinds_never_mix(tmp_path):
    assert run_main("race", tmp_path, 6, 3) == {"rounds": 6, "refused": 12}


def test_a_half_written_file_is_ignored_and_removed(tmp_path):
    store = made.filled(tmp_path, [1, 2])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    half = tmp_path / f".{host}.{gone.pid}.0123456789abcdef.tmp"
    half.write_bytes((tmp_path / f"{1:064x}.parquet").read_bytes()[:500])
    assert store.keys() == [f"{1:064x}", f"{2:064x}"]
    ScoreStore.open(tmp_path, made.signature())
    assert not half.exists()


# --- files that were damaged ------------------------------------------------------------------------------------------


def test_a_damaged_byte_is_never_read_as_another_number(tmp_path):
    """300 random places: either the same bits come back, or a StoreError; never anything else."""
    store = made.filled(tmp_path, [5])
    key = f"{5:064x}"
    path, rng, noticed = tmp_path / f"{key}.parquet", random.Random(3), 0
    whole, text = path.read_bytes(), made.text_of(5).rendered
    messages = set()
    for _ in range(300):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        try:
            assert made.same(store.read(key), made.scores_of(5))
            assert store.text(key).rendered == text
            assert store.entry(key).sources[0].resolved is True
        except StoreError as error:
            noticed += 1
            messages.add(str(error))
    assert noticed > 200
    assert all("is damaged" in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named_scored_again_and_replaced(tmp_path, caplog, share):
    store = made.filled(tmp_path, [1, 2])
    path = tmp_path / f"{1:064x}.parquet"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StoreError, match="Run the scoring command again"):
        store.read(f"{1:064x}")
    assert store.get(f"{1:064x}", made.BOTH, 10) is None
    assert path.name in caplog.text
    assert made.same(store.read(f"{2:064x}"), made.scores_of(2))
    made.put(store, 1)
    assert made.same(store.read(f"{1:064x}"), made.scores_of(1))


# --- disks ------------------------------------------------------------------------------------------------------------

WRITE_UNTIL_IT_FAILS = """
import sys
from hesnr_tasks.scores import ScoreStore, StoreError
from tests.unit.scores import made
import resource
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
store, error = ScoreStore.open(sys.argv[1], made.signature()), None
for seed in range(300):
    try:
        made.put(store, seed)
    except StoreError as caught:
        error = caught
        break
left = [path.name for path in store.folder.glob('.*.tmp')]
good = all(made.same(store.read(key), made.scores_of(int(key, 16))) for key in store)
print(len(store), seed, left, good, error)
"""


def test_a_full_disk_keeps_what_was_written_and_says_what_to_do(tmp_path):
    """A real file system of 400 kB, in a mount of its own."""
    mount = 'mount -t tmpfs -o size=400k none $0 && exec "$@"'
    before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no one mount a small file system of his own")
    messages = run_code(WRITE_UNTIL_IT_FAILS, tmp_path, before=before)
    count = int(messages.split()[0])
    assert 5 < count < 300
    assert messages.startswith(f"{count} {count} [] True no room to write ")
    assert "No space left on device" in messages
    assert "start the same command again: it goes on there" in messages


def test_a_write_cut_short_by_a_limit_leaves_nothing_behind(tmp_path):
    messages = run_code(WRITE_UNTIL_IT_FAILS, tmp_path, 5_000)
    assert messages.startswith("0 0 [] True no room to write ")


def test_a_read_only_folder_can_be_read_and_says_so_when_written(tmp_path):
    """Nobody's eyes: root may write anywhere, so the work is done as an ordinary user."""
    code = """
import os, sys, tempfile, pathlib
from hesnr_tasks.scores import ScoreStore, StoreError
from tests.unit.scores import made
folder = pathlib.Path(tempfile.mkdtemp()); os.chmod(folder, 0o755)
made.filled(folder / "s", [1]); os.chmod(folder / "s", 0o555); os.chmod(folder, 0o555)
ScoreStore.open(folder / "s").read(f"{1:064x}")  # everything is imported while it may be
if os.getuid() == 0:
    os.setuid(65534)
store = ScoreStore.open(folder / "s", made.signature())
print(made.same(store.get(f"{1:064x}", made.BOTH, 10), made.scores_of(1)))
new = lambda: ScoreStore.open(folder / "new", made.signature())
for work in (lambda: made.put(store, 2), lambda: made.put(store, 1), new):
    try: work()
    except StoreError as error: print(error)
print(made.same(store.read(f"{1:064x}"), made.scores_of(1)), len(store))
"""
    lines = run_code(code).splitlines()
    assert lines[0] == "True"
    assert lines[-1] == "True 1"
    assert len(lines) == 5
    for line in lines[1:4]:
        assert "Permission denied" in line
        assert '"scores": "FOLDER" in --metadata' in line


# --- size -------------------------------------------------------------------------------------------------------------


def test_real_scores_take_at_most_sixty_bytes_a_token(tmp_path):
    """Thoughts and actions of the demo trajectories under a small trained model: text and all token ids included."""
    from tests.unit.scores.scored import score_demo

    store = score_demo(tmp_path)
    scored = sum(store.entry(key).scored for key in store)
    size = sum(path.stat().st_size for path in tmp_path.glob("store/*.parquet"))
    assert scored > 1000
    assert size / scored <= 60
