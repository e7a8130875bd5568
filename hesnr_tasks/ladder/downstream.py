"""Downstream scores: read from tables, SWE-bench reports and lm-eval results, and which of them judges a checkpoint."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.files.bounded import read_json, read_text
from hesnr_tasks.ladder.schema import (
    TUNED_WORDS,
    Checkpoint,
    DownstreamScore,
    Ladder,
    finite_number,
    whole_number,
)

_TUNED_SIGNS = {sign for signs in TUNED_WORDS.values() for sign in signs}


# --- which score judges a checkpoint ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """The downstream score that judges a checkpoint, and where it was measured: "itself" or the names of its SFTs."""

    checkpoint: str
    value: float
    stderr: float
    measured: str
    interval: tuple[float, float] = field(default=(math.nan, math.nan), compare=False)


def outcomes(ladder: Ladder, task: str, remarks: list[str] | None = None) -> dict[str, Outcome]:
    """The score that judges each checkpoint on one downstream task (the paper's protocol).

    A base checkpoint is judged by what was fine-tuned from it: the checkpoint that is `sft_of` it, or the first with a
    score in a chain of them; the mean of several; or its own score with `after: sft`. Its score as it is counts only
    where no base checkpoint of the ladder has one after fine-tuning. A fine-tuned one is judged by its own.

    Where some checkpoint was fine-tuned several times, the scatter of these scores is in the error of all that were
    judged so: fine-tuning once more would move each of them.

    Args:
        ladder: with its scores.
        task: the downstream task.
        remarks: if given, gets what does not count, and which scores are means.
    """
    notes = remarks if remarks is not None else []
    if _FALLING.intersection(_words(task)):
        notes.append(f"{task}: by its name it is better when lower, and it counts as better when higher; negate it")
    own = {c.name: c.downstream[task] for c in ladder.checkpoints if task in c.downstream}
    percent = any(score.value > 1 for score in own.values())
    given = {name: score for name, score in own.items() if not score.harness.startswith("lm-eval")}
    low = [f"{score.value:g} ({name})" for name, score in given.items() if percent and 0 < score.value < 1]
    if low:
        most = max(score.value for score in own.values())
        notes.append(f"{task}: {', '.join(low[:3])} beside {most:g} is taken for per cent; a share is 100 times that")
    for name, score in list(own.items()):
        if score.n is not None and not 0 <= score.value <= (100.0 if percent else 1.0):
            notes.append(
                f"{task} of {name}: {score.value:g} is no share (0 to 1) or per cent (to 100) of {score.n} instances; "
                "it does not count. Leave n out where the score is no share"
            )
            del own[name]
    itself = {
        name: Outcome(name, score.value, score.error(percent), "itself", score.interval(percent))
        for name, score in own.items() if not score.after
    }  # fmt: skip
    after = _after_tuning(ladder, task, own, percent, notes)
    tuned = {checkpoint.name for checkpoint in ladder.checkpoints if checkpoint.tuned}
    judged = {name: score for name, score in itself.items() if name in tuned}
    judged = judged or {name: score for name, score in after.items() if name in tuned and score}
    bases = {name: score for name, score in (after if after.keys() - tuned else itself).items() if name not in tuned}
    judged |= {name: score for name, score in bases.items() if score}
    return {c.name: judged[c.name] for c in ladder.checkpoints if c.name in judged}


def _after_tuning(
    ladder: Ladder, task: str, own: Mapping[str, DownstreamScore], percent: bool, notes: list[str]
) -> dict[str, Outcome | None]:
    """The scores of checkpoints after fine-tuning; None: two that contradict each other."""
    sources: dict[str, dict[str, DownstreamScore]] = {}
    for name, score in own.items():
        if score.after:
            sources.setdefault(name, {})[f"after {score.after}"] = score
        elif parent := _judged_by(ladder, name, own):
            sources.setdefault(parent, {})[name] = score
    stages: dict[str, list[str]] = {}
    for name, score in own.items():
        if score.after:
            stages.setdefault(score.after, []).append(name)
    if len(stages) > 1:
        each = " and ".join(f"after {stage} ({', '.join(members[:3])})" for stage, members in sorted(stages.items()))
        notes.append(f"{task}: scores of different stages are compared, {each}: a difference may be the stage's alone")
    scatter, freedom = 0.0, 0
    for name, scores in list(sources.items()):
        given = [measured for measured in scores if measured.startswith("after ")]
        values = [score.value for score in scores.values()]
        if given and len(set(values)) > 1:
            two = " and ".join(f"{score.value:g} ({measured})" for measured, score in list(scores.items())[:2])
            notes.append(f"{task}: {name} has two scores after fine-tuning: {two}; neither counts. Keep one of them")
            sources[name] = {}
        elif given:
            sources[name] = {given[0]: scores[given[0]]}
        elif len(scores) > 1:
            each = ", ".join(f"{measured} {score.value:g}" for measured, score in scores.items())
            notes.append(f"{task}: {name} is judged by the mean of its {len(scores)} fine-tunings ({each})")
            scatter, freedom = scatter + float(np.var(values) * len(values)), freedom + len(values) - 1
    variance = scatter / freedom if freedom else 0.0
    if freedom:
        notes.append(
            f"{task}: from one fine-tuning to the next its score scatters by {math.sqrt(variance):.3g} (standard "
            f"deviation, {freedom} degree{'s' * (freedom > 1)} of freedom); the error of every such score holds that"
        )
    after: dict[str, Outcome | None] = {}
    for name, scores in sources.items():
        if not scores:
            after[name] = None
            continue
        value = float(np.mean([score.value for score in scores.values()]))
        measured = ", ".join(scores)
        if not freedom:
            (score,) = scores.values()
            after[name] = Outcome(name, value, score.error(percent), measured, score.interval(percent))
            continue
        errors = [score.error(percent) for score in scores.values()]
        instances = 0.0 if np.isnan(errors).any() else float(np.mean(np.square(errors)))  # shared by all
        error = math.sqrt(instances + variance / len(scores))
        after[name] = Outcome(name, value, error, measured, (value - 1.96 * error, value + 1.96 * error))
    return after


def _judged_by(ladder: Ladder, name: str, own: Mapping[str, DownstreamScore]) -> str:
    """The base checkpoint that a fine-tuned one judges: through others without a score; empty: none."""
    by_name = {checkpoint.name: checkpoint for checkpoint in ladder.checkpoints}
    parent = by_name[name].sft_of
    while parent in by_name and by_name[parent].tuned:
        if parent in own or not by_name[parent].sft_of:
            return ""
        parent = by_name[parent].sft_of
    return parent


# --- scores from other files ------------------------------------------------------------------------------------------


def add_downstream(ladder: Ladder, paths: Iterable[Path]) -> tuple[Ladder, list[str]]:
    """Add the scores of CSV files, SWE-bench reports and lm-eval results to the checkpoints they name.

    A score of NAME-sft, where only NAME is in the ladder, judges NAME: it was measured after fine-tuning.

    A table has a column of checkpoints (`checkpoint`, `model`, `name`, or the one with names of the ladder) and any
    number of columns of scores, between commas, semicolons or tabs; `NAME_n` and `NAME_stderr` (or `n`, `stderr` beside
    a single score) belong to the score NAME. Files are matched to checkpoints by name, whatever the case, the folder
    before it and the signs between words; lm-eval results also by model and revision. Of two different scores of a
    checkpoint and task neither counts. Of a folder, every JSON file is looked at.

    Returns:
        The ladder with all scores, and remarks: its own, and those on scores that belong to no checkpoint, contradict
        each other, or are of a part of their benchmark.

    Raises:
        DataError: files that cannot be read or belong to no checkpoint at all; a task whose scores are shares in one
            file and per cent in another.
    """
    names = [checkpoint.name for checkpoint in ladder.checkpoints]
    scores = {checkpoint.name: dict(checkpoint.downstream) for checkpoint in ladder.checkpoints}
    units: dict[str, dict[bool, str]] = {}
    for task in ladder.benchmarks:
        _check_unit(units, task, {c.name: c.downstream[task] for c in ladder.checkpoints if task in c.downstream})
    remarks: dict[str, None] = dict.fromkeys(ladder.remarks)
    unmatched: list[str] = []
    contradicted: set[tuple[str, str]] = set()
    matches = 0
    for rows in _files(paths, ladder, remarks):
        by_task: dict[str, dict[str, DownstreamScore]] = {}
        for name, task, score, where in rows:
            match = match_name(name, names)
            if match is None and (match := _before_tuning(name, names)):
                score = replace(score, after="sft")
            if match is not None:
                matches += 1
                by_task.setdefault(task, {})[match] = score
            if match is None:
                remarks[f"{where}: a score of {name!r}, which is no checkpoint of the ladder; left out"] = None
                unmatched.append(name)
            elif task in scores[match] and scores[match][task].after != score.after:
                remarks[f"{where}: {task} of {match}: the score after fine-tuning judges it, not its own"] = None
                scores[match][task] = score if score.after else scores[match][task]
            elif task in scores[match] and scores[match][task].value != score.value:
                two = f"{scores[match][task].value:g} and {score.value:g}"
                remarks[f"{where}: a second {task} of {match}: {two}; neither counts. Keep one."] = None
                contradicted.add((match, task))
            else:
                scores[match].setdefault(task, score)
        for task, own in by_task.items():
            _check_unit(units, task, own)
    if unmatched and not matches:
        raise DataError(
            f"no downstream score belongs to one of the checkpoints {', '.join(scores)}; there are scores of "
            f"{', '.join(list(dict.fromkeys(unmatched))[:8])}. Name them as the checkpoints are named."
        )
    for name, task in contradicted:
        del scores[name][task]
    sizes = Counter(own[_SWE].n for own in scores.values() if _SWE in own and own[_SWE].harness == _HARNESS)
    if len(sizes) > 1:
        of = " and ".join(f"{n}" for n in sorted(filter(None, sizes)))
        remarks[f"{_SWE}: reports of {of} instances are of different sets, whose scores cannot be compared"] = None
    checkpoints = tuple(replace(c, downstream=scores[c.name]) for c in ladder.checkpoints)
    return replace(ladder, checkpoints=checkpoints, remarks=()), list(remarks)


def _check_unit(units: dict[str, dict[bool, str]], task: str, scores: Mapping[str, DownstreamScore]) -> None:
    """Scores of one file are shares if none is above 1, else per cent; those of lm-eval have units of their own."""
    given = {name: score for name, score in scores.items() if not score.harness.startswith("lm-eval")}
    if not given:
        return
    name = max(given, key=lambda name: given[name].value)
    examples = units.setdefault(task, {})
    examples.setdefault(given[name].value > 1, f"{name}: {given[name].value:g}")
    if len(examples) > 1:
        raise DataError(
            f"{task}: some scores are shares ({examples[False]}) and some per cent ({examples[True]}). Give all as "
            "shares, from 0 to 1, as SWE-bench reports do, or all in one file."
        )


def _before_tuning(name: str, names: Sequence[str]) -> str | None:
    """The checkpoint that a fine-tuned one was made from, by the words of its name."""
    words = _words(name)
    base = [word for word in words if word not in _TUNED_SIGNS]
    return match_name(" ".join(base), names) if base and len(base) < len(words) else None


def match_name(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that `name` means: exactly, or else by its words, or by the words of the path's last part."""
    if name in names:
        return name
    parts: tuple[Callable[[str], str], ...] = (str, lambda text: text.rstrip("/").split("/")[-1])
    for part in parts:
        fits = [other for other in names if _words(part(other)) == _words(part(name))]
        if len(fits) == 1:
            return fits[0]
    return None


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:\.\d+)*", name.casefold())


