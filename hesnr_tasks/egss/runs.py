"""What finished runs hold: each agent's own submitted patch, the tests it wrote, its task; and what it all cost.

A run is a folder or a file of any agent that `hesnr_tasks.formats` knows; its submission is what the agent's own
evaluation takes: `info.submission` of mini-swe-agent and SWE-agent, `git_patch` of OpenHands, else `preds.json` (or
`*.pred`, `all_preds.jsonl`) beside the trajectories. Nothing of a run is executed here.

Costs are curves, and the ratio of costs at equal resolve rate, paired by task. A method is a curve over its number of
independent runs: mean cost a task against resolve rate. The cost of a rate is read from the curve by straight lines
between its points (rates made non-decreasing: who has more runs can ignore some). Below the first point there is
nothing to read: one run costs what it costs, so the ratio is then an upper bound. Above the last point the rate is not
reached: infinity. The interval resamples tasks (seeded, those of `stats`) with all of their runs: percentiles, as a
ratio of interpolated curves has no standard error to studentise with.

Currencies: `prompt` (every prompt token), `cached` (those read from a cache count `price`), `output` (tokens), `money`.
Probes, draws and judges are in all of them; NaN where a call did not state it: unknown is not zero.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions.classes import action_parts, canonical_path
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.actions.tools import parameter_role
from hesnr_tasks.analysis.frame import unique_names
from hesnr_tasks.analysis.tables import Table
from hesnr_tasks.egss import Estimator
from hesnr_tasks.egss.judges import KINDS, Ledger, Spent, spent_of
from hesnr_tasks.errors import DataError, printable
from hesnr_tasks.files.bounded import read_json
from hesnr_tasks.formats import choose, read_record, unpacked
from hesnr_tasks.formats.base import Problem, ReadReport, deep, scalar_text, string
from hesnr_tasks.formats.sources import Record, records, source_paths
from hesnr_tasks.stats import RESAMPLES, SEED, Estimate, resample_counts, standard_error
from hesnr_tasks.trajectory import Kind, Trajectory

PYTEST_FILES = r"(^|/)(test_[^/]*|[^/]*_test)\.py$"  # as pytest collects them
_PREDICTIONS = ("preds.json", "all_preds.jsonl", "preds.jsonl", "*/*.pred", "*.pred")
_CACHES = re.compile(r"(^|/)(__pycache__|\.pytest_cache|\.mypy_cache|\.ruff_cache)/|\.pyc$")
_SUBMISSIONS = (("info", "submission"), ("test_result", "git_patch"), ("git_patch",), ("model_patch",))
_TASKS = (("instance", "problem_statement"), ("problem_statement",), ("issue", "body"))
_WORKING_COPY = re.compile(r"^/tmp/(?:minisweagent|hesnr-select)-[\w-]+/")
_CONTENTS = ("file_text", "content", "contents", "new_file")


@dataclass(frozen=True)
class PatchCandidate:
    """One run's answer to one instance."""

    instance_id: str
    run: str
    patch: str
    task: str = ""  # the prompt; empty: only a prediction is there
    tests: Mapping[str, str] = field(
        default_factory=dict
    )  # files that the agent wrote: path in the repository -> content
    ran: tuple[str, ...] = ()  # files of the repository's tests that it ran


