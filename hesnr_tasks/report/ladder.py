"""Where a checkpoint stands on the ladder: step, context and stage, read from its name or from a small YAML file."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.analysis.frame import natural
from hesnr_tasks.bounded_io import read_json, read_text, read_yaml
from hesnr_tasks.errors import DataError, SettingsError, nearest

__all__ = [
    "Boundary",
    "Checkpoint",
    "Ladder",
    "Score",
    "boundaries",
    "in_one_unit",
    "order",
    "parse",
    "read_downstream",
    "read_ladder",
    "scaled",
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


class Checkpoint(NamedTuple):
    """One checkpoint. None: not known."""

    name: str
    step: int | None = None
    context: int | None = None  # tokens
    stage: str = ""  # "", "sft", "rl", or what the YAML file says
    label: str = ""
    before: str | None = None  # the checkpoint that this one was made from

    @property
    def shown(self) -> str:
        """A short name for axes."""
        if self.label:
            return self.label
        parts = [f"{self.step}" if self.step is not None else self.name[-16:]]
        if self.context:
            parts.append(tokens(self.context))
        return "\n".join([*parts, self.stage.upper()] if self.stage else parts)


class Ladder(NamedTuple):
    """Checkpoints in the order of training, and downstream scores that the YAML file gives (score, n)."""

    checkpoints: tuple[Checkpoint, ...]
    downstream: Mapping[str, tuple[float, int | None]]


class Boundary(NamedTuple):
    """Between checkpoint `at` - 1 and `at` something changed; with a context extension, `at` - 1 is "step 0"."""

    at: int
    kind: str  # "context" or "stage"
    label: str


def tokens(context: int) -> str:
    """`32K` for 32768."""
    return f"{context // 1024}K" if context % 1024 == 0 else str(context)


def parse(name: str) -> Checkpoint:
    """What a checkpoint's name tells: `step2000`, `global_step500`, `iter_0012000`, `step1004-8k`, `…-32k-sft`."""
    words = name.lower()
    pattern = _STEPS if _STEPS.search(words) else _STEP
    found = pattern.findall(words)
    step = int(found[-1][0]) * (1000 if found[-1][1] else 1) if found else None
    rest = pattern.sub(" ", words)
    lengths = [(int(a or c), b or d) for a, b, c, d in _CONTEXT.findall(rest)]
    context = lengths[-1][0] * (1024 if lengths[-1][1] else 1) if lengths else None
    said = set(re.split(r"[^a-z]+", words))
    stage = next((stage for stage, signs in reversed(_STAGES.items()) if said.intersection(signs)), "")
    return Checkpoint(name, step, context, stage)


def order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """In the order of training: by stage, context, step, name (steps may begin anew after a context extension)."""
    ranks = {"": 0, **{stage: place for place, stage in enumerate(_STAGES, 1)}}

    def key(one: Checkpoint) -> tuple[int, int, bool, int, list[tuple[int, str]]]:
        return ranks.get(one.stage, 0), one.context or 0, one.step is None, one.step or 0, natural(one.name)

    return sorted(checkpoints, key=key)


def read_ladder(names: Iterable[str], path: Path | None = None) -> Ladder:
    """The ladder of the checkpoints `names`; raises `SettingsError` where the file says what cannot be."""
    parsed = {name: parse(name) for name in names}
    told = _read(path) if path else {}
    scores: dict[str, tuple[float, int | None]] = {}
    for name, fields in told.items():
        if name not in parsed:
            raise SettingsError(
                f"{path}: {name!r} is none of the checkpoints.{nearest(name, parsed)} {_listed(parsed)}"
            )
        parsed[name] = _told(parsed[name], fields, f"{path}: {name}")
        if fields.get("downstream") is not None:
            n = None if fields.get("n") is None else _whole(fields, "n", f"{path}: {name}")
            scores[name] = (_number(fields, "downstream", f"{path}: {name}"), n)
    for one in parsed.values():
        if one.before is not None and one.before not in parsed:
            raise SettingsError(
                f"{path}: {one.name}: before: {one.before!r} is none of the checkpoints. {_listed(parsed)}"
            )
    complete = set(told) == set(parsed)
    return Ladder(tuple(parsed[name] for name in told) if complete else tuple(order(parsed.values())), scores)


