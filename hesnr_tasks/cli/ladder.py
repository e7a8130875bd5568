"""`hesnr ladder`: write, check and run a ladder file, and say which checkpoint to take."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hesnr_tasks.analysis.frame import check_epsilons, check_resamples, context_for, folders
from hesnr_tasks.analysis.tables import show
from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.cli.options import add_context, add_run_option, add_selection
from hesnr_tasks.cli.report import report
from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.ladder.evidence import PROXIES, Verdict, VerdictSettings, checkpoints_of, judge, judge_pack
from hesnr_tasks.ladder.names import read_ladder
from hesnr_tasks.ladder.pack import Pack, only_pack, read_pack, write_pack
from hesnr_tasks.ladder.run import JobResult, free_disk, jobs, missing_on_hub, run_jobs, run_jobs_on_ray
from hesnr_tasks.ladder.schema import Checkpoint, Ladder, add_downstream, read_ladder_file, write_ladder_file
from hesnr_tasks.metrics import METRICS, names_of
from hesnr_tasks.report.data import read_summaries
from hesnr_tasks.report.results import find_score_folders, read_results

__all__ = ["add_arguments", "run", "score_and_report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr ladder`."""
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
    _add_downstream(check)
    check.set_defaults(action=_check)

    run_ = commands.add_parser("run", help="score every checkpoint of a ladder file with lm_eval, then the verdict")
    run_.add_argument("ladder", type=Path)
    run_.add_argument("-o", "--output", type=Path, required=True, help="folder of the results; the same goes on")
    run_.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these checkpoints")
    run_.add_argument("--tasks", help="tasks of lm_eval, ours and others, in place of the file's")
    run_.add_argument(
        "--ray", metavar="ADDRESS", help="on a Ray cluster: its address, 'auto', or 'local' for this machine"
    )
    run_.add_argument("--workers", type=int, default=1, help="checkpoints at a time (default: 1)")
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
    add_context(pack)
    add_run_option(pack)
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
    add_selection(verdict, several=False)
    verdict.add_argument("--format", choices=("text", "json", "markdown", "latex"), default="text")
    verdict.add_argument(
        "--fail-under", metavar="NAME=VALUE",
        help="exit with status 3 if the best checkpoint has a worse value of this metric, e.g. he_snr=0.1",
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
    paths = folders(args.results)
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
        print(
            f"wrote {args.output}: {len(checkpoints)} checkpoints. Add families, stages, sft_of and downstream scores."
        )
    _say(remarks)
    return 0


def _check(args: argparse.Namespace) -> int:
    ladder, remarks = _read(args.ladder, args.downstream)
    families = dict.fromkeys(checkpoint.family or "(no family)" for checkpoint in ladder.checkpoints)
    print(f"{args.ladder}: {len(ladder.checkpoints)} checkpoints, families: {', '.join(families)}")
    for checkpoint in ladder.checkpoints:
        facts = [checkpoint.stage, f"step {checkpoint.step}" if checkpoint.step is not None else ""]
        facts += [f"context {checkpoint.context:,}" if checkpoint.context else ""]
        facts += [f"sft of {checkpoint.sft_of}" if checkpoint.sft_of else ""]
        facts += [f"{task} {score.value:g}" for task, score in checkpoint.downstream.items()]
        model = checkpoint.model or checkpoint.name
        print(f"  {checkpoint.name}: {model}{f'@{checkpoint.revision}' if checkpoint.revision else ''}", end="")
        print("".join(f", {fact}" for fact in facts if fact))
    if not ladder.trajectories:
        _say(["no trajectories: `hesnr ladder run` would score the demo's; add trajectories: [my_runs/]"])
    _say(remarks)
    if not args.online:
        return 0
    missing = missing_on_hub(ladder)
    _say(missing)
    print(f"the hub lacks {len(missing)} of them" if missing else "the hub has every model and revision")
    return int(bool(missing))


def _run(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise SettingsError("--workers must be at least 1")
    score_and_report(
        args.ladder, args.output, downstream=args.downstream, tasks=args.tasks, only=args.only,
        lm_eval_args=args.lm_eval_args.split(), ray=args.ray, workers=args.workers, drop_downloads=args.drop_downloads,
    )  # fmt: skip
    return 0


def score_and_report(
    path: Path,
    output: Path,
    *,
    downstream: Sequence[Path] = (),
    tasks: str | None = None,
    only: Sequence[str] = (),
    lm_eval_args: Sequence[str] = (),
    ray: str | None = None,
    workers: int = 1,
    drop_downloads: bool = False,
) -> None:
    """Score every checkpoint of a ladder file with lm_eval, then print the verdict and write the report.

    Raises:
        HesnrError: a checkpoint could not be scored; the others are, and are in the report.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise HesnrError("lm-eval is not installed in this Python. Install it with: pip install 'hesnr-tasks[hf]'")
    ladder, remarks = _read(path, list(downstream))
    _say(remarks)
    if tasks:
        ladder = replace(ladder, tasks=tuple(tasks.split(",")))
    todo = jobs(ladder, output, only=only, extra=lm_eval_args)
    print(f"{len(todo)} checkpoints, {free_disk(output) / 2**30:.0f} GiB free for results and downloads", flush=True)
    start, done = time.monotonic(), 0

    def progress(result: JobResult) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - start) / done * (len(todo) - done)
        rest = f", about {left:.0f} s left" if done < len(todo) and result.state == "scored" else ""
        print(f"[{done}/{len(todo)}] {result.name}: {result.state} in {result.seconds:.0f} s{rest}", flush=True)
        if result.error:
            print(f"  {result.error}", flush=True)

    if ray:
        results = run_jobs_on_ray(todo, progress, address=ray, gpus=ladder.gpus, drop_downloads=drop_downloads)
    else:
        results = run_jobs(todo, progress, workers=workers, drop_downloads=drop_downloads)
    failed = [result.name for result in results if result.state == "failed"]
    if len(failed) < len(results):
        print()
        report([str(output / "runs")], output, ladder=path, downstream=downstream)
    if failed:
        raise HesnrError(f"not scored: {', '.join(failed)}. The same command tries them again and keeps the others.")


def _verdict(args: argparse.Namespace) -> int:
    check_resamples(args.resamples, args.seed)
    pack = only_pack(args.sources)
    first = pack.summaries[0] if pack and pack.summaries else None
    k = args.k if args.k is not None else first.k if first else 10
    epsilon = check_epsilons([args.epsilon] if args.epsilon is not None else None, [k])[0]
    if args.epsilon is None and first:
        epsilon = first.epsilon
    settings = VerdictSettings(
        proxy=args.proxy, baseline=args.baseline, proxies=tuple(args.proxies),
        kinds=args.kinds, filters=args.filters, k=k,
        epsilon=epsilon, context=args.context, run=args.run, resamples=args.resamples, seed=args.seed,
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
    elif args.format == "markdown":
        print(_markdown(verdict))
    else:
        print(_text(verdict))
    return _exit_status(verdict, args.fail_under)


def _ladder_of(sources: Sequence[str], path: Path | None, downstream: Sequence[Path]) -> tuple[Ladder, list[str]]:
    """The ladder of a file, or what the names of score folders tell, with downstream scores."""
    if path:
        return _read(path, list(downstream))
    named = Ladder(tuple(c for c in checkpoints_of(folders(sources), None) if c is not None))
    return add_downstream(named, downstream)


def _pack(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.force:
        raise SettingsError(f"{args.output} exists; name another file, or overwrite it with --force")
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
        f"wrote {args.output}: {len(summaries)} checkpoints, {trajectories} trajectories, "
        f"{args.output.stat().st_size / 2**20:.1f} MiB, no texts\nsha256 {digest}\n"
        f"read it with: hesnr report {args.output}; hesnr ladder verdict {args.output}"
    )
    _say([*notes, *remarks, *unread])
    return 0


def _other_folders(sources: Sequence[str], by_result: Mapping[str, Path]) -> dict[str, Path]:
    """Score folders that belong to no result, which the verdict reads all the same."""
    there = {path.resolve() for path in by_result.values()}
    paths = [path for path in folders(sources) if path.resolve() not in there]
    return {f"{path.name} ({i})" if path.name in by_result else path.name: path for i, path in enumerate(paths, 1)}


def _text(verdict: Verdict) -> str:
    parts = ["\n".join(verdict.sentences), show([verdict.table], "text", {})]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in verdict.remarks)]).rstrip()


def _latex(verdict: Verdict) -> str:
    """The table with the best in bold and ties marked with a dagger."""
    import pandas as pd

    marks = {"best": r"\textbf{%s}", "tie": r"%s$^\dagger$", "": "%s"}
    frame = pd.DataFrame(_cells(verdict, marks, r" $\pm$ ", _escaped))
    return str(frame.to_latex(index=False, escape=False, na_rep="--"))


def _markdown(verdict: Verdict) -> str:
    """The sentences, the table with the best in bold and ties marked with a dagger, and the notes."""
    marks = {"best": "**%s**", "tie": "%s †", "": "%s"}
    cells = _cells(verdict, marks, " ± ", lambda text: text.replace("|", "\\|"))
    lines = [list(cells[0]), ["---", *["---:"] * (len(cells[0]) - 1)], *(list(row.values()) for row in cells)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in verdict.remarks)
    return "\n\n".join([*verdict.sentences, table, notes]).rstrip()


def _cells(
    verdict: Verdict, marks: Mapping[str, str], plus_minus: str, escape: Callable[[str], str]
) -> list[dict[str, str]]:
    """The essential columns of the table as text, the checkpoint's name marked by its verdict."""
    rows = []
    for row in verdict.table.rows:
        cells = {"checkpoint": marks[row["verdict"]] % escape(str(row["checkpoint"]))}
        for key, value in row.items():
            if key in (*verdict.table.wide, "checkpoint", "verdict", "group"):
                continue
            if hasattr(value, "stderr"):
                text = f"{value.value:.4g}{plus_minus}{value.stderr:.2g}"
            elif isinstance(value, (int, float)):
                text = escape(f"{value:g}")
            else:
                text = "--" if value is None else escape(str(value))
            cells[escape(key)] = text
        rows.append(cells)
    return rows


def _escaped(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text


def _exit_status(verdict: Verdict, wanted: str | None) -> int:
    if not wanted:
        return 0
    name, _, value = wanted.partition("=")
    row = next(row for row in verdict.table.rows if row["verdict"] == "best")
    try:
        bound = float(value)
        reached = row[name].value
    except (ValueError, KeyError, AttributeError):
        raise SettingsError(
            f"--fail-under {wanted!r} must be a metric of the table and a number, as he_snr=0.1"
        ) from None
    passed = reached >= bound if METRICS[name].higher_is_better else reached <= bound
    if not passed:
        print(f"hesnr: {row['checkpoint']} has {name} {reached:.4g}, worse than {bound:g}", file=sys.stderr)
    return 0 if passed else 3


def _say(remarks: list[str]) -> None:
    for remark in remarks:
        print(f"hesnr: {remark}", file=sys.stderr)
