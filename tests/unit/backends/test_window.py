"""The short-context pass: every token sees a window of context, on every text and with every tokenizer."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import hesnr_tasks as hesnr  # noqa: E402
from hesnr_tasks.errors import ScoringError, SettingsError  # noqa: E402
from hesnr_tasks.scores import differences  # noqa: E402
from hesnr_tasks.scores.schema import hidden_tokens, window_stride  # noqa: E402
from hesnr_tasks.testing import byte_tokenizer, tiny_model, trajectory  # noqa: E402
from tests import tiny  # noqa: E402
from tests.reference.scoring import assert_scores, score_in_window  # noqa: E402

pytestmark = pytest.mark.numbers


def runs():
    words = " ".join(f"line {i} of {i * i}" for i in range(12))
    return [
        trajectory("long", ("I look.", "cat a.py", words), ("I fix it.", "sed -i s/a/b/ a.py && pytest", "passed")),
        trajectory("short", ("", "ls", "a.py")),
    ]


@pytest.mark.parametrize("window", [4, 13, 64])
@pytest.mark.parametrize("bos", [False, True])
def test_every_token_is_that_of_a_pass_over_its_own_chunk(window, bos):
    tokenizer = tiny.byte_level(bos=True) if bos else byte_tokenizer()
    model = tiny_model(len(tokenizer))
    scores = hesnr.score(model, tokenizer, runs(), window=window)
    store, prefix = scores._store, int(bos)
    assert store.signature["run"]["window"] == window
    seen = []
    for key in store:
        of_text, ids = store.read(key), store.text(key).ids
        targets = of_text.position.tolist()
        rows, hidden = score_in_window(model, ids.tolist(), targets, 10, window, prefix)
        assert_scores(of_text.scores, rows)
        assert hidden_tokens(of_text.position, window, prefix).tolist() == hidden
        seen += [position - prefix - start for position, start in zip(targets, hidden)]
    assert max(seen) <= window + window_stride(window) - 1
    assert max(seen) >= window


def test_before_the_window_is_full_nothing_changes_and_beyond_it_something_does():
    tokenizer = byte_tokenizer()
    model = tiny_model(len(tokenizer))
    full, short = (hesnr.score(model, tokenizer, runs(), window=window)._store for window in (None, 64))
    assert "window" not in full.signature["run"]
    for key in full:
        a, b = full.read(key), short.read(key)
        hidden = hidden_tokens(a.position, 64, 0) > 0
        np.testing.assert_allclose(a.scores.logprob[~hidden], b.scores.logprob[~hidden], rtol=1e-4, atol=1e-5)
        assert not hidden.any() or np.abs(a.scores.logprob - b.scores.logprob)[hidden].max() > 0.01


def test_windowed_scores_are_never_compared_with_whole_ones():
    tokenizer = byte_tokenizer()
    model = tiny_model(len(tokenizer))
    full, short = (hesnr.score(model, tokenizer, runs(), window=window) for window in (None, 64))
    assert [str(change) for change in differences(full._store.signature, short._store.signature)] == [
        "window: none → 64"
    ]
    with pytest.raises(SettingsError, match="window: none → 64"):
        hesnr.compare(full, short, "ppl")


def test_a_window_that_the_model_cannot_read_is_refused_with_the_largest_that_it_can():
    tokenizer = byte_tokenizer()
    model = tiny_model(len(tokenizer), context=100)
    with pytest.raises(ScoringError, match="window=100 needs a model that reads 125 tokens"):
        hesnr.score(model, tokenizer, runs(), window=100)
    assert hesnr.score(model, tokenizer, runs(), window=80)._store.signature["run"]["window"] == 80
    with pytest.raises(SettingsError, match="window must be a number of at least 4"):
        hesnr.score(model, tokenizer, runs(), window=1)
