"""The commands that run a model: `hesnr eval`, `hesnr watch` and `hesnr weights`.

`hesnr eval` is the `lm_eval` command with our tasks on its path, and refuses what it can before any weights load.
`hesnr watch` is for trainers that no callback can enter (Megatron, torchtitan, NeMo) and for those one would rather
leave alone: it looks at a folder, and shares nothing with the training but the files in it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fnmatch
import functools
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from hesnr_tasks.errors import DataError, HesnrError, SettingsError, nearest, printable
from hesnr_tasks.files import cache_if_unreachable
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.files.bounded import read_json
from hesnr_tasks.formats import ReadReport
from hesnr_tasks.formats.sources import source_paths
from hesnr_tasks.integrations.weights import BY, Sampling, Tables, score_corpus, write_weights
from hesnr_tasks.tasks import check_lm_eval, tasks_path
from hesnr_tasks.tasks.settings import TaskSettings, add_flags

_LOADING = ("hf", "hf-auto", "huggingface", "vllm", "sglang")  # engines that load a checkpoint into this process
_PATHS = ("pretrained", "peft", "tokenizer", "model_path")  # of --model_args
_CHECKPOINT = ("config.json", "adapter_config.json", "params.json", "*.gguf")


def evaluate(words: Sequence[str]) -> int:
    """Run `lm_eval` with its own arguments.

    Plain `lm_eval` loads the model before it looks at a task. Here the tasks are made first, so that a wrong path, a
    record that cannot be read or a setting out of range costs seconds, not the loading of the weights.

    Raises:
        HesnrError: for whatever the user can mend.
    """
    check_lm_eval()
    from lm_eval.__main__ import cli_evaluate

    from hesnr_tasks.lm_eval_compat import our_tasks_included

    if words and not any(word.split("=")[0] == "--include_path" for word in words):
        words = [*words, "--include_path", str(tasks_path())]
    sys.argv = ["lm_eval", *_metadata_as_json(words)]  # `cli_evaluate` takes no arguments
    try:
        with contextlib.ExitStack() as stack:
            tasks, complete, loaded = _checked()  # alive until the end: lm_eval's tasks share what these have read
            stack.enter_context(our_tasks_included(str(tasks_path()), alone=complete))
            stack.enter_context(cache_if_unreachable(*loaded))
            cli_evaluate()
            del tasks
    except OSError as error:  # of transformers: the model is neither here nor on a hub that can be reached
        if error.errno is not None:
            raise
        raise HesnrError(
            f"the model cannot be loaded: {str(error).strip().splitlines()[0]}\n"
            "Name a folder that exists, or a model of a hub that this machine can reach, in --model_args."
        ) from None
    except SystemExit as exit:
        if isinstance(exit.__cause__, HesnrError):
            raise exit.__cause__ from None
        raise
    return 0


def _metadata_as_json(words: Sequence[str]) -> list[str]:
    """`--metadata key=value …` as the one JSON object that every version of lm-eval reads."""
    if "--metadata" not in words:
        return list(words)
    start = words.index("--metadata") + 1
    end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    settings = _pairs(words[start:end])
    return list(words) if settings is None else [*words[:start], json.dumps(settings), *words[end:]]


def _pairs(words: Sequence[str]) -> dict[str, Any] | None:
    """The settings that `key=value …` gives; None: the words are something else."""
    pairs = [word.partition("=") for word in words]
    if not pairs or any(key[:1] in ("", "{") or not equals for key, equals, _ in pairs):
        return None
    return {key: _literal(value) for key, _, value in pairs}


def _literal(text: str) -> Any:
    try:
        return json.loads(json.dumps(ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _checked() -> tuple[Mapping[str, Any], bool, list[Any]]:
    """Our tasks among those that `sys.argv` names, made as lm_eval will make them; whether they are all; what loads.

    Raises:
        HesnrError: a model that cannot score texts, a path that is not, settings or trajectories that cannot be used.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.tasks import TaskManager

    from hesnr_tasks.backends import refuse_unscorable

    if not sys.argv[1:]:
        return {}, False, []
    try:
        given = _with_file(vars(HarnessCLI().parse_args()))
    except ValueError as error:  # of lm_eval's reader of JSON
        raise SettingsError(
            f"lm_eval cannot read its arguments: {str(error).splitlines()[0] if str(error) else 'not JSON'}\n"
            "Write settings as --metadata trajectories=my_runs/ limit=50, or as one JSON object in single quotes."
        ) from None
    tasks, arguments = given.get("tasks") or "", given.get("model_args") or {}
    names = ",".join([tasks] if isinstance(tasks, str) else map(str, tasks)).replace(" ", ",").split(",")
    ours = [name for name in names if name.startswith("hesnr") and not name.startswith("hesnr_passk")]
    metadata, engine = given.get("metadata") or {}, str(given.get("model") or "hf")
    stated = arguments if isinstance(arguments, dict) else {}
    if ours:
        refuse_unscorable(str(given.get("model")))
        if isinstance(metadata, dict):
            TaskSettings.read(metadata)
        if engine in _LOADING and not stated.get("pretrained") and (stated or not arguments):
            raise HesnrError(
                f"--model {engine} needs a checkpoint, and --model_args names none.\n"
                "Add --model_args pretrained=CHECKPOINT: a folder in Hugging Face format, or a model of the hub."
            )
    refuse_paths(stated, "{}={} in --model_args")
    if given.get("output_path"):
        _refuse_output(Path(given["output_path"]))
    loaded = [stated.get(name) for name in _PATHS] if engine in _LOADING else []
    if not ours or not isinstance(metadata, dict):
        return {}, False, loaded
    paths = list(dict.fromkeys([str(tasks_path()), *filter(None, [given.get("include_path")])]))
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
    for name in ours:
        if name not in manager.all_tasks and not set("*?[/.") & set(name):
            raise SettingsError(f"there is no task {name!r}.{nearest(name, manager.all_tasks)}")
    present = [name for name in ours if name in manager.all_tasks]  # lm_eval names those that are not there
    return manager.load(present)["tasks"], present == names and given.get("include_path") == str(tasks_path()), loaded


