"""From score folders and a ladder file to the verdict: who is compared with whom, on which tokens, by which proxies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hesnr_tasks import __version__
from hesnr_tasks.analysis.compare import Run, matched, only_selection, read_run
from hesnr_tasks.analysis.frame import context_for, folders, run_names, whole_contexts
from hesnr_tasks.analysis.learned import LearnedRanker, learned_rankers, learned_table
from hesnr_tasks.analysis.tables import Table, show
from hesnr_tasks.errors import DataError, HesnrError, SettingsError, listed, nearest, number_of
from hesnr_tasks.ladder.downstream import Outcome, checkpoint_of_run, outcomes, remembered_name
from hesnr_tasks.ladder.names import parse_name
from hesnr_tasks.ladder.pack import Pack
from hesnr_tasks.ladder.schema import Checkpoint, Ladder, kinds_of
from hesnr_tasks.ladder.verdict import (
    FEWEST,
    Choice,
    Claim,
    Prediction,
    Proxy,
    choose,
    claim,
    corrected,
    predictions,
    signals,
    spanned,
    stages_of,
    values,
)
from hesnr_tasks.metrics import EPSILON, METRICS, MIN_TOKENS, measure, names_of
from hesnr_tasks.scores import ScoreStore, choose_runs, differences
from hesnr_tasks.stats import RESAMPLES, SEED

_FEW_TRAJECTORIES = 30
_CUT = 0.01  # share of tokens beyond the context


PROXIES = (
    "he_snr", "he_ppl", "ppl", "top1_acc", "top2_acc", "top5_acc", "top10_acc", "bpb", "loss_w_h", "top3",
    "reciprocal_rank", "margin", "relative_rank", "confidence", "ppl_forking",
)  # fmt: skip
"""What a verdict shows beside each other: the core, and one of each kind of published rival."""


@dataclass(frozen=True, slots=True)
class VerdictSettings:
    """What is compared and how: proxies, tokens, threshold, and the bootstrap."""

    proxy: str = "he_snr"
    baseline: str = "ppl"
    proxies: tuple[str, ...] = ()  # for the table and for prediction; empty: PROXIES; ("all",): all with a direction
    kinds: str | None = None
    filters: str | None = None
    epsilon: float = EPSILON
    k: int = 10
    context: int | str | None = None
    stages_apart: bool = False  # pretrain, mid and long-context in groups of their own
    run: str = "latest"
    resamples: int = RESAMPLES
    seed: int = SEED

    @property
    def names(self) -> tuple[str, ...]:
        """All proxies, the chosen one and the baseline first."""
        ranked = tuple(name for name in names_of("all") if METRICS[name].better and METRICS[name].denominator)
        chosen = ranked if "all" in self.proxies else self.proxies or PROXIES
        return tuple(dict.fromkeys((self.proxy, self.baseline, *chosen)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a ladder shows.

    Attributes:
        choices: of every group of comparable checkpoints.
        by_stage: the choice among those of a stage alone, where a group spans several.
        claims: of every downstream task and group, each followed by those of its parts: families and stages.
        predictions: leave-one-out errors by downstream task.
        table: checkpoints with their proxies and downstream scores.
        notes: what makes it less than it looks, and what was left out.
        learned: rankers of several proxies by downstream task, cross-validated.
        signal: how far each metric tells checkpoints apart, beside its noise in a run; None: no run is long enough.
    """

    choices: tuple[Choice, ...]
    by_stage: tuple[Choice, ...]
    claims: tuple[Claim, ...]
    predictions: Mapping[str, Sequence[Prediction]]
    table: Table
    notes: tuple[str, ...] = field(default=())
    learned: Mapping[str, Sequence[LearnedRanker]] = field(default_factory=dict)
    signal: Table | None = None

    @property
    def tables(self) -> list[Table]:
        """The ladder, signal and noise of its metrics, and what was learned from it."""
        learned = [learned_table(self.learned)] if self.learned else []
        return [self.table, *([self.signal] if self.signal else []), *learned]

    @property
    def sentences(self) -> list[str]:
        """The verdict in words, the choice first."""
        many = len(self.choices) > 1
        lines = [f"{choice.group}: {choice.sentence}" if many else choice.sentence for choice in self.choices]
        if self.by_stage:
            lines.append(f"By stage: {'; '.join(choice.brief for choice in self.by_stage)}.")
        for i, statement in enumerate(self.claims):
            if statement.part:
                continue
            lines.append(statement.sentence)
            parts = [part.brief for part in takewhile(lambda claim: claim.part, self.claims[i + 1 :])]
            if parts:
                lines.append(f"{statement.where}, difference of rank correlations by part: {'; '.join(parts)}.")
        for task, rows in self.predictions.items():
            best = rows[0]
            if not math.isnan(best.error):
                against = "no better than" if best.error >= best.error_of_mean else "against"
                label = METRICS[best.proxy].title.rstrip(" ↑↓")
                tried = sum(not math.isnan(row.error) for row in rows)
                lines.append(
                    f"{task}: of {tried} metrics, {label} predicts a checkpoint left out best: error {best.error:.3g}, "
                    f"{against} {best.error_of_mean:.3g} of guessing the mean, "
                    f"over {spanned(best.stages)}."
                )
        return lines

    @property
    def remarks(self) -> list[str]:
        """The notes of the ladder and of every claim, each once."""
        groups: dict[tuple[str, str], list[str]] = {}
        for statement in self.claims:
            for note in statement.notes:
                groups.setdefault((statement.task, note), []).append(statement.group)
        of_claims = [
            f"{task}: {note}" if "pooled" in names else f"{task} ({', '.join(names)}): {note}"
            for (task, note), names in groups.items()
        ]
        return list(dict.fromkeys([*self.notes, *of_claims]))

    def to_json(self) -> str:
        """Everything with the table, for scripts; NaN as null."""
        names = ("choices", "by_stage", "claims", "predictions", "learned", "notes")
        about = {"hesnr_tasks": __version__, **{name: _plain(getattr(self, name)) for name in names}}
        return show([self.table, *([self.signal] if self.signal else [])], "json", about)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, (Choice, Claim)):
        words = [name for name in (*value.__slots__, "checkpoints", "sentence") if hasattr(value, name)]
        return {name: _plain(getattr(value, name)) for name in words}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def checkpoints_of(paths: Sequence[Path], ladder: Ladder | None) -> list[Checkpoint | None]:
    """The checkpoint that each score folder belongs to; without a ladder, what its model's name tells.

    Args:
        paths: folders of score files.
        ladder: whose checkpoints they are, by the name that `hesnr ladder run` left there, by the folder's name, or by
            model and revision; None for a folder of none of them.
    """
    signatures = [ScoreStore.open(path).signature.get("run") or {} for path in paths]
    checkpoints = []
    for path, name, run in zip(paths, run_names(paths), signatures, strict=True):
        name = remembered_name(path) or name
        model, revision = str(run.get("model") or ""), str(run.get("revision") or "")
        if ladder is not None:
            checkpoints.append(checkpoint_of_run(ladder, name, path.name, model, revision))
            continue
        parsed = parse_name(name)
        context = parsed.context or run.get("max_length")
        stage = parsed.stage if parsed.stage in ("sft", "rl") else ""
        revision = "" if revision == "main" else revision
        checkpoints.append(Checkpoint(name, model, revision, step=parsed.step, context=context, stage=stage))
    return checkpoints


