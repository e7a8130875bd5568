"""The score files of a scoring run as a cache: what they have is not scored again, what is new is written at once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks.backends.base import ScoringRequest, TokenScores
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.filters import FILTERS, LABELS_VERSION
from hesnr_tasks.scores import ScoreStore, Source, Text, Wanted, scoring_signature
from hesnr_tasks.scores.runs import add_run, checkpoint_name
from hesnr_tasks.scores.schema import OPTIONAL
from hesnr_tasks.trajectory.rendering import Rendered

__all__ = ["ScoreCache", "keeps_scores", "scores_dir"]

_log = logging.getLogger("hesnr_tasks")


class ScoreCache:
    """The score files of one run, as `score_requests` uses them. `render` and `wanted` describe the requests."""

    def __init__(self, folder: Path, *, named: bool, render: str, wanted: Sequence[Wanted]) -> None:
        self._folder, self._named, self._render, self._wanted = folder, named, render, list(wanted)
        self._sources: dict[str, list[Source]] = defaultdict(list)
        for document in wanted:
            if document.source not in self._sources[document.key]:
                self._sources[document.key].append(document.source)
        self._store: ScoreStore | None = None

    @classmethod
    def of(cls, requests: Sequence[tuple[str | None, str, Wanted]], output_path: Path | None) -> ScoreCache | None:
        """For requests' `scores` setting, rendering and document; None if no scores are to be kept."""
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
        return cls(folder, named=named, render=render, wanted=[document for _, _, document in requests])

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
        signature = scoring_signature(run, render=self._render, overflow=overflow, k=k, filters=tuple(FILTERS))
        folder = self._folder if self._named else _run_folder(self._folder, signature)
        self._store = ScoreStore.open(folder, signature)
        wanted = gather(self._wanted)
        if first:
            _log.info("score files: %s", folder)
            add_run(folder, wanted, LABELS_VERSION)
        return max(k, self._store.k)

    @property
    def store(self) -> ScoreStore:
        """The open store."""
        assert self._store is not None
        return self._store

    def get(self, request: ScoringRequest, ids: npt.NDArray[np.int32]) -> TokenScores | None:
        """The scores of a request, if all it wants is there; `StoreError` if its text had other token ids then."""
        scores = self.store.get(request.key, request.scored, request.k, self._sources[request.key], ids)
        if scores is None or not request.full_vocabulary:
            return scores
        wanted = scores.scores.take(scores.selected(request.scored)).padded()
        return None if any(np.isnan(getattr(wanted, name)).any() for name in OPTIONAL) else scores

    def put(self, scores: TokenScores, request: ScoringRequest, rendered: Rendered, ids: npt.NDArray[np.int32]) -> None:
        """Write the scores of a request; afterwards they are there whatever happens. `ids`: all ids of the text."""
        sources = self._sources[request.key]
        self.store.write(scores, text=Text(rendered, ids), mask=request.scored, sources=sources)

    def save_token_bytes(self, token_bytes: Callable[[], Sequence[bytes | None]]) -> None:
        """Save the bytes of each token id, once."""
        self.store.save_token_bytes(token_bytes)


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
