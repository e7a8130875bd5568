"""`hesnr watch`: score each checkpoint of a training run as it is completed, by lm_eval, and keep a leaderboard.

For trainers that no callback can enter (Megatron, torchtitan, NeMo) and for those one would rather leave alone: the
watcher looks at a folder, and shares nothing with the training but the files in it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.bounded_io import read_json
from hesnr_tasks.errors import DataError, HesnrError, printable
from hesnr_tasks.ladder.run import run_command

_TEMPORARY = re.compile(r"\.|tmp|.*(\.tmp|\.partial|\.part|-tmp|_tmp|\.incomplete)$", re.IGNORECASE)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LARGEST_INDEX = 64 << 20  # bytes
_ATTEMPTS = 2  # a checkpoint that fails as often is left out until it changes


class FolderSnapshot(NamedTuple):
    """The files of a checkpoint folder as they are now; equal snapshots some time apart: nobody is writing."""

    digest: str  # of names, sizes and modification times
    newest: float  # modification time, seconds since the epoch


@dataclass(frozen=True)
class WatchConfig:
    """What `hesnr watch` does.

    Attributes:
        checkpoints: the folder into which the training writes, a folder each.
        output: of results, score files and the leaderboard.
        command: lm_eval's, but for checkpoint and output path.
        model_args: lm_eval's, without the checkpoint.
        pattern: names of checkpoint folders.
        done_marker: glob of the file that a complete checkpoint holds; None: complete when unchanged for `settle` s.
        convert: command that makes a Hugging Face folder, with {checkpoint} and {output}; empty: none.
        keep_converted: keep what it makes.
        interval: seconds between looks at the folder.
        once: score what is complete now, then stop.
    """

    checkpoints: Path
    output: Path
    command: tuple[str, ...]
    model_args: str = ""
    pattern: str = "*"
    done_marker: str | None = None
    settle: float = 60
    convert: str = ""
    keep_converted: bool = False
    interval: float = 30
    once: bool = False


def watch(config: WatchConfig) -> int:
    """Watch until interrupted (or once); 1 if a checkpoint could not be scored.

    Raises:
        HesnrError: another watcher has the same output.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(config.output / "watch.lock", timeout=0):
            return _Watcher(config).watch()
    except Timeout:
        raise HesnrError(f"another `hesnr watch` writes into {config.output}; give this one another folder") from None


class _Watcher:
    """Scores complete checkpoints in turn; results are remembered in OUTPUT/<checkpoint>/watch.json."""

    def __init__(self, config: WatchConfig) -> None:
        self.config = config
        self.identity = [*config.command[1:], config.model_args, config.convert]  # of equal evaluations
        self.snapshots: dict[str, FolderSnapshot] = {}  # at the last look
        self.failed: set[str] = set()
        self.waiting: dict[str, str] = {}

    def watch(self) -> int:
        """Look, score what is complete, oldest first, one at a time, and look again."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs below as Ctrl-C does
        try:
            while True:
                scored = self._look()
                if self.config.once and not scored:
                    break
                if not scored:
                    time.sleep(self.config.interval)
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
        if waiting != self.waiting and not self.config.once:
            for name in waiting.keys() - self.waiting.keys():
                _print(f"{name}: {waiting[name]}")
        self.waiting = waiting
        return False

    def _folders(self) -> list[Path]:
        """Folders that may be checkpoints, in the order of the numbers in their names; links to folders are."""
        try:
            with os.scandir(self.config.checkpoints) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        except OSError as error:
            _print(f"cannot look into {self.config.checkpoints} ({error.strerror}); trying again")
            return []
        names = [name for name in names if fnmatch.fnmatch(name, self.config.pattern) and not _TEMPORARY.match(name)]
        names.sort(key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name))
        return [self.config.checkpoints / name for name in names]

    def _incomplete(self, folder: Path, before: FolderSnapshot | None, now: FolderSnapshot) -> str:
        """Why a checkpoint is not to be scored yet; empty: it is complete."""
        if self.config.done_marker:
            return "" if any(folder.glob(self.config.done_marker)) else f"no {self.config.done_marker} yet"
        if not self.config.convert and (lacking := _lacking(folder)):
            return lacking
        quiet = time.time() - now.newest
        if quiet < self.config.settle or (before is not None and before != now):
            return f"written {max(quiet, 0):.0f} s ago; it must be unchanged for {self.config.settle:g} s"
        return ""

    # --- scoring ------------------------------------------------------------------------------------------------------

    def _score(self, folder: Path, now: FolderSnapshot) -> None:
        output = self.config.output / folder.name
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
        model = self.config.output / "converted" / folder.name if self.config.convert else folder
        if "," in str(model) or "=" in str(model):
            raise HesnrError(
                "its path has ',' or '=' in it, which lm_eval cannot read in --model_args; rename the folder"
            )
        try:
            if self.config.convert:
                shutil.rmtree(model, ignore_errors=True)
                model.parent.mkdir(exist_ok=True)
                fill = {"{checkpoint}": str(folder), "{output}": str(model)}
                words = shlex.split(self.config.convert)
                words = [re.sub(r"{checkpoint}|{output}", lambda match: fill[match[0]], word) for word in words]
                run_command(words, output / "convert.log", "--convert")
                if lacking := _lacking(model):
                    raise HesnrError(f"--convert ended well, but {model} has {lacking}; see {output / 'convert.log'}")
            arguments = ",".join(filter(None, [f"pretrained={model}", self.config.model_args]))
            words = [*self.config.command, "--model_args", arguments, "--output_path", str(output)]
            run_command(words, output / "lm_eval.log", "lm_eval")
        finally:
            if self.config.convert and not self.config.keep_converted:
                shutil.rmtree(model, ignore_errors=True)

    def _write_leaderboard(self) -> None:
        from hesnr_tasks.ladder.names import read_ladder
        from hesnr_tasks.report import tables
        from hesnr_tasks.report.results import read_results

        results = read_results([path for path in self.config.output.iterdir() if (path / "watch.json").is_file()])
        ladder = read_ladder({result.model for result in results}).checkpoints
        tables.write_leaderboard(results, ladder, self.config.output)
        print(f"\n{tables.leaderboard_markdown(tables.boards(results, ladder))}\n", flush=True)

    def _state(self, name: str) -> dict[str, Any]:
        try:
            state = read_json(self.config.output / name / "watch.json")
        except DataError:  # never begun, or torn by a power cut: begin again; score files are kept
            return {}
        return state if isinstance(state, dict) else {}

    def _remember(self, name: str, state: dict[str, Any]) -> None:
        write_output(self.config.output / name / "watch.json", json.dumps(state, indent=1) + "\n")


def _snapshot(folder: Path) -> FolderSnapshot:
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
    return FolderSnapshot(digest.hexdigest(), newest)


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
