"""The ladder: step, context and stage of each checkpoint, from its name or a YAML file, and its downstream score."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.analysis.frame import natural
from hesnr_tasks.bounded_io import read_json, read_text, read_yaml
from hesnr_tasks.errors import DataError, SettingsError, nearest

__all__ = [
    "Boundary",
    "Checkpoint",
    "DownstreamScore",
    "Ladder",
    "boundaries",
    "downstream_scores",
    "parse_name",
    "read_ladder",
    "read_scores",
    "sft_pairs",
    "training_order",
]

_STEP = re.compile(r"(?<![a-z])(?:[a-z]+_)?(?:steps?|iter(?:ation)?s?|checkpoint|ckpt)[-_=]?(\d+)(k(?![a-z0-9]))?")
_STEPS = re.compile(r"(?<![a-z0-9.])(\d+)(k)?(?:steps?|[-_]steps)(?![a-z0-9])")
_CONTEXT = re.compile(
    r"(?<![a-z0-9.])(?:(?:ctx|context|seqlen|len)[-_=]?(\d+)(k)?|(\d+)(k)[-_]?(?:ctx|context)?)(?![a-z0-9])"
)
_STAGES = {  # words that name a stage, in the order of training
    "sft": ("sft", "instruct", "chat", "finetuned"),
    "rl": ("rl", "rlhf", "dpo", "grpo", "ppo", "rlvr"),
}
_LARGEST = 1e15  # NaN and infinity are not below it
_FIELDS = ("step", "stage", "context", "label", "downstream", "n", "before")
_WORD = "0-9a-z\u0080-\U0010ffff"  # characters of a name; all outside ASCII count as letters
_Z = 1.959963984540054  # of a 95 % interval


class Checkpoint(NamedTuple):
    """A checkpoint's place in training; None: unknown."""

    name: str
    step: int | None = None
    context: int | None = None  # tokens
    stage: str = ""  # "", "sft", "rl", or as in the YAML file
    label: str = ""
    before: str | None = None  # the checkpoint that it was trained from

    @property
    def axis_label(self) -> str:
        """A short name for axes."""
        if self.label:
            return self.label
        parts = [str(self.step) if self.step is not None else self.name[-16:]]
        parts += [_in_k(self.context)] if self.context else []
        return "\n".join([*parts, self.stage.upper()] if self.stage else parts)


class DownstreamScore(NamedTuple):
    """A downstream score, a share of n tasks (None: unknown); scale: 1.0, or 100.0 for per cent."""

    value: float
    n: int | None = None
    scale: float = 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, in the unit of the value; NaN without n."""
        if not self.n:
            return math.nan, math.nan
        p, z = self.value / self.scale, _Z**2 / self.n
        half = _Z * math.sqrt(p * (1 - p) / self.n + z / (4 * self.n))
        return self.scale * (p + z / 2 - half) / (1 + z), self.scale * (p + z / 2 + half) / (1 + z)


class Ladder(NamedTuple):
    """Checkpoints in the order of training, and the downstream scores in the YAML file."""

    checkpoints: tuple[Checkpoint, ...]
    downstream: Mapping[str, DownstreamScore]


class Boundary(NamedTuple):
    """A change between checkpoints `position` - 1 and `position`; of a context extension the former is "step 0"."""

    position: int
    kind: str  # "context" or "stage"
    label: str


# --- names and order --------------------------------------------------------------------------------------------------


def parse_name(name: str) -> Checkpoint:
    """Step, context and stage in a name: `step2000`, `global_step500`, `iter_0012000`, `step1004-8k`, `…-32k-sft`."""
    text = name.lower()
    pattern = _STEPS if _STEPS.search(text) else _STEP
    steps = pattern.findall(text)
    step = int(steps[-1][0]) * (1000 if steps[-1][1] else 1) if steps else None
    contexts = [(int(a or c), b or d) for a, b, c, d in _CONTEXT.findall(pattern.sub(" ", text))]
    context = contexts[-1][0] * (1024 if contexts[-1][1] else 1) if contexts else None
    words = set(re.split(r"[^a-z]+", text))
    stage = next((stage for stage, signs in reversed(_STAGES.items()) if words.intersection(signs)), "")
    return Checkpoint(name, step, context, stage)


def training_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Sorted by stage, context, step, name: steps may restart after a context extension."""
    ranks = {"": 0, **{stage: rank for rank, stage in enumerate(_STAGES, 1)}}

    def key(c: Checkpoint) -> tuple[int, int, bool, int, list[tuple[int, str]]]:
        return ranks.get(c.stage, 0), c.context or 0, c.step is None, c.step or 0, natural(c.name)

    return sorted(checkpoints, key=key)


def boundaries(ladder: Sequence[Checkpoint]) -> list[Boundary]:
    """Where the context grows or the stage changes from one checkpoint to the next."""
    changes = []
    for index, (old, new) in enumerate(itertools.pairwise(ladder), 1):
        if new.stage != old.stage:
            changes.append(Boundary(index, "stage", new.stage.upper() or "next stage"))
        elif new.context and new.context > (old.context or 0) and new.stage not in _STAGES:
            changes.append(Boundary(index, "context", f"→ {_in_k(new.context)}"))
    return changes


