"""The rendering `native`: a trajectory in the model's own chat format, with reasoning, tool calls and tool results.

Messages go to the chat template as the model's own serving stack passes them. A template is opaque, so it is run twice:
once on the messages, and once with every leaf (a content, a reasoning, each argument value, each result) replaced by a
placeholder. The text between the placeholders is the template's own; each leaf is located in the real text, as it is
or under a transformation that templates use (stripped, JSON-escaped). The concatenation of both is compared with the
template's text: equal to the character, or an error that names template, message and leaf.

What a template cannot express is passed in the next simpler form (`VARIANTS`): arguments as JSON text, one call a
message, calls as text; tool results and system prompts as user messages. A short probe conversation, the same for all
trajectories, decides which forms a template has, and with which switches it keeps the reasoning of earlier turns.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesnr_tasks.actions import ToolCall, argument_json, render_call
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.chat_messages import (
    MARK,
    VARIANTS,
    Container,
    Conversation,
    Leaf,
    Variant,
    conversations,
    escaped,
    native_calls,
    widths,
)
from hesnr_tasks.trajectory.chat_templates import (
    DATE,
    USE_OTHER_RENDERING,
    FreeDateError,
    RandomChoiceError,
    TemplateLimitError,
    compiled,
    has_power,
    run_template,
    strftime,
)
from hesnr_tasks.trajectory.rendering import ActionSource, ChatTemplate, Passed, Rendered, Span

THOUGHTS = ("keep", "drop", "error")
CALLS = ("stored", "native")
SWITCHES: Mapping[str, Any] = {  # template arguments that keep the reasoning of earlier turns
    "enable_thinking": True,
    "thinking": True,
    "preserve_thinking": True,
    "preserve_previous_think": True,
    "keep_past_thinking": True,
    "truncate_history_thinking": False,
    "clear_thinking": False,
    "drop_thinking": False,
}
_OTHER_DATE = DATE + datetime.timedelta(days=400, hours=13, minutes=14, seconds=15, microseconds=16)
_CONTROL = re.compile(r"<[|｜][^|｜<>]*[|｜]>")
_NEAR = 100  # characters of punctuation between two elements of a list
_MAX_STEPS = 100  # of the search, a leaf


class _Borders(NamedTuple):
    """What stands around plain messages and around calls in a template, to tell call syntax from message headers."""

    before: tuple[str, ...]  # gaps that end in the content of an assistant message
    closing: str  # from the last value of a call to the end of the call
    end: str  # from there to the end of the message

    def after_call(self, gap: str) -> int:
        """Where the syntax of a call that `gap` follows ends in it."""
        closing = self.closing.lstrip('"')
        if closing.strip() and (index := gap.find(closing)) >= 0:
            return index + len(closing)
        if self.end.strip() and (index := gap.find(self.end)) >= 0:
            return index
        control = _CONTROL.search(gap)
        return control.end() if control else 0

    def header(self, gap: str) -> int:
        """Where the header of a message ends in `gap`, which a call follows."""
        return max(len(_common_prefix(gap, header)) for header in self.before)


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def refuse_unusable(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template, and one whose template no limit could stop.

    Raises:
        SettingsError: it is one.
    """
    source = getattr(tokenizer, "chat_template", None)
    if not source:
        raise SettingsError(f"the tokenizer {_name(tokenizer)!r} has no chat template.\n{USE_OTHER_RENDERING}")
    for named in source.values() if isinstance(source, Mapping) else [source]:
        if isinstance(named, str) and has_power(named):
            raise SettingsError(
                f"the chat template of {_name(tokenizer)!r} computes a power (**), which may take for ever.\n"
                f"{USE_OTHER_RENDERING}"
            )


