"""The wrapper around verl's loss: as a function, on the tensors verl documents, and on verl's own loss where it is."""

import pickle
from functools import partial

import pytest
import torch

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.rl import EntropyShapedPPOLoss, check_verl
from tests.reference import shaping as reference

LENGTHS = [4, 2, 3]
PROMPTS = [2, 3, 1]


def jagged(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def pad(tensor, data):
    """The responses out of a jagged (B, prompt + response), one position to the left, padded with zeros."""
    rows = [row[prompt - 1 : prompt - 1 + length] for row, prompt, length in zip(tensor.unbind(), PROMPTS, LENGTHS)]
    return torch.nested.to_padded_tensor(torch.nested.as_nested_tensor(rows, layout=torch.jagged), 0)


def ppo(config, model_output, data, dp_group=None):
    """Clipped loss, mean over tokens, from what `data` holds; written from its definition."""
    mask, advantages, old = (
        torch.nested.to_padded_tensor(data[name], 0) if data[name].is_nested else data[name]
        for name in ("response_mask", "advantages", "old_log_probs")
    )
    ratio = (pad(model_output["log_probs"], data) - old).exp()
    token = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return (token * mask).sum() / mask.sum(), {"actor/pg_loss": 1.0, "seen": (config, dp_group)}


def case(nested):
    make = torch.Generator().manual_seed(2)

    def rows(lengths, scale=1.0, shift=0.0):
        return [torch.randn(length, generator=make, dtype=torch.float64) * scale + shift for length in lengths]

    totals = [prompt + length for prompt, length in zip(PROMPTS, LENGTHS)]
    output = {
        "log_probs": jagged(rows(totals, 0.1, -1.0)).requires_grad_(),
        "entropy": jagged([row.abs() for row in rows(totals, 2.0)]).requires_grad_(),
    }
    data = {
        "advantages": jagged(rows(LENGTHS)),
        "old_log_probs": jagged(rows(LENGTHS, 0.1, -1.0)),
        "response_mask": jagged([torch.ones(length, dtype=torch.int64) for length in LENGTHS]),
    }
    data["response_mask"].values()[1] = 0  # a token of a tool
    if not nested:
        data = {name: torch.nested.to_padded_tensor(value, 0) for name, value in data.items()}
    return output, data


@pytest.mark.parametrize("nested", [True, False])
def test_the_loss_is_that_of_advantages_shaped_by_the_loop_and_the_data_stay(nested):
    output, data = case(nested)
    before = {name: value.clone() for name, value in data.items()}
    loss, metrics = EntropyShapedPPOLoss(0.4, ppo_loss=ppo, pad=pad)("config", output, data, dp_group="group")
    plain = {name: torch.nested.to_padded_tensor(v, 0) if nested else v for name, v in data.items()}
    entropies = pad(output["entropy"].detach(), data).tolist()
    by_loop = reference.shaped(plain["advantages"].tolist(), entropies, plain["response_mask"].tolist(), 0.4, 2.0)
    expected, _ = ppo(None, output, plain | {"advantages": torch.tensor(by_loop, dtype=torch.float64)})
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, ppo(None, output, data)[0], rtol=1e-3)
    assert metrics["seen"] == ("config", "group")
    for name, value in before.items():
        ours, old = (torch.nested.to_padded_tensor(v, 0) if nested else v for v in (data[name], value))
        assert torch.equal(ours, old)


def test_no_gradient_reaches_the_entropies():
    output, data = case(True)
    loss, _ = EntropyShapedPPOLoss(0.4, ppo_loss=ppo, pad=pad)(None, output, data)
    loss.backward()
    assert output["entropy"].grad is None
    assert output["log_probs"].grad.values().abs().sum() > 0


def test_metrics_equal_a_loop():
    output, data = case(False)
    _, metrics = EntropyShapedPPOLoss(0.1, 3.0, ppo_loss=ppo, pad=pad)(None, output, data)
    entropies = pad(output["entropy"].detach(), data)
    inside = data["response_mask"].bool() & (data["advantages"] != 0)
    tokens = list(zip(entropies[inside].tolist(), data["advantages"][inside].abs().tolist()))
    share = sum(0.1 * h >= a / 3 for h, a in tokens) / len(tokens)
    bonus = sum(min(0.1 * h, a / 3) / a for h, a in tokens) / len(tokens)
    assert metrics["actor/shaping_capped"] == pytest.approx(share)
    assert metrics["actor/shaping_relative_bonus"] == pytest.approx(bonus)
    assert metrics["actor/pg_loss"] == 1.0


def test_without_entropies_the_setting_is_named():
    output, data = case(False)
    del output["entropy"]
    with pytest.raises(SettingsError, match="calculate_entropy=true"):
        EntropyShapedPPOLoss(0.4, ppo_loss=ppo, pad=pad)(None, output, data)


def test_travels_to_other_processes_with_its_configuration():
    loss = pickle.loads(pickle.dumps(partial(EntropyShapedPPOLoss(0.4, ppo_loss=ppo, pad=pad), config={"a": 1})))
    output, data = case(False)
    here = EntropyShapedPPOLoss(0.4, ppo_loss=ppo, pad=pad)(None, output, data)[0]
    assert torch.equal(loss(model_output=output, data=data, dp_group=None)[0], here)


def test_strength_and_version_are_checked():
    with pytest.raises(SettingsError, match="greater than 1"):
        EntropyShapedPPOLoss(0.4, 1.0, ppo_loss=ppo, pad=pad)
    check_verl("0.9.1")
    for installed in ("0.7.0", "0.10.0.dev0", "1.0"):
        with pytest.raises(SettingsError, match=r"verl .* 0\.9 only"):
            check_verl(installed)
    with pytest.raises(SettingsError, match="not installed"):
        check_verl(None)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_on_verls_own_loss(mode):
    """Where verl is installed: its `ppo_loss` on shaped data equals its `ppo_loss` on data shaped by the loop."""
    pytest.importorskip("verl")
    from tensordict import TensorDict
    from verl.workers.config import ActorConfig
    from verl.workers.utils.losses import ppo_loss

    output, fields = case(True)
    fields["prompts"] = jagged([torch.zeros(length, dtype=torch.int64) for length in PROMPTS])
    fields["responses"] = jagged([torch.zeros(length, dtype=torch.int64) for length in LENGTHS])
    numbers = {"dp_size": 1, "batch_num_tokens": 8, "global_batch_size": 3}
    config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, loss_agg_mode=mode)

    def data(**changed):
        arguments = TensorDict(fields | changed, batch_size=[3])
        for name, value in numbers.items():
            arguments.set_non_tensor(name, value)
        return arguments

    loss, metrics = EntropyShapedPPOLoss(0.4)(config, output, data())
    padded = {name: torch.nested.to_padded_tensor(fields[name], 0).tolist() for name in ("advantages", "response_mask")}
    entropies = pad(output["entropy"].detach(), fields).tolist()
    by_loop = reference.shaped(padded["advantages"], entropies, padded["response_mask"], 0.4, 2.0)
    rows = [torch.tensor(row[:length], dtype=torch.float64) for row, length in zip(by_loop, LENGTHS)]
    expected, _ = ppo_loss(config, output, data(advantages=jagged(rows)))
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, ppo_loss(config, output, data())[0], rtol=1e-4)
    assert 0 < metrics["actor/shaping_capped"] < 1
