"""All scored tokens of one run as arrays, one trajectory after the other, ready for any question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.labels import label_mask
from hesnr_tasks.metrics import topk_entropy
from hesnr_tasks.scores import Entry, ScoreStore, StoredRun, choose_runs, mixed
from hesnr_tasks.trajectory import Kind

__all__ = ["Frame", "Selection", "context_for", "load", "selection"]

Array = npt.NDArray[Any]
_ALL = (1 << 64) - 1


class Selection(NamedTuple):
    """Which tokens count: those that cover a character of `kinds` that no filter of `filters` hit."""

    kinds: tuple[Kind, ...]
    filters: tuple[str, ...]
    mask: np.uint64

    @property
    def name(self) -> str:
        """`thought+action` or `action-xml-format`."""
        return "-".join(["+".join(kind.value for kind in self.kinds), *self.filters])


@dataclass(frozen=True, slots=True)
class Frame:
    """n scored tokens of T trajectories, in the order of their keys; entropies in nats.

    `kept`: labels of the tokens that were read; no others can be asked for.
    """

    name: str
    store: ScoreStore
    entries: tuple[Entry, ...]  # T
    kept: int
    bounds: npt.NDArray[np.int64]  # (T + 1,): trajectory i has tokens bounds[i] to bounds[i + 1]
    row: npt.NDArray[np.int32]  # (n,) in the score file
    label: npt.NDArray[np.uint64]  # (n,)
    logprob: npt.NDArray[np.float32]  # (n,)
    rank: npt.NDArray[np.int32]  # (n,)
    entropy: Mapping[int, npt.NDArray[np.float64]]  # for each k: (n,)
    labels_cut: tuple[npt.NDArray[np.uint64], ...]  # T
    extra: Mapping[str, Array]  # further columns, (n,)
    signature: Mapping[str, Any]  # of the scores; `max_length` is the context that they were restricted to
    context: int | None = None  # that they were restricted to

    @property
    def about(self) -> str:
        """Which run these are the scores of, and how many of its trajectories have any."""
        run, scored = self.store.run, sum(max(1, len(entry.sources)) for entry in self.entries)
        if run is None or run.texts is None:
            strange = mixed(self.store.folder)
            return f"{run or 'everything in the folder'}: {scored} trajectories" + (f"; {strange}" if strange else "")
        wanted = sum(len(sources) for sources in run.texts.values())
        unfinished = "" if len(self.entries) == len(run.texts) else "; the run was not finished"
        return f"{run}: {scored} of {wanted} trajectories{unfinished}"

    def counted(self, mask: np.uint64) -> npt.NDArray[np.bool_]:
        """Which tokens count under `mask`, shape (n,); raises `SettingsError` where they were not all scored."""
        self._refuse_unscored(mask)
        if int(mask) & ~self.kept:
            raise ValueError("these tokens were not read; load the frame with them")
        return (self.label & mask) != 0

    def trajectory(self) -> npt.NDArray[np.int32]:
        """The index of each token's trajectory, shape (n,)."""
        return np.repeat(np.arange(len(self.entries), dtype=np.int32), np.diff(self.bounds))

    def cut(self, mask: np.uint64) -> npt.NDArray[np.int64]:
        """Tokens of each trajectory that count but lie beyond the context limit, shape (T,)."""
        return np.array([np.count_nonzero(labels & mask) for labels in self.labels_cut], dtype=np.int64)

    def included(self, mask: np.uint64) -> npt.NDArray[np.bool_]:
        """Which trajectories count, shape (T,): all, or with overflow=skip those that fit into the context."""
        if self.store.signature["overflow"] == "skip":
            return self.cut(mask) == 0
        return np.ones(len(self.entries), dtype=bool)

    def copies(self, mask: np.uint64) -> npt.NDArray[np.int64]:
        """How many trajectories have each text (0 where `included` leaves it out), shape (T,)."""
        return np.array([max(1, len(entry.sources)) for entry in self.entries]) * self.included(mask)

    def _refuse_unscored(self, mask: np.uint64) -> None:
        for entry in self.entries:
            if int(mask) & ~entry.mask:
                raise SettingsError(
                    f"{self.name}: not all tokens asked for were scored ({_covered(entry.mask, self.filters)} were, in "
                    f"trajectory {_first_id(entry)!r}). Ask for those, or score the others too: hesnr_swe_unfiltered, "
                    "or hesnr_swe with other kinds, run with the same scores folder adds what is missing."
                )

    @property
    def filters(self) -> tuple[str, ...]:
        """The known filters, in the order of their bits in the labels."""
        return tuple(self.store.signature["filters"])