@dataclass
class NativeTemplate:
    """A model's chat template, as `render=native` uses it.

    Args:
        tokenizer: has `apply_chat_template` and a `chat_template` of its own (Hugging Face interface).
        thoughts: of a template that drops the reasoning of earlier turns: `keep` tries the switches in `SWITCHES` and
            counts what is dropped all the same, `drop` takes the template as it is, `error` refuses.
        kwargs: arguments of the template; they override the switches.
        calls: `stored` passes calls as structures that were stored as such; `native` those that are text, too.
    """

    tokenizer: Any
    thoughts: str = "keep"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    calls: str = "stored"

    def __post_init__(self) -> None:
        self._beyond_limits = ""
        clash = sorted({"messages", "tools", "documents", "add_generation_prompt", "chat_template"} & set(self.kwargs))
        if clash:
            raise SettingsError(
                f"template_kwargs cannot set {', '.join(clash)}: that comes from the trajectory. Set arguments of the "
                "template's own, such as enable_thinking."
            )

    @property
    def name(self) -> str:
        """Whose template it is."""
        return _name(self.tokenizer)

    def render(self, trajectory: Trajectory) -> Rendered:
        """The trajectory in the template's format.

        Raises:
            DataError: the template cannot render it without changing, dropping or repeating what it holds.
        """
        calls = native_calls(trajectory, self.calls)
        problems: list[str] = []
        conversation = conversations(trajectory, calls, self._reasoning)
        for variant in self._variants:
            if variant.single and not any(len(of_message) > 1 for of_message in calls):
                continue
            try:
                rendered, dropped = self._located(conversation(variant), variant, self._switches)
            except DataError as error:
                problems.append(str(error))
                continue
            total = sum(len(s.text) for m in trajectory.messages for s in m.segments if s.kind is Kind.THOUGHT)
            if dropped and self.thoughts == "error":
                raise DataError(
                    f"the chat template of {self.name!r} drops {dropped} of {total} characters of thought of "
                    f"trajectory {trajectory.id!r}, with any of the switches {', '.join(SWITCHES)}. Use "
                    "thoughts=keep to score the others, template_kwargs with a switch of this template, or "
                    "render=chatml."
                )
            return replace(rendered, passed=Passed(str(variant), dropped, total))
        reason = problems[0] if problems else "it renders none of the forms of a short conversation"
        raise DataError(
            f"the chat template of {self.name!r} cannot render trajectory {trajectory.id!r} natively: {reason}. "
            f"{USE_OTHER_RENDERING}"
        )

    def describe(self, passed: Collection[Passed]) -> dict[str, Any]:
        """What decides the texts, for the signature of a number: settings, and what was made of the trajectories."""
        return {
            "thoughts": self.thoughts,
            "thoughts_dropped": sum(p.dropped for p in passed),
            "thoughts_total": sum(p.thoughts for p in passed),
            "switches": self._switches,
            "reasoning": self._reasoning,
            **({} if self.calls == "stored" else {"calls": self.calls}),
            "forms": dict(sorted(Counter(p.form for p in passed).items())),
        }

    # --- what the template does, by a probe ---------------------------------------------------------------------------

    @cached_property
    def _chosen(self) -> tuple[str, dict[str, Any]]:
        """The field of reasoning, and the switches, with which the template keeps the most of it."""
        probe = _probe_of_reasoning()
        options: list[dict[str, Any]] = [dict(self.kwargs)]
        if self.thoughts != "drop":
            options.append({**SWITCHES, **self.kwargs})
        fields = ("reasoning_content", "thinking", "reasoning")
        ranked = [(self._kept(probe, key, switches), key, switches) for switches in options for key in fields]
        if max(kept for kept, *_ in ranked) <= 0:  # no field of its own: reasoning is text of the content
            ranked = [(self._kept(probe, "inline", switches), "inline", switches) for switches in options]
        best = max(kept for kept, *_ in ranked)
        _, key, switches = next(option for option in ranked if option[0] == best)
        for name in [n for n in switches if n not in self.kwargs]:  # only those that matter
            fewer = {n: v for n, v in switches.items() if n != name}
            if self._kept(probe, key, fewer) == best:
                switches = fewer
        return key, switches

    def _kept(self, probe: Trajectory, key: str, switches: Mapping[str, Any]) -> int:
        conversation = conversations(probe, native_calls(probe), key)
        for variant in VARIANTS:
            try:
                text = self._run(conversation(variant), "value", variant, switches)
            except DataError:
                continue
            if all(f"content{n}" in text for n in range(4)):
                return sum(f"reason{n}" in text for n in range(4))
        return -1

    @property
    def _reasoning(self) -> str:
        return self._chosen[0]

    @property
    def _switches(self) -> dict[str, Any]:
        return self._chosen[1]

    @cached_property
    def _variants(self) -> list[Variant]:
        """The variants in which the template renders a short conversation, then those with calls as text."""
        probe = _probe_of_calls()
        conversation = conversations(probe, native_calls(probe), self._reasoning)
        native, lossy, text, last = list[Variant](), list[Variant](), list[Variant](), list[Variant]()
        for variant in VARIANTS:
            try:
                _, dropped = self._located(conversation(variant), variant, self._switches, probing=True)
            except DataError:
                if variant.calls == "text":  # a trajectory without tools may do with what the probe does not
                    last.append(variant)
                continue
            if variant.calls == "text":
                text.append(variant)
            elif dropped and self.thoughts != "drop":  # keeps less of the text beside calls than others may
                lossy.append(variant)
            else:
                native.append(variant)
        roles = [v.roles for v in VARIANTS]
        return [*native, *lossy, *sorted([*text, *last], key=lambda v: roles.index(v.roles))]

    def _borders(self, variant: Variant) -> _Borders:
        if variant not in self._known_borders:
            self._known_borders[variant] = self._measured_borders(variant)
        return self._known_borders[variant]

    @cached_property
    def _known_borders(self) -> dict[Variant, _Borders]:
        return {}

    def _measured_borders(self, variant: Variant) -> _Borders:
        user, plain = _message("user", "u"), _message("assistant", "t")
        call = _message("assistant", "t", ToolCall("run", {"command": "c"}))
        bare = _message("assistant", "", ToolCall("run", {"command": "c"}))
        reasoned = _message("assistant", "<think>\nr\n</think>\n\nt")

        def gaps(*messages: Message) -> list[str]:
            trajectory = Trajectory("probe", messages, fidelity=Fidelity.RENDERED)
            conversation = conversations(trajectory, native_calls(trajectory), self._reasoning)(variant)
            try:
                return MARK.split(self._run(conversation, "mark", variant, self._switches))
            except DataError:
                return ["", ""]

        tool = _message("tool", "o")
        before = [gaps(user, plain), gaps(user, reasoned), gaps(user, bare, tool, plain), gaps(user, plain, plain)]
        after_plain, after_call = gaps(user, plain)[-1], gaps(user, call)[-1]
        end = _common_suffix(after_plain, after_call)
        return _Borders(tuple(g[-2] for g in before), after_call[: len(after_call) - len(end)], end)

    # --- one text -----------------------------------------------------------------------------------------------------

    def dropped_text(self, passed: Collection[Passed]) -> str:
        """What was dropped, for people; empty where nothing was."""
        dropped, total = sum(p.dropped for p in passed), sum(p.thoughts for p in passed)
        if not dropped:
            return ""
        return (
            f"the model's chat template drops {dropped / total:.1%} of the characters of thought "
            f"({dropped:,} of {total:,}); what follows is scored without them (thoughts={self.thoughts})"
        )

    def text(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **kwargs: Any) -> str:
        """What the template makes of messages.

        Raises:
            DataError: the template raises, which it may do with any exception.
            SettingsError: there is none, or it takes too long, writes too much or fills the memory.
        """
        refuse_unusable(self.tokenizer)
        if self._beyond_limits:
            raise SettingsError(self._beyond_limits)
        try:
            return str(run_template(lambda: self._text(messages, tools, kwargs)))
        except TemplateLimitError as error:
            self._beyond_limits = f"the chat template of {self.name!r} cannot be used: {error}.\n{USE_OTHER_RENDERING}"
            raise SettingsError(self._beyond_limits) from error

    def _text(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, kwargs: Any) -> str:
        try:
            named = self.tokenizer.chat_template
            if isinstance(named, Mapping):
                named = named.get("tool_use" if tools and "tool_use" in named else "default")
            if not isinstance(named, str):
                raise DataError("it has no template of the name 'default'")
            if self._is_customised:
                return self._customised_text(named, messages, tools, kwargs)
            variables = {**getattr(self.tokenizer, "special_tokens_map", {}), **kwargs}
            variables.setdefault("add_generation_prompt", False)
            return compiled(named).render(messages=messages, tools=tools, documents=None, **variables)
        except (DataError, MemoryError):
            raise
        except Exception as error:
            raise DataError(f"it raises {type(error).__name__}: {str(error)[:300]}") from error

    def check_limits(self, messages: list[dict[str, Any]], kwargs: Mapping[str, Any]) -> None:
        """Run the template as --apply_chat_template will, but in our sandbox; within the limits of a run around it.

        Raises:
            TemplateLimitError: a step of it is beyond a limit.
        """
        if self._is_customised:
            return
        try:
            self._text(messages, None, {"add_generation_prompt": True, **kwargs})
        except TemplateLimitError:
            raise
        except DataError:  # the tokenizer's own method says it
            pass

    def prints_date(self, messages: list[dict[str, Any]], kwargs: Mapping[str, Any]) -> bool:
        """Whether what the template makes of messages depends on the date; within the limits of a run around it.

        Raises:
            DataError: the template raises.
        """
        dates = map(strftime, (DATE, _OTHER_DATE))
        return len({self._text(messages, None, {**kwargs, "strftime_now": date}) for date in dates}) > 1

    @cached_property
    def _is_customised(self) -> bool:
        """Whether the tokenizer's `apply_chat_template` may do more than run its template."""
        method = getattr(type(self.tokenizer), "apply_chat_template", None)
        return getattr(method, "__module__", "") != "transformers.tokenization_utils_base"

    def _customised_text(self, source: str, messages: list[dict[str, Any]], tools: Any, kwargs: Any) -> str:
        if "strftime_now" in source:
            raise FreeDateError(
                "it writes today's date, which a tokenizer with a method of its own does not let us fix"
            )
        texts = [
            self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=False, chat_template=source, **kwargs
            )
            for _ in range(2)
        ]
        if not isinstance(texts[0], str):
            raise DataError("it gives no text")
        if texts[0] != texts[1]:
            raise DataError("it writes another text each time: the date, a random choice, or a state")
        return str(texts[0])

    def _run(self, conversation: Conversation, what: str, variant: Variant, switches: Mapping[str, Any]) -> str:
        return self.text(conversation.chat(what, variant), conversation.tools(), **switches)

    def _located(
        self, conversation: Conversation, variant: Variant, switches: Mapping[str, Any], *, probing: bool = False
    ) -> tuple[Rendered, int]:
        """The rendering and the number of characters of thought that are not in it."""
        leaves, gaps = _skeleton(conversation, self._run(conversation, "mark", variant, switches))
        text = self._run(conversation, "value", variant, switches)
        places = _locate(text, gaps, leaves)
        present = {id(leaf) for leaf in leaves}
        dropped = sum(part.length for leaf in conversation.leaves if id(leaf) not in present for part in leaf.parts)
        if probing:
            return Rendered(text, ()), dropped
        return _rendered(text, conversation, gaps, leaves, places, self._borders(variant)), dropped