def judge(
    sources: Sequence[str], ladder: Ladder | None = None, settings: VerdictSettings = VerdictSettings()
) -> Verdict:
    """Read the scores of a ladder and say what they show.

    Args:
        sources: folders of score files, or folders of such folders (such as the output of `hesnr ladder run`).
        ladder: stages, families and downstream scores; None: what the names tell.
        settings: proxies, tokens, bootstrap.

    Raises:
        HesnrError: nothing to compare, or a proxy that does not exist.
    """
    _check_proxies(settings)
    paths, notes = whole_contexts(folders(sources))
    context, note = context_for(paths, settings.context)
    runs: list[tuple[str, Checkpoint, Run]] = []
    notes += [note] if note else []
    strange: list[str] = []
    for path, checkpoint in zip(paths, checkpoints_of(paths, ladder), strict=True):
        if checkpoint is None:
            strange.append(remembered_name(path) or path.name)
            continue
        options = settings.kinds, settings.filters, settings.epsilon, settings.k, context
        run = read_run(path, checkpoint.name, *options, settings.run, settings.names)
        part = choose_runs(path, settings.run)[0].part
        if part:  # on a trial after the whole run
            trial = read_run(path, checkpoint.name, *options, part.split()[1], (settings.proxy,))
            notes.append(f"{checkpoint.name}: {part}; the whole one is taken ({_both(run, trial, settings)})")
        runs.append((str(path), checkpoint, run))
    return _judge_named(runs, strange, ladder, settings, notes)


