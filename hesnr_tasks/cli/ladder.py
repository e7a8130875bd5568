"""`hesnr ladder`: write, check and run a ladder file, and say which checkpoint to take."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hesnr_tasks.analysis.frame import check_epsilons, check_resamples, context_for, folders, whole_contexts
from hesnr_tasks.analysis.tables import Table, paragraphs, show
from hesnr_tasks.cli.analyze import add_selection, add_shared
from hesnr_tasks.cli.report import report
from hesnr_tasks.errors import DataError, HesnrError, SettingsError, number_of, printable
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.ladder.downstream import add_downstream, outcomes
from hesnr_tasks.ladder.evidence import PROXIES, Verdict, VerdictSettings, checkpoints_of, judge, judge_pack
from hesnr_tasks.ladder.names import read_ladder
from hesnr_tasks.ladder.pack import Pack, is_pack, only_pack, read_pack, write_pack
from hesnr_tasks.ladder.run import (
    SLURM_SETTINGS,
    Job,
    JobResult,
    LocalPool,
    Pool,
    RayPool,
    SlurmPool,
    free_disk,
    jobs,
    missing_here,
    missing_on_hub,
    progress_of,
    run_jobs,
)
from hesnr_tasks.ladder.schema import Checkpoint, Ladder, read_ladder_file, write_ladder_file
from hesnr_tasks.metrics import METRICS, names_of
from hesnr_tasks.report.data import read_summaries
from hesnr_tasks.report.results import find_score_folders, read_results
from hesnr_tasks.tasks import task_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr ladder`."""
    parser.set_defaults(execute=run)
    commands = parser.add_subparsers(required=True, metavar="ACTION")

    init = commands.add_parser("init", help="write a ladder file for results that exist")
    init.add_argument("results", nargs="+", help="folders of lm-eval results with score files")
    _add_downstream(init)
    init.add_argument("-o", "--output", type=Path, help="the file to write (default: print it)")
    init.add_argument("--force", action="store_true", help="overwrite it if it exists")
    init.set_defaults(action=_init)

    check = commands.add_parser("check", help="read a ladder file and say what it holds, without a model")
    check.add_argument("ladder", type=Path)
    check.add_argument("--online", action="store_true", help="also ask the hub for every model and revision")
    add_shared(check, "wide")
    _add_downstream(check)
    check.set_defaults(action=_check)

    run_ = commands.add_parser("run", help="score every checkpoint of a ladder file with lm_eval, then the verdict")
    run_.add_argument("ladder", type=Path)
    run_.add_argument("-o", "--output", type=Path, required=True, help="folder of the results; the same goes on")
    run_.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these checkpoints")
    run_.add_argument("--tasks", help="tasks of lm_eval, ours and others, in place of the file's")
    where = run_.add_mutually_exclusive_group()
    where.add_argument(
        "--ray", metavar="ADDRESS", help="on a Ray cluster: its address, 'auto', or 'local' for this machine"
    )
    where.add_argument(
        "--slurm", nargs="*", metavar="KEY=VALUE",
        help=f"as Slurm jobs, with these settings beside the file's: {', '.join(SLURM_SETTINGS)}; time in minutes",
    )  # fmt: skip
    where.add_argument("--workers", type=int, default=1, help="processes at a time on this machine (default: 1)")
    run_.add_argument(
        "--shards", type=int, default=1, metavar="N",
        help="cut the trajectories of each checkpoint into N parts, scored at a time (default: 1)",
    )  # fmt: skip
    run_.add_argument(
        "--drop-downloads", action="store_true", help="remove each download from the hub cache when scored"
    )
    run_.add_argument("--lm-eval-args", default="", metavar="WORDS", help="further arguments, e.g. '--batch_size auto'")
    _add_downstream(run_)
    run_.set_defaults(action=_run)

    pack = commands.add_parser(
        "pack", help="one small file of sums that makes report and verdict again, without texts or weights"
    )
    pack.add_argument("results", nargs="+", help="folders of lm-eval results with score files")
    pack.add_argument("--ladder", type=Path, help="stages, families, downstream scores (default: what names tell)")
    _add_downstream(pack)
    add_shared(pack, "context", "run")
    pack.add_argument("-o", "--output", type=Path, required=True, help="the file to write, such as ladder.hesnr.zip")
    pack.add_argument("--force", action="store_true", help="overwrite it if it exists")
    pack.set_defaults(action=_pack)

    verdict = commands.add_parser(
        "verdict", help="which checkpoint to take, and whether HE-SNR predicts better than PPL"
    )
    verdict.add_argument(
        "sources", nargs="+", help="folders of score files, such as the output of `hesnr ladder run`, or one pack"
    )
    verdict.add_argument("--ladder", type=Path, help="stages, families, downstream scores (default: what names tell)")
    _add_downstream(verdict)
    verdict.add_argument("--proxy", default="he_snr", help="the metric to choose by (default: he_snr)")
    verdict.add_argument("--baseline", default="ppl", help="the metric it must beat (default: ppl)")
    verdict.add_argument(
        "--proxies", nargs="+", default=[], metavar="METRIC",
        help=f"metrics of the table and of prediction, or all (default: {' '.join(PROXIES)})",
    )  # fmt: skip
    verdict.add_argument(
        "--stages", choices=("together", "apart"), default="together",
        help="pretrain, mid and long-context in one order, or each by itself (default: together, each also beside it)",
    )  # fmt: skip
    add_selection(verdict, several=False)
    verdict.add_argument("--format", choices=("text", "json", "markdown", "latex"), default="text")
    add_shared(verdict, "wide")
    verdict.add_argument(
        "--fail-under", metavar="NAME=VALUE",
        help="exit with status 3 if the best checkpoint (of any group) has a worse value, e.g. he_snr=0.1",
    )  # fmt: skip
    verdict.set_defaults(action=_verdict)


