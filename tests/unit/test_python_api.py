"""`import hesnr_tasks as hesnr`: what is documented is what there is, and its numbers are those of the commands."""

import doctest
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import hesnr_tasks as hesnr
from hesnr_tasks import api, demo
from hesnr_tasks.cli import command_parser, main
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.metrics import METRICS, names_of
from hesnr_tasks.scores import StoreError
from tests.unit.analysis import made

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Score files of two made-up checkpoints, where the examples look for them."""
    root = tmp_path_factory.mktemp("api")
    for name, seed, quality in (("CHECKPOINT", 1, 0.0), ("other", 2, 0.5)):
        made.run_of(root / "results" / "scores" / name, 12, 120, seed=seed, quality=quality)
    return root / "results" / "scores"


def ask(command, *words):
    args = command_parser().parse_args([command, *map(str, words), "--format", "json"])
    return json.loads(args.execute(args))["tables"]


# --- the surface ------------------------------------------------------------------------------------------------------


def test_the_documented_names_are_the_public_ones():
    section = re.search(r"^## From Python\n(.*?)^## ", (ROOT / "README.md").read_text(), re.S | re.M)[1]
    named = set(re.findall(r"hesnr\.(\w+)", section))
    assert named <= set(hesnr.__all__)
    functions = {name for name in hesnr.__all__ if name[0].islower()}
    assert functions <= named, f"README does not show {functions - named}"
    methods = {name for name in vars(hesnr.Scores) | vars(hesnr.LabelledText) if not name.startswith("_")}
    assert set(re.findall(r"(?:scores|labelled|\))\.(\w+)\(", section)) <= methods | {"values", "items"}


def test_every_public_name_is_there_and_says_what_it_does():
    assert hesnr.__all__ == sorted(api.__all__)
    for name in hesnr.__all__:
        assert getattr(hesnr, name) is getattr(api, name)
        assert getattr(hesnr, name).__doc__
        assert name in dir(hesnr)
    with pytest.raises(AttributeError, match="has no attribute 'scoer'"):
        hesnr.scoer  # noqa: B018


@pytest.mark.parametrize("name", ["load", "label", "open_scores", "compare", "Scores"])
def test_examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder.parents[1])
    examples = doctest.DocTestFinder().find(getattr(hesnr, name), name)
    assert any(test.examples for test in examples)
    for test in examples:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [{}, {"kinds": "thought+action", "filters": "none"}, {"filters": "xml", "k": 5}])
def test_evaluate_is_analyze(folder, words):
    row = ask("analyze", folder / "other", *(w for k, v in words.items() for w in (f"--{k}", v)))["results"][0]
    estimates = hesnr.open_scores(folder / "other").evaluate(**words)
    assert tuple(estimates) == names_of()
    for name, estimate in estimates.items():
        if METRICS[name].denominator is None:
            assert row[name] == estimate.value
        else:
            shown = [math.nan if number is None else number for number in row[name].values()]
            assert shown == pytest.approx(estimate, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", ["he_snr", "ppl", "bpb"])
def test_compare_is_compare(folder, name):
    rows = ask("compare", folder / "CHECKPOINT", folder / "other", "--metrics", name)[f"compare_{name}"]
    row = next(row for row in rows if row["difference"])
    a, b = hesnr.open_scores(folder / "CHECKPOINT"), hesnr.open_scores(folder / "other")
    difference = hesnr.compare(a, b, name)
    assert (difference.value, difference.stderr) == (row["difference"]["value"], row["difference"]["stderr"])
    assert (difference.ci_low, difference.ci_high, difference.p) == (row["low"], row["high"], row["p"])


def test_a_registered_metric_is_everywhere(folder):
    @hesnr.metric("surprise", better="down", unit="nats")
    def surprise(tokens):
        """Mean surprisal."""
        return -tokens.logprob

    try:
        scores = hesnr.open_scores(folder / "other")
        value = scores.evaluate("surprise", "ppl")
        assert value["surprise"].value == pytest.approx(math.log(value["ppl"].value), rel=1e-12)
        assert ask("analyze", folder / "other")["results"][0]["surprise"]["value"] == value["surprise"].value
        rows = ask("compare", folder / "CHECKPOINT", folder / "other", "--metrics", "surprise")
        assert hesnr.compare(scores, scores, "surprise").value == 0
        assert len(rows["compare_surprise"]) == 2
    finally:
        from hesnr_tasks.metrics import unregister

        unregister("surprise")


def test_the_beginning_of_a_name_is_enough_where_no_other_begins_so(folder):
    assert hesnr.open_scores(folder / "oth").signature == hesnr.open_scores(folder / "other").signature
    made.run_of(folder / "others", 2, 20, seed=3, quality=0.0)
    assert len(hesnr.open_scores(folder / "other")) == 12
    with pytest.raises(StoreError, match=r"2 folders of scores begin with .*other, others.*Write more"):
        hesnr.open_scores(folder / "oth")
    with pytest.raises(StoreError, match="no folder of score files"):
        hesnr.open_scores(folder / "nothing")


def test_label_is_what_counts():
    labelled = hesnr.label(hesnr.load(demo.trajectories_path(), limit=1)[0])
    assert "".join(labelled.text[s.start : s.end] for s in labelled.spans) == labelled.text
    assert len(labelled.kept("action", "all")) < len(labelled.kept("action", "none")) < len(labelled.text)
    assert labelled.kept("thought", "none") in "".join(
        labelled.text[s.start : s.end] for s in labelled.spans if s.kind.value == "thought"
    )


def test_what_cannot_be_asked_says_why(folder):
    scores = hesnr.open_scores(folder / "other")
    with pytest.raises(SettingsError, match=r"no metric 'pll'.*Did you mean 'ppl'"):
        scores.evaluate("pll")
    with pytest.raises(SettingsError, match=r"Did you mean 'action'"):
        scores.evaluate(kinds="actoin")
    with pytest.raises(SettingsError, match="one set of tokens"):
        scores.evaluate(filters="every")
    with pytest.raises(SettingsError, match="no better direction"):
        hesnr.compare(scores, scores, "tokens")
    for call in (
        lambda: scores.evaluate(epsilon=9.0),
        lambda: scores.evaluate(k=1),
        lambda: scores.evaluate(resamples=5),
        lambda: hesnr.open_scores(folder / "other", "999999").evaluate(),
    ):
        with pytest.raises(SettingsError) as caught:
            call()
        assert "--" not in str(caught.value)
    assert np.isnan(scores.evaluate("ppl", min_tokens=10**9)["ppl"].value)


@pytest.mark.parametrize(
    "words", [["check", "runs/", "--kinds", "actoin"], ["ladder", "run"], ["nothing"], ["compare", "--k", "x"]]
)
def test_a_wrong_command_line_is_told_in_two_lines(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert error[0].startswith("hesnr")
    assert error[1:] == [f"{error[0].split(':')[0]} --help lists the arguments."]


def test_no_trajectory_to_score_is_said():
    pytest.importorskip("torch")
    with pytest.raises(DataError, match="no trajectory to score"):
        hesnr.score(None, None, [])
