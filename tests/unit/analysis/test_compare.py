"""`hesnr compare`: paired, corrected, and only what may be compared."""

import argparse
import json

import pytest

from hesnr_tasks.analysis.compare import read_run
from hesnr_tasks.cli.analyze import compare, compare_arguments
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.metrics import EPSILON, TokenColumns, TrajectorySums
from hesnr_tasks.scores import ScoreStore
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import label_mask
from tests.reference import comparison as slow
from tests.unit.analysis import made
from tests.unit.scores import made as parts


def ask(*words):
    parser = argparse.ArgumentParser()
    compare_arguments(parser)
    return compare(parser.parse_args([str(word) for word in words]))


def tables(*words):
    return json.loads(ask(*words, "--format", "json"))["tables"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """a and b are alike, c is better."""
    folder = tmp_path_factory.mktemp("compare")
    for name, seed, quality in (("a", 1, 0.0), ("b", 2, 0.0), ("c", 3, 0.7)):
        made.run_of(folder / name, 40, 200, seed=seed, quality=quality)
    return folder


def test_the_whole_way_from_files_to_p_is_that_of_a_plain_loop(runs):
    """Difference, interval and p of HE-SNR from token sums pooled one by one, with 1000 resamples."""
    row = next(r for r in tables(runs / "a", runs / "c", "--resamples", 1000)["compare_he_snr"] if r["run"] == "c")
    mask = label_mask([Kind.ACTION], parts.FILTERS, parts.FILTERS)
    sides = []
    for name in ("a", "c"):
        store = ScoreStore.open(runs / name)
        scores = [store.read(key) for key in store]
        texts = [store.text(key).rendered.text for key in store]
        columns = [TokenColumns.of_scores(s, s.selected(mask), 10, text) for s, text in zip(scores, texts)]
        parts_of = [TrajectorySums.of(tokens).parts("he_snr") for tokens in columns]
        sides.append([(float(numerator[0]), float(denominator[0])) for numerator, denominator in parts_of])
    want = slow.paired_t(*sides)
    assert (row["difference"]["value"], row["low"], row["high"], row["p"]) == pytest.approx(want, rel=1e-8)


def test_the_better_run_is_first_and_found_to_be_better(runs):
    rows = tables(runs / "a", runs / "b", runs / "c", "--resamples", 999)["compare_he_snr"]
    assert rows[0]["run"] == "c"
    by_name = {row["run"]: row for row in rows}
    assert by_name["a"]["difference"] is None
    assert by_name["c"]["low"] > 0
    assert by_name["c"]["p"] < 0.01 < by_name["b"]["p"]
    assert by_name["c"]["p_worse"] < 0.01
    assert by_name["c"]["p_holm"] == pytest.approx(2 * by_name["c"]["p"])
    assert by_name["b"]["p_holm"] == by_name["b"]["p"]
    assert by_name["c"]["needed"] < 40 < by_name["b"]["needed"]


def test_lower_is_better_for_perplexities(runs):
    rows = tables(runs / "a", runs / "c", "--metrics", "ppl", "top1_acc", "--resamples", 999)
    for name, sign in (("compare_ppl", -1), ("compare_top1_acc", 1)):
        best, other = rows[name]
        assert best["run"] == "c"
        assert sign * best["difference"]["value"] > 0
        assert best["p_worse"] < 0.5
        assert other["run"] == "a"


def test_pairing_is_worth_trajectories(runs):
    """Runs on the same texts rise and fall together; unpaired ones would need many times as many."""
    row = next(r for r in tables(runs / "a", runs / "b", "--metrics", "ppl")["compare_ppl"] if r["run"] == "b")
    assert row["correlation"] > 0.5
    assert row["unpaired"] > 80


def test_the_reference_can_be_named(runs):
    rows = tables(runs / "a", runs / "c", "--reference", "c", "--resamples", 200)["compare_he_snr"]
    assert [row["run"] for row in rows if row["difference"] is None] == ["c"]
    with pytest.raises(SettingsError, match="'d' is none of"):
        ask(runs / "a", runs / "c", "--reference", "d")


# --- what must not be compared ----------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name_and_another_model_is_not(tmp_path):
    made.run_of(tmp_path / "a", 3, 60, model="one", weights="x", torch="2.9")
    made.run_of(tmp_path / "b", 3, 60, model="two", weights="y", torch="2.8")
    made.run_of(tmp_path / "c", 3, 60, tokenizer="900 tokens def")
    made.run_of(tmp_path / "d", 3, 60, render="chatml")
    assert "he_snr" in ask(tmp_path / "a", tmp_path / "b", "--resamples", 200)
    with pytest.raises(SettingsError, match=r"one and made/one .* \(tokenizer: 600 tokens abc → 900 tokens def\)"):
        ask(tmp_path / "a", tmp_path / "c")
    with pytest.raises(SettingsError, match="render: transcript → chatml"):
        ask(tmp_path / "a", tmp_path / "b", tmp_path / "d")


def test_renderings_are_compared_only_when_told_to(tmp_path):
    """Paired by id: other texts (here, of another length) of the same trajectories."""
    made.run_of(tmp_path / "a", 12, 60)
    made.run_of(tmp_path / "b", 12, 60, seed=2, quality=0.7, render="native")
    with pytest.raises(SettingsError, match=r"render: transcript → native.*--across-renderings"):
        ask(tmp_path / "a", tmp_path / "b")
    made.run_of(tmp_path / "c", 12, 90, seed=2, quality=0.7, render="native", first_key=100)
    with pytest.raises(SettingsError, match="render: transcript → native"):
        ask(tmp_path / "a", tmp_path / "c", "--common")
    words = (tmp_path / "a", tmp_path / "c", "--across-renderings", "--resamples", 200)
    assert "renderings (a: transcript, c: native): other texts and tokens" in ask(*words)
    (row,) = [r for r in tables(*words)["compare_he_snr"] if r["run"] == "c"]
    sides = []
    for name in ("a", "c"):
        frame = read_run(tmp_path / name, name, None, None, EPSILON, 10, None, "latest", ["he_snr"])
        order = sorted(range(12), key=lambda i: int(frame.ids[i].removeprefix("run")))
        numerator, denominator = frame.sums.parts("he_snr")
        sides.append([(float(numerator[i]), float(denominator[i])) for i in order])
    assert not {*frame.keys} & {*ScoreStore.open(tmp_path / "a")}
    want = slow.paired_t(*sides)
    assert (row["difference"]["value"], row["low"], row["high"], row["p"]) == pytest.approx(want, rel=1e-8)


def test_a_context_limit_counts_where_it_cuts(tmp_path):
    made.run_of(tmp_path / "a", 3, 60)
    made.run_of(tmp_path / "b", 3, 60, max_length=65536)
    assert "he_snr" in ask(tmp_path / "a", tmp_path / "b", "--resamples", 200)


def test_other_texts_are_refused_by_name_or_left_out_on_request(tmp_path):
    made.run_of(tmp_path / "a", 6, 60)
    made.run_of(tmp_path / "b", 4, 60)
    with pytest.raises(DataError, match="only a has run4, run5"):
        ask(tmp_path / "a", tmp_path / "b")
    printed = ask(tmp_path / "a", tmp_path / "b", "--common", "--resamples", 200)
    assert "4 trajectories, paired" in printed
    assert "compared on the 4 texts that all runs have (only a has run4, run5)" in printed


def test_a_text_that_changed_is_named(tmp_path):
    store = made.run_of(tmp_path / "a", 3, 60)
    other = made.run_of(tmp_path / "b", 2, 60)
    parts.put(other, 77, sources=store.entry(f"{2:064x}").sources)
    with pytest.raises(DataError, match="the text of run2 differs"):
        ask(tmp_path / "a", tmp_path / "b")


def test_the_same_text_with_other_tokens_is_refused(tmp_path):
    made.run_of(tmp_path / "a", 3, 60)
    made.run_of(tmp_path / "b", 3, 60, cut=(1,))
    with pytest.raises(DataError, match=r"of trajectory 'run1' \d+ and \d+ tokens count"):
        ask(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "ppls"], r"must be one of he_snr, .{60,160} and \d+ more\. Did you mean 'ppl'\?"),
        (["--power", "1.5"], "--power must be"),
        (["--filters", "every"], "one set of tokens"),
        (["--epsilon", "3"], "no entropy exceeds"),
        (["--k", "0"], "fewer than 2 candidates"),
    ],
)
def test_what_cannot_be_asked_says_why(runs, words, message):
    with pytest.raises(SettingsError, match=message):
        ask(runs / "a", runs / "b", *words)