def _with_file(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments over those of the file that `--config` names, as lm_eval joins them."""
    import yaml

    if not given.get("config"):
        return given
    try:
        content = yaml.safe_load(Path(given["config"]).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(
            f"--config {given['config']} is no YAML: {' '.join(str(error).split())[:200]}\n"
            "Write lm_eval's arguments into it, such as: tasks: [hesnr_swe]"
        ) from None
    if not isinstance(content, dict):
        raise SettingsError(f"--config {given['config']} holds no arguments, such as: tasks: [hesnr_swe]")
    stated = {name: value for name, value in given.items() if value or value == 0}
    return {**content, **stated}


def refuse_paths(arguments: Mapping[str, Any], place: str) -> None:
    """Refuse folders that are not there, or hold no checkpoint.

    Args:
        arguments: of a model, as in --model_args.
        place: how a message calls an argument; its two fields are the name and the value.

    Raises:
        HesnrError: with the folders that may have been meant.
    """
    for name in _PATHS:
        value = arguments.get(name)
        if not isinstance(value, str) or not value:
            continue
        path = Path(value)
        is_path = value[0] in "/.~" or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir())
        if is_path and not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = " (~ is not expanded here)" if value[0] == "~" else nearest(path.name, siblings)
            raise HesnrError(
                f"{place.format(name, value)}: there is no such file or folder.{hint}\n"
                "Name the folder of a checkpoint in Hugging Face format, or a model of the hub."
            )
        if name != "pretrained" or not path.is_dir() or "subfolder" in arguments:
            continue
        if not any(True for pattern in _CHECKPOINT for _ in path.glob(pattern)):
            inner = sorted(file.parent.name for file in path.glob("*/config.json"))[:5]
            below = f" Below it are {', '.join(inner)}." if inner else ""
            raise HesnrError(
                f"{place.format(name, value)}: the folder has no config.json.{below}\nName the folder of a "
                "checkpoint in Hugging Face format (docs/engines.md#checkpoints-of-other-frameworks)."
            )


def _refuse_output(path: Path) -> None:
    """Refuse an output path that cannot be written: lm_eval would find that out when all is scored."""
    place = path.parent if path.suffix == ".json" else path
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "nothing can be written there" if existing.is_dir() else "is a file, not a folder"
        raise SettingsError(f"--output_path {path}: {existing} {why}.\nName a folder that can be written to.")


# --- hesnr watch: score each checkpoint of a training run as it is completed, by lm_eval, and keep a leaderboard ------

_LONGEST = 7 * 24 * 3600  # seconds
_INTERVAL = 30  # seconds between looks at the folder
_TEMPORARY = re.compile(r"\.|tmp|.*(\.tmp|\.partial|\.part|-tmp|_tmp|\.incomplete)$", re.IGNORECASE)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LARGEST_INDEX = 64 << 20  # bytes
_ATTEMPTS = 2  # a checkpoint that fails as often is left out until it changes


def watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr watch`."""
    parser.set_defaults(execute=run_watch)
    add = parser.add_argument
    add("checkpoints", type=Path, help="the folder into which the training writes its checkpoints, a folder each")
    add("-o", "--output_path", type=Path, required=True, help="where results, score files and the leaderboard go")
    add("--trajectories", nargs="+", required=True, help="files, globs, folders or a hub id")
    add("--tasks", default="hesnr_swe", help="tasks of lm_eval, ours and others (default: hesnr_swe)")
    add("--model", default="hf", help="lm_eval's --model (default: hf)")
    add("--model_args", default="", help="lm_eval's, without pretrained=, e.g. dtype=bfloat16,max_length=131072")
    add("--metadata", nargs="+", default=["{}"], metavar="KEY=VALUE", help="further settings of our tasks, or JSON")
    add("--pattern", default="*", help="names of checkpoint folders, e.g. 'step*' (default: all)")
    add("--done-marker", metavar="FILE", help="a checkpoint is complete when it holds FILE (glob)")
    add("--settle", type=float, default=60, help="without a marker: complete when unchanged so long (default: 60 s)")
    add("--convert", default="", metavar="COMMAND", help="makes a Hugging Face folder of {checkpoint} at {output}")
    add("--once", action="store_true", help="score what is complete now, then stop")
    add("--lm_eval_args", default="", metavar="WORDS", help="further arguments of lm_eval, e.g. '--batch_size auto'")


def run_watch(args: argparse.Namespace) -> int:
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
        metadata = _pairs(args.metadata) or json.loads(" ".join(args.metadata))
        if not isinstance(metadata, dict):
            raise TypeError(f"it is a {type(metadata).__name__}")
    except (ValueError, TypeError) as error:
        raise SettingsError(f"--metadata must be key=value … or a JSON object: {error}") from None
    metadata["trajectories"] = [
        str(Path(name).resolve()) if Path(name).exists() else name for name in args.trajectories
    ]
    if "hesnr" in args.tasks:  # tasks of others have settings of their own
        TaskSettings.read(metadata)
    for name in args.trajectories:  # what is not there is known now, not after hours of training
        next(iter(source_paths(name, ReadReport())), None)
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


# --- hesnr weights: sampling weights for training data, by what checkpoints make of each document ---------------------

_SETTINGS = (
    "render", "thoughts", "template_kwargs", "calls", "kinds", "filters", "epsilon", "k", "overflow", "min_tokens",
    "config", "split", "limit", "on_error",
)  # fmt: skip
_log = logging.getLogger("hesnr_tasks")


def weights_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr weights`."""
    parser.set_defaults(execute=run_weights)
    add = parser.add_argument
    corpus = "documents with `text` or trajectories, of any size; without --model: one or two tables written before"
    add("corpus", nargs="+", metavar="CORPUS", help=corpus)
    add("-o", "--output", type=Path, required=True, metavar="OUT.parquet", help="a row a document, with its weight")
    add("--model", metavar="CKPT", help="checkpoint that reads the corpus, as pretrained= of lm_eval --model hf")
    add("--compare", metavar="CKPT", help="a second one: what changed from --model to it")
    add("--model_args", default="", metavar="ARGS", help="for both, as in lm_eval: dtype=bfloat16,max_length=8192 …")
    add("--device", metavar="DEVICE", help="default: cuda where there is a GPU, else cpu")
    add("--by", default=Sampling.by, metavar="VALUE", help=f"{', '.join(BY)} (default: {Sampling.by})")
    add("--prefer", choices=("high", "low"), default="high", help="which values weigh more (default: high)")
    power = "weights grow with value^(1/T), of a change with exp(change / (sd · T)) (default: 1)"
    add("--temperature", type=float, default=1.0, metavar="T", help=power)
    add("--floor", type=float, default=0.0, metavar="SHARE", help="share of samples drawn uniformly (default: 0)")
    add("--quota", action="append", default=[], metavar="SOURCE=SHARE", help="share of a source; may be repeated")
    add_flags(parser, *_SETTINGS)


def run_weights(args: argparse.Namespace) -> str:
    """Score what has no scores yet and write the table; its sources as text. The same command goes on after a stop."""
    settings = TaskSettings.read({name: value for name in _SETTINGS if (value := getattr(args, name)) is not None})
    quotas = dict(map(_quota, args.quota))
    sampling = Sampling(args.by, args.prefer, args.temperature, args.floor, quotas, settings.min_tokens)
    parts = args.output.with_name(f"{args.output.name}.parts")
    if not args.model:
        if args.compare:
            raise SettingsError("--compare is the second checkpoint; name the first with --model")
        if len(args.corpus) > 2:
            raise SettingsError(f"{len(args.corpus)} tables were given; give one, or two to compare, or --model CKPT")
        tables = [Tables.open([Path(name)]) for name in args.corpus]
    else:
        if args.by.endswith("_change") and not args.compare:
            raise SettingsError(f"--by {args.by} needs a second checkpoint: add --compare CKPT")
        tables = [
            _scored(args, settings, checkpoint, parts / name)
            for name, checkpoint in (("model", args.model), ("compare", args.compare))
            if checkpoint
        ]
    summary = write_weights(args.output, tables[0], tables[1] if len(tables) > 1 else None, sampling)
    if args.model:
        shutil.rmtree(parts)
    return "\n".join([*summary.lines(sampling.by), str(args.output)])


def _quota(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not name or not 0 <= value <= 1:
        raise SettingsError(f"--quota {text!r} must be SOURCE=SHARE, such as web=0.3")
    return name, value


def _scored(args: argparse.Namespace, settings: TaskSettings, checkpoint: str, folder: Path) -> Tables:
    report, documents = ReadReport(), 0
    seconds = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(unit="tok", unit_scale=True, desc=f"scoring with {Path(checkpoint).name}", mininterval=seconds) as bar:

        def progress(new_documents: int, tokens: int) -> None:
            nonlocal documents
            documents += new_documents
            bar.set_postfix_str(f"{documents:,} documents", refresh=False)
            bar.update(tokens)

        model = functools.partial(_loaded, checkpoint, args.model_args, args.device)
        tables = score_corpus(args.corpus, settings, model, folder, report, progress)
    for line in report.lines():
        _log.warning("%s", line)
    return tables


def _loaded(checkpoint: str, model_args: str, device: str | None) -> Any:
    """lm-eval's model."""
    check_lm_eval()
    import torch
    from lm_eval.api.registry import get_model

    try:
        words = ",".join(filter(None, [f"pretrained={checkpoint}", model_args]))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return get_model("hf").create_from_arg_string(words, {"batch_size": 1, "device": device})
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise HesnrError(
            f"the checkpoint {checkpoint!r} cannot be loaded: {str(error).strip().splitlines()[0]}\n"
            "Name a folder in Hugging Face format, or a model of a hub that this machine can reach."
        ) from None
