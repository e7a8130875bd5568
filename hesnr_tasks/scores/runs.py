"""What the scores of one folder have in common (`run.json`), and which of them each run was about (`runs/`).

`run.json` is made once and compared by everybody who comes later. `runs/` only grows: a file a run, so that what a run
printed can be had again from its own trajectories, whatever else was scored into the folder since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.errors import DataError, SettingsError, number_of
from hesnr_tasks.files.atomic import create_file
from hesnr_tasks.files.bounded import open_regular, parse_json, read_rest
from hesnr_tasks.scores.schema import Source, StoreError, write_error

FORMAT = "hesnr-scores"
SCHEMA = 2  # raised when an older reader could misread a newer file, or an older identity is not to be trusted
_READ = (1, SCHEMA)  # 1: the identity of weights and tokenizer was a sample
_NAME = "run.json"
_PLACES = ("model", "revision", "peft", "delta", "adapter")  # where weights came from, not what they are
_ABSENT = object()
_ELSEWHERE = (
    'To begin anew, name another folder with "scores": "FOLDER" in --metadata, or move the old one away if its scores '
    "are no longer wanted."
)
# Nats. Half precision rounds a logit between 16 and 32 to 1/8; other batches and GPUs move a mean by about 0.02 and
# its sign by less. Another checkpoint of the same training run moves them by more, unless it is very near.
_CANARY_NOISE, _CANARY_SHIFT, _CANARY_MEAN, _CANARY_MOST = 0.005, 0.02, 0.05, 0.5
_log = logging.getLogger("hesnr_tasks")


class SettingChange(NamedTuple):
    """One setting that differs between two runs; `None` where a run does not have it."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """`dtype: float32 → bfloat16`."""
        values = (self.old, self.new)
        old, new = ("none" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values)
        return f"{self.name}: {old} → {new}"


def scoring_signature(
    run: Mapping[str, Any], *, render: str, overflow: str, k: int, filters: Sequence[str]
) -> dict[str, Any]:
    """Everything that changes token scores, JSON-able. (What changes texts or labels changes the key of a file.)

    `run`: `TokenScores.run` (model, tokenizer, dtype, backend, BOS, max_length …). `filters`: all known filters, in
    the order of their bits in a label.
    """
    filters = list(filters)
    return {"schema": SCHEMA, "k": k, "filters": filters, "render": render, "overflow": overflow, "run": dict(run)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[SettingChange]:
    """The settings in which two signatures differ, in a fixed order.

    A model that was moved is the same model: its place does not count where both runs have a hash of its weights.
    """
    left, right = ({**signature, **(signature.get("run") or {})} for signature in (old, new))
    if left.get("weights") and left.get("weights") == right.get("weights"):
        for name in _PLACES:
            left.pop(name, None)
            right.pop(name, None)
    names = dict.fromkeys([*left, *right])
    names.pop("canary", None)  # measured, so equal only up to noise: `open_run` compares it
    names.pop("run", None)
    return [
        SettingChange(name, left.get(name), right.get(name))
        for name in names
        if left.get(name, _ABSENT) != right.get(name, _ABSENT)
    ]


def open_run(folder: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    """The signature of the run in `folder`, which becomes `signature` if there is none yet.

    The run's k may be larger than the one asked for. Raises `SettingsError` naming every other setting that differs,
    or if a server's canary text has other log-probabilities than before.
    """
    wanted = json.loads(json.dumps(signature))
    content = json.dumps({"format": FORMAT, "schema": SCHEMA, "signature": wanted}, indent=1, sort_keys=True) + "\n"
    try:
        if not (folder / _NAME).exists() and create_file(folder / _NAME, content.encode()):
            return dict(wanted)
    except OSError as error:
        raise write_error(error, folder / _NAME) from error
    stored = read_run(folder)
    if stored.get("schema") != SCHEMA:
        raise SettingsError(
            f"{folder} was written by an older version of hesnr-tasks, which could take one checkpoint or tokenizer "
            f"for another: its scores can be analyzed but not added to. {_ELSEWHERE}"
        )
    larger = {**wanted, "k": max(wanted["k"], stored["k"])}
    changed = differences(stored, larger)
    if changed:
        listed = "; ".join(map(str, changed))
        raise SettingsError(
            f"{folder} holds scores made with other settings ({listed}), and scores of two kinds must not be mixed. "
            f"Go back to those settings. {_ELSEWHERE}"
        )
    _compare_canaries(folder, stored["run"].get("canary"), wanted["run"].get("canary"))
    return stored


def _compare_canaries(folder: Path, old: Sequence[float] | None, new: Sequence[float] | None) -> None:
    """Refuse a server whose weights are not those that the folder's scores are of, as far as a short text tells."""
    if not old or not new:
        return
    changes = [b - a for a, b in zip(old, new, strict=False)]
    mean, size, most = sum(changes) / len(changes), sum(map(abs, changes)) / len(changes), max(map(abs, changes))
    report = (
        f"the server's log-probabilities of a fixed text of {len(changes)} tokens are not those with which {folder} "
        f"began: they differ by {size:.3g} nats a token, {most:.3g} at most"
    )
    if len(old) != len(new) or abs(mean) > _CANARY_SHIFT or size > _CANARY_MEAN or most > _CANARY_MOST:
        raise SettingsError(
            f"{report}. It serves other weights, or serves them otherwise, under the same name. {_ELSEWHERE}"
        )
    if size > _CANARY_NOISE:
        _log.warning("%s. That may be numerical noise; if it is another checkpoint, name another folder.", report)


