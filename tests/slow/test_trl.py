"""The mixin on the real GRPOTrainer: its loss by hand, the stock trainer at alpha 0, and what it refuses."""

import math

import pytest

pytest.importorskip("trl", reason="the extra `trl` is not installed (TRL 1.16 needs Python 3.11)")

import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer
from trl.experimental.async_grpo import AsyncGRPOTrainer

from hesnr_tasks.errors import ScoringError, SettingsError
from hesnr_tasks.rl.trl import LOSS_TYPES, EntropyShapedGRPOMixin, EntropyShapedGRPOTrainer, check_version
from tests.reference import shaping as reference
from tests.unit.rl import tinytrl

ALPHA, KAPPA = 0.4, 2.0


def true_logps_and_entropies(model, inputs):
    """From the logits of the plain forward, in float64, at the positions that emit the completion's tokens."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.double()
    length = inputs["completion_ids"].shape[1]
    logp = torch.log_softmax(logits[:, -length - 1 : -1], -1)
    entropies = -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, inputs["completion_ids"][..., None])[..., 0].tolist(), entropies.tolist()


def loss_by_hand(kind, model, inputs, alpha, kappa, *, longest, high=0.2, magnitude=False):
    """`magnitude`: with the size of each token's loss instead, the yardstick of rounding."""
    logps, entropies = true_logps_and_entropies(model, inputs)
    olds = inputs["old_per_token_logps"].tolist() if inputs.get("old_per_token_logps") is not None else logps
    mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).tolist()
    advantages = reference.shaped(inputs["advantages"].tolist(), entropies, mask, alpha, kappa)
    rows = []
    for logp, old, advantage, inside in zip(logps, olds, advantages, mask):
        if kind == "vespo":
            ratios = [max(-20, min(20, new - before)) * used for new, before, used in zip(logp, old, inside)]
            rows.append([-reference.vespo_weight(ratios, a) * a * new for a, new in zip(advantage, logp)])
        else:
            rows.append([reference.token_loss(kind, *token, high=high) for token in zip(logp, old, advantage)])
    rows = [[abs(loss) for loss in row] for row in rows] if magnitude else rows
    return reference.batch_loss(kind, rows, mask, longest=longest, items=float(inputs["num_items_in_batch"]))


def test_the_list_of_loss_types_is_what_is_tested():
    assert set(LOSS_TYPES) == {"grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo"}


@pytest.fixture(scope="module", params=LOSS_TYPES)
def both(request):
    """(loss type, shaping trainer, stock trainer) with equal models in evaluation mode: no division by accumulation."""
    trainers = [
        tinytrl.trainer(kind, loss_type=request.param, epsilon_high=0.3)
        for kind in (EntropyShapedGRPOTrainer, GRPOTrainer)
    ]
    for trainer in trainers:
        trainer.model.eval()
    return request.param, *trainers


@pytest.mark.parametrize("tool", [False, True])
def test_loss_equals_the_one_computed_by_hand(both, tool):
    """Fails if the shaped advantages do not reach the loss, whatever TRL calls in which order."""
    kind, trainer, _ = both
    inputs = tinytrl.batch(tool=tool)
    logps, entropies = true_logps_and_entropies(trainer.model, inputs)
    noise = torch.randn(len(logps), len(logps[0]), generator=torch.Generator().manual_seed(5)) * 0.3
    inputs["old_per_token_logps"] = torch.tensor(logps) + noise
    inside = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
    wanted = ALPHA * torch.tensor(entropies)[inside]
    limit = (inputs["advantages"].abs() / KAPPA)[:, None].expand_as(inside)[inside]
    assert (wanted < limit).any(), "the batch must have uncapped tokens"
    assert (wanted > limit).any(), "and capped ones"
    actual = trainer._compute_loss(trainer.model, dict(inputs)).item()
    expected = loss_by_hand(kind, trainer.model, inputs, ALPHA, KAPPA, longest=6, high=0.3)
    plain = loss_by_hand(kind, trainer.model, inputs, 0.0, KAPPA, longest=6, high=0.3)
    size = loss_by_hand(kind, trainer.model, inputs, ALPHA, KAPPA, longest=6, high=0.3, magnitude=True)
    assert actual == pytest.approx(expected, rel=0, abs=3e-5 * size)
    assert abs(expected - plain) > 3e-3 * size, "shaping must change this loss, or the test proves nothing"


