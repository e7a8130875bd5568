"""Summaries kept on disk: what was kept is what would be computed, and any change of what it came from is seen."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hesnr_tasks
from hesnr_tasks.analysis import summary_cache
from hesnr_tasks.analysis.summary import SummaryRequest, summarize
from hesnr_tasks.analysis.summary_cache import cached_summary
from hesnr_tasks.metrics import EPSILON, METRICS, metric, names_of, unregister
from hesnr_tasks.scores import ScoreStore, StoredRun
from tests.unit.analysis import made

pytest.importorskip("pyarrow")
ARGUMENTS = ("step5", 10, EPSILON, None)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    made.run_of(tmp_path / "scores", 4, 120, cut=(2,))
    return tmp_path / "scores"


@pytest.fixture
def computed(monkeypatch):
    """How often score files were read."""
    calls = []
    monkeypatch.setattr(summary_cache, "summarize", lambda *args, **words: calls.append(1) or summarize(*args, **words))
    return calls


def contents(summary):
    document, arrays = summary.to_parts()
    ids = [run.ids for run in summary.runs.values()]
    cases = summary.cases and (*summary.cases[:2], [*summary.cases.rows], *map(tuple, summary.cases[3:]))
    return document, {name: (a.shape, a.tobytes()) for name, a in arrays.items()}, ids, cases, summary.folder


def plain(value):
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def same(a, b):
    return plain(contents(a)) == plain(contents(b))


def kept(folder):
    return sorted(folder.glob("summary-*.cache"))


@pytest.mark.parametrize("cases", [True, False])
def test_what_was_kept_is_what_would_be_computed(folder, computed, cases):
    fresh = summarize(SummaryRequest(folder, *ARGUMENTS, cases=cases))
    for _ in range(2):
        assert same(cached_summary(SummaryRequest(folder, *ARGUMENTS, cases=cases)), fresh)
    assert len(computed) == 1
    assert same(
        cached_summary(SummaryRequest(folder, "other", *ARGUMENTS[1:], cases=cases)),
        summarize(SummaryRequest(folder, "other", *ARGUMENTS[1:], cases=cases)),
    )
    assert len(computed) == 1


def test_single_tokens_are_read_where_they_were_not_kept(folder, computed):
    assert cached_summary(SummaryRequest(folder, *ARGUMENTS)).cases is None
    assert cached_summary(SummaryRequest(folder, *ARGUMENTS, cases=True)).cases is not None
    assert cached_summary(SummaryRequest(folder, *ARGUMENTS)).cases is None
    assert len(computed) == 2


SETTINGS = {
    "k": (("step5", 9, EPSILON, None), {}),
    "threshold": (("step5", 10, np.nextafter(EPSILON, 2), None), {}),
    "context": (("step5", 10, EPSILON, 60), {}),
    "metrics": (ARGUMENTS, {"metrics": names_of("all")}),
    "run": (ARGUMENTS, {"run": StoredRun(1, 1, "", (), "", {"sample": 3}, None)}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_setting_is_computed(folder, computed, setting):
    cached_summary(SummaryRequest(folder, *ARGUMENTS))
    arguments, words = SETTINGS[setting]
    fresh = summarize(SummaryRequest(folder, *arguments, **words))
    for _ in range(2):
        assert same(cached_summary(SummaryRequest(folder, *arguments, **words)), fresh)
    assert len(computed) == 2
    assert len(kept(folder)) == 2


def _first(folder):
    return next(iter(sorted(folder.glob("*.parquet"))))


def _in_place(folder):
    """Other bytes, under the same inode, size and time of content."""
    path = _first(folder)
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _exchanged(folder):
    path = _first(folder)
    shutil.copy2(path, folder / "copy")
    (folder / "copy").replace(path)


CHANGES = {
    "bytes in place": _in_place,
    "a copy of the same": _exchanged,
    "less": lambda folder: _first(folder).unlink(),
    "more": lambda folder: made.run_of(folder, 5, 120, cut=(2,)),
    "other scores": lambda folder: made.run_of(folder, 4, 120, seed=1),
    "run.json": lambda folder: (folder / "run.json").write_bytes((folder / "run.json").read_bytes() + b" "),
    "a run": lambda folder: ((folder / "runs").mkdir(), (folder / "runs" / "000001.json").write_text('{"parts": 1}')),
    "the vocabulary": lambda folder: ScoreStore.open(folder).save_token_bytes(lambda: [b"a"] * 600),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_any_file_is_seen(folder, change):
    before = summary_cache._state(folder)
    assert before == summary_cache._state(folder)
    CHANGES[change](folder)
    assert summary_cache._state(folder) != before


def test_scores_that_changed_are_read_again(folder, computed):
    old = cached_summary(SummaryRequest(folder, *ARGUMENTS))
    shutil.rmtree(folder)
    made.run_of(folder, 4, 120, seed=1)
    again = cached_summary(SummaryRequest(folder, *ARGUMENTS))
    assert len(computed) == 2
    assert same(again, summarize(SummaryRequest(folder, *ARGUMENTS)))
    assert not same(again, old)


def test_scores_that_change_while_they_are_read_are_not_kept(folder, monkeypatch):
    def slowly(*args, **words):
        summary = summarize(*args, **words)
        _exchanged(folder)
        return summary

    monkeypatch.setattr(summary_cache, "summarize", slowly)
    cached_summary(SummaryRequest(folder, *ARGUMENTS))
    assert not kept(folder)


def test_other_code_and_libraries_are_another_version(tmp_path, monkeypatch):
    code = summary_cache._code.__wrapped__
    shutil.copytree(
        Path(hesnr_tasks.__file__).parent,
        tmp_path / "copy",
        ignore=shutil.ignore_patterns("*.pyc", "*.safetensors", "*.jsonl"),
    )
    before = code()
    monkeypatch.setattr(hesnr_tasks, "__file__", str(tmp_path / "copy" / "__init__.py"))
    assert code() == before
    with (tmp_path / "copy" / "metrics" / "paper.py").open("a") as file:
        file.write("\n")
    assert code() != before


def test_metrics_of_users_are_not_kept(folder, computed):
    definition = METRICS["entropy"]

    @metric("of_a_user")
    def of_a_user(tokens):
        return tokens.logprob

    try:
        for _ in range(2):
            summary = cached_summary(SummaryRequest(folder, *ARGUMENTS))
            assert same(summary, summarize(SummaryRequest(folder, *ARGUMENTS)))
            assert "of_a_user" in summary.runs["action"].sums.names
    finally:
        unregister("of_a_user")
    assert len(computed) == 2
    assert not kept(folder)
    METRICS["entropy"] = METRICS["density"]  # one that is called as ours
    try:
        cached_summary(SummaryRequest(folder, *ARGUMENTS))
    finally:
        METRICS["entropy"] = definition
    assert not kept(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_is_noticed_and_repaired(folder, place, bit, cut):
    fresh = cached_summary(SummaryRequest(folder, *ARGUMENTS))
    (path,) = kept(folder)
    whole = path.read_bytes()
    data, index = bytearray(whole), int(place * len(whole))
    data[index] ^= 1 << bit
    path.write_bytes(data[:index] if cut else data)
    assert same(cached_summary(SummaryRequest(folder, *ARGUMENTS)), fresh)
    assert path.read_bytes() == whole


def test_where_the_folder_takes_no_file_the_cache_of_the_user_does(folder, tmp_path, computed):
    fresh = cached_summary(SummaryRequest(folder, *ARGUMENTS))
    (path,) = kept(folder)
    path.unlink()
    path.mkdir()  # nothing can take its place
    for _ in range(2):
        assert same(cached_summary(SummaryRequest(folder, *ARGUMENTS)), fresh)
    assert len(computed) == 2
    assert [file.name for file in (tmp_path / "home" / "hesnr").glob("*/*")] == [path.name]


def test_a_folder_keeps_few(folder):
    for k in range(7, 11):
        for epsilon in (0.5, 0.6, 0.7):
            cached_summary(SummaryRequest(folder, "step5", k, epsilon, None))
    assert len(kept(folder)) == summary_cache._MOST
