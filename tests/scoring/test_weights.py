"""A fingerprint of weight files tells checkpoints apart and survives being moved."""

import shutil

import torch
from safetensors.torch import load_file, save_file

from hesnr_tasks.scoring.weights import fingerprint
from tests import tiny


def test_two_checkpoints_in_one_place_differ_and_a_moved_one_does_not(tmp_path):
    place = tiny.llama(str(tmp_path / "a"), seed=1)
    before = fingerprint(place)
    shutil.copytree(place, tmp_path / "moved")
    assert fingerprint(str(tmp_path / "moved")) == before
    weights = next((tmp_path / "a").glob("*.safetensors"))
    tensors = {name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    assert fingerprint(place) != before


def test_a_changed_configuration_is_another_model(tmp_path):
    place = tiny.llama(str(tmp_path / "a"), seed=1)
    before = fingerprint(place)
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace("10000.0", "500000.0"))
    assert fingerprint(place) != before


def test_what_is_not_here_has_none(tmp_path):
    assert fingerprint(str(tmp_path)) is None
    assert fingerprint("nobody/no-such-model") is None
