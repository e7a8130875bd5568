"""What searching itself costs: a fork of a repository, and a step's machinery beside fork, command and model.

    python benchmarks/search.py [--files 300] [--steps 30]

The model is a script that answers at once, with four draws of 2 kB a step; the command is `true`. Needs Linux with user
namespaces and `pip install 'hesnr-tasks[search]'`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
FORK_LIMIT, STEP_LIMIT = 0.100, 0.050  # seconds


def timed(action, times):
    """Seconds of each of `times` calls, after one that does not count."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return found[1:]


def made(folder, files):
    """A git repository of that many files of Python source, about 6 kB each."""
    source = Path(argparse.__file__).read_text()
    for n in range(files):
        path = folder / f"package{n % 20}" / f"module{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source[n * 97 : n * 97 + 6000])
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=b", "-c", "user.email=b", "commit", "-qm", "b"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def forks(repository, store, times=20):
    """Median seconds of a fork with its two hashes, of a command, of a hash."""
    from hesnr_tasks.search.forks import open_forks

    state = open_forks(repository, store).begin()
    made_, fork = [], []
    for _ in range(times):
        began = time.perf_counter()
        made_.append(state.fork())
        fork.append(time.perf_counter() - began)
    command = timed(lambda: state.execute("true", timeout=10), times)
    hashed = timed(state.tree_hash, times)
    for each in (*made_, state):
        each.close()
    return tuple(map(statistics.median, (fork, command, hashed)))


def steps(repository, output, count):
    """Seconds of a step of the whole agent, less what its forks, commands and removals take: the machinery."""
    from hesnr_tasks.search.agent import EntropyGuidedAgent
    from hesnr_tasks.search.decide import SearchSettings
    from hesnr_tasks.search.forks import copies, open_forks
    from hesnr_tasks.search.gates import Threshold

    spent = [0.0]
    for name in ("fork", "execute", "close", "tree_hash", "diff"):
        counted(copies.CopyFork, name, spent)
    places = open_forks(repository, output / "store")
    agent = EntropyGuidedAgent(
        model(count), places, output, gate=Threshold(0.5), settings=SearchSettings(n=4),
        system_template="You mend.", instance_template="{{task}}", cost_limit=0.0,
    )  # fmt: skip
    spent[0] = 0.0
    began = time.perf_counter()
    agent.run("Mend it.")
    whole = time.perf_counter() - began
    assert len(agent.tree.draws) == count
    return whole / count, (whole - spent[0]) / count


def counted(kind, name, spent):
    """Add the time of every outermost call to `spent`."""
    method, depth = getattr(kind, name), [0]

    def wrapped(*args, **options):
        depth[0] += 1
        began = time.perf_counter()
        try:
            return method(*args, **options)
        finally:
            depth[0] -= 1
            inner = name == "tree_hash" and any(d[0] for d in DEPTHS if d is not depth)
            spent[0] += 0 if inner else time.perf_counter() - began

    DEPTHS.append(depth)
    setattr(kind, name, wrapped)


DEPTHS = []


def model(count):
    from minisweagent.models.test_models import DeterministicModel

    class Script(DeterministicModel):
        def sample(self, messages, n):
            step = sum(message["role"] == "assistant" for message in messages)
            words = (
                ["true", "true", "ls", "cat x"]
                if step < count - 1
                else ["echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"] * 4
            )
            thought = "x" * 2000
            said = {"role": "assistant", "content": thought}
            made_ = [said | {"extra": {"actions": [{"command": word}]}} for word in words]
            return made_[:n]

    return Script(outputs=[])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = made(Path(folder) / "repository", args.files)
        fork, command, hashed = forks(repository, Path(folder) / "forks")
        whole, machinery = steps(repository, Path(folder) / "out", args.steps)
    told = f"limit {FORK_LIMIT * 1000:.0f} ms, ratio {fork / FORK_LIMIT:.2f}"
    print(
        f"fork of {args.files} files, both trees hashed: {fork * 1000:.1f} ms ({told}); one hash {hashed * 1000:.1f} ms"
    )
    print(f"a command in its namespaces: {command * 1000:.1f} ms")
    told = f"limit {STEP_LIMIT * 1000:.0f} ms, ratio {machinery / STEP_LIMIT:.2f}"
    print(f"a step of {args.steps}: {whole * 1000:.1f} ms, of which the machinery {machinery * 1000:.1f} ms ({told})")
    return 0 if fork <= FORK_LIMIT and machinery <= STEP_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
