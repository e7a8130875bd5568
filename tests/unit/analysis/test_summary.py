"""A checkpoint's summary: taken apart and put together it is the same, and damaged parts are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from hesnr_tasks.analysis.summary import CheckpointSummary, SummaryRequest, summarize
from hesnr_tasks.errors import DataError
from hesnr_tasks.metrics import EPSILON, names_of
from tests.unit.analysis import made

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summary") / "scores"
    made.run_of(folder, 5, 120, cut=(2,))
    return summarize(SummaryRequest(folder, "step5", 10, EPSILON, None, metrics=names_of("all")))


def test_parts_make_the_same_summary(summary):
    document, arrays = summary.to_parts()
    text = json.dumps(document, allow_nan=False)
    assert "run0" not in text  # ids of trajectories
    assert "bash" not in text  # their texts
    again = CheckpointSummary.from_parts(json.loads(text), arrays, Path("here"))
    assert list(again.runs) == list(summary.runs)
    for select, run in summary.runs.items():
        other = again.runs[select]
        assert other.keys == run.keys
        assert other.sums.names == run.sums.names
        assert np.array_equal(other.sums.values, run.sums.values, equal_nan=True)
        assert np.array_equal(other.multiplicity, run.multiplicity)
        assert np.array_equal(other.n_truncated, run.n_truncated)
        assert again.share_scored(select) == summary.share_scored(select)
        assert all(other.sums.parts(name)[0].shape == (5,) for name in names_of("all"))
    assert np.array_equal(again.sweep.values, summary.sweep.values)
    for ours, theirs in zip(summary.distributions, again.distributions, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours[3:7], theirs[3:7], strict=True))
        assert ours[:3] + ours[7:] == theirs[:3] + theirs[7:]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("keys", ["a"]), ("keys", None), ("sets", ["action"] * 6), ("statistics", []), ("signature", {}),
        ("statistics", [f"x{i}" for i in range(400)]), ("signature", {"run": {}, "filters": [{}]}),
        ("distributions", [{}]), ("epsilons", ["x"]), ("k", None), ("sums", np.zeros((1, 1, 1))),
        ("multiplicity", -np.ones((6, 5), dtype=np.int64)), ("edges", np.zeros((1, 1))),
    ],
)  # fmt: skip
def test_damaged_parts_are_refused(summary, part, value):
    document, arrays = summary.to_parts()
    (arrays if part in arrays else document)[part] = value
    with pytest.raises(DataError, match="is no summary of a checkpoint"):
        CheckpointSummary.from_parts(document, arrays, Path("here"))
