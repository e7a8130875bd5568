"""The shipped public ladders are valid, and `hesnr ladder check --online` names what the hub lacks."""

import pytest

from hesnr_tasks import cli, demo
from hesnr_tasks.ladder.schema import read_ladder_file
from hesnr_tasks.testing import Reply, fake_server
from tests import ROOT

LADDERS = sorted((ROOT / "ladders").glob("*.yaml"))
YAML = """
trajectories: [runs/]
checkpoints:
  - {name: a, model: org/model, revision: step-1}
  - {name: b, model: org/model, revision: step-20}
  - {name: c, model: org/model, revision: 0123456789abcdef0123456789abcdef01234567}
  - {name: d, model: org/absent, revision: main}
"""


@pytest.mark.parametrize("path", LADDERS, ids=lambda path: path.stem)
def test_a_public_ladder_reads_and_says_what_was_not_checked(path, capsys):
    ladder = read_ladder_file(path)
    assert ladder.trajectories
    assert all(checkpoint.model and checkpoint.family and checkpoint.stage for checkpoint in ladder.checkpoints)
    assert cli.main(["ladder", "check", str(path)]) == 0
    assert capsys.readouterr().err == ""
    text = path.read_text(encoding="utf-8")
    assert "# Checked:" in text
    assert "# Not checked:" in text


@pytest.fixture
def online(monkeypatch):
    """Tests ask no hub, but one of their own."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_the_hub_is_asked_for_every_model_and_revision(tmp_path, online, monkeypatch, capsys):
    ladder = tmp_path / "ladder.yaml"
    ladder.write_text(YAML.replace("runs/", str(demo.trajectories_path())))
    refs = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": "0" * 40} for name in ("main", "step-1", "step-2")
    ]
    with fake_server() as server:
        server.routes["GET /api/models/org/model/refs"] = lambda fields: Reply(
            content={"branches": refs, "converts": [], "tags": [], "pullRequests": []}
        )
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        assert cli.main(["ladder", "check", str(ladder), "--online"]) == 1
        output = capsys.readouterr()
        assert "b: org/model has no revision 'step-20'. Did you mean 'step-2'?" in output.err
        assert "org/absent: " in output.err
        assert output.out.endswith("the hub lacks 2 of them\n")
        ladder.write_text(
            "\n".join(
                line for line in ladder.read_text().splitlines() if "name: b" not in line and "name: d" not in line
            )
        )
        assert cli.main(["ladder", "check", str(ladder), "--online"]) == 0
        assert capsys.readouterr().out.endswith("the hub has every model and revision\n")


def test_a_hub_that_does_not_answer_lacks_nothing(tmp_path, online, monkeypatch, capsys):
    ladder = tmp_path / "ladder.yaml"
    ladder.write_text(YAML)
    with fake_server() as server:
        server.routes["GET /api/models/org/model/refs"] = lambda fields: Reply(status=500, content={})
        port = server.server_address[1]
        for address in (f"http://127.0.0.1:{port}", "http://127.0.0.1:9"):
            monkeypatch.setenv("HF_ENDPOINT", address)
            assert cli.main(["ladder", "check", str(ladder), "--online"]) == 2
            output = capsys.readouterr()
            assert f"{address} does not answer for org/model, so nothing more was checked" in output.err
            assert len(output.err.splitlines()) <= 2
            assert "lacks" not in output.out
