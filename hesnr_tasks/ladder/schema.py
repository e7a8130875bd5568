"""The ladder file: which checkpoints there are, how they come from each other, and their downstream scores.

    trajectories: [my_runs/]                  # for `hesnr ladder run`; tasks, model, model_args, metadata likewise
    checkpoints:
      - name: lc-4000
        model: org/model                      # hub id or folder (default: the name)
        revision: lc-4k-to-32k-step-4000
        family: mymodel-3b                    # one line in figures; never pooled with another unsaid
        stage: long-context                   # pretrain, mid, long-context, sft or rl
        step: 4000
        context: 32k
        before: stage3-4720000                # the checkpoint it was trained on from
      - name: lc-4000-sft
        stage: sft
        sft_of: lc-4000                       # its downstream scores judge lc-4000
        downstream:
          swe_verified: {value: 31.2, n: 500, harness: mini-swe-agent 1.1}

Models and trajectories are looked for beside the file, then in the working directory, then on the hub.
`before` and `sft_of` may name any checkpoint of the file. A downstream score of a base checkpoint that was measured
after fine-tuning may also stand beside the base checkpoint, with `after: sft`.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import DataError, SettingsError, nearest, printable
from hesnr_tasks.files.bounded import read_json, read_text, read_yaml

__all__ = [
    "STAGES",
    "TUNED_WORDS",
    "Checkpoint",
    "DownstreamScore",
    "Ladder",
    "Outcome",
    "add_downstream",
    "in_k",
    "ladder_document",
    "ladder_from",
    "match_name",
    "outcomes",
    "read_ladder_file",
    "write_ladder_file",
]

STAGES = ("pretrain", "mid", "long-context", "sft", "rl")
TUNED_WORDS = {  # words of a name that tell of fine-tuning
    "sft": ("sft", "instruct", "chat", "finetuned"),
    "rl": ("rl", "rlhf", "dpo", "grpo", "ppo", "rlvr"),
}
_TUNED = tuple(TUNED_WORDS)
_TOP = ("trajectories", "tasks", "model", "model_args", "metadata", "lm_eval_args", "checkpoints", "gpus", "slurm")
_FIELDS = (
    "name", "model", "revision", "tokenizer", "family", "stage", "step", "tokens", "context", "sft_of", "before",
    "trained_on", "label", "downstream",
)  # fmt: skip
_SCORE_FIELDS = ("value", "n", "stderr", "harness", "after")
_LARGEST = 1e15
_Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class DownstreamScore:
    """One downstream score of one checkpoint.

    Attributes:
        value: as it was given: a share of 1, per cent, or any number.
        n: how many instances it is the share of; None: unknown.
        stderr: its standard error in the unit of `value`; None: binomial from n, or unknown.
        harness: what measured it.
        after: "sft" where it was measured after this checkpoint was fine-tuned; else "".
    """

    value: float
    n: int | None = None
    stderr: float | None = None
    harness: str = ""
    after: str = ""

    def error(self, percent: bool) -> float:
        """Standard error: as given, or that of a share of n instances; NaN: unknown."""
        if self.stderr is not None:
            return self.stderr
        whole = 100.0 if percent else 1.0
        if not self.n or not 0 <= self.value <= whole:
            return math.nan
        share = (self.value / whole * self.n + 1) / (self.n + 2)  # of 0 or n successes the error is not 0
        return whole * math.sqrt(share * (1 - share) / self.n)

    def interval(self, percent: bool) -> tuple[float, float]:
        """95 % interval: Wilson's of a share of n instances, else from the standard error; NaN: unknown."""
        whole = 100.0 if percent else 1.0
        if not self.n or self.stderr is not None or not 0 <= self.value <= whole:
            half = _Z * self.error(percent)
            return self.value - half, self.value + half
        p, z = self.value / whole, _Z**2 / self.n
        half = _Z * math.sqrt(p * (1 - p) / self.n + z / (4 * self.n))
        return whole * (p + z / 2 - half) / (1 + z), whole * (p + z / 2 + half) / (1 + z)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a ladder; None or "": not known."""

    name: str
    model: str = ""
    revision: str = ""
    tokenizer: str = ""
    family: str = ""
    stage: str = ""
    step: int | None = None
    tokens: float | None = None
    context: int | None = None
    sft_of: str = ""
    before: str = ""
    trained_on: tuple[str, ...] = ()
    label: str = ""
    downstream: Mapping[str, DownstreamScore] = field(default_factory=dict)

    @property
    def tuned(self) -> bool:
        """Whether it was fine-tuned: its points are never pooled with those of base checkpoints."""
        return self.stage in _TUNED or bool(self.sft_of)

    @property
    def axis_label(self) -> str:
        """A short name for axes."""
        if self.label:
            return self.label
        parts = [str(self.step) if self.step is not None else self.name[-16:]]
        parts += [in_k(self.context)] if self.context else []
        return "\n".join([*parts, self.stage.upper()] if self.tuned and self.stage else parts)


@dataclass(frozen=True, slots=True)
class Ladder:
    """Checkpoints in the order of the file, and how they are scored."""

    checkpoints: tuple[Checkpoint, ...]
    trajectories: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("hesnr_swe",)
    model: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lm_eval_args: tuple[str, ...] = ()
    gpus: float = 0.0
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Checkpoint:
        return next(checkpoint for checkpoint in self.checkpoints if checkpoint.name == name)

    @property
    def benchmarks(self) -> list[str]:
        """Names of the downstream tasks, as they first occur."""
        return list(dict.fromkeys(task for checkpoint in self.checkpoints for task in checkpoint.downstream))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The downstream score that judges a checkpoint, and where it was measured: "itself" or the name of its SFT."""

    checkpoint: str
    value: float
    stderr: float
    measured: str
    interval: tuple[float, float] = field(default=(math.nan, math.nan), compare=False)


