"""What lm-eval saved: every task's numbers with their errors, and what must be equal for two of them to be ranked."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.analysis.frame import folders
from hesnr_tasks.bounded_io import read_json
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.metrics import METRICS
from hesnr_tasks.scores import StoredRun, StoreError, choose_runs, differences
from hesnr_tasks.scores.runs import read_run

__all__ = ["Row", "Value", "find_scores", "groups", "hidden", "read_results", "run_of"]

_SAVED = re.compile(r"(results_.*|.*_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d+)\.json")  # lm-eval's two ways to name a file
_SIGNED = {
    "k", "epsilon", "kinds", "filters", "render", "overflow", "max_length", "tokens_cut", "trajectories", "data", "run",
}  # fmt: skip
_PLACES = ("revision", "peft", "delta", "adapter")


class Value(NamedTuple):
    """A number lm-eval saved and its standard error (None: it gave none)."""

    value: float
    stderr: float | None = None


class Row(NamedTuple):
    """One task of one result file."""

    model: str  # as short as tells the models apart
    task: str
    alias: str
    values: Mapping[str, Value]  # by metric
    comparable: str  # rows with the same text may be ranked together
    date: float
    signature: Mapping[str, Any] | None  # None: a benchmark that is not ours
    higher: Mapping[str, bool]  # direction of the metrics that have one
    path: Path
    scores: str | None = None  # folder of score files that the run was told to use
    member: bool = False  # part of a group of tasks that is there itself
    hidden: tuple[Path, ...] = ()  # files with older rows of this task and model that were made differently

    @property
    def select(self) -> str:
        """The set of tokens of one of our tasks, as `analysis.frame.Selection.name`."""
        made = self.signature or {}
        return "-".join(["+".join(made.get("kinds", ())), *made.get("filters", ())])


def read_results(sources: Iterable[str | Path], *, optional: bool = False) -> list[Row]:
    """The newest row of each task of each model; raises `DataError` where there is none, unless that is `optional`."""
    named = list(map(str, sources))
    paths = list(dict.fromkeys(path for source in named for path in _files(Path(source))))
    newest: dict[tuple[str, str], Row] = {}
    for path in paths:
        for row in _rows(path):
            key = (row.model, row.task)
            newest[key] = _newer(newest[key], row) if key in newest else row
    if not newest and not optional:
        raise DataError(
            f"no results of ours, nor of another task of lm-eval, in {', '.join(named)} ({len(paths)} result files). "
            "Make some with: lm_eval --tasks hesnr_swe … --output_path DIR"
        )
    short = _shortened({row.model for row in newest.values()})
    return [row._replace(model=short[row.model]) for row in newest.values()]


def _newer(known: Row, row: Row) -> Row:
    old, new = (known, row) if known.date < row.date else (row, known)
    alike = old.comparable == new.comparable and _weights(old) == _weights(new)
    return new._replace(hidden=known.hidden if alike else (*known.hidden, old.path))


def _weights(row: Row) -> object:
    return ((row.signature or {}).get("run") or {}).get("weights")


def hidden(rows: Iterable[Row]) -> list[str]:
    """Remarks on older results that newer ones took the place of although they were made differently."""
    return [
        f"{row.model}: {row.task} in {path} is not shown: it was made with other settings or weights than the newer "
        f"{row.path}. To see both, report on their folders one by one."
        for row in rows
        for path in row.hidden
        if not row.member
    ]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*.json") if _SAVED.fullmatch(file.name))
    if not path.is_file():
        what = "not a plain file" if path.exists() else "no such file or folder"
        raise DataError(f"{path}: {what}")
    return [path]


def _rows(path: Path) -> Iterator[Row]:
    try:
        found = read_json(path)
        _check(found)
        results, configs = dict(found["results"]), dict(found["configs"])
        members = {task for tasks in dict(found.get("group_subtasks") or {}).values() for task in tasks}
        date = float(found.get("date") or 0)
        for task, values in results.items():
            metadata = (configs.get(task) or {}).get("metadata") or {}
            made = metadata.get("signature")
            if made and not made.keys() >= _SIGNED:
                raise ValueError(f"the signature of {task} lacks {', '.join(sorted(_SIGNED - made.keys()))}")
            numbers = _ours(values, made) if made else dict(_theirs(values))
            if numbers:
                name = task.rsplit("::", 1)[-1]  # lm-eval 0.5 writes `group::task`
                yield Row(
                    model=_model(found),
                    task=name,
                    alias=str(values.get("alias", name)).strip(" -"),
                    values=numbers,
                    comparable=_comparable(name, made) if made else _benchmark(task, found),
                    date=date,
                    signature=made,
                    higher=_higher((found.get("higher_is_better") or {}).get(task) or {}),
                    path=path,
                    scores=metadata.get("scores"),
                    member=task in members,
                )
    except DataError as error:
        raise DataError(f"{path} is not an lm-eval result file: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not an lm-eval result file ({type(error).__name__}: {error})") from None


_NUMBER = (int, float)
_NONE = type(None)
_SHAPES: dict[str, tuple[type, ...]] = {
    "results": (dict,), "configs": (dict,), "group_subtasks": (dict, _NONE), "higher_is_better": (dict, _NONE),
    "versions": (dict, _NONE), "n-shot": (dict, _NONE), "n-samples": (dict, _NONE), "config": (dict, _NONE),
    "date": (*_NUMBER, _NONE), "model_name": (str, _NONE), "chat_template": (str, _NONE),
    "chat_template_sha": (str, _NONE), "system_instruction_sha": (str, _NONE),
}  # fmt: skip
_SIGNATURE_SHAPES: dict[str, tuple[type, ...]] = {
    "k": (int,), "epsilon": _NUMBER, "kinds": (list,), "filters": (list,), "render": (str,), "overflow": (str,),
    "max_length": (int, _NONE), "tokens_cut": (int,), "trajectories": (int,),
    "data": (str, _NONE), "run": (dict, _NONE),
}  # fmt: skip


def _check(found: Any) -> None:
    """`ValueError` for what lm-eval would not write: a wrong type that is read on gives a wrong number or none."""
    _shapes(found, _SHAPES, "the file")
    for task, values in found["results"].items():
        _shape(values, (dict,), f"results.{task}")
        config: Any = found["configs"].get(task) or {}
        _shapes(config, {"metadata": (dict, _NONE)}, f"configs.{task}")
        metadata: Any = config.get("metadata") or {}
        _shapes(metadata, {"signature": (dict, _NONE), "scores": (str, _NONE)}, f"configs.{task}.metadata")
        made = metadata.get("signature") or {}
        _shapes(made, {name: kind for name, kind in _SIGNATURE_SHAPES.items() if name in made}, f"{task}: signature")
        for word in [*made.get("kinds", ()), *made.get("filters", ())]:
            _shape(word, (str,), f"{task}: kinds and filters")
        if made and not any(name.endswith(",none") for name in values):
            raise ValueError(f"results.{task} holds none of the metrics that its signature is for")
        for name in METRICS if made else ():
            _shape(values.get(f"{name},none"), (*_NUMBER, _NONE), f"results.{task}.{name}")
        _shape((found.get("higher_is_better") or {}).get(task), (dict, _NONE), f"higher_is_better.{task}")
        _shape((found.get("n-samples") or {}).get(task), (dict, _NONE), f"n-samples.{task}")
    for task, leaves in (found.get("group_subtasks") or {}).items():
        _shape(leaves, (list,), f"group_subtasks.{task}")
        for leaf in leaves:
            _shape(leaf, (str,), f"group_subtasks.{task}")
    arguments: Any = (found.get("config") or {}).get("model_args")
    _shape(arguments, (str, dict, _NONE), "config.model_args")
    for name in ("pretrained", "model", *_PLACES) if isinstance(arguments, dict) else ():
        _shape(arguments.get(name), (str, _NONE), f"config.model_args.{name}")


def _shapes(value: Any, shapes: Mapping[str, tuple[type, ...]], where: str) -> None:
    _shape(value, (dict,), where)
    for name, kinds in shapes.items():
        _shape(value.get(name), kinds, f"{where}: {name}")


def _shape(value: Any, kinds: tuple[type, ...], where: str) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        words = " or ".join("null" if kind is _NONE else kind.__name__ for kind in kinds)
        raise ValueError(f"{where} must be {words}, not {type(value).__name__}")


def _model(found: Mapping[str, Any]) -> str:
    """Folder or hub name of the checkpoint; a revision or an adapter makes another one of it."""
    given = (found.get("config") or {}).get("model_args") or {}
    if isinstance(given, str):
        given = dict(word.partition("=")[::2] for word in given.split(","))
    name = given.get("pretrained") or given.get("model") or found.get("model_name") or "unknown"
    other = [str(given[place]) for place in _PLACES if given.get(place) not in (None, "", "main")]
    return "@".join([str(name).rstrip("/"), *other])


def _shortened(names: Iterable[str]) -> dict[str, str]:
    """The shortest ends of the names that tell them apart."""
    parts = {name: re.split(r"[/\\]", name) for name in names}
    for length in range(1, max(map(len, parts.values()), default=1)):
        short = {name: "/".join(pieces[-length:]) for name, pieces in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {name: name for name in parts}


def _ours(values: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Value]:
    numbers = {name: _value(values, name, "none") for name in METRICS}
    scored = _value(values, "scored", "none")
    if math.isnan(scored.value):  # results of an earlier version
        tokens = numbers["tokens"].value
        scored = Value(tokens / total if (total := tokens + made["tokens_cut"]) else math.nan)
    counts = {name: Value(numbers[name].value) for name, metric in METRICS.items() if metric.denominator is None}
    return {**numbers, **counts, "scored": scored}


def _theirs(values: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    """Every metric of another task; its filter is named where it has one."""
    for key, value in values.items():
        name, _, chain = key.partition(",")
        if chain and not name.endswith("_stderr") and isinstance(value, (int, float)):
            yield name if chain == "none" else f"{name} ({chain})", _value(values, name, chain)


def _value(values: Mapping[str, Any], name: str, chain: str) -> Value:
    value, error = values.get(f"{name},{chain}"), values.get(f"{name}_stderr,{chain}")
    return Value(
        float(value) if isinstance(value, (int, float)) else math.nan,
        float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None,
    )


def _higher(told: Mapping[str, Any]) -> dict[str, bool]:
    return {name: bool(value) for name, value in told.items() if value is not None}


def _comparable(task: str, made: Mapping[str, Any]) -> str:
    """The signature without what differs between checkpoints of one ladder: the model itself."""
    kept = {name: value for name, value in made.items() if name != "run"}
    kept |= {name: (made.get("run") or {}).get(name) for name in ("tokenizer", "dtype", "bos")}
    if not made.get("tokens_cut"):
        kept.pop("max_length", None)  # a limit that cuts nothing is no choice
    return json.dumps([task, kept], sort_keys=True)


def _benchmark(task: str, found: Mapping[str, Any]) -> str:
    """What lm-eval tells of how another task was asked; of a group it tells that task by task."""
    names = ("versions", "n-shot", "n-samples")
    asked = {name: [(found.get(name) or {}).get(leaf) for leaf in _leaves(task, found)] for name in names}
    kept: dict[str, Any] = {**asked, "n-samples": [(one or {}).get("effective") for one in asked["n-samples"]]}
    kept["chat_template"] = found.get("chat_template_sha") or bool(found.get("chat_template"))
    kept["system_instruction"] = found.get("system_instruction_sha")
    return json.dumps([task, kept], sort_keys=True)


def _leaves(task: str, found: Mapping[str, Any]) -> list[str]:
    """The tasks below a group, however deep; a task alone is its own."""
    below = (found.get("group_subtasks") or {}).get(task) or []
    return sorted({leaf for one in below for leaf in _leaves(one, found)}) or [task]


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that may be ranked together, by task; the order within a group is that of `rows`."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.comparable, []).append(row)
    return sorted(found.values(), key=lambda group: group[0].task)


# --- Which folder of score files belongs to which result: they lie next to each other, and their signatures agree ---


def find_scores(
    rows: Sequence[Row], sources: Iterable[str | Path], named: Sequence[str] = ()
) -> tuple[dict[str, Path], list[str]]:
    """The folder of score files of each checkpoint that has one, and remarks on folders that cannot be used.

    Looked at: the folders in `sources` and below, those `named`, and what lies next to the result files.
    """
    inside = (
        run.parent for source in sources if Path(source).is_dir() for run in sorted(Path(source).rglob("run.json"))
    )
    near = (folder for row in rows if row.signature for folder in _near(row))
    known = {folder.resolve(): folder for folder in (*folders(named), *inside, *near)}
    found: dict[str, Path] = {}
    strangers: list[tuple[str, Path]] = []
    remarks: list[str] = []
    for folder in known.values():
        try:
            signature = read_run(folder)
        except StoreError as error:
            remarks.append(str(error))
            continue
        owners = [row.model for row in rows if row.signature and _belongs(row.signature, signature)]
        for model in owners:
            found.setdefault(model, folder)
        if not owners:
            strangers.append((_run_name(signature["run"]), folder))
    if named or not rows:  # scores of a run whose result file is not here; but not those of an older run
        for model, folder in strangers:
            found.setdefault(model if model not in found else f"{model} ({folder.name})", folder)
    return found, remarks


def run_of(folder: Path, which: str, rows: Iterable[Row]) -> StoredRun:
    """The run of a folder that a checkpoint's results are of, by the hash of their data; else the latest.

    `which`: as `store.choose_runs` takes it; anything but `latest` wins.
    """
    if which == "latest":
        for row in rows:
            with contextlib.suppress(SettingsError):
                return choose_runs(folder, str((row.signature or {}).get("data")))[0]
    return choose_runs(folder, which)[0]


def _near(row: Row) -> Iterator[Path]:
    """Where a run puts its scores (`scores_dir`): scores/ in its output folder, or the folder named."""
    places = [row.path.parent / "scores", row.path.parent.parent / "scores"]
    if row.scores:
        places += [Path(row.scores), *(parent / row.scores for parent in list(row.path.parents)[:3])]
    for place in places:
        if (place / "run.json").is_file():
            yield place
        elif place.is_dir():
            yield from sorted(run.parent for run in place.glob("*/run.json"))


def _belongs(made: Mapping[str, Any], signature: Mapping[str, Any]) -> bool:
    """Whether scores with `signature` are those that a result's signature `made` speaks of."""
    run = {**(made.get("run") or {}), "max_length": made.get("max_length")}
    return (
        not differences({"run": run}, {"run": signature["run"]})
        and made["render"] in str(signature["render"]).split("+")
        and made["overflow"] == signature["overflow"]
        and made["k"] <= signature["k"]
    )


def _run_name(run: Mapping[str, Any]) -> str:
    name = str(run.get("model") or "unknown").rstrip("/").split("/")[-1]
    revision = run.get("revision")
    return name if revision in (None, "", "main") else f"{name}@{revision}"
