"""The profile of the demo's last checkpoint equals that of the release before, to 1e-12."""

import argparse
import itertools
import json

import pytest

from hesnr_tasks.cli import analyze
from tests.unit.exploration import demo_scores

GOLDEN = json.loads((demo_scores.GOLDEN / "tables.json").read_text())
FEWEST = 8


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = demo_scores.write(tmp_path_factory.mktemp("demo") / "scores")
    parser = argparse.ArgumentParser()
    analyze.add_arguments(parser)
    words = [str(folder), "--exploration", "--format", "json", "--resamples", "2000"]
    return json.loads(analyze.analyze(parser.parse_args(words)))["tables"]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_tables(tables, name):
    """Intervals of fewer than eight trajectories were given before and are not now; p-values are new."""
    assert len(tables[name]) == len(GOLDEN[name])
    for row, golden in zip(tables[name], GOLDEN[name]):
        assert set(golden) <= set(row)
        for key, expected in golden.items():
            if isinstance(expected, dict):
                kept = row[key]["low"] is not None
                assert kept <= (row["trajectories"] >= FEWEST)
                for part, number in expected.items():
                    if kept or part == "value":
                        assert row[key][part] == (number and pytest.approx(number, rel=1e-12, abs=1e-12))
            elif isinstance(expected, float):
                assert row[key] == pytest.approx(expected, rel=1e-12, abs=1e-12)
            elif "interval" not in key:
                assert row[key] == expected


def test_p_values_are_those_of_the_intervals_and_corrected(tables):
    rows = [row for row in tables["exploration"] if row["p"] is not None]
    assert 4 <= len(rows) < len(tables["exploration"])
    for row in tables["exploration"]:
        assert (row["p"] is None) == (row["matched"]["low"] is None)
    for row in rows:
        if not 0.04 < row["p"] < 0.06:  # the same bootstrap, up to its quantile
            assert (row["p"] < 0.05) == (row["matched"]["low"] > 0 or row["matched"]["high"] < 0)
    ordered = sorted(rows, key=lambda row: row["p"])
    assert ordered[0]["p_holm"] == pytest.approx(min(1, ordered[0]["p"] * len(rows)))
    assert all(a["p_holm"] <= b["p_holm"] for a, b in itertools.pairwise(ordered))