def in_k(context: int) -> str:
    """A context such as 32768 as 32K."""
    return f"{context // 1024}K" if context % 1024 == 0 else str(context)


def outcomes(ladder: Ladder, task: str, remarks: list[str] | None = None) -> dict[str, Outcome]:
    """The score that judges each checkpoint on one downstream task (the paper's protocol).

    A base checkpoint is judged by the checkpoint that is `sft_of` it, or by its own score with `after: sft`, and only
    where no base checkpoint of the ladder has such a score by its own. A fine-tuned one is judged by its own.

    A base checkpoint with two different scores after fine-tuning has none; `remarks`, if given, say which.

    Raises:
        DataError: a score with n that is no share.
    """
    percent = any(c.downstream[task].value > 1 for c in ladder.checkpoints if task in c.downstream)
    after: dict[str, Outcome] = {}
    contradicted: dict[str, str] = {}
    itself: dict[str, Outcome] = {}
    for checkpoint in ladder.checkpoints:
        score = checkpoint.downstream.get(task)
        if score is None:
            continue
        if score.n is not None and (score.n < 1 or not 0 <= score.value <= (100.0 if percent else 1.0)):
            raise DataError(
                f"{task} of {checkpoint.name}: {score.value:g} is no share (0 to 1) or per cent (to 100) of {score.n} "
                "instances; leave n out where the score is no share"
            )
        details = score.value, score.error(percent)
        interval = score.interval(percent)
        judged = [(checkpoint.sft_of, checkpoint.name)] if checkpoint.sft_of else []
        judged += [(checkpoint.name, f"after {score.after}")] if score.after else []
        for name, measured in judged:
            other = after.setdefault(name, Outcome(name, *details, measured, interval))
            if other.value != score.value:
                contradicted[name] = (
                    f"{task}: {name} has two scores after fine-tuning: {other.value:g} ({other.measured}) and "
                    f"{score.value:g} ({measured}); neither counts. Keep one of them"
                )
        if not score.after:
            itself[checkpoint.name] = Outcome(checkpoint.name, *details, "itself", interval)
    base = {name: score for name, score in itself.items() if not ladder[name].tuned}
    tuned = {name: score for name, score in itself.items() if ladder[name].tuned}
    for name, remark in contradicted.items():
        del after[name]
        if remarks is not None:
            remarks.append(remark)
    return {**(after if after or contradicted else base), **tuned}


# --- reading ----------------------------------------------------------------------------------------------------------


