"""What names of checkpoints tell: step, context, stage, the order of training, and whose results they are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hesnr_tasks.analysis.frame import natural
from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.ladder.downstream import add_downstream, match_name
from hesnr_tasks.ladder.schema import (
    STAGES,
    TUNED_WORDS,
    Checkpoint,
    Ladder,
    in_k,
    read_ladder_file,
)

_STEP = re.compile(r"(?<![a-z])(?:[a-z]+_)?(?:steps?|iter(?:ation)?s?|checkpoint|ckpt)[-_=]?(\d+)(k(?![a-z0-9]))?")
_STEPS = re.compile(r"(?<![a-z0-9.])(\d+)(k)?(?:steps?|[-_]steps)(?![a-z0-9])")
_CONTEXT = re.compile(
    r"(?<![a-z0-9.])(?:(?:ctx|context|seqlen|len)[-_=]?(\d+)(k)?|(\d+)(k)[-_]?(?:ctx|context)?)(?![a-z0-9])"
)
_RANKS = {"": 0, **{stage: rank for rank, stage in enumerate(STAGES)}}


class Boundary(NamedTuple):
    """A change between checkpoints `position` - 1 and `position`; of a context extension the former is "step 0"."""

    position: int
    kind: str  # "context" or "stage"
    label: str


class NamedLadder(NamedTuple):
    """A ladder whose checkpoints are called as their results are.

    Attributes:
        checkpoints: those with results, in the order of training, a family after the other.
        ladder: all of them, also those that only have downstream scores.
        notes: what does not belong together.
    """

    checkpoints: tuple[Checkpoint, ...]
    ladder: Ladder
    notes: tuple[str, ...] = ()


def parse_name(name: str) -> Checkpoint:
    """Step, context and stage in a name: `step2000`, `global_step500`, `iter_0012000`, `step1004-8k`, `…-32k-sft`."""
    text = name.lower()
    pattern = _STEPS if _STEPS.search(text) else _STEP
    steps = pattern.findall(text)
    step = int(steps[-1][0]) * (1000 if steps[-1][1] else 1) if steps else None
    contexts = [(int(a or c), b or d) for a, b, c, d in _CONTEXT.findall(pattern.sub(" ", text))]
    context = contexts[-1][0] * (1024 if contexts[-1][1] else 1) if contexts else None
    words = set(re.split(r"[^a-z]+", text))
    stage = next((stage for stage, signs in reversed(TUNED_WORDS.items()) if words.intersection(signs)), "")
    return Checkpoint(name, step=step, context=context, stage=stage)


def families(checkpoints: Iterable[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """The checkpoints by family, in the order in which families first occur."""
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.family, []).append(checkpoint)
    return groups


def training_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """By family, stage, context, step and name: steps may restart after a context extension."""

    def key(c: Checkpoint) -> tuple[int, int, bool, int, list[tuple[int, str]]]:
        return _RANKS.get(c.stage, 0), c.context or 0, c.step is None, c.step or 0, natural(c.name)

    return [c for family in families(checkpoints).values() for c in sorted(family, key=key)]


def boundaries(ladder: Sequence[Checkpoint]) -> list[Boundary]:
    """Where the family or the stage changes, or the context grows, from one checkpoint to the next."""
    changes = []
    for index, (old, new) in enumerate(itertools.pairwise(ladder), 1):
        if new.family != old.family:
            changes.append(Boundary(index, "stage", new.family or "next family"))
        elif new.tuned != old.tuned or (new.tuned and new.stage != old.stage):
            changes.append(Boundary(index, "stage", new.stage.upper() or "next stage"))
        elif new.context and new.context > (old.context or 0) and not new.tuned:
            changes.append(Boundary(index, "context", f"→ {in_k(new.context)}"))
        elif new.stage != old.stage:
            changes.append(Boundary(index, "stage", new.stage or "next stage"))
    return changes


def sft_pairs(ladder: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Each fine-tuned checkpoint with its parent: as the ladder file says, else by step and context, else the last."""
    by_name = {checkpoint.name: checkpoint for checkpoint in ladder}
    pairs = []
    for i, after in enumerate(ladder):
        parent = after.sft_of or (after.before if after.tuned else "")
        earlier = [other for other in ladder[:i] if other.stage != after.stage and other.family == after.family]
        if parent in by_name:
            pairs.append((by_name[parent], after))
        elif after.tuned and earlier and not parent:
            same = [x for x in earlier if (x.step, x.context) == (after.step, after.context) and after.step is not None]
            if same or ladder[i - 1].stage != after.stage:
                pairs.append(((same or earlier)[-1], after))
    return pairs


def read_ladder(names: Iterable[str], path: Path | None = None, downstream: Sequence[Path] = ()) -> NamedLadder:
    """The ladder of results with these names: what they tell, and what a ladder file says instead.

    Args:
        names: of results, such as the last part of a model's path.
        path: a ladder file; it gives the order where it has all of the names.
        downstream: files of scores, as `schema.add_downstream`.

    Raises:
        SettingsError: a wrong ladder file, or one that has none of the names.
        DataError: as `schema.add_downstream`.
    """
    results = sorted(set(names), key=natural)
    file = read_ladder_file(path) if path else Ladder(())
    result_of = {c.name: match for c in file.checkpoints if (match := _result_of(c, results))}
    if file.checkpoints and not result_of:
        name = file.checkpoints[0].name
        raise SettingsError(
            f"{path}: {name!r} is none of the checkpoints.{nearest(name, results)} There are: {', '.join(results)}."
        )
    listed = set(result_of.values())
    others = tuple(parse_name(name) for name in results if name not in listed)
    whole, remarks = add_downstream(replace(file, checkpoints=(*file.checkpoints, *others)), downstream)
    renamed = tuple(_called(checkpoint, result_of) for checkpoint in whole.checkpoints)
    scored = [checkpoint for checkpoint in renamed if checkpoint.name in results]
    order = [c for family in families(scored).values() for c in family] if not others else training_order(scored)
    absent = [c.name for c in file.checkpoints if c.name not in result_of and not c.downstream]
    remarks += [f"{path}: {name!r} has no results here.{nearest(name, results)}" for name in absent]
    return NamedLadder(tuple(order), replace(whole, checkpoints=renamed), tuple(remarks))


def _result_of(checkpoint: Checkpoint, results: Sequence[str]) -> str | None:
    """The result that a checkpoint of a ladder file means: by its name, or by model and revision."""
    model = checkpoint.model or checkpoint.name
    revision = "" if checkpoint.revision in ("", "main") else f"@{checkpoint.revision}"
    return match_name(checkpoint.name, results) or match_name(f"{model.rstrip('/')}{revision}", results)


def _called(checkpoint: Checkpoint, result_of: Mapping[str, str]) -> Checkpoint:
    """The checkpoint under the name of its result, with what the name tells where the file says nothing."""
    name = result_of.get(checkpoint.name, checkpoint.name)
    parsed = parse_name(name)
    return replace(
        checkpoint,
        name=name,
        step=parsed.step if checkpoint.step is None else checkpoint.step,
        context=checkpoint.context or parsed.context,
        stage=checkpoint.stage or parsed.stage,
        sft_of=result_of.get(checkpoint.sft_of, checkpoint.sft_of),
        before=result_of.get(checkpoint.before, checkpoint.before),
    )
