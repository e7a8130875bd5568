"""Sampling weights for training data: sums of every document under one checkpoint, and weights made of them.

A table is a Parquet file, or the parts of one that is being written, in the order of the corpus. It is read in batches,
twice: once for the column that weights grow with (a few numbers a document are held), once to write what is added. No
model is needed here.

Documents are read, tokenised and scored in windows, so that memory does not grow with the corpus (but for its ids,
which must be unique). A part is named by model, settings and what its window holds: a run that starts again scores
only what has no part, and its numbers are those of a run that was never stopped.
"""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.analysis.tables import text_table
from hesnr_tasks.backends import backend_for, describe_run, refuse_non_finite, tokenise
from hesnr_tasks.backends.base import Backend, TokenSequence
from hesnr_tasks.errors import DataError, HesnrError, ScoringError, SettingsError, nearest
from hesnr_tasks.files.atomic import open_output, remove_abandoned, replace_file
from hesnr_tasks.files.bounded import READ_ERRORS, check_parquet
from hesnr_tasks.filters import FILTERS, labelled
from hesnr_tasks.formats import ReadReport, read_by_source, trajectory_identity
from hesnr_tasks.formats.base import uncompressed
from hesnr_tasks.metrics import MIN_TOKENS, TokenColumns, TrajectorySums, token_bytes
from hesnr_tasks.scores.schema import ScoringRequest, SequenceScores, TokenScores
from hesnr_tasks.tasks.settings import TaskSettings, choices, native_template
from hesnr_tasks.trajectory import Trajectory
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import label_mask, render

FloatArray = npt.NDArray[np.float64]
VALUES = ("he_snr", "density", "loss")  # loss: mean negative log-likelihood, nats a token
BY = (*VALUES, *(f"{name}_change" for name in VALUES))
COLUMNS = {
    **dict.fromkeys(("row", "tokens", "bytes", "tokens_cut", "he_tokens"), "int64"),
    **dict.fromkeys(("id", "source", "key"), "string"),  # key: hash of the labelled text
    **dict.fromkeys(VALUES, "float64"),
}
"""What a document has; `row` counts from 0 in the order of the corpus. Values over no token are null."""
METADATA = b"hesnr_weights"
_BATCH = 1 << 16
_MAY_DIFFER = ("run", "hesnr_tasks")  # between two checkpoints; of `run`, the tokenizer and the context may not
_SAME_IN_RUN = ("tokenizer", "bos", "max_length")


@dataclass(frozen=True)
class Sampling:
    """How values become weights.

    Attributes:
        by: one of `BY`.
        prefer: "high" or "low" values; of low ones, 0 counts as the smallest value above it.
        temperature: weights grow with value ** (1 / temperature), those of a change, which has a sign, with
            exp(change / (sd * temperature)); large: uniform.
        floor: the share of all samples that is drawn uniformly.
        quotas: shares of sources; the others keep their proportions in what is left.
        min_tokens: a value over fewer tokens is undefined: only `floor` reaches that document.
    """

    by: str = "density"
    prefer: str = "high"
    temperature: float = 1.0
    floor: float = 0.0
    quotas: Mapping[str, float] = field(default_factory=dict)
    min_tokens: int = MIN_TOKENS

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise SettingsError(f"--by {self.by!r} must be one of {', '.join(BY)}.{nearest(self.by, BY)}")
        if not 0 < self.temperature < math.inf:
            raise SettingsError(f"--temperature must be above 0, not {self.temperature}; large values are uniform")
        if not 0 <= self.floor <= 1:
            raise SettingsError(f"--floor is a share of the samples, 0 to 1, not {self.floor}")
        shares = self.quotas.values()
        if not all(0 <= share <= 1 for share in shares) or math.fsum(shares) > 1 + 1e-9:
            raise SettingsError(f"--quota gives shares of 0 to 1 that sum to at most 1; here {math.fsum(shares):g}")


