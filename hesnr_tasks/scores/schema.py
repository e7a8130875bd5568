"""What is asked of a text, what scoring it gives (log-probabilities in nats, ranks), and the score file that keeps it.

A score file has the columns below; the way from arrays to bytes and back loses no bit (docs/scores.md).
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, HesnrError
from hesnr_tasks.files.bounded import check_parquet, open_regular
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, Span

OVERFLOW = ("right", "error", "skip")
_NO_LABELS = np.uint64(0)


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One text and the tokens of it that a task wants. Requests with equal keys are scored in one forward pass."""

    name: str  # trajectory id, for messages
    read: Callable[[], Rendered]  # the labelled text, which need not be in memory: there can be tens of thousands
    mask: np.uint64  # labels that the task wants (rendering.label_mask)
    k: int
    overflow: str  # beyond the context: "right" (score what fits), "error", "skip" (the task leaves the text out)
    key: str  # hash of the labelled text
    characters: int  # of the text
    extra_mask: np.uint64 = _NO_LABELS  # further labels to score, for later tasks; never reported as truncated
    full_vocabulary: bool = False  # whether to compute `full_entropy` and `expected_rank`, where the backend can
    window: int | None = None  # tokens of context of the short-context pass, see `hidden_tokens`; None: all there are

    @property
    def scored(self) -> np.uint64:
        """Labels whose tokens are scored."""
        return self.mask | self.extra_mask