def remembered_name(path: Path) -> str:
    """The name that `hesnr ladder run` scored what lies in a folder under; empty: none."""
    for parent in path.resolve().parents[:3]:
        try:
            memory = read_json(parent / "ladder.json") if (parent / "ladder.json").is_file() else None
        except DataError:
            memory = None
        if isinstance(memory, dict) and isinstance(memory.get("name"), str):
            return memory["name"]
    return ""


def checkpoint_of_run(ladder: Ladder, name: str, folder: str, model: str, revision: str) -> Checkpoint | None:
    """The checkpoint that a run of a model scored: by its name, by model and revision, or by what they are called.

    Args:
        ladder: whose checkpoint it is.
        name: what the run is called; empty: nothing.
        folder: the name of where it lies.
        model, revision: of lm_eval's arguments; of a revision the model's name alone says nothing.
    """
    names = [checkpoint.name for checkpoint in ladder.checkpoints]
    revision = "" if revision == "main" else revision
    same = [
        c for c in ladder.checkpoints
        if (c.model or c.name) == model and (c.revision if c.revision != "main" else "") == revision
    ]  # fmt: skip
    if match := match_name(name, names):
        return ladder[match]
    if len(same) == 1:
        return same[0]
    words = (folder, f"{model}@{revision}", revision) if revision else (folder, model)
    return next((ladder[match] for word in words if word and (match := match_name(word, names))), None)


