"""Score files as arrays: which folders, runs and tokens; every scored token of a run; sums per trajectory."""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.metrics import (
    EPSILON,
    TokenColumns,
    TrajectorySums,
    cell_sums,
    names_of,
    needed_columns,
    parse_epsilon,
    token_bytes,
)
from hesnr_tasks.metrics import topk_entropy as entropy_of
from hesnr_tasks.metrics.registry import column_or_none, kinds_of
from hesnr_tasks.rendering import label_mask
from hesnr_tasks.scores import Entry, ScoreStore, StoredRun, StoreError, choose_runs, mixed
from hesnr_tasks.stats import MOST_RESAMPLES
from hesnr_tasks.trajectory import Kind

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
ALL, EVERY = "all", "every"
_KINDS = tuple(kind.value for kind in Kind if kind is not Kind.SCAFFOLD)
_ALL = (1 << 64) - 1
_OPTIONAL = ("topk_logprobs", "n_bytes", "full_entropy", "expected_rank", "frequency", "turn")  # of `TokenColumns`
_DERIVED = ("n_bytes", "frequency", "kinds", "trajectory")  # not columns of score files


class Selection(NamedTuple):
    """Which tokens count: those that cover a character of `kinds` that no filter of `filters` removed."""

    kinds: tuple[Kind, ...]
    filters: tuple[str, ...]
    mask: np.uint64

    @property
    def name(self) -> str:
        """`thought+action` or `action-xml-format`."""
        return "-".join(["+".join(kind.value for kind in self.kinds), *self.filters])


@dataclass(frozen=True, slots=True)
class Frame:
    """n scored tokens of T trajectories, in the order of their keys; entropies in nats."""

    name: str
    store: ScoreStore
    entries: tuple[Entry, ...]  # T
    loaded_mask: int  # labels of the tokens that were loaded
    bounds: npt.NDArray[np.int64]  # (T + 1,): trajectory i has tokens bounds[i] to bounds[i + 1]
    row: npt.NDArray[np.int32]  # (n,) in the score file
    label: npt.NDArray[np.uint64]  # (n,)
    logprob: npt.NDArray[np.float32]  # (n,)
    rank: npt.NDArray[np.int32]  # (n,)
    entropy: Mapping[int, npt.NDArray[np.float64]]  # for each k: (n,)
    labels_cut: tuple[npt.NDArray[np.uint64], ...]  # T: labels of the tokens beyond the context
    extra: Mapping[str, Array]  # further columns, (n,)
    signature: Mapping[str, Any]  # of the scores; `max_length` is the context that they were restricted to
    context: int | None = None  # that they were restricted to

    @property
    def about(self) -> str:
        """Which run these are the scores of, and how many of its trajectories have any."""
        run, scored = self.store.run, sum(max(1, len(entry.sources)) for entry in self.entries)
        if run is None or run.texts is None:
            problem = mixed(self.store.folder)
            return f"{run or 'everything in the folder'}: {scored} trajectories" + (f"; {problem}" if problem else "")
        wanted = sum(len(sources) for sources in run.texts.values())
        unfinished = "" if len(self.entries) == len(run.texts) else "; the run was not finished"
        return f"{run}: {scored} of {wanted} trajectories{unfinished}"

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters that the labels know, in the order of their bits."""
        return tuple(self.store.signature["filters"])

    def counted(self, mask: np.uint64) -> BoolArray:
        """Which tokens count under `mask`, shape (n,); `SettingsError` where they were not all scored."""
        for entry in self.entries:
            if int(mask) & ~entry.mask:
                name = entry.sources[0].id if entry.sources else entry.key[:12]
                raise SettingsError(
                    f"{self.name}: not all tokens asked for were scored ({_covered(entry.mask, self.filters)} were, in "
                    f"trajectory {name!r}). Ask for those, or score the others too: hesnr_swe_unfiltered, "
                    "or hesnr_swe with other kinds, run with the same scores folder adds what is missing."
                )
        if int(mask) & ~self.loaded_mask:
            raise ValueError("these tokens were not loaded; load the frame with them")
        return (self.label & mask) != 0

    def tokens(self, k: int, index: npt.NDArray[np.int64]) -> TokenColumns:
        """The columns of some tokens, as metrics take them."""
        optional: dict[str, Any] = {name: self.extra[name][index] for name in _OPTIONAL if name in self.extra}
        optional |= {
            name: column_or_none(optional[name]) for name in ("full_entropy", "expected_rank") if name in optional
        }
        return TokenColumns(
            logprob=self.logprob[index].astype(np.float64),
            rank=self.rank[index],
            entropy=self.entropy[k][index],
            kinds=kinds_of(self.label[index]),
            **optional,
        )

    def trajectory(self) -> npt.NDArray[np.int32]:
        """The index of each token's trajectory, shape (n,)."""
        return np.repeat(np.arange(len(self.entries), dtype=np.int32), np.diff(self.bounds))

    def n_truncated(self, mask: np.uint64) -> npt.NDArray[np.int64]:
        """Tokens of each trajectory that count but lie beyond the context limit, shape (T,)."""
        return np.array([np.count_nonzero(labels & mask) for labels in self.labels_cut], dtype=np.int64)

    def included(self, mask: np.uint64) -> BoolArray:
        """Which trajectories count, shape (T,): all, or with overflow=skip those that fit into the context."""
        if self.store.signature["overflow"] == "skip":
            return self.n_truncated(mask) == 0
        return np.ones(len(self.entries), dtype=bool)

    def multiplicity(self, mask: np.uint64) -> npt.NDArray[np.int64]:
        """How many trajectories have each text (0 where `included` leaves it out), shape (T,)."""
        return np.array([max(1, len(entry.sources)) for entry in self.entries]) * self.included(mask)