class Tables(NamedTuple):
    """The files of one table, in order."""

    paths: tuple[Path, ...]
    signature: Mapping[str, Any]  # every choice behind the values
    columns: tuple[str, ...]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Tables:
        """Raises `DataError` for what `hesnr weights` has not written."""
        import pyarrow.parquet as pq

        if not paths[0].is_file():
            raise DataError(f"{paths[0]}: no such file. Name a table of hesnr weights, or a corpus and --model CKPT.")
        try:
            with pq.ParquetFile(paths[0]) as file:
                check_parquet(file.metadata, paths[0].stat().st_size)
                schema = file.schema_arrow
        except READ_ERRORS as error:
            raise DataError(f"{paths[0]} is no readable Parquet file ({error})") from None
        text = (schema.metadata or {}).get(METADATA)
        lacking = [name for name in COLUMNS if name not in schema.names]
        if text is None or lacking:
            raise DataError(
                f"{paths[0]} was not written by `hesnr weights`. To score a corpus, name a checkpoint with --model; "
                "without one, give tables that were scored before."
            )
        return cls(tuple(paths), json.loads(text), tuple(schema.names))

    def batches(self) -> Iterator[Any]:
        """`pyarrow.Table`s of `_BATCH` rows each but for the last, without weights."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = [name for name in self.columns if name != "weight"]
        held: Any = None
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH, columns=wanted):
                    table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                    held = table if held is None else pa.concat_tables([held, table])
                    while held.num_rows >= _BATCH:
                        yield held.slice(0, _BATCH)
                        held = held.slice(_BATCH)
        if held is not None and held.num_rows:
            yield held


# --- values -----------------------------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """What was read, by source; all arrays have shape (sources,)."""

    sources: tuple[str, ...]
    documents: npt.NDArray[np.int64]
    totals: Mapping[str, FloatArray]  # by column: counts, and means pooled over tokens
    weight: FloatArray
    undefined: int  # documents without a value to weigh them by
    effective: float  # documents: 1 / the sum of squared weights

    def lines(self, by: str) -> list[str]:
        """For people."""
        names = [name for name in ("tokens", *BY) if name in self.totals]
        rows = []
        for i, source in enumerate(self.sources):
            cells = [f"{self.totals[name][i]:,.{0 if name == 'tokens' else 4}f}" for name in names]
            rows.append([source[:24], f"{self.documents[i]:,}", *cells, f"{self.weight[i]:.4f}"])
        lines = text_table("", ["source", "documents", *names, "weight"], rows, wide=True).splitlines()
        n = int(self.documents.sum())
        lines.append(f"{n:,} documents; the weights are worth {self.effective:,.0f} equally likely ones")
        if self.undefined:
            lines.append(f"{self.undefined:,} have no {by} (too few tokens that count): only --floor gives them weight")
        if cut := int(self.totals["tokens_cut"].sum()):
            lines.append(f"{cut:,} tokens that count lie beyond the context and are not in these numbers")
        return lines


def write_weights(output: Path, first: Tables, second: Tables | None, sampling: Sampling) -> Summary:
    """Write a table with the column `weight`, which sums to 1, and, of two checkpoints, with what changed.

    Args:
        output: Parquet; it may be one of the inputs.
        first: of the checkpoint whose values the table has.
        second: of the same documents: adds `he_snr_second` … and `he_snr_change` … (second minus first).
        sampling: see there.

    Raises:
        SettingsError, DataError: the tables are of different documents or settings, or no weights can be made.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if second is not None:
        _check_comparable(first, second)
    elif sampling.by not in first.columns:
        raise SettingsError(f"--by {sampling.by} needs two checkpoints: add --compare CKPT, or a second table")
    values, codes, sources, totals = _columns(first, second, sampling)
    weights = sampling_weights(values, codes, sources, sampling)
    signature = {**first.signature, "weights": {**vars(sampling), "quotas": dict(sampling.quotas)}}
    if second is not None:
        signature["second"] = second.signature
    with open_output(output) as file:
        writer, start = None, 0
        for table in _joined(first, second):
            part = table.append_column("weight", pa.array(weights[start : start + table.num_rows]))
            part = part.replace_schema_metadata({METADATA: json.dumps(signature)})
            writer = writer or pq.ParquetWriter(file, part.schema, compression="zstd")
            writer.write_table(part)
            start += table.num_rows
        if writer is not None:
            writer.close()
    n = len(sources)
    return Summary(
        sources, np.bincount(codes, minlength=n), totals, np.bincount(codes, weights, n).astype(np.float64),
        int(np.isnan(values).sum()), float(1 / np.square(weights).sum()),
    )  # fmt: skip


