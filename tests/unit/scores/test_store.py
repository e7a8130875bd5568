"""Score files: what goes in comes out, runs are not mixed, tasks add to each other."""

import dataclasses
import json
import zlib

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.scores import COLUMNS, ScoreStore, Source, StoreError, differences
from hesnr_tasks.scores.schema import OPTIONAL, ScoringRequest, SequenceScores
from hesnr_tasks.scores.store import ScoreCache
from tests import ROOT
from tests.unit.scores import made

# --- bit for bit ------------------------------------------------------------------------------------------------------


def test_scores_come_back_bit_for_bit(tmp_path):
    store = made.filled(tmp_path, range(5))
    for seed in range(5):
        results = ScoreStore.open(tmp_path, made.signature()).read(f"{seed:064x}")
        assert made.same(results, made.scores_of(seed))
        assert results.scores.topk_logprobs.flags.c_contiguous
        assert store.text(results.key).rendered == made.text_of(seed).rendered
        assert (store.text(results.key).ids == made.text_of(seed).ids).all()


def test_what_some_backends_know_comes_back_and_what_none_knew_is_not_made_up(tmp_path):
    store = made.filled(tmp_path, [])
    scores = made.scores_of(3)
    n = len(scores.position)
    entropy, rank = np.linspace(0, 3, n, dtype=np.float32), np.linspace(1, 99, n, dtype=np.float32)
    whole = dataclasses.replace(scores, scores=scores.scores._replace(full_entropy=entropy, expected_rank=rank))
    store.write(whole, text=made.text_of(3), mask=made.BOTH, sources=[])
    assert made.same(store.read(scores.key), whole)
    made.put(store, 4)
    assert store.read(f"{4:064x}").scores[4:] == (None, None)


def test_a_task_that_needs_the_full_vocabulary_is_not_served_from_scores_without_it(tmp_path):
    """They are scored again; whoever does not need it is served, before and afterwards."""
    cache = ScoreCache(
        tmp_path, named=True, render="transcript", wanted=[], filters=["xml", "format", "comments"], labels="6"
    )
    cache.open(made.RUN, 10, "right", list, first=False)
    scores, text = made.scores_of(3), made.text_of(3)
    plain = ScoringRequest("t", lambda: text.rendered, made.BOTH, 10, "right", scores.key, 0)
    needy = dataclasses.replace(plain, mask=made.ACTION, full_vocabulary=True)
    cache.put(scores, plain, text.rendered, text.ids)
    assert cache.get(plain, text.ids) is not None
    assert cache.get(needy, text.ids) is None
    action = made.scores_of(3, made.ACTION)
    column = np.linspace(1, 9, len(action.position), dtype=np.float32)
    whole = dataclasses.replace(action, scores=action.scores._replace(full_entropy=column, expected_rank=column))
    cache.put(whole, needy, text.rendered, text.ids)  # of the actions alone: thoughts stay, without it
    assert (cache.get(needy, text.ids).scores.expected_rank == column.max()).sum() == 1
    assert cache.get(plain, text.ids) is not None
    assert cache.get(dataclasses.replace(plain, full_vocabulary=True), text.ids) is None


def test_files_from_before_a_column_was_kept_are_read(tmp_path):
    """As an older version wrote them: neither column nor checksum."""
    store = made.filled(tmp_path, [1])
    path = tmp_path / f"{1:064x}.parquet"
    before = store.read(path.stem)
    table = pyarrow.parquet.read_table(path).drop_columns(list(OPTIONAL))
    footer = json.loads(table.schema.metadata[b"hesnr"].partition(b" ")[2])
    footer["checksums"] = {name: value for name, value in footer["checksums"].items() if name not in OPTIONAL}
    content = json.dumps(footer)
    meta = {b"hesnr": f"{zlib.crc32(content.encode()):08x} {content}"}
    pyarrow.parquet.write_table(table.replace_schema_metadata(meta), path, use_dictionary=False)
    assert made.same(store.read(path.stem), before)
    entry, columns = store.columns(path.stem, ["rank", *OPTIONAL])
    assert np.isnan(columns["full_entropy"]).all()
    assert len(columns["expected_rank"]) == entry.scored > 0


bits = st.integers(0, 2**32 - 1)


