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

import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, TypeVar

from hesnr_tasks.errors import DataError, SettingsError, nearest, printable
from hesnr_tasks.files.bounded import read_yaml

STAGES = ("pretrain", "mid", "long-context", "sft", "rl")
TUNED_WORDS = {  # words of a name that tell of fine-tuning
    "sft": ("sft", "instruct", "chat", "finetuned"),
    "rl": ("rl", "rlhf", "dpo", "grpo", "ppo", "rlvr"),
}
_TUNED = tuple(TUNED_WORDS)
_LARGEST = 1e15
_Number = TypeVar("_Number", int, float)
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
    remarks: tuple[str, ...] = field(default=(), compare=False)  # on what of the file does not count

    def __getitem__(self, name: str) -> Checkpoint:
        return next(checkpoint for checkpoint in self.checkpoints if checkpoint.name == name)

    @property
    def benchmarks(self) -> list[str]:
        """Names of the downstream tasks, as they first occur."""
        return list(dict.fromkeys(task for checkpoint in self.checkpoints for task in checkpoint.downstream))


def kinds_of(checkpoints: Collection[Checkpoint], stages_apart: bool = False) -> dict[str, str]:
    """Of each name "base" or "fine-tuned", with the stage where there are several after fine-tuning: never pooled.

    `stages_apart`: the stages before fine-tuning are kinds of their own too.
    """
    tuned = {c.name: c.stage if c.stage in _TUNED else "sft" for c in checkpoints if c.tuned}
    several = len({*tuned.values()}) > 1
    return {
        c.name: (f"fine-tuned ({tuned[c.name]})" if several else "fine-tuned")
        if c.tuned
        else (stages_apart and c.stage) or "base"
        for c in checkpoints
    }


