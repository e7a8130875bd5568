"""What a report is made of: checkpoints in the order of training, their metrics, summaries of their score files."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from hesnr_tasks.analysis.compare import Run, matched
from hesnr_tasks.analysis.frame import context_for
from hesnr_tasks.analysis.summary import OBSERVATION, UNFILTERED, CheckpointSummary, SummaryRequest, ablation_sets
from hesnr_tasks.analysis.summary_cache import all_built_in, cached_summary, uncached_bytes
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.errors import HesnrError
from hesnr_tasks.ladder.downstream import Outcome, outcomes
from hesnr_tasks.ladder.evidence import Verdict, VerdictSettings, judge_runs, largest_comparable
from hesnr_tasks.ladder.names import NamedLadder, boundaries
from hesnr_tasks.ladder.schema import Checkpoint, Ladder, kinds_of
from hesnr_tasks.metrics import EPSILON, METRICS, MIN_TOKENS, TrajectorySums, measure, names_of
from hesnr_tasks.report.results import TaskResult, group_comparable, stored_run
from hesnr_tasks.scores import StoreError
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
_FEWEST_FOR_INTERVAL = 4  # trajectories
_Z = 1.96
_MANY = 200_000_000  # bytes of score files, from which on starting processes to read them pays
_LONG = 8  # checkpoints, from which on starting processes for numbers and figures pays
_PROCESSES = 4  # folders at a time; each takes about 30 bytes a token of filtered actions
# no semaphores, no memory for another process, what cannot be sent to it
_NO_PROCESSES = (OSError, ImportError, BrokenProcessPool, PicklingError, AttributeError, TypeError)
_ALL_SCORED = re.compile(r"^run 1 of 1 .*: (\d+) of \1 trajectories$")  # not worth a note
_RUN = "lm_eval --model hf --model_args pretrained=CHECKPOINT --tasks {} --output_path DIR"


class Workers:
    """Calls functions in other processes; in this one where there is little to do, or none can be started.

    Arrow, NumPy and matplotlib let other threads run for the smaller part of the time only.

    Args:
        sizes: bytes that are to be read of each checkpoint; none: everything is called here.
    """

    def __init__(self, sizes: Iterable[int] = ()) -> None:
        sizes = list(sizes)
        self.many_bytes = sum(sizes) > _MANY
        self._pool: ProcessPoolExecutor | None = None
        count = min(_PROCESSES, os.cpu_count() or 1, len(sizes))
        # metrics of users are known to this process alone
        if count > 1 and (self.many_bytes or len(sizes) >= _LONG) and all_built_in(()):
            # not "fork": Arrow and BLAS have threads
            with contextlib.suppress(*_NO_PROCESSES):
                self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))

    def submit(self, function: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        """Begin a call of a function of a module, if there are processes; what is returned gives its result."""
        future: Future[T] | None = None
        if self._pool is not None:
            with contextlib.suppress(*_NO_PROCESSES):
                future = self._pool.submit(function, *arguments)

        def result() -> T:
            if future is not None:
                with contextlib.suppress(*_NO_PROCESSES):
                    return future.result()
            return function(*arguments)

        return result

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class Missing(NamedTuple):
    """What the report lacks, why, and the command that gives it."""

    what: str
    why: str
    command: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that tables and figures are made of."""

    ladder: tuple[Checkpoint, ...]  # in the order of training
    results: tuple[TaskResult, ...]
    plotted: tuple[TaskResult, ...]  # those of the results whose numbers may be in figures
    values: Mapping[str, Mapping[str, Mapping[str, Estimate]]]  # set of tokens -> checkpoint -> metric
    summaries: tuple[CheckpointSummary, ...]  # of comparable score files
    downstream: Mapping[str, Mapping[str, Outcome]]  # task -> checkpoint -> the score that judges it
    ablation: tuple[str, ...]  # sets of tokens: thought, action, and action with one filter more each
    k: int = 10
    epsilon: float = EPSILON  # nats
    resamples: int = RESAMPLES
    seed: int = SEED
    context: int | None = None  # that score files were restricted to, tokens
    notes: list[str] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    judged: Callable[[], Verdict | None] = lambda: None  # waits for it; None: no score files
    tables: dict[str, Table] = field(default_factory=dict)  # those that were computed, by name

    @property
    def verdict(self) -> Verdict | None:
        """On filtered actions, as soon as it is there; None without score files of them."""
        return self.judged()

    @property
    def filtered(self) -> str:
        """The set of action tokens with every filter."""
        return self.ablation[-1]

    def among(self, names: Sequence[str] | Mapping[str, object]) -> list[Checkpoint]:
        """The checkpoints in `names`, in the order of training."""
        return [checkpoint for checkpoint in self.ladder if checkpoint.name in names]

    def groups(self, task: str, names: Mapping[str, object]) -> dict[str, list[Checkpoint]]:
        """The checkpoints in `names` with a score on a downstream task; families and fine-tuned ones are apart.

        Args:
            task: one of `downstream`.
            names: checkpoints with values.

        Returns:
            label of a group -> its checkpoints in the order of training.
        """
        groups: dict[str, list[Checkpoint]] = {}
        several, kinds = len({checkpoint.family for checkpoint in self.ladder}) > 1, kinds_of(self.ladder)
        for checkpoint in self.among(self.downstream[task]):
            if checkpoint.name in names:
                label = kinds[checkpoint.name]
                label += f", {checkpoint.family or 'no family'}" if several else ""
                groups.setdefault(label, []).append(checkpoint)
        return groups

    def main_group(self, names: Mapping[str, object]) -> tuple[str, str, list[Checkpoint]]:
        """The first downstream task, the label of its largest group, and that group; empty without scores."""
        task = next(iter(self.downstream), "")
        groups = self.groups(task, names) if task else {}
        return task, *max(groups.items(), key=lambda group: len(group[1]), default=("", []))

    def scored(self, select: str) -> list[CheckpointSummary]:
        """The summaries with a set of tokens."""
        return [summary for summary in self.summaries if select in summary.runs]

    def aligned(self, select: str) -> list[Run]:
        """Sums of each checkpoint on the same trajectories in the same order; empty for fewer than two checkpoints."""
        runs = [summary.runs[select] for summary in self.scored(select)]
        return matched(runs)[0] if len(runs) > 1 else []

    def sample_size(self, select: str) -> str:
        """Number of trajectories, share scored and context, for captions."""
        scored = self.scored(select)
        counts = {summary.n_trajectories(select) for summary in scored}
        counts |= {
            int((result.signature or {}).get("trajectories", 0)) for result in self.plotted if result.select == select
        }
        if not counts:
            return ""
        parts = [f"{'–'.join(str(n) for n in sorted({min(counts), max(counts)}))} trajectories"]
        shares = [summary.share_scored(select) for summary in scored]
        if shares and min(shares) < 1:
            ends = dict.fromkeys(f"{share:.1%}" for share in (min(shares), max(shares)))
            parts.append(f"{' to '.join(ends)}{' (!)' * (min(shares) < 0.5)} of their tokens scored")
        if self.context is not None:
            parts.append(f"context {self.context:,}")
        return ", ".join(parts)

    @property
    def error_bars(self) -> str:
        """What error bars are, for captions."""
        axes = " Axes are set by the values; a bar may end beyond them."
        if not self.summaries:
            return "Bars: ± 1.96 standard errors (cluster bootstrap over trajectories)." + axes
        partly = "; ± 1.96 standard errors where there are no score files" * (len(self.summaries) < len(self.ladder))
        return f"Bars: 95 % interval over trajectories, where they are enough{partly}.{axes}"


