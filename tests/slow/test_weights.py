"""`hesnr weights` on tiny models: numbers as everywhere else, a run that is stopped, and what others read of it."""

import json
import math

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import hesnr_tasks as hesnr
from hesnr_tasks import cli
from hesnr_tasks.backends import hf
from hesnr_tasks.backends.hf import LiveModel
from hesnr_tasks.formats import ReadReport
from hesnr_tasks.integrations import weights
from hesnr_tasks.tasks.settings import TaskSettings
from hesnr_tasks.testing import byte_tokenizer, save_checkpoint, tiny_model, trajectory
from tests.reference import metrics as reference

pytestmark = pytest.mark.slow
EPSILON, K = 0.2, 60  # with these a random model, which is peaked at what does not come, has decisions


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """JSON Lines and Parquet of documents, and trajectories."""
    folder = tmp_path_factory.mktemp("corpus")
    documents = [
        {"id": f"d{i}", "text": f"def f{i}(x):\n    return {i * 'é'}x\n" * (1 + i % 4), "source": "ab"[i % 2]}
        for i in range(8)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents[:5]), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(documents[5:]), folder / "docs.parquet")
    run = trajectory("run", ("Look.", "ls -la src", "a.py"), ("Edit.", "sed -i s/a/b/ a.py", ""))
    (folder / "runs.jsonl").write_text(json.dumps(run.to_json()) + "\n", encoding="utf-8")
    return [str(folder / name) for name in ("docs.jsonl", "docs.parquet", "runs.jsonl")]


def score(corpus, folder, progress=lambda documents, tokens: None, seed=0, **settings):
    backend = hf.make(LiveModel(tiny_model(seed=seed), byte_tokenizer()))
    chosen = TaskSettings.read({"epsilon": EPSILON, "k": K, **settings})
    return weights.score_corpus(corpus, chosen, lambda: backend, folder, ReadReport(), progress)


def rows_of(tables):
    return [row for table in tables.batches() for row in table.to_pylist()]


def test_numbers_are_those_of_score_and_evaluate(corpus, tmp_path):
    rows = rows_of(score(corpus, tmp_path))
    runs = hesnr.load(corpus)
    assert [row["id"] for row in rows] == [run.id for run in runs]
    assert [row["source"] for row in rows] == ["a", "b"] * 4 + ["runs"]
    assert sum(row["he_tokens"] for row in rows) > 10
    for row, run in zip(rows, runs, strict=True):
        scores = hesnr.score(tiny_model(), byte_tokenizer(), [run], kinds="action", k=K)
        names = ("he_snr", "density", "ppl", "tokens", "he_tokens")
        want = {
            n: e.value for n, e in scores.evaluate(*names, epsilon=EPSILON, k=K, min_tokens=0, resamples=100).items()
        }
        assert (row["tokens"], row["he_tokens"]) == (want["tokens"], want["he_tokens"])
        assert row["density"] == want["density"]
        assert row["loss"] == pytest.approx(math.log(want["ppl"]), rel=1e-6)
        if row["he_tokens"]:
            assert row["he_snr"] == pytest.approx(want["he_snr"], rel=1e-6)
        else:
            assert row["he_snr"] is None


def test_numbers_are_those_of_float64_loops(corpus, tmp_path):
    row = rows_of(score(corpus[:1], tmp_path, filters="none"))[3]
    labelled = hesnr.label(hesnr.load(corpus[0])[3])
    (span,) = (span for span in labelled.spans if span.kind.value == "action")
    ids = byte_tokenizer()(labelled.text)["input_ids"]
    first = len(labelled.text[: span.start].encode())
    counted = range(first, first + len(labelled.text[span.start : span.end].encode()))
    with torch.no_grad():
        logits = tiny_model()(torch.tensor([ids])).logits[0].double().tolist()
    tokens = [reference.token(logits[i - 1], ids[i], K) for i in counted]
    decisions = [t for t in tokens if t[2] > EPSILON and t[1] <= K]
    assert (row["tokens"], row["bytes"], row["he_tokens"]) == (len(tokens), len(tokens), len(decisions))
    assert row["loss"] == pytest.approx(-math.fsum(t[0] for t in tokens) / len(tokens), rel=2e-5)
    signal = math.fsum(math.exp(t[0]) / t[2] for t in decisions) / len(decisions)
    assert row["he_snr"] == pytest.approx(signal, rel=2e-5)