def read_ladder_file(path: Path) -> Ladder:
    """Read and check a ladder file.

    Args:
        path: YAML, as in this module's docstring.

    Raises:
        SettingsError: what cannot be, with file, checkpoint and field.
    """
    try:
        document = read_yaml(path)
    except DataError as error:
        raise SettingsError(f"cannot read the ladder: {error}") from None
    return ladder_from(document, path)


def ladder_from(document: Any, path: Path) -> Ladder:
    """The ladder of a decoded ladder file; `path`: of the file, for messages and for what lies beside it.

    Raises:
        SettingsError: as `read_ladder_file`.
    """
    document = _listed(document)
    if not isinstance(document, dict) or not isinstance(document.get("checkpoints"), list):
        raise SettingsError(
            f"{path}: a ladder file has a list `checkpoints:`, each with a name. "
            "Write one with: hesnr ladder init RESULTS"
        )
    _refuse_unknown(document, _TOP, str(path))
    _refuse_unprintable(document["checkpoints"], f"{path}: checkpoints")
    checkpoints = tuple(_checkpoint(entry, i, path) for i, entry in enumerate(document["checkpoints"], 1))
    _check_links(checkpoints, path)
    return Ladder(
        checkpoints,
        trajectories=tuple(
            _beside(path, text) for text in _texts(document.get("trajectories"), f"{path}: trajectories")
        ),
        tasks=_texts(document.get("tasks"), f"{path}: tasks") or ("hesnr_swe",),
        model=str(document.get("model") or "hf"),
        model_args=_mapping(document.get("model_args"), f"{path}: model_args"),
        metadata=_mapping(document.get("metadata"), f"{path}: metadata"),
        lm_eval_args=_texts(document.get("lm_eval_args"), f"{path}: lm_eval_args"),
        gpus=_number(document.get("gpus") or 0, f"{path}: gpus", least=0),
        slurm=_mapping(document.get("slurm"), f"{path}: slurm"),
    )


def _refuse_unprintable(value: Any, where: str) -> None:
    """Names reach terminals, whom control and bidirectional characters command."""
    if isinstance(value, str) and not value.isprintable():
        shown, sign = printable(value)[:80], next(c for c in value if not c.isprintable())
        raise SettingsError(f"{where} has U+{ord(sign):04X}, which cannot be printed: {shown!r}. Remove it")
    parts = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    for key, item in parts:
        if isinstance(key, str):
            _refuse_unprintable(key, f"{where}, a key")
        _refuse_unprintable(item, f"{where}[{key}]")


def _listed(document: Any) -> Any:
    """The earlier form `name: {step:, stage:, context:, label:, downstream:, n:, before:}` as a list of checkpoints."""
    entries = document.get("checkpoints", document) if isinstance(document, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(fields, dict) for fields in entries.values()):
        return document
    if entries is document and set(entries) <= set(_TOP):
        return document
    checkpoints = []
    for name, fields in entries.items():
        new = {"name": name, **{key: value for key, value in fields.items() if key not in ("downstream", "n")}}
        if fields.get("downstream") is not None:
            new["downstream"] = {"score": {"value": fields["downstream"], "n": fields.get("n")}}
        checkpoints.append(new)
    parents = dict.fromkeys(fields["before"] for fields in entries.values() if fields.get("before") not in (None, ""))
    checkpoints += [{"name": parent} for parent in parents if parent not in entries]
    return {**(document if entries is not document else {}), "checkpoints": checkpoints}


