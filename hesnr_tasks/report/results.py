"""lm-eval's result files: the numbers of each task, which of them may be ranked together, and their score files."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.analysis.frame import folders
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.files.bounded import read_json
from hesnr_tasks.ladder.downstream import remembered_name
from hesnr_tasks.metrics import METRICS, names_of
from hesnr_tasks.scores import StoredRun, StoreError, choose_runs, differences
from hesnr_tasks.scores.runs import model_of, read_run, short_names, window_of
from hesnr_tasks.stats import Estimate

_FILE_NAME = re.compile(r"(results_.*|.*_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d+)\.json")  # lm-eval's two patterns
_SIGNATURE_FIELDS = {
    "k", "epsilon", "kinds", "filters", "render", "overflow", "max_length", "tokens_cut", "trajectories", "data", "run",
}  # fmt: skip
_VARIANTS = ("revision", "peft", "delta", "adapter")  # model arguments that make another checkpoint of the same name


class TaskResult(NamedTuple):
    """One task of one result file."""

    model: str  # its name in the ladder that was run, else the shortest end of its path or hub name that is unique
    task: str
    values: Mapping[str, Estimate]  # metric -> value and standard error
    comparable: str  # results with the same text may be ranked together
    date: float
    signature: Mapping[str, Any] | None  # None: a benchmark that is not ours
    higher_is_better: Mapping[str, bool]  # of the metrics that have a direction
    path: Path
    scores: str | None = None  # folder of score files that the task was configured with
    in_group: bool = False  # a member of a group of tasks that is reported itself
    remarks: tuple[str, ...] = ()  # on other results of this task and model

    @property
    def documents(self) -> int:
        """How many trajectories or other documents it is of; 0: unknown."""
        if self.signature:
            return int(self.signature["trajectories"])
        counts = json.loads(self.comparable)[1].get("n-samples") or []
        return sum(int(count) for count in counts if isinstance(count, (int, float)))

    @property
    def select(self) -> str:
        """The set of tokens of one of our tasks, as `Selection.name`."""
        signature = self.signature or {}
        return "-".join(["+".join(signature.get("kinds", ())), *signature.get("filters", ())])

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold; of files their names. `from_json` makes the same result of it."""
        values = {
            name: [None if math.isnan(x) else str(x) if math.isinf(x) else x for x in estimate]
            for name, estimate in self.values.items()
        }
        return {**self._asdict(), "values": values, "path": self.path.name, "scores": None, "remarks": []}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TaskResult:
        """The result that `to_json` wrote.

        Raises:
            DataError: something is missing or of another type.
        """
        try:
            signature = document["signature"]
            if signature is not None:
                _validate(signature, (_SIGNATURE,), "the signature")
                if missing := _SIGNATURE_FIELDS - signature.keys():
                    raise ValueError(f"the signature lacks {', '.join(sorted(missing))}")
            values = {
                str(name): Estimate(*(math.nan if x is None else float(x) for x in numbers))
                for name, numbers in document["values"].items()
            }
            better = {str(name): bool(value) for name, value in document["higher_is_better"].items()}
            return cls(
                str(document["model"]), str(document["task"]), values, str(document["comparable"]),
                float(document["date"]), signature, better, Path(str(document["path"])),
                in_group=bool(document["in_group"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"this is no result of a task ({type(error).__name__}: {error})") from None


def read_results(sources: Iterable[str | Path], *, optional: bool = False) -> list[TaskResult]:
    """Read the newest result of each task of each model, and first an older one of more documents.

    Args:
        sources: result files, or folders that are searched for them.
        optional: whether none at all is acceptable.

    Raises:
        DataError: a file is not an lm-eval result file, or there is none.
    """
    names = list(map(str, sources))
    paths = list(dict.fromkeys(path for name in names for path in _result_files(Path(name))))
    candidates: dict[tuple[str, str], list[TaskResult]] = {}
    short_context: list[str] = []
    for path in paths:
        name = remembered_name(path)  # of the ladder, which verdict and live table use too
        for result in _read_file(path):
            result = result._replace(model=name or result.model)
            if window := (result.signature or {}).get("window"):  # never beside numbers of whole contexts
                short_context.append(f"{result.task} in {path.name} (window={window})")
            else:
                candidates.setdefault((result.model, result.task), []).append(result)
    if short_context and not candidates and not optional:
        raise DataError(
            f"these are results of short-context passes alone ({', '.join(short_context[:3])}).\n"
            "What a short context costs: hesnr analyze WHOLE --against SHORT, on the folders of score files of both."
        )
    if not candidates and not optional:
        raise DataError(
            f"no results of ours, nor of another task of lm-eval, in {', '.join(names)} ({len(paths)} result files). "
            "Make some with: lm_eval --tasks hesnr_swe … --output_path DIR"
        )
    short = short_names({model for model, _ in candidates})
    results = [result._replace(model=short[result.model]) for group in candidates.values() for result in _shown(group)]
    if short_context and results:
        listed = ", ".join(short_context[:3]) + (", …" if len(short_context) > 3 else "")
        remark = f"short-context passes are not shown: {listed}. hesnr analyze WHOLE --against SHORT reads their scores"
        results[0] = results[0]._replace(remarks=(*results[0].remarks, remark))
    return results


def _shown(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Of the results of one task of one model the newest; before it an older one that is of more documents."""
    ordered = sorted(results, key=lambda result: result.date)
    newest, largest = ordered[-1], max(ordered, key=lambda result: (result.documents, result.date))
    if largest.documents <= newest.documents or "weights" in _changes(largest, newest):
        largest = newest
    remarks = [
        f"{old.task} in {old.path} is not shown: the newer {newest.path} differs in {_listed_changes(old, newest)}. "
        "To see both, report on their folders one by one."
        for old in ordered
        if old is not largest and old is not newest and _changes(old, newest)
    ]
    if largest is newest:
        return [newest._replace(remarks=tuple(remarks))]
    both = (
        f"{largest.task} has results of {largest.documents} and of {newest.documents} documents, both shown; figures "
        f"and verdict take the larger ({largest.path}). The newer {newest.path} differs in "
        f"{_listed_changes(largest, newest)}."
    )
    return [largest._replace(remarks=(both, *remarks)), newest]


def _changes(old: TaskResult, new: TaskResult) -> dict[str, tuple[Any, Any]]:
    """The settings in which two results of one task differ; `weights` where both are known to be of other ones."""
    sides = [json.loads(result.comparable)[1] for result in (old, new)]
    weights = [((result.signature or {}).get("run") or {}).get("weights") for result in (old, new)]
    if all(weights):
        sides = [{**side, "weights": value} for side, value in zip(sides, weights, strict=True)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    pairs = {name: (sides[0].get(name), sides[1].get(name)) for name in names}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def _listed_changes(old: TaskResult, new: TaskResult) -> str:
    changes = _changes(old, new)
    if "trajectories" in changes:
        changes.pop("data", None)  # of course
    return "; ".join(f"{name}: {_short(a)} → {_short(b)}" for name, (a, b) in changes.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def remarks_on(results: Iterable[TaskResult]) -> list[str]:
    """What is to be said of other results of the same tasks and models."""
    return [f"{r.model}: {remark}" for r in results for remark in r.remarks if not r.in_group]


def group_comparable(results: Sequence[TaskResult]) -> list[list[TaskResult]]:
    """Results that may be ranked together, groups sorted by task; within a group in the order of `results`."""
    groups: dict[str, list[TaskResult]] = {}
    for result in results:
        groups.setdefault(result.comparable, []).append(result)
    return sorted(groups.values(), key=lambda group: group[0].task)


# --- result files -----------------------------------------------------------------------------------------------------


def _result_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*.json") if _FILE_NAME.fullmatch(file.name))
    if not path.is_file():
        raise DataError(f"{path}: {'not a plain file' if path.exists() else 'no such file or folder'}")
    return [path]


def _read_file(path: Path) -> Iterator[TaskResult]:
    try:
        content = read_json(path)
        _validate(content, _SCHEMA, "the file")
        members = {task for tasks in (content.get("group_subtasks") or {}).values() for task in tasks}
        for task, values in content["results"].items():
            metadata = (content["configs"].get(task) or {}).get("metadata") or {}
            signature = metadata.get("signature") or None
            numbers = _our_metrics(task, values, signature) if signature else dict(_benchmark_metrics(values))
            if numbers:
                name = task.rsplit("::", 1)[-1]  # lm-eval 0.5 writes `group::task`
                directions = (content.get("higher_is_better") or {}).get(task) or {}
                comparable = _our_settings(name, signature) if signature else _benchmark_settings(task, content)
                yield TaskResult(
                    _model_name(content), name, numbers, comparable, float(content.get("date") or 0), signature,
                    {key: bool(value) for key, value in directions.items() if value is not None}, path,
                    metadata.get("scores"), task in members,
                )  # fmt: skip
    except DataError as error:
        raise DataError(f"{path} is not an lm-eval result file: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not an lm-eval result file ({type(error).__name__}: {error})") from None


_NULL = type(None)
_SIGNATURE = {
    "k": (int,), "epsilon": (int, float), "kinds": ([(str,)],), "filters": ([(str,)],), "render": (str,),
    "overflow": (str,), "max_length": (int, _NULL), "tokens_cut": (int,), "trajectories": (int,), "data": (str, _NULL),
    "run": (dict, _NULL),
}  # fmt: skip
# of each key: the types that are accepted; {…}: an object with these keys ("*": every key); […]: a list
_SCHEMA: tuple[Any, ...] = ({
    "results": ({"*": (dict,)},),
    "configs": ({"*": (_NULL, {"metadata": (_NULL, {"signature": (_NULL, _SIGNATURE), "scores": (str, _NULL)})})},),
    "group_subtasks": (_NULL, {"*": ([(str,)],)}),
    "higher_is_better": (_NULL, {"*": (dict, _NULL)}),
    "n-samples": (_NULL, {"*": (dict, _NULL)}),
    "versions": (dict, _NULL), "n-shot": (dict, _NULL), "date": (int, float, _NULL), "model_name": (str, _NULL),
    "chat_template": (str, _NULL), "chat_template_sha": (str, _NULL), "system_instruction_sha": (str, _NULL),
    "config": (_NULL, {
        "model_args": (_NULL, str, dict.fromkeys(("pretrained", "model", *_VARIANTS), (str, _NULL))),
    }),
},)  # fmt: skip


def _validate(value: Any, accepted: Sequence[Any], where: str) -> None:
    """Raise `ValueError` for a type that lm-eval would not write: read on, it gives a wrong number or none."""
    for option in accepted:
        if isinstance(option, Mapping) and isinstance(value, dict):
            for key, child in option.items():
                for name in value if key == "*" else {key} & value.keys():
                    _validate(value[name], child, f"{where}: {name}")
            return
        if isinstance(option, list) and isinstance(value, list):
            for item in value:
                _validate(item, option[0], f"{where}: items")
            return
        if isinstance(option, type) and isinstance(value, option) and not isinstance(value, bool):
            return
    names = ["null" if x is _NULL else x.__name__ if isinstance(x, type) else type(x).__name__ for x in accepted]
    raise ValueError(f"{where} must be {' or '.join(names)}, not {type(value).__name__}")


def _model_name(content: Mapping[str, Any]) -> str:
    """Folder or hub name of the checkpoint, with `@revision` or `@adapter`."""
    arguments = (content.get("config") or {}).get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(word.partition("=")[::2] for word in arguments.split(","))
    name = arguments.get("pretrained") or arguments.get("model") or content.get("model_name") or "unknown"
    variants = [str(arguments[key]) for key in _VARIANTS if arguments.get(key) not in (None, "", "main")]
    return "@".join([str(name).rstrip("/"), *variants])


def _our_metrics(task: str, values: Mapping[str, Any], signature: Mapping[str, Any]) -> dict[str, Estimate]:
    if missing := _SIGNATURE_FIELDS - signature.keys():
        raise ValueError(f"the signature of {task} lacks {', '.join(sorted(missing))}")
    if not any(name.endswith(",none") for name in values):
        raise ValueError(f"results.{task} holds none of the metrics that its signature is for")
    for name in names_of():
        _validate(values.get(f"{name},none"), (int, float, _NULL), f"results.{task}.{name}")
    numbers = {name: _number(values, name, "none") for name in names_of("all") if f"{name},none" in values}
    if not numbers.keys() & {*names_of()}:  # hesnr_tool_entropy: metrics of its own
        numbers |= dict(_benchmark_metrics(values))
    counts = {
        name: Estimate(numbers[name].value) for name in numbers if name in METRICS and METRICS[name].denominator is None
    }
    scored = _number(values, "scored", "none")
    if math.isnan(scored.value):  # results of an earlier version
        tokens = _number(values, "tokens", "none").value
        scored = Estimate(tokens / total if (total := tokens + signature["tokens_cut"]) else math.nan)
    return {**numbers, **counts, "scored": scored}


def _benchmark_metrics(values: Mapping[str, Any]) -> Iterator[tuple[str, Estimate]]:
    """Every metric of another task, as `name` or `name (filter)`."""
    for key, value in values.items():
        name, _, chain = key.partition(",")
        if chain and not name.endswith("_stderr") and isinstance(value, (int, float)):
            yield name if chain == "none" else f"{name} ({chain})", _number(values, name, chain)


def _number(values: Mapping[str, Any], name: str, chain: str) -> Estimate:
    value, error = values.get(f"{name},{chain}"), values.get(f"{name}_stderr,{chain}")
    return Estimate(
        float(value) if isinstance(value, (int, float)) else math.nan,
        float(error) if isinstance(error, (int, float)) and math.isfinite(error) else math.nan,
    )


def _our_settings(task: str, signature: Mapping[str, Any]) -> str:
    """The signature without what differs between checkpoints of one ladder: the model itself."""
    settings = {name: value for name, value in signature.items() if name != "run"}
    settings |= {name: (signature.get("run") or {}).get(name) for name in ("tokenizer", "dtype", "bos")}
    if not signature.get("tokens_cut"):
        settings.pop("max_length", None)  # a limit that truncates nothing has no effect
    return json.dumps([task, settings], sort_keys=True)


def _benchmark_settings(task: str, content: Mapping[str, Any]) -> str:
    """Version, shots, number of documents and prompts of another task; of a group those of its tasks."""

    def leaves(name: str) -> list[str]:
        children = (content.get("group_subtasks") or {}).get(name) or []
        return sorted({leaf for child in children for leaf in leaves(child)}) or [name]

    per_task = {
        name: [(content.get(name) or {}).get(leaf) for leaf in leaves(task)]
        for name in ("versions", "n-shot", "n-samples")
    }
    per_task["n-samples"] = [(counts or {}).get("effective") for counts in per_task["n-samples"]]
    template = content.get("chat_template_sha") or bool(content.get("chat_template"))
    prompts = {"chat_template": template, "system_instruction": content.get("system_instruction_sha")}
    return json.dumps([task, {**per_task, **prompts}], sort_keys=True)


# --- the score files of a result --------------------------------------------------------------------------------------


def find_score_folders(
    results: Sequence[TaskResult], sources: Iterable[str | Path], named: Sequence[str] = ()
) -> tuple[dict[str, Path], list[str]]:
    """Find the folder of score files of each checkpoint by its signature.

    Args:
        results: whose checkpoints they are.
        sources: folders that are searched, with all below them; also what lies next to the result files.
        named: further folders of score files; their checkpoints need no result file.

    Returns:
        checkpoint -> folder, and notes on folders that cannot be read.
    """
    below = (
        file.parent for source in sources if Path(source).is_dir() for file in sorted(Path(source).rglob("run.json"))
    )
    near = (folder for result in results if result.signature for folder in _folders_near(result))
    candidates = {folder.resolve(): folder for folder in (*folders(named), *below, *near)}
    by_model: dict[str, Path] = {}
    without_result: list[tuple[str, Path]] = []
    notes: list[str] = []
    for folder in candidates.values():
        try:
            signature = read_run(folder)
        except StoreError as error:
            notes.append(str(error))
            continue
        if window_of(signature) is not None:
            continue
        models = [result.model for result in results if result.signature and _same_run(result.signature, signature)]
        name = remembered_name(folder)
        for model in [name] if name in models else models:  # two of a ladder may be runs of one model
            by_model.setdefault(model, folder)
        if not models:
            without_result.append((model_of(signature["run"]), folder))
    if named or not results:  # otherwise they may be those of an older run
        short = short_names(model for model, _ in without_result)
        for name, folder in ((short[model], folder) for model, folder in without_result):
            by_model.setdefault(name if name not in by_model else f"{name} ({folder.name})", folder)
    return by_model, notes


def _folders_near(result: TaskResult) -> Iterator[Path]:
    """scores/ in a run's output folder, and the folder that the task was configured with."""
    parents = [result.path.parent / "scores", result.path.parent.parent / "scores"]
    if result.scores:
        parents += [Path(result.scores), *(parent / result.scores for parent in list(result.path.parents)[:3])]
    for parent in parents:
        if (parent / "run.json").is_file():
            yield parent
        elif parent.is_dir():
            yield from sorted(file.parent for file in parent.glob("*/run.json"))


def _same_run(result: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether score files with the signature `stored` are those of a result with the signature `result`."""
    run = {**(result.get("run") or {}), "max_length": result.get("max_length")}
    return (
        not differences({"run": run}, {"run": stored["run"]})
        and result["render"] in str(stored["render"]).split("+")
        and result["overflow"] == stored["overflow"]
        and result["k"] <= stored["k"]
    )


def stored_run(folder: Path, which: str, results: Iterable[TaskResult]) -> StoredRun:
    """The run in `folder` on the data of one of the `results`; else, or if `which` is not `latest`, `choose_runs`."""
    if which == "latest":
        for result in results:
            with contextlib.suppress(SettingsError):
                return choose_runs(folder, str((result.signature or {}).get("data")))[0]
    return choose_runs(folder, which)[0]