def judge_pack(pack: Pack, ladder: Ladder, settings: VerdictSettings = VerdictSettings()) -> Verdict:
    """Say what the checkpoints of a pack show, as `judge` says it of the folders that were packed.

    Args:
        pack: whose sums are read.
        ladder: that of the pack, or another one of its checkpoints.
        settings: proxies, set of tokens, bootstrap.

    Raises:
        SettingsError: the pack has no sums for these settings.
        HesnrError: as `judge`.
    """
    _check_proxies(settings)
    if settings.run != "latest":
        raise SettingsError("--run chooses among the runs of score folders; a pack holds one run of each checkpoint")
    runs: list[tuple[str, Checkpoint, Run]] = []
    notes = [pack.note_on_context] if pack.note_on_context else []
    notes += pack.remarks(ladder)
    strange: list[str] = []
    for summary in pack.summaries:
        packed = {"k": summary.k, "epsilon": summary.epsilon, "context": summary.context or "own"}
        for option, value in packed.items():
            wanted: Any = getattr(settings, option)
            same = math.isclose(wanted, summary.epsilon) if option == "epsilon" else wanted == value
            if not (same or (option == "context" and wanted in (None, "common"))):
                raise SettingsError(
                    f"the pack holds the sums at {option} {value}, not {wanted}; other settings need the score files"
                )
        about = summary.signature["run"]
        words = pack.names.get(summary.name, summary.name), summary.name, about.get("model"), about.get("revision")
        checkpoint = checkpoint_of_run(ladder, *(str(word or "") for word in words))
        if checkpoint is None:
            strange.append(summary.name)
            continue
        select = only_selection(summary.signature["filters"], settings.kinds, settings.filters).name
        if select not in summary.runs:
            raise SettingsError(
                f"the pack holds {', '.join(summary.runs)} of {summary.name}, not {select}; other sets of tokens need "
                "the score files"
            )
        run = replace(summary.runs[select], name=checkpoint.name)
        absent = [name for name in settings.names if not METRICS[name].columns <= {*run.sums.names}]
        if absent:
            raise SettingsError(
                f"the pack, of hesnr-tasks {pack.version}, has no sums of {', '.join(absent)}; leave them out, or have "
                "it packed again"
            )
        runs.append((summary.name, checkpoint, run))
    return _judge_named(runs, strange, ladder, settings, notes)


def _both(kept: Run, other: Run, settings: VerdictSettings) -> str:
    """What two runs of one checkpoint give, in words."""
    words = []
    for run in (kept, other):
        options = {"resamples": settings.resamples, "seed": settings.seed}
        number = measure(run.sums[None], run.multiplicity, (settings.proxy,), **options)[0][settings.proxy]
        words.append(f"{number.text} of {number_of(int(run.multiplicity.sum()), 'trajectory')}")
    return f"{METRICS[settings.proxy].title.rstrip(' ↑↓')} {words[0]} against {words[1]}"


