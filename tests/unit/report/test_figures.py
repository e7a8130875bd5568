"""Every figure's numbers beside a slow computation from the score files, and every figure drawn whatever the names."""

import math
from functools import cache

import numpy as np
import pytest

from hesnr_tasks.analysis.summary import token_sets
from hesnr_tasks.ladder.names import parse_name, sft_pairs, training_order
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.plotting import bar_lengths, limit_axis
from hesnr_tasks.report import tables
from hesnr_tasks.report.figures import entropy as entropy_figures
from hesnr_tasks.report.figures import metrics as metrics_figures
from hesnr_tasks.report.results import read_results
from hesnr_tasks.stats import Estimate
from tests.reference import comparison
from tests.unit.analysis import made
from tests.unit.report import ladders, reference

FILTERED = "action-xml-format-comments"
SETS = token_sets(("xml", "format", "comments"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return ladders.score_files(tmp_path_factory.mktemp("ladder"))


@pytest.fixture(scope="module")
def data(folders):
    return ladders.report_data(folders)


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_axes_are_set_by_the_values_not_by_an_endless_interval(axis, scale):
    from matplotlib.figure import Figure

    numbers = [Estimate(248.0, 50.0, 3e-5, 2.2e9), Estimate(131.0, 11.0, 110.0, 160.0), Estimate(math.nan)]
    axes = Figure().subplots()
    getattr(axes, f"set_{axis}scale")(scale)
    limit_axis(axes, numbers, axis)
    low, high = getattr(axes, f"get_{axis}lim")()
    assert 0 <= low < 131 < 248 < high < 600
    limit_axis(axes, [Estimate(5.0, 0.1, 4.9, 5.1)] * 2, axis)
    low, high = getattr(axes, f"get_{axis}lim")()
    assert 4 < low < 4.9 < 5.1 < high < 6
    limit_axis(axes, [Estimate(math.nan)], axis)  # nothing to show: the axis stays as it is


def tally(folder, select, epsilon=EPSILON):
    """Pooled (|M|, -ln p, |H|, -ln p over H, p / H over H), token by token."""
    parts = [comparison.tally(tokens, epsilon, 10) for tokens in ladders.raw_tokens(folder, SETS[select].mask)]
    return [math.fsum(part[i] for part in parts) for i in range(5)]


@cache
def values(folder, select):
    n, nll, high, high_nll, ratio = tally(folder, select)
    return {"ppl": math.exp(nll / n), "he_ppl": math.exp(high_nll / high), "he_snr": ratio / high, "he_tokens": high}


# --- over the ladder --------------------------------------------------------------------------------------------------


def test_figure_1_has_ppl_and_accuracies_of_thought_and_action(data, folders):
    rows = metrics_figures.accuracy(data).tables[0].rows
    assert [row["checkpoint"] for row in rows] == list(ladders.NAMES)
    tokens = [t for part in ladders.raw_tokens(folders["step800-2k"], SETS["thought+action"].mask) for t in part]
    assert rows[1]["ppl"].value == pytest.approx(values(folders["step800-2k"], "thought+action")["ppl"], rel=1e-12)
    for j in (1, 2, 5, 10):
        share = sum(1 <= rank <= j for _, rank, _ in tokens) / len(tokens)
        assert rows[1][f"top{j}_acc"].value == pytest.approx(share, rel=1e-12)


def test_figure_2_has_the_filtered_numbers_and_the_downstream_score(data, folders):
    rows = metrics_figures.steps(data).tables[0].rows
    for row in rows:
        want = values(folders[row["checkpoint"]], FILTERED)
        assert row["ppl"].value == pytest.approx(want["ppl"], rel=1e-12)
        assert row["he_snr"].value == pytest.approx(want["he_snr"], rel=1e-12)
        assert row["he_snr"].ci_low < row["he_snr"].value < row["he_snr"].ci_high
        assert row["downstream"].value == data.downstream["swe"][row["checkpoint"]].value
    assert [row["step"] for row in rows] == [200, 800, 1600, 1604, 2000, 2000]


def test_figure_7_counts_steps_from_the_last_checkpoint_before_the_extension(data, folders):
    rows = metrics_figures.extension(data).tables[0].rows
    assert [row["since"] for row in rows] == [-1400, -800, 0, 4, 400]  # without the one after SFT
    assert [row["he_tokens"].value for row in rows] == [
        values(folders[row["checkpoint"]], FILTERED)["he_tokens"] for row in rows
    ]
    assert all(math.isnan(part) for part in rows[0]["he_tokens"][1:])  # a count has neither error nor interval


def test_every_extension_of_every_family_has_its_own_step_0():
    from hesnr_tasks.ladder.schema import Checkpoint

    ladder = [
        Checkpoint(f"{family}{step}", family=family, step=step, context=context)
        for family, contexts in (("a", (2, 2, 8, 8, 32)), ("b", (2, 8)), ("c", (2, 2)))
        for step, context in enumerate(contexts)
    ]
    parts = [(stage[first - 1].name, [c.name for c in stage]) for first, stage in metrics_figures._extensions(ladder)]
    assert parts == [("a1", ["a0", "a1", "a2", "a3"]), ("a3", ["a2", "a3", "a4"]), ("b0", ["b0", "b1"])]


def test_steps_that_begin_anew_are_counted_as_they_are():
    ladder = training_order(map(parse_name, ["step500-32k", "step2000-32k", "step10-128k", "step100-128k"]))
    assert list(metrics_figures._steps_since(ladder, ladder[1]).values()) == [-1500, 0, 10, 100]


def test_figure_8_pairs_what_sft_made_with_what_it_was_made_from(data, folders):
    rows = metrics_figures.sft(data).tables[0].rows
    assert {(row["before"], row["after"]) for row in rows} == {("step2000-8k", "step2000-8k-sft")}
    for row in rows:
        for side in ("before", "after"):
            want = values(folders[row[side]], row["select"])
            for name in ("ppl", "he_ppl", "he_snr"):
                assert row[f"{name}_{side}"].value == pytest.approx(want[name], rel=1e-12)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["step1", "step2", "step1-sft", "step2-sft"], [("step1", "step1-sft"), ("step2", "step2-sft")]),
        (["step1", "step2", "final-sft"], [("step2", "final-sft")]),
        (["step1", "step2"], []),
        (["step1-sft", "step2-sft"], []),
        (["step2", "step2-sft", "step2-dpo"], [("step2", "step2-sft"), ("step2-sft", "step2-dpo")]),
    ],
)
def test_sft_pairs_by_name(names, pairs):
    actual = sft_pairs(training_order(map(parse_name, names)))
    assert [(a.name, b.name) for a, b in actual] == pairs