def sft_pairs(ladder: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Each checkpoint of a later stage with its parent: `before`, else of the same step and context, else the last."""
    by_name = {checkpoint.name: checkpoint for checkpoint in ladder}
    pairs = []
    for i, after in enumerate(ladder):
        earlier = [other for other in ladder[:i] if other.stage != after.stage]
        if after.before in by_name:
            pairs.append((by_name[after.before], after))
        elif after.stage and earlier and after.before is None:
            same = [x for x in earlier if (x.step, x.context) == (after.step, after.context) and after.step is not None]
            if same or ladder[i - 1].stage != after.stage:
                pairs.append(((same or earlier)[-1], after))
    return pairs


def _in_k(context: int) -> str:
    return f"{context // 1024}K" if context % 1024 == 0 else str(context)


# --- the YAML file ----------------------------------------------------------------------------------------------------


def read_ladder(names: Iterable[str], path: Path | None = None) -> Ladder:
    """Parse the names of checkpoints; a YAML file at `path` overrides what names say, and may give the order.

    Raises:
        SettingsError: the file names no such checkpoint, an unknown field, or a value out of range.
    """
    checkpoints = {name: parse_name(name) for name in names}
    entries = _read_entries(path) if path else {}
    scores: dict[str, DownstreamScore] = {}
    listed = f"There are: {', '.join(sorted(checkpoints, key=natural))}."
    for name, fields in entries.items():
        where = f"{path}: {name}"
        if name not in checkpoints:
            raise SettingsError(f"{path}: {name!r} is none of the checkpoints.{nearest(name, checkpoints)} {listed}")
        checkpoints[name] = _with_fields(checkpoints[name], fields, where)
        if fields.get("downstream") is not None:
            n = None if fields.get("n") is None else _integer(fields, "n", where)
            scores[name] = DownstreamScore(_real(fields, "downstream", where), n)
    for checkpoint in checkpoints.values():
        if checkpoint.before is not None and checkpoint.before not in checkpoints:
            raise SettingsError(
                f"{path}: {checkpoint.name}: before: {checkpoint.before!r} is none of the checkpoints. {listed}"
            )
    complete = set(entries) == set(checkpoints)
    order = [checkpoints[name] for name in entries] if complete else training_order(checkpoints.values())
    return Ladder(tuple(order), _with_scale(scores))


def _read_entries(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        content = read_yaml(path)
    except DataError as error:
        raise SettingsError(f"cannot read the ladder: {error}") from None
    content = content.get("checkpoints", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(fields, dict) for fields in content.values()):
        raise SettingsError(f"{path} must map checkpoints to fields, as in: step2000-32k: {{step: 2000, stage: sft}}")
    return {str(name): fields for name, fields in content.items()}


def _with_fields(checkpoint: Checkpoint, fields: Mapping[str, Any], where: str) -> Checkpoint:
    for name in fields:
        if name not in _FIELDS:
            raise SettingsError(
                f"{where}: unknown field {name!r}.{nearest(str(name), _FIELDS)} Known: {', '.join(_FIELDS)}"
            )
    values: dict[str, Any] = {
        name: str(fields[name]) for name in ("stage", "label", "before") if fields.get(name) is not None
    }
    if fields.get("step") is not None:
        values["step"] = _integer(fields, "step", where)
    if fields.get("context") is not None:
        word = str(fields["context"]).lower()
        size = re.fullmatch(r"(\d+)(k?)", word)
        if not size:
            raise SettingsError(f"{where}: context {word!r} is no number of tokens such as 32768 or 32k")
        values["context"] = int(size[1]) * (1024 if size[2] else 1)
    return checkpoint._replace(**values)


def _real(fields: Mapping[str, Any], name: str, where: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise SettingsError(f"{where}: {name} must be a number, not {value!r}")
    return float(value)


def _integer(fields: Mapping[str, Any], name: str, where: str) -> int:
    value = _real(fields, name, where)
    if not value.is_integer():
        raise SettingsError(f"{where}: {name} must be a whole number, not {value:g}")
    return int(value)


# --- downstream scores ------------------------------------------------------------------------------------------------


def downstream_scores(ladder: Ladder, paths: Sequence[Path]) -> tuple[dict[str, DownstreamScore], list[str]]:
    """Scores in the ladder's file and in `paths`, in the order of the ladder, with notes on scores of no checkpoint.

    Raises:
        DataError: a file cannot be read, nothing matches, two scores of a checkpoint differ, or some scores are shares
            and others per cent.
    """
    if not paths:
        return dict(ladder.downstream), []
    scores, notes = read_scores(paths, [checkpoint.name for checkpoint in ladder.checkpoints])
    for name in ladder.downstream.keys() & scores.keys():
        if ladder.downstream[name].value != scores[name].value:
            raise DataError(
                f"{name} has two downstream scores: {ladder.downstream[name].value:g} and {scores[name].value:g}"
            )
    merged = {**ladder.downstream, **scores}
    units = {score.scale: name for name, score in merged.items()}
    if len(units) > 1:
        share, cent = units[1.0], units[100.0]
        raise DataError(
            f"some downstream scores are shares ({share}: {merged[share].value:g}) and some per cent ({cent}: "
            f"{merged[cent].value:g}). Give all as shares, from 0 to 1, as SWE-bench reports do, or all in one file."
        )
    return {c.name: merged[c.name] for c in ladder.checkpoints if c.name in merged}, notes


def read_scores(paths: Iterable[Path], names: Sequence[str]) -> tuple[dict[str, DownstreamScore], list[str]]:
    """Scores in CSV files (checkpoint,score[,n]) and reports of SWE-bench's harness (.json, or folders of them).

    Args:
        paths: the files.
        names: the checkpoints; a score belongs to the checkpoint of its name, whatever the case and separators.

    Returns:
        checkpoint -> score, and notes on scores of no checkpoint. Raises as `downstream_scores`.
    """
    scores: dict[str, DownstreamScore] = {}
    unmatched: list[str] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            for name, score, where in _swebench_report(file, names) if file.suffix == ".json" else _csv_file(file):
                match = _match(name, names)
                if match is None:
                    unmatched.append(f"{where}: {name!r}")
                elif scores.setdefault(match, score) != score:
                    raise DataError(
                        f"{where}: a second, different score of {match}: {scores[match].value} and {score.value}"
                    )
    if not scores:
        raise DataError(
            f"no downstream score belongs to one of the checkpoints {', '.join(names)}; there are scores of "
            f"{', '.join(unmatched[:8]) or 'nothing'}. Name them as the checkpoints are named."
        )
    return scores, [f"downstream score of no checkpoint here: {entry}" for entry in unmatched]


def _with_scale(scores: Mapping[str, DownstreamScore]) -> dict[str, DownstreamScore]:
    """Scores of one file are shares of 1 if none is above 1, else per cent."""
    scale = 100.0 if any(score.value > 1 for score in scores.values()) else 1.0
    for name, score in scores.items():
        if score.n is not None and (score.n < 1 or not 0 <= score.value <= scale):
            raise DataError(
                f"downstream score of {name}: {score.value:g} is no share (0 to 1) or per cent (to 100) of {score.n} "
                "tasks; leave n out where the score is no share of tasks"
            )
    return {name: score._replace(scale=scale) for name, score in scores.items()}


def _csv_file(path: Path) -> Iterator[tuple[str, DownstreamScore, str]]:
    """Name, score and file:line of each row."""
    try:
        lines = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise DataError(f"cannot read {path} ({error})") from None
    columns = [word.strip().lower() for word in lines[0]] if lines else []
    if "checkpoint" not in columns or "score" not in columns:
        raise DataError(f"{path}: the first line must name the columns checkpoint,score or checkpoint,score,n")
    names, scores = [], {}
    for number, line in enumerate(lines[1:], 2):
        cells, where = [word.strip() for word in line], f"{path}:{number}"
        if any(cells[len(columns) :]):
            raise DataError(f"{where}: {len(line)} cells under {len(columns)} columns; write 31.2, not 31,2")
        if any(cells):
            fields = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
            n = _finite(fields["n"], "n", where) if fields.get("n") else None
            if n is not None and not n.is_integer():
                raise DataError(f"{where}: n {fields['n']!r} is no number of tasks")
            names.append(fields["checkpoint"])
            score = _finite(fields["score"], "score", where)
            scores[where] = DownstreamScore(score, None if n is None else int(n))
    yield from ((name, score, where) for name, (where, score) in zip(names, _with_scale(scores).items(), strict=True))


def _finite(word: str, name: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} {word!r} is no number")
    return value


def _swebench_report(path: Path, names: Sequence[str]) -> Iterator[tuple[str, DownstreamScore, str]]:
    """A report belongs to the longest checkpoint name in its file name, as a whole word or number."""
    try:
        content = read_json(path)
        resolved, total = content["resolved_instances"], content["total_instances"]
        if not (type(resolved) is int and type(total) is int and 0 <= resolved <= total > 0):
            raise ValueError(f"{resolved!r} resolved of {total!r}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no SWE-bench report (resolved_instances of total_instances): {why}") from None
    stem = _normalized(path.stem)
    fits = [x for x in names if re.search(rf"(?<![{_WORD}]){re.escape(_normalized(x))}(?![{_WORD}])", stem)]
    best = [name for name in fits if len(name) == max(map(len, fits))]
    yield best[0] if len(best) == 1 else path.stem, DownstreamScore(resolved / total, total), str(path)


def _match(name: str, names: Sequence[str]) -> str | None:
    """The checkpoint of a name: exactly; else whatever the case, separators and folder before it."""
    if name in names:
        return name
    for last_part in (False, True):
        wanted = _normalized(name.rstrip("/").split("/")[-1] if last_part else name)
        fits = [x for x in names if _normalized(x.split("/")[-1] if last_part else x) == wanted]
        if len(fits) == 1:
            return fits[0]
    return None


def _normalized(name: str) -> str:
    return re.sub(f"[^.{_WORD}]+", "-", name.casefold())
