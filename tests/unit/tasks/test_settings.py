"""What users can set, and what they are told when it cannot be."""

import argparse
import importlib.metadata
import math
import re
import runpy
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hesnr_tasks.cli import main
from hesnr_tasks.errors import SettingsError
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.tasks.settings import TaskSettings, ToolEntropySettings, add_flags, describe_settings
from hesnr_tasks.trajectory import Kind
from tests import ROOT


def test_defaults_are_the_papers_metric():
    settings = TaskSettings.read({"version": 1.0, "config_source": "hesnr_swe.yaml"})
    assert settings.kinds == (Kind.ACTION,)
    assert settings.filters == ("xml", "format", "comments")
    assert settings.epsilon == pytest.approx((math.log(3) + math.log(4)) / 2, abs=1e-15)
    assert settings.k == 10


def test_words_may_be_lists_or_text():
    a = TaskSettings.read({"kinds": "thought+action", "filters": "none", "only_resolved": "true", "k": "20"})
    b = TaskSettings.read({"kinds": ["action", "thought"], "filters": [], "only_resolved": True, "k": 20})
    assert a == b


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"trajectoriez": "x"}, "unknown setting 'trajectoriez'.*Did you mean 'trajectories'"),
        ({"epsilom": 1}, "Did you mean 'epsilon'"),
        ({"kinds": "acton"}, "kinds is 'acton'.*Did you mean 'action'"),
        ({"filters": ["xlm"]}, "Did you mean 'xml'"),
        ({"render": "chat-ml"}, "Did you mean 'chatml'"),
        ({"overflow": "left"}, "right, error, skip"),
        ({"epsilon": "high"}, "epsilon must be a number"),
        ({"epsilon": 3}, "no entropy exceeds 2.3026 nats"),
        ({"k": 2.5}, "k must be a number"),
        ({"k": True}, "k must be a number"),
        ({"limit": 0}, "at least 1"),
        ({"epsilon": math.inf}, "epsilon must be a number"),
        ({"epsilon": "nan"}, "epsilon must be a number"),
        ({"epsilon": 10**400}, "epsilon must be a number"),
        ({"limit": math.inf}, "limit must be a number"),
        ({"sample": -math.inf}, "sample must be a number"),
        ({"k": math.nan}, "k must be a number"),
        ({"min_tokens": "1e400"}, "min_tokens must be a number"),
        ({"limit": 10**30}, "limit must be a number"),
        ({"bootstrap_seed": 10**400}, "bootstrap_seed must be a number"),
        ({"resamples": 10**9}, "at least 100 and at most 1,000,000"),
        ({"only_resolved": "maybe"}, "true or false"),
        ({"shard": "0/4"}, "such as 2/4"),
        ({"shard": "5/4"}, "such as 2/4"),
        ({"shard": 2}, "such as 2/4"),
        ({"kinds": "none"}, "kinds must name some of"),
        ({"kinds": "scaffold"}, "kinds must name some of"),
        ({"trajectories": 3}, "trajectories"),
        ({"trajectories": [3]}, "trajectories must be text"),
    ],
)
def test_a_bad_setting_says_what_to_do(metadata, message):
    with pytest.raises(SettingsError, match=message):
        TaskSettings.read(metadata)


@given(
    st.sampled_from([f.name for f in fields(TaskSettings)]),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e308, -1e308, 10**400, -(10**400), 2**63]).flatmap(
        lambda number: st.sampled_from([number, [number], {"a": number}])
    )
    | st.sampled_from(["inf", "Infinity", "NaN", "-inf", "1e999", "9" * 5000]),
)
def test_no_number_makes_settings_that_hold_what_is_no_number(name, value):
    try:
        settings = TaskSettings.read({name: value})
    except SettingsError:
        return
    numbers = [getattr(settings, f.name) for f in fields(TaskSettings)]
    assert all(math.isfinite(number) for number in numbers if isinstance(number, (int, float)))


def test_what_defines_a_task_cannot_be_overridden():
    fixed = {"kinds": ["thought"], "filters": []}
    assert TaskSettings.read({}, fixed).kinds == (Kind.THOUGHT,)
    with pytest.raises(SettingsError, match=r"filters, kinds cannot be set for this task"):
        TaskSettings.read({"kinds": "action", "filters": "xml"}, fixed)


WRONG = {
    "trajectories": "data path dataset dataset_path runs run traj trajs trajectory files folder input Trajectories",
    "epsilon": "eps threshold epsilom EPSILON",
    "k": "topk top_k top-k",
    "bootstrap_seed": "seed",
    "only_resolved": "resolved only-resolved",
    "render": "format template chat_template",
    "kinds": "kind tokens roles",
    "filters": "filter drop",
    "limit": "max_trajectories num_samples",
    "overflow": "truncate",
    "scores": "output_path",
    "resamples": "bootstrap_iters",
    "min_tokens": "min_token",
    "combine": "combin",
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in WRONG.items() for key in keys.split()])
def test_a_wrong_key_is_refused_with_the_setting_that_was_meant(name, key):
    with pytest.raises(SettingsError, match=rf"unknown setting '{key}' in --metadata\. Did you mean '{name}'\?"):
        TaskSettings.read({key: "x"})


