"""Score every checkpoint of a ladder with the real `lm_eval`, one process each; what is done is not done again.

A checkpoint's results lie in OUTPUT/runs/NAME. `ladder.json` there remembers the command that made them: the same
command is not run twice, another one is. A run that was stopped goes on at the trajectory where it was, since the
score files of our tasks do.

Checkpoints may also be cut into shards of their trajectories, for which Ray or Slurm have machines: each shard scores
its own into the checkpoint's one folder of score files, and when all have ended the whole command runs, finds them
there, and scores only what a shard that failed has left. Nothing else coordinates them.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.errors import DataError, HesnrError, SettingsError, nearest
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.files.bounded import read_json
from hesnr_tasks.formats import ReadReport
from hesnr_tasks.formats.sources import source_paths
from hesnr_tasks.ladder.schema import Checkpoint, Ladder


class Job(NamedTuple):
    """One checkpoint to be scored: its name, the lm_eval command without --output_path, and where its results go."""

    name: str
    command: tuple[str, ...]
    folder: Path
    model: str
    revision: str
    cwd: str = "."  # what paths of the command are relative to
    inputs: tuple[str, ...] = ()  # the model and the trajectories, where they are files or folders
    shards: tuple[tuple[str, ...], ...] = ()  # commands that score a part of the trajectories each; none: unsharded
    shard: int | None = None  # which of them this is; None: the whole

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder / ("lm_eval.log" if self.shard is None else f"lm_eval-shard-{self.shard + 1}.log")


class JobResult(NamedTuple):
    """What became of a job: "scored", "scored before" or "failed", the seconds it took, and why it failed."""

    name: str
    state: str
    seconds: float
    error: str = ""


def jobs(
    ladder: Ladder, output: Path, *, only: Sequence[str] = (), extra: Sequence[str] = (), shards: int = 1
) -> list[Job]:
    """The lm_eval command of every checkpoint of a ladder.

    An entry with `sft_of` and downstream scores but no `model` only judges another checkpoint: it is not scored.

    Args:
        ladder: with trajectories, tasks and model settings.
        output: folder of the results.
        only: names of checkpoints; empty: all.
        extra: further arguments of lm_eval.
        shards: parts that the trajectories of each checkpoint are cut into.

    Raises:
        SettingsError: a name that is not in the ladder, or a model or folder that lm_eval's arguments cannot hold.
    """
    output = output.absolute()
    names = [checkpoint.name for checkpoint in ladder.checkpoints]
    for name in only:
        if name not in names:
            raise SettingsError(f"--only {name!r} is no checkpoint of the ladder; there are: {', '.join(names)}")
    scored = [c for c in ladder.checkpoints if c.model or not (c.sft_of and c.downstream)]
    words = {word.partition("=")[0] for word in (*ladder.lm_eval_args, *extra)}
    if shards > 1 and words & {"--limit", "-L", "--samples"}:
        raise SettingsError(
            "--limit and --samples would choose from every shard anew; with --shards, put limit: N or sample: N into "
            "the ladder file's metadata"
        )
    todo = [_job(ladder, checkpoint, output, extra, shards) for checkpoint in scored]
    if len({job.folder for job in todo}) < len(todo):
        raise SettingsError("two checkpoints of the ladder have names that differ only in signs; rename one")
    return [job for job in todo if not only or job.name in only]


def _job(ladder: Ladder, checkpoint: Checkpoint, output: Path, extra: Sequence[str], shards: int) -> Job:
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

    def words(values: Mapping[str, Any]) -> tuple[str, ...]:
        options = ["--metadata", json.dumps(values)] if values else []
        return (*command, *options, *ladder.lm_eval_args, *extra)

    safe = re.sub(r"[^\w.@+-]", "_", checkpoint.name)
    return Job(
        checkpoint.name,
        words(metadata),
        output / "runs" / safe,
        model,
        checkpoint.revision,
        str(Path.cwd()),
        tuple(str(path) for path in map(Path, (model, *ladder.trajectories)) if path.exists()),
        tuple(words({**metadata, "shard": f"{i + 1}/{shards}"}) for i in range(shards)) if shards > 1 else (),
    )


# --- where jobs run ---------------------------------------------------------------------------------------------------


class LocalPool:
    """Processes on this machine, some at a time, which share the CPU cores unless OMP_NUM_THREADS says otherwise."""

    poll_seconds = 0.1

    def __init__(self, workers: int = 1) -> None:
        self._pool = ThreadPoolExecutor(max(1, workers))
        self._threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None

    def submit(self, job: Job, drop_downloads: bool) -> Any:
        """Hand a job over; a future, or what has `done`, `result` and `cancel` as one."""
        return self._pool.submit(run_job, job, drop_downloads, self._threads)

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown()


class RayPool:
    """Tasks of a Ray cluster whose machines share the output folder; one whose worker dies is tried three times more.

    Raises:
        HesnrError: Ray is not installed, or there is no cluster at the address.
    """

    poll_seconds = 0.2

    def __init__(self, address: str, gpus: float = 0.0) -> None:
        """`address`: of the cluster, "auto", or "local" for one on this machine; `gpus`: that each task takes."""
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
            raise HesnrError(
                f"no Ray cluster at {address!r} ({error}); start one with: ray start --head. One with token "
                "authentication needs its token here too, as Ray's documentation says"
            ) from None
        self._ray = ray
        self._task = ray.remote(max_retries=3, num_cpus=1, num_gpus=gpus)(run_job)

    def submit(self, job: Job, drop_downloads: bool) -> Any:
        """Hand a job over."""
        return _RayHandle(self._ray, self._task.remote(job, drop_downloads))

    def close(self) -> None:
        """The cluster is the user's."""


