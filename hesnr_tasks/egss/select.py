"""`hesnr select`: one patch an instance from finished runs, by tests that all of them must pass and models that vote.

1. Candidates: the submissions of the runs. Empty ones, and those that do not apply, are out where others are left.
   Patches that change the same source in the same way are one, with as many copies as runs.
2. The suite (`suite`) is run on each. The `top` patches by pass rate go on; those that could not be tested come last.
3. Voters (`selectors`) vote; most votes win.

Ties, wherever they are, are broken at random with the seed, and told. Beside the patches that were chosen stands, in
`*.why.json`, what each choice rests on, and what the controls would have chosen: a random run, the patch most runs
have, the suite alone, the best of N by scores of the voters without a suite (only where it was asked for: it costs).
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesnr_tasks.atomic_io import write_output
from hesnr_tasks.egss.collect import PYTEST_FILES, Candidate, collect, load_instances, patch_key, source_patch
from hesnr_tasks.egss.journal import Journal
from hesnr_tasks.egss.sandbox import sandbox_config
from hesnr_tasks.egss.selectors import Ballot, ChatModel, Finalist, vote, write_tests
from hesnr_tasks.egss.suite import PYTEST, WRITTEN_BY_MODEL, PatchTester, Runner, Suite, TestFile
from hesnr_tasks.errors import SettingsError, nearest, printable

__all__ = ["METHODS", "Settings", "add_arguments", "run", "select_instance"]

_LOG = logging.getLogger("hesnr_tasks")
METHODS = ("egss", "suite", "majority", "random", "best-of-n")
_SHOWN = 12  # failed tests that a voter is told


@dataclass(frozen=True)
class Settings:
    """Of a selection.

    Attributes:
        method: one of `METHODS`.
        votes: ballots of each voter.
        top: patches that voters see.
        limit: most characters of each piece that models see.
        seed: of orders and ties.
        augment_path: of the test file that a model writes.
    """

    method: str = "egss"
    votes: int = 1
    top: int = 3
    limit: int = 40_000
    seed: int = 1234
    augment_path: str = "test_current_issue.py"
    runner: Runner = field(default_factory=Runner)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr select`."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="output folders (or files) of mini-swe-agent, SWE-agent, OpenHands …")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PREDS.json",
        help="the patches chosen, as SWE-bench reads them",
    )
    add(
        "-c",
        "--config",
        action="append",
        metavar="SPEC",
        help="mini-swe-agent configuration: where tests run; as mini-extra swebench takes it (default: swebench.yaml)",
    )
    add(
        "--environment-class", metavar="CLASS", help="docker, singularity, bubblewrap or local (no protection), over -c"
    )
    add(
        "--instances",
        metavar="FILE",
        help="SWE-bench rows (JSON, JSON Lines, Parquet): problem_statement, image_name …",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="variable that tests may see; others that look like keys are hidden from them",
    )
    add("--method", default="egss", metavar="METHOD", help=f"{', '.join(METHODS)} (default: egss)")
    add(
        "--selector",
        action="append",
        default=[],
        metavar="MODEL",
        help="a voter, as litellm names it; several may be given",
    )
    add("--votes", type=int, default=1, metavar="N", help="ballots of each voter (default: 1)")
    add("--augment", metavar="MODEL", help="model that writes missing tests (default: none)")
    add("--model-kwargs", default="{}", metavar="JSON", help="for litellm: api_base, temperature, max_tokens …")
    add("--runner", default=PYTEST, metavar="COMMAND", help="runs {file} and writes JUnit to {junit} (default: pytest)")
    add("--test-files", default=PYTEST_FILES, metavar="REGEX", help="paths that are tests (default: pytest's)")
    add(
        "--augment-path", default="test_current_issue.py", metavar="PATH", help="of the test file that --augment writes"
    )
    add("--timeout", type=int, default=120, metavar="SECONDS", help="for one test file (default: 120)")
    add("--repeats", type=int, default=3, metavar="N", help="runs of a file that tells patches apart (default: 3)")
    add("--budget", type=int, default=300, metavar="N", help="most runs of a test file an instance (default: 300)")
    add("--top", type=int, default=3, metavar="N", help="patches that voters see (default: 3)")
    add(
        "--limit",
        type=int,
        default=40_000,
        metavar="CHARACTERS",
        help="most of each piece that models see (default: 40000)",
    )
    add("--seed", type=int, default=1234, help="of orders and ties (default: 1234)")
    add("--name", default="", help="model_name_or_path in PREDS.json (default: hesnr-select-METHOD)")
    add("-w", "--workers", type=int, default=1, metavar="N", help="instances at a time (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Select, and print what was chosen by what; the same command goes on where it was stopped."""
    settings, kwargs = _checked(args)
    notes: Counter[str] = Counter()
    candidates = collect(args.runs, notes, args.test_files)
    rows = load_instances(args.instances) if args.instances else {}
    needs_suite = args.method in ("egss", "suite")
    config = sandbox_config(args.config or ["swebench.yaml"], args.environment_class, args.env) if needs_suite else {}
    why_path = args.output.with_name(f"{args.output.stem}.why.json")
    predictions: dict[str, dict[str, str]] = {}
    why: dict[str, dict[str, Any]] = {}
    with Journal(args.output.with_name(f"{args.output.stem}.work.jsonl")) as journal:

        def work(instance_id: str) -> tuple[str, dict[str, Any], Counter[str]]:
            row = {"problem_statement": candidates[instance_id][0].task, **rows.get(instance_id, {})}
            row["instance_id"] = instance_id
            found: Counter[str] = Counter()
            models = [ChatModel(name, journal, found, kwargs) for name in args.selector]
            writer = ChatModel(args.augment, journal, found, kwargs) if args.augment else None
            tester = PatchTester(config, row, settings.runner, journal, found) if needs_suite else None
            patch, record = select_instance(candidates[instance_id], row, settings, tester, models, writer)
            return patch, record, found

        pool = ThreadPoolExecutor(args.workers)
        futures = {pool.submit(work, instance_id): instance_id for instance_id in candidates}
        try:
            for future in as_completed(futures):
                instance_id = futures[future]
                patch, why[instance_id], found = future.result()
                notes.update(found)
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