def _add_downstream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--downstream", nargs="+", type=Path, default=[], metavar="FILE",
        help="tables (CSV: checkpoint and any columns), SWE-bench reports or lm-eval results",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the action that was named."""
    return int(args.action(args))


def _read(path: Path, downstream: list[Path]) -> tuple[Ladder, list[str]]:
    return add_downstream(read_ladder_file(path), downstream)


def _init(args: argparse.Namespace) -> int:
    paths, _ = whole_contexts(folders(args.results))
    checkpoints: list[Checkpoint] = []
    for checkpoint in checkpoints_of(paths, None):
        if checkpoint is not None and all(checkpoint.name != other.name for other in checkpoints):
            checkpoints.append(checkpoint)
    checkpoints.sort(key=lambda c: (c.tuned, c.context or 0, c.step or 0, c.name))
    ladder, remarks = add_downstream(Ladder(tuple(checkpoints)), args.downstream)
    text = write_ladder_file(ladder)
    if args.output is None:
        print(text, end="")
    elif args.output.exists() and not args.force:
        raise SettingsError(f"{args.output} exists; name another file, or overwrite it with --force")
    else:
        write_output(args.output, text)
        scores = "" if any(c.downstream for c in ladder.checkpoints) else ", downstream scores"
        listed = number_of(len(checkpoints), "checkpoint")
        print(f"wrote {args.output}: {listed}. Add trajectories, families, stages and sft_of{scores}.")
    _say(remarks)
    return 0


def _check(args: argparse.Namespace) -> int:
    ladder, remarks = _read(args.ladder, args.downstream)
    families = dict.fromkeys(checkpoint.family or "(no family)" for checkpoint in ladder.checkpoints)
    judged = {task: outcomes(ladder, task, remarks) for task in ladder.benchmarks}
    rows = []
    for checkpoint in ladder.checkpoints:
        row: dict[str, Any] = {"checkpoint": checkpoint.name, "family": checkpoint.family, "stage": checkpoint.stage}
        row |= {"step": checkpoint.step, "context": checkpoint.context, "sft_of": checkpoint.sft_of}
        for task, scores in judged.items():
            score = scores.get(checkpoint.name)
            own = "" if score is None or score.measured == "itself" else f" ({score.measured})"
            row[task if task not in row else f"{task} (score)"] = "" if score is None else f"{score.value:g}{own}"
        rows.append(row | {"model": "@".join(filter(None, (checkpoint.model or checkpoint.name, checkpoint.revision)))})
    title = f"{args.ladder}: {number_of(len(rows), 'checkpoint')}, families: {', '.join(families)}"
    notes = ["scores: what judges a checkpoint, and where it was measured"] if judged else []
    print(show([Table("ladder", title, rows, notes, below=("model",))], "text", {}, wide=args.wide))
    if not ladder.trajectories:
        _say(["no trajectories: `hesnr ladder run` would score the demo's; add trajectories: [my_runs/]"])
    _say(remarks)
    missing = missing_here(ladder, task_names())
    _say(missing)
    if args.online:
        absent = missing_on_hub(ladder)
        _say(absent)
        print(f"the hub lacks {len(absent)} of them" if absent else "the hub has every model and revision")
        missing += absent
    return int(bool(missing))


def _run(args: argparse.Namespace) -> int:
    for name in ("workers", "shards"):
        if not 1 <= getattr(args, name) <= 10_000:
            raise SettingsError(f"--{name} must be at least 1, and not beyond 10,000")
    if args.shards > 1 and args.drop_downloads:
        raise SettingsError(
            "--drop-downloads with --shards: of shards on other machines nobody knows which downloads were theirs. "
            "Leave one of them out."
        )
    score_and_report(
        args.ladder, args.output, downstream=args.downstream, tasks=args.tasks, only=args.only,
        lm_eval_args=args.lm_eval_args.split(), drop_downloads=args.drop_downloads, shards=args.shards,
        pool=lambda ladder: _pool(args, ladder),
    )  # fmt: skip
    return 0


def _pool(args: argparse.Namespace, ladder: Ladder) -> Pool:
    if args.ray:
        return RayPool(args.ray, ladder.gpus)
    if args.slurm is None:
        return LocalPool(args.workers)
    wrong = [word for word in args.slurm if "=" not in word]
    if wrong:
        raise SettingsError(f"--slurm {wrong[0]!r} must be KEY=VALUE, as partition=gpu time=240")
    settings = {**ladder.slurm, **dict(word.split("=", 1) for word in args.slurm)}
    return SlurmPool(args.output.absolute() / "slurm", settings, ladder.gpus)


def score_and_report(
    path: Path,
    output: Path,
    *,
    downstream: Sequence[Path] = (),
    tasks: str | None = None,
    only: Sequence[str] = (),
    lm_eval_args: Sequence[str] = (),
    pool: Callable[[Ladder], Pool] = lambda _: LocalPool(),
    shards: int = 1,
    drop_downloads: bool = False,
) -> None:
    """Score every checkpoint of a ladder file with lm_eval, then print the verdict and write the report.

    Args:
        path: the ladder file.
        output: folder of the results.
        downstream, tasks, only, lm_eval_args: as the options.
        pool: where a ladder's jobs run.
        shards: as `jobs`.
        drop_downloads: as `run_jobs`.

    Raises:
        HesnrError: a checkpoint could not be scored; the others are, and are in the report.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    ladder, remarks = _read(path, list(downstream))
    _say(remarks)
    if tasks:
        ladder = replace(ladder, tasks=tuple(tasks.split(",")))
    todo = jobs(ladder, output, only=only, extra=lm_eval_args, shards=shards)
    scored = tuple(ladder[job.name] for job in todo)
    wanted = replace(ladder, checkpoints=scored, lm_eval_args=(*ladder.lm_eval_args, *lm_eval_args))
    missing = missing_here(wanted, task_names())
    workplace = pool(ladder)
    if missing and isinstance(workplace, LocalPool):
        raise SettingsError("\n".join(missing))
    _say(missing)  # other machines may have what this one lacks
    parts = f" in {shards} shards each" if shards > 1 else ""
    print(
        f"{number_of(len(todo), 'checkpoint')}{parts}, {free_disk(output) / 2**30:.0f} GiB free for results and "
        f"downloads",
        flush=True,
    )
    show_progress = _progress_view(todo)
    try:
        results = run_jobs(
            todo, show_progress.report, pool=workplace, drop_downloads=drop_downloads, watch=show_progress.watch
        )
    finally:
        show_progress.close()
    failed = [result.name for result in results if result.state == "failed"]
    if len(failed) < len(results):
        print()
        report([str(output / "runs")], output, ladder=path, downstream=downstream)
    if failed:
        raise HesnrError(f"not scored: {', '.join(failed)}. The same command tries them again and keeps the others.")