class _RayHandle:
    def __init__(self, ray: Any, ref: Any) -> None:
        self._ray, self._ref = ray, ref

    def done(self) -> bool:
        return bool(self._ray.wait([self._ref], timeout=0)[0])

    def result(self) -> Any:
        return self._ray.get(self._ref)

    def cancel(self) -> None:
        self._ray.cancel(self._ref)


SLURM_SETTINGS = ("partition", "time", "account", "qos", "constraint", "cpus", "mem_gb", "cluster")


class SlurmPool:
    """Slurm jobs, through submitit; the machines share the output folder.

    Only what is in `SLURM_SETTINGS` can be set, each a single word: a ladder file of others cannot put commands into
    the job's script. submitit writes the job, a command line and folders, into `folder`; the environment is passed on
    by Slurm itself and is in no file.
    """

    poll_seconds = 2.0

    def __init__(self, folder: Path, settings: Mapping[str, Any], gpus: float = 0.0) -> None:
        """`folder`: of submitit's files; `settings`: of `SLURM_SETTINGS`, time in minutes; `gpus`: of each job.

        Raises:
            SettingsError: a setting that is none of these, or no single word.
            HesnrError: submitit is not installed, or there is no Slurm here.
        """
        for name, value in settings.items():
            if name not in SLURM_SETTINGS:
                raise SettingsError(
                    f"slurm: {name!r} must be one of {', '.join(SLURM_SETTINGS)}.{nearest(name, SLURM_SETTINGS)}"
                )
            if not re.fullmatch(r"[\w.,:@+&|*\[\]-]+", str(value)):
                raise SettingsError(f"slurm: {name} {str(value)[:80]!r} is no single word, as in {name}=gpu")
            if name in ("time", "cpus", "mem_gb") and not re.fullmatch(r"[1-9]\d{0,6}", str(value)):
                unit = {"time": "minutes", "cpus": "cores", "mem_gb": "GB"}[name]
                raise SettingsError(f"slurm: {name} {str(value)!r} must be a whole number of {unit}")
        if gpus != int(gpus):
            raise SettingsError(f"gpus {gpus:g}: a Slurm job takes whole GPUs")
        try:
            import submitit
        except ImportError:
            raise HesnrError("--slurm needs submitit: pip install 'hesnr-tasks[slurm]'") from None
        words = {name: str(value) for name, value in settings.items()}
        cluster = words.pop("cluster", "slurm")
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except (RuntimeError, ValueError) as error:
            raise HesnrError(
                f"there is no Slurm here ({str(error).strip()}). Run this where sbatch is, or try it without: "
                "--slurm cluster=local"
            ) from None
        given = {
            "timeout_min": int(words.pop("time", 24 * 60)), "cpus_per_task": int(words.pop("cpus", 1)),
            "gpus_per_node": int(gpus), "name": "hesnr",
        }  # fmt: skip
        given |= {"mem_gb": int(words.pop("mem_gb"))} if "mem_gb" in words else {}
        self._executor.update_parameters(**given, **{f"slurm_{name}": value for name, value in words.items()})

    def submit(self, job: Job, drop_downloads: bool) -> Any:
        """Hand a job over."""
        return self._executor.submit(run_job, job, drop_downloads)

    def close(self) -> None:
        """Slurm has nothing to close."""


Pool = LocalPool | RayPool | SlurmPool