def steady(template: ChatTemplate, tokenizer: Any, kwargs: Any) -> ChatTemplate:
    """`template`, refused for the messages of which it would make another text tomorrow, or fill the memory.

    Args:
        template: makes a text of messages with the tokenizer's chat template, where nothing can fix the date.
        tokenizer: of Transformers, with a chat template.
        kwargs: arguments of the template, if any, which may set the date.

    Returns:
        What raises a `SettingsError` where the text holds today's date or a random choice, or where the template goes
        beyond a limit: Transformers' sandbox lets it make a text of any size in a single step.
    """
    source = str(tokenizer.chat_template)
    unsteady = any(name in source for name in ("strftime_now", "random", "lipsum"))
    native, options = NativeTemplate(tokenizer), kwargs if isinstance(kwargs, Mapping) else {}

    other = "Use --metadata render=chatml or render=transcript, without --apply_chat_template"
    fixed = ", or set its date_string in chat_template_args of --model_args" if "date_string" in source else ""

    def checked(chat: list[dict[str, Any]]) -> Any:
        native.check_limits(chat, options)
        text = template(chat)
        if not unsteady:
            return text
        try:
            dated = native.prints_date(chat, options)
        except (RandomChoiceError, FreeDateError) as error:
            reason = str(error).removeprefix("it ")
            raise SettingsError(f"the chat template of {native.name!r} {reason}.\n{other}.") from error
        if dated:
            raise SettingsError(
                f"the chat template of {native.name!r} prints today's date: numbers would change overnight.\n"
                f"{other}{fixed}, or --metadata render=native, which prints a fixed date."
            )
        return text

    return checked