class ReportFigure(NamedTuple):
    """One figure of the report."""

    name: str  # of its files
    paper: str  # its counterpart in the paper
    title: str
    subtitle: str  # tokens, trajectories, what error bars are
    caption: str
    tables: tuple[Table, ...]  # every number that is drawn
    draw: Callable[[], Figure]


def build_report_data(
    results: Sequence[TaskResult],
    named: NamedLadder,
    folders: Mapping[str, Path | CheckpointSummary],
    *,
    notes: Sequence[str] = (),
    run: str = "latest",
    resamples: int = RESAMPLES,
    seed: int = SEED,
    context: int | str | None = None,
    workers: Workers | None = None,
) -> ReportData:
    """Read the score files and compute every metric; checkpoints that must not be compared are left out, with a note.

    Args:
        results: of lm-eval; their numbers stand in for checkpoints without score files.
        named: the checkpoints in the order of training, and the ladder with their downstream scores.
        folders: checkpoint -> folder of score files, or its summary from a pack.
        notes: to be shown with the report's own.
        run: which run in a folder, as `scores.choose_runs`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        context: as `analysis.frame.context_for`; summaries are restricted to it.
        workers: that read and compute (None: this process).
    """
    workers = workers or Workers()
    ladder = named.checkpoints
    ours = [result for result in results if result.signature]
    k, epsilon = _settings(ours)
    all_notes = [*notes, *named.notes]
    here = {c.name: folders[c.name] for c in ladder if c.name in folders}
    packed = [item for item in here.values() if isinstance(item, CheckpointSummary)]
    if packed:
        summaries, limit = packed, packed[0].context
    else:
        paths = {name: item for name, item in here.items() if isinstance(item, Path)}
        summaries, limit, reasons = read_summaries(ours, paths, run=run, context=context, workers=workers)
        all_notes += reasons
    all_notes += [f"{s.name}: {s.about}" for s in summaries if not _ALL_SCORED.search(s.about)]
    summaries, left_out = largest_comparable(summaries, _why_not_comparable)
    all_notes += [f"{summary.name} is in no figure: {reason}" for summary, reason in left_out]
    if summaries:
        filters = list(summaries[0].signature["filters"])
    else:
        filter_sets: list[list[str]] = [result.signature["filters"] for result in ours if result.signature]
        filters = list(max(filter_sets, key=len, default=[]) or ("xml", "format", "comments"))
    ablation = tuple(ablation_sets(filters))
    runs = {summary.name: summary.runs[ablation[-1]] for summary in summaries if ablation[-1] in summary.runs}
    ordered = [(checkpoint, runs[checkpoint.name]) for checkpoint in ladder if checkpoint.name in runs]
    proxies = tuple(name for name in names_of() if METRICS[name].better and METRICS[name].denominator)
    settings = VerdictSettings(proxies=proxies, k=k, epsilon=epsilon, resamples=resamples, seed=seed)
    # begun here and waited for where it is needed: meanwhile figures are drawn
    judging = workers.submit(_judge, ordered, named.ladder, settings)
    measured = [workers.submit(_measured, summary, resamples, seed) for summary in summaries]

    @cache
    def judged() -> Verdict | None:
        verdict = judging()
        if isinstance(verdict, str):
            all_notes.append(verdict)
            return None
        return verdict

    # results without score files are of other tokens than score files restricted to a context
    by_name = {summary.name: summary for summary in summaries}
    plotted = _comparable_results(ours, by_name) if limit is None else []
    all_notes += _notes_on_other_data(ours, by_name)
    names = {checkpoint.name for checkpoint in ladder}
    tasks = ((task, outcomes(named.ladder, task).items()) for task in named.ladder.benchmarks)
    downstream = {t: kept for t, scores in tasks if (kept := {name: s for name, s in scores if name in names})}
    values = _values(plotted, summaries, [numbers() for numbers in measured])
    data = ReportData(
        ladder, tuple(results), tuple(plotted), values, tuple(summaries), downstream, ablation, k, epsilon,
        resamples, seed, limit, all_notes, judged=judged,
    )  # fmt: skip
    data.missing.extend(_missing(data))
    return data