def _checkpoint(entry: Any, position: int, path: Path) -> Checkpoint:
    if not isinstance(entry, dict) or entry.get("name") in (None, ""):
        raise SettingsError(f"{path}: checkpoint {position} of the list has no name")
    for name in ("name", "model", "revision", "tokenizer", "family", "sft_of", "before", "label"):
        if entry.get(name) is not None and type(entry[name]) not in (str, int):
            raise SettingsError(
                f"{path}: checkpoint {position} of the list: {name} {entry[name]!s} is no text; put it in quotes"
            )
    where = f"{path}: {entry['name']}"
    _refuse_unknown(entry, _FIELDS, where)
    stage = str(entry.get("stage") or "")
    if stage and stage not in STAGES:
        raise SettingsError(f"{where}: stage {stage!r} must be one of {', '.join(STAGES)}.{nearest(stage, STAGES)}")
    words = {
        name: str(entry[name])
        for name in ("model", "revision", "tokenizer", "family", "sft_of", "before", "label")
        if entry.get(name) is not None
    }
    words["model"] = _beside(path, words.get("model", ""))
    return Checkpoint(
        name=str(entry["name"]),
        stage=stage or ("sft" if entry.get("sft_of") else ""),
        step=None if entry.get("step") is None else _whole(entry["step"], f"{where}: step", least=0),
        tokens=None if entry.get("tokens") is None else _number(entry["tokens"], f"{where}: tokens", least=0),
        context=None if entry.get("context") is None else _context(entry["context"], where),
        trained_on=_texts(entry.get("trained_on"), f"{where}: trained_on"),
        downstream={
            str(task): _score(score, f"{where}: downstream: {task}")
            for task, score in _mapping(entry.get("downstream"), f"{where}: downstream").items()
        },
        **words,
    )


def _beside(path: Path, text: str) -> str:
    """A path that exists relative to the ladder file's folder; anything else as it is."""
    try:
        return str(path.parent / text) if text and (path.parent / text).exists() else text
    except (OSError, ValueError):  # no name of a file: too long, or with a zero character
        return text


def _score(score: Any, where: str) -> DownstreamScore:
    if not isinstance(score, dict):
        return DownstreamScore(_number(score, where))
    _refuse_unknown(score, _SCORE_FIELDS, where)
    if score.get("value") is None:
        raise SettingsError(f"{where} has no value, as in {{value: 31.2, n: 500}}")
    after = str(score.get("after") or "")
    if after not in ("", *_TUNED):
        raise SettingsError(f"{where}: after {after!r} must be sft or rl, or be left out")
    return DownstreamScore(
        _number(score["value"], f"{where}: value"),
        None if score.get("n") is None else _whole(score["n"], f"{where}: n", least=1),
        None if score.get("stderr") is None else _number(score["stderr"], f"{where}: stderr", least=0),
        str(score.get("harness") or ""),
        after,
    )


def _check_links(checkpoints: Sequence[Checkpoint], path: Path) -> None:
    """Names occur once, links lead to checkpoints of the file, and no checkpoint comes from itself."""
    by_name: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        if checkpoint.name in by_name:
            raise SettingsError(f"{path}: two checkpoints are called {checkpoint.name!r}")
        by_name[checkpoint.name] = checkpoint
    for checkpoint in checkpoints:
        for link in ("sft_of", "before"):
            parent = getattr(checkpoint, link)
            if parent and parent not in by_name:
                raise SettingsError(
                    f"{path}: {checkpoint.name}: {link}: {parent!r} is no checkpoint of this file."
                    f"{nearest(parent, by_name)}"
                )
    parents = {name: {link for link in (c.sft_of, c.before) if link} for name, c in by_name.items()}
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        raise SettingsError(f"{path}: a circle of sft_of or before: {' -> '.join(error.args[1][::-1])}") from None


def _refuse_unknown(fields: Mapping[Any, Any], allowed: Sequence[str], where: str) -> None:
    for name in fields:
        if name not in allowed:
            raise SettingsError(
                f"{where}: unknown field {str(name)!r}.{nearest(str(name), allowed)} There are: {', '.join(allowed)}"
            )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return tuple(str(item) for item in value)
    raise SettingsError(f"{where} must be a text or a list of texts")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"{where} must be a mapping, as in {{name: value}}")
    return {str(name): item for name, item in value.items()}


def _context(value: Any, where: str) -> int:
    size = re.fullmatch(r"(\d+)(k?)", str(value).lower())
    if not size:
        raise SettingsError(f"{where}: context {value!r} is no number of tokens such as 32768 or 32k")
    return _whole(int(size[1]) * (1024 if size[2] else 1), f"{where}: context", least=1)


def _number(value: Any, where: str, *, least: float = -math.inf) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < _LARGEST:
        raise SettingsError(f"{where} must be a number, not {value!r}")
    if number < least:
        raise SettingsError(f"{where} must be at least {least:g}, not {value!r}")
    return number


def _whole(value: Any, where: str, *, least: float = -math.inf) -> int:
    number = _number(value, where, least=least)
    if not number.is_integer():
        raise SettingsError(f"{where} must be a whole number, not {value!r}")
    return int(number)


