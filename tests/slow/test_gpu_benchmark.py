"""Every step of `benchmarks/gpu.sh --smoke` runs on the CPU and writes a result; the same command goes on after it."""

import json
import logging
import os
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lm_eval.models.huggingface")


def test_every_step_runs_and_none_twice(tmp_path, capsys, caplog, monkeypatch, warm_python):
    from benchmarks.gpu import STEPS, main

    monkeypatch.setenv("PYTHONPATH", warm_python.site, prepend=os.pathsep)
    monkeypatch.setattr(sys, "executable", warm_python.python)
    caplog.set_level(logging.ERROR, "hesnr_tasks")  # as the benchmark sets it; this way it is put back
    (tmp_path / "paper.json").write_text('{"not_measured": "by hand"}')  # what is there is not run again
    assert main(["--smoke", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    results = {step: json.loads((tmp_path / f"{step}.json").read_text()) for step in STEPS}
    assert results["paper"] == {"not_measured": "by hand"}
    assert all(result["about"]["smoke"] for step, result in results.items() if step != "paper")
    for step in ("hf-llama-1b-sdpa", "hf-llama-8b-sdpa", "hf-qwen-moe-7b-sdpa"):
        assert [row["tokens"] for row in results[step]["rows"]] == [128, 256, 512]
        assert all(row["tokens_per_second"] > 0 and row["of_bare"] > 0 for row in results[step]["rows"])
        assert f"| {step} | 512 |" in printed
    assert 128 <= results["out-of-memory"]["chunk"] <= 600
    assert results["out-of-memory"]["mean_difference"] < 0.05
    assert results["accelerate"]["equal"]
    assert all(
        abs(value) < 0.2 for row in results["agreement"]["relative_difference"].values() for value in row.values()
    )
    assert "vllm: not measured" in printed
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert main(["--smoke", "--folder", str(tmp_path)]) == 0
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}


def test_a_benchmark_out_of_time_is_stopped_with_the_runs_that_it_started(tmp_path, monkeypatch):
    from benchmarks import __main__ as default

    program, place = tmp_path / "python", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {place}.part\nmv {place}.part {place}\nwait\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(default, "LEAST", 0.0)
    seconds = 1.0
    while not place.exists():  # on a busy machine the first line may take longer
        assert default.run("filters", (), seconds).startswith("stopped")
        seconds *= 2
    state = Path(f"/proc/{place.read_text().strip()}/stat")
    deadline = time.monotonic() + 200  # it is killed, but nobody here waits for it
    while Path("/proc/self/stat").exists():
        try:
            if state.read_text().rpartition(")")[2].split()[0] in "ZX":
                break
        except (FileNotFoundError, ProcessLookupError):
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)