def in_k(context: int) -> str:
    """A context such as 32768 as 32K."""
    return f"{context // 1024}K" if context % 1024 == 0 else str(context)


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
    if not isinstance(document, dict) or not isinstance(document.get("checkpoints"), list):
        raise SettingsError(
            f"{path}: a ladder file has a list `checkpoints:`, each with a name. "
            "Write one with: hesnr ladder init RESULTS"
        )
    _refuse_unknown(document, Ladder, str(path))
    _refuse_unprintable(document["checkpoints"], f"{path}: checkpoints")
    checkpoints = tuple(_checkpoint(entry, i, path) for i, entry in enumerate(document["checkpoints"], 1))
    checkpoints, remarks = _linked(checkpoints, path)
    return Ladder(
        checkpoints,
        remarks=remarks,
        trajectories=tuple(
            _beside(path, text) for text in _texts(document.get("trajectories"), f"{path}: trajectories")
        ),
        tasks=_texts(document.get("tasks"), f"{path}: tasks") or ("hesnr_swe",),
        model=str(document.get("model") or "hf"),
        model_args=_settings(document.get("model_args"), f"{path}: model_args"),
        metadata=_settings(document.get("metadata"), f"{path}: metadata"),
        lm_eval_args=_texts(document.get("lm_eval_args"), f"{path}: lm_eval_args"),
        gpus=finite_number(document.get("gpus") or 0, f"{path}: gpus", least=0),
        slurm=_settings(document.get("slurm"), f"{path}: slurm"),
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


def _checkpoint(entry: Any, position: int, path: Path) -> Checkpoint:
    if not isinstance(entry, dict) or entry.get("name") in (None, ""):
        raise SettingsError(f"{path}: checkpoint {position} of the list has no name")
    words: dict[str, str] = {}
    for name in ("name", "model", "revision", "tokenizer", "family", "sft_of", "before", "label"):
        if entry.get(name) is not None and type(entry[name]) not in (str, int):
            raise SettingsError(
                f"{path}: checkpoint {position} of the list: {name} {entry[name]!s} is no text; put it in quotes"
            )
        words[name] = str(entry[name]) if entry.get(name) is not None else ""
    where = f"{path}: {entry['name']}"
    _refuse_unknown(entry, Checkpoint, where)
    stage = str(entry.get("stage") or "")
    if stage and stage not in STAGES:
        raise SettingsError(f"{where}: stage {stage!r} must be one of {', '.join(STAGES)}.{nearest(stage, STAGES)}")
    words["model"] = _beside(path, words["model"])
    return Checkpoint(
        stage=stage or ("sft" if entry.get("sft_of") else ""),
        step=_optional(whole_number, entry, "step", where, 0),
        tokens=_optional(finite_number, entry, "tokens", where, 0),
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
        return DownstreamScore(finite_number(score, where))
    _refuse_unknown(score, DownstreamScore, where)
    if score.get("value") is None:
        raise SettingsError(f"{where} has no value, as in {{value: 31.2, n: 500}}")
    after = str(score.get("after") or "")
    if after not in ("", *_TUNED):
        raise SettingsError(f"{where}: after {after!r} must be sft or rl, or be left out")
    return DownstreamScore(
        finite_number(score["value"], f"{where}: value"),
        _optional(whole_number, score, "n", where, 1),
        _optional(finite_number, score, "stderr", where, 0),
        str(score.get("harness") or ""),
        after,
    )


def _linked(checkpoints: Sequence[Checkpoint], path: Path) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """The checkpoints without links in a circle, and what was wrong with these.

    Raises:
        SettingsError: a name that occurs twice, or a link to no checkpoint of the file.
    """
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
    remarks: list[str] = []
    while True:
        parents = {name: {link for link in (c.sft_of, c.before) if link} for name, c in by_name.items()}
        try:
            TopologicalSorter(parents).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]
        else:
            return tuple(by_name.values()), tuple(remarks)
        remarks.append(f"{path}: a circle of sft_of or before: {' -> '.join(circle)}; these links do not count")
        for name, parent in itertools.pairwise(circle):
            old = by_name[name]
            kept = ("" if link == parent else link for link in (old.sft_of, old.before))
            by_name[name] = replace(old, sft_of=next(kept), before=next(kept))


def _optional(
    read: Callable[..., _Number], entry: Mapping[str, Any], name: str, where: str, least: float
) -> _Number | None:
    return None if entry.get(name) is None else read(entry[name], f"{where}: {name}", least=least)


def _refuse_unknown(entry: Mapping[Any, Any], schema: type[Any], where: str) -> None:
    allowed = [field.name for field in fields(schema) if field.compare]
    for name in entry:
        if name not in allowed:
            raise SettingsError(
                f"{where}: unknown field {str(name)!r}.{nearest(str(name), allowed)} There are: {', '.join(allowed)}"
            )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(type(item) in (str, int) for item in value):
        return tuple(str(item) for item in value)
    raise SettingsError(f"{where} must be a text or a list of texts; put what looks like a number in quotes")


def _settings(value: Any, where: str) -> Mapping[str, Any]:
    """Settings that are passed on; `no`, which YAML 1.1 has for false, is a text that others take for true."""
    settings = _mapping(value, where)
    for name, item in settings.items():
        if isinstance(item, str) and item.lower() in ("yes", "no", "on", "off", "y", "n"):
            raise SettingsError(f"{where}: {name} {item!r} is a text in YAML 1.2; write true or false")
    return settings


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
    return whole_number(int(size[1]) * (1024 if size[2] else 1), f"{where}: context", least=1)


def finite_number(value: Any, where: str, *, least: float = -math.inf) -> float:
    """A number, or the text of one; `where`: it stands, for the SettingsError of what is none or less than `least`."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < _LARGEST:
        raise SettingsError(f"{where} must be a number, not {value!r}")
    if number < least:
        raise SettingsError(f"{where} must be at least {least:g}, not {value!r}")
    return number


def whole_number(value: Any, where: str, *, least: float = -math.inf) -> int:
    """A whole number, as `finite_number`."""
    number = finite_number(value, where, least=least)
    if not number.is_integer():
        raise SettingsError(f"{where} must be a whole number, not {value!r}")
    return int(number)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_ladder_file(ladder: Ladder) -> str:
    """The YAML text of a ladder; reading it gives the same ladder."""
    import yaml

    return str(yaml.safe_dump(ladder_document(ladder), sort_keys=False, allow_unicode=True, width=120))


def ladder_document(ladder: Ladder) -> dict[str, Any]:
    """A ladder as plain values, as JSON and YAML hold them; `ladder_from` gives the same ladder."""
    document = _filled(ladder, Ladder(()))
    document["checkpoints"] = []
    for checkpoint in ladder.checkpoints:
        entry = _filled(checkpoint, Checkpoint(""))
        if checkpoint.downstream:
            scores = checkpoint.downstream.items()
            entry["downstream"] = {task: _filled(score, DownstreamScore(math.nan)) for task, score in scores}
        document["checkpoints"].append(entry)
    return document


def _filled(item: Any, blank: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as in a blank one."""
    return {
        field.name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        for field in fields(item)
        if field.compare and (value := getattr(item, field.name)) != getattr(blank, field.name)
    }
