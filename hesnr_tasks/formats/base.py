"""What all formats share: getters for JSON of unknown origin, what a format is, the builder of trajectories, calls.

The getters never raise on a wrong type. A key that is absent, null or of another type gives the empty value of the
requested type; text lost that way is counted (`left_out`) by the builder that is `READING`. Fields a reader cannot do
without are read with `need_*` and `messages_of`, which raise `DataError` naming the field.

A `Format` detects and reads records; it adds their messages to a `TrajectoryBuilder`, which brings them into one form.
What is skipped or odd goes into a `ReadReport`. A turn that is stored as a structure (tool calls, content blocks, items
of the Responses API) becomes text in the canonical form.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

from hesnr_tasks.actions import RENDERING, CharSpan, ToolCall, argument_json, render_call
from hesnr_tasks.actions.grammar import CALL_FORMS
from hesnr_tasks.errors import DataError, number_of, printable
from hesnr_tasks.files.bounded import COMPRESSED, DuplicateKeys, parse_json, text_size
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory, clean

JsonObject = Mapping[str, Any]
_MAX_LITERAL_PARTS = 500_000


def as_list(value: Any) -> list[Any] | None:
    """`value` as a list when it is one (or a tuple, or an array as parquet readers give); None otherwise."""
    if isinstance(value, list):
        return value
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        listed = value.tolist()
        return listed if isinstance(listed, list) else None
    return None


READING: contextvars.ContextVar[TrajectoryBuilder | None] = contextvars.ContextVar("reading", default=None)


def left_out(value: Any, what: str) -> None:
    """Count the text inside a value as not used, once however often it is looked at, while a record is being read.

    Args:
        value: decoded JSON.
        what: what is wrong with it, for the trajectory's warnings; empty: the caller warns.
    """
    builder = READING.get()
    size = text_size(value) if builder else 0
    if builder and size and id(value) not in builder.lost:
        builder.lost[id(value)] = value
        builder.left_out += size
        if what:
            builder.warn(f"{what}; its text is left out")


def _mistyped(value: Any, key: str, wanted: str) -> None:
    left_out(value, f"{key!r} is {_type_name(value)} where {wanted} belongs")


def string(record: Any, key: str) -> str:
    """The string under `key`, or an empty one."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if isinstance(value, str):
        return value
    _mistyped(value, key, "text")
    return ""


def mapping(record: Any, key: str) -> Mapping[str, Any]:
    """The object under `key` (also when stored as JSON text), or an empty one."""
    value = decoded(record.get(key)) if isinstance(record, Mapping) else None
    if isinstance(value, Mapping):
        return value
    _mistyped(value, key, "an object")
    return {}


def items(record: Any, key: str) -> list[Any]:
    """The list under `key` (also when stored as JSON text), or an empty one."""
    value = decoded(record.get(key)) if isinstance(record, Mapping) else None
    listed = as_list(value)
    if listed is None:
        _mistyped(value, key, "a list")
    return listed or []


def mappings(values: Any, what: str) -> list[Mapping[str, Any]]:
    """The objects of a list; text in what else it holds is counted as left out."""
    listed = as_list(values) or []
    for value in listed:
        if not isinstance(value, Mapping):
            left_out(value, f"{what} is {_type_name(value)}, not an object")
    return [value for value in listed if isinstance(value, Mapping)]


def deep(record: Any, *path: str | int) -> Any:
    """The value at a path of nested objects and lists, or None; JSON stored as text on the way is decoded.

    Args:
        record: decoded JSON.
        path: keys of objects, indices of lists.
    """
    for step in path:
        if isinstance(step, int):
            listed = as_list(record)
            record = listed[step] if listed is not None and -len(listed) <= step < len(listed) else None
        else:
            record = decoded(record).get(step) if isinstance(decoded(record), Mapping) else None
    return record


def need_items(record: Mapping[str, Any], key: str) -> list[Any]:
    """The list under `key`; `DataError` when there is none."""
    value = as_list(decoded(record.get(key)))
    if value is None:
        raise DataError(f"{key!r} must be a list, not {_type_name(record.get(key))}")
    return value