# --- what is shown while it runs --------------------------------------------------------------------------------------


class _Lines:
    """A line for every checkpoint that ends: for logs, and terminals without rich."""

    def __init__(self, todo: Sequence[Job]) -> None:
        self._jobs = {job.name: job for job in todo}
        self._start, self._started = time.monotonic(), time.time()
        self._results: dict[str, JobResult] = {}
        self._shards_left: Mapping[str, int] = {}
        self._begun: dict[str, float] = {}  # when a checkpoint was first seen to run
        self._next = 0.0

    def report(self, result: JobResult) -> None:
        """A checkpoint ended."""
        self._results[result.name] = result
        left = self._left() if result.state == "scored" else None
        rest = "" if left is None else f", about {_clock(left)} left"
        text = "" if result.state == "failed" else _headline(self._jobs[result.name])
        value = f", HE-SNR {text}" if text else ""
        count = f"[{len(self._results)}/{len(self._jobs)}]"
        print(f"{count} {result.name}: {result.state} in {result.seconds:.0f} s{value}{rest}", flush=True)
        if result.error:
            print(f"  {result.error}", flush=True)

    def watch(self, shards_left: Mapping[str, int]) -> None:
        """Look once a second which checkpoints run; nothing is shown between two that end."""
        self._shards_left = dict(shards_left)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1
            for name, job in self._jobs.items():
                if name not in {*self._results, *self._begun} and progress_of(job, self._started).state == "running":
                    self._begun[name] = time.monotonic()

    def _left(self) -> float | None:
        """Seconds left, by what was scored since the start; None: unknown, or nothing is left.

        What was scored before or failed took no such time and counts neither as done nor as left. A checkpoint that
        runs counts by the share that it printed, by its shards that ended (the run that joins them is one more) or,
        while a model loads and nothing is printed, by how long those that ended took.
        """
        if len(self._results) == len(self._jobs):
            return None
        done, whole, now = 0.0, 0, time.monotonic()
        took = [result.seconds for result in self._results.values() if result.state == "scored"]
        for name, job in self._jobs.items():
            result = self._results.get(name)
            if result and result.state != "scored":
                continue
            whole += 1
            shards = len(job.shards)
            ended = (shards - self._shards_left.get(name, shards)) / max(shards, 1)
            share = max(ended, progress_of(job, self._started).share or 0.0)
            if took and not shards and sum(took):
                share = max(share, min((now - self._begun.get(name, now)) * len(took) / sum(took), 1.0))
            done += 1.0 if result else share * (shards / (shards + 1) if shards else 1.0)
        return (now - self._start) / done * (whole - done) if done else None

    def close(self) -> None:
        """Nothing to put away."""