def collect(
    runs: Sequence[str], notes: Counter[str], test_files: str = PYTEST_FILES
) -> dict[str, list[PatchCandidate]]:
    """The candidates of every instance, in the order of the runs; `notes` counts what could not be used.

    Raises:
        DataError: a run is not there, or none of them holds a submission.
    """
    candidates: dict[str, list[PatchCandidate]] = {}
    for run, name in zip(runs, unique_names([Path(run) for run in runs]), strict=True):
        if not Path(run).exists():
            raise DataError(f"{run}: no such run\nGive the output folder of an agent, or a file of trajectories.")
        read = list(_of_run(run, name, notes, re.compile(test_files)))
        if not read:
            notes[f"{name}: no submission found"] += 1
        several = Counter(candidate.instance_id for candidate, _ in read)
        for candidate, where in read:
            same = candidates.setdefault(candidate.instance_id, [])
            if several[candidate.instance_id] > 1:  # one folder with several runs
                candidate = replace(candidate, run=f"{name}/{where}")
            taken = sum(other.run.partition(" #")[0] == candidate.run for other in same)
            same.append(replace(candidate, run=f"{candidate.run} #{taken + 1}") if taken else candidate)
    if not candidates:
        listed = "; ".join(f"{count} × {note}" for note, count in notes.items())
        raise DataError(
            f"none of {', '.join(runs)} holds a submitted patch ({listed or 'no note'})\n"
            "A submission is info.submission (mini-swe-agent, SWE-agent), git_patch (OpenHands) or preds.json."
        )
    return dict(sorted(candidates.items()))


def _of_run(
    run: str, name: str, notes: Counter[str], test_files: re.Pattern[str]
) -> Iterator[tuple[PatchCandidate, str]]:
    """The candidates of one run, and where in it each was."""
    predicted = _predictions(Path(run), notes)
    try:
        files = [] if Path(run).name in _PREDICTIONS[:3] else list(source_paths(run, ReadReport()))
    except DataError:  # a folder of predictions alone
        files = []
    for file in files:
        for record in [file] if isinstance(file, Problem) else records(file[0]):
            if not isinstance(record, Record):
                notes[f"{name}: {record.reason}"] += 1
                continue
            value, trajectory = unpacked(record.value), None
            chosen = choose(value)
            try:
                trajectory = read_record(chosen, value, record.where) if chosen else None
            except DataError:
                notes[f"{name}: a damaged record"] += 1
            if chosen is None:
                notes[f"{name}: a record of an unknown format"] += 1
            instance = scalar_text(deep(value, "instance_id")) or (trajectory.instance_id if trajectory else None)
            patch = next(_texts(value, _SUBMISSIONS), None)
            if not instance or (patch is None and trajectory is None):
                continue
            predicted_patch = predicted.pop(instance, None)
            patch = predicted_patch if patch is None else patch
            if patch is None:
                notes[f"{name}: a trajectory without a submission"] += 1
                continue
            task = next(filter(None, _texts(value, _TASKS)), "")
            if trajectory and not task:
                prompts = (m.text for m in trajectory.messages if m.role == "user" and not m.generated)
                task = next(prompts, "")
            tests, ran = _tests(trajectory, test_files) if trajectory else ({}, ())
            yield PatchCandidate(instance, name, patch, task, tests, ran), posixpath.relpath(str(record.where), run)
    for instance, patch in predicted.items():
        yield PatchCandidate(instance, name, patch), "predictions"


