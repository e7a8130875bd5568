"""Rendering: a trajectory as one text for a model, every character with its kind.

Four renderings:

- `transcript` (default): plain role headers, no special tokens assumed: base and chat checkpoints read the same text;
- `chatml`: `<|im_start|>role`, content, `<|im_end|>`;
- `template`: the model's own chat template, through lm-eval's `--apply_chat_template`, calls as text;
- `native`: the model's own format, reasoning and tool calls included (chat_rendering.py).

Labels survive because the text is only ever *concatenated* from labelled pieces. A chat template is opaque, so it is
run on placeholders to learn the pieces between the messages, and the concatenation is checked against the template's
text of the real messages: equal to the character, or an error.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.chat_templates import USE_OTHER_RENDERING, TemplateLimitError, run_template

ChatTemplate = Callable[[list[dict[str, Any]]], Any]
RENDERINGS = ("transcript", "chatml", "template", "native")


class Span(NamedTuple):
    """Characters `start` to `end` of the text. `control`: special-token strings in it are meant as control tokens."""

    start: int
    end: int
    kind: Kind
    turn: int  # 1 + number of messages the agent wrote before; a turn is (observation, thought, action)
    control: bool


class Block(NamedTuple):
    """Characters `start` to `end` of the text, all of one kind and in one turn."""

    start: int
    end: int
    kind: Kind
    turn: int


class ActionSource(NamedTuple):
    """An action written in another form: character `text_index[i]` of the text is `action_index[i]` of `action`."""

    action: str
    text_index: npt.NDArray[np.int64]
    action_index: npt.NDArray[np.int64]


class Passed(NamedTuple):
    """How a trajectory was passed to a chat template."""

    form: str  # of its messages
    dropped: int  # characters of thought that the template left out
    thoughts: int  # characters of thought in it


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and the spans that cover it exactly once, in order.

    Attributes:
        sources: where given, every character of an action that is in none of them is call syntax.
        passed: of render=native.
        codes: uint8, shape (characters,): the label code of each (`filters.labelled`); empty before that.
    """

    text: str
    spans: tuple[Span, ...]
    sources: tuple[ActionSource, ...] | None = field(default=None, compare=False)
    passed: Passed | None = field(default=None, compare=False)
    codes: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8), compare=False, repr=False)

    @property
    def key(self) -> str:
        """Hash of the labelled text: texts with equal keys share their scores."""
        return hashlib.sha256(self.text.encode() + self.codes.tobytes()).hexdigest()

    def blocks(self) -> Iterator[Block]:
        """The text as maximal runs of spans of one kind and one turn, in order: an action of several spans is one."""
        for (kind, turn), spans in itertools.groupby(self.spans, key=lambda span: (span.kind, span.turn)):
            first, *rest = spans
            yield Block(first.start, (rest or [first])[-1].end, kind, turn)


class NativeRenderer(Protocol):
    """Renders in a model's own format: `chat_rendering.NativeTemplate`."""

    def render(self, trajectory: Trajectory) -> Rendered:
        """The trajectory in the model's format."""
        ...


_Piece = tuple[str, Kind, int, bool]  # text, kind, turn, control


def render(
    trajectory: Trajectory, rendering: str = "transcript", template: ChatTemplate | NativeRenderer | None = None
) -> Rendered:
    """Render a trajectory as one text with labelled spans.

    Args:
        trajectory: its messages' texts appear unchanged, apart from white space that a template strips.
        rendering: one of `RENDERINGS`.
        template: for `template`, maps chat messages to text; for `native`, a `chat_rendering.NativeTemplate`.

    Raises:
        SettingsError: the rendering is unknown, or lacks its template.
        DataError: the template cannot render these messages without changing their text.
    """
    if rendering == "transcript":
        pieces = _plain(trajectory, lambda role: f"{role.capitalize()}:\n", "\n\n", control=False)
    elif rendering == "chatml":
        pieces = _plain(trajectory, lambda role: f"<|im_start|>{role}\n", "<|im_end|>\n", control=True)
    elif rendering == "template":
        if template is None or not callable(template):
            raise SettingsError("render=template needs lm-eval's --apply_chat_template")
        pieces = _templated(trajectory, template)
    elif rendering == "native":
        if template is None or callable(template):
            raise SettingsError(
                "render=native needs the model's tokenizer, which is not at hand here; use render=chatml or transcript"
            )
        return template.render(trajectory)
    else:
        raise SettingsError(
            f"render is {rendering!r}; it must be one of {', '.join(RENDERINGS)}.{nearest(rendering, RENDERINGS)}"
        )
    kept = [piece for piece in pieces if piece[0]]
    texts, kinds, turns, control = zip(*kept, strict=True) if kept else ((), (), (), ())
    ends = list(itertools.accumulate(map(len, texts)))
    return Rendered("".join(texts), tuple(map(Span, [0, *ends], ends, kinds, turns, control)))


def _turns(messages: Sequence[Message]) -> list[int]:
    return list(itertools.accumulate((m.generated for m in messages), initial=1))[: len(messages)]


def _plain(trajectory: Trajectory, header: Callable[[str], str], end: str, *, control: bool) -> Iterator[_Piece]:
    scaffold = Kind.SCAFFOLD
    for message, turn in zip(trajectory.messages, _turns(trajectory.messages), strict=True):
        yield header(message.role), scaffold, turn, control
        for segment in message.segments:
            yield segment.text, segment.kind, turn, False
        yield end, scaffold, turn, control


# --- chat templates -------------------------------------------------------------------------------------------------

_STRIPS: tuple[Callable[[str], str], ...] = (lambda s: s, str.strip, str.rstrip, str.lstrip)