def _message(role: str, text: str, *calls: ToolCall) -> Message:
    kind = {"assistant": Kind.THOUGHT, "tool": Kind.OBSERVATION}.get(role, Kind.CONTEXT)
    action = "\n\n" + "\n".join(map(render_call, calls)) if calls else ""
    segments = [Segment(kind, text), Segment(Kind.ACTION, action)]
    return Message(role, tuple(segment for segment in segments if segment.text))


def _probe_of_reasoning() -> Trajectory:
    def turn(number: int, *calls: ToolCall) -> Message:
        return _message("assistant", f"<think>\nreason{number}\n</think>\n\ncontent{number}", *calls)

    run = ToolCall("run", {"command": "ls"})
    messages = [_message("user", "a"), turn(0, run), _message("tool", "b"), turn(1), _message("user", "c")]
    messages += [turn(2, run), _message("tool", "d"), turn(3)]
    return Trajectory("probe", tuple(messages), fidelity=Fidelity.RENDERED)


def _probe_of_calls() -> Trajectory:
    run = ToolCall("run", {"command": "ls"})
    messages = [_message("user", "a"), _message("assistant", "b", run), _message("tool", "c")]
    messages += [_message("assistant", "", run), _message("tool", "d"), _message("assistant", "e", run)]
    messages += [_message("tool", "f"), _message("assistant", "g")]
    return Trajectory("probe", tuple(messages), fidelity=Fidelity.RENDERED)


