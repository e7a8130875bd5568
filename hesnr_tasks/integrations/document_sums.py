"""Every document of a corpus under one checkpoint, streaming: sums only, in Parquet parts that a kill cannot harm.

Documents are read, tokenised and scored in windows, so that memory does not grow with the corpus (but for its ids,
which must be unique). A part is named by model, settings and what its window holds: a run that starts again scores
only what has no part, and its numbers are those of a run that was never stopped.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from hesnr_tasks.analysis.weights import COLUMNS, METADATA, Tables
from hesnr_tasks.backends import (
    TokenisedRequest,
    backend_for,
    describe_run,
    refuse_non_finite,
    tokenise,
)
from hesnr_tasks.backends.base import Backend
from hesnr_tasks.errors import DataError, HesnrError, ScoringError
from hesnr_tasks.files.atomic import remove_abandoned, replace_file
from hesnr_tasks.filters import FILTERS, labelled
from hesnr_tasks.formats import ReadReport, read_by_source, trajectory_identity
from hesnr_tasks.formats.base import uncompressed
from hesnr_tasks.metrics import TokenColumns, TrajectorySums, token_bytes
from hesnr_tasks.scores.base import ScoringRequest, SequenceScores
from hesnr_tasks.tasks.settings import TaskSettings, choices, native_template
from hesnr_tasks.trajectory import Trajectory
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import label_mask, render

MOST_DOCUMENTS, MOST_CHARACTERS = 512, 1 << 22  # of a window: what a kill can cost, and what is held
_METRICS = ("he_snr", "ppl", "density", "he_tokens", "tokens")


class Document(NamedTuple):
    """One document of the stream."""

    row: int
    source: str
    trajectory: Trajectory
    identity: str  # of its text


def score_corpus(
    sources: Sequence[str],
    settings: TaskSettings,
    model: Callable[[], Any],
    folder: Path,
    report: ReadReport,
    progress: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Tables:
    """Score a corpus into the parts of a table, or those of its windows that have none yet of this model and settings.

    `progress` is called with numbers of documents and of tokens read by the model.

    Raises:
        DataError: there is no document, or records cannot be read.
        ScoringError: a number cannot be computed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            remove_abandoned(folder)
            scorer = _Scorer(backend_for(model()), settings)
            signature = json.dumps(scorer.signature())
            fields = [(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
            schema, paths = pa.schema(fields, metadata={METADATA: signature.encode()}), []
            for number, window in enumerate(_windows(_documents(sources, settings, report))):
                path = folder / f"{number:08d}-{_content(signature, window)}.parquet"
                if not path.exists():
                    rows, out = scorer.rows(window, lambda tokens: progress(0, tokens)), io.BytesIO()
                    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out, compression="zstd")
                    replace_file(path, out.getvalue())
                progress(len(window), 0)
                paths.append(path)
    except Timeout:
        raise HesnrError(f"{folder} is written by another process; wait for it, or name another output") from None
    finally:
        gc.collect()  # a second checkpoint may follow
    if not paths:
        raise DataError(f"there is no document in {', '.join(sources)}")
    return Tables.open(paths)


# --- documents --------------------------------------------------------------------------------------------------------


def _documents(sources: Sequence[str], settings: TaskSettings, report: ReadReport) -> Iterator[Document]:
    read = read_by_source(
        sources, config=settings.config, split=settings.split, on_error=settings.on_error, report=report
    )
    for row, (path, trajectory) in enumerate(read):
        if settings.limit is not None and row >= settings.limit:
            return
        stem = PurePath(uncompressed(path)).stem
        source = str(trajectory.meta.get("document_source") or stem)
        yield Document(row, source, trajectory, trajectory_identity(trajectory))


def _windows(documents: Iterator[Document]) -> Iterator[list[Document]]:
    window, size = list[Document](), 0
    for document in documents:
        length = sum(len(message.text) for message in document.trajectory.messages)
        if window and (len(window) == MOST_DOCUMENTS or size + length > MOST_CHARACTERS):
            yield window
            window, size = [], 0
        window.append(document)
        size += length
    if window:
        yield window


def _content(signature: str, window: Sequence[Document]) -> str:
    """Hash of what a part is made from."""
    parts = [signature, *(f"{item.row}\n{item.source}\n{item.trajectory.id}\n{item.identity}\n" for item in window)]
    return hashlib.sha256("".join(parts).encode(errors="surrogatepass")).hexdigest()[:16]


# --- numbers ----------------------------------------------------------------------------------------------------------


class _Scorer:
    """One checkpoint, and the settings."""

    def __init__(self, backend: Backend, settings: TaskSettings) -> None:
        self._backend, self._settings = backend, settings
        self._encoder = Encoder(backend.tokenizer, backend.bos)
        self._mask = label_mask(settings.kinds, settings.filters, tuple(FILTERS))
        self._native = native_template(backend.tokenizer, settings) if settings.render == "native" else None

    def signature(self) -> dict[str, Any]:
        """Every choice behind the numbers of a document."""
        settings = self._settings
        return {
            **choices(settings, settings.render),
            "native": [settings.thoughts, settings.template_kwargs, settings.calls] if self._native else None,
            "run": describe_run(self._backend, self._encoder),
        }

    def rows(self, window: Sequence[Document], progress: Callable[[int], None]) -> list[dict[str, Any]]:
        """The documents of a window, scored, in order."""
        texts = [self._tokenised(document.trajectory) for document in window]
        lost, characters = sum(t.lost for t in texts), sum(t.characters for t in texts)
        if lost > 0.05 * characters:
            raise ScoringError(
                f"the tokenizer {type(self._backend.tokenizer).__name__} cannot represent {lost} of {characters} "
                f"characters near document {window[0].trajectory.id!r}; check that it belongs to the model"
            )
        rows: list[dict[str, Any]] = [{}] * len(texts)
        sequences = [text.sequence(self._backend.max_length) for text in texts]
        for index, scores in self._backend.score(sequences, self._settings.k, progress):
            refuse_non_finite(sequences[index], scores)
            rows[index] = self._row(window[index], texts[index], scores)
        return rows

    def _tokenised(self, trajectory: Trajectory) -> TokenisedRequest:
        settings = self._settings
        rendered = labelled(render(trajectory, settings.render, self._native))
        key, size = rendered.key[:32], len(rendered.text)
        request = ScoringRequest(trajectory.id, lambda: rendered, self._mask, settings.k, settings.overflow, key, size)
        text = tokenise(request, self._encoder, self._backend.max_length)
        return text._replace(n_fitting=0) if text.n_truncated and settings.overflow == "skip" else text

    def _row(self, document: Document, text: TokenisedRequest, scores: SequenceScores) -> dict[str, Any]:
        encoded, targets = text.encoded, text.targets[: text.n_fitting]
        n_bytes = token_bytes(text.rendered.text, encoded.start[targets], encoded.end[targets])
        columns = TokenColumns.of(scores.logprob, scores.rank, scores.topk_logprobs, self._settings.k, n_bytes)
        sums = TrajectorySums.of(columns, self._settings.epsilon, self._settings.k, _METRICS)

        def mean(metric: str) -> float | None:
            numerator, denominator = (float(part[0]) for part in sums.parts(metric))
            return numerator / denominator if denominator else None

        return {
            "row": document.row,
            "id": document.trajectory.id,
            "source": document.source,
            "key": text.key,
            "tokens": len(columns),
            "bytes": int(n_bytes.sum()),
            "tokens_cut": len(text.targets) - text.n_fitting,
            "he_tokens": int(sums.column("he_tokens")[0]),
            "he_snr": mean("he_snr"),
            "density": mean("density"),
            "loss": mean("ppl"),
        }