def load(
    folder: str | Path,
    ks: Sequence[int] = (10,),
    *,
    masks: Sequence[np.uint64] | None = None,
    extra: Sequence[str] = (),
    name: str = "",
    context: int | None = None,
    run: str | StoredRun = "latest",
) -> Frame:
    """Read the scores of one run of a folder.

    Args:
        folder: of score files.
        ks: numbers of candidates to compute entropies for.
        masks: keep only tokens that count under one of them (None: all).
        extra: further columns of the score files.
        name: of the run (default: that of the folder).
        context: as if the model had read this many token ids of each text, BOS included, at most (None: all it read).
        run: as `store.choose_runs` takes it, or one that it gave.

    Raises:
        StoreError: for damaged files.
        SettingsError: for a k beyond what was stored, or a run that is not there.
        DataError: if there is no file.
    """
    store = ScoreStore.open(folder)
    store = store.of_run(run if isinstance(run, StoredRun) else _only(choose_runs(store.folder, run), store.folder))
    _refuse_large_k(store, ks)
    kept = _ALL if masks is None else int(np.bitwise_or.reduce(np.array(masks, dtype=np.uint64)))
    columns = list(dict.fromkeys(["position", "label", "logprob", "rank", "topk_logprobs", "labels_cut", *extra]))

    def work(entry: Entry, found: dict[str, Array]) -> tuple[Entry, dict[str, Array]]:
        found["rank"] = np.where(found["rank"] == 0, -found["topk_logprobs"].shape[1], found["rank"])
        # a model that reads `context` ids scores positions 0 … context - 1, and these are in the order of the text
        fits = len(found["label"]) if context is None else int(np.searchsorted(found["position"], context))
        found["labels_cut"] = np.concatenate([found["label"][fits:], found["labels_cut"]])
        row = np.flatnonzero(found["label"][:fits] & np.uint64(kept)).astype(np.int32)
        left_out = {"labels_cut", *(() if "position" in extra else ("position",))}
        one = {column: values[row] for column, values in found.items() if column not in left_out}
        top = one.pop("topk_logprobs")
        entropies = {f"entropy{k}": topk_entropy(top, k) for k in ks}
        return entry, {"labels_cut": found["labels_cut"], "row": row, **one, **entropies}

    parts = list(store.load_columns(columns, work))
    if not parts:
        raise DataError(f"{folder} has no score files yet of {store.run}")

    def joined(column: str) -> Array:
        return np.concatenate([found.pop(column) for _, found in parts])

    return Frame(
        name=name or Path(folder).resolve().name,
        store=store,
        entries=tuple(entry for entry, _ in parts),
        kept=kept,
        bounds=np.concatenate([[0], np.cumsum([len(found["row"]) for _, found in parts])]).astype(np.int64),
        row=joined("row"),
        label=joined("label"),
        logprob=joined("logprob"),
        rank=joined("rank"),
        entropy={k: joined(f"entropy{k}") for k in ks},
        labels_cut=tuple(found["labels_cut"] for _, found in parts),
        extra={column: joined(column) for column in extra},
        signature=_within(store.signature, context),
        context=context,
    )