class _LiveTable(_Lines):
    """All checkpoints on a terminal: state, share of tokens scored, time left, HE-SNR when finished."""

    def __init__(self, todo: Sequence[Job], live: type[Any], table: type[Any]) -> None:
        super().__init__(todo)
        self._headlines: dict[str, str] = {}
        self._table = table
        self._live = live(self._rows_table(), auto_refresh=False)
        self._live.start()

    def report(self, result: JobResult) -> None:
        """A checkpoint ended."""
        self._results[result.name] = result
        self._headlines[result.name] = _headline(self._jobs[result.name])
        self._live.update(self._rows_table(), refresh=True)

    def watch(self, shards_left: Mapping[str, int]) -> None:
        """Look at the logs of those that run, once a second."""
        if time.monotonic() >= self._next:
            self._live.update(self._rows_table(), refresh=True)
        super().watch(shards_left)

    def close(self) -> None:
        """The table stays on the terminal; below it why something failed."""
        self._live.update(self._rows_table(), refresh=True)
        self._live.stop()
        for result in self._results.values():
            if result.error:
                print(f"{result.name}: {result.error}", flush=True)

    def _rows_table(self) -> Any:
        from rich.text import Text

        seconds, ended = time.monotonic() - self._start, len(self._results)
        rest = self._left() if ended else None
        left = "" if rest is None else f", about {_clock(rest)} left"
        title = f"{ended} of {number_of(len(self._jobs), 'checkpoint')}, {_clock(seconds)}{left}"
        table = self._table(title=title, title_justify="left")
        for heading, justify in (("checkpoint", "left"), ("state", "left"), ("done", "right"), ("left", "right")):
            table.add_column(heading, justify=justify)
        table.add_column("HE-SNR", justify="right")
        for name, job in self._jobs.items():
            if name in self._results:
                state = self._results[name].state
                cells = (state, "" if state == "failed" else "100%", "", self._headlines[name])
            else:
                progress = progress_of(job, self._started)
                files = number_of(progress.files, "text") if progress.files else ""
                share = files if progress.share is None else f"{progress.share:.0%}"
                cells = (progress.state, share, progress.left, "")
            table.add_row(Text(name), *(Text(cell) for cell in cells))
        return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _headline(job: Job) -> str:
    """HE-SNR of the first of our tasks in a job's newest result file; empty: there is none."""
    try:
        newest = max(job.folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime, default=None)
        rows = read_results([newest]) if newest else []
    except (HesnrError, OSError):
        return ""
    values = [row.values["he_snr"] for row in rows if row.signature and "he_snr" in row.values]
    return values[0].text if values else ""


