"""Tokens that begin a pivotal word, on tokenizers that split in different places."""

import pytest

from hesnr_tasks.rl.advantage import LexiconPivotal
from tests import tiny

TEXT = "The test fails, however “é” is read. Therefore we stop because `because` is code — but not more."
WORDS = ["however", "Therefore", "because", "but"]


@pytest.mark.parametrize("tokenizer", [tiny.byte_level(), tiny.sentencepiece_fast()], ids=["bytes", "sentencepiece"])
def test_marks_the_token_in_which_each_pivotal_word_begins(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    marks = LexiconPivotal(tokenizer)(ids)
    assert len(marks) == len(ids)
    assert sum(marks) == len(WORDS)
    tails = [tokenizer.decode(ids[index:]).lstrip() for index, mark in enumerate(marks) if mark]
    assert all(tail.startswith(word) for tail, word in zip(tails, WORDS, strict=True))


def test_bears_ids_that_join_to_no_text_and_none_at_all():
    tokenizer = tiny.byte_level()
    broken = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    words = tokenizer(" But we go on because", add_special_tokens=False)["input_ids"]
    ids = [*broken, *words, tokenizer.eos_token_id, 10**6]
    marks = LexiconPivotal(tokenizer)(ids)
    assert len(marks) == len(ids)
    assert sum(marks) == 2
    assert LexiconPivotal(tokenizer)([]) == []
