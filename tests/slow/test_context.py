"""--context: from score files, the numbers of a run that could read no more than so many tokens of each text."""

import json
from dataclasses import replace

import numpy as np
import pytest

from hesnr_tasks.analysis.frame import context_for, load
from hesnr_tasks.cli import command_parser
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import label_mask
from tests import tiny
from tests.lm_eval_run import SMALL, evaluate, values, write
from tests.unit.analysis import made
from tests.unit.scores import made as parts

METRICS = ("he_snr", "he_ppl", "ppl", "top1_acc", "entropy", "tokens", "he_tokens", "scored")


def ask(command, *words):
    args = command_parser().parse_args([command, *map(str, words)])
    return args.execute(args)


def results(*words):
    return json.loads(ask("analyze", *words, "--format", "json"))["tables"]["results"]


@pytest.fixture(scope="session")
def with_bos(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("bos")), steps=80, tokenizer=lambda: tiny.byte_level(bos=True))


@pytest.mark.parametrize("overflow", ["right", "skip"])
@pytest.mark.parametrize("bos", [False, True])
def test_restricting_equals_scoring_with_the_smaller_context(with_bos, tmp_path, overflow, bos):
    """Contexts from where all texts are cut to where none is; overflow=skip leaves out the same trajectories."""
    metadata = {
        "trajectories": write(tmp_path / "t.jsonl", SMALL),
        "overflow": overflow,
        "min_tokens": 0,
        "resamples": 100,
    }
    args = f"dtype=float32,add_bos_token={bos}"
    whole = {**metadata, "scores": str(tmp_path / "whole")}
    evaluate(with_bos, ["hesnr_swe"], whole, args)
    store = ScoreStore.open(tmp_path / "whole")
    shortest, middle, longest = sorted(store.entry(key).tokens_total for key in store)
    contexts = {shortest, middle, longest, longest + 1}
    if overflow == "right":
        contexts |= {shortest // 2, shortest - 1}
    for context in sorted(contexts):
        run = evaluate(with_bos, ["hesnr_swe"], metadata | {"scores": "none"}, f"{args},max_length={context}")
        row = results(tmp_path / "whole", "--context", context, "--min-tokens", 0, "--resamples", 100)[0]
        want = values(run, "hesnr_swe") | {"scored": run["results"]["hesnr_swe"]["scored,none"]}
        for name in METRICS:
            number = row[name]["value"] if isinstance(row[name], dict) else row[name]
            assert number == pytest.approx(want[name], rel=1e-4, nan_ok=True), (context, name)
        assert row["trajectories"] == run["configs"]["hesnr_swe"]["metadata"]["signature"]["trajectories"]


def test_a_restricted_frame_has_the_tokens_before_the_context_and_counts_the_others_as_cut(tmp_path):
    made.run_of(tmp_path / "a", 5, 80)
    whole = load(tmp_path / "a", extra=("position",))
    mask = label_mask([Kind.ACTION], [], parts.FILTERS)
    for context in (1, 17, 60, 10_000):
        part = load(tmp_path / "a", extra=("position",), context=context)
        assert (part.extra["position"] == whole.extra["position"][whole.extra["position"] < context]).all()
        both = part.n_truncated(mask).sum() + part.counted(mask).sum()
        assert both == whole.n_truncated(mask).sum() + whole.counted(mask).sum()
        assert part.signature["run"]["max_length"] == min(context, parts.signature()["run"]["max_length"])


def test_runs_of_different_contexts_are_compared_where_both_could_see(tmp_path):
    """A run cut at its context beside one that read everything: refused before, now on the common tokens, and said."""
    whole = made.run_of(tmp_path / "long", 6, 200, max_length=32768)
    store = made.run_of(tmp_path / "short", 0, 200, max_length=90)
    for key in whole:
        scores = whole.read(key)
        fits = int(np.searchsorted(scores.position, 90))
        columns = ("position", "token_id", "turn", "label", "char_start", "char_end")
        cut = replace(
            scores,
            **{name: getattr(scores, name)[:fits] for name in columns},
            scores=scores.scores.take(slice(fits)),
            labels_cut=scores.label[fits:],
            run=store.signature["run"],
        )
        store.write(cut, text=whole.text(key), mask=made.WANTED, sources=whole.entry(key).sources)
    both = (tmp_path / "short", tmp_path / "long")
    printed = ask("compare", *both, "--resamples", 200)
    assert "context 90, the smallest that cut a run (short): only tokens that all could see count" in " ".join(
        printed.split()
    )
    rows = results(*both)
    assert len({row["tokens"] for row in rows}) == 1
    assert [row["he_snr"]["value"] for row in rows] == [rows[0]["he_snr"]["value"]] * 2
    assert rows[0]["scored"] == rows[1]["scored"] < 1
    own = results(*both, "--context", "own")
    assert own[1]["tokens"] > own[0]["tokens"] == rows[0]["tokens"]
    with pytest.raises(SettingsError, match="short read 90 tokens at most"):
        results(*both, "--context", 100)
    assert context_for(both, None)[0] == 90
    assert context_for(both[1:], None) == (None, "")
    assert context_for(both[:1], None) == (None, "")


def test_contexts_that_cut_nothing_restrict_nothing(tmp_path):
    made.run_of(tmp_path / "a", 3, 60, max_length=4096)
    made.run_of(tmp_path / "b", 3, 60, max_length=32768)
    assert context_for([tmp_path / "a", tmp_path / "b"], None) == (None, "")
    assert "context" not in ask("compare", tmp_path / "a", tmp_path / "b", "--resamples", 200)


def test_the_share_scored_stands_beside_the_numbers_and_is_marked_below_a_half(tmp_path):
    made.run_of(tmp_path / "a", 5, 200)
    assert " 100.0%" in ask("analyze", tmp_path / "a", "--resamples", 200)
    assert "% (!)" in ask("analyze", tmp_path / "a", "--resamples", 200, "--context", 60)
