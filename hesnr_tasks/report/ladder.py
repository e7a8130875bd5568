"""Where a checkpoint stands on the ladder: step, context and stage, read from its name or from a small YAML file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hesnr_tasks.analysis.options import natural
from hesnr_tasks.bounded_io import read_yaml
from hesnr_tasks.errors import DataError, SettingsError, nearest

__all__ = ["Boundary", "Checkpoint", "Ladder", "boundaries", "order", "parse", "read_ladder"]

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