class SequenceScores(NamedTuple):
    """Per target t: ln p(x_t | x_<t), rank, and the k most likely tokens, over the full vocabulary."""

    logprob: npt.NDArray[np.float32]  # (m,) nats
    rank: npt.NDArray[np.int32]  # (m,) 1 + tokens strictly more likely; -n: beyond the n most likely, not known
    topk_logprobs: npt.NDArray[np.float32]  # (m, k) nats, descending
    topk_ids: npt.NDArray[np.int32]  # (m, k)
    full_entropy: npt.NDArray[np.float32] | None = None  # (m,) nats, of the whole vocabulary; None, NaN: not known
    expected_rank: npt.NDArray[np.float32] | None = None  # (m,) sum of rank times probability; None, NaN: not known

    @classmethod
    def concat(cls, parts: Sequence[SequenceScores]) -> SequenceScores:
        """Scores of consecutive targets as one; what some of them lack is NaN there."""
        if all(column is None for part in parts for column in part[4:]):
            return cls(*(np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True)))
        return cls(*(np.concatenate(column) for column in zip(*(part.padded() for part in parts), strict=True)))

    def padded(self) -> SequenceScores:
        """With NaN in place of columns that are not known."""
        unknown = np.full(len(self.logprob), np.nan, np.float32)
        columns: Any = (unknown if column is None else column for column in self)
        return SequenceScores(*columns)

    def take(self, index: Any) -> SequenceScores:
        """The scores of some targets."""
        columns: Any = (None if column is None else column[index] for column in self)
        return SequenceScores(*columns)

    @classmethod
    def empty(cls, k: int) -> SequenceScores:
        """The scores of no targets."""
        flat, wide = np.zeros(0, np.float32), np.zeros((0, k), np.float32)
        return cls(flat, flat.astype(np.int32), wide, wide.astype(np.int32))


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The n scored tokens of one text, in the order of the text."""

    key: str  # ScoringRequest.key
    position: npt.NDArray[np.int32]  # (n,) index into the token ids (BOS included)
    token_id: npt.NDArray[np.int32]  # (n,)
    turn: npt.NDArray[np.int32]  # (n,)
    label: npt.NDArray[np.uint64]  # (n,) see rendering.py
    char_start: npt.NDArray[np.int32]  # (n,)
    char_end: npt.NDArray[np.int32]  # (n,)
    scores: SequenceScores
    tokens_total: int  # tokens of the full text
    labels_cut: npt.NDArray[np.uint64]  # (c,) labels of wanted tokens beyond the context limit, not scored
    run: Mapping[str, Any]  # Backend.describe() and how the text was tokenised

    def __str__(self) -> str:
        """Short: lm-eval writes this into its sample log."""
        return f"TokenScores({len(self.position)} of {self.tokens_total} tokens, text {self.key[:12]})"

    __repr__ = __str__

    def selected(self, mask: np.uint64) -> npt.NDArray[np.bool_]:
        """Which tokens `mask` (rendering.label_mask) selects; shape (n,)."""
        return (self.label & mask) != 0

    def count_cut(self, mask: np.uint64) -> int:
        """How many tokens that `mask` selects lie beyond the context."""
        return int(np.count_nonzero(self.labels_cut & mask))


def window_stride(window: int) -> int:
    """How many tokens a chunk of the short-context pass predicts: a quarter of the window, as in LongPPL."""
    return max(1, window // 4)


def hidden_tokens(position: npt.NDArray[np.integer], window: int, prefix: int) -> npt.NDArray[np.int64]:
    """How many tokens at the beginning of a text a short-context pass hides from each target.

    The truncated pass of LongPPL (arXiv 2410.23771; window 4 096, stride 1 024): the text is fed in chunks that begin
    at multiples of the stride, and each predicts the stride's tokens after its first `window`. So a target sees from
    `window` to window + stride - 1 tokens before it, or all where there are fewer.

    Args:
        position: of the targets in the token ids, BOS included.
        window: tokens of context.
        prefix: ids that the tokenizer puts before every text; they stay before every chunk.
    """
    stride = window_stride(window)
    return np.maximum(0, (position.astype(np.int64) - prefix - window) // stride) * stride


# --- the columns of a score file --------------------------------------------------------------------------------------

Array = npt.NDArray[Any]
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreError(HesnrError):
    """A folder of score files cannot be read or written."""


def write_error(error: OSError, path: Path) -> StoreError:
    """The error of a failed write, with what to do."""
    if error.errno in _DISK_FULL:
        return StoreError(
            f"no room to write {path} ({error.strerror}). What was scored before is safe in {path.parent}; free some "
            "space, or move the folder and name its new place, and start the same command again: it goes on there."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"cannot write {path} ({error.strerror}). Make the folder writable, or name another one with "
            '"scores": "FOLDER" in --metadata. What is in the folder stays as it is.'
        )
    return StoreError(f"cannot write {path} ({error.strerror or error}). What is in {path.parent} stays as it is.")


_PER_TOKEN = {  # one number a token: type and Parquet encoding, the smallest on real scores
    "position": (np.int32, "DELTA_BINARY_PACKED"),
    "token_id": (np.int32, "PLAIN"),
    "turn": (np.int32, "PLAIN"),
    "label": (np.uint64, "PLAIN"),
    "char_start": (np.int32, "DELTA_BINARY_PACKED"),
    "char_end": (np.int32, "DELTA_BINARY_PACKED"),
    "logprob": (np.float32, "BYTE_STREAM_SPLIT"),
    "rank": (np.int32, "PLAIN"),
    "full_entropy": (np.float32, "BYTE_STREAM_SPLIT"),
    "expected_rank": (np.float32, "BYTE_STREAM_SPLIT"),
}
OPTIONAL = ("full_entropy", "expected_rank")  # NaN where the backend or an older version did not know them
_PER_CANDIDATE = {"topk_logprobs": (np.float32, "BYTE_STREAM_SPLIT"), "topk_ids": (np.int32, "PLAIN")}  # k a token
_PER_TEXT = {  # one list a trajectory
    "text_ids": np.int32,
    "labels_cut": np.uint64,
    "span_end": np.int32,
    "span_kind": np.int8,
    "span_turn": np.int32,
    "span_control": np.bool_,
}
_TYPES: dict[str, Any] = {name: kind for name, (kind, _) in (_PER_TOKEN | _PER_CANDIDATE).items()}
_TYPES |= _PER_TEXT | {"text": np.uint8}
COLUMNS = (*_PER_TOKEN, *_PER_CANDIDATE)
_KINDS = tuple(Kind)
_META = b"hesnr"
_CHECKSUM = b"hesnr_vocabulary_crc32"
_LEVEL = 15  # of Zstandard: about 50 ms a trajectory, 3 % smaller than level 9


class Source(NamedTuple):
    """A trajectory that has the text. There can be several: two attempts of an agent may end in the same words."""

    id: str
    instance_id: str | None = None
    resolved: bool | None = None


class Entry(NamedTuple):
    """What a score file says in its footer."""

    key: str  # hash of the labelled text
    run: str  # hash of the run's signature
    sources: tuple[Source, ...]
    mask: int  # labels that were wanted when it was scored (rendering.py)
    k: int
    scored: int  # tokens, one row each
    cut: int  # wanted tokens beyond the context limit
    tokens_total: int  # tokens of the whole text


class Text(NamedTuple):
    """The text that was scored, with the kind and turn of its characters, and its token ids."""

    rendered: Rendered
    ids: npt.NDArray[np.int32]  # (tokens_total,)


def arrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`; only score files need them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise HesnrError(
            "score files need pyarrow, which is not installed. Install it with: pip install 'hesnr-tasks[report]'"
        ) from None
    return pyarrow, pyarrow.parquet


# --- writing ----------------------------------------------------------------------------------------------------------


def encode(scores: TokenScores, text: Text, entry: Entry) -> bytes:
    """The score file of one trajectory."""
    pa, pq = arrow()
    values = _arrays(scores, text)
    columns = {**_token_columns(pa, values, entry), **_text_columns(pa, values, entry)}
    table = pa.table(columns).replace_schema_metadata({_META: _footer(entry, values)})
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=False,
        column_encoding={name: encoding for name, (_, encoding) in _PER_TOKEN.items()}
        | {f"{name}.list.element": encoding for name, (_, encoding) in _PER_CANDIDATE.items()},
        write_statistics=False,
    )
    return out.getvalue()


def encode_vocabulary(token_bytes: Sequence[bytes | None]) -> bytes:
    """A file of what each token id spells."""
    pa, pq = arrow()
    out = io.BytesIO()
    check = {_CHECKSUM: f"{_vocabulary_checksum(token_bytes):08x}"}
    table = pa.table({"token": pa.array(token_bytes, pa.binary())}).replace_schema_metadata(check)
    pq.write_table(table, out, compression="zstd", use_dictionary=False)
    return out.getvalue()


def _vocabulary_checksum(token_bytes: Sequence[bytes | None]) -> int:
    """Over lengths and bytes: Parquet itself does not notice every damage."""
    lengths = np.array([-1 if token is None else len(token) for token in token_bytes], "<i8")
    return zlib.crc32(b"".join(token or b"" for token in token_bytes), zlib.crc32(lengths.tobytes()))


def _arrays(scores: TokenScores, text: Text) -> dict[str, Array]:
    """Everything a file holds, as arrays of the types it holds them in."""
    spans = text.rendered.spans
    values = {
        **{name: getattr(scores, name) for name in _PER_TOKEN if name not in scores.scores._fields},
        **scores.scores.padded()._asdict(),
        "text": np.frombuffer(text.rendered.text.encode(), np.uint8),
        "text_ids": text.ids,
        "labels_cut": scores.labels_cut,
        "span_end": [span.end for span in spans],
        "span_kind": [_KINDS.index(span.kind) for span in spans],
        "span_turn": [span.turn for span in spans],
        "span_control": [span.control for span in spans],
    }
    return {name: _as_type(column, _TYPES[name]) for name, column in values.items()}


def _token_columns(pa: Any, values: Mapping[str, Array], entry: Entry) -> dict[str, Any]:
    """One row a token; a single row of nulls where no token was scored, to carry the text."""
    columns = {name: pa.array(values[name]) for name in _PER_TOKEN}
    for name in _PER_CANDIDATE:
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values[name].ravel()), entry.k)
    return columns if entry.scored else {name: pa.nulls(1, column.type) for name, column in columns.items()}


def _text_columns(pa: Any, values: Mapping[str, Array], entry: Entry) -> dict[str, Any]:
    """What the trajectory has once stands in the first row."""
    first = {"text": pa.array([values["text"].tobytes().decode()], pa.large_string())}
    for name in _PER_TEXT:
        first[name] = pa.ListArray.from_arrays(pa.array([0, len(values[name])], pa.int32()), pa.array(values[name]))
    rest = max(0, entry.scored - 1)
    return {name: pa.concat_arrays([cell, pa.nulls(rest, cell.type)]) for name, cell in first.items()}


def _footer(entry: Entry, values: Mapping[str, Array]) -> str:
    """The entry, a checksum of each column and one of all that: Parquet itself does not notice every damage."""
    content = json.dumps({**entry._asdict(), "checksums": {name: zlib.crc32(v.data) for name, v in values.items()}})
    return f"{zlib.crc32(content.encode()):08x} {content}"


def _as_type(values: Any, kind: Any) -> Array:
    """`values` as an array of `kind`; refuses to change any of them."""
    source = np.asarray(values) if len(values) else np.zeros(np.shape(values), kind)
    array = np.ascontiguousarray(source, dtype=kind)
    if source.dtype != array.dtype and not np.array_equal(source, array, equal_nan=source.dtype.kind == "f"):
        raise ValueError(f"values of type {source.dtype} cannot be stored as {array.dtype} without changing them")
    return array


# --- reading ----------------------------------------------------------------------------------------------------------


def read_entry(path: Path) -> Entry:
    """The footer of a score file; `StoreError` if it is not whole."""
    _, pq = arrow()
    with _damage(path):
        open_regular(path).close()
        return _entry(pq.read_metadata(path).metadata)[0]


def read_columns(path: Path, names: Sequence[str]) -> tuple[Entry, dict[str, Array]]:
    """Some of `COLUMNS`, and `labels_cut`, of one file, bit for bit: (n,), or (n, k) for the top k (C order)."""
    with _damage(path):
        return _read(path, names)


def read_text(path: Path) -> Text:
    """The text of one file."""
    with _damage(path):
        spans = ("span_end", "span_kind", "span_turn", "span_control")
        _, columns = _read(path, ["text", "text_ids", *spans])
        starts = [0, *columns["span_end"].tolist()]
        rows = zip(starts, *(columns[name].tolist() for name in spans), strict=False)  # one start more than spans
        rendered = tuple(Span(start, end, _KINDS[kind], turn, control) for start, end, kind, turn, control in rows)
        return Text(Rendered(columns["text"].tobytes().decode(), rendered), columns["text_ids"])


def read_vocabulary(path: Path) -> list[bytes | None]:
    """What `encode_vocabulary` wrote."""
    with _damage(path), _parquet(path) as file:
        token_bytes = list(file.read(use_threads=False).column("token").to_pylist())
        stored = (file.metadata.metadata or {}).get(_CHECKSUM)  # none in files of before it
        if stored is not None and int(stored, 16) != _vocabulary_checksum(token_bytes):
            raise ValueError("the token_bytes are not what was written")
        return token_bytes


def _read(path: Path, names: Sequence[str]) -> tuple[Entry, dict[str, Array]]:
    with _parquet(path) as file:
        entry, checksums = _entry(file.metadata.metadata)
        absent = [name for name in names if name in OPTIONAL and name not in checksums]
        # else they are null
        there = [name for name in names if name not in absent and (entry.scored or name not in COLUMNS)]
        table = file.read(columns=there, use_threads=False)
    columns = {name: _values(table, name, entry) for name in names if name not in absent}
    for name, values in columns.items():
        if zlib.crc32(values.data) != checksums[name]:
            raise ValueError(f"column {name} is not what was written")
    return entry, columns | {name: np.full(entry.scored, np.nan, np.float32) for name in absent}


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The Parquet file; `DataError` for a pipe, a device, and sizes that no scores have."""
    _, pq = arrow()
    with open_regular(path) as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
        check_parquet(file.metadata, os.fstat(handle.fileno()).st_size)
        yield file


