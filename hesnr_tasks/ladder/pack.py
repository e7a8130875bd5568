"""A pack: the evidence of a ladder in one small file that others can be sent, without texts, weights or score files.

A pack is a zip archive; `unzip` and `sha256sum -c SHA256SUMS` open and check it, `numpy.load` reads its arrays:

    manifest.json                  {"format": "hesnr-ladder-pack", "version": 1, …}, names, notes
    ladder.json                    the ladder as the verdict has it: checkpoints and downstream scores
    named.json                     the ladder as the report has it: called as the results are
    results.json                   lm-eval's results of our tasks and of benchmarks
    checkpoints/0000/summary.json  signature, sets of tokens, names of statistics, SHA-256 of every trajectory's text
    checkpoints/0000/sums.npy      (sets, trajectories, statistics), and further arrays of `CheckpointSummary.to_parts`
    SHA256SUMS                     of all the others

Trajectories are known by the digests of their texts alone: who has the same trajectories can pair them, nobody else can
read them. Folders, servers and arguments of lm-eval are left out; of a path its last part stays. The checksums tell of
damage and of numbers that were changed by hand; they are no signature of who made them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesnr_tasks import __version__
from hesnr_tasks.analysis.summary import CheckpointSummary
from hesnr_tasks.errors import DataError, HesnrError, printable
from hesnr_tasks.files.atomic import write_output
from hesnr_tasks.files.bounded import READ_ERRORS, Growth, open_regular, parse_json, read_rest
from hesnr_tasks.ladder.names import NamedLadder
from hesnr_tasks.ladder.schema import Ladder, ladder_document, ladder_from

Array = npt.NDArray[Any]
_FORMAT, _VERSION = "hesnr-ladder-pack", 1
_MANIFEST, _SUMS = "manifest.json", "SHA256SUMS"
_MEMBER = re.compile(r"(manifest|ladder|named|results)\.json|SHA256SUMS|checkpoints/\d{4}/(summary\.json|[a-z_]+\.npy)")
_MOST = 100_000  # members
_DTYPES = ("<f8", "<i8")
_ERRORS = (*READ_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, TypeError, AttributeError)
_WORD = re.compile(r"""[^\s"'=,;()\[\]{}]*[\\/][^\s"'=,;()\[\]{}]*""")  # that may be a path or a URL


@dataclass(frozen=True, slots=True)
class Pack:
    """What a pack holds.

    Attributes:
        ladder: as the verdict has it; only checkpoints and their downstream scores.
        named: as the report has it, called as the results are.
        names: name of a result → name of its checkpoint in `ladder`; a result that is no checkpoint of it is not there.
        summaries: of the score files, with all registered metrics; under the results' names.
        results: of lm-eval, as `report.results.TaskResult.to_json`.
        notes: on what was left out when it was packed.
        note_on_context: why the summaries are restricted to their context; empty: they are not.
        version: of the package that packed it.
    """

    ladder: Ladder
    named: NamedLadder
    names: Mapping[str, str]
    summaries: tuple[CheckpointSummary, ...]
    results: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    note_on_context: str = ""
    version: str = __version__

    def remarks(self, ladder: Ladder) -> list[str]:
        """What of another ladder, or of the package that packed it, is not as it was packed."""
        notes = []
        if self.version != __version__:
            notes.append(
                f"the pack is of hesnr-tasks {self.version} and this is {__version__}: its sums are by the definitions "
                "of that version"
            )
        stages = {c.name: c.stage or "no stage" for c in (*self.named.checkpoints, *self.ladder.checkpoints)}
        for c in ladder.checkpoints:
            if stages.get(c.name, c.stage) not in (c.stage, "no stage"):
                now = c.stage or "no stage"
                notes.append(f"{c.name}: {stages[c.name]} in the pack, {now} in the ladder file, which counts")
        measured = {
            (c.name, task): score.after for c in self.ladder.checkpoints for task, score in c.downstream.items()
        }
        for c in ladder.checkpoints:
            for task, score in c.downstream.items():
                if (before := measured.get((c.name, task), score.after)) != score.after:
                    was, now = (f"after {after}" if after else "its own" for after in (before, score.after))
                    notes.append(f"{task} of {c.name}: {was} in the pack, {now} in the ladder file, which counts")
        return notes


def is_pack(path: str | Path) -> bool:
    """Whether a file is a zip archive, which nothing else is that reports are made of."""
    try:
        if not Path(path).is_file():
            return False
        with open_regular(path) as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except (OSError, HesnrError):
        return False


def only_pack(sources: Sequence[str]) -> Pack | None:
    """The pack that is the only source; None: there is none among them.

    Raises:
        DataError: a pack that cannot be read, or more than a pack.
    """
    packs = [source for source in sources if is_pack(source)]
    if not packs:
        return None
    if len(sources) > 1:
        raise DataError(
            f"{packs[0]} is a pack, and a pack is shown by itself: its trajectories are not those of other results. "
            "Name it alone."
        )
    return read_pack(Path(packs[0]))


# --- writing ----------------------------------------------------------------------------------------------------------


def write_pack(path: Path, pack: Pack) -> str:
    """Write a pack; the same contents give the same bytes.

    Returns:
        The SHA-256 of the file.

    Raises:
        DataError: a name in it is a path of this machine.
        SettingsError: the file cannot be written.
    """
    manifest = {
        "format": _FORMAT, "version": _VERSION, "hesnr_tasks": pack.version,
        "order": [checkpoint.name for checkpoint in pack.named.checkpoints], "names": dict(pack.names),
        "notes": public([*pack.notes]), "notes_of_names": public([*pack.named.notes]),
        "note_on_context": public(pack.note_on_context),
    }  # fmt: skip
    members = {
        _MANIFEST: _json(manifest),
        "ladder.json": _json(_bare(pack.ladder)),
        "named.json": _json(_bare(pack.named.ladder)),
        "results.json": _json([public(result, but=("model", "task")) for result in pack.results]),
    }
    for i, summary in enumerate(pack.summaries):
        document, arrays = summary.to_parts()
        members[f"checkpoints/{i:04d}/summary.json"] = _json(public(document, but=("name",)))
        for name, array in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
            members[f"checkpoints/{i:04d}/{name}.npy"] = file.getvalue()
    for name, data in members.items():
        for place in {str(Path.home()), str(Path.cwd())} - {"/", "\\"}:
            if name.endswith(".json") and json.dumps(place)[1:-1].encode() in data:
                raise DataError(f"a checkpoint's name holds the path {place}; give checkpoints names without folders")
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in members.items())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file_out:
        for name, data in {**members, _SUMS: sums.encode()}.items():
            info = zipfile.ZipInfo(name)  # of 1980: the same contents are the same bytes
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            file_out.writestr(info, data)
    write_output(path, archive.getvalue())
    return hashlib.sha256(archive.getvalue()).hexdigest()


