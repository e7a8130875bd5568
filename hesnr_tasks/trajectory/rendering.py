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

import ctypes
import hashlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jinja2
import numpy as np
import numpy.typing as npt

from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory

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
        first = last = self.spans[0] if self.spans else None
        for span in self.spans:
            if first and last and (span.kind is not first.kind or span.turn != first.turn):
                yield Block(first.start, last.end, first.kind, first.turn)
                first = span
            last = span
        if first and last:
            yield Block(first.start, last.end, first.kind, first.turn)


class NativeRenderer(Protocol):
    """Renders in a model's own format: `chat_rendering.NativeTemplate`."""

    def render(self, trajectory: Trajectory) -> Rendered:
        """The trajectory in the model's format."""
        ...


class _Piece(NamedTuple):
    text: str
    kind: Kind
    turn: int
    control: bool


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
    kept = [piece for piece in pieces if piece.text]
    ends = itertools.accumulate(len(piece.text) for piece in kept)
    spans = (Span(end - len(p.text), end, p.kind, p.turn, p.control) for end, p in zip(ends, kept, strict=True))
    return Rendered("".join(piece.text for piece in kept), tuple(spans))


def _turns(messages: Sequence[Message]) -> list[int]:
    return list(itertools.accumulate((m.generated for m in messages), initial=1))[: len(messages)]


def _plain(trajectory: Trajectory, header: Callable[[str], str], end: str, *, control: bool) -> Iterator[_Piece]:
    for message, turn in zip(trajectory.messages, _turns(trajectory.messages), strict=True):
        yield _Piece(header(message.role), Kind.SCAFFOLD, turn, control)
        for segment in message.segments:
            yield _Piece(segment.text, segment.kind, turn, False)
        yield _Piece(end, Kind.SCAFFOLD, turn, control)


# --- running a template -----------------------------------------------------------------------------------------------

MAX_SECONDS = 60.0  # of one run of a template: real ones take milliseconds
MAX_BYTES = 4 << 30  # that the process may grow by while one runs
MAX_CHARACTERS = 1 << 26  # that a template may write: some 16 million tokens
USE_OTHER_RENDERING = "Use --metadata render=chatml or render=transcript."


class TemplateLimitError(DataError):
    """A template takes too long, writes too much or fills the memory; it is not tried again."""


class _Stopped(BaseException):
    """Raised by the watchdog in the thread that runs a template; no handler of templates or libraries catches it."""


class _Run(NamedTuple):
    thread: int
    start: float  # of the monotonic clock, seconds
    peak: int  # memory of the process at the start, bytes

    def excess(self) -> str:
        """What it takes too much of, if anything."""
        seconds = time.monotonic() - self.start
        if seconds > MAX_SECONDS:
            return f"it takes more than {MAX_SECONDS:.0f} seconds, and may loop for ever"
        if seconds > _UNWATCHED_SECONDS and _peak_memory() - self.peak > MAX_BYTES:
            return f"it needs more than {MAX_BYTES / 2**30:.0f} GiB of memory"
        return ""


_UNWATCHED_SECONDS = 1.0  # in which a template cannot fill much memory: what grows meanwhile is another thread


def _peak_memory() -> int:
    """The most that this process has had in memory so far, bytes; 0 where that is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _TemplateRunner:
    """Runs templates, one at a time, within the limits above; a thread watches as long as there are runs.

    No limit of the operating system is set: it would hold for the threads that load a model meanwhile as well.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """No template runs: a process that another thread forks meanwhile has neither the locks nor the watcher."""
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._current: _Run | None = None
        self._watcher: threading.Thread | None = None

    def run(self, template: Callable[[], Any]) -> Any:
        """What `template` returns.

        Raises:
            TemplateLimitError: it goes beyond a limit.
        """
        with self._turn:
            run = _Run(threading.get_ident(), time.monotonic(), _peak_memory())
            try:
                try:
                    self._current = run
                    if self._watcher is None or not self._watcher.is_alive():
                        self._watcher = threading.Thread(target=self._watch, name="hesnr-templates", daemon=True)
                        self._watcher.start()
                    text = template()
                finally:
                    with self._lock:
                        self._current = None
                    for _ in range(2):  # an exception that is on its way arrives here at the latest
                        pass
            except _Stopped:
                with self._lock:  # it may have come just before that was done
                    self._current = None
                raise TemplateLimitError(run.excess()) from None
            except MemoryError:
                raise TemplateLimitError("it needs more memory than there is") from None
            if excess := run.excess():  # of a single step, which nothing ends
                raise TemplateLimitError(excess)
        if isinstance(text, str) and len(text) > MAX_CHARACTERS:
            raise TemplateLimitError(f"it writes {len(text):,} characters")
        return text

    def _watch(self) -> None:
        idle = 0
        while idle < 20:
            time.sleep(0.25)
            with self._lock:
                idle = 0 if self._current else idle + 1
                if self._current and self._current.excess():
                    thread, exception = ctypes.c_ulong(self._current.thread), ctypes.py_object(_Stopped)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, exception)


run_template = _TemplateRunner().run

_TEMPLATE_TOKENS = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])


@lru_cache(maxsize=16)
def has_power(source: str) -> bool:
    """Whether a template computes a power: no limit ends one like `9 ** 9 ** 9`, which is a single step of Python."""
    before = ""
    try:
        tokens = list(_TEMPLATE_TOKENS.lex(source)) if "**" in source else []
    except jinja2.TemplateError:  # running it says why
        return False
    for _, kind, text in tokens:
        if kind == "operator" and text == "**" and before not in ("(", ","):  # those pass arguments
            return True
        if kind != "whitespace":
            before = text
    return False


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
        if "".join(piece.text for piece in pieces) == text:
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
        yield _Piece(gap, Kind.SCAFFOLD, turn, True)
        kept = strip(message.text)
        start = message.text.find(kept)
        yield from _clip(message, start, start + len(kept), turn)
    yield _Piece(gaps[-1], Kind.SCAFFOLD, turns[-1] if turns else 1, True)


def _clip(message: Message, start: int, end: int, turn: int) -> Iterator[_Piece]:
    offset = 0
    for segment in message.segments:
        text = segment.text[max(0, start - offset) : max(0, end - offset)]
        offset += len(segment.text)
        yield _Piece(text, segment.kind, turn, False)


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