def _entry(metadata: Mapping[bytes, bytes] | None) -> tuple[Entry, dict[str, int]]:
    check, _, content = (metadata or {})[_META].partition(b" ")
    if int(check, 16) != zlib.crc32(content):
        raise ValueError("the footer is not what was written")
    fields = json.loads(content)
    checksums = fields.pop("checksums")
    return Entry(**{**fields, "sources": tuple(Source(*source) for source in fields["sources"])}), checksums


def _values(table: Any, name: str, entry: Entry) -> Array:
    kind = _TYPES[name]
    shape = (entry.scored, entry.k) if name in _PER_CANDIDATE else (entry.scored if name in COLUMNS else -1,)
    if name in COLUMNS and not entry.scored:
        return np.zeros(shape, kind)
    column = table.column(name)
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if name == "text":
        return np.frombuffer(column[0].as_buffer(), np.uint8)
    cells = column.values if name in _PER_CANDIDATE or name in _PER_TEXT else column
    # not to_numpy, which imports pandas; DLPack has no bits
    return (np.array(cells.to_pylist(), kind) if kind is np.bool_ else np.from_dlpack(cells)).reshape(shape)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes the reader raise into one message."""
    try:
        yield
    except DataError as error:
        raise StoreError(f"cannot read {path} ({error})") from None
    except (HesnrError, ImportError):
        raise
    except Exception as error:
        if type(error) is MemoryError:  # Arrow has one of its own, which damaged sizes can raise
            raise
        if isinstance(error, OSError) and error.errno:
            raise StoreError(f"cannot read {path} ({error.strerror})") from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreError(
            f"{path} is damaged ({reason}). Nothing of it is used. Run the scoring command again, which replaces "
            "this file alone, or remove it to go on without this trajectory; the other files are not affected."
        ) from None
