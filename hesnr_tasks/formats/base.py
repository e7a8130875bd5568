"""What all formats share: the declaration of a format, places and problems in files, the report, the builder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

from hesnr_tasks.actions import RENDERING
from hesnr_tasks.bounded_io import COMPRESSED
from hesnr_tasks.errors import printable
from hesnr_tasks.formats.json_access import as_list, left_out, scalar_text
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory, clean

_EXAMPLES = 5  # places named per reason
_IMAGE = "[image]"  # stands for a picture; never counted as the model's text
_IMAGE_TYPES = ("image_url", "image", "input_image")
_TEXT_TYPES = ("text", "input_text", "output_text", "summary_text", "refusal")
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "ai", "gpt", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "environment", "observation", "exit"), "tool"),
}


@dataclass(frozen=True, slots=True)
class Where:
    """The place a record comes from: a file (or hub id) and, in a file of many records, its line (from 1)."""

    path: str
    line: int | None = None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path}:{self.line}"

    @property
    def stem(self) -> str:
        """The file name without folders and extensions that tools add (`.traj.json`, `.jsonl.gz`, …)."""
        name = PurePath(self.path).name
        for suffix in (*COMPRESSED, ".json", ".jsonl", ".ndjson", ".traj", ".parquet", ".eval"):
            name = name.removesuffix(suffix) or name
        return name

    @property
    def is_lines(self) -> bool:
        """Whether the file name says that every line is a record."""
        return uncompressed(self.path).lower().endswith((".jsonl", ".ndjson"))

    @property
    def identity(self) -> str:
        """An id for a record that has none of its own."""
        return self.stem if self.line is None else f"{self.stem}:{self.line}"


def uncompressed(name: str) -> str:
    """A file name without the suffix that says how the file is compressed."""
    return next((name[: -len(suffix)] for suffix in COMPRESSED if name.lower().endswith(suffix)), name)


class Problem(NamedTuple):
    """A record that cannot be read: where, the kind of problem (for counting) and what is wrong."""

    where: Where
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class DetectedFormat(NamedTuple):
    """The format of a file, the rule that matched and its confidence (0 to 1)."""

    name: str
    rule: str
    confidence: float


@dataclass
class Skipped:
    """How many records were skipped for one reason, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class ReadReport:
    """Counts of one reading; `read` = `kept` + everything in `skipped`."""

    read: int = 0
    kept: int = 0
    skipped: dict[str, Skipped] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    formats: dict[str, DetectedFormat] = field(default_factory=dict)
    left_out: int = 0  # characters of text that no reader could use (the warnings say where)

    def skip(self, problem: Problem) -> None:
        """Count a record that is not kept."""
        skipped = self.skipped.setdefault(problem.reason, Skipped())
        skipped.count += 1
        if len(skipped.examples) < _EXAMPLES:
            skipped.examples.append(str(problem))

    def warn(self, text: str, count: int = 1) -> None:
        """Count something odd that is kept."""
        self.warnings[text] = self.warnings.get(text, 0) + count

    def lines(self) -> list[str]:
        """Everything that was skipped or odd, one line each, for people."""
        skipped = [
            f"skipped {s.count} ({reason}): {'; '.join(s.examples)}{'; …' if s.count > len(s.examples) else ''}"
            for reason, s in self.skipped.items()
        ]
        warned = [_counted(text, count) for text, count in self.warnings.items()]
        if self.left_out:
            warned.append(f"{self.left_out:,} characters of text in fields of the wrong type are left out, see above")
        return [printable(line) for line in skipped + warned]


def _counted(text: str, count: int) -> str:
    return text if count <= 1 else f"{text} ({count} times)"


@dataclass(frozen=True)
class Format:
    """A trajectory format: two functions of decoded JSON, and what some formats need around them.

    Attributes:
        name: as `--format` and `Trajectory.source` have it.
        rule: what a record is recognised by, for people.
        detect: confidence, 0 to 1, that `read` can read the record; never raises.
        read: the trajectory of a record; raises `DataError` with the field that is wrong.
        is_session: whether a file of lines is one record: the list of them.
        expand: the records inside a record that holds several, None for any other record.
        attach: completes a trajectory by files that lie beside its own.
        prefix_rank: for rows of which later ones repeat earlier ones: the run, and a rank that grows within it.
    """

    name: str
    rule: str
    detect: Callable[[Any], float]
    read: Callable[[Any, Where], Trajectory]
    is_session: bool = False
    expand: Callable[[Any], Iterator[Any] | None] | None = None
    attach: Callable[[Trajectory, str, ReadReport], Trajectory] | None = None
    prefix_rank: Callable[[Any], tuple[str, tuple[int, str]] | None] | None = None