def _templated(trajectory: Trajectory, template: ChatTemplate) -> Iterator[_Piece]:
    """Pieces of the template's text, tried with the roles as they are, then with those every template knows.

    Templates of models that see images take content as a list of parts.
    """
    problems = []
    adapted = (lambda messages: messages, _tools_as_users, _only_users_and_assistants)
    for as_parts, adapt in itertools.product((False, True), adapted):
        messages = adapt(list(trajectory.messages))
        try:
            return iter(_match(messages, template, as_parts=as_parts))
        except TemplateLimitError as error:
            raise SettingsError(
                f"the model's chat template cannot render trajectory {trajectory.id!r}: {error}.\n"
                f"{USE_OTHER_RENDERING[:-1]}, without --apply_chat_template."
            ) from error
        except SettingsError:
            raise
        except DataError as error:
            problems.append(str(error))
        except Exception as error:  # a Jinja template raises what it likes; the user sees the last problem
            problems.append(f"{type(error).__name__}: {error}")
    reason = problems[len(adapted) - 1]
    raise DataError(
        f"the model's chat template cannot render trajectory {trajectory.id!r} without changing its text "
        f"({reason}). Use --metadata render=native (reasoning and tool calls in the model's own format), or "
        "render=chatml or render=transcript, without --apply_chat_template."
    )


def _match(messages: list[Message], template: ChatTemplate, *, as_parts: bool) -> list[_Piece]:
    text = _apply(template, messages, [m.text for m in messages], as_parts)
    marks = [f"HESNR{i:06d}MARK" for i in range(len(messages))]
    if any(mark in text for mark in marks):
        raise DataError("the text contains one of our placeholders")
    gaps, rest = [], _apply(template, messages, marks, as_parts)
    for mark, message in zip(marks, messages, strict=True):
        if rest.count(mark) != 1:
            raise DataError(f"it drops or repeats a message of role {message.role!r}")
        gap, rest = rest.split(mark)
        gaps.append(gap)
    gaps.append(rest)
    for strip in _STRIPS:
        pieces = list(_interleave(gaps, messages, strip))
        if "".join(piece[0] for piece in pieces) == text:
            return pieces
    raise DataError("it rewrites the content of messages, for instance by dropping earlier reasoning")


def _apply(template: ChatTemplate, messages: list[Message], contents: list[str], as_parts: bool) -> str:
    chat: list[dict[str, Any]] = [{"role": m.role, "content": c} for m, c in zip(messages, contents, strict=True)]
    if as_parts:
        chat = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
    text = run_template(lambda: template(chat))
    if not isinstance(text, str) or type(text).__name__ == "JsonChatStr":
        raise DataError("this backend has no chat template of its own")
    return text


def _interleave(gaps: list[str], messages: list[Message], strip: Callable[[str], str]) -> Iterator[_Piece]:
    turns = _turns(messages)
    for gap, message, turn in zip(gaps, messages, turns, strict=False):
        yield gap, Kind.SCAFFOLD, turn, True
        kept = strip(message.text)
        start = message.text.find(kept)
        yield from _clip(message, start, start + len(kept), turn)
    yield gaps[-1], Kind.SCAFFOLD, turns[-1] if turns else 1, True


def _clip(message: Message, start: int, end: int, turn: int) -> Iterator[_Piece]:
    offset = 0
    for segment in message.segments:
        text = segment.text[max(0, start - offset) : max(0, end - offset)]
        offset += len(segment.text)
        yield text, segment.kind, turn, False


def _tools_as_users(messages: list[Message]) -> list[Message]:
    return [Message("user", m.segments) if m.role == "tool" else m for m in messages]


def _only_users_and_assistants(messages: list[Message]) -> list[Message]:
    """System text joins the first user message and neighbours of one role are joined by a blank line."""
    merged: list[Message] = []
    for message in _tools_as_users(messages):
        role = "user" if message.role == "system" else message.role
        if merged and merged[-1].role == role:
            joint = Segment(Kind.SCAFFOLD, "\n\n")
            merged[-1] = Message(role, (*merged[-1].segments, joint, *message.segments))
        else:
            merged.append(Message(role, message.segments))
    return merged


# --- Labels: the kind of a character, the filters that drop it, and the tokens that therefore count ---

MAX_FILTERS = 5  # 4 codes for the other kinds + 2**5 for actions fit the 64 bits of a label
_OTHERS = (Kind.CONTEXT, Kind.OBSERVATION, Kind.THOUGHT, Kind.SCAFFOLD)
_ACTION = len(_OTHERS)


def kind_code(kind: Kind) -> int:
    """The code of a character of `kind` that no filter drops."""
    return _ACTION if kind is Kind.ACTION else _OTHERS.index(kind)


def action_code(filter_bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Codes of action characters from the filters that drop each.

    Args:
        filter_bits: uint8, any shape: bit i for the i-th filter.

    Returns:
        uint8, the same shape.
    """
    return (_ACTION + filter_bits).astype(np.uint8)


def label_mask(kinds: Collection[Kind], filters: Collection[str], known_filters: Sequence[str]) -> np.uint64:
    """The codes that count: `label & mask != 0` iff the token covers a character of `kinds` that no filter drops.

    Args:
        kinds: kinds of characters that count.
        filters: names of the filters that apply to actions.
        known_filters: names in the order of the labels' filter bits (it is stored with score files).
    """
    dropped = sum(1 << known_filters.index(name) for name in filters)
    mask = sum(1 << kind_code(kind) for kind in kinds if kind is not Kind.ACTION)
    if Kind.ACTION in kinds:
        mask |= sum(1 << (_ACTION + bits) for bits in range(1 << len(known_filters)) if not bits & dropped)
    return np.uint64(mask)