# --- reading ----------------------------------------------------------------------------------------------------------


def load(
    folder: str | Path | ScoreStore,
    ks: Sequence[int] = (10,),
    *,
    masks: Sequence[np.uint64] | None = None,
    extra: Sequence[str] = (),
    name: str = "",
    context: int | None = None,
    run: str | StoredRun = "latest",
    metrics: Iterable[str] | None = None,
) -> Frame:
    """Read the scores of one run of a folder.

    Args:
        folder: of score files; or a store.
        ks: numbers of candidates to compute entropies for.
        masks: load only tokens that count under one of them (None: all).
        extra: further columns of the score files.
        name: of the run (default: that of the folder).
        context: as if the model had read this many token ids of each text, BOS included, at most (None: all it read).
        run: as `scores.choose_runs` takes it, or one that it returned.
        metrics: the metrics that will be computed (None: the core ones); others may find their columns missing.

    Raises:
        StoreError: for damaged files.
        SettingsError: for a k beyond what was stored, or a run that does not exist.
        DataError: if there is no file.
    """
    store = folder if isinstance(folder, ScoreStore) else ScoreStore.open(folder)
    if store.run is None:
        chosen = run if isinstance(run, StoredRun) else _only_run(choose_runs(store.folder, run), store.folder)
        store = store.of_run(chosen)
    if max(ks) > store.k:
        raise SettingsError(
            f"{store.folder} has the {store.k} most likely tokens of each position; k = {max(ks)} needs more. Score "
            f'again with "k": {max(ks)} in --metadata.'
        )
    loaded_mask = _ALL if masks is None else int(np.bitwise_or.reduce(np.array(masks, dtype=np.uint64)))
    needs = [
        name
        for name in needed_columns(names_of() if metrics is None else metrics)
        if name not in ("kinds", "trajectory")
    ]
    outputs = list(dict.fromkeys(["label", "logprob", "rank", *extra, *needs]))
    sources = ["char_start", "char_end", "text"] if "n_bytes" in needs else []
    sources += ["token_id", "text_ids"] if "frequency" in needs else []
    stored = dict.fromkeys(["position", "topk_logprobs", "labels_cut", *outputs, *sources])

    occurrences, lock = np.zeros(0, dtype=np.int64), threading.Lock()  # of each token id in all texts

    def work(entry: Entry, columns: dict[str, Array]) -> tuple[Entry, dict[str, Array]]:
        top = columns["topk_logprobs"]
        columns["rank"] = np.where(columns["rank"] == 0, -top.shape[1], columns["rank"])
        # a model that reads `context` ids scores positions 0 … context - 1, and these are in the order of the text
        fits = len(columns["label"]) if context is None else int(np.searchsorted(columns["position"], context))
        row = np.flatnonzero(columns["label"][:fits] & np.uint64(loaded_mask)).astype(np.int32)
        if "n_bytes" in needs:
            n_bytes = token_bytes(columns["text"], columns["char_start"], columns["char_end"])
            columns["n_bytes"] = n_bytes.astype(np.int32)
        if "frequency" in needs:
            columns["frequency"] = columns["token_id"]  # counted below, when all texts are known
            counts = np.bincount(columns["text_ids"])
            with lock:
                occurrences.resize(max(len(occurrences), len(counts)), refcheck=False)
                occurrences[: len(counts)] += counts
        return entry, {
            "labels_cut": np.concatenate([columns["label"][fits:], columns["labels_cut"]]),
            "row": row,
            **{column: columns[column][row] for column in outputs},
            **{f"entropy{k}": entropy_of(top[row], k) for k in ks},
        }

    parts = list(store.load_columns([column for column in stored if column not in _DERIVED], work))
    if not parts:
        raise DataError(f"{store.folder} has no score files yet of {store.run}")

    def concat_columns(column: str) -> Array:
        return np.concatenate([columns.pop(column) for _, columns in parts])

    optional = {column: concat_columns(column) for column in dict.fromkeys([*extra, *needs])}
    if "frequency" in optional:
        optional["frequency"] = occurrences[optional["frequency"]].astype(np.float64)
    signature, limit = store.signature, store.signature["run"].get("max_length")
    if context is not None and (limit is None or limit > context):
        signature = {**signature, "run": {**signature["run"], "max_length": context}}
    return Frame(
        name=name or store.folder.resolve().name,
        store=store,
        entries=tuple(entry for entry, _ in parts),
        loaded_mask=loaded_mask,
        bounds=np.concatenate([[0], np.cumsum([len(columns["row"]) for _, columns in parts])]).astype(np.int64),
        row=concat_columns("row"),
        label=concat_columns("label"),
        logprob=concat_columns("logprob"),
        rank=concat_columns("rank"),
        entropy={k: concat_columns(f"entropy{k}") for k in ks},
        labels_cut=tuple(columns["labels_cut"] for _, columns in parts),
        extra=optional,
        signature=signature,
        context=context,
    )


