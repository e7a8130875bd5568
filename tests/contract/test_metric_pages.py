"""Every registered metric has a page, and its worked example is the value that plain float64 loops give."""

import contextlib
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.metrics import EPSILON, METRICS, cell_sums, evaluate, metric, page, pages, unregister, worked_example
from hesnr_tasks.metrics.pages import EXAMPLE, TRAJECTORY
from tests.reference import metrics as reference

SLOW = {}


@pytest.fixture(params=METRICS)
def name(request):
    return request.param


def slowly():
    """Every metric of the example, from the probabilities of the whole vocabulary."""
    if not SLOW:
        texts = [[], []]
        for i, p in enumerate(pages.probabilities().tolist()):
            logits, target = [math.log(x) for x in p], int(pages.RANK[i]) - 1
            texts[TRAJECTORY[i]].append(
                reference.Token(
                    *reference.token(logits, target),
                    len(pages.WORDS[i].encode()),
                    reference.candidates(logits),
                    *reference.of_the_vocabulary(logits),
                    frequency=float(pages.FREQUENCY[i]),
                    kind="observation" if i == pages.OBSERVED else "action",
                    turn=int(pages.TURN[i]),
                    short_logprob=math.log(pages.SHORT[i]),
                    hidden=float(pages.HIDDEN[i]),
                    key=int(pages.KEY[i]),
                    teacher=float(pages.TEACHER[i]),
                    reference_decision=bool(pages.REFERENCE[i]),
                )
            )
        SLOW.update(reference.everything(texts, EPSILON))
    return SLOW


def test_the_worked_example_is_that_of_plain_loops(name):
    assert worked_example(name) == pytest.approx(slowly()[name], rel=1e-9)


def test_the_code_of_a_page_prints_the_value_beside_it(name):
    code = re.search(r"```python\n(.*?)```", page(name), re.DOTALL)[1]
    *lines, call, value = code.strip().splitlines()
    assert value.startswith("# ")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec("\n".join([*lines, f"print({call})"]), {})
    assert float(out.getvalue()) == float(value[2:]) == pytest.approx(slowly()[name], abs=1e-6)


def test_a_page_says_what_a_reader_asks_for(name):
    text = page(name)
    for heading in (
        "| better |",
        "| over |",
        "| average |",
        "| tokenizers |",
        "| needs |",
        "| shown by |",
        "## Example",
    ):
        assert heading in text
    assert f"`{name}`: No description" not in text
    assert "None was given" not in text
    assert METRICS[name].better is None or ("| better | higher |" in text) == (METRICS[name].better == "up")


def test_only_metrics_that_are_said_to_be_comparable_survive_another_tokenization(name):
    """The second token in two halves: the same text, the same probability of it."""
    twice = EXAMPLE[np.array([0, 1, 1, 2, 3, 4, 5])]
    half = np.array([1, 0.5, 0.5, 1, 1, 1, 1])
    cell = TRAJECTORY[[0, 1, 1, 2, 3, 4, 5]]
    tokens = replace(twice, logprob=twice.logprob * half, n_bytes=twice.n_bytes * half, trajectory=cell)
    sums = cell_sums(tokens, cell, 2, [EPSILON], 10, [name])[0]
    value = float(evaluate(METRICS[name], *(part.sum() for part in sums.parts(name))))
    if METRICS[name].across_tokenizers:
        assert value == pytest.approx(worked_example(name), rel=1e-12)
        assert "| tokenizers | comparable across them |" in page(name)
    else:
        assert "| tokenizers | compare checkpoints of one only |" in page(name)


def test_a_range_holds_in_the_example(name):
    value, words = worked_example(name), re.search(r"\| range \| (.*?) \|", page(name))[1]
    assert value >= {"1": 1.0, "0": 0.0}.get(words[0], -math.inf)
    assert value <= 1 or words != "0 … 1"
    assert not words.startswith("0 … 1/ε") or value <= 1 / EPSILON


def test_a_metric_of_a_contributor_has_its_page():
    @metric("squared", better="down", unit="nats²", source="arXiv 1234.56789")
    def squared(tokens):
        """Mean of (ln p)².

        It weighs rare tokens more.
        """
        return tokens.logprob**2

    try:
        text = page("squared")
        assert "It weighs rare tokens more." in text
        assert "[arXiv 1234.56789](https://arxiv.org/abs/1234.56789)" in text
        assert worked_example("squared") == pytest.approx(np.mean(EXAMPLE.logprob**2))
    finally:
        unregister("squared")
    with pytest.raises(SettingsError, match="no metric 'squared'"):
        page("squared")
