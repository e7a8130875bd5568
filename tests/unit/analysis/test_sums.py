"""Sums of score files, for many settings at once: those of each trajectory alone, and the numbers of a plain loop."""

import math
from functools import lru_cache

import numpy as np
import pytest

from hesnr_tasks.analysis.frame import grid_sums, group_sums, load, selection, token_sums
from hesnr_tasks.analysis.summary import SummaryRequest, summarize, token_sets
from hesnr_tasks.analysis.tables import case_table
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.metrics import METRICS, TokenColumns, TrajectorySums, names_of
from hesnr_tasks.scores import StoreError
from hesnr_tasks.trajectory import Kind
from tests.reference import comparison as slow
from tests.unit.analysis import made
from tests.unit.scores import made as parts

KS = (5, 8, 10)
EPSILONS = (1.4, math.log(2), 0.0, 1.2424533, 1.1)  # in no order
SETS = (
    ((Kind.ACTION,), ("xml", "format", "comments")),
    ((Kind.ACTION,), ("xml",)),
    ((Kind.THOUGHT,), ()),
    ((Kind.THOUGHT, Kind.ACTION), ()),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return made.run_of(tmp_path_factory.mktemp("sums") / "run", 9, 150, cut=(2,))


@pytest.fixture(scope="module")
def frame(store):
    return load(store.folder, KS, extra=("turn", "position"))


def selections(frame):
    return [selection(frame.filters, *item) for item in SETS]


@lru_cache(maxsize=1)
def read(store, key):
    return store.read(key), store.text(key).rendered.text


def alone(store, key, counted, epsilon, k):
    """The sums of one trajectory, as an lm-eval run makes them."""
    scores, text = read(store, key)
    return TrajectorySums.of(TokenColumns.of_scores(scores, counted, k, text), epsilon, k)


def test_every_sum_is_that_of_a_run(store, frame):
    """4 masks, 3 k, 5 thresholds, 9 trajectories: every statistic."""
    chosen = selections(frame)
    grid = grid_sums(frame, [item.mask for item in chosen], KS, EPSILONS)
    for t, key in enumerate(store):
        scores = store.read(key)
        for m, item in enumerate(chosen):
            for i, k in enumerate(KS):
                for e, epsilon in enumerate(EPSILONS):
                    want = alone(store, key, scores.selected(item.mask), epsilon, k)
                    assert grid.values[m, i, e, t] == pytest.approx(want.values[0], rel=1e-12), (
                        key,
                        item.name,
                        k,
                        epsilon,
                    )


def test_single_sums_have_the_same_bits(store, frame):
    for item in selections(frame):
        sums = token_sums(frame, frame.counted(item.mask), 1.1, 10)
        for t, key in enumerate(store):
            scores = store.read(key)
            assert sums.values[t].tobytes() == alone(store, key, scores.selected(item.mask), 1.1, 10).values.tobytes()


def test_sums_are_those_of_a_plain_loop(store, frame):
    sums = token_sums(frame, frame.counted(made.WANTED), 1.2, 8)
    names = ("tokens", "ppl", "he_tokens", "he_ppl", "he_snr")
    for t, key in enumerate(store):
        s = store.read(key).scores
        tokens = zip(s.logprob.tolist(), s.rank.tolist(), s.topk_logprobs.tolist())
        want = slow.tally(tokens, 1.2, 8)
        assert [sums.column(name)[t] for name in names] == pytest.approx(want, rel=1e-9)


def test_groups_split_the_whole(store, frame):
    """Each turn's sums are those of its tokens alone, and together they are everything."""
    turn = frame.extra["turn"].astype(np.int64)
    counted = frame.counted(made.WANTED)
    sums = group_sums(frame, np.where(counted, turn - 1, -1), 10, 1.2, 10)
    for t, key in enumerate(store):
        scores = store.read(key)
        for group in range(10):
            want = alone(store, key, scores.selected(made.WANTED) & (scores.turn == group + 1), 1.2, 10)
            assert sums.values[group, t].tobytes() == want.values.tobytes()
    assert sums.values.sum(axis=0) == pytest.approx(token_sums(frame, counted, 1.2, 10).values, rel=1e-12)


def test_an_empty_selection_is_zero_everywhere(frame):
    nothing = np.zeros(len(frame.label), dtype=bool)
    sums = token_sums(frame, nothing, 1.2, 10)
    assert not sums.values.any()
    assert {METRICS[name].numerator for name in names_of()} <= set(sums.names)
    assert group_sums(frame, np.full(len(frame.label), -1), 3, 1.2, 10).column("ppl").shape == (3, 9)


# --- what may be asked ------------------------------------------------------------------------------------------------


def test_tokens_that_were_not_scored_are_an_error_not_a_zero(tmp_path):
    parts.filled(tmp_path / "run", [1, 2], parts.ACTION_FILTERED)
    frame = load(tmp_path / "run")
    frame.counted(selection(frame.filters, [Kind.ACTION], list(parts.FILTERS)).mask)
    with pytest.raises(SettingsError, match=r"run: not all .*action-xml-format-comments were, in .*'run1'"):
        frame.counted(selection(frame.filters, [Kind.ACTION], ["xml"]).mask)
    with pytest.raises(SettingsError, match="hesnr_swe_unfiltered"):
        frame.counted(selection(frame.filters, [Kind.THOUGHT], []).mask)


def test_a_k_that_was_not_stored_is_an_error(store):
    with pytest.raises(SettingsError, match=r"has the 10 most likely tokens .* k = 20 needs more"):
        load(store.folder, (10, 20))


def test_an_unknown_filter_is_named(frame):
    with pytest.raises(SettingsError, match="know the filters xml, format, comments, not smells"):
        selection(frame.filters, [Kind.ACTION], ["smells"])


def test_a_damaged_file_stops_the_analysis_by_name(tmp_path):
    store = made.run_of(tmp_path / "run", 3, 60)
    path = tmp_path / "run" / f"{1:064x}.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StoreError, match=path.name):
        load(store.folder)


def test_tokens_beyond_the_context_are_counted(frame):
    cut = frame.n_truncated(made.WANTED)
    assert cut[2] > 0
    assert cut.sum() == cut[2]
    assert frame.included(made.WANTED).all()


def test_with_skip_a_cut_trajectory_is_left_out(tmp_path):
    made.run_of(tmp_path / "run", 4, 80, cut=(1,), overflow="skip")
    frame = load(tmp_path / "run")
    assert frame.multiplicity(made.WANTED).tolist() == [1, 0, 1, 1]


def test_a_text_two_trajectories_have_counts_twice(tmp_path):
    store = parts.filled(tmp_path / "run", [1, 2])
    parts.put(store, 1, sources=[parts.Source("other attempt")])
    assert load(store.folder).multiplicity(parts.BOTH).tolist() == [2, 1]


@pytest.mark.parametrize("context", [None, 90])
def test_a_summary_of_batches_has_the_sums_of_the_whole_run(tmp_path, context):
    """More trajectories than are read at a time, some truncated; all suites, and tokens weighed by their frequency."""
    folder = made.run_of(tmp_path / "run", 37, 60, cut=(2, 20)).folder
    names = names_of("all")
    summary = summarize(SummaryRequest(folder, "run", 10, 1.1, context, cases=True, metrics=names))
    sets = token_sets(parts.FILTERS)
    masks = [tokens.mask for tokens in sets.values()]
    whole = load(folder, (10,), masks=masks[:-1], context=context, metrics=names)
    assert set(summary.runs) == set(sets) - {"observation"}
    for select, run in summary.runs.items():
        mask = sets[select].mask
        expected = token_sums(whole, whole.counted(mask), 1.1, 10, names)
        for name in expected.names:
            np.testing.assert_allclose(run.sums.column(name), expected.column(name), rtol=1e-12, err_msg=name)
        assert run.keys == tuple(entry.key for entry in whole.entries)
        assert run.n_truncated.tolist() == whole.n_truncated(mask).tolist()
    filtered = sets["action-xml-format-comments"]
    sweep = grid_sums(whole, [filtered.mask], [10], summary.epsilons, ["he_snr"])[0, 0]
    np.testing.assert_allclose(summary.sweep.column("he_snr"), sweep.column("he_snr"), rtol=1e-12)
    cases = case_table(whole, filtered, 10, 2)
    assert [{**row, "run": "run"} for row in cases.rows] == summary.cases.rows