def _judge_named(
    named: Sequence[tuple[str, Checkpoint, Run]],
    strange: Sequence[str],
    ladder: Ladder | None,
    settings: VerdictSettings,
    notes: list[str],
) -> Verdict:
    """The verdict on runs with their checkpoints and the names of where they are from; `strange`: of no checkpoint."""
    runs: dict[str, tuple[Checkpoint, Run]] = {}
    ordered_by_size = sorted(named, key=lambda item: -int(item[2].multiplicity.sum()))
    for source, checkpoint, run in ordered_by_size:
        if checkpoint.name in runs:
            kept = runs[checkpoint.name][1]
            changed = "; ".join(map(str, differences(kept.signature, run.signature))) or "the trajectories"
            notes.append(
                f"{checkpoint.name} has scores in two folders; those of {source} are left out, and they differ in: "
                f"{changed} ({_both(kept, run, settings)})"
            )
        else:
            runs[checkpoint.name] = checkpoint, run
    runs = {checkpoint.name: runs[checkpoint.name] for _, checkpoint, _ in named}
    if ladder is not None:
        notes += ladder.remarks
        names = [checkpoint.name for checkpoint in ladder.checkpoints]
        notes += (
            [f"of no checkpoint of the ladder ({', '.join(names)}), left out: {', '.join(strange)}"] if strange else []
        )
        missing = [name for name in names if name not in runs]
        notes += [f"not scored: {', '.join(missing)}"] if missing else []
    if not runs:
        raise DataError(
            "no score folder belongs to a checkpoint of the ladder; name the checkpoints as the folders are"
        )
    whole = ladder or Ladder(tuple(checkpoint for checkpoint, _ in runs.values()))
    ordered = [runs[checkpoint.name] for checkpoint in whole.checkpoints if checkpoint.name in runs]
    return judge_runs(ordered, whole, settings, notes)


def judge_runs(
    ordered: Sequence[tuple[Checkpoint, Run]],
    whole: Ladder,
    settings: VerdictSettings = VerdictSettings(),
    remarks: Sequence[str] = (),
) -> Verdict:
    """Say what checkpoints show whose sums per trajectory have been read.

    Args:
        ordered: checkpoints with their sums on one set of tokens, in the order of the ladder.
        whole: the ladder, with checkpoints that only have downstream scores.
        settings: as `judge`.
        remarks: to be in the notes.

    Raises:
        HesnrError: as `judge`.
    """
    _check_proxies(settings)
    notes = [*remarks, *_stages_by_name(checkpoint for checkpoint, _ in ordered)]
    choices: list[Choice] = []
    by_stage: list[Choice] = []
    claims: list[Claim] = []
    predicted: dict[str, list[Prediction]] = {}
    learned: dict[str, list[LearnedRanker]] = {}
    rows: list[dict[str, Any]] = []
    signal_rows: list[dict[str, Any]] = []
    for label, members in comparable_groups(ordered, settings.stages_apart):
        aligned = _aligned([run for _, run in members], notes)
        kept = [checkpoint for checkpoint, run in members if any(run.name == other.name for other in aligned)]
        proxies = {name: _proxy(name, aligned) for name in settings.names}
        defined = [name for name in settings.names if np.isfinite(proxies[name].numerator).all()]
        absent = [name for name in settings.names if name not in defined]
        if absent:
            lacking = f"{', '.join(absent)} need what the score files do not hold"
            notes.append(f"{label}: {lacking} (--model hf with --tasks hesnr_proxies adds it); left out")
        if settings.proxy not in defined:
            raise DataError(f"{settings.proxy} cannot be computed from these score files; choose another with --proxy")
        choice = choose(proxies[settings.proxy], kept, label)
        choices.append(choice)
        by_stage += _by_stage(proxies[settings.proxy], kept, label)
        among = [proxies[name] for name in defined]
        for task in whole.benchmarks:
            scores = outcomes(whole, task)
            claims += _claims(task, scores, kept, proxies, settings, "" if label == _BASE else label)
            rows_of_task = predictions(among, kept, scores)
            if rows_of_task and not math.isnan(rows_of_task[0].error):
                where = task if label == _BASE else f"{task} ({label})"
                predicted[where] = rows_of_task
                if rankers := _learned(scores, kept, among, notes):
                    learned[where] = rankers
        signal_rows += ({"group": label, **row._asdict()} for row in signals(among, _runs_of(kept)))
        rows += _rows(label, kept, aligned, choice, whole, settings, defined)
        notes += _warnings(label, kept, aligned, settings.proxy)
    choices += _across_tokenizers(ordered, settings, notes)
    notes += _unjudged(whole, [checkpoint for checkpoint, _ in ordered])
    return Verdict(
        tuple(choices), tuple(by_stage), tuple(corrected(claims)), predicted, _table(rows, settings),
        tuple(dict.fromkeys(notes)), learned, _signal_table(signal_rows),
    )  # fmt: skip