def _common_suffix(a: str, b: str) -> str:
    return _common_prefix(a[::-1], b[::-1])[::-1]


def _common_prefix(a: str, b: str) -> str:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]


# --- leaves in the template's text ------------------------------------------------------------------------------------


def _skeleton(conversation: Conversation, skeleton: str) -> tuple[list[Leaf], list[str]]:
    """The leaves in the order of the text, and the text before, between and after them."""
    by_mark = {str(leaf.mark): leaf for leaf in conversation.leaves}
    marks, gaps, position = list[str](), list[str](), 0
    for match in MARK.finditer(skeleton):
        marks.append(match[0])
        gaps.append(skeleton[position : match.start()])
        position = match.end()
    leaves = [by_mark[mark] for mark in marks if mark in by_mark]
    counts = Counter(marks)
    for mark, leaf in by_mark.items():
        if (count := counts[mark]) == 1:
            continue
        if count > 1 and not leaf.is_name:
            raise DataError(f"it repeats message {leaf.message + 1}, {leaf.where}")
        if not count and not (leaf.parts and all(part.kind is Kind.THOUGHT for part in leaf.parts)):
            raise DataError(f"it drops message {leaf.message + 1}, {leaf.where}")
    order = [leaf.message for leaf in leaves if not leaf.is_name]
    for before, after in itertools.pairwise(order):
        if before > after:
            raise DataError(f"it reorders the messages: message {before + 1} comes before message {after + 1}")
    return leaves, [*gaps, skeleton[position:]]


class _LeafForm(NamedTuple):
    """A leaf as a template may write it: `text`, made from characters `start` to `end` of the leaf."""

    text: str
    start: int
    end: int
    escape: Callable[[str], str] | None = None  # of each character; None: as they are