def _checked(args: argparse.Namespace) -> tuple[Settings, dict[str, Any]]:
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
    runner = Runner(args.runner, args.test_files, args.timeout, args.repeats, args.budget)
    common = {"votes": args.votes, "top": args.top, "limit": args.limit, "seed": args.seed}
    return Settings(args.method, **common, augment_path=args.augment_path, runner=runner), kwargs


# --- one instance -----------------------------------------------------------------------------------------------------


def select_instance(
    candidates: Sequence[Candidate],
    instance: Mapping[str, Any],
    settings: Settings,
    tester: PatchTester | None,
    models: Sequence[ChatModel],
    writer: ChatModel | None,
) -> tuple[str, dict[str, Any]]:
    """The patch chosen, and why.

    Args:
        candidates: of one instance, in the order of the runs.
        instance: its row; `instance_id` and `problem_statement` are used here, the rest by the environment.
        settings: of the selection.
        tester: runs the tests; None: the method needs none.
        models: the voters.
        writer: writes missing tests; None: nobody does.
    """
    task, test_files = str(instance.get("problem_statement") or ""), settings.runner.test_files
    key_of = {candidate.run: patch_key(candidate.patch, test_files) for candidate in candidates}
    sources = {key_of[c.run]: source_patch(c.patch, test_files) for c in candidates}
    with_patch = [c for c in candidates if sources[key_of[c.run]]] or list(candidates)
    suite = Suite()
    if tester and any(sources.values()):
        suite = tester.suite(with_patch, _writing(writer, task, with_patch, settings) if writer else None)
    fit = [c for c in with_patch if key_of[c.run] not in suite.unfit] or with_patch
    keys = list(dict.fromkeys(key_of[c.run] for c in fit))
    choice = _Choice(str(instance["instance_id"]), settings, suite, fit, key_of, sources)
    controls = {"random": choice.random(), "majority": choice.majority(), "suite": choice.by_suite(keys)}
    ballots: list[Ballot] = []
    if settings.method == "best-of-n":
        chosen, ballots = choice.best_of_n(models, task)
    elif settings.method == "egss":
        chosen, ballots = choice.by_votes(models, task)
    else:
        chosen = controls[settings.method]
    key, decided_by, tied = chosen
    runs = [c.run for c in fit if key_of[c.run] == key]
    patch = next(c.patch for c in fit if c.run == runs[0])
    record = {
        "chosen": key,
        "runs": runs,
        "decided_by": decided_by,
        "tie_broken_at_random": tied,
        "cut_at_random": choice.cut_at_random,  # patches of equal pass rate, more than voters see
        "controls": {name: control[0] for name, control in controls.items()},
        "candidates": [_candidate(c, key_of[c.run], suite) for c in candidates],
        "suite": {"tests": suite.tests, "dropped": suite.dropped, "runs_of_files": suite.runs},
        "ballots": [ballot._asdict() for ballot in ballots],
        "spent": {
            model.name: model.spent._asdict() for model in [*models, *([writer] if writer else [])] if model.spent.calls
        },
    }
    return patch, record


def _writing(writer: ChatModel, task: str, candidates: Sequence[Candidate], settings: Settings) -> Any:
    patches = list(dict.fromkeys(source_patch(c.patch, settings.runner.test_files) for c in candidates))

    def written(files: Sequence[TestFile], problem: str) -> TestFile | None:
        tests = {file.path: file.content for file in files if file.content and WRITTEN_BY_MODEL not in file.authors}
        path = settings.augment_path
        content = write_tests(writer, path, task, patches, tests, problem, settings.limit)
        return TestFile(path, content, (WRITTEN_BY_MODEL,)) if content else None

    return written


