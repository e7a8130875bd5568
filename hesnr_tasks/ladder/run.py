"""Score every checkpoint of a ladder with the real `lm_eval`, one process each; what is done is not done again.

A checkpoint's results lie in OUTPUT/runs/NAME. `ladder.json` there remembers the command that made them: the same
command is not run twice, another one is. A run that was stopped goes on at the trajectory where it was, since the
score files of our tasks do.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.bounded_io import read_json
from hesnr_tasks.errors import DataError, HesnrError, SettingsError, nearest
from hesnr_tasks.ladder.schema import Checkpoint, Ladder

__all__ = ["Job", "JobResult", "free_disk", "jobs", "missing_on_hub", "run_command", "run_jobs", "run_jobs_on_ray"]


class Job(NamedTuple):
    """One checkpoint to be scored: its name, the lm_eval command without --output_path, and where its results go."""

    name: str
    command: tuple[str, ...]
    folder: Path
    model: str
    revision: str
    cwd: str = "."  # what paths of the command are relative to
    inputs: tuple[str, ...] = ()  # the model and the trajectories, where they are files or folders


class JobResult(NamedTuple):
    """What became of a job: "scored", "scored before" or "failed", the seconds it took, and why it failed."""

    name: str
    state: str
    seconds: float
    error: str = ""


def jobs(ladder: Ladder, output: Path, *, only: Sequence[str] = (), extra: Sequence[str] = ()) -> list[Job]:
    """The lm_eval command of every checkpoint of a ladder.

    An entry with `sft_of` and downstream scores but no `model` only judges another checkpoint: it is not scored.

    Args:
        ladder: with trajectories, tasks and model settings.
        output: folder of the results.
        only: names of checkpoints; empty: all.
        extra: further arguments of lm_eval.

    Raises:
        SettingsError: a name that is not in the ladder, or a model or folder that lm_eval's arguments cannot hold.
    """
    output = output.absolute()
    names = [checkpoint.name for checkpoint in ladder.checkpoints]
    for name in only:
        if name not in names:
            raise SettingsError(f"--only {name!r} is no checkpoint of the ladder; there are: {', '.join(names)}")
    scored = [c for c in ladder.checkpoints if c.model or not (c.sft_of and c.downstream)]
    todo = [_job(ladder, checkpoint, output, extra) for checkpoint in scored]
    if len({job.folder for job in todo}) < len(todo):
        raise SettingsError("two checkpoints of the ladder have names that differ only in signs; rename one")
    return [job for job in todo if not only or job.name in only]


def _job(ladder: Ladder, checkpoint: Checkpoint, output: Path, extra: Sequence[str]) -> Job:
    model = checkpoint.model or checkpoint.name
    arguments: dict[str, Any] = {("pretrained" if ladder.model != "local-completions" else "model"): model}
    arguments |= {
        name: value for name, value in (("revision", checkpoint.revision), ("tokenizer", checkpoint.tokenizer)) if value
    }
    arguments |= ladder.model_args
    for name, value in arguments.items():
        if re.search("[,=]", str(value)):
            raise SettingsError(
                f"{checkpoint.name}: {name} {str(value)!r} has ',' or '=' in it, and --model_args cannot hold that"
            )
    metadata = dict(ladder.metadata)
    if ladder.trajectories:
        metadata["trajectories"] = list(ladder.trajectories)
    command = [sys.executable, "-m", "hesnr_tasks.cli", "eval", "--model", ladder.model]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--tasks", ",".join(ladder.tasks)]
    if metadata:
        command += ["--metadata", json.dumps(metadata)]
    safe = re.sub(r"[^\w.@+-]", "_", checkpoint.name)
    return Job(
        checkpoint.name,
        (*command, *ladder.lm_eval_args, *extra),
        output / "runs" / safe,
        model,
        checkpoint.revision,
        str(Path.cwd()),
        tuple(str(path) for path in map(Path, (model, *ladder.trajectories)) if path.exists()),
    )


def run_jobs(
    todo: Sequence[Job],
    report: Callable[[JobResult], None],
    *,
    workers: int = 1,
    drop_downloads: bool = False,
) -> list[JobResult]:
    """Run the jobs, `workers` at a time; a job that fails does not stop the others.

    Args:
        todo: from `jobs`.
        report: called with every result as it comes.
        workers: processes at a time, which share the CPU cores unless OMP_NUM_THREADS says otherwise.
        drop_downloads: remove from the hub cache what a job downloaded, as soon as it is scored.

    Returns:
        The results, in the order of the jobs.
    """

    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None

    def work(job: Job) -> JobResult:
        result = _run_job(job, drop_downloads, threads)
        report(result)
        return result

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(work, todo))


def run_jobs_on_ray(
    todo: Sequence[Job],
    report: Callable[[JobResult], None],
    *,
    address: str,
    gpus: float = 0.0,
    drop_downloads: bool = False,
) -> list[JobResult]:
    """Run the jobs as tasks of a Ray cluster whose machines share the output folder.

    Args:
        todo: from `jobs`; their folders must be absolute.
        report: called with every result as it comes.
        address: of the cluster, "auto", or "local" for one on this machine.
        gpus: that each task takes.
        drop_downloads: as in `run_jobs`.

    Returns:
        The results, in the order of the jobs. A task whose worker dies is tried again, up to three times.

    Raises:
        HesnrError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise HesnrError("--ray needs Ray: pip install 'hesnr-tasks[ray]'") from None
    try:
        ray.init(
            address=None if address == "local" else address, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR, ignore_reinit_error=True,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise HesnrError(f"no Ray cluster at {address!r} ({error}); start one with: ray start --head") from None
    task = ray.remote(max_retries=3, num_cpus=1, num_gpus=gpus)(_run_job)
    pending = {task.remote(job, drop_downloads): job for job in todo}
    results: dict[str, JobResult] = {}
    while pending:
        (ready, *_), _ = ray.wait(list(pending), num_returns=1)
        job = pending.pop(ready)
        try:
            results[job.name] = ray.get(ready)
        except ray.exceptions.RayError as error:
            results[job.name] = JobResult(job.name, "failed", 0.0, f"its Ray task failed: {error}")
        report(results[job.name])
    return [results[job.name] for job in todo]


def _run_job(job: Job, drop_downloads: bool, threads: int | None = None) -> JobResult:
    memory = job.folder / "ladder.json"
    identity = {"command": list(job.command[1:]), "inputs": _inputs(job)}
    try:
        stored = read_json(memory)
    except DataError:
        stored = None
    if isinstance(stored, dict) and {**stored, **identity} == stored and any(job.folder.rglob("results_*.json")):
        return JobResult(job.name, "scored before", float(stored.get("seconds") or 0))
    cached = set(_cached_revisions(job.model)) if drop_downloads else set()
    start = time.monotonic()
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        words = [*job.command, "--output_path", str(job.folder)]
        run_command(words, job.folder / "lm_eval.log", "lm_eval", job.cwd, threads)
    except HesnrError as error:
        return JobResult(job.name, "failed", time.monotonic() - start, str(error))
    finally:
        if drop_downloads:
            _drop(job.model, set(_cached_revisions(job.model)) - cached)
    seconds = round(time.monotonic() - start, 1)
    write_output(memory, json.dumps({"name": job.name, **identity, "seconds": seconds}, indent=1) + "\n")
    return JobResult(job.name, "scored", seconds)


def _inputs(job: Job) -> dict[str, list[int]]:
    """Of each local input its files, bytes and last change: a file that changed is scored again."""
    facts = {}
    for name in job.inputs:
        path = Path(job.cwd, name)
        stats = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        facts[name] = [len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]
    return facts


def run_command(words: Sequence[str], log: Path, name: str, cwd: str = ".", threads: int | None = None) -> None:
    """Run a command to its end, its output in `log`, on so many threads; an interrupt ends it too.

    Raises:
        HesnrError: it cannot be started, or it fails: its last lines and where all of them are.
    """
    env = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ}
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=env)
            try:
                status = process.wait()
            except BaseException:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
    except OSError as error:
        raise HesnrError(f"cannot run {name} ({words[0]}: {error.strerror})") from None
    if status:
        tail = log.read_bytes()[-1500:].decode(errors="replace").strip().splitlines()[-3:]
        raise HesnrError(f"{name} ended with status {status} (all of it: {log}):\n  " + "\n  ".join(tail))