# --- entropies --------------------------------------------------------------------------------------------------------


def test_histograms_count_every_token_once(data, folders):
    rows = entropy_figures.histogram_rows(data.summaries, FILTERED)
    tokens = [t for part in ladders.raw_tokens(folders["step200-2k"], SETS[FILTERED].mask) for t in part]
    for which, worst in (("all", 0), ("non-top-1", 1), ("non-top-2", 2)):
        own = [row for row in rows if (row["checkpoint"], row["population"]) == ("step200-2k", which)]
        entropies = [comparison.entropy(top[:10]) for _, rank, top in tokens if not 1 <= rank <= worst]
        assert sum(row["tokens"] for row in own) == len(entropies)
        want = [0] * 80
        for entropy in entropies:
            want[min(79, int(entropy / math.log(10) * 80))] += 1
        assert [row["tokens"] for row in own] == want
        assert math.fsum(row["density"] * (row["high"] - row["low"]) for row in own) == pytest.approx(1, abs=1e-3)


def test_densities_are_those_of_a_slow_kernel_estimate_with_their_mode(data, folders):
    rows = entropy_figures.density_rows(data.summaries[:1], FILTERED)
    tokens = [t for part in ladders.raw_tokens(folders["step200-2k"], SETS[FILTERED].mask) for t in part]
    entropies = [comparison.entropy(top[:10]) for _, rank, top in tokens if rank != 1]
    shape = next(s for s in data.summaries[0].distributions if (s.select, s.population) == (FILTERED, "non-top-1"))
    own = [row for row in rows if row["population"] == "non-top-1"]
    grid = [row["entropy"] for row in own if not row["peak"]][::16]
    width = 0.9 * min(np.std(entropies, ddof=1), np.subtract(*np.percentile(entropies, [75, 25])) / 1.34)
    slow = [comparison.density(entropies, x, width * len(entropies) ** -0.2, math.log(10)) for x in grid]
    assert [row["density"] for row in own if not row["peak"]][::16] == pytest.approx(slow, abs=5e-3)
    modes = [row["entropy"] for row in own if row["peak"] == "mode"]
    assert modes == [pytest.approx(shape.peaks[0].entropy, abs=1e-5)]


