"""Run by the Python that has vLLM: scores passages with the real engine on CPU and provokes its failures.

python server_engine.py MODEL FOLDER: reads FOLDER/passages.npz, writes FOLDER/scores.npz and FOLDER/told.json.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def engine_process():
    """The id of vLLM's engine process, a descendant of this one."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"EngineCore" in (folder / "cmdline").read_bytes() and os.getpid() in _ancestors(int(folder.name)):
                return int(folder.name)
    raise RuntimeError("no engine process found")


def _ancestors(pid):
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        yield pid


def error_of(action):
    """The message of the `ScoringError` that `action` raises."""
    from hesnr_tasks.errors import ScoringError

    try:
        action()
    except ScoringError as error:
        return str(error)
    return "no error"


def kill_engine():
    os.kill(engine_process(), signal.SIGKILL)
    time.sleep(1)


def score_all(backend, passages, k=10):
    read = []
    results = dict(backend.score(passages, k, read.append))
    assert sum(read) == sum(len(p.ids) for p in passages)
    return results


def main(model, folder):
    from lm_eval.models.vllm_causallms import VLLM
    from vllm import SamplingParams

    from hesnr_tasks.backends import backend_for, vllm
    from hesnr_tasks.backends.base import TokenSequence

    stored = np.load(folder / "passages.npz")
    names = sorted({name.split("/")[0] for name in stored.files})
    passages = [TokenSequence(name, stored[f"{name}/ids"], stored[f"{name}/targets"]) for name in names]
    context = 1 << max(len(p.ids) for p in passages).bit_length()
    settings = {"dtype": "float32", "max_length": context, "max_num_batched_tokens": 1000, "max_num_seqs": 8}
    lm = VLLM(pretrained=model, enforce_eager=True, **settings)
    backend = backend_for(lm)
    reported = {"context": context, "max_length": backend.max_length, "bos": backend.bos}
    reported["describe"] = backend.describe()
    arrays = {}
    started = time.perf_counter()
    runs = {"flat": score_all(backend, passages)}
    reported["seconds"] = time.perf_counter() - started
    runs["again"] = score_all(backend, passages[::-1])  # now every prefix is cached; in another order
    flat = vllm._sampling
    vllm._sampling = lambda k: SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=k, detokenize=False)
    runs["dicts"] = score_all(backend, passages)  # what vLLM returned before it had the flat form
    vllm._sampling = flat
    for run, results in runs.items():
        for index, scores in results.items():
            columns = {field: value for field, value in scores._asdict().items() if value is not None}
            name = passages[len(passages) - 1 - index if run == "again" else index].name
            arrays |= {f"{run}/{name}/{field}": value for field, value in columns.items()}
    np.savez(folder / "scores.npz", **arrays)
    reported["skipping"] = sorted(index for index, _ in backend.score(passages, 10, lambda _: None, skip={0}))
    reported["k"] = error_of(lambda: score_all(backend, passages, k=25))
    too_long = TokenSequence("long", np.resize(passages[0].ids, backend.max_length + 1), np.array([5], np.int32))
    reported["too long"] = error_of(lambda: score_all(backend, [too_long]))
    longest = TokenSequence("longest", too_long.ids[:-1], np.array([5], np.int32))
    reported["longest"] = error_of(lambda: score_all(backend, [longest]))
    kill_engine()
    reported["dead"] = error_of(lambda: score_all(backend, passages))
    (folder / "told.json").write_text(json.dumps(reported, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
