"""What holds of every registered filter and of every language with a grammar; a new one is tested by being registered.

Labels are a pure function of the text, filtering what is left drops nothing more, code survives, and any text, however
hostile, is labelled in linear time.
"""

import random
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.filters import FILTERS, char_codes, filter_bits
from hesnr_tasks.filters.regions import LANGUAGES, by_file_name, by_interpreter, by_tag, comments_of
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.rendering import MAX_FILTERS, label_mask, render
from tests.unit.filters.corpus import texts
from tests.unit.filters.marked import FRAGMENTS, fragments, mark, positions

LEXED = sorted(name for name, language in LANGUAGES.items() if language.comments)
every_language = pytest.mark.parametrize("language", LEXED)
every_filter = pytest.mark.parametrize("name", FILTERS)

PIECES = (
    *("<function=bash>\n", "<parameter=command>", "<parameter=path>a.py", "</parameter>\n", "</function>\n"),
    *("```sh\n", "```\n", "cat > x.py <<'EOF'\n", "EOF\n", "$(", "`", "${", "}", ")", "python -c ", "<<A <<B\n"),
    *("bash -c '", "case x in a)", "((", '"', "'", '"""', "#", "//", "/*", "*/", "f'{", "\\", "<!--", "x = 1"),
    *("@@ -1 +1 @@\n", "+++ b/x.js\n", "+", "-", "*", "\r\n", "\n", " ", "\\u00", "\ud800", "\0"),
    *('<tool_call>{"name": "bash", "arguments": {"command": "', "\\n", '\\"', '"}}</tool_call>'),
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40).map("".join)


def inside(spans, text):
    return all(0 <= start <= end <= len(text) for start, end in spans)


def visible(spans, text):
    """The positions in `spans` of what is not white space."""
    return {i for i in positions(spans) if not text[i].isspace()}


def blanked(text, spans):
    dropped = positions(spans)
    return "".join(" " if i in dropped and c != "\n" else c for i, c in enumerate(text))


# --- registries -------------------------------------------------------------------------------------------------------


def test_bits_of_filters_are_stored_so_their_order_is_fixed():
    assert list(FILTERS) == ["xml", "format", "comments"]
    assert len(FILTERS) <= MAX_FILTERS


def test_a_new_filter_is_one_function_and_one_line(monkeypatch):
    monkeypatch.setitem(FILTERS, "digits", lambda text: [match.span() for match in re.finditer(r"\d+", text)])
    messages = (Message("assistant", (Segment(Kind.THOUGHT, "2 + 2"), Segment(Kind.ACTION, "echo 42 # 7"))),)
    rendered = render(Trajectory("t", messages))
    codes = char_codes(rendered)
    for filters, kept in (
        ([], "echo 42 # 7"),
        (["digits"], "echo  # "),
        (list(FILTERS), "echo"),
        (["comments"], "echo 42 "),
    ):
        mask = int(label_mask([Kind.ACTION], filters, list(FILTERS)))
        assert "".join(c for c, code in zip(rendered.text, codes) if mask >> int(code) & 1) == kept


@every_language
def test_a_language_is_labelled_in_fragments_and_its_comments_and_code_are_told_apart(language):
    labelled = fragments(language)
    comments = missed = code = lost = 0
    wrong = []
    for title, text, marked in labelled:
        expected = {i for i in marked if not text[i].isspace()}
        spotted = visible(comments_of(text, language), text)
        comments, missed = comments + len(expected), missed + len(expected - spotted)
        code, lost = code + sum(not c.isspace() for c in text) - len(expected), lost + len(spotted - expected)
        if spotted != expected:
            wrong.append(f"{title}:\n{mark(text, spotted)}")
    assert len(labelled) >= 4
    assert comments > 0
    assert missed <= 0.01 * comments, "\n".join(wrong)
    assert lost <= 0.001 * code, "\n".join(wrong)