def _check_comparable(first: Tables, second: Tables) -> None:
    """Refuse a change between numbers that were made differently."""
    for tables in (first, second):
        if "he_snr_change" in tables.columns:
            raise SettingsError(
                f"{tables.paths[0]} holds two checkpoints already. Give it alone, or tables of one checkpoint each."
            )
    left, right = (
        {n: v for n, v in tables.signature.items() if n not in (*_MAY_DIFFER, "weights")}
        | {n: tables.signature["run"].get(n) for n in _SAME_IN_RUN}
        for tables in (first, second)
    )
    differing = [name for name in left if left[name] != right.get(name)]
    if differing:
        raise SettingsError(
            f"the two checkpoints were not scored alike: {', '.join(differing)} differ"
            + (", and values per token of two tokenizers are not comparable." if "tokenizer" in differing else ".")
            + " Score both with the same settings."
        )


def _joined(first: Tables, second: Tables | None) -> Iterator[Any]:
    """The batches of `first`, with the columns of `second` and the changes."""
    import pyarrow.compute as pc

    if second is None:
        yield from first.batches()
        return
    others = second.batches()
    for table in first.batches():
        other = next(others, None)
        if other is None or not all(table[name].equals(other[name]) for name in ("id", "key")):
            raise DataError(_difference(table, other))
        for name in ("he_tokens", *VALUES):
            table = table.append_column(f"{name}_second", other[name])
        for name in VALUES:
            table = table.append_column(f"{name}_change", pc.subtract(other[name], table[name]))
        yield table
    if next(others, None) is not None:
        raise DataError("the second table has more documents than the first. Score both on the same corpus.")


def _difference(table: Any, other: Any) -> str:
    """Where two tables part, for people."""
    advice = "Score both checkpoints on the same corpus."
    for i in range(min(table.num_rows, other.num_rows) if other is not None else 0):
        names = [side["id"][i].as_py() for side in (table, other)]
        if names[0] != names[1] or table["key"][i] != other["key"][i]:
            row = table["row"][i].as_py()
            return f"row {row} is {names[0]!r} in one table; in the other {names[1]!r}, or another text. {advice}"
    return f"the two tables have different numbers of documents. {advice}"