def read_summaries(
    ours: Sequence[TaskResult],
    folders: Mapping[str, Path],
    *,
    run: str = "latest",
    context: int | str | None = None,
    metrics: Sequence[str] | None = None,
    cases: bool = True,
    workers: Workers | None = None,
) -> tuple[list[CheckpointSummary], int | None, list[str]]:
    """Read score files; of what cannot be read, the reason.

    Args:
        ours: results of our tasks: which run of a folder is theirs, and their k and threshold.
        folders: checkpoint -> folder of score files.
        run: as `build_report_data`.
        context: as `build_report_data`.
        metrics: those whose sums are kept (None: the core ones).
        cases: the last one with single tokens.
        workers: that read where there is much to read (None: new ones).

    Returns:
        Summaries, the context they are restricted to, and notes.
    """
    k, epsilon = _settings(ours)
    limit, note = context_for(list(folders.values()), context, skip_damaged=True)
    last = list(folders)[-1:]
    names = names_of() if metrics is None else tuple(metrics)
    with contextlib.ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(Workers(map(uncached_bytes, folders.values())))
        here = workers if workers.many_bytes and all_built_in(names) else Workers()
        jobs = []
        for name, folder in folders.items():
            of_model = tuple(result for result in ours if result.model == name)
            request = SummaryRequest(folder, name, k, epsilon, limit, run, [name] == last and cases, names)
            jobs.append(here.submit(_read_folder, request, of_model))
        read = [job() for job in jobs]
    summaries = [item for item in read if isinstance(item, CheckpointSummary)]
    return summaries, limit, [*([note] if note else []), *(item for item in read if isinstance(item, str))]


