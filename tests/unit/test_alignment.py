"""Labelled characters to labelled tokens, for every family of tokenizers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hesnr_tasks.errors import ScoringError
from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.alignment import Encoder, token_labels, token_turns
from hesnr_tasks.trajectory.rendering import Rendered, Span, render
from tests import tiny

TEXTS = [
    "def f(x):\n    return x  # done\n",
    "emoji 😀😀 family 👨‍👩‍👧 cjk 漢字かな é e\u0301 ü",
    "crlf\r\nbare\rcr\ttab  two   three    four\n\n\n  end  ",
    "nul\x00byte \x1b[31mred\x1b[0m \u2028 \u0085 \ufffd \ufeff",
    " leading space",
    "\n\nleading newlines",
    "</s> and <|im_end|> and <|endoftext|> and <s> in a log",
    "▁ already ▁▁ there <0x0A>",
    "x",
]


def plain(text: str) -> Rendered:
    return Rendered(text, (Span(0, len(text), Kind.ACTION, 1, False),) if text else ())


def covered(encoded, text):
    """The text put together again from the tokens' characters, each token adding what is new."""
    out, position = [], 0
    for start, end in zip(encoded.start.tolist(), encoded.end.tolist()):
        assert start <= position or start == end, (start, position)
        out.append(text[max(position, start) : end])
        position = max(position, end)
    return "".join(out)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_cover_the_text_exactly(family, text):
    encoder = Encoder(tiny.FAMILIES[family]())
    encoded = encoder.encode(plain(text))
    assert covered(encoded, text) == text
    assert encoded.lost == 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=60)
def test_any_text_is_covered(family, text):
    encoded = Encoder(tiny.FAMILIES[family]()).encode(plain(text))
    assert covered(encoded, text) == text


@pytest.mark.parametrize("family", ["byte-level", "byte-level, llama-3 splitting, bos", "sentencepiece, fast"])
@pytest.mark.parametrize("text", TEXTS[:6])
def test_bytes_and_offsets_agree(family, text):
    """Two ways, one answer: where a fast tokenizer does not trim, its own offsets are what the bytes say."""
    tokenizer = tiny.FAMILIES[family]()
    encoded = Encoder(tokenizer, bos=False).encode(plain(text))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    own = [(s, e) for s, e in zip(encoded.start.tolist(), encoded.end.tolist())]
    # SentencePiece's own space before the text: its offset claims the first character, its bytes cover none
    assert [o for o in own if o != (0, 0)] == [tuple(o) for o, mine in zip(offsets, own) if mine != (0, 0)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_ids_are_what_the_tokenizer_gives_for_the_whole_text(family):
    """No token is cut at a segment's border."""
    tokenizer = tiny.FAMILIES[family]()
    pieces = ["The bug is in foo", "\n\n<function=bash>", "\nls -la</function>"]
    spans, position = [], 0
    for piece, kind in zip(pieces, (Kind.THOUGHT, Kind.ACTION, Kind.ACTION)):
        spans.append(Span(position, position + len(piece), kind, 1, False))
        position += len(piece)
    encoded = Encoder(tokenizer).encode(Rendered("".join(pieces), tuple(spans)))
    assert encoded.ids.tolist() == list(tokenizer("".join(pieces))["input_ids"])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_special_strings_in_content_stay_text(family):
    tokenizer = tiny.FAMILIES[family]()
    for special in {*tiny.SPECIALS, *map(str, tokenizer.all_special_tokens)} - {"<unk>"}:
        text = f"cat log\n{special}\n{special}{special}end"
        encoded = Encoder(tokenizer, bos=False).encode(plain(text))
        assert not set(encoded.ids.tolist()) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}), special
        assert covered(encoded, text) == text


def test_special_strings_in_markers_are_control_tokens():
    tokenizer = tiny.byte_level()
    trajectory = Trajectory("t", (Message("assistant", (Segment(Kind.ACTION, "echo '<|im_end|>'"),)),))
    encoded = Encoder(tokenizer).encode(render(trajectory, "chatml"))
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert encoded.ids.tolist().count(start) == 1
    assert encoded.ids.tolist().count(end) == 1


def test_a_marker_that_straddles_content_is_not_a_control_token():
    text = "a<|im_end|>b"
    spans = (Span(0, 5, Kind.ACTION, 1, False), Span(5, len(text), Kind.SCAFFOLD, 1, True))
    encoded = Encoder(tiny.byte_level()).encode(Rendered(text, spans))
    assert not set(encoded.ids.tolist()) & set(tiny.byte_level().all_special_ids)