def test_a_run_that_was_stopped_goes_on_and_ends_alike(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MOST_DOCUMENTS", 2)
    read = []

    def stop(documents, tokens):
        read.append(tokens)
        if documents and len([t for t in read if not t]) == 2:  # the second window is on the disk
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(corpus, tmp_path / "a", stop)
    first, read = sum(read), []
    tables = score(corpus, tmp_path / "a", lambda documents, tokens: read.append(tokens))
    second, read = sum(read), []
    whole = score(corpus, tmp_path / "b", lambda documents, tokens: read.append(tokens))
    assert first + second == sum(read)
    assert first
    assert second
    assert rows_of(tables) == rows_of(whole)
    for number, other in enumerate(({"epsilon": 4.0}, {"seed": 1})):  # no part of other settings or weights is taken
        again = rows_of(score(corpus, tmp_path / "a", **other))
        assert again == rows_of(score(corpus, tmp_path / f"c{number}", **other)) != rows_of(whole)


def test_the_command_and_what_datasets_and_torch_make_of_it(corpus, tmp_path, capsys):
    a, b = (save_checkpoint(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 1)))
    common = ["--epsilon", str(EPSILON), "--k", str(K), "--min-tokens", "1"]

    def command(*words):
        assert cli.main(["weights", *map(str, words)]) == 0, capsys.readouterr().err

    command(*corpus, "--model", a, "--compare", b, "-o", tmp_path / "both.parquet", "--by", "loss_change", *common)
    assert not (tmp_path / "both.parquet.parts").exists()
    for name, checkpoint in (("one", a), ("other", b)):
        command(*corpus, "--model", checkpoint, "-o", tmp_path / f"{name}.parquet", *common)
    joined = ["--by", "loss_change", "--floor", "0.2", "--quota", "a=0.5", "-o", tmp_path / "joined.parquet"]
    command(tmp_path / "one.parquet", tmp_path / "other.parquet", *joined)
    both, again = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in ("both", "joined"))
    assert both.pop("weight") != again.pop("weight")
    assert both == again

    data = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "joined.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert math.fsum(data["weight"]) == pytest.approx(1, abs=1e-12)
    assert sum(w for w, s in zip(data["weight"], data["source"], strict=True) if s == "a") == pytest.approx(0.5)
    generator = torch.Generator().manual_seed(0)
    sampler = torch.utils.data.WeightedRandomSampler(data["weight"], 20_000, generator=generator)
    counts = torch.bincount(torch.tensor(list(sampler)), minlength=len(data))
    for count, weight in zip(counts.tolist(), data["weight"], strict=True):
        assert abs(count - 20_000 * weight) < 5 * math.sqrt(20_000 * weight * (1 - weight)) + 1
    parts = [data.filter(lambda row, name=name: row["source"] == name) for name in ("a", "b")]
    mixed = datasets.interleave_datasets(parts, probabilities=[0.5, 0.5], seed=0, stopping_strategy="all_exhausted")
    assert set(mixed["source"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.parquet", "--compare", "b"], "name the first with --model"),
        (["x.parquet", "--model", "b", "--by", "he_snr_change"], "--compare"),
        (["a", "b", "c"], "3 tables were given"),
        (["a", "--quota", "web"], "SOURCE=SHARE"),
        (["nowhere.parquet"], "nowhere.parquet"),
        (["x.jsonl", "--model", "nowhere/at/all"], "cannot be loaded"),
    ],
)
def test_what_cannot_be_done_says_why(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["weights", *words, "-o", "out.parquet"]) == 2
    assert message in capsys.readouterr().err
