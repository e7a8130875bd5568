"""Sampling weights of documents: against plain loops, and what tables may be weighed and joined."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.integrations import weights
from hesnr_tasks.integrations.weights import BY, COLUMNS, METADATA, Sampling, Tables, sampling_weights, write_weights

SIGNATURE = {"k": 10, "epsilon": 1.24, "hesnr_tasks": "1", "run": {"tokenizer": "t", "bos": [], "max_length": 64}}


def table(path, documents, **signature):
    """Documents (source, tokens, decisions, HE-SNR, loss); decisions 0: no HE-SNR."""
    rows = [
        {
            "row": i, "id": f"d{i}", "source": source, "key": f"k{i}", "tokens": tokens, "bytes": 4 * tokens,
            "tokens_cut": 0, "he_tokens": he, "he_snr": snr if he else None,
            "density": he / tokens if tokens else None, "loss": loss if tokens else None,
        }
        for i, (source, tokens, he, snr, loss) in enumerate(documents)
    ]  # fmt: skip
    metadata = {METADATA: json.dumps({**SIGNATURE, **signature})}
    fields = [(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata=metadata)), path)
    return Tables.open([path])


DOCUMENTS = [
    ("web", 100, 10, 0.2, 2.0),
    ("web", 50, 0, 0.0, 1.0),
    ("code", 200, 80, 0.5, 0.5),
    ("code", 40, 30, 0.1, 3),
]


def slowly(values, names, sampling):
    """Plain Python, term by term."""
    defined = [v for v in values if not math.isnan(v)]
    mean = sum(defined) / len(defined) if defined else 0.0
    spread = math.sqrt(sum((v - mean) ** 2 for v in defined) / len(defined)) if defined else 0.0
    sign = 1 if sampling.prefer == "high" else -1
    raw = []
    if sign < 0 and not sampling.by.endswith("_change"):
        values = [min(u for u in values if u > 0) if v == 0 else v for v in values]
    for v in values:
        if math.isnan(v) or (v == 0 and not sampling.by.endswith("_change")):
            raw.append(0.0)
        elif sampling.by.endswith("_change"):
            raw.append(math.exp(sign * v / spread / sampling.temperature) if spread else 1.0)
        else:
            raw.append(v ** (sign / sampling.temperature))
    mixed = [(1 - sampling.floor) * r / sum(raw) + sampling.floor / len(raw) for r in raw]
    if sampling.quotas:
        mass = {name: sum(w for w, n in zip(mixed, names) if n == name) for name in names}
        rest = sum(m for name, m in mass.items() if name not in sampling.quotas)
        left = 1 - sum(sampling.quotas.values())
        quota = {name: sampling.quotas.get(name, left * m / rest if rest else 0.0) for name, m in mass.items()}
        mixed = [w * quota[name] / mass[name] for w, name in zip(mixed, names)]
    return mixed


VALUE = st.floats(0.01, 5) | st.sampled_from([math.nan, 0.0])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), VALUE), min_size=4, max_size=30),
    st.sampled_from(BY), st.sampled_from(("high", "low")), st.floats(0.3, 20), st.floats(0.05, 1), st.floats(0, 0.9),
)  # fmt: skip
def test_weights_are_those_of_plain_loops(rows, by, prefer, temperature, floor, quota):
    names = ["a", "z"] + [name for name, _ in rows]  # two sources that are surely there
    values = [1.0, 2.0] + [value for _, value in rows]
    sources = sorted(set(names))
    codes = np.array([sources.index(name) for name in names])
    sampling = Sampling(by, prefer, temperature, floor, {"a": quota})
    computed = sampling_weights(np.array(values), codes, sources, sampling)
    assert math.fsum(computed) == pytest.approx(1, abs=1e-12)
    assert computed == pytest.approx(slowly(values, names, sampling), rel=1e-9, abs=1e-15)
    assert computed[codes == 0].sum() == pytest.approx(quota, abs=1e-12)


def test_of_low_values_zero_is_preferred_too():
    values, codes = np.array([0.0, 0.1, 0.4]), np.zeros(3, dtype=int)
    weights = sampling_weights(values, codes, ["a"], Sampling("density", "low"))
    assert weights == pytest.approx([4 / 9, 4 / 9, 1 / 9])


def test_a_table_is_weighed_and_what_cannot_be_is_counted(tmp_path):
    first = table(tmp_path / "a.parquet", DOCUMENTS)
    summary = write_weights(tmp_path / "out.parquet", first, None, Sampling("he_snr", floor=0.1, min_tokens=5))
    out = pq.read_table(tmp_path / "out.parquet").to_pydict()
    want = [0.9 * snr / 0.8 + 0.025 for snr in (0.2, 0.0, 0.5, 0.1)]
    assert out["weight"] == pytest.approx(want)
    assert out["id"] == ["d0", "d1", "d2", "d3"]
    assert summary.undefined == 1
    assert summary.effective == pytest.approx(1 / sum(w * w for w in want))
    assert summary.totals["he_snr"] == pytest.approx([0.2, (80 * 0.5 + 30 * 0.1) / 110])  # pooled over decisions
    assert summary.totals["loss"] == pytest.approx([(200 + 50) / 150, (100 + 120) / 240])
    assert any("1 have no he_snr" in line for line in summary.lines("he_snr"))
    again = write_weights(tmp_path / "out.parquet", Tables.open([tmp_path / "out.parquet"]), None, Sampling("loss"))
    assert again.weight.sum() == pytest.approx(1)


def test_two_tables_give_the_change_in_any_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_BATCH", 3)
    later = [(*row[:3], row[3] + 0.1 * i, row[4] - 0.2) for i, row in enumerate(DOCUMENTS)]
    first, second = table(tmp_path / "a.parquet", DOCUMENTS), table(tmp_path / "b.parquet", later)
    write_weights(tmp_path / "out.parquet", first, second, Sampling("he_snr_change", min_tokens=1))
    out = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert out["loss_change"] == pytest.approx([-0.2] * 4)
    assert out["he_snr_change"][1] is None
    changes = [0.0, math.nan, 0.2, 0.3]
    assert out["weight"] == pytest.approx(slowly(changes, ["s"] * 4, Sampling("he_snr_change")))
    with pytest.raises(SettingsError, match="two checkpoints already"):
        write_weights(tmp_path / "x", Tables.open([tmp_path / "out.parquet"]), second, Sampling())


def test_what_cannot_be_weighed_says_why(tmp_path):
    first = table(tmp_path / "a.parquet", DOCUMENTS)

    def refused(message, sampling=None, second=None, error=SettingsError):
        with pytest.raises(error, match=message):
            write_weights(tmp_path / "out.parquet", first, second, sampling or Sampling())
        assert not (tmp_path / "out.parquet").exists()

    refused("needs two checkpoints", Sampling("loss_change"))
    refused("Did you mean 'web'", Sampling(quotas={"wbe": 0.1}))
    refused("no other source can fill the rest", Sampling(quotas={"web": 0.1, "code": 0.1}))
    refused("he_snr is 0 or undefined for all its documents", Sampling("he_snr", quotas={"web": 0.5}, min_tokens=20))
    refused("for all 4 documents", Sampling("he_snr", min_tokens=1000))
    refused("tokenizer differ", second=table(tmp_path / "t", DOCUMENTS, run={**SIGNATURE["run"], "tokenizer": "u"}))
    refused("epsilon differ", second=table(tmp_path / "e", DOCUMENTS, epsilon=1.0))
    swapped = table(tmp_path / "s", [DOCUMENTS[0]])
    refused("different numbers of documents", second=swapped, error=DataError)
    for wrong in ({"by": "he"}, {"temperature": 0}, {"floor": 2}, {"quotas": {"a": 0.7, "b": 0.7}}):
        with pytest.raises(SettingsError):
            Sampling(**wrong)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "corpus.parquet")
    with pytest.raises(DataError, match="--model"):
        Tables.open([tmp_path / "corpus.parquet"])