def public(value: Any, but: Sequence[str] = ()) -> Any:
    """A JSON value in which of every path and URL only the last part is left; values of the keys `but` stay."""
    if isinstance(value, str):
        return _WORD.sub(lambda match: _last_part(match[0]), value)
    if isinstance(value, Mapping):
        return {str(key): item if key in but else public(item) for key, item in value.items()}
    return [public(item) for item in value] if isinstance(value, (list, tuple)) else value


def _last_part(word: str) -> str:
    """Of a path or URL; hub ids (owner/name) and units (bits/byte) are neither."""
    parts = re.split(r"[\\/]+", word.rstrip("\\/"))
    return parts[-1] if len(parts) > 2 or parts[0] in ("", ".", "..", "~") or parts[0].endswith(":") else word


def _bare(ladder: Ladder) -> dict[str, Any]:
    """Checkpoints and downstream scores; of local models the last part of their path."""
    checkpoints = tuple(
        replace(c, model=public(c.model), tokenizer=public(c.tokenizer), trained_on=tuple(public([*c.trained_on])))
        for c in ladder.checkpoints
    )
    return ladder_document(Ladder(checkpoints))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"


# --- reading ----------------------------------------------------------------------------------------------------------


def read_pack(path: Path) -> Pack:
    """Read a pack: bounded, checked against its checksums, nothing of it written to disk.

    Raises:
        DataError: it is no pack, one of another version, damaged or altered, or larger than `record_limit` allows.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            growth = Growth(file.seek(0, io.SEEK_END))
            infos = {info.filename: info for info in archive.infolist()}

            def member(name: str) -> bytes:
                with archive.open(infos[name]) as opened:
                    data = read_rest(opened)
                growth.add(len(data))
                return data

            if _MANIFEST not in infos:
                raise DataError(f"{path} is a zip archive but no pack: it has no {_MANIFEST}. {_HINT}")
            manifest_data = member(_MANIFEST)
            manifest = parse_json(manifest_data)
            _check_version(path, manifest)
            if len(archive.infolist()) != len(infos) or len(infos) > _MOST:
                raise DataError(f"{path} has members of one name, or too many of them; ask for the pack again")
            strange = next((name for name in infos if not _MEMBER.fullmatch(name)), None)
            if strange is not None:
                raise DataError(f"{path} has a member {strange[:80]!r}, which no pack has; ask for the pack again")
            members = {_MANIFEST: manifest_data, **{name: member(name) for name in infos if name != _MANIFEST}}
        _check_sums(path, members)
        return _unpacked(path, members)
    except HesnrError:
        raise
    except _ERRORS as error:
        raise DataError(f"{path} is no pack, or a damaged one ({type(error).__name__}: {error}). {_HINT}") from None


_HINT = "Make one with: hesnr ladder pack RESULTS -o FILE"


def _check_version(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DataError(f"{path} is a zip archive but no pack: its {_MANIFEST} is of something else. {_HINT}")
    if manifest.get("version") != _VERSION:
        raise DataError(
            f"{path} is a pack of version {str(manifest.get('version'))[:20]} (by hesnr-tasks "
            f"{str(manifest.get('hesnr_tasks'))[:20]}), and this is hesnr-tasks {__version__}, which reads version "
            f"{_VERSION}. Install the other one to read it, or have it packed again."
        )


def _check_sums(path: Path, members: Mapping[str, bytes]) -> None:
    wanted = {}
    for line in members[_SUMS].decode().splitlines():
        digest, _, name = line.partition("  ")
        wanted[name] = digest
    for name in (wanted.keys() | members.keys()) - {_SUMS}:
        if name not in members or hashlib.sha256(members[name]).hexdigest() != wanted.get(name):
            raise DataError(
                f"{path}: {name[:80]} is not what {_SUMS} says: the pack was altered or damaged, and its numbers "
                "cannot be trusted. Ask for it again."
            )


def _printable(value: Any) -> Any:
    """A JSON value whose texts are safe to print: they reach terminals as names and notes."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _unpacked(path: Path, members: Mapping[str, bytes]) -> Pack:
    def document_of(name: str) -> Any:
        return _printable(parse_json(members[name]))

    manifest = document_of(_MANIFEST)
    ladder, named = (ladder_from(document_of(f"{name}.json"), path) for name in ("ladder", "named"))
    results = document_of("results.json")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise ValueError("results.json is no list of results")
    folders = sorted({name.rpartition("/")[0] for name in members if "/" in name})
    summaries = []
    for folder in folders:
        arrays = {
            name.rpartition("/")[2].removesuffix(".npy"): _array(data)
            for name, data in members.items()
            if name.startswith(f"{folder}/") and name.endswith(".npy")
        }
        document = document_of(f"{folder}/summary.json")
        summaries.append(CheckpointSummary.from_parts(document, arrays, path / folder))
    by_name = {checkpoint.name: checkpoint for checkpoint in named.checkpoints}
    there = {checkpoint.name for checkpoint in ladder.checkpoints}
    names = {str(key): str(name) for key, name in dict(manifest["names"]).items()}
    order = tuple(by_name[name] for name in dict.fromkeys(manifest["order"]))
    called = {*(summary.name for summary in summaries), *(result.get("model") for result in results)}
    belong = {*names.values()} <= there and called <= {checkpoint.name for checkpoint in order}
    for c in ladder.checkpoints:
        other = by_name.get(c.name, c) if names.get(c.name) == c.name else c
        same = all(other.downstream.get(task, score) == score for task, score in c.downstream.items())
        if not same or (c.stage and other.stage and c.stage != other.stage):
            raise ValueError(f"ladder.json and named.json differ on {c.name!r}")
    if not belong or len({s.name for s in summaries}) < len(summaries):
        raise ValueError("its names are not those of its checkpoints")
    texts = (tuple(map(str, manifest[key])) for key in ("notes_of_names", "notes"))
    return Pack(
        ladder, NamedLadder(order, named, next(texts)), names, tuple(summaries), tuple(results), next(texts),
        str(manifest["note_on_context"]), str(manifest["hesnr_tasks"]),
    )  # fmt: skip


def _array(data: bytes) -> Array:
    """An array of numbers in NumPy's format; its header may not claim more than there is."""
    file = io.BytesIO(data)
    major, _ = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    rest = data[file.tell() :]
    if dtype.str not in _DTYPES or fortran or dtype.itemsize * math.prod(shape) != len(rest):
        raise ValueError(f"an array of {dtype.str} and shape {shape} in {len(rest)} bytes")
    return np.frombuffer(rest, dtype=dtype).reshape(shape)
