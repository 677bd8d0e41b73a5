"""The whole objective: gaps, splits, gradients and what it needs, for every loss at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from verl.algorithms.config import Aggregation, CorrectionConfig, GuardConfig, LossConfig, LossName
from verl.algorithms.losses import sapo
from verl.algorithms.objective import LOSSES, policy_objective
from verl.algorithms.tokens import PolicyTokens, Totals, policy_spans

NAMES: tuple[LossName, ...] = get_args(LossName)
CORRECTIONS = (
    CorrectionConfig(),
    CorrectionConfig(mode="truncate", level="token", high=1.1),
    CorrectionConfig(mode="band", level="sequence"),
    CorrectionConfig(mode="reject", level="sequence-mean", low=0.9, high=1.2),
    CorrectionConfig(mode="truncate", reject_mean_above=0.05, reject_max_above=0.15),
)


def full_config(name: LossName, aggregation: Aggregation | None = None, correction: int = 1) -> LossConfig:
    """Every term switched on."""
    return LossConfig(
        name=name,
        aggregation=aggregation,
        constant_tokens=50 if aggregation == "token-sum-constant" else None,
        kl_coefficient=0.1,
        kl_estimator="k3+",
        entropy_coefficient=0.01,
        correction=CORRECTIONS[correction],
        guard=GuardConfig(coefficient=0.2),
        off_policy_mask=0.1 if correction == 4 else None,
    )


def pairs() -> list[tuple[LossName, Aggregation | None, int]]:
    """Every loss with every aggregation and correction that it admits."""
    flat = [(name, None, c) for name in NAMES for c in range(len(CORRECTIONS))]
    return flat + [(name, a, 1) for name in NAMES if name not in ("gmpo", "kto") for a in get_args(Aggregation)]


def take(tokens: PolicyTokens, chosen: Tensor) -> PolicyTokens:
    """The tokens of a micro-batch; ``logprobs`` stays connected to the leaf."""
    return PolicyTokens(**{item.name: getattr(tokens, item.name)[chosen] for item in fields(tokens)})


@pytest.mark.parametrize(("name", "aggregation", "correction"), pairs())
def test_micro_batches_add_up_to_the_global_batch(
    batch: PolicyTokens, totals: Totals, name: LossName, aggregation: Aggregation | None, correction: int
) -> None:
    config = full_config(name, aggregation, correction)
    whole = policy_objective(batch, totals, config)
    slope = torch.autograd.grad(whole.loss, batch.logprobs)[0]
    for parts in ([[0], [1], [2], [3], [4], [5]], [[0, 3], [1, 2, 5], [], [4]]):
        shares = [
            policy_objective(
                take(batch, torch.isin(batch.sequence, torch.tensor(part, dtype=torch.int64))), totals, config
            )
            for part in parts
        ]
        total = torch.stack([share.loss for share in shares]).sum()
        torch.testing.assert_close(total, whole.loss, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(total, batch.logprobs)[0], slope, rtol=1e-9, atol=1e-12)
        for key, value in whole.metrics.items():
            summed = torch.stack([share.metrics[key] for share in shares]).sum()
            torch.testing.assert_close(summed, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_observations_change_nothing(
    packed: dict[str, Tensor], batch: PolicyTokens, totals: Totals, name: LossName
) -> None:
    """Gathered out of gapped sequences, or packed without their observations: the same loss, metrics and gradient."""
    config = full_config(name)
    mask, sequence = packed["policy_mask"], packed["sequence"]
    leaf = packed["logprobs"].clone().requires_grad_()
    present = {item.name: packed[item.name] for item in fields(PolicyTokens) if packed.get(item.name) is not None}
    columns = present | {"logprobs": leaf}
    gathered = {name: column[mask] for name, column in columns.items()}
    gapped = policy_objective(PolicyTokens(**gathered, span=policy_spans(mask, sequence)), totals, config)
    slope = torch.autograd.grad(gapped.loss, leaf)[0]
    compact = policy_objective(batch, totals, config)
    torch.testing.assert_close(gapped.loss, compact.loss, rtol=0, atol=0)
    assert {key: v.item() for key, v in gapped.metrics.items()} == {key: v.item() for key, v in compact.metrics.items()}
    assert not slope[~mask].any()
    torch.testing.assert_close(slope[mask], torch.autograd.grad(compact.loss, batch.logprobs)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("cispo", "gspo")])
def test_the_gradient_is_the_derivative_of_the_value(batch: PolicyTokens, totals: Totals, name: LossName) -> None:
    """cispo and gspo stop gradients on purpose; their gradients are worked by hand in their own tests."""
    config = replace(full_config(name), kl_estimator="k3")
    assert torch.autograd.gradcheck(
        lambda logprobs: policy_objective(replace(batch, logprobs=logprobs), totals, config).loss, batch.logprobs
    )


@pytest.mark.parametrize("name", ["ppo_clip", "cispo", "sapo", "reinforce"])
def test_on_policy_every_policy_gradient_is_reinforce(batch: PolicyTokens, totals: Totals, name: LossName) -> None:
    tokens = replace(batch, old_logprobs=batch.logprobs.detach(), rollout_logprobs=None)
    config = LossConfig(name=name, aggregation="token-mean")
    slope = torch.autograd.grad(policy_objective(tokens, totals, config).loss, batch.logprobs)[0]
    torch.testing.assert_close(slope, -tokens.advantages / totals.policy_tokens, rtol=1e-12, atol=0)


def test_terms_enter_with_their_coefficients(make_tokens: Callable[..., PolicyTokens]) -> None:
    tokens = make_tokens(
        [[-1.0, -2.0]],
        [[-1.0, -2.0]],
        [1.0],
        reference_logprobs=[[-1.5, -2.0]],
        entropy=[[0.4, 0.6]],
        rollout_logprobs=[[-1.0, -2.0]],
    )
    config = LossConfig(kl_coefficient=0.1, kl_estimator="k2", entropy_coefficient=0.01)
    objective = policy_objective(tokens, Totals(2, 1), config)
    assert objective.loss.item() == pytest.approx(-1.0 + 0.1 * 0.125 / 2 - 0.01 * 0.5)
    assert objective.metrics["policy_loss"].item() == pytest.approx(-1.0)
    assert objective.metrics["kl_reference"].item() == pytest.approx(0.0625)
    assert objective.metrics["entropy"].item() == pytest.approx(0.5)
    assert objective.metrics["rollout_logprob_gap"].item() == 0.0


def test_measured_but_unweighted_terms_do_not_touch_the_gradient(batch: PolicyTokens, totals: Totals) -> None:
    entropy = batch.given("entropy").clone().requires_grad_()
    loss = policy_objective(replace(batch, entropy=entropy), totals, LossConfig()).loss
    assert torch.autograd.grad(loss, entropy, allow_unused=True)[0] is None


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_micro_batch_is_zero_and_can_run_backward(batch: PolicyTokens, totals: Totals, name: LossName) -> None:
    empty = take(batch, torch.zeros(len(batch.sequence), dtype=torch.bool))
    objective = policy_objective(empty, totals, full_config(name))
    objective.loss.backward()
    assert objective.loss.item() == 0.0
    assert all(value.item() == 0.0 for value in objective.metrics.values())


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (LossConfig(kl_coefficient=0.1), "reference_logprobs"),
        (LossConfig(name="kto"), "reference_logprobs"),
        (LossConfig(entropy_coefficient=0.1), "entropy"),
        (LossConfig(correction=CorrectionConfig(mode="truncate")), "rollout_logprobs"),
        (LossConfig(guard=GuardConfig(coefficient=0.2, anchor="rollout")), "rollout_logprobs"),
    ],
)
def test_a_missing_tensor_is_named(make_tokens: Callable[..., PolicyTokens], config: LossConfig, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        policy_objective(make_tokens([[-1.0]], [[-1.0]], [1.0]), Totals(1, 1), config)


def test_every_name_has_a_loss() -> None:
    assert set(LOSSES) == set(NAMES)
    assert LOSSES["sapo"] is sapo