def test_gradient_is_that_of_the_stock_loss_with_constant_shaped_advantages(both):
    _, shaped, stock = both
    inputs = tinytrl.batch(tool=True)
    _, entropies = true_logps_and_entropies(stock.model, inputs)
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    weights = reference.shaped(inputs["advantages"].tolist(), entropies, mask.tolist(), ALPHA, KAPPA)
    shaped._compute_loss(shaped.model, dict(inputs)).backward()
    stock._compute_loss(stock.model, inputs | {"advantages": torch.tensor(weights)}).backward()
    for ours, theirs in zip(shaped.model.parameters(), stock.model.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5 * theirs.grad.abs().max().item())


def test_inputs_are_not_changed_so_that_a_second_pass_starts_from_the_plain_advantages():
    trainer = tinytrl.trainer(EntropyShapedGRPOTrainer)
    trainer.model.eval()
    inputs = tinytrl.batch()
    before = inputs["advantages"].clone()
    first, second = (trainer._compute_loss(trainer.model, inputs).item() for _ in range(2))
    assert first == second
    assert torch.equal(inputs["advantages"], before)


def test_padded_and_tool_tokens_keep_their_advantages():
    seen = []

    class Spy(EntropyShapedGRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            seen.append(dict(self._shaping_batch)["advantages"])
            return result

    trainer = tinytrl.trainer(Spy)
    trainer.model.eval()
    inputs = tinytrl.batch(tool=True)
    trainer._compute_loss(trainer.model, inputs)
    outside = (inputs["completion_mask"] * inputs["tool_mask"]) == 0
    plain = inputs["advantages"][:, None].expand_as(outside)
    assert outside.any()
    assert torch.equal(seen[0][outside], plain[outside])
    assert torch.all(seen[0][~outside] > plain[~outside])


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def trained(kind, **settings):
    """Weights before and after, and the log; the trainer's construction seeds what its training draws."""
    trainer = tinytrl.trainer(kind, **settings)
    before = weights_of(trainer)
    trainer.train()
    return before, weights_of(trainer), trainer.state.log_history


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo"},
        {"loss_type": "grpo", "gradient_accumulation_steps": 2, "num_iterations": 2},
        {"loss_type": "sapo", "beta": 0.05, "peft_config": LoraConfig(r=2, target_modules=["q_proj"])},
        {"loss_type": "cispo", "top_entropy_quantile": 0.5, "entropy_coef": 0.01, "off_policy_mask_threshold": 0.5},
    ],
)
def test_alpha_zero_trains_as_the_stock_trainer_bit_for_bit(settings):
    start, stock, stock_log = trained(GRPOTrainer, **settings)
    _, shaped, log = trained(EntropyShapedGRPOTrainer, shaping={"alpha": 0.0}, **settings)
    assert all(torch.equal(stock[name], shaped[name]) for name in stock)
    assert any(not torch.equal(stock[name], start[name]) for name in stock), "the model must have moved"
    for ours, theirs in zip(log, stock_log, strict=True):
        same = [key for key in theirs if not any(word in key for word in ("time", "per_second"))]
        assert "entropy" in same or "train_loss" in same
        assert [ours[key] for key in same] == [theirs[key] for key in same]
    if settings["loss_type"] == "dapo":
        _, other, _ = trained(EntropyShapedGRPOTrainer, **settings)
        assert any(not torch.equal(stock[name], other[name]) for name in stock), "shaping must make a difference"


class Recorder(EntropyShapedGRPOTrainer):
    """Keeps what the loss was given and gave, with the weights of that moment."""

    def __init__(self, *args, **kwargs):
        self.record = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        loss = super()._compute_loss(model, inputs)
        self.record.append((dict(inputs), weights, loss.item(), self.model.training))
        return loss