def read_run(folder: Path) -> dict[str, Any]:
    """The signature of the run in `folder`; raises `StoreError` where there is none of a kind we know."""
    path = folder / _NAME
    try:
        content = _content(path)
        schema, signature = content["schema"], content["signature"]
        if content["format"] != FORMAT or not {"k", "run"} <= set(signature):
            raise ValueError("another kind of file")
    except FileNotFoundError:
        inner = sorted(path.parent.name for path in folder.glob(f"*/{_NAME}"))[:5]
        raise StoreError(
            f"{folder} is no folder of score files (it has no {_NAME}). Name the folder that a scoring run wrote"
            f"{'; below it there are ' if inner else ''}{', '.join(inner)}."
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is damaged ({error}). The score files beside it are whole; move them to a new folder together "
            f"with the {_NAME} of a run with the same settings, or score again into another folder."
        ) from None
    if schema not in _READ:
        raise StoreError(f"{path} has schema {schema}; this version of hesnr-tasks reads schema {SCHEMA}. Update it.")
    return dict(signature)


def _content(path: Path) -> Any:
    """The JSON in a file; `StoreError` for a pipe, a device or more than a record may be."""
    try:
        with open_regular(path) as file:
            return parse_json(read_rest(file))
    except DataError as error:
        raise StoreError(f"cannot read {path} ({error})") from None


def run_folder(folder: Path) -> Path:
    """`folder`, or the only folder of scores whose name begins so (lm_eval adds a hash to the checkpoint's name)."""
    if folder.exists() or not folder.name:
        return folder
    names = sorted(path.parent for path in folder.parent.glob(f"*/{_NAME}") if path.parent.name.startswith(folder.name))
    if len(names) > 1:
        listed = ", ".join(path.name for path in names[:5]) + (", …" if len(names) > 5 else "")
        raise StoreError(f"{len(names)} folders of scores begin with {folder} ({listed}). Write more of the name.")
    return names[0] if names else folder


# --- names ------------------------------------------------------------------------------------------------------------


def model_of(run: Mapping[str, Any]) -> str:
    """Path or hub name of the model of a run, with `@revision` and `@adapter`."""
    variants = [str(run[name]) for name in _PLACES[1:] if run.get(name) not in (None, "", "main")]
    return "@".join([str(run.get("model") or "model").rstrip("/\\"), *variants])


def window_of(signature: Mapping[str, Any]) -> int | None:
    """The window of a short-context pass in tokens; None: the model saw all context."""
    return (signature.get("run") or {}).get("window")


def short_names(models: Iterable[str]) -> dict[str, str]:
    """What each model is called beside the others: as alone where that differs, else the shortest ends that do."""
    parts = {model: re.split(r"[/\\]", model) for model in models}
    candidates = [{model: _end(pieces) for model, pieces in parts.items()}]
    for length in range(1, max(map(len, parts.values()), default=1)):
        candidates.append({model: "/".join(pieces[-length:]) for model, pieces in parts.items()})
    return next((names for names in candidates if len(set(names.values())) == len(names)), {m: m for m in parts})


def checkpoint_name(run: Mapping[str, Any]) -> str:
    """What a model is called where no other is known: the end of its path, from the part with its step on.

    Conversions end in a part that is the same for all: `out/step1000/hf` is called `step1000/hf`, `out/a/hf` `a/hf`.
    """
    return _end(re.split(r"[/\\]", model_of(run)))


