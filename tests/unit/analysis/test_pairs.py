"""`hesnr analyze A --against B`: real models with two tokenizers, against loops over tokens and characters."""

import argparse
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import hesnr_tasks as hesnr  # noqa: E402
from hesnr_tasks.analysis.compare import key_tokens, mean_over_characters, pair_table  # noqa: E402
from hesnr_tasks.analysis.frame import selection  # noqa: E402
from hesnr_tasks.analysis.tables import Question  # noqa: E402
from hesnr_tasks.cli.analyze import analyze, analyze_arguments  # noqa: E402
from hesnr_tasks.errors import DataError, HesnrError, SettingsError  # noqa: E402
from hesnr_tasks.testing import byte_tokenizer, tiny_model, trajectory  # noqa: E402
from hesnr_tasks.trajectory import Kind  # noqa: E402
from tests import tiny  # noqa: E402
from tests.reference import pairs as slow  # noqa: E402
from tests.unit.analysis import made  # noqa: E402
from tests.unit.scores.made import FILTERS  # noqa: E402

pytestmark = pytest.mark.numbers
CHOSEN = selection(FILTERS, [Kind.ACTION], [])
QUESTION = Question([CHOSEN], resamples=200)
WINDOW = 48


@pytest.fixture
def low_thresholds(monkeypatch):
    """So low that random models have key tokens."""
    from hesnr_tasks.analysis import compare as pairs

    monkeypatch.setattr(pairs, "ALPHA", 0.3)
    monkeypatch.setattr(pairs, "BETA", 7.0)
    monkeypatch.setattr(slow.is_key, "__defaults__", (0.3, 7.0))


def runs():
    """Repetitions that only a long context can foresee, and characters of several bytes."""
    secret = "α→β 😀 x = [3, 1, 4, 1, 5]; print('naïve')"
    filler = " ".join(f"line {i}" for i in range(9))
    return [
        trajectory(f"t{i}", ("Look.", f"cat {secret}{i}", filler), ("Fix.", f"sed {secret}{i} && pytest {i}", "ok"))
        for i in range(5)
    ]


@pytest.fixture(scope="module")
def stores():
    """(tokenizer, window): the scores of two models in memory."""
    tokenizers = {"bytes": byte_tokenizer(), "bpe": tiny.byte_level(bos=True)}
    scored = {}
    for seed, (name, tokenizer) in enumerate(tokenizers.items()):
        model = tiny_model(len(tokenizer), seed)
        with torch.no_grad():  # flatter, so that losses lie on both sides of 2 nats
            model.lm_head.weight.mul_(0.7)
        for window in (None, WINDOW):
            scored[name, window] = hesnr.score(model, tokenizer, runs(), kinds="thought+action", window=window)._store
    return scored


def values(judged, *against, **options):
    table = pair_table([("a", judged)], [(f"b{i}", store) for i, store in enumerate(against)], QUESTION, **options)
    return {(row["against"], row["metric"]): row for row in table.rows}, table.notes


@pytest.mark.parametrize(("tokenizer", "prefix"), [("bytes", 0), ("bpe", 1)])
def test_context_benefit_is_that_of_a_loop(stores, low_thresholds, tokenizer, prefix):
    whole, short = stores[tokenizer, None], stores[tokenizer, WINDOW]
    rows, _ = values(whole, short)
    tokens = slow.context(whole, short, CHOSEN.mask, WINDOW, prefix)
    assert len(tokens) > 100
    for name, low, high in (("", 0, math.inf), ("_near", 0, 1), ("_mid", 1, 4), ("_far", 4, math.inf)):
        inside = [benefit for benefit, distance, _, _ in tokens if low < distance <= high]
        row = rows["b0", f"context_benefit{name}"]
        assert row["over"] == len(inside)
        if len(inside):
            assert row["value"].value == pytest.approx(math.fsum(inside) / len(inside), rel=1e-9)
    assert rows["b0", "context_benefit_median"]["value"].value == pytest.approx(np.median([t[0] for t in tokens]))
    share = rows["b0", "context_benefit_share"]["value"]
    assert share.value == pytest.approx(np.mean([t[0] > 0 for t in tokens]))
    assert share.ci_low < share.value < share.ci_high
    key = [loss for _, _, is_key, loss in tokens if is_key]
    assert rows["b0", "long_ppl"]["over"] == len(key) > 0
    assert rows["b0", "long_ppl"]["value"].value == pytest.approx(math.exp(math.fsum(key) / len(key)))
    assert rows["b0", "key_share"]["value"].value == pytest.approx(len(key) / len(tokens))


def test_an_evaluator_and_a_teacher_may_have_another_tokenizer(stores, low_thresholds):
    judged, teacher, short = stores["bytes", None], stores["bpe", None], stores["bpe", WINDOW]
    rows, notes = values(judged, teacher, short)
    assert rows["b0", "rbridge"]["value"].value == pytest.approx(slow.rbridge(judged, teacher, CHOSEN.mask), rel=1e-9)
    expected, count = slow.long_ppl(judged, teacher, short, CHOSEN.mask, WINDOW, prefix=1)
    assert rows["b1", "long_ppl"]["over"] == count > 0
    assert rows["b1", "long_ppl"]["value"].value == pytest.approx(expected, rel=1e-9)
    assert ("b0", "he_snr_fixed") not in rows
    assert any("b0 has other tokens than a" in note for note in notes)