@pytest.mark.parametrize("kind", ["dapo", "grpo"])
def test_training_with_gradient_accumulation_sums_the_losses_computed_by_hand(kind):
    trainer = tinytrl.trainer(Recorder, loss_type=kind, gradient_accumulation_steps=2, steps=2)
    trainer.train()
    assert len(trainer.record) == 4
    for inputs, weights, loss, _ in trainer.record:
        plain = tinytrl.model()
        plain.load_state_dict(weights)
        expected = loss_by_hand(kind, plain, inputs, ALPHA, KAPPA, longest=6) / (1 if kind == "dapo" else 2)
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
    moved = [entry for entry in trainer.state.log_history if "shaping/capped" in entry]
    assert len(moved) == 2
    assert all(0 <= entry["shaping/capped"] <= 1 for entry in moved)
    assert all(0 < entry["shaping/relative_bonus"] <= 1 / KAPPA for entry in moved)


def test_lora_trains_the_adapter_with_the_hand_computed_loss():
    trainer = tinytrl.trainer(
        Recorder, loss_type="grpo", peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), steps=1
    )
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    inputs, _, loss, _ = trainer.record[0]
    assert loss == pytest.approx(
        loss_by_hand("grpo", tinytrl.model(sharpness=80.0), inputs, ALPHA, KAPPA, longest=6), rel=1e-4, abs=1e-6
    )  # an adapter starts as the identity
    moved = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert moved
    assert all("lora_" in name for name in moved)


def test_evaluation_shapes_too_and_logs_under_its_own_name():
    trainer = tinytrl.trainer(Recorder, loss_type="grpo", evaluation=True)
    metrics = trainer.evaluate()
    assert trainer.record
    assert not any(training for *_, training in trainer.record)
    losses = [
        (loss, loss_by_hand("grpo", trainer.model, inputs, ALPHA, KAPPA, longest=6))
        for inputs, _, loss, _ in trainer.record
    ]
    assert all(actual == pytest.approx(expected, rel=1e-4, abs=1e-6) for actual, expected in losses)
    assert metrics["eval_loss"] == pytest.approx(sum(actual for actual, _ in losses) / len(losses), rel=1e-5, abs=1e-6)
    assert "eval_shaping/capped" in trainer.state.log_history[-1]
    assert not any(key.startswith("shaping/") for key in trainer.state.log_history[-1])


def test_logs_equal_a_loop_with_pivotal_tokens_apart():
    def even(ids):
        return [index % 2 == 0 for index in ids]

    trainer = tinytrl.trainer(EntropyShapedGRPOTrainer, shaping={"pivotal": even, "alpha": 0.3, "kappa": 3.0})
    trainer.model.eval()
    inputs = tinytrl.batch(tool=True)
    inputs["advantages"][2] = 0.0  # such tokens are not counted
    trainer._compute_loss(trainer.model, inputs)
    _, entropies = true_logps_and_entropies(trainer.model, inputs)
    tokens = [
        (entropies[row][column], float(inputs["advantages"][row]), int(inputs["completion_ids"][row, column]))
        for row, column in (inputs["completion_mask"] * inputs["tool_mask"]).nonzero().tolist()
    ]
    counted = [(0.3 * h, abs(a)) for h, a, _ in tokens if a]
    mean = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    assert mean["shaping/capped"] == pytest.approx(sum(w >= a / 3 for w, a in counted) / len(counted))
    assert mean["shaping/relative_bonus"] == pytest.approx(sum(min(w, a / 3) / a for w, a in counted) / len(counted))
    pivotal = [h for h, _, token in tokens if token % 2 == 0]
    other = [h for h, _, token in tokens if token % 2]
    assert mean["shaping/pivotal_entropy"] == pytest.approx(sum(pivotal) / len(pivotal), rel=1e-5)
    assert mean["shaping/other_entropy"] == pytest.approx(sum(other) / len(other), rel=1e-5)


def test_pivotal_must_mark_every_token():
    trainer = tinytrl.trainer(EntropyShapedGRPOTrainer, shaping={"pivotal": lambda ids: [True]})
    trainer.model.eval()
    with pytest.raises(SettingsError, match="1 marks for 5 tokens"):
        trainer._compute_loss(trainer.model, tinytrl.batch())


def test_groups_without_a_difference_are_left_alone_and_log_no_share():
    trainer = tinytrl.trainer(
        EntropyShapedGRPOTrainer, steps=1, rewards=lambda completions, **_: [1.0] * len(completions)
    )
    trainer.train()
    assert trainer.state.log_history[0]["shaping/capped"] is None
    assert trainer.state.log_history[0]["loss"] == 0


