"""Rendering keeps every character's label, in all three forms."""

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.rendering import render

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = "<s>{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} [/]{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
DROPS_THINKING = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}|{% endfor %}"
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def template(source):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    compiled = jinja2.Environment().from_string(source)
    return lambda messages: compiled.render(
        messages=messages, add_generation_prompt=True, raise_exception=raise_exception
    )


def message(role, *segments):
    return Message(role, tuple(Segment(kind, text) for kind, text in segments))


RUN = Trajectory(
    "run",
    (
        message("system", (Kind.CONTEXT, "Use <|im_start|> with care. ")),
        message("user", (Kind.CONTEXT, "Fix the bug.")),
        message("assistant", (Kind.THOUGHT, " Look first."), (Kind.ACTION, "\n\nls")),
        message("tool", (Kind.OBSERVATION, "a.py\nb.py")),
        message("assistant", (Kind.ACTION, "cat a.py ")),
        message("tool", (Kind.OBSERVATION, "print(1)")),
    ),
)


def check(rendered):
    """Spans cover the text exactly once, in order."""
    end = 0
    for span in rendered.spans:
        assert span.start == end < span.end
        end = span.end
    assert end == len(rendered.text)


def of_kind(rendered, kind):
    return [rendered.text[s.start : s.end] for s in rendered.spans if s.kind is kind]


def test_transcript_is_plain_text():
    rendered = render(RUN)
    check(rendered)
    assert rendered.text.endswith("Tool:\na.py\nb.py\n\nAssistant:\ncat a.py \n\nTool:\nprint(1)\n\n")
    assert of_kind(rendered, Kind.ACTION) == ["\n\nls", "cat a.py "]
    assert not any(span.control for span in rendered.spans)


def test_chatml_marks_only_its_own_tokens_as_control():
    rendered = render(RUN, "chatml")
    check(rendered)
    control = [rendered.text[s.start : s.end] for s in rendered.spans if s.control]
    assert control[:2] == ["<|im_start|>system\n", "<|im_end|>\n"]
    assert "Use <|im_start|> with care. " in of_kind(rendered, Kind.CONTEXT)


def test_the_models_own_template_keeps_labels():
    rendered = render(RUN, "template", template(CHATML))
    check(rendered)
    assert rendered.text == template(CHATML)([{"role": m.role, "content": m.text} for m in RUN.messages])
    assert of_kind(rendered, Kind.THOUGHT) == [" Look first."]
    assert of_kind(rendered, Kind.ACTION) == ["\n\nls", "cat a.py "]


def test_a_template_that_trims_keeps_labels():
    rendered = render(RUN, "template", template(TRIMMING))
    check(rendered)
    assert of_kind(rendered, Kind.THOUGHT) == ["Look first."]
    assert of_kind(rendered, Kind.ACTION) == ["\n\nls", "cat a.py"]


@pytest.mark.parametrize("source", [STRICT, DROPS_SYSTEM])
def test_a_template_that_knows_only_users_and_assistants_gets_merged_messages(source):
    rendered = render(RUN, "template", template(source))
    check(rendered)
    assert rendered.text.startswith("<user>Use <|im_start|> with care. \n\nFix the bug.<assistant> Look")
    assert of_kind(rendered, Kind.OBSERVATION) == ["a.py\nb.py", "print(1)"]


def test_a_template_that_rewrites_content_is_refused():
    thinking = Trajectory(
        "t", (message("user", (Kind.CONTEXT, "hi")), message("assistant", (Kind.ACTION, "a</think>b")))
    )
    with pytest.raises(DataError, match=r"'t'.*rewrites.*render=chatml"):
        render(thinking, "template", template(DROPS_THINKING))


def test_turns_count_the_messages_the_agent_wrote():
    turns = {(span.turn, span.kind) for span in render(RUN).spans}
    assert (1, Kind.CONTEXT) in turns
    assert (2, Kind.OBSERVATION) in turns
    assert (3, Kind.OBSERVATION) in turns
    assert (2, Kind.ACTION) in turns


def test_unknown_renderings_name_the_nearest():
    with pytest.raises(SettingsError, match="Did you mean 'chatml'"):
        render(RUN, "chat_ml")
    with pytest.raises(SettingsError, match="apply_chat_template"):
        render(RUN, "template")


segments = st.builds(
    Segment, st.sampled_from([Kind.CONTEXT, Kind.OBSERVATION, Kind.THOUGHT, Kind.ACTION]), st.text(max_size=12)
)
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(segments, max_size=3).map(tuple)
)


@given(st.lists(messages, max_size=6), st.sampled_from(["transcript", "chatml", CHATML, TRIMMING, STRICT]))
@settings(max_examples=150)
def test_labels_cover_any_trajectory_exactly_once(messages, form):
    run = Trajectory("any", tuple(messages))
    plain = form in ("transcript", "chatml")
    try:
        rendered = render(run, form if plain else "template", None if plain else template(form))
    except DataError:
        assert form == STRICT  # it starts with an assistant: this template accepts no such trajectory
        return
    check(rendered)
    if plain:
        for kind in (Kind.CONTEXT, Kind.OBSERVATION, Kind.THOUGHT, Kind.ACTION):
            given_text = "".join(s.text for m in messages for s in m.segments if s.kind is kind)
            assert "".join(of_kind(rendered, kind)) == given_text


@given(st.lists(messages, max_size=6))
def test_blocks_are_the_maximal_runs_of_one_kind_and_turn(messages):
    rendered = render(Trajectory("any", tuple(messages)))
    labels = [(span.kind, span.turn) for span in rendered.spans for _ in range(span.start, span.end)]
    borders = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    blocks = list(rendered.blocks())
    assert [block.start for block in blocks] == [0, *borders] * bool(labels)
    assert [block.end for block in blocks] == [*borders, len(labels)] * bool(labels)
    assert [(block.kind, block.turn) for block in blocks] == [labels[block.start] for block in blocks]