def _candidate(candidate: Candidate, key: str, suite: Suite) -> dict[str, Any]:
    counts = suite.counts(key)
    described = {"run": candidate.run, "patch": key, "characters": len(candidate.patch)}
    if key in suite.problems:
        described["problem"] = suite.problems[key]
    elif not candidate.patch.strip():
        described["problem"] = "it changes nothing"
    return described | ({"tests": counts._asdict()} if counts else {})


_Chosen = tuple[str, str, bool]  # patch key, what decided, whether by lot


@dataclass
class _Choice:
    """The ways to choose one of an instance's patches."""

    instance_id: str
    settings: Settings
    suite: Suite
    candidates: Sequence[Candidate]
    key_of: Mapping[str, str]
    sources: Mapping[str, str]
    cut_at_random: bool = False

    def _lot(self, keys: Sequence[str], purpose: str) -> str:
        return random.Random(f"{self.settings.seed} {self.instance_id} {purpose}").choice(sorted(keys))

    def _best(self, scores: Mapping[str, float], purpose: str) -> _Chosen:
        best = [key for key, score in scores.items() if score >= max(scores.values()) - 1e-12]
        return self._lot(best, purpose), purpose if len(scores) > 1 else "only patch", len(best) > 1

    def random(self) -> _Chosen:
        """Any run, each with the same chance."""
        run = self._lot([c.run for c in self.candidates], "random")
        return self.key_of[run], "random", True

    def majority(self) -> _Chosen:
        """The patch that most runs have."""
        return self._best(Counter(self.key_of[c.run] for c in self.candidates), "majority")

    def by_suite(self, keys: Sequence[str]) -> _Chosen:
        """The best pass rate; patches that were not tested come last."""
        return self._best({key: self._rate(key) for key in keys}, "suite")

    def _rate(self, key: str) -> float:
        counts = self.suite.counts(key)
        return -1.0 if counts is None or math.isnan(counts.rate) else counts.rate

    def by_votes(self, models: Sequence[ChatModel], task: str) -> tuple[_Chosen, list[Ballot]]:
        """The cut by the suite, then the votes; without a usable vote the suite decides."""
        keys = list(dict.fromkeys(self.key_of[c.run] for c in self.candidates))
        order = random.Random(f"{self.settings.seed} {self.instance_id} cut").sample(sorted(keys), len(keys))
        ranked = sorted(order, key=lambda key: -self._rate(key))
        finalists = ranked[: self.settings.top]
        if len(ranked) > len(finalists) and self._rate(finalists[-1]) == self._rate(ranked[len(finalists)]):
            self.cut_at_random = True
        if len(finalists) == 1 or not models:
            return self.by_suite(keys), []
        best = max(map(self._rate, finalists))
        shown = [self._finalist(key, best) for key in finalists]
        cast = [self._ballot(model, number, task, shown) for model in models for number in range(self.settings.votes)]
        ballots = [ballot for ballot in cast if ballot]
        if not ballots:
            return self.by_suite(keys), []
        votes = Counter(dict.fromkeys(finalists, 0))
        votes.update(ballot.vote for ballot in ballots)
        return self._best(votes, "votes"), ballots

    def _finalist(self, key: str, best: float) -> Finalist:
        counts = self.suite.counts(key)
        if counts is None:
            return Finalist(key, self.sources[key])
        failures = self.suite.failures(key)
        lines = [f"passed {counts.passed}, failed {counts.failed}, error {counts.error}, total {counts.total}"]
        lines += [f"not passed: {name}" for name in failures[:_SHOWN]]
        lines += [f"and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        return Finalist(key, self.sources[key], "\n".join(lines), counts.rate >= best - 1e-12)

    def _ballot(self, model: ChatModel, number: int, task: str, shown: Sequence[Finalist]) -> Ballot | None:
        voter = f"{model.name} #{number + 1}"
        return vote(model, voter, task, shown, (self.settings.seed, self.instance_id), self.settings.limit)

    def best_of_n(self, models: Sequence[ChatModel], task: str) -> tuple[_Chosen, list[Ballot]]:
        """Each patch alone, by the mean of the voters' scores, without a suite."""
        keys = list(dict.fromkeys(self.key_of[c.run] for c in self.candidates))
        ballots: list[Ballot] = []
        scores: dict[str, list[float]] = collections.defaultdict(list)
        for key in keys:
            alone = [Finalist(key, self.sources[key])]
            cast = [self._ballot(model, n, task, alone) for model in models for n in range(self.settings.votes)]
            ballots += [ballot for ballot in cast if ballot]
            scores[key] = [ballot.scores[key] for ballot in cast if ballot]
        means = {key: math.fsum(values) / len(values) if values else -1.0 for key, values in scores.items()}
        return self._best(means, "best of N"), ballots


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
