"""`hesnr select`: one patch an instance from finished runs (EGSS, stage 2)."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields
from pathlib import Path
from typing import Any

from hesnr_tasks.egss.collect import collect, load_instances
from hesnr_tasks.egss.judges import ChatModel, check_model
from hesnr_tasks.egss.select import select_instance
from hesnr_tasks.egss.suite import METHODS, PatchTester, SelectSettings, sandbox_config
from hesnr_tasks.errors import SettingsError, nearest, printable
from hesnr_tasks.files.atomic import Journal, write_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr select`."""
    add, many = parser.add_argument, dict[str, Any](action="append", default=[])
    add("runs", nargs="+", metavar="RUN", help="output folders (or files) of mini-swe-agent, SWE-agent, OpenHands …")
    output = "the patches chosen, as SWE-bench reads them"
    add("-o", "--output", type=Path, required=True, metavar="PREDS.json", help=output)
    config = "mini-swe-agent configuration: where tests run; as mini-extra swebench takes it (default: swebench.yaml)"
    add("-c", "--config", **many, metavar="SPEC", help=config)
    classes = "docker, singularity, bubblewrap or local (no protection), over -c"
    add("--environment-class", metavar="CLASS", help=classes)
    rows = "SWE-bench rows (JSON, JSON Lines, Parquet): problem_statement, image_name …"
    add("--instances", metavar="FILE", help=rows)
    variable = "variable that tests may see; others that look like keys are hidden from them"
    add("--env", **many, metavar="NAME[=VALUE]", help=variable)
    add("--selector", **many, metavar="MODEL", help="a voter, as litellm names it; several may be given")
    add("--augment", metavar="MODEL", help="model that writes missing tests (default: none)")
    add("--model-kwargs", default="{}", metavar="JSON", help="for litellm: api_base, temperature, max_tokens …")
    for item in fields(SelectSettings):
        kind, flag = type(item.default), f"--{item.name.replace('_', '-')}"
        metavar = "N" if kind is int else item.name.upper()
        add(flag, type=kind, default=item.default, metavar=metavar, help=item.metadata["help"])
    add("--name", default="", help="model_name_or_path in PREDS.json (default: hesnr-select-METHOD)")
    add("-w", "--workers", type=int, default=1, metavar="N", help="instances at a time (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Select, and print what was chosen by what; the same command goes on where it was stopped."""
    settings, kwargs = _checked(args)
    journal_path = args.output.with_name(f"{args.output.stem}.work.jsonl")
    if not journal_path.exists():  # else the answers may all be there
        for name in filter(None, [*args.selector, args.augment]):
            check_model(name, kwargs)
    notes: Counter[str] = Counter()
    candidates = collect(args.runs, notes, args.test_files)
    rows = load_instances(args.instances) if args.instances else {}
    needs_suite = args.method in ("egss", "suite")
    config = sandbox_config(args.config or ["swebench.yaml"], args.environment_class, args.env) if needs_suite else {}
    why_path = args.output.with_name(f"{args.output.stem}.why.json")
    predictions: dict[str, dict[str, str]] = {}
    why: dict[str, dict[str, Any]] = {}
    with Journal(journal_path) as journal:

        def work(instance_id: str) -> tuple[str, dict[str, Any], Counter[str]]:
            row = {"problem_statement": candidates[instance_id][0].task, **rows.get(instance_id, {})}
            row["instance_id"] = instance_id
            counted: Counter[str] = Counter()
            models = [ChatModel(name, journal, counted, kwargs) for name in args.selector]
            writer = ChatModel(args.augment, journal, counted, kwargs) if args.augment else None
            tester = PatchTester(config, row, settings, journal, counted) if needs_suite else None
            patch, record = select_instance(candidates[instance_id], row, settings, tester, models, writer)
            return patch, record, counted

        pool = ThreadPoolExecutor(args.workers)
        futures = {pool.submit(work, instance_id): instance_id for instance_id in candidates}
        try:
            for future in as_completed(futures):
                instance_id = futures[future]
                patch, why[instance_id], counted = future.result()
                notes.update(counted)
                row = {"model_name_or_path": args.name or f"hesnr-select-{args.method}", "instance_id": instance_id}
                predictions[instance_id] = {**row, "model_patch": patch}
                predictions, why = (dict(sorted(rows.items())) for rows in (predictions, why))
                record = {"notes": dict(sorted(notes.items())), "instances": why}
                write_output(args.output, json.dumps(predictions, indent=2))
                write_output(why_path, json.dumps(record, indent=2))
        finally:
            pool.shutdown(cancel_futures=True)
    print(_summary(why, notes, args.output, why_path))
    return 0


def _checked(args: argparse.Namespace) -> tuple[SelectSettings, dict[str, Any]]:
    """The settings and litellm's arguments. Raises `SettingsError`."""
    if args.method not in METHODS:
        raise SettingsError(
            f"--method {args.method!r} must be one of {', '.join(METHODS)}.{nearest(args.method, METHODS)}"
        )
    if args.method == "best-of-n" and not args.selector:
        raise SettingsError("--method best-of-n asks a judge; name one with --selector MODEL")
    for name in ("votes", "timeout", "repeats", "budget", "top", "limit", "workers"):
        if getattr(args, name) < 1:
            raise SettingsError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if "{file}" not in args.runner or "{junit}" not in args.runner:
        raise SettingsError(
            f"--runner {args.runner!r} must hold {{file}}, the tests, and {{junit}}, the report it writes"
        )
    try:
        re.compile(args.test_files)
        kwargs = json.loads(args.model_kwargs)
    except re.error as error:
        raise SettingsError(f"--test-files {args.test_files!r} is no regular expression: {error}") from None
    except ValueError as error:
        raise SettingsError(f"--model-kwargs {args.model_kwargs!r} is no JSON: {error}") from None
    if not isinstance(kwargs, dict):
        raise SettingsError(f'--model-kwargs {args.model_kwargs!r} must be an object, such as {{"temperature": 0}}')
    return SelectSettings(**{item.name: getattr(args, item.name) for item in fields(SelectSettings)}), kwargs


def _summary(why: Mapping[str, Mapping[str, Any]], notes: Mapping[str, int], output: Path, why_path: Path) -> str:
    lines = [f"{'instance':40} {'runs':>4} {'patches':>7} {'tests':>5}  chosen from (by)"]
    for instance_id, record in why.items():
        patches = len({candidate["patch"] for candidate in record["candidates"]})
        by = record["decided_by"] + (", tie broken at random" if record["tie_broken_at_random"] else "")
        chosen = f"{', '.join(record['runs'])} ({by})"
        counts = f"{len(record['candidates']):4} {patches:7} {len(record['suite']['tests']):5}"
        lines.append(printable(f"{instance_id:40} {counts}  {chosen}"))
    ties = sum(record["tie_broken_at_random"] for record in why.values())
    decided = Counter(record["decided_by"] for record in why.values())
    lines.append(
        f"{len(why)} instances: "
        + ", ".join(f"{count} by {name}" for name, count in decided.most_common())
        + f"; {ties} ties broken at random"
    )
    lines += [printable(f"  {count} × {note}") for note, count in sorted(notes.items())]
    lines.append(f"{output}, {why_path}")
    return "\n".join(lines)