def _read_folder(request: SummaryRequest, results: Sequence[TaskResult]) -> CheckpointSummary | str:
    """The summary of a checkpoint with these results, of the run that `request.run` names."""
    try:  # a folder that cannot be read costs its own checkpoint the figures, not the others the report
        request = request._replace(run=stored_run(request.folder, str(request.run), results))
        return cached_summary(request, threads=1 if multiprocessing.parent_process() else None)
    except StoreError as error:
        return f"{request.name}: its score files are not used: {error}"


def _settings(ours: Sequence[TaskResult]) -> tuple[int, float]:
    """k and threshold of most results."""
    settings = Counter((result.signature["k"], result.signature["epsilon"]) for result in ours if result.signature)
    return settings.most_common(1)[0][0] if settings else (10, EPSILON)


def _judge(
    ordered: Sequence[tuple[Checkpoint, Run]], ladder: Ladder, settings: VerdictSettings
) -> Verdict | str | None:
    try:
        return judge_runs(ordered, ladder, settings) if ordered else None
    except HesnrError as error:
        return f"there is no verdict: {error}"


# --- what may be compared ---------------------------------------------------------------------------------------------


def _why_not_comparable(a: CheckpointSummary, b: CheckpointSummary) -> str:
    """Empty: they may be compared."""
    shared = [select for select in a.runs if select in b.runs]
    if not shared:
        return f"{a.name} and {b.name} have no set of tokens in common"
    try:
        matched([a.runs[shared[-1]], b.runs[shared[-1]]])
    except HesnrError as error:
        return str(error)
    return ""


def _of_same_data(result: TaskResult, by_name: Mapping[str, CheckpointSummary]) -> bool:
    summary = by_name.get(result.model)
    return summary is not None and summary.has_data(result.select, (result.signature or {}).get("data"))


def _comparable_results(ours: Sequence[TaskResult], by_name: Mapping[str, CheckpointSummary]) -> list[TaskResult]:
    """For each set of tokens the results that may stand beside the score files, or the largest group of results."""
    best: dict[str, tuple[int, int, list[TaskResult]]] = {}
    for group in group_comparable(ours):
        select, same = group[0].select, sum(_of_same_data(result, by_name) for result in group)
        if not same and any(select in summary.runs for summary in by_name.values()):
            continue
        if select not in best or (same, len(group)) > best[select][:2]:
            best[select] = (same, len(group), group)
    return [result for _, _, group in best.values() for result in group]