def test_one_run_is_not_enough(runs):
    with pytest.raises(SettingsError, match="needs two runs or more"):
        ask(runs / "a")


def test_text_and_csv_have_every_run_and_the_legend_once(runs):
    printed = ask(runs / "a", runs / "b", runs / "c", "--resamples", 200)
    assert " ".join(printed.split()).count("verdict: by the two-sided p") == 1
    assert printed.count("paired (lower is better)") == 2
    assert "p worse: share" not in printed
    assert ask(runs / "a", runs / "b", "--resamples", 200, "--wide").count("p worse: share of resamples") == 1
    lines = ask(runs / "a", runs / "b", "--resamples", 200, "--metrics", "ppl", "--format", "csv").splitlines()
    assert lines[0].startswith("run,metric,ppl,ppl_stderr,ppl_low,ppl_high,difference,difference_stderr")
    assert len(lines) == 3


def test_the_reference_is_the_first_that_is_named_else_the_best(runs):
    assert "difference to a," in ask(runs / "a", runs / "c", "--resamples", 200)
    printed = ask(runs, "--resamples", 200)
    assert printed.startswith("HE-SNR, against c, which is best of 3: b, a worse (paired")
    assert "difference to b," in ask(runs, "--resamples", 200, "--reference", "b")
    rows = tables(runs, "--resamples", 200)["compare_he_snr"]
    assert [row["verdict"] for row in rows] == ["reference", "worse", "worse"]
    low = tables(runs, "--resamples", 200, "--metrics", "ppl")["compare_ppl"]
    assert [low[0]["run"], low[0]["verdict"]] == ["c", "reference"]