def test_at_most_eight_checkpoints_have_histograms_of_their_own():
    items = list(range(30))
    actual = entropy_figures.evenly_spaced(items)
    assert (actual[0], actual[-1], len(actual), len(set(actual))) == (0, 29, 8, 8)
    assert entropy_figures.evenly_spaced(items[:8]) == items[:8]


# --- what metrics are worth -------------------------------------------------------------------------------------------


def test_correlations_are_those_of_the_numbers_in_the_scatter(data):
    scatter = metrics_figures.downstream(data).tables[0].rows
    for row in tables.agreements(data).rows:
        own = [entry for entry in scatter if (entry["select"], entry["group"]) == (row["select"], row["group"])]
        if own:
            sign = 1 if row["metric"] == "he_snr" else -1
            x = [sign * entry[row["metric"]].value for entry in own]
            y = [entry["downstream"].value for entry in own]
            assert row["pearson"] == pytest.approx(reference.pearson(x, y), rel=1e-9)
            assert row["decision"] == pytest.approx(reference.decision(x, y))
            assert row["pearson_trajectories_low"] <= row["pearson"] <= row["pearson_trajectories_high"]
    assert {row["select"] for row in tables.agreements(data).rows} == {*data.ablation, "thought+action"}
    assert {(row["group"], row["checkpoints"]) for row in tables.agreements(data).rows} == {("base", 5)}
    notes = tables.agreements(data).notes
    assert any("swe, base: 5 checkpoints; of fewer than 8" in note for note in notes)
    assert any("swe, fine-tuned: 1 sft checkpoint; from 4 on" in note for note in notes)


@pytest.mark.parametrize(("checkpoints", "numbered"), [(12, True), (13, False)])
def test_the_scatter_says_that_points_are_numbered_where_they_are(tmp_path, checkpoints, numbered):
    names = [f"step{index}" for index in range(1, checkpoints + 1)]
    for index, name in enumerate(names):
        ladders.result(tmp_path, name, 0.1 + 0.01 * index, others={}, filters=["xml", "format", "comments"])
    report = ladders.report_data({}, results=read_results([tmp_path]), names=names)
    scatter = metrics_figures.downstream(report)
    assert ("numbered" in scatter.caption) == numbered
    shown = [text.get_text() for text in scatter.draw().axes[2].texts]
    assert shown == [str(index) for index in range(1, checkpoints + 1) if numbered]


def test_a_checkpoint_has_one_number_whatever_else_is_in_its_panel(tmp_path):
    """The second of three has no unfiltered numbers."""
    for index, name in enumerate(("step1", "step2", "step3")):
        for kinds, filters in (["action"], ["xml", "format", "comments"]), (["thought", "action"], []):
            if name != "step2" or filters:
                ladders.result(tmp_path / str(len(filters)), name, 0.1 + index, others={}, kinds=kinds, filters=filters)
    rows = [row for part in ("0", "3") for row in read_results([tmp_path / part])]
    report = ladders.report_data({}, results=rows, names=["step1", "step2", "step3"])
    canvas = metrics_figures.downstream(report).draw()
    assert [text.get_text() for text in canvas.axes[2].texts] == ["1", "3"]
    assert [text.get_text() for text in canvas.axes[5].texts] == ["1", "2", "3"]