def boundaries(ladder: Sequence[Checkpoint]) -> list[Boundary]:
    """Where the context or the stage changes from one checkpoint to the next."""
    found = []
    for at, (old, new) in enumerate(itertools.pairwise(ladder), 1):
        if new.stage != old.stage:
            found.append(Boundary(at, "stage", new.stage.upper() or "next stage"))
        elif new.context and new.context > (old.context or 0) and new.stage not in _STAGES:
            found.append(Boundary(at, "context", f"→ {tokens(new.context)}"))
    return found


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        found = read_yaml(path)
    except DataError as error:
        raise SettingsError(f"cannot read the ladder: {error}") from None
    found = found.get("checkpoints", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(fields, dict) for fields in found.values()):
        raise SettingsError(
            f"{path} must map checkpoints to what is known of them, as in: step2000-32k: {{step: 2000, stage: sft}}"
        )
    return {str(name): fields for name, fields in found.items()}


def _told(one: Checkpoint, fields: Mapping[str, Any], where: str) -> Checkpoint:
    for name in fields:
        if name not in _FIELDS:
            raise SettingsError(
                f"{where}: unknown field {name!r}.{nearest(str(name), _FIELDS)} Known: {', '.join(_FIELDS)}"
            )
    given: dict[str, Any] = {
        name: str(fields[name]) for name in ("stage", "label", "before") if fields.get(name) is not None
    }
    if fields.get("step") is not None:
        one = one._replace(step=_whole(fields, "step", where))
    if fields.get("context") is not None:
        word = str(fields["context"]).lower()
        size = re.fullmatch(r"(\d+)(k?)", word)
        if not size:
            raise SettingsError(f"{where}: context {word!r} is no number of tokens such as 32768 or 32k")
        one = one._replace(context=int(size[1]) * (1024 if size[2] else 1))
    return one._replace(**given)


