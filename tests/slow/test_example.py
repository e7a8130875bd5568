"""The example: its verifier, its figure's numbers, and the whole of it in miniature."""

import csv
import sys

import pytest

from tests import ROOT

HERE = ROOT / "examples" / "shaped_grpo"


@pytest.fixture(autouse=True)
def _beside_its_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    yield
    for name in ("task", "evaluate", "train", "figure"):
        sys.modules.pop(name, None)


def test_verifier_takes_the_sorted_digits_and_nothing_else():
    import task

    assert task.right("31029518>", "01123589")
    for wrong in ("0112358", "011235899", "31029518", "", "01123589>", " 01123589"):
        assert not task.right("31029518>", wrong)
    tokenizer = task.make_tokenizer()
    ids = [*tokenizer("01123589")["input_ids"], 1, 0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "01123589"
    assert not set(task.problems(50, 1)) & set(task.problems(50, 2, without=frozenset(task.problems(50, 1))))


def test_table_in_the_readme_is_that_of_the_kept_results():
    import figure

    values = figure.read(HERE / "results" / "results.csv")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    numbers = [row.split("|", 2)[2] for row in figure.table(values).splitlines()[2:]]
    assert len(numbers) == 6
    assert all(row in readme for row in numbers)


def test_difference_is_paired_by_seed_with_students_interval():
    import figure

    values = {("plain", "reward", 9): {0: 1.0, 1: 2.0, 2: 4.0}, ("shaped", "reward", 9): {0: 2.0, 1: 2.0, 2: 7.0}}
    difference = figure.difference(values, "reward")
    assert difference.mean == pytest.approx(4 / 3)
    half = 4.302653 * (7 / 3) ** 0.5 / 3**0.5
    assert (difference.low, difference.high) == pytest.approx((4 / 3 - half, 4 / 3 + half))


def test_whole_run_in_miniature(tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="the extra `trl` is not installed (TRL 1.16 needs Python 3.11)")
    import figure
    import train

    small = ["--seeds", "2", "--steps", "4", "--every", "2", "--warm-up", "20", "--held-out", "2"]
    train.main([*small, "--out", str(tmp_path)])
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {"plain", "shaped"}
    assert {int(row["step"]) for row in rows if row["quantity"] == "pass@1"} == {0, 2, 4}
    start = {(row["seed"], row["quantity"], row["arm"]): row["value"] for row in rows if row["step"] == "0"}
    assert all(value == start[seed, name, "plain"] for (seed, name, _), value in start.items())
    figure.main([str(tmp_path / "results.csv")])
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    panels = {title: curves for title, _, _, curves in figure.panels(figure.read(tmp_path / "results.csv"))}
    seeds = [float(row["value"]) for row in rows if (row["arm"], row["quantity"]) == ("shaped", "reward")]
    assert panels["Reward in training"]["shaped"].mean == pytest.approx([sum(seeds) / 2])
    assert panels["Held-out problems, step 4"]["plain"].x == [1, 2, 4, 8, 16, 32]
