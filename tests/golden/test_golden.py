"""The numbers of every task and command, as they were: what is built anew must not change them."""

import csv
import json
import math

import pytest

from tests import ROOT
from tests.golden.commands import COMMANDS, HERE, answer, report

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.numbers


def stored(name):
    return json.loads((HERE / "answers" / f"{name}.json").read_text(encoding="utf-8"))


def differences(want, actual, path="", rel=1e-9):
    """Where `got` lacks something of `want`, or has another number; what is new in it is no difference."""
    if isinstance(want, dict) and isinstance(actual, dict):
        for key, value in want.items():
            yield from differences(value, actual.get(key, "(missing)"), f"{path}.{key}", rel)
    elif isinstance(want, list) and isinstance(actual, list) and len(want) == len(actual):
        for i, (a, b) in enumerate(zip(want, actual, strict=True)):
            yield from differences(a, b, f"{path}[{i}]", rel)
    elif isinstance(want, float) and isinstance(actual, (int, float)):
        if not (math.isclose(want, actual, rel_tol=rel, abs_tol=1e-12) or (math.isnan(want) and math.isnan(actual))):
            yield f"{path}: {want} became {actual}"
    elif isinstance(want, str) and isinstance(actual, str):
        if want != actual.replace(str(ROOT), "."):
            yield f"{path}: {want!r} became {actual!r}"
    elif want != actual:
        yield f"{path}: {want!r} became {actual!r}"


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_print_the_numbers_they_printed(name):
    want = stored(name)
    want.pop("hesnr_tasks", None)  # the version
    assert not list(differences(want, answer(COMMANDS[name])))[:20]


def table(lines):
    """CSV lines as one dict a row, numbers as numbers."""

    def number(text):
        try:
            return float(text)
        except ValueError:
            return text

    return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def test_the_report_writes_the_numbers_it_wrote(tmp_path, request):
    pytest.importorskip("matplotlib")
    request.getfixturevalue("blank_figures")
    actual = report(tmp_path / "out")
    for path, lines in stored("report").items():
        assert not list(differences(table(lines), table(actual[path]), path, rel=1e-6))[:20]


@pytest.mark.slow
def test_tasks_give_the_numbers_they_gave():
    """Another CPU sums float32 in another order: 1e-4 relative, and a token or two on the other side of a threshold."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from hesnr_tasks import demo
    from hesnr_tasks.tasks import tasks_path

    metadata = {"trajectories": [str(demo.ladder_trajectories_path()), str(demo.trajectories_path())]}
    actual = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(demo.ladder_paths()[-1][1]), "dtype": "float32"},
        tasks=["hesnr_swe", "hesnr_swe_unfiltered", "hesnr_swe_thought", "hesnr_swe_ablation", "hesnr_tool_entropy"],
        task_manager=TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=metadata),
        batch_size=8, bootstrap_iters=0, device="cpu", log_samples=False,
    )["results"]  # fmt: skip
    for task, values in stored("tasks").items():
        for key, value in values.items():
            if isinstance(value, float) and not key.startswith("sample_len"):
                rel = 5e-3 if "he_" in key or "stderr" in key or "top" in key else 1e-4
                assert actual[task][key] == pytest.approx(value, rel=rel, abs=1e-6), (task, key)


def test_a_changed_number_is_noticed():
    want = stored("analyze")
    changed = json.loads(json.dumps(want))
    row = changed["tables"][next(iter(changed["tables"]))][0]
    key = next(key for key, value in row.items() if isinstance(value, dict))
    row[key]["value"] *= 1 + 1e-7
    assert len(list(differences(want, changed))) == 1
