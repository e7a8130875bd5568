"""What chat templates do with trajectories under `render=native`, as a Markdown table (docs/renderings.md).

    python -m benchmarks.chat_templates TRAJECTORIES [TEMPLATE.jinja …]

Without templates, those of TRL's package. Each trajectory is rendered in four ways: as it is and with reasoning before
every turn, with its calls as they were stored and all as structures (`calls=native`). Labels are checked against a
computation of their own: before rendering, every letter o of a text becomes a sign that stands for the text's kind
(of actions: in the values alone), so that the rendering shows by itself which character is of which kind.
"""

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoTokenizer

from hesnr_tasks import demo
from hesnr_tasks.actions.grammar import _parse, parse_action
from hesnr_tasks.errors import DataError
from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.filters.regions import regions
from hesnr_tasks.formats import load
from hesnr_tasks.testing import byte_tokenizer
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.alignment import Encoder, token_labels
from hesnr_tasks.trajectory.chat_rendering import NativeTemplate
from hesnr_tasks.trajectory.rendering import Passed, Rendered, label_mask, render

_REASONING = ", with reasoning"  # of the ids of such versions
SIGNS = {Kind.CONTEXT: "甲", Kind.OBSERVATION: "乙", Kind.THOUGHT: "丙", Kind.ACTION: "丁"}
_KEPT = label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))
_PUNCTUATION = re.compile(r"""[\s"'\[\]{},:\\]""")  # of lists and objects, which a template may write in its own way


class Case(NamedTuple):
    """A trajectory with signs, and how its calls are passed."""

    trajectory: Trajectory
    calls: str


def cases(source: str) -> list[Case]:
    """Each trajectory of `source` as it is and with reasoning, with its calls as stored and as structures."""
    signed = [with_signs(trajectory) for trajectory in load([source])]
    both = [version for t in signed for version in (t, with_reasoning(t))]
    return [Case(trajectory, calls) for trajectory in both for calls in ("stored", "native")]


def with_signs(trajectory: Trajectory) -> Trajectory:
    """The trajectory with a sign of its kind for every letter o: that letter is in no escape and no JSON constant."""

    def signed(segment: Segment) -> Segment:
        text, sign = segment.text, SIGNS[segment.kind]
        calls = parse_action(text) if segment.kind is Kind.ACTION else []
        if not calls:
            return replace(segment, text=text.replace("o", sign))
        position, pieces = 0, []
        for p in sorted((p for call in calls for p in call.parameters), key=lambda p: p.value_start):
            pieces += [text[position : p.value_start], text[p.value_start : p.value_end].replace("o", sign)]
            position = p.value_end
        return replace(segment, text="".join([*pieces, text[position:]]))

    messages = (replace(m, segments=tuple(map(signed, m.segments))) for m in trajectory.messages)
    return replace(trajectory, messages=tuple(messages))


def with_reasoning(trajectory: Trajectory) -> Trajectory:
    """The trajectory with a few words of reasoning before each turn of the agent."""
    reasoning = Segment(Kind.THOUGHT, f"<think>\n{SIGNS[Kind.THOUGHT]} what is next?\n</think>\n\n")
    messages = (Message(m.role, (reasoning, *m.segments)) if m.generated else m for m in trajectory.messages)
    joined = (replace(m, segments=_joined(m.segments)) for m in messages)
    return replace(trajectory, id=f"{trajectory.id}{_REASONING}", messages=tuple(joined))