def _runs_of(kept: Sequence[Checkpoint]) -> list[list[int]]:
    """Positions of checkpoints of one family, stage and context, by their steps; those without a step are left out."""
    runs: dict[tuple[str, str, int | None], list[int]] = {}
    for i, c in enumerate(kept):
        if c.step is not None:
            runs.setdefault((c.family, c.stage, c.context), []).append(i)
    return [sorted(run, key=lambda i: kept[i].step or 0) for run in runs.values()]


def _signal_table(rows: Sequence[dict[str, Any]]) -> Table | None:
    if not rows:
        return None
    group = ["group"] if len({row["group"] for row in rows}) > 1 else []
    names = {"proxy": "metric", "ratio": "signal / noise", "improves": "steps that improve"}
    columns = ["proxy", "signal", "noise", "ratio", "improves", "runs", *group]
    notes = (
        "signal: largest difference of two checkpoints; noise: standard deviation over the last five of a run (family, "
        "stage, context); both as shares of the mean, perplexities as mean losses",
        "a run that still improves has its progress in its noise, so the ratio is a lower bound",
    )
    return Table("signal", "Signal and noise", [{names.get(c, c): row[c] for c in columns} for row in rows], notes)


def _across_tokenizers(
    ordered: Sequence[tuple[Checkpoint, Run]], settings: VerdictSettings, notes: list[str]
) -> Iterable[Choice]:
    """The choice by bits per byte among checkpoints of several tokenizers, whose tokens cannot be compared."""
    kinds: dict[tuple[str, str], list[tuple[Checkpoint, Run]]] = {}
    kind_of = kinds_of([checkpoint for checkpoint, _ in ordered], settings.stages_apart)
    for checkpoint, run in ordered:
        kind = f"{kind_of[checkpoint.name]} checkpoints"
        kinds.setdefault((kind, str(run.signature.get("render"))), []).append((checkpoint, run))
    for (kind, _), members in kinds.items():
        tokenizers = {str((run.signature.get("run") or {}).get("tokenizer")) for _, run in members}
        if len(tokenizers) < 2:
            continue
        notes.append(
            f"{kind}: {len(tokenizers)} tokenizers, and metrics per token cannot be compared across them; "
            f"each has a choice of its own, and {_BPB} (bits per byte) compares all"
        )
        defined = [(checkpoint, run) for checkpoint, run in members if np.isfinite(run.sums.parts(_BPB)[0]).all()]
        shared = set.intersection(*(set(run.keys) for _, run in defined)) if len(defined) > 1 else set()
        if not shared:
            notes.append(f"{kind}: no text is common to checkpoints of other tokenizers, so {_BPB} compares nothing")
            continue
        paired_runs = [run.take([i for i, key in enumerate(run.keys) if key in shared]) for _, run in defined]
        counts = np.where(np.all([run.multiplicity > 0 for run in paired_runs], axis=0), paired_runs[0].multiplicity, 0)
        aligned = [replace(run, multiplicity=counts) for run in paired_runs]
        yield choose(_proxy(_BPB, aligned), [checkpoint for checkpoint, _ in defined], f"{kind}, across tokenizers")