# --- downstream scores from other files -------------------------------------------------------------------------------


def add_downstream(ladder: Ladder, paths: Iterable[Path]) -> tuple[Ladder, list[str]]:
    """Add the scores of CSV files, SWE-bench reports and lm-eval results to the checkpoints they name.

    A score of NAME-sft, where only NAME is in the ladder, judges NAME: it was measured after fine-tuning.

    A table has a column of checkpoints (`checkpoint`, `model`, `name`, or the one with names of the ladder) and any
    number of columns of scores, between commas, semicolons or tabs; `NAME_n` and `NAME_stderr` (or `n`, `stderr` beside
    a single score) belong to the score NAME. Files are matched to checkpoints by name, whatever the case, the folder
    before it and the signs between words. Of two different scores of a checkpoint and task neither counts.

    Returns:
        The ladder with all scores, and remarks on scores that belong to no checkpoint, contradict each other, and on
        columns without numbers.

    Raises:
        DataError: files that cannot be read or belong to no checkpoint at all; a task whose scores are shares in one
            file and per cent in another.
    """
    scores = {checkpoint.name: dict(checkpoint.downstream) for checkpoint in ladder.checkpoints}
    units: dict[str, dict[bool, str]] = {}
    for task in ladder.benchmarks:
        _check_unit(units, task, {c.name: c.downstream[task] for c in ladder.checkpoints if task in c.downstream})
    remarks: dict[str, None] = {}
    unmatched: list[str] = []
    contradicted: set[tuple[str, str]] = set()
    matches = 0
    for path in _files(paths):
        by_task: dict[str, dict[str, DownstreamScore]] = {}
        for name, task, score, where in _rows(path, list(scores), remarks):
            match = match_name(name, list(scores))
            if match is None and (match := _before_tuning(name, list(scores))):
                score = replace(score, after="sft")
            if match is not None:
                matches += 1
                by_task.setdefault(task, {})[match] = score
            if match is None:
                remarks[f"{where}: a score of {name!r}, which is no checkpoint of the ladder; left out"] = None
                unmatched.append(name)
            elif task in scores[match] and scores[match][task].after != score.after:
                remarks[f"{where}: {task} of {match}: the score after fine-tuning judges it, not its own"] = None
                scores[match][task] = score if score.after else scores[match][task]
            elif task in scores[match] and scores[match][task].value != score.value:
                two = f"{scores[match][task].value:g} and {score.value:g}"
                remarks[f"{where}: a second {task} of {match}: {two}; neither counts. Keep one."] = None
                contradicted.add((match, task))
            else:
                scores[match].setdefault(task, score)
        for task, own in by_task.items():
            _check_unit(units, task, own)
    if unmatched and not matches:
        raise DataError(
            f"no downstream score belongs to one of the checkpoints {', '.join(scores)}; there are scores of "
            f"{', '.join(list(dict.fromkeys(unmatched))[:8])}. Name them as the checkpoints are named."
        )
    for name, task in contradicted:
        del scores[name][task]
    checkpoints = tuple(replace(c, downstream=scores[c.name]) for c in ladder.checkpoints)
    return replace(ladder, checkpoints=checkpoints), list(remarks)


def _check_unit(units: dict[str, dict[bool, str]], task: str, scores: Mapping[str, DownstreamScore]) -> None:
    """Scores of one file are shares if none is above 1, else per cent; those of lm-eval have units of their own."""
    given = {name: score for name, score in scores.items() if not score.harness.startswith("lm-eval")}
    if not given:
        return
    name = max(given, key=lambda name: given[name].value)
    examples = units.setdefault(task, {})
    examples.setdefault(given[name].value > 1, f"{name}: {given[name].value:g}")
    if len(examples) > 1:
        raise DataError(
            f"{task}: some scores are shares ({examples[False]}) and some per cent ({examples[True]}). Give all as "
            "shares, from 0 to 1, as SWE-bench reports do, or all in one file."
        )


def _before_tuning(name: str, names: Sequence[str]) -> str | None:
    """The checkpoint that a fine-tuned one was made from, by the words of its name."""
    signs = {sign for stage in TUNED_WORDS.values() for sign in stage}
    words = _words(name)
    base = [word for word in words if word not in signs]
    return match_name(" ".join(base), names) if base and len(base) < len(words) else None