def _progress_view(todo: Sequence[Job]) -> _Lines:
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            from rich.live import Live
            from rich.table import Table

            return _LiveTable(todo, Live, Table)
    return _Lines(todo)


def _verdict(args: argparse.Namespace) -> int:
    check_resamples(args.resamples, args.seed)
    pack = only_pack(args.sources)
    first = pack.summaries[0] if pack and pack.summaries else None
    k = args.k if args.k is not None else first.k if first else 10
    epsilon = check_epsilons([args.epsilon] if args.epsilon is not None else None, [k])[0]
    if args.epsilon is None and first:
        epsilon = first.epsilon
    settings = VerdictSettings(
        proxy=args.proxy, baseline=args.baseline, proxies=tuple(args.proxies), kinds=args.kinds, filters=args.filters,
        k=k, epsilon=epsilon, context=args.context, stages_apart=args.stages == "apart", run=args.run,
        resamples=args.resamples, seed=args.seed,
    )  # fmt: skip
    if pack is not None:
        ladder, remarks = _read(args.ladder, []) if args.ladder else (pack.ladder, list(pack.notes))
        ladder, more = add_downstream(ladder, args.downstream)
        remarks += more
        verdict = judge_pack(pack, ladder, settings)
    else:
        whole, remarks = _ladder_of(args.sources, args.ladder, args.downstream)
        verdict = judge(args.sources, whole if args.ladder or args.downstream else None, settings)
    verdict = replace(verdict, notes=(*remarks, *verdict.notes))
    if args.format == "json":
        print(verdict.to_json())
    elif args.format == "latex":
        print(_latex(verdict))
    else:
        print(_text(verdict, args.format, wide=args.wide))
    return _exit_status(verdict, args.fail_under)


def _ladder_of(sources: Sequence[str], path: Path | None, downstream: Sequence[Path]) -> tuple[Ladder, list[str]]:
    """The ladder of a file, or what the names of score folders tell, with downstream scores."""
    if path:
        return _read(path, list(downstream))
    named = Ladder(tuple(c for c in checkpoints_of(whole_contexts(folders(sources))[0], None) if c))
    return add_downstream(named, downstream)


