"""How memory and time grow with the number of trajectories: `python -m benchmarks.many_trajectories`.

lm-eval runs hesnr_swe, hesnr_swe_thought and hesnr_tool_entropy over 100, 300 and 1,000 trajectories (`--counts`) of
100,000 characters, about 25,000 tokens, each another; the model is a backend that answers at once, so that what is left
is reading, rendering, labelling, tokenising and summing. Every run is a process of its own; `--beside FOLDER` does each
with another working tree too. `--scores` keeps score files, `--log-samples` what lm-eval's option of that name keeps.

Printed: peak memory over that of the process with everything imported, processor seconds (which other programs disturb
less than the clock does), the share of the machine that other programs took meanwhile, and the values, which must not
depend on the tree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [os.environ.get("HESNR_TREE", str(ROOT)), str(ROOT)]

from benchmarks.machine import busy, watched  # noqa: E402

TASKS = ("hesnr_swe", "hesnr_swe_thought", "hesnr_tool_entropy")
MOST_SECONDS = 3600  # of one run


def write(path: Path, count: int, size: int) -> None:
    """`count` trajectories of about `size` characters, made of the turns of real ones where they are at hand."""
    from benchmarks.filters import real_turns
    from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory

    turns, rng = [turn for turn in real_turns() if sum(len(m.text) for m in turn) < size // 4], random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            messages, length = [Message("user", (Segment(Kind.CONTEXT, f"Task {i}: mend it."),))], 0
            while length < size:
                turn = rng.choice(turns)
                messages += turn
                length += sum(len(m.text) for m in turn)
            print(json.dumps(Trajectory(f"t{i}", tuple(messages)).to_json()), file=file)


def measure(path: str, scores: str, *, log_samples: bool) -> None:
    """One run in this process; prints what it took as JSON."""
    import lm_eval
    import numpy as np
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from hesnr_tasks import demo
    from hesnr_tasks.backends.base import Backend
    from hesnr_tasks.scores.schema import SequenceScores
    from hesnr_tasks.tasks import tasks_path

    folder = demo.ladder_paths()[0][1]

    class Instant(LM, Backend):
        """Answers at once: values that depend on the tokens alone."""

        tokenizer, bos, max_length = AutoTokenizer.from_pretrained(folder), None, 1 << 20
        batch_size = 1

        def describe(self):
            return {"backend": "instant", "model": "instant", "weights": "none"}

        def score(self, sequences, k, progress, skip=()):
            for index in range(len(sequences)):
                if index in skip:
                    continue
                ids, targets = sequences[index].ids, sequences[index].targets
                scale = 0.05 + (ids[targets] % 32)[:, None].astype(np.float32) / 16
                top = -scale * np.arange(1, k + 1, dtype=np.float32)
                top -= np.log(np.exp(top).sum(axis=1, keepdims=True)) + np.float32(0.01)
                rank = 1 + ids[targets] % k
                own = np.take_along_axis(top, rank[:, None] - 1, axis=1)[:, 0]
                yield index, SequenceScores(own, rank.astype(np.int32), top, np.tile(np.arange(k), (len(own), 1)))
                progress(len(ids))

        loglikelihood = loglikelihood_rolling = generate_until = None

    Instant.__abstractmethods__ = frozenset()
    manager = TaskManager(
        include_path=str(tasks_path()), include_defaults=False, metadata={"trajectories": path, "scores": scores}
    )
    memory, start, clock = peak(), time.process_time(), time.perf_counter()
    results = lm_eval.simple_evaluate(
        model=Instant(), tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=log_samples
    )
    values = {
        f"{task}/{name}": value
        for task in TASKS
        for name, value in sorted(results["results"][task].items())
        if isinstance(value, float)
    }
    took = {"seconds": time.process_time() - start, "clock": time.perf_counter() - clock, "mb": peak() - memory}
    print(json.dumps({**took, "before_mb": memory, "values": values}))


def peak() -> float:
    """The most memory that this process ever had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, metavar=("FILE", "SCORES"), help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--size", type=int, default=100_000, help="characters of a trajectory")
    parser.add_argument("--beside", default="", help="another working tree, for comparison")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--log-samples", action="store_true")
    settings = parser.parse_args()
    if settings.child:
        measure(*settings.child, log_samples=settings.log_samples)
        return
    trees = {"here": str(ROOT)} | ({"beside": settings.beside} if settings.beside else {})
    print(f"{'tree':>7} {'trajectories':>12} {'peak MB':>8} {'cpu s':>7} {'s/1000':>7} {'others':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for count in settings.counts:
            path, values = Path(folder) / f"{count}.jsonl", []
            write(path, count, settings.size)
            for tree, place in trees.items():
                scores = str(Path(folder) / f"scores-{tree}-{count}") if settings.scores else "none"
                command = [sys.executable, "-m", "benchmarks.many_trajectories", "--child", str(path), scores]
                command += ["--log-samples"] if settings.log_samples else []
                before, start = busy(), time.perf_counter()
                done = subprocess.run(
                    command, env={**os.environ, "HESNR_TREE": place}, cwd=ROOT, capture_output=True, text=True,
                    timeout=MOST_SECONDS, check=False,
                )  # fmt: skip
                if done.returncode:
                    print(f"{tree:>7} {count:12} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                    continue
                took = json.loads(done.stdout.strip().splitlines()[-1])
                others = max(0.0, busy() - before - took["seconds"]) / (time.perf_counter() - start) / os.cpu_count()
                speed = 1000 * took["seconds"] / count
                print(
                    f"{tree:>7} {count:12} {took['mb']:8.0f} {took['seconds']:7.1f} {speed:7.1f} {others:7.0%}",
                    flush=True,
                )
                values.append(took["values"])
            if any(other != values[0] for other in values):
                print("        the values DIFFER between the trees")
            path.unlink()


if __name__ == "__main__":
    with watched():
        main()