def _number(fields: Mapping[str, Any], name: str, where: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
        raise SettingsError(f"{where}: {name} must be a number, not {value!r}")
    return float(value)


def _whole(fields: Mapping[str, Any], name: str, where: str) -> int:
    value = _number(fields, name, where)
    if not value.is_integer():
        raise SettingsError(f"{where}: {name} must be a whole number, not {value:g}")
    return int(value)


def _listed(names: Iterable[str]) -> str:
    return f"There are: {', '.join(sorted(names, key=natural))}."


# --- Downstream scores of checkpoints: a CSV file (checkpoint,score[,n]) or SWE-bench's own report files ---

_WORD = "0-9a-z\u0080-\U0010ffff"  # what tells names apart; a sign outside ASCII is as good as a letter
_Z = 1.959963984540054


class Score(NamedTuple):
    """A downstream score; how many tasks it is the share of (None: not known), and what all of them would be."""

    value: float
    n: int | None = None
    whole: float = 1.0  # 100.0 for per cent

    @property
    def ends(self) -> tuple[float, float]:
        """Wilson's 95 % interval of a share of n tasks (as a share or in per cent); NaN without n."""
        if not self.n:
            return math.nan, math.nan
        p, z = self.value / self.whole, _Z**2 / self.n
        half = _Z * math.sqrt(p * (1 - p) / self.n + z / (4 * self.n))
        return self.whole * (p + z / 2 - half) / (1 + z), self.whole * (p + z / 2 + half) / (1 + z)


def scaled(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Scores of one source: shares of 1 if none is above 1, per cent if one is."""
    whole = 100.0 if any(score.value > 1 for score in scores.values()) else 1.0
    for name, score in scores.items():
        if score.n is not None and (score.n < 1 or not 0 <= score.value <= whole):
            raise DataError(
                f"downstream score of {name}: {score.value:g} is no share (0 to 1) or per cent (to 100) of {score.n} "
                "tasks; leave n out where the score is no share of tasks"
            )
    return {name: score._replace(whole=whole) for name, score in scores.items()}


def in_one_unit(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The scores of all sources together; raises `DataError` where some are shares and others per cent."""
    units = {score.whole: name for name, score in scores.items()}
    if len(units) > 1:
        share, cent = units[1.0], units[100.0]
        raise DataError(
            f"some downstream scores are shares ({share}: {scores[share].value:g}) and some per cent ({cent}: "
            f"{scores[cent].value:g}). Give all as shares, from 0 to 1, as SWE-bench reports do, or all in one file."
        )
    return dict(scores)


def read_downstream(paths: Iterable[Path], names: Sequence[str]) -> tuple[dict[str, Score], list[str]]:
    """The score of each checkpoint of `names` that has one, and remarks on what could not be matched.

    Raises `DataError` for files that cannot be read, two scores of one checkpoint, or where nothing matches.
    """
    found: dict[str, Score] = {}
    strange: list[str] = []
    for path in _score_files(paths):
        for name, score, where in _report(path, names) if path.suffix == ".json" else _csv(path):
            match = _match(name, names)
            if match is None:
                strange.append(f"{where}: {name!r}")
            elif match in found and found[match] != score:
                raise DataError(
                    f"{where}: a second, different score of {match}: {found[match].value} and {score.value}"
                )
            else:
                found[match] = score
    if not found:
        raise DataError(
            f"no downstream score belongs to one of the checkpoints {', '.join(names)}; there are scores of "
            f"{', '.join(strange[:8]) or 'nothing'}. Name them as the checkpoints are named."
        )
    return found, [f"downstream score of no checkpoint here: {one}" for one in strange]


def _score_files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        found += sorted(path.glob("*.json")) if path.is_dir() else [path]
    return found


def _csv(path: Path) -> list[tuple[str, Score, str]]:
    try:
        lines = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise DataError(f"cannot read {path} ({error})") from None
    heading = [word.strip().lower() for word in lines[0]] if lines else []
    if "checkpoint" not in heading or "score" not in heading:
        raise DataError(f"{path}: the first line must name the columns checkpoint,score or checkpoint,score,n")
    rows = []
    for at, line in enumerate(lines[1:], 2):
        if any(word.strip() for word in line):
            where = f"{path}:{at}"
            if any(word.strip() for word in line[len(heading) :]):
                raise DataError(f"{where}: {len(line)} cells under {len(heading)} columns; write 31.2, not 31,2")
            fields = dict.fromkeys(heading, "") | dict(zip(heading, (word.strip() for word in line), strict=False))
            n = _count(fields["n"], where) if fields.get("n") else None
            rows.append((fields["checkpoint"], Score(_finite(fields["score"], "score", where), n), where))
    known = scaled({where: score for _, score, where in rows})
    return [(name, known[where], where) for name, _, where in rows]


def _finite(word: str, name: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} {word!r} is no number")
    return value


def _count(word: str, where: str) -> int:
    value = _finite(word, "n", where)
    if not value.is_integer():
        raise DataError(f"{where}: n {word!r} is no number of tasks")
    return int(value)


def _report(path: Path, names: Sequence[str]) -> list[tuple[str, Score, str]]:
    """One report of SWE-bench's harness: its file name says whose it is."""
    try:
        found = read_json(path)
        resolved, total = found["resolved_instances"], found["total_instances"]
        if not (type(resolved) is int and type(total) is int and 0 <= resolved <= total > 0):
            raise ValueError(f"{resolved!r} resolved of {total!r}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no SWE-bench report (resolved_instances of total_instances): {why}") from None
    return [(_named_in(path.stem, names) or path.stem, Score(resolved / total, total), str(path))]


def _named_in(stem: str, names: Sequence[str]) -> str | None:
    """The longest checkpoint name that stands in the file's name, not as a part of a longer number or word."""
    fits = [name for name in names if re.search(rf"(?<![{_WORD}]){re.escape(_bare(name))}(?![{_WORD}])", _bare(stem))]
    longest = max(map(len, fits), default=0)
    best = [name for name in fits if len(name) == longest]
    return best[0] if len(best) == 1 else None


def _match(name: str, names: Sequence[str]) -> str | None:
    """Exactly; or else whatever the case, the folder before it and the signs between words."""
    if name in names:
        return name
    for ends in (False, True):
        wanted = _bare(name.rstrip("/").split("/")[-1] if ends else name)
        fits = [one for one in names if _bare(one.split("/")[-1] if ends else one) == wanted]
        if len(fits) == 1:
            return fits[0]
    return None


def _bare(name: str) -> str:
    return re.sub(f"[^.{_WORD}]+", "-", name.casefold())