def _unjudged(ladder: Ladder, scored: Sequence[Checkpoint]) -> Iterable[str]:
    """Downstream scores that judge nothing that was scored, and scored checkpoints that some task does not judge."""
    for task in ladder.benchmarks:
        contradictions: list[str] = []
        judged = outcomes(ladder, task, contradictions)
        yield from contradictions
        own = [c for c in ladder.checkpoints if task in c.downstream]
        kinds = {checkpoint.tuned for checkpoint in scored if checkpoint.name in judged}
        if not kinds:
            stages = ", ".join(dict.fromkeys(c.stage or ("sft" if c.tuned else "no stage") for c in own))
            names = ", ".join(checkpoint.name for checkpoint in own[:4]) + (", …" if len(own) > 4 else "")
            yield (
                f"{task}: its scores are of {names} (stage: {stages}), and none of them judges a checkpoint that was "
                "scored. Say what was fine-tuned from what with sft_of: NAME, or that it was measured after: sft"
            )
        without = [c.name for c in scored if c.name not in judged and c.tuned in kinds]
        if without:
            own_only = [name for name in without if task in ladder[name].downstream]
            why = f" (scores before fine-tuning, of {', '.join(own_only)}, are not mixed with those after)"
            yield f"{task}: no score judges {', '.join(without)}; not counted there{why * bool(own_only)}"


def _stages_by_name(scored: Iterable[Checkpoint]) -> Iterable[str]:
    """Checkpoints whose names tell of another fine-tuning than their stage does."""
    for checkpoint in scored:
        stage = parse_name(checkpoint.name).stage
        if stage and checkpoint.stage and stage != checkpoint.stage:
            yield (
                f"{checkpoint.name}: its name tells of {stage} and its stage is {checkpoint.stage}, which counts; "
                "correct one of them"
            )


def _check_proxies(settings: VerdictSettings) -> None:
    for name in settings.names:
        allowed = [key for key in names_of("all") if METRICS[key].better]
        if name not in allowed:
            raise SettingsError(f"proxy {name!r} must be one of {listed(allowed, 10)}.{nearest(name, allowed)}")


_BPB = "bpb"
_BASE = "base checkpoints"


def comparable_groups(
    ordered: Sequence[tuple[Checkpoint, Run]], stages_apart: bool = False
) -> list[tuple[str, list[tuple[Checkpoint, Run]]]]:
    """Checkpoints that may be compared: of one kind of stage, with one rendering and one tokenizer."""
    kinds = kinds_of([checkpoint for checkpoint, _ in ordered], stages_apart)
    groups: dict[tuple[str, str, str], list[tuple[Checkpoint, Run]]] = {}
    for checkpoint, run in ordered:
        tokenizer = str((run.signature.get("run") or {}).get("tokenizer"))
        key = f"{kinds[checkpoint.name]} checkpoints", str(run.signature.get("render")), tokenizer
        groups.setdefault(key, []).append((checkpoint, run))

    def label(kind: str, rendering: str, tokenizer: str) -> str:
        others = [key for key in groups if key[0] == kind]
        text = kind if len({r for _, r, _ in others}) == 1 else f"{kind} in {rendering}"
        same = len({t for _, r, t in others if r == rendering}) == 1
        return text if same else f"{text} with the tokenizer of {groups[kind, rendering, tokenizer][0][0].name}"

    return [(label(*key), members) for key, members in groups.items()]


