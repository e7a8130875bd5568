"""What finished runs hold for a selection: each agent's own submitted patch, the tests it wrote, and its task.

A run is a folder or a file of any agent that `hesnr_tasks.formats` knows; its submission is what the agent's own
evaluation takes: `info.submission` of mini-swe-agent and SWE-agent, `git_patch` of OpenHands, else `preds.json` (or
`*.pred`, `all_preds.jsonl`) beside the trajectories. Nothing of a run is executed here.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hesnr_tasks.actions.classes import action_parts, canonical_path
from hesnr_tasks.actions.grammar import parse_action
from hesnr_tasks.actions.tools import parameter_role
from hesnr_tasks.analysis.frame import unique_names
from hesnr_tasks.errors import DataError
from hesnr_tasks.formats import choose, read_record, unpacked
from hesnr_tasks.formats.base import Problem, ReadReport, deep, scalar_text, string
from hesnr_tasks.formats.sources import Record, records, source_paths
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