def _within(signature: Mapping[str, Any], context: int | None) -> Mapping[str, Any]:
    """The signature of scores restricted to a context."""
    limit = signature["run"].get("max_length")
    if context is None or (limit is not None and limit <= context):
        return signature
    return {**signature, "run": {**signature["run"], "max_length": context}}


def context_for(folders: Sequence[Path], asked: int | str | None) -> tuple[int | None, str]:
    """The context that runs are read at, and what is to be said of it.

    Args:
        folders: of the runs.
        asked: token ids; "own": each run as it is; "common": what all could read; None: "common", where a context cut
            any run.

    Raises:
        SettingsError: for a context beyond that of a run whose texts it cut.
    """
    if asked == "own":
        return None, ""
    limits: dict[str, int] = {}  # of the runs that were cut
    widest = 0.0
    for folder in folders:
        store = ScoreStore.open(folder)
        limit = store.signature["run"].get("max_length")
        widest = max(widest, math.inf if limit is None else int(limit))
        if limit is not None and any(store.entry(key).cut for key in store):
            limits[folder.name] = int(limit)
    smallest = min(limits, key=lambda name: limits[name], default="")
    if isinstance(asked, int):
        if smallest and limits[smallest] < asked:
            raise SettingsError(
                f"--context {asked}: {smallest} read {limits[smallest]} tokens at most, and nothing beyond was scored. "
                f"Ask for --context {limits[smallest]} or less, or score it again with a larger max_length."
            )
        return asked, f"context {asked:,}: as if no more than {asked:,} tokens of each text had been read"
    if not smallest or widest <= limits[smallest]:  # nothing is cut, or all are cut alike
        return None, ""
    limit = limits[smallest]
    return limit, f"context {limit:,}, the smallest that cut a run ({smallest}): only tokens that all could see count"


def selection(frame_filters: Sequence[str], kinds: Sequence[Kind], filters: Sequence[str]) -> Selection:
    """The tokens of `kinds` without what `filters` drop; filters work on actions only."""
    unknown = [name for name in filters if name not in frame_filters]
    if unknown:
        raise SettingsError(f"these scores know the filters {', '.join(frame_filters)}, not {', '.join(unknown)}")
    ordered = tuple(kind for kind in Kind if kind in kinds)
    kept = tuple(name for name in frame_filters if name in filters) if Kind.ACTION in kinds else ()
    return Selection(ordered, kept, label_mask(ordered, kept, frame_filters))


def _only(runs: Sequence[StoredRun], folder: Path) -> StoredRun:
    if len(runs) > 1:
        listed = "; ".join(f"--run {run.data[:10]}: {'+'.join(run.tasks)}" for run in runs)
        raise SettingsError(
            f"the tasks of run {runs[0].number} of {folder} had different data; name one of them: {listed}"
        )
    return runs[0]


def _refuse_large_k(store: ScoreStore, ks: Sequence[int]) -> None:
    if max(ks) > store.k:
        raise SettingsError(
            f"{store.folder} has the {store.k} most likely tokens of each position; k = {max(ks)} needs more. Score "
            f'again with "k": {max(ks)} in --metadata.'
        )


def _covered(mask: int, filters: Sequence[str]) -> str:
    """In words, the largest sets of tokens that `mask` holds."""
    kinds = [k for k in Kind if k is not Kind.ACTION and int(label_mask([k], [], filters)) & ~mask == 0]
    words = [kind.value for kind in kinds]
    subsets = [[f for i, f in enumerate(filters) if bits >> i & 1] for bits in range(1 << len(filters))]
    held = [s for s in subsets if int(label_mask([Kind.ACTION], s, filters)) & ~mask == 0]
    if held:
        words.append("-".join(["action", *min(held, key=len)]))
    return " and ".join(words) or "none"


def _first_id(entry: Entry) -> str:
    return entry.sources[0].id if entry.sources else entry.key[:12]
