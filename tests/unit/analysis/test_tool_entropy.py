"""Where agents hesitate: from texts and made-up scores whose answers are known, against slow references."""

import argparse
import dataclasses
import json
import math
import random
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.actions.classes import decision_words
from hesnr_tasks.analysis import tool_entropy
from hesnr_tasks.analysis.frame import load, selection
from hesnr_tasks.analysis.tables import show
from hesnr_tasks.analysis.tool_entropy import MEASURES, ToolEntropyItem, number, quantile, stderr_of, steps_of
from hesnr_tasks.cli.analyze import analyze, analyze_arguments
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.stats import resample_counts
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.rendering import Rendered, Span
from tests.unit.analysis import made

# --- decision words ---------------------------------------------------------------------------------------------------

CALL = "<function={0}>\n<parameter=command>{1}</parameter>\n</function>"


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("grep -rn foo src", ["grep"]),
        ("cd /testbed && FOO=1 timeout 60 python -m pytest -q", ["python", "-m", "pytest"]),
        ("export A=1; sed -n '1,5p' a.py", ["sed", "-n"]),
        ("git diff HEAD", ["git", "diff"]),
        ("python repro.py", ["python"]),
        ("python - <<EOF\nx\nEOF", ["python", "-"]),
        ("cat <<'EOF' > a.py\ngrep x\nEOF", ["cat"]),
        ("cd src", ["cd"]),
        ("   ", []),
        ("```bash\nls -la\n```", ["ls"]),
        (CALL.format("bash", "cd /testbed && ls"), ["bash", "ls"]),
        (CALL.format("str_replace_editor", "view"), ["str_replace_editor", "view"]),
        ("<function=submit>\n</function>", ["submit"]),
        ("<function=think>\n<parameter=thought>Let me see</parameter>\n</function>", ["think", "Let"]),
        (
            '<tool_call>\n{"name": "bash", "arguments": {"command": "cd \\"a\\"\\ngit \\tdiff"}}\n</tool_call>',
            ["bash", "git", "diff"],
        ),
        (CALL.format("bash", "cd a") + "\n" + CALL.format("bash", "cat b"), ["bash", "cat"]),
    ],
)
def test_the_words_that_say_what_is_done(action, words):
    assert [action[start:end] for start, end in decision_words(action)] == words


def test_arguments_decide_on_demand():
    action = CALL.format("bash", "cd /testbed && grep -rn foo src")
    words = ["bash", "grep", "-rn", "foo", "src"]
    assert [[action[a:b] for a, b in decision_words(action, n)] for n in range(4)] == [words[: n + 2] for n in range(4)]
    action = CALL.format("str_replace_editor", "view</parameter>\n<parameter=path>a.py")
    assert [action[a:b] for a, b in decision_words(action, 1)] == ["str_replace_editor", "view", "a.py"]


def test_steps_are_the_actions_and_their_entropy_is_that_of_the_words():
    """Tokens of three characters over two actions; the second one's words are covered by two tokens."""
    text = "Think. lsx -a\nSeen. grep foo src"
    spans = [(0, 7, Kind.THOUGHT, 1), (7, 13, Kind.ACTION, 1), (13, 20, Kind.OBSERVATION, 2), (20, 32, Kind.ACTION, 2)]
    steps = steps_of(Rendered(text, tuple(Span(*span, False) for span in spans)))
    assert [(step.turn, [text[a:b] for a, b in step.words]) for step in steps] == [(1, ["lsx"]), (2, ["grep"])]
    start, end = np.arange(0, 33, 3), np.minimum(np.arange(3, 36, 3), 33)
    entropy = np.linspace(0.1, 1.1, 11)
    decides = np.zeros(11, dtype=bool)
    decides[7] = True
    want = {"max": [0.4, 0.8], "mean": [0.35, 0.75], "first": [0.3, 0.7], "sum": [0.7, 1.5]}
    for combine, expected in want.items():
        result = tool_entropy.measure(steps, start, end, entropy, decides, combine)
        np.testing.assert_allclose(result.entropy, expected)
        assert result.decisive.tolist() == [False, True]
        assert result.peak.tolist() == [3, 7]


def test_a_step_without_a_scored_decision_token_is_counted_apart():
    text = "ls; cat x"
    steps = steps_of(Rendered(text, (Span(0, 9, Kind.ACTION, 1, False),)))
    none = np.empty(0)
    result = tool_entropy.measure(steps, none, none, none, none.astype(bool))
    assert math.isnan(result.entropy[0])
    assert result.peak[0] == -1


# --- numbers against slow references ----------------------------------------------------------------------------------


