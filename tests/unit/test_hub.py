"""A hub that cannot be reached: one request, then the cache, and an answer in two lines; never a client's own error."""

import time
from types import SimpleNamespace

import pytest

from hesnr_tasks import demo
from hesnr_tasks.cli import main
from hesnr_tasks.files import cache_if_unreachable


class UnknownClientError(Exception):
    """As of an HTTP client that a later huggingface_hub uses."""


@pytest.fixture
def no_network(monkeypatch):
    """The hub is a port that nothing listens on, and waiting is recorded instead of done."""
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    clock = SimpleNamespace(**{**vars(time), "sleep": waited.append})  # other threads may sleep
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    return waited


@pytest.mark.parametrize(
    "words",
    [
        ["check", "DEMO", "--model", "org/absent"],
        ["check", "DEMO", "--tokenizer", "org/absent"],
        ["check", "org/absent"],
        ["inspect", "DEMO", "--tokenizer", "org/absent"],
        ["eval", "--model", "hf", "--model_args", "pretrained=org/absent", "--tasks", "hesnr_swe"],
    ],
    ids=" ".join,
)
def test_what_the_hub_would_have_is_refused_at_once_without_a_network(words, no_network, capsys):
    assert main([str(demo.trajectories_path()) if word == "DEMO" else word for word in words]) == 2
    message = capsys.readouterr().err[-600:]
    assert "org/absent" in message or "the model cannot be loaded" in message
    assert not no_network, "the client tried again"
    assert len(message[message.index("hesnr: ") :].splitlines()) == 2


def test_only_names_that_are_no_folders_ask_the_hub_and_its_setting_is_restored(tmp_path, no_network, monkeypatch):
    from huggingface_hub import constants

    with cache_if_unreachable(str(tmp_path), None):
        assert not constants.HF_HUB_OFFLINE
    with cache_if_unreachable(str(tmp_path), "org/absent"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_errors_of_any_http_client_mean_that_the_hub_does_not_answer(tmp_path, no_network, monkeypatch, capsys):
    def fail(*args, **options):
        raise UnknownClientError("Name or service not known")

    ladder = tmp_path / "ladder.yaml"
    ladder.write_text("checkpoints: [{name: a, model: org/absent}]")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_refs", fail)
    assert main(["ladder", "check", str(ladder), "--online"]) == 2
    assert "does not answer for org/absent" in capsys.readouterr().err