def _pack(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.force:
        raise SettingsError(f"{args.output} exists; name another file, or overwrite it with --force")
    packs = [name for name in args.results if is_pack(name)]
    if packs:
        raise SettingsError(f"{packs[0]} is a pack already; a pack is made of folders of lm-eval results")
    results = read_results(args.results, optional=True)
    by_result, notes = find_score_folders(results, args.results)
    if not by_result:
        raise DataError(
            f"there are no score files in {', '.join(args.results)}, and a pack is made of them. Score with "
            "--output_path, or name the folder that has them."
        )
    named = read_ladder({*(result.model for result in results), *by_result}, args.ladder, args.downstream)
    paths = {c.name: by_result[c.name] for c in named.checkpoints if c.name in by_result}
    paths |= _other_folders(args.results, paths)
    ladder, remarks = _ladder_of(args.results, args.ladder, args.downstream)
    checkpoints = dict(zip(paths, checkpoints_of(list(paths.values()), ladder), strict=True))
    context, note = context_for(list(paths.values()), args.context, skip_damaged=True)
    ours = [result for result in results if result.signature]
    summaries, _, unread = read_summaries(
        ours, paths, run=args.run, context=context or "own", metrics=names_of("all"), cases=False
    )
    pack = Pack(
        ladder, named, {name: c.name for name, c in checkpoints.items() if c is not None}, tuple(summaries),
        tuple(result.to_json() for result in results), tuple(dict.fromkeys([*notes, *remarks, *unread])), note,
    )  # fmt: skip
    digest = write_pack(args.output, pack)
    read_pack(args.output)
    trajectories = max(len(next(iter(summary.runs.values())).keys) if summary.runs else 0 for summary in summaries)
    print(
        f"wrote {args.output}: {number_of(len(summaries), 'checkpoint')}, {number_of(trajectories, 'trajectory')}, "
        f"{args.output.stat().st_size / 2**20:.1f} MiB, no texts\nsha256 {digest}\n"
        f"read it with: hesnr report {args.output}; hesnr ladder verdict {args.output}"
    )
    _say([*notes, *remarks, *unread])
    return 0


def _other_folders(sources: Sequence[str], by_result: Mapping[str, Path]) -> dict[str, Path]:
    """Score folders that belong to no result, which the verdict reads all the same."""
    there = {path.resolve() for path in by_result.values()}
    paths = [path for path in whole_contexts(folders(sources))[0] if path.resolve() not in there]
    return {f"{path.name} ({i})" if path.name in by_result else path.name: path for i, path in enumerate(paths, 1)}


def _text(verdict: Verdict, format: str, *, wide: bool) -> str:
    """For people: the sentences, the tables, and the notes."""
    parts = [paragraphs(verdict.sentences) if format == "text" else "\n\n".join(verdict.sentences)]
    parts += [show(verdict.tables, format, {}, wide=wide)]
    notes = [f"- {note}" for note in verdict.remarks]
    return "\n\n".join([*parts, paragraphs(notes) if format == "text" else "\n".join(notes)]).rstrip()


def _latex(verdict: Verdict) -> str:
    """The tables, the best in bold and ties marked with a dagger; sentences and notes as comments."""
    import pandas as pd

    marks = {"best": r"\textbf{%s}", "tie": r"%s$^\dagger$", "": "%s"}
    parts = ["\n".join(f"% {printable(line)}" for line in (*verdict.sentences, *verdict.remarks))]
    for table in verdict.tables:
        notes = "".join(f"% {printable(note)}\n" for note in table.notes)
        columns = [name for name in table.columns if name not in (*table.wide, "verdict", "group")]
        rows = [{_escaped(name): _latex_cell(row.get(name)) for name in columns} for row in table.rows]
        for row, cells in zip(table.rows, rows, strict=True):
            if "checkpoint" in columns:
                cells["checkpoint"] = marks[row["verdict"]] % cells["checkpoint"]
        parts.append(notes + str(pd.DataFrame(rows).to_latex(index=False, escape=False, na_rep="--")).rstrip())
    return "\n\n".join(parts)


def _latex_cell(value: Any) -> str:
    if hasattr(value, "stderr"):
        return str(value.text).replace(" ± ", r" $\pm$ ")
    if isinstance(value, float) and abs(value) < 1000:
        return _escaped(f"{value:.4g}")
    return "--" if value is None else _escaped(f"{value:g}" if isinstance(value, (int, float)) else str(value))


def _escaped(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _exit_status(verdict: Verdict, wanted: str | None) -> int:
    if not wanted:
        return 0
    name, _, value = wanted.partition("=")
    best = [row for row in verdict.table.rows if row["verdict"] == "best"]
    try:
        bound = float(value)
        reached = [row[name].value for row in best]
        higher = METRICS[name].higher_is_better
    except (ValueError, KeyError, AttributeError):
        bound, reached, higher = math.nan, [], None
    if math.isnan(bound) or higher is None:
        raise SettingsError(f"--fail-under {wanted!r} must be a metric of the table and a number, as he_snr=0.1")
    failed = False
    for row, actual in zip(best, reached, strict=True):
        if not (actual >= bound if higher else actual <= bound):
            failed = True
            print(f"hesnr: {row['checkpoint']} has {name} {actual:.4g}, worse than {bound:g}", file=sys.stderr)
    return 3 if failed else 0


def _say(remarks: list[str]) -> None:
    for remark in remarks:
        print(f"hesnr: {remark}", file=sys.stderr)