def items_of(seed=0, n=9, longest=12):
    rng = random.Random(seed)
    result = []
    for i in range(n):
        values = array("d", (round(rng.expovariate(2), 2) for _ in range(rng.randint(0, longest))))
        high = sum(v > 0.7 for v in values)
        result.append(ToolEntropyItem(f"{i:03d}", values, high, high - (high > 1), i % 2))
    return result


def slow(name, parts):
    """Pools the steps, then evaluates."""
    values = sorted(value for part in parts for value in part.entropies)
    n = len(values)
    if name in ("steps", "unmeasured"):
        return float(n if name == "steps" else sum(part.unmeasured for part in parts))
    if not n:
        return math.nan
    mean = sum(values) / n
    if name == "mean":
        return mean
    if name in ("high", "he"):
        return sum(part.high if name == "high" else part.decisive for part in parts) / n
    if name == "skewness":
        m2, m3 = (sum((v - mean) ** power for v in values) / n for power in (2, 3))
        return m3 / m2**1.5 if m2 > 0 else math.nan
    share = int(name[1:])
    return next(v for i, v in enumerate(values, 1) if 100 * i >= share * n)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("seed", "n", "longest"), [(0, 9, 12), (1, 40, 30)])
def test_values_and_errors_equal_those_of_a_plain_loop(name, seed, n, longest):
    parts = items_of(seed, n, longest)
    assert number(name, parts) == pytest.approx(slow(name, parts), rel=1e-9)
    draws = [
        [part for part, times in zip(parts, counts) for _ in range(times)] for counts in resample_counts(n, 300, 7)
    ]
    values = [value for value in (slow(name, draw) for draw in draws) if math.isfinite(value)]
    assert stderr_of(name, list(reversed(parts)), 300, 7) == pytest.approx(np.std(values, ddof=1), rel=1e-6)


def test_order_does_not_change_a_bit():
    parts = items_of(3, 20)
    mixed = random.Random(1).sample(parts, len(parts))
    for name in MEASURES:
        assert number(name, parts) == number(name, mixed)
        assert stderr_of(name, parts, 200) == stderr_of(name, mixed, 200)


def test_nothing_measured_is_nan_and_one_trajectory_has_no_error():
    nothing = [ToolEntropyItem("a", array("d"), 0, 0, 2), ToolEntropyItem("b", array("d"), 0, 0, 1)]
    for name in set(MEASURES) - {"steps", "unmeasured"}:
        assert math.isnan(number(name, nothing))
        assert math.isnan(stderr_of(name, nothing, 200))
        assert math.isnan(stderr_of(name, items_of()[:1], 200))
    assert number("unmeasured", nothing) == 3


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_quantile_is_an_observed_value(share):
    for n in (1, 2, 9, 10, 11, 100, 1000):
        values = np.arange(n) / 7
        assert quantile(values, share) == np.quantile(values, share, method="inverted_cdf")


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile") / "step200"
    made.run_of(folder, 20, 300, seed=1, cut=(3,))
    return folder


def ask(folder, **options):
    """All tables of a run, by name, as a program reads them."""
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    words = [str(folder), "--filters", "none", "--resamples", "200", "--seed", "1", "--format", "json"]
    args = parser.parse_args([*words, "--tool-entropy"])
    vars(args).update(options)
    frame = load(folder, args.k or [10], extra=tool_entropy.COLUMNS)
    tables = list(tool_entropy.tables(frame, args))
    assert show(tables, "text", {}).count("Tool entropy") >= 4
    return json.loads(show(tables, "json", {}))["tables"]


