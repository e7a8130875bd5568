"""What inspecting shows agrees with what scoring counts, character by character and token by token."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.errors import DataError, HesnrError, SettingsError
from hesnr_tasks.filters import FILTERS, char_codes, filter_bits
from hesnr_tasks.trajectory import Kind, Trajectory
from hesnr_tasks.trajectory.alignment import Encoder, token_labels, token_turns
from hesnr_tasks.trajectory.rendering import label_mask, render
from hesnr_tasks.viewer import TokenView, load_pretrained, token_table, tokenize, totals, view_of
from tests import tiny
from tests.unit.viewer import examples

EXAMPLES = [examples.hostile(), examples.strange(), examples.small(), examples.long(20_000)]
by_name = pytest.mark.parametrize("trajectory", EXAMPLES, ids=["hostile", "strange", "small", "long"])


@by_name
def test_blocks_cover_the_text_once_and_have_the_kind_of_the_segments(trajectory):
    view = view_of(trajectory)
    assert "".join(view.text[b.start : b.end] for b in view.blocks) == render(trajectory).text
    assert [b.start for b in view.blocks] == [0, *(b.end for b in view.blocks[:-1])]
    shown = [(b.kind, view.text[b.start : b.end]) for b in view.blocks if b.kind is not Kind.SCAFFOLD]
    assert shown == [(s.kind, s.text) for m in trajectory.messages for s in m.segments]


@by_name
def test_hits_are_what_the_filters_say(trajectory):
    view = view_of(trajectory)
    shown = np.zeros(len(view.text), np.uint8)
    for hit in view.hits:
        assert not shown[hit.start : hit.end].any()
        shown[hit.start : hit.end] = hit.bits
    wanted = np.zeros(len(view.text), np.uint8)
    for block in view.blocks:
        if block.kind is Kind.ACTION:
            wanted[block.start : block.end] = filter_bits(view.text[block.start : block.end])
    assert (shown == wanted).all()


@by_name
def test_totals_are_a_plain_count(trajectory):
    view = view_of(trajectory)
    turns = totals(view)
    count = Counter(s.kind for m in trajectory.messages for s in m.segments for _ in s.text)
    for kind in set(Kind) - {Kind.SCAFFOLD}:
        assert sum(turn.characters[kind] for turn in turns) == count[kind]
    bits = [
        int(b) for m in trajectory.messages for s in m.segments if s.kind is Kind.ACTION for b in filter_bits(s.text)
    ]
    assert sum(turn.kept for turn in turns) == bits.count(0)
    for i, name in enumerate(FILTERS):
        assert sum(turn.dropped[name] for turn in turns) == sum(b >> i & 1 for b in bits)


def test_turns_start_after_what_the_agent_wrote():
    turns = totals(view_of(examples.long(2000)))
    assert [turn.characters[Kind.ACTION] > 0 for turn in turns] == [True, True]
    assert [turn.characters[Kind.OBSERVATION] > 0 for turn in turns] == [False, True]


def test_a_trajectory_without_text_has_a_view():
    view = view_of(Trajectory("empty", (examples.message("assistant"),)))
    assert (view.turns, view.hits) == (1, ())
    assert {block.kind for block in view.blocks} == {Kind.SCAFFOLD}


@by_name
@pytest.mark.parametrize("family", ["byte-level", "sentencepiece, fast"])
def test_token_counts_are_those_of_scoring(trajectory, family):
    encoder = Encoder(tiny.FAMILIES[family]())
    view = view_of(trajectory)
    tokens, shown = tokenize(view, encoder)
    rendered = render(trajectory)
    encoded = encoder.encode(rendered)
    wanted = label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))
    counted = (token_labels(encoded, char_codes(rendered)) & wanted) != 0
    turns = token_turns(encoded, rendered)
    assert [turn.counted for turn in shown] == [int(counted[turns == n + 1].sum()) for n in range(view.turns)]
    assert sum(turn.tokens for turn in shown) == len(tokens) == int((encoded.end > encoded.start).sum())


def offsets(text):
    return np.array([len(text[:i].encode("utf-16-le")) // 2 for i in range(len(text) + 1)])


def test_columns_hold_the_tokens_and_the_matched_values_of_the_other_model():
    view = view_of(examples.small())
    a, b = (examples.tiny_tokens(view.text, sure=sure) for sure in (False, True))
    other = [b[0], *b[2:]]  # one token is missing there
    result = token_table(view, a, other, offsets(view.text))
    columns = result.arrays
    starts = np.cumsum(columns["gap"])
    text = view.text.encode("utf-16-le")
    pieces = [text[2 * s : 2 * (s + n)].decode("utf-16-le") for s, n in zip(starts, columns["length"])]
    assert pieces == ["ls", " -", "a", " ", "😀", "😀"]
    assert columns["a.surprisal"].tolist() == [1 + round(1000 * t.surprisal) for t in a]
    assert columns["b.surprisal"].tolist() == [1 + round(1000 * b[0].surprisal), 0, *[1] * 4]
    assert result.unmatched == 1
    assert columns["a.decision"].tolist() == [0, 1, 1, 0, 0, 1]
    top, share = (columns[f"a.{name}"].reshape(result.width, len(a)) for name in ("top", "share"))
    assert [(result.strings[top[k, 4] - 1], share[k, 4]) for k in (0, 1)] == [("😀", 334), ("<1>", 334)]
    assert [d.token for d in result.differences] == [0, 2, 4, 5]


def test_values_that_json_cannot_hold_are_not_known():
    view = view_of(examples.small())
    tokens = [TokenView(0, 2, float("nan"), 1.0, False, [("x", float("nan"))]), TokenView(2, 4, float("inf"), None)]
    result = token_table(view, tokens, tokens, offsets(view.text))
    assert "a.surprisal" not in result.arrays
    assert result.arrays["a.entropy"].tolist() == [1001, 0]
    assert result.arrays["a.share"].tolist() == [0, 0]
    assert result.arrays["a.top"].tolist() == [1, 0]
    assert result.differences == []


@pytest.mark.parametrize("spans", [[(0, 5000)], [(3, 3)], [(5, 6), (4, 6)], [(-1, 2)]])
def test_tokens_that_do_not_fit_the_text_are_refused(spans):
    view = view_of(examples.small())
    with pytest.raises(DataError, match=r"trajectory 'small'.*another rendering"):
        token_table(view, [TokenView(*span) for span in spans], None, offsets(view.text))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["context", "observation", "thought", "action"]), st.text(min_size=1)),
        min_size=1,
        max_size=8,
    )
)
def test_any_text_is_covered_once(parts):
    trajectory = Trajectory("t", tuple(examples.message("user", part) for part in parts))
    view = view_of(trajectory)
    assert "".join(view.text[b.start : b.end] for b in view.blocks) == view.text
    assert sum(sum(turn.characters.values()) for turn in totals(view)) == len(view.text)


def test_a_tokenizer_that_is_not_there_is_told_in_words(tmp_path):
    with pytest.raises(SettingsError, match=r"tokenizer .* cannot be loaded"):
        load_pretrained("tokenizer", str(tmp_path))


def test_a_saved_tokenizer_is_loaded(tmp_path):
    tiny.byte_level().save_pretrained(tmp_path)
    assert load_pretrained("tokenizer", str(tmp_path)).get_vocab() == tiny.byte_level().get_vocab()
    assert issubclass(SettingsError, HesnrError)
