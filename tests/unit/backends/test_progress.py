"""Where there is no terminal, progress is lines of the log."""

import logging
import sys

import hesnr_tasks.backends as backends


def test_progress_in_a_job_log_is_whole_lines_and_none_for_a_short_run(monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, logger="hesnr_tasks")
    with backends._progress_bar(100, show=True) as bar:
        bar.update(100)
    assert caplog.messages == []
    monkeypatch.setattr(backends, "LOG_SECONDS", 0.0)
    with backends._progress_bar(100, show=True) as bar:
        bar.set_postfix_str("run-1", refresh=False)
        bar.update(25)
    assert any(line.startswith("scoring: 25% of 100 tokens, ") and line.endswith(", run-1") for line in caplog.messages)
    assert not any("\r" in line or "\n" in line for line in caplog.messages)
    caplog.clear()
    with backends._progress_bar(100, show=False) as bar:
        bar.update(25)
    assert caplog.messages == []