def _columns(
    first: Tables, second: Tables | None, sampling: Sampling
) -> tuple[FloatArray, npt.NDArray[np.int64], tuple[str, ...], dict[str, FloatArray]]:
    """One pass: the values to weigh by (NaN: undefined), the index of each source, the sources, and their totals."""
    values, codes, sources = list[FloatArray](), list[npt.NDArray[np.int64]](), dict[str, int]()
    counts = ("tokens", "tokens_cut", "he_tokens", "he_tokens_second")
    sums = dict[str, FloatArray]()
    by = sampling.by.removesuffix("_change")
    for table in _joined(first, second):
        column = {
            name: table[name].to_numpy().astype(np.float64)
            for name in (*counts, *VALUES, *(f"{name}_second" for name in VALUES), *BY[len(VALUES) :])
            if name in table.column_names
        }
        encoded = table["source"].combine_chunks().dictionary_encode()
        index = np.array([sources.setdefault(s, len(sources)) for s in encoded.dictionary.to_pylist()], dtype=np.int64)
        code = index[encoded.indices.to_numpy()]
        over = ["he_tokens"] if by == "he_snr" else ["tokens"]
        if by == "he_snr" and sampling.by.endswith("_change"):
            over.append("he_tokens_second")
        enough = np.all([column[name] >= max(1, sampling.min_tokens) for name in over], axis=0)
        values.append(np.where(enough, column[sampling.by], np.nan))
        codes.append(code)
        for name in column:
            if name.endswith("_change"):
                continue
            term = column[name]
            if name not in counts:
                kind, suffix = (name[:-7], "_second") if name.endswith("_second") else (name, "")
                term = np.nan_to_num(term) * column[f"he_tokens{suffix}" if kind == "he_snr" else "tokens"]
            before = sums.get(name, np.zeros(0))
            sums[name] = np.pad(before, (0, len(sources) - len(before))) + np.bincount(code, term, len(sources))
    if not values:
        raise DataError("the table holds no document")
    with np.errstate(invalid="ignore"):
        totals = {name: sums[name] for name in counts if name in sums}
        for name in [name for name in sums if name not in counts]:
            kind, suffix = (name[:-7], "_second") if name.endswith("_second") else (name, "")
            totals[name] = sums[name] / sums[f"he_tokens{suffix}" if kind == "he_snr" else "tokens"]
    totals |= {f"{n}_change": totals[f"{n}_second"] - totals[n] for n in VALUES if f"{n}_second" in totals}
    return np.concatenate(values), np.concatenate(codes), tuple(sources), totals


# --- weights ----------------------------------------------------------------------------------------------------------


def sampling_weights(
    values: FloatArray, codes: npt.NDArray[np.int64], sources: Sequence[str], sampling: Sampling
) -> FloatArray:
    """The probability of each document in one draw; sums to 1.

    Args:
        values: shape (documents,), NaN where undefined.
        codes: shape (documents,), the index of each document's source in `sources`.
        sources: their names.
        sampling: see there.

    Raises:
        SettingsError: a quota for a source that is not there, or that nothing could fill.
    """
    n, sign = len(values), 1.0 if sampling.prefer == "high" else -1.0
    defined = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        if sampling.by.endswith("_change"):
            spread = float(np.std(values[defined])) if defined.any() else 0.0
            logits = values / spread if spread > 0 else np.where(defined, 0.0, np.nan)
        else:
            positive = values[values > 0]
            if sign < 0 and positive.size:  # the lowest value of all is preferred too, but not without bound
                values = np.maximum(values, positive.min())
            logits = np.log(values)
    logits = sign * logits / sampling.temperature
    usable = np.isfinite(logits)
    if not usable.any() and sampling.floor < 1:
        raise SettingsError(
            f"no weights can be made: {sampling.by} is 0 or undefined for all {n:,} documents (a value over fewer than "
            f"{sampling.min_tokens} tokens is; --min-tokens changes that)"
        )
    weights = np.zeros(n)
    if usable.any():
        weights[usable] = np.exp(logits[usable] - logits[usable].max())
        weights *= (1 - sampling.floor) / math.fsum(weights)
    weights += sampling.floor / n
    unknown = next((name for name in sampling.quotas if name not in sources), None)
    if unknown is not None:
        raise SettingsError(
            f"--quota {unknown}=…: no document has this source.{nearest(unknown, sources)} There are "
            f"{', '.join(map(repr, sources[:10]))}{', …' if len(sources) > 10 else ''}"
        )
    if sampling.quotas:
        mass = np.bincount(codes, weights, len(sources))
        quota = np.array([sampling.quotas.get(name, np.nan) for name in sources])
        free = np.isnan(quota)
        rest = 1 - math.fsum(sampling.quotas.values())
        if free.any() and mass[free].sum() > 0:
            quota[free] = max(rest, 0.0) * mass[free] / mass[free].sum()
        elif rest > 1e-9:
            raise SettingsError(f"--quota gives {1 - rest:g} of the samples, and no other source can fill the rest")
        empty = [name for name, q, m in zip(sources, quota, mass, strict=True) if q > 0 and m == 0]
        if empty:
            raise SettingsError(
                f"--quota {empty[0]}=…: {sampling.by} is 0 or undefined for all its documents; add --floor SHARE"
            )
        weights *= np.divide(quota, mass, out=np.zeros(len(sources)), where=mass > 0)[codes]
    return weights / math.fsum(weights)