@given(st.text(max_size=12))
def test_every_other_key_is_refused_and_cannot_steer_the_terminal(key):
    names = {field.name for field in fields(TaskSettings)}
    if key in names | {"version", "config_source", "pretrained", "tokenizer", "max_seq_lengths", "passk"}:
        return
    if key in ("decision_arguments", "combine"):
        return
    with pytest.raises(SettingsError) as caught:
        TaskSettings.read({key: 1})
    assert str(caught.value).isprintable()


def test_synonyms_are_no_settings_and_belong_to_one_setting_each():
    names = {field.name for field in fields(TaskSettings)}
    words = [word for field in fields(ToolEntropySettings) for word in field.metadata["synonyms"]]
    assert len(set(words)) == len(words)
    assert not names & set(words)


def test_flags_are_settings_with_their_defaults_checks_and_help(capsys):
    parser = argparse.ArgumentParser()
    add_flags(parser, "only_resolved", "limit", "kinds", "epsilon")
    args = parser.parse_args(["--only-resolved", "--kinds", "action,thought", "--epsilon", "0.5"])
    assert (args.only_resolved, args.limit, args.epsilon) == (True, None, 0.5)
    assert args.kinds == (Kind.ACTION, Kind.THOUGHT)
    assert parser.parse_args([]).epsilon == TaskSettings().epsilon
    with pytest.raises(SystemExit):
        parser.parse_args(["--limit", "0"])
    assert "limit must be a number of at least 1" in capsys.readouterr().err
    shown = " ".join(parser.format_help().split())
    assert "context (default: action)" in shown
    assert "(ln3+ln4)/2 (default: 1.2425)" in shown


def test_the_documentation_lists_every_setting():
    """Written by: python -c "from hesnr_tasks.tasks.settings import describe_settings as d; print(d())"."""
    assert describe_settings() in (ROOT / "docs" / "settings.md").read_text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("ln3", math.log(3)), ("ln(3.5)", math.log(3.5)), ("(ln3+ln4)/2", EPSILON), ("(ln 3 + ln 4) / 2", EPSILON),
     ("1.5", 1.5), (1.5, 1.5)],
)  # fmt: skip
def test_epsilon_is_a_number_or_a_logarithm(text, wanted):
    assert TaskSettings.read({"epsilon": text}).epsilon == wanted


@pytest.mark.parametrize("text", ["three", "ln", "ln3+", "nan", "inf", True, "(ln3+ln4)/3", "-ln3", "ln0", -1, None])
def test_what_is_no_threshold_is_refused(text):
    with pytest.raises(SettingsError, match="epsilon"):
        TaskSettings.read({"epsilon": text})


def test_an_lm_eval_that_is_too_old_is_named_by_every_task_file(monkeypatch):
    """lm-eval 0.4.11 runs FOLDER/a.b.py for `!function a.b.C` in FOLDER/task.yaml."""
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.4.11")
    named = {
        path.parent / f"{module}.py"
        for path in (ROOT / "task_configs").rglob("*yaml")
        for module in re.findall(r"!function (\S+)\.\w+", path.read_text("utf-8"))
    }
    assert len(named) == 2
    for file in named:
        with pytest.raises(SystemExit, match=r"lm-eval 0\.4\.11 cannot load these tasks"):
            runpy.run_path(str(file))


@pytest.mark.parametrize(
    ("trajectories", "metadata", "message"),
    [
        ("data.jsonl", ["epsilon=three"], "epsilon must be a number of nats"),
        ("data.jsonl", ["limit=3", "kinds=actoin"], "Did you mean 'action'"),
        ("data.jsonl", ["{'epsilon': 1}"], "must be key=value … or a JSON object"),
        ("data.jsonl", ["[]"], "must be key=value … or a JSON object"),
        ("nowhere/", ['{"limit": 3}'], "no file or folder 'nowhere/'"),
    ],
)
def test_a_watcher_knows_wrong_settings_and_paths_before_there_is_a_checkpoint(
    trajectories, metadata, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("{}")
    watch = ["watch", ".", "-o", "out", "--once", "--trajectories", trajectories]
    assert main([*watch, "--metadata", *metadata]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_watcher_takes_settings_as_pairs(tmp_path):
    (tmp_path / "data.jsonl").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    words = ["watch", tmp_path / "checkpoints", "-o", tmp_path / "out", "--trajectories", tmp_path / "data.jsonl"]
    assert main([*map(str, words), "--once", "--metadata", "limit=3", "epsilon=ln3"]) == 0