def context_for(
    paths: Sequence[Path | ScoreStore], requested: int | str | None, *, skip_damaged: bool = False
) -> tuple[int | None, str]:
    """The context that runs are read at, and a note on it.

    Args:
        paths: folders of the runs, or their stores.
        requested: token ids; "own": each run as it is; "common": what all could read; None: "common", where a context
            truncated any run.
        skip_damaged: leave out what cannot be read; the reason is said when its scores are read.

    Raises:
        SettingsError: for a context beyond that of a run whose texts it truncated.
    """
    if requested == "own":
        return None, ""
    limits: dict[str, int] = {}  # of the runs that were truncated
    widest = 0.0
    for path in paths:
        try:
            store = path if isinstance(path, ScoreStore) else ScoreStore.open(path)
            limit = store.signature["run"].get("max_length")
            truncated = limit is not None and any(store.entry(key).cut for key in store)
        except StoreError:
            if skip_damaged:
                continue
            raise
        widest = max(widest, math.inf if limit is None else int(limit))
        if truncated:
            limits[store.folder.name] = int(limit)
    smallest = min(limits, key=lambda name: limits[name], default="")
    if isinstance(requested, int):
        if smallest and limits[smallest] < requested:
            raise SettingsError(
                f"--context {requested}: {smallest} read {limits[smallest]} tokens at most, and nothing beyond was "
                f"scored. Ask for --context {limits[smallest]} or less, or score it again with a larger max_length."
            )
        return requested, f"context {requested:,}: as if no more than {requested:,} tokens of each text had been read"
    if not smallest or widest <= limits[smallest]:  # nothing is truncated, or all are truncated alike
        return None, ""
    limit = limits[smallest]
    return limit, f"context {limit:,}, the smallest that cut a run ({smallest}): only tokens that all could see count"