def decoded(value: Any) -> Any:
    """Text that holds a JSON (or Python-literal) list or object becomes that; anything else stays as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    builder = READING.get()
    if builder and id(value) in builder.decoded:
        return builder.decoded[id(value)][1]
    duplicates = DuplicateKeys()
    try:
        value_inside = parse_json(value, duplicates)
    except ValueError:
        value_inside = value
        if sum(map(value.count, "[({,:-+")) <= _MAX_LITERAL_PARTS:  # Python's parser takes hundreds of bytes for each
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                literal = ast.literal_eval(value.strip())
                value_inside = literal if isinstance(literal, (dict, list)) else value
    if builder:
        builder.decoded[id(value)] = (value, value_inside)
        for key, size in duplicates.items():
            builder.warn(f"{key!r} is there more than once in an object stored as text; the last value is read")
            builder.left_out += size
    return value_inside


def need_objects(values: Iterable[Any], place: str, wanted: str = "an object, not {}") -> Iterator[Mapping[str, Any]]:
    """The objects of a list; `DataError` names the `place` of the first value that is none."""
    for i, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise DataError(f"{place.format(i)} must be {wanted.format(_type_name(value))}")
        yield value


def messages_of(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The list of message objects under `key`: JSON text decoded, one-element lists around a message removed."""
    return list(need_objects(map(unwrapped, need_items(record, key)), f"{key}[{{}}]"))


def unwrapped(item: Any) -> Any:
    """A message without the one-element list some converters put around it."""
    while (listed := as_list(item)) is not None and len(listed) == 1:
        item = listed[0]
    return item


