"""`hesnr watch`: score each checkpoint of a training run as it is completed, by lm_eval, and keep a leaderboard.

For trainers that no callback can enter (Megatron, torchtitan, NeMo) and for those one would rather leave alone: the
watcher looks at a folder, and shares nothing with the training but the files in it.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.errors import DataError, HesnrError, SettingsError, printable
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.files.bounded import read_json
from hesnr_tasks.tasks import tasks_path

_LONGEST = 7 * 24 * 3600  # seconds
_INTERVAL = 30  # seconds between looks at the folder
_TEMPORARY = re.compile(r"\.|tmp|.*(\.tmp|\.partial|\.part|-tmp|_tmp|\.incomplete)$", re.IGNORECASE)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LARGEST_INDEX = 64 << 20  # bytes
_ATTEMPTS = 2  # a checkpoint that fails as often is left out until it changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr watch`."""
    add = parser.add_argument
    add("checkpoints", type=Path, help="the folder into which the training writes its checkpoints, a folder each")
    add("-o", "--output_path", type=Path, required=True, help="where results, score files and the leaderboard go")
    add("--trajectories", nargs="+", required=True, help="files, globs, folders or a hub id")
    add("--tasks", default="hesnr_swe", help="tasks of lm_eval, ours and others (default: hesnr_swe)")
    add("--model", default="hf", help="lm_eval's --model (default: hf)")
    add("--model_args", default="", help="lm_eval's, without pretrained=, e.g. dtype=bfloat16,max_length=131072")
    add("--metadata", default="{}", help="further settings of our tasks, as JSON")
    add("--pattern", default="*", help="names of checkpoint folders, e.g. 'step*' (default: all)")
    add("--done-marker", metavar="FILE", help="a checkpoint is complete when it holds FILE (glob)")
    settle = "without a marker: complete when unchanged for so long (default: 60 s)"
    add("--settle", type=float, default=60, help=settle)
    add("--convert", default="", metavar="COMMAND", help="makes a Hugging Face folder of {checkpoint} at {output}")
    add("--once", action="store_true", help="score what is complete now, then stop")
    add("--lm_eval_args", default="", metavar="WORDS", help="further arguments of lm_eval, e.g. '--batch_size auto'")


def run(args: argparse.Namespace) -> int:
    """Watch until interrupted (or once), after everything that can be checked was; 1: a checkpoint was not scored."""
    from filelock import FileLock, Timeout

    if not args.checkpoints.is_dir():
        raise SettingsError(f"{args.checkpoints} is no folder; name the one into which checkpoints are written")
    if not 0 <= args.settle <= _LONGEST:
        raise SettingsError(f"--settle must be at least 0 and at most {_LONGEST:,} seconds")
    if importlib.util.find_spec("lm_eval") is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    if re.search(r"(^|,)(pretrained|model)=", args.model_args):
        raise SettingsError("--model_args names a model; hesnr watch puts each checkpoint there, so leave it out")
    if args.convert and not {"{checkpoint}", "{output}"} <= set(re.findall(r"{\w+}", args.convert)):
        raise SettingsError(
            "--convert must have {checkpoint} and {output} in it, e.g. 'convert.sh {checkpoint} {output}'"
        )
    try:
        metadata = json.loads(args.metadata)
        if not isinstance(metadata, dict):
            raise TypeError(f"it is a {type(metadata).__name__}")
    except (ValueError, TypeError) as error:
        raise SettingsError(f"--metadata must be a JSON object: {error}") from None
    metadata["trajectories"] = [
        str(Path(name).resolve()) if Path(name).exists() else name for name in args.trajectories
    ]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", args.model, "--tasks", args.tasks]
    command += ["--include_path", str(tasks_path()), "--metadata", json.dumps(metadata)]
    command += shlex.split(args.lm_eval_args)
    args.output_path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.output_path / "watch.lock", timeout=0):
            return _Watcher(args, command).watch()
    except Timeout:
        raise HesnrError(
            f"another `hesnr watch` writes into {args.output_path}; give this one another folder"
        ) from None