_STRIPS: tuple[Callable[[str], str], ...] = (
    lambda s: s,
    str.strip,
    str.rstrip,
    str.lstrip,
    lambda s: s.strip("\n"),
    lambda s: s.rstrip("\n"),
    lambda s: s.lstrip("\n"),
)


def _ascii(text: str) -> str:
    return encode_basestring_ascii(text)[1:-1]


_HTML = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'"}
_QUOTES = {92: "\\\\", 39: "\\'", 10: "\\n", 13: "\\r"}
_ESCAPES: tuple[Callable[[str], str], ...] = (  # character by character
    escaped,
    _ascii,
    lambda text: _ascii(text).translate(_HTML),  # Jinja's own `tojson`
    lambda text: text.translate(_QUOTES),  # Python's quotes
    lambda text: escaped(escaped(text)),  # JSON as text in JSON
    lambda text: _ascii(_ascii(text)),
)


def _forms(leaf: Leaf) -> Iterator[_LeafForm]:
    """The forms in which templates write a leaf, the plain one first."""
    if not isinstance(leaf.value, str):
        for text in dict.fromkeys((argument_json(leaf.value), str(leaf.value))):
            yield _LeafForm(text, 0, len(text))
        return
    yield _LeafForm(leaf.value, 0, len(leaf.value))
    stripped = {leaf.value: 0}
    for strip in _STRIPS[1:]:
        text = strip(leaf.value)
        if text not in stripped:
            stripped[text] = leaf.value.find(text)
            yield _LeafForm(text, stripped[text], stripped[text] + len(text))
    for text, start in stripped.items():
        for escape in _ESCAPES:
            written = escape(text)
            if written != text:
                yield _LeafForm(written, start, start + len(text), escape)


def _locate(text: str, gaps: list[str], leaves: list[Leaf]) -> list[tuple[int, _LeafForm]]:
    """Where each leaf starts, and in which form, such that gaps and leaves join to `text`: a search, depth first."""
    if not leaves:
        if text == gaps[0]:
            return []
        raise DataError("its text depends on the content of messages")
    if not text.startswith(gaps[0]):
        raise DataError(f"its text before message {leaves[0].message + 1} depends on the content of messages")
    furthest, steps = 0, 0
    places: list[tuple[int, _LeafForm]] = []  # of the leaves before the current one
    others: list[Iterator[_LeafForm]] = []  # the forms of each of those that are not tried yet
    position, forms = len(gaps[0]), _forms(leaves[0])
    while True:
        index = len(places)
        furthest = max(furthest, index)
        gap = gaps[index + 1]
        for form in forms:
            steps += 1
            after = position + len(form.text)
            if text.startswith(form.text, position) and text.startswith(gap, after):
                after += len(gap)
                if index + 1 < len(leaves) or after == len(text):
                    break
        else:
            if not places or steps > _MAX_STEPS * len(leaves):
                leaf = leaves[furthest]
                raise DataError(f"it rewrites message {leaf.message + 1}, {leaf.where}, or what follows it")
            (position, _), forms = places.pop(), others.pop()
            continue
        places.append((position, form))
        if index + 1 == len(leaves):
            return places
        others.append(forms)
        position, forms = after, _forms(leaves[index + 1])


# --- labels -----------------------------------------------------------------------------------------------------------