def test_bos_is_what_the_tokenizer_does_unless_told():
    adds, does_not = tiny.byte_level(tiny.LLAMA3, bos=True), tiny.byte_level()
    assert Encoder(adds).encode(plain("x")).ids[0] == adds.bos_token_id
    assert Encoder(adds, bos=False).prefix == ()
    assert Encoder(does_not).prefix == ()
    with pytest.raises(ScoringError, match="no BOS token"):
        Encoder(does_not, bos=True).encode(plain("x"))


def test_a_template_that_writes_bos_gets_no_second_one():
    tokenizer = tiny.byte_level(tiny.LLAMA3, bos=True)
    text = "<s>hello"
    spans = (Span(0, 3, Kind.SCAFFOLD, 1, True), Span(3, 8, Kind.ACTION, 1, False))
    assert Encoder(tokenizer).encode(Rendered(text, spans)).ids.tolist().count(tokenizer.bos_token_id) == 1


def test_a_token_counts_for_every_character_it_covers():
    """Against a loop: the label of a token is the union of its characters' codes."""
    text = "Let me look.\n\n<function=bash>\n<parameter=command>ls 😀</parameter>\n</function>"
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 12, len(text)).astype(np.uint8)
    for make in tiny.FAMILIES.values():
        encoded = Encoder(make()).encode(plain(text))
        labels = token_labels(encoded, codes)
        for start, end, label in zip(encoded.start, encoded.end, labels.tolist()):
            assert label == sum(1 << int(c) for c in set(codes[start:end].tolist()))


def test_the_turn_of_a_token_is_that_of_its_last_character():
    text = "ab" * 20
    spans = (Span(0, 20, Kind.ACTION, 1, False), Span(20, 40, Kind.ACTION, 2, False))
    encoded = Encoder(tiny.byte_level(tiny.LLAMA3, bos=True)).encode(Rendered(text, spans))
    expected = [0 if s == e else (1 if e <= 20 else 2) for s, e in zip(encoded.start, encoded.end)]
    assert token_turns(encoded, Rendered(text, spans)).tolist() == expected


def test_a_tokenizer_that_cannot_represent_the_text_says_how_much():
    encoded = Encoder(tiny.lower_casing()).encode(plain("def F : Zürich"))
    assert encoded.lost == len(" Zürich")
    assert covered(encoded, "def F : Zürich") == "def F : Zürich"


def test_a_slow_tokenizer_that_rewrites_text_is_refused():
    tokenizer = tiny.tiktoken_style()

    class Lossy(type(tokenizer)):
        def _tokenize(self, text, **kwargs):
            return super()._tokenize(text.lower())

    with pytest.raises(ScoringError, match="does not reproduce"):
        Encoder(Lossy(tokenizer.encoding)).encode(plain("ABC"))


def test_empty_text_has_no_tokens():
    encoded = Encoder(tiny.byte_level()).encode(plain(""))
    assert token_labels(encoded, np.zeros(0, np.uint8)).tolist() == []


def metaspace():
    """A tokenizer that puts a space before every text it is given, as Llama 2's does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>", "<|im_end|>"])
    tokenizer.train_from_iterator(["def f(x): return x < y / s > z | im_end |\n</ s>\t" * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [metaspace(), tiny.sentencepiece_fast(), tiny.sentencepiece_slow()])
@pytest.mark.parametrize("text", ["x </s> y", "x</s>", "</s></s> x", "f(x) < <|im_end|>/s>", "\n</s>\n"])
def test_no_space_is_fed_that_is_not_in_the_text(tokenizer, text):
    encoded = Encoder(tokenizer, bos=False).encode(plain(text))
    spelled = "".join(tokenizer.convert_ids_to_tokens(encoded.ids.tolist())).replace("▁", " ").replace("<0x0A>", "\n")
    assert spelled in (text, " " + text), "only the whole text may have a space before it"
    assert covered(encoded, text) == text
    widths = encoded.end - encoded.start
    assert (widths[1:] > 0).all()


def normalising(form):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = form
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["café naïve def f(x): return x\n" * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("tokenizer", [normalising(normalizers.NFC()), normalising(normalizers.NFKC())])
@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("cafe\u0301 x", {4: 3}),
        ("e\u0301", {1: 0}),
        ("a\u1100\u1161\u11a8b", {2: 1, 3: 1}),  # one syllable of three letters
        ("e\u0323\u0301 y", {1: 0}),
        ("xo\u0308\u0304z", {2: 1, 3: 1}),
    ],
)
def test_what_is_composed_belongs_to_the_token_of_its_letter(tokenizer, text, marks):
    encoded = Encoder(tokenizer, bos=False).encode(plain(text))
    spans = list(zip(encoded.start.tolist(), encoded.end.tolist(), strict=True))
    for mark, letter in marks.items():
        assert all(a <= letter for a, b in spans if a <= mark < b), (text, spans)
        assert any(a <= letter and mark < b for a, b in spans)
    assert covered(encoded, text) == text