_STEP = re.compile(r"(?i)(?:step|iter(?:ation)?|checkpoint|ckpt|epoch)s?[-_=]?\d|\d[-_]?steps?")
_FORM = re.compile(r"(?i)(?:hf|huggingface|safetensors|actor|model|weights)(?:[-_](?:hf|format|model|weights))?")
_DEEPEST = 3  # parts: global_step_100/actor/huggingface


def _end(parts: Sequence[str]) -> str:
    last = range(1, min(_DEEPEST, len(parts)) + 1)
    says_which = (n for n in last if parts[-n] and not _FORM.fullmatch(parts[-n]))
    depth = next((n for n in last if _STEP.search(parts[-n])), next(says_which, 1))
    return "/".join(parts[-depth:])


# --- which trajectories a run was about -------------------------------------------------------------------------------

_RUNS = "runs"
_NUMBERED = re.compile(r"(\d{6,})\.json")


class Wanted(NamedTuple):
    """One document of one task of a run."""

    task: str
    number: int  # of the document in its task
    key: str  # hash of its labelled text
    mask: int  # labels that were scored for it
    source: Source
    data: str  # JSON of the settings that chose the data


class StoredRun(NamedTuple):
    """The texts that one or more tasks of a run were about; `texts` None: everything that is in the folder."""

    number: int
    runs: int  # how many the folder has
    date: str
    tasks: tuple[str, ...]
    data: str  # hash of the texts, as results have it in their signature
    about: Mapping[str, Any]  # settings that chose the data, and the version of the labels
    texts: Mapping[str, tuple[Source, ...]] | None  # by key: the trajectories that have the text
    part: str = ""  # on a newer run that is a part of this one

    def __str__(self) -> str:
        """`run 2 of 3 (2026-01-31 12:00 UTC: hesnr_swe on my.jsonl, sample 50; data 3fa9c1d2e0)`."""
        if self.texts is None:
            return "everything in the folder" + (f" ({number_of(self.runs, 'run')})" if self.runs else "")
        paths = self.about.get("trajectories") or ["the demo trajectories"]
        settings = [f"{k} {v}" for k, v in self.about.items() if k not in ("trajectories", "labels") and v]
        where = ", ".join([*(str(path) for path in paths[:3]), *(["…"] if len(paths) > 3 else []), *settings])
        return (
            f"run {self.number} of {self.runs} ({self.date}: {'+'.join(self.tasks)} on {where}; data {self.data[:10]})"
            + (f", {self.part}" if self.part else "")
        )


def add_run(folder: Path, wanted: Iterable[Wanted], labels: str) -> None:
    """Write down which texts a run is about, unless it is the newest one once more (a crash, a new threshold).

    Args:
        folder: of score files.
        wanted: documents of all tasks, of all processes.
        labels: version of filters and labels.
    """
    documents: dict[str, dict[int, Wanted]] = {}
    wanted = list(wanted)
    if any("shard" in json.loads(document.data) for document in wanted[:1]):
        return  # a part of a run: the whole one writes it down
    for document in wanted:
        documents.setdefault(document.task, {})[document.number] = document
    parts: dict[str, dict[str, Any]] = {}
    for task, by_index in sorted(documents.items()):
        ordered = [by_index[index] for index in sorted(by_index)]
        texts = [[document.key, list(document.source)] for document in ordered]
        settings = json.loads(ordered[0].data)
        same = json.dumps([settings, texts], sort_keys=True)
        part = parts.setdefault(same, {"tasks": {}, "about": {**settings, "labels": labels}, "texts": texts})
        part["tasks"][task] = max(document.mask for document in ordered)
    content = {"parts": json.loads(json.dumps(list(parts.values())))}
    numbers = _numbers(folder)
    with contextlib.suppress(StoreError):  # a damaged one is not this one
        if numbers and _read(folder, numbers[-1])["parts"] == content["parts"]:
            return
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    data = json.dumps({"date": date, **content}, indent=1).encode()
    number = numbers[-1] + 1 if numbers else 1
    try:
        (folder / _RUNS).mkdir(exist_ok=True)
        while not create_file(folder / _RUNS / f"{number:06d}.json", data):  # another run was first
            number += 1
    except OSError as error:
        raise write_error(error, folder / _RUNS) from error
    _log.info(
        "run %d of %s; unless --run names one, analyze takes the newest or an earlier one with all its texts",
        number,
        folder,
    )