def _only_run(runs: Sequence[StoredRun], folder: Path) -> StoredRun:
    if len(runs) > 1:
        listed = "; ".join(f"--run {run.data[:10]}: {'+'.join(run.tasks)}" for run in runs)
        raise SettingsError(
            f"the tasks of run {runs[0].number} of {folder} had different data; name one of them: {listed}"
        )
    return runs[0]


def _covered(mask: int, filters: Sequence[str]) -> str:
    """In words, the largest sets of tokens that `mask` holds."""
    kinds = [k for k in Kind if k is not Kind.ACTION and int(label_mask([k], [], filters)) & ~mask == 0]
    words = [kind.value for kind in kinds]
    subsets = [s for s in _subsets(filters) if int(label_mask([Kind.ACTION], s, filters)) & ~mask == 0]
    if subsets:
        words.append("-".join(["action", *min(subsets, key=len)]))
    return " and ".join(words) or "none"


# --- sums -------------------------------------------------------------------------------------------------------------


def grid_sums(
    frame: Frame,
    masks: Sequence[np.uint64],
    ks: Sequence[int],
    epsilons: Sequence[float],
    metrics: Sequence[str] | None = None,
) -> TrajectorySums:
    """The sums of every trajectory in every setting; shape (masks, ks, thresholds, T, statistics).

    Thresholds in nats, in any order. Tokens that count under the same masks are summed together, at all thresholds at
    once, so the number of settings hardly matters.
    """
    size, blocks = len(frame.entries), []
    names: tuple[str, ...] = ()
    for start in range(0, len(masks), 8):
        counted = np.stack([frame.counted(mask) for mask in masks[start : start + 8]])
        pattern = np.packbits(counted, axis=0, bitorder="little")[0]  # one bit a mask
        index = np.flatnonzero(pattern)
        patterns, group = np.unique(pattern[index], return_inverse=True)
        cell = group * size + frame.trajectory()[index]
        for_ks = []
        for k in ks:
            sums = cell_sums(frame.tokens(k, index), cell, len(patterns) * size, epsilons, k, metrics)
            cells = sums.values.reshape(len(epsilons), len(patterns), size, -1)
            for_ks.append([cells[:, (patterns >> bit & 1) == 1].sum(axis=1) for bit in range(len(counted))])
            names = sums.names
        blocks.append(np.array(for_ks).swapaxes(0, 1))
    return TrajectorySums(np.concatenate(blocks), names)


def token_sums(
    frame: Frame, counted: BoolArray, epsilon: float, k: int, metrics: Sequence[str] | None = None
) -> TrajectorySums:
    """The sums of every trajectory over its tokens where `counted` (n,) is true; shape (T, statistics)."""
    return group_sums(frame, np.where(counted, 0, -1), 1, epsilon, k, metrics)[0]


def group_sums(
    frame: Frame,
    group: npt.NDArray[np.integer],
    groups: int,
    epsilon: float,
    k: int,
    metrics: Sequence[str] | None = None,
) -> TrajectorySums:
    """The sums of every trajectory within each group of tokens; shape (groups, T, statistics).

    `group` (n,): 0 … groups - 1, or -1 for none. `metrics`: as `cell_sums` takes them.
    """
    size, index = len(frame.entries), np.flatnonzero(group >= 0)
    cell = group[index].astype(np.int64) * size + frame.trajectory()[index]
    tokens = frame.tokens(k, index)
    if groups == 1:  # all that count, in their order
        tokens = replace(tokens, trajectory=cell)
    sums = cell_sums(tokens, cell, groups * size, [epsilon], k, metrics)
    return TrajectorySums(sums.values.reshape(groups, size, -1), sums.names)


# --- what may be selected ---------------------------------------------------------------------------------------------