def run_jobs(
    todo: Sequence[Job],
    report: Callable[[JobResult], None],
    *,
    pool: Pool | None = None,
    drop_downloads: bool = False,
    watch: Callable[[Mapping[str, int]], None] = lambda _: None,
) -> list[JobResult]:
    """Run the jobs, shards first; a job that fails does not stop the others.

    Args:
        todo: from `jobs`; their folders must be absolute.
        report: called with every result as it comes.
        pool: where they run (default: one after the other here).
        drop_downloads: remove from the hub cache what a job downloaded, as soon as it is scored.
        watch: called again and again while jobs run, with the number of shards of each that have not ended.

    Returns:
        The results, in the order of the jobs.
    """
    pool = pool or LocalPool()
    results: dict[str, JobResult] = {}
    pending: dict[int, tuple[Job, Any]] = {}
    shards_left: dict[str, int] = {}

    def finish(result: JobResult) -> None:
        results[result.name] = result
        report(result)

    def submit(job: Job) -> None:
        handle = pool.submit(job, drop_downloads and job.shard is None)
        pending[id(handle)] = job, handle

    try:
        for job in todo:
            before = scored_before(job) if job.shards else None
            if before is not None:
                finish(before)
                continue
            shards_left[job.name] = len(job.shards)
            for i, command in enumerate(job.shards):
                submit(job._replace(command=command, shard=i, shards=()))
            if not job.shards:
                submit(job)
        by_name = {job.name: job for job in todo}
        while pending:
            ended = [(key, *item) for key, item in pending.items() if item[1].done()]
            for key, job, handle in ended:
                del pending[key]
                if job.shard is None:
                    finish(_result_of(job, handle))
                    continue
                with contextlib.suppress(Exception):  # what a shard has left, the whole scores, and tells why it cannot
                    handle.result()
                shards_left[job.name] -= 1
                if not shards_left[job.name]:
                    submit(by_name[job.name])
            watch(shards_left)
            if not ended:
                time.sleep(pool.poll_seconds)
    except BaseException:
        for _, handle in pending.values():
            handle.cancel()
        raise
    finally:
        pool.close()
    return [results[job.name] for job in todo]


def _result_of(job: Job, handle: Any) -> JobResult:
    try:
        result: JobResult = handle.result()
        return result
    except Exception as error:  # of Ray and submitit: a worker or a machine that died, a job that was cancelled
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return JobResult(job.name, "failed", 0.0, f"its worker failed: {lines[0][:300]} (its log: {job.log})")


class Progress(NamedTuple):
    """How far a job is: "waiting" or "running", the share of its tokens that is scored, the time left, score files."""

    state: str
    share: float | None = None
    left: str = ""
    files: int = 0


_PROGRESS = re.compile(rb"scoring: +(\d+)% of [^\n]*?, ([\d:]+|\?) left")


def progress_of(job: Job, since: float) -> Progress:
    """How far a job is by what it printed; `since`: when it was handed over, seconds since the epoch."""
    shares: list[tuple[float, str]] = []
    running = False
    for part in [job._replace(shard=i) for i in range(len(job.shards))] + [job]:
        try:
            if part.log.stat().st_mtime < since:
                continue
            running = True
            with part.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = _PROGRESS.findall(file.read())
        except OSError:
            continue
        if lines and (part.shard is not None or not job.shards):
            shares.append((int(lines[-1][0]) / 100, lines[-1][1].decode()))
    if not running:
        return Progress("waiting")
    files = sum(1 for _ in job.folder.glob("scores/*/*.parquet"))
    if not shares:
        return Progress("running", files=files)
    share = sum(share for share, _ in shares) / (len(job.shards) or 1)
    left = max((left for _, left in shares), key=lambda left: (len(left), left))
    return Progress("running", share, left, files)


def scored_before(job: Job) -> JobResult | None:
    """The result of an earlier run of the same command on the same files; None: there is none."""
    try:
        stored = read_json(job.folder / "ladder.json")
    except DataError:
        return None
    identity = {"command": list(job.command[1:]), "inputs": _inputs(job)}
    if isinstance(stored, dict) and {**stored, **identity} == stored and any(job.folder.rglob("results_*.json")):
        return JobResult(job.name, "scored before", float(stored.get("seconds") or 0))
    return None