# --- sums of every document of a corpus, streaming, in Parquet parts that a kill cannot harm --------------------------

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
                made_from = [signature, *(f"{d.row}\n{d.source}\n{d.trajectory.id}\n{d.identity}\n" for d in window)]
                digest = hashlib.sha256("".join(made_from).encode(errors="surrogatepass")).hexdigest()[:16]
                path = folder / f"{number:08d}-{digest}.parquet"
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
    options: dict[str, Any] = {"config": settings.config, "split": settings.split, "on_error": settings.on_error}
    read = read_by_source(sources, **options, report=report)
    for row, (path, trajectory) in enumerate(itertools.islice(read, settings.limit)):
        source = str(trajectory.meta.get("document_source") or PurePath(uncompressed(path)).stem)
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
        settings, encoder, backend = self._settings, self._encoder, self._backend
        texts: list[tuple[TokenScores, FloatArray]] = []  # the tokens that count, and their bytes
        sequences, lost, characters = [], 0, 0
        for document in window:
            request = self._request(document.trajectory)
            text, encoded, tokens = tokenise(request, encoder, backend.max_length)
            skipped = settings.overflow == "skip" and len(tokens.labels_cut) > 0
            targets = tokens.position[:0] if skipped else tokens.position
            sequences.append(TokenSequence.of(request, encoded.ids, targets, backend.max_length))
            texts.append((tokens, token_bytes(text.text, tokens.char_start, tokens.char_end)[: len(targets)]))
            lost, characters = lost + encoded.lost, characters + request.characters
        if lost > 0.05 * characters:
            raise ScoringError(
                f"the tokenizer {type(backend.tokenizer).__name__} cannot represent {lost} of {characters} "
                f"characters near document {window[0].trajectory.id!r}; check that it belongs to the model"
            )
        rows: list[dict[str, Any]] = [{}] * len(texts)
        for index, scores in backend.score(sequences, settings.k, progress):
            refuse_non_finite(sequences[index], scores)
            rows[index] = self._row(window[index], *texts[index], scores)
        return rows

    def _request(self, trajectory: Trajectory) -> ScoringRequest:
        settings = self._settings
        rendered = labelled(render(trajectory, settings.render, self._native))
        key, size = rendered.key[:32], len(rendered.text)
        return ScoringRequest(trajectory.id, lambda: rendered, self._mask, settings.k, settings.overflow, key, size)

    def _row(
        self, document: Document, tokens: TokenScores, n_bytes: FloatArray, scores: SequenceScores
    ) -> dict[str, Any]:
        columns = TokenColumns.of(scores.logprob, scores.rank, scores.topk_logprobs, self._settings.k, n_bytes)
        sums = TrajectorySums.of(columns, self._settings.epsilon, self._settings.k, _METRICS)

        def mean(metric: str) -> float | None:
            numerator, denominator = (float(part[0]) for part in sums.parts(metric))
            return numerator / denominator if denominator else None

        return {
            "row": document.row,
            "id": document.trajectory.id,
            "source": document.source,
            "key": tokens.key,
            "tokens": len(columns),
            "bytes": int(n_bytes.sum()),
            "tokens_cut": len(tokens.position) + len(tokens.labels_cut) - len(columns),
            "he_tokens": int(sums.column("he_tokens")[0]),
            "he_snr": mean("he_snr"),
            "density": mean("density"),
            "loss": mean("ppl"),
        }