class _Labels:
    """Collects spans and the places of action characters in the order of the text."""

    def __init__(self, borders: _Borders, n_actions: int) -> None:
        self.spans: list[Span] = []
        self.position = 0
        # of each action: where its pieces stand in the text, and in the action
        self.places: list[list[tuple[_Indices, _Indices]]] = [[] for _ in range(n_actions)]
        self._borders = borders
        self._split: dict[tuple[Any, ...], tuple[int, int]] = {}

    def span(self, length: int, kind: Kind, turn: int, *, control: bool) -> None:
        if length:
            self.spans.append(Span(self.position, self.position + length, kind, turn, control))
            self.position += length

    def leaf(self, leaf: Leaf, form: _LeafForm) -> None:
        if len(leaf.parts) == 1 and (form.escape is None or leaf.parts[0].action < 0):  # most are so
            part, start = leaf.parts[0], self.position
            self.span(len(form.text), part.kind, leaf.turn, control=False)
            if part.action >= 0:
                run = range(part.origin, part.origin + form.end) if isinstance(part.origin, int) else part.origin
                self.places[part.action].append((range(start, self.position), run[form.start : form.end]))
            return
        ends = None if form.escape is None else np.cumsum(widths(leaf.value[form.start : form.end], form.escape))
        last = 0
        for part in leaf.parts:
            first, last = last, last + part.length
            low, high = max(first, form.start) - form.start, min(last, form.end) - form.start
            if high <= low:
                continue
            borders = (low, high) if ends is None else (int(ends[low - 1]) if low else 0, int(ends[high - 1]))
            if part.action >= 0:
                index = np.arange(low, high) + (form.start - first)
                if ends is not None:
                    index = np.repeat(index, np.diff(ends[low:high], prepend=borders[0]))
                origin = part.origin + index if isinstance(part.origin, int) else part.origin[index]
                self.places[part.action].append((range(self.position, self.position + len(index)), origin))
            self.span(borders[1] - borders[0], part.kind, leaf.turn, control=False)

    def gap(self, gap: str, before: Leaf | None, call: Leaf | None, turn: int, next_turn: int) -> None:
        """Label text of the template: the syntax of calls is action, all else scaffold.

        Args:
            gap: the text.
            before: the leaf before it.
            call: the leaf after it, where that belongs to a call.
            turn: of the leaf before.
            next_turn: of the leaf after.
        """
        in_call = before is not None and before.is_call
        same = before is not None and call is not None and before.message == call.message
        key = gap, in_call, call is None, same, same and before is not None and before.where == "content"
        if key not in self._split:
            self._split[key] = self._syntax(*key)
        end, start = self._split[key]
        if end:
            self.span(end, Kind.ACTION, turn, control=True)
        if start > end:
            self.span(start - end, Kind.SCAFFOLD, next_turn, control=True)
        if len(gap) > start:
            self.span(len(gap) - start, Kind.ACTION, next_turn, control=True)

    def _syntax(self, gap: str, in_call: bool, plain: bool, same: bool, after_content: bool) -> tuple[int, int]:
        """Where the call before `gap` ends in it, and where the call after it starts."""
        if in_call and same:
            return len(gap), len(gap)
        end = self._borders.after_call(gap) if in_call else 0
        if plain:
            return end, len(gap)
        return end, end + (0 if after_content else self._borders.header(gap[end:]))


def _rendered(
    text: str,
    conversation: Conversation,
    gaps: list[str],
    leaves: list[Leaf],
    places: list[tuple[int, _LeafForm]],
    borders: _Borders,
) -> Rendered:
    labels = _Labels(borders, len(conversation.actions))
    names = set[int]()
    before: Leaf | None = None
    turn = 1
    for gap, leaf, (_, form) in zip(gaps, leaves, places, strict=False):
        repeated = leaf.is_name and id(leaf) in names  # a tool's name in the header of its result
        labels.gap(gap, before, leaf if leaf.is_call and not repeated else None, turn, leaf.turn)
        if repeated:
            labels.span(len(form.text), Kind.SCAFFOLD, leaf.turn, control=False)
        else:
            labels.leaf(leaf, form)
        if leaf.is_name:
            names.add(id(leaf))
        before, turn = None if repeated else leaf, leaf.turn
    labels.gap(gaps[-1], before, None, turn, turn)
    if conversation.containers:
        extents = {id(leaf): (start, start + len(f.text)) for leaf, (start, f) in zip(leaves, places, strict=True)}
        every = [(start, start + len(form.text)) for start, form in places]
        for box in conversation.containers:
            _punctuation(labels, text, box, [extents[id(leaf)] for leaf in box.leaves], every)
    in_text, in_action = (_flat([pair[i] for pairs in labels.places for pair in pairs]) for i in range(2))
    ends = itertools.accumulate(sum(len(places) for places, _ in pairs) for pairs in labels.places)
    slices = itertools.starmap(slice, itertools.pairwise([0, *ends]))
    sources = (ActionSource(a, in_text[s], in_action[s]) for a, s in zip(conversation.actions, slices, strict=True))
    return Rendered(text, tuple(labels.spans), tuple(sources))