def _notes_on_other_data(ours: Sequence[TaskResult], by_name: Mapping[str, CheckpointSummary]) -> list[str]:
    # a trial beside the whole run: both are shown, and said
    agreeing = {(result.model, result.task) for result in ours if _of_same_data(result, by_name)}
    return [
        f"{result.model}: the leaderboard's {result.task} is of {(result.signature or {})['trajectories']} "
        f"trajectories, the figures are of the {summary.n_trajectories(result.select)} in {summary.folder}"
        for result in ours
        for summary in [by_name.get(result.model)]
        if summary and result.select in summary.runs and (result.model, result.task) not in agreeing
    ]


# --- numbers ----------------------------------------------------------------------------------------------------------


def _measured(summary: CheckpointSummary, resamples: int, seed: int) -> dict[str, dict[str, Estimate]]:
    """Every metric on every set of tokens."""
    values: dict[str, dict[str, Estimate]] = {}
    groups: dict[bytes, list[str]] = {}  # sets of tokens of the same trajectories are resampled together
    for select, run in summary.runs.items():
        groups.setdefault(run.multiplicity.tobytes(), []).append(select)
    for selects in groups.values():
        runs = [summary.runs[select] for select in selects]
        sums = TrajectorySums(np.stack([run.sums.values for run in runs]), runs[0].sums.names)
        rows = measure(sums, runs[0].multiplicity, names_of(), resamples=resamples, seed=seed, min_tokens=MIN_TOKENS)
        values.update(zip(selects, rows, strict=True))
    return values


def _values(
    results: Sequence[TaskResult],
    summaries: Sequence[CheckpointSummary],
    measured: Sequence[Mapping[str, Mapping[str, Estimate]]],
) -> dict[str, dict[str, Mapping[str, Estimate]]]:
    """Metrics from score files; where there are none, from comparable result files."""
    values: dict[str, dict[str, Mapping[str, Estimate]]] = {}
    for summary, of_checkpoint in zip(summaries, measured, strict=True):
        for select, numbers in of_checkpoint.items():
            values.setdefault(select, {})[summary.name] = numbers
    for result in results:
        few = (result.signature or {}).get("trajectories", 0) < _FEWEST_FOR_INTERVAL
        estimates = {}
        for name in names_of():
            number = result.values.get(name, Estimate(math.nan))
            half = math.nan if few or METRICS[name].denominator is None else _Z * number.stderr
            estimates[name] = number._replace(ci_low=number.value - half, ci_high=number.value + half)
        values.setdefault(result.select, {}).setdefault(result.model, estimates)
    return values


def _missing(data: ReportData) -> Iterator[Missing]:
    with_scores = {summary.name for summary in data.summaries}
    if without := [checkpoint.name for checkpoint in data.ladder if checkpoint.name not in with_scores]:
        yield Missing(
            "histograms, threshold sweep, ablation ladder, case table and paired differences of these checkpoints",
            f"no (comparable) score files of {', '.join(without)}",
            _RUN.format("hesnr_swe,hesnr_swe_unfiltered"),
        )
    if data.summaries and not data.scored(OBSERVATION):
        command = (
            _RUN.format("hesnr_swe,hesnr_swe_unfiltered") + """ --metadata '{"keep": "observation+thought+action"}'"""
        )
        yield Missing("Figure 5 (observation tokens)", "observations were not scored", command)
    for select, task in ((UNFILTERED, "hesnr_swe_unfiltered"), (data.filtered, "hesnr_swe")):
        if select not in data.values:
            yield Missing(f"everything on {select} tokens", f"no numbers on {select}", _RUN.format(task))
    if not data.downstream:
        yield Missing(
            "correlations, decision accuracy and Figure 6",
            "no downstream scores",
            "hesnr report RESULTS --downstream scores.csv -o OUT",
        )
    kinds = {boundary.kind for boundary in boundaries(data.ladder)}
    command = "hesnr report RESULTS --ladder ladder.yaml -o OUT"
    if "context" not in kinds:
        yield Missing("Figure 7", "no name tells of a context extension (…-32k, …-128k)", command)
    if "stage" not in kinds:
        yield Missing("Figure 8 (before and after SFT)", "no checkpoint is called …-sft", command)