def run_job(job: Job, drop_downloads: bool, threads: int | None = None) -> JobResult:
    """Run one job to its end, unless its results are there.

    Args:
        job: from `jobs`.
        drop_downloads: as in `run_jobs`.
        threads: CPU threads of its process; None: as the environment says.
    """
    if job.shard is None and (before := scored_before(job)):
        return before
    cached = _in_cache(job.model, job.revision) if drop_downloads else set()
    start = time.monotonic()
    place = job.folder if job.shard is None else job.folder / f"shard-{job.shard + 1}.json"
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        run_command([*job.command, "--output_path", str(place)], job.log, "lm_eval", job.cwd, threads)
    except HesnrError as error:
        return JobResult(job.name, "failed", time.monotonic() - start, str(error))
    finally:
        commits = _in_cache(job.model, job.revision) - cached if drop_downloads else set()
        if commits:  # of a neighbour's revision nothing
            from huggingface_hub import scan_cache_dir

            scan_cache_dir().delete_revisions(*commits).execute()
    seconds = round(time.monotonic() - start, 1)
    if job.shard is not None:  # its score files are what it was for; its numbers are of a part
        for results in job.folder.glob(f"shard-{job.shard + 1}_*.json"):
            results.unlink(missing_ok=True)
    else:
        memory = {"name": job.name, "command": list(job.command[1:]), "inputs": _inputs(job), "seconds": seconds}
        write_output(job.folder / "ladder.json", json.dumps(memory, indent=1) + "\n")
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


def _in_cache(model: str, revision: str) -> set[str]:
    """Commits of the hub cache that a revision of a model stands for; none for a folder."""
    if Path(model).exists():
        return set()
    try:
        from huggingface_hub import scan_cache_dir

        cached = [version for repo in scan_cache_dir().repos if repo.repo_id == model for version in repo.revisions]
    except Exception:  # no cache yet, or one that cannot be read: then nothing of it is ours to remove
        return set()
    name = revision or "main"
    return {version.commit_hash for version in cached if name in version.refs or version.commit_hash.startswith(name)}


_LOADING = ("hf", "hf-auto", "huggingface", "vllm", "sglang")  # engines that load a checkpoint into their process


def missing_here(ladder: Ladder, ours: Collection[str]) -> list[str]:
    """What `hesnr ladder run` would miss: trajectories and folders of models that are not there, tasks nobody has.

    Names on the hub are not looked up; tasks of others only where lm-eval is installed, whose list takes seconds.
    `ours`: names of the tasks of this package.
    """
    missing = []
    for name in ladder.trajectories:
        try:
            next(iter(source_paths(name, ReadReport())), None)
        except DataError as error:
            missing.append(f"trajectories: {error}")
    for checkpoint in ladder.checkpoints if ladder.model in _LOADING else ():  # a server has folders of its own
        model = checkpoint.model or checkpoint.name
        if (model.count("/") > 1 or model.startswith((".", "/", "~"))) and not Path(model).expanduser().exists():
            missing.append(f"{checkpoint.name}: there is no folder {model}")
    others = [name for name in ladder.tasks if not name.startswith("hesnr_") and not set("*?[/.") & set(name)]
    strange = [name for name in ladder.tasks if name.startswith("hesnr_") and not fnmatch.filter(ours, name)]
    included = any(word.startswith("--include_path") for word in ladder.lm_eval_args)
    if others and not included and importlib.util.find_spec("lm_eval"):
        from lm_eval.tasks import TaskManager

        ours = {*ours, *TaskManager().all_tasks}
        strange += [name for name in others if name not in ours]
    return missing + [f"tasks: there is no task {name!r}.{nearest(name, ours)}" for name in strange]


def missing_on_hub(ladder: Ladder) -> list[str]:
    """What of a ladder the hub lacks; nothing is downloaded.

    Returns:
        A line for each model that cannot be listed and each revision that is no branch, tag or commit of its model.

    Raises:
        HesnrError: the hub does not answer, so nothing is known of what it has.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api, missing = HfApi(endpoint=os.environ.get("HF_ENDPOINT")), list[str]()
    wanted: dict[str, list[Checkpoint]] = {}
    for checkpoint in ladder.checkpoints:
        model = checkpoint.model or checkpoint.name
        if not Path(model).exists():
            wanted.setdefault(model, []).append(checkpoint)
    for model, checkpoints in wanted.items():
        try:
            refs = api.list_repo_refs(model)
        except Exception as error:  # its HTTP client is another with each version of huggingface_hub
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            status = getattr(getattr(error, "response", None), "status_code", None)
            if not isinstance(error, HFValidationError) and status not in (401, 403, 404):
                raise HesnrError(
                    f"{api.endpoint} does not answer for {model}, so nothing more was checked ({reason}). "
                    "The file itself is as above; try again with a network."
                ) from None
            missing.append(f"{model}: {reason}")
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