def _aligned(runs: list[Run], notes: list[str]) -> list[Run]:
    """The largest set of runs that may be compared, on the trajectories that all of them have; notes on the others."""
    kept, left_out = largest_comparable(runs, _why_not)
    notes += [f"{run.name} is left out: {reason}" for run, reason in left_out]
    typical = sorted(len(run.keys) for run in kept)[len(kept) // 2]
    whole = [run for run in kept if 2 * len(run.keys) >= typical]
    if len(whole) > 1:
        notes += [
            f"{run.name} has {number_of(len(run.keys), 'trajectory')} and most have {typical}: it is left out, "
            f"since only what all "
            "have can be compared. Score the rest of them: the same command goes on where it stopped"
            for run in kept
            if run not in whole
        ]
        kept = whole
    if len(kept) == 1:
        return kept
    aligned, remarks = matched(kept, common=True)
    notes += remarks
    return aligned


_Item = TypeVar("_Item")


def largest_comparable(
    items: Sequence[_Item], why_not: Callable[[_Item, _Item], str]
) -> tuple[list[_Item], list[tuple[_Item, str]]]:
    """The largest set of items that may be compared with its first one, and the others with why not."""
    groups: list[list[_Item]] = []
    reasons: dict[int, str] = {}
    for i, item in enumerate(items):
        for group in groups:
            reason = why_not(group[0], item)
            if not reason:
                group.append(item)
                break
            reasons.setdefault(i, reason)
        else:
            groups.append([item])
    largest = max(groups, key=len, default=[])
    inside = {id(item) for item in largest}
    others = [(i, item) for i, item in enumerate(items) if id(item) not in inside]
    return largest, [(item, reasons.get(i) or why_not(largest[0], item)) for i, item in others]


def _why_not(first: Run, other: Run) -> str:
    """Why two runs may not be compared; empty: they may."""
    try:
        matched([first, other], common=True)
    except HesnrError as error:
        return str(error)
    return ""


def _proxy(name: str, runs: Sequence[Run]) -> Proxy:
    """Its sums; a checkpoint with too few tokens for a number has none, as in every table."""
    repeated = [run.sums.repeat(run.multiplicity) for run in runs]
    numerator, denominator = (np.stack(side) for side in zip(*(sums.parts(name) for sums in repeated), strict=True))
    few = [i for i, sums in enumerate(repeated) if sums.counted(name).sum() < MIN_TOKENS]
    numerator[few], denominator[few] = 0.0, 0.0
    entry = METRICS[name]
    title = entry.title.rstrip(" ↑↓")
    return Proxy(name, numerator, denominator, entry.exponentiate, bool(entry.higher_is_better), title)


def _by_stage(proxy: Proxy, kept: Sequence[Checkpoint], label: str) -> Iterable[Choice]:
    """The choice within each stage of a group that spans several."""
    stages = list(stages_of(kept))
    for stage in stages if len(stages) > 1 else ():
        inside = [i for i, checkpoint in enumerate(kept) if checkpoint.stage == stage]
        own = proxy._replace(numerator=proxy.numerator[inside], denominator=proxy.denominator[inside])
        if np.isfinite(values(own)).any():
            name = stage or "no stage"
            yield choose(own, [kept[i] for i in inside], name if label == _BASE else f"{name}, {label}")


def _claims(
    task: str,
    scores: Mapping[str, Outcome],
    kept: Sequence[Checkpoint],
    proxies: Mapping[str, Proxy],
    settings: VerdictSettings,
    label: str,
) -> list[Claim]:
    """The claim over all checkpoints of a group, then those of its families and of its stages."""
    judged = [checkpoint for checkpoint in kept if checkpoint.name in scores]
    if not judged or settings.proxy == settings.baseline:
        return []
    parts = [("", label or "pooled", judged)]
    for part, fewest in (("family", FEWEST), ("stage", 1)):
        members: dict[str, list[Checkpoint]] = {}
        for checkpoint in judged:
            members.setdefault(getattr(checkpoint, part), []).append(checkpoint)
        counted = {name: own for name, own in members.items() if len(own) > (part == "family")}  # one is not counted
        parts += [
            (part, ", ".join(filter(None, (name or f"no {part}", label))), own)
            for name, own in counted.items()
            if len(counted) > 1 and len(own) >= fewest
        ]
    pair = proxies[settings.proxy], proxies[settings.baseline]
    return [
        claim(
            *pair, kept, {checkpoint.name: scores[checkpoint.name] for checkpoint in own}, task, group=group, part=part,
            seed=settings.seed,
        )
        for part, group, own in parts
    ]  # fmt: skip


def _learned(
    scores: Mapping[str, Outcome], kept: Sequence[Checkpoint], proxies: Sequence[Proxy], notes: list[str]
) -> list[LearnedRanker]:
    chosen = [i for i, checkpoint in enumerate(kept) if checkpoint.name in scores]
    y = np.array([scores[kept[i].name].value for i in chosen])
    x = np.stack([values(proxy)[chosen] for proxy in proxies], axis=1)
    try:
        return learned_rankers(x, [proxy.name for proxy in proxies], y, [kept[i].family for i in chosen])
    except ImportError:
        notes.append("no learned rankers: they need scikit-learn (pip install 'hesnr-tasks[report]')")
        return []


def _rows(
    label: str,
    kept: Sequence[Checkpoint],
    runs: Sequence[Run],
    choice: Choice,
    ladder: Ladder,
    settings: VerdictSettings,
    defined: Sequence[str],
) -> Iterable[dict[str, Any]]:
    scores = {task: outcomes(ladder, task) for task in ladder.benchmarks}
    for checkpoint, run in zip(kept, runs, strict=True):
        mark = "best" if checkpoint.name == choice.best else "tie" if checkpoint.name in choice.ties else ""
        values = measure(
            run.sums[None], run.multiplicity, defined, resamples=settings.resamples, seed=settings.seed,
            min_tokens=MIN_TOKENS,
        )[0]  # fmt: skip
        row: dict[str, Any] = {"checkpoint": checkpoint.name, "verdict": mark}
        row |= {"family": checkpoint.family, "stage": checkpoint.stage, "step": checkpoint.step, "group": label}
        row |= {name: values[name] for name in defined}
        for task, of_task in scores.items():
            outcome = of_task.get(checkpoint.name)
            column = task
            while column in row or f"{column}_measured" in row or column in METRICS:  # a task called ppl is no metric
                column += " (score)"
            row[column] = None if outcome is None else outcome.value
            row[f"{column}_measured"] = None if outcome is None else outcome.measured
        yield row


def _table(rows: Sequence[dict[str, Any]], settings: VerdictSettings) -> Table:
    empty = [name for name in ("family", "stage", "step") if all(row[name] in ("", None) for row in rows)]
    one_group = ["group"] if len({row["group"] for row in rows}) < 2 else []
    empty += [
        name for name in rows[0] if name.endswith("_measured") and {row[name] for row in rows} <= {"itself", None}
    ]
    shown = [{key: value for key, value in row.items() if key not in (*empty, *one_group)} for row in rows]
    wide = tuple(name for name in settings.names if name not in ("he_snr", "he_ppl", "ppl", "bpb", settings.proxy))
    note = "best: by the proxy; tie: a paired test cannot tell it from the best (Holm, 5 %)"
    return Table("ladder", "The ladder", shown, (note,), wide=wide, essential=("verdict", "group", settings.proxy))


def _warnings(label: str, kept: Sequence[Checkpoint], runs: Sequence[Run], proxy: str) -> Iterable[str]:
    n = int(runs[0].multiplicity.sum())
    for run in runs:
        if run.sums.repeat(run.multiplicity).counted(proxy).sum() < MIN_TOKENS:
            yield f"{run.name}: fewer than {MIN_TOKENS} tokens for {proxy}; it has no value and is not chosen"
    if n < _FEW_TRAJECTORIES:
        yield f"{label}: few trajectories ({n}); intervals are wide and ties many"
    failed = sum(
        count
        for count, unresolved in zip(runs[0].multiplicity.tolist(), runs[0].unresolved, strict=False)
        if unresolved
    )
    if failed:
        yield (
            f"{label}: {failed} of the {n} trajectories are known not to have solved their task, and what they did "
            "counts as if it were right; --metadata only_resolved=true leaves them out"
        )
    for run in runs:
        cut, tokens = float(run.n_truncated @ run.multiplicity), float(run.sums.column("tokens") @ run.multiplicity)
        if cut > _CUT * (cut + tokens):
            yield f"{run.name}: {cut / (cut + tokens):.0%} of the tokens lie beyond its context and were not scored"
    for checkpoint in kept:
        if checkpoint.trained_on:
            yield f"{checkpoint.name} was trained on {', '.join(checkpoint.trained_on)}: its scores on that say little"