def choose_runs(folder: Path, which: str = "latest") -> list[StoredRun]:
    """The run(s) that `which` names: `latest`, `all`, a number, or the hash of their data (as many digits as tell).

    `latest` is the newest, or an earlier one that has all of its texts and more: a short trial hides nothing.
    More than one where the tasks of a run had different data. A folder of an older version has no list of runs: all
    of it is one. Raises `SettingsError` where `which` names none.
    """
    numbers = _numbers(folder)
    everything = StoredRun(0, len(numbers), "", (), "", {}, None)
    if which == "all" or (which == "latest" and not numbers):
        return [everything]
    if which == "latest":
        return _whole(folder, numbers)
    if which.isdigit() and int(which) in numbers:
        return _parts(folder, int(which), numbers)
    for number in reversed(numbers):
        parts = [run for run in _parts(folder, number, numbers) if len(which) >= 6 and run.data.startswith(which)]
        if parts:
            return parts[:1]
    there = "; ".join(str(run) for number in numbers[-5:] for run in _parts(folder, number, numbers))
    raise SettingsError(f"{folder} has no run {which!r}. It has {there or 'no list of runs'}. --all takes everything.")


def _whole(folder: Path, numbers: Sequence[int]) -> list[StoredRun]:
    """The newest run, or the largest earlier one that it is a part of."""
    newest = _parts(folder, numbers[-1], numbers)
    best = newest
    for number in reversed(numbers[:-1]):
        with contextlib.suppress(StoreError):  # a damaged one is asked for by its number only
            earlier = _parts(folder, number, numbers)
            labels = [run.about.get("labels") for run in (*best, *earlier)]
            if len(best) == len(earlier) == 1 and len(set(map(str, labels))) == 1:
                larger, smaller = ((run.texts or {}).keys() for run in (earlier[0], best[0]))
                best = earlier if larger > smaller else best
    if best is newest:
        return newest
    few, many = (sum(map(len, (run.texts or {}).values())) for run in (newest[0], best[0]))
    part = f"run {newest[0].number} had {few} of its {number_of(many, 'trajectory')}"
    return [best[0]._replace(part=part)]


def mixed(folder: Path) -> str:
    """What is to be said of everything in a folder taken together; empty if it is one thing."""
    texts: dict[str, set[str]] = {}
    labels: Counter[str] = Counter()
    damaged = 0
    runs: list[StoredRun] = []
    for number in _numbers(folder):
        try:
            runs += _parts(folder, number, [number])
        except StoreError:
            damaged += 1
    for run in runs:
        labels[str(run.about.get("labels"))] += 1
        for key, sources in (run.texts or {}).items():
            for source in sources:
                texts.setdefault(source.id, set()).add(key)
    several = sorted(name for name, keys in texts.items() if len(keys) > 1)
    notes = []
    if several:
        named = ", ".join(several[:3]) + (", …" if len(several) > 3 else "")
        notes.append(f"with more than one text each: {number_of(len(several), 'trajectory')} ({named})")
    if damaged:
        notes.append(f"in the list of runs {number_of(damaged, 'damaged file')}")
    if len(labels) > 1:
        notes.append(f"they were labelled by versions {', '.join(sorted(labels))} of the filters")
    return "; ".join(notes)


def _parts(folder: Path, number: int, numbers: Sequence[int]) -> list[StoredRun]:
    content = _read(folder, number)
    runs = []
    for part in content["parts"]:
        texts: dict[str, list[Source]] = {}
        for key, source in part["texts"]:
            texts.setdefault(key, []).append(Source(*source))
        data = hashlib.sha256("".join(sorted(key for key, _ in part["texts"])).encode()).hexdigest()
        by_key = {key: tuple(sources) for key, sources in texts.items()}
        date = str(content["date"])
        runs.append(StoredRun(number, len(numbers), date, tuple(part["tasks"]), data, part["about"], by_key))
    return runs


def _numbers(folder: Path) -> list[int]:
    names = (_NUMBERED.fullmatch(path.name) for path in (folder / _RUNS).glob("*.json"))
    return sorted(int(name[1]) for name in names if name)


def _read(folder: Path, number: int) -> dict[str, Any]:
    path = folder / _RUNS / f"{number:06d}.json"
    try:
        content = _content(path)
        for part in content["parts"]:
            dict(part["tasks"]), dict(part["about"]), [(str(key), Source(*source)) for key, source in part["texts"]]
        return {"date": str(content["date"]), "parts": list(content["parts"])}
    except OSError as error:
        raise StoreError(f"cannot read {path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}: {error}). The score files are not affected: name another run "
            "with --run, take everything with --all, or remove this file and run the scoring command again."
        ) from None