def selection(frame_filters: Sequence[str], kinds: Sequence[Kind], filters: Sequence[str]) -> Selection:
    """The tokens of `kinds` without what `filters` drop; filters work on actions only."""
    unknown = [name for name in filters if name not in frame_filters]
    if unknown:
        raise SettingsError(f"these scores know the filters {', '.join(frame_filters)}, not {', '.join(unknown)}")
    ordered = tuple(kind for kind in Kind if kind in kinds)
    dropped = tuple(name for name in frame_filters if name in filters) if Kind.ACTION in kinds else ()
    return Selection(ordered, dropped, label_mask(ordered, dropped, frame_filters))


def selections(
    frame_filters: Sequence[str], kinds: Sequence[str] | None, filters: Sequence[str] | None
) -> list[Selection]:
    """Every combination of kinds and filters as users write them, each set of tokens once.

    Args:
        frame_filters: the filters that the labels know.
        kinds: such as "thought+action" (default: "action").
        filters: such as "xml+format", "all" (the default), "none", or "every" subset.
    """
    sets = [_words("kinds", word, _KINDS) for word in kinds or ["action"]]
    dropped: list[Iterable[str]] = []
    for word in filters or [ALL]:
        if word == EVERY:
            dropped += _subsets(frame_filters)
        elif word in (ALL, "none", ""):
            dropped.append(frame_filters if word == ALL else [])
        else:
            dropped.append(_words("filters", word, frame_filters, ALL, "none", EVERY))
    pairs = itertools.product(sets, dropped)
    chosen = (selection(frame_filters, [Kind(name) for name in names], list(drop)) for names, drop in pairs)
    return list({item.name: item for item in chosen}.values())


def _words(option: str, value: str, allowed: Sequence[str], *special: str) -> list[str]:
    names = re.split(r"[+,]", value)
    for name in names:
        if name not in allowed:
            choices = [*allowed, *special]
            raise SettingsError(f"{option} {name!r} must be one of {', '.join(choices)}.{nearest(name, choices)}")
    return names


def _subsets(names: Sequence[str]) -> list[list[str]]:
    return [[name for i, name in enumerate(names) if bits >> i & 1] for bits in range(1 << len(names))]


def check_epsilons(words: Sequence[str] | None, ks: Sequence[int]) -> list[float]:
    """The thresholds, each within [0, ln k) for every k."""
    values = [parse_epsilon(word, "--epsilon") for word in words] if words else [EPSILON]
    for k, value in itertools.product(ks, values):
        if k < 2:
            raise SettingsError(f"--k {k}: the entropy of fewer than 2 candidates is always 0")
        if not 0 <= value < math.log(k):
            raise SettingsError(
                f"--epsilon {value:g} must lie in [0, ln k): with k = {k} no entropy exceeds {math.log(k):.4f} nats"
            )
    return values


def check_resamples(resamples: int, seed: int) -> None:
    """Enough resamples for an interval, and a seed that numpy takes."""
    if not 100 <= resamples <= MOST_RESAMPLES or seed < 0:
        raise SettingsError(f"--resamples must be at least 100 and at most {MOST_RESAMPLES:,}, and --seed at least 0")


def folders(words: Sequence[str]) -> list[Path]:
    """The folders of score files among, or anywhere below, those named, in the order named."""
    paths: list[Path] = []
    for word in words:
        path = Path(word)
        below = sorted((run.parent for run in path.rglob("run.json")), key=lambda run: natural(str(run)))
        if not path.exists():
            raise DataError(f"{path}: no such folder")
        paths += [path] if (path / "run.json").exists() or not below else below
    return list(dict.fromkeys(paths))


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    return _shortest_ends([path.resolve().parts for path in paths]) or [str(path) for path in paths]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Names of score folders: the shortest ends of their models' paths, with revisions, else of the folders' own."""
    runs = [ScoreStore.open(folder).signature.get("run") or {} for folder in folders]
    models = []
    for folder, run in zip(folders, runs, strict=True):
        parts = PurePath(str(run.get("model") or folder.name)).parts or (folder.name,)
        revision = run.get("revision")
        models.append(parts if revision in (None, "", "main") else (*parts[:-1], f"{parts[-1]}@{revision}"))
    return _shortest_ends(models) or unique_names(folders)


def _shortest_ends(parts: Sequence[Sequence[str]]) -> list[str]:
    """Empty where some are equal."""
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return []


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts `step800` before `step1600`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
