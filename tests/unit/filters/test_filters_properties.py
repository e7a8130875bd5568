"""What must hold of filters on any text: no error, spans inside it, bits that are the spans', linear time."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.filters import FILTERS, char_codes, filter_bits
from hesnr_tasks.filters.languages import LANGUAGES, comments_of
from hesnr_tasks.formats import load
from hesnr_tasks.labels import MAX_FILTERS, action_code, kind_code, label_mask
from hesnr_tasks.rendering import render
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from tests.unit.filters.marked import positions

LEXED = sorted(name for name, language in LANGUAGES.items() if language.comments)
SYNTAX = (
    "<function=bash>\n",
    "<parameter=command>",
    "<parameter=path>a.py",
    "</parameter>\n",
    "</function>\n",
    "```sh\n",
    "```\n",
)
SHELL = (
    "cat > x.py <<'EOF'\n",
    "EOF\n",
    "$(",
    "`",
    "${",
    "}",
    ")",
    "python -c ",
    "<<A <<B\n",
    "bash -c '",
    "case x in a)",
    "((",
)
CODE = (
    '"',
    "'",
    '"""',
    "#",
    "//",
    "/*",
    "*/",
    "f'{",
    "\\",
    "<!--",
    "@@ -1 +1 @@\n",
    "+++ b/x.js\n",
    "+",
    "-",
    "*",
    "\r\n",
    "\n",
    " ",
)
JSON = (
    '<tool_call>{"name": "bash", "arguments": {"command": "',
    "\\n",
    '\\"',
    '"}}</tool_call>',
    "\\u00",
    "\ud800",
    "\0",
)
TEXTS = st.lists(st.sampled_from((*SYNTAX, *SHELL, *CODE, *JSON, "x = 1")) | st.text(max_size=5), max_size=40).map(
    "".join
)


def test_the_order_of_the_filters_is_fixed():
    assert list(FILTERS) == ["xml", "format", "comments"]
    assert len(FILTERS) <= MAX_FILTERS


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_no_text_raises_and_bits_are_those_of_the_spans(text):
    bits = filter_bits(text)
    assert bits.shape == (len(text),)
    assert bits.dtype == np.uint8
    for i, filter_ in enumerate(FILTERS.values()):
        spans = filter_(text)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert positions(spans) == set(np.flatnonzero(bits >> i & 1).tolist())


@given(TEXTS, st.sampled_from(LEXED))
@settings(max_examples=300, deadline=None)
def test_no_grammar_raises(text, language):
    assert all(0 <= start <= end <= len(text) for start, end in comments_of(text, language))


COMMANDS = st.sampled_from(
    ["ls # a", "echo '#' \"x\"", "cat > x.py <<'EOF'\nx = 1 # b\nEOF", "python -c 'y # c'", "====", "it's"]
)


@given(st.lists(COMMANDS, min_size=2, max_size=4))
def test_calls_one_after_another_have_the_bits_of_each(commands):
    calls = [f"<function=bash>\n<parameter=command>{c}</parameter>\n</function>" for c in commands]
    bits = filter_bits("\n".join(calls))
    position = 0
    for call in calls:
        assert (bits[position : position + len(call)] == filter_bits(call)).all()
        position += len(call) + 1


def test_codes_of_a_rendered_trajectory():
    action = "<function=bash>\n<parameter=command>ls # x</parameter>\n</function>"
    messages = (
        Message("user", (Segment(Kind.CONTEXT, "# task"),)),
        Message(
            "assistant",
            (
                Segment(Kind.THOUGHT, "Look # first"),
                Segment(Kind.ACTION, action[:20]),
                Segment(Kind.ACTION, action[20:]),
            ),
        ),
        Message("assistant", (Segment(Kind.ACTION, action),)),
        Message("user", (Segment(Kind.OBSERVATION, "# out"),)),
    )
    rendered = render(Trajectory("t", messages))
    codes = char_codes(rendered)
    expected = np.empty(len(rendered.text), np.uint8)
    for span in rendered.spans:
        expected[span.start : span.end] = kind_code(span.kind)
    start = rendered.text.index(action)
    for at in (start, rendered.text.index(action, start + 1)):
        expected[at : at + len(action)] = action_code(filter_bits(action))
    assert (codes == expected).all()
    kept = label_mask([Kind.ACTION], list(FILTERS), list(FILTERS))
    assert "".join(c for c, code in zip(rendered.text, codes, strict=True) if int(kept) >> int(code) & 1) == "lsls"


def test_the_real_trajectories_are_labelled_and_something_is_kept(shared):
    for name in (
        "swesmith_xml_messages.jsonl",
        "openhands_events_output.jsonl",
        "mini_swe_agent_v1_messages.traj.json",
    ):
        for trajectory in load(str(shared / name)):
            rendered = render(trajectory)
            codes = char_codes(rendered)
            assert codes.shape == (len(rendered.text),)
            assert (codes == kind_code(Kind.ACTION)).any()


SIGNS = (
    '"',
    "'",
    "`",
    "/",
    "/*",
    "*/",
    "\\",
    '\\"',
    "{",
    "${",
    "#{",
    "f'{",
    "(",
    "$(",
    "[",
    "/[",
    "%{",
    '"""',
    "<!--",
    "<",
    "#",
)
WORDS = (
    "<<E\n",
    "|\n",
    "- ",
    "\n",
    "\t",
    "a ",
    "a/",
    "=begin\n",
    "word word word word ",
    "* ",
    "```\n",
    "+x\n",
    "x: '",
    '{"a":',
)
REPEATED = (
    *SIGNS,
    *WORDS,
    "<function=a>\n",
    "<parameter=b>",
    "</parameter>",
    "</function>\n",
    '<tool_call>{"a": </tool_call>',
)


def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def takes_less_than(limit, function, text, *rest):
    """Whether `function` takes less than `limit` seconds of processor time, at the second try if not at the first."""
    return any(seconds(function, text + " " * i, *rest) < limit for i in range(2))


@pytest.mark.parametrize("language", LEXED)
def test_grammars_take_linear_time_on_repetitions(language):
    """8 KB of any token take milliseconds (a quadratic step would take seconds); # // -- /* defeat the pre-checks."""
    for unit in REPEATED:
        text = unit * (8_000 // len(unit)) + "\n# // -- /* %"
        assert takes_less_than(0.25, comments_of, text, language), unit


WRAPPERS = (
    "{}",
    "<function=bash>\n<parameter=command>{}</parameter>\n</function>",
    "<function=e>\n<parameter=path>a.md</parameter>\n<parameter=file_text>{}</parameter>\n</function>",
    "<function=apply_patch>\n<parameter=patch>+++ b/a.py\n@@\n{}</parameter>\n</function>",
    '<tool_call>{{"name": "bash", "arguments": {{"command": "{}',
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_filters_take_linear_time_on_repetitions(wrapper):
    for unit in REPEATED:
        text = wrapper.format(unit * (8_000 // len(unit)))
        assert takes_less_than(0.4, filter_bits, text), unit


def test_two_hundred_kilobytes_take_about_ten_times_as_long_as_twenty():
    unit = 'def f(a):\n    """Doc # no."""\n    x = {"a": \'#fff\'}  # note\n    return f"{a!r:>10}" + str(x)\n\n'
    wrapped = "<function=create>\n<parameter=path>a.py</parameter>\n<parameter=file_text>\n{}</parameter>\n</function>"
    short, long = (wrapped.format(unit * (size // len(unit))) for size in (20_000, 200_000))
    fast = min(seconds(filter_bits, short + " " * i) for i in range(3))
    assert seconds(filter_bits, long) < 30 * max(fast, 0.002)