def _cached_revisions(model: str) -> Iterator[str]:
    """Commits of a hub model that lie in the cache; none for a folder."""
    if Path(model).exists():
        return
    try:
        from huggingface_hub import scan_cache_dir

        for repo in scan_cache_dir().repos:
            if repo.repo_id == model:
                yield from (revision.commit_hash for revision in repo.revisions)
    except Exception:  # no cache yet, or one that cannot be read: then nothing of it is ours to remove
        return


def _drop(model: str, revisions: set[str]) -> None:
    if revisions:
        from huggingface_hub import scan_cache_dir

        scan_cache_dir().delete_revisions(*revisions).execute()


def missing_on_hub(ladder: Ladder) -> list[str]:
    """What of a ladder the hub lacks; nothing is downloaded.

    Returns:
        A line for each model that cannot be listed and each revision that is no branch, tag or commit of its model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api, missing = HfApi(endpoint=os.environ.get("HF_ENDPOINT")), list[str]()
    wanted: dict[str, list[Checkpoint]] = {}
    for checkpoint in ladder.checkpoints:
        model = checkpoint.model or checkpoint.name
        if not Path(model).exists():
            wanted.setdefault(model, []).append(checkpoint)
    for model, checkpoints in wanted.items():
        try:
            refs = api.list_repo_refs(model)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            missing.append(f"{model}: {str(error).strip().splitlines()[0][:200]}")
            continue
        revisions = {ref.name for ref in (*refs.branches, *refs.tags)}
        for name, revision in ((checkpoint.name, checkpoint.revision) for checkpoint in checkpoints):
            if revision and revision not in revisions and not re.fullmatch(r"[0-9a-f]{40}", revision):
                missing.append(f"{name}: {model} has no revision {revision!r}.{nearest(revision, revisions)}")
    return missing


def free_disk(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