def test_medians_of_resamples_are_those_of_pooled_tokens(stores):
    whole, short = stores["bytes", None], stores["bytes", WINDOW]
    row = values(whole, short)[0]["b0", "context_benefit_median"]
    per_text = []
    for key in whole:

        class SingleText(list):
            read, text = whole.read, whole.text

        own = SingleText([key])
        per_text.append([t[0] for t in slow.context(own, short, CHOSEN.mask, WINDOW)])
    rng = np.random.default_rng(0)
    medians = [np.median(np.concatenate([per_text[i] for i in rng.integers(0, 5, 5)])) for _ in range(2000)]
    assert row["value"].stderr == pytest.approx(np.std(medians), rel=0.25)


def test_key_tokens_and_means_over_characters():
    whole, short, hidden = np.log([0.5, 0.5, 0.1, 0.5]), np.log([0.05, 0.1, 0.001, 0.05]), np.array([4.0, 4, 4, 0])
    assert key_tokens(whole, short, hidden).tolist() == [1, 0, 0, -1]  # gain 2.3; gain 1.6; loss 2.3; nothing hidden
    start, end = np.array([0, 3, 5, 6]), np.array([3, 5, 5, 8])
    mean = mean_over_characters(start, end, np.array([0, 2, 3]), np.array([2, 4, 4]), np.array([0.2, 0.8, 0.4]))
    # characters: .2 .2 .8 (.8 + .4)/2; the third token covers none, and of the fourth nobody knows any
    assert mean[:2] == pytest.approx([0.4, 0.6])
    assert np.isnan(mean[2:]).all()


# --- what is refused --------------------------------------------------------------------------------------------------


def two_lines(error):
    return len(str(error.value).splitlines()) == 2


def test_folders_that_cannot_be_paired_are_refused_in_two_lines(stores, tmp_path):
    whole, short, other_short = stores["bytes", None], stores["bytes", WINDOW], stores["bpe", WINDOW]
    for judged, against, words in (
        (short, whole, "is a short-context pass"),
        (whole, whole, "same model with the same context"),
        (whole, other_short, "not of a"),
    ):
        with pytest.raises(SettingsError, match=words) as error:
            values(judged, against)
        assert two_lines(error)
    a, b = made.run_of(tmp_path / "a", 6), made.run_of(tmp_path / "b", 4, seed=1, model="made/two")
    with pytest.raises(DataError, match="share 4 texts, and 2 are in one alone") as error:
        values(a, b)
    assert two_lines(error)
    _, notes = values(a, b, common=True)
    assert "on the 4 texts that both have" in " ".join(notes)
    c = made.run_of(tmp_path / "c", 6, model="made/two", first_key=50)
    with pytest.raises(DataError, match="share 0 texts") as error:
        values(a, c, common=True)
    assert two_lines(error)


def test_another_rendering_is_refused_in_two_lines(tmp_path):
    a = made.run_of(tmp_path / "a", 6)
    from hesnr_tasks.scores import ScoreStore
    from tests.unit.scores import made as parts

    b = ScoreStore.open(tmp_path / "b", parts.signature(render="chatml", model="made/two"))
    with pytest.raises(SettingsError, match="other renderings \\(transcript, chatml\\)") as error:
        values(a, b)
    assert two_lines(error)


def test_the_command_prints_values_and_what_they_are_over(tmp_path, monkeypatch):
    made.run_of(tmp_path / "a", 8)
    made.run_of(tmp_path / "b", 8, seed=2, model="made/two", quality=0.5)
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)

    def ask(*words):
        return analyze(parser.parse_args([str(word) for word in words]))

    words = (tmp_path / "a", "--against", tmp_path / "b", "--resamples", "200")
    rows = {row["metric"]: row for row in json.loads(ask(*words, "--format", "json"))["tables"]["pairs"]}
    assert set(rows) == {"rbridge", "he_snr_fixed", "he_ppl_fixed", "he_snr_shared"}
    assert rows["rbridge"]["value"]["value"] > 0
    value = rows["rbridge"]["value"]
    assert value["low"] < value["value"] < value["high"]
    assert rows["he_snr_shared"]["over"] <= rows["he_snr_fixed"]["over"]
    assert "Against other scores of the same texts" in ask(*words)
    with pytest.raises(HesnrError, match="--common is for --against"):
        ask(tmp_path / "a", "--common")
    monkeypatch.setenv("COLUMNS", "60")  # narrower than the table: its numbers are the last to go
    made.run_of(tmp_path / "c", 8, seed=2, model="made/a-teacher-with-quite-a-long-name", quality=0.5)
    table = ask(tmp_path / "a", "--against", tmp_path / "c", "--resamples", "200").split("Against other", 1)[1]
    (heading,) = (line.split() for line in table.splitlines() if line.startswith("run "))
    assert heading == ["run", "against", "metric", "value"]