def test_groups_share_the_steps_among_them_and_pool_to_the_total(answer):
    result = answer
    (total,) = result["tool_entropy"]
    assert total["steps"] > 150
    for name in ("class", "turn", "resolved"):
        rows = result[f"tool_entropy_by_{name}"]
        assert sum(row["steps"] for row in rows) == total["steps"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        for measure in ("mean", "high", "he"):
            pooled = sum(row["steps"] * row[measure]["value"] for row in rows if row["steps"]) / total["steps"]
            assert pooled == pytest.approx(total[measure]["value"], rel=1e-9)
    assert {row["resolved"] for row in result["tool_entropy_by_resolved"]} == {"resolved", "unresolved", "unknown"}
    assert [row["turn"] for row in result["tool_entropy_by_turn"]] == ["1", "2", "3", "4", "5", "6-10"]
    assert all(row["run"] == "step200" for rows in result.values() for row in rows)


def test_the_distribution_holds_every_step_and_the_gates_fire_as_they_say(run):
    result = ask(run, quantile=[0.75])
    total = result["tool_entropy"][0]["steps"]
    assert sum(row["steps"] for row in result["tool_entropy_distribution"]) == total
    assert [row["quantile"] for row in result["tool_entropy_gates"]] == [0.5, 0.75, 0.8, 0.9, 0.95, 0.99]
    for row in result["tool_entropy_gates"]:
        assert row["fires"] == pytest.approx(1 - row["quantile"], abs=1.01 / total)


def test_forks_are_the_steps_of_greatest_entropy_with_the_candidates_stored(answer, profile):
    rows = answer["tool_entropy_forks"]
    values = np.sort(profile.measured.entropy)[::-1]
    assert [row["entropy"] for row in rows] == values[:10].tolist()
    for row in rows:
        weights = np.array([weight for _, weight in row["candidates"]])
        p = weights / weights.sum()
        assert -(p * np.log(p)).sum() == pytest.approx(row["entropy"], abs=1e-3)


@pytest.fixture(scope="module")
def answer(run):
    """All tables with default settings."""
    return ask(run)


@pytest.fixture(scope="module")
def profile(run):
    return tool_entropy.profile_of(load(run, extra=tool_entropy.COLUMNS), none_filtered())


def none_filtered():
    return selection(("xml", "format", "comments"), [Kind.ACTION], [])


@given(st.lists(st.sampled_from([0.0, 0.562, 0.693, 1.04, 1.386]) | st.floats(0, 3), min_size=1), st.floats(0, 1))
def test_a_calibrated_gate_fires_at_the_share_asked_for(entropies, share):
    """Also where most steps have one and the same entropy, as votes have."""
    threshold, tie = tool_entropy.gate_threshold([*entropies, math.nan], share)
    above, equal = sum(h > threshold for h in entropies), sum(h == threshold for h in entropies)
    assert 0 <= tie <= 1
    assert above + tie * equal == pytest.approx((1 - share) * len(entropies), abs=1e-6)


def test_a_gate_without_steps_is_refused():
    with pytest.raises(SettingsError, match="no step with an entropy"):
        tool_entropy.gate_threshold([math.nan], 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": ["2.5"]}, "must lie in"),
        ({"quantile": [0.5, 1.5]}, r"--quantile 1.5 must lie in \[0, 1\]"),
        ({"quantile": [float("nan")]}, "--quantile nan"),
        ({"forks": 0}, "--forks must be at least 1"),
        ({"decision_arguments": -1}, "--decision-arguments must be at least 0"),
        ({"combine": "maxx"}, "Did you mean 'max'"),
    ],
)
def test_settings_that_cannot_be_are_refused(run, options, message):
    with pytest.raises(SettingsError, match=message):
        ask(run, **options)


@pytest.mark.parametrize("words", [["--forks", "3"], ["--quantile", "0.7"], ["--combine", "sum"],
                                   ["--decision-arguments", "0"]])  # fmt: skip
def test_options_of_tool_entropy_without_it_are_refused(run, words):
    parser = argparse.ArgumentParser()
    analyze_arguments(parser)
    with pytest.raises(SettingsError, match=f"{words[0]} is for the steps of --tool-entropy; add that"):
        analyze(parser.parse_args([str(run), *words]))


def test_options_say_how_many_forks_and_how_steps_are_measured(run, answer):
    """Each fork's entropy is that of the profile measured so; every row says how."""
    result = ask(run, forks=3, decision_arguments=2, combine="sum")
    frame = load(run, extra=tool_entropy.COLUMNS)
    wanted = tool_entropy.profile_of(frame, none_filtered(), arguments=2, combine="sum").measured.entropy
    assert [row["entropy"] for row in result["tool_entropy_forks"]] == np.sort(wanted)[::-1][:3].tolist()
    assert result["tool_entropy"][0]["mean"]["value"] == pytest.approx(wanted.mean(), rel=1e-12)
    assert result["tool_entropy"][0]["mean"]["value"] > answer["tool_entropy"][0]["mean"]["value"]
    settings = {(row["decision_arguments"], row["combine"]) for rows in result.values() for row in rows}
    assert settings == {(2, "sum")}


# --- figure -----------------------------------------------------------------------------------------------------------


def test_the_figure_is_drawn_of_a_run_and_of_one_without_a_measured_step(profile, tmp_path):
    empty = dataclasses.replace(profile, items=[], steps=profile.steps[:0])
    for drawable, least in ((profile, 5_000), (empty, 1_000)):
        files = tool_entropy.draw(drawable, tmp_path / "tool_entropy")
        assert [path.suffix for path in files] == [".svg", ".png"]
        assert all(path.stat().st_size > least for path in files)


def test_the_distribution_is_that_of_the_steps(answer, profile):
    rows, values = answer["tool_entropy_distribution"], profile.measured.entropy
    assert [row["steps"] for row in rows] == [
        sum(row["low"] <= h < row["high"] or (row is rows[-1] and h >= row["high"]) for h in values) for row in rows
    ]