def scalar_text(value: Any) -> str | None:
    """An id or status as text: strings and numbers; None for anything else and for an empty string."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


_NAMES = {"dict": "an object", "list": "a list", "str": "text", "NoneType": "null", "bool": "true or false"}


def _type_name(value: Any) -> str:
    name = type(value).__name__
    return _NAMES.get(name, "a number" if isinstance(value, (int, float)) else name)


# --- What all formats share: the declaration of a format, places and problems in files, the report, the builder ---

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
    left_out: int = 0  # characters of text that no reader could use (the warnings say where)
    repeated_ids: dict[str, int] = field(default_factory=dict)  # how often each id that is not unique occurs
    duplicates: int = 0  # trajectories that say word for word what an earlier one says

    def skip(self, problem: Problem) -> None:
        """Count a record that is not kept."""
        self.read += 1
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
        return [printable(line) for line in skipped + warned + self.repetitions()]

    def repetitions(self, *, removed: bool = False) -> list[str]:
        """Ids that occur more than once, and trajectories with the same content (unless they were `removed`)."""
        lines = []
        if self.repeated_ids:
            named = ", ".join(f"{name!r} ({n} times)" for name, n in itertools.islice(self.repeated_ids.items(), 3))
            more = f" and {len(self.repeated_ids) - 3:,} more" if len(self.repeated_ids) > 3 else ""
            lines.append(f"an id occurs more than once: {named}{more}; the later ones get the suffix #2, #3, …")
        if self.duplicates and not removed:
            lines.append(
                f"{self.duplicates:,} of {number_of(self.kept, 'trajectory')} repeat the content of another "
                f"word for word; "
                "each counts. `hesnr convert SRC -o OUT.jsonl --deduplicate` keeps the first of each"
            )
        return lines


def _counted(text: str, count: int) -> str:
    return text if count <= 1 else f"{text} ({count} times)"


@dataclass(frozen=True)
class Format:
    """A trajectory format: two functions of decoded JSON, and what some formats need around them.

    Attributes:
        name: as `--format` and `Trajectory.source` have it.
        rule: what a record is recognised by, for people.
        detect: whether `read` can read the record; never raises.
        read: adds the messages of a record to the builder and finishes it; raises `DataError` with the wrong field.
        is_session: whether a file of lines is one record: the list of them.
        expand: the records inside a record that holds several, None for any other record.
        attach: completes a trajectory by files that lie beside its own.
        prefix_rank: for rows of which later ones repeat earlier ones: the run, and a rank that grows within it.
    """

    name: str
    rule: str
    detect: Callable[[Any], bool]
    read: Callable[[Any, TrajectoryBuilder], Trajectory]
    is_session: bool = False
    expand: Callable[[Any], Iterator[Any] | None] | None = None
    attach: Callable[[Trajectory, str, ReadReport], Trajectory] | None = None
    prefix_rank: Callable[[Any], tuple[str, tuple[int, str]] | None] | None = None


def role_of(message: Mapping[str, Any]) -> str | None:
    """`system`, `user`, `assistant` or `tool`; None for an unknown role."""
    name = message.get("role", message.get("from"))
    return _ROLES.get(name.lower()) if isinstance(name, str) else None


class TrajectoryBuilder:
    """Collects the messages of one trajectory, in order, in normal form, and what of its record could not be used.

    Normal form: no empty segments, neighbours of one kind joined, no lone surrogates, an id.
    """

    def __init__(self, name: str, where: Where) -> None:
        self.name = name
        self.where = where
        self.messages: list[Message] = []
        self.started = False  # whether the agent has written anything
        self._warnings: Counter[str] = Counter()
        self.left_out = 0  # characters of text in fields of another type than they should be
        self.lost: dict[int, Any] = {}  # holds the values, so that their ids stay theirs
        self.decoded: dict[int, tuple[str, Any]] = {}  # what text became, so that it stays one value

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
        """Add a message of unknown origin: a warning, and never the model's own.

        Args:
            message: decoded JSON.
            what: for the warning; begins with "message" or "step".
            content: its text, of any shape.
        """
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
        left_out(value, "")

    def text(self, content: Any) -> str:
        """Message content of any shape as text: null, string, parts; pictures become a place-holder."""
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        texts = []
        parts = as_list(content)
        for part in [content] if parts is None else parts:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
            if isinstance(part, str):
                texts.append(part)
            elif kind in _IMAGE_TYPES:
                self.warn("a picture is replaced by a place-holder")
                texts.append(_IMAGE)
            elif isinstance(text, str) and (kind in _TEXT_TYPES or kind is None):
                texts.append(text)
            else:
                name = f"of type {kind!r}" if kind else "without a type"
                self.leave_out(part, f"a content part {name} is left out")
        return "\n".join(texts)

    def build(
        self,
        *,
        id: Any = None,
        instance_id: Any = None,
        resolved: bool | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        document_source: str | None = None,
    ) -> Trajectory:
        """The finished trajectory.

        Args:
            id: of the record; else the instance's, else its place in the file.
            instance_id: of the task.
            resolved: whether the task was solved; None: unknown.
            fidelity: whether actions are the model's own text, or rendered from stored calls.
            document_source: of a document: the corpus it is from.
        """
        instance = scalar_text(instance_id)
        meta: dict[str, Any] = {"warnings": [_counted(text, n) for text, n in self._warnings.items()]}
        if self.left_out:
            meta["left_out_characters"] = self.left_out
        if document_source:
            meta["document_source"] = clean(document_source)
        if fidelity is Fidelity.RENDERED:
            meta["rendering"] = RENDERING
        return Trajectory(
            id=clean(scalar_text(id) or instance or self.where.identity),
            messages=tuple(self.messages),
            instance_id=instance and clean(instance),
            resolved=resolved,
            source=self.name,
            fidelity=fidelity,
            meta=meta,
        )


# --- Assistant turns stored as structures: tool calls, Anthropic content blocks, OpenAI Responses items ---


def turn_segments(content: str, calls: Iterable[ToolCall], reasoning: str = "") -> tuple[Segment, ...]:
    """Segments of an assistant turn that is stored as text and calls.

    Args:
        content: the text.
        calls: rendered in the canonical form.
        reasoning: what some formats store beside the text; it goes first, unless the text has it already.
    """
    thought = with_reasoning(content, reasoning)
    rendered = "\n".join(render_call(call) for call in calls)
    if not rendered:
        return (Segment(Kind.THOUGHT, thought),) if thought else ()
    stripped = thought.rstrip()
    action = Segment(Kind.ACTION, f"{thought[len(stripped) :]}\n\n{rendered}")
    return (Segment(Kind.THOUGHT, stripped), action) if stripped else (action,)


def split_calls(text: str, form: str) -> tuple[Segment, ...]:
    """The segments of one assistant text with calls of `form`: thought and action, concatenating to `text`.

    Args:
        text: what the model wrote.
        form: a key of `CALL_FORMS`.
    """
    return label_calls(text, CALL_FORMS[form].find(text))


def label_calls(text: str, calls: Iterable[CharSpan]) -> tuple[Segment, ...]:
    """Thought and action of `text`, which the segments concatenate to.

    Args:
        text: what the model wrote.
        calls: character spans of the calls, ordered, not overlapping; the white space around them is of the action.
    """
    runs: list[tuple[Kind, int]] = []  # kind and end; neighbours of one kind are one run

    def extend(kind: Kind, end: int) -> None:
        if end != (runs[-1][1] if runs else 0):
            if runs and runs[-1][0] is kind:
                runs.pop()
            runs.append((kind, end))

    position = 0
    for start, end in calls:
        extend(Kind.THOUGHT, position + len(text[position:start].rstrip()))
        space = _SPACE.match(text, end)
        position = space.end() if space else end
        extend(Kind.ACTION, position)
    extend(Kind.THOUGHT, len(text))
    starts = [0, *(end for _, end in runs)]
    return tuple(Segment(kind, text[start:end]) for start, (kind, end) in zip(starts, runs, strict=False))


_SPACE = re.compile(r"\s*")


def with_reasoning(content: str, reasoning: str) -> str:
    """`content` after `reasoning`, which is not repeated where the content has it already."""
    if not reasoning.strip() or reasoning.strip() in content:
        return content
    return f"<think>\n{reasoning}\n</think>" + (f"\n\n{content}" if content else "")


# --- calls ------------------------------------------------------------------------------------------------------------


def openai_calls(value: Any) -> list[ToolCall]:
    """The calls of an OpenAI `tool_calls` list; entries without a name or arguments are no calls."""
    listed = as_list(value)
    if listed is None:
        left_out(value, "tool calls are no list")
    calls = []
    for item in listed or []:
        name = arguments = None
        if isinstance(item, Mapping):
            function = item.get("function")
            if isinstance(function, Mapping):  # chat completions
                name, arguments = function.get("name"), function.get("arguments")
            else:  # responses, inspect_ai, ATIF
                name = function or item.get("name") or item.get("function_name")
                arguments = item.get("arguments", item.get("input"))
        if name is None and arguments is None:
            left_out(item, "a tool call has neither name nor arguments")
            continue
        if not isinstance(name, str):
            left_out(name, "the name of a tool call is not text")
        calls.append(ToolCall(name if isinstance(name, str) else "", arguments_of(arguments)))
    return calls


def arguments_of(value: Any) -> Mapping[str, Any] | str:
    """Arguments however stored: object, JSON text, null; text that is no JSON object stays as it is."""
    if isinstance(value, Mapping):
        return value
    if value is None:
        return {}
    if not isinstance(value, str):
        return argument_json(value)
    try:
        parsed = parse_json(value) if value.strip() else {}  # keys that are there twice: stays as it was written
    except ValueError:
        return value
    if isinstance(parsed, str) and parsed != value:  # JSON inside JSON
        return arguments_of(parsed)
    return parsed if isinstance(parsed, dict) else value


# --- content blocks ---------------------------------------------------------------------------------------------------


@dataclass
class Turn:
    """What the model wrote in one turn, gathered block by block."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, block: Any, builder: TrajectoryBuilder) -> None:
        """Take one block in; kinds that hold no text of the model are warned about."""
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind in ("redacted_thinking", "reasoning_opaque"):
            builder.warn("reasoning is stored only encrypted and is left out")
        elif kind in ("thinking", "reasoning"):
            text = reasoning_of(block)
            if text and text not in self.reasoning:
                self.reasoning.append(text)
            elif not text and any(block.get(key) for key in ("encrypted_content", "signature", "redacted")):
                builder.warn("reasoning is stored only encrypted and is left out")
            elif not text:
                left_out(block, "a part with reasoning has no readable text")
        elif kind in ("tool_use", "server_tool_use", "function_call"):
            arguments = block.get("arguments" if kind == "function_call" else "input")
            self.calls.append(ToolCall(string(block, "name"), arguments_of(arguments)))
        elif kind in ("local_shell_call", "web_search_call"):
            action = {k: v for k, v in mapping(block, "action").items() if k != "type" and v is not None}
            self.calls.append(ToolCall(kind.removesuffix("_call"), action))
        elif kind == "custom_tool_call":
            self.calls.append(ToolCall(string(block, "name"), {"input": string(block, "input")}))
        elif kind == "message":
            self.add_all(block.get("content"), builder)
        elif text := builder.text([block]):
            self.text.append(text)

    def add_all(self, content: Any, builder: TrajectoryBuilder) -> None:
        """Take a whole content in: a string or a list of blocks."""
        if isinstance(content, str):
            self.text.extend([content] if content else [])
            return
        blocks = as_list(content)
        for block in blocks if blocks is not None else ([] if content is None else [content]):
            self.add(block, builder)

    def segments(self) -> tuple[Segment, ...]:
        """The turn as labelled text, in the canonical form."""
        return turn_segments("\n".join(self.text), self.calls, "\n".join(self.reasoning))


def reasoning_of(block: Mapping[str, Any]) -> str:
    """The readable text of a reasoning block: `thinking`, `reasoning`, `text`, or the parts of `content`, `summary`."""
    for key in ("thinking", "reasoning", "text"):
        if string(block, key):
            return string(block, key)
    for key in ("content", "summary"):
        texts = []
        for part in as_list(block.get(key)) or [block.get(key)]:
            text = part if isinstance(part, str) else string(part, "text")
            if not text:
                left_out(part, "a part of reasoning has no readable text")
            texts.append(text)
        if any(texts):
            return "\n".join(text for text in texts if text)
    return ""