def role_of(message: Mapping[str, Any]) -> str | None:
    """`system`, `user`, `assistant` or `tool`; None for an unknown role."""
    name = message.get("role", message.get("from"))
    return _ROLES.get(name.lower()) if isinstance(name, str) else None


def is_generated(message: Any) -> bool:
    """Whether the model wrote the message, by its role."""
    return isinstance(message, Mapping) and role_of(message) == "assistant"


class TrajectoryBuilder:
    """Collects the messages of one trajectory, in order, in normal form.

    Normal form: no empty segments, neighbours of one kind joined, no lone surrogates, an id.
    """

    def __init__(self, name: str, where: Where) -> None:
        self.name = name
        self.where = where
        self.messages: list[Message] = []
        self.started = False  # whether the agent has written anything
        self._warnings: Counter[str] = Counter()

    def warn(self, text: str, count: int = 1) -> None:
        """Note something odd; the same text is counted, not repeated."""
        self._warnings[text] += count

    def context(self, role: str, text: str) -> None:
        """Add a prompt or demonstration."""
        self._add(role, (Segment(Kind.CONTEXT, text),))

    def observation(self, role: str, text: str) -> None:
        """Add what the environment answered."""
        self._add(role, (Segment(Kind.OBSERVATION, text),))

    def given(self, role: str, text: str) -> None:
        """Add a message that the model did not write: context before its first turn, observation after it."""
        self._add(role, (Segment(Kind.OBSERVATION if self.started else Kind.CONTEXT, text),))

    def generated(self, segments: Iterable[Segment]) -> None:
        """Add a turn of the agent."""
        turn = tuple(segments)
        self.started = self.started or any(segment.text for segment in turn)
        self._add("assistant", turn)

    def not_generated(self, text: str) -> None:
        """Add what the scaffold wrote in the agent's place."""
        self.warn("a message the scaffold wrote in the agent's place is labelled context")
        self._add("assistant", (Segment(Kind.CONTEXT, text),))

    def unknown(self, message: Any, what: str, content: Any) -> None:
        """Add a message of unknown origin (`what` begins with "message" or "step"): never the model's own."""
        self.warn(f"a {what} is labelled observation")
        text = self.text(content)
        if not text:
            left_out(message, f"a {what.split()[0]} of unknown shape")
        self.observation("user", text)

    def _add(self, role: str, segments: tuple[Segment, ...]) -> None:
        joined: list[Segment] = []
        for segment in segments:
            text = clean(segment.text)
            if text != segment.text:
                replaced = sum(a != b for a, b in zip(text, segment.text, strict=True))
                self.warn("a lone surrogate (half a character) is replaced by U+FFFD", replaced)
            if joined and joined[-1].kind is segment.kind:
                text = joined.pop().text + text
            if text:
                joined.append(Segment(segment.kind, text))
        self.messages.append(Message(role, tuple(joined)))

    def leave_out(self, value: Any, text: str) -> None:
        """Note that `value` is not read; the text inside is counted."""
        self.warn(text)
        left_out(value, "", remark=False)

    def text(self, content: Any) -> str:
        """Message content of any shape as text: null, string, parts; pictures become a place-holder."""
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        parts = as_list(content)
        return "\n".join(t for part in ([content] if parts is None else parts) if (t := self._part(part)) is not None)

    def _part(self, part: Any) -> str | None:
        if isinstance(part, str):
            return part
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in _IMAGE_TYPES:
            self.warn("a picture is replaced by a place-holder")
            return _IMAGE
        if isinstance(part, Mapping) and (kind in _TEXT_TYPES or kind is None):
            text = part.get("text", part.get("refusal"))
            if isinstance(text, str):
                return text
        name = f"of type {kind!r}" if kind else "without a type"
        self.leave_out(part, f"a content part {name} is left out")
        return None

    def build(
        self,
        *,
        id: Any = None,
        instance_id: Any = None,
        resolved: bool | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        **meta: Any,
    ) -> Trajectory:
        """The finished trajectory. `meta` entries that are None are left out."""
        instance = scalar_text(instance_id)
        entries = {key: clean(v) if isinstance(v, str) else v for key, v in meta.items() if v is not None}
        if fidelity is Fidelity.RENDERED:
            entries["rendering"] = RENDERING
        entries["warnings"] = [_counted(text, n) for text, n in self._warnings.items()]
        return Trajectory(
            id=clean(scalar_text(id) or instance or self.where.identity),
            messages=tuple(self.messages),
            instance_id=instance and clean(instance),
            resolved=resolved,
            source=self.name,
            fidelity=fidelity,
            meta={"format": self.name, **entries},
        )
