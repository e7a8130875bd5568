"""Working states: siblings and the original are apart, restored states are equal, no process survives."""

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hesnr_tasks.errors import SearchError, SettingsError
from hesnr_tasks.search.forks import copies, open_forks
from hesnr_tasks.search.forks.copies import CopyForks
from hesnr_tasks.search.forks.docker import DockerForks
from hesnr_tasks.search.forks.files import ForkMismatch, copy_tree, hash_tree, remove_tree
from hesnr_tasks.search.forks.process import run_group
from hesnr_tasks.search.forks.replay import ReplayForks

COMMIT = "git -c user.name=t -c user.email=t commit -qm y"
ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = Path("/var/tmp")  # of /tmp, which every state has of its own


pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.fixture
def repository(tmp_path):
    """A real git repository: an ignored file, a tracked but ignored one, a script, links, uncommitted changes."""
    folder = tmp_path / "repo"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "a.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("*.log\nbuild/\n")
    (folder / "kept.log").write_text("tracked\n")
    (folder / "run.sh").write_text("#!/bin/sh\necho run\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("pkg/a.py")
    (folder / "outside").symlink_to("/etc/hostname")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "add", "-f", "kept.log")
    git(folder, "-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "x")
    (folder / "secret.log").write_text("ignored\n")
    (folder / "pkg" / "a.py").write_text("x = 2  # not committed\n")
    return folder


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


def run(state, command, timeout=20):
    ran = state.execute(command, timeout=timeout)
    assert not ran.timed_out, ran
    return ran.output


@pytest.mark.parametrize("kind", ["copy", "replay"])
def test_siblings_and_the_original_are_apart(repository, tmp_path, kind):
    before = hash_tree(repository)
    forks = open_forks(repository, tmp_path / "store", kind)
    first = forks.begin()
    second = first.fork()
    at = shlex.quote(str(repository))
    run(
        first,
        f"echo changed > {at}/pkg/a.py; echo s > {at}/secret.log; chmod 600 run.sh; ln -sfn pkg link; mkdir build",
    )
    run(first, "echo mine > /tmp/mine; echo shm > /dev/shm/mine; echo new > new.txt; rm outside")
    seen = run(
        second, f"cat {at}/pkg/a.py {at}/secret.log link; stat -c %a run.sh; ls build new.txt /tmp/mine /dev/shm/mine"
    )
    assert "x = 2" in seen
    assert "ignored" in seen
    assert "755" in seen
    assert seen.count("No such file") == 4
    assert run(first, "cat /tmp/mine; readlink link; ls -d build").split() == ["mine", "pkg", "build"]
    assert hash_tree(repository) == before


def test_the_rest_of_the_disk_cannot_be_written(repository, tmp_path):
    state = CopyForks(repository, tmp_path / "store").begin()
    home = str(Path.home())
    told = run(
        state, f"touch {home}/hesnr-x /etc/hesnr-x /var/tmp/hesnr-x /usr/hesnr-x; umount {repository}; umount -a"
    )
    assert told.count("Read-only file system") == 4
    for folder in (home, "/etc", "/var/tmp", "/usr"):
        assert not (Path(folder) / "hesnr-x").exists()
    told = run(
        state,
        f"mount -o remount,rw / ; unshare -rm sh -c 'umount {repository}; mount -o remount,rw,bind / /; touch /etc/x'",
    )
    assert not Path("/etc/x").exists(), told


def test_a_store_outside_tmp_is_hidden(repository, tmp_path):
    store = OUTSIDE / f"hesnr-store-{os.getpid()}"
    try:
        forks = CopyForks(repository, store)
        first, second = forks.begin(), forks.begin()
        assert run(first, "echo 1 > new; pwd").strip() == str(repository)
        assert run(second, f"ls {store}; echo {store}/states/*").strip() == f"{store}/states/*"
    finally:
        remove_tree(store)


def test_a_python_that_lies_in_tmp_can_be_run_and_not_written(repository, tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "python").write_text("found")
        monkeypatch.setattr(sys, "prefix", folder)
        state = CopyForks(repository, tmp_path / "store").begin()
        assert run(state, f"cat {folder}/python; touch {folder}/x").startswith("foundtouch: cannot touch")
        assert [path.name for path in Path(folder).iterdir()] == ["python"]


def test_siblings_cannot_be_reached_through_open_files(repository, tmp_path):
    forks = CopyForks(repository, tmp_path / "store")
    first, second = forks.begin(), forks.begin()
    run(second, "echo secret > found")
    assert run(first, f"cat /proc/[0-9]*/fd/*/../../{second.token}/tree/found 2>/dev/null; echo end") == "end\n"


def test_what_other_branches_found_and_services_outside_are_hidden(repository, tmp_path, monkeypatch):
    output = OUTSIDE / f"hesnr-out-{os.getpid()}"
    output.mkdir(parents=True)
    try:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(os.path.relpath(output.parent / f"hesnr-s{os.getpid()}"))
        service = output.parent / f"hesnr-s{os.getpid()}"
        monkeypatch.setattr(copies, "_SERVICES", (service, output / "none"))
        (output / "r.patch").write_text("a patch")
        state = open_forks(repository, output / "work", hide=output).begin()
        assert run(state, f"ls {output}; test -S {service} && echo reached") == ""
        inner = repository_in(output / "inner")
        state = CopyForks(inner, output / "work2", hide=output).begin()
        assert run(state, "cat a") == "1\n", "a folder with the repository in it cannot be hidden"
    finally:
        listening.close()
        service.unlink()
        remove_tree(output)


def repository_in(folder):
    folder.mkdir()
    (folder / "a").write_text("1\n")
    return folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root may write them at all")
def test_settings_of_the_machine_cannot_be_written_by_root(repository, tmp_path):
    state = CopyForks(repository, tmp_path / "store").begin()
    held = Path("/proc/sys/kernel/core_pattern").read_text()
    told = run(state, f"printf %s {shlex.quote(held.strip())} > /proc/sys/kernel/core_pattern; umount /proc/sys")
    assert "Read-only file system" in told
    assert Path("/proc/sys/kernel/core_pattern").read_text() == held


def test_commands_see_the_users_path_and_identity(repository, tmp_path):
    state = CopyForks(repository, tmp_path / "store").begin()
    assert run(state, "pwd; id -u; git status --short pkg").split("\n")[:3] == [
        str(repository),
        str(os.getuid()),
        " M pkg/a.py",
    ]
    assert state.execute('echo "$ONE"', timeout=9, env={"ONE": "1", "PATH": os.environ["PATH"]}).output == "1\n"
    assert state.execute("exit 3", timeout=9).status == 3
    assert state.execute("kill -9 $$", timeout=9).status == -9
    assert state.execute("printf 'a\\r\\n\\377'", timeout=9).output == "a\n\ufffd"


def test_a_hanging_command_and_all_it_started_is_killed(repository, tmp_path):
    state = CopyForks(repository, tmp_path / "store").begin()
    mark = f"98{os.getpid()}"
    began = time.monotonic()
    ran = state.execute(f"echo begun; setsid sleep {mark} & (sleep {mark} &) ; sleep {mark}", timeout=1)
    assert time.monotonic() - began < 5
    assert ran.timed_out
    assert ran.output == "begun\n"
    assert not sleeping(mark)
    state.execute(f"setsid sleep {mark} > /dev/null 2>&1 &", timeout=9)
    assert not sleeping(mark), "a process outlived its command"


def sleeping(mark, wait=2.0):
    """Whether a `sleep mark` still runs, after some time to die."""
    until = time.monotonic() + wait
    while found := subprocess.run(["pgrep", "-f", f"^sleep {mark}"], capture_output=True).stdout:
        if time.monotonic() > until:
            return found
        time.sleep(0.02)
    return b""


def test_killing_the_search_kills_its_command(repository, tmp_path):
    mark = f"97{os.getpid()}"
    code = f"""
import signal
from pathlib import Path
from hesnr_tasks.search.forks import copies, open_forks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
forks = open_forks(Path({str(repository)!r}), Path({str(tmp_path / "store")!r}))
forks.begin().execute("setsid sleep {mark} & sleep {mark}", timeout=60)
"""
    for sign, status in ((signal.SIGKILL, -9), (signal.SIGINT, -2)):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            until = time.monotonic() + 20
            while not sleeping(mark, 0):
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(sign)
            assert process.wait(10) == status
        assert not sleeping(mark)


def test_the_diff_has_new_deleted_binary_and_mode_changes_and_applies(repository, tmp_path):
    forks = CopyForks(repository, tmp_path / "store")
    state = forks.begin()
    assert state.diff() == ""
    run(
        state,
        "echo 'x = 3' > pkg/a.py; printf '\\0\\377b' > data.bin; rm run.sh; chmod +x pkg/a.py; echo more >> kept.log",
    )
    run(
        state,
        f"echo no > other.log; ln -s pkg new-link; printf 'caf\\351\\n' > latin.txt; git add -A; {COMMIT}",
    )
    patch = state.diff()
    assert "not committed" in patch, "the state the search began with is the base, not the last commit"
    assert "other.log" not in patch
    again = forks.begin()
    again.apply(patch)
    for name in ("pkg/a.py", "data.bin", "kept.log", "new-link", "latin.txt"):
        path = again.folder / "tree" / name
        assert path.lstat().st_mode == (state.folder / "tree" / name).lstat().st_mode
        assert path.is_dir() or path.read_bytes() == (state.folder / "tree" / name).read_bytes()
    assert not (again.folder / "tree" / "run.sh").exists()
    assert again.diff() == patch
    held = again.tree_hash()
    with pytest.raises(SearchError, match="does not apply"):
        again.apply(patch)
    assert again.tree_hash() == held


def test_filters_and_hooks_of_a_repository_do_not_run(repository, tmp_path):
    state = CopyForks(repository, tmp_path / "store").begin()
    run(state, "git config filter.bad.clean 'touch /tmp/ran'; git config core.fsmonitor 'touch /tmp/ran'")
    run(state, "echo '* filter=bad diff=bad' > .gitattributes; echo 1 > f; rm -f /tmp/ran")
    assert "+1" in state.diff()
    assert run(state, "ls /tmp/ran").count("No such file") == 1
    assert not Path("/tmp/ran").exists()


def test_settings_of_repositories_within_do_not_run(repository, tmp_path):
    inner = repository / "inner"
    inner.mkdir()
    (inner / "f").write_text("1\n")
    git(inner, "init", "-q")
    git(inner, "add", "-A")
    git(inner, "-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "x")
    git(repository, "add", "inner")
    state = CopyForks(repository, tmp_path / "store").begin()
    ran = tmp_path / "ran"
    run(state, f"cd inner; git config filter.bad.clean 'touch {ran}; cat'; echo '* filter=bad' > .gitattributes")
    run(state, "sleep 1; touch inner/f; echo 1 > new")
    assert "+1" in state.diff()
    assert not ran.exists()


def test_repositories_that_a_command_begins_do_not_stop_the_diff(repository, tmp_path):
    state = CopyForks(repository, tmp_path / "store").begin()
    run(state, "git init -q begun; echo 1 > begun/f; git init -q pkg; echo 'x = 3' > pkg/a.py; echo 1 > pkg/b.py")
    changed = [line for line in state.diff().splitlines() if line.startswith("diff")]
    assert changed == ["diff --git a/pkg/a.py b/pkg/a.py", "diff --git a/pkg/b.py b/pkg/b.py"]


def test_a_file_that_became_a_pipe_is_gone_from_the_diff(repository, tmp_path):
    state = CopyForks(repository, tmp_path / "store").begin()
    run(state, "rm pkg/a.py run.sh; mkfifo pkg/a.py other; echo 1 > new")
    changed = [line for line in state.diff().splitlines() if line.startswith(("diff", "deleted", "new"))]
    assert changed == [
        "diff --git a/new b/new", "new file mode 100644",
        "diff --git a/pkg/a.py b/pkg/a.py", "deleted file mode 100644",
        "diff --git a/run.sh b/run.sh", "deleted file mode 100755",
    ]  # fmt: skip


def test_a_copy_that_differs_is_refused(repository, tmp_path):
    forks = CopyForks(repository, tmp_path / "store")
    state = forks.begin()
    held = state.tree_hash()
    assert forks.reopen(state.token, held).tree_hash() == held
    run(state, "echo 1 >> pkg/a.py")
    with pytest.raises(ForkMismatch, match="tree hash differs"):
        forks.reopen(state.token, held)
    (forks.store / "base" / "tree" / "pkg" / "a.py").write_text("tampered\n")
    with pytest.raises(ForkMismatch, match="differs"):
        forks.begin()
    assert forks.tokens() == [state.token], "the refused copy was not removed"


@pytest.mark.parametrize(
    "change",
    [
        "echo 1 > new",
        "chmod 700 run.sh",
        "ln -sfn other link",
        "mkdir empty",
        "rm kept.log",
        "mkfifo pipe",
        "echo 1 > secret.log",
        "touch /tmp/x",
    ],
)
def test_the_hash_sees(repository, tmp_path, change):
    state = CopyForks(repository, tmp_path / "store").begin()
    before = state.tree_hash()
    twin = state.fork()
    assert twin.tree_hash() == before
    run(state, change)
    assert state.tree_hash() != before
    assert state.fork().tree_hash() == state.tree_hash()


def test_replay_takes_the_diff_then_the_commands_then_gives_up(repository, tmp_path):
    forks = ReplayForks(repository, tmp_path / "store")
    state = forks.begin()
    run(state, "echo 1 > new; date +%N >> pkg/a.py")
    assert run(state.fork(), "cat new pkg/a.py") == run(state, "cat new pkg/a.py"), "by its diff: a replay would differ"
    state = forks.begin()
    run(state, "echo 1 > /tmp/kept; echo 2 > ignored.log")
    twin = state.fork()
    assert run(twin, "cat /tmp/kept ignored.log") == "1\n2\n", "by its commands: no diff has ignored files"
    assert forks.reopen(twin.token, twin.tree_hash()).fork().tree_hash() == twin.tree_hash()
    run(state, "date +%N > now.log")
    with pytest.raises(ForkMismatch, match="neither its diff nor its commands"):
        state.fork()


def test_read_only_folders_can_be_copied_and_removed(repository, tmp_path):
    forks = CopyForks(repository, tmp_path / "store")
    state = forks.begin()
    run(state, "chmod 500 pkg; chmod 400 pkg/a.py")
    twin = state.fork()
    assert stat.S_IMODE((twin.folder / "tree" / "pkg").stat().st_mode) == 0o500
    for each in (state, twin):
        each.close()
    assert forks.tokens() == []


@pytest.mark.parametrize("place", ["repo", "repo/out", "."])
def test_output_and_repository_must_be_apart(repository, tmp_path, place):
    with pytest.raises(SearchError, match="contain one another"):
        CopyForks(repository, tmp_path / place)


def test_unknown_kinds_and_missing_folders_are_errors(repository, tmp_path):
    with pytest.raises(SettingsError, match="Did you mean 'copy'"):
        open_forks(repository, tmp_path / "store", "copi")
    with pytest.raises(SettingsError, match="--image"):
        open_forks(repository, tmp_path / "store", "docker")
    with pytest.raises(SearchError, match="there is no folder"):
        open_forks(tmp_path / "none", tmp_path / "store")


def test_without_namespaces_the_alternatives_are_named(repository, tmp_path):
    """In a namespace whose limit of further user namespaces is 0."""
    given = f"Path({str(repository)!r}), Path({str(tmp_path / 's')!r})"
    code = f"from pathlib import Path; from hesnr_tasks.search.forks import open_forks; open_forks({given})"
    script = f"echo 0 > /proc/sys/user/max_user_namespaces; exec {sys.executable} -c {shlex.quote(code)}"
    done = subprocess.run(["unshare", "-Ur", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "no isolated place" in done.stderr
    assert "--fork docker" in done.stderr


def test_a_full_disk_is_an_error_and_leaves_nothing(repository, tmp_path):
    (repository / "big").write_bytes(os.urandom(600_000))
    small = tmp_path / "small"
    small.mkdir()
    code = f"""
from pathlib import Path
from hesnr_tasks.errors import SearchError
from hesnr_tasks.search.forks import copies, open_forks
forks = open_forks(Path({str(repository)!r}), Path({str(small)!r}) / "store")
one = forks.begin()
try:
    one.fork()
except SearchError as error:
    print(error)
print(forks.tokens() == [one.token], one.execute("head -c 2000000 /dev/zero > fill", timeout=9).output)
"""
    script = f"mount -t tmpfs -o size=2300k none {small}; exec {sys.executable} -c {shlex.quote(code)}"
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "No space left on device" in done.stdout.split("True")[0], done
    assert "Free some space" in done.stdout
    assert "No space left on device" in done.stdout.split("True")[1], done


def test_much_output_is_cut_not_kept(monkeypatch):
    monkeypatch.setattr("hesnr_tasks.search.forks.process.LIMIT", 1000)
    ran = run_group(["sh", "-c", "yes | head -c 1000000; echo end >&2; exit 4"], timeout=20)
    assert len(ran.output) == 1000
    assert ran.status == 4


def test_an_unreadable_source_is_named(tmp_path):
    with pytest.raises(SearchError, match="No such file"):
        copy_tree(tmp_path / "none", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


FAKE = """#!/bin/sh
# Docker's commands over folders: a container is a folder, an image is another
set -f
echo "$@" >> {log}
case "$1" in
  run) while [ "$1" != sleep ]; do image=$1; shift; done; id=c$(ls {at} | wc -l); cp -a {at}/$image {at}/$id; echo $id;;
  commit) cp -a {at}/$3 {at}/$4; test -e {at}/spoil && echo 1 > {at}/$4/spoilt; true;;
  exec) shift; while :; do case "$1" in -w|-e) shift 2;; -i) shift;; *) break;; esac; done; cd {at}/$1; shift
    exec "$@";;
  rm|rmi) rm -rf {at}/$3;;
  restart) echo restarted;;
  *) echo "unknown command $1" >&2; exit 125;;
esac
"""


@pytest.fixture
def docker(tmp_path, repository):
    """A program with Docker's arguments, for commands only: no daemon is needed."""
    at, log = tmp_path / "containers", tmp_path / "log"
    at.mkdir()
    copy_tree(repository, at / "image")
    program = tmp_path / "docker"
    program.write_text(FAKE.format(at=at, log=log))
    program.chmod(0o755)
    return DockerForks("image", Path("/testbed"), str(program)), log, at


def test_docker_commands(docker):
    forks, log, at = docker
    first = forks.begin()
    assert first.diff() == ""
    assert first.execute("echo 5 > pkg/a.py; echo new > n; exit 3", timeout=9, env={"A": "b c"}).status == 3
    second = first.fork()
    assert second.tree_hash() == first.tree_hash()
    second.execute("echo 6 > pkg/a.py", timeout=9)
    assert second.tree_hash() != first.tree_hash()
    patch = first.diff()
    assert "+5" in patch
    assert "+new" in patch
    third = forks.begin()
    third.apply(patch)
    assert third.diff() == patch
    assert first.execute("sleep 5", timeout=0.3).timed_out
    with pytest.raises(ForkMismatch):
        forks.reopen(second.token, first.tree_hash())
    (at / "spoil").touch()
    with pytest.raises(ForkMismatch, match="has other files"):
        first.fork()
    first.close()
    forks.close()
    calls = log.read_text().splitlines()
    assert calls[0] == "run -d --init -w /testbed image sleep 24h"
    assert f"exec -w /testbed -e A=b c {first.token} sh -c echo 5 > pkg/a.py; echo new > n; exit 3" in calls
    assert f"restart -t 0 {first.token}" in calls
    assert sum(call.startswith("commit -q") for call in calls) == 2
    assert sum(call.startswith("rmi -f hesnr-") for call in calls) == 2


def test_docker_that_is_not_there_or_fails_is_an_error(docker, tmp_path):
    with pytest.raises(SearchError, match="cannot be started"):
        DockerForks("image", Path("/x"), str(tmp_path / "nothing")).begin()
    forks, _, _ = docker
    with pytest.raises(SearchError, match="unknown command pull"):
        forks.call("pull", "x")


def test_notes_of_replay_are_json(repository, tmp_path):
    forks = ReplayForks(repository, tmp_path / "store")
    state = forks.begin()
    run(state, "true")
    assert json.loads((forks.store / "commands" / f"{state.token}.json").read_text()) == [["true", 20]]
    state.close()
    assert not list((forks.store / "commands").iterdir())