@settings(max_examples=40)
@given(st.lists(st.tuples(bits, bits, st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1)), max_size=9))
def test_any_bits_come_back(tmp_path_factory, rows):
    """NaN payloads, -0.0, denormals, the highest label: nothing is interpreted on the way."""
    store = ScoreStore.open(tmp_path_factory.mktemp("s"), made.signature(k=5))
    base, n = made.scores_of(1, k=5), len(rows)
    raw = np.array([row[:2] for row in rows], dtype=np.uint32).reshape(n, 2)
    whole = np.array([row[3] for row in rows], dtype=np.int32)
    scores = dataclasses.replace(
        base,
        **dict.fromkeys(("position", "token_id", "turn", "char_start", "char_end"), whole),
        label=np.array([row[2] for row in rows], dtype=np.uint64),
        scores=SequenceScores(
            raw[:, 0].copy().view(np.float32),
            whole,
            np.repeat(raw[:, 1:].view(np.float32), 5, 1),
            np.tile(whole, (5, 1)).T.copy(),
        ),
    )
    store.write(scores, text=made.text_of(1), mask=made.BOTH, sources=[])
    assert made.same(store.read(scores.key), scores)


def test_a_text_without_a_scored_token_is_kept_too(tmp_path):
    store = ScoreStore.open(tmp_path, made.signature())
    scores = made.scores_of(3, cut=10_000)
    assert len(scores.position) == 0 < len(scores.labels_cut)
    store.write(scores, text=made.text_of(3), mask=made.BOTH, sources=[Source("x")])
    assert made.same(store.read(scores.key), scores)
    assert store.text(scores.key).rendered == made.text_of(3).rendered
    assert store.entry(scores.key).scored == 0


def test_values_that_do_not_fit_are_refused_not_changed(tmp_path):
    store = ScoreStore.open(tmp_path, made.signature())
    scores = made.scores_of(3)
    for name, change in (("logprob", 1e-12), ("rank", 0.5)):
        values = getattr(scores.scores, name).astype(np.float64) + change
        odd = dataclasses.replace(scores, scores=scores.scores._replace(**{name: values}))
        with pytest.raises(ValueError, match="without changing them"):
            store.write(odd, text=made.text_of(3), mask=made.BOTH, sources=[])
    assert len(store) == 0


def test_a_subset_of_columns_is_the_same_as_all(tmp_path):
    store = made.filled(tmp_path, [1, 2])
    _, some = store.columns(f"{1:064x}", ["rank", "topk_logprobs"])
    assert list(some) == ["rank", "topk_logprobs"]
    assert some["topk_logprobs"].tobytes() == made.scores_of(1).scores.topk_logprobs.tobytes()
    entries = list(store.load_columns(COLUMNS, lambda entry, columns: (entry.key, len(columns["label"])), threads=3))
    assert entries == [(key, len(store.read(key).position)) for key in store]


def test_vocabulary_comes_back_and_is_stored_once(tmp_path):
    store = made.filled(tmp_path, [1])
    assert store.token_bytes() is None
    store.save_token_bytes(lambda: [b"a", b"\xf0\x9f", None])
    store.save_token_bytes(lambda: pytest.fail("it is there already"))
    assert store.token_bytes() == [b"a", b"\xf0\x9f", None]
    assert store.keys() == [f"{1:064x}"]


# --- runs are not mixed -----------------------------------------------------------------------------------------------


def test_another_setting_is_refused_by_name(tmp_path):
    made.filled(tmp_path, [1])
    with pytest.raises(SettingsError, match=r"dtype: float32 → bfloat16; max_length: 32768 → 4096\)") as caught:
        ScoreStore.open(tmp_path, made.signature(dtype="bfloat16", max_length=4096))
    assert '"scores"' in str(caught.value)
    assert ScoreStore.open(tmp_path, made.signature()).keys() == [f"{1:064x}"]


def test_a_smaller_k_is_served_a_larger_one_refused(tmp_path):
    store = made.filled(tmp_path, [1])
    assert ScoreStore.open(tmp_path, made.signature(k=5)).k == 10
    assert store.get(f"{1:064x}", made.BOTH, 5)
    assert not store.get(f"{1:064x}", made.BOTH, 11)
    with pytest.raises(SettingsError, match="k: 10 → 20"):
        ScoreStore.open(tmp_path, made.signature(k=20))


def test_a_model_that_moved_is_the_same_model_only_if_its_weights_are_hashed():
    old, new = made.signature(model="a", weights="w"), made.signature(model="b", weights="w")
    assert differences(old, new) == []
    assert [d.name for d in differences(old, made.signature(model="a", weights="v"))] == ["weights"]
    assert [d.name for d in differences(made.signature(model="a"), made.signature(model="b"))] == ["model"]