_Rows = Iterator[tuple[str, str, DownstreamScore, str]]


def _files(paths: Iterable[Path], ladder: Ladder, remarks: dict[str, None]) -> Iterator[_Rows]:
    """The scores of every file: name of a checkpoint, task, score, and where it stands."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if not path.is_dir():
            names = [checkpoint.name for checkpoint in ladder.checkpoints]
            yield (
                iter(_json_rows(path, path.parent, ladder, remarks)) if path.suffix == ".json"
                else _csv_rows(path, names, remarks)
            )  # fmt: skip
            continue
        others: dict[Path, str] = {}
        for file in sorted(path.rglob("*.json")):
            try:
                yield iter(_json_rows(file, path, ladder, remarks))
            except DataError as error:
                others[file] = str(error)
        if others and len(others) == sum(1 for _ in path.rglob("*.json")):
            raise DataError(next(iter(others.values())))
        foreign = [reason for reason in others.values() if not reason.endswith(_NEITHER)]
        remarks |= dict.fromkeys(f"{reason}; left out" for reason in foreign[:5])


_SWE, _HARNESS = "swe_bench", "SWE-bench"
_NEITHER = "is neither a SWE-bench report nor an lm-eval result file"


def _json_rows(path: Path, root: Path, ladder: Ladder, remarks: dict[str, None]) -> list[Any]:
    """The scores of one JSON file; `root`: the folders below it may name the checkpoint."""
    document = read_json(path)
    if isinstance(document, dict) and "resolved_instances" in document:
        return [_swe_bench_row(document, path, root, ladder, remarks)]
    if isinstance(document, dict) and isinstance(document.get("results"), dict):
        return list(_lm_eval_rows(document, path, ladder, remarks))
    items = list(document.values()) if isinstance(document, dict) else []
    if items and all(isinstance(item, dict) and "resolved" in item for item in items):
        raise DataError(
            f"{path} is a report of single instances, and those that failed to run have none; give the report of the "
            "whole run, MODEL.RUN.json"
        )
    raise DataError(f"{path} {_NEITHER}")


def _swe_bench_row(
    document: Mapping[str, Any], path: Path, root: Path, ladder: Ladder, remarks: dict[str, None]
) -> tuple[str, str, DownstreamScore, str]:
    """The share of all instances that a run resolved, as leaderboards have it; the file is MODEL.RUN.json."""
    resolved, total = document["resolved_instances"], document.get("total_instances")
    if not (type(resolved) is int and type(total) is int and 0 <= resolved <= total > 0):
        raise DataError(f"{path} is no SWE-bench report: {resolved!r} resolved of {total!r}")
    submitted = document.get("submitted_instances")
    if type(submitted) is int and submitted < total:
        remarks[f"{path}: {submitted} of {total} instances were submitted; the others count as not resolved"] = None
    kinds = ("error_instances", "infra_failure_instances", "ambiguous_failure_instances")
    failed = sum(n for kind in kinds if type(n := document.get(kind)) is int)
    if failed:
        remarks[f"{path}: {failed} of {total} instances could not be evaluated; they count as not resolved"] = None
    names = [checkpoint.name for checkpoint in ladder.checkpoints]
    stem, _, run = path.stem.rpartition(".")
    texts = [*([stem] if stem and not re.fullmatch(r"\d{1,2}", run) else []), path.stem]
    texts += [folder.name for folder in path.parents if folder.is_relative_to(root) and folder != root]
    name = next((name for text in texts if (name := _name_within(text, names))), path.stem)
    return name, _SWE, DownstreamScore(resolved / total, total, harness=_HARNESS), str(path)


def _name_within(text: str, names: Sequence[str]) -> str:
    """The longest name within a text, with "-sft" if words of fine-tuning stand beside it; empty: none, or several."""
    words = _words(text)
    spaced = f" {' '.join(words)} "
    fits = {name: own for name in names if (own := _words(name)) and f" {' '.join(own)} " in spaced}
    longest = [name for name, own in fits.items() if len(own) == max(map(len, fits.values()))]
    if len(longest) != 1:
        return ""
    beside = (Counter(words) - Counter(fits[longest[0]])).keys() & _TUNED_SIGNS
    return f"{longest[0]}-sft" if beside else longest[0]


def _lm_eval_rows(document: Mapping[str, Any], path: Path, ladder: Ladder, remarks: dict[str, None]) -> _Rows:
    """The first metric of every task that is not ours, and is better when higher; of a group its own value only."""
    config = document.get("config") if isinstance(document.get("config"), dict) else {}
    arguments = config.get("model_args") if config else None
    if isinstance(arguments, str):
        arguments = dict(word.split("=", 1) for word in arguments.split(",") if "=" in word)
    model = str(document.get("model_name") or path.parent.name)
    revision = str((arguments or {}).get("revision") or "")
    checkpoint = checkpoint_of_run(ladder, remembered_name(path), "", model, revision)
    name = checkpoint.name if checkpoint else f"{model}@{revision}" if revision not in ("", "main") else model
    results = document["results"]
    groups = document.get("group_subtasks") or {}
    parts = {part for group, subtasks in groups.items() if _numbers(results.get(group)) for part in subtasks or ()}
    directions, sizes = document.get("higher_is_better") or {}, document.get("n-samples") or {}
    for task, values in results.items():
        metrics = {} if str(task).startswith("hesnr_") or task in parts else _numbers(values)
        rising = {
            key: value for key, value in metrics.items()
            if ((directions.get(task) or {}).get(key.partition(",")[0], not re.search("perplexity|bits_per|loss", key)))
        }  # fmt: skip
        if metrics and not rising:
            remarks[f"{path}: {task} has only metrics that are better when lower; it is no downstream score"] = None
        for key, value in list(rising.items())[:1]:
            metric, _, name_of_filter = key.partition(",")
            error = values.get(f"{metric}_stderr,{name_of_filter}")
            n, whole = ((sizes.get(task) or {}).get(word) for word in ("effective", "original"))
            if type(n) is int and type(whole) is int and n < whole:
                remarks[f"{path}: {task} of {name}: only {n} of {whole} instances (--limit)"] = None
            score = DownstreamScore(
                value,
                n if type(n) is int and n > 0 and 0 <= value <= 1 else None,
                float(error) if type(error) in (int, float) and math.isfinite(error) and error >= 0 else None,
                f"lm-eval {metric}",
            )
            yield name, str(task), score, str(path)


def _numbers(values: Any) -> dict[str, float]:
    """The metrics of one task of lm-eval: those with a filter, which are finite numbers and no standard errors."""
    return {
        str(key): float(value) for key, value in (values.items() if isinstance(values, dict) else ())
        if "," in str(key) and "_stderr," not in str(key)
        and type(value) in (int, float) and math.isfinite(value)
    }  # fmt: skip


_KEYS = ("checkpoint", "checkpoints", "model", "name")
_FALLING = {  # words of what is better when lower
    "ppl", "perplexity", "loss", "nll", "bpb", "bits", "rank", "error", "errors", "wer", "mae", "mse", "rmse", "cost",
    "price", "latency", "unresolved", "failed",
}  # fmt: skip
_ABSENT = ("", "-", "\u2013", "\u2014", "na", "n/a", "none", "null")


def _csv_rows(path: Path, names: Sequence[str], remarks: dict[str, None]) -> _Rows:
    text = read_text(path)
    first = text.partition("\n")[0]
    sign = max(",;\t", key=first.count)
    try:
        lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines(), delimiter=sign)]
    except csv.Error as error:
        raise DataError(f"cannot read {path} ({error})") from None
    heading = lines[0] if lines else []
    lower = [word.lower() for word in heading]
    twice = [word for i, word in enumerate(lower) if word and word in lower[:i]]
    if twice:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; give them names of their own")
    rows = [(number, line) for number, line in enumerate(lines[1:], 2) if any(line)]
    key = _column_of_checkpoints(lower, rows, names)
    ignored = {*_KEYS, "step", "stage", "context", "label", "family", "revision", "tokens", "n", "stderr"}
    ignored |= {"params", "parameters"}
    columns = [
        i for i, word in enumerate(lower)
        if i != key and word not in ignored
        and not any(word.endswith(f"_{part}") and word.removesuffix(f"_{part}") in lower for part in ("n", "stderr"))
    ]  # fmt: skip
    words = [i for i in columns if rows and not any(i < len(line) and _is_number(line[i], sign) for _, line in rows)]
    if key is None or not columns or (words and len(words) == len(columns)):
        if key is not None and words:
            number, line = next(((n, row) for n, row in rows if len(row) > words[0]), rows[0])
            raise DataError(
                f"{path}:{number}: {heading[words[0]]} must be a number, not {''.join(line[words[0] : words[0] + 1])!r}"
            )
        raise DataError(
            f"{path}: the first line must name a column `checkpoint` and at least one score, "
            "as in checkpoint,swe_verified,swe_verified_n"
        )
    for i in words:
        if any(i < len(line) and line[i].lower() not in _ABSENT for _, line in rows):
            remarks[f"{path}: there is no number in the column {heading[i]!r}; left out"] = None
    lower_is_better = [i for i in columns if i not in words and _FALLING.intersection(_words(heading[i]))]
    for i in lower_is_better:
        remarks[
            f"{path}: the column {heading[i]!r} is better when lower by its name; it is no downstream score, left out"
        ] = None
    columns = [i for i in columns if i not in words and i not in lower_is_better]
    scales = {i: _scale([line[i] for _, line in rows if i < len(line)], sign) for i in columns}
    for number, line in rows:
        where = f"{path}:{number}"
        if len(line) > len(heading):
            raise DataError(f"{where}: {len(line)} cells under {len(heading)} columns; write 31.2, not 31,2")
        row = dict(zip(lower, line, strict=False))
        for i in columns:
            cell = line[i] if i < len(line) else ""
            if cell.lower() in _ABSENT:
                continue
            n, stderr = (
                (row.get(f"{lower[i]}_{part}") or (row.get(part) if len(columns) == 1 else None)) or None
                for part in ("n", "stderr")
            )
            try:
                score = DownstreamScore(
                    scales[i] * finite_number(_plain_number(cell, sign), f"{where}: {heading[i]}"),
                    None if n is None else whole_number(n, f"{where}: n", least=1),
                    None
                    if stderr is None
                    else scales[i] * finite_number(_plain_number(stderr, sign), f"{where}: stderr", least=0),
                )
            except SettingsError as error:
                raise DataError(str(error)) from None
            yield line[key], heading[i], score, where


def _column_of_checkpoints(
    heading: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], names: Sequence[str]
) -> int | None:
    """The column with the most names of checkpoints; of equal ones, by what it is called. None: there is none."""

    def rank(i: int) -> tuple[int, int]:
        cells = [line[i] for _, line in rows[:50] if i < len(line)]
        matches = sum(match_name(cell, names) is not None or _before_tuning(cell, names) is not None for cell in cells)
        return matches, len(_KEYS) - _KEYS.index(heading[i]) if heading[i] in _KEYS else 0

    best = max(range(len(heading)), key=rank, default=None)
    return best if best is not None and any(rank(best)) else None


def _plain_number(cell: str, sign: str) -> str:
    """Without the sign of per cent; in a table between semicolons or tabs a comma may be the decimal point."""
    cell = cell.removesuffix("%").strip()
    return cell.replace(",", ".") if sign != "," and cell.count(",") == 1 and "." not in cell else cell


def _scale(cells: Sequence[str], sign: str) -> float:
    """0.01 for a column with signs of per cent and nothing above 1 %, which would be read as shares."""
    values = [float(_plain_number(cell, sign)) for cell in cells if _is_number(cell, sign)]
    return 0.01 if any(cell.endswith("%") for cell in cells) and max(values, default=0.0) <= 1 else 1.0


def _is_number(cell: str, sign: str) -> bool:
    try:
        float(_plain_number(cell, sign))
    except ValueError:
        return False
    return True