class ReadsTooEarly(GRPOTrainer):
    """As a TRL would that reads the advantages first."""

    def _compute_loss(self, model, inputs):
        self.early = inputs["advantages"]
        return super()._compute_loss(model, inputs)


class ComputesElsewhere(GRPOTrainer):
    """As a TRL would whose loss no longer goes through the method that is shaped."""

    def _compute_loss(self, model, inputs):
        return (model(input_ids=inputs["completion_ids"]).logits.sum(-1) * 0).mean()


class CopiesTheBatch(GRPOTrainer):
    """As a TRL would that works on a copy of the batch."""

    def _compute_loss(self, model, inputs):
        return super()._compute_loss(model, dict(inputs))


class EntropiesTwice(GRPOTrainer):
    """As a TRL would that computes the loss in two parts."""

    def _compute_loss(self, model, inputs):
        return super()._compute_loss(model, inputs) + super()._compute_loss(model, inputs)


class NoEntropies(GRPOTrainer):
    """As a TRL would that leaves the entropies out."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        logps, _, aux = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return logps, None, aux


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (ReadsTooEarly, "reads the advantages before it computes the entropies"),
        (ComputesElsewhere, "computed a loss without the shaped advantages"),
        (CopiesTheBatch, "computed a loss without the shaped advantages"),
        (EntropiesTwice, "computes the entropies of a batch twice"),
        (NoEntropies, "computes a loss without entropies"),
    ],
)
def test_another_order_of_calls_stops_training_in_the_first_step(base, message):
    trainer = tinytrl.trainer(type("Shaped", (EntropyShapedGRPOMixin, base), {}))
    with pytest.raises(SettingsError, match=message):
        trainer.train()


def test_a_nan_of_the_model_is_an_error_that_names_the_token():
    trainer = tinytrl.trainer(EntropyShapedGRPOTrainer)
    trainer.model.eval()
    trainer.model.lm_head.weight.data[3] = math.nan
    with pytest.raises(ScoringError, match="sequence 0, token 0"):
        trainer._compute_loss(trainer.model, tinytrl.batch())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance_sampling_level": "sequence"}, "has no meaning in a loss of whole sequences"),
        ({"loss_type": "luspo", "importance_sampling_level": "token"}, "shaping supports bnpo, cispo"),
        ({"use_liger_kernel": True}, "use_liger_kernel is not supported"),
    ],
)
def test_settings_that_cannot_be_shaped_are_refused_at_construction(settings, message):
    with pytest.raises(SettingsError, match=message):
        tinytrl.trainer(EntropyShapedGRPOTrainer, **settings)


@pytest.mark.parametrize("base", [RLOOTrainer, AsyncGRPOTrainer])
def test_other_trainers_are_refused(base):
    kind = type("Shaped", (EntropyShapedGRPOMixin, base), {})
    with pytest.raises(SettingsError, match="not a GRPOTrainer"):
        kind(model="never loaded")


def test_the_mixin_must_stand_first():
    with pytest.raises(SettingsError, match="must stand before GRPOTrainer"):
        type("Wrong", (GRPOTrainer, EntropyShapedGRPOMixin), {})


def test_kappa_and_alpha_are_checked_before_a_model_is_loaded():
    for wrong in ({"kappa": 1.0}, {"alpha": -1.0}):
        with pytest.raises(SettingsError):
            EntropyShapedGRPOTrainer(model="never loaded", args=None, **wrong)
    with pytest.raises(SettingsError):
        EntropyShapedGRPOTrainer("never loaded", None, GRPOConfig(loss_type="luspo", use_cpu=True, bf16=False))


@pytest.mark.parametrize("installed", ["0.17.0", "0.29.0"])
def test_versions_with_another_order_of_calls_are_refused(installed):
    with pytest.raises(SettingsError, match=r"TRL .* is installed; shaping needs TRL 0.29.1 or newer"):
        check_version(installed)


def test_tested_versions_pass_and_a_missing_trl_names_the_extra():
    for installed in ("0.29.1", "1.0.0", "1.8.0", "1.16.0", "1.17.0.dev0"):
        check_version(installed)
    with pytest.raises(SettingsError, match=r"hesnr-tasks\[trl\]"):
        check_version(None)
