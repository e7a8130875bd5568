"""A folder of score files: one run, one file a trajectory, each whole or not there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.files.atomic import create_file, locked, remove_abandoned, replace_file
from hesnr_tasks.scores.runs import (
    StoredRun,
    Wanted,
    add_run,
    checkpoint_name,
    open_run,
    read_run,
    run_folder,
    scoring_signature,
)
from hesnr_tasks.scores.schema import (
    COLUMNS,
    OPTIONAL,
    Entry,
    ScoringRequest,
    SequenceScores,
    Source,
    StoreError,
    Text,
    TokenScores,
    arrow,
    encode,
    encode_vocabulary,
    read_columns,
    read_entry,
    read_text,
    read_vocabulary,
    write_error,
)
from hesnr_tasks.trajectory.rendering import Rendered

_log = logging.getLogger("hesnr_tasks")
_KEY = re.compile(r"[0-9A-Za-z_-]+")
_VOCABULARY = "vocabulary.pq"  # not *.parquet: that is one file a trajectory
T = TypeVar("T")


class ScoreStore:
    """The scores of one run. Open it with `open`; several processes may, at once."""

    def __init__(self, folder: Path, signature: Mapping[str, Any], run: StoredRun | None = None) -> None:
        self.folder = folder
        self.signature = signature
        self.run = run  # what is read belongs to this run; None: everything
        self._run = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def open(cls, folder: str | Path, signature: Mapping[str, Any] | None = None) -> ScoreStore:
        """The store in `folder`; with a signature it is created where needed.

        Args:
            folder: of the score files; to read, the beginning of its name is enough where no other begins so.
            signature: `scoring_signature(…)`; None: that of the folder.

        Raises:
            SettingsError: names each setting that differs from those of the scores already there.
            StoreError: the folder cannot be created or read.
        """
        arrow()
        folder = Path(folder)
        if signature is None:
            folder = run_folder(folder)
            return cls(folder, read_run(folder))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, folder) from error
        store = cls(folder, open_run(folder, signature))
        remove_abandoned(folder)
        return store

    @property
    def k(self) -> int:
        """Candidates a token; what is written must have as many."""
        return int(self.signature["k"])

    def of_run(self, run: StoredRun) -> ScoreStore:
        """The same folder, but only the texts of `run` (of `choose_runs`), each with the trajectories that run had."""
        return ScoreStore(self.folder, self.signature, run)

    # --- what is there ------------------------------------------------------------------------------------------------

    def keys(self) -> list[str]:
        """Keys of all score files (of the run), sorted; whole or not."""
        there = (path.stem for path in self.folder.glob("*.parquet"))
        texts = self.run.texts if self.run else None
        return sorted(there if texts is None else texts.keys() & set(there))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def entry(self, key: str) -> Entry:
        """What the file of `key` says of itself; `StoreError` if it is not whole or not of this run."""
        return self._own(key, read_entry(self._path(key)))

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(
        self,
        key: str,
        mask: np.uint64,
        k: int,
        sources: Sequence[Source] = (),
        ids: npt.NDArray[np.int32] | None = None,
    ) -> TokenScores | None:
        """The scores of `key` if they are there, cover `mask` and `k`, and are whole; else None, to be scored (again).

        `sources` (who has this text) are added to the file if it does not know them yet. `ids`: all token ids of the
        text as it is tokenised now; raises `SettingsError` if the file has others, whatever it covers.
        """
        entry = self._entry_or_none(key)
        if entry is None:
            return None
        try:
            text = self.text(key)
            self._refuse_other_ids(key, text.ids, ids)
            if entry.k < k or entry.mask | int(mask) != entry.mask:
                return None
            scores = self.read(key)
        except StoreError as error:
            _log.warning("%s", error)
            return None
        if _joined(entry.sources, sources) != entry.sources:
            self.write(scores, text=text, mask=mask, sources=sources)
        return scores

    def read(self, key: str) -> TokenScores:
        """The scores of `key`, bit for bit as they were written."""
        entry, columns = self.columns(key, [*COLUMNS, "labels_cut"])
        columns_read: dict[str, Any] = {name: columns.pop(name) for name in SequenceScores._fields}
        columns_read |= {name: None for name in OPTIONAL if np.isnan(columns_read[name]).all()}
        scores = SequenceScores(**columns_read)
        return TokenScores(
            key=key, scores=scores, tokens_total=entry.tokens_total, run=self.signature["run"], **columns
        )

    def text(self, key: str) -> Text:
        """The text of `key`, its spans and its token ids."""
        return read_text(self._path(key))

    def columns(self, key: str, names: Sequence[str]) -> tuple[Entry, dict[str, npt.NDArray[Any]]]:
        """Some columns of `key` (`schema.COLUMNS` and `labels_cut`); nothing else is read from the disk."""
        entry, columns = read_columns(self._path(key), names)
        return self._own(key, entry), columns

    def load_columns(
        self, names: Sequence[str], work: Callable[[Entry, dict[str, npt.NDArray[Any]]], T], threads: int | None = None
    ) -> Iterator[T]:
        """`work(entry, columns)` of every file, in the order of keys; files are read and worked on in `threads`.

        Memory holds the columns of a few files at a time, and what `work` returns.
        """
        count = threads or min(8, os.cpu_count() or 1)
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(count) as pool:
            try:
                for key in self.keys():
                    waiting.append(pool.submit(lambda key: work(*self.columns(key, names)), key))
                    if len(waiting) > 2 * count:  # never more than a few results ahead
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def token_bytes(self) -> list[bytes | None] | None:
        """The bytes of each token id; None if they were not stored."""
        path = self.folder / _VOCABULARY
        return read_vocabulary(path) if path.exists() else None

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, scores: TokenScores, *, text: Text, mask: np.uint64, sources: Sequence[Source]) -> None:
        """Put the scores of one text on disk; afterwards they are there whatever happens.

        `mask`: the labels that were wanted. Tokens that the file has beyond those (another task wanted them) stay.
        """
        if scores.scores.topk_logprobs.shape[1] != self.k:
            raise ValueError(f"the store keeps {self.k} candidates, not {scores.scores.topk_logprobs.shape[1]}")
        path = self._path(scores.key)
        try:
            with locked(self.folder):
                replace_file(path, self._encoded(scores, text, int(mask), sources))
        except OSError as error:
            raise write_error(error, path) from error

    def _encoded(self, scores: TokenScores, text: Text, mask: int, sources: Sequence[Source]) -> bytes:
        """The file of `scores`, joined with the one that is there: with its tokens that `mask` does not want."""
        stored = self._entry_or_none(scores.key)
        if stored is not None:
            sources = _joined(stored.sources, sources)
        if stored is not None and stored.mask | mask != mask:
            try:
                self._refuse_other_ids(scores.key, self.text(scores.key).ids, text.ids)
                scores, mask = _merged(scores, self.read(scores.key), np.uint64(mask)), mask | stored.mask
            except StoreError as error:  # what it had is lost, and must not be promised: it is scored again when wanted
                _log.warning("%s", error)
        sizes = len(scores.position), len(scores.labels_cut), scores.tokens_total
        return encode(scores, text, Entry(scores.key, self._run, _joined((), sources), mask, self.k, *sizes))

    def save_token_bytes(self, token_bytes: Callable[[], Sequence[bytes | None]]) -> None:
        """Store the bytes of each token id, once; `token_bytes()` gives those of ids 0, 1, … (None: not known)."""
        path = self.folder / _VOCABULARY
        try:
            if not path.exists():
                create_file(path, encode_vocabulary(token_bytes()))
        except OSError as error:
            raise write_error(error, path) from error

    # --- files --------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key of a score file")
        return self.folder / f"{key}.parquet"

    def _own(self, key: str, entry: Entry) -> Entry:
        if entry.key == key and entry.run == self._run:
            texts = self.run.texts if self.run else None
            return entry if texts is None else entry._replace(sources=texts[key])
        raise StoreError(
            f"{self._path(key)} is not of the run that {self.folder / 'run.json'} describes: it was renamed, "
            "or copied here from another folder. Remove it, and score again if its trajectory is wanted."
        )

    def _refuse_other_ids(self, key: str, old: npt.NDArray[np.int32], new: npt.NDArray[np.int32] | None) -> None:
        if new is None or np.array_equal(old, new):
            return
        shared = min(len(old), len(new))
        first = next((i for i in range(shared) if old[i] != new[i]), shared)
        raise SettingsError(
            f"{self._path(key)} has scores of the same text in other tokens ({len(old)} then, {len(new)} now; the "
            f"first to differ is number {first}): the tokenizer changed, and two tokenisations must not be mixed. Go "
            'back to the tokenizer of then, or name another folder with "scores": "FOLDER" in --metadata.'
        )

    def _entry_or_none(self, key: str) -> Entry | None:
        """None for a file that is not there, and for a damaged one, after a warning."""
        if key not in self:
            return None
        try:
            return self.entry(key)
        except StoreError as error:
            _log.warning("%s", error)
            return None


def _joined(old: Sequence[Source], new: Sequence[Source]) -> tuple[Source, ...]:
    """By id, the newer word on a trajectory wins."""
    return tuple(sorted({source.id: source for source in (*old, *new)}.values(), key=lambda source: source.id))


def _merged(new: TokenScores, old: TokenScores, mask: np.uint64) -> TokenScores:
    """`new` and those tokens of `old` that `mask`, which `new` was scored for, does not want."""
    extra = ~old.selected(mask)
    order = np.argsort(np.concatenate([new.position, old.position[extra]]), kind="stable")

    def both(name: str, a: Any, b: Any) -> npt.NDArray[Any]:
        left, right = getattr(a, name), getattr(b, name)
        return np.concatenate([left, right[extra]])[order]

    names = ("position", "token_id", "turn", "label", "char_start", "char_end")
    return TokenScores(
        key=new.key,
        **{name: both(name, new, old) for name in names},
        scores=SequenceScores.concat([new.scores, old.scores.take(extra)]).take(order),
        tokens_total=new.tokens_total,
        labels_cut=np.concatenate([new.labels_cut, old.labels_cut[(old.labels_cut & mask) == 0]]),
        run=new.run,
    )


# --- as a cache: what it has is not scored again, what is new is written at once --------------------------------------


class ScoreCache:
    """The score files of one run, as `iterate_scores` uses them. `render` and `wanted` describe the requests."""

    def __init__(
        self, folder: Path, *, named: bool, render: str, wanted: Sequence[Wanted], filters: Sequence[str], labels: str
    ) -> None:
        self._folder, self._named, self._render, self._wanted = folder, named, render, list(wanted)
        self._filters, self._labels = filters, labels
        self._sources: dict[str, list[Source]] = defaultdict(list)
        for document in wanted:
            if document.source not in self._sources[document.key]:
                self._sources[document.key].append(document.source)
        self._store: ScoreStore | None = None

    @classmethod
    def of(
        cls, requests: Sequence[tuple[str | None, str, Wanted]], output_path: Path | None, **labelling: Any
    ) -> ScoreCache | None:
        """The cache for a run; None if no scores are to be kept.

        Args:
            requests: of each the `scores` setting, the rendering and the document.
            output_path: lm-eval's.
            labelling: `filters`, all there are, and `labels`, their version.
        """
        folders = {scores_dir(setting, output_path) for setting, _, _ in requests}
        if len(folders) > 1:
            raise SettingsError('tasks of one run must share one "scores" folder; give it once, in --metadata')
        place = next(iter(folders), None)
        if place is None:
            return None
        if not place[1] and not _can_write():
            _log.warning("no score files are kept: they need pyarrow (pip install 'hesnr-tasks[report]')")
            return None
        folder, named = place
        render = "+".join(sorted({rendering for _, rendering, _ in requests}))
        return cls(folder, named=named, render=render, wanted=[document for _, _, document in requests], **labelling)

    def open(
        self, run: Mapping[str, Any], k: int, overflow: str, gather: Callable[[list[Any]], list[Any]], first: bool
    ) -> int:
        """Open the files of this run and write down which texts it is about.

        A folder the user named refuses other settings; in lm-eval's output folder each model and setting has its own.

        Args:
            run: identity of the model and the tokenizer.
            k: candidates a token that are wanted.
            overflow: the policy beyond the context.
            gather: joins the lists of all processes among which the documents are split.
            first: whether this process writes for all of them.

        Returns:
            The number of candidates to score with: k, or more if the files have more.
        """
        signature = scoring_signature(run, render=self._render, overflow=overflow, k=k, filters=self._filters)
        folder = self._folder if self._named else _run_folder(self._folder, signature)
        self._store = ScoreStore.open(folder, signature)
        wanted = gather(self._wanted)
        if first:
            _log.info("score files: %s", folder)
            add_run(folder, wanted, self._labels)
        return max(k, self._store.k)

    @property
    def store(self) -> ScoreStore:
        """The open store."""
        assert self._store is not None
        return self._store

    def get(self, request: ScoringRequest, ids: npt.NDArray[np.int32]) -> TokenScores | None:
        """The scores of a request, if all it wants is there; `SettingsError` if its text had other token ids then."""
        scores = self.store.get(request.key, request.scored, request.k, self._sources[request.key], ids)
        if scores is None or not request.full_vocabulary:
            return scores
        wanted = scores.scores.take(scores.selected(request.scored)).padded()
        return None if any(np.isnan(getattr(wanted, name)).any() for name in OPTIONAL) else scores

    def put(self, scores: TokenScores, request: ScoringRequest, rendered: Rendered, ids: npt.NDArray[np.int32]) -> None:
        """Write the scores of a request; afterwards they are there whatever happens. `ids`: all ids of the text."""
        sources = self._sources[request.key]
        self.store.write(scores, text=Text(rendered, ids), mask=request.scored, sources=sources)


def keeps_scores(setting: str | None, output_path: Path | None) -> bool:
    """Whether a run with this `scores` setting writes score files."""
    place = scores_dir(setting, output_path)
    return place is not None and (place[1] or _can_write())


def _can_write() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def scores_dir(setting: str | None, output_path: Path | None) -> tuple[Path, bool] | None:
    """The folder for score files and whether the user named it; None: none are kept.

    Without a setting they go next to lm-eval's results.
    """
    if setting == "none":
        return None
    if setting:
        return Path(setting), True
    if output_path is None:
        return None
    return (output_path.parent if output_path.suffix == ".json" else output_path) / "scores", False


def _run_folder(scores: Path, signature: Mapping[str, Any]) -> Path:
    """The folder of a run: a name people recognise, and a hash that keeps runs with different settings apart.

    Neither k (a run with more candidates serves one with fewer) nor the place of a model with a weights hash counts,
    nor what a server made of the canary: one that changed its weights must not be given a new folder in silence. So a
    folder with the hash is the run's, whatever its name.
    """
    run = dict(signature["run"])
    model = run.pop("model", "model")
    run.pop("canary", None)
    if not run.get("weights"):
        run["model"] = model
    identity = {**signature, "k": None, "run": run}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    before = sorted(path.parent for path in scores.glob(f"*-{digest}/run.json"))
    name = re.sub(r"[^0-9A-Za-z._-]+", "-", checkpoint_name(signature["run"])).strip("-")[-80:]
    return before[0] if before else scores / f"{name}-{digest}"