_Indices = range | npt.NDArray[np.int64]


def _flat(pieces: list[_Indices]) -> npt.NDArray[np.int64]:
    """The numbers of all pieces, in order."""
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    starts = np.array([piece.start if isinstance(piece, range) else 0 for piece in pieces], np.int64)
    ends = np.cumsum(lengths)
    result = np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)
    for piece, end in zip(pieces, ends.tolist(), strict=True):
        if not isinstance(piece, range):
            result[end - len(piece) : end] = piece
    return result


def _punctuation(
    labels: _Labels, text: str, box: Container, places: list[tuple[int, int]], every: list[tuple[int, int]]
) -> None:
    """Give the keys, brackets and commas of a list or an object their places in the action, spaces aside.

    Where a template writes brackets and commas in its own way (other quotes), they are syntax.

    Args:
        labels: get the places.
        text: of the template.
        box: the list or the object.
        places: of its leaves.
        every: places of all leaves, in the order of the text.
    """
    for number, (piece, origin) in enumerate(box.pieces):
        signs = [i for i, c in enumerate(piece) if not c.isspace()]
        if number == 0:
            begin = places[0][0]
            native = _signs(text, range(begin - 1, max(begin - _NEAR, -1), -1), len(signs))[::-1]
        elif number == len(places):
            end = places[-1][1]
            native = _signs(text, range(end, min(end + _NEAR, len(text))), len(signs))
        else:
            native = _signs(text, range(places[number - 1][1], places[number][0]), _NEAR)
        if [text[i] for i in native] == [piece[i] for i in signs]:
            labels.places[box.action].append((np.array(native, np.int64), origin[signs]))
            continue
        places_of_keys = _keys(piece, text, places, number, every)
        labels.places[box.action] += [(range(n, n + len(k[1])), origin[slice(*k.span(1))]) for k, n in places_of_keys]


_KEY = re.compile(r'"((?:[^"\\]|\\.)+)": ?')
_MAX_GAPS = 20  # between a key and the value that it stands before in the action


def _keys(
    piece: str, text: str, places: list[tuple[int, int]], number: int, every: list[tuple[int, int]]
) -> Iterator[tuple[re.Match[str], int]]:
    """The keys in piece `number` of JSON, and where they stand in the text.

    They are looked for before the leaf that follows the piece, wherever a template that sorts has put it, and before
    the leaves of the same value that stand before that one; keys after the last leaf, behind it.
    """
    keys = list(_KEY.finditer(piece))
    if not keys:
        return
    gaps = list[tuple[int, int]]()
    if before := number < len(places):
        keys.reverse()
        inside, index = {*places}, bisect.bisect_left(every, places[number])
        for i in range(index, max(index - _MAX_GAPS, -1), -1):
            gaps.append((every[i - 1][1] if i else 0, every[i][0]))
            if not i or every[i - 1] not in inside:
                break
    else:
        index = bisect.bisect_right(every, places[-1])
        gaps = [(places[-1][1], every[index][0] if index < len(every) else len(text))]
    for key in keys:
        word = re.compile(rf"(?<!\w){re.escape(key[1])}(?!\w)")
        for i, (start, end) in enumerate(gaps):
            if words := [start + m.start() for m in word.finditer(text[start:end])]:
                place = words[-1 if before else 0]
                yield key, place
                gaps[i:] = [(start, place) if before else (place + len(key[1]), end), *gaps[i + 1 :]]
                break


def _signs(text: str, positions: range, count: int) -> list[int]:
    """The first `count` of `positions` that are no white space."""
    return list(itertools.islice((i for i in positions if not text[i].isspace()), count))
