"""Whole runs of lm_eval on a server: no secret in what is written, and no rank where none is known."""

import json
import math
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from hesnr_tasks import cli
from hesnr_tasks.errors import ScoringError
from hesnr_tasks.metrics import names_of
from hesnr_tasks.tasks import tasks_path
from hesnr_tasks.testing import fake_server
from tests import tiny
from tests.lm_eval_run import SMALL, lm_eval_command, values, write
from tests.server_model import load
from tests.unit.scores.test_runs import analyzed

SECRETS = ("sk-top-secret-77", "route-of-gold-42")
HEADERS = json.dumps({"Authorization": f"Bearer {SECRETS[0]}", "X-Gateway": SECRETS[1]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("runs")), steps=80)


@pytest.fixture(scope="module")
def server(folder):
    with (
        pytest.MonkeyPatch.context() as patch,
        fake_server(load(folder), AutoTokenizer.from_pretrained(folder)) as server,
    ):
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def arguments(server, folder):
    return {
        "model": "tiny", "base_url": server.address, "tokenizer": str(folder), "max_length": 32768,
        "tokenizer_backend": "huggingface", "max_retries": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def printed(server, folder, tmp_path_factory):
    """What a run printed, its folder, the headers it sent: k + 1 candidates, no ranks, keys in HESNR_HEADERS."""
    out = tmp_path_factory.mktemp("out")
    server.forms, server.most_logprobs, server.key = ("echo",), 6, SECRETS[0]
    server.fail, server.says = [503], f"who is {SECRETS[0]} of {SECRETS[1]}?"
    server.requests.clear()
    metadata = {"trajectories": write(out / "small.jsonl", SMALL), "k": 5, "min_tokens": 0, "resamples": 100}
    command = [
        "--model", "local-completions", "--tasks", "hesnr_swe", "--include_path", tasks_path(), "--log_samples",
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments(server, folder).items()),
        "--metadata", json.dumps(metadata), "--output_path", out / "results",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HESNR_HEADERS", HEADERS)
        result = lm_eval_command(*command)
    server.forms, server.most_logprobs, server.key = ("prompt_logprobs", "echo"), 20, None
    assert result.status == 0, result.stderr[-4000:]
    return result.stdout + result.stderr, out, [request["headers"] for request in server.requests]


def test_headers_of_the_environment_are_sent_and_written_nowhere(printed):
    text, out, sent = printed
    assert "HTTP 503: who is … of …?" in text
    assert {(h["authorization"], h["x-gateway"]) for h in sent} == {(f"Bearer {SECRETS[0]}", SECRETS[1])}
    files = [path for path in Path(out).rglob("*") if path.is_file()]
    names = [path.name for path in files]
    assert any(name.startswith("results_") for name in names)
    assert any(name.startswith("samples_") for name in names)
    assert "run.json" in names
    for secret in SECRETS:
        assert secret not in text
        assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "name", ["header", "headers", "extra-headers", "api_key", "auth_token", "token", "Authorization"]
)
def test_secrets_among_the_model_arguments_are_refused(server, folder, tmp_path, name):
    value = {"Authorization": SECRETS[0]} if "header" in name else SECRETS[0]
    server.prompts.clear()
    with pytest.raises(ScoringError, match=f"{name} in --model_args.*OPENAI_API_KEY.*HESNR_HEADERS") as caught:
        evaluate(arguments(server, folder) | {name: value}, {"trajectories": write(tmp_path / "a.jsonl", SMALL)})
    assert SECRETS[0] not in str(caught.value)
    assert not server.prompts


@pytest.mark.parametrize(
    "text", [SECRETS[0], f'["{SECRETS[0]}"]', f'{{"X": {{"a": "{SECRETS[0]}"}}}}', f'{{"X": "{SECRETS[0]}\\n"}}', 
             f'{{"X": "{SECRETS[0]}é"}}', f'{{"X y": "{SECRETS[0]}"}}', f'{{"": "{SECRETS[0]}"}}'],
)  # fmt: skip
def test_headers_that_cannot_be_sent_are_refused_without_showing_them(server, folder, tmp_path, monkeypatch, text):
    monkeypatch.setenv("HESNR_HEADERS", text)
    with pytest.raises(ScoringError, match="HESNR_HEADERS") as caught:
        evaluate(arguments(server, folder), {"trajectories": write(tmp_path / "a.jsonl", SMALL)})
    assert SECRETS[0] not in str(caught.value)


def evaluate(model_args, metadata, model="local-completions"):
    manager = TaskManager(
        include_path=str(tasks_path()), include_defaults=False, metadata={"min_tokens": 0, "k": 5, **metadata}
    )
    return lm_eval.simple_evaluate(
        model=model, model_args=model_args, tasks=["hesnr_swe"], task_manager=manager, bootstrap_iters=0, device="cpu"
    )


# --- ranks beyond the candidates ------------------------------------------------------------------------------------


def test_an_unknown_rank_is_no_accuracy_anywhere(printed, folder, tmp_path, capsys):
    """The other metrics are those of the model itself, which knows its ranks."""
    text, out, _ = printed
    row = {line.split("|")[5].strip(): line for line in text.splitlines() if line.count("|") > 8}
    assert "nan" in row["top10_acc"].lower() or "N/A" in row["top10_acc"]
    (file,) = Path(out).rglob("results_*.json")
    reported = values(json.loads(file.read_text()), "hesnr_swe")
    data = {"trajectories": str(out / "small.jsonl")}
    own = values(evaluate({"pretrained": str(folder), "dtype": "float32"}, data, "hf"), "hesnr_swe")
    assert own["top5_acc"] < own["top10_acc"]  # or the case says nothing
    (run,) = {path.parent for path in Path(out).rglob("run.json")}
    (analysis,), _ = analyzed(run, "--k", 5, "--min-tokens", 0)
    for name in names_of():
        listed = analysis[name]["value"] if isinstance(analysis[name], dict) else analysis[name]
        if name == "top10_acc":
            assert not isinstance(reported[name], float) or math.isnan(reported[name])
            assert listed is None or math.isnan(listed)
        else:
            assert reported[name] == pytest.approx(own[name], rel=1e-4), name
            assert listed == pytest.approx(reported[name], rel=1e-12), name
    assert cli.main(["analyze", str(run), "--k", "5"]) == 0
    assert cli.main(["report", str(out / "results"), "-o", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr().out + (tmp_path / "report" / "report.html").read_text()
    assert f"{100 * own['top10_acc']:.1f}" not in shown
    assert f"{own['top10_acc']:.3f}" not in shown
