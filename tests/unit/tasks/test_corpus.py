"""Trajectories and texts wait in a scratch file: what comes back is what went in, and few are in memory."""

import dataclasses
import gc
import hashlib
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hesnr_tasks.backends import hf, iterate_scores  # noqa: E402
from hesnr_tasks.backends.hf import LiveModel  # noqa: E402
from hesnr_tasks.filters import FILTERS, char_codes  # noqa: E402
from hesnr_tasks.formats import read_trajectories  # noqa: E402
from hesnr_tasks.tasks.corpus import Corpus  # noqa: E402
from hesnr_tasks.testing import byte_tokenizer, tiny_model, trajectory  # noqa: E402
from hesnr_tasks.trajectory import Kind  # noqa: E402
from hesnr_tasks.trajectory.rendering import ActionSource, Passed, Rendered, Span, label_mask, render  # noqa: E402
from tests import ROOT, SHARED  # noqa: E402

FIXTURES = ROOT / "tests" / "unit" / "formats" / "fixtures"


WANTED = {"mask": np.uint64(1), "k": 5, "overflow": "right"}


def everything():
    sources = [str(FIXTURES), *([str(SHARED)] if SHARED.is_dir() else [])]
    return list(read_trajectories(sources, on_error="skip"))


@pytest.mark.parametrize("rendering", ["transcript", "chatml"])
def test_texts_and_labels_come_back_as_they_were(rendering):
    """Of every format: the text, its spans, the label of each character, and the key of its score file."""
    trajectories = everything()
    corpus = Corpus(trajectories)
    assert list(corpus) == list(corpus) == trajectories
    assert len(corpus) == len(trajectories) > 50
    for index, original in enumerate(trajectories):
        rendered = render(original, rendering)
        codes, stored = char_codes(rendered), corpus.request("t", corpus.text(index, rendering), **WANTED)
        again = stored.read()
        assert again == rendered
        assert np.array_equal(again.codes, codes)
        assert again.codes.dtype == codes.dtype
        assert stored.key == again.key == hashlib.sha256(rendered.text.encode() + codes.tobytes()).hexdigest()
        assert stored.characters == len(rendered.text)
        assert corpus.text(index, rendering) is stored.key  # rendered once


def test_what_a_chat_template_did_comes_back_too():
    """Where calls were rewritten, labels are those of the action that was read; how it was passed stays with it."""
    text = 'call {"x": 1}'
    source = ActionSource("x 1", np.array([7, 11]), np.array([0, 2]))
    rendered = Rendered(text, (Span(0, len(text), Kind.ACTION, 3, True),), (source,), Passed("calls", 2, 9))

    class Native:
        def render(self, trajectory):
            return rendered

    corpus = Corpus([trajectory("t", ("a", "b", "c"))])
    again = corpus.request("t", corpus.text(0, "native", Native()), **WANTED).read()
    assert again == rendered
    assert again.passed == rendered.passed
    (returned,) = again.sources
    assert returned.action == source.action
    assert all(np.array_equal(a, b) for a, b in zip(returned[1:], source[1:], strict=True))
    assert np.array_equal(again.codes, char_codes(again))
    assert np.array_equal(again.codes, char_codes(rendered))


def test_scoring_holds_few_texts_however_many_there_are():
    """Also where all share a prefix, which is read once; 3 or 40, no more of them are alive at a time."""
    backend = hf.make(LiveModel(tiny_model(), byte_tokenizer()))
    mask = label_mask([Kind.ACTION], (), tuple(FILTERS))

    def most_alive(count):
        corpus = Corpus(trajectory(f"t{i}", (f"thought {i}", "ls", "a"), task="x" * 600) for i in range(count))
        alive, reads, most = weakref.WeakValueDictionary(), 0, 0

        class Codes(np.ndarray):
            pass

        def reading(stored):
            def read():
                nonlocal most, reads
                rendered = stored.read()
                codes = rendered.codes.view(Codes)
                alive[reads := reads + 1] = codes
                most = max(most, len(alive))
                return dataclasses.replace(rendered, codes=codes)

            return read

        requests = [
            corpus.request(f"t{i}", corpus.text(i, "transcript"), **{**WANTED, "mask": mask}) for i in range(count)
        ]
        requests = [dataclasses.replace(request, read=reading(request)) for request in requests]
        gc.collect()
        assert sorted(index for index, _, _ in iterate_scores(backend, requests)) == list(range(count))
        return most

    assert most_alive(40) <= most_alive(3) <= 3


def test_what_was_read_twice_is_kept_once():
    same, other = (trajectory("t", ("a", text, "c")) for text in "bd")
    corpus = Corpus([same, other, same])
    keys = [corpus.text(index, "chatml") for index in range(3)]
    assert keys[0] == keys[2] != keys[1]
    reads = [corpus.request("t", key, **WANTED).read for key in keys]
    assert reads[0].args == reads[2].args != reads[1].args
