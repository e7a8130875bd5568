"""Score files as arrays: which folders, runs and tokens; every scored token of a run; sums per trajectory."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError, nearest, number_of
from hesnr_tasks.metrics import (
    EPSILON,
    METRICS,
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
from hesnr_tasks.scores import Entry, ScoreStore, StoredRun, StoreError, choose_runs, mixed
from hesnr_tasks.scores.runs import model_of, short_names, window_of
from hesnr_tasks.stats import MOST_RESAMPLES
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import label_mask

Array = npt.NDArray[Any]
T = TypeVar("T")
BoolArray = npt.NDArray[np.bool_]
ALL, EVERY = "all", "every"
_KINDS = tuple(kind.value for kind in Kind if kind is not Kind.SCAFFOLD)
_ALL = (1 << 64) - 1
_OPTIONAL = ("topk_logprobs", "n_bytes", "full_entropy", "expected_rank", "frequency", "turn")  # of `TokenColumns`
_BATCH = 16  # trajectories that `scan` joins: few calls, and little memory
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
        window = window_of(self.signature)
        short = f"short-context pass (window {window}); " if window else ""
        if run is None or run.texts is None:
            problem = mixed(self.store.folder)
            whole = f"{short}{run or 'everything in the folder'}: {number_of(scored, 'trajectory')}"
            return whole + (f"; {problem}" if problem else "")
        wanted = sum(len(sources) for sources in run.texts.values())
        unfinished = "" if len(self.entries) == len(run.texts) else "; the run was not finished"
        return f"{short}{run}: {scored} of {number_of(wanted, 'trajectory')}{unfinished}"

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

    def tokens(self, k: int, index: npt.NDArray[np.int64], metrics: Iterable[str] | None = None) -> TokenColumns:
        """The columns of some tokens, as metrics take them; `metrics`: that will be computed (None: any)."""
        optional: dict[str, Any] = {name: self.extra[name][index] for name in _OPTIONAL if name in self.extra}
        optional |= {
            name: column_or_none(optional[name]) for name in ("full_entropy", "expected_rank") if name in optional
        }
        if "kinds" in needed_columns(METRICS if metrics is None else metrics):
            optional["kinds"] = kinds_of(self.label[index])
        return TokenColumns(
            logprob=self.logprob[index].astype(np.float64),
            rank=self.rank[index],
            entropy=self.entropy[k][index],
            **optional,
        )

    def counting(self, mask: np.uint64) -> Frame:
        """Only the tokens that count under `mask`, without further columns."""
        kept = np.flatnonzero(self.counted(mask))
        return replace(
            self, loaded_mask=int(mask), bounds=np.searchsorted(kept, self.bounds), row=self.row[kept],
            label=self.label[kept], logprob=self.logprob[kept], rank=self.rank[kept],
            entropy={k: entropy[kept] for k, entropy in self.entropy.items()}, extra={},
        )  # fmt: skip

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


def load(folder: str | Path | ScoreStore, ks: Sequence[int] = (10,), **options: Any) -> Frame:
    """Read the scores of one run of a folder; arguments and errors are those of `Reading`."""
    reading = Reading(folder, ks, **options)
    return reading.frame(list(reading.trajectories()))


def scan(
    folder: str | Path | ScoreStore,
    work: Callable[[Frame], T],
    ks: Sequence[int] = (10,),
    threads: int | None = None,
    **options: Any,
) -> list[T]:
    """`work(frame)` of a few trajectories at a time, in the order of their keys: only what it returns is kept.

    Args:
        folder: of score files; or a store.
        work: called in this thread, while others read on.
        ks: numbers of candidates to compute entropies for.
        threads: that read (None: as many as there are cores, 8 at most).
        options: as those of `Reading`, with its errors.
    """
    reading = Reading(folder, ks, **options)
    parts = reading.trajectories(threads)
    results = []
    while batch := list(itertools.islice(parts, _BATCH)):
        results.append(work(reading.frame(batch)))
    if not results:
        reading.frame([])  # says that there are no files
    return results


def joined(frames: Sequence[Frame]) -> Frame:
    """One frame of the frames of a run, in their order, without `extra`."""

    def column(name: str) -> Array:
        return np.concatenate([getattr(frame, name) for frame in frames])

    first = frames[0]
    return replace(
        first,
        entries=tuple(entry for frame in frames for entry in frame.entries),
        bounds=np.cumsum(np.concatenate([[0], *(np.diff(frame.bounds) for frame in frames)])).astype(np.int64),
        row=column("row"), label=column("label"), logprob=column("logprob"), rank=column("rank"),
        entropy={k: np.concatenate([frame.entropy[k] for frame in frames]) for k in first.entropy},
        labels_cut=tuple(labels for frame in frames for labels in frame.labels_cut),
        extra={},
    )  # fmt: skip


_Part = tuple[Entry, dict[str, Array]]


class Reading:
    """Which columns of which files are read, and how they become frames.

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

    def __init__(
        self,
        folder: str | Path | ScoreStore,
        ks: Sequence[int],
        *,
        masks: Sequence[np.uint64] | None = None,
        extra: Sequence[str] = (),
        name: str = "",
        context: int | None = None,
        run: str | StoredRun = "latest",
        metrics: Iterable[str] | None = None,
    ) -> None:
        store = folder if isinstance(folder, ScoreStore) else ScoreStore.open(folder)
        if store.run is None and not isinstance(run, StoredRun):
            run, *others = choose_runs(store.folder, run)
            if others:
                listed = "; ".join(f"--run {part.data[:10]}: {'+'.join(part.tasks)}" for part in (run, *others))
                raise SettingsError(
                    f"the tasks of run {run.number} of {store.folder} had different data; name one of them: {listed}"
                )
        if store.run is None:
            assert isinstance(run, StoredRun)
            store = store.of_run(run)
        if max(ks) > store.k:
            raise SettingsError(
                f"{store.folder} has the {store.k} most likely tokens of each position; k = {max(ks)} needs more. "
                f'Score again with "k": {max(ks)} in --metadata.'
            )
        needs = needed_columns(names_of() if metrics is None else metrics)
        self.optional = tuple(dict.fromkeys([*extra, *(need for need in needs if need in _OPTIONAL)]))
        self.loaded_mask = _ALL if masks is None else int(np.bitwise_or.reduce(np.array(masks, dtype=np.uint64)))
        self.store, self.ks, self.context, self.name = store, ks, context, name or store.folder.resolve().name
        self.occurrences = np.zeros(0, dtype=np.int64)  # of each token id in all texts
        if "frequency" in self.optional:
            ids = store.load_columns(["text_ids"], lambda _, columns: np.bincount(columns["text_ids"]))
            for counts in ids:
                size = max(len(counts), len(self.occurrences))
                self.occurrences = np.pad(self.occurrences, (0, size - len(self.occurrences)))
                self.occurrences[: len(counts)] += counts

    def trajectories(self, threads: int | None = None) -> Iterator[_Part]:
        """Every trajectory's entry and columns, in the order of keys."""
        wanted = ["label", "logprob", "rank", "topk_logprobs", "labels_cut", *self.optional]
        wanted += ["position"] if self.context is not None else []
        wanted += ["char_start", "char_end", "text"] if "n_bytes" in self.optional else []
        wanted += ["token_id"] if "frequency" in self.optional else []
        stored = [column for column in dict.fromkeys(wanted) if column not in _DERIVED]
        return self.store.load_columns(stored, lambda entry, columns: (entry, self._selected(columns)), threads)

    def _selected(self, columns: dict[str, Array]) -> dict[str, Array]:
        """The columns of a frame, of the tokens that are wanted."""
        top = columns["topk_logprobs"]
        columns["rank"] = np.where(columns["rank"] == 0, -top.shape[1], columns["rank"])
        # a model that reads `context` ids scores positions 0 … context - 1, and these are in the order of the text
        fits = len(columns["label"])
        if self.context is not None:
            fits = int(np.searchsorted(columns["position"], self.context))
        row = np.flatnonzero(columns["label"][:fits] & np.uint64(self.loaded_mask)).astype(np.int32)
        if "n_bytes" in self.optional:
            n_bytes = token_bytes(columns["text"], columns["char_start"], columns["char_end"])
            columns["n_bytes"] = n_bytes.astype(np.int32)
        if "frequency" in self.optional:
            columns["frequency"] = self.occurrences[columns["token_id"]].astype(np.float64)
        rows: Any = row if len(row) < len(columns["label"]) else slice(None)  # all: no copies
        return {
            "labels_cut": np.concatenate([columns["label"][fits:], columns["labels_cut"]]),
            "row": row,
            **{column: columns[column][rows] for column in ("label", "logprob", "rank", *self.optional)},
            **{f"entropy{k}": entropy_of(top[rows], k) for k in self.ks},
        }

    def frame(self, parts: list[_Part]) -> Frame:
        """One frame of some trajectories, whose columns it takes."""
        store, context = self.store, self.context
        if not parts:
            raise DataError(f"{store.folder} has no score files yet of {store.run}")

        def joined(column: str) -> Array:
            arrays = [columns.pop(column) for _, columns in parts]
            return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]

        bounds = np.cumsum([0, *(len(columns["row"]) for _, columns in parts)]).astype(np.int64)
        signature, limit = store.signature, store.signature["run"].get("max_length")
        if context is not None and (limit is None or limit > context):
            signature = {**signature, "run": {**signature["run"], "max_length": context}}
        return Frame(
            name=self.name,
            store=store,
            entries=tuple(entry for entry, _ in parts),
            loaded_mask=self.loaded_mask,
            bounds=bounds,
            **{column: joined(column) for column in ("row", "label", "logprob", "rank")},
            entropy={k: joined(f"entropy{k}") for k in self.ks},
            labels_cut=tuple(columns["labels_cut"] for _, columns in parts),
            extra={column: joined(column) for column in self.optional},
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
    stores: list[tuple[ScoreStore, float]] = []
    for path in paths:
        try:
            store = path if isinstance(path, ScoreStore) else ScoreStore.open(path)
            limit = store.signature["run"].get("max_length")
            stores.append((store, math.inf if limit is None else int(limit)))
        except StoreError:
            if not skip_damaged:
                raise
    widest = max((limit for _, limit in stores), default=0.0)
    limits: dict[str, int] = {}  # of the runs that were truncated
    for store, own in stores:
        if own >= (requested if isinstance(requested, int) else widest):
            continue  # nothing below depends on whether it was truncated
        with contextlib.suppress(StoreError) if skip_damaged else contextlib.nullcontext():
            if any(store.entry(key).cut for key in store):
                limits[store.folder.name] = int(own)
    smallest = min(limits, key=lambda name: limits[name], default="")
    if isinstance(requested, int):
        if smallest and limits[smallest] < requested:
            raise SettingsError(
                f"--context {requested}: {smallest} read {limits[smallest]} tokens at most, and nothing beyond was "
                f"scored. Ask for --context {limits[smallest]} or less, or score it again with a larger max_length."
            )
        return requested, f"context {requested:,}: as if no more than {requested:,} tokens of each text had been read"
    if not smallest:  # nothing is truncated, or all are truncated alike
        return None, ""
    limit = limits[smallest]
    return limit, f"context {limit:,}, the smallest that cut a run ({smallest}): only tokens that all could see count"


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
        patterns = np.flatnonzero(np.bincount(pattern[index], minlength=256))
        group = np.searchsorted(patterns, np.arange(256))[pattern[index]]  # a table: faster than sorting
        cell = group * size + frame.trajectory()[index] if size > 1 else group
        for_ks = []
        for k in ks:
            tokens = frame.tokens(k, index, names_of() if metrics is None else metrics)
            sums = cell_sums(tokens, cell, len(patterns) * size, epsilons, k, metrics)
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
    tokens = frame.tokens(k, index, names_of() if metrics is None else metrics)
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
        if path.is_file():
            raise DataError(
                f"{path} is a file, not a folder of score files. A pack of a ladder is read by hesnr report and hesnr "
                "ladder verdict."
            )
        paths += [path] if (path / "run.json").exists() or not below else below
    return list(dict.fromkeys(paths))


def whole_contexts(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The folders that are of no short-context pass (`window`), and a note on those that are.

    Raises:
        SettingsError: there are no others.
    """
    windows = {path: window_of(ScoreStore.open(path).signature) for path in paths}
    whole = [path for path in paths if windows[path] is None]
    listed = ", ".join(f"{path.name} (window {window})" for path, window in windows.items() if window is not None)
    if paths and not whole:
        raise SettingsError(
            f"these are scores of short-context passes alone: {listed}.\n"
            "Name the whole-context scores; what a short context costs: hesnr analyze WHOLE --against SHORT."
        )
    return whole, [f"short-context passes are left out: {listed}"] if listed else []


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Names of the runs in score folders: the shortest ends of their models' paths, with revisions.

    Runs of one model have the names of their folders.
    """
    models = [model_of(ScoreStore.open(folder).signature.get("run") or {}) for folder in folders]
    short, own = short_names(models), unique_names(folders)
    if len(short) == 1 < len(own):
        return own
    return [
        short[model] if models.count(model) == 1 else f"{short[model]} ({name})"
        for model, name in zip(models, own, strict=True)
    ]


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts `step800` before `step1600`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