def test_a_file_of_another_run_is_refused(tmp_path):
    made.filled(tmp_path / "a", [1, 2])
    made.filled(tmp_path / "b", [3], dtype="bfloat16")
    stray = (tmp_path / "a" / f"{1:064x}.parquet").read_bytes()
    (tmp_path / "b" / f"{1:064x}.parquet").write_bytes(stray)
    (tmp_path / "a" / f"{9:064x}.parquet").write_bytes(stray)
    for folder, key in (("b", f"{1:064x}"), ("a", f"{9:064x}")):
        store = ScoreStore.open(tmp_path / folder)
        with pytest.raises(StoreError, match="renamed, or copied here"):
            store.read(key)
        assert not store.get(key, made.BOTH, 10)


def test_opening_what_is_no_store_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"it has no run\.json"):
        ScoreStore.open(tmp_path)
    made.filled(tmp_path / "inner", [1])
    with pytest.raises(StoreError, match="below it there are inner"):
        ScoreStore.open(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "hesnr-scores", "schema": 99, "signature": {"k": 1, "run": {}}}')
    with pytest.raises(StoreError, match="has schema 99"):
        ScoreStore.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        ScoreStore.open(tmp_path)


# --- tasks add to each other ------------------------------------------------------------------------------------------


def test_a_file_serves_the_masks_it_was_scored_for_and_no_others(tmp_path):
    store = made.filled(tmp_path, [1], made.ACTION)
    key = f"{1:064x}"
    assert store.get(key, made.ACTION_FILTERED, 10)
    assert store.get(key, made.BOTH, 10) is None
    assert not store.get(f"{2:064x}", made.ACTION, 10)


def test_what_another_task_wanted_is_not_promised_where_its_file_was_damaged(tmp_path):
    """Its footer is whole, a column is not: the first task's tokens are lost, and are scored again."""
    store, key = made.filled(tmp_path, [1], made.ACTION), f"{1:064x}"
    path = tmp_path / f"{key}.parquet"
    data = bytearray(path.read_bytes())
    data[pyarrow.parquet.read_metadata(path).row_group(0).column(0).data_page_offset + 30] ^= 255
    path.write_bytes(data)
    assert store.get(key, made.THOUGHT, 10) is None
    store.write(made.scores_of(1, made.THOUGHT), text=made.text_of(1), mask=made.THOUGHT, sources=[])
    assert store.get(key, made.ACTION, 10) is None
    assert made.same(store.get(key, made.THOUGHT, 10), made.scores_of(1, made.THOUGHT))


def test_what_another_task_wanted_stays(tmp_path):
    """Action first, thoughts later: the file then has both, as if they had been scored together."""
    store = made.filled(tmp_path, [1], made.ACTION)
    made.put(store, 1, made.THOUGHT)
    made.put(store, 1, made.ACTION_FILTERED)
    results = store.read(f"{1:064x}")
    assert made.same(results, made.scores_of(1, made.BOTH))
    assert len(results.labels_cut) > 0
    assert store.get(results.key, made.BOTH, 10)


def test_everybody_who_has_the_text_is_remembered(tmp_path):
    store = made.filled(tmp_path, [1])
    key = f"{1:064x}"
    results = store.get(key, made.ACTION, 5, [Source("again", "task1", None)])
    assert made.same(results, made.scores_of(1))
    assert [source.id for source in store.entry(key).sources] == ["again", "run1"]
    stamp = (tmp_path / f"{key}.parquet").stat().st_mtime_ns
    assert store.get(key, made.ACTION, 5, [Source("again", "task1", None)]) is not None
    assert (tmp_path / f"{key}.parquet").stat().st_mtime_ns == stamp
    assert store.get(key, made.BOTH, 10)


def test_keys_cannot_leave_the_folder(tmp_path):
    store = made.filled(tmp_path, [1])
    with pytest.raises(ValueError, match="is no key"):
        store.read("../run")


def test_the_documentation_describes_every_column(tmp_path):
    """Checked against the file itself, read by pyarrow alone."""
    made.filled(tmp_path, [1])
    schema = pyarrow.parquet.read_schema(tmp_path / f"{1:064x}.parquet")
    page = (ROOT / "docs" / "scores.md").read_text()
    assert schema.names[: len(COLUMNS)] == list(COLUMNS)
    assert [name for name in schema.names if f"`{name}`" not in page] == []