def test_fragments_are_of_registered_languages():
    assert {path.stem for path in FRAGMENTS.glob("*.txt")} == set(LEXED)
    common = ("c", "cpp", "go", "java", "javascript", "php", "python", "ruby", "rust", "shell", "typescript")
    assert all(len(fragments(language)) >= 20 for language in common)


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
def test_the_words_of_a_language_lead_to_it_and_to_no_other(language):
    assert {by_tag(word) for word in (language.extensions + " " + language.tags).split()} <= {language.name}
    extensions = language.extensions.split()
    assert {by_file_name(f"src/a.{extension}") for extension in extensions} <= {language.name, None}
    assert by_interpreter(language.name) in (None, language.name)


# --- a function of the text -------------------------------------------------------------------------------------------


@given(TEXTS)
@settings(max_examples=300)
def test_bits_are_those_of_the_spans_and_the_same_at_any_time(text):
    bits = filter_bits(text)
    assert (bits.shape, bits.dtype) == ((len(text),), np.uint8)
    for i, drop in enumerate(FILTERS.values()):
        spans = drop(text)
        assert inside(spans, text)
        assert positions(spans) == set(np.flatnonzero(bits >> i & 1).tolist())
    for other in range(10):  # more texts than the parsers remember
        filter_bits(f"echo {other}")
    assert (filter_bits(text) == bits).all()


@given(TEXTS, st.sampled_from(LEXED))
@settings(max_examples=300)
def test_no_grammar_raises(text, language):
    assert inside(comments_of(text, language), text)


@every_filter
def test_what_a_filter_leaves_it_leaves_again(name):
    for text in texts():
        left = blanked(text, FILTERS[name](text))
        assert not visible(FILTERS[name](left), left), text


@every_language
def test_code_without_its_comments_has_no_comments(language):
    for title, text, _ in fragments(language):
        left = blanked(text, comments_of(text, language))
        assert not visible(comments_of(left, language), left), title


# --- hostile text -----------------------------------------------------------------------------------------------------


@every_language
def test_a_file_cut_anywhere_is_lexed(language):
    sample = "".join(text for _, text, _ in fragments(language))
    for cut in range(0, len(sample), 37):
        for text in (sample[cut : cut + 400], sample[:cut]):
            assert inside(comments_of(text, language), text)


@every_filter
def test_actions_of_mixed_up_pieces_are_labelled(name):
    rng, corpus = random.Random(0), texts()
    for _ in range(300):
        first, second = rng.choice(corpus), rng.choice(corpus)
        text = first[: rng.randrange(len(first) + 1)] + second[rng.randrange(len(second) + 1) :]
        assert inside(FILTERS[name](text), text)


REPEATED = (
    *('"', "'", "`", "/", "/*", "*/", "\\", '\\"', "{", "${", "#{", "f'{", "(", "$(", "[", "/[", "%{", '"""', "<!--"),
    *(
        "<",
        "#",
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
    ),
    *("x: '", '{"a":', "<function=a>\n", "<parameter=b>", "</parameter>", "</function>\n"),
    '<tool_call>{"a": </tool_call>',
)


def takes_less_than(limit, function, text, *rest):
    """Whether `function` takes less than `limit` seconds of processor time, at the second try if not at the first."""
    for attempt in range(2):
        start = time.process_time()
        function(text + " " * attempt, *rest)
        if time.process_time() - start < limit:
            return True
    return False


@every_language
def test_grammars_take_linear_time_on_repetitions(language):
    """8 KB of any token take milliseconds (a quadratic step would take seconds); # // -- /* defeat the pre-checks."""
    for unit in REPEATED:
        text = unit * (8_000 // len(unit)) + "\n# // -- /* % <!--"
        assert takes_less_than(0.25, comments_of, text, language), unit


@pytest.mark.parametrize(
    "wrapper",
    [
        "{}",
        "<function=bash>\n<parameter=command>{}</parameter>\n</function>",
        "<function=e>\n<parameter=path>a.md</parameter>\n<parameter=file_text>{}</parameter>\n</function>",
        "<function=apply_patch>\n<parameter=patch>+++ b/a.py\n@@\n{}</parameter>\n</function>",
        '<tool_call>{{"name": "bash", "arguments": {{"command": "{}',
    ],
)
@every_filter
def test_filters_take_linear_time_on_repetitions(name, wrapper):
    for unit in REPEATED:
        text = wrapper.format(unit * (8_000 // len(unit)))
        assert takes_less_than(0.4, FILTERS[name], text), unit