def match_name(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that `name` means: exactly, or else by its words, or by the words of the path's last part."""
    if name in names:
        return name
    parts: tuple[Callable[[str], str], ...] = (str, lambda text: text.rstrip("/").split("/")[-1])
    for part in parts:
        fits = [other for other in names if _words(part(other)) == _words(part(name))]
        if len(fits) == 1:
            return fits[0]
    return None


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:\.\d+)*", name.casefold())


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        yield from sorted(path.rglob("*.json")) if path.is_dir() else [path]


def _rows(
    path: Path, names: Sequence[str], remarks: dict[str, None]
) -> Iterator[tuple[str, str, DownstreamScore, str]]:
    if path.suffix != ".json":
        yield from _csv_rows(path, names, remarks)
        return
    document = read_json(path)
    if isinstance(document, dict) and "resolved_instances" in document:
        resolved, total = document["resolved_instances"], document.get("total_instances")
        if not (type(resolved) is int and type(total) is int and 0 <= resolved <= total > 0):
            raise DataError(f"{path} is no SWE-bench report: {resolved!r} resolved of {total!r}")
        named = [name for name in names if _contains(_words(path.stem), _words(name))]
        name = max(named, key=lambda name: len(_words(name)), default=path.stem)
        yield name, "swe_bench", DownstreamScore(resolved / total, total, harness="SWE-bench"), str(path)
    elif isinstance(document, dict) and isinstance(document.get("results"), dict):
        yield from _lm_eval_rows(document, path)
    else:
        raise DataError(f"{path} is neither a SWE-bench report nor an lm-eval result file")


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    return any(words[i : i + len(part)] == list(part) for i in range(len(words) - len(part) + 1))


def _lm_eval_rows(document: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str, DownstreamScore, str]]:
    """The first metric of every task that is not ours."""
    name = str(document.get("model_name") or path.parent.name)
    for task, values in document["results"].items():
        if str(task).startswith("hesnr_") or not isinstance(values, dict):
            continue
        for key, value in values.items():
            metric, _, name_of_filter = str(key).partition(",")
            if name_of_filter and isinstance(value, (int, float)) and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{name_of_filter}")
                n = (document.get("n-samples") or {}).get(task, {}).get("effective")
                score = DownstreamScore(
                    float(value),
                    n if isinstance(n, int) else None,
                    float(error) if isinstance(error, (int, float)) else None,
                    f"lm-eval {metric}",
                )
                yield name, str(task), score, str(path)
                break


_KEYS = ("checkpoint", "checkpoints", "model", "name")
_ABSENT = ("", "-", "\u2013", "\u2014", "na", "n/a", "none", "null")


