"""`benchmarks/gpu.sh --smoke` runs every step on the CPU, writes a result for each, and goes on where it stopped."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

pytest.importorskip("lm_eval.models.huggingface")


def run(folder):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--smoke", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_step_runs_and_none_twice(tmp_path):
    from benchmarks.gpu import STEPS

    (tmp_path / "paper.json").write_text('{"not_measured": "by hand"}')  # what is there is not run again
    printed = run(tmp_path)
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
    run(tmp_path)
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
