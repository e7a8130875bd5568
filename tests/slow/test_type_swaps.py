"""Text in values of the wrong type: what is kept and what is reported as left out make what was there."""

import random
from pathlib import Path

import pytest

from tests import ROOT
from tests.slow import type_swaps

FIXTURES = ROOT / "tests" / "unit" / "formats" / "fixtures"
FORMATS = sorted(p.name for p in FIXTURES.iterdir() if p.is_dir() and p.name != "edge")
PER_FORMAT = 60

pytestmark = pytest.mark.slow


def samples(folder: Path) -> list[type_swaps.Sample]:
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".jsonl", ".traj"))
    return [sample for path in files if (sample := type_swaps.sample(path)) is not None]


@pytest.mark.parametrize("name", FORMATS)
def test_text_in_a_value_of_another_type_is_read_or_counted(name, tmp_path):
    attacks = []
    for sample in samples(FIXTURES / name):
        _, before = type_swaps.read(sample.write(sample.parts, tmp_path))
        for steps in type_swaps.marked(sample, tmp_path):
            attacks += [(sample, swap, before) for swap in type_swaps.swaps(sample, steps)]
    assert len(attacks) > 20
    chosen = random.Random(name).sample(attacks, min(PER_FORMAT, len(attacks)))
    lost = [
        (sample.path.name, swap.place, swap.swap)
        for sample, swap, before in chosen
        if type_swaps.lost(sample, swap, tmp_path, before)
    ]
    assert lost == []


@pytest.mark.parametrize("name", FORMATS)
def test_any_value_of_another_type_is_read_or_refused(name, tmp_path):
    rng = random.Random(name)
    for sample in samples(FIXTURES / name):
        places = list(type_swaps.values(sample.parts))
        for steps in rng.sample(places, min(15, len(places))):
            for other in rng.sample(type_swaps.OTHERS, 3):
                parts = type_swaps.replaced(sample.parts, steps, lambda _, other=other: other)
                _, report = type_swaps.read(sample.write(parts, tmp_path))  # raises nothing
                assert report.read == report.kept + sum(s.count for s in report.skipped.values())
                assert report.read, (sample.path.name, steps, other)