def _csv_rows(
    path: Path, names: Sequence[str], remarks: dict[str, None]
) -> Iterator[tuple[str, str, DownstreamScore, str]]:
    text = read_text(path)
    first = text.partition("\n")[0]
    sign = max(",;\t", key=first.count)
    try:
        lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines(), delimiter=sign)]
    except csv.Error as error:
        raise DataError(f"cannot read {path} ({error})") from None
    heading = lines[0] if lines else []
    lower = [word.lower() for word in heading]
    twice = [word for i, word in enumerate(lower) if word and word in lower[:i]]
    if twice:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; give them names of their own")
    rows = [(number, line) for number, line in enumerate(lines[1:], 2) if any(line)]
    key = _column_of_checkpoints(lower, rows, names)
    ignored = {*_KEYS, "step", "stage", "context", "label", "family", "revision", "tokens", "n", "stderr"}
    columns = [
        i for i, word in enumerate(lower)
        if i != key and word not in ignored
        and not any(word.endswith(f"_{part}") and word.removesuffix(f"_{part}") in lower for part in ("n", "stderr"))
    ]  # fmt: skip
    words = [i for i in columns if rows and not any(i < len(line) and _is_number(line[i], sign) for _, line in rows)]
    if key is None or not columns or (words and len(words) == len(columns)):
        if key is not None and words:
            number, line = next(((n, row) for n, row in rows if len(row) > words[0]), rows[0])
            raise DataError(
                f"{path}:{number}: {heading[words[0]]} must be a number, not {''.join(line[words[0] : words[0] + 1])!r}"
            )
        raise DataError(
            f"{path}: the first line must name a column `checkpoint` and at least one score, "
            "as in checkpoint,swe_verified,swe_verified_n"
        )
    for i in words:
        if any(i < len(line) and line[i].lower() not in _ABSENT for _, line in rows):
            remarks[f"{path}: there is no number in the column {heading[i]!r}; left out"] = None
    columns = [i for i in columns if i not in words]
    scales = {i: _scale([line[i] for _, line in rows if i < len(line)], sign) for i in columns}
    for number, line in rows:
        where = f"{path}:{number}"
        if len(line) > len(heading):
            raise DataError(f"{where}: {len(line)} cells under {len(heading)} columns; write 31.2, not 31,2")
        row = dict(zip(lower, line, strict=False))
        for i in columns:
            cell = line[i] if i < len(line) else ""
            if cell.lower() in _ABSENT:
                continue
            n, stderr = (
                (row.get(f"{lower[i]}_{part}") or (row.get(part) if len(columns) == 1 else None)) or None
                for part in ("n", "stderr")
            )
            try:
                score = DownstreamScore(
                    scales[i] * _number(_plain_number(cell, sign), f"{where}: {heading[i]}"),
                    None if n is None else _whole(n, f"{where}: n", least=1),
                    None
                    if stderr is None
                    else scales[i] * _number(_plain_number(stderr, sign), f"{where}: stderr", least=0),
                )
            except SettingsError as error:
                raise DataError(str(error)) from None
            yield line[key], heading[i], score, where


def _column_of_checkpoints(
    heading: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], names: Sequence[str]
) -> int | None:
    """The column with the most names of checkpoints; of equal ones, by what it is called. None: there is none."""

    def rank(i: int) -> tuple[int, int]:
        cells = [line[i] for _, line in rows[:50] if i < len(line)]
        matches = sum(match_name(cell, names) is not None or _before_tuning(cell, names) is not None for cell in cells)
        return matches, len(_KEYS) - _KEYS.index(heading[i]) if heading[i] in _KEYS else 0

    best = max(range(len(heading)), key=rank, default=None)
    return best if best is not None and any(rank(best)) else None


def _plain_number(cell: str, sign: str) -> str:
    """Without the sign of per cent; in a table between semicolons or tabs a comma may be the decimal point."""
    cell = cell.removesuffix("%").strip()
    return cell.replace(",", ".") if sign != "," and cell.count(",") == 1 and "." not in cell else cell


def _scale(cells: Sequence[str], sign: str) -> float:
    """0.01 for a column with signs of per cent and nothing above 1 %, which would be read as shares."""
    values = [float(_plain_number(cell, sign)) for cell in cells if _is_number(cell, sign)]
    return 0.01 if any(cell.endswith("%") for cell in cells) and max(values, default=0.0) <= 1 else 1.0


def _is_number(cell: str, sign: str) -> bool:
    try:
        float(_plain_number(cell, sign))
    except ValueError:
        return False
    return True


# --- writing ----------------------------------------------------------------------------------------------------------


def write_ladder_file(ladder: Ladder) -> str:
    """The YAML text of a ladder; reading it gives the same ladder."""
    import yaml

    return str(yaml.safe_dump(ladder_document(ladder), sort_keys=False, allow_unicode=True, width=120))


def ladder_document(ladder: Ladder) -> dict[str, Any]:
    """A ladder as plain values, as JSON and YAML hold them; `ladder_from` gives the same ladder."""
    document: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        for name in _TOP
        if name != "checkpoints" and (value := getattr(ladder, name)) and value != getattr(Ladder(()), name)
    }
    document["checkpoints"] = []
    for checkpoint in ladder.checkpoints:
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name in _FIELDS
            if name != "downstream" and (value := getattr(checkpoint, name)) not in (None, "", ())
        }
        if checkpoint.downstream:
            fields["downstream"] = {
                task: {name: value for name in _SCORE_FIELDS if (value := getattr(score, name)) not in (None, "")}
                for task, score in checkpoint.downstream.items()
            }
        document["checkpoints"].append(fields)
    return document