def test_the_interval_over_trajectories_resamples_them_for_all_checkpoints_alike(data, folders):
    """Slowly: the same resamples, pooled one by one."""
    from hesnr_tasks.stats import resample_counts

    names = [name for name in ladders.NAMES if not name.endswith("sft")]  # base and fine-tuned are not pooled
    parts = {
        n: [comparison.tally(t, EPSILON, 10) for t in ladders.raw_tokens(folders[n], SETS[FILTERED].mask)]
        for n in names
    }
    y = [data.downstream["swe"][name].value for name in names]
    actual = []
    for counts in resample_counts(8, ladders.RESAMPLES, data.seed).tolist():
        sums = {n: [math.fsum(c * p[i] for c, p in zip(counts, parts[n])) for i in (2, 4)] for n in names}
        actual.append(reference.pearson([sums[n][1] / sums[n][0] for n in names], y))
    row = next(r for r in tables.agreements(data).rows if (r["select"], r["metric"]) == (FILTERED, "he_snr"))
    assert row["pearson_trajectories_low"] == pytest.approx(reference.percentile(actual, 0.025), rel=1e-9)
    assert row["pearson_trajectories_high"] == pytest.approx(reference.percentile(actual, 0.975), rel=1e-9)


def test_the_ablation_has_a_row_a_filter_and_the_papers_values_beside_it(data, folders):
    rows = tables.ablation(data).rows
    assert [(row["tokens"], row["filter"]) for row in rows] == [
        ("thought", "none"), ("action", "none"), ("action", "xml"), ("action", "xml + format"),
        ("action", "xml + format + comments"),
    ]  # fmt: skip
    assert [row["paper_kendall"] for row in rows] == [0.519, 0.944, 0.956, 0.968, 0.979]
    want = values(folders["step200-2k"], "action-xml")["he_snr"]
    assert rows[2]["step200-2k"].value == pytest.approx(want, rel=1e-12)


def test_the_sweep_is_the_value_at_each_threshold(data, folders):
    rows = [row for row in metrics_figures.sweep(data).tables[0].rows if row["checkpoint"] == "step1604-8k"]
    assert len(rows) == 20
    for row in rows[::6]:
        _, _, high, _, ratio = tally(folders["step1604-8k"], FILTERED, row["epsilon"])
        want = ratio / high if high else math.nan  # no entropy is above the last thresholds: no number, not 0
        assert row["he_snr"].value == pytest.approx(want, rel=1e-12, nan_ok=True)
        assert row["he_tokens"] == high
    row = tables.sweep_agreements(data).rows[6]
    rows = [r for r in metrics_figures.sweep(data).tables[0].rows if r["epsilon"] == row["epsilon"]]
    base = {r["checkpoint"]: r["he_snr"].value for r in rows if not r["checkpoint"].endswith("sft")}
    y = [data.downstream["swe"][name].value for name in base]
    assert row["pearson"] == pytest.approx(reference.pearson(list(base.values()), y), rel=1e-9)


def test_neighbours_are_paired_by_trajectory_and_signed_for_the_better(data, folders):
    rows = tables.neighbours(data).rows
    assert len(rows) == 2 * 3 * 5
    for row in rows:
        before, after = (values(folders[row[side]], row["select"])[row["metric"]] for side in ("from", "to"))
        assert row["difference"].value == pytest.approx(after - before, rel=1e-9)
        assert (row["steps"] > 0) == ((after > before) == (row["metric"] == "he_snr"))


# --- what must not be mixed -------------------------------------------------------------------------------------------


def test_a_run_on_other_texts_is_in_no_figure_and_the_page_says_why(folders, tmp_path):
    made.run_of(tmp_path / "other", 5, 120, model="made/step2400-8k")
    data = ladders.report_data({**folders, "step2400-8k": tmp_path / "other"})
    assert "step2400-8k" not in data.values[FILTERED]
    assert any("step2400-8k is in no figure" in note and "same texts" in note for note in data.notes)
    assert any("step2400-8k" in entry.why for entry in data.missing)


def test_a_damaged_folder_costs_only_its_own_checkpoint(tmp_path):
    folders = ladders.score_files(tmp_path, ("step1", "step2", "step3"), 4, 30)
    victim = next(folders["step2"].glob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-40])
    data = ladders.report_data(folders)
    assert [entry.name for entry in data.summaries] == ["step1", "step3"]
    assert any("step2" in note and "not used" in note for note in data.notes)


def test_error_bars_are_distances_and_unknown_ends_are_none():
    assert bar_lengths([Estimate(2.0, 0.5, 1.5, 3.0), Estimate(1.0)]) == [[0.5, 0.0], [1.0, 0.0]]