def _joined(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    if len(segments) > 1 and segments[0].kind is segments[1].kind:
        return (Segment(segments[0].kind, segments[0].text + segments[1].text), *segments[2:])
    return segments


def wrong_labels(trajectory: Trajectory, rendered: Rendered) -> list[str]:
    """What differs from what the signs in the text say; empty where every label is right."""
    return [*_wrong_kinds(rendered), *_wrong_counts(trajectory, rendered), *_wrong_kept(trajectory, rendered)]


def _wrong_kinds(rendered: Rendered) -> Iterator[str]:
    every = tuple(Kind)
    kinds = np.full(len(rendered.text), -1)
    control = np.zeros(len(rendered.text), bool)
    for span in rendered.spans:
        kinds[span.start : span.end] = every.index(span.kind)
        control[span.start : span.end] = span.control
    characters = np.array(list(rendered.text))
    for kind, sign in SIGNS.items():
        wrong = (characters == sign) & ((kinds != every.index(kind)) | control)
        if wrong.any():
            yield f"{int(wrong.sum())} characters of kind {kind.value} have another label"
    own = (characters == "o") & ~np.isin(kinds, [every.index(Kind.SCAFFOLD), every.index(Kind.ACTION)])
    if own.any():
        yield f"{int(own.sum())} characters of the template have the label of a text"


def _wrong_counts(trajectory: Trajectory, rendered: Rendered) -> Iterator[str]:
    stored = "".join(message.text for message in trajectory.messages)
    for kind, sign in SIGNS.items():
        there, here = stored.count(sign), rendered.text.count(sign)
        lost = rendered.passed.dropped if rendered.passed and kind is Kind.THOUGHT else 0
        if not there - lost <= here <= there:
            yield f"{here} of {there} characters of kind {kind.value} are there"


def _wrong_kept(trajectory: Trajectory, rendered: Rendered) -> Iterator[str]:
    here, there = (_kept(r) for r in (rendered, render(trajectory, "chatml")))
    if here != there:
        yield f"{len(here)} characters of actions count, and {len(there)} in chatml"


def _kept(rendered: Rendered) -> str:
    """The characters of actions that count, as they stand in the trajectory."""
    counts = (np.uint64(1) << char_codes(rendered).astype(np.uint64)) & _KEPT != 0
    if rendered.sources is None:
        text = "".join(np.array(list(rendered.text))[counts])
    else:
        text = "".join(
            s.action[i] for s in rendered.sources for i in np.unique(s.action_index[counts[s.text_index]]).tolist()
        )
    return _PUNCTUATION.sub("", text)


class Seconds(NamedTuple):
    """Of the processor, for one trajectory, `native` over `chatml`."""

    characters: float  # from messages to labels of characters
    tokens: float  # and on to those of tokens, as they go to a model


@dataclass
class Tally:
    """Of one template."""

    rendered: int = 0
    refused: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    seconds: list[Seconds] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


def tally(source: str, some: Sequence[Case], encoder: Encoder | None = None) -> Tally:
    """Render the cases with a template and check the labels; with `encoder`, take the time of those with reasoning."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token, tokenizer.chat_template = "<s>", source
    templates = {calls: NativeTemplate(tokenizer, calls=calls) for calls in ("stored", "native")}
    result, passed = Tally(), list[Passed]()
    for trajectory, calls in some:
        native = templates[calls]
        try:
            rendered = native.render(trajectory)
        except DataError as error:
            result.refused.append(str(error))
            continue
        if encoder and calls == "stored" and trajectory.id.endswith(_REASONING):
            ours, chatml = (
                _seconds(rendering, encoder)
                for rendering in (partial(native.render, trajectory), partial(render, trajectory, "chatml"))
            )
            result.seconds.append(Seconds(ours.characters / chatml.characters, ours.tokens / chatml.tokens))
        result.rendered += 1
        result.differing += [f"{trajectory.id} ({calls}): {reason}" for reason in wrong_labels(trajectory, rendered)]
        passed += [rendered.passed] if rendered.passed else []
    result.about = templates["stored"].describe(passed)
    return result


def _seconds(rendering: Callable[[], Rendered], encoder: Encoder) -> Seconds:
    """The best of three, each as if the trajectory had not been seen before."""
    every = []
    for _ in range(3):
        for of_last_actions in (_parse, regions):
            of_last_actions.cache_clear()
        times = [time.process_time()]
        rendered = rendering()
        codes = char_codes(rendered)
        times.append(time.process_time())
        token_labels(encoder.encode(rendered), codes)
        times.append(time.process_time())
        every.append(Seconds(times[1] - times[0], times[2] - times[0]))
    return Seconds(*map(min, zip(*every, strict=True)))


def trl_templates() -> list[Path]:
    """The chat templates in TRL's package."""
    import trl

    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


def main(source: str, *templates: str) -> None:
    """Print the table."""
    every, all_tallies = cases(source), list[Tally]()
    encoder = Encoder(AutoTokenizer.from_pretrained(demo.ladder_paths()[0][1]))
    print("| template | rendered | labels that differ | reasoning goes to | switches set | dropped | passed as |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in [Path(name) for name in templates] or trl_templates():
        counts = tally(path.read_text(), every, encoder)
        all_tallies.append(counts)
        about = counts.about
        switches = ", ".join(f"`{name}={value}`" for name, value in about["switches"].items())
        forms = "; ".join(f"{form} ({count})" for form, count in about["forms"].items())
        dropped = f"{about['thoughts_dropped'] / max(1, about['thoughts_total']):.0%}"
        cells = [path.stem, f"{counts.rendered} of {len(every)}", str(len(counts.differing)), f"`{about['reasoning']}`"]
        print(f"| {' | '.join([*cells, switches, dropped, forms])} |", flush=True)
        for line, count in Counter([*counts.refused, *counts.differing]).items():
            print(f"{path.stem}: {line} ({count})", file=sys.stderr)
    print(
        f"\n{len(all_tallies)} templates, {len(every)} cases each: {sum(len(t.refused) for t in all_tallies)} refused, "
        f"{sum(len(t.differing) for t in all_tallies)} with labels that differ.\nTime over that of chatml, median and "
        "what nine of ten stay below:"
    )
    for name in Seconds._fields:
        ratios = sorted(getattr(seconds, name) for t in all_tallies for seconds in t.seconds)
        print(f"  from messages to labelled {name}: {median(ratios):.2f}, {ratios[int(0.9 * (len(ratios) - 1))]:.2f}")


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main(*sys.argv[1:])