def _texts(value: Any, paths: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The texts at several places of a record."""
    return (text for keys in paths if isinstance(text := deep(value, *keys), str))


def _predictions(run: Path, notes: Counter[str]) -> dict[str, str]:
    """instance -> patch, of the files of predictions in a run; SWE-bench's forms: an object, a list, lines."""
    files = list(itertools.chain.from_iterable(map(run.glob, _PREDICTIONS)))
    if run.is_file():
        files = [run] if run.name in _PREDICTIONS[:3] or run.suffix == ".pred" else []
    predicted: dict[str, str] = {}
    for path in files:
        for record in records(str(path)):
            if not isinstance(record, Record):
                notes[f"{path.name}: {record.reason}"] += 1
                continue
            rows = record.value if isinstance(record.value, list) else [record.value]
            if isinstance(record.value, dict) and "model_patch" not in record.value:
                rows = list(record.value.values())
            for row in rows:
                instance, patch = scalar_text(deep(row, "instance_id")), deep(row, "model_patch")
                if instance and isinstance(patch, str):
                    predicted.setdefault(instance, patch)
    return predicted


# --- tests ------------------------------------------------------------------------------------------------------------

_HEREDOC = re.compile(r"^.*<<(?P<tabs>-?)\s*(?P<quote>['\"]?)(?P<end>\w+)(?P=quote)(?P<rest>[^\n]*)$", re.M)
_TARGET = re.compile(r"(?:>\s*|\btee\s+(?:--\s+)?)(?P<path>[^\s;|&<>]+)")


def _tests(trajectory: Trajectory, test_files: re.Pattern[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Test files as the agent's own calls wrote them (the latest content), and test files it ran."""
    written: dict[str, str] = {}
    ran: dict[str, None] = {}
    segments = itertools.chain.from_iterable(message.segments for message in trajectory.messages)
    for action in (segment.text for segment in segments if segment.kind is Kind.ACTION):
        for call in parse_action(action):
            values = call.values(action)
            path = _inside(next((value for key, value in values.items() if parameter_role(key, "path")), ""))
            content = next((values[key] for key in _CONTENTS if key in values), None)
            old, new = values.get("old_str", values.get("old_string")), values.get("new_str", values.get("new_string"))
            if path and content is not None:
                written[path] = content
            elif path in written and old and written[path].count(old) == 1:
                written[path] = written[path].replace(old, new or "")
            for script in values.values():
                written.update((inside, text) for name, text in _heredocs(script) if (inside := _inside(name)))
        targets = (target for part in action_parts(action) if part.kind == "test" for target in part.targets)
        ran.update((path, None) for target in targets if (path := _inside(target)))
    tests = {path: text for path, text in written.items() if test_files.search(path)}
    return tests, tuple(path for path in ran if test_files.search(path) and path not in tests)


def _heredocs(command: str) -> Iterator[tuple[str, str]]:
    """(path, content) of `cat > PATH <<'END'` and the like, where the shell takes the text as it stands."""
    position = 0
    while match := _HEREDOC.search(command, position):
        indent = r"\t*" if match["tabs"] else ""
        closing = re.compile(rf"^{indent}{match['end']}$", re.M).search(command, match.end())
        if not closing:
            return
        body, line = command[match.end() + 1 : closing.start()], match[0]
        position = closing.end()
        target = _TARGET.search(line.replace(f"<<{match['tabs']}", " ", 1))
        literal = match["quote"] or not re.search(r"[$`\\]", body)
        if target and literal and ">>" not in line and not re.search(r"\bpython", line):
            yield target["path"].strip("'\""), re.sub(r"^\t+", "", body, flags=re.M) if match["tabs"] else body


def _inside(path: str) -> str:
    """A path in the repository; a file written outside of it is one at its root; empty: it is none."""
    path = canonical_path(_WORKING_COPY.sub("", path.strip())) if path.strip() else ""
    path = posixpath.basename(path) if path.startswith(("/", "..")) else path
    return "" if path in (".", "") or set(path) & set("$*~`\n'\"\\") else path


# --- patches ----------------------------------------------------------------------------------------------------------


def changed_files(patch: str) -> list[tuple[str, str]]:
    """(path after the change, text) of each file of a git diff, or of a plain unified one, in order."""
    starts = [match.start() for match in re.finditer(r"^diff --git ", patch, re.M)]
    if not starts and patch.strip():  # a plain unified diff
        starts = [match.start() for match in re.finditer(r"^--- [^\n]*\n\+\+\+ ", patch, re.M)]
    parts = [patch[start:end] for start, end in itertools.pairwise([*starts, len(patch)])]
    return [(_changed_path(part), part) for part in parts]


def _changed_path(part: str) -> str:
    for pattern in (r"^\+\+\+ (?:b/)?([^\t\n\r]+)", r"^rename to (.+)$", r"^--- (?:a/)?([^\t\n\r]+)"):
        match = re.search(pattern, part, re.M)
        if match and match[1] != "/dev/null":
            return match[1]
    match = re.match(r"diff --git a/(.+) b/(.+)$", part.partition("\n")[0])
    return match[2] if match else ""


def source_patch(patch: str, test_files: str = PYTEST_FILES) -> str:
    """A patch without its changes to tests, as no patch may bring the tests it is measured by, and without caches."""
    tests = re.compile(test_files)
    kept = "".join(
        text
        for path, text in changed_files(patch)
        if not (tests.search(path) or _CACHES.search(path) or posixpath.basename(path) == "conftest.py")
    )
    return kept if kept.endswith("\n") or not kept else kept + "\n"


@functools.lru_cache(maxsize=1024)
def patch_key(patch: str, test_files: str = PYTEST_FILES) -> str:
    """Equal for patches that change the same source in the same way."""
    text = re.sub(r"^index [0-9a-f]+\.\.[0-9a-f]+.*\n", "", source_patch(patch, test_files), flags=re.M)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def load_instances(path: str) -> dict[str, dict[str, Any]]:
    """The rows of a SWE-bench file (JSON, JSON Lines or Parquet), by `instance_id`. Raises `DataError`."""
    rows: dict[str, dict[str, Any]] = {}
    for record in records(path):
        if not isinstance(record, Record):
            raise DataError(f"{record.where}: {record.text}")
        for row in record.value if isinstance(record.value, list) else [record.value]:
            if not isinstance(row, dict) or not string(row, "instance_id"):
                raise DataError(f"{record.where}: a row without an instance_id: {json.dumps(row)[:80]}")
            rows[row["instance_id"]] = row
    return rows


# --- cost curves, and the ratio of costs at equal resolve rate, paired by task ----------------------------------------

FloatArray = npt.NDArray[np.float64]
CURRENCIES = ("prompt", "cached", "output", "money")
PRICE = 0.1  # of a cached prompt token, in prompt tokens
_UNDEFINED = Estimate(*[math.nan] * 4)


class TaskCost(NamedTuple):
    """One task by one method: the share resolved with so many runs, and what all of it cost."""

    task: str
    method: str
    runs: int
    resolved: float
    spent: Spent


class Curve(NamedTuple):
    """One method, task by task and by number of runs: resolved (T, K), costs (T, K, currencies)."""

    method: str
    tasks: tuple[str, ...]
    runs: tuple[int, ...]
    resolved: FloatArray
    costs: FloatArray


def curves(records: Sequence[TaskCost], price: float = PRICE) -> tuple[dict[str, Curve], list[str]]:
    """The curve of each method on the tasks that all have, and the tasks left out because some lack them.

    Records of the same task, method and number of runs are averaged. Raises `DataError` where no task is left.
    """
    cells: dict[tuple[str, int], dict[str, list[TaskCost]]] = {}
    for record in records:
        cells.setdefault((record.method, record.runs), {}).setdefault(record.task, []).append(record)
    every = {record.task for record in records}
    tasks = tuple(sorted(every.intersection(*cells.values()))) if cells else ()
    if not tasks:
        raise DataError("these runs have no task in common whose outcome and cost are known; there is no comparison.")

    def costs(spent: Spent) -> FloatArray:
        money = spent.cost if spent.cost > 0 else math.nan
        weighted = spent.prompt - (1 - price) * spent.cached
        stated = np.array([spent.prompt, weighted, spent.output, money], dtype=np.float64)
        return np.full(len(CURRENCIES), math.nan) if spent.unstated else stated

    methods = {}
    for method in dict.fromkeys(method for method, _ in cells):
        runs = tuple(sorted(count for name, count in cells if name == method))
        grid = [[cells[method, count][task] for count in runs] for task in tasks]
        resolved = np.array([[np.mean([record.resolved for record in cell]) for cell in row] for row in grid])
        spent = np.array([[np.mean([costs(record.spent) for record in cell], axis=0) for cell in row] for row in grid])
        methods[method] = Curve(method, tasks, runs, resolved, spent)
    return methods, sorted(every - set(tasks))


def mean_over_tasks(values: FloatArray, resamples: int) -> Estimate:
    """The mean over tasks (T,), with its bootstrap standard error and 95 % interval of percentiles."""
    return paired_ratio(np.ones_like(values), values, resamples)


def paired_ratio(a: FloatArray, b: FloatArray, resamples: int, seed: int = SEED) -> Estimate:
    """mean(b) / mean(a) over the same tasks (T,), with bootstrap standard error and 95 % interval of percentiles."""
    counts = resample_counts(len(a), resamples, seed).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate(float(b.mean() / a.mean()), (counts @ b) / (counts @ a), len(a))


def at_equal_rate(
    method: Curve, reference: Curve, target: Curve, runs: int, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Costs of `method` over costs of `reference` at the resolve rate of `target` with `runs` runs, by currency.

    Value, bootstrap standard error (NaN where infinite values occur) and 95 % interval; NaN where costs are not
    stated.
    """
    n = len(method.tasks)
    weights = np.vstack([np.full(n, 1 / n), resample_counts(n, resamples, SEED) / n])  # the first row: the value itself
    rate = weights @ target.resolved[:, target.runs.index(runs)]
    ratios = []
    for currency in range(len(CURRENCIES)):
        with np.errstate(invalid="ignore", divide="ignore"):  # neither reaches it: NaN
            ratio = _at_rate(method, weights, rate, currency) / _at_rate(reference, weights, rate, currency)
        unstated = any(np.isnan(curve.costs[..., currency]).any() for curve in (method, reference))
        ratios.append(_UNDEFINED if unstated else _estimate(float(ratio[0]), ratio[1:], n))
    return ratios


def _estimate(value: float, replicates: FloatArray, tasks: int) -> Estimate:
    """With percentiles as its interval (NaN from fewer than 4 tasks)."""
    if math.isnan(value) and np.isnan(replicates).all():
        return _UNDEFINED
    bounded = np.where(np.isnan(replicates), np.inf, replicates)  # neither reaches the rate: nothing is saved
    low, high = np.quantile(bounded, [0.025, 0.975], method="inverted_cdf") if tasks > 3 else (math.nan, math.nan)
    return Estimate(value, standard_error(replicates), float(low), float(high))


def _at_rate(curve: Curve, weights: FloatArray, rate: FloatArray, currency: int) -> FloatArray:
    """Costs at each row's `rate` from each row's curve; infinite where the curve does not reach it."""
    rates = np.maximum.accumulate(weights @ curve.resolved, axis=1)
    costs = weights @ curve.costs[:, :, currency]
    cost = np.where(rates[:, 0] >= rate - 1e-12, costs[:, 0], np.inf)
    for i in range(1, len(curve.runs)):
        low, high = rates[:, i - 1], rates[:, i]
        between = np.isinf(cost) & (high >= rate - 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(high > low, (rate - low) / (high - low), 1.0)
        cost = np.where(between, costs[:, i - 1] + share * (costs[:, i] - costs[:, i - 1]), cost)
    return cost


# --- reading runs -----------------------------------------------------------------------------------------------------


class InstanceRun(NamedTuple):
    """What one trajectory of mini-swe-agent says about its costs."""

    instance: str
    method: str
    model: str
    spent: Mapping[str, Spent]  # by kind; without a gate all of it is "draw"
    steps: int
    fired: int
    notes: Mapping[str, int]
    estimates: tuple[float, ...]  # nats, of the steps that have one
    estimator: Mapping[str, Any]

    @property
    def total(self) -> Spent:
        """All kinds together."""
        return Spent.sum(self.spent.values())


def read_run(folder: Path) -> list[InstanceRun]:
    """Every trajectory in the folder that `mini-extra swebench -o` wrote, by path. Raises `DataError`."""
    files = sorted(folder.glob("*/*.traj.json")) or sorted(folder.glob("*.traj.json"))
    if not files:
        raise DataError(
            f"{folder}: no trajectory of mini-swe-agent in it (INSTANCE/INSTANCE.traj.json).\n"
            "Give the folder that mini-extra swebench -o wrote."
        )
    return [read_instance(read_json(path), str(path)) for path in files]


def read_instance(trajectory: Any, where: str) -> InstanceRun:
    """One trajectory as mini-swe-agent writes it. Raises `DataError` for what it would not write."""
    info, messages = deep(trajectory, "info"), deep(trajectory, "messages")
    if not isinstance(info, dict) or not isinstance(messages, list):
        raise DataError(f"{where}: not a trajectory of mini-swe-agent 2 (no info, or no messages).")
    config = deep(info, "config", "model")
    config = config if isinstance(config, dict) else {}
    instance = str(trajectory.get("instance_id") or Path(where).name.removesuffix(".traj.json"))
    extras = [m["extra"] for m in messages if isinstance(m, dict) and isinstance(m.get("extra"), dict)]
    replies = [extra for extra in extras if "response" in extra]
    steps = [extra["egss"] for extra in replies if isinstance(extra.get("egss"), dict)]
    ledger = Ledger()
    try:
        for extra in replies if not steps else ():
            usage = extra["response"].get("usage") if isinstance(extra["response"], dict) else None
            ledger.add("draw", spent_of(usage, float(extra.get("cost") or 0.0)))
        for step in steps:
            for kind, usage in step["usage"].items():
                ledger.add(kind, Spent.read(usage))
            ledger.notes.update(step.get("notes", {}))
        estimates = tuple(float(step["estimate"]) for step in steps if "estimate" in step)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: its record of costs is damaged ({error}).") from None
    stated = {name: deep(info, "model_stats", "egss", name) for name in Estimator().identity}
    identity = {name: value for name, value in stated.items() if value is not None}
    fired = sum(bool(step.get("fired")) for step in steps)
    model = str(config.get("model_name") or "")
    return InstanceRun(
        instance, _method(config), model, ledger.spent, len(replies), fired, ledger.notes, estimates, identity
    )


def _method(config: Mapping[str, Any]) -> str:
    """The settings that tell methods apart, in words."""
    if "gate" not in config:
        return "plain"
    words = [f"gate {config['gate']}"]
    if str(config["gate"]).startswith(("threshold", "quantile")):
        words.append(f"{config.get('estimator')} of {config.get('probes')}")
    judge = config.get("judge_model") or "same model"
    words.append(f"{config.get('draws')} draws, " + ("votes" if config.get("judge") == "votes" else f"judge {judge}"))
    return ", ".join(words)


# --- tables -----------------------------------------------------------------------------------------------------------


def curve_table(methods: Mapping[str, Curve], resamples: int = RESAMPLES, notes: Sequence[str] = ()) -> Table:
    """Every point of every curve: resolve rate and costs, mean over tasks."""
    rows: list[dict[str, Any]] = []
    for curve in methods.values():
        for i, runs in enumerate(curve.runs):
            row: dict[str, Any] = {"method": curve.method, "runs": runs, "tasks": len(curve.tasks)}
            row["resolved"] = mean_over_tasks(curve.resolved[:, i], resamples)
            for c, currency in enumerate(CURRENCIES):
                mean = mean_over_tasks(curve.costs[:, i, c], resamples)
                if currency != "money":  # whole tokens
                    mean = Estimate(*(float(round(part)) if math.isfinite(part) else part for part in mean))
                row[currency] = mean
            rows.append(row)
    about = (
        "± is one standard error over tasks; costs: mean a task, probes, draws and judge included",
        "prompt: all prompt tokens; cached: those read from a cache at their price; output: generated tokens; money: "
        "as mini-swe-agent counts it, – where no price is known",
    )
    return Table("curves", "Cost curves", rows, (*about, *notes))


def savings_table(methods: Mapping[str, Curve], reference: str, runs: int, resamples: int) -> Table:
    """Costs of every other method over those of the reference, at the resolve rate that it reaches with `runs` runs."""
    target = methods[reference]
    rows = [
        {"method": curve.method, **spans(at_equal_rate(curve, target, target, runs, resamples))}
        for curve in methods.values()
        if curve.method != reference
    ]
    rate = target.resolved[:, target.runs.index(runs)].mean()
    title = f"Costs at equal resolve rate, over those of {printable(reference)} with {runs} run(s) (rate {rate:.3f})"
    notes = (
        "below 1: cheaper; [95 % interval, tasks resampled]; ∞: the rate is not reached with the runs that were made",
        "a method whose single run is above that rate is counted with the whole run: the ratio is then an upper bound",
    )
    return Table(f"savings_at_{runs}_of_{reference}", title, rows, notes)


def paired_table(methods: Mapping[str, Curve], reference: str, resamples: int) -> Table:
    """What each method resolves more than the reference with as many runs, and the ratios of what they cost."""
    base, rows = methods[reference], []
    for curve in methods.values():
        for runs in (n for n in curve.runs if n in base.runs and curve.method != reference):
            i, j = curve.runs.index(runs), base.runs.index(runs)
            gain = mean_over_tasks(curve.resolved[:, i] - base.resolved[:, j], resamples)
            costs = zip(base.costs[:, j].T, curve.costs[:, i].T, strict=True)
            ratios = spans([paired_ratio(before, after, resamples) for before, after in costs])
            rows.append({"method": curve.method, "runs": runs, "resolved_more": _span(gain, sign=True), **ratios})
    title = f"As many runs as {printable(reference)}: difference of resolve rates, ratio of costs"
    return Table("paired", title, rows, ("[95 % interval, tasks resampled]",))


def kinds_table(instances: Sequence[InstanceRun]) -> Table:
    """Where the tokens went, how often the gate fired, what was noted."""
    rows: list[dict[str, Any]] = []
    about = ["mean a trajectory; cached: the part of the prompt that was read from a cache; fires: share of steps"]
    for method in dict.fromkeys(instance.method for instance in instances):
        same = [instance for instance in instances if instance.method == method]
        notes: Counter[str] = Counter()
        for instance in same:
            notes.update(instance.notes)
        steps = sum(instance.steps for instance in same)
        fires = sum(instance.fired for instance in same) / steps if steps else math.nan
        for kind in KINDS:
            spent = Spent.sum(instance.spent.get(kind, Spent()) for instance in same)
            if spent.calls:
                row: dict[str, Any] = {"method": method, "trajectories": len(same), "fires": fires, "kind": kind}
                row |= {name: getattr(spent, name) / len(same) for name in ("calls", "prompt", "cached", "output")}
                rows.append(row)
        words = (f"{name} {count}" for name, count in sorted(notes.items()))
        about += [f"{method}: {', '.join(words)}"] if notes else []
    return Table("kinds", "Calls and tokens by kind", rows, about)


def spans(estimates: Sequence[Estimate]) -> dict[str, str]:
    """Estimates with their intervals in words, by currency."""
    return {currency: _span(estimate) for currency, estimate in zip(CURRENCIES, estimates, strict=True)}


def _span(estimate: Estimate, sign: bool = False) -> str:
    def short(value: float) -> str:
        if math.isnan(value):
            return "–"
        return "∞" if value == math.inf else f"{value:+.3f}" if sign else f"{value:.2f}"

    interval = "" if math.isnan(estimate.ci_low) else f" [{short(estimate.ci_low)}, {short(estimate.ci_high)}]"
    return f"{short(estimate.value)}{interval}"