class _FolderSnapshot(NamedTuple):
    """The files of a checkpoint folder as they are now; equal snapshots some time apart: nobody is writing."""

    digest: str  # of names, sizes and modification times
    newest: float  # modification time, seconds since the epoch


class _Watcher:
    """Scores complete checkpoints in turn; results are remembered in OUTPUT/<checkpoint>/watch.json."""

    def __init__(self, args: argparse.Namespace, command: Sequence[str]) -> None:
        self.args, self.command, self.output = args, command, args.output_path
        self.identity = [*command[1:], args.model_args, args.convert]  # of equal evaluations
        self.snapshots: dict[str, _FolderSnapshot] = {}  # at the last look
        self.failed: set[str] = set()
        self.waiting: dict[str, str] = {}

    def watch(self) -> int:
        """Look, score what is complete, oldest first, one at a time, and look again."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs below as Ctrl-C does
        try:
            while True:
                scored = self._look()
                if self.args.once and not scored:
                    break
                if not scored:
                    time.sleep(_INTERVAL)
        except KeyboardInterrupt:
            _print("stopped; the same command goes on from here")
        if self.waiting:
            _print(f"not complete, so not scored: {', '.join(f'{name} ({why})' for name, why in self.waiting.items())}")
        return 1 if self.failed else 0

    def _look(self) -> bool:
        """Score the first checkpoint that is complete and not scored yet; whether there was one."""
        waiting = dict[str, str]()
        for folder in self._folders():
            now = _snapshot(folder)
            before, self.snapshots[folder.name] = self.snapshots.get(folder.name), now
            state = self._state(folder.name)
            if state.get("digest") == now.digest and state.get("command") == self.identity:
                if state.get("scored"):
                    continue
                if state.get("attempts", 0) >= _ATTEMPTS:
                    self.failed.add(folder.name)
                    continue
            if why := self._incomplete(folder, before, now):
                waiting[folder.name] = why
                continue
            self._score(folder, now)
            return True
        if waiting != self.waiting and not self.args.once:
            for name in waiting.keys() - self.waiting.keys():
                _print(f"{name}: {waiting[name]}")
        self.waiting = waiting
        return False

    def _folders(self) -> list[Path]:
        """Folders that may be checkpoints, in the order of the numbers in their names; links to folders are."""
        try:
            with os.scandir(self.args.checkpoints) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        except OSError as error:
            _print(f"cannot look into {self.args.checkpoints} ({error.strerror}); trying again")
            return []
        names = [name for name in names if fnmatch.fnmatch(name, self.args.pattern) and not _TEMPORARY.match(name)]
        names.sort(key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name))
        return [self.args.checkpoints / name for name in names]

    def _incomplete(self, folder: Path, before: _FolderSnapshot | None, now: _FolderSnapshot) -> str:
        """Why a checkpoint is not to be scored yet; empty: it is complete."""
        if self.args.done_marker:
            return "" if any(folder.glob(self.args.done_marker)) else f"no {self.args.done_marker} yet"
        if not self.args.convert and (lacking := _lacking(folder)):
            return lacking
        quiet = time.time() - now.newest
        if quiet < self.args.settle or (before is not None and before != now):
            return f"written {max(quiet, 0):.0f} s ago; it must be unchanged for {self.args.settle:g} s"
        return ""

    # --- scoring ------------------------------------------------------------------------------------------------------

    def _score(self, folder: Path, now: _FolderSnapshot) -> None:
        output = self.output / folder.name
        output.mkdir(exist_ok=True)
        state = self._state(folder.name)
        same = state.get("digest") == now.digest and state.get("command") == self.identity
        if state.get("scored") and state.get("digest") != now.digest:
            _print(f"{folder.name} has changed since it was scored; scoring it again")
        attempts = state.get("attempts", 0) if same else 0
        state = {"checkpoint": str(folder.resolve()), "digest": now.digest, "command": self.identity, "scored": False}
        start = time.monotonic()
        try:
            self._evaluate(folder, output)
        except HesnrError as error:
            attempts += 1
            self._remember(folder.name, state | {"attempts": attempts})
            then = "left out until it changes" if attempts >= _ATTEMPTS else "it is tried once more"
            _print(f"{folder.name}: {error}\n  {then}")
            return
        if not folder.is_dir() or _snapshot(folder).digest != now.digest:
            _print(f"{folder.name} changed while it was read: its scores are not of one checkpoint and are not counted")
            shutil.rmtree(output, ignore_errors=True)
            return
        seconds = time.monotonic() - start
        self._remember(folder.name, state | {"attempts": attempts, "scored": True, "seconds": round(seconds, 1)})
        _print(f"{folder.name} scored in {seconds:.0f} s")
        self._write_leaderboard()

    def _evaluate(self, folder: Path, output: Path) -> None:
        """Convert where that is set, then lm_eval in a process of its own; their output goes to log files."""
        from hesnr_tasks.ladder.run import run_command

        model = self.output / "converted" / folder.name if self.args.convert else folder
        if "," in str(model) or "=" in str(model):
            raise HesnrError(
                "its path has ',' or '=' in it, which lm_eval cannot read in --model_args; rename the folder"
            )
        try:
            if self.args.convert:
                shutil.rmtree(model, ignore_errors=True)
                model.parent.mkdir(exist_ok=True)
                fill = {"{checkpoint}": str(folder), "{output}": str(model)}
                words = shlex.split(self.args.convert)
                words = [re.sub(r"{checkpoint}|{output}", lambda match: fill[match[0]], word) for word in words]
                run_command(words, output / "convert.log", "--convert")
                if lacking := _lacking(model):
                    raise HesnrError(f"--convert ended well, but {model} has {lacking}; see {output / 'convert.log'}")
            arguments = ",".join(filter(None, [f"pretrained={model}", self.args.model_args]))
            words = [*self.command, "--model_args", arguments, "--output_path", str(output)]
            run_command(words, output / "lm_eval.log", "lm_eval")
        finally:
            if self.args.convert:
                shutil.rmtree(model, ignore_errors=True)

    def _write_leaderboard(self) -> None:
        from hesnr_tasks.ladder.names import read_ladder
        from hesnr_tasks.report import tables
        from hesnr_tasks.report.results import read_results

        results = read_results([path for path in self.output.iterdir() if (path / "watch.json").is_file()])
        ladder = read_ladder({result.model for result in results}).checkpoints
        tables.write_leaderboard(results, ladder, self.output)
        print(f"\n{tables.leaderboard_markdown(tables.boards(results, ladder))}\n", flush=True)

    def _state(self, name: str) -> dict[str, Any]:
        try:
            state = read_json(self.output / name / "watch.json")
        except DataError:  # never begun, or torn by a power cut: begin again; score files are kept
            return {}
        return state if isinstance(state, dict) else {}

    def _remember(self, name: str, state: dict[str, Any]) -> None:
        write_output(self.output / name / "watch.json", json.dumps(state, indent=1) + "\n")


def _snapshot(folder: Path) -> _FolderSnapshot:
    """Names, sizes and times of everything below a folder; what vanishes meanwhile counts as absent."""
    digest, newest = hashlib.sha256(), 0.0
    for root, directories, files in os.walk(folder):
        directories.sort()
        for name in sorted(files):
            try:
                stat = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 – tens of thousands of shards
            except OSError:
                continue
            digest.update(f"{root}/{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
            newest = max(newest, stat.st_mtime)
    return _FolderSnapshot(digest.hexdigest(), newest)


def _lacking(folder: Path) -> str:
    """What a Hugging Face checkpoint folder still lacks; empty: nothing."""
    if not (folder / "config.json").is_file():
        return "no config.json yet"
    if any((folder / name).is_file() for name in _WEIGHTS):
        return ""
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is None:
        return f"no weights yet ({', '.join((*_WEIGHTS, *_INDEXES))})"
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise ValueError("too large")
        shards = set(read_json(index)["weight_map"].values())
        missing = [str(shard) for shard in shards if not (folder / str(shard)).is_file()]
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"an {index.name} that cannot be read"
    return f"{len(missing)} of {len(shards)} weight files still missing" if missing else ""


def _print(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {printable(text, keep=chr(10))}", flush=True)
